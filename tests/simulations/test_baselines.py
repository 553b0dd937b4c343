"""Baselines: local-only and centralised, trained into files that are never trained twice."""

import json

import numpy as np
import pytest

from client.settings import SiteSettings
from client.training import validation_loss
from shared.config import JobConfig
from shared.errors import TrainingError
from shared.layout_file import load_adapter
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView
from simulations import baselines
from simulations.baselines import PROGRESS_FILE, run_baselines, train_centralised
from simulations.sites import CENTRALISED_FILE, LOCAL_FILE

KINDS = ("paired", "image", "text", "unpaired")


@pytest.fixture(scope="module")
def encoder(small_job: JobConfig) -> DualEncoder:
    return DualEncoder.load(small_job.model, small_job.lora, small_job.personalize.rank)


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

    def watch(parameters, plan, *rest):
        plan = list(plan)
        seen.extend(plan)
        return fit(parameters, plan, *rest)

    monkeypatch.setattr(baselines, "fit", watch)
    train_centralised(encoder, sites, small_job, seed=1)
    assert sum(len(step) for step in seen) == 2 * 4 * 4  # rounds x steps x sites
    for step in seen:
        assert len({id(stream) for stream, _ in step}) == 4  # no site twice in a step


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
        baselines, "load_site", lambda source, _: loads.append(source) or data[source]
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


def test_trains_only_what_the_job_asks_for(run, small_job) -> None:
    folder, settings, _ = run
    asked = small_job.evaluate.model_copy(update={"baselines": ["local"]})
    run_baselines(folder, small_job.model_copy(update={"evaluate": asked}), settings[:1])
    assert (folder / "sites" / "a" / LOCAL_FILE).exists()
    assert not (folder / CENTRALISED_FILE).exists()


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, caplog) -> None:
    assert baselines.main([str(tmp_path)]) == 2
    assert "no such job file" in caplog.text
