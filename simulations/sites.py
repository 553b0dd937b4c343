"""The simulated sites: where their records lie and which folder each calls its own.

The same answer for the federation, the baselines' process and Flower's actors, worked out from
the run directory and the job alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from client.data.sources import SiteSource, find_sites, select_sites
from client.data.tables import TABLE_NAMES
from client.settings import SiteSettings
from shared.config import JobConfig
from shared.errors import ConfigError, DataError
from simulations.partition.population import write_population
from simulations.partition.sites import partition_sources, tables_to_read, write_run_partition
from simulations.phantoms.federation import phantom_sites, write_federation
from simulations.proxy import proxy_source

PHANTOM_FOLDER = "data"
CENTRALISED_FILE = Path("baselines") / "centralised.safetensors"
LOCAL_FILE = "local.safetensors"


def site_settings(run: Path, job: JobConfig) -> list[SiteSettings]:
    """Return every site of a run by name; nothing is written.

    Args:
        run: The run directory; sites keep their private state in ``sites/<name>``.
        job: The job.

    Raises:
        ConfigError: If the job names a site or column that is not there.
        DataError: If no site is found.
    """
    sources = _given_sources(run, job)
    if job.partition.active:
        sources = partition_sources(run, sources, job)
    public = proxy_source(run, job) if job.sites_have_public_set else None
    return [
        SiteSettings(
            name=source.name,
            source=source,
            state=run / "sites" / source.name,
            held=run / "held",  # all receive the same
            proxy=public,
            references={
                "local": run / "sites" / source.name / LOCAL_FILE,
                "centralised": run / CENTRALISED_FILE,
            },
        )
        for source in sorted(sources, key=lambda source: source.name)
    ]


def write_phantoms(run: Path, job: JobConfig) -> None:
    """Write the job's synthetic sites into the run directory; those that are there are kept.

    Raises:
        StorageError: If they cannot be written.
    """
    data = job.data
    if data.folder is None:
        folder = run / PHANTOM_FOLDER
        if job.partition.active:
            write_population(folder, job)
        else:
            write_federation(folder, data.phantoms, seed=job.seed, sites=data.phantom_sites)


def write_partition(run: Path, job: JobConfig) -> None:
    """Write the sites that the job's partition makes; those that are there are kept.

    Raises:
        ConfigError: If the partition does not fit the records.
        StorageError: If they cannot be written.
    """
    if job.partition.active:
        write_run_partition(run, _given_sources(run, job), job)


@contextmanager
def readable(
    run: Path, job: JobConfig, settings: Sequence[SiteSettings]
) -> Iterator[Sequence[SiteSettings]]:
    """Yield the sites so that they can be read although the run has no folder yet."""
    if not job.partition.active:
        yield settings
        return
    with tables_to_read(run, _given_sources(run, job), job) as folder:
        yield [
            replace(site, source=replace(site.source, table=folder / site.name / TABLE_NAMES[0]))
            for site in settings
        ]


def _given_sources(run: Path, job: JobConfig) -> list[SiteSource]:
    """The sites before any partition."""
    return _phantom_sources(run, job) if job.data.folder is None else _own_sources(job)


def _phantom_sources(run: Path, job: JobConfig) -> list[SiteSource]:
    data = job.data
    if data.site_column or data.columns:
        key = "site_column" if data.site_column else "columns"
        raise ConfigError(f"data.{key} is about tables of your own; give --data FOLDER as well")
    folders = [
        run / PHANTOM_FOLDER / site.name
        for site in phantom_sites(data.phantoms, data.phantom_sites)
    ]
    sources = [SiteSource(folder.name, folder / TABLE_NAMES[0], folder) for folder in folders]
    return select_sites(sources, data.image_only, data.text_only, data.sites)


def _own_sources(job: JobConfig) -> list[SiteSource]:
    data = job.data
    folder = Path(str(data.folder))
    sources = find_sites(
        folder,
        site_column=data.site_column,
        columns=data.columns,
        image_only=data.image_only,
        text_only=data.text_only,
        only=data.sites,
    )
    if not sources:
        raise DataError(f"{folder}: no site found; expected site folders with a metadata table")
    return sources
