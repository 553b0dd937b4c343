"""How far the ledger had got, kept apart from it, so that an older copy of it is noticed.

The anchor is a file of its own and a line in the audit log. A ledger that was put back from a
backup has fewer entries than its anchor says, or other ones.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client.audit import AuditLog
from shared.files import write_atomic
from shared.security.canonical import canonical, read_json

AUDITED: Final = "privacy-spend"
"""What the audit log calls the lines of the ledger."""


@dataclass(frozen=True)
class LedgerEnd:
    """The end of a ledger.

    Attributes:
        ledger: Name of the ledger.
        seq: Number of entries.
        head: Digest of the last one, and through it of all.
    """

    ledger: str
    seq: int
    head: str

    @property
    def content(self) -> bytes:
        """What the audit log has a line about."""
        return canonical("privacy anchor 1", vars(self))

    @property
    def sha256(self) -> str:
        """Digest of the content, as it is in the audit log."""
        return hashlib.sha256(self.content).hexdigest()

    def write(self, path: Path) -> None:
        """Replace the anchor's file, in one step and on the disk.

        Raises:
            StorageError: If it cannot be written.
        """
        write_atomic(path, json.dumps(vars(self)).encode(), mode=0o600)

    @classmethod
    def read(cls, path: Path) -> "LedgerEnd | None":
        """Return the anchor; ``None`` if there is no file.

        Raises:
            ValueError: If the file is damaged.
        """
        try:
            tree = read_json(path.read_bytes())
        except FileNotFoundError:
            return None
        if not isinstance(tree, dict) or tree.keys() != {"ledger", "seq", "head"}:
            raise ValueError("no anchor")
        ledger, seq, head = tree["ledger"], tree["seq"], tree["head"]
        if not (isinstance(ledger, str) and type(seq) is int and isinstance(head, str)):
            raise ValueError("no anchor")
        return cls(ledger, seq, head)


def last_audited(audit: AuditLog) -> str | None:
    """Return the digest in the audit log's last line about the ledger; ``None`` if it has none."""
    try:
        lines = audit.path.read_bytes().splitlines()
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        if f'"{AUDITED}"'.encode() in line:
            try:
                return str(json.loads(line)["sha256"])
            except (ValueError, KeyError, TypeError):
                return None
    return None
