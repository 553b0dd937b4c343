"""The ledger of what was spent of patients' privacy: written before anything is released.

Everything released about a population is composed, from whichever data set, run and study, by a
pessimistic accountant. An entry is on the disk before the release that it is about may leave, so
that a process which is killed at any moment has spent too much rather than too little. A ledger
that is missing, damaged, changed or older than it was refuses everything.
"""

import hmac
import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from client.audit import AuditLog
from client.keeping import IN_THE_CLEAR, Keeping
from client.ledger.anchor import AUDITED, LedgerEnd, last_audited
from client.ledger.database import LedgerFile, ledger_refused
from client.ledger.entries import FIRST, Entry, Mode, Population, Receipt, Release
from client.ledger.tables import LedgerRow, PopulationRow, SpendRow
from client.privacy_policy import Terms
from client.state import private_folder
from shared.errors import RefusedError
from shared.files import in_turn
from shared.privacy.accountant import Spend, epsilon

_TAG_BYTES: Final = 16


@dataclass(frozen=True)
class _Opened:
    """The ledger as it is on the disk, checked."""

    session: Session
    memory: sqlite3.Connection
    row: LedgerRow
    entries: Sequence[Entry]

    @property
    def head(self) -> LedgerEnd:
        """Where it ends."""
        return _anchor(self.row.name, self.entries)


class PrivacyLedger:
    """A site's ledger; see the module's docstring.

    Attributes:
        folder: Holds the ledger and its anchor.
    """

    def __init__(self, folder: Path, audit: AuditLog, keeping: Keeping = IN_THE_CLEAR) -> None:
        """Open the ledger, or begin one where there never was any.

        Args:
            folder: Of the ledger alone.
            audit: The site's audit log, which holds the ledger's end as well.
            keeping: How private files are kept.

        Raises:
            RefusedError: ``privacy-ledger`` if it is missing, damaged, changed or older than it
                was.
            StorageError: If it cannot be written.
        """
        private_folder(folder)
        self.folder = folder
        self._audit = audit
        self._file = LedgerFile(folder / "ledger", keeping)
        self._anchor = folder / "anchor.json"
        with self._turn():
            if not self._file.path.exists():
                self._begin()
            with self._opened() as opened:
                self._check_audit(opened)
                if LedgerEnd.read(self._anchor) != opened.head:  # killed between the two
                    opened.head.write(self._anchor)

    def enrol(self, population: Population) -> None:
        """Note whose records are about to be used.

        Patients who were ever in a population stay in it, so that a data set that shrinks or
        changes does not make its population a new one.

        Raises:
            RefusedError: ``privacy-population`` if some of the patients are counted under another
                name, or none of them is among those counted under this one; or
                ``privacy-ledger``.
            StorageError: If it cannot be written.
        """
        with self._turn(), self._opened() as opened:
            tags = set(_tags(opened.row.secret, population.patients))
            rows = {row.name: row for row in opened.session.scalars(select(PopulationRow))}
            for name, row in rows.items():
                shared = len(tags & _split(row.tags))
                if name != population.name and shared:
                    raise RefusedError(
                        "privacy-population",
                        f"patients of the population {population.name} are counted as {name} "
                        f"already; expected privacy.population = '{name}', so that what was "
                        "released about them before counts",
                    )
                if name == population.name and not shared:
                    raise RefusedError(
                        "privacy-population",
                        f"the ledger's population {name} has none of this data set's patients: it "
                        "belongs to another data set; give the population of this one in "
                        "privacy.population",
                    )
            own = rows.get(population.name)
            known = _split(own.tags) if own else set()
            if own is None:
                own = PopulationRow(name=population.name, tags=b"")
                opened.session.add(own)
            if tags <= known and known:
                return
            own.tags = b"".join(sorted(known | tags))
            opened.session.commit()
            self._file.save(opened.memory)

    def check(self, release: Release, terms: Terms) -> Receipt:
        """Return what a release would cost; nothing is written.

        Raises:
            RefusedError: ``privacy-budget`` if it would pass the budget, or as ``spend``.
        """
        with self._turn(), self._opened() as opened:
            return _priced(opened.entries, release, terms)

    def spend(self, release: Release, terms: Terms) -> Receipt:
        """Write a release into the ledger and wait until it is on the disk.

        Call it before the release leaves, with the steps really taken. What is not released after
        all stays spent.

        Raises:
            RefusedError: ``privacy-budget`` if the budget would be passed, ``privacy-population``
                if the population is not enrolled, or ``privacy-ledger``. Then nothing may leave.
            StorageError: If it cannot be written; then nothing may leave.
        """
        with self._turn(), self._opened() as opened:
            receipt = _priced(opened.entries, release, terms)
            population = opened.session.scalar(
                select(PopulationRow).where(PopulationRow.name == release.population)
            )
            if population is None:
                raise RefusedError(
                    "privacy-population",
                    f"the population {release.population} is not in the ledger; enrol its patients "
                    "before their records are used",
                )
            entry = Entry(
                seq=opened.head.seq + 1,
                utc=datetime.now(UTC).isoformat(timespec="milliseconds"),
                release=release,
                previous_sha256=opened.head.head,
            )
            opened.session.add(_row(entry, population.id))
            opened.session.commit()
            self._file.save(opened.memory)
            anchor = LedgerEnd(opened.row.name, entry.seq, entry.sha256)
            anchor.write(self._anchor)
            self._note(anchor, release.run, release.round)
        return receipt

    def entries(self, population: str | None = None) -> list[Entry]:
        """Return all entries, or those of one population.

        Raises:
            RefusedError: ``privacy-ledger``.
        """
        with self._turn(), self._opened() as opened:
            return [e for e in opened.entries if population in (None, e.release.population)]

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with in_turn(self.folder / "lock"):
            yield

    def _begin(self) -> None:
        """Make a ledger where there never was one."""
        if self._anchor.exists() or last_audited(self._audit) is not None:
            raise ledger_refused(f"{self._file.path}: is missing, and there was a ledger")
        with self._file.session() as (session, memory):
            row = LedgerRow(id=1, name=secrets.token_hex(16), secret=os.urandom(32))
            session.add(row)
            session.commit()
            self._file.save(memory)

    @contextmanager
    def _opened(self) -> Iterator[_Opened]:
        """Yield the ledger, once everything about it is as it was written."""
        if not self._file.path.exists():
            raise ledger_refused(f"{self._file.path}: is missing, and there was a ledger")
        with self._file.session() as (session, memory):
            row = session.get(LedgerRow, 1)
            if row is None:
                raise ledger_refused(f"{self._file.path}: is empty")
            opened = _Opened(session, memory, row, _read_entries(session))
            self._check_chain(opened.entries)
            self._check_anchor(opened)
            yield opened

    def _check_chain(self, entries: Sequence[Entry]) -> None:
        last = FIRST
        for number, entry in enumerate(entries, start=1):
            if entry.seq != number or entry.previous_sha256 != last:
                raise ledger_refused(
                    f"{self._file.path}: entry {number} does not follow from the one before it"
                )
            last = entry.sha256

    def _check_anchor(self, opened: _Opened) -> None:
        try:
            anchor = LedgerEnd.read(self._anchor)
        except ValueError:
            raise ledger_refused(f"{self._anchor}: is damaged") from None
        count = len(opened.entries)
        if anchor is None:
            if count:
                raise ledger_refused(f"{self._anchor}: is missing, and the ledger has entries")
            return
        # A process may have been killed after the ledger was written and before the anchor was.
        if anchor.ledger != opened.row.name:
            raise ledger_refused(f"{self._file.path}: is another ledger than its anchor names")
        if anchor.seq > count:
            raise ledger_refused(
                f"{self._file.path}: has {count} entries and had {anchor.seq}: an older copy was "
                "put back"
            )
        if anchor.seq < count - 1 or anchor != _anchor(
            opened.row.name, opened.entries[: anchor.seq]
        ):
            raise ledger_refused(f"{self._file.path}: does not go on from its anchor")

    def _check_audit(self, opened: _Opened) -> None:
        """See that the ledger holds what the audit log last said of it, and catch up with it."""
        told = last_audited(self._audit)
        name, entries = opened.row.name, opened.entries
        ends = (_anchor(name, entries[:count]).sha256 for count in range(len(entries), 0, -1))
        if told is not None and told not in ends:
            raise ledger_refused(
                f"{self._file.path}: does not hold what the audit log says was spent: an older "
                "copy was put back"
            )
        if entries and told != opened.head.sha256:
            release = entries[-1].release
            self._note(opened.head, release.run, release.round)

    def _note(self, anchor: LedgerEnd, run: str, round_number: int) -> None:
        self._audit.append(run=run, round_number=round_number, what=AUDITED, body=anchor.content)


def _priced(entries: Sequence[Entry], release: Release, terms: Terms) -> Receipt:
    """Return what a release costs together with everything before it.

    Raises:
        RefusedError: ``privacy-budget`` if that is more than the terms allow.
    """
    spend = release.spend
    if spend.noise < terms.noise or release.clip > terms.clip:
        raise RefusedError(
            "privacy-budget",
            f"noise {spend.noise:g} and clipping norm {release.clip:g}; expected at least "
            f"{terms.noise:g} and at most {terms.clip:g}",
        )
    before = [entry.release for entry in entries if entry.release.population == release.population]
    of_run = [past for past in before if (past.study, past.run) == (release.study, release.run)]
    found = []
    for what, earlier, limit in (
        (f"the population {release.population}", before, terms.epsilon),
        ("the run", of_run, terms.run_epsilon),
    ):
        spends = [*(past.spend for past in earlier), spend]
        found.append(epsilon(spends, terms.delta, limit))
        if found[-1] > limit:
            raise RefusedError(
                "privacy-budget",
                f"epsilon of {what} would be {found[-1]:.4g} at delta {terms.delta:g}; expected at "
                f"most {limit:g}: use more noise, fewer steps or a smaller rate, or stop here",
            )
    return Receipt(len(entries) + 1, *found)


def _anchor(name: str, entries: Sequence[Entry]) -> LedgerEnd:
    return LedgerEnd(name, len(entries), entries[-1].sha256 if entries else FIRST)


def _tags(secret: bytes, patients: Iterable[str]) -> Iterator[bytes]:
    for patient in patients:
        yield hmac.digest(secret, patient.encode(), "sha256")[:_TAG_BYTES]


def _split(tags: bytes) -> set[bytes]:
    return {tags[start : start + _TAG_BYTES] for start in range(0, len(tags), _TAG_BYTES)}


def _row(entry: Entry, population_id: int) -> SpendRow:
    release = entry.release
    return SpendRow(
        seq=entry.seq,
        population_id=population_id,
        utc=entry.utc,
        study=release.study,
        run=release.run,
        round=release.round,
        attempt=release.attempt,
        mode=release.mode,
        data_sha256=release.data_sha256,
        sampling=release.spend.sampling,
        noise=release.spend.noise,
        steps=release.spend.steps,
        entries=release.spend.entries,
        clip=release.clip,
        sensitivity=release.sensitivity,
        shares=release.shares,
        previous_sha256=entry.previous_sha256,
        sha256=entry.sha256,
    )


def _read_entries(session: Session) -> list[Entry]:
    """Return the entries; one whose digest is not that of its content breaks the chain."""
    names = {row.id: row.name for row in session.scalars(select(PopulationRow))}
    found = []
    for row in session.scalars(select(SpendRow).order_by(SpendRow.seq)):
        release = Release(
            population=names.get(row.population_id, ""),
            study=row.study,
            run=row.run,
            round=row.round,
            attempt=row.attempt,
            mode=cast("Mode", row.mode),
            data_sha256=row.data_sha256,
            spend=Spend(
                sampling=row.sampling, noise=row.noise, steps=row.steps, entries=row.entries
            ),
            clip=row.clip,
            sensitivity=row.sensitivity,
            shares=row.shares,
        )
        entry = Entry(row.seq, row.utc, release, row.previous_sha256)
        if entry.sha256 != row.sha256:
            raise ledger_refused(f"entry {row.seq} of the ledger was changed after it was written")
        found.append(entry)
    return found
