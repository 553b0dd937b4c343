"""DP-SGD at a site: whose gradient is whose, what one patient can change, and how much noise."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.nn.functional import binary_cross_entropy_with_logits

from client import private_training
from client.bank import grouped_loss, open_bank
from client.batches import Batch, prepare
from client.data.describe import describe_site
from client.data.sources import SiteSource
from client.encoding import Features
from client.losses import prompt_directions
from client.patient_steps import (
    PatientSteps,
    expected_in_a_step,
    merged,
    patients_of,
)
from client.private_training import PatientGradients, patient_sum, train_privately
from client.proxy import read_proxy_set
from client.training import SiteTask, fresh_adapter
from shared.adapter import SharedAdapter, factor_of
from shared.config import LoraConfig, ModelConfig
from shared.errors import RefusedError
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView
from shared.objectives.bank import bank_contrast
from shared.objectives.infonce import infonce
from tests.integration.conftest import write_site

KINDS = {"paired": ("B",), "unpaired": ("A",), "image": ("B",), "text": ("A", "B")}


@pytest.fixture(scope="module")
def encoder(clip_folder):
    return DualEncoder.load(
        ModelConfig(base=str(clip_folder), precision="float32"), LoraConfig(rank=4, alpha=8)
    )


@pytest.fixture(scope="module")
def public(tmp_path_factory, site_of, encoder):
    folder = tmp_path_factory.mktemp("public") / "set"
    write_site(folder, site_of("public", counts=(12, 6, 6), seed=9))
    return read_proxy_set(SiteSource("public", folder / "metadata.csv", folder), encoder)


@pytest.fixture(scope="module")
def job(small_job):
    train = small_job.train.model_copy(update={"shift_pixels": 0, "label_similarity": 0.3})
    return small_job.model_copy(update={"train": train})


@pytest.fixture(scope="module")
def start(encoder):
    rng = np.random.default_rng(3)
    fresh = fresh_adapter(encoder.layout, 1).factors
    noise = {n: rng.standard_normal(a.shape) for n, a in fresh.items()}
    return SharedAdapter(
        {n: a if factor_of(n) == "A" else (0.05 * noise[n]).astype(np.float32)
         for n, a in fresh.items()}
    )  # fmt: skip


def of_patients(data, records=3):
    """The same site, with several records to a patient."""
    splits = {name: replace(s, patients=s.patients // records) for name, s in data.splits.items()}
    return replace(data, splits=splits)


def task_of(data, start, factors=("B",)):
    return SiteTask(data, start, factors, 5, 1)


def gradients_of(encoder, data, start, public, job, factors=("B",), rows=4, bank=None):
    """Gradients of every patient, in one call."""
    train = prepare(encoder, data, "train")
    encoder.use(AdapterView(start))
    bank = bank or open_bank(encoder, data, public, job.train)
    own = PatientGradients(
        encoder, train, bank, task_of(data, start, factors), rows, (0, np.random.default_rng(0))
    )
    try:
        return list(own.of(patients_of(train))), own._stack, bank
    finally:
        own.close()


# --- whose gradient ---


@pytest.mark.parametrize(("kind", "factors"), KINDS.items())
def test_a_patients_gradient_is_the_sum_of_autograd_over_its_records_one_by_one(
    encoder, site_of, start, public, job, kind, factors
):
    data = of_patients(site_of("s", kind, counts=(18, 6, 6), seed=2))
    found, stack, bank = gradients_of(encoder, data, start, public, job, factors)
    train = prepare(encoder, data, "train")
    slices = [columns for _, columns in stack.slices(factors, data.towers)]

    one = encoder.new_stack(1)
    one.put(0, start.factors)
    encoder.use_stack(one, AdapterView())
    one.train(factors)
    for gradient, batch in zip(found, patients_of(train), strict=True):
        one.gradients.zero_()
        for row in np.concatenate([batch.pairs, batch.images, batch.texts]):
            _loss_by_hand(encoder, train.split, data, int(row), bank, public).backward()
        wanted = torch.cat([one.gradients[0, each] for each in slices]).numpy()
        assert np.abs(wanted).max() > 1e-3
        np.testing.assert_allclose(gradient, wanted, rtol=2e-4, atol=2e-5)
    one.train(())
    encoder.use(AdapterView())


def _loss_by_hand(encoder, split, data, row, bank, public):
    """The loss of one record, from nothing but that record and the public set."""
    theirs = public.data.splits["train"]
    image = text = None
    if split.has_image[row]:
        image = encoder.encode_images(torch.tensor(split.pixels[row : row + 1]), [1])[0]
    if split.has_text[row]:
        text = encoder.encode_texts(encoder.tokenize([split.texts[row]]), [1])[0]
    loss = torch.zeros(())
    labels = torch.tensor(split.labels[row])
    if image is not None and text is not None:
        weights = [1.0]
        for other, label in zip(theirs.texts, theirs.labels, strict=True):
            a, b = split.labels[row], label
            empty = float(a.sum() == 0 and b.sum() == 0)
            alike = (float(a @ b) + empty) / np.sqrt(max(a.sum(), 1) * max(b.sum(), 1))
            weights.append(1.0 if other == split.texts[row] else 0.3 * alike)
        share = torch.tensor(weights) / sum(weights)
        for mine, bank_side, own in ((image, bank.text, text), (text, bank.image, image)):
            logits = encoder.logit_scale * torch.cat([(mine @ own)[None], bank_side @ mine])
            loss = loss - 0.5 * (share * logits.log_softmax(0)).sum()
    prompts = bank.prompts
    for side in (image, text):
        if side is None:
            continue
        logits = encoder.logit_scale * (prompts.directions @ side) + prompts.prior
        taught = binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        pair = image is not None and text is not None
        loss = loss + (0.5 if pair else 1.0) * taught
        if not pair:
            teacher = bank.teacher.image if side is image else bank.teacher.text
            gap = (side - teacher[row].detach()).square().sum()
            loss = loss + encoder.logit_scale * bank.teacher.lone * 0.5 * gap
    return loss


def _with_others_replaced(data, keep):
    """The same site; all records but some have other pictures, texts and labels."""
    split = data.splits["train"]
    other = np.array([row not in keep for row in range(len(split))])
    pixels = np.where(other[:, None, None, None], 255 - split.pixels, split.pixels)
    texts = tuple(
        "there is upper dark square" if new and text else text
        for text, new in zip(split.texts, other, strict=True)
    )
    labels = np.where(other[:, None], 1 - split.labels, split.labels)
    changed = replace(split, pixels=pixels, texts=texts, labels=labels)
    return replace(data, splits={**data.splits, "train": changed})


def _first_gradients(encoder, data, start, public, job):
    """Gradients of the first patient before and after all others changed, on a bank each."""
    keep = set(np.flatnonzero(data.splits["train"].patients == 0).tolist())
    changed = _with_others_replaced(data, keep)
    return [
        gradients_of(encoder, site, start, public, job, rows=8)[0][0] for site in (data, changed)
    ]


@pytest.mark.parametrize("kind", ["paired", "unpaired"])
def test_no_other_patient_is_in_a_patients_gradient_not_in_one_bit(
    encoder, site_of, start, public, job, kind
):
    data = of_patients(site_of("s", kind, counts=(18, 6, 6), seed=2))
    # All texts are as long as one another, so that the same kernels see the same shapes.
    split = data.splits["train"]
    texts = tuple(
        f"there is lower {'bright' if patient else 'dark'} square" if text else ""
        for text, patient in zip(split.texts, split.patients, strict=True)
    )
    data = replace(data, splits={**data.splits, "train": replace(split, texts=texts)})
    before, after = _first_gradients(encoder, data, start, public, job)
    assert np.array_equal(before, after)
    assert np.linalg.norm(before) > 0


def test_with_negatives_of_the_batch_that_test_would_fail(
    encoder, site_of, start, public, job, monkeypatch
):
    def in_batch(features, parts, bank):
        image = torch.cat([found.image for found in features])
        text = torch.cat([found.text for found in features])
        return infonce(image, text, torch.eye(len(image)), bank.scale).sum()

    monkeypatch.setattr(private_training, "separable_loss", in_batch)
    data = of_patients(site_of("s", counts=(18, 6, 6), seed=2))
    before, after = _first_gradients(encoder, data, start, public, job)
    assert not np.allclose(before, after, rtol=0.01)


def test_a_finding_that_only_one_patient_has_changes_nobody_elses_loss(
    encoder, site_of, start, public, job
):
    data = of_patients(site_of("s", counts=(12, 6, 6), seed=2))
    split = data.splits["train"]
    without = replace(
        data,
        findings=data.findings[:1],
        splits={n: replace(s, labels=s.labels[:, :1]) for n, s in data.splits.items()},
    )
    alone = replace(split, labels=split.labels * [1, 0])
    with_column = replace(data, splits={**data.splits, "train": alone.__class__(**vars(alone))})
    one = gradients_of(encoder, without, start, public, job)[0]
    other = gradients_of(encoder, with_column, start, public, job)[0]
    for first, second in zip(one, other, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-6)


def test_a_patients_records_are_together_whatever_they_have(encoder, site_of):
    data = of_patients(site_of("s", "unpaired", counts=(6, 6, 6)))
    batches = patients_of(prepare(encoder, data, "train"))
    assert [(list(b.images), list(b.texts)) for b in batches] == [([0, 2], [1]), ([4], [3, 5])]


def test_the_contrast_by_hand():
    image, text = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    bank = (torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]]))
    # Its own pair has logit 2, the bank's 0: both ways log(1 + e^-2).
    loss = bank_contrast(image, text, bank, torch.zeros(1, 1), 2.0)
    assert loss.item() == pytest.approx(np.log1p(np.exp(-2)))
    # The public pair as an equal positive: half of it must lie there.
    loss = bank_contrast(image, text, bank, torch.ones(1, 1), 2.0)
    assert loss.item() == pytest.approx(np.log1p(np.exp(-2)) + 1.0)


# --- whose gradient, in groups ---


def _of_groups(encoder, data, start, public, job, groups):
    """The gradients of groups of patients, and what each of them loses by hand, at ``start``."""
    train = prepare(encoder, data, "train")
    encoder.use(AdapterView(start))
    bank = open_bank(encoder, data, public, job.train, groups=True)
    patients = patients_of(train)
    units = [merged([patients[who] for who in group]) for group in groups]
    shift = (0, np.random.default_rng(0))
    own = PatientGradients(encoder, train, bank, task_of(data, start), len(units), shift)
    try:
        return list(own.of(units))
    finally:
        own.close()


@pytest.mark.parametrize("kind", ["paired", "unpaired"])
def test_a_groups_gradient_has_its_own_patients_in_it_and_no_others(
    encoder, site_of, start, public, job, kind
):
    data = of_patients(site_of("s", kind, counts=(24, 6, 6), seed=2))
    changed = _with_others_replaced(data, set(np.flatnonzero(data.splits["train"].patients < 3)))
    groups = [(0, 1, 2), (3, 4), (5, 6, 7)]
    before = _of_groups(encoder, data, start, public, job, groups)
    after = _of_groups(encoder, changed, start, public, job, groups)
    np.testing.assert_allclose(before[0], after[0], rtol=1e-4, atol=1e-6)
    assert not np.allclose(before[1], after[1], rtol=0.01)
    # Within a group everybody matters: what a patient adds is not the patient's own gradient.
    apart = _of_groups(encoder, data, start, public, job, [(0, 1), (2,)])
    alone = np.allclose(before[0], apart[0] + apart[1], rtol=1e-3, atol=1e-4)
    assert alone == (kind == "unpaired")


def test_the_contrast_within_a_group_by_hand(encoder, site_of, start, public, job):
    data = of_patients(site_of("s", counts=(12, 6, 6), seed=2))
    train = prepare(encoder, data, "train")
    encoder.use(AdapterView(start))
    bank = replace(open_bank(encoder, data, public, job.train, groups=True), prompts=None, kappa=0)
    pair = torch.eye(2)
    rows = [0, next(row for row in range(12) if train.split.texts[row] != train.split.texts[0])]
    part = private_training.Part(train, Batch(np.array(rows), *_NOTHING))
    loss = grouped_loss([Features(pair, pair)], [part], replace(bank, scale=2.0))
    assert loss.item() == pytest.approx(2 * np.log1p(np.exp(-2)))
    one = private_training.Part(train, Batch(np.array(rows[:1]), *_NOTHING))
    assert grouped_loss([Features(pair[:1], pair[:1])], [one], bank).item() == 0


# --- what one patient can change ---


class Given:
    """Gradients as they are given, where those of records would be."""

    def __init__(self, gradients):
        self.values = np.zeros(len(gradients[0]) if gradients else 6)
        self._gradients = gradients

    def of(self, patients):
        return (self._gradients[number] for number in patients)


numbers = st.floats(width=32) | st.sampled_from([np.nan, np.inf, -np.inf, 3e38, 1e-38])
vectors = arrays(np.float32, 6, elements=numbers)


@settings(deadline=None, max_examples=300)
@given(vector=vectors, norm=st.floats(1e-3, 1e3))
def test_no_patient_is_longer_than_the_norm_whatever_the_records_say(vector, norm):
    found = patient_sum(Given([vector]), [0], norm)
    assert np.isfinite(found).all()
    assert np.linalg.norm(found) <= norm * (1 + 1e-6)


@settings(deadline=None, max_examples=200)
@given(
    others=st.lists(vectors, max_size=8), patient=vectors, place=st.integers(0, 8),
    norm=st.floats(1e-3, 1e3),
)  # fmt: skip
def test_one_patient_more_changes_the_sum_by_the_norm_at_most(others, patient, place, norm):
    before = patient_sum(Given(others or [patient]), range(len(others)), norm)
    more = [*others[:place], patient, *others[place:]]
    after = patient_sum(Given(more), range(len(more)), norm)
    assert np.linalg.norm(after - before) <= norm * (1 + 1e-6)


# A group's gradient may be anything at all once a patient joins it, so that the worst is tried.
@settings(deadline=None, max_examples=200)
@given(others=st.lists(vectors, max_size=6), after=vectors, norm=st.floats(1e-3, 1e3))
def test_one_patient_more_changes_one_group_by_twice_the_norm_at_most(others, after, norm):
    before = patient_sum(Given(others or [after]), range(len(others)), norm)
    changed = [after, *others[1:]]
    found = patient_sum(Given(changed), range(len(changed)), norm)
    assert np.linalg.norm(found - before) <= 2 * norm * (1 + 1e-6)


def test_a_group_can_change_by_twice_the_norm_so_that_once_is_not_enough():
    there, back = np.full(4, 3, np.float32), np.full(4, -3, np.float32)
    change = patient_sum(Given([there]), [0], 1.0) - patient_sum(Given([back]), [0], 1.0)
    assert np.linalg.norm(change) == pytest.approx(2, rel=1e-6)


def test_a_patient_with_hostile_numbers_takes_no_other_with_it(
    encoder, site_of, start, public, job, monkeypatch
):
    data = of_patients(site_of("s", counts=(12, 6, 6), seed=2))
    real = private_training.separable_loss

    def poisoned(features, parts, bank):
        # What records of the first patient could at worst do to their own features.
        hurt = [replace(features[0], image=features[0].image * torch.nan), *features[1:]]
        return real(hurt, parts, bank)

    monkeypatch.setattr(private_training, "separable_loss", poisoned)
    broken, _, bank = gradients_of(encoder, data, start, public, job)
    monkeypatch.setattr(private_training, "separable_loss", real)
    whole, _, _ = gradients_of(encoder, data, start, public, job, bank=bank)
    assert np.isnan(broken[0]).any()
    for hurt, sound in zip(broken[1:], whole[1:], strict=True):
        assert np.array_equal(hurt, sound)
    total = patient_sum(Given(broken), range(len(broken)), 0.5)
    np.testing.assert_allclose(total, patient_sum(Given(whole[1:]), range(len(whole) - 1), 0.5))


# --- noise and sampling, as they reach the optimiser ---


@pytest.fixture
def sums(monkeypatch):
    """Every noised mean that the optimiser is given."""
    seen = []
    real = private_training.FactorOptimizer.step

    def step(self, number, mean):
        seen.append(mean)
        real(self, number, mean)

    monkeypatch.setattr(private_training.FactorOptimizer, "step", step)
    return seen


def steps_of(public, **changes):
    plan = {"clip": 0.5, "noise": 2.0, "rate": 0.3, "expected": 4.0, "public": public, **changes}
    return PatientSteps(**plan)


def long_job(job, steps):
    return job.model_copy(update={"train": job.train.model_copy(update={"steps": steps})})


def test_steps_without_anybody_are_noise_of_the_nominal_size(
    encoder, site_of, start, public, job, sums
):
    data = of_patients(site_of("s", counts=(12, 6, 6)))
    plan = steps_of(public, rate=1e-9)
    trained = train_privately(encoder, task_of(data, start), long_job(job, 16), plan)
    noise = np.concatenate(sums) * plan.expected
    assert len(sums) == 16 == trained.steps
    assert len(noise) > 40_000
    assert noise.std() == pytest.approx(plan.noise * plan.clip, rel=0.02)
    assert abs(noise.mean()) < 5 * plan.noise * plan.clip / np.sqrt(len(noise))
    assert trained.loss is None
    assert not trained.gradient_norms


def test_the_sum_has_its_patients_and_the_noise(encoder, site_of, start, public, job, sums):
    data = of_patients(site_of("s", counts=(12, 6, 6)))
    plan = steps_of(public, rate=1.0, noise=1.0)
    train_privately(encoder, task_of(data, start), long_job(job, 1), plan)
    found = gradients_of(encoder, data, start, public, job)[0]
    rest = sums[0] * plan.expected - patient_sum(Given(found), range(len(found)), plan.clip)
    assert rest.std() == pytest.approx(0.5, rel=0.05)


def test_groups_get_twice_the_noise(encoder, site_of, start, public, job, sums):
    data = of_patients(site_of("s", counts=(12, 6, 6)))
    plan = steps_of(public, rate=1e-9, groups=2)
    train_privately(encoder, task_of(data, start), long_job(job, 16), plan)
    noise = np.concatenate(sums) * plan.expected
    assert len(noise) > 40_000
    assert noise.std() == pytest.approx(2 * plan.noise * plan.clip, rel=0.02)


def test_two_trainings_have_other_noise(encoder, site_of, start, public, job, sums):
    data = of_patients(site_of("s", counts=(12, 6, 6)))
    for _ in range(2):
        train_privately(encoder, task_of(data, start), long_job(job, 1), steps_of(public))
    assert abs(np.corrcoef(sums[0], sums[1])[0, 1]) < 0.1


def test_every_patient_is_drawn_by_a_coin_of_its_own(
    encoder, site_of, start, public, job, monkeypatch
):
    data = of_patients(site_of("s", counts=(36, 6, 6)))  # 12 patients
    drawn = []

    def note(gradients, patients, norm):
        drawn.append([int(batch.pairs[0]) // 3 for batch in patients])
        return np.zeros(len(gradients.values))

    monkeypatch.setattr(private_training, "patient_sum", note)
    monkeypatch.setattr(private_training, "noised", lambda total, grid, draw: total)
    steps, rate = 1500, 0.15
    plan = steps_of(public, rate=rate)
    train_privately(encoder, task_of(data, start), long_job(job, steps), plan)
    counts = np.array([len(who) for who in drawn])
    assert len(drawn) == steps
    assert counts.mean() == pytest.approx(12 * rate, abs=5 * np.sqrt(12 * rate * 0.85 / steps))
    assert counts.var() == pytest.approx(12 * rate * (1 - rate), rel=0.2)
    assert (counts == 0).mean() == pytest.approx((1 - rate) ** 12, abs=0.05)  # empty ones happen
    each = np.bincount(np.concatenate(drawn).astype(int), minlength=12) / steps
    assert np.abs(each - rate).max() < 5 * np.sqrt(rate * (1 - rate) / steps)


def test_without_noise_and_with_everybody_it_learns(encoder, site_of, start, public, job):
    data = of_patients(site_of("s", counts=(36, 6, 6)), records=2)
    train = prepare(encoder, data, "train")
    encoder.use(AdapterView(start))
    bank = open_bank(encoder, data, public, job.train)

    def loss(adapter):
        encoder.use(AdapterView(adapter))
        part = private_training.Part(train, Batch(train.everything.pairs, *_NOTHING))
        with torch.no_grad():
            features = private_training.encode(encoder, [part])
            return private_training.separable_loss(features, [part], bank).item()

    plan = steps_of(public, rate=1.0, noise=0.0, clip=1e3, expected=18.0)
    trained = train_privately(encoder, task_of(data, start), long_job(job, 12), plan)
    after = SharedAdapter({**start.factors, **trained.factors})
    assert loss(after) < 0.9 * loss(start)
    assert {factor_of(name) for name in trained.factors} == {"B"}


_NOTHING = (np.zeros(0, np.intp), np.zeros(0, np.intp))


def test_both_factors_are_one_clipped_vector(encoder, site_of, start, public, job):
    data = of_patients(site_of("s", counts=(6, 6, 6)))
    (one, *_), _, _ = gradients_of(encoder, data, start, public, job, ("A", "B"))
    assert len(one) == encoder.layout.entries(("A", "B"), data.towers)
    assert len(one) == sum(array.size for array in start.factors.values())


# --- what is refused, and what is told ---


def test_half_precision_and_own_pictures_are_refused(
    clip_folder, encoder, site_of, start, public, job
):
    data = of_patients(site_of("s", counts=(12, 6, 6)))
    half = DualEncoder.load(
        ModelConfig(base=str(clip_folder), precision="bfloat16"), LoraConfig(rank=4, alpha=8)
    )
    with pytest.raises(RefusedError, match="single precision"):
        train_privately(half, task_of(data, start), job, steps_of(public))
    own = site_of("public", counts=(12, 6, 6), seed=9)
    with pytest.raises(RefusedError, match="pictures of the site's own"):
        train_privately(encoder, task_of(own, start), job, steps_of(public))


@pytest.mark.parametrize(
    ("patients", "rate", "expected"),
    [(7, 0.5, 3.5), (51, 0.2, 10.2), (1234, 0.1, 130), (2, 0.1, 1)],
)
def test_the_divisor_is_not_the_sites_exact_number(patients, rate, expected):
    assert expected_in_a_step(patients, rate) == pytest.approx(expected)


def test_the_public_sets_digest_is_the_one_that_describe_prints(tmp_path, site_of, encoder):
    write_site(tmp_path / "set", site_of("public", counts=(12, 6, 6), seed=9))
    source = SiteSource("public", tmp_path / "set" / "metadata.csv", tmp_path / "set")
    assert read_proxy_set(source, encoder).sha256 == describe_site(source).pairs_sha256


def test_prompts_of_findings_that_the_public_set_lacks_are_not_asked(encoder, site_of, public):
    prompts = site_of("s").prompts
    assert prompt_directions(encoder, list(prompts.values())).shape == (2, 24)
