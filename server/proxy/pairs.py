"""The public paired set that the server holds; NumPy only."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.config import LEAST_PROXY_PAIRS
from shared.errors import DataError

Rows = NDArray[np.intp]

_LEAST_TEXTS = 2


@dataclass(frozen=True)
class ProxyPairs:
    """Images with their texts; row i of everything is one pair.

    Attributes:
        pixels: (n, height, width, channels) uint8 at the encoder's size.
        texts: n strings.
        patients: (n,) int64; pairs of one patient stay together.
    """

    pixels: NDArray[np.uint8]
    texts: tuple[str, ...]
    patients: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.texts)

    def sha256(self) -> str:
        """Return the digest of all pairs."""
        digest = hashlib.sha256(repr((self.texts, self.pixels.shape)).encode())
        for array in (self.pixels, self.patients):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def divided(self, held_out: float, seed: int) -> tuple[Rows, Rows]:
        """Return the rows to distil on and those held out, whole patients in random order.

        Args:
            held_out: Share of the pairs that is held out.
            seed: Decides which.

        Raises:
            DataError: If either part is too small to say anything.
        """
        held = np.zeros(len(self), dtype=np.bool_)
        for patient in np.random.default_rng(seed).permutation(np.unique(self.patients)):
            if held.sum() >= held_out * len(self):
                break
            held |= self.patients == patient
        parts = np.flatnonzero(~held), np.flatnonzero(held)
        for rows, purpose in zip(parts, ("distil on", "validate on"), strict=True):
            if len(rows) < LEAST_PROXY_PAIRS:
                raise DataError(
                    f"proxy set: {len(self)} pairs leave {len(rows)} to {purpose}, expected at "
                    f"least {LEAST_PROXY_PAIRS}; add pairs, or change proxy.held_out"
                )
            if len({self.texts[row] for row in rows}) < _LEAST_TEXTS:
                raise DataError(
                    f"proxy set: all {len(rows)} pairs to {purpose} have the same text, so that "
                    "no pair can be told from another; add pairs with other texts"
                )
        return parts
