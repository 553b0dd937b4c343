"""Reports: conventions at their rate, prompts about one finding, an oracle that is not perfect."""

from dataclasses import replace

import numpy as np
import pytest

from simulations.phantoms.grammar import fill, prompts, write_report
from simulations.phantoms.oracle import Reader, oracle_scores
from simulations.phantoms.retrieval import auroc, recall
from simulations.phantoms.sites import PhantomSite
from simulations.phantoms.studies import CHRONIC, FINDINGS, Finding, draw_studies
from simulations.phantoms.words import STYLES

RATES = dict.fromkeys(FINDINGS, 0.2)
SHAPE = np.full(6, 0.5)
WITH_CONVENTION = sorted(set(STYLES) - {"std"})


def reports(style, rate, count=400):
    studies = draw_studies(count, RATES, np.random.default_rng(1))
    rng = np.random.default_rng(2)
    return studies, [write_report(s.findings, style, rng, convention_rate=rate) for s in studies]


@pytest.mark.parametrize("style", sorted(STYLES))
def test_the_convention_is_used_at_its_rate(style):
    _, written = reports(style, 0.25)
    used = [statement.local for report in written for statement in report.statements]
    assert len(used) > 600
    assert np.mean(used) == pytest.approx(0.25, abs=0.05)  # about 3 standard errors


@pytest.mark.parametrize("style", WITH_CONVENTION)
def test_a_convention_changes_what_is_written(style):
    usual, local = STYLES[style].usual, STYLES[style].local
    finding = Finding(0, 0, 0.4, SHAPE)
    differ = [
        name
        for name in FINDINGS
        if {fill(t, finding, usual) for t in usual.say[name]}
        != {fill(t, finding, local) for t in local.say[name]}
    ]
    assert differ


def test_the_same_words_mean_different_things_at_different_sites():
    mild, severe = Finding(0, 0, 0.1, SHAPE), Finding(0, 0, 0.9, SHAPE)
    grades, icu, clinic = STYLES["grades"], STYLES["icu"], STYLES["clinic"]
    assert fill(grades.usual.say["edema"][0], mild, grades.usual) == "edema grade 1"
    assert fill(grades.local.say["edema"][0], severe, grades.local) == "pe grade 1"
    assert fill(icu.local.say["effusion"][0], mild, icu.local) == "sm r pe"
    opacity = fill(clinic.usual.say["consolidation"][0], mild, clinic.usual)
    assert opacity == fill(clinic.local.say["atelectasis"][0], mild, clinic.local)


@pytest.mark.parametrize("style", sorted(STYLES))
def test_a_report_asserts_what_is_true(style):
    studies, written = reports(style, 0.5)
    for study, report in zip(studies, written, strict=True):
        assert report.text
        for statement in report.statements:
            assert statement.present == (statement.finding in study.findings)
        assert report.text == STYLES[style].separator.join(s.phrase for s in report.statements) or (
            report.text in STYLES[style].normals
        )


def test_the_clinic_is_silent_about_chronic_findings_by_convention():
    def mentioned(rate):
        studies, written = reports("clinic", rate)
        chronic = sum(len(CHRONIC & set(study.findings)) for study in studies)
        said = sum(s.finding in CHRONIC for r in written for s in r.statements if s.present)
        return said / chronic

    assert mentioned(0.0) == pytest.approx(0.89, abs=0.04)  # 1 - .15 (.3 x 1.6 + .7 x .5)
    assert mentioned(1.0) == pytest.approx(0.44, abs=0.04)  # half of it


@pytest.mark.parametrize("style", sorted(STYLES))
def test_prompts_speak_of_their_finding_only(style):
    reader = Reader(style, 0.25)
    for name, sides in prompts(style, convention_rate=0.25).items():
        assert len(sides["positive"]) == len(sides["negative"]) == 8
        for text in sides["positive"]:
            assert (name, True) in reader.meanings(text)
        for text in sides["negative"]:
            assert text in STYLES[style].normals or reader.meanings(text) == [(name, False)]


def test_prompts_use_the_convention_at_its_rate():
    texts = prompts("grades", convention_rate=0.25)["edema"]["positive"]
    assert sum(text.startswith("pe") for text in texts) == 2
    assert not any(t.startswith("pe") for t in prompts("grades")["edema"]["positive"])


@pytest.mark.parametrize("style", sorted(STYLES))
def test_the_oracle_reads_well_but_not_perfectly(style):
    site = PhantomSite("site", style, 100, rates=RATES, convention_rate=0.25)
    scores = oracle_scores(site, 7)
    assert scores == oracle_scores(site, 7)
    assert 0.45 < scores["recall@1"] < 0.95
    assert scores["recall@1"] < scores["recall@5"] < 1.0
    assert scores["recall@5"] > 0.75


def test_the_oracle_depends_on_the_convention_rate_it_reads_with():
    report, severe = "effusion right grade 1", {"effusion": Finding(0, 0, 0.9, SHAPE)}
    likely = Reader("grades", 0.9).log_likelihood(report, severe)
    unlikely = Reader("grades", 0.1).log_likelihood(report, severe)
    assert likely - unlikely == pytest.approx(np.log(9), abs=1e-9)
    assert Reader("grades", 0.0).log_likelihood(report, severe) < -20


def test_a_larger_test_split_of_another_seed_gives_other_numbers():
    site = PhantomSite("site", "icu", 60, rates=RATES)
    assert oracle_scores(site, 1) != oracle_scores(replace(site, test_size=80), 1)


def test_recall_counts_texts_not_rows():
    # Pictures a, a, b; each finds its own text but the second "a", which prefers "b".
    similarity = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    scores = recall(similarity, ["a", "a", "b"])
    assert scores["i2t@1"] == pytest.approx((0.5 + 1.0) / 2)
    assert scores["t2i@1"] == pytest.approx(0.5)  # "b" finds the second "a" first
    assert scores["i2t@5"] == 1.0


def test_ties_count_by_chance():
    scores = recall(np.zeros((4, 4)), ["a", "b", "c", "d"])
    assert scores["recall@1"] == pytest.approx(0.25)
    assert auroc(np.zeros(6), np.array([0, 0, 0, 1, 1, 1])) == 0.5
