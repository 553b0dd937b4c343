"""A site's own folder: the personal adapter, held parts of the shared one, the audit log.

Nothing in it is ever sent. Files are readable by their owner only and are replaced whole.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.numpy
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from shared.adapter import Adapter, Array, Tower, adapter_sha256
from shared.errors import StorageError
from shared.files import write_atomic
from shared.messages import Part

_DIGEST_BYTES = 32
_ALPHA = TypeAdapter(dict[Tower, float])


@dataclass(frozen=True)
class StoredPersonal:
    """A personal adapter and its mixing weight per tower, as duet chose it."""

    adapter: Adapter
    alpha: Mapping[Tower, float]


class SiteState:
    """The files of one site; see the module's docstring."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        private_folder(folder)
        private_folder(folder / "personal")
        private_folder(folder / "held")

    @property
    def audit(self) -> Path:
        """The audit log."""
        return self.folder / "audit.jsonl"

    def save_personal(self, shared_sha256: str, personal: StoredPersonal) -> None:
        """Keep the personal adapter that was fitted on one shared adapter."""
        metadata = {"alpha": json.dumps(dict(personal.alpha)), "shared_sha256": shared_sha256}
        content = safetensors.numpy.save(dict(personal.adapter), metadata=metadata)
        write_private(self._personal(shared_sha256), content)

    def load_personal(self, shared_sha256: str) -> StoredPersonal | None:
        """Return the personal adapter fitted on a shared adapter; ``None`` if there is none."""
        found = _read(self._personal(shared_sha256))
        if found is None or found[1].get("shared_sha256") != shared_sha256:
            return None
        try:
            return StoredPersonal(found[0], _ALPHA.validate_json(found[1]["alpha"]))
        except (KeyError, ValidationError):
            return None

    def hold(self, part: Part, adapter: Adapter) -> None:
        """Keep a part of the shared adapter, in place of the one held before."""
        replace_private(self._held(part), safetensors.numpy.save(dict(adapter)))

    def held(self, part: Part, sha256: str) -> Adapter | None:
        """Return a part if the site holds the one with this digest."""
        found = _read(self._held(part))
        return found[0] if found is not None and adapter_sha256(found[0]) == sha256 else None

    def keep_answer(self, question: str, answer: bytes) -> None:
        """Keep the last answer, so that a repeated question costs no second training.

        Args:
            question: The sha256 of the request.
            answer: What was released for it.
        """
        head = bytes.fromhex(question) + hashlib.sha256(answer).digest()
        replace_private(self.folder / "answer", head + answer)

    def answer(self, question: str) -> bytes | None:
        """Return the kept answer if it belongs to this question."""
        try:
            with (self.folder / "answer").open("rb") as file:
                if file.read(_DIGEST_BYTES) != bytes.fromhex(question):
                    return None
                digest, answer = file.read(_DIGEST_BYTES), file.read()
        except OSError:
            return None
        return answer if hashlib.sha256(answer).digest() == digest else None

    def _personal(self, shared_sha256: str) -> Path:
        return self.folder / "personal" / f"{shared_sha256}.safetensors"

    def _held(self, part: Part) -> Path:
        return self.folder / "held" / f"{part}.safetensors"


def private_folder(folder: Path) -> None:
    """Make a folder that only its owner can enter.

    Raises:
        StorageError: If it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)  # it may have been there before
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made: {error.strerror}") from None


def write_private(path: Path, content: bytes) -> None:
    """Replace a file as a whole, readable by its owner only; see ``shared.files``."""
    write_atomic(path, content, mode=0o600)


def replace_private(path: Path, content: bytes) -> None:
    """Replace a private file that can be had again; a power cut may lose it.

    Its reader checks a digest, so that nothing has to wait for the disk here.

    Raises:
        StorageError: If it cannot be written; an older file stays as it was.
    """
    write_atomic(path, content, mode=0o600, wait=False)


def _read(path: Path) -> tuple[dict[str, Array], dict[str, str]] | None:
    """Return tensors and metadata; a missing or damaged file counts as not there."""
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (OSError, SafetensorError):
        return None
