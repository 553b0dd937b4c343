"""A job's simulated sites: planned, written into the run directory, read again by a resumed run."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from client.data.sources import SiteSource
from shared.config import JobConfig
from shared.errors import ConfigError
from simulations.partition.plan import SitePlan, numbered, plan_sites
from simulations.partition.pool import SOURCE_COLUMN, Pool, read_pool
from simulations.partition.population import names_by_column
from simulations.partition.written import INDEX, read_partition, sources_of, write_partition

PARTITION_FOLDER: Final = "partition"


def partition_sources(run: Path, given: Sequence[SiteSource], job: JobConfig) -> list[SiteSource]:
    """Return the simulated sites of a run; nothing is written.

    What the run has written holds; else the plan is worked out.

    Args:
        run: The run directory.
        given: The sites as they are given.
        job: A job with a partition.

    Raises:
        ConfigError: If the partition does not fit the records.
        DataError: If the records cannot be used.
        RunDirectoryError: If the run's partition was changed.
    """
    folder = run / PARTITION_FOLDER
    if not job.partition.keep_style and job.data.folder is not None:
        raise ConfigError(
            "partition.keep_style = false writes phantoms in one style; reports of your own are as "
            "they are, so leave it out"
        )
    if (folder / INDEX).exists():
        return read_partition(folder, _root(given, job))
    if all(source.table.exists() for source in given):
        names = [plan.name for plan in _planned(given, job)[0]]
    else:
        names = _expected(job)
    return sources_of(folder, names, _root(given, job))


def write_run_partition(run: Path, given: Sequence[SiteSource], job: JobConfig) -> None:
    """Write a run's simulated sites; those that are there are kept.

    Raises:
        ConfigError: If the partition does not fit the records.
        StorageError: If they cannot be written.
    """
    folder = run / PARTITION_FOLDER
    if not (folder / INDEX).exists():
        plans, pool = _planned(given, job)
        write_partition(folder, plans, pool, job)


@contextmanager
def tables_to_read(run: Path, given: Sequence[SiteSource], job: JobConfig) -> Iterator[Path]:
    """Yield a folder with the simulated sites' tables, also while the run has no folder yet.

    A run must not get a folder before its records are known to be sound, and they are read
    through tables; so until then those lie in a temporary folder that only its owner can read.
    """
    if (run / PARTITION_FOLDER / INDEX).exists():
        yield run / PARTITION_FOLDER
        return
    with TemporaryDirectory(prefix="consilia-") as temporary:
        folder = Path(temporary) / PARTITION_FOLDER
        plans, pool = _planned(given, job)
        write_partition(folder, plans, pool, job)
        yield folder


def _planned(given: Sequence[SiteSource], job: JobConfig) -> tuple[list[SitePlan], Pool]:
    pool = read_pool(given, _root(given, job), _column(job))
    return plan_sites(pool, job.partition, job.seed), pool


def _column(job: JobConfig) -> str | None:
    if job.partition.by == "sites":
        return SOURCE_COLUMN
    if job.partition.by == "column":
        return job.partition.column or job.data.site_column
    return job.partition.column


def _root(given: Sequence[SiteSource], job: JobConfig) -> Path:
    """The folder that all pictures lie in."""
    if job.data.folder is None:
        return given[0].root.parent
    folder = Path(job.data.folder)
    return folder if folder.is_dir() else folder.parent


def _expected(job: JobConfig) -> list[str]:
    """The names of the sites that phantoms which are not written yet will be dealt out to."""
    if job.partition.sites is not None:
        return numbered(job.partition.sites)
    column = _column(job) or SOURCE_COLUMN
    names = names_by_column(job, column)
    if not names:
        raise ConfigError(
            f"partition.column = {column!r}: phantoms do not have it; expected style or "
            f"{SOURCE_COLUMN}"
        )
    return names
