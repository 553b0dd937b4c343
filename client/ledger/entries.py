"""What the ledger is told and what it tells."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final, Literal

from shared.privacy.accountant import Spend
from shared.security.canonical import canonical

Mode = Literal["local", "distributed"]
"""Who adds noise for patients; noise that the server adds for whole sites is no spend of these."""

FIRST: Final = "0" * 64
"""What the first entry follows."""


@dataclass(frozen=True)
class Population:
    """Patients whose records are about to be used.

    Attributes:
        name: Theirs in the ledger, from the site's policy.
        data_sha256: Digest of the data set that they are in now.
        patients: Their ids. The ledger keeps tags that only it can make from them.
    """

    name: str
    data_sha256: str
    patients: Collection[str] = field(repr=False)


@dataclass(frozen=True)
class Release:
    """Something that is about to leave, and what it costs.

    Attributes:
        population: Whose privacy.
        study: The job's name.
        run: The run.
        round: Of the run.
        attempt: Of the round.
        mode: Who adds noise for whom.
        data_sha256: Digest of the data set.
        spend: The steps really taken.
        clip: L2 norm that each patient was cut to.
        sensitivity: What one patient can change, in clipping norms.
        shares: So many sites add the noise together; 1 for a site's own.
    """

    population: str
    study: str
    run: str
    round: int
    attempt: int
    mode: Mode
    data_sha256: str
    spend: Spend
    clip: float
    sensitivity: float = 1.0
    shares: int = 1


@dataclass(frozen=True)
class Entry:
    """A release in the ledger.

    Attributes:
        seq: Its number, from 1.
        utc: When it was written.
        release: What.
        previous_sha256: Digest of the entry before it.
    """

    seq: int
    utc: str
    release: Release
    previous_sha256: str

    @property
    def sha256(self) -> str:
        """Digest of the entry and, through the one before it, of all before it."""
        release = self.release
        # Left out where the site's own noise is all: so it was before there was any other.
        left_out = {"spend"} if release.shares > 1 else {"spend", "shares"}
        content = {
            "seq": self.seq,
            "utc": self.utc,
            "previous_sha256": self.previous_sha256,
            **{k: v for k, v in vars(release).items() if k not in left_out},
            "spend": release.spend.model_dump(mode="json"),
        }
        return hashlib.sha256(canonical("privacy entry 1", content)).hexdigest()


@dataclass(frozen=True)
class Receipt:
    """What allows a release to leave: it is in the ledger and on the disk.

    Attributes:
        seq: Of the entry.
        epsilon: Of the population, over everything, with this release; rounded up.
        run_epsilon: Of the run alone.
    """

    seq: int
    epsilon: float
    run_epsilon: float
