"""Changes of sites in memory, and what they mean as dense matrices."""

import numpy as np

from shared.adapter import AdapterLayout, AdapterUpdate, LayerShape, factor_name
from shared.fixedpoint import choose_scale, encode

LAYERS = (
    LayerShape("v.q", "image", 12, 7),  # none is square, so a transposed product would not fit
    LayerShape("v.k", "image", 5, 9),
    LayerShape("t.q", "text", 8, 6),
)
LAYOUT = AdapterLayout(LAYERS, rank=3, scaling=2.0)


def both(weight):
    """The same weight for both towers."""
    return {"image": weight, "text": weight}


def changes_of(rule, round_number, seed, layout=LAYOUT, size=0.1):
    """A random change of the factors that a rule trains."""
    generator = np.random.default_rng(seed)
    return {
        name: (size * generator.standard_normal(layout.shape_of(name))).astype(np.float32)
        for name in layout.names(rule.trains(round_number))
    }


def updates_of(changes, weights, layout=LAYOUT):
    """One update per site, in fixed point; ``weights[site]`` is {tower: weight}."""
    total = max(sum(w.get(tower, 0) for w in weights) for tower in ("image", "text"))
    scale = choose_scale(max(total, 1), 16.0, len(weights))
    updates = []
    for number, (change, weight) in enumerate(zip(changes, weights, strict=True)):
        own = {n: c for n, c in change.items() if layout.tower_of(n) in weight}
        delta = encode(own, lambda n, w=weight: w[layout.tower_of(n)], scale)
        updates.append(AdapterUpdate(f"site-{number}", weight, delta, scale, {}))
    return updates


def product(adapter, module):
    """B A of a layer in float64; zero without factors."""
    b, a = (factor_name(module, factor) for factor in ("B", "A"))
    if b not in adapter:
        return 0.0
    return adapter[b].astype(np.float64) @ adapter[a].astype(np.float64)


def function_of(shared, layout=LAYOUT):
    """What the adapter adds to every layer: residual plus product."""
    return {
        layer.module: product(shared.residual, layer.module) + product(shared.factors, layer.module)
        for layer in layout.layers
    }


def mean_of_products(shared, changes, weights, layout=LAYOUT):
    """Residual plus the dense mean of what the sites trained, layer by layer."""
    means = {}
    for layer in layout.layers:
        total, mean = 0, np.zeros((layer.outputs, layer.inputs))
        for change, weight in zip(changes, weights, strict=True):
            share = weight.get(layer.tower, 0)
            own = {
                name: shared.factors[name].astype(np.float64) + change.get(name, 0.0)
                for name in (factor_name(layer.module, factor) for factor in ("A", "B"))
            }
            total += share
            mean += share * product(own, layer.module)
        means[layer.module] = product(shared.residual, layer.module) + mean / total
    return means


def after_rounds(rule, rounds, layout=LAYOUT, sites=2, size=0.1):
    """A shared adapter after some rounds, opened for the next, and that round's number."""
    shared = rule.start(layout, 1)
    for number in range(1, rounds + 1):
        shared = rule.open_round(shared, layout, number, 1)
        changes = [changes_of(rule, number, 50 * number + k, layout, size) for k in range(sites)]
        shared = rule.aggregate(shared, layout, updates_of(changes, [both(1)] * sites, layout))
    return rule.open_round(shared, layout, rounds + 1, 1), rounds + 1
