"""Answers in time: a task that takes longer is answered with "working", and goes on.

Whoever carries a question may lose it, or die, while the answer is being worked out; so nobody
is left waiting for hours. A question is known by its header. Asked again, it finds the task that
was begun for it; the last answer is kept, so that one that got lost on its way is given again.
"""

import threading
import time
from dataclasses import dataclass, field

from client.service import AgentChannel
from shared.errors import WireError
from shared.messages import Reply, decode_reply, decode_request, encode, question_of


@dataclass
class _Task:
    """A question that is being answered.

    Attributes:
        begun: Monotonic seconds.
        done: Set once there is an answer, or an error in its place.
        answer: What came of it.
        error: What kept it from being answered.
    """

    begun: float
    done: threading.Event = field(default_factory=threading.Event)
    answer: bytes = b""
    error: Exception | None = None


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
            question = question_of(body)
        except WireError:
            return self._agent.handle(body)  # which refuses it
        with self._lock:
            task = self._tasks.get(question)
            if task is None:
                task = self._begin(question, body)
        if not task.done.wait(self._seconds):
            return self._working(body, task)
        if task.error is not None:
            raise task.error
        return task.answer

    def _begin(self, question: str, body: bytes) -> _Task:
        """Start on a question; answers to other questions are not kept any longer."""
        for known in [key for key, task in self._tasks.items() if task.done.is_set()]:
            del self._tasks[known]
        task = self._tasks[question] = _Task(time.monotonic())
        # A daemon: an agent that is told to end does not wait for hours of training.
        work = threading.Thread(target=self._work, args=(question, task, body), daemon=True)
        work.start()
        return task

    def _work(self, question: str, task: _Task, body: bytes) -> None:
        try:
            with self._one_at_a_time:
                task.answer = self._agent.handle(body)
        except Exception as error:  # whoever asks gets it
            task.error = error
        with self._lock:
            if task.error is not None or not _is_final(task.answer):
                # The next one who asks brings what was missing, or finds the trouble gone.
                self._tasks.pop(question, None)
        task.done.set()

    def _working(self, body: bytes, task: _Task) -> bytes:
        request, _ = decode_request(body)
        reply = Reply(
            kind=request.kind,
            run=request.run,
            round=request.round,
            attempt=request.attempt,
            site=self._site,
            status="working",
            seconds=round(time.monotonic() - task.begun, 3),
        )
        return encode(reply)


def _is_final(answer: bytes) -> bool:
    """Return whether a question asked again should get this answer again."""
    return decode_reply(answer)[0].status == "ok"
