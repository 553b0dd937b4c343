"""A site's vector stays secret only as long as it is in one sum; what was summed is noted here.

Of the sums over A, B, C and D and over A, B and C the difference is the vector of D, and so it is
of two sums in which D has another weight. So a site has one vector for one question (base, job,
adapter, round), and helps to unmask it with one set of sites only, whatever attempt or run asks.
The vector is noted before it leaves, because others may unmask it without this site; the sites
before the share does: among any two thirds of the sites that agree on other ones there would be
one that has noted these.

What this cannot keep from being compared: sums of different jobs or rounds, whose vectors are
alike but not the same. Against that only noise helps.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from shared.errors import SecureSumError, StorageError
from shared.files import write_atomic
from shared.security.canonical import canonical
from shared.security.secagg.session import Session

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Summed(BaseModel):
    """What a site put into sums for one question, as digests."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vector: Sha256
    sites: Sha256 | None = None
    """Of the sum that it helped to unmask; ``None`` before that."""


_SUMS: Final = TypeAdapter(dict[Sha256, _Summed])


class SummedOnce:
    """What this site put into which sums, on its disk.

    Args:
        path: The file, readable by its owner only.

    Raises:
        StorageError: If it is there and cannot be read; it keeps sums from being compared.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._sums = _SUMS.validate_json(path.read_bytes())
        except FileNotFoundError:
            self._sums = {}
        except (OSError, ValidationError):
            raise StorageError(
                f"{path}: damaged or not readable; it keeps a change from being summed a second "
                "time with other sites; put back a copy, or take part in new jobs only"
            ) from None

    def put_in(self, session: Session, vector: NDArray[np.uint32]) -> None:
        """Note the vector for a session's question; done before it leaves.

        Raises:
            SecureSumError: ``secure-other-sum`` if there was another one.
            StorageError: If it cannot be noted.
        """
        digest = hashlib.sha256(vector.data).hexdigest()
        known = self._sums.get(_question_of(session))
        if known is not None and known.vector != digest:
            raise SecureSumError(
                "secure-other-sum",
                "this site sent another vector for the same round of the same job; the difference "
                "of the sums would tell of both; start the job anew with another seed",
            )
        self._note(session, _Summed(vector=digest, sites=known.sites if known else None))

    def check(self, session: Session, sites: Sequence[str]) -> None:
        """Raise if the vector was unmasked with other sites.

        Raises:
            SecureSumError: ``secure-other-sum``.
        """
        known = self._sums.get(_question_of(session))
        if known is not None and known.sites not in {None, _sites_digest(sites)}:
            raise SecureSumError(
                "secure-other-sum",
                "this round of this job was unmasked with other sites; the difference of the sums "
                "would be a site's own change; start the job anew with another seed",
            )

    def unmask(self, session: Session, sites: Sequence[str]) -> None:
        """Note with which sites the vector is unmasked; done before any share leaves.

        Raises:
            StorageError: If it cannot be noted.
        """
        known = self._sums[_question_of(session)]
        self._note(session, known.model_copy(update={"sites": _sites_digest(sites)}))

    def _note(self, session: Session, summed: _Summed) -> None:
        question = _question_of(session)
        if self._sums.get(question) != summed:
            sums = {**self._sums, question: summed}
            write_atomic(self._path, _SUMS.dump_json(sums), mode=0o600)
            self._sums = sums


def _question_of(session: Session) -> str:
    """Return what decides a site's change; the run's name and the attempt do not."""
    said = {name: getattr(session, name) for name in ("base", "job", "adapter", "round")}
    return hashlib.sha256(canonical("secure-sum question 1", said)).hexdigest()


def _sites_digest(sites: Sequence[str]) -> str:
    return hashlib.sha256(canonical("secure-sum sites 1", {"sites": list(sites)})).hexdigest()
