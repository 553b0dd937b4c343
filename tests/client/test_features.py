"""A site's half of an exchange of features."""

import math
import shutil
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch

from client.audit import AuditLog
from client.batches import Batch
from client.data.sources import SiteSource
from client.decisions import NOBODY, about_request
from client.encoding import Features
from client.features import Contrast, begin_exchange, check_common, embedded, public_parts
from client.policy import SitePolicy, simulation_policy
from client.proxy import load_proxy, read_proxy_set
from client.release import Answer, release_features
from client.settings import SiteSettings, load_agent
from client.training import SiteTask, fresh_adapter, train_shared
from shared.adapter import SharedAdapter
from shared.config import JobConfig, LoraConfig, ModelConfig, ProxyConfig, parse_job
from shared.errors import AdapterMismatchError, DataError, RefusedError, TrainingError
from shared.messages import Request, TrainSummary, decode_reply
from shared.model.encoder import DualEncoder
from shared.objectives.creamfl import inter_modal
from tests.integration.conftest import write_site

NONE = np.zeros(0, dtype=np.intp)
SUMMARY = TrainSummary(loss=1.0, steps=1)


@pytest.fixture(scope="module")
def encoder(clip_folder):
    return DualEncoder.load(
        ModelConfig(base=str(clip_folder), precision="float32"), LoraConfig(rank=4, alpha=8)
    )


@pytest.fixture(scope="module")
def other(siglip_folder):
    return DualEncoder.load(
        ModelConfig(base=str(siglip_folder), precision="float32"), LoraConfig(rank=4, alpha=8)
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory, site_of):
    folder = tmp_path_factory.mktemp("public") / "set"
    write_site(folder, site_of("public", counts=(12, 6, 6), seed=9))
    return SiteSource("public", folder / "metadata.csv", folder)


@pytest.fixture(scope="module")
def public(source, encoder):
    return read_proxy_set(source, encoder)


# --- the set ---


def test_the_set_has_all_pairs_and_one_digest_for_every_encoder(source, public, other):
    assert len(public) == 24
    elsewhere = read_proxy_set(source, other)
    assert elsewhere.sha256 == public.sha256
    assert elsewhere.data.splits["train"].texts == public.data.splits["train"].texts


def test_another_text_or_picture_is_another_set(source, public, encoder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(source.root, copy)
    again = SiteSource("other name", copy / "metadata.csv", copy)
    assert read_proxy_set(again, encoder).sha256 == public.sha256
    first, second = copy / "train-0.png", copy / "train-1.png"
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    assert read_proxy_set(again, encoder).sha256 != public.sha256
    first.write_bytes(kept)
    table = copy / "metadata.csv"
    table.write_text(table.read_text().replace("no finding", "nothing", 1))
    assert read_proxy_set(again, encoder).sha256 != public.sha256


def test_a_set_with_too_few_pairs_is_refused(tmp_path, site_of, encoder):
    write_site(tmp_path / "few", site_of("few", counts=(4, 2, 1)))
    source = SiteSource("few", tmp_path / "few" / "metadata.csv", tmp_path / "few")
    with pytest.raises(DataError, match=r"7 records have both .* expected 8 to"):
        read_proxy_set(source, encoder)


def test_a_site_without_a_set_refuses(source, encoder, tmp_path):
    with pytest.raises(RefusedError) as refused:
        load_proxy(SiteSettings("north", source, tmp_path), encoder)
    assert refused.value.reason == "no-proxy"


def test_a_site_file_names_the_set(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text('name = "n"\nstate = "s"\nproxy = "p/metadata.csv"\n[data]\ntable = "d.csv"\n')
    assert load_agent(path).site.proxy.table == tmp_path / "p" / "metadata.csv"
    path.write_text('name = "n"\nstate = "s"\n[data]\ntable = "d.csv"\n')
    assert load_agent(path).site.proxy is None


# --- the loss ---


def contrast(weight=1.0, temperature=0.5):
    eye = torch.eye(2)
    common = {"image": eye, "text": eye}
    before = {"image": eye.flip(0), "text": eye.flip(0)}
    config = ProxyConfig(phantoms=32, contrast=weight, contrast_temperature=temperature)
    return Contrast(common, before, torch.eye(2), config)


def test_the_loss_by_hand():
    # Image 0 is where the common features want it: inter -log(e^2 / (e^2 + 1)), and intra the same,
    # for its old feature was at right angles. So both towers of the pair: 4 times that.
    one = torch.eye(2)[:1]
    pair = Batch(np.array([0]), NONE, NONE)
    each = math.log(1 + math.exp(-2))
    found = contrast().loss(Features(one, one), pair)
    torch.testing.assert_close(found, torch.tensor(4 * each))
    half = contrast(weight=0.5).loss(Features(one, one), pair)
    torch.testing.assert_close(half, found / 2)


def test_each_tower_is_contrasted_with_the_other_and_kept_near_its_own():
    # The bridge turns e1 into e0. Among the texts item 0 is e0: found. Among the images it is e1,
    # and the site's old feature is e0 itself: the intra-modal loss is log(1 + e^2).
    eye, swap = torch.eye(2), torch.eye(2).flip(0)
    config = ProxyConfig(phantoms=32, contrast=1.0)
    own = Contrast({"image": swap, "text": eye}, {"image": eye}, swap, config)
    found = own.loss(Features(eye[1:], torch.zeros(0, 1)), Batch(NONE, np.array([0]), NONE))
    inter, intra = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    torch.testing.assert_close(found, torch.tensor(inter + intra))


def test_a_site_with_one_tower_has_half_of_it():
    one, nothing = torch.eye(2)[:1], torch.zeros(0, 1)
    lone = contrast().loss(Features(one, nothing), Batch(NONE, np.array([0]), NONE))
    torch.testing.assert_close(lone, torch.tensor(2 * math.log(1 + math.exp(-2))))


# --- the exchange ---


@pytest.fixture(scope="module")
def common(encoder, public):
    return embedded(encoder, SharedAdapter({}), public, ("image", "text"))


def test_the_base_itself_needs_no_bridge(encoder, public, common):
    start = fresh_adapter(encoder.layout, 1)
    towers = ("image", "text")
    exchange = begin_exchange(encoder, public, common, start, towers, ProxyConfig(phantoms=32))
    for tower in towers:
        np.testing.assert_allclose(exchange.before[tower], common[tower], atol=1e-4)


def test_features_of_another_base_come_in_the_common_width(other, source, common):
    start = fresh_adapter(other.layout, 1)
    public = read_proxy_set(source, other)
    exchange = begin_exchange(other, public, common, start, ("image",), ProxyConfig(phantoms=32))
    assert exchange.bridge.shape == (32, 24)
    sent = exchange.sent(other, start)
    assert {tower: values.shape for tower, values in sent.items()} == {"image": (24, 24)}
    np.testing.assert_allclose(np.linalg.norm(sent["image"], axis=1), 1.0, atol=1e-5)


def test_training_beside_public_batches_lowers_their_loss(encoder, public, site_of, small_job):
    """The contrast of all public items after training: with weight, and without."""
    data, towers = site_of("north", seed=3), ("image", "text")
    start = fresh_adapter(encoder.layout, 1)
    rng = np.random.default_rng(0)
    common = {}
    for tower, values in embedded(encoder, start, public, towers).items():
        moved = values + 0.3 * rng.standard_normal(values.shape).astype(np.float32)
        common[tower] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    left = {}
    for weight in (0.0, 2.0):
        tree = small_job.model_dump(mode="json", exclude={"personalize", "evaluate"})
        tree |= {"aggregate": {"rule": "creamfl"}, "proxy": {"phantoms": 32, "contrast": weight}}
        tree["train"] |= {"steps": 12}
        job = JobConfig.model_validate(tree)
        exchange = begin_exchange(encoder, public, common, start, towers, job.proxy)
        task = SiteTask(data, start, ("A", "B"), 5, 1, exchange)
        (trained,) = train_shared(encoder, [task], job)
        assert trained.steps == 12
        sent = exchange.sent(encoder, SharedAdapter(trained.factors))
        items, own = torch.arange(24), torch.from_numpy(sent["image"])
        left[weight] = float(inter_modal(own, torch.from_numpy(common["text"]), items, 0.5).mean())
    assert left[2.0] < left[0.0] - 1e-3


def test_public_batches_cover_the_set_and_come_in_the_sites_towers(encoder, public, common):
    start = fresh_adapter(encoder.layout, 1)
    exchange = begin_exchange(encoder, public, common, start, ("text",), ProxyConfig(phantoms=32))
    parts = public_parts(exchange, encoder, 8, row=2, seed=1)
    seen = []
    for _ in range(3):
        part, loss = next(parts)
        assert part.adapter == 2
        assert isinstance(loss, Contrast)
        assert not len(part.batch.with_image)
        seen += part.batch.texts.tolist()
    assert sorted(seen) == list(range(24))


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.pop("text"),
        lambda f: f.update(text=f["text"][:-1]),
        lambda f: f.update(text=f["text"][:, :-1], image=f["image"][:-1, :-1]),
        lambda f: f.update(image=2 * f["image"]),
        lambda f: f.update(image=np.full_like(f["image"], np.nan)),
        lambda f: f.update(audio=f["image"]),
    ],
)
def test_common_features_that_do_not_fit_the_set_are_refused(common, change):
    check_common(dict(common), 24)
    features = dict(common)
    change(features)
    with pytest.raises(AdapterMismatchError, match="features"):
        check_common(features, 24)


def test_common_features_of_another_number_of_pairs_are_refused(common):
    with pytest.raises(AdapterMismatchError, match="expected 25 rows"):
        check_common(dict(common), 25)


# --- the door ---


def answer_to(weights):
    job = parse_job({"name": "job", "aggregate": {"rule": "creamfl"}, "proxy": {"phantoms": 32}})
    request = Request(
        kind="train", run="run", round=3, attempt=2, site="north", base_sha256="b" * 64,
        job_sha256=job.digest(), job=job, weights=weights, scale=2.0**10,
    )  # fmt: skip
    return Answer("north", request)


def released(tmp_path: Path, features, policy=None, weights=None):
    audit = AuditLog(tmp_path / "audit.jsonl")
    answer = answer_to(weights or {"image": 3, "text": 2})
    return release_features(answer, features, SUMMARY, policy or simulation_policy(), audit)


def test_features_leave_with_length_one_and_a_line_in_the_log(tmp_path):
    reply, tensors = decode_reply(released(tmp_path, {"image": np.array([[3, 4]], np.float32)}))
    assert tensors["image"].dtype == np.float16
    np.testing.assert_allclose(tensors["image"], [[0.6, 0.8]], atol=1e-3)
    assert reply.weights == {"image": 3}
    assert "features" in (tmp_path / "audit.jsonl").read_text()


def test_the_default_policy_lets_no_features_out(tmp_path):
    with pytest.raises(RefusedError) as refused:
        released(tmp_path, {"image": np.ones((1, 2), np.float32)}, SitePolicy())
    assert refused.value.reason == "policy-features"
    assert not (tmp_path / "audit.jsonl").exists() or not (tmp_path / "audit.jsonl").read_text()
    request = answer_to({"image": 1}).request
    said = about_request(SitePolicy(), request, NOBODY, date(2026, 1, 1))
    assert "policy-features" in {objection.reason for objection in said}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_stay(tmp_path, bad):
    with pytest.raises(TrainingError, match="finite"):
        released(tmp_path, {"image": np.array([[1, bad]], np.float32)})


def test_a_tower_that_was_not_asked_for_stays(tmp_path):
    with pytest.raises(TrainingError):
        released(tmp_path, {"text": np.ones((1, 2), np.float32)}, weights={"image": 3})
