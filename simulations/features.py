"""What sites with a public set need on one machine: encoders, the set, where an exchange begins."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from client.features import embedded
from client.proxy import ProxySet, read_proxy_set
from client.settings import SiteSettings
from server.checkpoint import RunStore
from server.first_features import FIRST_FEATURES, write_first_features
from shared.adapter import TOWERS, SharedAdapter
from shared.config import JobConfig
from shared.errors import ConfigError, RunDirectoryError
from shared.model.encoder import DualEncoder
from simulations.machine import encoder_for
from simulations.proxy import check_apart, proxy_source, write_proxy


def encoders(
    job: JobConfig, settings: Sequence[SiteSettings], device: str
) -> dict[str, DualEncoder]:
    """Return every site's encoder; sites with the same base share one.

    Raises:
        ConfigError: If the job names the base of a site that is not there.
        BaseModelError: If a base cannot be had or used.
    """
    names = [site.name for site in settings]
    unknown = sorted(job.model.bases.keys() - set(names))
    if unknown:
        raise ConfigError(
            f"model.bases names {unknown[0]!r}; expected one of the sites: {', '.join(names)}"
        )
    return {name: encoder_for(job.at(name), device) for name in names}


def with_public_set(
    run: Path, job: JobConfig, settings: Sequence[SiteSettings], encoder: DualEncoder
) -> JobConfig:
    """Return the job with the digest of its public set; other jobs as they are.

    Raises:
        ConfigError: If the set is a site's own, or not the one that the job names.
        DataError: If it cannot be used.
        RunDirectoryError: If the run began with another one.
    """
    if not job.sites_have_public_set:
        return job
    if not job.proxy.active:
        raise ConfigError(
            "proxy.sha256 names the public set, and a simulation must be told where it is; give "
            "proxy.folder, such as --set proxy.folder=DIR"
        )
    source = proxy_source(run, job)
    check_apart(source, settings)
    if source.table.exists():
        found = read_proxy_set(source, encoder).sha256
    else:
        # A run that has no folder yet must not get one before its input is sound.
        with tempfile.TemporaryDirectory() as folder:
            write_proxy(Path(folder), job)
            found = read_proxy_set(proxy_source(Path(folder), job), encoder).sha256
    wanted = job.proxy.sha256
    if wanted is not None and wanted != found:
        message = f"the public set in {source.root} has sha256 {found}"
        if (run / "manifest.json").exists():
            raise RunDirectoryError(
                f"{run}: {message}, the run began with {wanted}; put that set back, or start a "
                "new run"
            )
        raise ConfigError(
            f"proxy.sha256: {message}, the job expects {wanted}; every site must have the same set"
        )
    proxy = job.proxy.model_copy(update={"sha256": found})
    return job.model_copy(update={"proxy": proxy})


class PublicSets:
    """The public set, read once for every encoder of this process."""

    def __init__(self) -> None:
        self._read: dict[str, ProxySet] = {}

    def __call__(self, settings: SiteSettings, encoder: DualEncoder) -> ProxySet:
        """Return the set of a simulated site; all sites have the same."""
        if settings.proxy is None:
            raise ValueError(f"{settings.name}: a site of this job has a public set")
        if encoder.base_sha256 not in self._read:
            self._read[encoder.base_sha256] = read_proxy_set(settings.proxy, encoder)
        return self._read[encoder.base_sha256]


def write_beginning(store: RunStore, encoder: DualEncoder, public: ProxySet) -> None:
    """Write what the job's base makes of the public pairs, where the exchange begins.

    Raises:
        StorageError: If it cannot be written.
    """
    if not (store.path / FIRST_FEATURES).exists():
        found = embedded(encoder, SharedAdapter({}), public, TOWERS)
        write_first_features(store, {str(tower): values for tower, values in found.items()})
