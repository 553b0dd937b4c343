"""The round loop: describe, rounds, personalize, evaluate, over Flower's public ``Grid``.

One round: ``Aggregator.open_round`` → questions to the cohort → each reply is judged
(``server.validation``) and folded into the integer sum as it comes → checkpoint and history
in one commit. Whatever happens in between, the last committed round is intact, and a run
that goes on from it ends with the same bits.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from flwr.serverapp import Grid

from server.aggregation import AGGREGATORS, Aggregator
from server.aggregation.base import whole
from server.aggregation.error import ProductError
from server.checkpoint import RunStore
from server.events import Event, EventLog
from server.exchange import Exchange
from server.first_plan import FirstPlans
from server.flower_post import FlowerPost, tell
from server.history import HistoryAwayError, RunHistory
from server.opened import OpenRound
from server.outcome import RunOutcome, SiteLog, build_outcome
from server.phases import CLOSING_PHASES, ClosingPhases
from server.planning import Asking, plan_round
from server.post import Post
from server.proxy.step import Distiller, RoundUpdates
from server.questions import Answer, Persistence
from server.records import RoundRecord, RunStatus
from server.roster import Roster
from server.run_files import DamagedCheckpointError
from server.secure_rounds import AbortedSumError, SecureRounds
from server.secure_session import Members
from server.signed_post import CoordinatorIdentity, SignedPost
from server.site_noise import SiteNoise, check_sites, site_statement
from shared.adapter import AdapterLayout, AdapterUpdate, SharedAdapter
from shared.config import JobConfig
from shared.errors import (
    ConfigError,
    ConsiliaError,
    InterruptedRunError,
    QuorumError,
    RunDirectoryError,
)
from shared.messages import Request, RequestKind
from shared.results import ProxyStep

__all__ = ["RoundEngine", "RunOutcome", "SiteLog"]

_TELLING = 20
"""So many rounds tell how long a site takes."""
_PAUSE_SECONDS = 2.0
_MOST_ABORTED = 3
"""So many sessions of secure aggregation in a row may come to nothing before the run gives up."""
_MAY_PASS = frozenset({"quorum", "secure-too-few", "secure-tower"})
"""Why a round failed that may succeed once sites are back."""


class AwayError(QuorumError):
    """A round lacks sites that are away."""


@dataclass
class RoundEngine:
    """Carries a job out over a grid, from the last committed round on.

    Attributes:
        grid: Reaches the sites.
        job: What to carry out.
        store: The run directory, locked.
        history: The database that names the committed rounds.
        layout: Which layers carry an adapter.
        base_sha256: Digest of the frozen base.
        on_event: Told of everything that happens.
        aggregator: The rule; the job's if not given.
        before_evaluation: Called once before the sites are asked to evaluate.
        distiller: Of jobs with a public set.
        persistence: How a site that does not answer is asked again; not at all if not given.
        identity: Signs requests and knows the sites' keys; unsigned without it.
        members: Who may take part in secure sums; the consortium's sites, if there is one.
        clock: Monotonic seconds.
        sleep: Waits for so many seconds.
    """

    grid: Grid
    job: JobConfig
    store: RunStore
    history: RunHistory
    layout: AdapterLayout
    base_sha256: str
    on_event: Callable[[Event], None] | None = None
    aggregator: Aggregator | None = None
    before_evaluation: Callable[[], None] | None = None
    distiller: Distiller | None = None
    persistence: Persistence | None = None
    identity: CoordinatorIdentity | None = None
    members: Members | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _records: list[RoundRecord] = field(default_factory=list, init=False)
    _resumed: bool = field(default=False, init=False)
    _able: set[str] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        config = self.job.aggregate
        self._rule = self.aggregator or AGGREGATORS[config.rule](config)
        self._events = EventLog(self.store.events_path, self.on_event)
        lifetime = max(600.0, 2 * config.deadline_seconds)
        # Over a network a question that could not be carried is asked again.
        post: Post = FlowerPost(self.grid, lifetime, tell if self.persistence else None)
        if self.identity is not None:
            post = signed = SignedPost(post, self.identity)
            self.members = Members(self.identity.consortium, signed.key_in_use)
        self._exchange = Exchange(post, self._events, self.clock, self.sleep, self.persistence)
        self._roster = Roster(self.job, self._exchange, self._events, self._describe_request)
        self._secure = self._secure_rounds() if self.job.privacy.secure_aggregation else None
        for_sites = self.job.privacy.for_sites
        self._noise = SiteNoise.of(self.job, self.layout) if for_sites else None
        if self.persistence is not None:
            self._exchange.look = self._roster.look
            self._roster.expected |= set(self.job.data.sites)

    def _secure_rounds(self) -> SecureRounds:
        """Return what carries rounds out on sums alone.

        Raises:
            ConfigError: If the sites have no keys that others know.
        """
        if self.members is None:
            raise ConfigError(
                "privacy.secure_aggregation: sites must know one another's keys, and there is no "
                "consortium here; make one with `consilia server init`, or leave it out"
            )
        plans = FirstPlans(self.store)
        return SecureRounds(self.job, self.members, self._roster, plans, self.layout)

    def run(self) -> RunOutcome:
        """Carry the job out.

        Raises:
            RunDirectoryError: If the history belongs to other runs.
            QuorumError: If too few sites answered; earlier rounds are committed.
            StorageError: If a round could not be stored; earlier rounds are intact.
            InterruptedRunError: If it was stopped from the keyboard; it can be resumed.
        """
        try:
            return self._run()
        finally:
            self._events.close()

    def _run(self) -> RunOutcome:
        shared = self._begin()
        try:
            self._roster.gather()
            for number in range(len(self._records) + 1, self.job.rounds + 1):
                shared = self._insistently(number, shared)
            outcome = self._close(shared)
        except KeyboardInterrupt:
            message = self._how_to_go_on()
            self._end("stopped", message)
            raise InterruptedRunError(message) from None
        except HistoryAwayError:
            raise  # nothing is decided; whoever starts the run again goes on with it
        except ConsiliaError as error:
            self._end("failed", str(error))
            raise
        except Exception as error:
            self._end("failed", type(error).__name__)
            raise
        self._events.emit(
            "run-finished",
            status="finished" if outcome.complete else "finished-incomplete",
            rounds=outcome.rounds,
            adapter_sha256=outcome.shared.sha256(),
        )
        return outcome

    def _begin(self) -> SharedAdapter:
        """Find the last committed round that is whole; its adapter is where the run goes on."""
        run = self.store.run
        if not self.history.knows(run) and self.store.has_rounds():
            # Without this check they would be taken for orphans of a crash, and removed.
            raise RunDirectoryError(
                f"{self.store.path}: holds rounds of a run that the history {self.history.shown} "
                "does not know; put that history back beside it, or start a new run"
            )
        goes_on = self.history.start_run(
            run,
            token=self.store.token,
            job_sha256=self.job.digest(),
            base_sha256=self.base_sha256,
            seed=self.job.seed,
            rounds=self.job.rounds,
        )
        self._records = self.history.committed_rounds(run)
        shared = self._rule.start(self.layout, self.job.seed)
        while self._records:
            last = self._records[-1]
            try:
                shared = self.store.load_round(last.round, last.manifest_sha256)
                break
            except DamagedCheckpointError as error:
                if self._noise is not None:
                    raise RunDirectoryError(
                        f"{error}; others may have its adapter already, and done again it would "
                        "have other noise, which nothing was counted for; put the folder back "
                        "from a copy, or start a new run"
                    ) from None
                # Doing the round again gives the same bits, so nothing but time is lost.
                self.history.withdraw_round(run, last.round, str(error))
                self._events.emit("checkpoint-damaged", round_number=last.round)
                self._records.pop()
        self._roster.expected |= {c.site for r in self._records for c in r.contributions}
        self.store.remove_orphans({record.round for record in self._records})
        self._resumed = goes_on
        if goes_on:
            self.history.audit(run, "resumed", len(self._records) + 1)
            self._events.emit("run-resumed", rounds=self.job.rounds, committed=len(self._records))
        else:
            self._events.emit("run-started", rounds=self.job.rounds)
        return shared

    def _insistently(self, number: int, received: SharedAdapter) -> SharedAdapter:
        """Carry out one round; again, where it lacks only sites that are away and may come back.

        What a site answered to an earlier attempt it kept, and gives again. So is a session of
        secure aggregation that came to nothing.
        """
        aborted = 0
        while True:
            try:
                return self._round(number, received)
            except AwayError:
                self.sleep(_PAUSE_SECONDS)  # and then for the sites, as before every round
            except AbortedSumError:
                aborted += 1
                if aborted == _MOST_ABORTED:
                    raise

    def _round(self, number: int, received: SharedAdapter) -> SharedAdapter:
        """Carry out one round and commit it; return the adapter after it."""
        opened = self._open(number, received)
        shared, factors = opened.asking.shared, opened.asking.request.factors
        updates = self._secure.sum(opened) if self._secure else self._updates(opened)
        if self._noise is not None:
            updates = self._noised(self._noise, opened, updates)
        came = RoundUpdates(number, shared, factors)
        distiller = self._distiller(number)
        if distiller is not None:
            updates = came.keep(updates)
        watch = None
        # What is applied with noise is no mean of the sites', and how far off it is would tell.
        clear = self._noise is None
        by_construction = clear and len(factors) == 1 and self.job.aggregate.applies_the_mean
        # Where sites keep a factor to themselves nothing stands for the mean of their products.
        parted = bool(self.job.aggregate.private_factors)
        seen = clear and not self._secure and ProductError.affordable(self.layout)
        if not by_construction and not parted and seen:
            watch = ProductError(shared, self.layout)
            updates = watch.watch(updates)
        try:
            applied = self._rule.aggregate(shared, self.layout, updates)
        except QuorumError as error:
            self.history.fail_round(
                self.store.run, number, opened.attempt, str(error), opened.contributions
            )
            reason = error.reason if isinstance(error, AbortedSumError) else "quorum"
            self._events.emit("round-failed", round_number=number, reason=reason)
            if self.persistence is not None and reason in _MAY_PASS and opened.may_come():
                present = len(opened.contributors)
                self._events.emit("waiting", present=present, needed=opened.plan.quorum)
                raise AwayError(str(error)) from None
            raise
        # With one factor trained the products are linear in the changes, so their mean is exact.
        exact = 0.0 if by_construction and not parted else None
        relative_error = watch.relative(applied) if watch else exact
        proxy = None
        if distiller is not None:
            applied, proxy = distiller.distil(applied, came)
        self._commit(opened, applied, relative_error, proxy)
        return applied

    def _distiller(self, number: int) -> Distiller | None:
        return None if number % self.job.proxy.every else self.distiller

    def _open(self, number: int, received: SharedAdapter) -> OpenRound:
        """Bring the adapter into the round's form, choose the cohort, and say so."""
        started = self.clock()
        if self._secure:
            self._secure.await_for(number)
        self._roster.await_sites()
        self._note_who_is_there(number)
        # Where sites are in one process none of them can be slow by itself.
        before = self._records[-_TELLING:] if self.persistence else ()
        plan = plan_round(self.job, self._roster, number, before)
        if self._noise is not None:
            check_sites(self.job, len(plan.asked))
        factors = self._rule.trains(number)
        if self._secure:
            plan = self._secure.plan(plan, factors)
        attempt = self.history.open_round(self.store.run, number)
        self._events.emit(
            "round-started",
            round_number=number,
            cohort=list(plan.asked),
            attempt=attempt,
            factors="".join(factors),
        )
        request = self._request("train", number, attempt).model_copy(
            update={"factors": factors, "scale": plan.scale, "cohort": len(plan.asked)}
        )
        shared = self._rule.open_round(received, self.layout, number, self.job.seed)
        asking = Asking(request, shared, self.layout, self._rule.for_rank)
        return OpenRound(plan, attempt, asking, started, self._resumed)

    def _note_who_is_there(self, number: int) -> None:
        """Record who joined and who is away since the round before."""
        now = set(self._roster.able())
        before, self._able = self._able, now
        if before is None or before == now:
            return
        changes = {"joined": now - before, "away": before - now}
        named = [f"{what}: {', '.join(sorted(who))}" for what, who in changes.items() if who]
        self.history.audit(self.store.run, "sites-changed", number, "; ".join(named))

    def _updates(self, opened: OpenRound) -> Iterator[AdapterUpdate]:
        """Ask the cohort and yield each admitted update as it comes.

        Raises:
            QuorumError: After the last answer, if too few were admitted.
        """
        questions = opened.questions(self._roster)
        deadline = self.job.aggregate.deadline_seconds
        for answer in self._exchange.ask(questions, deadline, opened.plan.enough):
            self._roster.note(answer)
            opened.add(answer, self._roster.sites[answer.site])
            self._tell(opened.plan.round, answer)
            if answer.update is not None:
                rank = opened.asking.sent_rank(answer.site)
                yield whole(answer.update, self.layout, rank)
        shortage = opened.shortage()
        if shortage:
            raise QuorumError(f"{shortage}; {self._how_to_go_on()}")

    def _noised(
        self, noise: SiteNoise, opened: OpenRound, updates: Iterator[AdapterUpdate]
    ) -> Iterator[AdapterUpdate]:
        """Yield one update in place of all sites': their sum, with noise for each of them."""
        plan, factors = opened.plan, opened.asking.request.factors
        update = noise.on(plan, self.layout, factors, updates)
        opened.means = {**opened.means, **noise.record(plan, self.layout, factors)}
        yield update

    def _commit(
        self,
        opened: OpenRound,
        applied: SharedAdapter,
        relative_error: float | None,
        proxy: ProxyStep | None,
    ) -> None:
        """Store the adapter, then let one transaction of the history make it count."""
        number = opened.plan.round
        manifest = self.store.commit_round(number, applied, opened.facts())
        seconds = self.clock() - opened.started
        record = opened.record(applied, seconds, relative_error, manifest, proxy)
        self.history.record_round(self.store.run, record)
        self._records.append(record)
        self._resumed = False
        self._events.emit(
            "round-committed",
            round_number=number,
            seconds=record.seconds,
            bytes_up=record.bytes_up,
            bytes_down=record.bytes_down,
            contributors=record.contributors,
            asked=record.asked,
            loss=record.means.get("loss"),
        )

    def _close(self, shared: SharedAdapter) -> RunOutcome:
        """Let the sites personalize and evaluate; what they answered is not asked again."""
        phases = ClosingPhases(self.store, self._roster, self._exchange, self._events)
        for phase in CLOSING_PHASES:
            if phase == "personalize" and self.job.personalize.method == "none":
                continue
            if phase == "evaluate" and self.before_evaluation:
                self.before_evaluation()
            request = self._request(phase, len(self._records), 1)
            phases.carry_out(Asking(request, shared, self.layout))
        outcome = build_outcome(
            shared,
            self._records,
            phases.closing(),
            {site.name: (site.kind, site.examples) for site in self._roster.sites.values()},
            site_statement(self.job, self._records),
        )
        reason = "; ".join(f"{site}: {why}" for site, why in sorted(outcome.lost.items()))
        status: RunStatus = "finished" if outcome.complete else "finished-incomplete"
        self.history.finish_run(self.store.run, status, reason or None)
        return outcome

    def _end(self, status: RunStatus, reason: str) -> None:
        """Record an early end; where even that fails the first error is what matters."""
        self.history.be_brief()
        with suppress(ConsiliaError):
            self.history.finish_run(self.store.run, status, reason)
        with suppress(ConsiliaError):
            self._events.emit("run-finished", status=status, rounds=len(self._records))

    def _tell(self, number: int, answer: Answer) -> None:
        summary = answer.reply.summary if answer.reply else None
        if answer.state == "in" and summary:
            self._events.emit(
                "site-replied",
                round_number=number,
                site=answer.site,
                loss=summary.loss,
                validation_loss=summary.validation_loss,
                seconds=answer.seconds,
            )
        elif answer.state != "idle":
            self._events.emit(
                "site-dropped",
                round_number=number,
                site=answer.site,
                reason=answer.reason,
                state=answer.state,
                about=list(answer.detail),
            )

    def _request(self, kind: RequestKind, number: int, attempt: int) -> Request:
        return Request(
            kind=kind,
            run=self.store.run,
            round=number,
            attempt=attempt,
            base_sha256=self.base_sha256,
            job_sha256=self.job.digest(),
            job=self.job,
        )

    def _describe_request(self) -> Request:
        return self._request("describe", 0, 1)

    def _how_to_go_on(self) -> str:
        committed, path = len(self._records), self.store.path
        done = f"{committed} of {self.job.rounds} rounds are committed"
        return f"{done}; go on with --resume {path}"
