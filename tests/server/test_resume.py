"""A run that is killed at any step of a commit ends with the same bits."""

import errno
import os
import shutil

import pytest
from fake_federation import Federation, job_of

from server.history import RunHistory
from shared.errors import RunDirectoryError, StorageError

JOB = job_of(rounds=2, aggregate={"fold_every": 1})
NAMES = ("a", "b")


class CrashError(BaseException):
    """As if the process had been killed: nothing handles it."""


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch):
    """What a kill leaves is decided by the order of the calls, not by waiting for the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Digest of the adapter, and how often a run calls fsync and replace."""
    run = Federation(tmp_path_factory.mktemp("whole") / "run", JOB, NAMES)
    calls = {"fsync": 0, "replace": 0}
    with pytest.MonkeyPatch.context() as patch:
        for name in calls:
            patch.setattr(os, name, counted(calls, name, getattr(os, name)))
        outcome = run.run()
    return outcome.shared.sha256(), calls


def counted(calls, name, original):
    def call(*args, **kwargs):
        calls[name] += 1
        return original(*args, **kwargs)

    return call


def failing(number, original, error, before):
    """Raise at the k-th call, before or after it took effect; later calls work."""
    count = 0

    def call(*args, **kwargs):
        nonlocal count
        count += 1
        if count != number:
            return original(*args, **kwargs)
        if not before:
            original(*args, **kwargs)
        raise error

    return call


def sweep(folder, undisturbed, name, error, caught, before=True):
    """Break every run off at another call, go on, and compare."""
    digest, calls = undisturbed
    for number in range(1, calls[name] + 1):
        run = Federation(folder / f"{name}-{number}" / "run", JOB, NAMES)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, name, failing(number, getattr(os, name), error, before))
            with pytest.raises(caught):
                run.run()
        assert not [
            p for p in run.path.glob("checkpoints/round-*") if not (p / "manifest.json").exists()
        ]
        outcome = run.run()
        assert outcome.shared.sha256() == digest, f"{name} call {number}"
        assert outcome.complete
        assert set(outcome.evaluations) == set(NAMES)
        assert not list(run.path.rglob("*.unfinished"))
        assert "checkpoint-damaged" not in run.kinds(), "a row never precedes its directory"
        assert sorted(p.name for p in (run.path / "checkpoints").iterdir()) == [
            f"round-{n:04d}" for n in (1, 2)
        ]
        shutil.rmtree(run.path.parent)


def test_killed_before_any_rename(tmp_path, undisturbed):
    sweep(tmp_path, undisturbed, "replace", CrashError(), CrashError)


def test_killed_after_any_rename(tmp_path, undisturbed):
    sweep(tmp_path, undisturbed, "replace", CrashError(), CrashError, before=False)


def test_killed_at_any_fsync(tmp_path, undisturbed):
    sweep(tmp_path, undisturbed, "fsync", CrashError(), CrashError)


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_full_disk_at_any_step(tmp_path, undisturbed, name):
    full = OSError(errno.ENOSPC, "No space left on device")
    sweep(tmp_path, undisturbed, name, full, StorageError)


@pytest.mark.parametrize("method", ["open_round", "record_round", "finish_run"])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("error", [CrashError(), StorageError("full")])
def test_killed_around_the_transaction(tmp_path, undisturbed, method, before, error):
    run = Federation(tmp_path / "run", JOB, NAMES)
    with pytest.MonkeyPatch.context() as patch:
        call = failing(1, getattr(RunHistory, method), error, before)
        patch.setattr(RunHistory, method, call)
        with pytest.raises(type(error)):
            run.run()
    outcome = run.run()
    assert outcome.shared.sha256() == undisturbed[0]
    with run.history() as history:
        assert history.run("run").status == "finished"
        assert [r.round for r in history.committed_rounds("run")] == [1, 2]


def test_a_round_without_a_row_is_an_orphan_and_is_done_again(tmp_path, undisturbed):
    run = Federation(tmp_path / "run", JOB, NAMES)
    with pytest.MonkeyPatch.context() as patch:
        call = failing(2, RunHistory.record_round, CrashError(), True)
        patch.setattr(RunHistory, "record_round", call)
        with pytest.raises(CrashError):
            run.run()
    assert (run.path / "checkpoints" / "round-0002").exists()
    run.sites[0].seen.clear()
    outcome = run.run()
    asked = [(r.round, r.attempt) for r in run.sites[0].seen if r.kind == "train"]
    assert asked == [(2, 2)]
    assert outcome.resumed_rounds == [2]
    assert outcome.shared.sha256() == undisturbed[0]


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_a_damaged_last_round_is_done_again(tmp_path, undisturbed, damage):
    run = Federation(tmp_path / "run", JOB, NAMES)
    run.run()
    folder = run.path / "checkpoints" / "round-0002"
    if damage == "remove":
        shutil.rmtree(folder)
    else:
        path = folder / "shared.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    outcome = run.run()
    assert outcome.shared.sha256() == undisturbed[0]
    assert [e.round for e in run.events if e.kind == "checkpoint-damaged"] == [2]
    with run.history() as history:
        assert [e.action for e in history.audit_trail("run")] == ["round-withdrawn", "resumed"]


def test_a_finished_run_that_is_resumed_asks_nobody_to_work(tmp_path):
    run = Federation(tmp_path / "run", JOB, NAMES)
    first = run.run()
    for site in run.sites:
        site.seen.clear()
    again = run.run()
    assert {r.kind for site in run.sites for r in site.seen} == {"describe"}
    assert again.shared.sha256() == first.shared.sha256()
    assert again.evaluations == first.evaluations
    assert again.sites == first.sites
    assert again.round_costs == first.round_costs


def test_a_run_of_the_same_name_elsewhere_does_not_mix_with_it(tmp_path):
    Federation(tmp_path / "run", JOB, NAMES).run()
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(RunDirectoryError, match="another run of this name"):
        Federation(tmp_path / "run", JOB, NAMES).run()
