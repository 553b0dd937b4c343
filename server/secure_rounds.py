"""Rounds in which the coordinator gets the sum of the sites' changes, and no site's own.

A thin driver around ``shared.security.secagg.coordinator``: it carries the five stages out over
an exchange, and stands in the round loop where otherwise updates come one by one. A session that
comes to nothing is repeated with new keys. What must not differ between the attempts at a round
is written down at the first of them (``server.first_plan``): a site has one vector for one round,
and unmasks it with one set of sites only.
"""

import base64
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from server.first_plan import FirstPlan, FirstPlans
from server.opened import OpenRound
from server.planning import RoundPlan, StageOfRound, planned_before
from server.questions import Answer, Question
from server.records import ABORTED, SPOILED
from server.roster import Roster
from server.secure_session import Members, session_of, threshold_of
from server.sum_gate import objection_to_sum
from shared.adapter import TOWERS, AdapterLayout, AdapterUpdate, Factor, Tower
from shared.config import JobConfig
from shared.distributed_noise import scale_of
from shared.errors import ConfigError, QuorumError, SecureSumError
from shared.messages import RequestKind
from shared.results import ParticipationState
from shared.secure_round import form_of, means_of, per_patient
from shared.security.secagg.coordinator import CoordinatorSum, SecureTotal
from shared.security.secagg.session import LEAST_SITES, Session
from shared.security.secagg.site import Stage

_KINDS: Final[Mapping[Stage, RequestKind]] = {
    Stage.ADVERTISE: "secure-keys",
    Stage.SHARE: "secure-shares",
    Stage.MASK: "train",
    Stage.AGREE: "secure-agree",
    Stage.REVEAL: "secure-unmask",
}
_MESSAGE_BYTES: Final = 4096
_BYTES_BY_SITE: Final = 512
"""More than any message but the vector holds for one site."""


class AbortedSumError(QuorumError):
    """A session came to nothing; ``reason`` is its code. The round can be repeated."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass
class _Course:
    """What became of the sites of a session so far.

    Attributes:
        answers: All that a site was asked, as one answer; its state is that of the last.
    """

    answers: dict[str, Answer] = field(default_factory=dict)

    def add(self, answer: Answer) -> None:
        """Note the answer to one stage."""
        before = self.answers.get(answer.site)
        if before is not None:
            reply = answer.reply or before.reply
            if answer.reply and before.reply:
                worked = before.reply.seconds + answer.reply.seconds
                reply = answer.reply.model_copy(update={"seconds": worked})
            answer = replace(
                answer,
                reply=reply,
                seconds=before.seconds + answer.seconds,
                transfer_seconds=before.transfer_seconds + answer.transfer_seconds,
                bytes_up=before.bytes_up + answer.bytes_up,
                bytes_down=before.bytes_down + answer.bytes_down,
            )
        self.answers[answer.site] = replace(answer, message=b"")

    def losses(self) -> str:
        """Return in brackets which sites were lost and why; nothing if none was."""
        lost = [
            f"{site}: {each.reason or each.state}"
            for site, each in sorted(self.answers.items())
            if each.state != "in"
        ]
        return f" ({'; '.join(lost)})" if lost else ""

    @property
    def steady(self) -> frozenset[str]:
        """Sites that answered all that they were asked."""
        return frozenset(site for site, each in self.answers.items() if each.state == "in")


class SecureRounds:
    """Sums the changes of rounds under masks; see the module's docstring.

    Args:
        job: With ``privacy.secure_aggregation``.
        members: Who may take part.
        roster: Knows the sites.
        plans: Remember the first attempt at every round.
        layout: Which layers carry an adapter.
    """

    def __init__(
        self,
        job: JobConfig,
        members: Members,
        roster: Roster,
        plans: FirstPlans,
        layout: AdapterLayout,
    ) -> None:
        self._job = job
        self._members = members
        self._exchange = roster.exchange
        self._roster = roster
        self._events = roster.events
        self._plans = plans
        self._layout = layout
        self._steady: tuple[int, frozenset[str]] = (0, frozenset())
        self._first = FirstPlan(weights={}, scale=1.0)

    def await_for(self, number: int) -> None:
        """Say which sites a round cannot do without, before it waits for sites."""
        first = self._plans.read(number)
        noised = self._job.privacy.noise_shares + 1 if self._job.privacy.noised_together else 0
        self._roster.least = max(LEAST_SITES, noised)
        self._roster.required = frozenset(first.survivors or ()) if first else frozenset()

    def plan(self, plan: RoundPlan, factors: Sequence[Factor]) -> RoundPlan:
        """Return the plan of an attempt: weights and scale of the first one that masked anything.

        Sites that were lost in the attempt before are left out once, if the others are enough.

        Args:
            plan: As it would be without secure aggregation.
            factors: Which the sites train.

        Raises:
            ConfigError: If the noise that sites are to add together does not fit into sums.
            StorageError: If what that attempt began with cannot be read.
        """
        first = self._plans.read(plan.round)
        if first is None:
            weights = {site: dict(plan.weights[site]) for site in plan.asked}
            first = FirstPlan(weights=weights, scale=self._scale(plan, factors))
        self._first = first
        whole = self._job.aggregate.cohort is None
        if first.survivors is not None:  # some may have unmasked the sum over these already
            again = planned_before(plan, self._roster, first, first.survivors, everyone=whole)
            return replace(again, quorum=len(first.survivors))
        number, steady = self._steady
        steady = steady & first.weights.keys() & set(self._roster.able())
        if number == plan.round and self._enough(steady, plan.quorum):
            return planned_before(plan, self._roster, first, steady, everyone=whole)
        return planned_before(plan, self._roster, first, first.weights, everyone=whole)

    def _enough(self, sites: Collection[str], quorum: int) -> bool:
        """Return whether a sum over some sites would be over enough of them, in every tower."""
        weights = [self._first.weights[site] for site in sites]
        in_towers = [sum(tower in each for each in weights) for tower in TOWERS]
        alone = any(0 < training < LEAST_SITES for training in in_towers)
        least = threshold_of(self._job, dict(zip(sites, weights, strict=True)), quorum)
        return len(sites) >= max(LEAST_SITES, least) and not alone

    def _scale(self, plan: RoundPlan, factors: Sequence[Factor]) -> float:
        """Return a round's steps per unit; where sites add noise together, those of its grid."""
        if not self._job.privacy.noised_together:
            return plan.scale
        parties = max(len(plan.asked), self._job.privacy.noise_shares)  # fewer get no session
        try:
            return scale_of(self._job, self._layout, factors, parties)
        except ValueError as error:
            raise ConfigError(f"{self._job.name}: privacy: {error}") from None

    def sum(self, opened: OpenRound) -> Iterator[AdapterUpdate]:
        """Carry a session out, and yield the sum of its changes as one update.

        Raises:
            AbortedSumError: If nothing came of it; nobody learned anything.
            QuorumError: If there are too few sites to begin with.
        """
        form = form_of(
            self._job, self._layout, opened.asking.request.factors, len(opened.plan.asked)
        )
        course = _Course()
        try:
            session = session_of(opened.plan, opened.asking, self._first, self._members, form)
            total = self._carry_out(opened, session, course)
            update = form.read(total.total, session.scale)
        except SecureSumError as error:
            self._steady = opened.plan.round, course.steady
            self._note_aborted(opened, course)
            raise AbortedSumError(
                error.reason,
                f"round {opened.plan.round}: {error.reason}: {error}{course.losses()}",
            ) from None
        self._gate(opened, update, total.survivors)
        for site, answer in sorted(course.answers.items()):
            # One that was lost after its vector had come is in the sum all the same.
            inside = replace(answer, state="in", reason=None)
            opened.add(inside if site in total.survivors else answer, self._roster.sites[site])
        for site in total.suspects:
            self._tell_lost(opened.plan.round, site, "secure-share", "refused")
        opened.means = means_of(update.metrics)
        yield per_patient(update) if self._job.privacy.noised_together else update

    def _note_aborted(self, opened: OpenRound, course: _Course) -> None:
        """Record what became of the sites; those that did all they were asked are not lost."""
        for site in opened.plan.asked:
            answer = course.answers.get(site)
            if answer is None:
                answer = Answer(site, self._roster.sites[site].node, "idle", ABORTED)
            elif answer.state == "in":
                answer = replace(answer, state="idle", reason=ABORTED)
            opened.add(answer, self._roster.sites[site])

    def _gate(self, opened: OpenRound, update: AdapterUpdate, survivors: Collection[str]) -> None:
        """Raise unless a sum is one that honest sites can have made.

        Raises:
            QuorumError: If it is not; another attempt would have the very same.
        """
        weights: dict[Tower, int] = {}
        for site in survivors:
            for tower, weight in opened.plan.weights[site].items():
                weights[tower] = weights.get(tower, 0) + weight
        reason = objection_to_sum(update, self._layout, weights, self._job, len(survivors))
        if reason is None:
            return
        for site in opened.plan.asked:
            answer = Answer(site, self._roster.sites[site].node, "refused", SPOILED)
            opened.add(answer, self._roster.sites[site])
        raise QuorumError(
            f"round {opened.plan.round}: the sum of {len(survivors)} sites' changes is none that "
            f"sites make that follow the protocol ({reason}); which of them spoiled it cannot be "
            "told from a sum; look at the sites, or start the job anew without secure aggregation"
        )

    def _carry_out(self, opened: OpenRound, session: Session, course: _Course) -> SecureTotal:
        """Carry out all stages.

        Raises:
            SecureSumError: If the session ends with nothing.
        """
        server = CoordinatorSum(session)
        survivors: tuple[str, ...] = ()
        questions = dict.fromkeys(session.places, session.encode())
        seconds, number = self._job.aggregate.deadline_seconds, opened.plan.round
        while server.stage is not Stage.OVER:
            stage = server.stage
            asked = [
                self._question(opened, session, stage, site, questions[site])
                for site in sorted(questions)
            ]
            for answer in self._exchange.ask(asked, seconds):
                self._roster.note(answer)
                self._take(server, answer, number, course)
            questions = server.close()
            if stage is Stage.SHARE:
                self._plans.begin(number, self._first)
            if stage is Stage.MASK:
                survivors = tuple(sorted(questions))
                self._check_survivors(number, session, survivors)
            if stage is Stage.AGREE:
                self._plans.note_survivors(number, survivors)
        return server.result()

    def _question(
        self, opened: OpenRound, session: Session, stage: Stage, site: str, message: bytes
    ) -> Question:
        plan, largest = opened.plan, _MESSAGE_BYTES + _BYTES_BY_SITE * len(session.participants)
        if stage is Stage.MASK:
            largest += 4 * session.entries
        text = base64.b64encode(message).decode()
        of_round = StageOfRound(_KINDS[stage], session.digest.hex(), text, largest)
        known = self._roster.sites[site]
        question = opened.asking.question(known, plan.weights[site], of_round)
        trains = stage is Stage.MASK
        return replace(question, forecast=plan.forecasts.get(site) if trains else None)

    def _check_survivors(self, number: int, session: Session, survivors: tuple[str, ...]) -> None:
        """Raise if the sites would not unmask the sum that could be had now."""
        first = self._plans.read(number)
        if first is not None and first.survivors not in (None, survivors):
            raise SecureSumError(
                "secure-other-sum",
                "the sum over other sites may have been unmasked in an attempt before, and a site "
                "unmasks one only; all of those are needed: " + ", ".join(first.survivors or ()),
            )
        session.check_towers(survivors)

    def _take(self, server: CoordinatorSum, answer: Answer, number: int, course: _Course) -> None:
        """Hand a site's answer to the session, and tell what became of it."""
        stage = server.stage
        if answer.state == "in":
            try:
                server.take(answer.site, answer.message)
            except SecureSumError as error:
                answer = replace(answer, state="refused", reason=error.reason)
        course.add(answer)
        if answer.state != "in":
            self._tell_lost(number, answer.site, answer.reason, answer.state, answer.detail)
        elif stage is Stage.MASK:
            self._events.emit(
                "site-replied", round_number=number, site=answer.site, seconds=answer.seconds
            )

    def _tell_lost(
        self,
        number: int,
        site: str,
        reason: str | None,
        state: ParticipationState,
        about: Collection[str] = (),
    ) -> None:
        self._events.emit(
            "site-dropped",
            round_number=number,
            site=site,
            reason=reason,
            state=state,
            about=list(about),
        )
