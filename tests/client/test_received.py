"""Parts of the shared adapter: checked against their digests, once for all sites of a process."""

from collections import Counter
from datetime import date

import numpy as np
import pytest

import client.keeping
import client.received
from client.decisions import NOBODY, about_request
from client.policy import simulation_policy
from client.received import join_received, receive_parts
from client.state import SiteState
from shared.adapter import AdapterLayout, LayerShape, SharedAdapter
from shared.config import JobConfig
from shared.errors import AdapterMismatchError, WireError
from shared.messages import Request, decode_request, enclose, encode_header
from shared.parts import pack_parts, part_digests

LAYOUT = AdapterLayout((LayerShape("v", "image", 4, 3), LayerShape("t", "text", 2, 5)), 2, 2.0)
JOB = JobConfig(name="job")


def adapter(seed=0, folds=0):
    rng = np.random.default_rng(seed)
    factors = {n: rng.standard_normal(LAYOUT.shape_of(n)).astype("f4") for n in LAYOUT.names()}
    return SharedAdapter(factors, {}, folds)


def request_of(shared, site="north", **changes):
    values = {
        "kind": "train",
        "run": "run",
        "round": 1,
        "site": site,
        "base_sha256": "b" * 64,
        "job_sha256": JOB.digest(),
        "job": JOB,
        "folds": shared.folds,
        "parts": part_digests(shared),
    }
    return Request(**{**values, **changes})


def received(shared, state, sent=("A", "B"), **changes):
    request = request_of(shared, **changes)
    body = encode_header(request) + enclose(JOB, pack_parts(shared, sent))
    request, tensors = decode_request(body)
    parts, missing = receive_parts(request, tensors, state)
    return (join_received(request, parts, LAYOUT) if not missing else None), missing


def test_what_is_received_is_what_was_sent(tmp_path):
    shared = adapter(folds=3)
    came, missing = received(shared, SiteState(tmp_path))
    assert missing == []
    assert came.sha256() == shared.sha256()


def test_parts_that_neither_came_nor_are_held_are_missing(tmp_path):
    first, second = adapter(1), adapter(2)
    mixed = SharedAdapter(
        {n: (first if n.endswith("A.weight") else second).factors[n] for n in LAYOUT.names()}
    )
    state = SiteState(tmp_path)
    assert received(mixed, state, sent=("B",)) == (None, ["A"])
    assert received(first, state)[0].sha256() == first.sha256()
    assert received(mixed, state, sent=("B",))[0].sha256() == mixed.sha256()
    assert received(first, state, sent=("A",))[1] == ["B"]


def test_another_digest_than_stated_is_refused_for_every_site(tmp_path):
    shared = adapter()
    wrong = part_digests(shared) | {"B": "e" * 64}
    state = SiteState(tmp_path)
    received(shared, state)
    for site in ("a", "b"):
        with pytest.raises(WireError, match="part B"):
            received(shared, state, site=site, parts=wrong)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_adapter_that_is_not_finite_is_refused_for_every_site(tmp_path, value):
    shared = adapter()
    bad = SharedAdapter({n: a + np.float32(value) for n, a in shared.factors.items()})
    for site in ("a", "b"):
        with pytest.raises(AdapterMismatchError, match="not finite"):
            received(bad, SiteState(tmp_path / site), site=site)


def test_another_number_of_folds_is_another_adapter(tmp_path):
    state = SiteState(tmp_path)
    assert [received(adapter(folds=n), state)[0].folds for n in (1, 300, 300, 2)] == [
        1,
        300,
        300,
        2,
    ]


def test_an_adapter_is_read_checked_and_written_once_for_all_sites(tmp_path, monkeypatch):
    calls = Counter()

    def count(owner, name):
        original = getattr(owner, name)

        def call(*args, **kwargs):
            calls[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    count(client.received, "adapter_sha256")
    count(client.received, "check_fits")
    count(client.received, "join_parts")
    count(client.keeping, "write_atomic")
    count(JobConfig, "digest")
    count(JobConfig, "model_validate_json")
    states = [SiteState(tmp_path / str(n), held=tmp_path / "held") for n in range(20)]
    for shared in (adapter(1), adapter(2)):
        end = enclose(JOB, pack_parts(shared))
        header = request_of(shared)
        calls.clear()
        adapters = set()
        for number, state in enumerate(states):
            body = encode_header(header.model_copy(update={"seed": number})) + end
            request, tensors = decode_request(body)
            assert about_request(simulation_policy(), request, NOBODY, date(2026, 1, 1)) == []
            parts, _ = receive_parts(request, tensors, state)
            adapters.add(id(join_received(request, parts, LAYOUT)))
        assert len(adapters) == 1
        assert calls == {
            "adapter_sha256": 2, "check_fits": 1, "join_parts": 1, "write_atomic": 2,
            "digest": 1, "model_validate_json": 1,
        }  # fmt: skip


def test_sites_that_hold_parts_apart_join_them_to_one_adapter(tmp_path):
    """More files than this process remembers; the cohort of a site must not depend on that."""
    shared = adapter(1)
    states = [SiteState(tmp_path / str(n)) for n in range(8)]
    for state in states:
        received(shared, state)
    found = [received(shared, state, sent=())[0] for state in states]
    assert len({id(each) for each in found}) == 1
    assert found[0].sha256() == shared.sha256()


def test_a_job_is_never_taken_for_another():
    policy = simulation_policy()
    other = JobConfig(name="other")
    for _ in range(2):
        assert about_request(policy, request_of(adapter()), NOBODY, date(2026, 1, 1)) == []
        said = about_request(policy, request_of(adapter(), job=other), NOBODY, date(2026, 1, 1))
        assert [objection.reason for objection in said] == ["job-digest"]
