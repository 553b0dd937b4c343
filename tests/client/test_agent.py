"""What a site does with one request; a real encoder, real training, tiny records."""

import dataclasses
import json
import logging
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import client.agent
import client.work
from client.agent import SiteAgent
from client.audit_check import verify
from client.data.sources import SiteSource
from client.models_in_use import towers_in_use
from client.policy import simulation_policy
from client.settings import SiteSettings
from client.together import NotReleasedError, answer_together
from client.work import Validated, validate_together
from shared.adapter import SharedAdapter, factor_of
from shared.errors import BaseModelError, DataError, StorageError, TrainingError, VersionError
from shared.layout_file import adapter_bytes
from shared.messages import Request, decode_reply, encode
from shared.model.encoder import DualEncoder
from shared.parts import PARTS, pack_parts, part_digests

SEED = 11


@pytest.fixture(scope="module")
def job(small_job):
    return small_job.model_copy(
        update={"evaluate": small_job.evaluate.model_copy(update={"minimum_count": 1})}
    )


@pytest.fixture(scope="module")
def encoder(job):
    return DualEncoder.load(job.model, job.lora)


@pytest.fixture(scope="module")
def start(encoder):
    rng = np.random.default_rng(0)
    factors = {
        name: (
            rng.normal(0, 0.2, encoder.layout.shape_of(name))
            if factor_of(name) == "A"
            else np.zeros(encoder.layout.shape_of(name))
        ).astype(np.float32)
        for name in encoder.layout.names()
    }
    return SharedAdapter(factors)


@pytest.fixture
def kinds():
    return {}


@pytest.fixture
def agent_of(tmp_path, encoder, site_of, monkeypatch, kinds):
    def load_site(source, *_):
        return site_of(source.name, kinds.get(source.name, "paired"))

    monkeypatch.setattr(client.agent, "load_site", load_site)

    def make(name="north", policy=None, references=None, encoder_of=lambda _: encoder):
        source = SiteSource(name, Path("metadata.csv"), Path())
        settings = SiteSettings(name, source, tmp_path / name, references or {})
        return SiteAgent(settings, policy or simulation_policy(), encoder_of)

    return make


@pytest.fixture
def ask(job, encoder, start):
    def make(kind="train", shared=None, sent=PARTS, site="north", **changes):
        shared = shared or start
        values = {
            "kind": kind,
            "run": "run",
            "round": 0 if kind == "describe" else 1,
            "site": "" if kind == "describe" else site,
            "base_sha256": encoder.base_sha256,
            "job_sha256": job.digest(),
            "job": job,
            "seed": SEED,
        }
        tensors = {}
        if kind != "describe":
            values |= {"parts": part_digests(shared), "folds": shared.folds}
            tensors = pack_parts(shared, sent)
        if kind == "train":
            values |= {"factors": ("B",), "weights": {"image": 3, "text": 2}, "scale": 2.0**16}
        return encode(Request(**{**values, **changes}), tensors)

    return make


def test_describe_tells_kind_and_counts_and_nothing_else(agent_of, ask):
    reply, tensors = decode_reply(agent_of().handle(ask("describe")))
    assert reply.status == "ok"
    assert reply.site == "north"
    assert reply.description.kind == "paired"
    assert reply.description.examples == {"image": 48, "text": 48}
    assert tensors == {}
    assert reply.peak_memory_bytes > 10**8


def test_train_releases_the_weighted_change_of_the_phases_factors(agent_of, ask, encoder, start):
    reply, tensors = decode_reply(agent_of().handle(ask()))
    assert reply.status == "ok"
    assert sorted(tensors) == sorted(encoder.layout.names(("B",)))
    assert {array.dtype for array in tensors.values()} == {np.dtype(np.uint32)}
    for name, array in tensors.items():
        assert array.shape == encoder.layout.shape_of(name)
    moved = sum(float(np.abs(array.view(np.int32)).sum()) for array in tensors.values())
    assert moved > 0
    assert reply.weights == {"image": 3, "text": 2}
    assert reply.summary.steps == 4
    assert np.isfinite(reply.summary.validation_loss)
    assert set(reply.summary.gradient_norms) == {"image", "text"}
    assert reply.holds == part_digests(start)


def test_the_same_request_gets_the_same_answer_without_a_second_training(
    agent_of, ask, monkeypatch
):
    agent = agent_of()
    first = agent.handle(ask())
    monkeypatch.setattr(client.work, "train_shared", lambda *_: pytest.fail("trained twice"))
    assert agent.handle(ask()) == first
    assert agent_of().handle(ask()) == first  # a new process of the same site


def test_another_attempt_costs_no_second_training_and_gives_the_same_change(
    agent_of, ask, monkeypatch, tmp_path
):
    first, change = decode_reply(agent_of().handle(ask()))
    monkeypatch.setattr(client.work, "train_shared", lambda *_: pytest.fail("trained twice"))
    for attempt in (2, 3):
        reply, again = decode_reply(agent_of().handle(ask(attempt=attempt)))
        assert reply == first.model_copy(update={"attempt": attempt})
        assert {n: a.tobytes() for n, a in change.items()} == {
            n: a.tobytes() for n, a in again.items()
        }
    log = (tmp_path / "north" / "audit.jsonl").read_text().splitlines()
    released = [json.loads(line)["what"] for line in log]
    assert [what for what in released if "approved" not in what] == ["update", "again", "again"]


def test_another_seed_gives_another_change(agent_of, ask):
    agent = agent_of()
    _, first = decode_reply(agent.handle(ask()))
    _, second = decode_reply(agent.handle(ask(seed=SEED + 1)))
    assert any((first[name] != second[name]).any() for name in first)


@pytest.mark.parametrize(("kind", "tower"), [("image", "image"), ("text", "text")])
def test_a_site_without_a_tower_sends_nothing_of_it(agent_of, ask, encoder, kinds, kind, tower):
    kinds["north"] = kind
    agent = agent_of()
    described, _ = decode_reply(agent.handle(ask("describe")))
    assert described.description.kind == kind
    assert described.description.examples[tower] == 48
    assert sum(described.description.examples.values()) == 48
    reply, tensors = decode_reply(agent.handle(ask()))
    assert reply.weights == {tower: {"image": 3, "text": 2}[tower]}
    assert {encoder.layout.tower_of(name) for name in tensors} == {tower}


def test_a_round_without_a_tower_of_the_site_is_refused(agent_of, ask, kinds):
    kinds["north"] = "image"
    reply, tensors = decode_reply(agent_of().handle(ask(weights={"text": 1})))
    assert (reply.status, reply.reason) == ("refused", "no-training-data")
    assert tensors == {}


def test_held_parts_need_not_be_sent_again(agent_of, ask, start):
    agent = agent_of()
    agent.handle(ask())
    changed = SharedAdapter(
        {n: a + 0.01 if factor_of(n) == "B" else a for n, a in start.factors.items()}
    )
    short = ask(shared=changed, sent=["B"])
    reply, tensors = decode_reply(agent.handle(short))
    assert reply.status == "ok"
    assert reply.holds == part_digests(changed)
    fresh, expected = decode_reply(agent_of().handle(ask(shared=changed, run="another")))
    assert fresh.status == "ok"
    assert {n: a.tobytes() for n, a in tensors.items()} == {
        n: a.tobytes() for n, a in expected.items()
    }


def test_a_missing_part_is_asked_for(agent_of, ask, start):
    reply, tensors = decode_reply(agent_of().handle(ask(sent=["B"])))
    assert reply.status == "needs"
    assert tensors == {}
    assert "A" not in reply.holds
    assert reply.holds["B"] == part_digests(start)["B"]


def test_a_damaged_held_part_is_asked_for_again(agent_of, ask, tmp_path):
    agent = agent_of()
    agent.handle(ask())
    held = tmp_path / "north" / "held" / "A.safetensors"
    content = bytearray(held.read_bytes())
    content[-1] ^= 1
    held.write_bytes(content)
    reply, _ = decode_reply(agent.handle(ask(sent=["B"], attempt=2)))
    assert reply.status == "needs"


def test_a_part_with_another_digest_than_stated_is_refused(agent_of, ask, start):
    wrong = part_digests(start) | {"A": "e" * 64}
    reply, _ = decode_reply(agent_of().handle(ask(parts=wrong)))
    assert (reply.status, reply.reason) == ("refused", "wire")


def test_an_adapter_that_does_not_fit_is_refused(agent_of, ask, start):
    name = next(iter(start.factors))
    other = SharedAdapter({n: a for n, a in start.factors.items() if n != name})
    reply, _ = decode_reply(agent_of().handle(ask(shared=other)))
    assert (reply.status, reply.reason) == ("refused", "adapter-mismatch")


def test_an_adapter_that_is_not_finite_is_refused(agent_of, ask, start):
    name = next(iter(start.factors))
    bad = {**start.factors, name: np.full_like(start.factors[name], np.nan)}
    reply, _ = decode_reply(agent_of().handle(ask(shared=SharedAdapter(bad))))
    assert (reply.status, reply.reason) == ("refused", "adapter-mismatch")


def test_a_residual_of_any_rank_is_taken_and_a_wrong_one_refused(agent_of, ask, encoder, start):
    rng = np.random.default_rng(1)
    residual = {}
    for name in encoder.layout.names():
        m, n = encoder.layout.shape_of(name)
        shape = (7, n) if factor_of(name) == "A" else (m, 7)
        residual[name] = rng.normal(0, 0.01, shape).astype(np.float32)
    folded = SharedAdapter(start.factors, residual, folds=1)
    agent = agent_of()
    reply, _ = decode_reply(agent.handle(ask(shared=folded)))
    assert reply.status == "ok"
    first = next(iter(residual))
    for wrong in (
        {n: a for n, a in residual.items() if n != first},
        {**residual, first: residual[first][:3]},
        {**residual, "base_model.model.other.lora_B.weight": residual[first]},
    ):
        asked = ask(shared=SharedAdapter(start.factors, wrong, folds=1))
        reply, _ = decode_reply(agent.handle(asked))
        assert (reply.status, reply.reason) == ("refused", "adapter-mismatch")


def test_personalize_keeps_the_adapter_at_the_site(agent_of, ask, start, tmp_path):
    agent = agent_of()
    reply, tensors = decode_reply(agent.handle(ask("personalize")))
    assert reply.status == "ok"
    assert tensors == {}
    assert (reply.summary, reply.evaluation, reply.description) == (None, None, None)
    kept = tmp_path / "north" / "personal" / f"{start.sha256()}.safetensors"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "north").stat().st_mode) == 0o700


def test_evaluate_scores_every_model_there_is(agent_of, ask, start, tmp_path):
    local = tmp_path / "local.safetensors"
    local.write_bytes(adapter_bytes(start))
    agent = agent_of(references={"local": local, "centralised": tmp_path / "missing.safetensors"})
    reply, _ = decode_reply(agent.handle(ask("evaluate")))
    assert set(reply.evaluation.metrics) == {"base", "local", "shared"}
    assert reply.evaluation.in_use == {"image": "shared", "text": "shared"}
    agent.handle(ask("personalize"))
    reply, tensors = decode_reply(agent.handle(ask("evaluate")))
    assert set(reply.evaluation.metrics) == {"base", "local", "shared", "personal"}
    assert tensors == {}
    assert np.isfinite(reply.summary.validation_loss)


def test_evaluation_survives_a_restart_of_the_agent(agent_of, ask):
    agent_of().handle(ask("personalize"))
    reply, _ = decode_reply(agent_of().handle(ask("evaluate")))
    assert "personal" in reply.evaluation.metrics


def test_a_personal_adapter_of_another_shared_one_is_not_used(agent_of, ask, start):
    agent = agent_of()
    agent.handle(ask("personalize"))
    other = SharedAdapter({n: a * 1.5 for n, a in start.factors.items()})
    reply, _ = decode_reply(agent.handle(ask("evaluate", shared=other)))
    assert "personal" not in reply.evaluation.metrics


def test_the_stricter_least_number_of_patients_holds(agent_of, ask):
    policy = simulation_policy().model_copy(update={"minimum_count": 1000, "exact": False})
    reply, _ = decode_reply(agent_of(policy=policy).handle(ask("evaluate")))
    assert reply.status == "ok"
    assert all(not row for row in reply.evaluation.metrics.values())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"site": "south"}, "other-site"),
        ({"site": ""}, "other-site"),
        ({"base_sha256": "0" * 64}, "base-mismatch"),
        ({"job_sha256": "0" * 64}, "job-digest"),
        ({"round": 3}, "policy-rounds"),
    ],
)
def test_a_request_that_is_not_for_this_site_and_run_is_refused(agent_of, ask, changes, reason):
    reply, tensors = decode_reply(agent_of().handle(ask(**changes)))
    assert (reply.status, reply.reason) == ("refused", reason)
    assert tensors == {}


def test_the_policy_is_asked_before_any_record_is_opened(agent_of, ask, monkeypatch):
    monkeypatch.setattr(client.agent, "load_site", lambda *_: pytest.fail("opened"))
    agent = agent_of(
        policy=simulation_policy().model_copy(update={"max_rounds": 1}),
        encoder_of=lambda _: pytest.fail("loaded a base"),
    )
    reply, _ = decode_reply(agent.handle(ask()))
    assert (reply.status, reply.reason) == ("refused", "policy-rounds")


@pytest.mark.parametrize("body", [b"", b"garbage", b"CONS\x01" + b"\xff" * 40])
def test_garbage_is_refused(agent_of, body):
    reply, _ = decode_reply(agent_of().handle(body))
    assert (reply.status, reply.reason, reply.run) == ("refused", "wire", "")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DataError("patient Jane Doe has no image"), "data"),
        (BaseModelError("/home/jane/base: damaged"), "base"),
        (TrainingError("loss-not-finite", "at report 'Jane has pneumonia'"), "loss-not-finite"),
        (ValueError("Jane has pneumonia"), "internal"),
        (MemoryError("Jane"), "out-of-memory"),
    ],
)
def test_the_text_of_an_error_stays_at_the_site(agent_of, ask, monkeypatch, caplog, error, reason):
    def fail(*_):
        raise error

    monkeypatch.setattr(client.agent, "load_site", fail)
    with caplog.at_level(logging.DEBUG):
        body = agent_of().handle(ask())
    reply, _ = decode_reply(body)
    assert (reply.status, reply.reason) == ("refused", reason)
    assert b"Jane" not in body
    assert b"jane" not in body
    assert "Jane" not in caplog.text
    assert "jane" not in caplog.text
    assert "test_agent.py:" in caplog.text


def test_a_refusal_can_be_followed_by_an_answer(agent_of, ask, monkeypatch, site_of):
    def fail(*_):
        raise DataError("not yet")

    agent = agent_of()
    with monkeypatch.context() as patch:
        patch.setattr(client.agent, "load_site", fail)
        assert decode_reply(agent.handle(ask()))[0].status == "refused"
    assert decode_reply(agent.handle(ask()))[0].status == "ok"


def test_everything_that_left_is_in_the_audit_log(agent_of, ask, tmp_path):
    agent = agent_of()
    for body in (ask("describe"), ask(), ask(), b"garbage", ask("personalize")):
        agent.handle(body)
    log = tmp_path / "north" / "audit.jsonl"
    assert verify(log).lines == 9
    told = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["what"] for line in told] == [
        "approved describe", "description", "approved train", "update", "approved train", "again",
        "refusal wire", "approved personalize", "done",
    ]  # fmt: skip
    assert all(line["detail"]["purpose"] == "simulation" for line in told[::2][:3])


def test_a_request_of_another_version_is_refused_with_both_named(agent_of, ask, caplog):
    text = b'{"kind": "train", "program": "7.1.0", "minor": 2, "unheard": "of"}'
    body = b"CONS\x09" + len(text).to_bytes(8, "little") + text + ask()[200:]
    answer = agent_of().handle(body)
    with pytest.raises(VersionError, match="the other side is consilia"):
        decode_reply(answer)  # as the coordinator does
    assert "the other side is consilia 7.1.0 (protocol 9.2)" in caplog.text
    assert "Traceback" not in caplog.text


def test_towers_in_use_follow_alpha_and_what_was_trained():
    assert towers_in_use(("image", "text"), {"image": 1.0, "text": 0.0}) == {
        "image": "personal",
        "text": "shared",
    }
    assert towers_in_use(("text",), {}) == {"image": "not trained", "text": "shared"}


# Sites of one process


@pytest.fixture
def trained(monkeypatch):
    """Names of the sites of every cohort that was trained."""
    cohorts = []
    train = client.work.train_shared

    def watch(encoder, tasks, job):
        cohorts.append([task.data.name for task in tasks])
        return train(encoder, tasks, job)

    monkeypatch.setattr(client.work, "train_shared", watch)
    return cohorts


NAMES = ("north", "south", "west")


@pytest.fixture
def cohort(agent_of, kinds):
    """Three sites: paired, images, texts."""
    kinds.update(zip(NAMES, ("paired", "image", "text"), strict=True))
    return {name: agent_of(name) for name in NAMES}


def numbers_of(body):
    reply, tensors = decode_reply(body)
    assert reply.status == "ok", reply
    return reply, {name: array.view(np.int32) for name, array in tensors.items()}


def test_sites_that_train_together_answer_what_each_answers_alone(cohort, ask, trained):
    together = answer_together([(agent, ask(site=name)) for name, agent in cohort.items()])
    assert trained == [list(NAMES)]
    for (name, agent), body in zip(cohort.items(), together, strict=True):
        reply, found = numbers_of(body)
        own, alone = numbers_of(agent.handle(ask(site=name, run="alone")))
        assert (reply.site, reply.weights, reply.holds) == (name, own.weights, own.holds)
        assert reply.summary.steps == own.summary.steps
        assert reply.summary.loss == pytest.approx(own.summary.loss, rel=1e-5)
        assert reply.summary.validation_loss == pytest.approx(own.summary.validation_loss, rel=1e-6)
        assert found.keys() == alone.keys()
        unit = 3 * 2**16  # of the largest weight: 1.0 in fixed point
        assert max(np.abs(array).max() for array in alone.values()) > 1e-3 * unit
        assert max(np.abs(found[name] - alone[name]).max() for name in found) <= 1e-5 * unit + 1


def test_kept_answers_are_used_only_if_all_of_a_cohort_were_kept(cohort, ask, trained):
    asked = [(agent, ask(site=name)) for name, agent in cohort.items()]
    lone = cohort["north"].handle(asked[0][1])
    first = answer_together(asked)
    assert trained == [["north"], list(NAMES)]
    assert first[0] != lone  # the cohort's, so that a repeated cohort gives its bits
    assert answer_together(asked) == first
    assert answer_together(asked[1:]) == first[1:]
    assert len(trained) == 2


def test_a_repeated_cohort_gives_the_same_numbers_bit_for_bit(cohort, ask, trained):
    first, second = (
        answer_together([(agent, ask(site=n, run=f"run {k}")) for n, agent in cohort.items()])
        for k in (1, 2)
    )
    assert trained == [list(NAMES)] * 2
    for one, two in zip(first, second, strict=True):
        found, again = numbers_of(one)[1], numbers_of(two)[1]
        assert {n: a.tobytes() for n, a in found.items()} == {
            n: a.tobytes() for n, a in again.items()
        }


def test_personal_fits_of_a_cohort_are_those_of_each_site(cohort, ask, start, tmp_path):
    def kept():
        paths = {n: tmp_path / n / "personal" / f"{start.sha256()}.safetensors" for n in NAMES}
        return {name: load_file(path) for name, path in paths.items()}

    answers = answer_together([(a, ask("personalize", site=n)) for n, a in cohort.items()])
    assert [decode_reply(body)[0].status for body in answers] == ["ok"] * 3
    together = kept()
    for name, agent in cohort.items():
        agent.handle(ask("personalize", site=name, attempt=2))
    for name, alone in kept().items():
        assert together[name].keys() == alone.keys()
        assert any(np.abs(array).max() > 1e-3 for array in alone.values())
        for factor, array in alone.items():
            np.testing.assert_allclose(together[name][factor], array, atol=1e-5)


def test_what_cannot_be_answered_together_keeps_its_place(cohort, ask, trained, start):
    other = SharedAdapter({n: a * 1.5 for n, a in start.factors.items()})
    asked = [
        (cohort["north"], b"garbage"),
        (cohort["south"], ask("describe")),
        (cohort["west"], ask(site="west", shared=other)),
    ]
    replies = [decode_reply(body)[0] for body in answer_together(asked)]
    assert [(r.site, r.status, r.kind) for r in replies] == [
        ("north", "refused", "describe"), ("south", "ok", "describe"), ("west", "ok", "train"),
    ]  # fmt: skip
    assert trained == [["west"]]


def test_a_site_that_diverges_is_refused_and_the_others_answer(
    cohort, ask, start, monkeypatch, caplog
):
    asked = [(agent, ask(site=name)) for name, agent in cohort.items()]
    expected = answer_together(asked)
    train = client.work.train_shared

    def diverging(encoder, tasks, job):
        factors = {n: np.full_like(a, np.inf) for n, a in tasks[1].start.factors.items()}
        bad = dataclasses.replace(tasks[1], start=SharedAdapter(factors, tasks[1].start.residual))
        return train(encoder, [tasks[0], bad, tasks[2]], job)

    monkeypatch.setattr(client.work, "train_shared", diverging)
    again = [(agent, ask(site=name, run="another")) for name, agent in cohort.items()]
    north, south, west = answer_together(again)
    reply, tensors = decode_reply(south)
    assert (reply.status, reply.reason, tensors) == ("refused", "loss-not-finite", {})
    assert "request refused: loss-not-finite" in caplog.text
    for body, wanted in ((north, expected[0]), (west, expected[2])):
        found, well = numbers_of(body)[1], numbers_of(wanted)[1]
        assert max(np.abs(found[name] - well[name]).max() for name in well) <= 1


def test_an_error_at_one_site_does_not_keep_the_others_from_training(
    cohort, ask, monkeypatch, caplog
):
    train = client.work.train_shared

    def failing(encoder, tasks, job):
        if any(task.data.name == "south" for task in tasks):
            raise ValueError("Jane has pneumonia")
        return train(encoder, tasks, job)

    monkeypatch.setattr(client.work, "train_shared", failing)
    answers = answer_together([(agent, ask(site=name)) for name, agent in cohort.items()])
    replies = [decode_reply(body)[0] for body in answers]
    assert [(r.status, r.reason) for r in replies] == [
        ("ok", None), ("refused", "internal"), ("ok", None),
    ]  # fmt: skip
    assert "Jane" not in caplog.text


def test_sites_that_are_measured_together_answer_what_each_answers_alone(cohort, ask, start):
    for name, agent in cohort.items():
        agent.handle(ask("personalize", site=name))
    together = answer_together([(a, ask("evaluate", site=n)) for n, a in cohort.items()])
    for (name, agent), body in zip(cohort.items(), together, strict=True):
        reply, own = (
            decode_reply(body)[0],
            decode_reply(agent.handle(ask("evaluate", site=name)))[0],
        )
        assert (reply.status, reply.site, own.status) == ("ok", name, "ok")
        loss = own.summary.validation_loss
        assert reply.summary.validation_loss == pytest.approx(loss, rel=1e-6)
        found, alone = reply.evaluation.metrics, own.evaluation.metrics
        assert found.keys() == alone.keys()
        for model, table in alone.items():
            assert found[model].keys() == table.keys()
            for metric, entry in table.items():
                assert found[model][metric].value == pytest.approx(entry.value, abs=1e-6)


def test_every_validation_set_of_a_cohort_is_encoded_in_the_same_chunks(
    cohort, ask, encoder, monkeypatch
):
    chunks = []
    encode = encoder.encode_images

    def counted(pixels, counts=None):
        if not torch.is_grad_enabled():
            chunks.append(len(pixels))
        return encode(pixels, counts)

    monkeypatch.setattr(encoder, "encode_images", counted)
    works = [agent.begin(ask(site=name)) for name, agent in cohort.items()]
    found = validate_together(works)
    images = [int(work.data.splits["val"].has_image.sum()) for work in works]
    assert chunks == [sum(images)]
    assert 0 < max(images) < sum(images)
    assert [type(each) for each in found] == [Validated] * 3


def test_an_error_in_one_validation_set_does_not_keep_the_others(cohort, ask, monkeypatch, caplog):
    measure = client.work.validation_losses

    def failing(encoder, sites, view, job):
        if any(data.name == "south" for data in sites):
            raise ValueError("Jane has pneumonia")
        return measure(encoder, sites, view, job)

    monkeypatch.setattr(client.work, "validation_losses", failing)
    for kind in ("train", "evaluate"):
        asked = [(agent, ask(kind, site=name)) for name, agent in cohort.items()]
        replies = [decode_reply(body)[0] for body in answer_together(asked)]
        assert [(r.status, r.reason) for r in replies] == [
            ("ok", None), ("refused", "internal"), ("ok", None),
        ]  # fmt: skip
    assert "Jane" not in caplog.text


@pytest.mark.parametrize("kind", ["describe", "train", "personalize", "evaluate"])
def test_a_site_that_cannot_note_its_answer_releases_nothing_and_the_others_answer(
    cohort, ask, tmp_path, kind, caplog
):
    def asked():
        return [(agent, ask(kind, site=name)) for name, agent in cohort.items()]

    (tmp_path / "south" / "audit.jsonl").mkdir()
    with pytest.raises(NotReleasedError, match=r"audit\.jsonl") as failed:
        answer_together(asked())
    north, south, west = failed.value.answers
    assert isinstance(south, StorageError)
    assert [decode_reply(body)[0].status for body in (north, west)] == ["ok", "ok"]
    assert "nothing released: storage" in caplog.text
    logs = [tmp_path / name / "audit.jsonl" for name in ("north", "west")]
    assert [verify(log).lines for log in logs] == [2, 2]  # approved, and what left
    with pytest.raises(StorageError, match=r"audit\.jsonl"):
        cohort["south"].handle(ask(kind, site="south"))
    (tmp_path / "south" / "audit.jsonl").rmdir()
    assert [decode_reply(body)[0].status for body in answer_together(asked())] == ["ok"] * 3
    assert verify(tmp_path / "south" / "audit.jsonl").lines == 2


def test_a_site_that_cannot_even_refuse_releases_nothing(cohort, ask, tmp_path):
    (tmp_path / "south" / "audit.jsonl").mkdir()
    with pytest.raises(NotReleasedError) as failed:
        answer_together([(cohort["south"], b"garbage"), (cohort["west"], ask(site="west"))])
    assert isinstance(failed.value.answers[0], StorageError)
    assert decode_reply(failed.value.answers[1])[0].status == "ok"
