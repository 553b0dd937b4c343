"""Sealed files: any bit, frame or name that differs, and nothing opens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.security import sealing
from shared.security.sealing import (
    FRAME_BYTES,
    SealError,
    key_id,
    key_name_of,
    key_of_passphrase,
    new_key,
    seal,
    unseal,
    unwrap,
    wrap,
)

KEY = bytes(range(32))
TAG = 16


@pytest.mark.parametrize(
    "size", [0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 3 * FRAME_BYTES]
)
def test_opens_to_what_was_sealed(size):
    content = (b"0123456789" * (size // 10 + 1))[:size]
    sealed = seal(KEY, "run-1", "personal/a", content)
    assert unseal(KEY, "personal/a", sealed) == content
    assert key_name_of(sealed) == "run-1"
    assert content[:1000] not in sealed or size == 0 or size < 8


def test_the_same_content_is_sealed_differently_each_time():
    first, second = (seal(KEY, "run", "a", bytes(64)) for _ in range(2))
    assert first[-80:] != second[-80:]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_changed_bit_is_noticed(data):
    sealed = bytearray(seal(KEY, "run-1", "a", b"some content" * 4))
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SealError):
        unseal(KEY, "a", bytes(sealed))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_cut_is_noticed(data):
    sealed = seal(KEY, "run-1", "a", b"some content" * 4)
    with pytest.raises(SealError):
        unseal(KEY, "a", sealed[: data.draw(st.integers(0, len(sealed) - 1))])


def test_frames_cannot_be_left_out_swapped_repeated_or_added():
    sealed = seal(KEY, "run", "a", bytes(3 * FRAME_BYTES))
    step = FRAME_BYTES + TAG
    start = len(sealed) - 3 * step
    head, frames = sealed[:start], [sealed[start + i * step :][:step] for i in range(3)]
    assert unseal(KEY, "a", head + b"".join(frames)) == bytes(3 * FRAME_BYTES)
    for order in ([0], [0, 1], [1, 2], [0, 2], [1, 0, 2], [0, 1, 2, 2], [0, 1, 1, 2], []):
        with pytest.raises(SealError):
            unseal(KEY, "a", head + b"".join(frames[i] for i in order))


def test_another_key_another_name_and_no_sealed_file_do_not_open():
    sealed = seal(KEY, "run", "personal/a", b"content")
    for key, name, content in (
        (new_key(), "personal/a", sealed),
        (KEY, "personal/b", sealed),
        (KEY, "personal/a", b"plain"),
        (KEY, "personal/a", b""),
        (KEY, "personal/a", sealed + b"x"),
    ):
        with pytest.raises(SealError):
            unseal(key, name, content)


def test_frames_of_two_files_cannot_be_mixed():
    first, second = (seal(KEY, "run", "a", bytes([n]) * 10) for n in (1, 2))
    with pytest.raises(SealError):
        unseal(KEY, "a", first[:-26] + second[-26:])


def test_wrapped_keys_are_bound_to_key_and_purpose():
    key, other = new_key(), new_key()
    wrapped = wrap(key, KEY, "run-1")
    assert KEY not in wrapped
    assert unwrap(key, wrapped, "run-1") == KEY
    for wrapping, purpose, content in (
        (other, "run-1", wrapped),
        (key, "run-2", wrapped),
        (key, "run-1", wrapped[:-1]),
        (key, "run-1", b""),
    ):
        with pytest.raises(SealError):
            unwrap(wrapping, content, purpose)


def test_a_key_id_tells_keys_apart_and_is_none_of_their_bytes():
    assert key_id(KEY) == key_id(KEY) != key_id(new_key())
    assert bytes.fromhex(key_id(KEY)) not in KEY


def test_passphrases_are_derived_by_scrypt():
    assert sealing._SCRYPT_N >= 2**17
    assert key_of_passphrase("five words of a sentence", bytes(32)).hex() == (
        "65811ac0a3cdfef053ab3d8a8b10ec1749793facda41a414c552ce5f32b5d06c"
    )


def test_too_long_a_key_name_is_refused():
    with pytest.raises(ValueError, match="too long"):
        seal(KEY, "r" * 5000, "a", b"")
