"""How long a site will take, so that a large one is not dropped for being slow.

A fixed deadline that suits the smallest site drops the largest, whose records are the reason to
ask it. What a site needs is known better: from its own earlier rounds, else from its examples and
what the others need for theirs, else from how far it says it is. A site may take several times as
long as its forecast (``server.questions.Persistence``), and one that was left out for taking
longer may take ever longer in the rounds after that; so none is left out for good.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from server.records import Contribution, RoundRecord
from shared.adapter import Tower

SLOW = "slower-than-forecast"
DEADLINE = "deadline"

_ROUNDS = 5
"""So many of a site's latest rounds count: its machine and its records may change."""


@dataclass(frozen=True)
class Forecast:
    """How long a site's work in a round will take.

    Attributes:
        seconds: Of the work itself, without the messages' way.
        own: Whether the site's own earlier rounds say so.
    """

    seconds: float
    own: bool


def forecasts(
    records: Sequence[RoundRecord], examples: Mapping[str, Mapping[Tower, int]]
) -> dict[str, Forecast]:
    """Return the forecasts for sites; those of whom nothing is known are left out.

    Args:
        records: The committed rounds, in order.
        examples: Training records per tower of every site to forecast.
    """
    seen: dict[str, list[Contribution]] = {}
    for record in records:
        for each in record.contributions:
            seen.setdefault(each.site, []).append(each)
    slowest = max(_paces(seen.values()), default=None)
    found: dict[str, Forecast] = {}
    for site, counts in examples.items():
        own, size = _own(seen.get(site, ())), sum(counts.values())
        if own is not None:
            found[site] = Forecast(own, own=True)
        elif slowest is not None and size:
            found[site] = Forecast(slowest * size, own=False)
    return found


def _own(contributions: Iterable[Contribution]) -> float | None:
    """Return what a site's earlier rounds say, in seconds."""
    worked: list[float] = []
    in_vain = 0.0
    for each in contributions:
        if each.state == "in":
            worked.append(each.work_seconds)
            in_vain = 0.0
        elif each.reason in (SLOW, DEADLINE):
            in_vain = max(in_vain, each.seconds or 0.0)  # it would have taken longer than that
    if not worked and not in_vain:
        return None
    return max(median(worked[-_ROUNDS:] or [0.0]), in_vain)


def _paces(sites: Iterable[Sequence[Contribution]]) -> Iterable[float]:
    """Yield the seconds per training record of sites that contributed."""
    for contributions in sites:
        latest = [each for each in contributions if each.state == "in"][-_ROUNDS:]
        size = sum(latest[-1].examples.values()) if latest else 0
        if size:
            yield median(each.work_seconds for each in latest) / size
