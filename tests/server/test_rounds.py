"""The round loop over a grid that loses, delays, repeats and tampers."""

import json

import numpy as np
import pytest
from fake_federation import (
    BASE,
    LAYOUT,
    FakeGrid,
    FakeSite,
    Federation,
    job_of,
    with_summary,
)

from server.aggregation import AltFold
from shared.adapter import factor_name, products
from shared.errors import InterruptedRunError, QuorumError


@pytest.fixture
def federation(tmp_path):
    return lambda job=None, **options: Federation(tmp_path / "run", job or job_of(), **options)


def only(site, round_number, wish, kind="train"):
    """Let one site misbehave in one round."""

    def on_push(who, request):
        hit = (who.name, request.round, request.kind) == (site, round_number, kind)
        return wish if hit else None

    return on_push


def cell(outcome, site, round_number):
    return outcome.sites[site].participation[round_number - 1]


def test_a_run_from_the_first_word_to_the_last(federation):
    run = federation()
    outcome = run.run()
    assert outcome.complete
    assert outcome.rounds == 5
    assert outcome.shared.folds == 2
    assert outcome.relative_error == 0.0
    assert sorted(outcome.sites) == ["east", "north", "south", "west"]
    assert set(outcome.evaluations) == set(outcome.sites)
    log = outcome.sites["north"]
    assert [c.state for c in log.participation] == ["in"] * 5
    assert [(p.round, p.loss) for p in log.course] == [*((n, 3.0 + n) for n in range(5)), (5, 1.5)]
    assert log.gradient_norms == {"image": [0.5] * 5, "text": [0.5] * 5}
    assert log.discrepancy == {"image": [2.0] * 5, "text": [0.5] * 5}
    assert set(log.seconds) == {"train", "transfer", "wait", "personalize", "evaluate"}
    assert (log.kind, log.examples) == ("paired", {"image": 100, "text": 100})
    assert log.bytes_down > log.bytes_up > 0
    with run.history() as history:
        assert history.run("run").status == "finished"


def test_training_comes_nearer_to_the_mean_of_the_targets(federation):
    run = federation(job_of(rounds=12))
    outcome = run.run()
    for layer in LAYOUT.layers:
        target = np.mean([site.target(layer) for site in run.sites], axis=0)
        learned = products(outcome.shared.factors)[layer.module]
        learned = learned + products(outcome.shared.residual)[layer.module]
        assert np.linalg.norm(target - learned) < 0.6 * np.linalg.norm(target)


@pytest.mark.parametrize("rule", ["altfold", "ffa", "fedavg"])
def test_the_order_of_arrival_changes_no_bit(tmp_path, rule):
    job = job_of(aggregate={"rule": rule}, rounds=3)
    digests = [
        Federation(tmp_path / str(k) / "run", job, order=order).run().shared.sha256()
        for k, order in enumerate((1, -1))
    ]
    assert digests[0] == digests[1]


def test_a_part_that_a_site_holds_is_not_sent_again(federation):
    run = federation(job_of(aggregate={"rule": "ffa", "fold_every": 2}, rounds=4))
    run.run()
    # A stays from round 1 to 2; the fold before round 3 changes A, B and residual.
    wanted = [{"A", "B"}, {"B"}, {"A", "B", "residual"}, {"B"}]
    assert run.sites[0].parts_seen[:4] == wanted
    # After the last round B alone is new; evaluate finds everything there.
    assert run.sites[0].parts_seen[4:] == [{"B"}, set()]


def test_a_site_that_lost_its_parts_gets_them_in_the_same_round(federation):
    run = federation(job_of(aggregate={"rule": "ffa", "fold_every": 0}, rounds=3))
    site = run.sites[0]

    def forget(who, request):
        if who is site and (request.round, len(site.parts_seen)) == (2, 1):
            site.held.clear()

    run.on_push = forget
    outcome = run.run()
    assert outcome.complete
    assert site.parts_seen[:4] == [{"A", "B"}, {"B"}, {"A", "B"}, {"B"}]


def test_a_site_that_always_asks_for_parts_is_left_out(federation):
    run = federation(job_of(rounds=1))
    run.sites[0].change_reply = lambda reply, tensors: (
        reply.model_copy(update={"status": "needs"}),
        {},
    )
    outcome = run.run()
    assert cell(outcome, "north", 1).reason == "needs-again"
    assert len([r for r in run.sites[0].seen if r.kind == "train"]) == 2


@pytest.mark.parametrize(
    ("wish", "state", "reason"),
    [
        ("lost", "missing", "deadline"),
        (30.0, "missing", "deadline"),
        ("error", "missing", "node-unavailable"),
    ],
)
def test_a_site_that_does_not_answer_is_recorded_and_the_round_goes_on(
    federation, wish, state, reason
):
    run = federation(on_push=only("east", 2, wish))
    outcome = run.run()
    assert not outcome.complete
    assert outcome.lost == {"east": reason}
    assert (cell(outcome, "east", 2).state, cell(outcome, "east", 2).reason) == (state, reason)
    assert cell(outcome, "east", 2).done
    assert cell(outcome, "east", 3).state == "in"
    assert outcome.round_costs[1].contributors == 3
    dropped = [e for e in run.events if e.kind == "site-dropped"]
    assert [(e.round, e.site, e.values["reason"]) for e in dropped] == [(2, "east", reason)]
    with run.history() as history:
        assert history.run("run").status == "finished-incomplete"


def test_a_lost_site_gets_every_part_again(federation):
    run = federation(job_of(aggregate={"rule": "ffa", "fold_every": 0}, rounds=3))
    run.on_push = only("north", 2, "lost")
    run.run()
    assert run.sites[0].parts_seen[1] == {"A", "B"}


def test_a_late_answer_is_dropped_and_noted(federation):
    slow = federation()

    def delay(who, request):
        if request.kind == "train" and request.round == 2 and who.name == "east":
            return 2.5  # the round closes after 2 seconds
        return 1.0 if request.round == 3 else None

    slow.on_push = delay
    outcome = slow.run()
    late = [e for e in slow.events if e.kind == "late-reply"]
    assert [(e.round, e.site, e.values["reason"]) for e in late] == [(2, "east", "deadline")]
    slow.path = slow.path.with_name("lost")
    slow.on_push = only("east", 2, "lost")
    assert slow.run().shared.sha256() == outcome.shared.sha256()


def test_a_reply_that_comes_twice_counts_once(federation):
    twice = federation(job_of(rounds=2), on_push=only("east", 1, "twice"))
    outcome = twice.run()
    assert outcome.complete
    late = [e for e in twice.events if e.kind == "late-reply"]
    assert [(e.site, e.values["reason"]) for e in late] == [("east", "duplicate")]
    twice.path = twice.path.with_name("once")
    twice.on_push = None
    assert twice.run().shared.sha256() == outcome.shared.sha256()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda r, t: (r.model_copy(update={"round": 1}), t), "wrong-round"),
        (lambda r, t: (r.model_copy(update={"site": "north"}), t), "wrong-site"),
        (lambda r, t: (r.model_copy(update={"weights": {"image": 255}}), t), "wrong-weights"),
        (lambda r, t: (r, {n: v.astype(np.float32) for n, v in t.items()}), "tensor-dtype"),
        (lambda r, t: (r, {n: np.full_like(v, 2**31) for n, v in t.items()}), "out-of-range"),
        (lambda r, t: (with_summary(r, gradient_norms={"image": -1.0}), t), "metrics"),
    ],
)
def test_a_bad_reply_leaves_the_round_as_if_it_had_not_come(federation, spoil, reason):
    run = federation(job_of(rounds=3))
    bad = next(site for site in run.sites if site.name == "west")
    bad.change_reply = lambda r, t: spoil(r, t) if (r.kind, r.round) == ("train", 2) else (r, t)
    outcome = run.run()
    assert (cell(outcome, "west", 2).state, cell(outcome, "west", 2).reason) == ("refused", reason)
    honest = federation(job_of(rounds=3), on_push=only("west", 2, "lost"))
    honest.path = honest.path.with_name("honest")
    assert honest.run().shared.sha256() == outcome.shared.sha256()


def test_a_refusal_is_recorded_with_the_sites_reason(federation):
    run = federation()
    run.sites[1].refuses = lambda request: (
        "loss-not-finite" if (request.kind, request.round) == ("train", 3) else None
    )
    outcome = run.run()
    assert outcome.lost == {"east": "loss-not-finite"}
    assert cell(outcome, "east", 3).state == "refused"


def test_too_few_answers_end_the_run_and_what_is_committed_stays(federation):
    run = federation()
    run.on_push = lambda who, request: (
        "lost" if (request.kind, request.round) == ("train", 3) and who.name != "east" else None
    )
    with pytest.raises(QuorumError) as caught:
        run.run()
    message = str(caught.value)
    for part in ("round 3", "1 of 4", "at least 2", "north: deadline", "2 of 5 rounds", "--resume"):
        assert part in message
    with run.history() as history:
        assert history.run("run").status == "failed"
        assert history.last_round("run").round == 2
    run.on_push = None
    resumed = run.run()
    assert resumed.resumed_rounds == [3]
    assert resumed.complete
    undisturbed = federation()
    undisturbed.path = run.path.with_name("other")
    assert resumed.shared.sha256() == undisturbed.run().shared.sha256()


def test_the_quorum_of_the_job_decides(federation):
    run = federation(job_of(aggregate={"quorum": 4}, rounds=1), on_push=only("east", 1, "lost"))
    with pytest.raises(QuorumError, match="at least 4"):
        run.run()


def test_a_round_closes_when_the_cohort_has_answered(federation):
    job = job_of(aggregate={"cohort": 2, "over_select": 1, "deadline_seconds": 1000.0}, rounds=3)
    run = federation(job)
    run.on_push = lambda who, request: (
        500.0 if request.kind == "train" and who.name == "north" else None
    )
    outcome = run.run()
    assert outcome.complete, "a site that was not needed is no loss"
    for number, cost in enumerate(outcome.round_costs, start=1):
        slow = cell(outcome, "north", number)
        assert slow.state == "idle"
        assert cost.asked == 3
        # Where the slow site was not asked, all three answered with the same look.
        assert cost.contributors == (2 if slow.reason == "enough-answered" else 3)
    assert run.grid.clock.now < 500
    reasons = {c.reason for c in outcome.sites["north"].participation}
    assert reasons == {"enough-answered", None}


def test_a_small_cohort_changes_from_round_to_round(federation):
    outcome = federation(job_of(aggregate={"cohort": 2}, rounds=8)).run()
    asked = [
        tuple(name for name in outcome.sites if cell(outcome, name, number).state == "in")
        for number in range(1, 9)
    ]
    assert all(len(names) == 2 for names in asked)
    assert len(set(asked)) > 2


def test_sites_with_one_tower_train_together_with_the_others(federation):
    sites = [
        FakeSite("both"),
        FakeSite("pictures", {"image": 400, "text": 0}, "image"),
        FakeSite("words", {"image": 0, "text": 25}, "text"),
        FakeSite("nothing", {"image": 0, "text": 0}, "text"),
    ]
    run = federation(job_of(rounds=2), sites=sites)
    outcome = run.run()
    assert outcome.complete
    weights = {s.name: next(r.weights for r in s.seen if r.kind == "train") for s in sites[:3]}
    assert set(weights["pictures"]) == {"image"}
    assert set(weights["words"]) == {"text"}
    assert weights["both"]["image"] == weights["pictures"]["image"], "capped at one half"
    assert cell(outcome, "nothing", 1).reason == "no-training-data"
    assert not [r for r in sites[3].seen if r.kind == "train"]


def test_without_text_sites_the_text_tower_keeps_every_bit(federation):
    sites = [FakeSite(name, {"image": 9, "text": 0}, "image") for name in ("a", "b")]
    outcome = federation(sites=sites).run()
    start = AltFold().start(LAYOUT, 1)
    for factor in ("A", "B"):
        name = factor_name("text.q", factor)
        assert np.array_equal(outcome.shared.factors[name], start.factors[name])


def test_only_the_sites_that_the_job_names_take_part(federation):
    run = federation(job_of(data={"sites": ["north", "south"]}, rounds=1))
    outcome = run.run()
    assert outcome.complete
    assert sorted(outcome.sites) == ["north", "south"]


def test_a_second_node_of_the_same_name_is_refused(federation):
    run = federation(job_of(rounds=2), sites=[FakeSite("north"), FakeSite("north"), FakeSite("b")])
    outcome = run.run()
    assert sorted(outcome.sites) == ["b", "north"]
    assert [e.values["reason"] for e in run.events if e.kind == "site-dropped"] == ["name-taken"]


def test_a_site_that_refuses_to_describe_itself_is_no_plain_success(federation):
    run = federation(job_of(rounds=2))
    run.sites[2].refuses = lambda request: "policy-base"
    outcome = run.run()
    assert not outcome.complete
    assert [c.state for c in outcome.sites["south"].participation] == ["refused", "refused"]
    assert outcome.sites["south"].kind is None
    assert len([r for r in run.sites[2].seen if r.kind == "describe"]) == 3, "asked in vain thrice"


def test_a_site_that_comes_later_gets_the_whole_adapter(federation):
    run = federation(job_of(rounds=4))

    def on_push(who, request):
        if request.kind == "train":
            run.grid.connected.add(4) if request.round == 2 else None

    run.on_push = on_push
    original = FakeGrid.__init__

    def without_west(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.connected.discard(4)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeGrid, "__init__", without_west)
        outcome = run.run()
    states = [(c.state, c.reason) for c in outcome.sites["west"].participation]
    assert states == [("idle", "not-joined")] * 2 + [("in", None)] * 2
    assert run.sites[3].parts_seen[0] == {"A", "B", "residual"}


def test_a_site_that_goes_away_is_missing_and_not_waited_for(federation):
    run = federation(job_of(rounds=3))

    def on_push(who, request):
        if (request.kind, request.round) == ("train", 2):
            run.grid.connected.discard(1)

    run.on_push = on_push
    outcome = run.run()
    assert (cell(outcome, "north", 3).state, cell(outcome, "north", 3).reason) == (
        "missing",
        "not-connected",
    )
    assert outcome.round_costs[2].seconds < 1
    assert outcome.lost["north (evaluate)"] == "not-connected"


def test_the_run_waits_for_its_sites_to_come_back(federation):
    run = federation(job_of(rounds=2, aggregate={"deadline_seconds": 50.0}))
    run.on_push = lambda who, request: (
        run.grid.connected.clear() if (request.kind, request.round) == ("train", 1) else None
    )
    sleep = None

    def come_back(seconds):
        sleep(seconds)
        if run.grid.clock.now > 120:
            run.grid.connected.update({1, 2, 3, 4})

    original = FakeGrid.__init__

    def with_sleep(self, *args, **kwargs):
        nonlocal sleep
        original(self, *args, **kwargs)
        sleep = self.clock.sleep
        self.clock.sleep = come_back

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeGrid, "__init__", with_sleep)
        outcome = run.run()
    assert outcome.complete
    assert run.grid.clock.now > 120


def test_no_site_at_all_is_a_quorum_error(federation):
    run = federation(job_of(rounds=1))
    for site in run.sites:
        site.refuses = lambda request: "data"
    with pytest.raises(QuorumError, match="round 1: there is no site to ask"):
        run.run()


def test_an_evaluation_that_fails_is_asked_again_on_resume(federation):
    run = federation(on_push=only("west", 5, "error", kind="evaluate"))
    outcome = run.run()
    assert set(outcome.evaluations) == {"north", "east", "south"}
    assert outcome.lost == {"west (evaluate)": "node-unavailable"}
    run.on_push = None
    for site in run.sites:
        site.seen.clear()
    again = run.run()
    assert again.complete
    asked = {s.name: [r.kind for r in s.seen if r.kind == "evaluate"] for s in run.sites}
    assert asked == {"north": [], "east": [], "south": [], "west": ["evaluate"]}


def test_a_hostile_evaluation_is_refused(federation):
    run = federation(job_of(rounds=1))
    run.sites[0].change_reply = lambda r, t: (
        (r.model_copy(update={"evaluation": None}), t) if r.kind == "evaluate" else (r, t)
    )
    assert run.run().lost == {"north (evaluate)": "no-content"}


def test_personalization_can_be_left_out(federation):
    run = federation(job_of(rounds=1, personalize={"method": "none"}))
    run.run()
    assert [r.kind for r in run.sites[0].seen] == ["describe", "train", "evaluate"]


def test_the_baselines_are_waited_for_before_the_evaluation(federation):
    run = federation(job_of(rounds=1))
    order = []
    run.options = {"before_evaluation": lambda: order.append(run.sites[0].seen[-1].kind)}
    run.run()
    assert order == ["personalize"]


def test_ctrl_c_in_a_round_says_how_to_go_on(federation):
    run = federation()

    def press(who, request):
        if (request.kind, request.round) == ("train", 4):
            raise KeyboardInterrupt

    run.on_push = press
    with pytest.raises(InterruptedRunError, match=r"3 of 5 rounds are committed.*--resume"):
        run.run()
    with run.history() as history:
        assert history.run("run").status == "stopped"
    run.on_push = None
    outcome = run.run()
    assert outcome.resumed_rounds == [4]
    assert [cost.resumed for cost in outcome.round_costs] == [False] * 3 + [True, False]
    assert outcome.sites["north"].seconds["train"] == pytest.approx(0.005)


def test_the_error_of_averaging_both_factors_is_measured(federation):
    outcome = federation(job_of(aggregate={"rule": "fedavg"}, rounds=2)).run()
    assert 0.01 < outcome.relative_error < 1


def test_seeds_differ_by_site_and_round_and_not_by_attempt(federation):
    run = federation(job_of(rounds=2))
    run.run()
    seeds = {s.name: [r.seed for r in s.seen if r.kind == "train"] for s in run.sites}
    assert len({seed for own in seeds.values() for seed in own}) == 8


def test_events_hold_names_and_numbers_only(federation):
    run = federation(job_of(rounds=1))
    run.run()
    lines = [json.loads(x) for x in (run.path / "events.jsonl").read_text().splitlines()]
    assert len(lines) == len(run.events)
    assert lines[-1]["status"] == "finished"
    assert BASE not in json.dumps(lines)


def test_clipped_contributions_are_counted(federation):
    outcome = federation(job_of(aggregate={"clip_norm": 0.01}, rounds=2)).run()
    assert outcome.clipped == 8
    assert outcome.complete
