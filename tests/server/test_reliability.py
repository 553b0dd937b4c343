"""Sites that leave, come back and come late; answers that come twice; a network that is gone."""

import pytest
from fake_federation import EMPTY, FakeGrid, FakeSite, Federation, job_of

from server.questions import Persistence
from shared.errors import QuorumError
from shared.messages import Reply, encode

NAMES = ("north", "east", "south", "west")
PERSISTENCE = Persistence(after_failure=1.0, after_silence=5.0, lost_after=30.0)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return Federation(tmp_path_factory.mktemp("plain") / "run").run().shared.sha256()


@pytest.fixture
def federation(tmp_path):
    def make(job=None, **options):
        job = job or job_of(aggregate={"deadline_seconds": 60.0})
        run = Federation(tmp_path / "run", job, **options)
        run.options = {"persistence": PERSISTENCE}
        return run

    return make


def state_of(outcome, site):
    return [cell.reason or cell.state for cell in outcome.sites[site].participation]


@pytest.fixture
def each_sleep(monkeypatch):
    """Something happens while the coordinator sleeps; counts how often it looked."""
    made = []

    def let(happen):
        original = FakeGrid.__init__

        def begin(self, *args, **kwargs):
            original(self, *args, **kwargs)
            self.looks, sleep, nodes = 0, self.clock.sleep, self.get_node_ids

            def asleep(seconds):
                sleep(seconds)
                happen(self)

            def look():
                self.looks += 1
                return nodes()

            self.clock.sleep, self.get_node_ids = asleep, look
            made.append(self)

        monkeypatch.setattr(FakeGrid, "__init__", begin)
        return made

    return let


def test_a_partition_of_one_site_costs_it_a_round_and_then_it_gets_the_new_adapter(federation):
    """Away 90 s in a round that waits for 60 s; what it says afterwards is too late."""
    aggregate = {"rule": "ffa", "fold_every": 0, "deadline_seconds": 60.0}
    run = federation(job_of(rounds=4, aggregate=aggregate))
    run.options = {"persistence": Persistence()}

    def on_push(site, request):
        cut = (site.name, request.kind, request.round) == ("east", "train", 2)
        if cut:
            return 90.0
        return 40.0 if (request.kind, request.round) == ("train", 3) else None

    run.on_push = on_push
    outcome = run.run()
    assert state_of(outcome, "east") == ["in", "silent", "in", "in"]
    late = [e for e in run.events if e.kind == "late-reply"]
    assert {(e.round, e.site, e.values["reason"]) for e in late} == {(2, "east", "deadline")}
    east = run.sites[1]
    third = [r.round for r in east.seen if r.kind == "train"].index(3)
    assert {"A", "B"} <= east.parts_seen[third]  # all of it, as nobody knows what it holds
    with run.history() as history:
        assert history.run("run").status == "finished-incomplete"


def test_the_run_waits_while_all_sites_are_silent(federation, undisturbed):
    """They look connected, and nothing comes: the round is asked again until they are back."""
    run = federation()
    run.on_push = lambda site, request: (
        "lost" if request.round == 2 and run.grid.clock.now < 700 else None
    )
    outcome = run.run()
    assert outcome.shared.sha256() == undisturbed
    assert outcome.complete
    with run.history() as history:
        assert history.run("run").status == "finished"
        assert history.committed_rounds("run")[1].attempt > 5
    failed = [e for e in run.events if e.kind == "round-failed"]
    assert {(e.round, e.values["reason"]) for e in failed} == {(2, "quorum")}
    assert run.grid.clock.now < 800
    assert run.grid.pushed < 600 / 5 * 4 + 100  # every site once in the patience, no busy loop
    waiting = [e.values for e in run.events if e.kind == "waiting"]
    assert waiting[0] == {"present": 0, "needed": 2}


def test_the_run_waits_while_all_sites_are_disconnected(federation, undisturbed, each_sleep):
    def heal(grid):
        if grid.clock.now > 3600:
            grid.connected.update({1, 2, 3, 4})

    grids = each_sleep(heal)
    run = federation()
    run.on_push = lambda site, request: (
        run.grid.connected.clear() if (request.kind, request.round) == ("train", 2) else None
    )
    outcome = run.run()
    assert outcome.shared.sha256() == undisturbed
    assert outcome.complete
    waiting = [e.values for e in run.events if e.kind == "waiting"]
    assert waiting[-1] == {"present": 0, "needed": 2}
    assert len(waiting) <= 2, "told once, and not at every look"
    assert grids[-1].looks < 3600 / 1.5, "looks every two seconds at most"
    gone = [e.site for e in run.events if e.kind == "site-disconnected"]
    back = [e.site for e in run.events if e.kind == "site-connected"]
    assert sorted(gone) == sorted(back) == sorted(NAMES)
    assert 3600 < run.grid.clock.now < 3700


def test_a_round_that_sites_refuse_is_not_asked_again(federation):
    run = federation(job_of(rounds=1, aggregate={"deadline_seconds": 60.0}))
    for site in run.sites[:3]:
        site.refuses = lambda request: "policy-steps" if request.kind == "train" else None
    with pytest.raises(QuorumError, match="1 of 4"):
        run.run()


def test_a_site_leaves_for_good_and_that_is_recorded(federation):
    run = federation()
    run.on_push = lambda site, request: (
        run.grid.connected.discard(1) if (request.kind, request.round) == ("train", 2) else None
    )
    outcome = run.run()
    assert [cost.contributors for cost in outcome.round_costs] == [4, 4, 3, 3, 3]
    assert state_of(outcome, "north")[2:] == ["not-connected"] * 3
    with run.history() as history:
        assert history.run("run").status == "finished-incomplete"
        trail = [(e.action, e.round, e.detail) for e in history.audit_trail("run")]
    assert trail == [("sites-changed", 3, "away: north")]


def leaving(run):
    """North's courier is killed in the second round, when its answer is out."""

    def on_push(site, request):
        if (site.name, request.kind, request.round) == ("north", "train", 2):
            run.left = run.grid.clock.now
            run.grid.connected.discard(1)

    return on_push


def test_a_site_whose_courier_starts_again_is_waited_for_before_a_round(
    federation, undisturbed, each_sleep
):
    run = federation()
    run.left = 1e9
    each_sleep(lambda grid: grid.connected.add(1) if grid.clock.now > run.left + 8 else None)
    run.on_push = leaving(run)
    outcome = run.run()
    assert outcome.shared.sha256() == undisturbed
    assert [cost.contributors for cost in outcome.round_costs] == [4] * 5
    waiting = [e.values for e in run.events if e.kind == "waiting"]
    assert waiting == [{"present": 3, "needed": 4}]


def test_one_that_does_not_come_back_costs_that_moment_once(federation):
    run = federation()
    run.on_push = leaving(run)
    outcome = run.run()
    assert [cost.contributors for cost in outcome.round_costs] == [4, 4, 3, 3, 3]
    assert 20 <= run.grid.clock.now - run.left < 25


def test_a_cohort_goes_on_with_others(federation):
    run = federation(job_of(aggregate={"deadline_seconds": 60.0, "cohort": 2}))
    run.on_push = lambda site, request: (
        run.grid.connected.discard(1) if (request.kind, request.round) == ("train", 2) else None
    )
    outcome = run.run()
    assert [cost.contributors for cost in outcome.round_costs] == [2] * 5
    assert not [e for e in run.events if e.kind == "waiting"]


def test_too_few_sites_left_are_waited_for_and_named(federation, each_sleep):
    """Three of four leave; the round needs two, and begins when one of them is back."""
    grids = each_sleep(lambda grid: grid.connected.add(2) if grid.clock.now > 500 else None)
    run = federation()
    run.on_push = lambda site, request: (
        run.grid.connected.difference_update({1, 2, 3})
        if (request.kind, request.round) == ("train", 2)
        else None
    )
    outcome = run.run()
    assert [cost.contributors for cost in outcome.round_costs] == [4, 4, 2, 2, 2]
    waiting = [e.values for e in run.events if e.kind == "waiting"]
    assert waiting[-1] == {"present": 1, "needed": 2}
    assert grids[-1].clock.now > 500


def test_a_new_site_joins_in_the_middle_and_gets_the_current_adapter(federation, each_sleep):
    each_sleep(lambda grid: grid.connected.add(4) if grid.clock.now > 130 else None)
    run = federation()
    began = []
    run.on_push = lambda site, request: 20.0 if request.kind == "train" else None

    original = FakeGrid.get_node_ids

    def without_west(self):
        if not began:
            began.append(self.connected.discard(4))
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeGrid, "get_node_ids", without_west)
        outcome = run.run()
    states = state_of(outcome, "west")
    joined = states.index("in") + 1
    assert states == ["not-joined"] * (joined - 1) + ["in"] * (6 - joined)
    assert 2 <= joined <= 4
    first = next(r for r in run.sites[3].seen if r.kind == "train")
    assert run.sites[3].parts_seen[0] == {p for p, sha in first.parts.items() if sha != EMPTY}
    with run.history() as history:
        trail = [(e.action, e.round, e.detail) for e in history.audit_trail("run")]
    assert trail == [("sites-changed", joined, "joined: west")]


def test_a_named_site_that_never_comes_is_no_plain_success(federation):
    names = [*NAMES, "far"]
    run = federation(job_of(rounds=2, data={"sites": names}, aggregate={"deadline_seconds": 60.0}))
    outcome = run.run()
    assert outcome.lost["far"] == "not-connected"
    assert [cost.contributors for cost in outcome.round_costs] == [4, 4]


def test_two_answers_that_differ_count_neither(federation):
    run = federation(job_of(rounds=3, aggregate={"deadline_seconds": 60.0}))
    run.on_push = lambda site, request: (
        "differs" if (site.name, request.kind, request.round) == ("east", "train", 2) else None
    )
    outcome = run.run()
    assert state_of(outcome, "east") == ["in", "conflicting-answers", "in"]
    dropped = [e for e in run.events if e.kind == "site-dropped"]
    assert [(e.site, e.values["reason"], e.values["state"]) for e in dropped] == [
        ("east", "conflicting-answers", "refused")
    ]
    without = Federation(run.path.with_name("without"), run.job, options=run.options)
    without.on_push = lambda site, request: (
        "error" if (site.name, request.kind, request.round) == ("east", "train", 2) else None
    )
    assert without.run().shared.sha256() == outcome.shared.sha256()


def test_a_site_that_diverges_says_so_and_the_round_goes_on(federation):
    run = federation()
    run.sites[0].refuses = lambda r: (
        "loss-not-finite" if (r.kind, r.round) == ("train", 3) else None
    )
    outcome = run.run()
    assert state_of(outcome, "north") == ["in", "in", "loss-not-finite", "in", "in"]


class FromTheFuture(FakeSite):
    """A site whose program is another version's, and that cannot read what it is asked."""

    version = 9

    def handle(self, body):
        reply = encode(self.refusal().model_copy(update={"program": "7.1.0", "status": "refused"}))
        return b"CONS" + bytes([self.version]) + reply[5:]

    def refusal(self):
        return Reply(kind="describe", run="", round=0, attempt=1, site=self.name, reason="version")


@pytest.mark.parametrize("version", [9, 3], ids=["major", "the site says so"])
def test_a_site_of_another_version_is_named_with_both(federation, version):
    future = FromTheFuture("east")
    future.version = version
    sites = [future if name == "east" else FakeSite(name) for name in NAMES]
    run = federation(sites=sites)
    outcome = run.run()
    assert [cost.contributors for cost in outcome.round_costs] == [3] * 5
    dropped = next(e for e in run.events if e.kind == "site-dropped")
    assert dropped.values["reason"] == "version"
    [about] = dropped.values["about"]
    assert "the other side is consilia 7.1.0" in about
    assert "this side is consilia" in about
    assert "node 2" in outcome.lost
    assert run.grid.clock.now - 100 < 5
