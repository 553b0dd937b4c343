"""What is checked: a site's files, the job, and what was learned of them, each looked at once.

A part that cannot be had raises its own error to the check that is about it (``..._or_why``), and
``NotCheckedError`` to those that only need it.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from client.agent_process import own_base
from client.check.contact import Contact, Route, visit
from client.check.finding import NotCheckedError
from client.check.measure import Measured, measure
from client.data.check import SiteCheck, check_site, checked
from client.data.load import load_inspected
from client.data.records import SiteData
from client.policy import SitePolicy
from client.provisioning.folder import SiteIdentity
from client.settings import AgentSettings, load_agent
from shared.config import JobConfig, load_job
from shared.errors import ConsiliaError, DataError
from shared.model.base import TINY, base_digest, find_base
from shared.model.encoder import DualEncoder
from shared.security.consortium import Kit

Part = TypeVar("Part")


@dataclass(frozen=True)
class Records:
    """A site's records.

    Attributes:
        check: What ``consilia data check`` finds in them.
        data: The records, if they can be used and there is an encoder for their pictures.
        seconds: What it took to read and prepare them.
    """

    check: SiteCheck
    data: SiteData | None
    seconds: float


@dataclass(frozen=True)
class Base:
    """The frozen encoder's files.

    Attributes:
        folder: Where they are.
        sha256: Their digest.
    """

    folder: Path
    sha256: str


@dataclass
class Subject:
    """Everything that is looked at; see the module's docstring.

    Attributes:
        config: The ``site.toml``.
        job_file: The consortium's job; the defaults of a job file if ``None``.
        now: Aware of its time zone.
        timeout: Seconds for each step on the way to the gateway.
    """

    config: Path
    job_file: Path | None
    now: datetime
    timeout: float = 5.0

    @property
    def home(self) -> Path:
        """The site's folder."""
        return self.config.absolute().parent

    # The site's files

    @cached_property
    def settings_or_why(self) -> AgentSettings | ConsiliaError:
        """``site.toml``, or why it cannot be used."""
        return _tried(lambda: load_agent(self.config))

    @property
    def settings(self) -> AgentSettings:
        """``site.toml``."""
        return _needed(self.settings_or_why, "the site file")

    @cached_property
    def policy_or_why(self) -> SitePolicy | ConsiliaError:
        """``policy.toml``, or why it cannot be used."""
        path = self.settings.policy
        return _tried(lambda: SitePolicy.load(path))

    @property
    def policy(self) -> SitePolicy:
        """``policy.toml``."""
        return _needed(self.policy_or_why, "the policy")

    @cached_property
    def identity_or_why(self) -> SiteIdentity | ConsiliaError:
        """The site's identity, or why there is none."""
        return _tried(lambda: SiteIdentity.open(self.home, self.now))

    @property
    def identity(self) -> SiteIdentity:
        """The site's identity."""
        return _needed(self.identity_or_why, "the identity")

    @property
    def kit(self) -> Kit:
        """What the site joined with."""
        if self.identity.kit is None:
            raise NotCheckedError("the site has not joined a consortium")
        return self.identity.kit.content

    # The gateway

    @cached_property
    def contact(self) -> Contact:
        """What came of a visit to the gateway."""
        kit = self.kit
        return visit(Route.to(kit.gateway, kit.port), kit.authority.encode(), self.timeout)

    # The job, and what it needs

    @cached_property
    def job_or_why(self) -> JobConfig | ConsiliaError:
        """The job, or why it cannot be used."""
        if self.job_file is None:
            return JobConfig(name="default")
        path = self.job_file
        return _tried(lambda: load_job(path))

    @property
    def job(self) -> JobConfig:
        """The job as this site sees it."""
        return _needed(self.job_or_why, "the job").at(self.settings.site.name)

    @cached_property
    def base_or_why(self) -> Base | ConsiliaError:
        """The base, or why it cannot be used."""
        settings, job = self.settings, self.job

        def found() -> Base:
            folder = find_base(own_base(settings, job))
            return Base(folder, base_digest(folder))

        return _tried(found)

    @property
    def base(self) -> Base:
        """The base."""
        return _needed(self.base_or_why, "the base")

    @cached_property
    def encoder_or_why(self) -> DualEncoder | ConsiliaError:
        """The base, loaded for the job, or why that cannot be.

        Whether it is the base that the job wants is another question.
        """
        settings, job = self.settings, self.job
        name = TINY if settings.base is None else str(self.base.folder)
        model = job.model.model_copy(update={"base": name, "sha256": None})
        return _tried(lambda: DualEncoder.load(model, job.lora, settings.site.device))

    @property
    def encoder(self) -> DualEncoder:
        """The base, loaded for the job."""
        return _needed(self.encoder_or_why, "the encoder")

    @cached_property
    def records(self) -> Records:
        """The site's records, as far as they can be read."""
        site, begun = self.settings.site, time.monotonic()
        try:
            encoder = self.encoder
        except NotCheckedError:  # their table and files can be checked without
            return Records(check_site(site.source), None, time.monotonic() - begun)
        # The agent needs the prepared pictures as well, and finds them there.
        cache = site.pixels if site.state.is_dir() else None
        try:
            data, inspected = load_inspected(
                site.source, encoder.to_pixels, cache, encoder.preprocessing
            )
        except DataError:
            return Records(check_site(site.source), None, time.monotonic() - begun)
        return Records(checked(inspected), data, time.monotonic() - begun)

    @cached_property
    def measured_or_why(self) -> Measured | ConsiliaError:
        """What one step of training took, or why there is none."""
        encoder, data, job = self.encoder, self.records.data, self.job
        if data is None:
            raise NotCheckedError("the records cannot be used")
        threads = self.settings.threads
        return _tried(lambda: measure(encoder, data, job, threads))

    @property
    def measured(self) -> Measured:
        """What one step of training took."""
        return _needed(self.measured_or_why, "the training step")

    @property
    def members(self) -> int:
        """How many sites a round has, as far as this site knows."""
        job = self.job
        if job.aggregate.cohort is not None:
            return job.aggregate.cohort + job.aggregate.over_select
        try:
            known = [each for each in self.kit.roster.members if each.status == "active"]
        except NotCheckedError:
            known = []
        return max(2, len(known), len(job.data.sites))

    @property
    def facts(self) -> Mapping[str, object]:
        """What the check is about, for programs."""
        settings = self.settings_or_why
        site = settings.site.name if isinstance(settings, AgentSettings) else None
        return {"site": site, "job": str(self.job_file) if self.job_file else None}


def _tried(make: Callable[[], Part]) -> Part | ConsiliaError:
    try:
        return make()
    except ConsiliaError as error:
        return error


def _needed(part: Part | ConsiliaError, what: str) -> Part:
    if isinstance(part, ConsiliaError):
        raise NotCheckedError(f"{what} cannot be used")
    return part
