"""The command's first minute: help is quick and loads nothing heavy."""

import subprocess
import sys
import time


def test_help_loads_neither_torch_nor_flower():
    code = (
        "import sys; sys.argv=['consilia', '--help']\n"
        "from simulations.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'flwr', 'transformers', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_help_answers_in_well_under_a_second_of_work():
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "simulations.cli", "--help"], capture_output=True, check=True
    )
    assert time.perf_counter() - start < 5  # wall time on a busy machine; alone it is 0.2


def test_every_command_explains_itself():
    for command in (
        ["simulate"],
        ["compare"],
        ["report"],
        ["runs"],
        ["export"],
        ["audit"],
        ["data", "check"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "simulations.cli", *command, "--help"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "Usage" in done.stdout


def test_a_command_that_is_stopped_while_sites_train_ends_at_once():
    script = (
        "import atexit, threading, time\n"
        "from shared.errors import InterruptedRunError\n"
        "from simulations import cli\n"
        "def stopped(**_):\n"
        "    raise InterruptedRunError('go on with --resume')\n"
        "cli.app = stopped\n"
        "atexit.register(print, 'Python ended')\n"
        "threading.Thread(target=time.sleep, args=(60,), name='sites-0', daemon=True).start()\n"
        "cli.command()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "consilia: stopped: go on with --resume\n"
