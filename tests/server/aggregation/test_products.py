"""FlexLoRA, FedEx-LoRA and FLoRA: what each paper states, as numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.aggregation.error import ProductError
from server.aggregation.fedavg import FedAvg
from server.aggregation.fedex import FedEx
from server.aggregation.flexlora import FlexLora
from server.aggregation.flora import Flora
from server.aggregation.gathered import Gathered
from shared.adapter import AdapterLayout, LayerShape, SharedAdapter, factor_name
from shared.layout_file import adapter_bytes, load_adapter
from tests.server.aggregation.sites_in_memory import (
    LAYERS,
    LAYOUT,
    after_rounds,
    both,
    changes_of,
    function_of,
    mean_of_products,
    updates_of,
)

EXACT = [FlexLora("fold"), FedEx(), Flora()]
RULES = [FlexLora(), *EXACT]
WEIGHTS = [both(3), {"image": 2}, both(1), {"text": 4}, both(7)]
SCALAR = AdapterLayout((LayerShape("v", "image", 1, 1),), rank=1, scaling=1.0)
A, B = factor_name("v", "A"), factor_name("v", "B")


def assert_same_function(one, other, tolerance=1e-6):
    for module, matrix in other.items():
        np.testing.assert_allclose(one[module], matrix, atol=tolerance)


def scalars(*pairs):
    """Sites that end at B = b and A = a from B = 0 and A = 1."""
    return [
        {B: np.full((1, 1), b, np.float32), A: np.full((1, 1), a - 1, np.float32)} for b, a in pairs
    ]


def one_round(rule, changes, weights, layout=SCALAR):
    start = SharedAdapter({A: np.ones((1, 1), np.float32), B: np.zeros((1, 1), np.float32)})
    return rule.aggregate(start, layout, updates_of(changes, weights, layout))


@pytest.mark.parametrize(
    ("rule", "factors", "residual"),
    [
        (FedAvg(), 4.0, 0.0),  # mean(B) mean(A) = 2 * 2
        (FedEx(), 4.0, -1.0),  # and (1 * 3 + 3 * 1) / 2 - 4 in the residual
        (FlexLora(), 3.0, 0.0),  # (1 * 3 + 3 * 1) / 2, of rank one
        (FlexLora("fold"), 3.0, 0.0),
        (Flora(), 0.0, 3.0),
    ],
)
def test_by_hand(rule, factors, residual):
    """Two sites that trained 1 * 3 and 3 * 1 meant 3."""
    after = one_round(rule, scalars((1, 3), (3, 1)), [{"image": 1}, {"image": 1}])
    assert after.factors[B] @ after.factors[A] == pytest.approx(factors, abs=1e-5)
    found = after.residual[B] @ after.residual[A] if B in after.residual else 0.0
    assert found == pytest.approx(residual, abs=1e-5)


@pytest.mark.parametrize("rule", EXACT)
@pytest.mark.parametrize("rounds", [0, 1, 4])
def test_exact_rules_apply_the_mean_of_what_the_sites_trained(rule, rounds):
    shared, number = after_rounds(rule, rounds)
    changes = [changes_of(rule, number, 100 + k, size=0.5) for k in range(5)]
    watch = ProductError(shared, LAYOUT)
    after = rule.aggregate(shared, LAYOUT, watch.watch(updates_of(changes, WEIGHTS)))
    assert_same_function(function_of(after), mean_of_products(shared, changes, WEIGHTS), 3e-6)
    assert watch.relative(after) < 3e-6


def test_flexlora_misses_what_eckart_and_young_say_and_no_more():
    rule = FlexLora()
    shared, number = after_rounds(rule, 2)
    changes = [changes_of(rule, number, 100 + k, size=0.5) for k in range(5)]
    found = function_of(rule.aggregate(shared, LAYOUT, updates_of(changes, WEIGHTS)))
    fedit = function_of(FedAvg().aggregate(shared, LAYOUT, updates_of(changes, WEIGHTS)))
    for module, mean in mean_of_products(shared, changes, WEIGHTS).items():
        tail = np.linalg.norm(np.linalg.svd(mean)[1][LAYOUT.rank :])
        assert tail > 0.1
        assert np.linalg.norm(found[module] - mean) == pytest.approx(tail, rel=1e-4)
        assert tail < np.linalg.norm(fedit[module] - mean)


@settings(deadline=None, max_examples=25)
@given(order=st.permutations(range(5)), rule=st.sampled_from(RULES))
def test_the_order_of_sites_changes_no_bit(order, rule):
    shared, number = after_rounds(rule, 2)
    updates = updates_of([changes_of(rule, number, k) for k in range(5)], WEIGHTS)
    one = rule.aggregate(shared, LAYOUT, updates)
    other = rule.aggregate(shared, LAYOUT, [updates[k] for k in order])
    assert one.sha256() == other.sha256()


def test_not_even_in_double_precision():
    """Rounding to float32 would hide most of what an order of sums leaves behind."""
    rule = FlexLora()
    shared, number = after_rounds(rule, 2)
    updates = updates_of([changes_of(rule, number, k) for k in range(5)], WEIGHTS)
    one, other = (Gathered.of(LAYOUT, each) for each in (updates, updates[::-1]))
    assert [update.site for update in other.updates] == [update.site for update in updates]
    for layer in LAYERS:
        for left, right in zip(one.stack(shared, layer), other.stack(shared, layer), strict=True):
            assert np.array_equal(left, right)


@pytest.mark.parametrize("rule", RULES)
def test_one_site_gives_its_own_training(rule):
    shared, number = after_rounds(rule, 3)
    changes = [changes_of(rule, number, 9)]
    after = rule.aggregate(shared, LAYOUT, updates_of(changes, [both(1)]))
    assert_same_function(function_of(after), mean_of_products(shared, changes, [both(1)]))


@pytest.mark.parametrize("rule", RULES)
def test_identical_sites_give_the_function_that_fedavg_gives(rule):
    shared, number = after_rounds(rule, 2)
    changes = [changes_of(rule, number, 3)] * 4
    weights = [both(1), both(4), both(2), both(5)]
    ours = rule.aggregate(shared, LAYOUT, updates_of(changes, weights))
    theirs = FedAvg().aggregate(shared, LAYOUT, updates_of(changes, weights))
    assert_same_function(function_of(ours), function_of(theirs))


@pytest.mark.parametrize("rule", RULES)
def test_sites_may_turn_their_factors_as_long_as_the_products_stay(rule):
    """B Q and Q^-1 A are the same function, so the mean of products must not notice."""
    shared, number = after_rounds(rule, 2)
    changes = [changes_of(rule, number, k) for k in range(3)]
    turned = []
    for seed, change in enumerate(changes):
        q = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))[0]
        other = {}
        for layer in LAYERS:
            a, b = (factor_name(layer.module, factor) for factor in ("A", "B"))
            other[a] = q.T @ (shared.factors[a] + change[a]) - shared.factors[a]
            other[b] = (shared.factors[b] + change[b]) @ q - shared.factors[b]
        turned.append({name: array.astype(np.float32) for name, array in other.items()})
    weights = [both(1), both(2), both(3)]

    def applied(which, using):
        return function_of(using.aggregate(shared, LAYOUT, updates_of(which, weights)))

    assert_same_function(applied(turned, rule), applied(changes, rule), 3e-6)
    fedit, other = applied(changes, FedAvg()), applied(turned, FedAvg())
    assert max(np.abs(fedit[m] - other[m]).max() for m in fedit) > 1e-2  # FedIT does notice


@pytest.mark.parametrize("rule", EXACT)
def test_a_late_joiner_rebuilds_the_function_that_all_rounds_gave(rule, tmp_path):
    shared, meant = rule.start(LAYOUT, 1), None
    for number in range(1, 8):
        shared = rule.open_round(shared, LAYOUT, number, 1)
        changes = [changes_of(rule, number, 10 * number + k, size=0.3) for k in range(3)]
        weights = [both(1), both(2), both(3)]
        before = function_of(shared)
        if meant is not None:
            assert_same_function(before, meant, 1e-5)  # opening a round changes no function
        meant = mean_of_products(shared, changes, weights)
        shared = rule.aggregate(shared, LAYOUT, updates_of(changes, weights))
    (tmp_path / "shared.safetensors").write_bytes(adapter_bytes(shared))
    late = load_adapter(tmp_path / "shared.safetensors")
    assert late.sha256() == shared.sha256()
    assert late.folds == 7
    assert_same_function(function_of(late), meant, 1e-5)
    for layer in LAYERS:  # however many rounds, no more columns than the layer has rank
        assert late.residual[factor_name(layer.module, "B")].shape[1] <= min(
            layer.outputs, layer.inputs
        )


def test_fedex_leaves_a_residual_of_rank_r_per_site_but_one():
    layout = AdapterLayout((LayerShape("v", "image", 40, 30),), rank=2, scaling=1.0)
    rule = FedEx()
    shared = rule.start(layout, 1)
    changes = [changes_of(rule, 1, k, layout, size=0.5) for k in range(4)]
    after = rule.aggregate(shared, layout, updates_of(changes, [both(1)] * 4, layout))
    assert after.residual[B].shape == (40, 2 * 3)
    alone = rule.aggregate(shared, layout, updates_of(changes[:1], [both(1)], layout))
    assert np.abs(alone.residual[B] @ alone.residual[A]).max() < 1e-8


def test_flora_starts_every_round_afresh_and_its_rank_accumulates():
    rule = Flora()
    shared, _ = after_rounds(rule, 2, sites=1)
    again, _ = after_rounds(rule, 2, sites=1)
    assert shared.sha256() == again.sha256()
    first = rule.open_round(rule.start(LAYOUT, 1), LAYOUT, 1, 1)
    for layer in LAYERS:
        a, b = (factor_name(layer.module, factor) for factor in ("A", "B"))
        assert not shared.factors[b].any()
        assert not np.allclose(shared.factors[a], first.factors[a])
        np.testing.assert_allclose(shared.factors[a] @ shared.factors[a].T, np.eye(3), atol=1e-6)
        sizes = np.linalg.svd(shared.residual[b] @ shared.residual[a])[1]
        assert (sizes > 1e-4).sum() > LAYOUT.rank


@pytest.mark.parametrize("rule", RULES)
def test_a_tower_that_no_site_trained_keeps_every_bit(rule):
    shared, number = after_rounds(rule, 2)
    changes = [changes_of(rule, number, k) for k in range(2)]
    after = rule.aggregate(shared, LAYOUT, updates_of(changes, [{"image": 3}, {"image": 1}]))
    for part in ("factors", "residual"):
        for name, values in getattr(shared, part).items():
            if LAYOUT.tower_of(name) == "text":
                assert np.array_equal(getattr(after, part)[name], values)
    assert not np.array_equal(function_of(after)["v.q"], function_of(shared)["v.q"])
    assert rule.aggregate(shared, LAYOUT, []).sha256() == shared.sha256()
