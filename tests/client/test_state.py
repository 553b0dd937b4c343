"""A site's own folder: private files, replaced whole, damaged ones count as not there."""

import errno
import os
import stat

import numpy as np
import pytest

from client.state import SiteState, StoredPersonal
from shared.adapter import adapter_sha256
from shared.errors import StorageError

ADAPTER = {"x.lora_A.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
SHA, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def state(tmp_path):
    return SiteState(tmp_path / "north")


def test_a_personal_adapter_belongs_to_one_shared_adapter(state):
    state.save_personal(SHA, StoredPersonal(ADAPTER, {"image": 1.0, "text": 0.25}))
    loaded = state.load_personal(SHA)
    assert adapter_sha256(loaded.adapter) == adapter_sha256(ADAPTER)
    assert loaded.alpha == {"image": 1.0, "text": 0.25}
    assert state.load_personal(OTHER) is None


def test_an_empty_personal_adapter_can_be_kept(state):
    state.save_personal(SHA, StoredPersonal({}, {"image": 0.0}))
    assert state.load_personal(SHA) == StoredPersonal({}, {"image": 0.0})


def test_a_renamed_personal_adapter_is_not_taken_for_another(state):
    state.save_personal(SHA, StoredPersonal(ADAPTER, {}))
    folder = state.folder / "personal"
    (folder / f"{SHA}.safetensors").rename(folder / f"{OTHER}.safetensors")
    assert state.load_personal(OTHER) is None


def test_a_part_is_held_by_its_digest(state):
    sha256 = adapter_sha256(ADAPTER)
    assert state.held("A", sha256) is None
    state.hold("A", ADAPTER)
    assert adapter_sha256(state.held("A", sha256)) == sha256
    assert state.held("A", OTHER) is None
    assert state.held("B", sha256) is None


def test_damaged_files_count_as_not_there(state):
    state.hold("A", ADAPTER)
    state.save_personal(SHA, StoredPersonal(ADAPTER, {}))
    for path in state.folder.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:20])
    assert state.held("A", adapter_sha256(ADAPTER)) is None
    assert state.load_personal(SHA) is None


def test_an_answer_belongs_to_its_question(state):
    assert state.answer(SHA) is None
    state.keep_answer(SHA, b"answer")
    assert state.answer(SHA) == b"answer"
    assert state.answer(OTHER) is None
    state.keep_answer(OTHER, b"next")
    assert state.answer(SHA) is None


def test_everything_is_readable_by_its_owner_only(state):
    state.hold("A", ADAPTER)
    state.keep_answer(SHA, b"answer")
    state.save_personal(SHA, StoredPersonal(ADAPTER, {}))
    for path in [state.folder, *state.folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def test_a_full_disk_leaves_what_was_there_before(state, monkeypatch):
    state.save_personal(SHA, StoredPersonal(ADAPTER, {"image": 1.0}))
    state.hold("A", ADAPTER)

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError):
            state.save_personal(SHA, StoredPersonal(ADAPTER, {"image": 0.0}))
        patch.setattr(os, "fchmod", full)
        with pytest.raises(StorageError):
            state.hold("A", {"x.lora_A.weight": np.zeros((2, 3), np.float32)})
    assert state.load_personal(SHA).alpha == {"image": 1.0}
    assert state.held("A", adapter_sha256(ADAPTER)) is not None
    for folder in ("held", "personal"):
        assert len(list((state.folder / folder).iterdir())) == 1


def test_a_damaged_answer_is_not_given_again(state):
    state.keep_answer(SHA, b"answer")
    path = state.folder / "answer"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert state.answer(SHA) is None
