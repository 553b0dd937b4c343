"""A question is answered in time, worked out once, and its last answer is given again."""

import threading

import pytest

from client.patience import PatientAgent
from shared.config import JobConfig
from shared.errors import StorageError
from shared.messages import Reply, Request, decode_reply, encode

JOB = JobConfig(name="job")


def question(number=1, **fields):
    request = Request(
        kind="train",
        run="run",
        round=number,
        site="north",
        base_sha256="0" * 64,
        job_sha256=JOB.digest(),
        job=JOB,
        **fields,
    )
    return encode(request)


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
