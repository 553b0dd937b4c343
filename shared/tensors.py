"""Named arrays as safetensors, fast for many messages of the same form.

The library defines the format: it writes the first message of a form and checks the first that
comes. A form is the names, types and shapes of a message's arrays; the sites of a federation
answer in the same form round after round, so for those that follow only the numbers are copied.
They lie side by side in one piece of memory, and what is done to all of them is done at once.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from shared.errors import WireError

_LENGTH = 8
_FORMS = 16
_LONGEST = 2**20
"""Bytes of the longest header whose form is remembered; that of 9,000 arrays."""

Tensors = Mapping[str, NDArray[np.generic]]
"""Arrays by name, as every message has them."""

Number = TypeVar("Number", bound=np.generic)
_Signature = tuple[tuple[str, np.dtype[np.generic], tuple[int, ...]], ...]


class Place(NamedTuple):
    """Where an array is: ``offset`` bytes after the first number of all, and how many entries."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    offset: int
    entries: int


@dataclass(frozen=True, eq=False)
class Form:
    """Names, types and shapes of arrays side by side; the same object for the same header.

    Attributes:
        header: Safetensors' header, with its length in front.
        places: In the order of their numbers.
        size: Bytes of all numbers together.
    """

    header: bytes
    places: tuple[Place, ...]
    size: int

    @cached_property
    def by_name(self) -> Mapping[str, Place]:
        """The places by name."""
        return {place.name: place for place in self.places}

    @cached_property
    def number_sizes(self) -> frozenset[int]:
        """Bytes of a number, of all arrays."""
        return frozenset(place.dtype.itemsize for place in self.places)


class Packed(Mapping[str, NDArray[np.generic]]):
    """Arrays by name, side by side in one buffer.

    Args:
        form: What the arrays are.
        buffer: Holds their numbers; where it cannot be written, neither can the arrays.
        start: Where in the buffer, in bytes.
    """

    def __init__(self, form: Form, buffer: bytes | NDArray[np.generic], start: int = 0) -> None:
        self.form = form
        self._buffer = buffer
        self._start = start

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        place = self.form.by_name[name]
        return np.ndarray(place.shape, place.dtype, self._buffer, self._start + place.offset)

    def __iter__(self) -> Iterator[str]:
        return iter(self.form.by_name)

    def __len__(self) -> int:
        return len(self.form.places)

    def numbers(self, dtype: type[Number]) -> NDArray[Number]:
        """Return the numbers of all arrays as one array, in the order of the form's places.

        Raises:
            ValueError: If a number of the arrays has another size in bytes.
        """
        size = np.dtype(dtype).itemsize
        if self.form.number_sizes - {size}:
            raise ValueError(f"numbers of {self.form.number_sizes} bytes, asked for {size}")
        count = self.form.size // size
        return np.ndarray((count,), dtype, self._buffer, self._start)

    def packed(self, before: bytes = b"") -> bytes:
        """Return safetensors; see ``pack_tensors``."""
        end = self._start + self.form.size
        numbers = np.frombuffer(self._buffer, np.uint8)[self._start : end].data
        return b"".join([before, self.form.header, numbers])


def form_of(arrays: Tensors, dtype: type[np.generic] | None = None) -> Form:
    """Return the form of arrays, or the form that they would have with another type."""
    if isinstance(arrays, Packed):
        return arrays.form if dtype is None else _retyped(arrays.form, np.dtype(dtype))
    other = None if dtype is None else np.dtype(dtype)
    return _written(tuple((name, other or a.dtype, a.shape) for name, a in arrays.items()))


def side_by_side(arrays: Tensors) -> Packed:
    """Return arrays as ``Packed``: themselves if they are, or else a copy of all of them."""
    if isinstance(arrays, Packed):
        return arrays
    ordered = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    form = form_of(ordered)
    return Packed(form, b"".join([ordered[place.name].data for place in form.places]))


def pack_tensors(arrays: Tensors, before: bytes = b"") -> bytes:
    """Return safetensors: the same bytes as the library's for the same arrays.

    Args:
        arrays: The arrays by name.
        before: Bytes to put in front, so that nothing is copied twice.
    """
    return side_by_side(arrays).packed(before)


def unpack_tensors(content: bytes, begin: int = 0) -> Packed:
    """Return the arrays in safetensors, as views of ``content`` that cannot be written.

    Args:
        content: Holds the safetensors.
        begin: Where they begin; a multiple of 8, or else NumPy is slow with the arrays.

    Raises:
        WireError: If it is not safetensors, or has numbers of a type that NumPy lacks.
    """
    length = _LENGTH + int.from_bytes(content[begin : begin + _LENGTH], "little")
    try:
        form = _form(content[begin : begin + length], len(content) - begin)
    except (ValueError, TypeError, KeyError, RecursionError, SafetensorError) as error:
        raise WireError(f"body: damaged ({type(error).__name__})") from None
    return Packed(form, content, begin + length)


@lru_cache(_FORMS)
def _written(signature: _Signature) -> Form:
    """Return the form with the library's header."""
    arrays = {name: np.zeros(shape, dtype) for name, dtype, shape in signature}
    content = safetensors.numpy.save(arrays)
    length = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    return _form(content[:length], len(content))


@lru_cache(_FORMS)
def _retyped(form: Form, dtype: np.dtype[np.generic]) -> Form:
    return _written(tuple((place.name, dtype, place.shape) for place in form.places))


def _form(header: bytes, size: int) -> Form:
    """Return the form of safetensors of ``size`` bytes; see ``_read``."""
    return (_read if len(header) <= _LONGEST else _read.__wrapped__)(header, size)


@lru_cache(_FORMS)
def _read(header: bytes, size: int) -> Form:
    """Return the form of safetensors of ``size`` bytes.

    The library checks header and size; the numbers themselves cannot be wrong.
    """
    arrays = safetensors.numpy.load(header + bytes(max(0, size - len(header))))
    entries = json.loads(header[_LENGTH:])
    offsets = {n: e["data_offsets"][0] for n, e in entries.items() if n != "__metadata__"}
    if offsets.keys() != arrays.keys():
        raise ValueError("header: a name occurs twice")
    places = [Place(name, a.dtype, a.shape, offsets[name], a.size) for name, a in arrays.items()]
    ordered = sorted(places, key=lambda place: (place.offset, place.name))
    return Form(header, tuple(ordered), size - len(header))
