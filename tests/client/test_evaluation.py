import dataclasses
import gc
import importlib.util
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

import client.embeddings
from client.evaluation import evaluate_site
from shared.config import parse_job
from shared.errors import TrainingError
from shared.model.view import AdapterView
from shared.results import COMPARISONS, METRICS, SiteEvaluation

_spec = importlib.util.spec_from_file_location(
    "stub_encoder", Path(__file__).with_name("stub_encoder.py")
)
stub = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(stub)

JOB = parse_job({"name": "test", "evaluate": {"bootstrap": 200}})
IN_USE = {"image": "personal", "text": "shared"}
VIEWS = {
    "base": AdapterView(),
    "local": stub.noisy_view(1, 0.5),
    "shared": stub.noisy_view(2, 0.2),
    "personal": stub.noisy_view(3, 0.1),
    "centralised": stub.noisy_view(4, 0.1),
}


def evaluate(data, views=None, seed=5, encoder=None, in_use=None):
    encoder = encoder or stub.StubEncoder()
    return evaluate_site(encoder, data, views or VIEWS, JOB, in_use or IN_USE, seed)


def masked(split, **changes):
    return dataclasses.replace(split, **changes)


def test_measures_everything_at_a_paired_labelled_site():
    result = evaluate(stub.make_site())
    assert result.not_measured == {}
    assert list(result.metrics) == list(VIEWS)
    assert all(tuple(result.metrics[model]) == METRICS for model in VIEWS)
    assert tuple(result.differences) == COMPARISONS
    assert (result.gallery_texts, result.gallery_images) == (6, 60)
    assert [row.finding for row in result.findings] == ["edema", "effusion", "nodule"]
    assert [row.positives for row in result.findings] == [10, 10, 10]
    assert result.calibrated_model == "personal"
    assert sum(row.n for row in result.calibration) == 60 * 3
    assert result.metrics["base"]["auroc"].n == 30
    every = [entry for table in result.metrics.values() for entry in table.values()]
    assert all(0 <= entry.low <= entry.value <= entry.high <= 1 for entry in every)
    assert SiteEvaluation.model_validate_json(result.model_dump_json()) == result


def test_numbers_agree_with_scikit_learn_and_by_hand():
    data = stub.make_site()
    result, test = evaluate(data), data.splits["test"]
    vectors = test.pixels.reshape(60, 6).astype(float) - 100
    images = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    # Prompts are e_f against the all-equal direction.
    margins = images @ (np.eye(6)[:3] - 1 / np.sqrt(6)).T
    aurocs = [roc_auc_score(test.labels[:, f], margins[:, f]) for f in range(3)]
    assert result.metrics["base"]["auroc"].value == pytest.approx(np.mean(aurocs))
    assert [row.auroc["base"].value for row in result.findings] == pytest.approx(aurocs)
    # Every kind has ten images, so macro and micro agree: share of images with the right argmax.
    right = images.argmax(1) == np.arange(60) % 6
    assert result.metrics["base"]["i2t_r1"].value == pytest.approx(right.mean())
    first = [images[:, text].argmax() % 6 == text for text in range(6)]
    assert result.metrics["base"]["t2i_r1"].value == pytest.approx(np.mean(first))
    base = result.metrics["base"]
    assert base["r1"].value == pytest.approx((base["i2t_r1"].value + base["t2i_r1"].value) / 2)


def test_differences_are_those_of_the_levels_and_paired():
    result = evaluate(stub.make_site())
    for comparison, table in result.differences.items():
        first, second = comparison.split("_minus_")
        for metric, entry in table.items():
            levels = result.metrics[first][metric].value - result.metrics[second][metric].value
            assert entry.value == pytest.approx(levels)
            assert entry.low <= entry.value <= entry.high


def test_a_model_against_itself_is_exactly_zero():
    same = stub.noisy_view(2, 0.2)
    views = {"shared": same, "personal": dataclasses.replace(same, personal={}, alpha={"image": 0})}
    encoder = stub.StubEncoder()
    result = evaluate(stub.make_site(), views, encoder=encoder)
    for entry in result.differences["personal_minus_shared"].values():
        assert (entry.value, entry.low, entry.high) == (0, 0, 0)
    assert encoder.embedded_images == 60 + 40  # test and validation, once for both models
    assert encoder.embedded_texts == 6 + 4  # distinct texts and distinct prompts


def test_equal_adapters_in_two_files_differ_by_exactly_zero():
    views = {"base": AdapterView(), "shared": stub.view_of(np.eye(6))}
    for entry in evaluate(stub.make_site(), views).differences["shared_minus_base"].values():
        assert (entry.value, entry.low, entry.high) == (0, 0, 0)


def test_repeats_with_its_seed_and_varies_with_another():
    data = stub.make_site()
    assert evaluate(data) == evaluate(data)
    other = evaluate(data, seed=6)
    assert other.metrics["base"]["auroc"].value == evaluate(data).metrics["base"]["auroc"].value
    assert other.metrics["base"]["auroc"].low != evaluate(data).metrics["base"]["auroc"].low


def rows_of(split, rows):
    return dataclasses.replace(
        split,
        texts=tuple(split.texts[row] for row in rows),
        **{
            name: getattr(split, name)[rows]
            for name in ("pixels", "has_image", "has_text", "labels", "labelled", "patients")
        },
    )


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1000))
def test_shuffling_records_changes_nothing(seed):
    generator = np.random.default_rng(seed)
    test, val = stub.make_split(3, 48), stub.make_split(2, 40)
    views = {model: VIEWS[model] for model in ("base", "shared")}
    plain = evaluate(stub.make_site(test, val=val), views).model_dump()
    shuffled = evaluate(
        stub.make_site(
            rows_of(test, generator.permutation(48)), val=rows_of(val, generator.permutation(40))
        ),
        views,
    ).model_dump()
    assert flat(plain) == pytest.approx(flat(shuffled), abs=1e-9)


def flat(tree, path=""):
    if isinstance(tree, dict):
        return {k: v for key, part in tree.items() for k, v in flat(part, f"{path}/{key}").items()}
    if isinstance(tree, list):
        return {k: v for n, part in enumerate(tree) for k, v in flat(part, f"{path}/{n}").items()}
    return {path: tree}


def test_what_lies_behind_a_mask_changes_nothing():
    def site(fill):
        def hide(split):
            generator = np.random.default_rng(fill)
            count = len(split)
            no_image, no_text = np.arange(count) % 5 == 0, np.arange(count) % 7 == 1
            no_label = np.arange(count) % 4 == 2
            pixels, labels = split.pixels.copy(), split.labels.copy()
            pixels[no_image] = generator.integers(0, 255, pixels[no_image].shape)
            labels[no_label] = generator.integers(0, 2, labels[no_label].shape)
            words = [stub.one_hot(generator.integers(0, 6)) + "9" for _ in range(count)]
            texts = [
                w if gone else t for w, gone, t in zip(words, no_text, split.texts, strict=True)
            ]
            return masked(
                split,
                pixels=pixels,
                texts=tuple(texts),
                labels=labels,
                has_image=~no_image,
                has_text=~no_text,
                labelled=~no_label,
            )

        made = {name: hide(stub.make_split(n, 60)) for n, name in enumerate(("train", "val"))}
        return stub.make_site(hide(stub.make_split(3, 60)), **made)

    first = evaluate(site(1))
    assert first == evaluate(site(2))
    assert first.gallery_images == 48
    assert first.not_measured == {}


def reasons(result):
    return result.not_measured["r5"], result.not_measured["auroc"]


def test_a_text_only_site_says_so():
    def blind(split):
        return masked(split, has_image=np.zeros(len(split), bool))

    data = stub.make_site(
        blind(stub.make_split(3, 20)),
        train=blind(stub.make_split(1, 20)),
        val=blind(stub.make_split(2, 20)),
    )
    result = evaluate(data)
    assert reasons(result) == ("no images at this site",) * 2
    assert set(result.not_measured) == set(METRICS)
    assert result.metrics == {model: {} for model in VIEWS}
    assert result.calibrated_model is None


def test_an_image_only_site_is_scored_by_prompts():
    def mute(split):
        return masked(split, has_text=np.zeros(len(split), bool))

    splits = {name: mute(stub.make_split(n, 60)) for n, name in enumerate(("train", "val"))}
    result = evaluate(stub.make_site(mute(stub.make_split(3, 60)), **splits))
    assert result.not_measured["r1"] == "no texts at this site"
    assert "auroc" not in result.not_measured
    assert set(result.metrics["shared"]) == {"auroc", "accuracy", "ece"}


def test_unpaired_records_cannot_be_retrieved():
    test = stub.make_split(3, 40)
    image = np.arange(40) % 2 == 0
    result = evaluate(stub.make_site(masked(test, has_image=image, has_text=~image)))
    assert result.not_measured["i2t_r1"] == "no test record holds both an image and a text"


@pytest.mark.parametrize(
    ("change", "retrieval", "findings"),
    [
        ({"texts": (stub.one_hot(0),) * 40}, "fewer than two different texts", None),
        ({"labelled": np.zeros(40, bool)}, None, "no labelled images in the test split"),
        ({"labels": np.zeros((40, 3), np.float32)}, None, "no finding with three positive"),
        (
            {"patients": np.arange(40) % 2},
            "fewer than 3 test patients, so no interval can be estimated",
            "fewer than 3 test patients, so no interval can be estimated",
        ),
        ({"has_image": np.zeros(40, bool)}, "no images in the test split", "no images in the test"),
        ({"has_text": np.zeros(40, bool)}, "no texts in the test split", None),
        ({"has_image": np.arange(40) < 1}, "fewer than two images", "no finding with three"),
    ],
)
def test_reasons(change, retrieval, findings):
    result = evaluate(stub.make_site(masked(stub.make_split(3, 40), **change)))
    for metric, expected in (("r1", retrieval), ("auroc", findings)):
        if expected is None:
            assert metric not in result.not_measured
            assert metric in result.metrics["base"]
        else:
            assert result.not_measured[metric].startswith(expected)
            assert not result.not_measured[metric].endswith(".")
            assert metric not in result.metrics["base"]


def test_an_empty_test_split_says_so():
    empty = rows_of(stub.make_split(3, 10), np.arange(0))
    assert reasons(evaluate(stub.make_site(empty))) == ("no images in the test split",) * 2


def test_without_findings_there_are_no_labels():
    data = dataclasses.replace(stub.make_site(), findings=(), prompts={})
    strip = {
        name: masked(split, labels=split.labels[:, :0], labelled=np.zeros(len(split), bool))
        for name, split in data.splits.items()
    }
    result = evaluate(dataclasses.replace(data, splits=strip))
    assert result.not_measured["auroc"] == "no labels at this site"
    assert "r1" in result.metrics["base"]


def test_without_prompts_findings_are_not_scored():
    data = dataclasses.replace(stub.make_site(), prompts={})
    assert evaluate(data).not_measured["auroc"] == "no prompts for the labelled findings"


def test_accuracy_needs_validation_and_calibration_needs_training_labels():
    val = masked(stub.make_split(2, 40), labelled=np.zeros(40, bool))
    train = masked(stub.make_split(1, 60), labelled=np.zeros(60, bool))
    result = evaluate(stub.make_site(val=val, train=train))
    assert result.not_measured == {
        "accuracy": "no labelled images in the validation split",
        "ece": "no labelled training records",
    }
    assert result.calibration == []
    assert result.calibrated_model is None
    few = rows_of(stub.make_split(2, 40), np.arange(8))
    reason = evaluate(stub.make_site(val=few)).not_measured["accuracy"]
    assert reason == "no finding with three positive and three negative validation records"


def test_calibration_belongs_to_the_model_in_use():
    shared = {"image": "shared", "text": "not trained"}
    assert evaluate(stub.make_site(), in_use=shared).calibrated_model == "shared"


def test_a_diverged_adapter_is_named_not_scored():
    broken = {"base": AdapterView(), "shared": stub.view_of(np.full((6, 6), np.nan))}
    with pytest.raises(TrainingError, match="diverged") as caught:
        evaluate(stub.make_site(), broken)
    assert caught.value.reason == "embedding-not-finite"


def test_a_site_of_usual_size_takes_a_moment():
    # 5 models x 160 records; findings are few here, the benchmark has twelve. Generous limit.
    data = stub.make_site(count=160)
    start = time.process_time()
    evaluate(data)
    assert time.process_time() - start < 5


def test_the_base_is_embedded_once_for_as_long_as_the_records_live():
    data, encoder = stub.make_site(), stub.StubEncoder()
    first = evaluate(data, {"base": AdapterView()}, encoder=encoder)
    images, texts = encoder.embedded_images, encoder.embedded_texts
    assert (images, texts) == (60 + 40, 6 + 4)
    views = {"base": AdapterView(), "shared": VIEWS["shared"]}
    again = evaluate(data, views, encoder=encoder)
    assert again.metrics["base"] == first.metrics["base"]
    assert (encoder.embedded_images, encoder.embedded_texts) == (2 * images, 2 * texts)
    fresh = evaluate(data, views, encoder=stub.StubEncoder())
    assert fresh == again
    assert evaluate(stub.make_site(), views, encoder=encoder) == again
    assert encoder.embedded_images == 4 * images


def test_what_is_kept_of_the_base_goes_with_the_records_and_has_an_end(monkeypatch):
    kept = client.embeddings._kept
    kept.clear()
    data, encoder = stub.make_site(), stub.StubEncoder()
    evaluate(data, encoder=encoder)
    assert len(kept) == 4
    del data
    gc.collect()
    assert len(kept) == 0
    monkeypatch.setattr(client.embeddings, "_KEPT_BYTES", 100 * 6 * 4 + 1)
    sites = [stub.make_site() for _ in range(5)]
    for site in sites:
        evaluate(site, encoder=encoder)
    assert 0 < sum(array.nbytes for array in kept.values()) <= 100 * 6 * 4
