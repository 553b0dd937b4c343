"""What is measured, in words: one line per metric; one file per way of measuring.

``retrieval`` recall by text identity, ``zero_shot`` scores of findings from prompts, ``auroc``,
``accuracy``, ``calibration``, ``bootstrap`` intervals by patient. All of them are
NumPy functions of arrays; none knows an encoder, a site or a file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from shared.results import Metric

Direction = Literal["higher", "lower"]


@dataclass(frozen=True)
class MetricInfo:
    """What a reader must know about a metric.

    Attributes:
        label: Name for people.
        direction: Which values are better.
        chance: Level of a model that knows nothing: a number, or ``None`` where it depends on
            the gallery (see ``chance_level``) or does not exist.
        chance_words: The same for people.
        description: One sentence without jargon.
    """

    label: str
    direction: Direction
    chance: float | None
    chance_words: str
    description: str


def _recall(rank: int) -> MetricInfo:
    return MetricInfo(
        f"Recall@{rank}",
        "higher",
        None,
        f"{rank} / gallery size",
        f"Mean of both directions: how often the right text is among the first {rank} for an "
        f"image, and an image of the same text among the first {rank} for a text; every distinct "
        "text weighs the same.",
    )


def _image_to_text(rank: int) -> MetricInfo:
    return MetricInfo(
        f"Image to text Recall@{rank}",
        "higher",
        None,
        f"{rank} / distinct texts",
        f"How often the image's own text is among the first {rank} of all distinct texts.",
    )


def _text_to_image(rank: int) -> MetricInfo:
    return MetricInfo(
        f"Text to image Recall@{rank}",
        "higher",
        None,
        f"{rank} / images, more for texts with several images",
        f"How often an image with exactly this text is among the first {rank} of all images.",
    )


METRICS: Mapping[Metric, MetricInfo] = {
    "auroc": MetricInfo(
        "AUROC",
        "higher",
        0.5,
        "0.5",
        "How often an image with a finding scores higher than one without it, zero-shot from "
        "prompts; mean over the findings with enough records of both kinds.",
    ),
    "accuracy": MetricInfo(
        "Balanced accuracy",
        "higher",
        0.5,
        "0.5",
        "Mean of sensitivity and specificity at a threshold chosen on validation; mean over "
        "findings.",
    ),
    "ece": MetricInfo(
        "Calibration error",
        "lower",
        None,
        "no chance level",
        "Mean gap between the predicted probability of a finding and its observed share, in ten "
        "bins of equal width.",
    ),
    "r1": _recall(1),
    "r5": _recall(5),
    "r10": _recall(10),
    "i2t_r1": _image_to_text(1),
    "i2t_r5": _image_to_text(5),
    "i2t_r10": _image_to_text(10),
    "t2i_r1": _text_to_image(1),
    "t2i_r5": _text_to_image(5),
    "t2i_r10": _text_to_image(10),
}

RANKS = (1, 5, 10)
"""The k of every recall."""

MINIMUM_RECORDS = 3
"""Least positives, and least negatives, of a finding that is scored."""

MINIMUM_PATIENTS = 3
"""Least test patients for an interval, which is very wide then; with fewer nothing is reported."""


def chance_level(metric: Metric, gallery_texts: int, gallery_images: int) -> float | None:
    """Return what a random order scores, as far as gallery sizes tell.

    For text to image it is the level of texts that belong to one image each, which is a lower
    bound where images share texts.

    Args:
        metric: A metric.
        gallery_texts: Distinct texts of the test split.
        gallery_images: Images of the test split.
    """
    if METRICS[metric].chance is not None or not gallery_texts or not gallery_images:
        return METRICS[metric].chance
    if metric == "ece":
        return None
    rank = int(metric.rpartition("r")[2])
    texts, images = min(1.0, rank / gallery_texts), min(1.0, rank / gallery_images)
    if metric.startswith("i2t"):
        return texts
    return images if metric.startswith("t2i") else (texts + images) / 2
