"""How many floating-point operations a LoRA step needs, and how many the machine can do.

Operations are counted by torch on the plain peft model, so nothing that an engine does in vain
counts for it: captions as long as they are, gradients of activations and factors, none of the
frozen weights. What the last layer computes for positions that nobody pools is subtracted.
"""

import time
from pathlib import Path
from typing import Any, Final

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.fit import ATTENTION
from benchmarks.geometry import Geometry, Tower
from benchmarks.plain import load_clip, with_lora

RANK: Final = 8
CPU_SIZES: Final = (512, 1024, 2048, 4096)
GPU_SIZES: Final = (4096, 8192, 16384)
"""Rows of the square matrices that are tried for the peak."""
_PAIRS: Final = 2
_PROBE_SECONDS: Final = 0.1


def step_flops(base: Path, geometry: Geometry, tokens: int) -> float:
    """Return the operations per pair of a training step with LoRA on the q and v projections.

    Args:
        base: A checkpoint of the geometry.
        geometry: For the last layer's share.
        tokens: Length of a caption.
    """
    patches = (geometry.picture // geometry.patch) ** 2 + 1
    spared = _unpooled(geometry.vision, patches) + _unpooled(geometry.text, tokens)
    return _plain_flops(base, geometry, tokens) - spared


def _plain_flops(base: Path, geometry: Geometry, tokens: int) -> float:
    """Count one step of the plain model, per pair."""
    # Eager attention: the fused kernels of some devices are not in torch's table.
    model = load_clip(base, torch.float32, attention="eager")
    text: Any = model.config.text_config
    ids = torch.full((_PAIRS, tokens), 5)
    ids[:, -1] = int(text.eos_token_id)
    pixels = torch.zeros(_PAIRS, 3, geometry.picture, geometry.picture)
    adapted = with_lora(model, ATTENTION)
    with FlopCounterMode(display=False) as counter:
        adapted(pixel_values=pixels, input_ids=ids, return_loss=True).loss.backward()
    return float(counter.get_total_flops()) / _PAIRS


def _unpooled(tower: Tower, positions: int) -> float:
    """Return what the last layer spends on all positions but the pooled one, per sample.

    Query, output projection and MLP, forward and backward to their inputs; attention's two
    products forward and four backward; the query's low-rank products, two and four.
    """
    width, rest = tower.width, positions - 1
    frozen = 2 * 2 * rest * (2 * width**2 + 2 * width * 4 * width)
    attention = 3 * 2 * 2 * rest * positions * width
    low_rank = 3 * 2 * 2 * rest * width * RANK
    return float(frozen + attention + low_rank)


class MatrixPeak:
    """The fastest product of two square matrices on this machine, as an arm to be timed.

    Attributes:
        name: Of the arm.
        size: Rows and columns of the matrices.
        times: Products of one ``run``.
    """

    def __init__(self, dtype: torch.dtype, threads: int, device: str = "cpu") -> None:
        """Choose the size that is multiplied fastest.

        Args:
            dtype: Of the matrices.
            threads: Of torch.
            device: Where to multiply.
        """
        self.name = f"matrix product, {str(dtype).removeprefix('torch.')}"
        sizes = CPU_SIZES if device == "cpu" else GPU_SIZES
        self._device = device
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        speeds = {size: self._try(size, dtype) for size in sizes}
        torch.set_num_threads(before)
        self.size = max(speeds, key=lambda size: speeds[size])
        self.times = max(1, round(_PROBE_SECONDS * speeds[self.size] / (2 * self.size**3)))
        self._matrix = torch.rand(self.size, self.size, device=device).to(dtype)
        self._out = torch.empty_like(self._matrix)

    @property
    def flops(self) -> float:
        """Operations of one ``run``."""
        return 2.0 * self.size**3 * self.times

    def run(self) -> None:
        """Multiply for about a tenth of a second."""
        for _ in range(self.times):
            torch.mm(self._matrix, self._matrix, out=self._out)

    def _try(self, size: int, dtype: torch.dtype) -> float:
        matrix = torch.rand(size, size, device=self._device).to(dtype)
        out = torch.empty_like(matrix)
        best = 0.0
        for _ in range(3):
            begun = time.perf_counter()
            torch.mm(matrix, matrix, out=out)
            if self._device != "cpu":
                torch.cuda.synchronize()
            best = max(best, 2.0 * size**3 / (time.perf_counter() - begun))
        return best
