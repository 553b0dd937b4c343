"""The way to the gateway: name, port, certificate, ``/health`` and clock."""

from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Final

from client.check.contact import Contact
from client.check.finding import Finding, NotCheckedError, duration
from shared.security.certificates import issuer_of, names_of, parse_certificate
from shared.security.consortium import Kit
from shared.versions import PROTOCOL

SLOW_CLOCK_SECONDS: Final = 305.0
FAST_CLOCK_SECONDS: Final = 5.0
"""A SuperLink (flwr 1.41) drops what was signed more than 305 s ago, or 5 s in the future."""
_NOTICED_SECONDS: Final = 3.0
_RENEW_DAYS = 30
_WHERE = "the gateway"


def judge_name(contact: Contact) -> Finding:
    """Whether the name that is connected to can be resolved."""
    host, _ = contact.route.first
    if contact.obstacle != "name":
        through = f", the way to {contact.route.host}" if contact.route.proxy else ""
        return Finding("", "ok", f"{host} is known{through}")
    if contact.route.proxy:
        return Finding(
            "",
            "fail",
            f"the proxy {host} cannot be resolved ({contact.detail})",
            "a proxy that this machine can reach",
            "correct HTTPS_PROXY, or unset it if the way out is direct",
        )
    return Finding(
        "",
        "fail",
        f"{host} cannot be resolved ({contact.detail})",
        "an address of the gateway",
        "ask IT to resolve this name here; behind a proxy, set HTTPS_PROXY; if the name is "
        "wrong, ask the coordinator for a new kit",
    )


def judge_port(contact: Contact) -> Finding:
    """Whether the one outbound port is open."""
    if contact.obstacle == "name":
        raise NotCheckedError("the name is not known")
    host, port = contact.route.first
    where, proxy = f"{host}:{port}", contact.route.proxy
    goal = f"{contact.route.host}:{contact.route.port}"
    if contact.obstacle in ("refused", "timeout", "unreachable", "proxy"):
        found = f"{where}: {contact.detail}"
        if contact.obstacle == "proxy":
            return Finding(
                "",
                "fail",
                f"the proxy {where} does not let through to {goal}: {contact.detail}",
                "CONNECT answered with 200",
                f"ask IT to allow this machine CONNECT to {goal}; for a proxy that wants a "
                "password, an exception without one",
            )
        if contact.obstacle == "refused":
            do = (
                f"ask IT whether a firewall rejects outbound TCP to {where}, and the coordinator "
                "whether the gateway runs"
            )
        else:
            do = f"ask IT to open outbound TCP to {where} and nothing else"
        if not proxy:
            do += "; if the way out is a proxy, set HTTPS_PROXY=http://PROXY:PORT"
        return Finding("", "fail", found, f"a connection to {where}", do)
    through = f" through the proxy {where}" if proxy else ""
    return Finding("", "ok", f"{goal} is open{through}")


def judge_certificate(contact: Contact, kit: Kit, now: datetime) -> Finding:
    """Whether the gateway shows the certificate of the consortium, and who is there if not."""
    if contact.obstacle not in (None, "not-tls"):
        raise NotCheckedError("the gateway is not reached")
    expected = f"a certificate for {kit.gateway}, signed by the consortium {kit.consortium_name}"
    if contact.certificate is None:
        return Finding(
            "",
            "fail",
            f"no TLS at {kit.gateway}:{kit.port} ({contact.detail or contact.distrust})",
            "TLS 1.2 or newer",
            "ask IT whether something on the way answers in the gateway's place, and the "
            "coordinator whether it is the right port",
        )
    shown = contact.certificate.encode()
    if not contact.distrust:
        return _trusted(contact, shown, now)
    authority = kit.authority.encode()
    issued = parse_certificate(authority, "kit.json", "the authority")
    certificate = parse_certificate(shown, _WHERE, "the server")
    try:
        certificate.verify_directly_issued_by(issued)
    except Exception:  # of several sorts, and each says: not by this one
        return _foreign(kit, shown, expected)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= now <= end:
        return _at_another_time(begin, end, expected, now)
    if kit.gateway not in names_of(shown, _WHERE):
        names = ", ".join(names_of(shown, _WHERE)) or "no host"
        return Finding(
            "",
            "fail",
            f"the certificate is for {names}",
            expected,
            "ask the coordinator for one that names this host (`consilia server renew --host "
            f"{kit.gateway}`), or for a new kit with a name that it has",
        )
    # OpenSSL knows more than we do.
    return Finding("", "fail", contact.distrust, expected, "ask the coordinator for help")


def _at_another_time(begin: datetime, end: datetime, expected: str, now: datetime) -> Finding:
    word = f"expired on {_day(end)}" if now > end else f"counts only from {_day(begin)}"
    return Finding(
        "",
        "fail",
        f"the certificate {word}, and this machine's clock says {_day(now)}",
        expected,
        "set this machine's clock if it is wrong; else the coordinator makes a new certificate "
        "(`consilia server renew`)",
    )


def _trusted(contact: Contact, shown: bytes, now: datetime) -> Finding:
    end = parse_certificate(shown, _WHERE, "the server").not_valid_after_utc
    found = f"{contact.protocol}, signed by the consortium, until {_day(end)}"
    if end - now < timedelta(days=_RENEW_DAYS):
        return Finding(
            "",
            "warn",
            found,
            f"{_RENEW_DAYS} days or more",
            "remind the coordinator of `consilia server renew`",
        )
    return Finding("", "ok", found)


def _foreign(kit: Kit, shown: bytes, expected: str) -> Finding:
    """Say who signed a certificate that is not the consortium's."""
    common, organization = issuer_of(shown, _WHERE)
    issuer = ", ".join(dict.fromkeys(part for part in (common, organization) if part)) or "nobody"
    if organization and common == f"{organization} authority":  # as ours are named
        again = organization == kit.consortium_name
        other = "a new authority of the same name" if again else f"the consortium {organization}"
        return Finding(
            "",
            "fail",
            f"the certificate is signed by another consortium: {other}",
            expected,
            "ask the coordinator which is right, comparing fingerprints over the phone; then "
            "join with a kit of that one",
        )
    return Finding(
        "",
        "fail",
        f"the certificate is signed by {issuer}: a proxy on the way opens TLS, or another server "
        "answers",
        expected,
        f"ask IT to leave {kit.gateway}:{kit.port} out of TLS inspection; if there is none, ask "
        "the coordinator what runs there",
    )


def judge_health(contact: Contact) -> Finding:
    """Whether the gateway says that the coordinator is there."""
    if contact.certificate is None:
        raise NotCheckedError("there is no TLS to ask over")
    if contact.distrust:
        raise NotCheckedError("the certificate is not trusted")
    if contact.status == 200:
        return Finding("", "ok", f"the coordinator answers, in {duration(contact.seconds)}")
    answer = "no answer" if contact.status is None else f"status {contact.status}"
    return Finding(
        "",
        "fail",
        f"/health: {answer}",
        "status 200",
        "ask the coordinator whether `consilia server start` runs; the gateway itself is there",
    )


def judge_clock(contact: Contact) -> Finding:
    """Whether this machine's clock is near the gateway's."""
    ahead = contact.ahead_seconds
    if ahead is None:
        raise NotCheckedError("no answer with a date")
    far = abs(ahead)
    exact = f"{far:.0f} s" if far >= 1 else "less than 1 s"
    found = f"this machine's clock is {exact} {'ahead of' if ahead > 0 else 'behind'} the gateway's"
    if contact.distrust:
        found += ", if what answers is to be believed"
    window = f"{SLOW_CLOCK_SECONDS:g} s behind to {FAST_CLOCK_SECONDS:g} s ahead"
    do = (
        "set the clock by NTP (timedatectl set-ntp true), or tell the coordinator if yours is right"
    )
    if not -SLOW_CLOCK_SECONDS < ahead < FAST_CLOCK_SECONDS:
        return Finding("", "fail", f"{found}; signed messages would be refused", window, do)
    if far > _NOTICED_SECONDS:
        return Finding("", "warn", found, f"less than {_NOTICED_SECONDS:g} s", do)
    return Finding("", "ok", found)


def judge_versions() -> Finding:
    """Say the versions here; the coordinator's is compared at its first request."""
    ours = f"consilia {version('consilia')}, protocol {PROTOCOL}, flwr {version('flwr')}"
    return Finding("", "ok", f"{ours}; the coordinator's is told at its first request only")


def _day(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
