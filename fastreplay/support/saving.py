# SPDX-License-Identifier: MIT
"""Pickles much data in little memory: as integers, piece by piece, made as the pickler asks for them.

A pickler keeps every object that it has written until it is done, so that another reference to it can be told, and
an unpickler every one that it has read: of bytes and arrays a whole second copy comes together. Integers, of any
length, are the exception in every protocol. Both take them in batches of at most a thousand, which bounds what is
held at once. They also name nothing of NumPy's, whose modules move between versions.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]
    # Takes an integer at each step.
    Parser = Generator[None, int, None]

__all__ = ["Format", "Receiver", "Saved", "SavedState", "pieces", "run_length"]

_RUN_BYTES = 1 << 20  # contiguous memory through which the data goes
_PIECE_BYTES = 4096
# Protocols 0 and 1 write integers in decimal, and Python converts no more than 4300 digits.
_SMALL_PIECE_BYTES = 1024
# Arrays among an object's attributes that are worth the trouble.
_LARGE_BYTES = 1 << 16

OwnerT = TypeVar("OwnerT")

Format = tuple[int, str]  # bytes of a piece, byte order of the data


def format_of(protocol: int) -> Format:
    """Return the form that data is given in a protocol."""
    return (_PIECE_BYTES if protocol >= 2 else _SMALL_PIECE_BYTES), sys.byteorder


def run_length(row_bytes: int) -> int:
    """Return how many rows are copied at once."""
    return max(1, _RUN_BYTES // max(1, row_bytes))


def pieces(array: Array, form: Format) -> Iterator[int]:
    """Yield the bytes of a C-contiguous array as integers."""
    data = _bytes_of(array)
    for start in range(0, len(data), form[0]):
        yield int.from_bytes(data[start : start + form[0]], "little")


def _bytes_of(array: Array) -> memoryview:
    data: Any = array.reshape(-1).view(np.uint8)
    return memoryview(data)


class Receiver:
    """Takes the integers of a saved object in the order in which they were made, as unpicklers give them to lists."""

    def __init__(self, form: Format) -> None:
        piece_bytes, byte_order = form
        if byte_order != sys.byteorder:
            raise ValueError(f"expected data of a {sys.byteorder}-endian machine, got {byte_order}-endian")
        self._piece_bytes = piece_bytes
        self.is_complete = False
        self._parser = self._parse()
        next(self._parser)

    def append(self, piece: int) -> None:
        """Take the next integer.

        Raises:
            ValueError: It is none, or not of the size that comes next, or one too many.
        """
        if type(piece) is not int or piece < 0:
            raise ValueError(f"expected a piece of the data, got {piece!r}")
        try:
            self._parser.send(piece)
        except StopIteration:
            raise ValueError("the data are longer than what they are of") from None

    def extend(self, numbers: Iterable[int]) -> None:
        """Take the next integers."""
        for number in numbers:
            self.append(number)

    def _parse(self) -> Parser:
        """Take the integers, and set `is_complete` wherever they may end."""
        raise NotImplementedError

    def _fill(self, array: Array) -> Parser:
        """Take the bytes of a C-contiguous array."""
        data = _bytes_of(array)
        for start in range(0, len(data), self._piece_bytes):
            part = data[start : start + self._piece_bytes]
            piece = yield
            try:
                part[:] = piece.to_bytes(len(part), "little")
            except OverflowError:
                raise ValueError(
                    f"expected a piece of {len(part)} bytes, got one of {piece.bit_length()} bits"
                ) from None
        if array.dtype == np.bool_ and array.size and array.view(np.uint8).max() > 1:
            raise ValueError("expected truth values of one bit")


class Saved:
    """Arrays of an object, to be pickled in little memory; what is loaded is a `Loaded` with the object.

    Args:
        make: Makes an object like it, and returns it with its arrays to be filled.
        arguments: Of `make`.
        arrays: What fills them. Each may have any strides.
    """

    def __init__(
        self, make: Callable[..., tuple[Any, Sequence[Array]]], arguments: tuple[Any, ...], arrays: Sequence[Array]
    ) -> None:
        self._make = make
        self._arguments = arguments
        self._arrays = arrays

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        form = format_of(protocol)
        return Loaded, (self._make, self._arguments, form), None, self._pieces(form)

    def _pieces(self, form: Format) -> Iterator[int]:
        for array in self._arrays:
            for run in _runs(array):
                yield from pieces(np.ascontiguousarray(run), form)


class Loaded(Receiver, Generic[OwnerT]):
    """An object whose arrays are filled with what `Saved` gave; `owner` is it, once `is_complete`."""

    def __init__(
        self, make: Callable[..., tuple[OwnerT, Sequence[Array]]], arguments: tuple[Any, ...], form: Format
    ) -> None:
        self.owner, self._arrays = make(*arguments)
        super().__init__(form)

    def _parse(self) -> Parser:
        for array in self._arrays:
            for run in _runs(array):
                part = np.empty(run.shape, run.dtype)
                yield from self._fill(part)
                run[...] = part
        self.is_complete = True
        yield


def _runs(array: Array) -> Iterator[Array]:
    if array.ndim == 0:
        array = array.reshape(1)
    length = run_length(array.nbytes // max(1, len(array)))
    for start in range(0, len(array), length):
        yield array[start : start + length]


def _empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Array, list[Array]]:
    array = np.empty(shape, dtype)
    return array, [array]


class SavedState(dict[str, Any]):
    """Attributes of an object, of which those arrays that lie in its storage are pickled as one `Saved`.

    Args:
        attributes: All of them, the storage's arrays, or dicts of such, included.
        storage: Whose arrays they are.
        save: Makes it a `Saved`.

    Attributes:
        loaded: The storage that was loaded, of which nobody else has hold; None in a state that was not loaded.
    """

    def __init__(self, attributes: dict[str, Any], storage: Any, save: Callable[[], Saved]) -> None:
        super().__init__(attributes)
        self.loaded: Any = None
        self._storage = storage
        self._save = save

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        columns = self._storage.columns()
        others = {name: value for name, value in self.items() if not (name in columns and columns[name] is value)}
        large = {name: _saved_array(value) for name, value in others.items() if _is_large(value)}
        return _loaded_state, ({**others, **large}, self._save(), tuple(self))


def _saved_array(array: Array) -> Saved:
    return Saved(_empty, (array.shape, array.dtype), [array])


def _is_large(value: object) -> bool:
    return type(value) is np.ndarray and not value.dtype.hasobject and value.nbytes > _LARGE_BYTES


def _loaded_state(attributes: dict[str, Any], storage: Loaded[Any], names: tuple[str, ...]) -> SavedState:
    loaded = {name: value for name, value in attributes.items() if isinstance(value, Loaded)}
    for name, value in {**loaded, "the storage": storage}.items():
        if not value.is_complete:
            raise ValueError(f"{name}: the data end too early")
    columns = {name: column for name, column in storage.owner.columns().items() if name in names}
    arrays = {name: value.owner for name, value in loaded.items()}
    state = SavedState({**columns, **attributes, **arrays}, storage.owner, storage.owner.save)
    state.loaded = storage.owner
    return state
