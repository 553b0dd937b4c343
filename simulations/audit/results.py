"""What an audit found: ``audit.json``, beside the run or in a folder of its own.

Whether it failed is worked out from the numbers whenever it is asked, never stored.
"""

import json
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.adapter import Tower
from shared.errors import RunDirectoryError
from shared.files import write_atomic
from simulations.audit.membership import Score

AUDIT: Final = "audit.json"

AUC_LIMIT: Final = 0.55
"""Where privacy is claimed, members must not be told from others better than this for certain."""
COSINE_LIMIT: Final = 0.2
"""Where privacy is claimed, what is recovered through the noise must not be nearer for certain."""

_CERTAIN: Final = 3.09 / 1.96
"""Of the half of a 95 % interval: what is above a limit by so much lies there by chance once in a
thousand audits. Several attacks are held to their limits, and few canaries make them vary."""

Protection = Literal["as the job says", "without privacy"]
Status = Literal["passed", "failed", "nothing claimed"]
Way = Literal["alone", "masked", "sum-of-three", "sum-of-equals", "sum-of-batches", "noised"]
Share = Annotated[float, Field(ge=0, le=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MembershipFound(_Frozen):
    """Membership inference by one score; fields as in ``membership.Membership``."""

    protection: Protection
    score: Score
    auc: Share
    low: Share
    high: Share
    hits: Share
    hits_low: Share
    hits_high: Share
    members: int
    others: int


class BoundFound(_Frozen):
    """A lower bound on epsilon, held to the epsilon of the same steps at the same delta.

    Attributes:
        what: All steps of the run, or one that everybody is in.
        steps: How many.
        rate: Probability with which a patient takes part.
        noise: Claimed noise multiplier.
        claimed: Epsilon by the accountant.
        bound: Lower bound that was measured.
        most: The bound had every guess been right: no more could have been shown.
        delta: Of both.
        confidence: Of the bound.
        canaries: How many were put in or left out.
        guesses: How many were guessed at.
        right: How many of them right.
    """

    what: Literal["the run", "one step"]
    steps: int
    rate: float
    noise: float
    claimed: float
    bound: float
    most: float
    delta: float
    confidence: float
    canaries: int
    guesses: int
    right: int


class InversionFound(_Frozen):
    """What single updates give away; fields as in ``exposure.Exposure``."""

    way: Way
    tower: Tower
    cosine: float
    low: float
    high: float
    largest: float
    tokens: Share | None
    guessed: Share | None
    records: int


class AuditReport(_Frozen):
    """An audit.

    Attributes:
        version: Of this file.
        name: Of the job.
        created: When, ISO 8601 with zone.
        job_sha256: Of the job that was rehearsed.
        adapter_sha256: Of the run's adapter at the time; ``None`` for an audit of a job alone.
        base_sha256: Of the base.
        site: Which got the canaries.
        records: Whose records were rehearsed with: the job's own, or synthetic ones in their place.
        epsilon: That the job claims over its rounds; ``None`` if it claims none.
        delta: Of the claim.
        membership: By protection and score.
        bounds: Nothing without a claim.
        inversion: By way and tower; empty if it was not run.
        not_run: What was not run, and why.
    """

    version: Literal[1] = 1
    name: str
    created: str
    job_sha256: str
    adapter_sha256: str | None
    base_sha256: str
    site: str
    records: Literal["own", "synthetic"]
    epsilon: float | None
    delta: float | None
    membership: tuple[MembershipFound, ...]
    bounds: tuple[BoundFound, ...]
    inversion: tuple[InversionFound, ...]
    not_run: tuple[str, ...] = ()

    @property
    def claims(self) -> bool:
        """Whether the job claims differential privacy."""
        return self.epsilon is not None

    @property
    def status(self) -> Status:
        """What the audit comes to."""
        if not self.claims:
            return "nothing claimed"
        return "failed" if self.failures else "passed"

    @property
    def failures(self) -> tuple[str, ...]:
        """Why it failed, as sentences without a full stop; empty if nothing is claimed."""
        if not self.claims:
            return ()
        found = [
            f"epsilon of {each.what} is at least {each.bound:.3g} at delta {each.delta:.2g}, and "
            f"{each.claimed:.3g} is claimed: the mechanism is not what it should be"
            for each in self.bounds
            if each.bound > each.claimed
        ]
        found += [
            f"members are told from others with an AUC of {each.auc:.3f} ({each.low:.3f} to "
            f"{each.high:.3f}) by {each.score}, for certain above {AUC_LIMIT:g}"
            for each in self.membership
            if each.protection == "as the job says" and _surely(each.auc, each.low) > AUC_LIMIT
        ]
        return tuple(found) + tuple(
            f"inputs of the {each.tower} tower are recovered through the noise with a cosine of "
            f"{each.cosine:.2f}, for certain above {COSINE_LIMIT:g}"
            for each in self.inversion
            if each.way == "noised" and _surely(each.cosine, each.low) > COSINE_LIMIT
        )

    @property
    def run_bound(self) -> BoundFound | None:
        """The bound over all steps at the claim's own delta."""
        return next((b for b in self.bounds if b.what == "the run" and b.delta == self.delta), None)


def write_audit(folder: Path, report: AuditReport) -> Path:
    """Write ``audit.json`` into a folder, whole or not at all.

    Raises:
        StorageError: If it could not be written; what was there before is intact.
    """
    path = folder / AUDIT
    tree = json.dumps(report.model_dump(mode="json"), indent=1)
    write_atomic(path, (tree + "\n").encode())
    return path


def read_audit(folder: Path) -> AuditReport | None:
    """Return a folder's audit; ``None`` if there is none.

    Raises:
        RunDirectoryError: If there is one that cannot be read: it might be one that failed.
    """
    path = folder / AUDIT
    try:
        return AuditReport.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        raise RunDirectoryError(
            f"{path}: not an audit of this version; run the audit anew with: consilia audit "
            f"{folder}"
        ) from None


def _surely(found: float, low: float) -> float:
    """Return the lower end of an interval of 99.8 %, from that of 95 %."""
    return found - _CERTAIN * (found - low)
