# SPDX-License-Identifier: MIT
"""A segment of a checkpoint: one safetensors file, written once, of which every byte is known before it is read.

The header follows from the columns and the number of rows, so that a reader compares it instead of parsing it.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastreplay import _core
from fastreplay.checkpoint.stored import Column

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fastreplay.checkpoint.folder import Folder

    Array = NDArray[Any]

__all__ = ["Entry", "Scratch", "SegmentForm", "attached_form", "read_segment", "write_segment"]

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
        # Larger elements first: then all are aligned.
        self.order = sorted(range(len(self.columns)), key=lambda i: -self.columns[i].dtype.alignment)

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


def write_segment(folder: Folder, form: SegmentForm, entry: Entry, arrays: Sequence[Array]) -> tuple[int, str]:
    """Write a segment; return the file, to be finished, and its checksums.

    Raises:
        OSError: It cannot be written; then it is not there.
    """
    parts: list[Any] = [np.frombuffer(form.header(entry), np.uint8)]
    parts += [_bytes_of(np.ascontiguousarray(arrays[i])) for i in form.order]
    checksums = "".join(f"{each:08x}" for each in _core.crc32_of_chunks(parts, _CHUNK_BYTES))
    return folder.write(entry.file, parts), checksums


class Scratch:
    """Memory that segments are read into, one after another."""

    def __init__(self) -> None:
        self._memory: Array = np.empty(0, np.uint8)

    def of(self, num_bytes: int) -> Array:
        """Return so many bytes, which the next call takes again."""
        if len(self._memory) < num_bytes:
            self._memory = np.empty(num_bytes, np.uint8)
        return self._memory[:num_bytes]


def read_segment(fd: int, at: str, form: SegmentForm, entry: Entry, scratch: Scratch) -> list[Array]:
    """Read a segment: its columns, valid until the next is read into the same memory.

    Args:
        fd: The file, open.
        at: What messages call it.
        form: Of the segment.
        entry: What the manifest says of it.
        scratch: The memory.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not what was written; the message names the file and the place.
    """
    header = form.header(entry)
    num_bytes = len(header) + form.payload_bytes(entry)
    there = os.fstat(fd).st_size  # before there is memory for it
    if there != num_bytes:
        raise ValueError(f"{at}: expected {num_bytes:,} bytes, got {there:,}")
    if len(entry.checksums) != 8 * -(-num_bytes // _CHUNK_BYTES):
        raise ValueError(f"{at}: expected a checksum of each {_CHUNK_BYTES:,} of {num_bytes:,} bytes")
    data = scratch.of(num_bytes)
    _fill(fd, data, entry, at)
    if data[: len(header)].tobytes() != header:
        raise ValueError(f"{at}: at byte 0: expected the header of tickets [{entry.first}, {entry.end})")
    shapes, arrays, offset = form.shapes(entry), {}, len(header)
    for i in form.order:
        end = offset + math.prod(shapes[i]) * form.columns[i].dtype.itemsize
        arrays[i] = data[offset:end].view(form.columns[i].dtype).reshape(shapes[i])
        if arrays[i].dtype == np.bool_ and data[offset:end].max(initial=0) > 1:
            raise ValueError(f"{at}: {form.columns[i].name}: expected truth values of one bit")
        offset = end
    return [arrays[i] for i in range(len(shapes))]


def _fill(fd: int, data: Any, entry: Entry, path: str) -> None:
    """Fill memory from a file, chunk by chunk, each of which is compared with its checksum."""
    for number, start in enumerate(range(0, len(data), _CHUNK_BYTES)):
        chunk = data[start : start + _CHUNK_BYTES]
        left = memoryview(chunk)
        while left:
            got = os.readv(fd, [left])
            if not got:
                at = start + len(chunk) - len(left)
                raise ValueError(f"{path}: at byte {at}: expected {len(data):,} bytes, got an end")
            left = left[got:]
        (checksum,) = _core.crc32_of_chunks([chunk], _CHUNK_BYTES)
        if f"{checksum:08x}" != entry.checksums[8 * number : 8 * number + 8]:
            raise ValueError(f"{path}: at byte {start}: the checksum of the next {len(chunk):,} bytes is another")


def _bytes_of(array: Array) -> Array:
    """Return the bytes (n,) of a C-contiguous array."""
    return array.reshape(-1).view(np.uint8)
