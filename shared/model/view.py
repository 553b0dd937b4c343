"""Which function of the encoder is meant: base, shared, or shared plus personal."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from shared.adapter import (
    TOWERS,
    Adapter,
    AdapterLayout,
    Array,
    SharedAdapter,
    Tower,
    check_compatible,
    pairs,
)
from shared.errors import AdapterMismatchError


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

    def products(self, layout: AdapterLayout) -> dict[str, list[tuple[Array, Array, float]]]:
        """Return (B, A, scale) of every product that is added to the frozen base, by module.

        Raises:
            AdapterMismatchError: If the factors do not fit the layout.
        """
        sources: list[tuple[Adapter, Mapping[Tower, float]]] = []
        scaling: dict[Tower, float] = dict.fromkeys(TOWERS, layout.scaling)
        if self.shared is not None:
            if self.shared.factors:
                check_compatible(layout, self.shared.factors, layout.names())
            # The residual first and from the frozen weight anew, so that a site that joins
            # late gets the same bits as one that was there from the start.
            sources += [(self.shared.residual, scaling), (self.shared.factors, scaling)]
        if self.personal is not None:
            mixed = {t: layout.scaling * self.alpha.get(t, 0.0) for t in TOWERS}
            sources.append((self.personal, mixed))
        shapes = {shape.module: shape for shape in layout.layers}
        terms: dict[str, list[tuple[Array, Array, float]]] = {}
        for adapter, scales in sources:
            for module, b, a in pairs(adapter):
                shape = shapes.get(module)
                if shape is None or (b.shape[0], a.shape[1]) != (shape.outputs, shape.inputs):
                    raise AdapterMismatchError(f"{module}: an adapter does not fit the base")
                if scales[shape.tower]:
                    terms.setdefault(module, []).append((b, a, scales[shape.tower]))
        return terms

    def _mixed(self) -> object:
        alpha = {tower: value for tower, value in self.alpha.items() if value}
        return (id(self.personal), alpha) if self.personal and alpha else None
