"""Sites that do not fit together, asked at once: each trains with its like, or is refused."""

from pathlib import Path

import numpy as np
import pytest

import client.agent
import client.work
from client.agent import SiteAgent
from client.data.sources import SiteSource
from client.policy import simulation_policy
from client.settings import SiteSettings
from client.together import answer_together
from client.training import SiteTask, fresh_adapter, train_shared
from shared.adapter import SharedAdapter
from shared.errors import AdapterMismatchError
from shared.messages import Request, decode_reply, encode
from shared.model.encoder import DualEncoder
from shared.parts import PARTS, pack_parts, part_digests

NAMES = ("east", "north", "south", "west")


@pytest.fixture(scope="module")
def encoders(small_job, clip_folder, siglip_folder):
    """The job's base at ranks 4 and 2, and another base at rank 4, by job."""
    loaded = {}
    for name, base, rank in (
        ("four", clip_folder, 4),
        ("two", clip_folder, 2),
        ("other", siglip_folder, 4),
    ):
        model = small_job.model.model_copy(update={"base": str(base)})
        lora = small_job.lora.model_copy(update={"rank": rank})
        job = small_job.model_copy(update={"model": model, "lora": lora})
        loaded[name] = (job, DualEncoder.load(model, lora))
    return loaded


@pytest.fixture
def cohorts(monkeypatch):
    """Who trained together."""
    seen = []

    def watch(encoder, tasks, job):
        seen.append([task.data.name for task in tasks])
        return train_shared(encoder, tasks, job)

    monkeypatch.setattr(client.work, "train_shared", watch)
    return seen


@pytest.fixture
def agent_of(tmp_path, site_of, monkeypatch):
    monkeypatch.setattr(client.agent, "load_site", lambda source, *_: site_of(source.name))

    def make(name, encoder):
        settings = SiteSettings(name, SiteSource(name, Path("x.csv"), Path()), tmp_path / name, {})
        return SiteAgent(settings, simulation_policy(), lambda _: encoder)

    return make


def ask(site, job, encoder):
    start = SharedAdapter(fresh_adapter(encoder.layout, 1).factors)
    request = Request(
        kind="train",
        run="run",
        round=1,
        site=site,
        base_sha256=encoder.base_sha256,
        job_sha256=job.digest(),
        job=job,
        seed=11,
        parts=part_digests(start),
        folds=start.folds,
        factors=("B",),
        weights={"image": 1, "text": 1},
        scale=2.0**16,
    )
    return encode(request, pack_parts(start, PARTS))


@pytest.mark.parametrize("second", ["two", "other"])
def test_sites_of_other_ranks_or_bases_train_with_their_like(
    encoders, agent_of, cohorts, second
) -> None:
    kinds = dict(zip(NAMES, ("four", second, "four", second), strict=True))
    asked = [
        (agent_of(name, encoders[kind][1]), ask(name, *encoders[kind]))
        for name, kind in kinds.items()
    ]
    replies = [decode_reply(body) for body in answer_together(asked)]
    assert [reply.status for reply, _ in replies] == ["ok"] * 4
    assert cohorts == [["east", "south"], ["north", "west"]]
    for (_, tensors), kind in zip(replies, kinds.values(), strict=True):
        layout = encoders[kind][1].layout
        assert {name: array.shape for name, array in tensors.items()} == {
            name: layout.shape_of(name) for name in layout.names(("B",))
        }


def test_a_site_with_another_base_than_asked_for_is_refused_and_the_others_train(
    encoders, agent_of, cohorts
) -> None:
    job, encoder = encoders["four"]
    agents = [agent_of(n, encoders["other"][1] if n == "north" else encoder) for n in NAMES]
    bodies = [ask(name, job, encoder) for name in NAMES]
    replies = [decode_reply(b)[0] for b in answer_together(list(zip(agents, bodies, strict=True)))]
    assert [(reply.site, reply.status, reply.reason) for reply in replies] == [
        ("east", "ok", None),
        ("north", "refused", "base-mismatch"),
        ("south", "ok", None),
        ("west", "ok", None),
    ]
    assert replies[1].detail == "the site's base has another digest"
    assert cohorts == [["east", "south", "west"]]


def test_an_adapter_of_another_rank_in_a_cohort_is_refused_with_both_shapes(
    encoders, site_of, small_job
) -> None:
    encoder = encoders["four"][1]
    starts = [
        SharedAdapter(fresh_adapter(encoders[k][1].layout, 1).factors) for k in ("four", "two")
    ]
    tasks = [SiteTask(site_of(), start, ("B",), 5, 1) for start in starts]
    with pytest.raises(
        AdapterMismatchError, match=r"lora_A.*: expected shape \(4, 32\), got \(2, 32\)"
    ):
        train_shared(encoder, tasks, small_job)
    (alone,) = train_shared(encoder, tasks[:1], small_job)  # the encoder is as good as before
    assert all(np.isfinite(array).all() for array in alone.factors.values())
