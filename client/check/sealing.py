"""Whether a site's state is sealed on its disk, how, and whether everything in it opens."""

from contextlib import suppress

from client.check.finding import Finding
from client.sealed_state import Private, private_files
from client.settings import AgentSettings
from client.vault import KEYRING, Vault
from shared.errors import ConsiliaError


def judge_sealing(settings: AgentSettings) -> Finding:
    """Whether the state is sealed; a passphrase is not asked for, so nothing is opened then."""
    source, site = settings.sealing, settings.site
    found = private_files(settings)
    if source is None:
        return _without(settings, found)
    if found.clear or not (site.state / KEYRING).exists():
        clear = len(found.clear)
        return Finding(
            "",
            "fail",
            f"{clear} private files in the clear" if clear else "no keyring in the state yet",
            f"all sealed with {source.shown}, as in site.toml",
            "stop the agent and run `consilia client seal`",
        )
    words = f"sealed with {source.shown}: {len(found.sealed)} files"
    if source.asks:
        words += ", not opened, because nobody was asked for it"
    else:
        try:
            vault = Vault.open(site.state, source.had(site.name))
            for path in found.sealed:
                with suppress(FileNotFoundError):  # an agent at work replaces and removes them
                    vault.read(path)
        except ConsiliaError as error:
            return Finding("", "fail", str(error), "a state that opens", "as it says")
        words += f" of {vault.runs} data keys, all open"
    if site.pixels is None:
        return Finding("", "ok", f"{words}; prepared pictures stay in memory")
    return Finding(
        "",
        "warn",
        f"{words}; prepared pictures in the clear in {site.pixels}",
        'an encrypted disk below it, or pictures = "memory" in [sealing]',
        "nothing, if the disk is encrypted",
    )


def _without(settings: AgentSettings, found: Private) -> Finding:
    state = settings.site.state
    if found.sealed or (state / KEYRING).exists():
        do = "put the table [sealing] back into site.toml"
        return Finding("", "fail", f"{state} is sealed, and site.toml names no key", "the key", do)
    return Finding(
        "",
        "warn",
        f"{state} is in the clear: who has the disk has personal adapters and ledger",
        "a sealed state, or an encrypted disk",
        "give site.toml a table [sealing] and run `consilia client seal` (docs/privacy.md)",
    )
