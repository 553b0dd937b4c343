"""How long sites take, by hand; and that forecasts decide whom a round waits for."""

from dataclasses import dataclass, field

import pytest
from fake_federation import FakeSite, Federation, job_of

from server.forecast import Forecast, forecasts
from server.questions import OpenQuestion, Persistence, Question
from server.records import Contribution, RoundRecord
from shared.messages import Reply, decode_request, encode

NAMES = ("north", "east", "south", "west")
ANSWER = 20.0


def record(number, *contributions):
    return RoundRecord(number, 1, "B", 1.0, 2, 2, None, "a", "m", contributions)


def took(site, seconds, examples=100):
    return Contribution(site, "in", examples={"image": examples}, work_seconds=seconds)


def out(site, reason, seconds):
    return Contribution(site, "missing", reason, examples={"image": 100}, seconds=seconds)


def test_a_site_takes_as_long_as_in_its_latest_rounds():
    seconds = [900.0, 10.0, 12.0, 11.0, 90.0, 10.0]
    records = [record(n, took("a", each)) for n, each in enumerate(seconds, start=1)]
    # The first is too long ago, and the median of the others does not heed the 90.
    assert forecasts(records, {"a": {"image": 100}}) == {"a": Forecast(11.0, own=True)}


def test_a_new_site_takes_as_long_per_record_as_the_slowest():
    records = [record(1, took("a", 10.0, examples=100), took("b", 60.0, examples=200))]
    found = forecasts(records, {"c": {"image": 300, "text": 100}, "d": {"image": 0}})
    assert found == {"c": Forecast(0.3 * 400, own=False)}


def test_nothing_is_forecast_before_the_first_round():
    assert forecasts([], {"a": {"image": 100}}) == {}


def test_a_site_that_was_too_slow_is_known_to_need_longer():
    records = [
        record(1, took("a", 10.0)),
        record(2, out("a", "slower-than-forecast", 270.0)),
        record(3, out("a", "silent", 900.0)),  # says nothing of its pace
    ]
    assert forecasts(records, {"a": {}})["a"].seconds == 270.0
    back = [*records, record(4, took("a", 20.0))]
    assert forecasts(back, {"a": {}})["a"].seconds == 15.0


def opened(forecast=None, **known):
    question = Question("a", 1, None, None, forecast=forecast)
    return OpenQuestion(question, asked=0.0, heard=10_000.0, **known)


PERSISTENCE = Persistence(lost_after=100.0, slack=3.0, grace=50.0)
OWN, GUESS = Forecast(100.0, own=True), Forecast(100.0, own=False)


@pytest.mark.parametrize(
    ("question", "limit"),
    [
        (opened(OWN), 350.0),
        (opened(OWN, projected=9000.0), 350.0),  # its own rounds say what it needs
        (opened(GUESS, projected=200.0), 650.0),  # it knows better than a guess
        (opened(GUESS, projected=20.0), 350.0),
        (opened(None, projected=200.0), 650.0),
        (opened(OWN, progress=0.6), 700.0),  # less is left than was done
        (opened(OWN, progress=0.4), 350.0),
    ],
)
def test_how_long_a_site_may_take(question, limit):
    question.heard = limit
    assert question.given_up(limit, PERSISTENCE) is None
    assert question.given_up(limit + 1, PERSISTENCE) == "slower-than-forecast"


def test_a_site_of_which_nothing_is_known_may_take_until_the_deadline():
    assert opened().given_up(10_000.0, PERSISTENCE) is None
    assert opened().given_up(10_101.0, PERSISTENCE) == "silent"


def test_what_a_site_says_of_its_progress_tells_what_is_left():
    question = opened()
    reply = Reply(kind="train", run="r", round=1, attempt=1, site="a", seconds=30.0, progress=0.25)
    assert question.note_working(reply) == 90.0
    assert question.projected == 120.0
    slower = reply.model_copy(update={"seconds": 100.0, "progress": 0.5})
    assert question.note_working(slower) == 100.0
    assert question.projected == 120.0  # what it said first
    unknown = reply.model_copy(update={"progress": None})
    assert question.note_working(unknown) is None
    assert opened(OWN).note_working(unknown) == 70.0


@dataclass
class Worker(FakeSite):
    """Trains for so many seconds in a round, and says so every 20 s."""

    takes: dict[int, float] = field(default_factory=dict)
    tells: bool = True
    begun: dict[int, float] = field(default_factory=dict)
    now: float = 0.0

    def delay(self, request, now):
        begun = self.begun.setdefault(request.round, now)
        left = begun + self.takes.get(request.round, 10.0) - now
        self.now = now + min(max(left, 0.0), ANSWER)
        return self.now - now

    def handle(self, body):
        request, _ = decode_request(body)
        if request.kind != "train":
            return super().handle(body)
        takes = self.takes.get(request.round, 10.0)
        worked = self.now - self.begun[request.round]
        self.change_reply = lambda r, t: (r.model_copy(update={"seconds": takes}), t)
        answer = super().handle(body)
        if worked >= takes - 1e-6:
            return answer
        reply = Reply(
            kind="train",
            run=request.run,
            round=request.round,
            attempt=request.attempt,
            site=self.name,
            status="working",
            seconds=worked,
            progress=worked / takes if self.tells else None,
        )
        return encode(reply)


def federation(path, *, deadline=50_000.0, rounds=5, **takes):
    sites = [Worker(name, takes=takes.get(name, {})) for name in NAMES]
    job = job_of(rounds=rounds, aggregate={"deadline_seconds": deadline})
    run = Federation(path / "run", job, sites=sites, options={"persistence": Persistence()})

    def on_push(site, request):
        return site.delay(request, run.grid.clock.now) if request.kind == "train" else None

    run.on_push = on_push
    return run


def states(outcome, site):
    return [cell.reason or cell.state for cell in outcome.sites[site].participation]


@pytest.mark.parametrize("tells", [True, False])
def test_the_largest_site_is_waited_for(tmp_path, tells):
    run = federation(tmp_path, rounds=3, west=dict.fromkeys(range(1, 4), 1500.0))
    run.sites[3].tells = tells
    outcome = run.run()
    assert outcome.complete
    assert all(1500 < cost.seconds < 1600 for cost in outcome.round_costs)
    plain = Federation(tmp_path / "plain" / "run", job_of(rounds=3))
    assert outcome.shared.sha256() == plain.run().shared.sha256()


def test_a_straggler_is_left_out_and_not_for_good(tmp_path):
    """Ten times as slow as it was, and more; it is given three times as long every time."""
    run = federation(tmp_path, west={3: 2000.0, 4: 2000.0, 5: 2000.0})
    run.sites[3].tells = False
    outcome = run.run()
    slow = "slower-than-forecast"
    assert states(outcome, "west") == ["in", "in", slow, slow, "in"]
    seconds = [cost.seconds for cost in outcome.round_costs]
    # 3 * 10 + 240, then 3 * 270 + 240, a look later each.
    assert 270 <= seconds[2] < 295
    assert 1050 <= seconds[3] < 1120
    assert 2000 <= seconds[4] < 2100
    assert not outcome.complete
    assert outcome.lost == {"west": slow}


def test_a_straggler_that_has_done_the_most_of_it_is_waited_for(tmp_path):
    run = federation(tmp_path, rounds=3, west={3: 500.0})
    assert states(run.run(), "west") == ["in", "in", "in"]
    quiet = federation(tmp_path / "quiet", rounds=3, west={3: 500.0})
    quiet.sites[3].tells = False
    assert states(quiet.run(), "west") == ["in", "in", "slower-than-forecast"]


def test_no_site_is_waited_for_beyond_the_deadline(tmp_path):
    run = federation(tmp_path, deadline=500.0, rounds=2, west={1: 3000.0})
    outcome = run.run()
    assert states(outcome, "west") == ["deadline", "in"]
    assert 500 <= outcome.round_costs[0].seconds < 530


def test_a_silent_site_is_given_up_long_before_the_deadline(tmp_path):
    run = federation(tmp_path, west={1: 3000.0, 2: 3000.0})
    delays = run.on_push

    def on_push(site, request):
        gone = (site.name, request.round, request.kind) == ("east", 2, "train")
        return "lost" if gone else delays(site, request)

    run.on_push = on_push
    outcome = run.run()
    assert states(outcome, "east") == ["in", "silent", "in", "in", "in"]
    dropped = [e for e in run.events if e.kind == "site-dropped"]
    assert [(e.site, e.values["reason"]) for e in dropped] == [("east", "silent")]
    # West was still waited for then: the others' answers are in the record, this one came first.
    kinds = [(e.kind, e.site) for e in run.events if e.round == 2]
    assert kinds.index(("site-dropped", "east")) < kinds.index(("site-replied", "west"))


def test_working_is_told_with_what_is_left(tmp_path):
    run = federation(tmp_path, rounds=1, west={1: 100.0})
    run.run()
    working = [e.values for e in run.events if e.kind == "site-working"]
    assert [(w["seconds"], w["progress"], w["left"]) for w in working[:2]] == [
        (pytest.approx(20.0), pytest.approx(0.2), pytest.approx(80.0)),
        (pytest.approx(40.0, abs=2), pytest.approx(0.4, abs=0.02), pytest.approx(60.0, abs=2)),
    ]
