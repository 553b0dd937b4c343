"""A question to a site: what it waits for, how long, and what became of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from server.forecast import SLOW, Forecast
from server.post import Sheets
from server.validation import Admitted, Expected, Rejected
from shared.adapter import AdapterUpdate
from shared.messages import Reply
from shared.results import ParticipationState

SILENT = "silent"
NOT_SENT = "not-sent"
NOT_CONNECTED = "not-connected"
NO_REPLY = "no-reply"
UNAVAILABLE = "node-unavailable"

AWAY = frozenset({SILENT, NOT_SENT, NOT_CONNECTED, UNAVAILABLE})
"""Reasons of sites that cannot be reached; they may come back."""

_SLOW_LINE = 200_000.0
"""Bytes per second that a site's line has at least; a message on its way is not taken for lost."""
_MOSTLY = 0.5
"""A site that has done more of its work than this may take twice as long: less is left."""
_TELLING = 0.02
"""From this share of the work on it says how long the whole of it will take."""


@dataclass(frozen=True)
class Persistence:
    """How often a site is asked that does not answer, and when it is given up.

    Flower needs up to 64 s to notice that a site's courier was killed, and brings it back after
    72 s; a site that is given up earlier loses a round for nothing.

    Attributes:
        after_failure: Seconds until it is asked again when its message failed.
        after_silence: Seconds without any answer after which its message counts as lost. Longer
            than a site takes to say that it is working, and than Flower takes to carry that.
        lost_after: Seconds without any answer after which the site counts as lost, for this
            question.
        slack: How many times its forecast a site may take.
        grace: Seconds that it may take beyond that.
    """

    after_failure: float = 1.0
    after_silence: float = 60.0
    lost_after: float = 240.0
    slack: float = 3.0
    grace: float = 240.0


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
        forecast: How long the site will take, if anything is known of that.
    """

    site: str
    node: int
    expected: Expected
    body: Callable[[bool], Sheets]
    reminder: Callable[[], Sheets] | None = None
    failing_seconds: float | None = None
    forecast: Forecast | None = None

    @property
    def whose(self) -> tuple[str, int]:
        """Return site and round."""
        return self.site, self.expected.round


@dataclass(frozen=True)
class Answer:
    """What became of a question.

    Attributes:
        site: As in the question.
        node: As in the question.
        state: ``in``, ``missing``, ``refused`` or (not needed) ``idle``.
        reason: Code, unless ``in``.
        detail: What belongs to the code and may be shown: both versions, or the job's fields
            that the site's policy forbids.
        reply: The site's reply, as far as it is trustworthy.
        message: Of a stage of secure aggregation.
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
    detail: tuple[str, ...] = ()
    reply: Reply | None = None
    update: AdapterUpdate | None = None
    message: bytes = b""
    seconds: float = 0.0
    transfer_seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass
class OpenQuestion:
    """A question that waits for its answer.

    Attributes:
        question: What is asked.
        asked: When, by the exchange's clock.
        enclosed: Which parts of the shared adapter go with it.
        largest: Bytes of its largest message; the answer may have as many.
        sent: When it was sent last.
        due: When it is to be asked again, if its message failed.
        heard: When the site was heard of last; since it was asked, if never.
        failures: Messages that failed.
        progress: Share of its work that the site has done, as it says.
        projected: Seconds that the whole work takes, by what the site said first.
        transfer: Seconds spent handing over and taking in.
        up: Bytes received.
        down: Bytes sent.
    """

    question: Question
    asked: float
    enclosed: Literal["missing", "all", "nothing"] = "missing"
    largest: int = 0
    sent: float = 0.0
    due: float = 0.0
    heard: float | None = None
    failures: int = 0
    progress: float | None = None
    projected: float | None = None
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

    def note_working(self, reply: Reply) -> float | None:
        """Remember how far the site is; return the seconds that it still needs, if known."""
        done = self.progress = reply.progress
        if done is not None and done >= _TELLING:
            if self.projected is None:
                self.projected = reply.seconds / done
            return reply.seconds * (1 - done) / done
        forecast = self.question.forecast
        return None if forecast is None else max(0.0, forecast.seconds - reply.seconds)

    @property
    def on_its_way(self) -> float:
        """Return the seconds that its largest message may take over a slow line."""
        return self.largest / _SLOW_LINE

    def silent(self, now: float, seconds: float) -> bool:
        """Tell whether the site has not been heard of for so long, or at all."""
        return self.heard is None or now - self.heard > seconds + self.on_its_way

    def given_up(self, now: float, persistence: Persistence) -> str | None:
        """Return why the site is not waited for any longer, if so."""
        since = self.asked if self.heard is None else self.heard
        if now - since > persistence.lost_after + self.on_its_way:
            return SILENT
        allowed = self._allowed(persistence)
        return SLOW if allowed is not None and now - self.asked > allowed else None

    def _allowed(self, persistence: Persistence) -> float | None:
        """Return the seconds that the site may take; ``None`` if nothing limits them."""
        forecast, seconds = self.question.forecast, self.projected
        if forecast is not None:
            # A guess from other sites' pace gives way to what the site itself says.
            seconds = forecast.seconds if forecast.own else max(forecast.seconds, seconds or 0.0)
        if seconds is None:
            return None
        allowed = persistence.slack * seconds + persistence.grace + self.on_its_way
        return 2 * allowed if (self.progress or 0.0) > _MOSTLY else allowed

    def close(
        self,
        now: float,
        state: ParticipationState,
        reason: str | None,
        verdict: Admitted | Rejected | None = None,
    ) -> Answer:
        """Return what became of it."""
        return Answer(
            site=self.question.site,
            node=self.question.node,
            state=state,
            reason=reason,
            detail=verdict.detail if isinstance(verdict, Rejected) else (),
            reply=verdict.reply if verdict else None,
            update=verdict.update if isinstance(verdict, Admitted) else None,
            message=verdict.message if isinstance(verdict, Admitted) else b"",
            seconds=now - self.asked,
            transfer_seconds=self.transfer,
            bytes_up=self.up,
            bytes_down=self.down,
        )
