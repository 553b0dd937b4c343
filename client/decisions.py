"""What a policy says of a request: every rule that says no, by the field that broke it.

All of them are asked, so that whoever wrote a job hears in one answer what a site does not allow.
Fields are named as in the job file; those of a request alone by their own names. Codes and names
of fields may leave the site; the sentences stay in its log.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date

from client.data.records import SiteData
from client.policy import SitePolicy, allows
from shared.config import JobConfig
from shared.errors import RefusedError
from shared.latest import Latest
from shared.messages import SECURE_KINDS, Request


@dataclass(frozen=True)
class Party:
    """Who asks, as far as the site can tell by itself.

    Attributes:
        coordinator: Public key that every request is checked against; ``None`` where requests
            are not signed.
        sites: Sites in the kit's roster that are not revoked; ``None`` without a kit.
    """

    coordinator: str | None = None
    sites: int | None = None


NOBODY = Party()
"""Whoever reaches the agent may ask, as in a simulation."""


@dataclass(frozen=True)
class Objection:
    """One rule that says no.

    Attributes:
        reason: Code that may leave the site.
        field: What broke the rule, such as ``lora.rank``.
        message: For the site's own people.
    """

    reason: str
    field: str
    message: str


def refuse(objections: Sequence[Objection]) -> None:
    """Raise if there is any objection.

    Raises:
        RefusedError: With the code of the first, and the fields of all of them.
    """
    if not objections:
        return
    fields: dict[str, tuple[str, ...]] = {}
    for each in objections:
        known = fields.get(each.reason, ())
        fields[each.reason] = known if each.field in known else (*known, each.field)
    message = "; ".join(f"{each.field}: {each.message}" for each in objections)
    raise RefusedError(objections[0].reason, message, fields)


def about_request(
    policy: SitePolicy, request: Request, party: Party, today: date
) -> list[Objection]:
    """Return what speaks against a request, before any record is opened.

    Where sites have bases of their own, which base is the site's is only known once it is
    loaded; ``SitePolicy.allows_base`` is asked then.
    """
    job = request.job
    return [
        *about_site(policy, party, today),
        *_about_header(policy, request),
        *_about_jobs.get((policy, job, party), lambda: about_job(policy, job, party)),
    ]


def about_site(policy: SitePolicy, party: Party, today: date) -> Iterator[Objection]:
    """Yield what speaks against any request of this coordinator on this day."""
    if not policy.purpose.strip():
        yield Objection("policy-purpose", "purpose", "the policy names none")
    if policy.expires is None:
        yield Objection("policy-expired", "expires", "the policy names no last day")
    elif today > policy.expires:
        yield Objection("policy-expired", "expires", f"the policy counted until {policy.expires}")
    if not allows(policy.coordinators, party.coordinator or ""):
        asks = party.coordinator or "requests that nobody signed"
        yield Objection("policy-coordinator", "coordinator", f"{asks}: not in coordinators")


def about_job(policy: SitePolicy, job: JobConfig, party: Party) -> list[Objection]:
    """Return what speaks against a job."""
    return [
        *_about_methods(policy, job),
        *_about_amounts(policy, job),
        *_about_privacy(policy, job),
        *_about_sites(policy, job, party),
    ]


def about_data(policy: SitePolicy, request: Request, data: SiteData) -> Iterator[Objection]:
    """Yield what speaks against a request once the records are there."""
    least = policy.minimum_patients
    if request.kind == "train" and least > 1:
        patients = data.splits["train"].counts().patients
        if patients < least:
            yield Objection(
                "policy-patients", "data", f"{patients} patients to train on, of {least}"
            )


def _about_header(policy: SitePolicy, request: Request) -> Iterator[Objection]:
    # The stages of secure aggregation are part of a training, and release less than it alone.
    kind = "train" if request.kind in SECURE_KINDS else request.kind
    if not allows(policy.requests, kind):
        yield Objection("policy-request", "request", f"{kind} is not in requests")
    if (request.secure is not None) != (kind == "train" and request.job.privacy.secure_aggregation):
        text = "a training of another sort than the job's privacy.secure_aggregation says"
        yield Objection("secure-session", "secure", text)
    if _digest(request.job) != request.job_sha256:
        yield Objection("job-digest", "job_sha256", "the job is not the one that its digest names")
    if not request.job.model.bases and not policy.allows_base(request.base_sha256):
        yield Objection("policy-base", "model.base", f"{request.base_sha256}: not in base_sha256")
    if request.round > request.job.rounds:
        yield Objection("policy-rounds", "round", f"{request.round} of {request.job.rounds}")
    # A round of one site is not held against a coordinator that does not say how many it asks.
    if request.kind in ("train", "secure-keys") and max(1, request.cohort) < policy.minimum_cohort:
        yield _too_few(policy, "cohort", request.cohort)


def _about_methods(policy: SitePolicy, job: JobConfig) -> Iterator[Objection]:
    rule, method = job.aggregate.rule, job.personalize.method
    if not allows(policy.rules, rule):
        yield Objection("policy-rule", "aggregate.rule", f"{rule!r} is not in rules")
    if not allows(policy.personalization, method):
        text = f"{method!r} is not in personalization"
        yield Objection("policy-personalization", "personalize.method", text)
    others = [target for target in job.lora.targets if not allows(policy.targets, target)]
    if others:
        text = f"{', '.join(map(repr, others))}: not in targets"
        yield Objection("policy-targets", "lora.targets", text)
    if job.aggregate.shares_features and not policy.features:
        text = "the site sends no features of its own model (features = false)"
        yield Objection("policy-features", "aggregate.rule", text)
    if job.distils and not policy.proxy:
        text = "the site lets nobody distil on what it sends (proxy = false)"
        yield Objection("policy-proxy", "proxy", text)


def _about_amounts(policy: SitePolicy, job: JobConfig) -> Iterator[Objection]:
    own = job.personalize
    amounts: Iterable[tuple[str, str, float, float]] = (
        ("policy-rounds", "rounds", job.rounds, policy.max_rounds),
        ("policy-steps", "train.steps", job.train.steps or 0, policy.max_steps),
        ("policy-steps", "train.epochs", job.train.epochs or 0, policy.max_epochs),
        ("policy-steps", "personalize.steps", own.steps if own.fits else 0, policy.max_steps),
        ("policy-rank", "lora.rank", job.lora.rank, policy.max_rank),
        ("policy-rank", "personalize.rank", _own_rank(job), policy.max_rank),
    )
    for reason, field, asked, most in amounts:
        if asked > most:
            yield Objection(reason, field, f"{asked:g}, the site allows {most:g}")


def _own_rank(job: JobConfig) -> int:
    """Return the rank of the site's own adapter; methods that go on from the shared have its."""
    return job.personalize.rank if job.personalize.method in ("duet", "local") else 0


def _about_privacy(policy: SitePolicy, job: JobConfig) -> Iterator[Objection]:
    required = policy.require_differential_privacy or policy.privacy is not None
    if required and not job.privacy.for_patients:
        text = "the site requires differential privacy for its patients"
        field = "privacy.mode" if job.privacy.for_sites else "privacy.differential_privacy"
        yield Objection("policy-differential-privacy", field, text)
    if policy.require_secure_aggregation and not job.privacy.secure_aggregation:
        text = "the site requires secure aggregation"
        yield Objection("policy-secure-aggregation", "privacy.secure_aggregation", text)


def _about_sites(policy: SitePolicy, job: JobConfig, party: Party) -> Iterator[Objection]:
    """Yield which numbers of sites are too small; that of a round is known when it trains.

    A coordinator cannot ask more sites than there are in the roster that this site pinned.
    """
    numbers = (
        ("aggregate.cohort", job.aggregate.cohort),
        ("data.sites", len(job.data.sites) or None),
        ("roster", party.sites),
    )
    for field, number in numbers:
        if number is not None and number < policy.minimum_cohort:
            yield _too_few(policy, field, number)


def _too_few(policy: SitePolicy, field: str, number: int) -> Objection:
    text = f"{number} sites, the site asks for {policy.minimum_cohort} or more"
    return Objection("policy-cohort", field, text)


_digests: Latest[str] = Latest()
_about_jobs: Latest[list[Objection]] = Latest()
"""For the sites of one process, which are asked about one job."""


def _digest(job: JobConfig) -> str:
    return _digests.get((job,), job.digest)
