# SPDX-License-Identifier: MIT
"""A segment of a checkpoint: one safetensors file, written once, of which every byte is known before it is read.

The header follows from the columns and the number of rows, so that a reader compares it instead of parsing it.
"""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastreplay import _core
from fastreplay.checkpoint.past_cache import aligned, read_past_cache
from fastreplay.checkpoint.stored import Column, order_in_files

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = [
    "Entry", "Scratch", "SegmentForm", "attached_form", "check_read", "check_size", "checksums_of", "columns_in", "read"
]  # fmt: skip

# Bytes that one checksum is of: so near to its place a damage is told.
_CHUNK_BYTES = 1 << 20
_ALIGNMENT = 64
# By NumPy's names; what else there is (longdouble, complex128) is stored as bytes.
_DTYPES = {
    "bool": "BOOL", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64", "uint8": "U8", "uint16": "U16",
    "uint32": "U32", "uint64": "U64", "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
    "complex64": "C64",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """What a manifest says of a segment.

    Attributes:
        file: Its name.
        first: The ticket of its first row.
        end: One past that of its last.
        beside: How many frames lie beside its records, a group.
        checksums: CRC-32 of each chunk of the file, in hexadecimal, one after another.
        origin: Which buffer wrote it.
    """

    file: str
    first: int
    end: int
    beside: tuple[int, ...]
    checksums: str
    origin: str


class SegmentForm:
    """The form of a segment: the order, places and names of what is in it.

    Args:
        columns: With a row a ticket.
        beside: With as many rows as the segment says.
    """

    def __init__(self, columns: Sequence[Column], beside: Sequence[Column] = ()) -> None:
        self.columns = [*columns, *beside]
        self._num_beside = len(beside)
        self._dtypes = [_DTYPES.get(column.dtype.name) for column in self.columns]  # the name takes long to make
        self.row_bytes = sum(column.row_bytes for column in columns)  # but for what lies beside
        self.order = order_in_files(self.columns)

    def shapes(self, entry: Entry) -> list[tuple[int, ...]]:
        """Return the shape of each column of a segment."""
        counts = [entry.end - entry.first] * (len(self.columns) - self._num_beside) + [*entry.beside]
        return [(count, *column.shape) for count, column in zip(counts, self.columns, strict=True)]

    def header(self, entry: Entry) -> bytes:
        """Return what a segment begins with."""
        metadata = {"first_ticket": str(entry.first)}
        named = zip(self.columns, self._dtypes, strict=True)
        metadata |= {f"dtype of {column.name}": column.dtype.str for column, dtype in named if dtype is None}
        header: dict[str, Any] = {"__metadata__": metadata}
        shapes, at = self.shapes(entry), 0
        for i in self.order:
            column, shape = self.columns[i], shapes[i]
            end = at + math.prod(shape) * column.dtype.itemsize
            dtype = self._dtypes[i]
            if dtype is None:
                dtype, shape = "U8", (*shape, column.dtype.itemsize)
            header[column.name] = {"dtype": dtype, "shape": [*shape], "data_offsets": [at, end]}
            at = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 8) % _ALIGNMENT)
        return len(text).to_bytes(8, "little") + text

    def num_bytes(self, entry: Entry) -> int:
        """Return the bytes of a segment."""
        return len(self.header(entry)) + self.payload_bytes(entry)

    def payload_bytes(self, entry: Entry) -> int:
        """Return the bytes of its columns."""
        return sum(math.prod(s) * c.dtype.itemsize for s, c in zip(self.shapes(entry), self.columns, strict=True))


def attached_form() -> SegmentForm:
    """Return the form of a segment of bytes that somebody gave."""
    return SegmentForm([Column("data", (), np.dtype(np.uint8))])


def checksums_of(parts: Sequence[Array]) -> str:
    """Return the checksums of bytes (n,) that lie one after another in a file."""
    return "".join(f"{each:08x}" for each in _core.crc32_of_chunks(parts, _CHUNK_BYTES))


class Scratch:
    """Memory of segments, one after another, on their way to a disk or from it."""

    def __init__(self) -> None:
        self._memory: Array = aligned(0)

    def of(self, num_bytes: int) -> Array:
        """Return so many bytes, which begin at a multiple of a page, and which the next call takes again."""
        if len(self._memory) < num_bytes:
            self._memory = aligned(num_bytes)
        return self._memory[:num_bytes]

    def laid(self, form: SegmentForm, entry: Entry, arrays: Sequence[Array]) -> Array:
        """Return the bytes of a segment. What of its columns lies there already is not moved."""
        data, header = self.of(form.num_bytes(entry)), form.header(entry)
        data[: len(header)] = np.frombuffer(header, np.uint8)
        places = _columns(data, len(header), form, entry)
        for i in form.order:  # as they lie: where there were gaps between them, none is laid over the next
            if places[i].ctypes.data != arrays[i].ctypes.data:
                places[i][...] = arrays[i]
        return data


def check_size(fd: int, path: str, form: SegmentForm, entry: Entry) -> int:
    """Return the bytes of a segment, before there is memory for it.

    Args:
        fd: The file, open.
        path: What messages call it.
        form: Of the segment.
        entry: What the manifest says of it.

    Raises:
        OSError: It cannot be looked at.
        ValueError: The file has another size.
    """
    num_bytes, there = form.num_bytes(entry), os.fstat(fd).st_size
    if there != num_bytes:
        raise ValueError(f"{path}: expected {num_bytes:,} bytes, got {there:,}")
    if len(entry.checksums) != 8 * -(-num_bytes // _CHUNK_BYTES):
        raise ValueError(f"{path}: expected a checksum of each {_CHUNK_BYTES:,} of {num_bytes:,} bytes")
    return num_bytes


def read(fd: int, path: str, data: Any) -> None:
    """Fill memory from a file, past the system's cache of files where that has nothing of it.

    Args:
        fd: The file, open.
        path: What messages call it.
        data: The memory, from `Scratch`.

    Raises:
        OSError: It cannot be read.
        ValueError: It ends before.
    """
    _read_on(fd, path, data, read_past_cache(fd, memoryview(data)))


def check_read(fd: int, path: str, entry: Entry, data: Array) -> None:
    """Compare each chunk of what was read with its checksum.

    Args:
        fd: The file, open.
        path: What messages call it.
        entry: What the manifest says of it.
        data: The memory.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not what was written; the message names the file and the place.
    """
    checksums = checksums_of([data])
    if checksums != entry.checksums:  # before Linux 5.19, what came past the cache beside a fork may lie in the child
        os.lseek(fd, 0, os.SEEK_SET)
        _read_on(fd, path, data, 0)
        checksums = checksums_of([data])
    for number, start in enumerate(range(0, len(data), _CHUNK_BYTES)):
        chunk = slice(8 * number, 8 * number + 8)
        if checksums[chunk] != entry.checksums[chunk]:
            num_bytes = len(data[start : start + _CHUNK_BYTES])
            raise ValueError(f"{path}: at byte {start}: the checksum of the next {num_bytes:,} bytes is another")


def _read_on(fd: int, path: str, data: Any, done: int) -> None:
    """Fill memory with the rest of a file, of which so many bytes are there."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # reading says what is wrong with it
            os.posix_fadvise(fd, done, 0, os.POSIX_FADV_WILLNEED)
    left = memoryview(data)[done:]
    while left:
        got = os.readv(fd, [left])
        if not got:
            raise ValueError(f"{path}: at byte {len(data) - len(left)}: expected {len(data):,} bytes, got an end")
        left = left[got:]


def columns_in(data: Array, path: str, form: SegmentForm, entry: Entry) -> list[Array]:
    """Return the columns of a segment whose bytes are in memory.

    Raises:
        ValueError: They are not what was written; the message names the file and the place.
    """
    header = form.header(entry)
    if data[: len(header)].tobytes() != header:
        raise ValueError(f"{path}: at byte 0: expected the header of tickets [{entry.first}, {entry.end})")
    columns = _columns(data, len(header), form, entry)
    for column, array in zip(form.columns, columns, strict=True):
        if array.dtype == np.bool_ and array.view(np.uint8).max(initial=0) > 1:
            raise ValueError(f"{path}: {column.name}: expected truth values of one bit")
    return columns


def _columns(data: Array, begin: int, form: SegmentForm, entry: Entry) -> list[Array]:
    """Return views of the columns of a segment, of which the first begins at a byte."""
    shapes, arrays, at = form.shapes(entry), {}, begin
    for i in form.order:
        end = at + math.prod(shapes[i]) * form.columns[i].dtype.itemsize
        arrays[i] = data[at:end].view(form.columns[i].dtype).reshape(shapes[i])
        at = end
    return [arrays[i] for i in range(len(shapes))]
