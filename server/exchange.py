"""Questions to sites and their answers: deadline, repetition, late answers.

Knows nothing of Flower: a ``Post`` carries bytes to a node and brings bytes back
(``server.rounds.FlowerPost``). Each answer is judged as it comes and handed on at once, so
that the caller can use it and drop it.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from server.events import EventLog
from server.records import SURPLUS
from server.validation import DUPLICATE, NEEDS_AGAIN, Admitted, Expected, Rejected, judge
from shared.adapter import AdapterUpdate
from shared.messages import Reply, RequestKind
from shared.results import ParticipationState

DEADLINE = "deadline"
NOT_SENT = "not-sent"
NOT_CONNECTED = "not-connected"
NO_REPLY = "no-reply"

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.002, 1.0


@dataclass(frozen=True)
class Letter:
    """What came back for a message: a body, or the reason why there is none."""

    message_id: str
    body: bytes | None
    failure: str | None = None


@dataclass(frozen=True)
class Sheets:
    """A request's body: what is one site's own, and then what all sites have in common.

    The enclosure is one object for all, so that a round holds the adapter once however many
    sites it asks.
    """

    header: bytes
    enclosure: bytes

    def __len__(self) -> int:
        return len(self.header) + len(self.enclosure)

    def joined(self) -> bytes:
        """Return the body as it reaches the site."""
        return self.header + self.enclosure


@dataclass(frozen=True)
class Outgoing:
    """A request on its way to a node."""

    node: int
    kind: RequestKind
    body: Sheets


class Post(Protocol):
    """Carries bodies to nodes; Flower's grid behind ``FlowerPost``."""

    def nodes(self) -> list[int]:
        """Return the numbers of all nodes that are connected."""
        ...

    def send(self, requests: Sequence[Outgoing]) -> list[str | None]:
        """Send requests together; an id for each, ``None`` where it could not be sent."""
        ...

    def collect(self, message_ids: Sequence[str]) -> list[Letter]:
        """Return what has come back for these messages, without waiting."""
        ...


@dataclass(frozen=True)
class Question:
    """A question to one site.

    Attributes:
        site: Its name, or a stand-in where names are not known yet.
        node: Flower's number of it.
        expected: What an answer must look like.
        body: Makes the request; ``True`` puts every part of the shared adapter into it.
    """

    site: str
    node: int
    expected: Expected
    body: Callable[[bool], Sheets]


@dataclass(frozen=True)
class Answer:
    """What became of a question.

    Attributes:
        site: As in the question.
        node: As in the question.
        state: ``in``, ``missing``, ``refused`` or (not needed) ``idle``.
        reason: Code, unless ``in``.
        reply: The site's reply, as far as it is trustworthy.
        update: Its change, if it was admitted to train.
        seconds: From the question to the answer or to the end of waiting.
        transfer_seconds: Spent handing over and taking in, without the site's work.
        bytes_up: Received.
        bytes_down: Sent.
    """

    site: str
    node: int
    state: ParticipationState
    reason: str | None = None
    reply: Reply | None = None
    update: AdapterUpdate | None = None
    seconds: float = 0.0
    transfer_seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass
class _Open:
    """A question that waits for its answer."""

    question: Question
    asked: float
    full: bool = False
    transfer: float = 0.0
    up: int = 0
    down: int = 0

    def close(
        self,
        now: float,
        state: ParticipationState,
        reason: str | None,
        admitted: Admitted | None = None,
        reply: Reply | None = None,
    ) -> Answer:
        return Answer(
            site=self.question.site,
            node=self.question.node,
            state=state,
            reason=reason,
            reply=admitted.reply if admitted else reply,
            update=admitted.update if admitted else None,
            seconds=now - self.asked,
            transfer_seconds=self.transfer,
            bytes_up=self.up,
            bytes_down=self.down,
        )


@dataclass
class Exchange:
    """Asks sites and collects their answers.

    Attributes:
        post: Carries the bytes.
        events: Where answers that come too late are noted.
        clock: Monotonic seconds.
        sleep: Waits for so many seconds.
    """

    post: Post
    events: EventLog
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _given_up: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Site and round of messages closed without an answer; what still comes is dropped.

    Not the question itself: it would keep its round's adapter in memory.
    """

    def ask(
        self, questions: Sequence[Question], seconds: float, enough: int | None = None
    ) -> Iterator[Answer]:
        """Ask, and yield one answer for every question, in the order in which they end.

        Args:
            questions: Sent at once.
            seconds: So long is waited; a question without an answer by then is ``missing``.
            enough: After so many admitted answers the others are not waited for; those that
                came with the same look count too.
        """
        begun = self.clock()
        waiting: dict[str, _Open] = {}
        yield from self._send([_Open(question, begun) for question in questions], waiting)
        admitted, progress = 0, begun
        while waiting and (enough is None or admitted < enough):
            quiet = True
            for answer in self._collect(waiting):
                quiet = False
                admitted += answer.state == "in"
                yield answer
            now = self.clock()
            if not quiet:  # answers that came with the same look are never late
                progress = now
                continue
            if now >= begun + seconds:
                break
            self.sleep(min(_pause(now - progress), begun + seconds - now))
        missed = enough is None or admitted < enough
        for message_id, closed in waiting.items():
            self._given_up[message_id] = _whose(closed.question)
            state: ParticipationState = "missing" if missed else "idle"
            yield closed.close(self.clock(), state, DEADLINE if missed else SURPLUS)

    def _send(self, opened: Sequence[_Open], waiting: dict[str, _Open]) -> Iterator[Answer]:
        """Send all together; yield what could not be sent.

        Which sites are sent to together depends on the list alone, and not on what each holds
        already: a simulation trains those together, and a resumed run repeats it.
        """
        if not opened:
            return
        begun = self.clock()
        requests = []
        for one in opened:
            body = one.question.body(one.full)
            one.down += len(body)
            requests.append(Outgoing(one.question.node, one.question.expected.kind, body))
        ids = self.post.send(requests)
        share = (self.clock() - begun) / len(opened)
        for one, message_id in zip(opened, ids, strict=True):
            one.transfer += share
            if message_id is None:
                yield one.close(self.clock(), "missing", NOT_SENT)
            else:
                waiting[message_id] = one

    def _collect(self, waiting: dict[str, _Open]) -> Iterator[Answer]:
        """Look once for what has come, and yield the answers that end a question."""
        begun = self.clock()
        letters = self.post.collect([*waiting, *self._given_up])
        letters.reverse()
        came: list[tuple[_Open, str | None, Admitted | Rejected | None]] = []
        answered: dict[str, tuple[str, int]] = {}
        while letters:
            letter = letters.pop()
            opened = waiting.pop(letter.message_id, None)
            if opened is None:
                self._drop(letter.message_id, answered)
                continue
            answered[letter.message_id] = _whose(opened.question)
            verdict = None
            if letter.body is not None:
                opened.up += len(letter.body)
                verdict = judge(letter.body, opened.question.expected)
            came.append((opened, letter.failure, verdict))
        # Only what the sites' own work does not explain is the cost of the transfer.
        work = sum(v.reply.seconds for _, _, v in came if v is not None and v.reply is not None)
        share = max(0.0, self.clock() - begun - work) / max(1, len(came))
        came.reverse()
        again: list[_Open] = []
        while came:  # an update is dropped here as soon as its taker is done with it
            opened, failure, verdict = came.pop()
            opened.transfer += share
            if isinstance(verdict, Rejected) and verdict.needs and not opened.full:
                opened.full = True
                again.append(opened)
                continue
            yield self._end(opened, failure, verdict)
        yield from self._send(again, waiting)

    def _end(
        self, opened: _Open, failure: str | None, verdict: Admitted | Rejected | None
    ) -> Answer:
        now = self.clock()
        if verdict is None:
            return opened.close(now, "missing", failure or NO_REPLY)
        if isinstance(verdict, Admitted):
            return opened.close(now, "in", None, verdict)
        reason = NEEDS_AGAIN if verdict.needs else verdict.reason
        return opened.close(now, "refused", reason, reply=verdict.reply)

    def _drop(self, message_id: str, answered: Mapping[str, tuple[str, int]]) -> None:
        """Note an answer to a question that is closed; it never counts."""
        reason = DUPLICATE if message_id in answered else DEADLINE
        whose = answered.get(message_id) or self._given_up.pop(message_id, None)
        if whose is not None:
            site, round_number = whose
            self.events.emit("late-reply", round_number=round_number, site=site, reason=reason)


def _whose(question: Question) -> tuple[str, int]:
    return question.site, question.expected.round


def _pause(waited: float) -> float:
    """Return how long to sleep before looking again: a twentieth of the wait so far."""
    return min(max(_SHORTEST_PAUSE, waited / 20), _LONGEST_PAUSE)
