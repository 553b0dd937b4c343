"""One step of differentially private training: sample patients, clip each, add noise to the sum.

DP-SGD (Abadi et al., 2016, https://arxiv.org/abs/1607.00133) with what its accounting takes for
granted done for real: every patient is drawn by an independent coin, so that a batch may be empty
and its size is as random as its members; and the mean divides by the expected number of patients,
never by the number that was drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.adapter import Adapter
from shared.errors import TrainingError
from shared.fixedpoint import LARGEST
from shared.privacy.clipping import clip
from shared.privacy.noise import (
    BITS,
    LEAST_BITS,
    Draw,
    gaussian_steps,
    operating_system,
    random_words,
)

IN_SINGLE_PRECISION = 1 + 2.0**-10
"""Gradients are single precision, and their last bits depend on who else is computed beside them.
The noise is for a norm that is longer by so much: a thousand patients of whom each moves by 2**-20
of the norm."""

_WORDS = 2**64
_EXACT = 2**52
"""Whole numbers up to it are exact in double precision."""
_NOISE_ROOM = 15
"""Standard deviations of noise that fixed point keeps room for; beyond lies less than 2**-160."""
_LEAST_ROOM = 4
"""A site's sum may reach so many times the clipping norm in one number before it is cut off."""


def poisson_sample(patients: int, rate: float, draw: Draw = operating_system) -> NDArray[np.intp]:
    """Draw every patient with the same probability, independently.

    Args:
        patients: How many there are.
        rate: The probability; what is drawn has this one or up to 2**-64 less.
        draw: Where random bytes come from.

    Returns:
        Indices of those drawn, in ascending order; often none where few are expected.

    Raises:
        ValueError: If the rate is no probability.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"sampling rate {rate}; expected more than 0 and at most 1")
    if rate == 1:
        return np.arange(patients)
    limit = np.uint64(int(rate * _WORDS))  # a float times a power of two: exact
    return np.flatnonzero(random_words(patients, draw) < limit)


def drawn_groups(
    patients: int, groups: int, draw: Draw = operating_system
) -> list[NDArray[np.intp]]:
    """Put every patient into one of some groups by a draw of its own.

    With one patient more all others stay where they are, so that one group changes. Groups of
    equal size, or by the patients' order, would not have that.

    Args:
        patients: How many there are.
        groups: Into how many groups they come.
        draw: Where random bytes come from.

    Returns:
        The patients of every group that has any.
    """
    own = random_words(patients, draw) % np.uint64(groups)
    return [np.flatnonzero(own == number) for number in np.unique(own)]


def clipped_sum(
    changes: Sequence[Adapter], norm: float
) -> tuple[dict[str, NDArray[np.float64]], int]:
    """Add up what patients' records say, each patient's cut to the same norm.

    A patient with a number that is not finite is left out. That is a choice by the patient's own
    records alone, so the sum still changes by at most ``norm`` with one patient.

    Args:
        changes: Of one patient each, the sum over the patient's records, by factor.
        norm: The largest L2 norm of one patient over all factors together.

    Returns:
        The sum in double precision, which must not leave without noise, and how many patients
        were left out, which must not leave at all.
    """
    total: dict[str, NDArray[np.float64]] = {}
    left_out = 0
    for change in changes:
        try:
            short, _ = clip(change, norm)
        except TrainingError:
            left_out += 1
            continue
        for name, values in short.items():
            if name not in total:
                total[name] = np.zeros(values.shape)
            total[name] += values
    return total, left_out


@dataclass(frozen=True)
class Grid:
    """Whole steps on which sums are rounded and noise is added.

    Attributes:
        bits: The noise of one party has a standard deviation of ``2**bits`` steps.
        per_unit: Steps per unit of the sum.
        limit: Largest magnitude of a party's sum, in steps; what is beyond is cut off, which can
            only bring two sums closer to one another.
    """

    bits: int
    per_unit: float
    limit: int


def local_grid(entries: int, sensitivity: float, noise: float) -> Grid:
    """Return the grid for a party that adds all of the noise itself.

    Rounding moves a sum by at most half a step in each entry, so that two sums which differed by
    ``sensitivity`` differ by ``sensitivity * per_unit + sqrt(entries)`` steps at most. A second
    root is for sums in double precision, which depend on their order in the last bits: it covers
    tens of thousands of patients in a step. The noise is ``noise`` times all that. Sums in single
    precision are not covered; whoever adds so must say a larger ``sensitivity``.

    Args:
        entries: Numbers in the sum.
        sensitivity: Largest L2 norm by which one patient changes the sum.
        noise: The noise multiplier.

    Raises:
        ValueError: If there is no such grid, as for noise 0.
    """
    return Grid(BITS, _per_unit(2.0**BITS, entries, sensitivity, noise), _EXACT)


def distributed_grid(
    entries: int, sensitivity: float, noise: float, *, parties: int, missing: int
) -> Grid:
    """Return the grid for parties that each add a share of the noise to a masked sum mod 2**32.

    The shares of all but ``missing`` parties are as much noise as ``noise`` asks for. Sums of
    Gaussians in whole steps are Gaussian themselves to within ``exp(-pi**2 * 4**bits)`` (Kairouz
    et al., 2021, https://arxiv.org/abs/2102.06387), which on a grid as fine as this one is nothing
    at all; so the sum is accounted as one Gaussian, without the looser bounds that coarse Skellam
    noise (Agarwal et al., 2021, https://arxiv.org/abs/2110.04995) would need.

    Args:
        entries: Numbers in the sum.
        sensitivity: Largest L2 norm by which one patient changes the sum.
        noise: The noise multiplier of the whole sum.
        parties: Sites that begin a step.
        missing: The most of them that may drop out or be curious about the others: a party can
            take its own share away.

    Raises:
        ValueError: If nobody's noise is left, or the noise does not fit into 32 bits.
    """
    if not 0 <= missing < parties:
        raise ValueError(
            f"{parties} sites of which {missing} may drop out or be curious leave no noise; expect "
            "fewer to drop out, or let each site add all of the noise itself"
        )
    for bits in range(BITS, LEAST_BITS - 1, -1):
        share = 2.0**bits
        per_unit = _per_unit(share * math.sqrt(parties - missing), entries, sensitivity, noise)
        limit = _limit(bits, parties)
        if limit >= _LEAST_ROOM * sensitivity * per_unit:
            return Grid(bits, per_unit, limit)
    raise _too_wide(noise, parties)


def grid_of_scale(
    per_unit: float, entries: int, sensitivity: float, noise: float, *, parties: int, shares: int
) -> Grid:
    """Return the grid of a party that is told how many steps make a unit.

    As ``distributed_grid``, but nobody is trusted with the scale: the noise is what this scale
    needs, rounded up to the next power of two.

    Args:
        per_unit: Steps per unit of the sum.
        entries: Numbers in the sum.
        sensitivity: Largest L2 norm by which one patient changes the sum.
        noise: The noise multiplier of the whole sum.
        parties: Sites that begin a step.
        shares: So many sites' noise is to be enough.

    Raises:
        ValueError: If so much noise does not fit into 32 bits, or is too coarse.
    """
    needed = noise * (sensitivity * per_unit + 2 * math.sqrt(entries)) / math.sqrt(shares)
    for bits in range(LEAST_BITS, BITS + 1):
        if 2.0**bits >= needed:
            limit = _limit(bits, parties)
            if limit < _LEAST_ROOM * sensitivity * per_unit:
                break
            return Grid(bits, per_unit, limit)
    raise _too_wide(noise, parties)


def _limit(bits: int, parties: int) -> int:
    """Return how far a party's sum may go so that the sum of all, with its noise, fits 32 bits."""
    noise = math.ceil(_NOISE_ROOM * 2.0**bits * math.sqrt(parties))
    return (LARGEST - noise - parties) // parties


def _too_wide(noise: float, parties: int) -> ValueError:
    return ValueError(
        f"noise {noise:g} times the clipping norm over {parties} sites does not fit into sums of "
        "32 bits; expected more noise or fewer sites"
    )


def noised_steps(
    total: NDArray[np.float64], grid: Grid, draw: Draw = operating_system
) -> NDArray[np.int64]:
    """Return a sum with a party's noise, in steps.

    Args:
        total: (n,) sum of clipped changes.
        grid: Says how fine, and how much noise.
        draw: Where random bytes come from; any other than the operating system's has no privacy.

    Returns:
        (n,) int64. This may leave.

    Raises:
        TrainingError: ``change-not-finite`` if the sum is not finite; clipping leaves none such.
    """
    if not np.isfinite(total).all():
        raise TrainingError(
            "change-not-finite", "a sum of clipped changes is not finite; nothing is sent"
        )
    steps = np.clip(np.rint(total * grid.per_unit), -grid.limit, grid.limit).astype(np.int64)
    return steps + gaussian_steps(steps.size, grid.bits, draw)


def noised(
    total: NDArray[np.float64], grid: Grid, draw: Draw = operating_system
) -> NDArray[np.float64]:
    """Return a sum with a party's noise, in the sum's own unit; see ``noised_steps``."""
    return np.asarray((noised_steps(total, grid, draw) + 0.5) / grid.per_unit, np.float64)


def _per_unit(deviation: float, entries: int, sensitivity: float, noise: float) -> float:
    """Solve ``deviation = noise * (sensitivity * per_unit + 2 * sqrt(entries))``."""
    if not (0 < noise < math.inf and 0 < sensitivity < math.inf):
        raise ValueError(
            f"noise {noise:g} and sensitivity {sensitivity:g}; expected both more than 0: clipping "
            "without noise, or noise without clipping, is no privacy"
        )
    rounding = 2 * math.sqrt(entries)
    steps = deviation / noise - rounding
    if steps <= rounding:
        raise ValueError(
            f"noise {noise:g} over {entries} numbers is too much for a grid of {deviation:g} steps"
        )
    return steps / sensitivity
