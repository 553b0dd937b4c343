"""Baselines: local-only and centralised, trained into files that are never trained twice."""

import json
from dataclasses import replace

import numpy as np
import pytest

from client.settings import SiteSettings
from client.validation import validation_loss
from shared.config import JobConfig
from shared.errors import TrainingError
from shared.layout_file import load_adapter
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView
from shared.seeding import derive_seed
from simulations import baselines
from simulations.baselines import PROGRESS_FILE, run_baselines, train_centralised
from simulations.sites import CENTRALISED_FILE, LOCAL_FILE

KINDS = ("paired", "image", "text", "unpaired")


@pytest.fixture(scope="module")
def encoder(small_job: JobConfig) -> DualEncoder:
    return DualEncoder.load(small_job.model, small_job.lora)


@pytest.fixture(scope="module")
def sites(site_of):
    return [site_of(name=kind, kind=kind, seed=n) for n, kind in enumerate(KINDS)]


def test_one_adapter_learns_from_all_kinds_of_sites(encoder, sites, small_job) -> None:
    job = small_job.model_copy(update={"train": small_job.train.model_copy(update={"steps": 10})})
    found = train_centralised(encoder, sites, job, seed=1)
    assert set(found.factors) == set(encoder.layout.names())
    for data in sites:
        before = validation_loss(encoder, data, AdapterView(), job)
        assert validation_loss(encoder, data, AdapterView(found), job) < before
    assert found.sha256() == train_centralised(encoder, sites, job, seed=1).sha256()
    assert found.sha256() != train_centralised(encoder, sites, job, seed=2).sha256()


def test_takes_as_many_site_batches_as_the_federation(
    encoder, sites, small_job, monkeypatch
) -> None:
    seen = []
    fit = baselines.fit

    def watch(encoder, stack, learners, *rest):
        (learner,) = learners
        plan = [next(learner.plan) for _ in range(learner.steps)]
        seen.extend(plan)
        return fit(encoder, stack, [replace(learner, plan=iter(plan))], *rest)

    monkeypatch.setattr(baselines, "fit", watch)
    train_centralised(encoder, sites, small_job, seed=1)
    assert sum(len(step) for step in seen) == 2 * 4 * 4  # rounds x steps x sites
    for step in seen:
        assert len({id(block.part.prepared) for block in step}) == 4  # no site twice in a step
        assert sum(block.weight for block in step) == pytest.approx(1.0)
        assert {block.part.adapter for block in step} == {0}  # they all train the one adapter


def test_sites_without_records_to_learn_from_are_left_out(encoder, site_of, small_job) -> None:
    empty = site_of(name="one-pair", counts=(1, 2, 2))
    with pytest.raises(TrainingError, match="no site"):
        train_centralised(encoder, [empty], small_job, seed=1)
    train_centralised(encoder, [empty, site_of()], small_job, seed=1)


@pytest.fixture
def run(tmp_path, site_of, monkeypatch, encoder):
    """A run directory with two sites, one of which has a single pair."""
    data = {"a": site_of(name="a"), "b": site_of(name="b", counts=(1, 2, 2))}
    loads = []
    monkeypatch.setattr(
        baselines, "load_records", lambda site, _: loads.append(site.source) or data[site.source]
    )
    monkeypatch.setattr(baselines, "encoder_for", lambda job, device: encoder)
    settings = [
        SiteSettings(name=n, source=n, state=tmp_path / "sites" / n, references={}) for n in data
    ]
    return tmp_path, settings, loads


def test_writes_files_that_load_and_does_nothing_twice(run, small_job, encoder) -> None:
    folder, settings, loads = run
    run_baselines(folder, small_job, settings)
    local = folder / "sites" / "a" / LOCAL_FILE
    for path in (local, folder / CENTRALISED_FILE):
        found = load_adapter(path)
        assert sorted(found.factors) == sorted(encoder.layout.names())
        assert all(np.isfinite(array).all() for array in found.factors.values())
    assert not (folder / "sites" / "b" / LOCAL_FILE).exists()
    progress = json.loads((folder / PROGRESS_FILE).read_text())
    assert progress == {
        "done": ["centralised", "local/a"],
        "failed": {"local/b": "too-few-records"},
    }
    written = {path: path.stat().st_mtime_ns for path in (local, folder / CENTRALISED_FILE)}
    run_baselines(folder, small_job, settings[:1])
    assert len(loads) == 2  # nothing was missing, so nothing was loaded again
    assert written == {path: path.stat().st_mtime_ns for path in written}


def local_bits(folder) -> dict[str, bytes]:
    return {p.parent.name: p.read_bytes() for p in sorted(folder.glob(f"sites/*/{LOCAL_FILE}"))}


def test_local_baselines_train_in_cohorts_and_a_run_that_goes_on_gets_the_same_bits(
    tmp_path, site_of, monkeypatch, encoder, small_job
) -> None:
    kinds = zip("abcd", ("paired", "image", "paired", "text"), (20, 12, 8, 9), strict=True)
    data = {n: site_of(n, k, (count, 4, 4), seed=ord(n)) for n, k, count in kinds}
    cohorts = []
    train_local = baselines.train_local

    def watch(encoder, together, job):
        cohorts.append([site.name for site, _ in together])
        return train_local(encoder, together, job)

    monkeypatch.setattr(baselines, "train_local", watch)
    monkeypatch.setattr(baselines, "load_records", lambda site, _: data[site.name])
    monkeypatch.setattr(baselines, "encoder_for", lambda job, device: encoder)
    asked = small_job.evaluate.model_copy(update={"baselines": ["local"]})
    own = small_job.simulation.model_copy(update={"samples_at_once": 28})
    job = small_job.model_copy(update={"evaluate": asked, "simulation": own})

    def settings(folder):
        return [SiteSettings(name=n, source=n, state=folder / "sites" / n, references={})
                for n in data]  # fmt: skip

    whole = tmp_path / "whole"
    run_baselines(whole, job, settings(whole))
    assert cohorts == [["a", "b"], ["c", "d"]]  # 16 + 12 and 8 + 9 samples a step
    assert sorted(local_bits(whole)) == list("abcd")
    # Interrupted after some files: the others' cohorts are formed as if none were there.
    before = local_bits(whole)
    (whole / "sites" / "b" / LOCAL_FILE).unlink()
    run_baselines(whole, job, settings(whole))
    assert cohorts[2:] == [["a", "b"]]
    assert local_bits(whole) == before
    for name, content in before.items():
        (alone,) = train_local(encoder, [(data[name], derive_seed(job.seed, "local", name))], job)
        path = tmp_path / "alone.safetensors"
        path.write_bytes(content)
        found = load_adapter(path)
        for factor, array in alone.factors.items():
            np.testing.assert_allclose(found.factors[factor], array, atol=1e-5)


def test_trains_only_what_the_job_asks_for(run, small_job) -> None:
    folder, settings, _ = run
    asked = small_job.evaluate.model_copy(update={"baselines": ["local"]})
    run_baselines(folder, small_job.model_copy(update={"evaluate": asked}), settings[:1])
    assert (folder / "sites" / "a" / LOCAL_FILE).exists()
    assert not (folder / CENTRALISED_FILE).exists()


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, caplog) -> None:
    assert baselines.main([str(tmp_path)]) == 2
    assert "no such job file" in caplog.text
