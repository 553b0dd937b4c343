"""One visit to the gateway, as the courier would make it; what came of it is judged elsewhere.

The way is the courier's: its proxy if the environment names one, TLS that trusts the kit's
authority alone, and one question, ``/health``. Nothing secret is sent, so that a certificate that
is not trusted can be looked at: it says who stands on the way.
"""

import socket
import ssl
import time
import urllib.request
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException
from typing import Final, Literal
from urllib.parse import urlsplit

from shared.security.certificates import trusting

SECONDS: Final = 5.0
"""So long each step may take."""
_LARGEST_HEAD = 16_384
_DATE_ROUNDS_DOWN = 0.5

Obstacle = Literal["name", "refused", "timeout", "unreachable", "proxy", "not-tls"]


@dataclass(frozen=True)
class Route:
    """Where the gateway is.

    Attributes:
        host: The gateway's.
        port: The gateway's.
        proxy: Host and port of the proxy before it, if the environment names one.
    """

    host: str
    port: int
    proxy: tuple[str, int] | None = None

    @property
    def first(self) -> tuple[str, int]:
        """Return what this machine itself connects to."""
        return self.proxy or (self.host, self.port)

    @classmethod
    def to(cls, host: str, port: int) -> "Route":
        """Return the way that programs here take, Flower's among them."""
        proxies = urllib.request.getproxies()
        named = proxies.get("https") or proxies.get("all")
        if not named or urllib.request.proxy_bypass(f"{host}:{port}"):
            return cls(host, port)
        parts = urlsplit(named if "://" in named else f"http://{named}")
        return cls(host, port, (parts.hostname or "", parts.port or 80))


@dataclass(frozen=True)
class Contact:
    """What came of a visit.

    Attributes:
        route: Where it went.
        obstacle: What kept it from getting to TLS, if anything did.
        detail: The obstacle in the system's or the proxy's words.
        certificate: What was presented, PEM; ``None`` if it came to no handshake.
        distrust: OpenSSL's words for why it is not trusted; empty if it is.
        protocol: Of the trusted handshake, such as ``TLSv1.3``.
        status: HTTP's, of ``/health``.
        ahead_seconds: How far this machine's clock is ahead of the gateway's ``Date``, which
            has whole seconds.
        seconds: From the first step to the last.
    """

    route: Route
    obstacle: Obstacle | None = None
    detail: str = ""
    certificate: str | None = None
    distrust: str = ""
    protocol: str = ""
    status: int | None = None
    ahead_seconds: float | None = None
    seconds: float = 0.0


class _ObstacleError(Exception):
    def __init__(self, obstacle: Obstacle, detail: str) -> None:
        super().__init__(detail)
        self.obstacle: Obstacle = obstacle
        self.detail = detail


def visit(route: Route, authority: bytes, seconds: float = SECONDS) -> Contact:
    """Visit the gateway once, and a second time if its certificate is not trusted.

    Args:
        route: Where.
        authority: The kit's certificate, PEM.
        seconds: So long each step may take.
    """
    begun = time.monotonic()
    try:
        contact = _visit(route, trusting(authority), seconds)
    except _ObstacleError as met:
        contact = Contact(route, met.obstacle, met.detail)
    except ssl.SSLCertVerificationError as error:
        contact = _look_closer(route, error.verify_message or "not trusted", seconds)
    taken = time.monotonic() - begun
    return Contact(**{**vars(contact), "seconds": taken})


def _visit(route: Route, context: ssl.SSLContext, seconds: float, distrust: str = "") -> Contact:
    with _connected(route, seconds) as plain:
        try:
            tls = context.wrap_socket(plain, server_hostname=route.host)
        except ssl.SSLCertVerificationError:
            raise
        except TimeoutError:
            raise _ObstacleError("not-tls", "no answer to the handshake") from None
        except OSError as error:  # an SSLError is one
            words = getattr(error, "reason", None) or error.strerror or type(error).__name__
            raise _ObstacleError("not-tls", str(words)) from None
        with tls:
            shown = tls.getpeercert(binary_form=True) or b""
            status, ahead = _ask_health(tls, route)
            return Contact(
                route,
                certificate=ssl.DER_cert_to_PEM_cert(shown),
                distrust=distrust,
                protocol=tls.version() or "",
                status=status,
                ahead_seconds=ahead,
            )


def _look_closer(route: Route, distrust: str, seconds: float) -> Contact:
    """Return who presents a certificate that is not trusted; only to name it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing secret is sent, and nothing that comes is used
    try:
        return _visit(route, context, seconds, distrust)
    except _ObstacleError:
        return Contact(route, distrust=distrust)


def _connected(route: Route, seconds: float) -> socket.socket:
    """Return a connection to the gateway, through the proxy if there is one.

    Raises:
        _ObstacleError: If there is none to be had.
    """
    try:
        socket.getaddrinfo(*route.first, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        words = getattr(error, "strerror", None) or "not a host name"
        raise _ObstacleError("name", words) from None
    try:
        plain = socket.create_connection(route.first, timeout=seconds)
    except TimeoutError:
        raise _ObstacleError("timeout", f"no answer in {seconds:g} s") from None
    except ConnectionRefusedError:
        raise _ObstacleError("refused", "connection refused") from None
    except OSError as error:
        raise _ObstacleError("unreachable", error.strerror or "no way there") from None
    if route.proxy is not None:
        try:
            _through_proxy(plain, route)
        except BaseException:
            plain.close()
            raise
    return plain


def _through_proxy(plain: socket.socket, route: Route) -> None:
    where = f"{route.host}:{route.port}"
    head = b""
    try:
        plain.sendall(f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n\r\n".encode())
        while b"\r\n\r\n" not in head and len(head) < _LARGEST_HEAD:
            piece = plain.recv(4096)
            if not piece:
                break
            head += piece
    except OSError:
        raise _ObstacleError("proxy", "no answer") from None
    line = head.split(b"\r\n")[0].decode("ascii", "replace")
    if line.split(" ")[1:2] != ["200"]:
        raise _ObstacleError("proxy", line[:80] or "no answer")


def _ask_health(tls: ssl.SSLSocket, route: Route) -> tuple[int | None, float | None]:
    """Return the status of ``/health``, and how far our clock is ahead of the answer's."""
    connection = HTTPConnection(route.host, route.port)
    connection.sock = tls
    before = time.time()
    try:
        connection.request("GET", "/health", headers={"Connection": "close"})
        answer = connection.getresponse()
        after, date = time.time(), answer.getheader("Date")
    except (OSError, HTTPException):
        return None, None
    try:
        theirs = parsedate_to_datetime(date or "").timestamp() + _DATE_ROUNDS_DOWN
    except ValueError:
        return answer.status, None
    return answer.status, (before + after) / 2 - theirs
