"""What may be told of measures and counts: nothing that rests on too few patients.

Counts are rounded to two significant digits and measures to three decimals, unless the
policy says ``exact`` (simulation, where nothing needs hiding from oneself).
"""

from collections.abc import Mapping
from typing import TypeVar

from client.policy import SitePolicy
from shared.messages import TrainSummary
from shared.results import (
    CalibrationBin,
    Estimate,
    FindingScore,
    Metric,
    Model,
    SiteEvaluation,
)

_Key = TypeVar("_Key", bound=str)


def disclosed(evaluation: SiteEvaluation, policy: SitePolicy) -> SiteEvaluation:
    """Return an evaluation without what the policy holds back."""
    return _allowed(evaluation if policy.exact else _guarded(evaluation, policy), policy)


def rounded(summary: TrainSummary) -> TrainSummary:
    """Return the numbers of a round of training to three decimals."""
    loss, before = summary.loss, summary.validation_loss
    return summary.model_copy(
        update={
            "loss": None if loss is None else round(loss, 3),
            "validation_loss": None if before is None else round(before, 3),
            "gradient_norms": {t: round(norm, 3) for t, norm in summary.gradient_norms.items()},
            "steps": 0,  # with epochs it is the exact number of records in disguise
        }
    )


def disclosed_count(number: int, policy: SitePolicy) -> int:
    """Return a count to two significant digits; 0 below the policy's smallest count."""
    if policy.exact:
        return number
    if number < policy.minimum_count:
        return 0
    step: int = 10 ** max(len(str(number)) - 2, 0)
    return round(number / step) * step


def _estimate(estimate: Estimate, policy: SitePolicy) -> Estimate:
    return Estimate(
        value=round(estimate.value, 3),
        low=round(estimate.low, 3),
        high=round(estimate.high, 3),
        n=disclosed_count(estimate.n, policy),
    )


def _table(
    table: Mapping[_Key, Mapping[Metric, Estimate]], hidden: set[Metric], policy: SitePolicy
) -> dict[_Key, dict[Metric, Estimate]]:
    return {
        key: {m: _estimate(e, policy) for m, e in row.items() if m not in hidden}
        for key, row in table.items()
    }


def _guarded(evaluation: SiteEvaluation, policy: SitePolicy) -> SiteEvaluation:
    """Drop what rests on too few patients, and round the rest."""
    least = policy.minimum_count
    hidden: set[Metric] = {
        metric
        for row in evaluation.metrics.values()
        for metric, estimate in row.items()
        if estimate.n < least
    }
    if any(min(f.positives, f.negatives) < least for f in evaluation.findings):
        # A mean over findings gives away the one that rests on too few records.
        hidden |= {"auroc", "accuracy", "ece"}
    reasons = dict.fromkeys(hidden, f"fewer than {least} patients, the site's least number")
    return evaluation.model_copy(
        update={
            "metrics": _table(evaluation.metrics, hidden, policy),
            "differences": _table(evaluation.differences, hidden, policy),
            "not_measured": {**evaluation.not_measured, **reasons},
            "gallery_texts": disclosed_count(evaluation.gallery_texts, policy),
            "gallery_images": disclosed_count(evaluation.gallery_images, policy),
            "findings": _findings(evaluation.findings, policy),
            "calibration": _bins(evaluation.calibration, policy),
        }
    )


def _findings(findings: list[FindingScore], policy: SitePolicy) -> list[FindingScore]:
    kept = []
    for finding in findings:
        auroc: dict[Model, Estimate] = {
            model: _estimate(estimate, policy)
            for model, estimate in finding.auroc.items()
            if estimate.n >= policy.minimum_count
        }
        if auroc and min(finding.positives, finding.negatives) >= policy.minimum_count:
            counts = {
                "positives": disclosed_count(finding.positives, policy),
                "negatives": disclosed_count(finding.negatives, policy),
            }
            kept.append(finding.model_copy(update={**counts, "auroc": auroc}))
    return kept


def _bins(bins: list[CalibrationBin], policy: SitePolicy) -> list[CalibrationBin]:
    """Return the bins that rest on enough; never all but one.

    What a single missing bin rests on, all others and the total would tell: the smallest of those
    that could be told goes with it.
    """
    told = [b for b in bins if b.n >= policy.minimum_count]
    held_back = sum(0 < b.n < policy.minimum_count for b in bins)
    if held_back == 1 and told:
        told.remove(min(told, key=lambda b: b.n))
    return [
        CalibrationBin(
            predicted=round(b.predicted, 3),
            observed=round(b.observed, 3),
            low=round(b.low, 3),
            high=round(b.high, 3),
            n=disclosed_count(b.n, policy),
        )
        for b in told
    ]


def _allowed(evaluation: SiteEvaluation, policy: SitePolicy) -> SiteEvaluation:
    """Drop the measures that the policy does not name."""
    forbidden = {
        metric
        for table in (evaluation.metrics, evaluation.differences)
        for row in table.values()
        for metric in row
        if metric not in policy.metrics
    }
    if not forbidden and "auroc" in policy.metrics and "ece" in policy.metrics:
        return evaluation
    metrics = {
        model: {m: e for m, e in row.items() if m not in forbidden}
        for model, row in evaluation.metrics.items()
    }
    differences = {
        name: {m: e for m, e in row.items() if m not in forbidden}
        for name, row in evaluation.differences.items()
    }
    reasons = dict.fromkeys(forbidden, "the site's policy does not release it")
    return evaluation.model_copy(
        update={
            "metrics": metrics,
            "differences": differences,
            "not_measured": {**evaluation.not_measured, **reasons},
            "findings": evaluation.findings if "auroc" in policy.metrics else [],
            "calibration": evaluation.calibration if "ece" in policy.metrics else [],
        }
    )
