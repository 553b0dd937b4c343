"""An adapter that replaces the base is refused before anything is trained from it."""

import numpy as np
import pytest

from client.adapter_size import check_size, share_of
from shared.adapter import AdapterLayout, LayerShape, SharedAdapter, factor_name
from shared.errors import RefusedError

LAYOUT = AdapterLayout((LayerShape("v", "image", 4, 3), LayerShape("t", "text", 2, 5)), 2, 0.5)
FROZEN = {"v": 2.0, "t": 10.0}


def adapter_of(**products):
    """B = 1, A = value, at one entry: the norm of the product is the value."""
    factors = {name: np.zeros(LAYOUT.shape_of(name), "f4") for name in LAYOUT.names()}
    for module, value in products.items():
        factors[factor_name(module, "B")][0, 0] = 1.0
        factors[factor_name(module, "A")][0, 0] = value
    return factors


def test_the_share_is_that_of_the_layer_that_is_replaced_most():
    shared = SharedAdapter(adapter_of(v=1.0, t=30.0))
    # 0.5 x 1 / 2 and 0.5 x 30 / 10
    assert share_of(shared, LAYOUT, FROZEN) == pytest.approx(1.5)


def test_what_was_folded_counts_too_and_can_cancel():
    shared = SharedAdapter(adapter_of(v=4.0), residual=adapter_of(v=2.0))
    assert share_of(shared, LAYOUT, FROZEN) == pytest.approx(0.5 * 6 / 2)
    shared = SharedAdapter(adapter_of(v=4.0), residual=adapter_of(v=-4.0))
    assert share_of(shared, LAYOUT, FROZEN) == pytest.approx(0.0, abs=1e-6)


def test_agrees_with_the_product_itself():
    rng = np.random.default_rng(1)
    parts = [
        {name: rng.standard_normal(LAYOUT.shape_of(name)).astype("f4") for name in LAYOUT.names()}
        for _ in range(2)
    ]
    added = {
        layer.module: 0.5
        * sum(
            part[factor_name(layer.module, "B")] @ part[factor_name(layer.module, "A")]
            for part in parts
        )
        for layer in LAYOUT.layers
    }
    expected = max(np.linalg.norm(added[module]) / norm for module, norm in FROZEN.items())
    assert share_of(SharedAdapter(*parts), LAYOUT, FROZEN) == pytest.approx(expected, rel=1e-5)


def test_a_factor_that_only_waits_for_the_other_is_a_trap():
    factors = adapter_of()
    factors[factor_name("v", "A")][:] = np.eye(2, 3) * 1000
    assert share_of(SharedAdapter(factors), LAYOUT, FROZEN) == float("inf")


def test_refuses_beyond_the_limit_and_not_at_it():
    shared = SharedAdapter(adapter_of(t=30.0))
    check_size(shared, LAYOUT, FROZEN, 1.6)
    with pytest.raises(RefusedError, match=r"1\.5 times as large as the base, allowed is 1$") as e:
        check_size(shared, LAYOUT, FROZEN, 1.0)
    assert e.value.reason == "policy-adapter"
