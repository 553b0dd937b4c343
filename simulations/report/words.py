"""The fixed vocabulary of the report: metrics, models, kinds, parts of time."""

from dataclasses import dataclass

from shared.metrics import MINIMUM_PATIENTS
from shared.results import Comparison, Kind, Metric, Model

MINIMUM_COUNT = 20  # no smaller count of records or patients is printed outside a simulation
LEAST_PATIENTS = MINIMUM_PATIENTS
FEW_PATIENTS = 150  # below this a site's intervals are read with care
POOR_CALIBRATION = 0.08


@dataclass(frozen=True)
class MetricWords:
    """How a metric is named and read.

    Attributes:
        label: Short name, for axes and columns.
        long: What it is, to follow "Main measure: ".
        chance: Value without any skill, or ``None`` where it depends on the site's choices.
        lower_is_better: True for errors.
    """

    label: str
    long: str
    chance: float | None
    lower_is_better: bool = False


def _recall(k: int, asked: str) -> MetricWords:
    answers = "first answer is" if k == 1 else f"first {k} answers hold"
    return MetricWords(
        f"R@{k}", f"R@{k}, the share of queries whose {answers} a match, {asked}", None
    )


_BOTH = "mean of picture to report and report to picture"
_I2T, _T2I = "picture to report", "report to picture"
METRICS: dict[Metric, MetricWords] = {
    "auroc": MetricWords("AUROC", "zero-shot AUROC, mean of the findings", 0.5),
    "accuracy": MetricWords("balanced accuracy", "zero-shot balanced accuracy", 0.5),
    "ece": MetricWords("calibration error", "calibration error (ECE)", None, lower_is_better=True),
    "r1": _recall(1, _BOTH), "r5": _recall(5, _BOTH), "r10": _recall(10, _BOTH),
    "i2t_r1": _recall(1, _I2T), "i2t_r5": _recall(5, _I2T), "i2t_r10": _recall(10, _I2T),
    "t2i_r1": _recall(1, _T2I), "t2i_r5": _recall(5, _T2I), "t2i_r10": _recall(10, _T2I),
}  # fmt: skip

# Name and what it is; the order is that of the lanes. The oracle stands in Table 1 only: a
# reader that sees every finding is a ceiling, not a competitor.
SERIES: dict[Model, tuple[str, str]] = {
    "base": ("Base", "frozen encoder, untouched"),
    "local": ("Local-only", "this site training alone"),
    "shared": ("Shared", "the federation\u2019s adapter"),
    "personal": ("Personal", "shared plus this site\u2019s own adapter"),
    "centralised": ("Centralised", "one adapter trained on all data, simulation only"),
}
WITHOUT_SHARED_MODEL = ("creamfl",)
"""Rules whose sites have a model of their own each, and none in common."""
NAMES: dict[Model, str] = {**{m: w[0] for m, w in SERIES.items()}, "oracle": "Oracle"}


@dataclass(frozen=True)
class ComparisonWords:
    """How a comparison is named: the two sides, the ends of its axis, the series drawn."""

    new: str
    old: str
    left: str
    right: str
    series: Model


COMPARISONS: dict[Comparison, ComparisonWords] = {
    "personal_minus_local": ComparisonWords(
        "personal adapter", "the same site training alone", "alone", "joining", "personal"
    ),
    "shared_minus_local": ComparisonWords(
        "shared adapter", "the same site training alone", "alone", "joining", "shared"
    ),
    "personal_minus_base": ComparisonWords(
        "personal adapter", "the untouched encoder", "base", "personal", "personal"
    ),
    "shared_minus_base": ComparisonWords(
        "shared adapter", "the untouched encoder", "base", "shared", "shared"
    ),
    "personal_minus_shared": ComparisonWords(
        "personal adapter", "the shared adapter", "shared", "personal", "personal"
    ),
    "centralised_minus_local": ComparisonWords(
        "centralised adapter", "the same site training alone", "alone", "pooled", "centralised"
    ),
}


def series(model: Model, rule: str) -> tuple[str, str]:
    """Return the name of a series and what it is, in a run with an aggregation rule."""
    if model == "personal" and rule in WITHOUT_SHARED_MODEL:
        return "Personal", "this site\u2019s own model, trained beside the others"
    return SERIES[model]


# What "joining" is compared with: the first of these that a run measured.
MAIN_COMPARISONS: tuple[Comparison, ...] = (
    "personal_minus_local", "shared_minus_local", "personal_minus_base", "shared_minus_base",
)  # fmt: skip

KINDS: dict[Kind, str] = {
    "paired": "images with reports",
    "unpaired": "images and reports, not linked",
    "image": "images only",
    "text": "reports only",
}
KIND_ORDER: tuple[Kind, ...] = ("paired", "unpaired", "image", "text")

# Part of a site's time: style class, words.
TIMES: dict[str, tuple[str, str]] = {
    "train": ("p-train", "training"),
    "personalize": ("p-own", "own adapter"),
    "evaluate": ("p-test", "evaluation"),
    "transfer": ("p-link", "sending and receiving"),
    "wait": ("p-wait", "waiting for the others"),
}
