"""A site's own folder: the personal adapter, held parts of the shared one, the audit log.

Nothing in it is ever sent. Files are readable by their owner only, and sealed where the site has a
key for that (``client.keeping``). They are replaced whole, but for the kept answer, which may be
written over and counts only if its digest is right.
"""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.numpy
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from client.keeping import IN_THE_CLEAR, Keeping
from shared.adapter import Adapter, Array, Tower, adapter_sha256
from shared.errors import IdentityError, StorageError
from shared.files import write_atomic
from shared.latest import Latest
from shared.parts import PARTS, Part
from shared.tensors import pack_tensors

_DIGEST_BYTES = 32
_LENGTH_BYTES = 8
"""Of safetensors' header, in front of it."""
_ALPHA = TypeAdapter(dict[Tower, float])


@dataclass(frozen=True)
class StoredPersonal:
    """A personal adapter and its mixing weight per tower, as its method chose it."""

    adapter: Adapter
    alpha: Mapping[Tower, float]


class SiteState:
    """The files of one site; see the module's docstring.

    Args:
        folder: The site's own.
        held: Where parts of the shared adapter are held, if not in ``folder``. Sites of one
            machine may hold them together: all receive the same, and write it once.
        keeping: How private files are kept.

    Attributes:
        folder: The site's own.
        keeping: How private files are kept.
    """

    def __init__(
        self, folder: Path, held: Path | None = None, keeping: Keeping = IN_THE_CLEAR
    ) -> None:
        self.folder = folder
        self.keeping = keeping
        self._parts = held or folder / "held"
        private_folder(folder)
        private_folder(folder / "personal")
        private_folder(self._parts)

    @property
    def audit(self) -> Path:
        """The audit log."""
        return self.folder / "audit.jsonl"

    def save_personal(self, shared_sha256: str, personal: StoredPersonal, run: str) -> None:
        """Keep the personal adapter that was fitted on one shared adapter, in a run.

        Raises:
            StorageError: If it cannot be written; an older one stays as it was.
        """
        metadata = {"alpha": json.dumps(dict(personal.alpha)), "shared_sha256": shared_sha256}
        content = safetensors.numpy.save(dict(personal.adapter), metadata=metadata)
        self.keeping.write(self._personal(shared_sha256), content, run)

    def load_personal(self, shared_sha256: str) -> StoredPersonal | None:
        """Return the personal adapter fitted on a shared adapter; ``None`` if there is none.

        Raises:
            IdentityError: If there is one that is sealed and cannot be opened.
        """
        found = self._read(self._personal(shared_sha256))
        if found is None or found[1].get("shared_sha256") != shared_sha256:
            return None
        try:
            return StoredPersonal(found[0], _ALPHA.validate_json(found[1]["alpha"]))
        except (KeyError, ValidationError):
            return None

    def hold(self, part: Part, sha256: str, adapter: Adapter, run: str) -> None:
        """Keep a part of the shared adapter, in place of the one held before.

        It can be had again, and its reader checks a digest, so that nothing waits for the disk.

        Args:
            part: Which.
            sha256: Its digest; the caller has checked it.
            adapter: Its factors.
            run: Which run it came in.
        """
        path = self._held(part)
        if _known_part(path, sha256) is None:
            self.keeping.write(path, pack_tensors(adapter), run, wait=False)
            _remember_part(path, sha256, adapter)

    def held(self, part: Part, sha256: str) -> Adapter | None:
        """Return a part if the site holds the one with this digest."""
        path = self._held(part)
        known = _known_part(path, sha256)
        if known is not None:
            return known
        try:
            found = self._read(path)
        except IdentityError:  # it is sent once more
            return None
        if found is None or adapter_sha256(found[0]) != sha256:
            return None
        _remember_part(path, sha256, found[0])
        return found[0]

    def keep_answer(self, question: str, answer: bytes, run: str) -> None:
        """Keep the last answer, so that a repeated question costs no second training.

        It takes the place of the answer before it: nobody asks for that one again, and an answer
        that was cut short has another digest than it says.

        Args:
            question: What tells the question from others (``shared.messages.question_of``).
            answer: What was released for it.
            run: Which run it belongs to.

        Raises:
            StorageError: If it cannot be written.
        """
        head = bytes.fromhex(question) + bytes.fromhex(digest_of(answer))
        self.keeping.overwrite(self.folder / "answer", head, answer, run)

    def answer(self, question: str) -> bytes | None:
        """Return the kept answer if it belongs to this question."""
        try:
            kept = self.keeping.read(self.folder / "answer", bytes.fromhex(question))
        except (OSError, IdentityError):  # then it is worked out once more
            return None
        digest, answer = kept[_DIGEST_BYTES : 2 * _DIGEST_BYTES], kept[2 * _DIGEST_BYTES :]
        return answer if hashlib.sha256(answer).digest() == digest else None

    def _read(self, path: Path) -> tuple[dict[str, Array], dict[str, str]] | None:
        """Return tensors and metadata; a missing or damaged file counts as not there.

        Raises:
            IdentityError: If it is sealed and cannot be opened.
        """
        try:
            return read_tensors(self.keeping.read(path))
        except (OSError, ValueError):
            return None

    def _personal(self, shared_sha256: str) -> Path:
        return self.folder / "personal" / f"{shared_sha256}.safetensors"

    def _held(self, part: Part) -> Path:
        return self._parts / f"{part}.safetensors"


_digests: Latest[str] = Latest()


def digest_of(answer: bytes) -> str:
    """Return the sha256 of an answer; it is asked for by the audit log and by ``keep_answer``."""
    return _digests.get((answer,), lambda: hashlib.sha256(answer).hexdigest())


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


_recent: OrderedDict[Path, tuple[tuple[int, ...], str, Adapter]] = OrderedDict()
"""The parts that this process wrote or read last, by file: many sites may share a file."""
_recent_lock = threading.Lock()


def _known_part(path: Path, sha256: str) -> Adapter | None:
    """Return the part with this digest if the file is still the one that held it."""
    seen, known, adapter = _recent.get(path, (None, "", None))
    return adapter if known == sha256 and seen == _signature(path) else None


def _remember_part(path: Path, sha256: str, adapter: Adapter) -> None:
    signature = _signature(path)
    if signature is not None:
        with _recent_lock:
            _recent[path] = (signature, sha256, adapter)
            _recent.move_to_end(path)
            while len(_recent) > len(PARTS):
                _recent.popitem(last=False)


def _signature(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a file does."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def read_tensors(content: bytes) -> tuple[dict[str, Array], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    Raises:
        ValueError: If it is none, or damaged.
    """
    try:
        tensors = safetensors.numpy.load(content)
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    # The library checked the header, and gives its metadata for files on the disk only.
    end = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    metadata: dict[str, str] = json.loads(content[_LENGTH_BYTES:end]).get("__metadata__", {})
    return tensors, metadata
