"""The consortium's private certificate authority and the certificate of its gateway (X.509).

Keys are EC P-256. The authority signs servers' certificates and nothing else; sites trust it and
no other. Everything here is made and checked without a network.
"""

import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.errors import IdentityError
from shared.security.private_files import read_private

AUTHORITY_DAYS = 3650
SERVER_DAYS = 397
"""As long as public authorities allow; ``consilia server renew`` makes the next one."""

_BEFORE = timedelta(days=1)
"""Certificates count from a day before they are made: clocks of sites differ."""


@dataclass(frozen=True)
class Certified:
    """A private key and its certificate, both in PEM."""

    key: bytes
    certificate: bytes

    def __repr__(self) -> str:
        """Show no key."""
        return "Certified(...)"


def new_authority(name: str, now: datetime) -> Certified:
    """Return a new certificate authority.

    Args:
        name: Of the consortium.
        now: When it is made; aware of its time zone.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _named(f"{name} authority", name)
    builder = _builder(subject, subject, key.public_key(), now, AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
    )
    return Certified(_private_pem(key), builder.sign(key, SHA256()).public_bytes(Encoding.PEM))


def new_server(
    authority: Certified, consortium: str, hosts: Sequence[str], now: datetime
) -> Certified:
    """Return a new key and certificate for the gateway.

    Args:
        authority: Signs it.
        consortium: Its name.
        hosts: Names and addresses that it is for.
        now: When it is made; aware of its time zone.
    """
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    signer = load_pem_private_key(authority.key, password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)  # noqa: S101 - ours; see load_authority
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _named(hosts[0][:64], consortium)
    builder = _builder(subject, issuer.subject, key.public_key(), now, SERVER_DAYS)
    names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
    builder = builder.add_extension(names, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    builder = builder.add_extension(purpose, critical=False)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
    )
    return Certified(_private_pem(key), builder.sign(signer, SHA256()).public_bytes(Encoding.PEM))


def load_certified(key: Path, certificate: Path, what: str) -> Certified:
    """Read a private key and its certificate, and see that they belong together.

    Raises:
        IdentityError: If one is missing or damaged, they do not match, or others can open the key.
    """
    pem = read_private(key, f"the key of {what}")
    try:
        private = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        private = None
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise IdentityError(
            f"{key}: expected the key of {what}, EC in PEM; it is damaged, cut short or of another "
            "sort; put back the file that was there"
        )
    found = read_certificate(certificate, what)
    parsed = x509.load_pem_x509_certificate(found)
    if _public_pem(parsed.public_key()) != _public_pem(private.public_key()):
        raise IdentityError(
            f"{certificate}: is not the certificate of {key}; expected the two files that were "
            "made together; put them back"
        )
    return Certified(pem, found)


def read_certificate(path: Path, what: str) -> bytes:
    """Return a certificate's PEM.

    Raises:
        IdentityError: If it is missing or damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise IdentityError(
            f"{path}: the certificate of {what} cannot be read ({error.strerror}); put back the "
            "file that was there"
        ) from None
    parse_certificate(content, str(path), what)
    return content


def parse_certificate(content: bytes, where: str, what: str) -> x509.Certificate:
    """Return a certificate.

    Raises:
        IdentityError: If it is damaged.
    """
    try:
        return x509.load_pem_x509_certificate(content)
    except ValueError:
        raise IdentityError(
            f"{where}: expected the certificate of {what} in PEM; it is damaged or cut short; put "
            "back what was there, or ask for it again"
        ) from None


def check_authority(content: bytes, where: str, now: datetime) -> None:
    """Raise unless a certificate is that of an authority, and valid now.

    Raises:
        IdentityError: Saying what is wrong with it.
    """
    certificate = parse_certificate(content, where, "the authority")
    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, ValueError):
        basic = None
    if basic is None or not basic.ca:
        raise IdentityError(
            f"{where}: expected the certificate of an authority, got that of a server; ask the "
            "coordinator for a new kit"
        )
    _check_time(certificate, where, "the authority's certificate", "the coordinator for help", now)


def check_server(content: bytes, authority: bytes, host: str, where: str, now: datetime) -> None:
    """Raise unless a server's certificate is signed by the authority, for a host, and valid now.

    Args:
        content: The certificate, PEM.
        authority: The authority's, PEM.
        host: Name or address that a site connects to.
        where: File, for messages.
        now: Aware of its time zone.

    Raises:
        IdentityError: Saying what is wrong with it.
    """
    certificate = parse_certificate(content, where, "the server")
    issuer = parse_certificate(authority, where, "the authority")
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        raise IdentityError(
            f"{where}: was not signed by this consortium's authority; it belongs to another "
            "consortium, or a proxy on the way replaces certificates; expected the one that "
            "`consilia server init` or `renew` made"
        ) from None
    renew = "make a new one with `consilia server renew`"
    _check_time(certificate, where, "the server's certificate", renew, now)
    names = names_of(content, where)
    if host not in names:
        raise IdentityError(
            f"{where}: is for {', '.join(names) or 'no host'}, expected {host}; "
            f"{renew} --host {host}"
        )


def names_of(content: bytes, where: str) -> list[str]:
    """Return the hosts that a server's certificate is for."""
    certificate = parse_certificate(content, where, "the server")
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [str(name.value) for name in found]


def issuer_of(content: bytes, where: str) -> tuple[str, str]:
    """Return the common name and the organization that signed a certificate; empty if not said."""
    issuer = parse_certificate(content, where, "the server").issuer
    parts = (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME)
    said = [issuer.get_attributes_for_oid(part) for part in parts]
    common, organization = (str(found[0].value) if found else "" for found in said)
    return common, organization


def trusting(authority: bytes) -> ssl.SSLContext:
    """Return how a site connects: TLS 1.2 or newer, trusting one authority and no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=authority.decode("ascii"))
    return context


def _check_time(
    certificate: x509.Certificate, where: str, what: str, do: str, now: datetime
) -> None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if begin <= now <= end:
        return
    word = "expired on" if now > end else "counts only from"
    day = end if now > end else begin
    ask = do if do.startswith("make") else f"ask {do}"
    raise IdentityError(
        f"{where}: {what} {word} {day:%Y-%m-%d %H:%M} UTC, and this machine's clock says "
        f"{now.astimezone(UTC):%Y-%m-%d %H:%M} UTC; if the clock is right, {ask}"
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    now: datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _named(common: str, organization: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common[:64]),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization[:64]),
        ]
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _public_pem(key: object) -> bytes:
    assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101 - see load_certified
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
