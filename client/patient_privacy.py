"""What a site promises its patients in a run, held to before training and before release.

The job says what it would like and the site's policy what it allows at most. From both come the
clipping norm, the noise and the sampling of a round; every step really taken is in the site's
ledger before anything of it leaves.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from client.audit import AuditLog
from client.data.records import SiteData
from client.keeping import IN_THE_CLEAR, Keeping
from client.ledger import Entry, Population, PrivacyLedger, Receipt, Release
from client.ledger.account import statement
from client.ledger.entries import Mode
from client.patient_steps import PatientSteps, steps_of
from client.policy import SitePolicy
from client.privacy_policy import Asked, PrivacyPolicy, Terms, check_plan, terms
from client.proxy import ProxySet
from shared.adapter import AdapterLayout
from shared.config import JobConfig
from shared.config.privacy import plan_of
from shared.distributed_noise import calibrated, grid_at, noise_of
from shared.errors import RefusedError
from shared.messages import Request
from shared.privacy.accountant import Spend
from shared.privacy.mechanism import Grid
from shared.privacy.statement import Statement, unclaimed

_SAME = 5e-3
"""Noise for the same epsilon differs by less from site to site: those without a tower have fewer
numbers that get any."""

LEDGER = "privacy"
"""Folder of the ledger in the site's own."""


class Ledger(Protocol):
    """What is asked of a ledger; ``client.ledger.PrivacyLedger`` is it."""

    def enrol(self, population: Population) -> None:
        """Note whose records are about to be used."""
        ...

    def check(self, release: Release, terms: Terms) -> Receipt:
        """Return what a release would cost."""
        ...

    def spend(self, release: Release, terms: Terms) -> Receipt:
        """Write a release down before it leaves."""
        ...

    def entries(self) -> list[Entry]:
        """Return everything that was spent."""
        ...


@dataclass(frozen=True)
class Promise:
    """What holds for one site in one round.

    Attributes:
        steps: How its steps are taken.
        terms: The stricter of policy and job.
        release: What is about to leave, with the steps that are planned.
        grid: Of the site's share of the noise, where all sites of a sum add it together.
    """

    steps: PatientSteps
    terms: Terms
    release: Release
    grid: Grid | None = None


class PatientPrivacy:
    """One site's promises; the ledger is opened when the first job asks for privacy.

    Args:
        state: The site's own folder.
        audit: Its audit log, which holds the ledger's end as well.
        keeping: How private files are kept.
    """

    def __init__(self, state: Path, audit: AuditLog, keeping: Keeping = IN_THE_CLEAR) -> None:
        self._folder, self._audit, self._keeping = state / LEDGER, audit, keeping
        self._ledger: Ledger | None = None

    def promise(
        self,
        request: Request,
        policy: SitePolicy,
        data: SiteData,
        layout: AdapterLayout,
        public: ProxySet,
    ) -> Promise:
        """Return what holds for a round, once the budget is known to be enough for it.

        Args:
            request: To train, of a job with differential privacy.
            policy: The site's.
            data: Its records.
            layout: Of its encoder.
            public: The public pairs.

        Raises:
            RefusedError: ``privacy-plan`` if the promise would not hold, with every objection;
                ``privacy-budget``, ``privacy-population`` or ``privacy-ledger``.
            StorageError: If the ledger cannot be written.
        """
        budget = policy.privacy
        if budget is None:
            raise RefusedError(
                "privacy-plan",
                "the site's policy names no budget; expected a table [privacy] with population, "
                "epsilon and delta",
            )
        job = request.job
        holding = terms(budget, _asked(job))
        patients = np.unique(data.splits["train"].patients)
        noise, shares = _noise(job, holding, layout, data), 1
        if job.privacy.noised_together:
            noise, shares = _noise_of_all(job, layout, noise, budget), job.privacy.noise_shares
        plan = replace(
            plan_of(job, noise),
            patients=len(patients),
            patient_column=any(data.people),
            blank_patients=_blank(data),
            minimum_patients=policy.minimum_patients,
            clip=holding.clip,
            delta=holding.delta,
        )
        check_plan(plan)
        steps = steps_of(job.privacy, len(patients), holding.clip, noise, public)
        release = Release(
            population=budget.population,
            study=job.name,
            run=request.run,
            round=request.round,
            attempt=request.attempt,
            mode=_added_by(job),
            shares=shares,
            data_sha256=_digest(data),
            spend=Spend(
                sampling=steps.rate,
                noise=noise,
                steps=int(job.train.steps or 0),
                entries=max(1, layout.entries(request.factors, data.towers)) * shares,
            ),
            clip=holding.clip,
            sensitivity=steps.sensitivity,
        )
        ledger = self._opened()
        people = {data.people[number] for number in patients}
        ledger.enrol(Population(budget.population, release.data_sha256, people))
        ledger.check(release, holding)
        return Promise(steps, holding, release, _grid(request, layout))

    def spend(self, promise: Promise, steps: int) -> Receipt:
        """Write down the steps that were really taken; call it before anything of them leaves.

        Raises:
            RefusedError: As ``promise``; then nothing may leave.
            StorageError: If it cannot be written; then nothing may leave.
        """
        taken = promise.release.spend.model_copy(update={"steps": steps})
        return self._opened().spend(replace(promise.release, spend=taken), promise.terms)

    def said_of(self, request: Request, policy: SitePolicy) -> Statement | None:
        """Return what may be told of a run: its releases composed; ``None`` without privacy.

        Not how many patients there are: below a hundred, two digits tell of every single one.

        Args:
            request: Of the run.
            policy: The site's.

        Raises:
            RefusedError: ``privacy-ledger``.
        """
        if not request.job.privacy.for_patients:
            return None
        if policy.privacy is None:
            return unclaimed("the site's policy names no budget")
        delta = terms(policy.privacy, _asked(request.job)).delta
        entries = [e for e in self._opened().entries() if e.release.run == request.run]
        return statement(entries, delta)

    def _opened(self) -> Ledger:
        if self._ledger is None:
            self._ledger = PrivacyLedger(self._folder, self._audit, self._keeping)
        return self._ledger


def promises_privacy(request: Request) -> bool:
    """Return whether patients are promised differential privacy in what a request asks for."""
    return request.kind == "train" and request.job.privacy.for_patients


def spent(state: Path, run: str) -> list[Entry]:
    """Return what a site's ledger has of a run; nothing if there is no ledger.

    Raises:
        RefusedError: ``privacy-ledger``.
    """
    if not (state / LEDGER).exists():
        return []
    ledger = PrivacyLedger(state / LEDGER, AuditLog(state / "audit.jsonl"))
    return [entry for entry in ledger.entries() if entry.release.run == run]


def with_simulated_budget(policy: SitePolicy, job: JobConfig) -> SitePolicy:
    """Return the policy of a simulated site with a budget that allows what the job asks for."""
    asked = job.privacy
    if not asked.for_patients or policy.privacy is not None:
        return policy
    budget = PrivacyPolicy(
        population="simulated",
        epsilon=asked.epsilon or 1e6,
        delta=asked.delta,
        least_noise=0.3,
        largest_clip=asked.clip_norm,
        noise_shares=asked.noise_shares,
    )
    return policy.model_copy(update={"privacy": budget})


def _digest(data: SiteData) -> str:
    texts = [(name, split.texts) for name, split in sorted(data.splits.items())]
    return hashlib.sha256(repr((data.pictures_sha256, texts)).encode()).hexdigest()


def _asked(job: JobConfig) -> Asked:
    asked = job.privacy
    return Asked(asked.epsilon, asked.delta, asked.clip_norm, asked.noise_multiplier)


def _blank(data: SiteData) -> int:
    """Return how many training records do not name their patient."""
    patients = data.splits["train"].patients
    return int(sum(not data.people[number] for number in patients)) if any(data.people) else 0


def _noise(job: JobConfig, holding: Terms, layout: AdapterLayout, data: SiteData) -> float:
    """Return the noise multiplier that a step needs: as asked, or as the run's epsilon needs it.

    Raises:
        RefusedError: ``privacy-budget`` if no noise is enough.
    """
    if job.privacy.noise_multiplier is not None:
        return holding.noise
    entries = max(1, layout.entries(("A", "B"), data.towers))
    steps = job.rounds * int(job.train.steps or 0)
    try:
        found = calibrated(
            holding.run_epsilon, holding.delta, job.privacy.sampling_rate, steps, entries
        )
    except ValueError as error:
        raise RefusedError("privacy-budget", str(error)) from None
    return max(holding.noise, found)


def _noise_of_all(
    job: JobConfig, layout: AdapterLayout, needed: float, budget: PrivacyPolicy
) -> float:
    """Return the noise multiplier of a sum that all sites add noise to.

    Raises:
        RefusedError: ``privacy-budget`` if no noise is enough; ``privacy-plan`` if the site's
            policy leaves less of it to others, or asks for more than they add.
    """
    if job.privacy.noise_shares > budget.noise_shares:
        raise RefusedError(
            "privacy-plan",
            f"the job splits the noise of a sum among {job.privacy.noise_shares} sites, and the "
            f"site's policy allows {budget.noise_shares}; allow more with privacy.noise_shares, or "
            "ask for a job with fewer, or with privacy.mode = 'local'",
        )
    try:
        noise = noise_of(job, layout)
    except ValueError as error:
        raise RefusedError("privacy-budget", str(error)) from None
    if needed > noise * (1 + _SAME):
        raise RefusedError(
            "privacy-plan",
            f"the sites of the sum add noise {noise:.4g} together, and the site's policy needs "
            f"{needed:.4g}; a smaller epsilon or delta in the job, or more noise, would do",
        )
    return noise


def _grid(request: Request, layout: AdapterLayout) -> Grid | None:
    """Return the grid of the site's share of the noise; ``None`` where it adds all of it.

    Raises:
        RefusedError: ``privacy-plan`` if it does not fit the round's scale.
    """
    if not request.job.privacy.noised_together:
        return None
    try:
        return grid_at(request.scale, request.job, layout, request.factors, request.cohort)
    except ValueError as error:
        raise RefusedError("privacy-plan", str(error)) from None


def _added_by(job: JobConfig) -> Mode:
    return "distributed" if job.privacy.noised_together else "local"
