"""What the round loop knows of distillation at the server; no torch in here."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from shared.adapter import AdapterUpdate, Factor, SharedAdapter
from shared.results import ProxyStep


@dataclass(frozen=True)
class RoundUpdates:
    """What a round brought, for who must see every site's adapter.

    Attributes:
        round: The round's number.
        received: The adapter that the sites trained.
        factors: Which factors they trained.
        updates: Admitted updates, in the order of the sites' names once ``keep`` is through.
    """

    round: int
    received: SharedAdapter
    factors: Sequence[Factor]
    updates: list[AdapterUpdate] = field(default_factory=list)

    def keep(self, updates: Iterable[AdapterUpdate]) -> Iterator[AdapterUpdate]:
        """Yield the updates unchanged, and hold on to all: memory grows with the cohort."""
        for update in updates:
            self.updates.append(update)
            yield update
        self.updates.sort(key=lambda update: update.site)  # the order of arrival changes no bit


class Distiller(Protocol):
    """Improves the aggregated adapter on a public set; the same arguments give the same bits."""

    def distil(
        self, aggregated: SharedAdapter, came: RoundUpdates
    ) -> tuple[SharedAdapter, ProxyStep]:
        """Return the adapter that the round ends with, and what came of the attempt."""
        ...
