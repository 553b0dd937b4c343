"""Canaries put into the sums that a site really releases: is there as much noise as is claimed?

The strongest sound variant for such sums. A canary is a patient whose gradient lies along one
coordinate of its own and is far longer than the clipping norm, so that a clipping that is missing
shows as well. The auditor sees the noised sum of every step (whoever gets the adapter sees less)
and holds against each canary the likelihood ratio of what it sees at that coordinate, under
Gaussian noise of the claimed size and Poisson sampling at the claimed rate. No canary's coordinate
has another's in it. Canaries go through ``client.private_training.noised_sums``, the site's code;
where all sites of a sum add the noise together, through ``noised_share``, with the shares of as
few sites as are to be enough.

What of the site's own patients' gradients is in the sums is noise to the auditor; it can make the
bound smaller, never wrong.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.batches import Batch
from client.patient_steps import PatientSteps
from client.private_training import Gradients, Patient, noised_share, noised_sums
from shared.privacy.accountant import Spend, epsilon
from shared.privacy.mechanism import IN_SINGLE_PRECISION, distributed_grid
from shared.privacy.noise import Draw, operating_system
from simulations.audit.one_run import CONFIDENCE, OneRunBound, bound_of

CANARIES = 1000
LENGTH = 10.0
"""How long a canary's gradient is, in clipping norms."""

_FAILURE = 1e-4
"""The term of the proof in delta is kept this small where the auditor may choose delta."""

Numbers = NDArray[np.float64]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Trial:
    """One bound against the epsilon that it is held to.

    Attributes:
        claimed: Epsilon of what was audited, at the bound's delta, by the accountant.
        found: What the audit shows.
    """

    claimed: float
    found: OneRunBound

    @property
    def refuted(self) -> bool:
        """Whether the mechanism is not what is claimed."""
        return self.found.bound > self.claimed


@dataclass(frozen=True)
class _Canary:
    place: int


class _Planted:
    """Gradients of canaries, and of the site's own patients if there are any."""

    def __init__(self, places: int, length: float, own: Gradients[Batch] | None) -> None:
        self.values: Tensor = torch.zeros(places) if own is None else own.values
        self._length, self._own = length, own

    def of(self, patients: Sequence["Batch | _Canary"]) -> Iterator[NDArray[np.float32]]:
        """Yield the gradient of every patient, the site's own ones first."""
        if self._own is not None:
            yield from self._own.of([each for each in patients if isinstance(each, Batch)])
        for each in patients:
            if isinstance(each, _Canary):
                gradient = np.zeros(len(self.values), np.float32)
                gradient[each.place] = self._length
                yield gradient


@dataclass(frozen=True)
class Site:
    """The site's own patients, for the sums to be those of a real step.

    Attributes:
        gradients: Of its patients.
        patients: All of them.
    """

    gradients: Gradients[Batch]
    patients: Sequence[Batch]


def sums_of_shares(
    gradients: Gradients[Patient],
    patients: Sequence[Patient],
    steps: PatientSteps,
    count: int,
    shares: int,
    draw: Draw = operating_system,
) -> Iterator[Numbers]:
    """Yield what may be known of each step where sites add noise together, (d,).

    The site's own sum with its share of the noise, and those of the others, who have no patient
    here: what their patients say would be more to see through, and is not relied on.

    Args:
        gradients: As for ``noised_sums``.
        patients: As there.
        steps: As there.
        count: As there.
        shares: So many sites add noise, the site among them.
        draw: As there.
    """
    sensitivity = steps.sensitivity * steps.clip * IN_SINGLE_PRECISION
    entries = len(gradients.values)
    grid = distributed_grid(entries, sensitivity, steps.noise, parties=shares, missing=0)
    for _ in range(count):
        seen = noised_share(gradients, patients, steps, grid, draw)
        for _ in range(shares - 1):
            seen += noised_share(gradients, (), steps, grid, draw)
        yield np.asarray((seen + 0.5 * shares) / grid.per_unit, np.float64)


def audit_steps(  # noqa: PLR0913 - all that decides an audit
    steps: PatientSteps,
    count: int,
    delta: float,
    *,
    site: Site | None = None,
    shares: int = 1,
    canaries: int = CANARIES,
    confidence: float = CONFIDENCE,
    draw: Draw = operating_system,
    progress: Progress | None = None,
) -> list[Trial]:
    """Return what some steps show, at the claim's delta and at one that the auditor chose.

    With many canaries the proof loses much to delta. The mechanism promises something at every
    delta, so a bound at a smaller one is held to the larger epsilon there. Each has half of what
    the confidence leaves open.

    Args:
        steps: Clipping, noise and sampling, as they are claimed; noise above 0.
        count: How many steps are composed.
        delta: Of the claim.
        site: Whose sums they are; sums of canaries alone if not given.
        shares: So many sites add the noise together; 1 for the site's own.
        canaries: How many, at most one for each number in a gradient.
        confidence: Of both bounds together.
        draw: Where the random bytes of the mechanism and of the coins come from.
        progress: Told steps done and to do.
    """
    entries = canaries if site is None else len(site.gradients.values)
    canaries = min(canaries, entries)
    places = np.argsort(np.frombuffer(draw(8 * entries), np.uint64), kind="stable")[:canaries]
    included = (np.frombuffer(draw(canaries), np.uint8) & 1).astype(bool)
    gradients = _Planted(canaries, LENGTH * steps.clip, None if site is None else site.gradients)
    patients: list[Batch | _Canary] = [] if site is None else list(site.patients)
    patients += [_Canary(int(place)) for place in places[included]]
    scores = np.zeros(canaries)
    if shares > 1:
        sums = sums_of_shares(gradients, patients, steps, count, shares, draw)
    else:
        sums = noised_sums(gradients, patients, steps, count, draw)
    for number, total in enumerate(sums):
        scores += _evidence(total[places] / steps.clip, steps)
        if progress is not None:
            progress(number + 1, count)
    half = 1 - (1 - confidence) / 2
    spend = Spend(sampling=steps.rate, noise=steps.noise, steps=count, entries=entries)
    return [
        Trial(epsilon([spend], each), bound_of(scores, included, each, half))
        for each in sorted({delta, min(delta, _FAILURE / canaries)}, reverse=True)
    ]


def one_step(steps: PatientSteps) -> PatientSteps:
    """Return the steps with everybody in each: what one of them alone is held to.

    Over many steps, each with few patients, one run shows much less than is true. A noise that is
    too small shows best in a single step that everybody is in.
    """
    return replace(steps, rate=1.0)


def _evidence(seen: Numbers, steps: PatientSteps) -> Numbers:
    """Return the log likelihood ratio of a step for each canary being in: present by chance."""
    drawn = (seen - 0.5) / steps.noise**2
    if steps.rate == 1:
        return drawn
    mixed: Numbers = np.logaddexp(np.log1p(-steps.rate), np.log(steps.rate) + drawn)
    return mixed
