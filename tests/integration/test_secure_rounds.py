"""Real sites whose changes are summed under masks: the same adapter, and nothing of one site."""

import json
import shutil
from contextlib import ExitStack
from datetime import UTC, datetime

import numpy as np
import pytest
from rich.console import Console

from client.agent import SiteAgent
from client.audit_check import verify
from client.decisions import Party
from client.patience import PatientAgent
from client.permission import PermittedAgent
from client.policy import simulation_policy
from client.provisioning.joining import begin, join
from client.secure_rounds import secure_sums_of
from client.service import SocketChannel, serve
from client.signed_agent import STALE, signed
from server.app import run_job
from server.checkpoint import RunStore
from server.history import RunHistory
from server.provisioning.admission import admit, kit_for
from server.provisioning.founding import found
from server.provisioning.identity import coordinator_identity
from shared.config import JobConfig
from shared.errors import ConfigError
from shared.messages import decode_reply, decode_request
from shared.security.claims import split_signed
from shared.wire import body_of
from simulations import simulate as simulation
from simulations.grid import LocalGrid
from simulations.report import write_report
from simulations.simulate import simulate
from tests.integration.conftest import write_site

KINDS = {"a-pairs": "paired", "b-apart": "unpaired", "c-image": "image", "d-text": "text",
         "e-pairs": "paired"}  # fmt: skip
STAGES = ("secure-keys", "secure-shares", "train", "secure-agree", "secure-unmask")
NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, site_of):
    """Five sites; each tower is trained by four."""
    folder = tmp_path_factory.mktemp("secure")
    for number, (name, kind) in enumerate(KINDS.items()):
        write_site(folder / name, site_of(name, kind, counts=(32, 12, 12), seed=number))
    return folder


@pytest.fixture(scope="module")
def make_job(folder, small_job):
    def make(on=True, rounds=3, **tables):
        tree = small_job.model_dump(mode="json", include={"name", "lora", "model"})
        tree |= {
            "rounds": rounds,
            "train": {"steps": 2, "batch_size": 8},
            "data": {"folder": str(folder)},
            "aggregate": {"rule": "altfold", "fold_every": 2},
            "personalize": {"method": "none"},
            "privacy": {"secure_aggregation": on},
            "evaluate": {"minimum_count": 1, "bootstrap": 100, "baselines": []},
            "simulation": {"device": "cpu", "workers": 1, "samples_at_once": 1},
        }
        for table, values in tables.items():
            tree[table] = {**tree.get(table, {}), **values}
        return JobConfig.model_validate(tree)

    return make


def carry_out(run, job):
    return simulate(run, job, Console(quiet=True))


@pytest.fixture(scope="module")
def plain(make_job, tmp_path_factory):
    """The same job without secure aggregation."""
    return carry_out(tmp_path_factory.mktemp("plain") / "run", make_job(on=False))


@pytest.fixture(scope="module")
def secure(make_job, tmp_path_factory):
    """A run with it, its results, and every byte between coordinator and sites."""
    run, seen = tmp_path_factory.mktemp("on") / "run", []
    with pytest.MonkeyPatch.context() as patch:
        answer = simulation.answer_together

        def listen(asked):
            answers = answer(asked)
            seen.extend(zip((body for _, body in asked), answers, strict=True))
            return answers

        patch.setattr(simulation, "answer_together", listen)
        return run, carry_out(run, make_job()), seen


def test_simulated_sites_run_the_protocol_and_no_bit_differs(secure, plain):
    _, results, seen = secure
    assert results.status == "finished"
    assert results.adapter_sha256 == plain.adapter_sha256
    kinds = [decode_request(body)[0].kind for body, _ in seen]
    assert {kind: kinds.count(kind) for kind in STAGES} == dict.fromkeys(STAGES, 3 * len(KINDS))
    # Keys are every site's own, and new in every round.
    keys = {answer for body, answer in seen if decode_request(body)[0].kind == "secure-keys"}
    assert len(keys) == 3 * len(KINDS)


OWN = {"personalize": {"method": "own-factor"}}


@pytest.mark.parametrize(
    "tables",
    [
        {"aggregate": {"rule": "ffa"}},
        {"aggregate": {"rule": "fedavg", "fold_every": 0}},
        {"aggregate": {"rule": "fedavg", "fold_every": 0, "server_optimizer": "adam"}},
        {"aggregate": {"rule": "fedsa", "fold_every": 0}, **OWN},
        {"lora": {"ranks": {"a-pairs": 2}}},
        {"aggregate": {"cohort": 4}},
    ],
)
def test_no_bit_differs_with_anything_that_needs_the_sum_only(make_job, tmp_path, tables):
    found = [
        carry_out(tmp_path / str(on) / "run", make_job(on=on, **tables)) for on in (True, False)
    ]
    assert found[0].adapter_sha256 == found[1].adapter_sha256
    assert found[0].rounds == 3


def test_losses_are_told_of_all_sites_together(secure, plain):
    _, results, seen = secure
    for number, cost in enumerate(results.round_costs):
        losses = [p.loss for s in plain.sites.values() for p in s.course if p.round == number]
        # Every site rounds its own to 1/65536 before it is summed.
        assert cost.validation_loss == pytest.approx(np.mean(losses), abs=2**-16)
        assert cost.loss is not None
    assert plain.round_costs[0].loss is None
    for body, answer in seen:
        request, reply = decode_request(body)[0], decode_reply(answer)[0]
        if request.kind in STAGES:
            assert (reply.summary, reply.weights) == (None, {})


def test_run_and_report_say_what_the_coordinator_got(secure, plain, tmp_path):
    run, results, _ = secure
    assert results.secure_aggregation
    assert not plain.secure_aggregation
    assert json.loads((run / "results.json").read_text())["secure_aggregation"] is True
    page = write_report(run).read_text()
    assert "Secure aggregation was on" in page
    assert "readable as their sum only" in page


def test_a_planted_change_is_in_no_byte_that_the_coordinator_has(make_job, tmp_path, monkeypatch):
    """What a site keeps of its change is at the site only; without masks it would be found."""
    planted, found = {}, {}
    for on in (True, False):
        run, seen = tmp_path / str(on) / "run", []
        answer = simulation.answer_together

        def listen(asked, seen=seen, answer=answer):
            answers = answer(asked)
            seen.extend([*(body for _, body in asked), *answers])
            return answers

        with monkeypatch.context() as patch:
            patch.setattr(simulation, "answer_together", listen)
            carry_out(run, make_job(on=on, rounds=1))
        kept = (run / "sites" / "a-pairs" / "answer").read_bytes()[64:]
        _, tensors = decode_reply(kept)
        changed = [steps for steps in tensors.values() if np.count_nonzero(steps) > 8]
        # Six numbers in a row of every matrix: 24 bytes are not there by chance.
        planted[on] = {steps[np.flatnonzero(steps.any(1))[0], :6].tobytes() for steps in changed}
        own = [p for p in run.rglob("*") if p.is_file() and "sites" not in p.parts]
        found[on] = b"".join([*seen, *(path.read_bytes() for path in own)])
    assert len(planted[True]) > 3
    assert planted[True] == planted[False]
    assert not any(piece in found[True] for piece in planted[True])
    assert all(piece in found[False] for piece in planted[False])


class Losing(LocalGrid):
    """Loses what was asked of one site at a stage of every round."""

    def __init__(self, agents, together=None):
        super().__init__(agents, together, fail=self._lose)

    def _lose(self, message):
        site = self.node_name(message.metadata.dst_node_id)
        request = decode_request(split_signed(body_of(message))[1])[0]
        if (site, request.kind) == (self.site, self.kind):
            raise OSError


@pytest.mark.parametrize("kind", STAGES)
def test_a_site_away_in_every_round_leaves_the_sum_over_the_others(
    make_job, plain, tmp_path, monkeypatch, kind
):
    def losing(lost):
        return type("LosingIt", (Losing,), {"site": "e-pairs", "kind": lost})

    monkeypatch.setattr(simulation, "LocalGrid", losing(kind))
    results = carry_out(tmp_path / "secure" / "run", make_job())
    assert results.rounds == 3
    states = [cell.state for cell in results.sites["e-pairs"].participation]
    if kind in STAGES[3:]:  # its change had come, and is in the sum
        assert results.adapter_sha256 == plain.adapter_sha256
        assert states == ["in"] * 3
        return
    monkeypatch.setattr(simulation, "LocalGrid", losing("train"))
    without = carry_out(tmp_path / "plain" / "run", make_job(on=False))
    assert results.adapter_sha256 == without.adapter_sha256 != plain.adapter_sha256
    assert states == ["missing"] * 3


def test_with_differential_privacy_not_even_the_mean_loss_is_told(make_job, tmp_path, site_of):
    write_site(tmp_path / "public", site_of("public", counts=(24, 8, 8), seed=9))
    job = make_job(
        proxy={"folder": str(tmp_path / "public")},
        privacy={"differential_privacy": True, "epsilon": 8.0},
        aggregate={"weighting": "equal"},
    )
    results = carry_out(tmp_path / "run", job)
    assert results.status == "finished"
    assert [(cost.loss, cost.validation_loss) for cost in results.round_costs] == [(None, None)] * 3
    assert all(statement.claim is not None for statement in results.privacy.values())


def test_two_sites_are_too_few(folder, make_job, tmp_path):
    two = tmp_path / "two"
    for name in ("a-pairs", "e-pairs"):
        shutil.copytree(folder / name, two / name)
    with pytest.raises(ConfigError, match="there are only 2 sites"):
        carry_out(tmp_path / "run", make_job(data={"folder": str(two)}))
    assert not (tmp_path / "run").exists()


# --- agents behind sockets, with keys, signatures and policies ---------------------------------


class Tapped:
    """A courier that notes every request and answer."""

    def __init__(self, channel):
        self.channel, self.seen = channel, []

    def handle(self, content):
        answer = self.channel.handle(content)
        self.seen.append((content, answer))
        return answer


class Consortium:
    """A coordinator and sites with identities, as the commands make them."""

    def __init__(self, folder, names):
        self.home = folder / "co"
        self.consortium = found(self.home, "lab", ["localhost"], 443, NOW)
        self.sites = {name: folder / "sites" / name for name in names}
        for name, home in self.sites.items():
            join(home, admit(self.consortium, begin(home, name, NOW).part, NOW).kit, NOW)

    def tell(self, name):
        """Hand a site the roster as it is now."""
        join(self.sites[name], kit_for(self.consortium, name, NOW).kit, NOW)

    def agent(self, settings, encoder):
        """What ``consilia client agent`` serves."""
        home, policy = self.sites[settings.name], simulation_policy()
        sums = secure_sums_of(home, settings.state, policy)
        party = Party(self.consortium.key.public, len(self.sites))
        site = SiteAgent(settings, policy, lambda _: encoder, party=party, sums=sums)
        patient = PatientAgent(site, settings.name, 10.0)
        permitted = PermittedAgent(patient, site.objection)
        return signed(permitted, site.refuse, home, settings.name, settings.state / "asked.json")


@pytest.fixture(scope="module")
def deployed(make_federation, tmp_path_factory):
    """A federation of signed agents behind sockets; runs, and what passed their couriers."""
    folder = tmp_path_factory.mktemp("deployed")
    federation = make_federation(folder, ("paired", "paired", "paired", "paired"))
    names = [site.name for site in federation.settings(folder)]
    consortium = Consortium(folder, names)
    for name in names[:-1]:
        consortium.tell(name)
    return federation, consortium


def run_deployed(deployed, run, sockets, job):
    """Carry a job out over sockets; return the outcome and the couriers."""
    federation, consortium = deployed
    encoder = federation.encoder
    with ExitStack() as stack:
        couriers = {}
        for settings in federation.settings(run):
            path = sockets / settings.name
            settings.state.mkdir(parents=True, exist_ok=True)
            stack.enter_context(serve(consortium.agent(settings, encoder), path, 4))
            couriers[settings.name] = Tapped(SocketChannel(path))
        store = RunStore.create(run, job, base_sha256=encoder.base_sha256)
        history = RunHistory(f"sqlite:///{run / 'history.sqlite'}")
        with store, history, LocalGrid(couriers) as grid:
            identity = coordinator_identity(consortium.home)
            base = encoder.base_sha256
            outcome = run_job(grid, job, store, history, encoder.layout, base, identity=identity)
        replayed = {
            name: reply_of(courier.channel.handle(content))
            for name, courier in couriers.items()
            for content, _ in courier.seen
            if request_of(content).kind == "secure-keys" and request_of(content).round == 1
        }
        return outcome, couriers, replayed


def request_of(content):
    return decode_request(split_signed(content)[1])[0]


def reply_of(content):
    return decode_reply(split_signed(content)[1])[0]


def test_signed_agents_behind_sockets_give_the_same_bits(deployed, tmp_path, tmp_path_factory):
    federation, _ = deployed
    tree = federation.job.model_dump(mode="json")
    tree["personalize"] |= {"method": "none"}
    tree["privacy"] = {"secure_aggregation": True}
    job = JobConfig.model_validate(tree)
    sockets = tmp_path_factory.mktemp("s")
    outcome, couriers, replayed = run_deployed(deployed, tmp_path / "run", sockets, job)
    assert outcome.complete
    tree["privacy"] = {}
    plain = federation.run(tmp_path / "plain", job=JobConfig.model_validate(tree))
    assert outcome.shared.sha256() == plain.shared.sha256()
    assert [cost.contributors for cost in outcome.round_costs] == [4, 4]
    for courier in couriers.values():
        asked = [request_of(content).kind for content, _ in courier.seen]
        assert [kind for kind in asked if kind in STAGES] == [*STAGES, *STAGES]
    # What somebody on the way recorded of round 1 is stale, to every site.
    assert {(r.status, r.reason) for r in replayed.values()} == {("refused", STALE)}
    audit = tmp_path / "run" / "sites" / "a-paired" / "audit.jsonl"
    assert verify(audit)
    said = [json.loads(line)["what"] for line in audit.read_text().splitlines()]
    assert said.count("masked update") == 2
    assert "update" not in said


def test_a_site_with_an_old_roster_is_left_out_until_it_has_the_new_one(
    make_federation, tmp_path, tmp_path_factory
):
    federation = make_federation(tmp_path, ("paired", "paired", "paired", "paired"))
    names = [site.name for site in federation.settings(tmp_path)]
    consortium = Consortium(tmp_path, names)  # every kit names the sites before it only
    for name in names[1:-1]:
        consortium.tell(name)
    tree = federation.job.model_dump(mode="json")
    tree["personalize"] |= {"method": "none"}
    tree |= {"privacy": {"secure_aggregation": True}, "rounds": 1}
    job = JobConfig.model_validate(tree)
    both = federation, consortium
    sockets = tmp_path_factory.mktemp("s")
    outcome, _, _ = run_deployed(both, tmp_path / "run", sockets, job)
    cell = outcome.sites[names[0]].participation[0]
    assert (cell.state, cell.reason) == ("refused", "secure-roster")
    assert outcome.round_costs[0].contributors == 3
    consortium.tell(names[0])
    job = job.model_copy(update={"seed": 5})
    assert run_deployed(both, tmp_path / "again", sockets, job)[0].complete
