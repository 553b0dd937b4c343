"""A gateway on loopback that shows any certificate, and a site that joined its consortium."""

import csv
import json
import socket
import ssl
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from PIL import Image

from client.provisioning.joining import begin, join
from server.provisioning.admission import admit
from server.provisioning.founding import found
from shared.security.certificates import Certified, new_authority, new_server

NOW = datetime.now(UTC)
LONG_AGO = NOW - timedelta(days=500)
SITE = """
name = "north"
state = "state"
base = "{base}"
device = "cpu"
[data]
table = "data/metadata.csv"
"""
POLICY = """
purpose = "Retrieval of chest films"
expires = {expires}
coordinators = ["any"]
base_sha256 = ["any"]
requests = ["any"]
rules = ["altfold", "fedavg"]
personalization = ["any"]
targets = ["any"]
metrics = ["auroc"]
minimum_patients = 10
minimum_cohort = 1
max_rank = 16
"""
JOB = """
name = "small"
rounds = 4
[model]
base = "{base}"
precision = "float32"
[lora]
rank = 4
alpha = 8
[train]
steps = 4
batch_size = 16
shift_pixels = 1
[personalize]
rank = 4
steps = 6
"""


def foreign_authority(common, organization):
    """The authority of a proxy that opens TLS."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
        ]
    )
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name)
    builder = builder.public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(LONG_AGO).not_valid_after(NOW + timedelta(days=500))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Certified(pem, builder.sign(key, SHA256()).public_bytes(Encoding.PEM))


@dataclass
class Gateway:
    """Answers everything with one status and date; remembers what it was asked."""

    status: int = 200
    ahead: timedelta = timedelta(0)
    tls: ssl.SSLContext | None = None
    asked: list[bytes] = field(default_factory=list)

    def __post_init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.run, daemon=True).start()

    def show(self, folder, certified):
        """Show a certificate from now on."""
        (folder / "key").write_bytes(certified.key)
        (folder / "crt").write_bytes(certified.certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "crt", folder / "key")
        self.tls = context

    def run(self):
        with suppress(OSError):
            while True:
                plain, _ = self.listener.accept()
                with suppress(OSError):
                    self.answer(plain)
                plain.close()

    def answer(self, plain):
        plain.settimeout(5)
        link = self.tls.wrap_socket(plain, server_side=True) if self.tls else plain
        self.asked.append(link.recv(65536))
        date = format_datetime(datetime.now(UTC) + self.ahead, usegmt=True)
        head = f"HTTP/1.1 {self.status} X\r\nDate: {date}\r\nContent-Length: 0\r\n\r\n"
        link.sendall(head.encode())
        link.close()


@pytest.fixture(autouse=True)
def dumps(monkeypatch):
    """The limit would hold for the tests that follow as well."""
    monkeypatch.setattr("client.check.command.forbid_dumps", lambda: None)


@pytest.fixture
def gateway(monkeypatch):
    for name in ("https_proxy", "all_proxy", "no_proxy", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    gateway = Gateway()
    yield gateway
    gateway.listener.close()


@contextmanager
def connect_proxy(gateway, status=200):
    """A proxy that leads to the gateway, or to nothing."""
    listener = socket.create_server(("127.0.0.1", 0))
    heads = []

    def pump(source, sink):
        with suppress(OSError):
            while piece := source.recv(65536):
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)

    def run():
        with suppress(OSError):
            while True:
                plain, _ = listener.accept()
                heads.append(plain.recv(65536))
                plain.sendall(f"HTTP/1.1 {status} Said\r\n\r\n".encode())
                if status == 200:
                    there = socket.create_connection(("127.0.0.1", gateway.port))
                    for pair in ((plain, there), (there, plain)):
                        threading.Thread(target=pump, args=pair, daemon=True).start()
                else:
                    plain.close()

    threading.Thread(target=run, daemon=True).start()
    try:
        yield listener.getsockname()[1], heads
    finally:
        listener.close()


def write_records(folder, data):
    """Write records as a site folder."""
    folder.mkdir(parents=True)
    with (folder / "metadata.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["file_name", "text", "labels", "patient_id", "split"])
        for name, split in data.splits.items():
            for row in range(len(split)):
                Image.fromarray(split.pixels[row][..., 0]).save(folder / f"film-{name}-{row}.png")
                labels = split.labels[row]
                present = [f for f, on in zip(data.findings, labels, strict=True) if on]
                person = f"person-{name}-{row}"
                cells = (f"film-{name}-{row}.png", split.texts[row], ";".join(present) or "none")
                writer.writerow([*cells, person, name])
    prompts = {
        finding: {"positive": list(each.positive), "negative": list(each.negative)}
        for finding, each in data.prompts.items()
    }
    (folder / "prompts.json").write_text(json.dumps(prompts))
    (folder / "dataset.json").write_text('{"origin": "phantom"}')


@dataclass
class SiteLab:
    """A site's folder, its consortium's, and the gateway's port."""

    home: object
    folder: object
    gateway: Gateway

    @property
    def config(self):
        return self.home / "site.toml"

    @property
    def job(self):
        return self.home.parent / "job.toml"

    def policy(self, **keys):
        text = POLICY.format(expires='"never"')
        lines = [line for line in text.splitlines() if line.split(" ")[0] not in keys]
        lines += [f"{key} = {value}" for key, value in keys.items()]
        (self.home / "policy.toml").write_text("\n".join(lines) + "\n")

    def site(self, **keys):
        text = self.config.read_text()
        (self.home / "site.toml").write_text(
            "".join(f"{key} = {value}\n" for key, value in keys.items()) + text
        )

    def write_job(self, base, **replaced):
        text = JOB.format(base=base)
        for old, new in replaced.items():
            text = text.replace(f"{old} = ", f"{old} = {new} # ")
        self.job.write_text(text)


@pytest.fixture
def lab(tmp_path, gateway, clip_folder, site_of):
    """A site that joined, whose gateway answers with the consortium's certificate."""
    home, folder = (
        tmp_path / "site",
        found(tmp_path / "co", "demo", ["localhost"], gateway.port, NOW),
    )
    keys = begin(home, "north", NOW)
    join(home, admit(folder, keys.part, NOW).kit, NOW)
    write_records(home / "data", site_of("north", counts=(24, 12, 12)))
    (home / "site.toml").write_text(SITE.format(base=clip_folder))
    (home / "state").mkdir(mode=0o700)
    lab = SiteLab(home, folder, gateway)
    lab.policy()
    lab.write_job(clip_folder)
    paths = folder.paths
    gateway.show(tmp_path, Certified(paths.server_key.read_bytes(), paths.server.read_bytes()))
    return lab


@pytest.fixture(scope="session")
def authority():
    return new_authority("demo", LONG_AGO)


@pytest.fixture
def server_of(authority):
    """A certificate of the consortium's: for a host, made at a moment."""
    return lambda host="localhost", made=NOW, by=None: new_server(
        by or authority, "demo", [host], made
    )


@pytest.fixture
def foreign():
    return foreign_authority


@pytest.fixture
def proxy_of():
    return connect_proxy
