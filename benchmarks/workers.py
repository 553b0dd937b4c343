"""One process per core: how a plain loop uses all cores without fighting over threads."""

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection

import torch

from benchmarks.agreement import plain_records
from benchmarks.records import random_site
from benchmarks.timing import Work
from benchmarks.work import RoundWork

_ENDING_SECONDS = 10.0


@contextmanager
def plain_workers(work: RoundWork, processes: int, dtype: torch.dtype) -> Iterator[Work]:
    """Start workers, each with its share of the sites, and yield what does one round."""
    context = multiprocessing.get_context("spawn")
    ends: list[Connection] = []
    started = []
    for number in range(processes):
        here, there = context.Pipe()
        share = range(number, work.sites, processes)
        worker = context.Process(target=_serve, args=(there, work, share, dtype), daemon=True)
        worker.start()
        there.close()  # so that a worker that ends is noticed here
        ends.append(here)
        started.append(worker)
    for end in ends:
        end.recv()  # is ready
    try:
        yield lambda: _round(ends)
    finally:
        for end in ends:
            end.close()
        for worker in started:
            worker.join(_ENDING_SECONDS)


def _round(ends: Sequence[Connection]) -> float:
    for end in ends:
        end.send(True)
    return sum(float(end.recv()) for end in ends)


def _serve(end: Connection, work: RoundWork, share: range, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    loop = work.plain_loop(dtype)
    sites = [random_site(work.geometry, work.pairs, seed) for seed in share]
    clients, start = plain_records(loop, sites), loop.state()
    end.send(True)
    try:
        while end.recv():
            busy = time.process_time()
            loop.train_round(clients, start, work.fit)
            end.send(time.process_time() - busy)
    except EOFError:
        return
