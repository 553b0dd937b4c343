import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from fake_federation import BASE, LAYOUT, job_of
from hypothesis import given
from hypothesis import strategies as st

from server.aggregation import AltFold
from server.aggregation.folding import fold
from server.checkpoint import RunStore
from server.job_text import to_toml
from server.run_files import DamagedCheckpointError
from shared import files
from shared.adapter import SharedAdapter
from shared.config import load_job, parse_job
from shared.errors import RunDirectoryError, StorageError


@pytest.fixture
def store(tmp_path):
    with RunStore.create(
        tmp_path / "run", job_of(), base_sha256=BASE, facts={"numpy": "2"}
    ) as made:
        yield made


def adapter(seed=1):
    start = AltFold().start(LAYOUT, seed)
    factors = {name: values + 1 for name, values in start.factors.items()}
    return fold(SharedAdapter(factors), LAYOUT, seed)


def test_a_run_directory_opens_as_it_was_made(store):
    store.close()
    with RunStore.open(store.path) as again:
        assert again.job == store.job
        assert again.manifest == store.manifest
        assert (again.run, again.base_sha256, again.manifest["numpy"]) == ("run", BASE, "2")


def test_a_round_comes_back_with_every_bit(store):
    sha = store.commit_round(1, adapter(), {"attempt": 1})
    assert store.load_round(1, sha).sha256() == adapter().sha256()
    manifest = json.loads((store.round_path(1) / "manifest.json").read_text())
    assert manifest["adapter_sha256"] == adapter().sha256()
    assert sorted(p.name for p in store.round_path(1).iterdir()) == [
        "manifest.json",
        "shared.safetensors",
    ]


@pytest.mark.parametrize("name", ["manifest.json", "shared.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_damage_is_detected_when_a_round_is_read(store, name, damage):
    sha = store.commit_round(1, adapter(), {})
    path = store.round_path(1) / name
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        kept = {"flip": content, "cut": content[:-1], "empty": b""}[damage]
        path.write_bytes(kept)
    with pytest.raises(DamagedCheckpointError, match="round-0001"):
        store.load_round(1, sha)


def test_orphans_and_unfinished_files_are_removed(store):
    sha = store.commit_round(1, adapter(), {})
    store.commit_round(2, adapter(2), {})
    (store.path / "checkpoints" / ".round-0003").mkdir()
    (store.path / f"results.json{files.TEMPORARY}").write_text("half")
    assert store.remove_orphans({1}) == [2]
    assert [p.name for p in (store.path / "checkpoints").iterdir()] == ["round-0001"]
    assert not (store.path / f"results.json{files.TEMPORARY}").exists()
    store.load_round(1, sha)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunDirectoryError, match=r"no manifest\.json"):
        RunStore.open(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(RunDirectoryError, match=r"manifest\.json: damaged"):
        RunStore.open(tmp_path)


def test_another_format_is_refused(store):
    store.close()
    manifest = dict(store.manifest) | {"format": 2}
    (store.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunDirectoryError, match="format 2, expected 1"):
        RunStore.open(store.path)


def test_another_job_is_refused(store):
    store.close()
    with pytest.raises(RunDirectoryError, match="another job"):
        RunStore.open(store.path, job_of(seed=9))
    moved = job_of(simulation={"device": "cpu"}, data={"folder": "/elsewhere"})
    with RunStore.open(store.path, moved) as again:
        assert again.job.data.folder == "/elsewhere"


def test_a_job_file_that_was_edited_is_refused(store):
    store.close()
    path = store.path / "job.toml"
    path.write_text(path.read_text().replace("rounds = 5", "rounds = 6"))
    with pytest.raises(RunDirectoryError, match="was changed after the run began"):
        RunStore.open(store.path)


def test_a_second_run_in_the_same_folder_is_refused(store):
    with pytest.raises(RunDirectoryError, match="--resume"):
        RunStore.create(store.path, job_of(), base_sha256=BASE)


def test_only_one_process_works_on_a_run(store):
    code = (
        "import sys; from pathlib import Path; from server.checkpoint import RunStore\n"
        "RunStore.open(Path(sys.argv[1])).close()"
    )
    held = subprocess.run(
        [sys.executable, "-c", code, str(store.path)], capture_output=True, text=True, check=False
    )
    assert "another process works on this run" in held.stderr
    with RunStore.open(store.path, lock=False) as reader:
        assert reader.run == "run"
    store.close()
    RunStore.open(store.path).close()


@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir", "open"])
def test_a_full_disk_leaves_the_round_before_intact(store, monkeypatch, call):
    sha = store.commit_round(1, adapter(), {})

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full) if call != "open" else patch.setattr(files.Path, "open", full)
        with pytest.raises(StorageError, match="round 1 is intact; free space and resume"):
            store.commit_round(2, adapter(2), {})
    assert store.load_round(1, sha).sha256() == adapter().sha256()
    assert not store.round_path(2).exists()
    store.commit_round(2, adapter(2), {})


def test_an_atomic_write_keeps_the_old_file_when_it_fails(store, monkeypatch):
    store.write_atomic("results.json", b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="no space left"):
            store.write_atomic("results.json", b"new")
    assert (store.path / "results.json").read_bytes() == b"old"
    assert not list(store.path.glob(f"*{files.TEMPORARY}"))


@pytest.mark.parametrize(
    "site", ["north", "../../etc/passwd", "a/b", "Zürich 2", "." * 3, "x" * 180]
)
def test_a_sites_name_never_leads_out_of_the_run(store, site):
    store.write_record("evaluations", site, {"value": 1})
    path = store.record_path("evaluations", site)
    assert path.resolve().parent == (store.path / "evaluations").resolve()
    assert store.read_records("evaluations") == {site: {"site": site, "value": 1}}


def test_a_damaged_record_counts_as_missing(store):
    store.write_record("evaluations", "north", {})
    store.record_path("evaluations", "north").write_text("{")
    assert store.read_records("evaluations") == {}


@given(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    st.floats(1e-9, 1.0),
    st.sampled_from(["altfold", "fedavg", "ffa"]),
    st.booleans(),
)
def test_a_job_survives_its_file(tmp_path_factory, folder, rate, rule, epochs):
    train = {"learning_rate": rate} | ({"epochs": 0.5} if epochs else {"steps": 3})
    job = parse_job(
        {
            "name": "a",
            "data": {"folder": folder, "columns": {folder: "x"}, "image_only": [folder]},
            "train": train,
            "aggregate": {"rule": rule},
        }
    )
    path = tmp_path_factory.mktemp("job") / "job.toml"
    path.write_text(to_toml(job), encoding="utf-8")
    assert load_job(path) == job
    assert np.isfinite(load_job(path).train.learning_rate)
