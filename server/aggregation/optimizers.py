"""Optimizers at the server: the sites' common change is taken for a gradient.

Momentum is FedAvgM (Hsu et al., 2019, https://arxiv.org/abs/1909.06335); Adam and Yogi are
Algorithm 2 of Reddi et al. (2021, https://arxiv.org/abs/2003.00295), without bias correction as
there. Each remembers numbers per coordinate from round to round, so a coordinate must mean the
same in every round: the factors may be neither turned nor folded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from shared.adapter import Adapter, Array

_MEAN, _SQUARE = ".first", ".second"
"""What is remembered of a factor: its running change, and that of its squares."""


class ServerOptimizer(Protocol):
    """Turns changes into steps; a pure function of its arguments."""

    def step(
        self, change: Mapping[str, Array], state: Adapter
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return the step per factor, before the learning rate, and the new state.

        Args:
            change: The sites' common change by factor; factors that are absent keep their state.
            state: What the last step returned; empty before the first.
        """
        ...


@dataclass(frozen=True)
class Momentum:
    """``m = beta m + D``; the step is m.

    Attributes:
        beta: How much of the last step goes on.
    """

    beta: float = 0.9

    def step(
        self, change: Mapping[str, Array], state: Adapter
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return the steps and the new state."""
        steps, after = {}, dict(state)
        for name, values in change.items():
            before = state.get(name + _MEAN, np.float32(0))
            steps[name] = after[name + _MEAN] = np.float32(self.beta) * before + values
        return steps, after


@dataclass(frozen=True)
class Adaptive:
    """``m / (sqrt(v) + tau)``, with running means m of the changes and v of their squares.

    Attributes:
        kind: ``adam``: ``v = beta2 v + (1 - beta2) D^2``; ``yogi``: ``v = v - (1 - beta2) D^2
            sign(v - D^2)``, which moves v by no more than the newest square says.
        beta1: Of m.
        beta2: Of v.
        tau: Keeps small coordinates from large steps; v starts at its square.
    """

    kind: Literal["adam", "yogi"]
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def step(
        self, change: Mapping[str, Array], state: Adapter
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return the steps and the new state."""
        steps, after = {}, dict(state)
        for name, values in change.items():
            # In float64 from what is stored in float32, so that a resumed run has the same bits.
            delta = values.astype(np.float64)
            squares = np.square(delta)
            m = state.get(name + _MEAN, np.zeros_like(values)).astype(np.float64)
            v = state.get(name + _SQUARE, np.full_like(values, self.tau**2)).astype(np.float64)
            m = self.beta1 * m + (1 - self.beta1) * delta
            toward = squares - v if self.kind == "adam" else squares * np.sign(squares - v)
            v = v + (1 - self.beta2) * toward
            steps[name] = (m / (np.sqrt(v) + self.tau)).astype(np.float32)
            after[name + _MEAN] = m.astype(np.float32)
            after[name + _SQUARE] = v.astype(np.float32)
        return steps, after
