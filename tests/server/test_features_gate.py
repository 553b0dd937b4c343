"""The gate of an exchange of features: each bad reply is refused with its own code."""

import numpy as np
import pytest
from fake_federation import BASE, LAYOUT, job_of

from server import validation
from server.planning import Asking
from server.roster import KnownSite
from server.validation import Admitted, Rejected, judge, largest_body
from shared.adapter import SharedAdapter
from shared.messages import Reply, Request, TrainSummary, encode
from shared.parts import part_digests

ITEMS, WIDTH = 5, 8
COMMON = {tower: np.eye(ITEMS, WIDTH, dtype=np.float32) for tower in ("image", "text")}
WEIGHTS = {"image": 2, "text": 3}


def question(weights=None, holds=None):
    job = job_of()
    request = Request(
        kind="train", run="r", round=3, attempt=2, base_sha256=BASE,
        job_sha256=job.digest(), job=job, factors=("A", "B"), scale=1024.0,
    )  # fmt: skip
    site = KnownSite("north", 1, "paired", {"image": 10, "text": 10}, dict(holds or {}))
    asking = Asking(request, SharedAdapter({}, features=COMMON), LAYOUT)
    return asking.question(site, weights or WEIGHTS)


def unit(seed):
    values = np.random.default_rng(seed).standard_normal((ITEMS, WIDTH))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


def judged(asked, tensors, weights=None):
    reply = Reply(
        kind="train", run="r", round=3, attempt=2, site="north", weights=weights or WEIGHTS,
        scale=1024.0, summary=TrainSummary(loss=1.0, steps=4),
    )  # fmt: skip
    return judge(encode(reply, tensors), asked.expected)


def test_admits_features_of_the_towers_that_were_asked_for():
    sent = {"image": unit(0), "text": unit(1)}
    verdict = judged(question(), sent)
    assert isinstance(verdict, Admitted)
    assert not verdict.update.delta
    for tower, values in sent.items():
        np.testing.assert_array_equal(verdict.update.features[tower], values)
    one = judged(question({"image": 2}), {"image": unit(0)}, {"image": 2})
    assert set(one.update.features) == {"image"}


def changed(change):
    sent = {"image": unit(0), "text": unit(1)}
    change(sent)
    return sent


def put(tower, values):
    return lambda sent: sent.update({tower: values})


def nan(sent):
    sent["text"][3, 2] = np.nan


def infinite(sent):
    sent["text"][3, 2] = np.inf


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (put("image", unit(0)[:-1]), validation.TENSOR_SHAPE),
        (put("image", unit(0)[:, :-1]), validation.TENSOR_SHAPE),
        (put("image", unit(0)[None]), validation.TENSOR_SHAPE),
        (put("image", unit(0).astype(np.float32)), validation.TENSOR_DTYPE),
        (put("image", unit(0).view(np.uint16)), validation.TENSOR_DTYPE),
        (put("image", (2 * unit(0)).astype(np.float16)), validation.NOT_UNIT),
        (put("image", np.zeros_like(unit(0))), validation.NOT_UNIT),
        (put("audio", unit(2)), validation.TENSOR_NAMES),
        (lambda sent: sent.pop("text"), validation.TENSOR_NAMES),
        (nan, validation.NOT_FINITE),
        (infinite, validation.NOT_FINITE),
        (put("image", np.zeros((4000, 4000), np.float16)), validation.TOO_LARGE),
    ],
)
def test_each_bad_reply_has_its_code(change, reason):
    verdict = judged(question(), changed(change))
    assert isinstance(verdict, Rejected)
    assert verdict.reason == reason


def test_a_change_of_an_adapter_is_no_answer():
    name = LAYOUT.names()[0]
    verdict = judged(question(), {name: np.zeros(LAYOUT.shape_of(name), np.uint32)})
    assert verdict.reason == validation.TENSOR_NAMES


def test_the_largest_body_grows_with_the_set_and_not_with_the_layout():
    assert largest_body(question().expected) < 256 * 1024 + 5 * 2 * (4 * ITEMS * WIDTH + 200)


def test_the_features_are_not_sent_to_a_site_that_holds_them():
    fresh, knowing = question(), question(holds=part_digests(SharedAdapter({}, features=COMMON)))
    saved = len(fresh.body(False)) - len(knowing.body(False))
    assert saved > 2 * 4 * ITEMS * WIDTH
