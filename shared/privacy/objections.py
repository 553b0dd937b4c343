"""What may not be called differentially private, and why: one pure function.

Much that runs without an error has no privacy, or less than its number says. Every row of
``_RULES`` is one such mistake with the sentence for whoever planned it; a plan without objections
is one that the accountant's epsilon holds for.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

Mode = Literal["local", "distributed", "site-level"]
"""Who adds noise for whom: each site for its patients; all sites together for all patients,
through secure aggregation; the server for whole sites."""
Unit = Literal["patient", "record", "site"]
Adjacency = Literal["add-remove", "replace-one", "zero-out"]
Objective = Literal["separable", "in-batch"]
"""Whether a record's loss depends on that record alone, or on others of its batch."""
Clipped = Literal["nothing", "patient", "record", "group", "batch", "site"]
Sampling = Literal["poisson", "shuffled", "fixed-size", "all"]
Grouping = Literal["none", "own-draw", "in-order"]
"""How patients come into groups that are clipped as one: each by a draw of its own, whoever else
is there, or in the order of their numbers or of the draw."""
Source = Literal["none", "public", "released", "own-records"]

GROUP_SENSITIVITY: Final = 2.0
"""What one patient changes of a sum of clipped groups, in clipping norms: the gradient of one
group goes from somewhere in the ball to anywhere else in it."""


@dataclass(frozen=True)
class PrivacyPlan:
    """How a job would train with differential privacy, as it is implemented.

    Attributes:
        mode: Who adds noise for whom.
        unit: What one more or less is hidden.
        adjacency: Whether one unit is added or removed, or replaced by another; or what it sent by
            no change at all.
        patients: Distinct patients at the site; sites in the mean for site-level noise.
        patient_column: Whether records name their patient.
        blank_patients: Records that leave the patient out.
        minimum_patients: The fewest that the site's policy trains on.
        objective: Whether records of a batch depend on one another.
        clipped: What is cut to ``clip``.
        grouping: How patients come into groups, where groups are clipped.
        clip: The L2 norm that it is cut to.
        clip_follows_data: Whether the norm is adapted to quantiles of the records.
        sensitivity: What one unit can change, in clipping norms.
        noise: Standard deviation of the noise over ``sensitivity * clip``.
        seeded_noise: Whether the noise can be drawn again from a seed.
        sampling: How the units of a step are chosen.
        rate: The sampling probability that the accountant is told.
        divides_by_batch: Whether sums are divided by the number of units drawn.
        delta: Probability with which the bound may fail.
        bank: Where negatives that are not of the record itself come from.
        teacher_has_personal: Whether a teacher contains the personal adapter.
        temperature_trained: Whether the temperature of the loss is trained.
        temperature_clipped: Whether its gradient is part of the clipped vector.
        batch_statistics: Whether layers mix the records of a batch, as batch normalization does.
        chosen_on_private: Whether steps or settings are chosen by results on private records.
        exact_weights: Whether the weight that leaves is the number of records or patients.
        trained_before_without: Whether what is released was trained on the same records without
            noise before.
        secure_aggregation: Whether the server sees sums only.
        sites: Sites that begin a step, where noise is distributed.
        missing: The most of them that may drop out or be curious, as the noise was calibrated.
        dropout_allowed: The most that may drop out or be curious before the step is given up.
    """

    mode: Mode = "local"
    unit: Unit = "patient"
    adjacency: Adjacency = "add-remove"
    patients: int = 1000
    patient_column: bool = True
    blank_patients: int = 0
    minimum_patients: int = 100
    objective: Objective = "separable"
    clipped: Clipped = "patient"
    grouping: Grouping = "none"
    clip: float = 1.0
    clip_follows_data: bool = False
    sensitivity: float = 1.0
    noise: float = 1.0
    seeded_noise: bool = False
    sampling: Sampling = "poisson"
    rate: float = 0.05
    divides_by_batch: bool = False
    delta: float = 1e-5
    bank: Source = "none"
    teacher_has_personal: bool = False
    temperature_trained: bool = False
    temperature_clipped: bool = False
    batch_statistics: bool = False
    chosen_on_private: bool = False
    exact_weights: bool = False
    trained_before_without: bool = False
    secure_aggregation: bool = False
    sites: int = 0
    missing: int = 0
    dropout_allowed: int = 0


@dataclass(frozen=True)
class Objection:
    """Why a plan has no differential privacy.

    Attributes:
        code: Of the rule that it breaks.
        why: One sentence: what is wrong, and what to do instead.
    """

    code: str
    why: str


def objections(plan: PrivacyPlan) -> list[Objection]:
    """Return everything because of which no privacy may be claimed for a plan; empty if nothing."""
    return [Objection(code, why(plan)) for code, broken, why in _RULES if broken(plan)]


def _without_clipping(plan: PrivacyPlan) -> bool:
    return plan.clipped == "nothing" or not 0 < plan.clip < math.inf


def _least_sensitivity(plan: PrivacyPlan) -> float:
    """Return what one unit can change at least, in clipping norms, however it is implemented."""
    if plan.adjacency == "replace-one" or plan.clipped in ("group", "batch"):
        return GROUP_SENSITIVITY
    return 1.0


def _by_patient(plan: PrivacyPlan) -> bool:
    return plan.unit == "patient"


def _rule(text: str) -> Callable[[PrivacyPlan], str]:
    return lambda _: text


_Rule = tuple[str, Callable[[PrivacyPlan], bool], Callable[[PrivacyPlan], str]]

_OF_THE_UNIT: Final[tuple[_Rule, ...]] = (
    (
        "unit-record",
        lambda p: p.unit == "record",
        _rule(
            "the unit is one record, and a patient with several would be hidden less than the "
            "number says; use unit = 'patient'"
        ),
    ),
    (
        "patient-column",
        lambda p: _by_patient(p) and not p.patient_column,
        _rule(
            "patients are the unit, and the records do not say whose they are; give the patient "
            "column"
        ),
    ),
    (
        "patient-blank",
        lambda p: _by_patient(p) and p.patient_column and p.blank_patients > 0,
        lambda p: (
            f"{p.blank_patients} records leave the patient column blank, so what one patient "
            "changes cannot be bounded; fill it in or leave these records out"
        ),
    ),
    (
        "few-patients",
        lambda p: _by_patient(p) and p.patients < p.minimum_patients,
        lambda p: (
            f"fewer patients than the site's policy asks for ({p.minimum_patients}); noise that "
            "hides one of so few leaves nothing to learn"
        ),
    ),
    (
        "unit-site",
        lambda p: (p.mode == "site-level") != (p.unit == "site"),
        _rule(
            "noise that the server adds for whole sites hides a site, and noise for patients hides "
            "patients; one must not be claimed for the other; mode = 'site-level' goes with "
            "unit = 'site', and every other mode with unit = 'patient'"
        ),
    ),
    (
        "delta",
        lambda p: not 0 < p.delta < 1 / max(p.patients, 1),
        lambda p: (
            f"delta {p.delta:g} is not below one in the number of units: publishing one {p.unit}'s "
            f"records outright would satisfy it; use {0.1 / max(p.patients, 1):.1g} or less"
        ),
    ),
)

_OF_THE_BOUND: Final[tuple[_Rule, ...]] = (
    (
        "no-clipping",
        _without_clipping,
        _rule(
            "nothing bounds what one unit can change, so no noise is enough; clip each patient's "
            "gradient to a fixed norm"
        ),
    ),
    (
        "no-noise",
        lambda p: not 0 < p.noise < math.inf,
        _rule("clipping without noise hides nobody; give a noise multiplier above 0"),
    ),
    (
        "noise-seeded",
        lambda p: p.seeded_noise,
        _rule(
            "noise that a seed repeats can be taken away by whoever knows the seed; take it from "
            "the operating system's generator"
        ),
    ),
    (
        "in-batch",
        lambda p: p.objective == "in-batch" and p.clipped in ("patient", "record"),
        _rule(
            "with negatives from the same batch one record changes every other record's gradient, "
            "so clipping each bounds nothing; take negatives from a public or released bank, or "
            "clip disjoint groups and count twice the norm"
        ),
    ),
    (
        "clipped-record",
        lambda p: _by_patient(p) and p.clipped == "record",
        _rule(
            "records are clipped one by one and patients may have many; clip the sum over each "
            "patient's records"
        ),
    ),
    (
        "sensitivity",
        lambda p: not _without_clipping(p) and p.sensitivity < _least_sensitivity(p),
        lambda p: (
            f"the noise is for {p.sensitivity:g} times the clipping norm, and with "
            + (
                "one unit replaced by another"
                if p.adjacency == "replace-one"
                else "groups or batches clipped as one"
            )
            + " the sum changes by up to 2; double the noise"
        ),
    ),
    (
        "grouped-in-order",
        lambda p: p.clipped == "group" and p.grouping != "own-draw",
        _rule(
            "patients are put into groups by their order or number, so that one patient more moves "
            "others into other groups and many groups change; let each patient's group be drawn "
            "by itself"
        ),
    ),
    (
        "clip-follows-data",
        lambda p: p.clip_follows_data,
        _rule(
            "a clipping norm that follows the records' own gradients tells of them and is not "
            "accounted; use a fixed norm"
        ),
    ),
    (
        "temperature",
        lambda p: p.temperature_trained and not p.temperature_clipped,
        _rule(
            "the trained temperature is not part of the clipped vector, so it leaves without "
            "bound or noise; fix it, or clip it together with the factors"
        ),
    ),
    (
        "batch-statistics",
        lambda p: p.batch_statistics,
        _rule(
            "layers that mix the records of a batch, such as batch normalization, make each "
            "record's gradient depend on the others; use layers without batch statistics"
        ),
    ),
    (
        "bank-own-records",
        lambda p: p.bank == "own-records",
        _rule(
            "the bank holds the site's own records, so every gradient depends on patients that it "
            "is not counted for; use a public bank, or one that was released with privacy"
        ),
    ),
    (
        "teacher-personal",
        lambda p: p.teacher_has_personal,
        _rule(
            "a teacher that contains the personal adapter was trained without noise, and what is "
            "learned from it tells of the patients; distil from released adapters only"
        ),
    ),
)

_OF_THE_ACCOUNT: Final[tuple[_Rule, ...]] = (
    (
        "shuffled",
        lambda p: p.sampling in ("shuffled", "fixed-size"),
        _rule(
            "batches of a shuffled or fixed size are not independent draws, and accounting them "
            "as such gives a number up to ten times too small; draw each patient by itself "
            "(Poisson sampling), or use all patients in every step"
        ),
    ),
    (
        "rate",
        lambda p: not 0 < p.rate <= 1 or (p.sampling == "all" and p.rate != 1),
        _rule(
            "the accountant is told of a sampling probability that is not the one in use; expected "
            "more than 0 and at most 1, and 1 where all patients take part"
        ),
    ),
    (
        "divides-by-batch",
        lambda p: p.divides_by_batch,
        _rule(
            "dividing by the number of patients drawn tells how many were drawn; divide by the "
            "number expected"
        ),
    ),
    (
        "chosen-on-private",
        lambda p: p.chosen_on_private,
        _rule(
            "steps or settings are chosen by results on private records, and every such look "
            "costs privacy that is not counted; fix them before, or choose on public records"
        ),
    ),
    (
        "exact-weights",
        lambda p: p.exact_weights,
        _rule(
            "the exact number of records or patients leaves the site as its weight; use equal, "
            "public or rounded weights"
        ),
    ),
    (
        "trained-before-without",
        lambda p: p.trained_before_without,
        _rule(
            "what is released was already trained on these records without noise, which later "
            "noise cannot take back; start from a base or adapter that never saw them"
        ),
    ),
)

_OF_MANY_SITES: Final[tuple[_Rule, ...]] = (
    (
        "no-secure-aggregation",
        lambda p: p.mode == "distributed" and not p.secure_aggregation,
        _rule(
            "each site adds a share of the noise only, and the server would see its sum by itself; "
            "turn secure aggregation on, or let each site add all of the noise"
        ),
    ),
    (
        "distributed-steps",
        lambda p: p.mode == "distributed" and p.clipped not in ("patient", "group", "nothing"),
        _rule(
            "distributed noise is for one sum of clipped gradients per step; clip patients, or "
            "groups of them"
        ),
    ),
    (
        "missing-sites",
        lambda p: p.mode == "distributed" and p.dropout_allowed > p.missing,
        lambda p: (
            f"the noise is enough while at most {p.missing} sites drop out or are curious, and a "
            f"step would go on with {p.dropout_allowed}; calibrate for the worst that is allowed"
        ),
    ),
    (
        "no-noise-left",
        lambda p: p.mode == "distributed" and not 0 <= p.missing < p.sites,
        _rule(
            "with so many sites missing no noise is left; allow fewer to drop out, or let each "
            "site add all of the noise"
        ),
    ),
)

_RULES: Final[tuple[_Rule, ...]] = (
    *_OF_THE_UNIT,
    *_OF_THE_BOUND,
    *_OF_THE_ACCOUNT,
    *_OF_MANY_SITES,
)
