"""``fedsa`` end to end: A is shared, every site keeps a B of its own, and none of it leaves."""

import numpy as np
import pytest

from client.agent import load_records
from client.own_factor import OwnFactor
from client.state import SiteState
from client.together import answer_together
from client.training import SiteTask, train_shared
from server.weights import round_weights
from shared.adapter import SharedAdapter, factor_name, factor_of
from shared.config import JobConfig
from shared.errors import InterruptedRunError
from shared.messages import decode_reply, decode_request
from simulations.grid import LocalGrid, Together


def job_of(base, **aggregate):
    tree = base.model_dump(mode="json", exclude={"aggregate", "personalize"})
    tree["aggregate"] = {"rule": "fedsa", **aggregate}
    return JobConfig.model_validate(tree)


def in_one_cohort(agents):
    return LocalGrid(agents, Together(answer_together, dict.fromkeys(agents, 16), 99))


@pytest.fixture(scope="module")
def federation(make_federation, tmp_path_factory):
    return make_federation(tmp_path_factory.mktemp("sites"), ("paired", "image", "unpaired"))


@pytest.fixture(scope="module")
def job(federation):
    return job_of(federation.job)


def own_adapters(run, outcome):
    """What every site uses, from its own folder."""
    return {
        folder.name: SiteState(folder).load_personal(outcome.shared.sha256())
        for folder in sorted((run / "sites").iterdir())
    }


@pytest.fixture(scope="module")
def whole(federation, job, tmp_path_factory):
    """A run, what every site answered, and where it lies."""
    run = tmp_path_factory.mktemp("whole") / "run"
    bodies = []

    def listen(asked):
        answers = answer_together(asked)
        bodies.extend(zip((body for _, body in asked), answers, strict=True))
        return answers

    def grid(agents):
        return LocalGrid(agents, Together(listen, dict.fromkeys(agents, 16), 99))

    return federation.run(run, grid, job), bodies, run


def test_the_base_is_what_a_new_site_gets_and_own_models_what_the_sites_have(whole):
    outcome, _, run = whole
    assert outcome.complete
    assert outcome.relative_error is None  # no product was averaged
    b = [array for name, array in outcome.shared.factors.items() if factor_of(name) == "B"]
    assert not any(array.any() for array in b)
    for site, evaluation in outcome.evaluations.items():
        assert evaluation.metrics["shared"] == evaluation.metrics["base"]
        assert evaluation.metrics["personal"] != evaluation.metrics["base"]
        assert set(evaluation.in_use.values()) <= {"personal", "not trained"}, site
    stored = own_adapters(run, outcome)
    for own in stored.values():
        assert set(own.alpha.values()) == {1.0}
        for name, array in own.adapter.items():
            if factor_of(name) == "A":  # the shared one, as it is after the last round
                np.testing.assert_array_equal(array, outcome.shared.factors[name])


def test_only_a_leaves_a_site(whole):
    _, bodies, _ = whole
    trained = 0
    for body, answer in bodies:
        request, _ = decode_request(body)
        _, tensors = decode_reply(answer)
        assert {factor_of(name) for name in tensors} <= {"A"}
        assert bool(tensors) == (request.kind == "train")
        trained += request.kind == "train"
    assert trained == 6  # three sites, two rounds


def test_a_round_trains_the_received_a_with_the_b_of_the_round_before(whole, federation, job):
    """Round 2 of every site, done again from what it received and what it had kept."""
    _, bodies, run = whole
    settings = {site.name: site for site in federation.settings(run)}
    done = 0
    for body, _ in bodies:
        request, tensors = decode_request(body)
        if request.kind != "train" or request.round != 2:
            continue
        kept = [OwnFactor(run / "sites" / request.site, request).after(n) for n in (0, 1, 2)]
        assert kept[0] == {}
        assert {factor_of(name) for name in kept[2]} == {"B"}
        start = {name: np.zeros(federation.encoder.layout.shape_of(name), np.float32)
                 for name in federation.encoder.layout.names()}  # fmt: skip
        start |= {key.partition("/")[2]: tensors[key] for key in tensors if key.startswith("A/")}
        data = load_records(settings[request.site], federation.encoder)
        task = SiteTask(data, SharedAdapter(start | kept[1]), ("A", "B"), request.seed, 2)
        (found,) = train_shared(federation.encoder, [task], job)
        for name, array in kept[2].items():
            np.testing.assert_allclose(array, found.factors[name], atol=2e-5)
            assert float(np.abs(array - kept[1][name]).max()) > 1e-4
        done += 1
    assert done == 3


def test_a_site_alone_is_what_it_is_in_a_cohort(whole, federation, job, tmp_path):
    together, _, run = whole
    alone = federation.run(tmp_path / "run", job=job)
    for name, array in alone.shared.factors.items():
        np.testing.assert_allclose(array, together.shared.factors[name], atol=2e-5)
    own, other = own_adapters(run, together), own_adapters(tmp_path / "run", alone)
    for site, stored in own.items():
        for name, array in stored.adapter.items():
            np.testing.assert_allclose(array, other[site].adapter[name], atol=2e-4)


@pytest.mark.parametrize("kind", ["round-started", "round-committed", "phase-started"])
def test_a_stopped_run_goes_on_to_the_same_bits(whole, federation, job, tmp_path, kind):
    def interrupt(event):
        if event.kind == kind and (event.round == 2 or kind == "phase-started"):
            raise KeyboardInterrupt

    wanted, _, _ = whole
    with pytest.raises(InterruptedRunError):
        federation.run(tmp_path / "run", in_one_cohort, job, interrupt)
    resumed = federation.run(tmp_path / "run", in_one_cohort, job)
    assert resumed.shared.sha256() == wanted.shared.sha256()
    assert resumed.evaluations == wanted.evaluations


def test_a_round_whose_answers_were_lost_is_trained_again_from_the_b_before_it(
    whole, federation, job, tmp_path
):
    """The sites had kept the B of round 2 when the coordinator went down."""
    wanted, _, _ = whole

    def interrupt(event):
        if event.kind == "site-replied" and event.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError):
        federation.run(tmp_path / "run", in_one_cohort, job, interrupt)
    for answer in (tmp_path / "run" / "sites").glob("*/answer"):
        answer.unlink()  # else they would answer without training again
    resumed = federation.run(tmp_path / "run", in_one_cohort, job)
    assert resumed.shared.sha256() == wanted.shared.sha256()
    assert resumed.evaluations == wanted.evaluations


def test_the_mean_of_a_is_by_weight(whole, federation, job):
    """Two rounds from the seeded A; the first by hand from what the sites sent."""
    _, bodies, _ = whole
    weights = round_weights(
        {
            decode_reply(answer)[0].site: decode_reply(answer)[0].description.examples
            for body, answer in bodies
            if decode_request(body)[0].kind == "describe"
        },
        job.aggregate,
    )
    first, second = ({}, {})
    for body, answer in bodies:
        request, tensors = decode_request(body)
        if request.kind == "train":
            (first if request.round == 1 else second)[request.site] = (request, tensors, answer)
    name = factor_name(federation.encoder.layout.layers[0].module, "A")
    tower = federation.encoder.layout.tower_of(name)
    total, mean = 0, 0.0
    for request, _, answer in first.values():
        assert request.weights == weights.of_site[request.site]
        delta = decode_reply(answer)[1]
        if name in delta:
            total += request.weights[tower]
            mean = mean + delta[name].view(np.int32) / request.scale
    started = next(iter(first.values()))[1][f"A/{name}"]
    went_on = next(iter(second.values()))[1][f"A/{name}"]
    np.testing.assert_allclose(went_on, started + mean / total, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"combine": "median"}, {"server_optimizer": "momentum"}], ids=str
)
def test_ways_to_combine_work_on_a(federation, tmp_path, options):
    job = job_of(federation.job, **options).model_copy(update={"rounds": 1})
    outcome = federation.run(tmp_path / "run", in_one_cohort, job)
    assert outcome.complete
    assert outcome.relative_error is None
