"""Membership inference end to end: it has power where nothing protects, and none through noise."""

import numpy as np
import pytest

from client.data.records import SiteData
from shared.config import parse_job
from shared.errors import InputError
from simulations.audit.attacks import Extent, attack, infer
from simulations.audit.canaries import draw_pairs, plant
from simulations.audit.rehearsal import set_up, without_privacy


def auc_by_score(found):
    return {each.score: each.auc for each in found}


ALONE = {"sites": ["a"]}
"""The site with the canaries trains alone: nobody's mean thins out what it memorised."""


def test_without_protection_members_are_told_from_others(stage_of, make_job, planted_of, quiet):
    job = make_job(data=ALONE)
    stage = stage_of(job)
    found, whole = infer(stage, planted_of(160, stage.encoder), "as the job says", job, quiet)
    assert min(auc_by_score(found).values()) > 0.9
    assert all(each.hits > 0.2 for each in found)
    assert not whole.spends


@pytest.mark.slow
def test_and_so_they_are_in_the_mean_of_three(stage_of, make_job, planted_of, quiet):
    job = make_job(train={"steps": 80})
    stage = stage_of(job)
    found, _ = infer(stage, planted_of(160, stage.encoder), "as the job says", job, quiet)
    assert min(auc_by_score(found).values()) > 0.7


@pytest.mark.parametrize(
    "sites", [ALONE, pytest.param({"sites": []}, marks=pytest.mark.slow)], ids=["alone", "mean"]
)
def test_with_epsilon_8_they_are_not(stage_of, make_job, planted_of, quiet, sites):
    job = make_job(epsilon=8.0, data=sites)
    stage = stage_of(job)
    # Many of them, so that the AUC of an attack that finds nothing is near 0.5.
    planted = planted_of(1600, stage.encoder)
    found, whole = infer(stage, planted, "as the job says", stage.job, quiet)
    assert max(auc_by_score(found).values()) < 0.55
    assert sum(spend.steps for spend in whole.spends) == 36
    assert all(each.hits < 0.04 for each in found)


def test_a_job_that_hides_whole_sites_has_nothing_that_an_audit_measures(tmp_path, quiet):
    asked = {"differential_privacy": True, "mode": "site-level", "unit": "site", "epsilon": 8.0}
    job = parse_job({"name": "sites", "privacy": asked})
    extent = Extent(None, canaries=24, gradients=200, records=3, confidence=0.99)
    with pytest.raises(InputError, match=r"patients are promised nothing.*mode = 'local'"):
        attack(tmp_path / "audit", job, extent, None, False, quiet)
    assert not (tmp_path / "audit").exists()


def test_the_same_job_without_privacy_is_a_job(make_job):
    plain = without_privacy(make_job(epsilon=8.0))
    assert not plain.privacy.differential_privacy
    assert not plain.proxy.active
    assert plain.train == make_job(epsilon=8.0).train


def test_canaries_are_patients_of_their_own(stage_of, make_job):
    stage = stage_of(make_job())
    before = stage.data["a"]
    canaries = draw_pairs(12, 3, stage.encoder, apart=True)
    after = plant(before, canaries)
    new = after.splits["train"].patients[-12:]
    assert len(set(new)) == 12
    old = np.concatenate([split.patients for split in before.splits.values()])
    assert not set(new) & set(old)
    assert [after.people[number] for number in new] == [f"canary-{n}" for n in range(12)]
    assert len(after.splits["train"]) == len(before.splits["train"]) + 12
    assert before.splits["train"].texts == after.splits["train"].texts[:-12]
    assert not after.splits["train"].labelled[-12:].any()


def test_canaries_do_not_match_their_reports(stage_of, make_job):
    encoder = stage_of(make_job()).encoder
    right, apart = draw_pairs(12, 3, encoder), draw_pairs(12, 3, encoder, apart=True)
    assert np.array_equal(right.pixels, apart.pixels)
    assert apart.texts == (*right.texts[1:], right.texts[0])


def test_a_site_without_pairs_gets_no_canaries(site_of, stage_of, make_job):
    encoder = stage_of(make_job()).encoder
    images: SiteData = site_of("i", "image")
    with pytest.raises(InputError, match="no pictures with reports"):
        plant(images, draw_pairs(4, 1, encoder))


def test_a_site_that_is_not_there_is_an_error(tmp_path, make_job):
    with pytest.raises(InputError, match="expected one of a, b, c"):
        set_up(tmp_path / "audit", make_job(), "nowhere")


def test_a_job_without_a_shared_adapter_cannot_be_audited(tmp_path, make_job, folders):
    tree = make_job().model_dump(mode="json", exclude={"personalize"})
    tree["aggregate"] = {"rule": "creamfl"}
    tree["proxy"] = {"folder": str(folders / "public")}
    with pytest.raises(InputError, match="no adapter is shared"):
        set_up(tmp_path / "audit", type(make_job()).model_validate(tree), None)
