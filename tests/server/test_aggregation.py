"""The laws of the aggregation rules (methods A.5), with numbers."""

import gc
import tracemalloc
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.aggregation import AGGREGATORS, AltFold, FedAvg, FfaLora
from server.aggregation.error import ProductError
from server.aggregation.linear import mean_change
from shared.adapter import (
    AdapterLayout,
    AdapterUpdate,
    LayerShape,
    SharedAdapter,
    factor_name,
    factor_of,
    products,
)
from shared.config import AggregateConfig
from shared.errors import AdapterMismatchError
from shared.fixedpoint import choose_scale, encode

LAYERS = (
    LayerShape("v.q", "image", 12, 7),
    LayerShape("v.k", "image", 5, 9),
    LayerShape("t.q", "text", 8, 8),
)
LAYOUT = AdapterLayout(LAYERS, rank=3, scaling=2.0)
RULES = [FedAvg(), FfaLora(), FfaLora(fold_every=0), AltFold(), AltFold(fold_every=0)]
EXACT = [FfaLora(), AltFold(), AltFold(fold_every=3)]


def changes_of(rule, round_number, seed, layout=LAYOUT, size=0.1):
    generator = np.random.default_rng(seed)
    return {
        name: (size * generator.standard_normal(layout.shape_of(name))).astype(np.float32)
        for name in layout.names(rule.trains(round_number))
    }


def updates_of(changes, weights, layout=LAYOUT):
    """One update per site, in fixed point; ``weights[site]`` is {tower: weight}."""
    total = max(sum(w.get(tower, 0) for w in weights) for tower in ("image", "text"))
    scale = choose_scale(max(total, 1), 16.0, len(weights))
    for number, (change, weight) in enumerate(zip(changes, weights, strict=True)):
        own = {n: c for n, c in change.items() if layout.tower_of(n) in weight}
        delta = encode(own, lambda n, w=weight: w[layout.tower_of(n)], scale)
        yield AdapterUpdate(f"site-{number}", weight, delta, scale, {})


def both(weight):
    return {"image": weight, "text": weight}


def trained(rule, layout=LAYOUT, rounds=3):
    """A shared adapter after some rounds, opened for the next one."""
    shared = rule.start(layout, 1)
    for number in range(1, rounds + 1):
        shared = rule.open_round(shared, layout, number, 1)
        changes = [changes_of(rule, number, number, layout)]
        shared = rule.aggregate(shared, layout, updates_of(changes, [both(1)], layout))
    return rule.open_round(shared, layout, rounds + 1, 1), rounds + 1


def function_of(shared):
    """Dense change of every layer: residual plus product, float64."""
    dense = {}
    for part in (shared.residual, shared.factors):
        wide = {name: array.astype(np.float64) for name, array in part.items()}
        for module, product in products(wide).items():
            dense[module] = dense.get(module, 0.0) + product
    return dense


def test_starts_with_orthonormal_rows_and_a_zero_product():
    shared = AltFold().start(LAYOUT, 5)
    for layer in LAYERS:
        a = shared.factors[factor_name(layer.module, "A")]
        np.testing.assert_allclose(a @ a.T, np.eye(3), atol=1e-6)
        assert not shared.factors[factor_name(layer.module, "B")].any()
    assert shared.sha256() == AltFold().start(LAYOUT, 5).sha256()
    assert shared.sha256() != AltFold().start(LAYOUT, 6).sha256()


def test_a_rank_above_the_inputs_leaves_rows_of_zeros():
    layout = AdapterLayout((LayerShape("v", "image", 3, 2),), rank=4, scaling=1.0)
    shared, _ = trained(AltFold(), layout, rounds=6)
    assert all(np.isfinite(values).all() for values in shared.factors.values())


@pytest.mark.parametrize("rule", EXACT)
@pytest.mark.parametrize("rounds", [1, 2, 3, 4, 5])
def test_what_is_applied_is_the_mean_of_what_the_sites_trained(rule, rounds):
    shared, number = trained(rule, rounds=rounds)
    weights = [both(3), both(1), both(7)]
    changes = [changes_of(rule, number, 100 + k) for k in range(3)]
    after = rule.aggregate(shared, LAYOUT, updates_of(changes, weights))
    applied, before = function_of(after), function_of(shared)
    for layer in LAYERS:
        mean = np.zeros((layer.outputs, layer.inputs))
        for change, weight in zip(changes, (3, 1, 7), strict=True):
            factors = {}
            for factor in ("A", "B"):
                name = factor_name(layer.module, factor)
                factors[factor] = shared.factors[name].astype(np.float64)
                factors[factor] = factors[factor] + change.get(name, 0.0)
            own = {factor_name(layer.module, f): array for f, array in factors.items()}
            mean += weight / 11 * products(own)[layer.module]
        step = before[layer.module] + 0.0
        start = products({n: a.astype(np.float64) for n, a in shared.factors.items()})
        wanted = step - start[layer.module] + mean
        np.testing.assert_allclose(applied[layer.module], wanted, atol=1e-6)


def test_the_mean_of_factors_is_not_the_mean_of_products():
    rule = FedAvg()
    shared, number = trained(rule)
    changes = [changes_of(rule, number, k, size=0.5) for k in range(3)]
    watch = ProductError(shared, LAYOUT)
    updates = watch.watch(updates_of(changes, [both(1)] * 3))
    error = watch.relative(rule.aggregate(shared, LAYOUT, updates))
    assert 0.05 < error < 2.0


def test_the_error_is_that_of_the_dense_means():
    rule, sites = FedAvg(), 21
    shared, number = trained(rule, rounds=3)
    changes = [changes_of(rule, number, k, size=0.3) for k in range(sites)]
    weights = [both(1 + k % 4) if k % 3 else {"image": 2} for k in range(sites)]
    updates = list(updates_of(changes, weights))
    watch = ProductError(shared, LAYOUT)
    applied = rule.aggregate(shared, LAYOUT, watch.watch(updates))
    error = size = 0.0
    for layer in LAYERS:
        total, mean = 0, np.zeros((layer.outputs, layer.inputs))
        start = {f: shared.factors[factor_name(layer.module, f)].astype(np.float64) for f in "AB"}
        for update in updates:
            weight = update.weights.get(layer.tower, 0)
            total += weight
            own = {
                f: start[f]
                + update.delta[factor_name(layer.module, f)].view(np.int32) / update.scale / weight
                for f in "AB"
                if weight
            }
            mean += weight * (own["B"] @ own["A"]) if weight else 0.0
        mean /= total
        got = {f: applied.factors[factor_name(layer.module, f)].astype(np.float64) for f in "AB"}
        error += np.square(got["B"] @ got["A"] - mean).sum()
        size += np.square(start["B"] @ start["A"] - mean).sum()
    assert watch.relative(applied) == pytest.approx(np.sqrt(error / size), rel=1e-5)
    assert watch.relative(applied) > 0.01


@pytest.mark.parametrize("rule", EXACT)
def test_the_exact_rules_have_no_aggregation_error(rule):
    shared, number = trained(rule)
    watch = ProductError(shared, LAYOUT)
    changes = [changes_of(rule, number, k, size=0.5) for k in range(3)]
    updates = watch.watch(updates_of(changes, [both(2), both(1), both(4)]))
    assert watch.relative(rule.aggregate(shared, LAYOUT, updates)) < 1e-6


@settings(deadline=None, max_examples=20)
@given(order=st.permutations(range(5)), rule=st.sampled_from(RULES))
def test_the_order_of_sites_changes_no_bit(order, rule):
    shared, number = trained(rule, rounds=2)
    changes = [changes_of(rule, number, k) for k in range(5)]
    weights = [both(1 + k) for k in range(5)]
    updates = list(updates_of(changes, weights))
    one = rule.aggregate(shared, LAYOUT, updates)
    other = rule.aggregate(shared, LAYOUT, [updates[k] for k in order])
    assert one.sha256() == other.sha256()


@pytest.mark.parametrize("rule", RULES)
def test_one_site_gives_its_own_training_up_to_one_step(rule):
    shared, number = trained(rule)
    change = changes_of(rule, number, 9)
    (update,) = updates_of([change], [both(1)])
    after = rule.aggregate(shared, LAYOUT, [update])
    for name, values in change.items():
        error = np.abs(after.factors[name] - (shared.factors[name] + values)).max()
        assert error <= 1 / update.scale + 1e-7


@pytest.mark.parametrize("round_number", [1, 2])
def test_identical_sites_give_what_fedavg_gives(round_number):
    rule = AltFold()
    shared, number = trained(rule, rounds=round_number - 1)
    change = changes_of(rule, number, 3)
    for weights in ([both(1)] * 4, [both(2), both(5)]):
        ours = rule.aggregate(shared, LAYOUT, updates_of([change] * len(weights), weights))
        theirs = FedAvg().aggregate(shared, LAYOUT, updates_of([change] * len(weights), weights))
        alone = FedAvg().aggregate(shared, LAYOUT, updates_of([change], [both(1)]))
        assert ours.sha256() == theirs.sha256()
        for name, values in alone.factors.items():
            np.testing.assert_allclose(ours.factors[name], values, atol=2e-7)


@pytest.mark.parametrize("rule", RULES)
def test_a_tower_that_no_site_trained_keeps_every_bit(rule):
    shared, number = trained(rule)
    changes = [changes_of(rule, number, k) for k in range(2)]
    after = rule.aggregate(shared, LAYOUT, updates_of(changes, [{"image": 3}, {"image": 1}]))
    for name, values in shared.factors.items():
        if LAYOUT.tower_of(name) == "text":
            assert np.array_equal(after.factors[name], values)
        elif factor_of(name) in rule.trains(number):
            assert not np.array_equal(after.factors[name], values)


def test_towers_are_weighted_over_the_sites_that_trained_them():
    rule = FedAvg()
    shared = rule.start(LAYOUT, 1)
    name_v, name_t = factor_name("v.q", "B"), factor_name("t.q", "B")
    ones = {n: np.ones(LAYOUT.shape_of(n), np.float32) for n in LAYOUT.names(["B"])}
    zeros = {n: np.zeros_like(v) for n, v in ones.items()}
    updates = updates_of([ones, zeros, ones], [{"image": 1}, both(3), {"text": 1}])
    after = rule.aggregate(shared, LAYOUT, updates)
    assert np.all(after.factors[name_v] == 0.25)  # (1*1 + 3*0) / 4
    assert np.all(after.factors[name_t] == 0.25)  # (3*0 + 1*1) / 4


@pytest.mark.parametrize("rule", RULES)
def test_a_site_without_samples_changes_nothing(rule):
    shared, number = trained(rule)
    change = changes_of(rule, number, 4)
    one = rule.aggregate(shared, LAYOUT, updates_of([change], [both(1)]))
    scale = choose_scale(1, 16.0, 1)
    nothing = AdapterUpdate("empty", {}, {}, scale, {})
    other = rule.aggregate(shared, LAYOUT, [nothing, *updates_of([change], [both(1)])])
    assert one.sha256() == other.sha256()


def test_without_updates_the_adapter_is_as_it_was():
    shared, _ = trained(AltFold())
    assert AltFold().aggregate(shared, LAYOUT, []).sha256() == shared.sha256()


def test_server_learning_rate_scales_the_mean():
    name = factor_name("v.q", "B")
    ones = {n: np.ones(LAYOUT.shape_of(n), np.float32) for n in LAYOUT.names(["B"])}
    rule = FfaLora(learning_rate=0.5)
    after = rule.aggregate(rule.start(LAYOUT, 1), LAYOUT, updates_of([ones], [both(1)]))
    assert np.all(after.factors[name] == 0.5)


@pytest.mark.parametrize("fold_every", [0, 1, 2, 3, 4])
def test_altfold_trains_b_first_and_after_every_fold(fold_every):
    rule = AltFold(fold_every=fold_every)
    trains = ["".join(rule.trains(number)) for number in range(1, 9)]
    wanted = {0: "BABABABA", 1: "BBBBBBBB", 2: "BABABABA", 3: "BABBABBA", 4: "BABABABA"}
    assert "".join(trains) == wanted[fold_every]


def test_ffa_keeps_a_until_it_folds():
    rule = FfaLora(fold_every=2)
    shared, number = trained(rule, rounds=1)
    name = factor_name("v.q", "A")
    assert np.array_equal(shared.factors[name], rule.start(LAYOUT, 1).factors[name])
    folded = rule.open_round(shared, LAYOUT, 3, 1)
    assert folded.folds == 1
    assert not np.array_equal(folded.factors[name], shared.factors[name])
    assert number == 2


def test_memory_does_not_grow_with_the_number_of_sites():
    layout = AdapterLayout((LayerShape("v", "image", 512, 512),), rank=8, scaling=1.0)
    name = factor_name("v", "B")
    alive = []

    def stream(sites):
        for number in range(sites):
            delta = np.ones((512, 8), np.uint32)
            alive.append(weakref.ref(delta))
            assert sum(ref() is not None for ref in alive) <= 2
            yield AdapterUpdate(f"{number}", {"image": 1}, {name: delta}, 1.0, {})

    def peak(sites):
        alive.clear()
        gc.collect()
        tracemalloc.start()
        assert np.all(mean_change(layout, stream(sites))[name] == 1.0)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(64) < 1.2 * peak(4)


def test_refuses_updates_of_another_scale_or_shape():
    name = factor_name("v.q", "B")
    good = AdapterUpdate("a", {"image": 1}, {name: np.zeros((12, 3), np.uint32)}, 4.0, {})
    other = AdapterUpdate("b", {"image": 1}, {name: np.zeros((12, 3), np.uint32)}, 8.0, {})
    wrong = AdapterUpdate("c", {"image": 1}, {name: np.zeros((3, 12), np.uint32)}, 4.0, {})
    with pytest.raises(AdapterMismatchError, match="b: fixed point with 8"):
        mean_change(LAYOUT, [good, other])
    with pytest.raises(AdapterMismatchError, match=r"c: .* expected shape \(12, 3\)"):
        mean_change(LAYOUT, [good, wrong])


def test_every_rule_of_the_config_has_an_aggregator():
    config = AggregateConfig(rule="altfold", fold_every=6, server_learning_rate=0.5)
    assert AGGREGATORS["altfold"](config) == AltFold(6, 0.5)
    assert AGGREGATORS["ffa"](config) == FfaLora(6, 0.5)
    assert AGGREGATORS["fedavg"](config) == FedAvg(0.5)
    assert isinstance(AGGREGATORS["fedavg"](config).start(LAYOUT, 1), SharedAdapter)
