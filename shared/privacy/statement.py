"""What may be said about the privacy of a run: one block, printed, reported and stored.

Either everything that the number depends on, or the words "no differential privacy claim".
"""

import math
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.privacy.objections import Adjacency, Mode, Unit

NO_CLAIM: Final = "no differential privacy claim"

WEAK_FROM: Final = 20.0
"""Above this epsilon nobody should rely on the bound."""

_TRUST: Final[dict[Mode, str]] = {
    "local": (
        "holds against the coordinator, other sites and whoever gets the model; it needs trust in "
        "the site's own machine and software only"
    ),
    "distributed": (
        "holds against the coordinator, other sites and whoever gets the model, while secure "
        "aggregation is sound and as many sites add their noise as it was made for"
    ),
    "site-level": (
        "holds against other sites and whoever gets the model; the coordinator, who adds the "
        "noise, sees the sites' changes and must be trusted"
    ),
}
_TRUST_IN_SUMS: Final = (
    "holds against other sites and whoever gets the model; the coordinator, who adds the noise, "
    "sees the sum of the sites' changes before it does, no site's own, and must be trusted"
)

NOT_COVERED: Final[tuple[str, ...]] = (
    "personal adapters, their outputs, and any use of them outside of the site",
    "measures, counts and mixing weights that a site releases",
    "facts about a site's patients as a group, and that the site took part",
    "patients with records at several sites, whose epsilons add up",
    "what the same patients' records are used for outside of this ledger",
)
NOT_COVERED_OF_SITES: Final[tuple[str, ...]] = (
    "single patients: no noise was made for them, and the number is not about one of them",
    "what a site tells when it evaluates at the end: measures, validation loss and mixing weights",
    "counts, times, sizes of messages, and in which rounds the site took part",
    "personal adapters, their outputs, and any use of them outside of the site",
    "what the same site's records are used for in other runs",
)
_ADJACENT: Final[dict[Adjacency, str]] = {
    "add-remove": "one {unit} added or removed",
    "replace-one": "one {unit} replaced",
    "zero-out": "what one {unit} sent in all rounds replaced by no change",
}


class Claim(BaseModel):
    """Everything that an epsilon depends on.

    Attributes:
        mode: Who added the noise for whom.
        mechanism: What was done, in words.
        unit: What one more or less is hidden.
        adjacency: What "one more or less" means.
        epsilon: Over everything composed; may be infinite.
        delta: Probability with which the bound may fail.
        units: How many there are, rounded as the site tells counts; 0 if not told.
        clip: L2 norm that each unit was cut to.
        sensitivity: What one unit can change, in clipping norms.
        noise: Noise multipliers in use, each relative to what one unit can change.
        sampling: As implemented, in words.
        steps: Really taken, over everything composed.
        composed: What was composed: rounds, runs and studies, in words.
        trust: Whom it holds against and who must be trusted.
        not_covered: What it does not cover.
        accountant: Which, and its version.
        audit_bound: Lower bound on epsilon that an attack measured; ``None`` if not measured.
        audit_confidence: Of that bound.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    mode: Mode
    mechanism: str
    unit: Unit
    adjacency: Adjacency = "add-remove"
    epsilon: Annotated[float, Field(ge=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    units: Annotated[int, Field(ge=0)] = 0
    clip: Annotated[float, Field(gt=0)]
    sensitivity: Annotated[float, Field(ge=1)] = 1.0
    noise: tuple[float, ...]
    sampling: str
    steps: Annotated[int, Field(ge=0)]
    composed: str
    trust: str
    not_covered: tuple[str, ...] = NOT_COVERED
    accountant: str
    audit_bound: Annotated[float, Field(ge=0)] | None = None
    audit_confidence: Annotated[float, Field(gt=0, lt=1)] | None = None

    @property
    def refuted(self) -> bool:
        """Whether an attack measured more than is claimed."""
        return self.audit_bound is not None and self.audit_bound > self.epsilon


class Statement(BaseModel):
    """The block.

    Attributes:
        version: Of this block.
        claim: What is claimed; ``None`` for no claim.
        reasons: Why there is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    claim: Claim | None = None
    reasons: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the block as lines for people."""
        if self.claim is None:
            return "\n".join([NO_CLAIM, *(f"  because {reason}" for reason in self.reasons)])
        rows = _rows(self.claim)
        width = max(len(name) for name, _ in rows)
        first = f"({rounded_up(self.claim.epsilon)}, {self.claim.delta:g})-differential privacy"
        lines = [f"  {name.ljust(width)}  {value}" for name, value in rows]
        return "\n".join([first + _warning(self.claim), *lines])

    def tree(self) -> dict[str, Any]:
        """Return the block for a manifest, as JSON's own types; ``Statement.read`` takes it."""
        return {"text": self.text().splitlines()[0], **self.model_dump(mode="json")}

    @classmethod
    def read(cls, tree: dict[str, Any]) -> "Statement":
        """Return a statement from its tree.

        Raises:
            pydantic.ValidationError: If it is none, or of another version.
        """
        return cls.model_validate({key: value for key, value in tree.items() if key != "text"})


def claimed(claim: Claim) -> Statement:
    """Return the statement of a claim, or of none if an attack or the epsilon refutes it."""
    if claim.refuted:
        return unclaimed(
            f"an attack measured epsilon {claim.audit_bound:.3g} or more where "
            f"{rounded_up(claim.epsilon)} was computed: the mechanism is not what it should be"
        )
    if math.isinf(claim.epsilon):
        return unclaimed("no finite epsilon holds with so little noise over so many steps")
    return Statement(claim=claim)


def unclaimed(*reasons: str) -> Statement:
    """Return the statement that claims nothing."""
    return Statement(reasons=reasons)


def trust_of(mode: Mode, *, sums_only: bool = False) -> str:
    """Return whom a mode's promise holds against, and who must be trusted.

    Args:
        mode: Who adds noise for whom.
        sums_only: With ``site-level``, whether the coordinator gets sums over sites only.
    """
    return _TRUST_IN_SUMS if sums_only and mode == "site-level" else _TRUST[mode]


def sampling_words(rate: float) -> str:
    """Return how the units of a step were chosen, as implemented."""
    if rate == 1:
        return "none: all in every step"
    return (
        f"Poisson, q = {rate:g}: each by a coin of its own from the operating system's generator; "
        "sums divided by the expected number"
    )


def _rows(claim: Claim) -> list[tuple[str, str]]:
    one = claim.unit
    audit = "not measured"
    if claim.audit_bound is not None:
        audit = f"epsilon is at least {claim.audit_bound:.3g}"
        if claim.audit_confidence is not None:
            audit += f" (confidence {claim.audit_confidence:g})"
    adjacency = _ADJACENT[claim.adjacency].format(unit=one)
    noise = ", ".join(f"{z:.4g}" for z in claim.noise) or "none"
    change = f"{claim.sensitivity:g} times the clipping norm"
    groups = claim.sensitivity > 1 and claim.adjacency == "add-remove"
    clipped = f"group of {one}s" if groups else one
    return [
        ("mechanism", claim.mechanism),
        ("unit", one + (f" (about {claim.units})" if claim.units else "")),
        ("adjacency", adjacency),
        ("epsilon", f"{rounded_up(claim.epsilon)} at delta {claim.delta:g}"),
        ("clipping", f"L2 norm {claim.clip:g} per {clipped}"),
        ("noise", f"{noise} times what one {one} can change ({change})"),
        ("sampling", claim.sampling),
        ("steps", str(claim.steps)),
        ("composed", claim.composed),
        ("trust", claim.trust),
        *(("does not cover" if i == 0 else "", text) for i, text in enumerate(claim.not_covered)),
        ("accountant", claim.accountant),
        ("measured", audit),
    ]


def rounded_up(epsilon: float) -> str:
    """Return an epsilon to three digits, rounded up."""
    if epsilon == 0 or math.isinf(epsilon):
        return f"{epsilon:g}"
    step = 10.0 ** (math.floor(math.log10(epsilon)) - 2)
    return f"{math.ceil(epsilon / step - 1e-9) * step:.6g}"


def _warning(claim: Claim) -> str:
    return "; weak: no meaningful guarantee" if claim.epsilon > WEAK_FROM else ""
