"""The gate before the clock: the engine and the plain loop learn the same numbers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from benchmarks.engine import EngineLoop, benchmark_job, random_start
from benchmarks.fit import LocalFit
from benchmarks.geometry import Geometry
from benchmarks.plain import PlainLoop, PlainRecords, State
from benchmarks.records import random_sites
from benchmarks.schema import Gate
from client.data.records import SiteData
from shared.adapter import Adapter, Array

LIMIT = 1e-4
"""Of a factor's element after four AdamW steps in float32; one in 10,000 may be further off.

AdamW divides a gradient by its own size, so where the gradient vanishes an element moves as
rounding decides, and no two programs agree on that.
"""

RELATIVE_LIMIT = 2e-3
"""Of the whole change, L2 norm of the difference over that of the change."""

_QUANTILE = 0.9999
_STEPS = 4
_SITES = 2


def agreement(
    base: Path, geometry: Geometry, targets: Sequence[str], batch_size: int, device: str = "cpu"
) -> list[Gate]:
    """Train two sites both ways, from the same random adapter, in float32.

    A site has as many pairs as a batch, so that both draw the same batches in any order.
    """
    fit = LocalFit(batch_size, _STEPS)
    engine = EngineLoop.load(benchmark_job(base, fit, targets), device)
    plain = PlainLoop(base, targets, device=device)
    sites = random_sites(geometry, _SITES, batch_size)
    start = random_start(engine.encoder.layout, largest=0.05)
    ours = engine.train_round(sites, start)
    theirs = plain.train_round(plain_records(plain, sites), as_state(start.factors), fit)
    words = f"engine and plain loop after {_STEPS} steps in fp32"
    ends = [(one.factors, as_arrays(other)) for one, other in zip(ours, theirs, strict=True)]
    return compare(words, start.factors, ends)


def compare(words: str, start: Adapter, ends: Sequence[tuple[Adapter, Adapter]]) -> list[Gate]:
    """Return the gates between pairs of adapters that were trained from one start.

    Args:
        words: What is compared.
        start: Where all of them began.
        ends: Where the two sides arrived, site by site.
    """
    before = flat(start)
    off = np.abs(np.concatenate([flat(one) - flat(other) for one, other in ends]))
    moved = np.concatenate([flat(other) - before for _, other in ends])
    share = float(np.linalg.norm(off) / np.linalg.norm(moved))
    return [
        _gate(f"{words}, difference of factors", float(np.quantile(off, _QUANTILE)), LIMIT),
        _gate(f"{words}, relative difference of the change", share, RELATIVE_LIMIT),
    ]


def _gate(name: str, value: float, limit: float) -> Gate:
    return Gate(name=name, value=value, limit=limit, passed=bool(value <= limit))


def flat(adapter: Adapter) -> Array:
    """Return all factors one after the other, in the order of their names."""
    return np.concatenate([adapter[name].ravel() for name in sorted(adapter)])


def plain_records(loop: PlainLoop, sites: Sequence[SiteData]) -> list[PlainRecords]:
    """Return the training pairs of some sites as the plain loop takes them."""
    return [
        loop.prepare([PIL.Image.fromarray(p) for p in train.pixels], train.texts)
        for train in (data.splits["train"] for data in sites)
    ]


def as_state(adapter: Adapter) -> State:
    """Return an adapter as tensors by PEFT's name."""
    return {name: torch.from_numpy(np.array(array)) for name, array in adapter.items()}


def as_arrays(state: State) -> dict[str, Array]:
    """Return a state of peft as arrays."""
    return {name: value.float().cpu().numpy() for name, value in state.items()}
