"""What a site will do at all, whatever a coordinator asks; the site alone writes it.

A policy allows what it names. What it does not name is refused, so that an empty file refuses
everything. Where a job and the policy both set a limit, the stricter one holds. Which rule says no
to what is in ``client.decisions``.
"""

import hashlib
import logging
import threading
from collections.abc import Collection
from datetime import date
from pathlib import Path
from typing import Annotated, Final, Literal, Protocol, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from client.privacy_policy import PrivacyPolicy
from shared.config.aggregate import AggregationRule
from shared.config.train import PersonalizationMethod
from shared.errors import ConfigError, RefusedError
from shared.messages import TaskKind
from shared.results import METRICS, Metric
from shared.toml_files import first_problem, read_toml

log = logging.getLogger(__name__)

ANY: Final = "any"
"""Stands in a list for everything that could stand there."""

Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(max_length=500)]
Digests = tuple[
    Annotated[
        str,
        Field(pattern=r"^([0-9a-f]{64}|any)$", description="64 hexadecimal digits, or 'any'"),
    ],
    ...,
]


def _day(value: object) -> object:
    return date.max if value == "never" else value


class SitePolicy(BaseModel):
    """What a site allows; see docs/policy.md. In lists ``"any"`` allows everything.

    Attributes:
        purpose: What the site takes part for; stands beside every approval in the audit log.
        expires: The last day on which anything is allowed, UTC; or ``"never"``.
        coordinators: Public keys of the coordinators that may ask.
        base_sha256: Bases that the site works with, by digest.
        requests: Kinds of request that the site answers.
        rules: Aggregation rules of the jobs that the site takes part in.
        personalization: Ways to the site's own adapter that a job may ask for.
        targets: What of the base may carry an adapter, as ``lora.targets`` names it.
        features: Whether the site sends features of the public set that its own model gives.
        proxy: Whether the coordinator may distil on a public set with what the sites sent.
        max_rounds: Longest job, in rounds.
        max_steps: Most optimiser steps in one round, and of a personalization.
        max_epochs: Most passes over the training records in one round.
        max_rank: Largest rank of an adapter.
        max_adapter: Largest part of the base that a received adapter replaces, as norm of what it
            adds to a layer over the norm of the layer's weight.
        max_change: Largest L2 norm of a released change; a longer one is scaled down to it.
        minimum_patients: With fewer patients to train on the site does not train.
        minimum_cohort: In a round that asks fewer sites the site does not train.
        minimum_summed: In secure aggregation the site takes part in no sum that may be over fewer
            sites, whoever drops out.
        minimum_count: A number measured on fewer patients than this is not released.
        metrics: Measures that may be released.
        exact: Release counts and measures as they are; otherwise counts are rounded to two
            significant digits and measures to three decimals.
        data_changes: What to do when the records are others than before in the same run.
        privacy: What is spent on the patients' privacy at most; with it, jobs without
            differential privacy are refused.
        require_differential_privacy: Refuse jobs without it.
        require_secure_aggregation: Refuse jobs without it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    purpose: Text = ""
    expires: Annotated[date | None, BeforeValidator(_day)] = None
    coordinators: Digests = ()
    base_sha256: Digests = ()
    requests: tuple[TaskKind | Literal["any"], ...] = ()
    rules: tuple[AggregationRule | Literal["any"], ...] = ()
    personalization: tuple[PersonalizationMethod | Literal["any"], ...] = ()
    targets: tuple[Annotated[str, Field(min_length=1, max_length=100)], ...] = ()
    features: bool = False
    proxy: bool = False
    max_rounds: Count = 100
    max_steps: Count = 1000
    max_epochs: Annotated[float, Field(gt=0)] = 5.0
    max_rank: Count = 64
    max_adapter: Annotated[float, Field(gt=0)] = 1.0
    max_change: Annotated[float, Field(gt=0)] = 100.0
    minimum_patients: Count = 100
    minimum_cohort: Count = 3
    minimum_summed: Count = 3
    minimum_count: Count = 20
    metrics: tuple[Metric, ...] = ()
    exact: bool = False
    data_changes: Literal["refuse", "record"] = "refuse"
    privacy: PrivacyPolicy | None = None
    require_differential_privacy: bool = False
    require_secure_aggregation: bool = False

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a ``policy.toml``.

        Raises:
            ConfigError: One line: file, key, and what was expected.
        """
        try:
            return cls.model_validate(read_toml(path, "policy file"))
        except ValidationError as error:
            raise ConfigError(f"{path}: {first_problem(error, cls)}") from None

    def current(self) -> "SitePolicy":
        """Return the policy itself: one that is in no file does not change."""
        return self

    @property
    def curious_sites(self) -> int:
        """How many of the others in a sum may work against the site."""
        return self.privacy.curious_sites if self.privacy else 1

    def allows_base(self, sha256: str) -> bool:
        """Return whether the site works with a base."""
        return allows(self.base_sha256, sha256)

    def digest(self) -> str:
        """Return the sha256 of everything that the policy says."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def allows(named: Collection[str], value: str) -> bool:
    """Return whether a list of a policy allows a value."""
    return value in named or ANY in named


class PolicySource(Protocol):
    """Where a site's policy comes from."""

    def current(self) -> SitePolicy:
        """Return the policy as it is now.

        Raises:
            RefusedError: ``policy-unreadable`` if nobody can tell what it says.
        """
        ...


class PolicyFile:
    """A ``policy.toml`` that is read again whenever it has changed.

    While it cannot be read, nothing is allowed: whoever saves half a sentence must not be left
    with yesterday's policy.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] | None = None
        self._policy: SitePolicy | None = None

    def current(self) -> SitePolicy:
        """Return what the file says now.

        Raises:
            RefusedError: ``policy-unreadable``; why is in the log, once for every change.
        """
        with self._lock:
            seen = self._signature()
            if seen != self._seen:
                self._policy = self._read()
                self._seen = seen
            if self._policy is None:
                raise RefusedError(
                    "policy-unreadable", f"{self._path}: cannot be used; see the log"
                )
            return self._policy

    def _read(self) -> SitePolicy | None:
        try:
            return SitePolicy.load(self._path)
        except ConfigError as error:
            # The site's own words about its own file; they go to its log and nowhere else.
            log.error("everything is refused: %s", error)  # noqa: TRY400
            return None

    def _signature(self) -> tuple[int, ...]:
        """Return what changes when the file does; (0,) if it cannot be looked at."""
        try:
            status = self._path.stat()
        except OSError:
            return (0,)
        return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def simulation_policy() -> SitePolicy:
    """Return the policy of a simulated site: nothing needs hiding from oneself."""
    return SitePolicy(
        purpose="simulation",
        expires=date.max,
        coordinators=(ANY,),
        base_sha256=(ANY,),
        requests=(ANY,),
        rules=(ANY,),
        personalization=(ANY,),
        targets=(ANY,),
        features=True,
        proxy=True,
        max_rounds=100_000,
        max_steps=10**9,
        max_epochs=1e9,
        max_rank=256,
        max_adapter=1e9,
        max_change=1e9,
        minimum_patients=1,
        minimum_cohort=1,
        minimum_summed=1,
        minimum_count=1,
        metrics=METRICS,
        exact=True,
        data_changes="record",
    )
