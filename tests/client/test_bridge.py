"""The rotation into the common space."""

import numpy as np
import pytest

from client.bridge import bridge_between, crossed


def unit(rng, *shape):
    values = rng.standard_normal(shape)
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def test_a_rotated_space_is_turned_back():
    rng = np.random.default_rng(0)
    common = unit(rng, 40, 6)
    rotation = np.linalg.qr(rng.standard_normal((6, 6)))[0].astype(np.float32)
    own = common @ rotation.T
    np.testing.assert_allclose(crossed(own, bridge_between(own, common)), common, atol=1e-5)


def test_the_same_space_is_left_where_it_is():
    common = unit(np.random.default_rng(1), 40, 6)
    np.testing.assert_allclose(bridge_between(common, common), np.eye(6), atol=1e-5)


@pytest.mark.parametrize(("own_width", "width"), [(4, 6), (6, 6), (6, 4)])
def test_it_is_orthogonal_whatever_the_widths(own_width, width):
    rng = np.random.default_rng(2)
    own, common = unit(rng, 40, own_width), unit(rng, 40, width)
    bridge = bridge_between(own, common)
    assert bridge.shape == (own_width, width)
    smaller = bridge @ bridge.T if own_width <= width else bridge.T @ bridge
    np.testing.assert_allclose(smaller, np.eye(min(own_width, width)), atol=1e-5)
    brought = crossed(own, bridge)
    np.testing.assert_allclose(np.linalg.norm(brought, axis=1), 1.0, atol=1e-5)
    if own_width <= width:  # no similarity of the site's own features is changed
        np.testing.assert_allclose(brought @ brought.T, own @ own.T, atol=1e-5)


def test_by_hand():
    # Own axes are the common ones exchanged, so the bridge exchanges them.
    own = np.array([[1, 0], [0, 1]], np.float32)
    np.testing.assert_allclose(bridge_between(own, own[::-1].copy()), own[::-1], atol=1e-7)
