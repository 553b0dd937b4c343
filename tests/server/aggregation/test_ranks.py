"""Sites of smaller rank train a part of the columns; what each rule makes of it, by hand."""

import numpy as np
import pytest
from pydantic import ValidationError

from server.aggregation.altfold import AltFold
from server.aggregation.base import whole
from server.aggregation.error import ProductError
from server.aggregation.fedavg import FedAvg
from server.aggregation.fedex import FedEx
from server.aggregation.ffa import FfaLora
from server.aggregation.flexlora import FlexLora
from server.aggregation.flora import Flora
from server.planning import Asking
from server.roster import KnownSite
from server.validation import Admitted, judge
from shared.adapter import AdapterLayout, AdapterUpdate, LayerShape, SharedAdapter, factor_name
from shared.config import JobConfig, parse_job
from shared.fixedpoint import choose_scale, encode
from shared.messages import Reply, Request, TrainSummary, decode_request
from shared.messages import encode as encode_message
from shared.parts import PARTS
from shared.ranks import filled, leading
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
SENDS_LESS = (FlexLora, Flora)


def started(rule, shared, rank):
    """What a site of a rank starts from, in factors of the run's rank; and what it was sent."""
    sent = rule.for_rank(shared, rank)
    start = SharedAdapter(filled(sent.factors, LAYOUT), sent.residual, sent.folds)
    return start, None if sent is shared else rank


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("rule", [Flora(), FedEx(), FfaLora(), AltFold(), FedAvg()])
def test_a_site_of_smaller_rank_starts_from_the_global_function(rule, rank):
    shared, _ = after_rounds(rule, 3)
    start, _ = started(rule, shared, rank)
    for module, matrix in function_of(start).items():
        np.testing.assert_allclose(matrix, function_of(shared)[module], atol=1e-6)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("rule", [FlexLora(), FlexLora("fold")])
def test_with_flexlora_it_starts_from_the_best_product_of_its_rank(rule, rank):
    """Eckart and Young: what is missed is the singular values beyond the rank."""
    shared, _ = after_rounds(rule, 3)
    sent = rule.for_rank(shared, rank)
    for layer in LAYERS:
        b, a = (factor_name(layer.module, factor) for factor in ("B", "A"))
        assert sent.factors[b].shape == (layer.outputs, rank)
        product = shared.factors[b] @ shared.factors[a]
        sizes = np.linalg.svd(product.astype(np.float64))[1]
        missed = np.linalg.norm(product - sent.factors[b] @ sent.factors[a])
        assert missed == pytest.approx(np.sqrt((sizes[rank:] ** 2).sum()), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("rule", EXACT)
@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_exact_rules_apply_the_mean_of_what_sites_of_all_ranks_trained(rule, rounds):
    shared, number = after_rounds(rule, rounds)
    scale = choose_scale(sum(WEIGHTS), 16.0, len(RANKS))
    updates, meant = [], {layer.module: 0.0 for layer in LAYERS}
    for rank, weight in zip(RANKS, WEIGHTS, strict=True):
        start, sent_rank = started(rule, shared, rank)
        change = changes_of(rule, number, rank, LAYOUT.at_rank(rank), size=0.5)
        delta = encode(change, lambda _, w=weight: w, scale)
        update = AdapterUpdate(f"rank-{rank}", both(weight), delta, scale, {})
        updates.append(whole(update, LAYOUT, sent_rank))
        grown = filled(change, LAYOUT)
        after = {name: array + grown.get(name, 0) for name, array in start.factors.items()}
        trained = function_of(SharedAdapter(after, start.residual, start.folds))
        for module, matrix in trained.items():
            meant[module] = meant[module] + weight / sum(WEIGHTS) * matrix
    watch = ProductError(shared, LAYOUT)
    applied = rule.aggregate(shared, LAYOUT, watch.watch(updates))
    for module, matrix in meant.items():
        np.testing.assert_allclose(function_of(applied)[module], matrix, atol=3e-6)
    assert watch.relative(applied) < 1e-5


SMALL = AdapterLayout((LayerShape("v", "image", 3, 2),), rank=2, scaling=1.0)
A, B = factor_name("v", "A"), factor_name("v", "B")


def two_sites(rule, shared):
    """One site of rank 1 takes 1 off the first entry; one of rank 2 changes nothing."""
    scale = choose_scale(2, 16.0, 2)
    small = {B: np.array([[-1.0], [0], [0]], "f4"), A: np.zeros((1, 2), "f4")}
    none = {B: np.zeros((3, 2), "f4"), A: np.zeros((2, 2), "f4")}
    sent = rule.for_rank(shared, 1)
    updates = []
    for site, change, rank in (("a", small, None if sent is shared else 1), ("b", none, None)):
        update = AdapterUpdate(site, {"image": 1}, encode(change, lambda _: 1, scale), scale, {})
        updates.append(whole(update, SMALL, rank))
    after = rule.aggregate(shared, SMALL, updates)
    total = after.factors[B] @ after.factors[A]
    if after.residual:
        total = total + after.residual[B] @ after.residual[A]
    return total


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # diag(4, 2): the small site holds 4 only, and makes 3 of it; half of (3, 0) + (4, 2)
        (FlexLora(), (3.5, 1.0)),
        (FlexLora("fold"), (3.5, 1.0)),
        # it has the 2 in its frozen base; half of (3, 2) + (4, 2)
        (FedEx(), (3.5, 2.0)),
        (FedAvg(), (3.5, 2.0)),
    ],
)
def test_by_hand(rule, expected):
    shared = SharedAdapter(
        {B: np.array([[4.0, 0], [0, 2], [0, 0]], "f4"), A: np.eye(2, dtype="f4")}
    )
    wanted = np.zeros((3, 2))
    wanted[0, 0], wanted[1, 1] = expected
    np.testing.assert_allclose(two_sites(rule, shared), wanted, atol=1e-6)


def test_flora_stacks_products_of_any_rank_by_hand():
    """B = 0 and A = 1: of the small site's -1 e1 e1', half remains; the other site's is zero."""
    shared = SharedAdapter({B: np.zeros((3, 2), "f4"), A: np.eye(2, dtype="f4")})
    wanted = np.zeros((3, 2))
    wanted[0, 0] = -0.5
    np.testing.assert_allclose(two_sites(Flora(), shared), wanted, atol=1e-6)


def test_leading_and_filled_undo_each_other():
    shared, _ = after_rounds(FedAvg(), 1)
    assert leading(shared.factors, 3) is shared.factors
    assert filled(shared.factors, LAYOUT) is shared.factors
    small = leading(shared.factors, 2)
    for name, array in filled(small, LAYOUT).items():
        b = name.endswith("lora_B.weight")
        np.testing.assert_array_equal(
            array[:, :2] if b else array[:2], shared.factors[name][:, :2] if b else small[name]
        )
        assert not (array[:, 2:] if b else array[2:]).any()
    with pytest.raises(ValueError, match="from 1 to 2"):
        filled(shared.factors, LAYOUT.at_rank(2))


def asking_of(rule, ranks, kind="train"):
    lora = {"rank": 3, "ranks": ranks}
    name = {FlexLora: "flexlora", Flora: "flora", FedEx: "fedex"}[type(rule)]
    job = parse_job({"name": "j", "lora": lora, "aggregate": {"rule": name}})
    request = Request(
        kind=kind, run="r", round=1, base_sha256="b" * 64, job_sha256=job.digest(), job=job,
        factors=("A", "B"), scale=2.0**10,
    )  # fmt: skip
    shared, _ = after_rounds(rule, 1)
    return Asking(request, shared, LAYOUT, rule.for_rank)


def question_to(asking, name):
    site = KnownSite(name, 1, "paired", {"image": 9, "text": 9})
    question = asking.question(site, {"image": 1, "text": 2})
    request, tensors = decode_request(question.body(full=False).joined())
    return question, request, tensors


@pytest.mark.parametrize(
    "rule", [FlexLora(), Flora(), FedEx()], ids=lambda rule: type(rule).__name__
)
def test_what_travels_and_what_is_admitted_have_the_sites_rank(rule):
    asking = asking_of(rule, {"small": 1})
    for name, rank in (("small", 1), ("other", 3)):
        question, request, tensors = question_to(asking, name)
        assert request.job.lora.rank_of(request.site) == rank
        sent = rank if isinstance(rule, SENDS_LESS) else 3
        assert tensors[f"A/{factor_name('v.q', 'A')}"].shape == (sent, 7)
        for answered in (1, 2, 3):
            change = {n: np.zeros(LAYOUT.at_rank(answered).shape_of(n), np.uint32)
                      for n in LAYOUT.names()}  # fmt: skip
            reply = Reply(
                kind="train", run="r", round=1, attempt=1, site=name, scale=2.0**10,
                weights={"image": 1, "text": 2}, summary=TrainSummary(loss=1.0),
            )  # fmt: skip
            verdict = judge(encode_message(reply, change), question.expected)
            if answered == rank:
                assert isinstance(verdict, Admitted)
            else:
                assert verdict.reason == "tensor-shape"


def test_after_the_last_round_all_sites_are_sent_the_same():
    asking = asking_of(FlexLora(), {"small": 1}, kind="evaluate")
    bodies = [question_to(asking, name)[2] for name in ("small", "other")]
    assert bodies[0].keys() == bodies[1].keys()
    for name, array in bodies[0].items():
        np.testing.assert_array_equal(array, bodies[1][name])


def test_sites_of_one_machine_do_not_rely_on_parts_that_others_wrote_over():
    asking = asking_of(FlexLora(), {"small": 1})
    for name in ("small", "other"):
        _, request, _ = question_to(asking, name)
        site = KnownSite(name, 1, "paired", {"image": 9}, holds=dict(request.parts))
        body = asking.question(site, {"image": 1}).body(full=False).joined()
        parts = {key.partition("/")[0] for key in decode_request(body)[1]}
        assert parts == {"A", "B"} <= set(PARTS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lora": {"rank": 4, "ranks": {"a": 5}}}, "more than lora.rank = 4; raise"),
        ({"lora": {"ranks": {"a": 0}}}, "greater than or equal to 1"),
        ({"lora": {"ranks": {"a": 2}}, "aggregate": {"rule": "fedsa"}}, "flexlora, or leave"),
        ({"lora": {"ranks": {"a": 2}}, "aggregate": {"combine": "median"}}, "use 'mean' or"),
        ({"lora": {"ranks": {"a": 2}}, "data": {"sites": ["b"]}}, "not among data.sites: b"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_sentence(options, words):
    with pytest.raises(ValidationError, match=words) as refused:
        JobConfig.model_validate({"name": "x", **options})
    assert "\n" not in str(refused.value.errors()[0]["msg"])


def test_the_ranks_are_a_part_of_what_decides_the_numbers():
    plain = JobConfig.model_validate({"name": "x"})
    ranked = JobConfig.model_validate({"name": "x", "lora": {"ranks": {"a": 2}}})
    assert plain.digest() != ranked.digest()
    assert JobConfig.model_validate(ranked.model_dump(mode="json")).digest() == ranked.digest()
