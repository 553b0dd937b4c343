"""Pictures: every finding shows where it should, and the scanner does what it says."""

import numpy as np
import pytest

from simulations.phantoms.render import render, render_all
from simulations.phantoms.scanner import Scanner
from simulations.phantoms.studies import FINDINGS, SIDED, ZONED, Finding, Study, draw_studies

CLEAN = Scanner(noise=(0.0, 0.0), blur=(0, 0), collimation=0.0, marker=0.0, portable=0.0)
ANATOMY = np.zeros(12)
MIDDLE = np.full(6, 0.5)


def expose(findings, scanner=CLEAN):
    study = Study("p", ANATOMY, findings)
    return render([study], scanner, np.random.default_rng(4))[0].astype(float)


def change(name, side=0, zone=1, severity=0.8):
    """Absolute difference that one finding makes to the same film."""
    return np.abs(expose({name: Finding(side, zone, severity, MIDDLE)}) - expose({}))


def centre_of_mass(weights):
    rows, columns = np.indices(weights.shape)
    return (weights * rows).sum() / weights.sum(), (weights * columns).sum() / weights.sum()


@pytest.mark.parametrize("name", FINDINGS)
def test_every_finding_changes_the_picture_and_more_so_when_severe(name):
    mild, severe = change(name, severity=0.1), change(name, severity=0.9)
    assert (severe > 8).sum() >= 10  # at least ten pixels by more than 3 % of the range
    assert severe.sum() >= mild.sum()


@pytest.mark.parametrize("name", sorted(SIDED))
def test_a_sided_finding_shows_on_its_side(name):
    for side, columns in ((0, slice(0, 48)), (1, slice(48, 96))):
        difference = change(name, side=side)
        if name == "catheter":  # from the jugular vein of its side to the vena cava, always right
            difference = difference[:24]
        assert difference[:, columns].sum() > 0.7 * difference.sum()  # patient's left: film's right


@pytest.mark.parametrize("name", sorted(ZONED))
def test_zones_run_from_top_to_bottom(name):
    heights = [centre_of_mass(change(name, zone=zone))[0] for zone in (0, 1, 2)]
    assert heights[0] + 6 < heights[1] < heights[2] - 6


def test_a_pacemaker_sits_on_the_patients_left_and_above_the_middle():
    row, column = centre_of_mass(change("pacemaker") > 60)
    assert row < 48 < column


def test_a_mirrored_film_is_the_film_left_right_swapped():
    swapped = Scanner(**{**vars(CLEAN), "mirrored": True})
    finding = {"effusion": Finding(0, 1, 0.9, MIDDLE)}
    np.testing.assert_array_equal(expose(finding, swapped), expose(finding)[:, ::-1])


def test_a_coarse_detector_loses_detail():
    coarse = Scanner(**{**vars(CLEAN), "native": 32})
    assert np.abs(np.diff(expose({}, coarse))).mean() < 0.8 * np.abs(np.diff(expose({}))).mean()


def test_pictures_depend_on_the_seed_only():
    studies = draw_studies(70, {"nodule": 0.5}, np.random.default_rng(0))
    first = render_all(studies, Scanner(), [3])
    assert first.shape == (70, 96, 96)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, render_all(studies, Scanner(), [3]))
    assert (first != render_all(studies, Scanner(), [4])).mean() > 0.5


def test_pictures_do_not_depend_on_how_many_are_painted_at_once(monkeypatch):
    studies = draw_studies(20, dict.fromkeys(FINDINGS, 0.3), np.random.default_rng(0))
    scanner = Scanner(blur=(1, 2), collimation=0.5, sharpen=1.0, grid=0.05, portable=0.5)
    together = render_all(studies, scanner, [3])
    monkeypatch.setattr("simulations.phantoms.render._AT_ONCE", 1)
    np.testing.assert_array_equal(together, render_all(studies, scanner, [3]))


def test_chronic_findings_and_anatomy_persist_within_a_patient():
    studies = draw_studies(600, {"nodule": 0.4, "edema": 0.4}, np.random.default_rng(1))
    visits = {}
    for study in studies:
        visits.setdefault(study.patient, []).append(study)
    repeated = [group for group in visits.values() if len(group) > 1]
    assert len(repeated) > 50
    assert max(len(group) for group in visits.values()) == 4
    for group in repeated:
        assert len({id(study.findings.get("nodule")) for study in group}) == 1
    assert any(len({"edema" in study.findings for study in group}) == 2 for group in repeated)
    within = [np.std(np.stack([s.anatomy for s in group]), axis=0).mean() for group in repeated]
    assert np.mean(within) < 0.3  # against 1 between patients
