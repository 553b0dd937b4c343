"""Sites of smaller rank train a part of the columns, and nothing is lost."""

import numpy as np
import pytest

from server.aggregation.altfold import AltFold
from server.aggregation.fedavg import FedAvg
from server.aggregation.fedex import FedEx
from server.aggregation.ffa import FfaLora
from server.aggregation.flexlora import FlexLora
from server.aggregation.flora import Flora
from server.aggregation.ranks import at_rank, widened
from shared.adapter import AdapterUpdate, factor_name
from shared.fixedpoint import choose_scale, encode
from tests.server.aggregation.sites_in_memory import (
    LAYERS,
    LAYOUT,
    after_rounds,
    both,
    changes_of,
    function_of,
)

RANKS, WEIGHTS = (1, 2, 3), (2, 1, 3)
EXACT = [FlexLora("fold"), FedEx(), Flora(), FfaLora(), AltFold()]


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("rule", [*EXACT, FlexLora(), FedAvg()])
def test_a_site_of_smaller_rank_computes_the_global_function(rule, rank):
    shared, _ = after_rounds(rule, 3)
    smaller, layout = at_rank(shared, LAYOUT, rank)
    assert (layout.rank, layout.scaling) == (rank, LAYOUT.scaling)
    assert smaller.factors[factor_name("v.q", "B")].shape == (12, rank)
    for module, matrix in function_of(smaller).items():
        np.testing.assert_allclose(matrix, function_of(shared)[module], atol=1e-6)


@pytest.mark.parametrize("rule", EXACT)
@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_the_exact_rules_apply_the_mean_of_what_sites_of_all_ranks_trained(rule, rounds):
    shared, number = after_rounds(rule, rounds)
    scale = choose_scale(sum(WEIGHTS), 16.0, len(RANKS))
    updates, meant = [], {layer.module: 0.0 for layer in LAYERS}
    for rank, weight in zip(RANKS, WEIGHTS, strict=True):
        own, layout = at_rank(shared, LAYOUT, rank)
        change = changes_of(rule, number, rank, layout, size=0.5)
        after = {name: array + change.get(name, 0) for name, array in own.factors.items()}
        trained = function_of(type(own)(after, own.residual, own.folds))
        for module, matrix in trained.items():
            meant[module] = meant[module] + weight / sum(WEIGHTS) * matrix
        delta = encode(change, lambda _, w=weight: w, scale)
        update = AdapterUpdate(f"rank-{rank}", both(weight), delta, scale, {})
        updates.append(widened(update, LAYOUT))
    applied = function_of(rule.aggregate(shared, LAYOUT, updates))
    for module, matrix in meant.items():
        np.testing.assert_allclose(applied[module], matrix, atol=3e-6)


def test_flexlora_keeps_for_small_ranks_what_matters_most():
    """Its columns are in order of size, so q of them are the best product of rank q."""
    shared, _ = after_rounds(FlexLora(), 3)
    for rank in RANKS:
        own, _ = at_rank(shared, LAYOUT, rank)
        for layer in LAYERS:
            b, a = (factor_name(layer.module, factor) for factor in ("B", "A"))
            sizes = np.linalg.svd(function_of(shared)[layer.module])[1]
            kept = np.linalg.svd(own.factors[b] @ own.factors[a])[1]
            np.testing.assert_allclose(kept[:rank], sizes[:rank], rtol=1e-4)


@pytest.mark.parametrize("rank", [0, 4])
def test_no_site_has_more_than_the_runs_rank(rank):
    shared, _ = after_rounds(FlexLora(), 0)
    with pytest.raises(ValueError, match="from 1 to the run's 3"):
        at_rank(shared, LAYOUT, rank)
    delta = {factor_name("v.q", "B"): np.zeros((12, rank), np.uint32)}
    with pytest.raises(ValueError, match="from 1 to the run's 3"):
        widened(AdapterUpdate("a", {"image": 1}, delta, 1.0, {}), LAYOUT)
