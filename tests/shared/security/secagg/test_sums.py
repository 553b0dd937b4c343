"""Exact sums or a clean end: drop-outs, ranges, and the same bits as without masks.

(T-SA1, 9, 10)
"""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.aggregation.linear import mean_change
from shared import fixedpoint
from shared.adapter import AdapterLayout, AdapterUpdate, LayerShape
from shared.errors import SecureSumError
from shared.fixedpoint import LARGEST, choose_scale
from shared.security.secagg.coordinator import CoordinatorSum
from shared.security.secagg.session import least_threshold
from shared.security.secagg.site import SiteSum, Stage
from shared.security.secagg.vector import Measure, SiteVector, VectorForm
from tests.shared.security.secagg.sums import (
    NEVER,
    Lab,
    dropping,
    key_of,
    names_of,
    raises_reason,
    session_of,
    sum_of,
    vectors_of,
)

STAGES = [stage for stage in Stage if stage is not NEVER]


@st.composite
def drop_outs(draw):
    """3 to 12 sites, and at which stage each disappears; most stay."""
    count = draw(st.integers(3, 12))
    stage = st.one_of(st.just(NEVER), st.just(NEVER), st.sampled_from([*STAGES, NEVER]))
    return count, {name: draw(stage) for name in names_of(count)}


@settings(max_examples=500, deadline=None)
@given(drop_outs(), st.integers(0, 2**32 - 1))
def test_any_drop_outs_end_in_the_exact_sum_or_in_nothing(drops, seed):
    count, gone = drops
    session = session_of(count)
    lab = Lab(session, vectors_of(session, seed), between=dropping(gone))
    left = [sum(last > stage for last in gone.values()) for stage in STAGES]
    survivors = [name for name in names_of(count) if gone[name] > Stage.MASK]
    if min(left) < session.threshold:
        with pytest.raises(SecureSumError) as caught:
            lab.run()
        assert caught.value.reason == "secure-too-few"
        raises_reason("secure-stage", lab.server.result)
        return
    result = lab.run()
    assert list(result.survivors) == survivors
    assert result.suspects == ()
    assert np.array_equal(result.total, sum_of(lab.vectors, survivors))
    assert not lab.refused


@settings(max_examples=60, deadline=None)
@given(drop_outs(), st.data())
def test_answers_lost_on_the_way_and_sites_that_come_back_change_no_sum(drops, data):
    count, gone = drops
    session = session_of(count)

    def between(stage, site, way, message):
        lost = gone[site] == stage and way == data.draw(st.sampled_from(["up", "down"]))
        return None if lost else message

    lab = Lab(session, between=between)
    try:
        result = lab.run()
    except SecureSumError as error:
        assert error.reason == "secure-too-few"  # noqa: PT017 - else the sum is looked at
        return
    assert np.array_equal(result.total, sum_of(lab.vectors, result.survivors))
    assert len(result.survivors) >= session.threshold


@pytest.mark.parametrize(
    ("sites", "threshold"), [(3, 3), (4, 3), (5, 4), (6, 5), (10, 7), (20, 14), (50, 34)]
)
def test_the_threshold_is_more_than_two_thirds(sites, threshold):
    assert least_threshold(sites) == threshold
    assert 3 * threshold > 2 * sites


def test_a_vector_that_comes_too_late_is_in_no_sum():
    lab = Lab(session_of(6)).until(Stage.MASK)
    late = lab.answer(Stage.MASK, "site-00", lab.questions.pop("site-00"))
    lab.step()
    raises_reason("secure-message", lambda: lab.server.take("site-01", late))
    raises_reason("secure-stage", lambda: lab.server.take("site-00", late))
    result = lab.run()
    assert list(result.survivors) == names_of(6)[1:]
    assert np.array_equal(result.total, sum_of(lab.vectors, result.survivors))


def test_an_answer_counts_once():
    lab = Lab(session_of(4)).until(Stage.MASK)
    masked = lab.answer(Stage.MASK, "site-00", lab.questions.pop("site-00"))
    lab.server.take("site-00", masked)
    raises_reason("secure-stage", lambda: lab.server.take("site-00", masked))
    result = lab.run()
    assert np.array_equal(result.total, sum_of(lab.vectors, names_of(4)))


def test_a_session_that_ended_with_nothing_stays_ended():
    lab = Lab(session_of(3), between=dropping({"site-01": Stage.SHARE}))
    raises_reason("secure-too-few", lab.run)
    raises_reason("secure-stage", lab.server.close)
    raises_reason("secure-stage", lambda: lab.server.take("site-00", b""))


@pytest.mark.parametrize("entries", [1, 16383, 16384, 16385, 40000])
def test_vectors_longer_and_shorter_than_a_piece_are_summed(entries):
    session = session_of(4, entries)
    lab = Lab(session, between=dropping({"site-02": Stage.MASK}))
    expected = sum(lab.vectors[name] for name in ("site-00", "site-01", "site-03"))
    assert np.array_equal(lab.run().total, expected)


LAYOUT = AdapterLayout(
    (
        LayerShape("vision.0.q", "image", 12, 10),
        LayerShape("vision.1.q", "image", 12, 10),
        LayerShape("text.0.q", "text", 8, 6),
    ),
    rank=4,
    scaling=2.0,
)
MEASURES = (Measure("loss", 2.0**-12, 1000.0), Measure("clipped", 1.0, 1.0))


def form_for(sites, measures=MEASURES):
    names = LAYOUT.names(("B",))
    factors = tuple((name, LAYOUT.tower_of(name), LAYOUT.shape_of(name)) for name in names)
    return VectorForm(factors, measures, sites)


def update_of(name, towers, weight, scale, generator):
    """An update as the gate admits it today, without masks."""
    change = {
        factor: generator.normal(0, 0.1, LAYOUT.shape_of(factor)).astype(np.float32)
        for factor in LAYOUT.names(("B",))
        if LAYOUT.tower_of(factor) in towers
    }
    delta = dict(fixedpoint.encode(change, lambda _: weight, scale))
    return AdapterUpdate(name, dict.fromkeys(towers, weight), delta, scale, {"loss": 0.5})


@pytest.mark.parametrize("gone", [None, "site-04"])
def test_the_mean_has_the_same_bits_with_and_without_masks(gone):
    form, scale = form_for(6), choose_scale(600, 16.0, 6)
    session = session_of(
        6, form.entries, form=form.digest, scale=scale, total_weight=600, clip_norm=16.0
    )
    generator = np.random.default_rng(1)
    towers = [("image", "text"), ("image",), ("text",), ("image", "text"), ("image",), ("text",)]
    updates = {
        name: update_of(name, of_site, weight, scale, generator)
        for name, of_site, weight in zip(names_of(6), towers, [100, 7, 31, 90, 255, 1], strict=True)
    }
    vectors = {
        name: form.write(SiteVector(each.delta, each.weights, {"loss": -3.25, "clipped": 1.0}))
        for name, each in updates.items()
    }
    lab = Lab(session, vectors, between=dropping({gone: Stage.MASK} if gone else {}))
    summed = form.read(lab.run().total, scale)
    left = [each for name, each in updates.items() if name != gone]
    plain = mean_change(LAYOUT, left)
    masked = mean_change(LAYOUT, [summed])
    assert plain.keys() == masked.keys()
    assert all(plain[name].tobytes() == masked[name].tobytes() for name in plain)
    assert summed.weights == {
        tower: sum(each.weights.get(tower, 0) for each in left) for tower in ("image", "text")
    }
    assert summed.metrics == {"loss": -3.25 * len(left), "clipped": float(len(left))}


def test_a_tower_that_nobody_trained_is_absent():
    form = form_for(3)
    scale = choose_scale(3, 16.0, 3)
    session = session_of(3, form.entries, scale=scale)
    generator = np.random.default_rng(1)
    vectors = {
        name: form.write(
            SiteVector(
                update_of(name, ("text",), 1, scale, generator).delta,
                {"text": 1},
                {"loss": 0.0, "clipped": 0.0},
            )
        )
        for name in names_of(3)
    }
    total = Lab(session, vectors).run().total
    summed = form.read(total, scale)
    assert summed.weights == {"text": 3}
    assert all(LAYOUT.tower_of(name) == "text" for name in summed.delta)
    damaged = total.copy()
    damaged[0] = 1  # of the image tower
    raises_reason("secure-form", lambda: form.read(damaged, scale))
    raises_reason("secure-form", lambda: form.read(total[1:], scale))


def test_fifty_sites_at_the_edge_of_the_range_do_not_wrap():
    sites, weight, norm = 50, 255, 16.0
    scale = choose_scale(sites * weight, norm, sites)
    form = VectorForm((("f", "image", (1, 3)),), MEASURES, sites)
    session_of(sites, form.entries, scale=scale, total_weight=sites * weight, clip_norm=norm)
    edge = np.array([[norm, -norm, 0.1]], np.float32)
    steps = fixedpoint.encode({"f": edge}, lambda _: weight, scale)
    measures = {"loss": -1000.0, "clipped": 1.0}
    vector = form.write(SiteVector({"f": steps["f"]}, {"image": weight}, measures))
    with np.errstate(over="ignore"):
        total = vector * np.uint32(sites)
    exact = [sites * int(each) for each in vector.view(np.int32)]
    assert [int(each) for each in total.view(np.int32)] == exact  # what Python's integers give
    assert max(abs(each) for each in exact) <= LARGEST
    summed = form.read(total, scale)
    mean = fixedpoint.decode(summed.delta["f"], summed.weights["image"], scale)
    assert mean[0, 0] == norm
    assert mean[0, 1] == -norm
    assert summed.metrics["loss"] == -50_000.0


@pytest.mark.parametrize(
    ("change", "weights", "measures", "reason"),
    [
        ({}, {"image": 1}, {"loss": 0.0}, "secure-form"),
        ({"f": np.zeros((1, 2), np.uint32)}, {"image": 1}, {"loss": 0.0}, "secure-form"),
        ({"f": np.zeros((1, 3), np.int64)}, {"image": 1}, {"loss": 0.0}, "secure-form"),
        ({"f": np.zeros((1, 3), np.uint32)}, {}, {"loss": 0.0}, "secure-form"),
        ({"f": np.zeros((1, 3), np.uint32)}, {"image": 1, "text": 1}, {}, "secure-form"),
        ({"f": np.zeros((1, 3), np.uint32)}, {"image": 1}, {}, "secure-form"),
        ({"f": np.zeros((1, 3), np.uint32)}, {"image": -1}, {"loss": 0.0}, "secure-range"),
        ({"f": np.zeros((1, 3), np.uint32)}, {"image": 2**31}, {"loss": 0.0}, "secure-range"),
        ({"f": np.zeros((1, 3), np.uint32)}, {"image": 1}, {"loss": 9.5}, "secure-range"),
        ({"f": np.zeros((1, 3), np.uint32)}, {"image": 1}, {"loss": np.nan}, "secure-range"),
        ({"f": np.zeros((1, 3), np.uint32)}, {"image": 1}, {"loss": -np.inf}, "secure-range"),
    ],
)
def test_what_does_not_fit_the_form_is_never_put_into_a_vector(change, weights, measures, reason):
    form = VectorForm((("f", "image", (1, 3)),), (Measure("loss", 0.5, 9.0),), 4)
    raises_reason(reason, lambda: form.write(SiteVector(change, weights, measures)))


def test_measures_whose_sum_could_wrap_are_no_form():
    with pytest.raises(ValueError, match="does not fit 32 bits"):
        form_for(50, (Measure("loss", 2.0**-16, 1000.0),))


def test_a_site_masks_in_place_and_the_coordinator_holds_one_vector():
    entries = 1_000_000
    session = session_of(5, entries)
    lab = Lab(session, {name: np.zeros(1, np.uint32) for name in names_of(5)}).until(Stage.MASK)
    vector = np.ones(entries, np.uint32)
    tracemalloc.start()
    answer = lab.sites["site-00"].mask(lab.questions["site-00"], vector)
    masked = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    lab.server.take("site-00", answer)
    taken = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert masked < 4 * entries + 1_000_000  # the message, and a piece of each mask
    assert taken < 200_000


def test_a_site_never_masks_a_vector_of_another_sort():
    for wrong in (np.zeros(16, np.uint32), np.zeros(17, np.int64), np.zeros((17, 1), np.uint32)):
        lab = Lab(session_of(3)).until(Stage.MASK)
        site = lab.sites["site-00"]
        with pytest.raises(ValueError, match="17 entries of uint32"):
            site.mask(lab.questions["site-00"], wrong)
        assert site.stage is Stage.OVER


def test_only_participants_have_a_part():
    session = session_of(3)
    raises_reason("secure-roster", lambda: SiteSum(session, "stranger", key_of("stranger")))
    raises_reason("secure-roster", lambda: SiteSum(session, "site-00", key_of("site-01")))
    raises_reason("secure-roster", lambda: CoordinatorSum(session).take("stranger", b""))
