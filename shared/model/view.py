"""Which function of the encoder is meant: base, shared, or shared plus personal."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from shared.adapter import Adapter, SharedAdapter, Tower


@dataclass(frozen=True)
class AdapterView:
    """W0 + s (residual) + s B A + alpha s B_P A_P, with alpha per tower.

    Attributes:
        shared: The shared adapter; ``None`` means the frozen base.
        personal: The site's own adapter, an additive residual on the shared one.
        alpha: Mixing weight of the personal adapter per tower, 0..1; absent means 0.
    """

    shared: SharedAdapter | None = None
    personal: Adapter | None = None
    alpha: Mapping[Tower, float] = field(default_factory=dict)

    def same_as(self, other: "AdapterView") -> bool:
        """Whether two views are the same function; adapters are told apart by identity."""
        return self.shared is other.shared and self._mixed() == other._mixed()

    def _mixed(self) -> object:
        alpha = {tower: value for tower, value in self.alpha.items() if value}
        return (id(self.personal), alpha) if self.personal and alpha else None
