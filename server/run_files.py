"""The files of a run directory, one by one; ``server.checkpoint`` makes a whole of them."""

import fcntl
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from shared import files
from shared.config import JobConfig, load_job
from shared.errors import ConfigError, RunDirectoryError, StorageError

FORMAT = 1
"""Of the run directory; another format is refused."""

_KEYS = {"run", "token", "created", "job_sha256", "base_sha256"}


class DamagedCheckpointError(StorageError):
    """A committed round's directory is missing or differs from what was committed."""


@contextmanager
def new_run_folder(runs: Path, stem: str, known: Collection[str], other: str) -> Iterator[Path]:
    """Make the folder of a new run; one into which nothing is written in the block is removed.

    Two processes that look at the same moment get two folders: making it is what decides.

    Args:
        runs: Holds the runs.
        stem: The run's name, to which ``-2`` and so on is added where it is taken.
        known: Names that the history holds already.
        other: What to choose instead, such as ``another --out``.

    Raises:
        RunDirectoryError: If no name is free, or the folder may not be written.
        StorageError: If it cannot be made.
    """
    made_runs = not runs.exists()
    path = _made(runs, stem, known, other)
    try:
        yield path
    finally:
        with suppress(OSError):  # there is something in it
            path.rmdir()
            if made_runs:
                runs.rmdir()


def _made(runs: Path, stem: str, known: Collection[str], other: str) -> Path:
    for number in range(1, 10_000):
        path = runs / (stem if number == 1 else f"{stem}-{number}")
        if path.name in known:
            continue
        try:
            with files.storage_errors(f"{path}: the run directory cannot be made"):
                path.mkdir(parents=True)
        except StorageError as error:
            if not isinstance(error.__cause__, FileExistsError) or not path.exists():
                if isinstance(error.__cause__, PermissionError | NotADirectoryError):
                    raise RunDirectoryError(f"{error}; choose {other}") from None
                raise
        else:
            return path
    raise RunDirectoryError(f"{runs}: holds too many runs of {stem}; choose {other}")


def read_manifest(path: Path) -> dict[str, Any]:
    """Return a run's ``manifest.json``.

    Raises:
        RunDirectoryError: If there is none, or it is of another format.
    """
    manifest: dict[str, Any] = {}
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        found = manifest["format"]
        whole = found != FORMAT or manifest.keys() >= _KEYS
    except FileNotFoundError:
        raise RunDirectoryError(f"{path}: is not a run (it has no manifest.json)") from None
    except NotADirectoryError:
        raise RunDirectoryError(f"{path}: is a file; expected a run's folder") from None
    except (OSError, ValueError, KeyError, TypeError):
        found, whole = None, False
    if not whole:
        raise RunDirectoryError(
            f"{path / 'manifest.json'}: damaged, or not that of a run; start a new run"
        )
    if found != FORMAT:
        raise RunDirectoryError(
            f"{path}: is a run of format {found!r}, expected {FORMAT}; use the version of "
            "consilia that wrote it, or start a new run"
        )
    return dict(manifest)


def read_job(path: Path, manifest: Mapping[str, Any]) -> JobConfig:
    """Return a run's own job.

    Raises:
        RunDirectoryError: If it is not the job that the run began with.
    """
    try:
        job = load_job(path / "job.toml")
    except ConfigError as error:
        raise RunDirectoryError(f"{path}: its job file cannot be read: {error}") from error
    if job.digest() != manifest["job_sha256"]:
        raise RunDirectoryError(
            f"{path / 'job.toml'}: was changed after the run began; put it back, or start a new run"
        )
    return job


def check_same_job(path: Path, job: JobConfig, manifest: Mapping[str, Any]) -> None:
    """Raise unless a job is the one that the run carries out."""
    if job.digest() != manifest["job_sha256"]:
        raise RunDirectoryError(
            f"{path}: is a run of another job (its job.toml differs in more than where data lie "
            "and how it is simulated); resume it without a job file, or start a new run with "
            "another --out"
        )


def lock_run(path: Path) -> IO[str]:
    """Lock a run for this process; the system releases it however the process ends.

    Raises:
        RunDirectoryError: If another process holds the lock.
        StorageError: If the file system cannot lock.
    """
    with files.storage_errors(f"{path}: the lock file cannot be made"):
        lock = (path / "lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise RunDirectoryError(
            f"{path}: another process works on this run; wait until it ends, or stop it"
        ) from None
    except OSError as error:
        lock.close()
        raise StorageError(
            f"{path}: cannot be locked ({error.strerror}); use a local disk"
        ) from error
    return lock


def is_locked(path: Path) -> bool | None:
    """Tell whether a process works on a run; ``None`` if that cannot be known from here."""
    try:
        with (path / "lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


def to_json(content: Mapping[str, Any]) -> bytes:
    """Return JSON for people and machines, the same bytes for the same content."""
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def sha256(content: bytes) -> str:
    """Return the digest in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
