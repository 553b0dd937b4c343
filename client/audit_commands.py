"""``consilia client audit verify``, ``audit show``, ``withdraw`` and ``consent``: what they do."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from client.audit import AuditLog
from client.audit_check import read_anchors, verify
from client.consent import Consent, Withdrawal
from client.settings import AgentSettings, load_agent
from client.state import SiteState
from shared.errors import ConfigError, InputError
from shared.toml_files import first_problem

SITE_FILE = "site.toml"


def verify_command(site: Path, anchors: list[str], *, as_json: bool) -> None:
    """Check a site's audit log.

    Args:
        site: The site's folder.
        anchors: What to compare with; see ``client.audit_check.read_anchors``.
        as_json: Print one JSON object.

    Raises:
        InputError: Naming the first line that is not what was written.
    """
    settings = load_agent(site / SITE_FILE)
    name, path = settings.site.name, _log_of(settings)
    checked = verify(path, [each for given in anchors for each in read_anchors(given, name)])
    facts = {"site": name, "lines": checked.lines, "anchors": checked.anchors, "head": checked.head}
    head = f"{checked.lines}:{checked.head}"
    compared = f"{checked.anchors} anchored lines are the same" if anchors else _NOT_COMPARED
    _say(facts, f"{path}: {checked.lines} lines, the chain holds; {compared}\nHead {head}", as_json)


_NOT_COMPARED = (
    "not compared with the coordinator, so lines cut off at the end would not show (--anchor)"
)


def show_command(site: Path, last: int, run: str | None, *, as_json: bool) -> None:
    """Print the last lines of a site's audit log; whether they hold is for ``verify``.

    Args:
        site: The site's folder.
        last: So many lines.
        run: Only lines about this run.
        as_json: Print one JSON object.
    """
    entries = [
        entry for entry in _entries(load_agent(site / SITE_FILE)) if run in (None, entry.get("run"))
    ]
    shown = entries[-last:]
    _say({"lines": shown}, "\n".join(_in_words(entry) for entry in shown), as_json)


def withdraw_command(site: Path, run: str | None, reason: str, *, as_json: bool) -> None:
    """Withdraw consent to a run or to all; the agent need not run, and need not be restarted.

    Raises:
        ConfigError: If the reason is empty or too long.
        StorageError: If it cannot be written.
    """
    settings = load_agent(site / SITE_FILE)
    try:
        withdrawal = Consent.of(settings.site.state).withdraw(run, reason)
    except ValidationError as error:
        raise ConfigError(f"--{first_problem(error, Withdrawal)}") from None
    # It counts already; a log that cannot be written must not keep it from doing so.
    _note(settings, run, "consent withdrawn", {"reason": withdrawal.reason})
    facts = {"site": settings.site.name, "run": run, "withdrawn": withdrawal.utc.isoformat()}
    known = {str(entry.get("run")) for entry in _entries(settings) if "bytes" in entry}
    unknown = run is not None and run not in known
    note = f"\nNote: nobody has asked this site for a run of the name {run} yet" if unknown else ""
    _say(
        facts | {"known": not unknown},
        f"Withdrew consent to {_of(run)}; the next task is refused, and what is being trained is "
        f"not released{note}\nGive it again with: consilia client consent{_argument(run)}",
        as_json,
    )


def consent_command(site: Path, run: str | None, *, as_json: bool) -> None:
    """Give consent again that was withdrawn.

    Raises:
        InputError: If it was not withdrawn, or only together with all other runs.
    """
    settings = load_agent(site / SITE_FILE)
    consent = Consent.of(settings.site.state)
    withdrawn = [each.run for each in consent.withdrawals()]
    if run is not None and None in withdrawn:
        raise InputError(
            "consent was withdrawn from every run; give it again to all with `consilia client "
            "consent`, and withdraw it from those that you mean"
        )
    if not withdrawn or (run is not None and run not in withdrawn):
        raise InputError(f"consent to {_of(run)} is not withdrawn")
    # The line first: consent that is not on record must not count.
    _note(settings, run, "consent given", {})
    ended = consent.give(run)
    facts = {"site": settings.site.name, "run": run, "ended": [each.run for each in ended]}
    _say(facts, f"Gave consent again to {_of(run)}", as_json)


def _note(
    settings: AgentSettings, run: str | None, what: str, detail: Mapping[str, object]
) -> None:
    log = AuditLog(_log_of(settings))
    log.append(run=run or "", round_number=0, what=what, detail=detail)


def _log_of(settings: AgentSettings) -> Path:
    return SiteState(settings.site.state, settings.site.held).audit


def _entries(settings: AgentSettings) -> list[dict[str, object]]:
    """Return the lines of the log; one that cannot be read is shown as such."""
    path = _log_of(settings)
    entries: list[dict[str, object]] = []
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        known = isinstance(entry, dict)
        entries.append(entry if known else {"seq": number, "what": "cannot be read"})
    return entries


def _in_words(entry: Mapping[str, object]) -> str:
    """Return a line as people read it; what a coordinator chose cannot forge another line."""
    detail = entry.get("detail")
    size = f", {entry['bytes']} bytes" if "bytes" in entry else ""
    more = f"  {json.dumps(detail, sort_keys=True)}" if detail else ""
    run = json.dumps(entry.get("run", ""))
    about = f"run {run}, round {entry.get('round')}" if entry.get("run") else "every run"
    return f"{entry.get('seq')}  {entry.get('utc')}  {entry.get('what')}  {about}{size}{more}"


def _of(run: str | None) -> str:
    return f"run {run}" if run else "every run"


def _argument(run: str | None) -> str:
    return f" {run}" if run else ""


def _say(facts: Mapping[str, object], text: str, as_json: bool) -> None:
    sys.stdout.write((json.dumps(facts) if as_json else text) + "\n")
