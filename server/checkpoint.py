"""The run directory: what is on disk is whole or not there.

```
job.toml            the job, as it was given
manifest.json       format, run, digests, versions, seed; written last, so it makes the run
checkpoints/round-0007/{shared.safetensors, manifest.json}
events.jsonl        what happened, for people and progress bars
personalized/<site>.json, evaluations/<site>.json, results.json
log.txt             notes of sites and grid, by reason code (simulations)
lock                held by the process that works on the run
```

A round is committed by renaming a finished directory and then naming its manifest's sha256
in the history's database (``server.history``). The database row decides: a directory
without a row is an orphan of a crash and is removed.
"""

import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Self

from server.job_text import to_toml
from server.run_files import (
    FORMAT,
    DamagedCheckpointError,
    check_same_job,
    lock_run,
    read_job,
    read_manifest,
    sha256,
    to_json,
)
from shared import files
from shared.adapter import SharedAdapter
from shared.config import JobConfig
from shared.errors import RunDirectoryError, StorageError
from shared.layout_file import adapter_bytes, load_adapter

_ROUND = re.compile(r"round-(\d{4,})")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@dataclass
class RunStore:
    """One run on disk. Use ``create`` or ``open``, and ``close`` (or a ``with`` block).

    Attributes:
        path: The run directory.
        job: The job, read from ``job.toml``.
        manifest: What ``manifest.json`` holds.
    """

    path: Path
    job: JobConfig
    manifest: Mapping[str, Any]
    _lock: IO[str] | None = field(default=None, repr=False)

    @property
    def run(self) -> str:
        """Return the run's own name."""
        return str(self.manifest["run"])

    @property
    def token(self) -> str:
        """Return what tells this run from another one of the same name."""
        return str(self.manifest["token"])

    @property
    def base_sha256(self) -> str:
        """Return the digest of the base that the run was started with."""
        return str(self.manifest["base_sha256"])

    @property
    def events_path(self) -> Path:
        """Return where events go."""
        return self.path / "events.jsonl"

    @classmethod
    def create(
        cls,
        path: Path,
        job: JobConfig,
        *,
        base_sha256: str,
        run: str | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Self:
        """Make a run directory and lock it.

        Args:
            path: A folder that holds no run yet; it is made if it does not exist.
            job: What the run carries out.
            base_sha256: Digest of the frozen base.
            run: Name of the run; the folder's name if not given.
            facts: Further entries of ``manifest.json``, such as versions.

        Raises:
            RunDirectoryError: If the folder holds a run already, is in use, or may not be
                written.
            StorageError: If it cannot be written.
        """
        if (path / "manifest.json").exists():
            raise RunDirectoryError(
                f"{path}: holds a run already; resume it with --resume {path}, or choose "
                "another --out"
            )
        manifest = {
            **(facts or {}),
            "format": FORMAT,
            "run": run or path.resolve().name,
            "token": uuid.uuid4().hex,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "job_sha256": job.digest(),
            "base_sha256": base_sha256,
            "seed": job.seed,
        }
        try:
            with files.storage_errors(f"{path}: the run directory cannot be made"):
                (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        except StorageError as error:
            if isinstance(error.__cause__, PermissionError | FileExistsError | NotADirectoryError):
                raise RunDirectoryError(f"{error}; choose another --out") from None
            raise
        lock = lock_run(path)
        try:
            files.write_atomic(path / "job.toml", to_toml(job).encode())
            files.write_atomic(path / "manifest.json", to_json(manifest))
        except BaseException:
            lock.close()
            raise
        return cls(path, job, manifest, lock)

    @classmethod
    def open(cls, path: Path, job: JobConfig | None = None, *, lock: bool = True) -> Self:
        """Open a run directory, to go on with it or (``lock=False``) to read it.

        Raises:
            RunDirectoryError: If it is no run, a run of another format or of another job,
                or in use by another process.
        """
        manifest = read_manifest(path)
        held = lock_run(path) if lock else None
        try:
            own = read_job(path, manifest)
            check_same_job(path, job or own, manifest)
        except BaseException:
            if held:
                held.close()
            raise
        return cls(path, job or own, manifest, held)

    def tell_privacy(self, statements: Mapping[str, Any]) -> None:
        """Write into ``manifest.json`` what the run may claim, in place of an earlier statement.

        Args:
            statements: As JSON's own types, by site.

        Raises:
            StorageError: If it cannot be written.
        """
        self.manifest = {**self.manifest, "privacy": dict(statements)}
        files.write_atomic(self.path / "manifest.json", to_json(self.manifest))

    def close(self) -> None:
        """Release the lock."""
        if self._lock:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def round_path(self, round_number: int) -> Path:
        """Return a round's checkpoint directory."""
        return self.path / "checkpoints" / f"round-{round_number:04d}"

    def commit_round(
        self, round_number: int, shared: SharedAdapter, facts: Mapping[str, Any]
    ) -> str:
        """Write a round's directory and move it into place, whole.

        The round counts only once the history names the digest that is returned.

        Args:
            round_number: Its number.
            shared: The adapter after the round.
            facts: Further entries of its manifest.

        Returns:
            The sha256 of the round's manifest.

        Raises:
            StorageError: If anything could not be written; earlier rounds are intact.
        """
        final = self.round_path(round_number)
        temporary = final.with_name(f".{final.name}")
        tensors = adapter_bytes(shared)
        manifest = to_json(
            {
                **facts,
                "format": FORMAT,
                "run": self.run,
                "token": self.token,
                "round": round_number,
                "adapter_sha256": shared.sha256(),
                "files": {"shared.safetensors": sha256(tensors)},
            }
        )
        with files.storage_errors(self._intact(round_number)):
            for leftover in (temporary, final):  # of a crash before the history's row
                if leftover.exists():
                    shutil.rmtree(leftover)
            temporary.mkdir(parents=True)
            files.write_new(temporary / "shared.safetensors", tensors)
            files.write_new(temporary / "manifest.json", manifest)
            files.sync_directory(temporary)
            temporary.replace(final)
            files.sync_directory(final.parent)
        return sha256(manifest)

    def load_round(self, round_number: int, manifest_sha256: str) -> SharedAdapter:
        """Return the adapter of a committed round.

        Raises:
            DamagedCheckpointError: If its files differ from what was committed.
        """
        folder = self.round_path(round_number)
        problem = f"{folder}: differs from what was committed"
        try:
            text = (folder / "manifest.json").read_bytes()
            tensors = (folder / "shared.safetensors").read_bytes()
        except OSError as error:
            raise DamagedCheckpointError(f"{folder}: cannot be read: {error.strerror}") from error
        if sha256(text) != manifest_sha256:
            raise DamagedCheckpointError(f"{problem} (manifest.json)")
        manifest = json.loads(text)
        if sha256(tensors) != manifest["files"]["shared.safetensors"]:
            raise DamagedCheckpointError(f"{problem} (shared.safetensors)")
        return load_adapter(folder / "shared.safetensors")

    def has_rounds(self) -> bool:
        """Return whether any round's directory is there, committed or not."""
        return any((self.path / "checkpoints").glob("round-*"))

    def remove_orphans(self, committed: Collection[int]) -> list[int]:
        """Remove what a crash left behind: rounds without a row, and unfinished files.

        Returns:
            Numbers of the rounds that were removed.
        """
        removed = []
        with files.storage_errors(f"{self.path}: leftovers of a crash cannot be removed"):
            for folder in sorted((self.path / "checkpoints").glob("*round-*")):
                match = _ROUND.fullmatch(folder.name)
                if match is None:
                    shutil.rmtree(folder)
                elif int(match[1]) not in committed:
                    shutil.rmtree(folder)
                    removed.append(int(match[1]))
            for folder in (self.path, self.path / "personalized", self.path / "evaluations"):
                for leftover in folder.glob(f"*{files.TEMPORARY}"):
                    leftover.unlink(missing_ok=True)
        return removed

    def write_atomic(self, path: Path | str, content: bytes) -> Path:
        """Write a file of the run, whole or not at all.

        Args:
            path: Relative to the run directory.
            content: All of it.

        Raises:
            StorageError: If it could not be written; what it replaces is intact.
        """
        target = self.path / path
        files.write_atomic(target, content)
        return target

    def record_path(self, folder: str, site: str) -> Path:
        """Return where a site's record lies, whatever characters the site's name has."""
        plain = _PLAIN_NAME.fullmatch(site) is not None
        name = site if plain else "site-" + hashlib.sha256(site.encode()).hexdigest()[:16]
        return self.path / folder / f"{name}.json"

    def read_records(self, folder: str) -> dict[str, dict[str, Any]]:
        """Return the records in a folder by site; one that is damaged counts as missing."""
        records = {}
        for path in sorted((self.path / folder).glob("*.json")):
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                records[str(record["site"])] = record
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return records

    def write_record(self, folder: str, site: str, record: Mapping[str, Any]) -> None:
        """Write a site's record, whole or not at all."""
        files.write_atomic(self.record_path(folder, site), to_json({**record, "site": site}))

    def _intact(self, round_number: int) -> str:
        before = f"round {round_number - 1} is intact" if round_number > 1 else "the run is intact"
        return (
            f"{self.path}: round {round_number} could not be stored; {before}; "
            f"free space and resume with --resume {self.path}"
        )
