"""Header and tensors come back as they were; whatever else comes is an error, never code."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shared.adapter import SharedAdapter, adapter_sha256
from shared.config import JobConfig, parse_job
from shared.errors import VersionError, WireError
from shared.messages import (
    Description,
    Reply,
    Request,
    decode_reply,
    decode_request,
    decode_request_header,
    enclose,
    encode,
    encode_header,
    question_of,
    with_attempt,
)
from shared.parts import join_parts, pack_parts, part_digests, unpack_parts
from shared.versions import PROTOCOL, program_version

SHA = "a" * 64
JOB = JobConfig(name="job")


def request(**changes):
    values = {"kind": "train", "run": "run", "base_sha256": SHA, "job_sha256": SHA, "job": JOB}
    return Request(**{**values, **changes})


def reply(**changes):
    values = {"kind": "train", "run": "run", "round": 1, "attempt": 1, "site": "north"}
    return Reply(**{**values, **changes})


arrays = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20).filter(
        lambda name: name != "__metadata__"
    ),
    hnp.arrays(
        st.sampled_from([np.float32, np.uint32]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    max_size=4,
)


@given(
    arrays,
    st.integers(0, 2**63 - 1),
    st.dictionaries(st.sampled_from(["image", "text"]), st.integers(1, 65535)),
    st.floats(2**-20, 2**40),
)
@settings(max_examples=60)
def test_a_request_comes_back_as_it_was(tensors, seed, weights, scale):
    sent = request(seed=seed, weights=weights, scale=scale, factors=("B",))
    header, came = decode_request(encode(sent, tensors))
    assert header == sent
    assert came.keys() == tensors.keys()
    for name, array in tensors.items():
        assert came[name].dtype == array.dtype
        assert came[name].shape == array.shape
        assert came[name].tobytes() == np.ascontiguousarray(array).tobytes()


@given(arrays, st.integers(0, 10**6))
@settings(max_examples=30)
def test_a_reply_comes_back_as_it_was(tensors, count):
    sent = reply(description=Description(kind="image", examples={"image": count}))
    header, came = decode_reply(encode(sent, tensors))
    assert header == sent
    assert adapter_sha256(came) == adapter_sha256(tensors)


@pytest.mark.parametrize("rule", ["fedavg", "ffa", "altfold"])
def test_a_job_means_the_same_after_the_trip(rule):
    job = parse_job({"name": "job", "aggregate": {"rule": rule}})
    header, _ = decode_request(encode(request(job=job)))
    assert header.job == job
    assert header.job.digest() == job.digest()


@given(st.binary(max_size=200))
def test_garbage_is_refused(body):
    for decode in (decode_request, decode_reply):
        with pytest.raises(WireError):
            decode(body)


@given(st.data())
def test_a_damaged_body_is_refused_or_still_a_request(data):
    body = encode(request(), {"A/x": np.ones((2, 2), np.float32)})
    position = data.draw(st.integers(0, len(body) - 1))
    damaged = bytearray(body)
    damaged[position] ^= data.draw(st.integers(1, 255))
    for candidate in (bytes(damaged), body[:position]):
        try:
            header, _ = decode_request(candidate)
        except WireError:
            continue
        assert isinstance(header, Request)


HEADER = encode_header(request())[13:]


def body_of(text, enclosure=b""):
    return b"CONS" + bytes([PROTOCOL]) + len(text).to_bytes(8, "little") + text + enclosure


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"kind": "train"}',
        HEADER[:-1] + b', "extra": 1}',
        HEADER.replace(b'"scale":1.0', b'"scale":NaN'),
        b"\xff\xfe",
    ],
)
def test_a_header_outside_of_the_schema_is_refused(text):
    with pytest.raises(WireError):
        decode_request(body_of(text, enclose(JOB, {})))
    decode_request(body_of(HEADER, enclose(JOB, {})))


def test_tensors_of_an_unknown_type_are_refused():
    header = json.dumps({"x": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    tensors = len(header).to_bytes(8, "little") + header + b"\0\0"
    with pytest.raises(WireError):
        decode_request(body_of(HEADER, job_and(tensors)))


def job_and(tensors):
    text = JOB.model_dump_json().encode()
    return len(text).to_bytes(8, "little") + text + tensors


def test_requests_with_one_enclosure_have_one_job_and_one_adapter():
    tensors = {"A/x": np.ones((2, 2), np.float32)}
    end = enclose(JOB, tensors)
    north, south = (encode_header(request(site=name)) + end for name in ("north", "south"))
    assert north == encode(request(site="north"), tensors)
    (first, came), (second, came_too) = decode_request(north), decode_request(south)
    assert (first.site, second.site) == ("north", "south")
    assert first.job is second.job
    assert came is came_too


def test_an_enclosure_is_never_taken_for_another():
    job = JobConfig(name="another")
    bodies = [
        encode(request(), {"A/x": np.ones((2, 2), np.float32)}),
        encode(request(), {"A/x": np.zeros((2, 2), np.float32)}),
        encode(request(job=job), {"A/x": np.zeros((2, 2), np.float32)}),
        encode(request()),
    ]
    for body in (*bodies, *reversed(bodies)):
        header, tensors = decode_request(body)
        assert encode(header, tensors) == body


def test_a_header_of_the_old_form_is_refused():
    text = request().model_dump_json().encode()  # with the job inside
    with pytest.raises(WireError):
        decode_request(body_of(text, enclose(JOB, {})))


@pytest.mark.parametrize("length", [2**63, 10**6, 3])
def test_a_job_of_another_length_than_stated_is_refused(length):
    end = bytearray(enclose(JOB, {}))
    end[:8] = length.to_bytes(8, "little")
    with pytest.raises(WireError):
        decode_request(encode_header(request()) + bytes(end))


def test_a_question_is_the_same_whichever_parts_come_with_it():
    tensors = {"A/x": np.ones((2, 2), np.float32)}
    question = question_of(decode_request(encode(request(), tensors))[0])
    assert (
        question == question_of(request()) == question_of(decode_request_header(encode(request())))
    )


def test_another_attempt_asks_the_same_question():
    assert question_of(request(attempt=2)) == question_of(request())
    assert question_of(request(attempt=2, program="9.9")) == question_of(request())
    others = [{"round": 2}, {"run": "other"}, {"seed": 1}, {"weights": {"image": 2}}, {"folds": 1}]
    questions = {question_of(request(**other)) for other in others}
    assert len(questions - {question_of(request())}) == len(others)


def test_an_answer_becomes_that_to_another_attempt_and_its_numbers_stay():
    tensors = {"A/x": np.arange(6, dtype=np.uint32).reshape(2, 3)}
    body = encode(reply(seconds=1.25), tensors)
    again = with_attempt(body, 12)
    found, came = decode_reply(again)
    assert found == reply(seconds=1.25, attempt=12)
    assert came["A/x"].tobytes() == tensors["A/x"].tobytes()
    assert with_attempt(again, 1) == body


OTHERS = {
    "older": (2, {"kind": "train", "protocol": 2}, "another version of consilia (protocol 2.0)"),
    "newer": (9, {"program": "7.1.0", "minor": 4}, "consilia 7.1.0 (protocol 9.4)"),
    "newer minor": (PROTOCOL, {"program": "7.1.0", "minor": 4, "new": 1}, "consilia 7.1.0"),
    "forged": (9, {"program": "x\x1b[31m\n" * 9}, "another version of consilia (protocol 9.0)"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_version_is_named_with_our_own(other):
    protocol, header, named = OTHERS[other]
    text = json.dumps(header).encode()
    body = b"CONS" + bytes([protocol]) + len(text).to_bytes(8, "little") + text + b"whatever"
    for decode in (decode_request, decode_reply, decode_request_header):
        with pytest.raises(VersionError) as caught:
            decode(body)
        assert named in str(caught.value)
        assert f"this side is consilia {program_version()} (protocol {PROTOCOL}.0)" in str(
            caught.value
        )
        assert "\x1b" not in str(caught.value)


def test_a_job_that_another_version_wrote_is_told_from_a_broken_one():
    job = JOB.model_dump(mode="json") | {"novelty": 1}
    text = json.dumps(job).encode()
    end = len(text).to_bytes(8, "little") + text + enclose(JOB, {})[-10:]
    with pytest.raises(VersionError, match=r"consilia 9\.9"):
        decode_request(encode_header(request(program="9.9")) + end)
    with pytest.raises(WireError) as caught:
        decode_request(encode_header(request()) + end)
    assert not isinstance(caught.value, VersionError)


def test_a_site_that_says_so_is_of_another_version():
    body = encode(reply(run="", status="refused", reason="version", program="9.9"))
    with pytest.raises(VersionError, match=r"consilia 9\.9"):
        decode_reply(body)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_nothing_is_unpickled():
    bomb = pickle.dumps(Bomb())
    for body in (bomb, body_of(HEADER, job_and(bomb)), body_of(HEADER, bomb), body_of(bomb)):
        with pytest.raises(WireError):
            decode_request(body)


def test_a_shared_adapter_travels_in_parts():
    a, b = np.ones((2, 3), np.float32), np.full((4, 2), 2, np.float32)
    name = "base_model.model.layer"
    shared = SharedAdapter(
        {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b},
        {f"{name}.lora_A.weight": a * 3, f"{name}.lora_B.weight": b * 3},
        folds=2,
    )
    assert sorted(pack_parts(shared, ["A"])) == [f"A/{name}.lora_A.weight"]
    came = unpack_parts(pack_parts(shared))
    assert {part: adapter_sha256(came[part]) for part in came} == part_digests(shared)
    assert join_parts(came, 2).sha256() == shared.sha256()


@pytest.mark.parametrize(
    "tensors",
    [
        {"C/name": np.ones(1, np.float32)},
        {"A": np.ones(1, np.float32)},
        {"A/name": np.ones(1, np.float64)},
    ],
)
def test_a_tensor_outside_of_the_parts_is_refused(tensors):
    with pytest.raises(WireError):
        unpack_parts(tensors)
