"""Threads that wait for numerical work, and are given back before another thread works."""

import sys
from pathlib import Path

import pytest
import torch

from client.compute import _gnu_openmp, give_threads_back

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not _gnu_openmp(), reason="torch does not use GNU's OpenMP here"
)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    give_threads_back()
    yield
    torch.set_num_threads(before)


def running():
    return len(list(Path("/proc/self/task").iterdir()))


def work():
    return (torch.arange(1_000_000, dtype=torch.float32) / 3).sin().sum()


@pytest.mark.usefixtures("two_threads")
def test_threads_that_are_given_back_have_ended_and_come_again():
    idle = running()
    before = work()
    assert running() == idle + 1
    give_threads_back()
    assert running() == idle
    assert torch.get_num_threads() == 2, "bits of a result depend on it"
    assert torch.equal(work(), before)
    assert running() == idle + 1
    give_threads_back()
