"""A run starts quickly: what it does not need is not loaded, and loading is not disturbed."""

import json
import subprocess
import sys

SLOW = ("torch._dynamo", "torch._inductor", "torch.distributed.tensor", "sympy", "transformers")
"""Up to half a second each; transformers loads some of the others, when a base is loaded."""

RARE = ("accelerate", "pandas", "peft", "pyarrow", "pydicom", "ray", "sklearn", "flwr.simulation")
"""Needed by some runs, by none for its start."""


def loaded_by(code: str) -> set[str]:
    """Return the modules that a new process has loaded after some code."""
    code = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_a_run_is_settled_before_anything_slow_but_torch_is_loaded():
    modules = loaded_by(
        "from simulations.simulate import default_job\n"
        "from simulations.machine import settle\n"
        "from shared.config import load_job\n"
        "settle(load_job(default_job(), {}))\n"
        "import torch\n"
        "assert torch.are_deterministic_algorithms_enabled()\n"
        "assert torch.is_deterministic_algorithms_warn_only_enabled()"
    )
    assert "torch" in modules
    assert not modules & {*SLOW, *RARE}


def test_the_command_begins_without_torch_and_starts_loading_undisturbed():
    modules = loaded_by("import simulations.cli, simulations.startup")
    assert not modules & {"torch", "numpy", "pydantic", "rich.console", *SLOW, *RARE}


def test_no_garbage_is_collected_while_loading_and_what_is_loaded_is_never_looked_at_again():
    code = (
        "import gc\n"
        "from simulations.startup import loading\n"
        "passes = lambda: sum(generation['collections'] for generation in gc.get_stats())\n"
        "before = passes()\n"
        "with loading():\n"
        "    import simulations.simulate\n"
        "    assert passes() == before\n"
        "    assert not gc.isenabled()\n"
        "assert gc.isenabled()\n"
        "assert gc.get_freeze_count() > 100_000\n"
        "try:\n"
        "    with loading():\n"
        "        raise ValueError\n"
        "except ValueError:\n"
        "    assert gc.isenabled()\n"
        "gc.disable()\n"
        "with loading():\n"
        "    pass\n"
        "assert not gc.isenabled()\n"
    )
    loaded_by(code)


def test_only_the_first_base_of_a_process_is_frozen():
    code = (
        "import gc\n"
        "from shared.config import load_job\n"
        "from simulations.machine import encoder_for\n"
        "from simulations.simulate import default_job\n"
        "job = load_job(default_job(), {})\n"
        "encoder_for(job, 'cpu')\n"
        "frozen = gc.get_freeze_count()\n"
        "assert frozen > 100_000\n"
        "other = job.model_copy(update={'lora': job.lora.model_copy(update={'rank': 2})})\n"
        "encoder_for(other, 'cpu')\n"
        "assert 0.9 * frozen < gc.get_freeze_count() <= frozen\n"
    )
    assert not loaded_by(code) & {"peft", "pandas", "pyarrow", "sklearn", "ray"}
