"""What was asked is remembered on the disk, and old questions are not new again."""

import stat

import pytest

from client.asked import AskedRounds
from shared.errors import StorageError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "asked.json"


def test_only_the_latest_question_may_be_repeated(path):
    asked = AskedRounds(path)
    assert asked.is_new("r", 1, 1)
    assert asked.is_new("r", 1, 1)  # nobody heard the answer
    assert asked.is_new("r", 2, 1)
    assert not asked.is_new("r", 1, 1)  # recorded, and played again
    assert asked.is_new("r", 2, 2)
    assert not asked.is_new("r", 2, 1)
    assert asked.is_new("r", 2, 2)
    assert asked.is_new("other", 1, 1)


def test_a_coordinator_may_go_back_with_a_higher_attempt(path):
    """A damaged checkpoint: rounds 2 and 3 are carried out anew."""
    asked = AskedRounds(path)
    for round_number in (1, 2, 3):
        assert asked.is_new("r", round_number, 1)
    assert asked.is_new("r", 2, 2)
    assert not asked.is_new("r", 3, 1)
    assert asked.is_new("r", 3, 2)
    assert not asked.is_new("r", 2, 2)


def test_it_is_remembered_over_a_restart_and_private(path):
    AskedRounds(path).is_new("r", 5, 3)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = AskedRounds(path)
    assert not again.is_new("r", 5, 2)
    assert again.is_new("r", 5, 3)


def test_what_cannot_be_remembered_is_not_trained(path, monkeypatch):
    def full(*_, **__):
        raise StorageError("no space left on the disk")

    asked = AskedRounds(path)
    monkeypatch.setattr("client.asked.write_atomic", full)
    with pytest.raises(StorageError):
        asked.is_new("r", 1, 1)
    monkeypatch.undo()
    assert asked.is_new("r", 1, 1)


@pytest.mark.parametrize("content", [b"", b"{", b'{"r": {"attempts": {"1": 0}}}', b'{"r": 1}'])
def test_a_damaged_file_is_not_taken_for_an_empty_one(path, content):
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"asked\.json: damaged"):
        AskedRounds(path)
