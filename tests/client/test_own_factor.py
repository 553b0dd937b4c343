"""A site's own factor: kept round by round, never sent, and never taken for another run's."""

import stat

import numpy as np
import pytest

from client.own_factor import OwnFactor, of_kinds, with_own
from client.personalization import PersonalTask
from client.personalization.own_factor import own_factor
from client.policy import simulation_policy
from client.release import REFUSALS, Answer, encode_update
from shared.adapter import AdapterLayout, LayerShape, SharedAdapter, factor_name
from shared.config import parse_job
from shared.errors import StorageError, TrainingError
from shared.messages import Request, TrainSummary

LAYOUT = AdapterLayout((LayerShape("v", "image", 3, 2),), 2, 2.0)
A, B = factor_name("v", "A"), factor_name("v", "B")


def request(run="run", round_number=1, name="job"):
    job = parse_job({"name": name, "aggregate": {"rule": "fedsa"}})
    return Request(
        kind="train",
        run=run,
        round=round_number,
        site="north",
        base_sha256="b" * 64,
        job_sha256=job.digest(),
        job=job,
        factors=("A",),
        weights={"image": 1},
        scale=2.0**10,
    )


def own(value):
    return {B: np.full((3, 2), value, np.float32)}


def test_a_site_goes_on_from_the_latest_round_before(tmp_path):
    kept = OwnFactor(tmp_path, request())
    assert kept.after(5) == {}
    kept.keep(1, own(1.0))
    kept.keep(4, own(4.0))  # rounds 2 and 3 asked others
    values = [kept.after(number).get(B, np.zeros(1)).flat[0] for number in range(6)]
    assert values == [0, 1, 1, 1, 4, 4]


def test_going_back_forgets_what_came_after(tmp_path):
    kept = OwnFactor(tmp_path, request())
    for number in (1, 2, 3, 12):
        kept.keep(number, own(number))
    kept.keep(2, own(20.0))
    assert [kept.after(number)[B].flat[0] for number in (1, 2, 3, 12)] == [1, 20, 20, 20]


def test_another_run_or_job_has_its_own(tmp_path):
    OwnFactor(tmp_path, request()).keep(1, own(1.0))
    assert OwnFactor(tmp_path, request(run="other")).after(1) == {}
    assert OwnFactor(tmp_path, request(name="other")).after(1) == {}
    assert OwnFactor(tmp_path, request(round_number=2)).after(1) != {}


def test_it_is_for_the_owners_eyes_and_a_damaged_one_is_said(tmp_path):
    OwnFactor(tmp_path, request()).keep(1, own(1.0))
    (path,) = tmp_path.rglob("round-*.safetensors")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StorageError, match="damaged; put it back from a copy"):
        OwnFactor(tmp_path, request()).after(3)


def test_the_sites_function_has_its_own_b_and_the_shared_a():
    shared = SharedAdapter({A: np.eye(2, dtype="f4"), B: np.zeros((3, 2), "f4")})
    found = with_own(shared, own(2.0))
    assert (found.factors[B] == 2).all()
    assert found.factors[A] is shared.factors[A]
    assert with_own(shared, {}) is shared
    assert set(of_kinds(found.factors, ("A",))) == {A}


def test_as_a_residual_on_the_shared_adapter_it_is_the_same_function():
    shared = SharedAdapter({A: np.eye(2, dtype="f4"), B: np.zeros((3, 2), "f4")})
    tasks = [PersonalTask(None, shared, 1, own(2.0)), PersonalTask(None, shared, 1)]
    residual, nothing = own_factor(None, tasks, None)
    np.testing.assert_array_equal(residual[B] @ residual[A], np.full((3, 2), 2.0))
    assert nothing == {}


@pytest.mark.parametrize("asked", [("A", "B"), ("B",)])
def test_a_change_with_b_in_it_never_leaves_in_no_part(asked):
    """Even if the coordinator asks for it."""
    asking = request().model_copy(update={"factors": asked})
    shapes = {A: (2, 2), B: (3, 2)}
    change = {factor_name("v", f): np.ones(shapes[factor_name("v", f)], "f4") for f in asked}
    with pytest.raises(TrainingError) as caught:
        encode_update(
            Answer("north", asking), change, LAYOUT, TrainSummary(loss=1.0), simulation_policy()
        )
    assert caught.value.reason == "private-factor"
    assert str(caught.value) == REFUSALS["private-factor"]
