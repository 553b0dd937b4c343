"""Who trains at once, and how many: nobody is lost, and what does not fit is told."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.config import JobConfig
from shared.errors import ConfigError
from shared.model.encoder import DualEncoder
from simulations import cohorts as module
from simulations.cohorts import (
    CPU_SAMPLES,
    activation_bytes,
    cohorts,
    free_memory_bytes,
    loads,
    samples_at_once,
)


@pytest.fixture(scope="module")
def encoder(small_job: JobConfig) -> DualEncoder:
    return DualEncoder.load(small_job.model, small_job.lora)


LOADS = st.lists(st.integers(1, 40), max_size=30)


@given(LOADS, st.integers(1, 64))
def test_cohorts_are_neighbours_and_none_is_lost(sizes: list[int], most: int) -> None:
    load = {f"site-{number:02}": size for number, size in enumerate(sizes)}
    found = cohorts(list(load), load, most)
    assert [name for group in found for name in group] == list(load)
    assert all(found)
    for group in found:
        assert len(group) == 1 or sum(load[name] for name in group) <= most
    for group, following in pairwise(found):  # none is smaller than need be
        assert sum(load[name] for name in group) + load[following[0]] > most


@given(LOADS, st.integers(1, 64), st.integers(1, 40))
def test_cohorts_depend_on_names_and_loads_only(sizes: list[int], most: int, more: int) -> None:
    """A site that comes later changes nothing of the cohorts before its own."""
    load = {f"site-{number:02}": size for number, size in enumerate(sizes)}
    longer = {**load, "z": more}
    before, after = cohorts(list(load), load, most), cohorts(list(longer), longer, most)
    assert [name for group in after for name in group] == list(longer)
    kept = [[name for name in group if name != "z"] for group in after]
    assert [group for group in kept if group] == before


def test_one_sample_at_once_is_one_site_after_the_other() -> None:
    assert cohorts(["a", "b", "c"], {"a": 1, "b": 16, "c": 2}, 1) == [["a"], ["b"], ["c"]]


def test_a_sites_load_is_its_batch_or_all_it_has(site_of, small_job) -> None:
    sites = {
        "large": site_of(counts=(48, 4, 4)),
        "small": site_of(counts=(5, 4, 4)),
        "image": site_of(kind="image", counts=(9, 4, 4)),
        "unpaired": site_of(kind="unpaired", counts=(20, 4, 4)),
        "empty": site_of(counts=(0, 4, 4)),
    }
    found = loads(sites, small_job)
    assert found == {"large": 16, "small": 5, "image": 9, "unpaired": 10, "empty": 1}


# How many samples


def with_free(monkeypatch, encoder: DualEncoder, samples: float) -> None:
    """A machine whose free memory is enough for so many samples."""
    free = int(samples * activation_bytes(encoder) / module._SHARE) + 1
    monkeypatch.setattr(module, "free_memory_bytes", lambda device: free)


def test_is_a_power_of_two_that_fits_and_grows_with_memory(encoder, small_job, monkeypatch) -> None:
    found = []
    for samples in (16, 17, 31.9, 32, 100, 127.9, 128, 1e6):
        with_free(monkeypatch, encoder, samples)
        found.append(samples_at_once(encoder, small_job))
        assert found[-1] <= samples
    assert found == [16, 16, 16, 32, 64, 64, CPU_SAMPLES, CPU_SAMPLES]


def test_says_what_to_lower_when_not_one_site_fits(encoder, small_job, monkeypatch) -> None:
    with_free(monkeypatch, encoder, 15)
    with pytest.raises(ConfigError) as error:
        samples_at_once(encoder, small_job)
    (line,) = str(error.value).splitlines()
    assert line.startswith("train.batch_size = 16: one step needs about ")
    for words in ("GiB", "on cpu", "lower train.batch_size", "model.max_tokens", "lora.layers"):
        assert words in line
    assert "model.precision = 'bfloat16'" in line


def test_the_job_may_say_how_many(encoder, small_job, monkeypatch) -> None:
    monkeypatch.setattr(module, "free_memory_bytes", lambda device: 0)
    own = small_job.simulation.model_copy(update={"samples_at_once": 3})
    assert samples_at_once(encoder, small_job.model_copy(update={"simulation": own})) == 3


def test_activations_are_counted_and_the_encoder_is_left_as_it_was(encoder, small_job) -> None:
    each = activation_bytes(encoder)
    # One pair goes through 2 x 2 layers of width 32, as 17 places of a picture and 16 of a text,
    # and every layer keeps at least the inputs of its linear layers: 32 + 32 + 32 + 48 numbers.
    assert each > 2 * (17 + 16) * (3 * 32 + 48) * 4
    assert each < 20 * 2 * (17 + 16) * (3 * 32 + 48) * 4
    assert activation_bytes(encoder) == each
    pixels = torch.zeros(2, *encoder.picture_size, 1, dtype=torch.uint8)
    assert encoder.encode_images(pixels).shape[0] == 2  # no stack is in use


def test_memory_grows_with_pairs_and_shrinks_with_what_is_advised(encoder, small_job) -> None:
    """Twice the pairs, twice the memory; the advice of the error message helps."""
    kept = [module._kept_bytes(encoder, pairs) for pairs in (2, 4, 6, 8)]
    steps = [after - before for before, after in pairwise(kept)]
    assert steps[0] > 0
    assert steps == pytest.approx([steps[0]] * 3, rel=0.02)
    each = activation_bytes(encoder)
    for model, lora in (
        ({"max_tokens": 8}, {}),
        ({}, {"layers": "top:1"}),
        ({"precision": "bfloat16"}, {}),
    ):
        smaller = DualEncoder.load(
            small_job.model.model_copy(update=model), small_job.lora.model_copy(update=lora)
        )
        assert activation_bytes(smaller) < 0.9 * each


def test_free_memory_of_this_machine_is_a_number_of_bytes(monkeypatch) -> None:
    found = free_memory_bytes(torch.device("cpu"))
    assert 2**26 < found < 2**50

    def missing(*_args, **_options):
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", missing)  # a system without /proc
    assert 2**26 < free_memory_bytes(torch.device("cpu")) < 2**50
