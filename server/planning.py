"""What is asked of whom in one round, and when the round counts."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from server.cohort import choose_cohort, least_replies
from server.first_plan import FirstPlan
from server.forecast import Forecast, forecasts
from server.post import Sheets
from server.questions import NOT_CONNECTED, Question
from server.records import Contribution, RoundRecord
from server.roster import KnownSite, Roster
from server.validation import Expected
from server.weights import round_weights
from shared.adapter import Adapter, AdapterLayout, SharedAdapter, Tower
from shared.config import JobConfig
from shared.messages import Request, RequestKind, enclose, encode_header
from shared.parts import Part, pack_parts, part_digests
from shared.seeding import derive_seed

NO_TRAINING_DATA = "no-training-data"


@dataclass(frozen=True)
class RoundPlan:
    """Whom one round asks.

    Attributes:
        round: Its number.
        asked: Sites that are sent a question, sorted.
        weights: Of the asked sites, per tower.
        scale: Fixed-point steps per unit.
        quorum: Least admitted replies.
        enough: After so many admitted replies the round closes; ``None`` waits for all.
        absent: Sites that are not sent a question, and what is recorded of them.
        forecasts: How long the asked sites will take, as far as anything is known of that.
    """

    round: int
    asked: tuple[str, ...]
    weights: Mapping[str, Mapping[Tower, int]]
    scale: float
    quorum: int
    enough: int | None
    absent: tuple[Contribution, ...]
    forecasts: Mapping[str, Forecast]


def plan_round(
    job: JobConfig, roster: Roster, round_number: int, before: Sequence[RoundRecord] = ()
) -> RoundPlan:
    """Choose the cohort, its weights and what the round needs.

    Args:
        job: Says how large the cohort is.
        roster: The sites.
        round_number: The round.
        before: The committed rounds, which tell how long sites take.
    """
    config = job.aggregate
    size = None if config.cohort is None else config.cohort + config.over_select
    asked = choose_cohort(roster.able(), size, job.seed, round_number)
    examples = {name: roster.sites[name].examples for name in asked}
    weights = round_weights(examples, config)
    surplus = config.cohort is not None and len(asked) > config.cohort
    return RoundPlan(
        round=round_number,
        asked=tuple(asked),
        weights=weights.of_site,
        scale=weights.scale,
        quorum=least_replies(config, roster.meant()),
        enough=config.cohort if surplus else None,
        absent=tuple(_absent(roster, asked, everyone=size is None)),
        forecasts=forecasts(before, examples),
    )


def planned_before(
    plan: RoundPlan, roster: Roster, first: FirstPlan, among: Collection[str], *, everyone: bool
) -> RoundPlan:
    """Return the plan of another attempt at a secure round.

    Args:
        plan: As it would be if this were the first attempt.
        roster: The sites.
        first: Weights and scale of the first attempt.
        among: Sites that may be asked; those that are away are not.
        everyone: Whether all sites are asked, and not a cohort.
    """
    asked = tuple(name for name in roster.able() if name in first.weights and name in among)
    return replace(
        plan,
        asked=asked,
        weights={name: first.weights[name] for name in asked},
        scale=first.scale,
        absent=tuple(_absent(roster, asked, everyone=everyone)),
    )


def _absent(roster: Roster, asked: Collection[str], *, everyone: bool) -> Iterator[Contribution]:
    """Yield what is recorded of the sites that are not asked; one that is gone is missing."""
    gone = roster.gone()
    for name in gone:
        yield Contribution(name, "missing" if everyone else "idle", NOT_CONNECTED)
    for name, code in sorted(roster.refused.items()):
        yield Contribution(name, "refused", code)
    for name, site in sorted(roster.sites.items()):
        if name not in asked and name not in gone:
            reason = None if site.trains else NO_TRAINING_DATA
            yield Contribution(name, "idle", reason, site.kind, site.examples)


def _shape_of(features: Adapter) -> tuple[int, int] | None:
    """Return items and width of an exchange of features; both towers are alike."""
    for values in features.values():
        items, width = values.shape
        return items, width
    return None


@dataclass(frozen=True)
class StageOfRound:
    """A stage of secure aggregation.

    Attributes:
        kind: Of the request.
        session: Digest of the session.
        message: The stage's question to one site, base64.
        largest: Bytes of the longest answer.
    """

    kind: RequestKind
    session: str
    message: str
    largest: int


@dataclass
class Asking:
    """Makes the questions of one round or phase; they differ by site only.

    What does not differ, job and adapter, is put into bytes once for all sites.

    Attributes:
        request: What all have in common.
        shared: The adapter that travels with it.
        layout: Which layers carry it.
        for_rank: What of it a site of smaller rank is sent; all, if not given.
    """

    request: Request
    shared: SharedAdapter
    layout: AdapterLayout
    for_rank: Callable[[SharedAdapter, int], SharedAdapter] | None = None

    def __post_init__(self) -> None:
        self._enclosures: dict[tuple[int, tuple[Part, ...]], bytes] = {}
        self._sent: dict[int, tuple[SharedAdapter, dict[Part, str]]] = {}

    def rank_of(self, site: str) -> int:
        """Return how many columns a site trains; in closing phases no site trains them."""
        ranks = self.request.job.lora.ranks if self.request.kind == "train" else {}
        return ranks.get(site, self.layout.rank)

    def sent_rank(self, site: str) -> int | None:
        """Return how many columns a site is sent; ``None`` for all of them."""
        rank = self.rank_of(site)
        return None if self._of_rank(rank)[0] is self.shared else rank

    @cached_property
    def _alike(self) -> bool:
        """Whether all sites are sent the same."""
        return all(self.sent_rank(site) is None for site in self.request.job.lora.ranks)

    def _of_rank(self, rank: int) -> tuple[SharedAdapter, dict[Part, str]]:
        """Return what sites of a rank are sent, and its digests."""
        if rank not in self._sent:
            shared = self.shared
            if self.for_rank is not None and rank < self.layout.rank:
                shared = self.for_rank(shared, rank)
            whole = shared is self.shared
            self._sent[rank] = shared, self._digests if whole else part_digests(shared)
        return self._sent[rank]

    @cached_property
    def _digests(self) -> dict[Part, str]:
        return part_digests(self.shared)

    def question(
        self,
        site: KnownSite,
        weights: Mapping[Tower, int] | None = None,
        stage: StageOfRound | None = None,
    ) -> Question:
        """Return the question to one site; parts that it holds are left out of it.

        Args:
            site: Who is asked.
            weights: Its weights, in a round.
            stage: Of secure aggregation; only the one that masks the change needs the adapter.
        """
        common = self.request
        rank = self.rank_of(site.name)
        _, digests = self._of_rank(rank)
        request = common.model_copy(
            update={
                "site": site.name,
                "weights": dict(weights or {}),
                "seed": derive_seed(common.job.seed, common.kind, common.round, site.name),
                "folds": self.shared.folds,
                "parts": digests,
            }
        )
        if stage is not None:
            said = {"kind": stage.kind, "secure": stage.session, "stage": stage.message}
            request = request.model_copy(update=said)
        expected = Expected(
            kind=request.kind,
            run=common.run,
            round=common.round,
            attempt=common.attempt,
            site=site.name,
            weights=dict(weights or {}),
            scale=common.scale,
            factors=common.factors,
            layout=self.layout.at_rank(rank),
            clip_norm=common.job.aggregate.clip_norm,
            features=_shape_of(self.shared.features),
            private=common.job.privacy.differential_privacy,
            message_bytes=stage.largest if stage else 0,
        )
        held = dict(site.holds)
        if not self._alike:  # sites of one machine hold parts together, and theirs differ
            held = {part: digest for part, digest in held.items() if part not in ("A", "B")}

        def sheets(full: bool) -> Sheets:
            whole = full or stage is None or stage.kind == "train"
            wanted = tuple(
                part for part in digests if whole and (full or held.get(part) != digests[part])
            )
            return Sheets(encode_header(request), self._enclosure(rank, wanted))

        def reminder() -> Sheets:
            return Sheets(encode_header(request), self._enclosure(rank, ()))

        return Question(site.name, site.node, expected, sheets, reminder)

    def _enclosure(self, rank: int, wanted: tuple[Part, ...]) -> bytes:
        """Return the job and the wanted parts in bytes, the same object for all sites of a rank."""
        shared, _ = self._of_rank(rank)
        key = self.layout.rank if shared is self.shared else rank, wanted
        if key not in self._enclosures:
            tensors = pack_parts(shared, wanted)
            self._enclosures[key] = enclose(self.request.job, tensors)
        return self._enclosures[key]
