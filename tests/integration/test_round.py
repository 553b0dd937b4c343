"""A federation in one process, from folders on disk to evaluations."""

import json
from contextlib import ExitStack

import numpy as np
import pytest

from client.service import SocketChannel, serve
from client.together import answer_together
from shared.config import JobConfig
from shared.errors import InterruptedRunError
from shared.layout_file import load_adapter
from shared.wire import body_of
from simulations.grid import LocalGrid, LostMessageError, Together


def test_rounds_lower_the_loss_and_everything_is_measured(federation_of, tmp_path):
    federation = federation_of()
    longer = federation.job.model_copy(update={"rounds": 4})
    outcome = federation.run(tmp_path / "run", job=longer)
    assert outcome.complete
    assert outcome.rounds == 4
    assert set(outcome.sites) == {"a-paired", "b-image", "c-text"}
    assert outcome.sites["a-paired"].examples == {"image": 48, "text": 48}
    assert outcome.sites["b-image"].kind == "image"
    assert [cell.state for cell in outcome.sites["c-text"].participation] == ["in"] * 4
    course = [point.loss for point in outcome.sites["a-paired"].course]
    assert len(course) == 5
    assert course[-1] < course[0]
    evaluation = outcome.evaluations["a-paired"]
    assert {"base", "shared", "personal"} <= set(evaluation.metrics)
    assert outcome.evaluations["b-image"].in_use["text"] == "not trained"
    assert outcome.shared.folds > 0
    assert (tmp_path / "run" / "checkpoints" / "round-0004" / "shared.safetensors").exists()


@pytest.fixture(scope="module")
def plain(make_federation, tmp_path_factory):
    """A federation, and what its job comes to in the plainest way."""
    folder = tmp_path_factory.mktemp("plain")
    federation = make_federation(folder)
    return federation, federation.run(folder / "run")


def test_the_same_job_gives_the_same_bits(plain, tmp_path):
    federation, first = plain
    second = federation.run(tmp_path / "second")
    assert first.shared.sha256() == second.shared.sha256()
    assert first.evaluations == second.evaluations


class Backwards(LocalGrid):
    """Hands every batch of messages to the sites from last to first."""

    def push_messages(self, messages):
        return super().push_messages(list(messages)[::-1])[::-1]


class SlowFirst(LocalGrid):
    """Keeps the reply of the first site back until the others are there."""

    def pull_messages(self, message_ids):
        wanted = set(message_ids)
        with self._news:
            ready = [i for i in self._replies if i in wanted]
        if len(ready) < len(wanted):
            ready = [i for i in ready if self._replies[i].metadata.src_node_id != 1]
        return super().pull_messages(ready)[::-1]


@pytest.mark.parametrize("grid", [Backwards, SlowFirst])
def test_the_order_of_the_replies_does_not_change_a_bit(plain, tmp_path, grid):
    federation, first = plain
    second = federation.run(tmp_path / "second", grid)
    assert first.shared.sha256() == second.shared.sha256()


def in_cohorts(samples):
    load = {"a-paired": 16, "b-image": 16, "c-text": 16}
    return lambda agents: LocalGrid(agents, Together(answer_together, load, samples))


@pytest.mark.parametrize("samples", [32, 99])
def test_in_cohorts_the_numbers_are_the_same(plain, tmp_path, samples):
    """Training, personalization and evaluation, over rounds, folding and the gauge."""
    federation, alone = plain
    together = federation.run(tmp_path / "together", in_cohorts(samples))
    for part in ("factors", "residual"):
        one, other = getattr(together.shared, part), getattr(alone.shared, part)
        assert one.keys() == other.keys()
        for name, array in other.items():
            np.testing.assert_allclose(one[name], array, atol=1e-4)
    moved = [a for n, a in alone.shared.residual.items() if ".lora_B" in n]
    assert max(float(np.abs(array).max()) for array in moved) > 1e-3
    assert together.sites.keys() == alone.sites.keys()
    for site, found in together.sites.items():
        for point, wanted in zip(found.course, alone.sites[site].course, strict=True):
            assert point.loss == pytest.approx(wanted.loss, abs=1e-4)
    for site, evaluation in together.evaluations.items():
        wanted = alone.evaluations[site]
        assert evaluation.in_use == wanted.in_use
        assert evaluation.metrics["base"] == wanted.metrics["base"]
        for model in ("shared", "personal"):
            for metric, found in evaluation.metrics[model].items():
                assert found.value == pytest.approx(wanted.metrics[model][metric].value, abs=0.05)
    again = federation.run(tmp_path / "again", in_cohorts(samples))
    assert again.shared.sha256() == together.shared.sha256()
    assert again.evaluations == together.evaluations


def test_a_run_that_stops_in_any_round_goes_on_to_the_same_bits(plain, tmp_path):
    """With cohorts, parts that the sites hold already, and folding in every other round."""
    federation, _ = plain
    tree = federation.job.model_dump(mode="json") | {"rounds": 5}
    tree["aggregate"] |= {"fold_every": 2}
    tree["personalize"] |= {"method": "none"}
    job = JobConfig.model_validate(tree)
    undisturbed = federation.run(tmp_path / "whole", in_cohorts(99), job).shared.sha256()
    for stop in range(1, 6):

        def interrupt(event, stop=stop):
            if event.kind == "round-started" and event.round == stop:
                raise KeyboardInterrupt

        with pytest.raises(InterruptedRunError):
            federation.run(tmp_path / str(stop), in_cohorts(99), job, interrupt)
        resumed = federation.run(tmp_path / str(stop), in_cohorts(99), job)
        assert resumed.shared.sha256() == undisturbed


def test_through_the_agents_sockets_the_bits_are_the_same(plain, tmp_path_factory, tmp_path):
    federation, inside = plain
    sockets = tmp_path_factory.mktemp("s")
    with ExitStack() as served:

        def grid_of(agents):
            for name, agent in agents.items():
                served.enter_context(serve(agent, sockets / name))
            return LocalGrid({name: SocketChannel(sockets / name) for name in agents})

        outside = federation.run(tmp_path / "outside", grid_of)
    assert outside.shared.sha256() == inside.shared.sha256()
    assert outside.evaluations == inside.evaluations


def test_a_tower_that_no_site_trains_stays_bit_identical(federation_of, tmp_path):
    federation = federation_of(("image", "image"))
    run = tmp_path / "run"
    outcome = federation.run(run)
    layout = federation.encoder.layout
    for name, array in outcome.shared.factors.items():
        if layout.tower_of(name) == "text" and name.endswith("lora_B.weight"):
            assert not array.any()
    text_residual = [n for n in outcome.shared.residual if layout.tower_of(n) == "text"]
    for name in text_residual:
        if name.endswith("lora_B.weight"):
            assert not outcome.shared.residual[name].any()
    # The function of the text tower is the base's, whatever the gauge did to A.
    moved = [
        n for n, a in outcome.shared.factors.items() if layout.tower_of(n) == "image" and a.any()
    ]
    assert moved


def test_a_site_without_a_tower_cannot_move_it(federation_of, tmp_path):
    both = federation_of(("paired", "image"))
    one_round = both.job.model_copy(update={"rounds": 1})
    outcome = both.run(tmp_path / "both", job=one_round)
    alone = both.run(
        tmp_path / "alone",
        lambda agents: LocalGrid({"a-paired": agents["a-paired"]}),
        job=one_round,
    )
    layout = both.encoder.layout
    for name, array in outcome.shared.residual.items():
        other = alone.shared.residual[name]
        if layout.tower_of(name) == "text":
            # Only the step of the fixed point depends on who else takes part.
            np.testing.assert_allclose(array, other, atol=1e-6)
        elif name.endswith("lora_B.weight"):
            assert np.abs(array - other).max() > 1e-5


def test_a_lost_reply_closes_the_round_at_its_deadline_and_is_told(federation_of, tmp_path):
    federation = federation_of()
    tree = federation.job.model_dump(mode="json")
    tree["rounds"] = 1
    tree["aggregate"] |= {"deadline_seconds": 4.0, "quorum": 1}
    job = type(federation.job).model_validate(tree)

    def fail(message):
        if message.metadata.dst_node_id == 3 and message.metadata.message_type == "train":
            raise LostMessageError

    outcome = federation.run(
        tmp_path / "run", lambda agents: LocalGrid(agents, fail=fail), job.model_copy()
    )
    assert not outcome.complete
    assert [cell.state for cell in outcome.sites["c-text"].participation] == ["missing"]
    assert [cell.state for cell in outcome.sites["a-paired"].participation] == ["in"]


def test_a_failing_site_is_left_out_with_a_reason(federation_of, tmp_path):
    federation = federation_of()

    def fail(message):
        if message.metadata.dst_node_id == 2 and message.metadata.message_type == "train":
            raise OSError("the text of this error stays at the site")

    outcome = federation.run(tmp_path / "run", lambda agents: LocalGrid(agents, fail=fail))
    assert not outcome.complete
    cells = outcome.sites["b-image"].participation
    assert [(cell.state, cell.reason) for cell in cells] == [("missing", "site-error")] * 2
    assert "stays at the site" not in (tmp_path / "run" / "events.jsonl").read_text()


def test_a_part_that_did_not_change_is_not_sent_again(federation_of, tmp_path):
    federation = federation_of()
    tree = federation.job.model_dump(mode="json")
    tree["rounds"] = 4
    tree["aggregate"] |= {"rule": "ffa", "fold_every": 0}  # A stays what it was
    sizes = []

    class Weighing(LocalGrid):
        def push_messages(self, messages):
            batch = list(messages)
            sizes.extend(len(body_of(m)) for m in batch if m.metadata.message_type == "train")
            return super().push_messages(batch)

    federation.run(tmp_path / "run", Weighing, type(federation.job).model_validate(tree))
    first, later = sizes[:3], sizes[3:]
    assert max(later) <= max(first)
    assert min(later) < 0.75 * max(first)


def test_the_committed_adapter_is_the_outcomes(federation_of, tmp_path):
    federation = federation_of(("paired", "paired"))
    outcome = federation.run(tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "round-0002"
    manifest = json.loads((folder / "manifest.json").read_text())
    stored = load_adapter(folder / "shared.safetensors")
    assert stored.sha256() == outcome.shared.sha256() == manifest["adapter_sha256"]
    assert all(np.isfinite(a).all() for a in stored.factors.values())
