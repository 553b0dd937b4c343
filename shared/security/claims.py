"""Signatures on requests and replies: which run, round, attempt and site a body belongs to.

A signed body is ``b"CSIG" + version byte + length of the claim (4 bytes, little endian) + claim +
signature (64 bytes) + body``. The claim is JSON; what is signed is ``shared.security.canonical`` of
it, with the purpose ``request`` or ``reply``, so that neither passes for the other.

The body's digest is that of two digests, of its header and of what comes after it: the adapter of
a round is digested once, however many sites it is sent to.
"""

import hashlib
from collections.abc import Sequence
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import WireError
from shared.security.canonical import canonical, read_json
from shared.security.signing import SigningKey, verified

Direction = Literal["request", "reply"]

_MAGIC: Final = b"CSIG" + bytes([1])
_LENGTH: Final = 4
_SIGNATURE: Final = 64
_LARGEST: Final = 4096
"""Bytes of the longest claim."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Claim(BaseModel):
    """What a signature is about.

    Attributes:
        protocol: Version of the messages.
        run: Name of the run.
        round: Number of the round.
        attempt: Which attempt at it.
        site: For whom a request is (empty where names are not known yet), or whose reply it is.
        base: sha256 of the base that the request names.
        job: sha256 of the job.
        body: Digest of the body (``body_digest``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    protocol: int
    run: Annotated[str, Field(max_length=200)]
    round: int
    attempt: int
    site: Annotated[str, Field(max_length=200)]
    base: Digest
    job: Digest
    body: Digest


class Signed(BaseModel):
    """A claim and its signature, not yet checked."""

    model_config = ConfigDict(frozen=True)

    claim: Claim
    signature: bytes


def body_digest(header: bytes, rest: bytes) -> str:
    """Return the digest of a body: sha256 of the sha256 of its header and of what follows.

    Args:
        header: The body up to its enclosure.
        rest: sha256 of the rest, 32 bytes.
    """
    return hashlib.sha256(hashlib.sha256(header).digest() + rest).hexdigest()


def signature_of(direction: Direction, claim: Claim, key: SigningKey) -> bytes:
    """Return what comes before a body to sign it.

    Args:
        direction: Whose it is.
        claim: What the body belongs to.
        key: Of the coordinator or the site.
    """
    text = canonical(f"{direction} 1", claim.model_dump())
    claimed = text.partition(b"\n")[2]
    return _MAGIC + len(claimed).to_bytes(_LENGTH, "little") + claimed + key.sign(text)


def split_signed(content: bytes) -> tuple[Signed | None, bytes]:
    """Return the signature of a body, ``None`` if it has none, and the body.

    Raises:
        WireError: If it begins like a signature and is none.
    """
    if not content.startswith(_MAGIC):
        return None, content
    begin = len(_MAGIC) + _LENGTH
    length = int.from_bytes(content[len(_MAGIC) : begin], "little")
    end = begin + length
    if length > _LARGEST or len(content) < end + _SIGNATURE:
        raise WireError("body: its signature is cut short")
    try:
        claim = Claim.model_validate(read_json(content[begin:end]))
    except (ValidationError, ValueError):
        raise WireError("body: its signature cannot be read") from None
    signature = content[end : end + _SIGNATURE]
    return Signed(claim=claim, signature=signature), content[end + _SIGNATURE :]


def objection(
    direction: Direction, signed: Signed | None, expected: Claim, keys: Sequence[str]
) -> str | None:
    """Return the reason code why a signature does not make a body what was expected.

    Args:
        direction: What the body should be.
        signed: What came with it.
        expected: What it must belong to, with the digest of the body that came.
        keys: Public keys of which one must have signed.

    Returns:
        ``<direction>-unsigned``; ``-signature`` if none of the keys made it; or the first field
        that belongs to another message: ``-protocol``, ``-run``, ``-round``, ``-attempt``,
        ``-site``, ``-base``, ``-job``, ``-body``. ``None`` if all is right.
    """
    if signed is None:
        return f"{direction}-unsigned"
    text = canonical(f"{direction} 1", signed.claim.model_dump())
    if not any(verified(key, text, signed.signature) for key in keys):
        return f"{direction}-signature"
    for name in Claim.model_fields:
        if getattr(signed.claim, name) != getattr(expected, name):
            return f"{direction}-{name}"
    return None
