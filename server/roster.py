"""Which sites there are: who answered ``describe``, where they are, what they hold."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from server.cohort import least_replies
from server.events import EventLog
from server.exchange import Exchange
from server.post import Sheets
from server.questions import Answer, Question
from server.validation import Expected
from shared.adapter import Tower
from shared.config import JobConfig
from shared.messages import Request, enclose, encode_header
from shared.parts import Part
from shared.results import Kind

NOT_INVITED = "not-in-job"
NAME_TAKEN = "name-taken"

_LOOK_AGAIN_SECONDS = 0.2
_LONGEST_LOOK = 2.0
_NEWCOMER_SECONDS = 60.0
_BACK_SECONDS = 20.0
"""A site that was there so recently is waited for before a round: a courier that is started again
is away for some seconds, and a round without the site would be another one."""
_TRIES = 3


@dataclass
class KnownSite:
    """A site that described itself.

    Attributes:
        name: Its name.
        node: Flower's number of it.
        kind: What its training records are.
        examples: Released training records per tower.
        holds: Digest of every part of the shared adapter that it confirmed to hold.
    """

    name: str
    node: int
    kind: Kind
    examples: dict[Tower, int]
    holds: dict[Part, str] = field(default_factory=dict)

    @property
    def trains(self) -> bool:
        """Return whether it has anything to train on."""
        return any(self.examples.values())


@dataclass
class Roster:
    """Finds sites and remembers them.

    Attributes:
        job: Names the sites that take part, if it names any.
        exchange: Asks nodes.
        events: Where newcomers and refusals are noted.
        request: Makes the ``describe`` request.
    """

    job: JobConfig
    exchange: Exchange
    events: EventLog
    request: Callable[[], Request]
    sites: dict[str, KnownSite] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    """Sites (or nodes that gave no name) that cannot take part, with the reason."""
    expected: set[str] = field(default_factory=set)
    """Sites that took part before the run was resumed."""
    least: int = 1
    """Fewer sites are not enough for any round."""
    required: frozenset[str] = frozenset()
    """Sites that the next round cannot do without."""
    _tries: dict[int, int] = field(default_factory=dict)
    _nodes: set[int] = field(default_factory=set)
    _told: tuple[int, int] | None = None
    _seen: dict[str, float] = field(default_factory=dict)
    """When a site was last connected."""

    def gather(self) -> None:
        """Describe the sites, and wait for those that are to come.

        Waits until as many nodes are connected as the job names sites (or as its quorum or
        cohort asks for) and all have answered, at most until the deadline.
        """
        aggregate, clock = self.job.aggregate, self.exchange.clock
        wanted = len(self.job.data.sites) or aggregate.quorum or aggregate.cohort or 1
        begun = clock()
        end = begun + aggregate.deadline_seconds
        while True:
            connected = self.refresh(end - clock())
            if connected >= wanted or clock() >= end:
                return
            self._tell_waiting(connected, wanted)
            self._pause(begun, end)

    def refresh(self, seconds: float = _NEWCOMER_SECONDS) -> int:
        """Look who is connected and ask newcomers to describe themselves.

        Everything else here speaks of the moment of the last look.

        Returns:
            How many nodes are connected.
        """
        self.look()
        known = {site.node for site in self.sites.values()}
        new = [n for n in sorted(self._nodes - known) if self._tries.get(n, 0) < _TRIES]
        for node in new:
            self._tries[node] = self._tries.get(node, 0) + 1
        if new:
            self._greet(self.exchange.ask(self._questions(new), seconds))
        return len(self._nodes)

    def look(self) -> None:
        """Look who is connected, and tell who came back and who left."""
        before, self._nodes = self._nodes, set(self.exchange.post.nodes())
        now = self.exchange.clock()
        self._seen.update(dict.fromkeys(self.connected(), now))
        for name, site in sorted(self.sites.items()):
            if (site.node in before) != (site.node in self._nodes):
                back = site.node in self._nodes
                self.events.emit("site-connected" if back else "site-disconnected", site=name)
        for node in set(self._tries) - self._nodes:
            self.refused.pop(_stand_in(node), None)  # left before it gave a name
            del self._tries[node]  # whatever was wrong may be mended when it comes back

    def await_sites(self) -> None:
        """Greet newcomers, and wait while too many known sites are away for a round to count.

        Waits without end where sites are at the other end of a network, else at most until the
        deadline; a site that refused is not waited for. One that left a moment ago is waited for a
        little, as it may be back at once.
        """
        config, clock = self.job.aggregate, self.exchange.clock
        begun = clock()
        end = None if self.patient else begun + config.deadline_seconds
        while True:
            left = _NEWCOMER_SECONDS if end is None else end - clock()
            self.refresh(min(_NEWCOMER_SECONDS, left))
            able = self.able()
            lacking = self.required - set(able)
            needed = max(least_replies(config, self.meant()), self.least, len(self.required))
            present = min(len(able), needed - 1) if lacking else len(able)
            nobody = self.patient and not self.sites and not self.refused
            late = end is not None and clock() >= end
            back = self._soon_back()
            enough = present >= needed and not back
            if enough or late or not (self.gone() or nobody):
                self._told = None
                return
            self._tell_waiting(present, max(needed, present + len(back)))
            self._pause(begun, end)

    @property
    def patient(self) -> bool:
        """Return whether sites that are away are waited for, however long that takes."""
        return self.exchange.persistence is not None

    def _soon_back(self) -> list[str]:
        """Return the sites that are away and were there a moment ago; a cohort has others."""
        if not self.patient or self.job.aggregate.cohort is not None:
            return []
        since = self.exchange.clock() - _BACK_SECONDS
        return [name for name in self.gone() if self._seen.get(name, -math.inf) > since]

    def _tell_waiting(self, present: int, needed: int) -> None:
        """Tell once how many sites are there and how many are needed."""
        if self._told != (present, needed):
            self._told = present, needed
            self.events.emit("waiting", present=present, needed=needed)

    def _pause(self, begun: float, end: float | None) -> None:
        """Wait until it is time to look again, ever longer."""
        now = self.exchange.clock()
        pause = min(max(_LOOK_AGAIN_SECONDS, (now - begun) / 20), _LONGEST_LOOK)
        self.exchange.sleep(pause if end is None else min(pause, max(0.0, end - now)))

    def connected(self) -> set[str]:
        """Return the names of the known sites whose nodes are connected."""
        return {site.name for site in self.sites.values() if site.node in self._nodes}

    def able(self) -> list[str]:
        """Return the sites that are connected and have something to train on, sorted."""
        connected = self.connected()
        return sorted(s.name for s in self.sites.values() if s.trains and s.name in connected)

    def gone(self) -> list[str]:
        """Return the sites that are to train and are not connected, sorted."""
        training = {site.name for site in self.sites.values() if site.trains}
        training |= self.expected - set(self.sites)
        return sorted(training - self.connected() - set(self.refused))

    def meant(self) -> int:
        """Return how many sites are to train, whether they can be asked or not."""
        return len(self.able()) + len(self.gone()) + len(self.refused)

    def note(self, answer: Answer) -> None:
        """Remember what a site holds after its answer; after silence nothing is certain."""
        holds = answer.reply.holds if answer.reply else {}
        self.sites[answer.site].holds = dict(holds)

    def _questions(self, nodes: Iterable[int]) -> list[Question]:
        request = self.request()
        body = Sheets(encode_header(request), enclose(request.job, {}))
        expected = Expected("describe", request.run, request.round, request.attempt, site=None)
        return [
            Question(
                _stand_in(node),
                node,
                expected,
                lambda _: body,
                # One that is only working, such as on its pictures, is waited for.
                failing_seconds=_NEWCOMER_SECONDS,
            )
            for node in nodes
        ]

    def _greet(self, answers: Iterator[Answer]) -> None:
        for answer in answers:
            name = answer.reply.site if answer.reply else answer.site
            reason = self._objection(answer, name)
            description = answer.reply.description if answer.reply else None
            if reason is None and answer.state == "in" and description is not None:
                self.refused.pop(name, None)
                self.refused.pop(answer.site, None)
                examples = dict(description.examples)
                self.sites[name] = KnownSite(name, answer.node, description.kind, examples)
                self.events.emit("site-described", site=name, records=description.kind)
                continue
            if reason:
                self._tries[answer.node] = _TRIES  # never asked again, and no loss
            else:
                reason = answer.reason or answer.state
                self.sites.pop(name, None)
                self.refused[name] = reason
            about = list(answer.detail)
            self.events.emit(
                "site-dropped", site=name, reason=reason, state=answer.state, about=about
            )

    def _objection(self, answer: Answer, name: str) -> str | None:
        """Return why a node may not speak for a site, if it gave a name at all."""
        if answer.reply is None:
            return None
        if self.job.data.sites and name not in self.job.data.sites:
            return NOT_INVITED
        # A site that reconnected under another number replaces itself; a second node that
        # is connected at the same time under the same name is an impostor or a mistake.
        return NAME_TAKEN if name in self.connected() else None


def _stand_in(node: int) -> str:
    """Return what a node is called that has not given its name."""
    return f"node {node}"
