"""Two runs that begin at the same moment get two folders."""

import threading

import pytest

from server.run_files import new_run_folder
from shared.errors import RunDirectoryError


def test_runs_that_begin_at_the_same_moment_get_folders_of_their_own(tmp_path):
    names, start = [], threading.Barrier(8)

    def begin():
        start.wait(10)
        with new_run_folder(tmp_path / "runs", "toy-1", set(), "another --out") as path:
            (path / "manifest.json").write_text("{}")
            names.append(path.name)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(names) == ["toy-1", *(f"toy-1-{n}" for n in range(2, 9))]


def test_a_name_that_the_history_knows_is_not_given_again(tmp_path):
    with new_run_folder(tmp_path, "toy-1", {"toy-1", "toy-1-2"}, "another --out") as path:
        assert path == tmp_path / "toy-1-3"


def test_a_run_that_never_began_leaves_nothing(tmp_path):
    with (
        pytest.raises(ValueError, match="bad"),
        new_run_folder(tmp_path / "runs", "toy-1", set(), "another --out"),
    ):
        raise ValueError("bad input")
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_was_there_stays(tmp_path):
    with new_run_folder(tmp_path, "toy-1", set(), "another --out") as path:
        assert path.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_where_no_folder_can_be_made_that_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunDirectoryError, match="choose another --out"),
        new_run_folder(tmp_path / "file", "toy-1", set(), "another --out"),
    ):
        pass
