"""What one run is worth: own test splits, the other sites' ones, validation loss, cost.

A site's model in use is its personal adapter as it chose to use it, else the shared one. How it
does on *other* sites' test splits is computed here from the run's folders, since only a
simulation can see both.
"""

import math
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, ConfigDict

from client.agent import load_records
from client.data.records import SiteData
from client.evaluation import evaluate_site
from client.settings import SiteSettings
from client.state import SiteState
from client.validation import validation_loss
from server.checkpoint import RunStore
from shared.config import JobConfig
from shared.errors import TrainingError
from shared.files import write_atomic
from shared.layout_file import load_adapter
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView
from shared.results import Estimate, Metric, Model, Results
from simulations.compare.plan import Task
from simulations.sites import site_settings

FILE = "scores.json"
_FEWEST_RESAMPLES = 100  # intervals are over seeds here, so those by patient are not used


class Scores(BaseModel):
    """One run in numbers; ``scores.json`` in its folder.

    Attributes:
        version: Of this schema.
        job_sha256: Of the run's job.
        reason: Why there are no numbers, or fewer than there should be.
        base_loss: Mean over sites of the base's validation loss, in nats.
        loss: The same of the trained adapter (shared, local or centralised).
        base_level: On the tuning seed, mean over sites of the base's main metric on records that
            a rate may be chosen by (``for_choice``).
        level: The same of the model in use.
        base: ``base[site][metric]``, the untouched encoder on the site's test split.
        own: ``own[site][metric]``, the model in use on the site's own test split.
        others: Mean of the main metric of a site's model in use over all other sites' test
            splits; empty on the tuning seed.
        relative_error: Of aggregation; ``None`` for references.
        bytes_up: Sent by all sites.
        bytes_down: Received by all sites.
        seconds: Of the run, on this machine, with whatever else it was doing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    job_sha256: str
    reason: str | None = None
    base_loss: float | None = None
    loss: float | None = None
    base_level: float | None = None
    level: float | None = None
    base: dict[str, dict[Metric, float]] = {}
    own: dict[str, dict[Metric, float]] = {}
    others: dict[str, float] = {}
    relative_error: float | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    seconds: float | None = None


def load_scores(task: Task) -> Scores | None:
    """Return the scores of a run that is done already, if they are of this very job."""
    try:
        scores = Scores.model_validate_json((task.folder / FILE).read_bytes())
    except (OSError, ValueError):
        return None
    whole = task.tuning or bool(scores.own)
    return scores if scores.job_sha256 == task.job.digest() and whole else None


def save_scores(task: Task, scores: Scores) -> Scores:
    """Write ``scores.json`` into a run's folder and return what was written.

    Raises:
        StorageError: If it cannot be written.
    """
    write_atomic(task.folder / FILE, (scores.model_dump_json(indent=1) + "\n").encode())
    return scores


def score_federation(task: Task, results: Results, encoder: DualEncoder) -> Scores:
    """Return the scores of a finished run of a method."""
    before, after = _course(results)
    settings = {site.name: site for site in _settings(task)}
    data = {name: load_records(site, encoder) for name, site in settings.items()}
    views = views_in_use(task, results, settings)
    untouched = dict.fromkeys(data, AdapterView())
    return Scores(
        job_sha256=task.job.digest(),
        reason=results.reason,
        base_loss=before,
        loss=after,
        base_level=_level_for_choice(task, encoder, data, untouched),
        level=_level_for_choice(task, encoder, data, views),
        base={n: _values(s.metrics.get("base", {})) for n, s in results.sites.items()},
        own={n: _in_use(s.metrics) for n, s in results.sites.items()},
        others={} if task.tuning else on_others(encoder, data, views, task.job),
        relative_error=results.aggregation.relative_error,
        bytes_up=results.bytes_up,
        bytes_down=results.bytes_down,
        seconds=results.seconds,
    )


def score_reference(task: Task, encoder: DualEncoder, started: float) -> Scores:
    """Return the scores of a reference whose adapters have been trained into files."""
    settings = _settings(task)
    data = {site.name: load_records(site, encoder) for site in settings}
    name: Literal["local", "centralised"] = "local" if task.method == "local" else "centralised"
    paths = {site.name: site.references[name] for site in settings}
    seconds = time.monotonic() - started
    loaded = {path: load_adapter(path) for path in set(paths.values()) if path.exists()}
    views = {n: AdapterView(loaded[path]) for n, path in paths.items() if path in loaded}
    missing = sorted(set(paths) - set(views))
    before, after = _losses(task, encoder, data, views)
    untouched = dict.fromkeys(views, AdapterView())
    return Scores(
        job_sha256=task.job.digest(),
        reason=f"no adapter for {', '.join(missing)}" if missing else None,
        base_loss=before,
        loss=after,
        base_level=_level_for_choice(task, encoder, data, untouched),
        level=_level_for_choice(task, encoder, data, views),
        base={} if task.tuning else _on_own(task, encoder, data, untouched),
        own={} if task.tuning else _on_own(task, encoder, data, views),
        others={} if task.tuning else on_others(encoder, data, views, task.job),
        seconds=round(seconds, 1),
    )


def for_choice(data: SiteData, job: JobConfig) -> SiteData:
    """Return a site as it is scored to choose a rate: what is scored is its test split.

    Records of the tuning seed are drawn for it alone if they are synthetic, so that its test
    splits are no records that are compared. Other records are the same for all seeds: there only
    the validation split may be looked at.
    """
    if job.data.folder is None:
        return data
    return replace(data, splits={**data.splits, "test": data.splits["val"]})


def _level_for_choice(
    task: Task,
    encoder: DualEncoder,
    data: Mapping[str, SiteData],
    views: Mapping[str, AdapterView],
) -> float | None:
    if not task.tuning:
        return None
    main = task.job.evaluate.main
    found = (
        _evaluate(encoder, for_choice(data[site], task.job), view, task.job).get(main)
        for site, view in views.items()
    )
    return mean(level for level in found if level is not None)


def _on_own(
    task: Task,
    encoder: DualEncoder,
    data: Mapping[str, SiteData],
    views: Mapping[str, AdapterView],
) -> dict[str, dict[Metric, float]]:
    return {site: _evaluate(encoder, data[site], view, task.job) for site, view in views.items()}


def _losses(
    task: Task,
    encoder: DualEncoder,
    data: Mapping[str, SiteData],
    views: Mapping[str, AdapterView],
) -> tuple[float | None, float | None]:
    """Return the mean validation losses over sites, of the base and of the views."""
    losses: list[tuple[float, float]] = []
    for site, view in views.items():
        before = validation_loss(encoder, data[site], AdapterView(), task.job)
        after = validation_loss(encoder, data[site], view, task.job)
        if before is not None and after is not None:
            losses.append((before, after))
    return mean(before for before, _ in losses), mean(after for _, after in losses)


def views_in_use(
    task: Task, results: Results, settings: Mapping[str, SiteSettings]
) -> dict[str, AdapterView]:
    """Return every site's model in use after a run, from the run's folders."""
    with RunStore.open(task.folder, lock=False) as store:
        shared = load_adapter(store.round_path(results.rounds) / "shared.safetensors")
    alone = AdapterView(shared)
    views: dict[str, AdapterView] = {}
    for name, site in settings.items():
        stored = SiteState(site.state, site.held).load_personal(shared.sha256())
        personal = stored is not None and "personal" in results.sites[name].metrics
        own = AdapterView(shared, stored.adapter, stored.alpha) if stored else alone
        views[name] = own if personal and not own.same_as(alone) else alone
    return views


def on_others(
    encoder: DualEncoder,
    data: Mapping[str, SiteData],
    views: Mapping[str, AdapterView],
    job: JobConfig,
) -> dict[str, float]:
    """Return, per site, its model's mean main metric over all other sites' test splits.

    A view that several sites have in use is scored once per test split.
    """
    known: dict[tuple[int, str], float | None] = {}
    distinct: list[AdapterView] = []
    found: dict[str, float] = {}
    for site, view in views.items():
        number = next((n for n, seen in enumerate(distinct) if seen.same_as(view)), len(distinct))
        if number == len(distinct):
            distinct.append(view)
        values: list[float | None] = []
        for other in data:
            if other != site:
                if (number, other) not in known:
                    scored = _evaluate(encoder, data[other], view, job)
                    known[number, other] = scored.get(job.evaluate.main)
                values.append(known[number, other])
        value = mean(each for each in values if each is not None)
        if value is not None:
            found[site] = value
    return found


def mean(values: Iterable[float]) -> float | None:
    """Return the mean, or ``None`` of nothing or of numbers that are not finite."""
    found = list(values)
    return statistics.fmean(found) if found and all(map(math.isfinite, found)) else None


def _evaluate(
    encoder: DualEncoder, data: SiteData, view: AdapterView, job: JobConfig
) -> dict[Metric, float]:
    """Return the point values of a view on a site's test split; none if it has diverged."""
    evaluate = job.evaluate.model_copy(update={"bootstrap": _FEWEST_RESAMPLES})
    short = job.model_copy(update={"evaluate": evaluate})
    try:
        found = evaluate_site(encoder, data, {"shared": view}, short, {}, seed=0)
    except TrainingError:
        return {}
    return _values(found.metrics["shared"])


def _course(results: Results) -> tuple[float | None, float | None]:
    """Return the mean validation loss over sites of the base and of the finished shared adapter.

    Either is ``None`` if a site that was validated at all was not validated then.
    """
    courses = [{p.round: p.loss for p in site.course} for site in results.sites.values()]
    ends = []
    for wanted in (0, results.rounds_planned):
        found = [course[wanted] for course in courses if wanted in course]
        ends.append(mean(found) if len(found) == sum(map(bool, courses)) else None)
    return ends[0], ends[1]


def _in_use(metrics: Mapping[Model, Mapping[Metric, Estimate]]) -> dict[Metric, float]:
    return _values(metrics.get("personal") or metrics.get("shared", {}))


def _values(metrics: Mapping[Metric, Estimate]) -> dict[Metric, float]:
    return {metric: entry.value for metric, entry in metrics.items()}


def _settings(task: Task) -> list[SiteSettings]:
    return site_settings(task.folder, task.job)
