"""A small random checkpoint of the benchmarks' own, and a session that prints nowhere."""

import io
import os

import pytest
import torch
from rich.console import Console

from benchmarks.geometry import SMOKE, temporary_base
from benchmarks.session import Session


@pytest.fixture(scope="session")
def base():
    with temporary_base(SMOKE) as folder:
        yield folder


@pytest.fixture
def session_of():
    def make(name="smoke", repeats=1):
        return Session(name, "A benchmark", repeats, Console(file=io.StringIO(), width=100))

    return make


@pytest.fixture(autouse=True)
def one_core(monkeypatch):
    """Tests never time anything, so one core is enough; settings of torch are put back."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
