"""The server's work of a round: exact aggregation of many CLIP-sized adapters.

Adapters of rank 8 on the query and value projections of both towers of CLIP ViT-B/32. The best
product of rank 8 for the mean of all sites' products is found from their stacked factors; beside
it stand the dense way (every product as a matrix, and its decomposition), the mean of factors
that Flower takes, which is not the mean of products, and our own sum of integers. The second row
is the memory of that sum, update by update.
"""

import sys
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from typing import Final, cast

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from numpy.typing import NDArray

from benchmarks.machine import cores
from benchmarks.schema import Gate, Row
from benchmarks.session import Session, standard_parser
from benchmarks.timing import Contender, alone, at_least, at_most, interleave, ratio, ratio_of
from server.aggregation.base import start
from server.aggregation.flexlora import FlexLora
from server.aggregation.linear import mean_change
from shared.adapter import (
    AdapterLayout,
    AdapterUpdate,
    LayerShape,
    SharedAdapter,
    Tower,
    factor_name,
)
from shared.fixedpoint import choose_scale
from shared.tensors import Packed, form_of

SITES: Final = 100
STREAMED: Final = (10, 100, 1000)
FLOWER_HOLDS: Final = (10, 100)
"""Sites whose records are held at once, as Flower needs them; a thousand are 2 GB."""
MOST_SECONDS: Final = 1.0
MOST_ERROR: Final = 1e-5
_WIDTHS: Final[dict[Tower, int]] = {"image": 768, "text": 512}
_CLIP: Final = 16.0


def vit_b32(rank: int = 8) -> AdapterLayout:
    """Return the layout: query and value of twelve layers in each tower."""
    layers = [
        LayerShape(f"{tower}.{number}.{projection}", tower, width, width)
        for tower, width in _WIDTHS.items()
        for number in range(12)
        for projection in ("q_proj", "v_proj")
    ]
    return AdapterLayout(tuple(layers), rank, 2.0)


def stream(layout: AdapterLayout, sites: int, spread: float) -> Iterator[AdapterUpdate]:
    """Yield updates of sites that learn something in common and something of their own.

    Args:
        layout: Which layers.
        sites: How many.
        spread: How large each site's own part is beside the common one.
    """
    shapes = {name: np.empty(layout.shape_of(name), np.uint32) for name in layout.names()}
    form = form_of(shapes)
    entries = form.size // 4
    scale = choose_scale(sites, _CLIP, sites)
    common = np.random.default_rng(0).standard_normal(entries, np.float32)
    for number in range(sites):
        own = np.random.default_rng(1 + number).standard_normal(entries, np.float32)
        steps = ((common + np.float32(spread) * own) * np.float32(0.01 * scale)).astype(np.int32)
        packed = Packed(form, steps.view(np.uint32))
        delta = cast("Mapping[str, NDArray[np.uint32]]", packed)
        yield AdapterUpdate(f"site-{number:04d}", dict.fromkeys(_WIDTHS, 1), delta, scale, {})


def dense(
    shared: SharedAdapter, layout: AdapterLayout, updates: list[AdapterUpdate]
) -> dict[str, NDArray[np.float64]]:
    """Return the best product of the layout's rank by module, by way of dense matrices."""
    best = {}
    for layer in layout.layers:
        total = np.zeros((layer.outputs, layer.inputs))
        b, a = (factor_name(layer.module, factor) for factor in ("B", "A"))
        for update in updates:
            own_b = shared.factors[b] + update.delta[b].view(np.int32) / update.scale
            own_a = shared.factors[a] + update.delta[a].view(np.int32) / update.scale
            total += own_b @ own_a
        u, sizes, v = np.linalg.svd(total / len(updates))
        best[layer.module] = (u[:, : layout.rank] * sizes[: layout.rank]) @ v[: layout.rank]
    return best


def flower_records(updates: list[AdapterUpdate]) -> list[RecordDict]:
    """Return the same changes as Flower's clients would send them, in float32."""
    return [
        RecordDict(
            {
                "arrays": ArrayRecord(
                    {
                        name: Array((delta.view(np.int32) / update.scale).astype(np.float32))
                        for name, delta in update.delta.items()
                    }
                ),
                "metrics": MetricRecord({"num-examples": 1}),
            }
        )
        for update in updates
    ]


def largest_error(applied: SharedAdapter, wanted: dict[str, NDArray[np.float64]]) -> float:
    """Return the largest relative distance of a layer's product from the dense one."""
    errors = []
    for module, matrix in wanted.items():
        b, a = (applied.factors[factor_name(module, factor)] for factor in ("B", "A"))
        missed = b.astype(np.float64) @ a.astype(np.float64) - matrix
        errors.append(float(np.linalg.norm(missed) / np.linalg.norm(matrix)))
    return max(errors)


def measure_products(session: Session, spread: float, words: str) -> None:
    """Time the rules beside the dense way and beside Flower's mean of factors."""
    layout, rule = vit_b32(), FlexLora()
    shared = start(layout, 1)
    updates = list(stream(layout, SITES, spread))
    records = flower_records(updates)
    session.say(f"{SITES} sites, {words}: the dense computation, to compare with")
    error = largest_error(rule.aggregate(shared, layout, updates), dense(shared, layout, updates))
    threads = cores()
    arms = interleave(
        [
            Contender("flexlora", alone(lambda: rule.aggregate(shared, layout, updates)), threads),
            Contender("dense way", alone(lambda: dense(shared, layout, updates)), threads),
            Contender(
                "Flower's mean of factors",
                alone(lambda: aggregate_arrayrecords(records, "num-examples")),
                threads,
            ),
            Contender("our mean of factors", alone(lambda: mean_change(layout, updates)), threads),
        ],
        session.repeats,
        session.watch,
        warm_ups=0,
    )
    ours = arms["flexlora"]
    session.add(
        Row(
            name=f"{SITES} sites x ViT-B/32, r = {layout.rank}, {words}",
            gates=[
                Gate(
                    name="relative distance from the dense computation, worst layer",
                    value=error,
                    limit=MOST_ERROR,
                    passed=error <= MOST_ERROR,
                )
            ],
            arms=list(arms.values()),
            ratios=[
                ratio_of("seconds of flexlora", ours.wall, at_most(MOST_SECONDS)),
                ratio("dense way / flexlora", arms["dense way"], ours, at_least(1.0)),
                ratio(
                    "Flower's mean / our mean of factors",
                    arms["Flower's mean of factors"],
                    arms["our mean of factors"],
                ),
            ],
        )
    )


def measure_memory(session: Session) -> None:
    """Measure the peak memory of a sum by the number of sites, beside that of Flower's."""
    layout = vit_b32()

    def ours(sites: int) -> object:
        return mean_change(layout, stream(layout, sites, 1.0))

    def flowers(sites: int) -> object:
        records = flower_records(list(stream(layout, sites, 1.0)))
        return aggregate_arrayrecords(records, "num-examples")

    summed = [_peak(ours, sites) for sites in STREAMED]
    held = [_peak(flowers, sites) for sites in FLOWER_HOLDS]
    numbers = {f"our sum of {n} sites, MB": mb for n, mb in zip(STREAMED, summed, strict=True)}
    numbers |= {
        f"Flower's mean of {n} sites, MB": mb for n, mb in zip(FLOWER_HOLDS, held, strict=True)
    }
    words = f"memory of {STREAMED[-1]} sites / memory of {STREAMED[0]}"
    session.add(
        Row(
            name="Peak memory of a sum, update by update",
            ratios=[ratio_of(words, [summed[-1] / summed[0]], at_most(1.05))],
            numbers=numbers,
        )
    )


def _peak(work: Callable[[int], object], sites: int) -> float:
    tracemalloc.start()
    work(sites)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return round(peak / 2**20, 2)


def main() -> int:
    """Run the benchmark."""
    options = standard_parser(__doc__).parse_args()
    session = Session("aggregation", "Aggregation at the server", options.repeats)
    measure_products(session, 0.5, "sites much alike")
    measure_products(session, 4.0, "sites little alike")
    measure_memory(session)
    return session.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
