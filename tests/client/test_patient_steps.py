"""Who takes part in a step, and in which group: one patient more changes one group."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.batches import Batch
from client.patient_steps import PatientSteps, steps_of, units_of_a_step
from shared.config import PrivacyConfig
from shared.privacy.mechanism import drawn_groups
from shared.privacy.noise import seeded

NOBODY = np.zeros(0, np.intp)


def patients(count):
    """Patients with a record each, whose row is their number."""
    return [Batch(np.array([who]), NOBODY, NOBODY) for who in range(count)]


def groups_of(count, groups, seed):
    return [frozenset(group.tolist()) for group in drawn_groups(count, groups, seeded(seed))]


@settings(deadline=None, max_examples=200)
@given(count=st.integers(0, 40), groups=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_one_patient_more_joins_one_group_and_moves_nobody(count, groups, seed):
    before, after = groups_of(count, groups, seed), groups_of(count + 1, groups, seed)
    assert sorted(who for group in after for who in group) == list(range(count + 1))
    without = {group - {count} for group in after} - {frozenset()}
    assert without == set(before)
    assert len(set(after) - set(before)) == 1


def test_groups_in_the_order_of_the_draw_would_all_change():
    def in_order(names, size=3):
        return {frozenset(names[start : start + size]) for start in range(0, len(names), size)}

    before, after = in_order("bcdefghijklm"), in_order("abcdefghijklm")
    assert len(after - before) == 5


def test_every_group_is_as_likely_as_another():
    sizes = [len(group) for _ in range(300) for group in drawn_groups(80, 8)]
    # Binomial around ten: groups of a fixed size would have no variance at all.
    assert np.mean(sizes) == pytest.approx(10, rel=0.03)
    assert np.var(sizes) == pytest.approx(80 / 8 * 7 / 8, rel=0.2)


def test_a_steps_units_are_groups_of_those_who_were_drawn():
    steps = PatientSteps(1.0, 1.0, 0.5, 4.0, None, groups=4)  # type: ignore[arg-type]
    found = [units_of_a_step(patients(40), steps) for _ in range(200)]
    rows = [np.concatenate([unit.pairs for unit in units]) for units in found if units]
    assert all(len(set(drawn.tolist())) == len(drawn) for drawn in rows)
    assert np.mean([len(drawn) for drawn in rows]) == pytest.approx(20, rel=0.06)
    assert max(len(units) for units in found) == 4


def test_groups_are_counted_from_the_expected_patients_and_double_the_sensitivity():
    grouped = PrivacyConfig(objective="grouped", sampling_rate=0.2, group_size=8)
    steps = steps_of(grouped, 204, 0.5, 1.5, None)  # type: ignore[arg-type]
    assert (steps.groups, steps.expected, steps.sensitivity) == (5, 5.0, 2.0)  # 0.2 * 210 / 8
    alone = steps_of(PrivacyConfig(sampling_rate=0.2), 204, 0.5, 1.5, None)  # type: ignore[arg-type]
    assert (alone.groups, alone.expected, alone.sensitivity) == (0, pytest.approx(42.0), 1.0)
    few = steps_of(grouped, 10, 0.5, 1.5, None)  # type: ignore[arg-type]
    assert few.groups == 1
