"""A PostgreSQL of the tests' own: this machine's programs, a folder in /tmp, a port of loopback.

It does not serve root, so as root it runs as another user. Loaded as a plugin by the top conftest.
"""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from shared.processes import die_with_parent, free_port

USER, PASSWORD, DATABASE = "consilia", "planted-Secret-77", "history"
_USERS = ("postgres", "nobody")
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",  # against a power cut; what a kill does it survives without
    "shared_buffers": "16MB",
    "max_connections": "30",
    "log_statement": "all",
}


def find_program(name):
    """Return the path of one of PostgreSQL's programs; Debian keeps them off the PATH."""
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = shutil.which(name) or (str(installed[-1]) if installed else None)
    assert found, f"{name} is not installed; scripts/setup-postgres installs it"
    return found


def _other_user():
    """Return how to start a program as somebody else than root; nothing if we are not root."""
    if os.geteuid() != 0:
        return {}
    for name in _USERS:
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise AssertionError(f"none of the users {_USERS} exists")


@dataclass
class Postgres:
    """A server that may be killed and started again; one test at a time uses its database."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen | None = None
    # The server dies with the thread that started it, so this one lives as long as the tests do.
    starter: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, 1))

    @classmethod
    def make(cls):
        folder = Path(tempfile.mkdtemp(prefix="consilia-postgres-"))
        other = _other_user()
        if other:
            os.chown(folder, other["user"], other["group"])
        secret = folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        how = ["--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync", "-E", "UTF8"]
        command = [find_program("initdb"), "-D", str(folder / "data"), "-U", USER, *how]
        subprocess.run(command, check=True, capture_output=True, cwd=folder, **other)
        return cls(folder)

    @property
    def log(self):
        return self.folder / "log"

    def start(self):
        settings = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
        command = [find_program("postgres"), "-D", str(self.folder / "data"), "-p", str(self.port)]
        end = time.monotonic() + 30
        while True:
            with self.log.open("ab") as log:
                starting = self.starter.submit(
                    subprocess.Popen,
                    [*command, *settings],
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    preexec_fn=die_with_parent,
                    **_other_user(),
                )
                self.process = starting.result()
            # A killed one's memory may not be free yet; then this one ends at once.
            while self.process.poll() is None:
                with contextlib.suppress(Exception):
                    self.run("SELECT 1", "postgres")
                    return
                assert time.monotonic() < end, self.log.read_text()[-2000:]
                time.sleep(0.05)
            assert time.monotonic() < end, self.log.read_text()[-2000:]
            time.sleep(0.1)

    def stop(self):
        """End it at once, as an administrator does: connections are closed, nothing is lost."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)

    def kill(self):
        """End it as a crash does, with all that it started."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        pids = [self.process.pid, *map(int, children.read_text().split())]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def restart(self):
        self.kill()
        self.start()

    def run(self, statement, database):
        """Carry out one statement; return its rows, if it has any."""
        import psycopg

        with psycopg.connect(self.url(database, driver=""), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def url(self, database, driver="+psycopg", port=None, password=PASSWORD):
        return f"postgresql{driver}://{USER}:{password}@127.0.0.1:{port or self.port}/{database}"

    def database(self):
        """Empty the one database, end whoever is still in it, and return its name."""
        if (DATABASE,) not in self.run("SELECT datname FROM pg_database", "postgres"):
            self.run(f"CREATE DATABASE {DATABASE}", "postgres")
        self.run(f"ALTER DATABASE {DATABASE} RESET ALL", "postgres")
        self.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
            DATABASE,
        )
        self.run("DROP SCHEMA public CASCADE; CREATE SCHEMA public", DATABASE)
        return DATABASE

    def remove(self):
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self.starter.shutdown()
        shutil.rmtree(self.folder)


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL for all tests; one that stops it starts it again."""
    server = Postgres.make()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def history_url(request, tmp_path):
    """An empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'deep' / 'history.sqlite'}"
    server = request.getfixturevalue("postgres")
    return server.url(server.database())
