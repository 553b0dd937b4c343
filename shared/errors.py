"""Every error that Consilia raises on purpose, in one tree.

ConsiliaError                 exit code 1
├── InputError                exit code 2: what was given cannot be used
│   ├── ConfigError           a job, site or policy file
│   ├── DataError             a site's folder, table, image or text
│   ├── BaseModelError        a base checkpoint: unreadable, unknown family, another hash
│   └── RunDirectoryError     not a run, a run of another version, or of another job
├── AdapterMismatchError      factors whose names or shapes do not fit
├── WireError                 a message that does not follow the protocol
│   └── VersionError          ... because the other side is another version of consilia
├── RefusedError              a site's policy says no; carries a reason code
├── TrainingError             a site cannot finish its training (loss not finite, no data)
├── SecureSumError            a secure sum ends with nothing; carries a reason code
├── QuorumError               too few sites answered in a round
├── StorageError              a checkpoint or result could not be written
└── InterruptedRunError       stopped from the keyboard; the run can be resumed

A message says what is wrong, where, what was expected, and what to do about it. It never
quotes a report's text, a file name of an image or a patient id.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal


class ConsiliaError(Exception):
    """Base of all errors of Consilia; the command prints it in one line."""

    exit_code: ClassVar[int] = 1


class InputError(ConsiliaError):
    """What the user gave cannot be used."""

    exit_code: ClassVar[int] = 2


class ConfigError(InputError):
    """A configuration file has an unknown key, a wrong type or a value out of range."""


@dataclass(frozen=True)
class DataProblem:
    """One thing wrong with a site's data.

    Attributes:
        where: Table row, as a person counts them (the header is row 1), or ``None``.
        column: Column of the table, or ``None`` for the whole row or folder.
        rule: Short name of the rule that was broken, such as ``dicom-burned-in-text``.
        message: What is wrong and what was expected, without quoting the record.
        severity: An ``error`` keeps the data from being used; a ``warning`` does not.
    """

    where: int | None
    column: str | None
    rule: str
    message: str
    severity: Literal["error", "warning"] = "error"


class DataError(InputError):
    """A site's data cannot be used; carries every problem found, not only the first."""

    def __init__(self, message: str, problems: Sequence[DataProblem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class BaseModelError(InputError):
    """A base checkpoint is missing, damaged, of an unknown family, or has another hash."""


class IdentityError(InputError):
    """A key, certificate, kit or list of sites is missing, damaged, foreign or no secret."""


class RunDirectoryError(InputError):
    """A folder is not a run, or a run of another version or job."""


class AdapterMismatchError(ConsiliaError):
    """Adapter factors differ in names or shapes from what was expected."""


class WireError(ConsiliaError):
    """A message does not follow the protocol."""


class VersionError(WireError):
    """A message of another version of consilia; names both, and nothing else of the message."""


class FlowerError(ConsiliaError):
    """A SuperLink did not do what it was asked; ``status`` is HTTP's, ``None`` without answer."""

    def __init__(self, message: str, status: int | None) -> None:
        super().__init__(message)
        self.status = status


class RefusedError(ConsiliaError):
    """A site's policy refuses a request; ``reason`` is a code that may leave the site.

    ``fields`` names what of the job it does not allow, by code; names that may leave as well.
    """

    def __init__(
        self, reason: str, message: str, fields: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.fields = {code: tuple(names) for code, names in (fields or {}).items()}


class TrainingError(ConsiliaError):
    """A site cannot contribute to this round; ``reason`` is a code that may leave the site."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class SecureSumError(ConsiliaError):
    """A secure sum ends, and nothing comes of it; ``reason`` is a code that may leave the site."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class QuorumError(ConsiliaError):
    """Too few sites answered in a round; everything up to the round before is committed."""


class StorageError(ConsiliaError):
    """A checkpoint or result could not be written; what was committed before is intact."""


class InterruptedRunError(ConsiliaError):
    """The run was stopped from the keyboard and can be resumed."""

    exit_code: ClassVar[int] = 1
