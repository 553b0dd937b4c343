"""From the scores of all runs to the rows of the table: means, intervals, paired differences."""

import statistics
from collections.abc import Callable, Mapping, Sequence

from shared.metrics import METRICS
from shared.page.numbers import listing, reading
from shared.results import Estimate, Metric
from simulations.compare.choice import Choice
from simulations.compare.methods import REFERENCES, Method
from simulations.compare.model import MEASURES, Cell, Kind, Measure, Rate, Row
from simulations.compare.scores import Scores, mean
from simulations.study import interval

BASE = "base"
NO_RATE = Choice(None, ())


def cell(values: Sequence[float | None]) -> Cell | None:
    """Return mean and interval over the seeds that have a number; ``None`` if none has."""
    found = [value for value in values if value is not None]
    if not found:
        return None
    if len(found) == 1:
        return Cell(value=found[0], low=None, high=None, by_seed=list(values))
    middle, low, high = interval(found)
    return Cell(value=middle, low=low, high=high, by_seed=list(values))


def difference(values: Sequence[float | None], than: Sequence[float | None]) -> Cell | None:
    """Return the paired difference over the seeds that have both numbers."""
    pairs = zip(values, than, strict=True)
    return cell([None if a is None or b is None else a - b for a, b in pairs])


def measures(scores: Scores, main: Metric) -> dict[Measure, float | None]:
    """Return one run's number of every measure."""
    levels = [site[main] for site in scores.own.values() if main in site]
    worst = max if METRICS[main].direction == "lower" else min
    error = scores.relative_error
    return {
        "own": mean(levels),
        "worst": worst(levels) if mean(levels) is not None else None,
        "others": mean(scores.others.values()),
        "auroc": _over_sites(scores, "auroc"),
        "i2t_r5": _over_sites(scores, "i2t_r5"),
        "t2i_r5": _over_sites(scores, "t2i_r5"),
        "error": error if levels else None,
        "bytes_up": scores.bytes_up,
        "bytes_down": scores.bytes_down,
        "seconds": scores.seconds,
    }


def _over_sites(scores: Scores, metric: Metric) -> float | None:
    return mean(site[metric] for site in scores.own.values() if metric in site)


def as_base(scores: Scores, main: Metric) -> Scores:
    """Return what the untouched encoder scores on the sites of a run; it costs nothing."""
    levels = {site: values[main] for site, values in scores.base.items() if main in values}
    # The same model everywhere, so a site's "others" are all levels but its own.
    others = {
        site: statistics.fmean(rest)
        for site in scores.base
        if (rest := [value for name, value in levels.items() if name != site])
    }
    return Scores(job_sha256=scores.job_sha256, own=scores.base, others=others)


def make_rows(
    methods: Sequence[Method],
    choices: Mapping[str, Choice],
    scores: Mapping[tuple[str, int], Scores],
    seeds: Sequence[int],
    main: Metric,
    margin: float = 0.0,
) -> tuple[list[Row], str | None]:
    """Return all rows and the name of the best method by own test.

    Args:
        methods: In the order of the command line.
        choices: Rate of every row, by name.
        scores: By row and seed; what is missing was not run.
        seeds: Compared.
        main: The main metric.
        margin: Least difference that is called better or worse.
    """
    kinds: dict[str, Kind] = {m.name: "personal" if m.personal else "shared" for m in methods}
    kinds |= {"local": "local", "centralised": "centralised", BASE: "base"}
    known = dict(scores)
    for seed in seeds:
        of_seed = [known[n, seed] for n in kinds if (n, seed) in known and known[n, seed].base]
        if of_seed:
            fullest = max(of_seed, key=lambda each: len(each.base))
            known[BASE, seed] = as_base(fullest, main)
    rows = []
    for name, kind in kinds.items():
        found = [known.get((name, seed)) for seed in seeds]
        rows.append(_row(name, kind, choices.get(name, NO_RATE), found, seeds, main))
    best = best_method(rows, main)
    if best is None:
        return rows, None
    than = best.cells["own"].by_seed
    return [_against(row, best.name, than, main, margin) for row in rows], best.name


def _row(
    name: str,
    kind: Kind,
    choice: Choice,
    found: Sequence[Scores | None],
    seeds: Sequence[int],
    main: Metric,
) -> Row:
    numbers = [measures(each, main) if each else None for each in found]
    cells = {}
    for measure in MEASURES:
        entry = cell([each[measure] if each else None for each in numbers])
        if entry is not None:
            cells[measure] = entry
    notes = [choice.note] if choice.note else []
    reasons: dict[str, list[str]] = {}
    for seed, each in zip(seeds, found, strict=True):
        if each is not None and each.reason:
            reasons.setdefault(each.reason, []).append(str(seed))
    notes += [
        f"seed{'s' if len(of) > 1 else ''} {listing(of, 12)}: {why}" for why, of in reasons.items()
    ]
    tried = [
        Rate(
            rate=t.rate,
            base_loss=t.base,
            loss=t.loss,
            base_level=t.base_level,
            level=t.level,
        )
        for t in choice.tried
    ]
    return Row(name=name, kind=kind, rate=choice.rate, tried=tried, notes=notes, cells=cells)


def best_method(rows: Sequence[Row], main: Metric) -> Row | None:
    """Return the method with the best mean own test; references are not to be chosen from."""
    known = [row for row in rows if row.kind in ("shared", "personal") and "own" in row.cells]
    sign = -1 if METRICS[main].direction == "lower" else 1
    key: Callable[[Row], float] = lambda row: sign * row.cells["own"].value  # noqa: E731
    return max(known, key=key, default=None)


def _against(row: Row, best: str, than: Sequence[float | None], main: Metric, margin: float) -> Row:
    if row.name == best or "own" not in row.cells:
        return row
    found = difference(row.cells["own"].by_seed, than)
    word = None
    if found is not None and found.low is not None and found.high is not None:
        n = sum(value is not None for value in found.by_seed)
        estimate = Estimate(value=found.value, low=found.low, high=found.high, n=n)
        lower = METRICS[main].direction == "lower"
        word = reading(estimate, margin=margin, lower_is_better=lower)
    return row.model_copy(update={"difference": found, "word": word})


__all__ = ["REFERENCES", "best_method", "cell", "difference", "make_rows", "measures"]
