"""Sites come, get new keys and go; none of it touches another site.

The roster is the truth and is replaced in one step. What follows from it, the file of a node's
key and the kit, is written afterwards and can be had again (``kit_for``).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from server.provisioning.folder import ConsortiumFolder
from shared.errors import IdentityError
from shared.files import storage_errors, write_atomic
from shared.security.consortium import Kit, Member, MemberKeys, Roster, SitePart
from shared.security.documents import write_document

_KIT_FORM = 1


@dataclass(frozen=True)
class Admission:
    """What came of a change of the roster.

    Attributes:
        member: The site as it now stands in the roster.
        kit: What to hand to the site.
    """

    member: Member
    kit: Path


def admit(folder: ConsortiumFolder, part: SitePart, now: datetime) -> Admission:
    """Take a site into the consortium; its public part admits once.

    Args:
        folder: The consortium.
        part: What the site handed over; somebody has compared its fingerprint.
        now: Aware of its time zone.

    Raises:
        IdentityError: If the part was used before, its name is taken, or its keys are another's;
            the roster is as it was.
        StorageError: If the roster cannot be written; it is as it was.
    """
    with folder.changing() as roster:
        _check_unused(roster, part)
        _check_new_name(roster, part.name)
        member = Member(name=part.name, keys=(_keys(part, now),))
        after = _next(roster, [*roster.members, member])
        folder.write_roster(after)
        return Admission(member, _hand_out(folder, after, member, now))


def rotate(
    folder: ConsortiumFolder, name: str, part: SitePart, overlap: timedelta, now: datetime
) -> Admission:
    """Give a site new keys; its old ones count until the overlap is over.

    Args:
        folder: The consortium.
        name: Of the site.
        part: The public part of the new keys.
        overlap: So long messages signed with the old keys count.
        now: Aware of its time zone.

    Raises:
        IdentityError: If the site is not an active member, or the part is another's or was used
            before; the roster is as it was.
        StorageError: If the roster cannot be written; it is as it was.
    """
    with folder.changing() as roster:
        old = _active(roster, name)
        if part.name != name:
            raise IdentityError(
                f"site {name}: the file is of site {part.name}; expected the one that "
                "`consilia client rotate` wrote at this site"
            )
        _check_unused(roster, part)
        member = old.model_copy(update={"keys": (*_ending(old, now + overlap), _keys(part, now))})
        after = _replaced(roster, member)
        folder.write_roster(after)
        return Admission(member, _hand_out(folder, after, member, now))


def revoke(folder: ConsortiumFolder, name: str, now: datetime) -> Member:
    """Let nothing more count that a site signs; its name and keys are never used again.

    Raises:
        IdentityError: If the site is not an active member.
        StorageError: If the roster cannot be written; it is as it was.
    """
    with folder.changing() as roster:
        old = _active(roster, name)
        member = old.model_copy(update={"status": "revoked", "keys": tuple(_ending(old, now))})
        folder.write_roster(_replaced(roster, member))
        with storage_errors(f"{folder.paths.node(name)}: cannot be removed"):
            folder.paths.node(name).unlink(missing_ok=True)
            folder.paths.kit(name).unlink(missing_ok=True)
    return member


def kit_for(folder: ConsortiumFolder, name: str, now: datetime) -> Admission:
    """Write a site's kit anew, with the roster as it is now.

    Raises:
        IdentityError: If the site is not an active member.
        StorageError: If it cannot be written.
    """
    with folder.changing() as roster:
        member = _active(roster, name)
        return Admission(member, _hand_out(folder, roster, member, now))


def _check_new_name(roster: Roster, name: str) -> None:
    known = roster.member(name)
    if known is None:
        return
    if known.status == "revoked":
        raise IdentityError(
            f"site {name}: was revoked, and its name is never used again; let the site choose "
            "another name"
        )
    raise IdentityError(
        f"site {name}: is in the roster already; if the same site has new keys: `consilia server "
        f"rotate {name} FILE`; if it is another site, let it choose another name"
    )


def _check_unused(roster: Roster, part: SitePart) -> None:
    """Raise if a public part was used before, or its keys are those of a member."""
    for member in roster.members:
        for keys in member.keys:
            if keys.enrolment == part.enrolment:
                raise IdentityError(
                    f"site {part.name}: this file was used already, on {keys.admitted:%Y-%m-%d}, "
                    f"for site {member.name}; it admits once; a lost kit comes back with "
                    f"`consilia server kit {member.name}`"
                )
            if keys.signing_key == part.signing_key or keys.node_key == part.node_key:
                raise IdentityError(
                    f"site {part.name}: its keys are those of site {member.name}; two sites "
                    "cannot have one identity; make keys at this site with `consilia client init`"
                )


def _active(roster: Roster, name: str) -> Member:
    member = roster.member(name)
    if member is None:
        names = ", ".join(m.name for m in roster.members if m.status == "active") or "none yet"
        raise IdentityError(f"site {name}: is not in the roster; expected one of: {names}")
    if member.status == "revoked":
        raise IdentityError(
            f"site {name}: was revoked; to come back it chooses another name and makes new keys"
        )
    return member


def _keys(part: SitePart, now: datetime) -> MemberKeys:
    return MemberKeys(
        enrolment=part.enrolment,
        signing_key=part.signing_key,
        node_key=part.node_key,
        admitted=now,
    )


def _ending(member: Member, end: datetime) -> Iterable[MemberKeys]:
    """Return a member's keys, none of which counts after ``end``."""
    for keys in member.keys:
        until = end if keys.until is None else min(keys.until, end)
        yield keys.model_copy(update={"until": until})


def _next(roster: Roster, members: Iterable[Member]) -> Roster:
    return roster.model_copy(update={"edition": roster.edition + 1, "members": tuple(members)})


def _replaced(roster: Roster, member: Member) -> Roster:
    return _next(roster, (member if m.name == member.name else m for m in roster.members))


def _hand_out(folder: ConsortiumFolder, roster: Roster, member: Member, now: datetime) -> Path:
    """Write what follows from a site's place in the roster; return its kit."""
    consortium, newest = folder.consortium, member.keys[-1]
    kit = Kit(
        consortium=consortium.number,
        consortium_name=consortium.name,
        site=member.name,
        enrolment=newest.enrolment,
        gateway=consortium.hosts[0],
        port=consortium.port,
        authority=folder.authority.decode(),
        roster=roster,
        created=now,
    )
    write_atomic(folder.paths.node(member.name), f"{newest.node_key}\n".encode())
    path = folder.paths.kit(member.name)
    write_atomic(path, write_document("kit", _KIT_FORM, kit, folder.key))
    return path
