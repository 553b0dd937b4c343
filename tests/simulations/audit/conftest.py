"""A toy that can be over-trained: random pictures with random words, on a small random base."""

import numpy as np
import pytest
from rich.console import Console

from shared.config import JobConfig
from simulations.audit.attacks import Planted
from simulations.audit.canaries import Pairs, references
from simulations.audit.rehearsal import set_up
from tests.conftest import WORDS
from tests.integration.conftest import write_site


def random_pairs(count, seed, words=9):
    """Noise for pictures and random words for reports: nothing that generalises."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 16, 16, 1)).astype(np.uint8)
    texts = tuple(" ".join(rng.choice(WORDS, words, replace=False)) for _ in range(count))
    return Pairs(pixels, texts)


@pytest.fixture(scope="session")
def planted_of():
    """Canaries of a number, half of them to be trained on."""

    def make(count, encoder, seed=5):
        inside = np.zeros(count, bool)
        inside[np.random.default_rng(seed).permutation(count)[: count // 2]] = True
        others = references(encoder, seed, 48)
        pairs = random_pairs(48, seed + 1)
        return Planted(
            random_pairs(count, seed),
            inside,
            type(others)(_with(others.data, pairs), ""),
        )

    return make


def _with(data, pairs):
    return type(data)(data.name, (), {}, {**data.splits, "train": pairs.split()}, data.origin)


@pytest.fixture(scope="session")
def quiet():
    return Console(quiet=True)


@pytest.fixture(scope="session")
def folders(tmp_path_factory, site_of):
    """Three small sites and a public set."""
    folder = tmp_path_factory.mktemp("audited")
    for number, name in enumerate(("a", "b", "c")):
        data = site_of(name, counts=(32 if name == "a" else 16, 8, 8), seed=number)
        write_site(folder / "sites" / name, data)
    write_site(folder / "public", site_of("public", counts=(24, 8, 8), seed=9))
    return folder


@pytest.fixture(scope="session")
def make_job(folders, clip_folder):
    """A job on the toy; with an epsilon it is private."""

    def make(epsilon=None, **tables):
        tree = {
            "name": "audited",
            "rounds": 3,
            "data": {"folder": str(folders / "sites")},
            "model": {"base": str(clip_folder), "precision": "float32"},
            "lora": {"rank": 8, "alpha": 16},
            "train": {
                "steps": 40, "batch_size": 64, "shift_pixels": 0, "learning_rate": 0.01
            },
            "personalize": {"method": "none"},
            "evaluate": {"minimum_count": 1, "bootstrap": 100, "baselines": []},
            "aggregate": {"weighting": "equal"},
            "simulation": {"device": "cpu", "workers": 1},
        }  # fmt: skip
        if epsilon is not None:
            tree["privacy"] = {
                "differential_privacy": True, "epsilon": epsilon, "sampling_rate": 0.2
            }  # fmt: skip
            tree["proxy"] = {"folder": str(folders / "public")}
            tree["train"]["steps"] = 12
        for table, values in tables.items():
            tree[table] = {**tree.get(table, {}), **values} if isinstance(values, dict) else values
        return JobConfig.model_validate(tree)

    return make


@pytest.fixture
def stage_of(tmp_path):
    """The sites of a job."""

    def make(job, site="a"):
        return set_up(tmp_path / "audit", job, site)

    return make
