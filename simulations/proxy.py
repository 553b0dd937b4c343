"""The public paired set of a simulated run: written or found, read, and put to work.

Distillation at the server (``server.proxy.distillation``) is imported for jobs with a ``[proxy]``
only. The set is read with the loader that sites use, so it obeys the same rules.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from client.data.load import load_site
from client.data.records import SiteData
from client.data.sources import SiteSource, find_sites
from client.data.tables import TABLE_NAMES
from client.settings import SiteSettings
from server.proxy.pairs import ProxyPairs
from server.proxy.step import Distiller
from shared.config import JobConfig
from shared.errors import ConfigError, DataError
from shared.files import replace_folder
from shared.model.encoder import DualEncoder
from shared.seeding import derive_seed
from simulations.phantoms.federation import phantom_sites, site_seed
from simulations.phantoms.sites import PhantomSite
from simulations.phantoms.writer import write_site

PROXY_FOLDER = "proxy"
_NAME = "proxy"
_STYLE = "std"


def proxy_phantoms(job: JobConfig) -> PhantomSite:
    """Return the made-up institution whose studies are the public set.

    Its films are exposed as those of the first site, its findings as frequent as there; its
    reports are in the common register, without any site's conventions. Its patients are its own.
    """
    first = phantom_sites(job.data.phantoms)[0]
    return replace(
        first,
        name=_NAME,
        style=_STYLE,
        size=int(job.proxy.phantoms or 0),
        kind="paired",
        test_size=0,
        convention_rate=0.0,
        description="public set",
    )


def write_proxy(run: Path, job: JobConfig) -> None:
    """Write the synthetic set into the run directory, if the job wants one; kept if it is there.

    Raises:
        StorageError: If it cannot be written.
    """
    target = run / PROXY_FOLDER / _NAME
    if job.proxy.phantoms is not None and not (target / TABLE_NAMES[0]).exists():
        with replace_folder(target) as temporary:
            write_site(temporary, proxy_phantoms(job), site_seed(job.seed, _NAME))


def read_proxy(
    run: Path, job: JobConfig, settings: Sequence[SiteSettings], encoder: DualEncoder
) -> ProxyPairs:
    """Return the public set of a job that has one; synthetic ones must be written already.

    Raises:
        ConfigError: If the folder is not there, or is a site's own.
        DataError: If it holds several sites, breaks a rule, or has too few pairs.
    """
    source = proxy_source(run, job)
    folder = source.root
    check_apart(source, settings)
    try:
        data = load_site(source, encoder.to_pixels, None, encoder.preprocessing)
    except DataError as error:
        raise DataError(f"proxy.folder {folder}: {error}", error.problems) from None
    pairs = _pairs(data)
    if not len(pairs):
        raise DataError(
            f"proxy.folder {folder}: no record has both an image and a text, so that there is "
            "nothing to distil on; expected pairs, as in docs/data.md; add some or leave [proxy] "
            "out"
        )
    pairs.divided(job.proxy.held_out, derive_seed(job.seed, "proxy-held-out"))  # refuses too few
    return pairs


def proxy_source(run: Path, job: JobConfig) -> SiteSource:
    """Return where the public set of a job that has one is, or will be once it is written.

    Raises:
        ConfigError: If the folder is not there.
        DataError: If it holds several sites.
    """
    if job.proxy.folder is not None:
        return _source(Path(job.proxy.folder))
    folder = run / PROXY_FOLDER / _NAME
    return SiteSource(_NAME, folder / TABLE_NAMES[0], folder)


def check_apart(source: SiteSource, settings: Sequence[SiteSettings]) -> None:
    """Raise if the public set is a site's own.

    Raises:
        ConfigError: Naming the site.
    """
    for site in settings:
        if _same(source, site.source):
            raise ConfigError(
                f"proxy.folder {source.root}: is the data of site {site.name}, which no server may "
                "see; give a public set that no site trains or tests on"
            )


def distiller(job: JobConfig, pairs: ProxyPairs, device: str) -> Distiller:
    """Return what distils at the server, with an encoder of its own on a device."""
    # Only jobs with a public set need it.
    from server.proxy.distillation import ProxyDistillation  # noqa: PLC0415

    return ProxyDistillation(DualEncoder.load(job.model, job.lora, device), pairs, job)


def _source(folder: Path) -> SiteSource:
    try:
        sources = find_sites(folder)
    except (ConfigError, DataError) as error:
        raise type(error)(f"proxy.folder: {error}") from None
    if len(sources) != 1:
        raise DataError(
            f"proxy.folder {folder}: holds {len(sources)} sites' folders, expected one folder "
            f"with {' or '.join(TABLE_NAMES)}; give one of them"
        )
    return sources[0]


def _same(one: SiteSource, other: SiteSource) -> bool:
    return one.table.resolve() == other.table.resolve()


def _pairs(data: SiteData) -> ProxyPairs:
    """Return the pairs of all splits; which of them are held out is the job's to say."""
    pixels, texts, patients = [], [], []
    for _, split in sorted(data.splits.items()):
        rows = np.flatnonzero(split.has_image & split.has_text)
        pixels.append(split.pixels[rows])
        texts += [split.texts[row] for row in rows]
        patients.append(split.patients[rows])
    return ProxyPairs(np.concatenate(pixels), tuple(texts), np.concatenate(patients))
