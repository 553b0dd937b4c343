"""The job once more with canaries at one site: the adapter that membership is inferred from.

Records, sites, rounds and rules are the job's; only the closing phases are left out. The canaries
never are on disk, and the run itself is not touched.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from client.agent import SiteAgent
from client.data.load import load_site
from client.data.records import SiteData
from client.patient_privacy import spent, with_simulated_budget
from client.policy import simulation_policy
from client.proxy import ProxySet, read_proxy_set
from client.settings import SiteSettings
from server.app import run_job
from server.checkpoint import RunStore
from server.events import Event
from server.history import RunHistory
from shared.adapter import SharedAdapter
from shared.config import JobConfig
from shared.errors import InputError
from shared.model.encoder import DualEncoder
from shared.privacy.accountant import Spend
from simulations.audit.canaries import Pairs, plant
from simulations.features import PublicSets, with_public_set
from simulations.grid import LocalGrid
from simulations.machine import encoder_for, settle
from simulations.proxy import proxy_source, write_proxy
from simulations.secure import SimulatedConsortium
from simulations.sites import site_settings, write_partition, write_phantoms


@dataclass(frozen=True)
class Stage:
    """Everything that rehearsals of a job share.

    Attributes:
        job: With the digest of its public set.
        encoder: The base.
        settings: Of all sites.
        data: Their records, without canaries.
        target: The site that gets the canaries.
        folder: Where rehearsals keep their state.
    """

    job: JobConfig
    encoder: DualEncoder
    settings: tuple[SiteSettings, ...]
    data: Mapping[str, SiteData]
    target: str
    folder: Path

    def public(self) -> ProxySet | None:
        """Return the job's public set, if sites have one."""
        if not self.job.sites_have_public_set:
            return None
        return read_proxy_set(proxy_source(self.folder, self.job), self.encoder)


@dataclass(frozen=True)
class Rehearsed:
    """What came of a rehearsal.

    Attributes:
        shared: The adapter that everybody gets.
        spends: What the target's ledger has of it; nothing without differential privacy.
        noise_shares: So many sites added the noise together; 1 for the target's own.
    """

    shared: SharedAdapter
    spends: tuple[Spend, ...]
    noise_shares: int = 1


def set_up(folder: Path, job: JobConfig, site: str | None) -> Stage:
    """Make or find a job's sites, read them, and choose the one that gets the canaries.

    Args:
        folder: New; holds what synthetic sites there are, and the rehearsals' state.
        job: The job.
        site: The site; that with the most pairs if not given.

    Raises:
        ConfigError: If the job does not fit this machine or its sites.
        DataError: If records cannot be used.
        InputError: If there is no shared adapter to attack, or no site that canaries fit.
    """
    if job.aggregate.shares_features:
        raise InputError(
            f"{job.name}: with aggregate.rule = '{job.aggregate.rule}' no adapter is shared, so "
            "there is none to attack; audit a job that shares one"
        )
    encoder = encoder_for(job, settle(job))
    settings = tuple(site_settings(folder, job))
    job = with_public_set(folder, job, settings, encoder)
    write_phantoms(folder, job)
    write_partition(folder, job)
    write_proxy(folder, job)
    data = {
        each.name: load_site(each.source, encoder.to_pixels, None, encoder.preprocessing)
        for each in settings
    }
    return Stage(job, encoder, settings, data, _target(data, site), folder)


def _target(data: Mapping[str, SiteData], site: str | None) -> str:
    pairs = {name: each.splits["train"].counts().pairs for name, each in data.items()}
    if site is not None and site not in pairs:
        raise InputError(f"--site {site}: no such site; expected one of {', '.join(sorted(pairs))}")
    target = site or max(sorted(pairs), key=lambda name: pairs[name])
    if not pairs[target]:
        raise InputError(
            f"{target}: has no pictures with reports, and canaries are such pairs; name a site "
            "with pairs by --site, or audit a job that has one"
        )
    return target


def without_privacy(job: JobConfig) -> JobConfig:
    """Return the same job without differential privacy, to see what the attack finds there."""
    tree = job.model_dump(mode="json")
    tree.pop("privacy")
    tree.pop("proxy")
    return JobConfig.model_validate(tree)


def rehearse(
    stage: Stage,
    canaries: Pairs,
    name: str,
    job: JobConfig | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Rehearsed:
    """Carry a job out with canaries at the target.

    Args:
        stage: The sites.
        canaries: Those that train.
        name: Of the rehearsal; its state is kept under it.
        job: The stage's own if not given.
        on_event: Told what happens.

    Raises:
        QuorumError: If too few sites answered.
    """
    job = _short(job or stage.job)
    run = stage.folder / name
    records = {**stage.data, stage.target: plant(stage.data[stage.target], canaries)}
    policy = with_simulated_budget(simulation_policy(), job)
    public = PublicSets()
    settings = [
        replace(each, state=run / "sites" / each.name, held=run / "held") for each in stage.settings
    ]
    consortium = None
    if job.privacy.secure_aggregation:
        consortium = SimulatedConsortium([each.name for each in settings])
    agents = {
        each.name: SiteAgent(
            each,
            policy,
            lambda _: stage.encoder,
            lambda s, _: records[s.name],
            public,
            sums=consortium.sums(each, policy) if consortium else None,
        )
        for each in settings
    }
    base = stage.encoder.base_sha256
    with (
        RunStore.create(run, job, base_sha256=base) as store,
        RunHistory(f"sqlite:///{run / 'history.sqlite'}") as history,
        LocalGrid(agents) as grid,
    ):
        layout = stage.encoder.layout
        members = consortium.members if consortium else None
        outcome = run_job(
            grid, job, store, history, layout, base, on_event=on_event, members=members
        )
        state = run / "sites" / stage.target
        entries = spent(state, store.run) if job.privacy.for_patients else []
    releases = [entry.release for entry in entries]
    return Rehearsed(
        outcome.shared,
        tuple(release.spend for release in releases),
        max((release.shares for release in releases), default=1),
    )


def _short(job: JobConfig) -> JobConfig:
    """Return the job without what comes after its rounds."""
    personalize = job.personalize
    if not job.aggregate.private_factors:
        personalize = personalize.model_copy(update={"method": "none"})
    evaluate = job.evaluate.model_copy(update={"baselines": [], "bootstrap": 100})
    parts = {"personalize": personalize, "evaluate": evaluate}
    return job.model_copy(update=parts)
