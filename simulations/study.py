"""The default job over several seeds, and what may be said of it.

``python -m simulations.study --out runs/study`` runs the job once per seed with all sites, and
once more with the unimodal sites left out, and prints every claim with its 95 % interval over
seeds (Student's t). A run that is there already is not run again. Claims that do not hold are
printed as they are.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from scipy import stats

from shared.config import JobConfig, load_job
from shared.errors import RunDirectoryError
from shared.files import write_atomic
from shared.page.numbers import number
from shared.results import Metric, Model, Results
from simulations.phantoms.federation import phantom_sites
from simulations.simulate import default_job, simulate

Verdict = Literal["yes", "no", "open"]

RECOVERED = 0.85
"""Share of the centralised gain over the base that the shared adapter should reach."""

EXPLAINED = (
    "Made by the command above. Intervals are Student's t over seeds. *yes*: the interval supports "
    'the claim; **no**: it refutes it; **open**: it can do neither. "Personal minus shared" '
    "claims no more than level within the interval. Everything else claims a positive number."
)

UNKNOWN = 1e9
"""Ends of the interval of a single value; JSON has no infinity."""

ORACLE_SHARE = 0.95
"""No method should come closer than this to the oracle reader."""


@dataclass(frozen=True)
class Claim:
    """One line of the study.

    Attributes:
        text: What is claimed.
        value: Mean over seeds.
        low: Lower end of the 95 % interval over seeds.
        high: Upper end.
        verdict: ``yes`` if the interval supports the claim, ``no`` if it refutes it, otherwise
            ``open``.
        seeds: Number of seeds.
    """

    text: str
    value: float
    low: float
    high: float
    verdict: Verdict
    seeds: int


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return mean and 95 % interval by Student's t; one value has no interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, -UNKNOWN, UNKNOWN
    half = float(stats.t.ppf(0.975, len(values) - 1))
    half *= statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half


def claim(text: str, values: Sequence[float], judge: Callable[[float, float], Verdict]) -> Claim:
    """Return a claim about a number per seed; ``judge`` is asked about its interval."""
    mean, low, high = interval(values)
    return Claim(text, mean, low, high, judge(low, high), len(values))


def above_zero(low: float, high: float) -> Verdict:
    """Judge "is positive": the whole interval above zero, or the whole interval not."""
    return "yes" if low > 0 else "no" if high <= 0 else "open"


def not_below_zero(low: float, high: float) -> Verdict:
    """Judge "at least level within the interval": refuted only if all of it is below zero."""
    if high - low >= UNKNOWN:
        return "open"
    return "yes" if high >= 0 else "no"


def level(results: Results, model: Model, metric: Metric, sites: Sequence[str] = ()) -> float:
    """Return the mean of a metric over some sites, or over all that could be measured."""
    names = sites or list(results.sites)
    values = [
        entry.metrics[model][metric].value
        for name in names
        if metric in (entry := results.sites[name]).metrics.get(model, {})
    ]
    return statistics.fmean(values)


def gains(runs: Sequence[Results], metric: Metric) -> list[Claim]:
    """Claims about means over sites."""

    def mean(model: Model, than: Model) -> list[float]:
        return [level(run, model, metric) - level(run, than, metric) for run in runs]

    recovered = [
        (level(run, "shared", metric) - level(run, "base", metric))
        - RECOVERED * (level(run, "centralised", metric) - level(run, "base", metric))
        for run in runs
    ]
    return [
        claim("centralised minus local-only, mean", mean("centralised", "local"), above_zero),
        claim("centralised minus base, mean", mean("centralised", "base"), above_zero),
        claim("local-only minus base, mean", mean("local", "base"), above_zero),
        claim("shared minus base, mean", mean("shared", "base"), above_zero),
        claim("personal minus local-only, mean", mean("personal", "local"), above_zero),
        claim(f"shared gain minus {RECOVERED:.0%} of centralised gain", recovered, above_zero),
    ]


def by_site(runs: Sequence[Results], metric: Metric) -> list[Claim]:
    """Claims about single sites, each on its own test split."""
    found = []
    names = [n for n in runs[0].sites if metric in runs[0].sites[n].metrics.get("base", {})]
    fewest = sorted(
        (n for n in names if runs[0].sites[n].pairs), key=lambda n: runs[0].sites[n].pairs
    )[:2]
    for name in names:
        values = [_difference(run, name, "personal", "shared", metric) for run in runs]
        found.append(claim(f"{name}: personal minus shared", values, not_below_zero))
    for name in fewest:
        values = [_difference(run, name, "personal", "local", metric) for run in runs]
        pairs = runs[0].sites[name].pairs
        found.append(claim(f"{name} ({pairs} pairs): personal minus local", values, above_zero))
    for name in names:
        values = [_difference(run, name, "local", "centralised", metric) for run in runs]
        found.append(claim(f"{name}: local-only minus centralised", values, above_zero))
    return found


def with_unimodal(full: Sequence[Results], paired: Sequence[Results], metric: Metric) -> Claim:
    """Shared adapter with the unimodal sites minus without, on the sites that took part in both."""
    values = [
        level(run, "shared", metric, list(other.sites))
        - level(other, "shared", metric, list(other.sites))
        for run, other in zip(full, paired, strict=True)
    ]
    return claim("shared with unimodal sites minus without", values, above_zero)


def oracle_claim(runs: Sequence[Results]) -> Claim:
    """How close the best method comes to the oracle reader's R@5, on the closest site."""
    models: tuple[Model, ...] = ("base", "local", "shared", "personal", "centralised")
    closest = [
        max(
            level(run, model, "r5", [name]) / level(run, "oracle", "r5", [name])
            for name, site in run.sites.items()
            for model in models
            if "r5" in site.metrics.get("oracle", {})
        )
        for run in runs
    ]
    return claim("best method's R@5 over the oracle's, closest site", closest, _below_oracle)


def _below_oracle(low: float, high: float) -> Verdict:
    return "yes" if high < ORACLE_SHARE else "no" if low >= ORACLE_SHARE else "open"


def _difference(run: Results, site: str, model: Model, than: Model, metric: Metric) -> float:
    return level(run, model, metric, [site]) - level(run, than, metric, [site])


def jobs(job: JobConfig, seed: int) -> Mapping[str, JobConfig]:
    """Return the job with all sites, and with only those that have images and texts."""
    both = [
        site.name
        for site in phantom_sites(job.data.phantoms, job.data.phantom_sites)
        if site.kind in ("paired", "unpaired")
    ]
    evaluate = job.evaluate.model_copy(update={"gallery_queries": 0})
    alone = evaluate.model_copy(update={"baselines": []})
    personalize = job.personalize.model_copy(update={"method": "none"})
    return {
        "all": job.model_copy(update={"seed": seed, "evaluate": evaluate}),
        "without-unimodal": job.model_copy(
            update={
                "seed": seed,
                "evaluate": alone,
                "personalize": personalize,
                "data": job.data.model_copy(update={"sites": both}),
            }
        ),
    }


def run_study(job: JobConfig, seeds: Sequence[int], out: Path, console: Console) -> list[Claim]:
    """Run what is missing and return all claims."""
    results: dict[str, list[Results]] = {"all": [], "without-unimodal": []}
    for seed in seeds:
        for name, variant in jobs(job, seed).items():
            folder = out / f"{name}-{seed}"
            path = folder / "results.json"
            if path.exists():
                found = Results.model_validate_json(path.read_bytes())
            else:
                found = simulate(folder, variant, console)
            if found.job_sha256 != variant.digest() or found.status != "finished":
                raise RunDirectoryError(
                    f"{folder}: is a run of another job, or did not finish; choose another --out"
                )
            results[name].append(found)
    full = results["all"]
    metric = job.evaluate.main
    claims = [*gains(full, metric), with_unimodal(full, results["without-unimodal"], metric)]
    return [*claims, oracle_claim(full), *by_site(full, metric)]


def claims_table(claims: Sequence[Claim], title: str) -> Table:
    """Return the claims as a table."""
    table = Table("claim", "mean (95 % interval over seeds)", "holds", title=title)
    for each in claims:
        low, high = number(each.low, signed=False), number(each.high)
        table.add_row(each.text, f"{number(each.value)} ({low} to {high})", each.verdict)
    return table


def markdown(claims: Sequence[Claim], title: str, command: str) -> str:
    """Return the claims as a page whose first lines say how it was made."""
    lines = [f"# {title}", "", "```console", f"$ {command}", "```", "", EXPLAINED, ""]
    lines += ["| claim | mean (95 % interval over seeds) | holds |", "|---|---|---|"]
    lines += [
        f"| {c.text} | {number(c.value)} ({number(c.low)} to {number(c.high)}) | "
        f"{c.verdict if c.verdict == 'yes' else f'**{c.verdict}**'} |"
        for c in claims
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", type=Path, default=default_job())
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--markdown", type=Path, help="Also write the table as a page.")
    given = parser.parse_args()
    console, job = Console(width=110), load_job(given.job)
    claims = run_study(job, range(1, given.seeds + 1), given.out, console)
    title = f"{job.name}: {job.evaluate.main} over {given.seeds} seeds"
    console.print(claims_table(claims, title))
    tree = json.dumps([asdict(each) for each in claims], indent=1)
    write_atomic(given.out / "study.json", (tree + "\n").encode())
    if given.markdown:
        command = f"python -m simulations.study --seeds {given.seeds} --out {given.out}"
        write_atomic(given.markdown, markdown(claims, title, command).encode())


if __name__ == "__main__":
    main()
