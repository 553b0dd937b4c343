"""All attacks on one job, one after the other."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from client.bank import open_bank
from client.batches import prepare
from client.encoding import encode_all
from client.patient_steps import PatientSteps, expected_in_a_step, patients_of
from client.private_training import PatientGradients
from client.proxy import ProxySet
from client.training import SiteTask
from shared.adapter import SharedAdapter, factor_of
from shared.config import JobConfig
from shared.errors import InputError
from shared.model.encoder import DualEncoder
from shared.model.view import AdapterView
from shared.privacy.accountant import Spend, epsilon
from shared.seeding import derive_seed
from simulations.audit.canaries import Pairs, draw_pairs, references
from simulations.audit.exposure import Victims, exposures
from simulations.audit.mechanism import Site, Trial, audit_steps, one_step
from simulations.audit.membership import Membership, Score, Sides, membership, scores
from simulations.audit.rehearsal import Rehearsed, Stage, rehearse, set_up, without_privacy
from simulations.audit.results import (
    AuditReport,
    BoundFound,
    InversionFound,
    MembershipFound,
    Protection,
)
from simulations.machine import encoder_for
from simulations.progress import RunProgress

_USUAL_NOISE = 1.0
"""Where a job has no noise, what inversion through noise is shown with."""
_LEAST_B = 0.02
"""Where the received B is zero, what its entries would be after some steps."""


@dataclass(frozen=True)
class Extent:
    """How far an audit goes.

    Attributes:
        site: Which site gets the canaries; that with the most pairs if not given.
        canaries: Phantom patients, half of whom train.
        gradients: Canaries in the sums.
        records: Single records that are inverted.
        confidence: Of the bound on epsilon.
    """

    site: str | None
    canaries: int
    gradients: int
    records: int
    confidence: float


@dataclass(frozen=True)
class Planted:
    """Canaries and what they are compared with.

    Attributes:
        pairs: All canaries.
        inside: (n,) which of them train.
        others: Pairs that train nowhere.
    """

    pairs: Pairs
    inside: NDArray[np.bool_]
    others: ProxySet


def attack(
    folder: Path,
    job: JobConfig,
    extent: Extent,
    adapter_sha256: str | None,
    deployed: bool,
    console: Console,
) -> AuditReport:
    """Rehearse a job and attack what comes of it.

    Args:
        folder: New; everything in it can be thrown away afterwards.
        job: The job.
        extent: How far to go.
        adapter_sha256: Of the run that is audited.
        deployed: Whether the records are at sites and synthetic ones stand in.
        console: Where progress is shown.

    Raises:
        InputError: If the job cannot be rehearsed here, or has nothing to attack.
        QuorumError: If too few sites answered in the rehearsal.
    """
    if job.privacy.for_sites:
        raise InputError(
            f"{job.name}: with privacy.mode = 'site-level' patients are promised nothing, and an "
            "audit measures what a patient's records change; audit a job with mode = 'local', or "
            "without differential privacy"
        )
    asked, job = job, on_phantoms(job) if deployed else job
    stage = set_up(folder, job, extent.site)
    planted = _plant(stage, extent.canaries)
    private = stage.job.privacy.for_patients
    console.print(_headline(stage, extent), highlight=False)
    found, whole = infer(stage, planted, "as the job says", stage.job, console)
    if private:
        plain = without_privacy(stage.job)
        found = [*found, *infer(stage, planted, "without privacy", plain, console)[0]]
    trials: list[BoundFound] = []
    claim: float | None = None
    if private:
        claim = epsilon(whole.spends, stage.job.privacy.delta)
        trials = _bounds(stage, whole, extent, console)
    inverted, not_run = _inversions(stage, planted.others, whole, extent, console)
    return AuditReport(
        name=job.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        job_sha256=asked.digest(),
        adapter_sha256=adapter_sha256,
        base_sha256=stage.encoder.base_sha256,
        site=stage.target,
        records="own" if job.data.folder is not None else "synthetic",
        epsilon=claim,
        delta=stage.job.privacy.delta if private else None,
        membership=tuple(found),
        bounds=tuple(trials),
        inversion=tuple(inverted),
        not_run=tuple(not_run),
    )


def on_phantoms(job: JobConfig) -> JobConfig:
    """Return the job with synthetic sites, and a synthetic public set if it has any."""
    tree = job.model_dump(mode="json")
    tree.pop("data")
    tree.pop("partition")
    if job.proxy.folder is not None:
        tree["proxy"] |= {"folder": None, "sha256": None, "phantoms": 512}
    tree["lora"]["ranks"] = {}
    return JobConfig.model_validate(tree)


def _headline(stage: Stage, extent: Extent) -> str:
    return (
        f"{stage.job.name}: {extent.canaries} canaries at {stage.target}, half of them train; "
        f"{len(stage.data)} sites, {stage.job.rounds} rounds, base {stage.encoder.base_name}"
    )


def _plant(stage: Stage, count: int) -> Planted:
    seed = stage.job.seed
    count -= count % 2
    pairs = draw_pairs(count, derive_seed(seed, "audit", "canaries"), stage.encoder, apart=True)
    order = np.random.default_rng(derive_seed(seed, "audit", "halves")).permutation(count)
    inside = np.zeros(count, bool)
    inside[order[: count // 2]] = True
    return Planted(pairs, inside, references(stage.encoder, seed))


def infer(
    stage: Stage, planted: Planted, protection: Protection, job: JobConfig, console: Console
) -> tuple[list[MembershipFound], Rehearsed]:
    """Rehearse a job with the canaries and tell their halves apart by the adapter.

    Args:
        stage: The sites.
        planted: The canaries.
        protection: Which job it is.
        job: The job.
        console: Where progress is shown.

    Returns:
        What was found by each score, and the rehearsal.
    """
    console.print(f"Rehearsal, {protection}", highlight=False)
    members = planted.pairs.of(np.flatnonzero(planted.inside))
    with RunProgress(console, job.rounds) as progress:
        whole = rehearse(stage, members, protection.replace(" ", "-"), job, progress)
    encoder = stage.encoder
    before = _features(encoder, planted, AdapterView())
    after = _features(encoder, planted, AdapterView(whole.shared))
    held = scores(before, after, encoder.logit_scale)
    found = []
    for score, values in held.items():
        told = membership(values[planted.inside], values[~planted.inside])
        found.append(_told(protection, score, told))
    return found, whole


def _told(protection: Protection, score: Score, told: Membership) -> MembershipFound:
    return MembershipFound(protection=protection, score=score, **vars(told))


def _features(encoder: DualEncoder, planted: Planted, view: AdapterView) -> tuple[Sides, Sides]:
    """Return canaries and references under a view."""
    encoder.use(view)
    data = planted.others.data
    canaries = replace(data, splits={**data.splits, "train": planted.pairs.split()})
    sides = []
    for each in (canaries, data):
        prepared = prepare(encoder, each, "train")
        found = encode_all(encoder, prepared, prepared.everything)
        sides.append(Sides(found.image.double().cpu().numpy(), found.text.double().cpu().numpy()))
    return sides[0], sides[1]


def _bounds(stage: Stage, whole: Rehearsed, extent: Extent, console: Console) -> list[BoundFound]:
    """Audit the sums that the target releases, over all steps and over a single one."""
    public, data = stage.public(), stage.data[stage.target]
    steps = _steps(stage, whole, public)
    count = sum(spend.steps for spend in whole.spends)
    train = prepare(stage.encoder, data, "train")
    stage.encoder.use(AdapterView(whole.shared))
    bank = open_bank(stage.encoder, data, steps.public, stage.job.train)
    task = SiteTask(data, whole.shared, ("A", "B"), 0, 1)
    shift = (0, np.random.default_rng(0))
    gradients = PatientGradients(stage.encoder, train, bank, task, 32, shift)
    delta = stage.job.privacy.delta
    found: list[BoundFound] = []
    try:
        site = Site(gradients, patients_of(train))
        for what, each, number in (("the run", steps, count), ("one step", one_step(steps), 1)):
            with console.status(f"Canaries in the sums of {what}"):
                trials = audit_steps(
                    each,
                    number,
                    delta,
                    site=site,
                    shares=whole.noise_shares,
                    canaries=extent.gradients,
                    confidence=extent.confidence,
                )
            found += [_held(what, each, number, trial) for trial in trials]
    finally:
        gradients.close()
    return found


def _held(what: str, steps: PatientSteps, count: int, trial: Trial) -> BoundFound:
    return BoundFound.model_validate(
        {
            "what": what,
            "steps": count,
            "rate": steps.rate,
            "noise": steps.noise,
            "claimed": trial.claimed,
            **vars(trial.found),
        }
    )


def _steps(stage: Stage, whole: Rehearsed, public: ProxySet | None) -> PatientSteps:
    """Return how the target's steps were taken, by its ledger."""
    asked = stage.job.privacy
    patients = len(np.unique(stage.data[stage.target].splits["train"].patients))
    spends = whole.spends or (Spend(sampling=1, noise=_USUAL_NOISE, steps=1),)
    rate = max(spend.sampling for spend in spends)
    return PatientSteps(
        clip=asked.clip_norm,
        noise=min(spend.noise for spend in spends),
        rate=rate,
        expected=expected_in_a_step(patients, rate),
        public=public or references(stage.encoder, stage.job.seed),
    )


def _inversions(
    stage: Stage, others: ProxySet, whole: Rehearsed, extent: Extent, console: Console
) -> tuple[list[InversionFound], list[str]]:
    job = stage.job
    model = job.model.model_copy(update={"precision": "float32"})
    encoder = encoder_for(job.model_copy(update={"model": model}), str(stage.encoder.device))
    data = stage.data[stage.target]
    try:
        with console.status("Inverting single updates"):
            victims = Victims(encoder, data, _later(whole.shared, job.seed), others, job)
            try:
                steps = one_step(_steps(stage, whole, others))
                seed = derive_seed(job.seed, "audit", "inversion")
                found = exposures(victims, job, steps, extent.records, seed)
                readable = bool(victims.readers())
            finally:
                victims.close()
    except InputError as error:
        return [], [f"inversion: {error}"]
    without = "tokens of the report: the first layer of the text tower carries no adapter"
    inverted = [InversionFound.model_validate(vars(each)) for each in found]
    return inverted, [] if readable else [without]


def _later(shared: SharedAdapter, seed: int) -> SharedAdapter:
    """Return an adapter as sites receive it after some rounds: nowhere is B zero."""
    rng = np.random.default_rng(seed)
    factors = {
        name: values
        if factor_of(name) == "A" or values.any()
        else (_LEAST_B * rng.standard_normal(values.shape)).astype(np.float32)
        for name, values in shared.factors.items()
    }
    return SharedAdapter(factors, shared.residual, shared.folds)
