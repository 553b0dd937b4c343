"""The site's policy, the consortium's job, the base and the records: whether they go together."""

from collections.abc import Mapping
from datetime import date

from client.check.finding import Finding, duration, size
from client.check.measure import Measured
from client.check.subject import Base
from client.data.check import SiteCheck
from client.data.records import SplitName
from client.decisions import Objection
from client.policy import SitePolicy
from shared.config import JobConfig
from shared.errors import ConsiliaError, TrainingError
from shared.model.base import TINY
from shared.results import SplitCounts

_SOON_DAYS = 14
_ALLOWED = ("rules", "personalization", "targets", "requests", "metrics")
_LIMITS = ("max_rounds", "max_steps", "max_rank", "minimum_patients", "minimum_cohort")


def judge_policy(policy: SitePolicy | ConsiliaError, today: date) -> Finding:
    """Whether the policy can be read and still counts, and what it allows."""
    if isinstance(policy, ConsiliaError):
        do = "mend the file; what it may say is in docs/deploy.md"
        return Finding("", "fail", str(policy), "the site's policy.toml", do)
    tree = policy.model_dump(mode="json")
    lists = [f"{name} {', '.join(tree[name]) or 'none'}" for name in _ALLOWED]
    limits = [f"{name} {tree[name]}" for name in _LIMITS]
    found = "; ".join([*lists, *limits])
    if not policy.purpose.strip():
        do = 'write purpose = "..." into policy.toml, as it was agreed'
        return Finding("", "fail", "the policy names no purpose", "a sentence", do)
    if policy.expires is None or today > policy.expires:
        was = "names no last day" if policy.expires is None else f"expired on {policy.expires}"
        do = "set expires in policy.toml once the institution agrees to go on"
        return Finding("", "fail", f"the policy {was}", "a day that is still to come", do)
    days = (policy.expires - today).days
    if days < _SOON_DAYS:
        do = "have it renewed before then; the agent refuses everything from the next day on"
        return Finding("", "warn", f"{days} days left; {found}", f"{_SOON_DAYS} days or more", do)
    until = "" if policy.expires == date.max else f"until {policy.expires}; "
    return Finding("", "ok", until + found)


def judge_job(job: JobConfig | ConsiliaError, name: str | None) -> Finding:
    """Whether the job can be read."""
    if isinstance(job, ConsiliaError):
        do = "ask the coordinator for the job file"
        return Finding("", "fail", str(job), "the consortium's job", do)
    size_of = f"{job.train.steps} steps" if job.train.steps else f"{job.train.epochs:g} epochs"
    found = (
        f"{job.rounds} rounds of {size_of}, {job.aggregate.rule}, rank {job.lora.rank}, "
        f"batches of {job.train.batch_size}, {job.personalize.method}"
    )
    if name is None:
        do = "give the consortium's job: --job JOB.toml"
        found = f"none given, so the defaults of a job file are taken: {found}"
        return Finding("", "warn", found, "the consortium's job", do)
    return Finding("", "ok", f"{name}: {found}")


def judge_permission(objections: list[Objection], patients: int | None, least: int) -> Finding:
    """Whether the policy allows the job, and what it does not allow.

    Args:
        objections: Of the policy to the job.
        patients: To train on; ``None`` if that is not known.
        least: How many the policy asks for.
    """
    against = [f"{each.field}: {each.message}" for each in objections]
    if patients is not None and patients < least:
        against.append(f"data: {patients} patients to train on, of {least}")
    if against:
        return Finding(
            "",
            "fail",
            "; ".join(against),
            "a job that policy.toml allows",
            "ask the coordinator to change the job, or have the policy changed by those who "
            "answer for it",
        )
    return Finding("", "ok", "the policy allows every field of the job")


def judge_base(
    base: Base | ConsiliaError, job: JobConfig, policy: SitePolicy | ConsiliaError
) -> Finding:
    """Whether the base is here, and the one that job and policy name."""
    if isinstance(base, ConsiliaError):
        do = "copy the consortium's base here, and set base in site.toml to its folder"
        return Finding("", "fail", str(base), "the job's base", do)
    found = f"{base.folder}, sha256 {base.sha256}"
    wanted = job.model.sha256
    if wanted is not None and wanted != base.sha256:
        do = "copy the consortium's base here, file by file; all sites start from the same one"
        return Finding("", "fail", found, f"sha256 {wanted}, as the job says", do)
    if isinstance(policy, SitePolicy) and not policy.allows_base(base.sha256):
        return Finding(
            "",
            "fail",
            found,
            "one of base_sha256 in policy.toml",
            "add it to base_sha256 if the institution agrees to this base, or put the agreed one "
            "here",
        )
    if wanted is None and job.model.base != TINY:
        do = "compare it with the coordinator's, or ask for a job with model.sha256"
        return Finding("", "warn", found, "a job that names the digest", do)
    return Finding("", "ok", found)


def judge_data(check: SiteCheck, seconds: float) -> Finding:
    """Whether the records can be used; how many there are, by split and modality."""
    counts = _counted(check.counts)
    errors, warnings = len(check.errors), len(check.warnings)
    found = f"{check.rows} rows in {duration(seconds)}: {counts}"
    problems = f"{errors} errors, {warnings} warnings"
    if errors:
        do = "mend the rows below; again: `consilia data check`"
        return Finding("", "fail", f"{problems}; {found}", "records without errors", do)
    if check.kind is None:
        do = "see docs/data.md for what a record needs; splits are by patient"
        return Finding("", "fail", f"nothing to train on; {found}", "training records", do)
    if warnings:
        return Finding("", "warn", f"{problems}; {found}", "none", "see the rows below")
    return Finding("", "ok", f"{check.kind}, {found}")


def _counted(counts: Mapping[SplitName, SplitCounts]) -> str:
    return "; ".join(
        f"{split} {each.images} images, {each.texts} texts, {each.pairs} pairs, "
        f"{each.patients} patients"
        for split, each in counts.items()
    )


def judge_training(measured: Measured | ConsiliaError) -> Finding:
    """Whether a step of training works here."""
    if isinstance(measured, TrainingError) and measured.reason == "out-of-memory":
        return Finding(
            "",
            "fail",
            "one step does not fit into memory",
            "a step of the job's batch size",
            "give the agent more memory or a larger GPU, or ask for a smaller train.batch_size",
        )
    if isinstance(measured, ConsiliaError):
        do = "mend the records, or ask the coordinator about the job"
        return Finding("", "fail", str(measured), "a step of training", do)
    memory = size(measured.memory_bytes)
    loss = "" if measured.loss is None else f"loss {measured.loss:.3f} nats; "
    return Finding(
        "",
        "ok",
        f"the first in {duration(measured.first_seconds)}, then {duration(measured.step_seconds)} "
        f"each; {loss}{memory} of memory",
    )
