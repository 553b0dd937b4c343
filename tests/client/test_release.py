"""The only door out: what it lets through, in which form, and the line it leaves behind."""

import ast
import errno
import hashlib
import json
import os
import re
import stat
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.audit import AuditLog, on_disk_together
from client.audit_check import verify
from client.disclosure import disclosed, disclosed_count, rounded
from client.policy import SitePolicy, simulation_policy
from client.release import (
    REFUSALS,
    Answer,
    change_of,
    encode_update,
    release_again,
    release_description,
    release_done,
    release_evaluation,
    release_needs,
    release_refusal,
    release_stage,
    release_update,
)
from shared.adapter import AdapterLayout, LayerShape, factor_name
from shared.config import parse_job
from shared.errors import (
    AdapterMismatchError,
    InputError,
    RefusedError,
    StorageError,
    TrainingError,
)
from shared.messages import Description, Request, TrainSummary, decode_reply
from shared.results import METRICS, CalibrationBin, Estimate, FindingScore, SiteEvaluation

LAYOUT = AdapterLayout((LayerShape("v", "image", 4, 3), LayerShape("t", "text", 2, 5)), 2, 2.0)
IMAGE_B, TEXT_B = factor_name("v", "B"), factor_name("t", "B")
OPEN = simulation_policy()
STRICT = SitePolicy(minimum_count=20, metrics=METRICS)
SUMMARY = TrainSummary(loss=1.23456, validation_loss=2.34567, gradient_norms={"image": 0.98765})


@pytest.fixture
def audit(tmp_path):
    return AuditLog(tmp_path / "audit.jsonl")


SITE_LEVEL = {"differential_privacy": True, "mode": "site-level", "unit": "site", "epsilon": 8.0}


def answer(clip_norm=100.0, weights=None, scale=2.0**10, *, secure=False, privacy=None, **more):
    asked = {"secure_aggregation": True} if secure else privacy or {}
    tables = {"aggregate": {"clip_norm": clip_norm}, "privacy": asked}
    job = parse_job({"name": "job", **tables})
    request = Request(
        kind="train",
        run="run",
        round=3,
        attempt=2,
        site="north",
        base_sha256="b" * 64,
        job_sha256=job.digest(),
        job=job,
        factors=("B",),
        weights=weights if weights is not None else {"image": 3, "text": 2},
        scale=scale,
    )
    return Answer("north", request, **more)


def change(image=0.5, text=-0.25):
    return {
        IMAGE_B: np.full((4, 2), image, np.float32),
        TEXT_B: np.full((2, 2), text, np.float32),
    }


def released(said, change, audit, policy=OPEN, summary=SUMMARY):
    update = encode_update(said, change, LAYOUT, summary, policy)
    return release_update(said, update, audit)


def release(change, audit, policy=OPEN, summary=SUMMARY, **kwargs):
    return decode_reply(released(answer(**kwargs), change, audit, policy, summary))


def test_a_change_leaves_weighted_in_fixed_point(audit):
    reply, tensors = release(change(), audit)
    # 0.5 * 3 * 1024 and -0.25 * 2 * 1024, the second in two's complement
    assert (tensors[IMAGE_B] == 1536).all()
    assert (tensors[TEXT_B] == 2**32 - 512).all()
    assert reply.status == "ok"
    assert reply.weights == {"image": 3, "text": 2}
    assert reply.scale == 1024
    assert (reply.run, reply.round, reply.attempt, reply.site) == ("run", 3, 2, "north")
    assert reply.summary == SUMMARY


def test_the_change_is_what_was_trained_minus_what_was_received():
    rng = np.random.default_rng(0)
    start = {n: rng.standard_normal(LAYOUT.shapes[n]).astype("f4") for n in LAYOUT.names()}
    for names in (LAYOUT.names(), LAYOUT.names(["B"]), [TEXT_B], []):
        for _ in range(2):  # two sites that received the same
            trained = {
                n: start[n] + rng.standard_normal(LAYOUT.shapes[n]).astype("f4") for n in names
            }
            found = change_of(trained, start)
            assert set(found) == set(names)
            for name, array in found.items():
                assert array.tobytes() == (trained[name] - start[name]).tobytes()
                assert array.shape == LAYOUT.shapes[name]


def test_a_change_side_by_side_leaves_with_the_same_bits(tmp_path):
    start = {name: np.zeros(LAYOUT.shapes[name], np.float32) for name in LAYOUT.names()}
    for number, weights in enumerate(({"image": 3, "text": 2}, {"text": 1}, {"image": 4})):
        for clip_norm in (100.0, 0.5):
            folder = tmp_path / f"{number} {clip_norm}"
            bodies = [
                released(
                    answer(clip_norm=clip_norm, weights=weights), each,
                    AuditLog(folder / sort / "audit.jsonl"),
                )
                for sort, each in (("one", change()), ("other", change_of(change(), start)))
            ]  # fmt: skip
            assert bodies[0] == bodies[1]


def test_in_secure_aggregation_nothing_leaves_but_the_message_and_never_the_change(audit):
    said = answer(secure=True)
    with pytest.raises(RefusedError) as caught:
        released(said, change(), audit)
    assert caught.value.reason == "secure-session"
    assert not audit.path.exists()
    body = release_stage(said, b"masked", audit)
    reply, tensors = decode_reply(body)
    assert {name: bytes(array) for name, array in tensors.items()} == {"message": b"masked"}
    assert (reply.summary, reply.weights, reply.description) == (None, {}, None)
    assert [line["what"] for line in lines(audit)] == ["masked update"]


def test_a_change_is_clipped_as_a_whole_before_it_leaves(audit):
    reply, tensors = release(change(image=30.0, text=0.0), audit, clip_norm=1.0)
    values = tensors[IMAGE_B].view(np.int32) / (1024 * 3)
    assert np.linalg.norm(values) == pytest.approx(1.0, abs=1e-3)
    assert reply.summary.clipped


def test_with_noise_for_whole_sites_nobody_is_told_that_a_change_was_clipped(audit):
    privacy = {**SITE_LEVEL, "clip_norm": 1.0}
    reply, tensors = release(change(image=30.0, text=0.0), audit, clip_norm=1.0, privacy=privacy)
    assert np.linalg.norm(tensors[IMAGE_B].view(np.int32) / 3072) == pytest.approx(1.0, abs=1e-3)
    assert not reply.summary.clipped


def test_the_stricter_norm_of_job_and_policy_holds(audit):
    policy = OPEN.model_copy(update={"max_change": 0.5})
    _, tensors = release(change(image=30.0, text=0.0), audit, policy, clip_norm=1.0)
    assert np.linalg.norm(tensors[IMAGE_B].view(np.int32) / 3072) == pytest.approx(0.5, abs=1e-3)


def test_a_tower_without_weight_stays_at_home(audit):
    reply, tensors = release(change(), audit, weights={"text": 1})
    assert list(tensors) == [TEXT_B]
    assert reply.weights == {"text": 1}


def test_a_tower_that_was_not_trained_has_no_weight(audit):
    reply, tensors = release({TEXT_B: change()[TEXT_B]}, audit)
    assert list(tensors) == [TEXT_B]
    assert reply.weights == {"text": 2}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_change_that_is_not_finite_never_leaves(audit, value):
    with pytest.raises(TrainingError) as caught:
        release(change(image=value), audit)
    assert caught.value.reason == "change-not-finite"


def test_a_change_that_does_not_fit_the_fixed_point_never_wraps(audit):
    with pytest.raises(TrainingError) as caught:
        release(change(), audit, scale=2.0**40)
    assert caught.value.reason == "out-of-range"


def test_a_change_of_another_shape_never_leaves(audit):
    with pytest.raises(AdapterMismatchError):
        release({IMAGE_B: np.ones((4, 3), np.float32)}, audit)


def test_numbers_of_training_are_rounded_unless_the_policy_is_exact(audit):
    reply, _ = release(change(), audit, STRICT)
    assert reply.summary.loss == 1.235
    assert reply.summary.validation_loss == 2.346
    assert reply.summary.gradient_norms == {"image": 0.988}


@pytest.mark.parametrize(
    ("count", "released"), [(0, 0), (19, 0), (20, 20), (99, 99), (104, 100), (1264, 1300)]
)
def test_counts_have_two_significant_digits(count, released):
    assert disclosed_count(count, STRICT) == released
    assert disclosed_count(count, OPEN) == count


@given(st.integers(20, 10**7))
def test_a_released_count_is_within_five_percent(count):
    assert abs(disclosed_count(count, STRICT) - count) <= 0.05 * count


def test_a_description_tells_kind_and_rounded_counts(audit):
    told = Description(kind="paired", examples={"image": 1264, "text": 7})
    body = release_description(answer(), told, STRICT, audit)
    assert decode_reply(body)[0].description == Description(
        kind="paired", examples={"image": 1300, "text": 0}
    )


def estimate(n, value=0.54321):
    return Estimate(value=value, low=value - 0.1, high=value + 0.1, n=n)


EVALUATION = SiteEvaluation(
    metrics={"shared": {"auroc": estimate(40), "r1": estimate(19)}},
    differences={"shared_minus_base": {"auroc": estimate(40), "r1": estimate(19)}},
    in_use={"image": "shared", "text": "shared"},
    gallery_texts=123,
    gallery_images=15,
    findings=[
        FindingScore(finding="a", positives=25, negatives=30, auroc={"shared": estimate(40)}),
    ],
    calibration=[
        CalibrationBin(predicted=0.12345, observed=0.1, low=0.0, high=0.2, n=30),
        CalibrationBin(predicted=0.5, observed=0.5, low=0.4, high=0.6, n=0),
        CalibrationBin(predicted=0.7, observed=0.6, low=0.5, high=0.7, n=5),
        CalibrationBin(predicted=0.9, observed=0.9, low=0.8, high=1.0, n=4),
    ],
    calibrated_model="shared",
)


def test_what_rests_on_few_patients_is_held_back_with_a_reason():
    told = disclosed(EVALUATION, STRICT)
    assert list(told.metrics["shared"]) == ["auroc"]
    assert list(told.differences["shared_minus_base"]) == ["auroc"]
    assert told.not_measured == {"r1": "fewer than 20 patients, the site's least number"}
    assert [finding.finding for finding in told.findings] == ["a"]
    assert [b.n for b in told.calibration] == [30]
    assert (told.gallery_texts, told.gallery_images) == (120, 0)
    assert told.metrics["shared"]["auroc"].value == 0.543


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ((30, 4, 5, 25), [30, 25]),  # two are held back: the total tells only their sum
        ((30, 4, 40, 25), [30, 40]),  # one alone could be worked out: the smallest goes with it
        ((30, 0, 40, 25), [30, 40, 25]),
        ((30, 4, 0, 0), []),
    ],
)
def test_what_a_held_back_bin_rests_on_cannot_be_worked_out(counts, told):
    bins = [CalibrationBin(predicted=0.5, observed=0.5, low=0.4, high=0.6, n=n) for n in counts]
    found = disclosed(EVALUATION.model_copy(update={"calibration": bins}), STRICT)
    assert [b.n for b in found.calibration] == told


@pytest.mark.parametrize(("positives", "negatives"), [(3, 60), (60, 3)])
def test_a_mean_does_not_give_away_a_finding_with_a_tiny_class(positives, negatives):
    rare = FindingScore(
        finding="b", positives=positives, negatives=negatives, auroc={"shared": estimate(40)}
    )
    findings = [*EVALUATION.findings, rare]
    told = disclosed(EVALUATION.model_copy(update={"findings": findings}), STRICT)
    assert [finding.finding for finding in told.findings] == ["a"]
    assert told.metrics["shared"] == {}
    assert told.differences["shared_minus_base"] == {}
    assert "auroc" in told.not_measured


def test_the_number_of_steps_is_not_told():
    assert rounded(SUMMARY.model_copy(update={"steps": 1230})).steps == 0


def test_an_exact_policy_lets_measures_pass_as_they_are():
    assert disclosed(EVALUATION, OPEN) == EVALUATION


def test_measures_outside_of_the_policy_stay_at_home():
    told = disclosed(EVALUATION, OPEN.model_copy(update={"metrics": ("r1",)}))
    assert list(told.metrics["shared"]) == ["r1"]
    assert list(told.differences["shared_minus_base"]) == ["r1"]
    assert told.not_measured == {"auroc": "the site's policy does not release it"}
    assert told.findings == []
    assert told.calibration == []


def test_an_evaluation_carries_the_last_validation_loss(audit):
    reply, tensors = decode_reply(release_evaluation(answer(), EVALUATION, 1.5, OPEN, audit))
    assert reply.evaluation == EVALUATION
    assert reply.summary.validation_loss == 1.5
    assert tensors == {}


def test_a_refusal_has_a_code_and_a_fixed_sentence(audit):
    reply, tensors = decode_reply(release_refusal(answer(), "policy-base", audit))
    assert (reply.status, reply.reason) == ("refused", "policy-base")
    assert reply.detail == REFUSALS["policy-base"]
    assert tensors == {}


def test_a_code_that_is_not_in_the_list_never_leaves(audit):
    body = release_refusal(answer(), "patient Jane Doe has pneumonia", audit)
    assert decode_reply(body)[0].reason == "internal"
    assert b"Jane" not in body


def test_a_refusal_of_an_unreadable_request_belongs_to_no_run(audit):
    reply, _ = decode_reply(release_refusal(Answer("north", None), "wire", audit))
    assert (reply.run, reply.status, reply.reason) == ("", "refused", "wire")


def test_every_reason_that_the_code_can_raise_has_its_sentence():
    root = Path(__file__).parents[2]
    files = [*(root / "client").rglob("*.py"), *(root / "shared").rglob("*.py")]
    raised = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {
                "TrainingError",
                "RefusedError",
            }:
                code = node.args[0]
                if isinstance(code, ast.Constant):
                    raised.add(code.value)
    assert "change-not-finite" in raised
    assert raised <= set(REFUSALS)


def test_sentences_that_may_leave_are_fixed_and_short():
    for code, sentence in REFUSALS.items():
        assert re.fullmatch(r"[a-z][a-z0-9-]{2,40}", code)
        assert re.fullmatch(r"[a-z][A-Za-z0-9 ,;'-]{5,100}", sentence)


# --- the audit log


def lines(audit):
    return [json.loads(line) for line in audit.path.read_text().splitlines()]


def test_everything_that_leaves_has_its_line(audit):
    bodies = [
        released(answer(), change(), audit),
        release_description(answer(), Description(kind="text", examples={}), OPEN, audit),
        release_evaluation(answer(), EVALUATION, None, OPEN, audit),
        release_done(answer(), audit),
        release_needs(answer(), audit),
        release_refusal(answer(), "data", audit),
    ]
    bodies.append(release_again(answer().request, bodies[0], audit))
    told = lines(audit)
    assert [line["sha256"] for line in told] == [hashlib.sha256(b).hexdigest() for b in bodies]
    assert [line["bytes"] for line in told] == [len(b) for b in bodies]
    assert [line["what"] for line in told] == [
        "update", "description", "evaluation", "done", "needs", "refusal data", "again",
    ]  # fmt: skip
    assert [line["seq"] for line in told] == list(range(1, 8))
    assert {(line["run"], line["round"]) for line in told} == {("run", 3)}
    assert verify(audit.path).lines == 7
    assert stat.S_IMODE(audit.path.stat().st_mode) == 0o600


def test_a_body_whose_line_cannot_be_written_does_not_leave(tmp_path):
    audit = AuditLog(tmp_path / "audit.jsonl")
    (tmp_path / "audit.jsonl").mkdir()
    with pytest.raises(StorageError):
        release_done(answer(), audit)


@pytest.fixture
def syncs(monkeypatch):
    """Names of the files that were waited for, in order."""
    paths, fsync = [], os.fsync

    def watched(descriptor):
        paths.append(Path(f"/proc/self/fd/{descriptor}").readlink().parent.name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    return paths


def test_a_line_is_on_the_disk_before_its_body_is_handed_over(tmp_path, syncs):
    release_done(answer(), AuditLog(tmp_path / "north" / "audit.jsonl"))
    assert syncs == ["north"]


def test_lines_of_many_sites_reach_the_disk_together(tmp_path, syncs):
    audits = [AuditLog(tmp_path / f"site-{n}" / "audit.jsonl") for n in range(40)]
    with on_disk_together():
        for audit in audits * 2:
            release_done(answer(), audit)
        assert syncs == []
    assert sorted(syncs) == sorted(f"site-{n}" for n in range(40))
    assert {verify(audit.path).lines for audit in audits} == {2}
    release_done(answer(), audits[0])
    assert syncs[40:] == ["site-0"], "outside of the block every line is waited for"


def test_the_outermost_block_waits(audit, syncs):
    with on_disk_together():
        with on_disk_together():
            release_done(answer(), audit)
        assert syncs == []
    assert len(syncs) == 1


def test_another_thread_waits_for_its_own_lines(audit, syncs):
    with on_disk_together():
        thread = threading.Thread(target=release_done, args=(answer(), audit))
        thread.start()
        thread.join()
        assert len(syncs) == 1


def test_no_body_leaves_if_the_disk_fails(tmp_path, monkeypatch):
    def broken(_descriptor):
        raise OSError(errno.EIO, "Input/output error")

    audits = [AuditLog(tmp_path / name / "audit.jsonl") for name in ("a", "b")]
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(StorageError, match=r"audit\.jsonl: cannot be written"):
        release_done(answer(), audits[0])

    def together():
        with on_disk_together():
            for audit in audits:
                release_done(answer(), audit)

    with pytest.raises(StorageError, match="cannot be written"):
        together()


def test_lines_are_waited_for_even_if_the_block_fails(audit, syncs):
    def together():
        with on_disk_together():
            release_done(answer(), audit)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        together()
    assert len(syncs) == 1


def test_the_chain_goes_on_after_a_restart(audit):
    release_done(answer(), audit)
    release_done(answer(), AuditLog(audit.path))
    assert verify(audit.path).lines == 2


def test_a_line_that_a_crash_cut_short_is_dropped(audit):
    release_done(answer(), audit)
    with audit.path.open("ab") as file:
        file.write(b'{"seq": 2, "utc"')
    release_done(answer(), AuditLog(audit.path))
    assert verify(audit.path).lines == 2


@pytest.mark.parametrize("line", [0, 1, 2])
@pytest.mark.parametrize("what", ["change", "remove"])
def test_a_changed_or_removed_line_breaks_the_chain(audit, line, what):
    for _ in range(4):
        release_done(answer(), audit)
    told = audit.path.read_text().splitlines(keepends=True)
    if what == "change":
        told[line] = told[line].replace('"bytes":', '"bytes":1')
    else:
        del told[line]
    audit.path.write_text("".join(told))
    with pytest.raises(InputError, match=rf"line {line + (2 if what == 'change' else 1)} "):
        verify(audit.path)
