"""A question is answered in time, worked out once, and its last answer is given again."""

import threading
import time

import pytest

import client.patience
import client.progress
from client.patience import PatientAgent
from client.progress import step_done
from shared.config import JobConfig
from shared.errors import StorageError, TrainingError
from shared.messages import (
    Reply,
    Request,
    decode_reply,
    decode_request_header,
    encode,
    question_of,
    with_attempt,
)

JOB = JobConfig(name="job")


def question(number=1, **fields):
    values = {
        "kind": "train",
        "run": "run",
        "round": number,
        "site": "north",
        "base_sha256": "0" * 64,
        "job_sha256": JOB.digest(),
        "job": JOB,
    }
    return encode(Request(**values | fields))


def answer(number=1, status="ok"):
    reply = Reply(kind="train", run="run", round=number, attempt=1, site="north", status=status)
    return encode(reply)


class Slow:
    """Answers once it may; counts what it was asked."""

    def __init__(self, status="ok"):
        self.go = threading.Event()
        self.asked = 0
        self.status = status

    def handle(self, body):
        self.asked += 1
        assert self.go.wait(10)
        return answer(status=self.status)


def test_a_long_task_is_answered_with_working_and_goes_on():
    inside = Slow()
    agent = PatientAgent(inside, "north", 0.05)
    reply, tensors = decode_reply(agent.handle(question()))
    assert (reply.status, reply.kind, reply.run, reply.round) == ("working", "train", "run", 1)
    assert reply.site == "north"
    assert not tensors
    inside.go.set()
    patient = PatientAgent(inside, "north", 10)
    assert decode_reply(patient.handle(question()))[0].status == "ok"


def test_asked_again_it_finds_the_task_that_was_begun():
    inside = Slow()
    agent = PatientAgent(inside, "north", 0.05)
    for _ in range(3):
        assert decode_reply(agent.handle(question()))[0].status == "working"
    inside.go.set()
    agent._seconds = 10
    assert agent.handle(question()) == answer()
    assert agent.handle(question()) == answer()  # the one before may have got lost
    assert inside.asked == 1


def test_another_question_is_another_task():
    inside = Slow()
    inside.go.set()
    agent = PatientAgent(inside, "north", 10)
    for number in (1, 2, 1):
        agent.handle(question(number))
    assert inside.asked == 3


@pytest.mark.parametrize("status", ["needs", "refused"])
def test_an_answer_that_asks_for_something_is_not_kept(status):
    inside = Slow(status)
    inside.go.set()
    agent = PatientAgent(inside, "north", 10)
    agent.handle(question())
    agent.handle(question())
    assert inside.asked == 2


def test_an_error_reaches_the_one_who_asked_and_is_not_kept():
    class Broken:
        asked = 0

        def handle(self, body):
            self.asked += 1
            raise StorageError("nothing released")

    inside = Broken()
    agent = PatientAgent(inside, "north", 10)
    for _ in range(2):
        with pytest.raises(StorageError):
            agent.handle(question())
    assert inside.asked == 2


def test_one_task_at_a_time():
    busy, most = [0], [0]

    class Counting:
        def handle(self, body):
            busy[0] += 1
            most[0] = max(most[0], busy[0])
            threading.Event().wait(0.05)
            busy[0] -= 1
            return answer()

    agent = PatientAgent(Counting(), "north", 10)
    threads = [
        threading.Thread(target=agent.handle, args=(question(number),)) for number in range(1, 5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert most == [1]


def test_what_is_no_question_is_left_to_the_agent():
    class Refusing:
        def handle(self, body):
            return b"refused"

    assert PatientAgent(Refusing(), "north", 10).handle(b"nonsense") == b"refused"


class Training:
    """Takes steps until it is told to end, or nobody wants it any more; keeps its answers."""

    def __init__(self):
        self.trained = []
        self.abandoned = []
        self.go = threading.Event()
        self.kept = {}

    def handle(self, body):
        request = decode_request_header(body)
        key = question_of(request)
        if key not in self.kept:
            self.trained.append((request.run, request.round, request.attempt))
            try:
                for step in range(1000):
                    step_done(step + 1, 2000)
                    if self.go.wait(0.01):
                        break
            except TrainingError as error:
                self.abandoned.append(request.round)
                reply = {"status": "refused", "reason": error.reason}
                return encode(decode_reply(answer(request.round))[0].model_copy(update=reply))
            self.kept[key] = answer(request.round)
        return with_attempt(self.kept[key], request.attempt)


def status(agent, *args, **fields):
    return decode_reply(agent.handle(question(*args, **fields)))[0]


def test_another_attempt_finds_the_task_that_was_begun_and_gets_its_own_answer():
    inside = Training()
    agent = PatientAgent(inside, "north", 0.05)
    assert status(agent).status == "working"
    working = status(agent, attempt=2)
    assert (working.status, working.attempt) == ("working", 2)
    inside.go.set()
    agent._seconds = 10
    for attempt in (2, 3, 3):
        reply = status(agent, attempt=attempt)
        assert (reply.status, reply.attempt) == ("ok", attempt)
    assert inside.trained == [("run", 1, 1)]


def test_working_says_how_far_it_is():
    inside = Training()
    agent = PatientAgent(inside, "north", 0.2)
    reply = status(agent)
    assert 0 < reply.progress < 0.5
    assert status(agent).progress > reply.progress
    inside.go.set()


def test_what_a_run_has_gone_beyond_is_given_up():
    inside = Training()
    agent = PatientAgent(inside, "north", 0.05)
    assert status(agent, 1).status == "working"
    assert status(agent, 2).status == "working"
    for _ in range(100):
        if inside.abandoned:
            break
        time.sleep(0.02)
    assert inside.abandoned == [1]
    inside.go.set()
    agent._seconds = 10
    assert status(agent, 2).status == "ok"
    assert inside.trained == [("run", 1, 1), ("run", 2, 1)]


@pytest.mark.parametrize("other", [{"kind": "describe"}, {"run": "another"}])
def test_what_is_still_asked_for_is_not_given_up(other):
    """A ServerApp that comes back first asks who is there; and two runs may share a site."""
    inside = Training()
    agent = PatientAgent(inside, "north", 0.05)
    assert status(agent, 1).status == "working"
    asked = decode_reply(agent.handle(question(2, **other)))[0]
    assert asked.status == "working"
    inside.go.set()
    agent._seconds = 10
    assert status(agent, 1).status == "ok"
    assert inside.abandoned == []


def test_a_run_that_has_fallen_silent_gives_way_to_another(monkeypatch):
    inside = Training()
    agent = PatientAgent(inside, "north", 0.05)
    assert status(agent, 1).status == "working"
    monkeypatch.setattr(client.patience, "_OTHER_RUN_SECONDS", 0.01)
    time.sleep(0.02)
    assert status(agent, 2, run="another").status == "working"
    for _ in range(100):
        if inside.abandoned:
            break
        time.sleep(0.02)
    assert inside.abandoned == [1]
    inside.go.set()


def test_training_that_nobody_asks_for_ends(monkeypatch):
    inside = Training()
    agent = PatientAgent(inside, "north", 0.05)
    monkeypatch.setattr(client.progress, "UNASKED_SECONDS", 0.2)
    assert status(agent, 1).status == "working"
    for _ in range(100):
        if inside.abandoned:
            break
        time.sleep(0.02)
    assert inside.abandoned == [1]
    inside.go.set()
    agent._seconds = 10
    assert status(agent, 1).status == "ok"  # begun again


def test_an_answer_of_another_version_is_not_kept():
    class Foreign:
        asked = 0

        def handle(self, body):
            self.asked += 1
            update = {"status": "refused", "reason": "version"}
            return encode(decode_reply(answer())[0].model_copy(update=update))

    inside = Foreign()
    agent = PatientAgent(inside, "north", 10)
    assert agent.handle(question()) == agent.handle(question())
    assert inside.asked == 2
