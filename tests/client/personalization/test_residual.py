"""Sums of low-rank products, by hand."""

import numpy as np

from client.personalization.residual import weighted_sum
from shared.adapter import factor_name, products


def one_layer(b: list[list[float]], a: list[list[float]]) -> dict[str, np.ndarray]:
    return {
        factor_name("v", "A"): np.array(a, dtype=np.float32),
        factor_name("v", "B"): np.array(b, dtype=np.float32),
    }


def test_products_are_added_with_their_weights() -> None:
    # [1 2]^T [1 0 1] - 1/2 [2 4]^T [0 1 0] = [[1 -1 1], [2 -2 2]]
    own, shared = one_layer([[1], [2]], [[1, 0, 1]]), one_layer([[2], [4]], [[0, 1, 0]])
    total = weighted_sum([(1.0, own), (-0.5, shared)], ["v"])
    assert products(total)["v"].tolist() == [[1, -1, 1], [2, -2, 2]]
    assert total[factor_name("v", "A")].shape == (2, 3)
    assert all(array.dtype == np.float32 for array in total.values())


def test_layers_that_are_not_asked_for_or_not_there_are_left_out() -> None:
    own = one_layer([[1], [2]], [[1, 0, 1]])
    assert weighted_sum([(1.0, own)], []) == {}
    assert weighted_sum([(1.0, {}), (1.0, own)], ["v", "w"]).keys() == own.keys()


def test_no_more_columns_than_the_layer_has() -> None:
    # Three products of rank 1 in a layer of 2 x 3 and of 3 x 2: rank 2 holds their sum.
    parts = [one_layer([[1], [n]], [[n, 0, 1]]) for n in (1.0, 2.0, 3.0)]
    wide = weighted_sum([(1.0, part) for part in parts], ["v"])
    assert products(wide)["v"].tolist() == [[6, 0, 3], [14, 0, 6]]
    assert wide[factor_name("v", "A")].shape == (2, 3)
    turned = [one_layer([[n], [0], [1]], [[1, n]]) for n in (1.0, 2.0, 3.0)]
    tall = weighted_sum([(1.0, part) for part in turned], ["v"])
    assert products(tall)["v"].tolist() == [[6, 14], [0, 0], [3, 6]]
    assert tall[factor_name("v", "B")].shape == (3, 2)
