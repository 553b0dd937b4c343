"""What a site measures on its own test split, for every model that is given.

Every test image, distinct test text and prompt is embedded once per model, and once for all if
the model is the frozen base. Sites are embedded one after the other: test splits fill chunks by
themselves, and one weight per layer is faster than a batched product per site. All models and
metrics share one set of bootstrap resamples over patients, so differences are paired. What
cannot be measured gets a reason instead of a number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from client.data.records import SiteData
from client.embeddings import Embedder, Embeddings, embed_images, embed_prompts, embed_texts
from client.measurable import RETRIEVAL, Measurable, ZeroShotTask, measurable
from shared.adapter import Tower
from shared.config import JobConfig
from shared.metrics import RANKS
from shared.metrics.accuracy import balanced_accuracy, choose_threshold
from shared.metrics.auroc import macro, weighted_auroc
from shared.metrics.bootstrap import Floats, difference, estimate
from shared.metrics.calibration import (
    calibration_bins,
    calibration_error,
    probability,
)
from shared.metrics.retrieval import RetrievalHits, recall, retrieve
from shared.metrics.zero_shot import margins
from shared.model.view import AdapterView
from shared.results import (
    COMPARISONS,
    METRICS,
    CalibrationBin,
    Comparison,
    Estimate,
    FindingScore,
    Metric,
    Model,
    SiteEvaluation,
)
from shared.seeding import derive_seed

InUse = Literal["personal", "shared", "not trained"]


@dataclass(frozen=True)
class _Scores:
    """One model: every metric, and every finding's AUROC, on the data and all resamples."""

    metrics: dict[Metric, Floats]
    findings: dict[str, Floats]
    bins: list[CalibrationBin]


def evaluate_site(
    encoder: Embedder,
    data: SiteData,
    views: Mapping[Model, AdapterView],
    job: JobConfig,
    in_use: Mapping[Tower, InUse],
    seed: int,
) -> SiteEvaluation:
    """Score every model on the site's test split.

    Args:
        encoder: The base with its adapters; left in the last view used.
        data: The site's records.
        views: Models to score.
        job: For ``[evaluate]``.
        in_use: Which adapter each tower uses after the choice on validation.
        seed: Of the resamples.

    Returns:
        Metrics, paired differences, findings, calibration of the model in use, and reasons for
        what could not be measured.

    Raises:
        TrainingError: ``embedding-not-finite`` if an adapter has diverged.
    """
    plan = measurable(data, job.evaluate.bootstrap, derive_seed(seed, "bootstrap"))
    scores: dict[Model, _Scores] = {}
    for model, view in views.items():
        twin = next((m for m in scores if _same_function(views[m], view)), None)
        scores[model] = scores[twin] if twin else _score(encoder, data, view, plan)
    counts = plan.patients
    calibrated = _calibrated_model(views, in_use) if views and "ece" not in plan.reasons else None
    return SiteEvaluation(
        metrics={
            model: {m: estimate(values, counts[m]) for m, values in entry.metrics.items()}
            for model, entry in scores.items()
        },
        not_measured=plan.reasons,
        differences=_differences(scores, counts),
        in_use=dict(in_use),
        gallery_texts=len(plan.gallery.texts),
        gallery_images=len(plan.gallery.own),
        findings=_finding_scores(scores, plan.zero_shot),
        calibration=scores[calibrated].bins if calibrated else [],
        calibrated_model=calibrated,
    )


def _score(encoder: Embedder, data: SiteData, view: AdapterView, plan: Measurable) -> _Scores:
    metrics: dict[Metric, Floats] = {}
    findings: dict[str, Floats] = {}
    bins: list[CalibrationBin] = []
    if plan.retrieval or plan.zero_shot:
        test = data.splits["test"]
        images = embed_images(encoder, view, test, np.flatnonzero(test.has_image))
        if plan.retrieval:
            texts = embed_texts(encoder, view, test, plan.gallery.texts)
            hits = retrieve(images, texts, plan.retrieval.gallery.own)
            metrics |= retrieval_metrics(hits, plan.retrieval.weights)
        if plan.zero_shot:
            zero_shot, findings, bins = _findings(encoder, view, data, images, plan.zero_shot)
            metrics |= zero_shot
    ordered: dict[Metric, Floats] = {m: metrics[m] for m in METRICS if m in metrics}
    return _Scores(ordered, findings, bins)


def retrieval_metrics(hits: RetrievalHits, weights: Floats) -> dict[Metric, Floats]:
    """Return recalls in both directions and their mean, for every row of bootstrap weights.

    Args:
        hits: Of every query.
        weights: (b, q) bootstrap weights of the query records.
    """
    result: dict[str, Floats] = {}
    for k in RANKS:
        one = recall(hits.image_to_text[k], hits.weights, weights)
        other = recall(hits.text_to_image[k], hits.weights, weights)
        result |= {f"r{k}": (one + other) / 2, f"i2t_r{k}": one, f"t2i_r{k}": other}
    return {metric: result[metric] for metric in RETRIEVAL}


def _findings(
    encoder: Embedder, view: AdapterView, data: SiteData, images: Embeddings, task: ZeroShotTask
) -> tuple[dict[Metric, Floats], dict[str, Floats], list[CalibrationBin]]:
    prompts = [data.prompts[name] for name in task.findings]
    directions = embed_prompts(encoder, view, data.splits["test"], prompts)
    scores = margins(images[task.images], directions)
    aurocs = [
        weighted_auroc(scores[:, column], task.labels[:, column], task.weights)
        for column in range(len(task.findings))
    ]
    metrics: dict[Metric, Floats] = {"auroc": macro(np.stack(aurocs))}
    bins: list[CalibrationBin] = []
    if len(task.thresholded):
        held_out = embed_images(encoder, view, data.splits["val"], task.validation)
        metrics["accuracy"] = _accuracy(scores, margins(held_out, directions), task)
    if task.bias is not None:
        chances = probability(scores, encoder.logit_scale, task.bias)
        metrics["ece"] = calibration_error(chances, task.labels, task.weights)
        bins = calibration_bins(chances, task.labels)
    return metrics, dict(zip(task.findings, aurocs, strict=True)), bins


def _accuracy(scores: Floats, held_out: Floats, task: ZeroShotTask) -> Floats:
    return macro(
        np.stack(
            [
                balanced_accuracy(
                    scores[:, column],
                    task.labels[:, column],
                    choose_threshold(held_out[:, column], task.validation_labels[:, column]),
                    task.weights,
                )
                for column in task.thresholded
            ]
        )
    )


def _differences(
    scores: Mapping[Model, _Scores], counts: Mapping[Metric, int]
) -> dict[Comparison, dict[Metric, Estimate]]:
    by_name: dict[str, _Scores] = {str(model): entry for model, entry in scores.items()}
    result: dict[Comparison, dict[Metric, Estimate]] = {}
    for comparison in COMPARISONS:
        first, second = comparison.split("_minus_")
        if first in by_name and second in by_name:
            left, right = by_name[first].metrics, by_name[second].metrics
            result[comparison] = {m: difference(left[m], right[m], counts[m]) for m in left}
    return result


def _finding_scores(
    scores: Mapping[Model, _Scores], task: ZeroShotTask | None
) -> list[FindingScore]:
    if task is None:
        return []
    return [
        FindingScore(
            finding=name,
            positives=int(task.labels[:, column].sum()),
            negatives=int((1 - task.labels[:, column]).sum()),
            auroc={
                model: estimate(entry.findings[name], task.patients)
                for model, entry in scores.items()
            },
        )
        for column, name in enumerate(task.findings)
    ]


def _calibrated_model(views: Mapping[Model, AdapterView], in_use: Mapping[Tower, InUse]) -> Model:
    order: Sequence[Model] = ("personal", "shared", "local", "base")
    if "personal" not in in_use.values():
        order = order[1:]
    return next((model for model in order if model in views), next(iter(views)))


def _same_function(first: AdapterView, second: AdapterView) -> bool:
    """Whether two views compute the same, so that one need not be embedded again."""

    def personal(view: AdapterView) -> object:
        mixed = {tower: alpha for tower, alpha in view.alpha.items() if alpha}
        return (id(view.personal), mixed) if view.personal and mixed else None

    return first.shared is second.shared and personal(first) == personal(second)
