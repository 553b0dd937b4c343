"""What all sites of a secure sum agree upon, and what a site demands before it takes part."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.adapter import TOWERS, Tower
from shared.errors import SecureSumError
from shared.fixedpoint import LARGEST
from shared.security.canonical import canonical

PROTOCOL: Final = 1
LEAST_SITES: Final = 3
"""Of two sites each would learn the other's vector from the sum."""
MOST_SITES: Final = 500
MOST_ENTRIES: Final = 2**28
_LONGEST: Final = 256 * 1024
"""Bytes of a session; that of 500 sites is shorter."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def least_threshold(sites: int) -> int:
    """Return the least threshold against a coordinator that lies: more than two thirds.

    Two survivor sets that both find so many signatures share an honest site, and an honest site
    signs one set only.
    """
    return 2 * sites // 3 + 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Participant(_Frozen):
    """A site of a session.

    Attributes:
        name: Its name.
        key: The long-term public key that it signs with.
        towers: What it trains. Every site checks its own, so that none is alone with a tower
            without knowing it: the sum of that tower would be its own change.
    """

    name: Annotated[str, Field(min_length=1, max_length=200)]
    key: Digest
    towers: tuple[Tower, ...] = ()


class Session(_Frozen):
    """Everything that decides a secure sum; all signatures, keys and seals depend on its digest.

    Attributes:
        protocol: Version of the protocol.
        consortium: Number of the consortium.
        run: Name of the run.
        round: Number of the round.
        attempt: Which attempt at it; every attempt has keys of its own.
        base: sha256 of the base.
        job: sha256 of the job.
        adapter: sha256 of what the sites received.
        form: sha256 of what lies where in the vector.
        entries: Length of the vector.
        scale: Fixed-point steps per unit.
        clip_norm: The largest L2 norm of a change.
        total_weight: The largest sum of weights that a tower may have.
        threshold: So many sites must answer at every stage.
        participants: In order of their names.
    """

    protocol: Literal[1] = PROTOCOL
    consortium: Annotated[str, Field(min_length=1, max_length=200)]
    run: Annotated[str, Field(min_length=1, max_length=200)]
    round: Annotated[int, Field(ge=0)]
    attempt: Annotated[int, Field(ge=1)]
    base: Digest
    job: Digest
    adapter: Digest
    form: Digest
    entries: Annotated[int, Field(ge=1, le=MOST_ENTRIES)]
    scale: Annotated[float, Field(gt=0)]
    clip_norm: Annotated[float, Field(gt=0)]
    total_weight: Annotated[int, Field(ge=1)]
    threshold: int
    participants: Annotated[
        tuple[Participant, ...], Field(min_length=LEAST_SITES, max_length=MOST_SITES)
    ]

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        names = [each.name for each in self.participants]
        if names != sorted(set(names)):
            raise ValueError("participants: expected every site once, in order of their names")
        if len({each.key for each in self.participants}) < len(names):
            raise ValueError("participants: two sites have the same key")
        least = least_threshold(len(names))
        if not least <= self.threshold <= len(names):
            raise ValueError(
                f"threshold: expected {least} to {len(names)} of {len(names)} sites, "
                f"got {self.threshold}"
            )
        if self.total_weight * self.clip_norm * self.scale + len(names) > LARGEST:
            raise ValueError("scale: the sum could leave the 32-bit range")
        return self

    @classmethod
    def read(cls, content: bytes) -> Self:
        """Return the session that ``encode`` wrote.

        Raises:
            SecureSumError: ``secure-session`` if it is none, or not written canonically.
        """
        if len(content) > _LONGEST:
            raise SecureSumError("secure-session", f"session: more than {_LONGEST} bytes")
        try:
            session = cls.model_validate_json(content)
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(str(part) for part in problem["loc"])
            raise SecureSumError("secure-session", f"session: {place} {problem['msg']}") from None
        if session.encode() != content:
            raise SecureSumError("secure-session", "session: not in its canonical form")
        return session

    def encode(self) -> bytes:
        """Return the session in bytes; one session has one form only."""
        return self._signed.partition(b"\n")[2]

    @cached_property
    def digest(self) -> bytes:
        """The session's number: sha256 of everything in it, 32 bytes."""
        return hashlib.sha256(self._signed).digest()

    @cached_property
    def _signed(self) -> bytes:
        return canonical("secure-sum session 1", self.model_dump(mode="json"))

    @cached_property
    def places(self) -> Mapping[str, int]:
        """The place of every site among the participants, from 0."""
        return {each.name: place for place, each in enumerate(self.participants)}

    def check_towers(self, among: Collection[str]) -> None:
        """Raise if, of some sites, too few train a tower that any of them trains.

        Every site checks the towers of all: without those whose tower it is there may be enough
        sites to unmask the sum.

        Args:
            among: Names of the sites whose vectors are to be summed.

        Raises:
            SecureSumError: ``secure-tower``.
        """
        for tower in TOWERS:
            training = sum(tower in p.towers and p.name in among for p in self.participants)
            if 0 < training < LEAST_SITES:
                raise SecureSumError(
                    "secure-tower",
                    f"{training} sites of the sum train the {tower} tower, expected at least "
                    f"{LEAST_SITES}: fewer would learn one another's change of it",
                )

    def least_with(self, tower: Tower) -> int:
        """Return how many sites that train a tower are in the sum at least, whoever drops out."""
        without = sum(tower not in each.towers for each in self.participants)
        return self.threshold - without

    def place_of(self, site: str) -> int:
        """Return a site's place.

        Raises:
            SecureSumError: ``secure-roster`` if it does not take part.
        """
        place = self.places.get(site)
        if place is None:
            raise SecureSumError("secure-roster", "a site that does not take part in the session")
        return place


@dataclass(frozen=True)
class Demands:
    """What a site knows and wants by itself, whatever a coordinator says.

    Attributes:
        site: Its name.
        key: Its own long-term public key.
        consortium: Number of its consortium.
        roster: Keys that may sign for a site, by the site's name, as the site pinned them.
        least_sites: So many must take part.
        least_summed: The sum must be over so many, whoever drops out.
        curious_sites: Where sites add noise together: so many may take theirs away.
    """

    site: str
    key: str
    consortium: str
    roster: Mapping[str, Collection[str]]
    least_sites: int = LEAST_SITES
    least_summed: int = LEAST_SITES
    curious_sites: int = 1

    def check(self, session: Session) -> None:
        """Raise unless the site takes part in a session; asked before any training.

        Raises:
            SecureSumError: ``secure-consortium``; ``secure-cohort`` if too few sites take part,
                or may be in the sum; ``secure-roster`` if one is not known, has a key that the
                site did not pin, or the site itself is missing; ``secure-tower`` if too few train
                what this site trains.
        """
        if session.consortium != self.consortium:
            raise SecureSumError("secure-consortium", "the session is another consortium's")
        if len(session.participants) < max(LEAST_SITES, self.least_sites):
            raise SecureSumError(
                "secure-cohort",
                f"{len(session.participants)} sites take part, this site wants at least "
                f"{max(LEAST_SITES, self.least_sites)}",
            )
        if session.threshold < self.least_summed:
            raise SecureSumError(
                "secure-cohort",
                f"the sum may be over {session.threshold} sites, this site wants at least "
                f"{self.least_summed}",
            )
        for each in session.participants:
            if each.key not in self.roster.get(each.name, ()):
                raise SecureSumError(
                    "secure-roster",
                    f"{each.name}: not on this site's roster with that key; fetch the new roster "
                    "if the site was admitted since",
                )
        own = session.participants[session.place_of(self.site)]
        if own.key != self.key:
            raise SecureSumError("secure-roster", "the session names another key for this site")
        session.check_towers(session.places)

    def check_noise(self, session: Session, shares: int) -> None:
        """Raise unless there is enough noise in the sum of each of the site's towers.

        Args:
            session: The session.
            shares: So many sites' noise is enough; 0 where sites add none together.

        Raises:
            SecureSumError: ``secure-noise``.
        """
        if not shares:
            return
        for tower in session.participants[session.place_of(self.site)].towers:
            left = session.least_with(tower)
            if left < shares + self.curious_sites:
                raise SecureSumError(
                    "secure-noise",
                    f"the sum of the {tower} tower may be over {left} sites, and {shares} are to "
                    f"add the noise while {self.curious_sites} may be curious; more sites, a "
                    "larger aggregate.quorum or fewer privacy.noise_shares would do",
                )
