"""``consilia client policy``: what a site's policy says, and what it says of a job.

Needs neither an agent nor a coordinator, so that a site can answer a job before it takes part.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

from client.consent import Consent
from client.decisions import Objection, Party, about_job, about_site
from client.policy import SitePolicy
from client.settings import load_agent
from client.signed_agent import party_of
from shared.config import JobConfig, load_job
from shared.messages import TaskKind

ASKED: Final[tuple[TaskKind, ...]] = ("describe", "train", "personalize", "evaluate")
"""What a run asks of a site, one after the other."""


_ALLOWS: Final = (
    "The policy allows {}; the base, the number of patients and the round's number of sites are "
    "looked at when it asks"
)


def policy_command(site: Path, job: Path | None, *, as_json: bool) -> int:
    """Print a site's policy, or what it says against a job.

    Args:
        site: The site's folder.
        job: A job file.
        as_json: Print one JSON object.

    Returns:
        The exit code: 2 if the job is not allowed.

    Raises:
        ConfigError: If one of the files cannot be used.
    """
    settings = load_agent(site / "site.toml")
    policy = SitePolicy.load(settings.policy)
    today = datetime.now(UTC).date()
    party = party_of(site)
    if job is None:
        _show(policy, Consent.of(settings.site.state), party, today, as_json=as_json)
        return 0
    found = against(policy, load_job(job), party, today)
    fields = ", ".join(dict.fromkeys(each.field for each in found))
    says = f"{settings.policy} does not allow {job}: {fields}" if found else _ALLOWS.format(job)
    lines = [f"{each.field}: {each.message} [{each.reason}]" for each in found]
    facts = {"allowed": not found, "objections": [asdict(each) for each in found]}
    _say(facts, "\n".join([*lines, says]), as_json)
    return 2 if found else 0


def against(policy: SitePolicy, job: JobConfig, party: Party, today: date) -> list[Objection]:
    """Return what a policy says against a job that this party would ask for today."""
    found = [*about_site(policy, party, today), *about_job(policy, job, party)]
    asked = ASKED if job.personalize.fits else [kind for kind in ASKED if kind != "personalize"]
    missing = [
        kind for kind in asked if kind not in policy.requests and "any" not in policy.requests
    ]
    if missing:
        found.append(
            Objection("policy-request", "requests", f"{', '.join(missing)}: not in requests")
        )
    return found


def _show(
    policy: SitePolicy, consent: Consent, party: Party, today: date, *, as_json: bool
) -> None:
    withdrawn = [each.run or "every run" for each in consent.withdrawals()]
    lines = [f"{name:<32}{_shown(value)}" for name, value in _said(policy).items()]
    lines += [f"Nothing is allowed: {each.message}" for each in about_site(policy, party, today)]
    if withdrawn:
        lines.append(f"Consent is withdrawn from {', '.join(withdrawn)}")
    _say({"policy": _said(policy), "withdrawn": withdrawn}, "\n".join(lines), as_json)


def _said(policy: SitePolicy) -> dict[str, Any]:
    never = {"expires": "never"} if policy.expires == date.max else {}
    return policy.model_dump(mode="json") | never


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if value not in (None, "") else "not named"


def _say(facts: Mapping[str, object], text: str, as_json: bool) -> None:
    sys.stdout.write((json.dumps(facts) if as_json else text) + "\n")
