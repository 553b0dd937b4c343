"""All updates of a round at once, for rules that must compare sites or multiply their factors.

A plain mean needs only a running sum (``linear``). Here every update stays in memory, so memory
grows with the cohort, and secure aggregation, which shows the server nothing but sums, is out of
the question. Sites are taken in order of their names: the order of arrival changes no bit.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from server.aggregation.linear import check_alike
from server.aggregation.lowrank import Matrix
from shared.adapter import (
    TOWERS,
    AdapterLayout,
    AdapterUpdate,
    Array,
    LayerShape,
    SharedAdapter,
    Tower,
    factor_name,
)
from shared.errors import QuorumError


@dataclass(frozen=True)
class Gathered:
    """The updates of a round.

    Attributes:
        layout: Which layers carry an adapter.
        updates: In order of the sites' names.
    """

    layout: AdapterLayout
    updates: tuple[AdapterUpdate, ...]

    @classmethod
    def of(cls, layout: AdapterLayout, updates: Iterable[AdapterUpdate]) -> "Gathered":
        """Take all updates in.

        Raises:
            AdapterMismatchError: If an update has another scale or shape than the others.
        """
        ordered = tuple(sorted(updates, key=lambda update: update.site))
        for update in ordered:
            check_alike(layout, update, ordered[0].scale)
        return cls(layout, ordered)

    def towers(self) -> list[Tower]:
        """Return the towers that a site trained."""
        return [t for t in TOWERS if any(t in update.weights for update in self.updates)]

    def of_tower(self, tower: Tower) -> list[AdapterUpdate]:
        """Return the updates of the sites that trained a tower."""
        return [update for update in self.updates if tower in update.weights]

    def shares(self, tower: Tower) -> Matrix:
        """Return what each site of a tower weighs, (k,); together one."""
        weights = np.array([u.weights[tower] for u in self.of_tower(tower)], np.float64)
        shares: Matrix = weights / weights.sum()
        return shares

    def names(self, tower: Tower) -> list[str]:
        """Return the factors of a tower that were trained."""
        return [n for n in self.of_tower(tower)[0].delta if self.layout.tower_of(n) == tower]

    def changes(self, name: str) -> Matrix:
        """Return the changes of one factor, (k, *shape), of the sites of its tower."""
        tower = self.layout.tower_of(name)
        updates = self.of_tower(tower)
        changes = np.empty((len(updates), *self.layout.shape_of(name)))
        for change, update in zip(changes, updates, strict=True):
            steps = update.delta[name].view(np.int32)
            np.multiply(steps, 1 / (update.scale * update.weights[tower]), out=change)
        return changes

    def stack(self, shared: SharedAdapter, layer: LayerShape) -> tuple[Matrix, Matrix]:
        """Return the exact mean of the sites' products as stacked factors.

        Args:
            shared: The adapter that the sites trained.
            layer: Of a tower that was trained.

        Returns:
            ``[p_1 B_1 ... p_K B_K]``, (m, K r), and ``[A_1; ...; A_K]``, (K r, n).
        """
        b, a = (factor_name(layer.module, factor) for factor in ("B", "A"))
        of_b, of_a = self.changes(b), self.changes(a)
        of_b += shared.factors[b]
        of_a += shared.factors[a]
        for own, update in zip(of_b, self.of_tower(layer.tower), strict=True):
            if update.rank is not None:
                own[:, update.rank :] = 0.0  # the site had no such columns
        of_b *= self.shares(layer.tower)[:, None, None]
        left = np.ascontiguousarray(of_b.transpose(1, 0, 2)).reshape(layer.outputs, -1)
        return left, of_a.reshape(-1, layer.inputs)

    def square_distances(self, tower: Tower) -> Matrix:
        """Return the squared distances between the changes of a tower's sites, (k, k)."""
        count = len(self.of_tower(tower))
        gram = np.zeros((count, count))
        for name in self.names(tower):
            changes = self.changes(name).reshape(count, -1)
            # Around their mean, so that little cancels between large squares.
            changes -= changes.mean(axis=0)
            gram += changes @ changes.T
        squares = np.diagonal(gram)
        distances: Matrix = np.maximum(squares[:, None] + squares - 2 * gram, 0.0)
        np.fill_diagonal(distances, 0.0)
        return distances

    def norms(self, tower: Tower) -> Matrix:
        """Return the L2 norm of the change of each site of a tower, (k,)."""
        squares = np.zeros(len(self.of_tower(tower)))
        for name in self.names(tower):
            squares += np.square(self.changes(name)).sum(axis=(1, 2))
        norms: Matrix = np.sqrt(squares)
        return norms

    def combination(self, tower: Tower, coefficients: Matrix) -> dict[str, Array]:
        """Return ``sum c_k D_k`` of every factor of a tower, for its sites' changes D_k."""
        return {
            name: np.tensordot(coefficients, self.changes(name), axes=1).astype(np.float32)
            for name in self.names(tower)
        }

    def require(self, rule: str, least: int) -> None:
        """Raise if too few sites trained a tower for what a rule promises.

        Raises:
            QuorumError: Saying how many there are, and what to do.
        """
        for tower in self.towers():
            count = len(self.of_tower(tower))
            if count < least:
                raise QuorumError(
                    f"{tower} tower: {count} sites contributed, aggregate.combine = '{rule}' "
                    f"needs at least {least}; lower aggregate.hostile, let more sites take part, "
                    "or use 'geometric-median'"
                )
