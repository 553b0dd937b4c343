"""Traffic by rule, on a layout that can be counted by hand; real rounds are in integration."""

import pytest

from client.check.traffic import RULES, Sizes, forecast_features, forecast_traffic
from shared.adapter import AdapterLayout, LayerShape
from shared.config import JobConfig, parse_job

ROUNDS = 5
LAYERS = (
    LayerShape("vision.wide", "image", 1000, 500),
    LayerShape("text.wide", "text", 300, 200),
)
LAYOUT = AdapterLayout(LAYERS, 10, 2.0)
A, B = 4 * 10 * (500 + 200), 4 * 10 * (1000 + 300)
IMAGE_A, IMAGE_B = 4 * 10 * 500, 4 * 10 * 1000


def job_of(rule, **aggregate):
    tables = {"aggregate": {"rule": rule, **aggregate}, "lora": {"rank": 10}}
    return parse_job({"name": "t", "rounds": ROUNDS, **tables})


def numbers(sizes, found, base):
    """Bytes of numbers in every round, without heads; heads have no more than 1000 bytes."""
    rest = [total - base for total in found]
    return [each - each % 1000 for each in rest], max(rest[i] % 1000 for i in range(len(rest)))


def traffic(rule, towers=("image", "text"), members=3, **aggregate):
    sizes = Sizes(job_of(rule, **aggregate), LAYOUT, "north", towers)
    found = forecast_traffic(sizes, members)
    down, _ = numbers(sizes, found.down, sizes.request)
    up, _ = numbers(sizes, found.up, sizes.reply)
    return down, up


def test_all_rules_are_known():
    from typing import get_args

    from shared.config import AggregationRule

    assert set(RULES) == set(get_args(AggregationRule)) - {"creamfl"}


def test_fedavg_sends_both_factors_both_ways():
    assert traffic("fedavg") == ([A + B] * ROUNDS, [A + B] * ROUNDS)


def test_altfold_returns_one_factor_in_turn_and_sends_what_was_folded():
    down, up = traffic("altfold", fold_every=2)
    assert up == [B, A, B, A, B]
    both = A + B
    assert down == [both, both, 2 * both, both, 3 * both]  # residual of rank 10, then of 20


def test_ffa_sends_a_once_and_at_every_fold():
    down, up = traffic("ffa", fold_every=2)
    assert up == [B] * ROUNDS
    assert down == [A + B, B, 2 * (A + B), B, 3 * (A + B)]


def test_flora_sends_a_new_a_and_all_products_so_far():
    down, up = traffic("flora", members=2)
    assert up == [A + B] * ROUNDS
    assert down == [A + B, *(A + 2 * k * (A + B) for k in range(1, ROUNDS))]


def test_products_stop_growing_at_the_layers_rank_and_are_still_sent():
    down, _ = traffic("flora", members=50)
    most = 4 * (500 * 1500 + 200 * 500)
    assert down[1:] == [A + most] * (ROUNDS - 1)


def test_fedsa_sends_a():
    assert traffic("fedsa") == ([A + B, A, A, A, A], [A] * ROUNDS)


def test_a_site_of_one_tower_returns_that_tower():
    down, up = traffic("fedavg", towers=("image",))
    assert down == [A + B] * ROUNDS
    assert up == [IMAGE_A + IMAGE_B] * ROUNDS


def test_a_site_of_smaller_rank():
    tree = job_of("flexlora").model_dump(mode="json")
    tree["lora"]["ranks"] = {"north": 5}
    sizes = Sizes(JobConfig.model_validate(tree), LAYOUT, "north", ("image", "text"))
    found = forecast_traffic(sizes, 3)
    half = (A + B) // 2
    assert numbers(sizes, found.up, sizes.reply)[0] == [half] * ROUNDS
    assert numbers(sizes, found.down, sizes.request)[0] == [half] * ROUNDS


def test_features_count_by_the_public_pair():
    sizes = Sizes(job_of("fedavg"), LAYOUT, "north", ("image",))
    found = forecast_features(sizes, items=100, width=64)
    assert found.down[0] - sizes.request == 2 * 100 * 64 * 4
    assert found.up[0] - sizes.reply == 100 * 64 * 2


@pytest.mark.parametrize("rule", sorted(RULES))
def test_the_largest_message_is_one_of_them(rule):
    sizes = Sizes(job_of(rule), LAYOUT, "north", ("image", "text"))
    found = forecast_traffic(sizes, 3)
    assert found.largest == max(*found.down, *found.up, found.closing_down)
    assert found.total_down == sum(found.down) + found.closing_down
