"""A site's identity: its kit, what that pins, and its keys."""

from datetime import datetime
from pathlib import Path

from client.check.finding import Finding, NotCheckedError
from client.provisioning.folder import SiteIdentity
from client.settings import AgentSettings
from shared.errors import ConsiliaError


def judge_kit(
    identity: SiteIdentity | ConsiliaError, site: AgentSettings | ConsiliaError, now: datetime
) -> Finding:
    """Whether the site has joined, and is still a member under its name."""
    if isinstance(identity, ConsiliaError):
        do = "ask the coordinator for the kit again (`consilia server kit`), and join with it"
        return Finding("", "fail", str(identity), "the kit that the site joined with", do)
    if identity.kit is None:
        do = "hand the public part to the coordinator, then `consilia client join KIT`"
        return Finding("", "fail", "the site has not joined a consortium", "a kit", do)
    kit = identity.kit.content
    if isinstance(site, AgentSettings) and site.site.name != kit.site:
        return Finding(
            "",
            "fail",
            f"the kit is for site {kit.site}, and site.toml names {site.site.name}",
            "the same name in both",
            f'set name = "{kit.site}" in site.toml, or join with this site\'s own kit',
        )
    try:
        pinned = identity.authority.read_text()
    except OSError:
        pinned = ""
    if pinned != kit.authority:
        return Finding(
            "",
            "fail",
            f"{identity.authority} is not the authority that the kit pins",
            "the kit's certificate, which the courier trusts",
            "join again with the same kit: `consilia client join KIT`",
        )
    member = kit.roster.member(kit.site)
    keys = [each for each in member.keys if each.enrolment == kit.enrolment] if member else []
    if member is None or member.status == "revoked" or not any(each.count(now) for each in keys):
        return Finding(
            "",
            "fail",
            f"the keys of {kit.site} no longer count in the consortium",
            "an active member",
            "ask the coordinator; for new keys: `consilia client rotate`",
        )
    active = sum(each.status == "active" for each in kit.roster.members)
    return Finding(
        "",
        "ok",
        f"site {kit.site} of {kit.consortium_name}, {active} sites, gateway "
        f"{kit.gateway}:{kit.port}; fingerprint {identity.fingerprint}",
    )


def judge_keys(identity: SiteIdentity) -> Finding:
    """Whether the private keys are there, the admitted ones, and the owner's alone.

    Raises:
        IdentityError: What is wrong with them.
    """
    if identity.kit is None:
        raise NotCheckedError("the site has not joined a consortium")
    keys = identity.keys_in_use()
    return Finding("", "ok", f"both keys are there, mode 0600; made {keys.part.created:%Y-%m-%d}")


def no_identity(home: Path) -> Finding:
    """Say that the site has no keys yet."""
    return Finding(
        "",
        "fail",
        f"{home} holds no site's identity",
        "an identity that joined a consortium",
        f"`consilia client init {home}`, hand the public part to the coordinator, then `consilia "
        "client join KIT`",
    )
