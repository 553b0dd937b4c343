"""Consent that a site withdrew: a file in its state, looked at before every task and release.

A model that was trained is not unlearned; from the withdrawal on nothing is trained or released.
"""

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from client.state import write_private
from shared.errors import RefusedError, StorageError

log = logging.getLogger(__name__)

Reason = Annotated[str, Field(min_length=1, max_length=500)]


class Withdrawal(BaseModel):
    """One withdrawal.

    Attributes:
        run: From which run; from every run, also those to come, if ``None``.
        utc: When.
        reason: The site's own words; they stay at the site.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Annotated[str, Field(min_length=1, max_length=200)] | None
    utc: AwareDatetime
    reason: Reason


_ALL = TypeAdapter(tuple[Withdrawal, ...])


@dataclass(frozen=True)
class Consent:
    """The withdrawals of a site.

    Attributes:
        path: The file; without it nothing was withdrawn.
    """

    path: Path

    @classmethod
    def of(cls, state: Path) -> "Consent":
        """Return the withdrawals that are kept in a site's state."""
        return cls(state / "withdrawn.json")

    def withdrawals(self) -> tuple[Withdrawal, ...]:
        """Return all withdrawals that count.

        Raises:
            StorageError: If nobody can tell what they are.
        """
        try:
            return _ALL.validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return ()
        except (OSError, ValidationError):
            raise StorageError(
                f"{self.path}: damaged or not readable, so that nothing is allowed; withdraw "
                "again after moving it away"
            ) from None

    def check(self, run: str) -> None:
        """Raise if consent to a run was withdrawn.

        Raises:
            RefusedError: ``consent-withdrawn``; also if the file cannot be read.
        """
        try:
            found = [each for each in self.withdrawals() if each.run in (None, run)]
        except StorageError as error:
            log.error("everything is refused: %s", error)  # noqa: TRY400
            raise RefusedError("consent-withdrawn", "the withdrawals cannot be read") from None
        if found:
            raise RefusedError("consent-withdrawn", f"on {found[0].utc:%Y-%m-%d %H:%M} UTC")

    def withdraw(self, run: str | None, reason: str) -> Withdrawal:
        """Withdraw consent to a run, or to all of them; it counts from the next look on.

        Raises:
            StorageError: If it cannot be written; then it does not count.
        """
        added = Withdrawal(run=run, utc=datetime.now(UTC), reason=reason)
        self._write((*(each for each in self.withdrawals() if each.run != run), added))
        return added

    def give(self, run: str | None) -> tuple[Withdrawal, ...]:
        """Give consent again to a run, or to all of them; return the withdrawals that end.

        Raises:
            StorageError: If it cannot be written; then they count as before.
        """
        known = self.withdrawals()
        ended = tuple(each for each in known if run is None or each.run == run)
        self._write(tuple(each for each in known if each not in ended))
        return ended

    def _write(self, withdrawals: tuple[Withdrawal, ...]) -> None:
        write_private(self.path, _ALL.dump_json(withdrawals))
