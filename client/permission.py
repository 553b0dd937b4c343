"""May this be done now: policy, consent, records; every yes is written down before the work.

Asked when a task begins and once more before anything of it is released, so that a policy that
was changed or has expired, and consent that was withdrawn, count at once.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from client.audit import AuditLog
from client.consent import Consent
from client.data.records import SiteData
from client.data_changes import DataOfRuns, content_digest
from client.decisions import NOBODY, Objection, Party, about_data, about_request, refuse
from client.policy import PolicySource, SitePolicy
from client.service import AgentChannel
from shared.errors import RefusedError
from shared.latest import Latest
from shared.messages import Request


class Permission:
    """What a site permits at this moment.

    Args:
        site: Its name.
        policy: Where its policy comes from.
        state: Its own folder; consent and the digests of records are in it.
        audit: Gets a line for every approval and every change of the records.
        party: Who asks.
    """

    def __init__(
        self, site: str, policy: PolicySource, state: Path, audit: AuditLog, party: Party = NOBODY
    ) -> None:
        self._site = site
        self._source = policy
        self._consent = Consent.of(state)
        self._data = DataOfRuns(state / "data.json")
        self._audit = audit
        self._party = party

    def check(self, request: Request) -> SitePolicy:
        """Return the policy that allows a request.

        Raises:
            RefusedError: With a code, and the fields of the job that are not allowed.
        """
        if request.site not in {"", self._site}:
            raise RefusedError("other-site", "the request is for another site")
        if not request.site and request.kind != "describe":
            raise RefusedError("other-site", "the request does not say which site it is for")
        self._consent.check(request.run)
        policy = self._source.current()
        refuse(about_request(policy, request, self._party, datetime.now(UTC).date()))
        return policy

    def check_base(self, policy: SitePolicy, base_sha256: str) -> None:
        """Raise unless the site works with the base that was loaded.

        Raises:
            RefusedError: ``policy-base``.
        """
        if not policy.allows_base(base_sha256):
            text = f"{base_sha256}: not in base_sha256"
            refuse([Objection("policy-base", "model.base", text)])

    def check_data(self, policy: SitePolicy, request: Request, data: SiteData, table: str) -> None:
        """Raise unless the records may be used for a request.

        Args:
            policy: What ``check`` returned.
            request: The request.
            data: The records.
            table: Digest of the table that they were read from.

        Raises:
            RefusedError: ``policy-patients``, or ``data-changed`` if they are others than in the
                run's tasks before and the policy does not just record that.
            StorageError: If it cannot be told.
        """
        refuse(list(about_data(policy, request, data)))
        if request.kind == "describe":
            return
        now, before = content_digest(table, data.pictures_sha256), self._data.before(request.run)
        if before == now:
            return
        if before is not None:
            if policy.data_changes == "refuse":
                raise RefusedError("data-changed", "the records are not those of the run so far")
            self._audit.append(
                run=request.run,
                round_number=request.round,
                what="data-changed",
                detail={"before": before, "now": now},
            )
        self._data.remember(request.run, now)

    def approve(self, policy: SitePolicy, request: Request) -> None:
        """Write down that a request was approved, by which policy and for what purpose.

        Raises:
            StorageError: If it cannot be written; then it must not be worked on.
        """
        digest = _digests.get((policy,), policy.digest)
        self._audit.append(
            run=request.run,
            round_number=request.round,
            what=f"approved {request.kind}",
            detail={
                "attempt": request.attempt,
                "job_sha256": request.job_sha256,
                "policy_sha256": digest,
                "purpose": policy.purpose,
            },
        )


class PermittedAgent:
    """Asks for permission before an agent that may have an answer ready, or is working on it.

    So that nobody gets an answer after consent was withdrawn that was worked out before.

    Args:
        agent: Answers what is permitted.
        objection: Refuses the rest; ``None`` if there is nothing to refuse.
    """

    def __init__(self, agent: AgentChannel, objection: Callable[[bytes], bytes | None]) -> None:
        self._agent = agent
        self._objection = objection

    def handle(self, body: bytes) -> bytes:
        """Return the answer to a request, or a refusal.

        Raises:
            StorageError: If not even a refusal can be noted in the audit log.
        """
        refusal = self._objection(body)
        return self._agent.handle(body) if refusal is None else refusal


_digests: Latest[str] = Latest()
