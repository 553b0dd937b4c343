"""What a site will do at all, whatever a coordinator asks; the site alone writes it.

Every request is checked here before any record is opened. Where a job and the policy both
set a limit, the stricter one holds.
"""

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.config import JobConfig
from shared.errors import ConfigError, RefusedError
from shared.latest import Latest
from shared.messages import Request, RequestKind, Sha256
from shared.results import METRICS, Metric
from shared.toml_files import first_problem, read_toml

Count = Annotated[int, Field(ge=1)]


class SitePolicy(BaseModel):
    """Limits of one site.

    Attributes:
        base_sha256: Bases that the site accepts, by digest; any if empty.
        requests: Kinds of request that the site answers.
        features: Whether the site sends features of the public set that its own model gives.
        max_rounds: Longest job, in rounds.
        max_steps: Most optimiser steps in one round.
        max_epochs: Most passes over the training records in one round.
        max_rank: Largest rank of an adapter.
        max_change: Largest L2 norm of a released change.
        minimum_count: A number measured on fewer patients than this is not released.
        metrics: Measures that may be released.
        exact: Release counts and measures as they are; otherwise counts are rounded to two
            significant digits and measures to three decimals.
        require_differential_privacy: Refuse jobs without it.
        require_secure_aggregation: Refuse jobs without it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_sha256: tuple[Sha256, ...] = ()
    requests: tuple[RequestKind, ...] = ("describe", "train", "personalize", "evaluate")
    features: bool = False
    max_rounds: Count = 1000
    max_steps: Count = 10_000
    max_epochs: Annotated[float, Field(gt=0)] = 20.0
    max_rank: Count = 64
    max_change: Annotated[float, Field(gt=0)] = 100.0
    minimum_count: Count = 20
    metrics: tuple[Metric, ...] = METRICS
    exact: bool = False
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

    def allows_base(self, sha256: str) -> bool:
        """Return whether the site works with a base."""
        return not self.base_sha256 or sha256 in self.base_sha256

    def check(self, request: Request) -> None:
        """Raise unless the policy allows a request.

        Where sites have bases of their own, which base is the site's is only known once it is
        loaded; ``allows_base`` is asked then.

        Raises:
            RefusedError: With the code of the first rule that says no.
        """
        job = request.job
        steps, epochs = job.train.steps, job.train.epochs
        rules: tuple[tuple[str, bool, str], ...] = (
            ("policy-request", request.kind in self.requests, f"{request.kind} is not allowed"),
            (
                "job-digest",
                _digest(job) == request.job_sha256,
                "the job is not the one that its digest names",
            ),
            (
                "policy-base",
                bool(job.model.bases) or self.allows_base(request.base_sha256),
                "this base is not on the site's list",
            ),
            (
                "policy-features",
                self.features or not job.aggregate.shares_features,
                "the site sends no features of its own model",
            ),
            (
                "policy-rounds",
                job.rounds <= self.max_rounds and request.round <= job.rounds,
                f"more rounds than the job or the site's limit of {self.max_rounds}",
            ),
            (
                "policy-steps",
                (steps or 0) <= self.max_steps and (epochs or 0) <= self.max_epochs,
                f"more than {self.max_steps} steps or {self.max_epochs:g} epochs in a round",
            ),
            (
                "policy-steps",
                job.personalize.steps <= self.max_steps,
                f"more than {self.max_steps} steps of personalization",
            ),
            (
                "policy-rank",
                max(job.lora.rank, job.personalize.rank) <= self.max_rank,
                f"an adapter of more than rank {self.max_rank}",
            ),
            (
                "policy-differential-privacy",
                not self.require_differential_privacy or job.privacy.differential_privacy,
                "the site requires differential privacy",
            ),
            (
                "policy-secure-aggregation",
                not self.require_secure_aggregation,
                "the site requires secure aggregation, which this version does not have",
            ),
        )
        for reason, holds, message in rules:
            if not holds:
                raise RefusedError(reason, message)


_digests: Latest[str] = Latest()


def _digest(job: JobConfig) -> str:
    return _digests.get((job,), job.digest)


def simulation_policy() -> SitePolicy:
    """Return the policy of a simulated site: nothing needs hiding from oneself."""
    return SitePolicy(
        max_rounds=100_000,
        max_steps=10**9,
        max_epochs=1e9,
        max_rank=256,
        max_change=1e9,
        features=True,
        minimum_count=1,
        exact=True,
    )
