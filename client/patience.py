"""Answers in time: a task that takes longer is answered with "working", and goes on.

Whoever carries a question may lose it, or die, while the answer is being worked out; so nobody
is left waiting for hours. A question is known by its header. Asked again, it finds the task that
was begun for it; the last answer is kept, so that one that got lost on its way is given again.
Asked by another attempt at the round it finds the same task, and the agent gives the answer that
it kept, as the answer to that attempt.

When a run goes on to its next question, what is still under way for an earlier one of it is given
up: the round was closed without this site, and the answer would come too late. A run that was
stopped cannot say so any more: Flower ends its ServerApp, and drops what is on its way. So its
training is given up once another run asks and it has not for some minutes, or at the latest when
nobody has for a quarter of an hour (``client.progress``).
"""

import threading
import time
from dataclasses import dataclass, field

from client.progress import Progress, watched
from client.service import AgentChannel
from shared.errors import WireError
from shared.messages import (
    SECURE_KINDS,
    Reply,
    RequestHeader,
    decode_reply,
    decode_request_header,
    encode,
    question_of,
)

_OTHER_RUN_SECONDS = 120.0
"""So long a run that is under way is silent at most: a courier that was killed is back by then."""


@dataclass
class _Task:
    """A question that is being answered.

    Attributes:
        request: What asked it first.
        begun: Monotonic seconds.
        progress: How far it is.
        done: Set once there is an answer, or an error in its place.
        answer: What came of it.
        error: What kept it from being answered.
    """

    request: RequestHeader
    begun: float = field(default_factory=time.monotonic)
    progress: Progress = field(default_factory=Progress)
    done: threading.Event = field(default_factory=threading.Event)
    answer: bytes = b""
    error: Exception | None = None

    def answers(self, request: RequestHeader) -> bool:
        """Return whether it is under way, or its answer is one to this very attempt."""
        return not self.done.is_set() or self.request.attempt == request.attempt


class PatientAgent:
    """An agent that always answers within some seconds.

    Args:
        agent: Does the work, one question after the other.
        site: The site's name.
        seconds: So long an answer may take; then it is ``working``.
    """

    def __init__(self, agent: AgentChannel, site: str, seconds: float) -> None:
        self._agent = agent
        self._site = site
        self._seconds = seconds
        self._lock = threading.Lock()
        self._one_at_a_time = threading.Lock()
        self._tasks: dict[str, _Task] = {}

    def handle(self, body: bytes) -> bytes:
        """Return the answer to a request, or that it is being worked out.

        Raises:
            StorageError: If the site could not release an answer.
        """
        try:
            request = decode_request_header(body)
        except WireError:
            return self._agent.handle(body)  # which refuses it
        end = time.monotonic() + self._seconds
        while True:
            task = self._task(request, body)
            if not task.done.wait(max(0.0, end - time.monotonic())):
                return self._working(request, task)
            if task.error is not None:
                raise task.error
            if task.request.attempt == request.attempt:
                return task.answer

    def _task(self, request: RequestHeader, body: bytes) -> _Task:
        """Return the task of a question; it is begun unless it is known."""
        question = question_of(request)
        with self._lock:
            self._let_go(question, request)
            task = self._tasks.get(question)
            if task is None or not task.answers(request):
                task = self._begin(question, request, body)
            task.progress.asked = time.monotonic()
            return task

    def _let_go(self, question: str, request: RequestHeader) -> None:
        """Give up the training that the site does in vain while it is asked for something else."""
        if request.kind == "describe":  # which a coordinator asks whatever is under way
            return
        for known, task in self._tasks.items():
            # What personalizing gives is the site's own, and of use however late.
            if known != question and task.request.kind == "train":
                gone = task.progress.unasked(_OTHER_RUN_SECONDS)
                task.progress.given_up |= _goes_on(task.request, request) or gone

    def _begin(self, question: str, request: RequestHeader, body: bytes) -> _Task:
        """Start on a question; answers to other questions are not kept any longer."""
        for known in [key for key, task in self._tasks.items() if task.done.is_set()]:
            del self._tasks[known]
        task = self._tasks[question] = _Task(request)
        # A daemon: an agent that is told to end does not wait for hours of training.
        work = threading.Thread(target=self._work, args=(question, task, body), daemon=True)
        work.start()
        return task

    def _work(self, question: str, task: _Task, body: bytes) -> None:
        try:
            with self._one_at_a_time, watched(task.progress):
                task.answer = self._agent.handle(body)
        except Exception as error:  # whoever asks gets it
            task.error = error
        with self._lock:
            if self._tasks.get(question) is task and not _is_final(task):
                # The next one who asks brings what was missing, or finds the trouble gone.
                del self._tasks[question]
        task.done.set()

    def _working(self, request: RequestHeader, task: _Task) -> bytes:
        done = task.progress.done
        reply = Reply(
            kind=request.kind,
            run=request.run,
            round=request.round,
            attempt=request.attempt,
            site=self._site,
            status="working",
            seconds=round(time.monotonic() - task.begun, 3),
            progress=None if done is None else round(done, 3),
        )
        return encode(reply)


def _goes_on(before: RequestHeader, now: RequestHeader) -> bool:
    """Return whether a request is a later one of a run than the one before.

    The stages of secure aggregation belong to the training of their round: its result is of use
    for the next session, too.
    """
    same_round = now.kind in SECURE_KINDS and now.round == before.round
    return before.run == now.run and not same_round


def _is_final(task: _Task) -> bool:
    """Return whether a question asked again should get this answer again."""
    try:
        return task.error is None and decode_reply(task.answer)[0].status == "ok"
    except WireError:
        return False
