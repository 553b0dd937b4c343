"""A consortium of real processes whose history is in a PostgreSQL that is killed under them.

Slow: a minute for each run.
"""

import os
import signal
import time

import pytest

from client.data.sources import find_sites
from tests.integration.lab import Lab, running
from tests.integration.postgres import PASSWORD

pytestmark = pytest.mark.slow

ROUNDS = 3


@pytest.fixture(scope="module")
def lab(make_federation, clip_folder, tmp_path_factory, postgres):
    folder = tmp_path_factory.mktemp("lab")
    federation = make_federation(folder)
    history = {"CONSILIA_HISTORY": postgres.url(postgres.database())}
    lab = Lab(folder, clip_folder, [s.name for s in find_sites(federation.data)], history)
    lab.found(federation.data)
    lab.write_job("base", ROUNDS, 4)
    with running(lab):
        yield lab


def in_round(number):
    return lambda event: (event["kind"], event.get("round")) == ("round-started", number)


def test_a_database_killed_in_a_round_and_back_at_once_costs_no_bit(lab, postgres):
    run = lab.submit(lab.folder / "base.toml")
    lab.wait_for(run, in_round(2))
    postgres.restart()
    end = lab.finish_well(run, 600)
    assert (end["status"], end["adapter_sha256"]) == ("finished", lab.simulated("base"))
    assert [(r.round, r.attempt) for r in lab.rounds(run)] == [(1, 1), (2, 1), (3, 1)]


def test_a_run_waits_for_a_database_that_is_away_for_a_while(lab, postgres):
    """With the ServerApp that was using it killed meanwhile: the watcher waits for it as well."""
    run = lab.submit(lab.folder / "base.toml")
    lab.wait_for(run, in_round(2))
    postgres.kill()
    try:
        for pid in lab.pids("flwr-serverapp", lab.home):
            os.kill(pid, signal.SIGKILL)
        time.sleep(20)
    finally:
        postgres.start()
    end = lab.finish_well(run, 600)
    assert (end["status"], end["adapter_sha256"]) == ("finished", lab.simulated("base"))
    log = (lab.home / "log" / "watch.log").read_text()
    assert "cannot be reached" in log
    assert log.count("cannot be reached") < 5, "what lasts is said once"


def test_no_log_of_any_process_quotes_the_password(lab):
    """The last test: everything there is has been written."""
    read = 0
    for path in lab.folder.rglob("*"):
        if path.is_file() and path.suffix not in (".safetensors", ".png"):
            read += 1
            assert PASSWORD.encode() not in path.read_bytes(), path
    assert read > 20
