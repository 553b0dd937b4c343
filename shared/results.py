"""The results of a run: one versioned schema for ``results.json``, ``--json`` and the report.

Everything a reader may want to plot or check is in here; the report reads nothing else
(apart from ``manifest.json``). ``schema_version`` rises whenever a field changes meaning.

Words used below
----------------
*model*  one of ``MODELS``: what was scored. ``base`` frozen encoder, ``local`` this site
         training alone, ``shared`` the federation's adapter, ``personal`` shared plus the
         site's own adapter as its method uses it, ``centralised`` one adapter trained on all
         sites' data (simulation only), ``oracle`` a reader that sees every finding (phantoms).
*metric* one of ``METRICS``; all lie in 0..1.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.privacy.statement import Statement

SCHEMA_VERSION = 1

Model = Literal["base", "local", "shared", "personal", "centralised", "oracle"]
MODELS: tuple[Model, ...] = ("base", "local", "shared", "personal", "centralised", "oracle")

# r1, r5, r10: mean of both directions, every distinct text weighing the same.
# i2t_*, t2i_*: one direction. auroc: zero-shot, mean over findings. accuracy: zero-shot,
# balanced over positives and negatives, threshold chosen on validation. ece: calibration error.
Metric = Literal[
    "auroc", "accuracy", "ece",
    "r1", "r5", "r10",
    "i2t_r1", "i2t_r5", "i2t_r10",
    "t2i_r1", "t2i_r5", "t2i_r10",
]  # fmt: skip
METRICS: tuple[Metric, ...] = (
    "auroc", "accuracy", "ece",
    "r1", "r5", "r10",
    "i2t_r1", "i2t_r5", "i2t_r10",
    "t2i_r1", "t2i_r5", "t2i_r10",
)  # fmt: skip

# Differences that a report shows, "a_minus_b".
Comparison = Literal[
    "personal_minus_local", "personal_minus_shared", "shared_minus_base", "personal_minus_base",
    "shared_minus_local", "centralised_minus_local",
]  # fmt: skip
COMPARISONS: tuple[Comparison, ...] = (
    "personal_minus_local", "personal_minus_shared", "shared_minus_base", "personal_minus_base",
    "shared_minus_local", "centralised_minus_local",
)  # fmt: skip

Kind = Literal["paired", "unpaired", "image", "text"]
ParticipationState = Literal["in", "late", "missing", "refused", "idle"]
Tower = Literal["image", "text"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(_Frozen):
    """A value with its 95 % bootstrap interval by patient.

    Attributes:
        value: The estimate on the test split.
        low: Lower end of the interval.
        high: Upper end of the interval.
        n: Test patients behind it.
    """

    value: float
    low: float
    high: float
    n: Annotated[int, Field(ge=0)]


class SplitCounts(_Frozen):
    """How many records of each sort one split holds.

    Attributes:
        images: Records with an image.
        texts: Records with a text.
        pairs: Records with both.
        patients: Distinct patients.
    """

    images: int
    texts: int
    pairs: int
    patients: int


class CalibrationBin(_Frozen):
    """Predicted against observed share of positives, with a Wilson interval.

    Attributes:
        predicted: Mean predicted probability in the bin.
        observed: Share of positives in the bin.
        low: Lower end of the 95 % Wilson interval of ``observed``.
        high: Upper end.
        n: Pairs of record and finding in the bin.
    """

    predicted: float
    observed: float
    low: float
    high: float
    n: int


class FindingScore(_Frozen):
    """Zero-shot AUROC of one finding for every model that was scored.

    Attributes:
        finding: Name of the label column.
        positives: Positive records among the labelled test images.
        negatives: Negative records among them.
        auroc: By model.
    """

    finding: str
    positives: int
    negatives: int = 0
    auroc: dict[Model, Estimate]


class Picture(_Frozen):
    """One retrieved picture.

    Attributes:
        image: A key of ``Results.pictures``.
        match: Whether its record has exactly the text that was asked for.
    """

    image: str
    match: bool


class GalleryQuery(_Frozen):
    """One text query of the gallery: what two models put first, and where the first match is.

    Attributes:
        site: Whose test split was searched.
        quarter: Quarter of the first-match rank of the model in use; 4 is the worst.
        text: What was asked for.
        first_match: Rank of the first match by model; 1 is the best.
        found: The first five pictures by model.
    """

    site: str
    quarter: Literal[1, 2, 3, 4]
    text: str
    first_match: dict[Model, int]
    found: dict[Model, list[Picture]]


class CoursePoint(_Frozen):
    """Validation loss of the shared adapter at one site after one round.

    Attributes:
        round: The round after which it was measured; 0 is the base.
        loss: In nats.
    """

    round: int
    loss: float


class ParticipationCell(_Frozen):
    """What became of one request.

    Attributes:
        state: ``in`` if the contribution was admitted, ``late`` if it was waited for beyond its
            forecast and admitted; ``missing`` and ``refused`` did not count; ``idle`` was not
            asked or not needed.
        reason: A reason code if it did not count.
        done: What was done about it, as a sentence.
        seconds: From the question to the answer.
    """

    state: ParticipationState
    reason: str | None = None
    done: str | None = None
    seconds: float | None = None


class SiteEvaluation(_Frozen):
    """What a site measures on its own test split and releases.

    Attributes:
        metrics: ``metrics[model][metric]``; absent where it could not be measured.
        not_measured: ``not_measured[metric]`` = reason, as a sentence without a full stop.
        differences: ``differences[comparison][metric]``, paired by patient.
        in_use: Which adapter each tower of the site uses: as validation chose, or as the job says
            (``Results.personal_use``).
        gallery_texts: Distinct texts of the test split (size of the text gallery).
        gallery_images: Images of the test split (size of the image gallery).
        findings: Zero-shot AUROC by finding.
        calibration: Bins of the model in use.
        calibrated_model: Which model the bins belong to.
        privacy: What the site's ledger says of the run, or the coordinator of its noise for whole
            sites; ``None`` without differential privacy.
    """

    metrics: dict[Model, dict[Metric, Estimate]]
    not_measured: dict[Metric, str] = {}
    differences: dict[Comparison, dict[Metric, Estimate]]
    in_use: dict[Tower, Literal["personal", "shared", "not trained"]]
    gallery_texts: int = 0
    gallery_images: int = 0
    findings: list[FindingScore] = []
    calibration: list[CalibrationBin] = []
    calibrated_model: Model | None = None
    privacy: Statement | None = None


class SiteResult(SiteEvaluation):
    """Everything known about one site after a run.

    Attributes:
        kind: What the site's training records are.
        description: One line for people, from the site's ``dataset.json``; may be empty.
        pairs: Training records with image and text.
        splits: Counts by split, ``train``, ``val``, ``test``.
        course: Validation loss by round.
        participation: One cell per round, in order.
        seconds: Seconds by part: ``train``, ``transfer``, ``wait``, ``personalize``, ``evaluate``.
        bytes_up: Bytes sent by the site over the whole run.
        bytes_down: Bytes received by the site.
        peak_memory_bytes: Peak memory of the process that held the site.
        gradient_norms: ``gradient_norms[tower]`` = mean gradient norm by round (0 if untrained).
        discrepancy: ``discrepancy[tower]`` = by round, how far the tower ran ahead: its gradient
            norm over the other tower's, geometric mean over steps (0 unless both were trained).
    """

    kind: Kind
    description: str = ""
    pairs: int
    splits: dict[Literal["train", "val", "test"], SplitCounts]
    course: list[CoursePoint] = []
    participation: list[ParticipationCell] = []
    seconds: dict[str, float] = {}
    bytes_up: int = 0
    bytes_down: int = 0
    peak_memory_bytes: int = 0
    gradient_norms: dict[Tower, list[float]] = {}
    discrepancy: dict[Tower, list[float]] = {}


class Summary(_Frozen):
    """The same metrics over sites: their mean (``n`` = sites), or the worst site's value.

    Attributes:
        metrics: ``metrics[model][metric]``.
        differences: ``differences[comparison][metric]``.
    """

    metrics: dict[Model, dict[Metric, Estimate]]
    differences: dict[Comparison, dict[Metric, Estimate]] = {}


class ProxyStep(_Frozen):
    """What came of distillation at the server in one round, on its public paired set.

    Attributes:
        before: InfoNCE loss of the held-out pairs with the aggregated adapter, in nats.
        after: The same with the distilled adapter; null if it was not finite.
        accepted: Whether the distilled adapter took the aggregated one's place: it was better.
    """

    before: float
    after: float | None
    accepted: bool


class RoundCost(_Frozen):
    """One committed round.

    Attributes:
        round: Its number, from 1.
        seconds: From its opening to its commit.
        bytes_up: Bytes sent by all sites.
        bytes_down: Bytes received by all sites.
        contributors: Sites whose change was admitted.
        asked: Sites that were asked.
        resumed: Whether the run was resumed just before this round.
        proxy: Of distillation at the server; null in rounds without it.
        loss: With secure aggregation, the mean training loss of the sites in the sum, in nats;
            null where sites tell their own, or none does.
        validation_loss: The same of the adapter that the round began with.
    """

    round: int
    seconds: float
    bytes_up: int
    bytes_down: int
    contributors: int
    asked: int
    resumed: bool = False
    proxy: ProxyStep | None = None
    loss: float | None = None
    validation_loss: float | None = None


class Aggregation(_Frozen):
    """How the shared adapter came about.

    Attributes:
        rule: Name of the aggregation rule.
        rank: Of the factors.
        folds: How often the adapter was folded into the residual.
        relative_error: Of the aggregated against the mean of the sites' products; 0 if exact;
            ``None`` if it was not measured, or if the rule has no such mean.
        clipped: Contributions that were scaled down to the norm limit.
    """

    rule: str
    rank: int
    folds: int
    relative_error: float | None
    clipped: int


class DatasetOrigin(_Frozen):
    """Where pictures and texts come from; the gallery needs ``phantom`` or ``public``.

    Attributes:
        origin: The most protected kind among the sites.
        licence: Of public data; without one no picture is shown.
        description: One line for people.
    """

    origin: Literal["phantom", "public", "private"]
    licence: str = ""
    description: str = ""


class Results(_Frozen):
    """A run, measured.

    Attributes:
        schema_version: Of this schema.
        name: Of the job.
        run: The run's own name.
        created: When it began, ISO 8601 with zone.
        finished: When it ended, ISO 8601 with zone.
        status: ``finished`` (every asked contribution of every round was admitted),
            ``finished-incomplete``, ``stopped`` or ``failed``.
        exit_code: Of the command: 0, 1 or 3.
        reason: Why the status is not ``finished``, as a sentence without a full stop.
        engine: What carried the messages.
        adapter_sha256: Of the shared adapter after the last committed round.
        base_sha256: Of the frozen base's weights.
        base_name: As given in the job.
        job_sha256: Of everything in the job that decides the numbers.
        rounds: Committed rounds.
        rounds_planned: Rounds of the job.
        seconds: Wall seconds of the whole run, interruptions left out.
        seconds_by_part: The same by part of the run.
        bytes_up: Bytes sent by all sites.
        bytes_down: Bytes received by all sites.
        main_metric: The measure fixed in the job before the run.
        margin: Least absolute difference that counts as better or worse.
        personalization: Method of the personal adapters.
        personal_use: ``if-better``: in a tower where it won on the site's validation records;
            ``always``: whatever validation says.
        seed: Of the job.
        aggregation: How the shared adapter came about.
        origin: Where the run's pictures and texts come from.
        sites: By name.
        peak_memory_bytes: Peak over all processes of the run.
        mean: Mean over the sites that could be measured.
        worst: Value of the worst site, with its own interval.
        worst_site: ``worst_site[model][metric]`` = the site's name.
        round_costs: One per committed round.
        gallery: Queries of the report's gallery.
        pictures: Data URIs (``data:image/webp;base64,...``), only for phantom or public data.
        resumed_rounds: Rounds before which the run was resumed after an interruption.
        facts: Further lines for the record (versions, digests), label to value.
        secure_aggregation: Whether the coordinator got sums over the sites' changes only.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    run: str
    created: str
    finished: str
    status: Literal["finished", "finished-incomplete", "stopped", "failed"]
    exit_code: int
    reason: str | None = None
    engine: Literal["local", "flower", "deployment"]
    adapter_sha256: str
    base_sha256: str
    base_name: str
    job_sha256: str
    rounds: int
    rounds_planned: int
    seconds: float
    seconds_by_part: dict[str, float] = {}
    bytes_up: int
    bytes_down: int
    peak_memory_bytes: int
    main_metric: Metric
    margin: float = 0.0
    personalization: str = "duet"
    personal_use: Literal["if-better", "always"] = "if-better"
    seed: int
    aggregation: Aggregation
    origin: DatasetOrigin
    sites: dict[str, SiteResult]
    mean: Summary
    worst: Summary
    worst_site: dict[Model, dict[Metric, str]] = {}
    round_costs: list[RoundCost] = []
    resumed_rounds: list[int] = []
    gallery: list[GalleryQuery] = []
    pictures: dict[str, str] = {}
    facts: dict[str, str] = {}
    secure_aggregation: bool = False

    @property
    def privacy(self) -> dict[str, Statement]:
        """What the sites' ledgers say of the run, by site; of the others nothing is known."""
        said = {name: site.privacy for name, site in self.sites.items()}
        return {name: statement for name, statement in said.items() if statement is not None}


def json_schema() -> dict[str, object]:
    """Return the JSON Schema of ``results.json``."""
    return Results.model_json_schema()
