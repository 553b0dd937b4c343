"""Named arrays as safetensors, fast for many messages of the same form.

The library defines the format: it writes the first message of a form and checks the first that
comes. A form is the names, types and shapes of a message's arrays; the sites of a federation
answer in the same form round after round, so for those that follow only the numbers are copied.
"""

import json
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from shared.errors import WireError

Tensors = dict[str, NDArray[np.generic]]

_LENGTH = 8
_FORMS = 16
_LONGEST = 2**20
"""Bytes of the longest header whose form is remembered; that of 9,000 arrays."""

_Form = tuple[tuple[str, np.dtype[np.generic], tuple[int, ...]], ...]


def pack_tensors(tensors: Mapping[str, NDArray[np.generic]], before: bytes = b"") -> bytes:
    """Return safetensors: the same bytes as the library's for the same arrays.

    Args:
        tensors: The arrays by name.
        before: Bytes to put in front, so that nothing is copied twice.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    form = tuple((name, array.dtype, array.shape) for name, array in arrays.items())
    header, order = _written(form)
    return b"".join([before, header, *(arrays[name].data for name in order)])


def unpack_tensors(content: bytes, begin: int = 0) -> Tensors:
    """Return the arrays in safetensors, as views of ``content`` that cannot be written.

    Args:
        content: Holds the safetensors.
        begin: Where they begin; a multiple of 8, or else NumPy is slow with the arrays.

    Raises:
        WireError: If it is not safetensors, or has numbers of a type that NumPy lacks.
    """
    length = _LENGTH + int.from_bytes(content[begin : begin + _LENGTH], "little")
    start = begin + length
    read = _read if length <= _LONGEST else _read.__wrapped__
    try:
        table = read(content[begin:start], len(content) - begin)
    except (ValueError, TypeError, KeyError, RecursionError, SafetensorError) as error:
        raise WireError(f"body: damaged ({type(error).__name__})") from None
    return {
        name: np.ndarray(shape, dtype, content, start + offset)
        for name, dtype, shape, offset in table
    }


@lru_cache(_FORMS)
def _written(form: _Form) -> tuple[bytes, tuple[str, ...]]:
    """Return the library's header for a form, and the names in the order of their numbers."""
    content = safetensors.numpy.save({name: np.zeros(shape, kind) for name, kind, shape in form})
    start = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    offsets = _offsets(content[:start])
    return content[:start], tuple(sorted(offsets, key=lambda name: offsets[name]))


@lru_cache(_FORMS)
def _read(
    header: bytes, size: int
) -> tuple[tuple[str, np.dtype[np.generic], tuple[int, ...], int], ...]:
    """Return name, type, shape and offset of the arrays in a content of ``size`` bytes.

    The library checks header and size; the numbers themselves cannot be wrong.
    """
    arrays = safetensors.numpy.load(header + bytes(max(0, size - len(header))))
    offsets = _offsets(header)
    if offsets.keys() != arrays.keys():
        raise ValueError("header: a name occurs twice")
    table = [(name, a.dtype, a.shape, offsets[name][0]) for name, a in arrays.items()]
    return tuple(sorted(table, key=lambda entry: (entry[3], entry[0])))


def _offsets(header: bytes) -> dict[str, list[int]]:
    entries = json.loads(header[_LENGTH:])
    return {n: entry["data_offsets"] for n, entry in entries.items() if n != "__metadata__"}
