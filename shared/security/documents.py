"""Files that coordinator and sites hand to one another: signed, versioned, and read strictly.

A document is JSON: what it is, the version of its form, its content, the signer's public key and
the signature over the content (``shared.security.canonical``). A field that this version does not
know is refused, never ignored: it may be the one that matters. So a new field means a new
version, and versions that were ever written stay readable.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.errors import IdentityError
from shared.security.canonical import canonical, read_json
from shared.security.signing import SigningKey, verified
from shared.toml_files import first_problem

Kind = Literal["site", "roster", "kit", "consortium"]

_SHOWN: Mapping[Kind, str] = {
    "site": "the public part of a site's identity",
    "roster": "a consortium's roster",
    "kit": "a site's kit",
    "consortium": "a coordinator's consortium file",
}
_KEYS = {"consilia", "version", "content", "signer", "signature"}
_LARGEST = 16 * 2**20
"""Bytes; a roster of ten thousand sites is smaller."""


class Content(BaseModel):
    """What a document says; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Read = TypeVar("Read", bound=Content)


@dataclass(frozen=True)
class Document(Generic[Read]):
    """A document whose signature is right.

    Attributes:
        content: What it says.
        signer: Public key that signed it.
    """

    content: Read
    signer: str


def write_document(kind: Kind, version: int, content: Content, key: SigningKey) -> bytes:
    """Return a signed document.

    Args:
        kind: What it is.
        version: Of its form.
        content: What it says.
        key: Signs it.
    """
    said = content.model_dump(mode="json")
    document = {
        "consilia": kind,
        "version": version,
        "content": said,
        "signer": key.public,
        "signature": key.sign(canonical(f"{kind} {version}", said)).hex(),
    }
    return (json.dumps(document, indent=1) + "\n").encode()


def read_document(path: Path, kind: Kind, forms: Mapping[int, type[Read]]) -> Document[Read]:
    """Read a document and check its signature; whose it is, is for the caller to judge.

    Args:
        path: The file.
        kind: What it should be.
        forms: How its content looks, by version.

    Raises:
        IdentityError: One sentence that says what is wrong, what was expected and what to do.
    """
    parsed = _parsed(path, _bytes_of(path, kind), kind)
    version = parsed["version"]
    if type(version) is not int or version not in forms:
        known = " or ".join(str(number) for number in sorted(forms))
        raise IdentityError(
            f"{path}: is of version {version!r}, this consilia reads version {known}; install "
            "the version of consilia that the other side uses"
        )
    said, signer, signature = parsed["content"], parsed["signer"], parsed["signature"]
    if not (isinstance(said, dict) and isinstance(signer, str) and isinstance(signature, str)):
        raise _damaged(path, kind)
    try:
        signed = bytes.fromhex(signature)
        right = verified(signer, canonical(f"{kind} {version}", said), signed)
    except ValueError:
        right = False
    if not right:
        raise IdentityError(
            f"{path}: was changed after it was signed; expected {_SHOWN[kind]} as it was written; "
            "ask for it again"
        )
    form = forms[version]
    try:
        # As JSON, where texts stand for times.
        content = form.model_validate_json(json.dumps(said))
    except ValidationError as error:
        raise IdentityError(
            f"{path}: {first_problem(error, form)}; expected {_SHOWN[kind]} of version {version}; "
            "both sides need the same version of consilia"
        ) from None
    return Document(content, signer)


def _bytes_of(path: Path, kind: Kind) -> bytes:
    try:
        size = path.stat().st_size
        if path.is_file() and size <= _LARGEST:
            return path.read_bytes()
    except FileNotFoundError:
        raise IdentityError(f"{path}: no such file; expected {_SHOWN[kind]}") from None
    except OSError as error:
        raise IdentityError(f"{path}: cannot be read ({error.strerror}); check its owner") from None
    raise IdentityError(
        f"{path}: expected {_SHOWN[kind]}, a file of at most {_LARGEST // 2**20} MiB; check the "
        "name"
    )


def _parsed(path: Path, content: bytes, kind: Kind) -> dict[str, Any]:
    try:
        parsed = read_json(content)
    except ValueError:
        raise _damaged(path, kind) from None
    if not isinstance(parsed, dict) or "consilia" not in parsed or "version" not in parsed:
        raise IdentityError(f"{path}: is not a file of consilia's; expected {_SHOWN[kind]}")
    found = parsed["consilia"]
    if found != kind:
        other = next((text for name, text in _SHOWN.items() if name == found), None)
        raise IdentityError(
            f"{path}: is {other or 'another sort of file'}, expected {_SHOWN[kind]}; check the name"
        )
    if parsed.keys() != _KEYS and parsed["version"] == 1:
        raise _damaged(path, kind)
    return parsed


def _damaged(path: Path, kind: Kind) -> IdentityError:
    return IdentityError(
        f"{path}: is damaged or cut short; expected {_SHOWN[kind]}; ask for it again"
    )
