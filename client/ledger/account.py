"""The statement of what a ledger's entries add up to."""

import math
from collections.abc import Sequence
from typing import Final

from client.ledger.entries import Entry, Mode
from shared.privacy.accountant import accountant_version, epsilon
from shared.privacy.statement import (
    Claim,
    Statement,
    claimed,
    rounded_up,
    sampling_words,
    trust_of,
    unclaimed,
)

_MECHANISM: Final[dict[Mode, str]] = {
    "local": "DP-SGD at the site: clipped per-{unit} gradients, Gaussian noise in whole steps",
    "distributed": (
        "one sum of clipped per-{unit} gradients a step over all sites, each with a share of the "
        "Gaussian noise in whole steps, through secure aggregation"
    ),
}
"""By who adds the noise; ``unit`` is what is clipped as one."""


def statement(
    entries: Sequence[Entry],
    delta: float,
    *,
    patients: int = 0,
    audit: tuple[float, float] | None = None,
) -> Statement:
    """Return what may be said about everything in some entries of one population.

    Args:
        entries: All of the population's, or all of one run.
        delta: Probability with which the bound may fail.
        patients: How many there are, rounded as the site tells counts; 0 if not told.
        audit: Lower bound on epsilon that was measured, and its confidence.
    """
    releases = [entry.release for entry in entries]
    spends = [release.spend for release in releases if release.spend.steps]
    if not spends:
        return unclaimed("nothing was released under differential privacy")
    # Where releases differ, the statement names what promises least.
    mode: Mode = "distributed" if any(r.mode == "distributed" for r in releases) else "local"
    rates = sorted({spend.sampling for spend in spends})
    bound, confidence = audit or (None, None)
    sensitivity = max(release.sensitivity for release in releases)
    claim = Claim(
        mode=mode,
        mechanism=_MECHANISM[mode].format(unit="group" if sensitivity > 1 else "patient"),
        unit="patient",
        epsilon=epsilon(spends, delta),
        delta=delta,
        units=patients,
        clip=max(release.clip for release in releases),
        sensitivity=sensitivity,
        noise=tuple(sorted({spend.noise for spend in spends})),
        sampling="; and ".join(sampling_words(rate) for rate in rates),
        steps=sum(spend.steps for spend in spends),
        composed=_composed(entries),
        trust=_trust(entries, mode, delta),
        accountant=accountant_version(),
        audit_bound=bound,
        audit_confidence=confidence,
    )
    return claimed(claim)


def _trust(entries: Sequence[Entry], mode: Mode, delta: float) -> str:
    """Return whom the promise holds against; where it leans on others, what is left without."""
    if mode == "local":
        return trust_of(mode)
    releases = [entry.release for entry in entries if entry.release.spend.steps]
    # With the least noise that any of them would have by itself, which is quick to account.
    alone = [
        release.spend.model_copy(update={"noise": release.spend.noise / math.sqrt(release.shares)})
        for release in releases
    ]
    most = max(release.shares for release in releases)
    left = epsilon(alone, delta)
    without = f"epsilon {rounded_up(left)}" if left < math.inf else "nothing that is worth a number"
    return (
        f"{trust_of(mode)}; here {most} honest sites in every sum; should all of that fail, the "
        f"site's own share of the noise keeps {without}"
    )


def _composed(entries: Sequence[Entry]) -> str:
    releases = [entry.release for entry in entries]
    rounds = len({(r.study, r.run, r.round) for r in releases})
    runs = len({(r.study, r.run) for r in releases})
    studies = len({r.study for r in releases})
    return (
        f"{_counted(len(entries), 'release')}: {_counted(rounds, 'round')} of "
        f"{_counted(runs, 'run')} in {_counted(studies, 'study', 'studies')}"
    )


def _counted(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
