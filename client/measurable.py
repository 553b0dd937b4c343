"""What a site's test split allows to measure, and the reason for what it does not.

The tasks are the same for every model: which records are scored, their labels, and the
bootstrap weights that all models and metrics share.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.data.records import SiteData, Split
from shared.metrics import MINIMUM_PATIENTS
from shared.metrics.auroc import scorable
from shared.metrics.bootstrap import Floats, Resamples, resample
from shared.metrics.calibration import prevalence_logit
from shared.metrics.retrieval import TextGallery, text_gallery
from shared.results import METRICS, Metric

_FEW_PATIENTS = f"fewer than {MINIMUM_PATIENTS} test patients, so no interval can be estimated"
ZERO_SHOT: tuple[Metric, ...] = ("auroc", "accuracy", "ece")
RETRIEVAL: tuple[Metric, ...] = tuple(m for m in METRICS if m not in ZERO_SHOT)


@dataclass(frozen=True)
class ZeroShotTask:
    """Labelled test images of the findings that can be scored, the same for every model.

    Attributes:
        findings: Names of the scored findings; ``columns`` are their label columns.
        images: (n,) rows of the test image gallery.
        labels: (n, findings).
        weights: (1 + resamples, n).
        patients: Distinct patients among the rows.
        validation: Records of the validation split that have an image and labels.
        validation_labels: (v, findings).
        thresholded: Findings (positions) with enough of both kinds on validation.
        bias: (findings,) log odds in training, or ``None`` without labelled training records.
    """

    findings: tuple[str, ...]
    images: NDArray[np.intp]
    labels: NDArray[np.bool_]
    weights: Floats
    patients: int
    validation: NDArray[np.intp]
    validation_labels: NDArray[np.bool_]
    thresholded: NDArray[np.intp]
    bias: Floats | None


@dataclass(frozen=True)
class RetrievalTask:
    """The test split as a retrieval task, the same for every model."""

    gallery: TextGallery
    weights: Floats
    patients: int


@dataclass(frozen=True)
class Measurable:
    """What can be measured at a site.

    Attributes:
        gallery: Distinct texts of the test split and which image has which.
        retrieval: ``None`` if retrieval cannot be measured.
        zero_shot: ``None`` if no finding can be.
        reasons: Why not, for every metric that cannot be measured.
        patients: Test patients behind every metric.
    """

    gallery: TextGallery
    retrieval: RetrievalTask | None
    zero_shot: ZeroShotTask | None
    reasons: dict[Metric, str]
    patients: dict[Metric, int]


def measurable(data: SiteData, resamples: int, seed: int) -> Measurable:
    """Decide what can be measured on a site's test split.

    Args:
        data: The site's records.
        resamples: Number of bootstrap resamples over test patients.
        seed: Of the resamples.
    """
    test = data.splits["test"]
    gallery = text_gallery(test.texts, test.has_text, test.has_image)
    no_retrieval, no_findings = _retrieval_reason(data, gallery), _zero_shot_reason(data)
    pairs = labelled = None
    if no_retrieval is None or no_findings is None:
        weights = resample(test.patients, resamples, seed)
        pairs = None if no_retrieval else _retrieval_task(test, gallery, weights)
        labelled = None if no_findings else _zero_shot_task(data, weights)
    reasons = _not_measured(no_retrieval, no_findings, labelled)
    return Measurable(gallery, pairs, labelled, reasons, _patients_behind(pairs, labelled))


def _retrieval_task(test: Split, gallery: TextGallery, resamples: Resamples) -> RetrievalTask:
    patients = test.patients[test.has_image][gallery.own >= 0]
    return RetrievalTask(gallery, resamples.of(patients), len(np.unique(patients)))


def _zero_shot_task(data: SiteData, resamples: Resamples) -> ZeroShotTask:
    train, val, test = (data.splits[name] for name in ("train", "val", "test"))
    candidates, labels = _labelled_images(data, test)
    columns = candidates[scorable(labels)]
    images = np.flatnonzero(test.labelled[test.has_image])
    patients = test.patients[test.has_image][images]
    validation = np.flatnonzero(val.has_image & val.labelled)
    validation_labels = val.labels[validation][:, columns] > 0.5
    known = train.labels[train.labelled][:, columns]
    return ZeroShotTask(
        findings=tuple(data.findings[column] for column in columns),
        images=images,
        labels=labels[:, scorable(labels)],
        weights=resamples.of(patients),
        patients=len(np.unique(patients)),
        validation=validation,
        validation_labels=validation_labels,
        thresholded=scorable(validation_labels),
        bias=prevalence_logit(known) if len(known) else None,
    )


def _labelled_images(data: SiteData, split: Split) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return the label columns that have prompts, and those labels of labelled images."""
    columns = np.array(
        [
            number
            for number, name in enumerate(data.findings)
            if name in data.prompts and data.prompts[name].positive and data.prompts[name].negative
        ],
        dtype=np.intp,
    )
    return columns, split.labels[split.has_image & split.labelled][:, columns] > 0.5


def _retrieval_reason(data: SiteData, gallery: TextGallery) -> str | None:
    test, splits = data.splits["test"], data.splits.values()
    patients = test.patients[test.has_image & test.has_text]
    rules = (
        (not any(split.has_image.any() for split in splits), "no images at this site"),
        (not any(split.has_text.any() for split in splits), "no texts at this site"),
        (not test.has_image.any(), "no images in the test split"),
        (not test.has_text.any(), "no texts in the test split"),
        (not len(patients), "no test record holds both an image and a text"),
        (len(gallery.texts) < 2, "fewer than two different texts in the test split"),
        (len(gallery.own) < 2, "fewer than two images in the test split"),
        (len(np.unique(patients)) < MINIMUM_PATIENTS, _FEW_PATIENTS),
    )
    return next((reason for applies, reason in rules if applies), None)


def _zero_shot_reason(data: SiteData) -> str | None:
    test, splits = data.splits["test"], data.splits.values()
    columns, labels = _labelled_images(data, test)
    patients = test.patients[test.has_image & test.labelled]
    unlabelled = not data.findings or not any(split.labelled.any() for split in splits)
    rules = (
        (not any(split.has_image.any() for split in splits), "no images at this site"),
        (unlabelled, "no labels at this site"),
        (not test.has_image.any(), "no images in the test split"),
        (not len(patients), "no labelled images in the test split"),
        (not len(columns), "no prompts for the labelled findings"),
        (
            not len(scorable(labels)),
            "no finding with three positive and three negative test records",
        ),
        (len(np.unique(patients)) < MINIMUM_PATIENTS, _FEW_PATIENTS),
    )
    return next((reason for applies, reason in rules if applies), None)


def _not_measured(
    retrieval: str | None, zero_shot: str | None, task: ZeroShotTask | None
) -> dict[Metric, str]:
    reasons: dict[Metric, str | None] = dict.fromkeys(RETRIEVAL, retrieval)
    reasons |= dict.fromkeys(ZERO_SHOT, zero_shot)
    if task and not len(task.validation):
        reasons["accuracy"] = "no labelled images in the validation split"
    elif task and not len(task.thresholded):
        reasons["accuracy"] = "no finding with three positive and three negative validation records"
    if task and task.bias is None:
        reasons["ece"] = "no labelled training records"
    return {metric: reason for metric in METRICS if (reason := reasons[metric])}


def _patients_behind(
    pairs: RetrievalTask | None, labelled: ZeroShotTask | None
) -> dict[Metric, int]:
    counts: dict[Metric, int] = dict.fromkeys(RETRIEVAL, pairs.patients if pairs else 0)
    return counts | dict.fromkeys(ZERO_SHOT, labelled.patients if labelled else 0)
