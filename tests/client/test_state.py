"""A site's own folder: private files, replaced whole, damaged ones count as not there."""

import errno
import os
import stat

import numpy as np
import pytest

import client.keeping
import client.state
from client.state import SiteState, StoredPersonal
from shared.adapter import adapter_sha256
from shared.errors import StorageError
from shared.parts import PARTS

ADAPTER = {"x.lora_A.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
SHA, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def state(tmp_path):
    return SiteState(tmp_path / "north")


def test_a_personal_adapter_belongs_to_one_shared_adapter(state):
    state.save_personal(SHA, StoredPersonal(ADAPTER, {"image": 1.0, "text": 0.25}), "run")
    loaded = state.load_personal(SHA)
    assert adapter_sha256(loaded.adapter) == adapter_sha256(ADAPTER)
    assert loaded.alpha == {"image": 1.0, "text": 0.25}
    assert state.load_personal(OTHER) is None


def test_an_empty_personal_adapter_can_be_kept(state):
    state.save_personal(SHA, StoredPersonal({}, {"image": 0.0}), "run")
    assert state.load_personal(SHA) == StoredPersonal({}, {"image": 0.0})


def test_a_renamed_personal_adapter_is_not_taken_for_another(state):
    state.save_personal(SHA, StoredPersonal(ADAPTER, {}), "run")
    folder = state.folder / "personal"
    (folder / f"{SHA}.safetensors").rename(folder / f"{OTHER}.safetensors")
    assert state.load_personal(OTHER) is None


def test_a_part_is_held_by_its_digest(state):
    sha256 = adapter_sha256(ADAPTER)
    assert state.held("A", sha256) is None
    state.hold("A", adapter_sha256(ADAPTER), ADAPTER, "run")
    assert adapter_sha256(state.held("A", sha256)) == sha256
    assert state.held("A", OTHER) is None
    assert state.held("B", sha256) is None


def test_damaged_files_count_as_not_there(state):
    state.hold("A", adapter_sha256(ADAPTER), ADAPTER, "run")
    state.save_personal(SHA, StoredPersonal(ADAPTER, {}), "run")
    for path in state.folder.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:20])
    assert state.held("A", adapter_sha256(ADAPTER)) is None
    assert state.load_personal(SHA) is None


def test_an_answer_belongs_to_its_question(state):
    assert state.answer(SHA) is None
    state.keep_answer(SHA, b"answer", "run")
    assert state.answer(SHA) == b"answer"
    assert state.answer(OTHER) is None
    state.keep_answer(OTHER, b"next", "run")
    assert state.answer(SHA) is None


def test_everything_is_readable_by_its_owner_only(state):
    state.hold("A", adapter_sha256(ADAPTER), ADAPTER, "run")
    state.keep_answer(SHA, b"answer", "run")
    state.save_personal(SHA, StoredPersonal(ADAPTER, {}), "run")
    for path in [state.folder, *state.folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def test_a_full_disk_leaves_what_was_there_before(state, monkeypatch):
    state.save_personal(SHA, StoredPersonal(ADAPTER, {"image": 1.0}), "run")
    state.hold("A", adapter_sha256(ADAPTER), ADAPTER, "run")

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError):
            state.save_personal(SHA, StoredPersonal(ADAPTER, {"image": 0.0}), "run")
        patch.setattr(os, "fchmod", full)
        with pytest.raises(StorageError):
            state.hold("A", OTHER, {"x.lora_A.weight": np.zeros((2, 3), np.float32)}, "run")
    assert state.load_personal(SHA).alpha == {"image": 1.0}
    assert state.held("A", adapter_sha256(ADAPTER)) is not None
    for folder in ("held", "personal"):
        assert len(list((state.folder / folder).iterdir())) == 1


def test_a_short_answer_leaves_nothing_of_a_long_one(state):
    state.keep_answer(SHA, b"a long answer, written over", "run")
    state.keep_answer(OTHER, b"short", "run")
    assert state.answer(OTHER) == b"short"
    assert b"long" not in (state.folder / "answer").read_bytes()


@pytest.mark.parametrize("written", [0, 10, 40, 64, 66])
def test_an_answer_that_was_cut_short_by_a_kill_is_not_given_again(state, written):
    state.keep_answer(SHA, b"answer one", "run")
    path = state.folder / "answer"
    before = path.read_bytes()
    state.keep_answer(OTHER, b"answer two", "run")
    after = path.read_bytes()
    path.write_bytes(after[:written] + before[written:])
    assert state.answer(SHA) == (b"answer one" if written == 0 else None)
    assert state.answer(OTHER) is None


def test_a_part_that_is_held_is_not_written_again(state, monkeypatch):
    sha256 = adapter_sha256(ADAPTER)
    state.hold("A", sha256, ADAPTER, "run")
    refuse = lambda *_, **__: pytest.fail("written again")  # noqa: E731
    monkeypatch.setattr(client.keeping, "write_atomic", refuse)
    state.hold("A", sha256, ADAPTER, "run")
    assert state.held("A", sha256) is ADAPTER


def test_a_held_part_is_read_from_the_disk_by_another_process(state):
    sha256 = adapter_sha256(ADAPTER)
    state.hold("A", sha256, ADAPTER, "run")
    client.state._recent.clear()
    assert adapter_sha256(state.held("A", sha256)) == sha256


def test_sites_can_hold_parts_together(tmp_path, monkeypatch):
    written, replace = [], client.keeping.write_atomic
    monkeypatch.setattr(
        client.keeping,
        "write_atomic",
        lambda path, c, **how: (written.append(path), replace(path, c, **how)),
    )
    sites = [SiteState(tmp_path / name, held=tmp_path / "held") for name in ("a", "b", "c")]
    for values in (ADAPTER, {name: array + 1 for name, array in ADAPTER.items()}):
        sha256 = adapter_sha256(values)
        for site in sites:
            site.hold("A", sha256, values, "run")
        assert all(site.held("A", sha256) is values for site in sites)
    assert written == [tmp_path / "held" / "A.safetensors"] * 2
    assert sites[0].held("A", adapter_sha256(ADAPTER)) is None
    assert stat.S_IMODE((tmp_path / "held").stat().st_mode) == 0o700


def test_only_the_parts_of_one_adapter_stay_in_memory(tmp_path):
    for number in range(10):
        SiteState(tmp_path / str(number)).hold("A", adapter_sha256(ADAPTER), ADAPTER, "run")
    assert len(client.state._recent) == len(PARTS)


def test_a_damaged_answer_is_not_given_again(state):
    state.keep_answer(SHA, b"answer", "run")
    path = state.folder / "answer"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert state.answer(SHA) is None
