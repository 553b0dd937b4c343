"""Questions to sites and their answers: deadline, repetition, late answers.

A site that needs longer answers that it is working, and is asked again at once. Over a network
messages get lost without a word, so there a question is asked again after an error, and after a
silence (``Persistence``); sites answer a question that they know from what they kept.

Knows nothing of Flower: a ``Post`` carries bytes to a node and brings bytes back
(``server.rounds.FlowerPost``). Each answer is judged as it comes and handed on at once, so
that the caller can use it and drop it.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from server.events import EventLog
from server.post import Outgoing, Post, Sheets
from server.records import SURPLUS
from server.validation import DUPLICATE, NEEDS_AGAIN, Admitted, Expected, Rejected, judge
from shared.adapter import AdapterUpdate
from shared.messages import Reply
from shared.results import ParticipationState

DEADLINE = "deadline"
NOT_SENT = "not-sent"
NOT_CONNECTED = "not-connected"
NO_REPLY = "no-reply"

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.002, 1.0
_LONGEST_REST = 30.0
_SLOW_LINE = 200_000.0
"""Bytes per second that a site's line has at least; a message on its way is not taken for lost."""


@dataclass(frozen=True)
class Persistence:
    """How often a site is asked that does not answer, until the deadline.

    Attributes:
        after_failure: Seconds until it is asked again when its message failed.
        after_silence: Seconds without any answer after which its message counts as lost. Longer
            than a site takes to say that it is working, and than Flower takes to carry that.
    """

    after_failure: float = 1.0
    after_silence: float = 60.0


@dataclass(frozen=True)
class Question:
    """A question to one site.

    Attributes:
        site: Its name, or a stand-in where names are not known yet.
        node: Flower's number of it.
        expected: What an answer must look like.
        body: Makes the request; ``True`` puts every part of the shared adapter into it.
        reminder: Makes the request without any part of it, for a site that is working on it.
        failing_seconds: So long it is asked again after its message failed; until the deadline
            if not given.
    """

    site: str
    node: int
    expected: Expected
    body: Callable[[bool], Sheets]
    reminder: Callable[[], Sheets] | None = None
    failing_seconds: float | None = None


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
    enclosed: Literal["missing", "all", "nothing"] = "missing"
    """Which parts of the shared adapter go with it."""
    largest: int = 0
    """Bytes of its largest message; the answer may have as many."""
    sent: float = 0.0
    due: float = 0.0
    """When it is to be asked again, if its message failed."""
    failures: int = 0
    transfer: float = 0.0
    up: int = 0
    down: int = 0

    def sheets(self) -> Sheets:
        """Return the request as it is to be sent now."""
        if self.enclosed == "nothing" and self.question.reminder is not None:
            return self.question.reminder()
        return self.question.body(self.enclosed == "all")

    def again(self, verdict: Admitted | Rejected | None) -> bool:
        """Tell whether it is to be sent again at once, and with what."""
        if not isinstance(verdict, Rejected):
            return False
        if verdict.working:
            self.enclosed = "nothing"
            return True
        if verdict.needs and self.enclosed != "all":
            self.enclosed = "all"
            return True
        return False

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
        persistence: How a site that does not answer is asked again; not at all if ``None``.
    """

    post: Post
    events: EventLog
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    persistence: Persistence | None = None
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
        resting: list[_Open] = []
        first = [_Open(question, begun) for question in questions]
        yield from self._send(first, waiting, resting)
        admitted, progress = 0, begun
        while (waiting or resting) and (enough is None or admitted < enough):
            quiet = True
            for answer in self._collect(waiting, resting):
                quiet = False
                admitted += answer.state == "in"
                yield answer
            now = self.clock()
            if not quiet:  # answers that came with the same look are never late
                progress = now
                continue
            if now >= begun + seconds:
                break
            self._repeat(waiting, resting, now)
            self.sleep(min(_pause(now - progress), begun + seconds - now))
        missed = enough is None or admitted < enough
        self._given_up |= {key: _whose(one.question) for key, one in waiting.items()}
        state: ParticipationState = "missing" if missed else "idle"
        for closed in {id(one): one for one in [*waiting.values(), *resting]}.values():
            yield closed.close(self.clock(), state, DEADLINE if missed else SURPLUS)

    def _repeat(self, waiting: dict[str, _Open], resting: list[_Open], now: float) -> None:
        """Ask those again whose message failed, or was not answered for too long."""
        if self.persistence is None:
            return
        due = [one for one in resting if one.due <= now]
        resting[:] = [one for one in resting if one.due > now]
        patience = self.persistence.after_silence
        # The message that was lost may still be answered; the question has two messages then.
        silent = {
            id(one): one
            for one in waiting.values()
            if now - one.sent > patience + one.largest / _SLOW_LINE
        }
        for _ in self._send([*due, *silent.values()], waiting, resting):
            raise AssertionError("with persistence no question ends by not being sent")

    def _send(
        self, opened: Sequence[_Open], waiting: dict[str, _Open], resting: list[_Open]
    ) -> Iterator[Answer]:
        """Send all together; yield what could not be sent.

        Which sites are sent to together depends on the list alone, and not on what each holds
        already: a simulation trains those together, and a resumed run repeats it.
        """
        if not opened:
            return
        begun = self.clock()
        requests = []
        for one in opened:
            body = one.sheets()
            one.down += len(body)
            one.largest = max(one.largest, len(body))
            one.sent = begun
            requests.append(Outgoing(one.question.node, one.question.expected.kind, body))
        ids = self.post.send(requests)
        share = (self.clock() - begun) / len(opened)
        for one, message_id in zip(opened, ids, strict=True):
            one.transfer += share
            if message_id is not None:
                waiting[message_id] = one
            elif not self._rest(one, waiting, resting):
                yield one.close(self.clock(), "missing", NOT_SENT)

    def _rest(self, one: _Open, waiting: Mapping[str, _Open], resting: list[_Open]) -> bool:
        """Put a question aside whose message failed, to ask it again; tell whether that is done."""
        limit, now = one.question.failing_seconds, self.clock()
        if self.persistence is None or (limit is not None and now > one.asked + limit):
            return False
        if not any(other is one for other in waiting.values()):
            pause = min(self.persistence.after_failure * 2**one.failures, _LONGEST_REST)
            one.failures += 1
            one.due = now + pause
            resting.append(one)
        return True

    def _collect(self, waiting: dict[str, _Open], resting: list[_Open]) -> Iterator[Answer]:
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
            if any(one is opened for one, _, _ in came):
                continue  # its other message was answered too
            answered[letter.message_id] = _whose(opened.question)
            verdict = None
            if letter.body is not None:
                opened.up += len(letter.body)
                verdict = (
                    Rejected(letter.refused)
                    if letter.refused
                    else judge(letter.body, opened.question.expected)
                )
            came.append((opened, letter.failure, verdict))
        # Only what the sites' own work does not explain is the cost of the transfer.
        work = sum(v.reply.seconds for _, _, v in came if v is not None and v.reply is not None)
        share = max(0.0, self.clock() - begun - work) / max(1, len(came))
        came.reverse()
        again: list[_Open] = []
        while came:  # an update is dropped here as soon as its taker is done with it
            opened, failure, verdict = came.pop()
            opened.transfer += share
            if verdict is None and self._rest(opened, waiting, resting):
                continue
            if self.persistence is not None:  # it may have had two messages, or been put aside
                for key in [key for key, one in waiting.items() if one is opened]:
                    del waiting[key]
                resting[:] = [one for one in resting if one is not opened]
            if opened.again(verdict):
                self._tell_working(opened, verdict)
                again.append(opened)
                continue
            yield self._end(opened, failure, verdict)
        yield from self._send(again, waiting, resting)

    def _tell_working(self, opened: _Open, verdict: Admitted | Rejected | None) -> None:
        if isinstance(verdict, Rejected) and verdict.working and verdict.reply is not None:
            site, round_number = _whose(opened.question)
            seconds = verdict.reply.seconds
            self.events.emit("site-working", round_number=round_number, site=site, seconds=seconds)

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
