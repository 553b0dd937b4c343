"""What every way to personalize takes and gives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from client.data.records import SiteData
from shared.adapter import Adapter, Array, SharedAdapter, Tower
from shared.config import JobConfig
from shared.errors import TrainingError
from shared.model.encoder import DualEncoder

Alpha = dict[Tower, float]


@dataclass(frozen=True)
class Personalized:
    """A site's own adapter and how much of it to use.

    Attributes:
        adapter: A residual on the shared adapter, by PEFT's name and of any rank; empty if
            there is none.
        alpha: Mixing weight per tower, 0..1.
        validation: Mean validation loss in nats of ``shared``, ``personal`` (alpha 1 in every
            tower) and ``chosen``; empty if nothing could be scored.
    """

    adapter: dict[str, Array]
    alpha: Alpha
    validation: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PersonalTask:
    """One site's personal fit.

    Attributes:
        data: Its records.
        shared: The finished shared adapter; frozen.
        seed: Of starts, batches and shifts.
        own: The factors that the site kept from the rounds, if the rule leaves it any.
    """

    data: SiteData
    shared: SharedAdapter
    seed: int
    own: Adapter = field(default_factory=dict)


Outcome = Personalized | TrainingError
Fitted = dict[str, Array] | TrainingError
Fit = Callable[[DualEncoder, Sequence[PersonalTask], JobConfig], list[Fitted]]
"""A method: fits every task's own adapter, all on one and the same shared adapter.

What it returns is a residual: with alpha 1, the site's own function is the shared one plus it.
A task that fails does not keep the others from training.
"""
