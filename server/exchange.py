"""Questions to sites and their answers: deadline, repetition, late answers.

A site that needs longer answers that it is working, and is asked again at once. Over a network
messages get lost without a word, so there a question is asked again after an error, and after a
silence (``Persistence``); sites answer a question that they know from what they kept. A site that
works is waited for as long as its forecast allows; one that is not heard of is given up earlier.

Knows nothing of Flower: a ``Post`` carries bytes to a node and brings bytes back
(``server.flower_post``). Each answer is judged as it comes and handed on at once, so
that the caller can use it and drop it.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from server.events import EventLog
from server.forecast import DEADLINE
from server.post import Letter, Outgoing, Post
from server.questions import (
    NO_REPLY,
    NOT_SENT,
    SILENT,
    Answer,
    OpenQuestion,
    Persistence,
    Question,
)
from server.records import SURPLUS
from server.validation import CONFLICTING, DUPLICATE, NEEDS_AGAIN, Admitted, Rejected, judge
from shared.results import ParticipationState

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.002, 1.0
_LONGEST_REST = 30.0
_LOOK_SECONDS = 5.0


@dataclass
class Exchange:
    """Asks sites and collects their answers.

    Attributes:
        post: Carries the bytes.
        events: Where answers that come too late are noted.
        clock: Monotonic seconds.
        sleep: Waits for so many seconds.
        persistence: How a site that does not answer is asked again; not at all if ``None``.
        look: Called every few seconds while sites are waited for, if there is a persistence.
    """

    post: Post
    events: EventLog
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    persistence: Persistence | None = None
    look: Callable[[], None] | None = None
    _given_up: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Site and round of messages closed without an answer; what still comes is dropped.

    Not the question itself: it would keep its round's adapter in memory.
    """
    _looked: float = field(default=0.0, init=False)

    def ask(
        self, questions: Sequence[Question], seconds: float, enough: int | None = None
    ) -> Iterator[Answer]:
        """Ask, and yield one answer for every question, in the order in which they end.

        Args:
            questions: Sent at once.
            seconds: No site is waited for longer; one without an answer by then is ``missing``.
            enough: After so many admitted answers the others are not waited for; those that
                came with the same look count too. Who that is depends on who was fast, and the
                caller's result with it.
        """
        begun = self.clock()
        waiting: dict[str, OpenQuestion] = {}
        resting: list[OpenQuestion] = []
        first = [OpenQuestion(question, begun) for question in questions]
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
            if self.persistence is not None:
                yield from self._give_up(waiting, resting, now, self.persistence)
                self._repeat(waiting, resting, now, self.persistence)
                self._look(now)
            self.sleep(min(_pause(now - progress), begun + seconds - now))
        missed = enough is None or admitted < enough
        yield from self._close(waiting, resting, missed=missed)

    def _close(
        self, waiting: Mapping[str, OpenQuestion], resting: Sequence[OpenQuestion], *, missed: bool
    ) -> Iterator[Answer]:
        """Yield what becomes of the questions that nobody answered in time."""
        now = self.clock()
        self._given_up |= {key: one.question.whose for key, one in waiting.items()}
        state: ParticipationState = "missing" if missed else "idle"
        for one in _each(waiting, resting):
            reason = DEADLINE if missed else SURPLUS
            if missed and self.persistence and one.silent(now, self.persistence.lost_after):
                reason = SILENT
            yield one.close(now, state, reason)

    def _give_up(
        self,
        waiting: dict[str, OpenQuestion],
        resting: list[OpenQuestion],
        now: float,
        persistence: Persistence,
    ) -> Iterator[Answer]:
        """Yield the questions to sites that are lost, or need far longer than was forecast."""
        for one in _each(waiting, resting):
            reason = one.given_up(now, persistence)
            if reason is not None:
                keys = [key for key, other in waiting.items() if other is one]
                self._given_up |= dict.fromkeys(keys, one.question.whose)
                _forget(one, waiting, resting)
                yield one.close(now, "missing", reason)

    def _repeat(
        self,
        waiting: dict[str, OpenQuestion],
        resting: list[OpenQuestion],
        now: float,
        persistence: Persistence,
    ) -> None:
        """Ask those again whose message failed, or was not answered for too long."""
        due = [one for one in resting if one.due <= now]
        resting[:] = [one for one in resting if one.due > now]
        # The message that was lost may still be answered; the question has two messages then.
        silent = {
            id(one): one
            for one in waiting.values()
            if now - one.sent > persistence.after_silence + one.on_its_way
        }
        for _ in self._send([*due, *silent.values()], waiting, resting):
            raise AssertionError("with persistence no question ends by not being sent")

    def _look(self, now: float) -> None:
        if self.look is not None and now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            self.look()

    def _send(
        self,
        opened: Sequence[OpenQuestion],
        waiting: dict[str, OpenQuestion],
        resting: list[OpenQuestion],
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

    def _rest(
        self,
        one: OpenQuestion,
        waiting: Mapping[str, OpenQuestion],
        resting: list[OpenQuestion],
    ) -> bool:
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

    def _collect(
        self, waiting: dict[str, OpenQuestion], resting: list[OpenQuestion]
    ) -> Iterator[Answer]:
        """Look once for what has come, and yield the answers that end a question."""
        begun = self.clock()
        letters = self.post.collect([*waiting, *self._given_up])
        conflicting = _conflicting(letters)
        letters.reverse()
        came: list[tuple[OpenQuestion, str | None, Admitted | Rejected | None]] = []
        answered: dict[str, tuple[str, int]] = {}
        while letters:
            letter = letters.pop()
            opened = waiting.pop(letter.message_id, None)
            if opened is None:
                self._drop(letter.message_id, answered)
                continue
            if any(one is opened for one, _, _ in came):
                continue  # its other message was answered too
            answered[letter.message_id] = opened.question.whose
            verdict = None
            if letter.body is not None:
                opened.up += len(letter.body)
                opened.heard = begun
                refused = CONFLICTING if letter.message_id in conflicting else letter.refused
                verdict = (
                    Rejected(refused) if refused else judge(letter.body, opened.question.expected)
                )
            came.append((opened, letter.failure, verdict))
        # Only what the sites' own work does not explain is the cost of the transfer.
        work = sum(v.reply.seconds for _, _, v in came if v is not None and v.reply is not None)
        share = max(0.0, self.clock() - begun - work) / max(1, len(came))
        came.reverse()
        again: list[OpenQuestion] = []
        while came:  # an update is dropped here as soon as its taker is done with it
            opened, failure, verdict = came.pop()
            opened.transfer += share
            if verdict is None and self._rest(opened, waiting, resting):
                continue
            if self.persistence is not None:  # it may have had two messages, or been put aside
                _forget(opened, waiting, resting)
            if opened.again(verdict):
                self._tell_working(opened, verdict)
                again.append(opened)
                continue
            yield self._end(opened, failure, verdict)
        yield from self._send(again, waiting, resting)

    def _tell_working(self, opened: OpenQuestion, verdict: Admitted | Rejected | None) -> None:
        if isinstance(verdict, Rejected) and verdict.working and verdict.reply is not None:
            site, round_number = opened.question.whose
            self.events.emit(
                "site-working",
                round_number=round_number,
                site=site,
                seconds=verdict.reply.seconds,
                progress=verdict.reply.progress,
                left=opened.note_working(verdict.reply),
            )

    def _end(
        self, opened: OpenQuestion, failure: str | None, verdict: Admitted | Rejected | None
    ) -> Answer:
        now = self.clock()
        if verdict is None:
            return opened.close(now, "missing", failure or NO_REPLY)
        if isinstance(verdict, Admitted):
            return opened.close(now, "in", None, verdict)
        return opened.close(
            now, "refused", NEEDS_AGAIN if verdict.needs else verdict.reason, verdict
        )

    def _drop(self, message_id: str, answered: Mapping[str, tuple[str, int]]) -> None:
        """Note an answer to a question that is closed; it never counts."""
        reason = DUPLICATE if message_id in answered else DEADLINE
        whose = answered.get(message_id) or self._given_up.pop(message_id, None)
        if whose is not None:
            site, round_number = whose
            self.events.emit("late-reply", round_number=round_number, site=site, reason=reason)


def _each(
    waiting: Mapping[str, OpenQuestion], resting: Iterable[OpenQuestion]
) -> list[OpenQuestion]:
    """Return every open question once; one may have two messages on their way."""
    return list({id(one): one for one in [*waiting.values(), *resting]}.values())


def _forget(
    one: OpenQuestion, waiting: dict[str, OpenQuestion], resting: list[OpenQuestion]
) -> None:
    """Wait no longer for any of a question's messages."""
    for key in [key for key, other in waiting.items() if other is one]:
        del waiting[key]
    resting[:] = [other for other in resting if other is not one]


def _conflicting(letters: Sequence[Letter]) -> set[str]:
    """Return the messages that were answered twice, with different bodies: neither counts."""
    first: dict[str, bytes] = {}
    found: set[str] = set()
    for letter in letters:
        if letter.body is None or letter.refused:
            continue
        if first.setdefault(letter.message_id, letter.body) != letter.body:
            found.add(letter.message_id)
    return found


def _pause(waited: float) -> float:
    """Return how long to sleep before looking again: a twentieth of the wait so far."""
    return min(max(_SHORTEST_PAUSE, waited / 20), _LONGEST_PAUSE)
