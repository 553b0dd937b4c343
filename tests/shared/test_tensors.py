"""Arrays travel as safetensors, byte for byte the library's; what is damaged is refused."""

import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import shared.tensors
from shared.errors import WireError
from shared.tensors import Packed, form_of, pack_tensors, side_by_side, unpack_tensors

names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
arrays = st.dictionaries(
    names.filter(lambda name: name != "__metadata__"),
    hnp.arrays(
        st.sampled_from([np.float32, np.uint32, np.float64, np.uint8]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    ),
    max_size=4,
)


@given(arrays)
def test_the_bytes_are_the_librarys(tensors):
    ours = pack_tensors(tensors)
    assert unpack_tensors(ours).keys() == tensors.keys()
    for name, array in unpack_tensors(ours).items():
        assert array.tobytes() == tensors[name].tobytes()
        assert (array.dtype, array.shape) == (tensors[name].dtype, tensors[name].shape)
    theirs = safetensors.numpy.load(ours)
    assert {n: a.tobytes() for n, a in theirs.items()} == {
        n: a.tobytes() for n, a in tensors.items()
    }
    assert len(ours) == len(safetensors.numpy.save(tensors))
    assert pack_tensors(tensors, before=b"head") == b"head" + ours


def test_a_second_message_of_a_form_has_its_own_numbers():
    form = {"b": np.zeros((2, 3), np.float32), "a": np.zeros(4, np.uint32)}
    first = pack_tensors({n: a + 1 for n, a in form.items()})
    second = pack_tensors({n: a + 2 for n, a in form.items()})
    for content, value in ((first, 1), (second, 2), (first, 1)):
        assert all((array == value).all() for array in unpack_tensors(content).values())
    assert pack_tensors(form) == safetensors.numpy.save(form)


def test_an_array_in_another_order_is_sent_in_c_order():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    (came,) = unpack_tensors(pack_tensors({"x": array.T})).values()
    assert np.array_equal(came, array.T)


def test_arrays_of_one_form_lie_side_by_side():
    tensors = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(4, np.float32)}
    packed = side_by_side(tensors)
    assert side_by_side(packed) is packed
    assert list(packed.numbers(np.float32)) == [1, 1, 1, 1, 0, 1, 2, 3, 4, 5]
    assert {name: array.tolist() for name, array in packed.items()} == {
        "a": [1] * 4,
        "b": [[0, 1, 2], [3, 4, 5]],
    }
    assert len(packed) == 2
    assert "c" not in packed
    with pytest.raises(KeyError):
        packed["c"]
    came = unpack_tensors(pack_tensors(tensors))
    assert came.form is packed.form is form_of({"a": tensors["a"], "b": tensors["b"]})
    steps = form_of(packed, np.uint32)
    assert steps is form_of(tensors, np.uint32) is not packed.form
    assert [place.dtype for place in steps.places] == [np.uint32] * 2


def test_numbers_of_another_size_are_not_taken_for_others():
    packed = side_by_side({"a": np.ones(2, np.float64), "b": np.ones(2, np.float32)})
    for dtype in (np.float32, np.float64):
        with pytest.raises(ValueError, match="numbers of"):
            packed.numbers(dtype)
    assert side_by_side({}).numbers(np.float64).size == 0


def test_numbers_can_be_written_where_their_buffer_can():
    form = form_of({"a": np.zeros(2, np.float32), "b": np.zeros((2, 2), np.float32)})
    packed = Packed(form, np.arange(6, dtype=np.float32))
    packed["b"][0] = 9
    assert list(packed.numbers(np.float32)) == [0, 1, 9, 9, 4, 5]
    assert np.array_equal(unpack_tensors(pack_tensors(packed))["b"], [[9, 9], [4, 5]])


def test_what_was_read_cannot_be_written():
    (array,) = unpack_tensors(pack_tensors({"x": np.ones(3, np.float32)})).values()
    with pytest.raises(ValueError, match="read-only"):
        array += 1


def rewritten(content, **entry):
    """A content whose header says something else of the array ``x``."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["x"] |= entry
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


CONTENT = pack_tensors({"x": np.ones((2, 2), np.float32), "y": np.ones(1, np.float32)})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        CONTENT[:-1],
        CONTENT + b"\0",
        CONTENT[:20],
        b"\xff" * 8 + CONTENT[8:],
        rewritten(CONTENT, data_offsets=[0, 12]),
        rewritten(CONTENT, data_offsets=[4, 20]),
        rewritten(CONTENT, data_offsets=[-16, 0]),
        rewritten(CONTENT, shape=[3, 2]),
        rewritten(CONTENT, dtype="U32", shape=[2**40]),
        rewritten(CONTENT, dtype="BF16", shape=[2, 4]),
    ],
)
def test_what_is_damaged_is_refused_every_time(content):
    unpack_tensors(CONTENT)  # a sound message of nearly that form came before
    for _ in range(2):
        with pytest.raises(WireError):
            unpack_tensors(content)


@given(st.integers(0, len(CONTENT) - 1), st.integers(1, 255))
def test_any_damaged_byte_is_refused_or_in_the_numbers(position, change):
    damaged = bytearray(CONTENT)
    damaged[position] ^= change
    try:
        tensors = unpack_tensors(bytes(damaged))
    except WireError:
        return
    theirs = safetensors.numpy.load(bytes(damaged))
    assert {n: (a.tobytes(), a.dtype, a.shape) for n, a in tensors.items()} == {
        n: (a.tobytes(), a.dtype, a.shape) for n, a in theirs.items()
    }


def test_only_the_first_message_of_a_form_goes_through_the_library(monkeypatch):
    tensors = {f"name-{n}": np.ones((3, n + 1), np.float32) for n in range(7)}
    contents = [pack_tensors({name: a * k for name, a in tensors.items()}) for k in range(5)]
    unpack_tensors(contents[0])
    monkeypatch.setattr(safetensors.numpy, "load", lambda _: pytest.fail("read again"))
    monkeypatch.setattr(safetensors.numpy, "save", lambda _: pytest.fail("written again"))
    for k, content in enumerate(contents):
        assert unpack_tensors(content)["name-6"].sum() == 21 * k
        assert pack_tensors({name: a * k for name, a in tensors.items()}) == content


def test_a_header_of_great_length_is_not_remembered():
    shared.tensors._read.cache_clear()
    many = {"x" * 100 + str(n): np.zeros(0, np.float32) for n in range(9000)}
    assert len(unpack_tensors(pack_tensors(many))) == 9000
    assert shared.tensors._read.cache_info().currsize == 0
