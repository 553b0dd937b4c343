"""The records of one seed: sites, a public set that is like theirs, and one that is not."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from client.data.load import load_site
from client.data.records import SiteData
from client.data.sources import SiteSource
from client.data.tables import TABLE_NAMES
from client.proxy import ProxySet, read_proxy_set
from shared.config import JobConfig
from shared.files import replace_folder
from shared.model.encoder import DualEncoder
from simulations.phantoms.federation import phantom_sites, site_seed
from simulations.phantoms.scanner import Scanner
from simulations.phantoms.sites import PhantomSite
from simulations.phantoms.studies import BASE_RATES
from simulations.phantoms.writer import write_site
from simulations.proxy import proxy_phantoms
from simulations.utility.plan import STUDIES, TEST_STUDIES, Bank


@dataclass(frozen=True)
class World:
    """Everything that is drawn for one seed.

    Attributes:
        seed: Of all records.
        sites: By name.
        banks: The public sets.
    """

    seed: int
    sites: Mapping[str, SiteData]
    banks: Mapping[Bank, ProxySet]


def institutions(job: JobConfig) -> list[PhantomSite]:
    """Return the sites of the job, all paired and of one size."""
    chosen = [site for site in phantom_sites(job.data.phantoms) if site.name in job.data.sites]
    return [replace(site, kind="paired", size=STUDIES, test_size=TEST_STUDIES) for site in chosen]


def public_sets(job: JobConfig) -> dict[Bank, PhantomSite]:
    """Return who the public pairs come from.

    In-domain: films as the first site exposes them, and its findings. Out-of-domain: films as in
    the corpus that the base was trained on, with that corpus's findings; five that the sites have
    never occur in it.
    """
    like = proxy_phantoms(job)
    return {
        "in-domain": like,
        "out-of-domain": replace(like, name="elsewhere", scanner=Scanner(), rates=dict(BASE_RATES)),
    }


def open_world(folder: Path, job: JobConfig, encoder: DualEncoder) -> World:
    """Write what is missing of a seed's records, and load them.

    Args:
        folder: Of all seeds' records.
        job: With the seed, and a public set of phantoms.
        encoder: That will use the records.

    Raises:
        StorageError: If they cannot be written.
    """
    home = folder / f"seed-{job.seed}"
    sites = {
        site.name: load_site(
            _written(home, site, job.seed), encoder.to_pixels, None, encoder.preprocessing
        )
        for site in institutions(job)
    }
    banks = {
        bank: read_proxy_set(_written(home, site, job.seed), encoder)
        for bank, site in public_sets(job).items()
    }
    return World(job.seed, sites, banks)


def _written(home: Path, site: PhantomSite, seed: int) -> SiteSource:
    folder = home / site.name
    if not (folder / TABLE_NAMES[0]).exists():
        with replace_folder(folder) as temporary:
            write_site(temporary, site, site_seed(seed, site.name))
    return SiteSource(site.name, folder / TABLE_NAMES[0], folder)
