"""Who takes part in a step, as what, and how much they may change: decided without their records.

Each patient is drawn by a coin of its own, and comes into a group, where there are groups, by a
draw of its own. Numbers that sums are divided by follow from the number of patients to two digits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np

from client.batches import Batch, PreparedSplit
from client.proxy import ProxySet
from shared.config import PrivacyConfig
from shared.privacy.mechanism import drawn_groups, poisson_sample
from shared.privacy.noise import Draw, operating_system
from shared.privacy.objections import GROUP_SENSITIVITY

Patient = TypeVar("Patient")


@dataclass(frozen=True)
class PatientSteps:
    """How the steps of a round are taken.

    Attributes:
        clip: L2 norm that one patient's gradient is cut to, or a group's.
        noise: Standard deviation of the noise over what one patient can change; 0 adds none and
            promises nothing.
        rate: Probability with which a patient takes part in a step.
        expected: Patients, or groups, in a step that sums are divided by; not the site's exact
            number.
        public: The public pairs.
        groups: Into how many groups the patients of a step come, each of which is cut as a whole;
            0 cuts patients one by one. It must not follow from the site's exact number either.
    """

    clip: float
    noise: float
    rate: float
    expected: float
    public: ProxySet
    groups: int = 0

    @property
    def sensitivity(self) -> float:
        """What one patient can change of a step's sum, in clipping norms."""
        return GROUP_SENSITIVITY if self.groups else 1.0


def steps_of(
    config: PrivacyConfig, patients: int, clip: float, noise: float, public: ProxySet
) -> PatientSteps:
    """Return how a site with so many patients takes its steps.

    Args:
        config: What the job asks for.
        patients: In the site's training split.
        clip: L2 norm that a patient or a group is cut to.
        noise: Its standard deviation over what one patient can change.
        public: The public pairs.
    """
    expected, groups = expected_in_a_step(patients, config.sampling_rate), 0
    if config.objective == "grouped":
        groups = max(1, round(expected / config.group_size))
        expected = float(groups)
    return PatientSteps(clip, noise, config.sampling_rate, expected, public, groups)


def expected_in_a_step(patients: int, rate: float) -> float:
    """Return the patients that a step is taken to have, by their number to two digits."""
    step = int(10 ** max(len(str(patients)) - 2, 0))
    return max(1.0, rate * step * math.ceil(patients / step))


def patients_of(train: PreparedSplit) -> list[Batch]:
    """Return every patient's records as a batch of their own, in the order of their numbers."""
    everything, patients = train.everything, train.split.patients
    found: dict[int, tuple[list[int], list[int], list[int]]] = {}
    for kind, rows in enumerate((everything.pairs, everything.images, everything.texts)):
        for row in rows:
            found.setdefault(int(patients[row]), ([], [], []))[kind].append(int(row))
    return [Batch(*(np.array(rows, np.intp) for rows in found[who])) for who in sorted(found)]


def units_of_a_step(
    patients: Sequence[Patient], steps: PatientSteps, draw: Draw = operating_system
) -> list[Patient]:
    """Draw the patients of a step; return their records, by patient or by group.

    Only records can be grouped; audits, whose patients are gradients, have no groups.
    """
    drawn = [patients[number] for number in poisson_sample(len(patients), steps.rate, draw)]
    if not steps.groups:
        return drawn
    groups = drawn_groups(len(drawn), steps.groups, draw)
    records = cast("list[Batch]", drawn)
    units = [merged([records[number] for number in group]) for group in groups]
    return cast("list[Patient]", units)


def merged(batches: Sequence[Batch]) -> Batch:
    """Return the records of all of some batches as one."""
    return Batch(
        np.concatenate([batch.pairs for batch in batches]),
        np.concatenate([batch.images for batch in batches]),
        np.concatenate([batch.texts for batch in batches]),
    )
