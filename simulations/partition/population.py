"""Phantoms as a population: every record with picture and report, for the partition to take from.

A partition can leave an image or a text out, never make one. So phantoms that are pooled are
complete at every site; those whose sites stay as they are keep their kinds.
"""

from dataclasses import replace
from pathlib import Path

from shared.config import JobConfig
from shared.files import replace_folder
from simulations.partition.pool import SOURCE_COLUMN
from simulations.phantoms.federation import phantom_sites, site_seed
from simulations.phantoms.sites import PhantomSite
from simulations.phantoms.writer import write_site

COMMON_STYLE = "std"
"""The register of the prompts, in which reports are written that have no style of their own."""


def population_sites(job: JobConfig) -> list[PhantomSite]:
    """Return the synthetic institutions that a job's population is drawn for."""
    sites = phantom_sites(job.data.phantoms, job.data.phantom_sites)
    if job.partition.by != "sites":
        sites = [replace(site, kind="paired") for site in sites]
    if not job.partition.keep_style:
        sites = [replace(site, style=COMMON_STYLE, convention_rate=0.0) for site in sites]
    return sites


def write_population(folder: Path, job: JobConfig) -> None:
    """Write the population as one folder per institution; those that are there are kept.

    Raises:
        StorageError: If they cannot be written.
    """
    for site in population_sites(job):
        if not (folder / site.name / "metadata.csv").exists():
            with replace_folder(folder / site.name) as temporary:
                write_site(temporary, site, site_seed(job.seed, site.name))


def names_by_column(job: JobConfig, column: str) -> list[str]:
    """Return the sites that a population has by a column, before any of it is written."""
    sites = population_sites(job)
    if column == SOURCE_COLUMN:
        return sorted(site.name for site in sites)
    return sorted({site.style for site in sites}) if column == "style" else []
