"""What every rule that turns the sites' changes into one adapter has in common."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np

from server.aggregation.optimizers import ServerOptimizer
from shared.adapter import (
    AdapterLayout,
    AdapterUpdate,
    Array,
    Factor,
    LayerShape,
    SharedAdapter,
    factor_name,
)
from shared.ranks import filled
from shared.seeding import derive_seed


class Aggregator(Protocol):
    """A rule. Rounds count from 1; all methods are pure functions of their arguments.

    What most rules do is written out here; a rule inherits it, and says where it differs.
    """

    def start(self, layout: AdapterLayout, seed: int) -> SharedAdapter:
        """Return the adapter before the first round; its product is zero."""
        return start(layout, seed)

    def open_round(
        self,
        shared: SharedAdapter,
        layout: AdapterLayout,  # noqa: ARG002 - rules that fold or turn the adapter need it
        round_number: int,  # noqa: ARG002
        seed: int,  # noqa: ARG002
    ) -> SharedAdapter:
        """Return the adapter in the form in which the sites shall train it: as it is.

        The function it computes on the base is the same, to float32.
        """
        return shared

    def trains(self, round_number: int) -> tuple[Factor, ...]:  # noqa: ARG002
        """Return the factors that the sites train in a round: both."""
        return ("A", "B")

    def for_rank(self, shared: SharedAdapter, rank: int) -> SharedAdapter:  # noqa: ARG002
        """Return what a site is sent that trains fewer columns than the run has: all of it.

        The columns that it does not train stay in its model as they are, so that its function is
        everybody's.
        """
        return shared

    @abstractmethod
    def aggregate(
        self, shared: SharedAdapter, layout: AdapterLayout, updates: Iterable[AdapterUpdate]
    ) -> SharedAdapter:
        """Return the adapter after a round.

        Args:
            shared: What ``open_round`` returned and the sites trained.
            layout: Which layers carry an adapter.
            updates: Admitted updates, in any order; each is dropped once it is used.
        """
        ...


class Combiner(Protocol):
    """Makes one change of the sites' changes, factor by factor; a pure function."""

    def __call__(self, layout: AdapterLayout, updates: Iterable[AdapterUpdate]) -> dict[str, Array]:
        """Return one change per factor; towers that no site trained are absent."""
        ...


def whole(update: AdapterUpdate, layout: AdapterLayout, sent_rank: int | None) -> AdapterUpdate:
    """Return an update of a site's own rank as one of the layout's: what is missing is zero.

    Args:
        update: Admitted.
        layout: Of the run.
        sent_rank: Columns that the site was sent, if not all of them.
    """
    delta = filled(update.delta, layout)
    if delta is update.delta and sent_rank is None:
        return update
    return replace(update, delta=delta, rank=sent_rank)


def add_change(
    shared: SharedAdapter,
    change: Mapping[str, Array],
    learning_rate: float,
    optimizer: ServerOptimizer | None = None,
) -> SharedAdapter:
    """Return the adapter with ``learning_rate`` times a change, or an optimizer's step, added.

    Factors that the change does not name keep every bit.
    """
    state = shared.state
    if optimizer is not None:
        change, state = optimizer.step(change, state)
    factors = dict(shared.factors)
    for name, values in change.items():
        step = values if learning_rate == 1.0 else np.float32(learning_rate) * values
        factors[name] = factors[name] + step
    return SharedAdapter(factors, shared.residual, shared.folds, state)


def start(layout: AdapterLayout, seed: int) -> SharedAdapter:
    """Return A with orthonormal rows by seed, and B = 0."""
    factors: dict[str, Array] = {}
    for layer in layout.layers:
        factors |= fresh_factors(layout, layer, derive_seed(seed, "lora-A", 0, layer.module))
    return SharedAdapter(factors)


def fresh_factors(layout: AdapterLayout, layer: LayerShape, seed: int) -> dict[str, Array]:
    """Return factors of one layer whose product is zero and whose A has norm one."""
    return {
        factor_name(layer.module, "A"): orthonormal_rows(layout.rank, layer.inputs, seed),
        factor_name(layer.module, "B"): np.zeros((layer.outputs, layout.rank), np.float32),
    }


def orthonormal_rows(rank: int, inputs: int, seed: int) -> Array:
    """Return a random matrix of shape (rank, inputs) with orthonormal rows.

    Rows beyond ``inputs`` are zero: a product with ``inputs`` columns needs no more.
    """
    columns = min(rank, inputs)
    gaussian = np.random.default_rng(seed).standard_normal((inputs, columns))
    q, r = np.linalg.qr(gaussian)
    q *= np.where(np.diagonal(r) < 0, -1.0, 1.0)  # makes the decomposition unique
    rows = np.zeros((rank, inputs), np.float32)
    rows[:columns] = q.T
    return rows
