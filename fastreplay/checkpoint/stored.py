# SPDX-License-Identifier: MIT
"""The records of a ring as they are stored: columns of fields, and each frame that some have in common once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from fastreplay import _core

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from fastreplay.schema import Schema

    Array = NDArray[Any]

__all__ = ["MOST_TICKETS", "ROWS_TOGETHER", "Column", "Readable", "Stored", "StoredForm", "order_in_files"]

# Tickets beyond it are no counts of anything: a billion inserts a second take 146 years to get there.
MOST_TICKETS = 2**62

# Columns of so many rows have no gaps between them where they are read: a block's parts begin at multiples of it.
ROWS_TOGETHER = 256

_PLACE = np.dtype(np.uint64)
_FROM_START = 0  # the source of a part: the record


class Column(NamedTuple):
    """One of the columns that records are stored as."""

    name: str
    shape: tuple[int, ...]  # of a row
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape) * self.dtype.itemsize


def order_in_files(columns: Sequence[Column]) -> list[int]:
    """Return the order of columns in a file: larger elements first, so that all are aligned."""
    return sorted(range(len(columns)), key=lambda i: -columns[i].dtype.alignment)


class Group(NamedTuple):
    """Fields that have frames in common, and where a record has them."""

    newest: int  # the column of its newest frame
    places: list[tuple[int, int]]  # the column of each field's places, and how many a row has
    shape: tuple[int, ...]  # of a frame
    dtype: np.dtype[Any]
    first_beside: int  # bytes from where what lies beside a record begins
    num_beside: int  # frames that may lie there

    @property
    def frame_bytes(self) -> int:
        """Bytes of a frame."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


class Readable(Protocol):
    """What is saved: columns of what has tickets.

    Attributes:
        columns: Those of a row a ticket.
        beside: Those of which rows have as many as they say, in order.
        num_spare: Tickets before the window that are looked up.
    """

    columns: list[Column]
    beside: list[Column]
    num_spare: int

    def window(self) -> tuple[int, int]:
        """Return the first ticket that is there, and one past the last."""

    def room(self, count: int) -> int:
        """Return how much memory it takes to copy so many rows into it; 0 where that cannot be."""

    def read(self, first: int, count: int, memory: Array | None = None) -> tuple[int, list[Array], list[Array]]:
        """Copy rows: the oldest ticket whose copy is whole, their columns, and what lies beside.

        Columns come into memory (`room`) where it is given, as they lie in a file, if there are a multiple of
        `ROWS_TOGETHER` rows; else with gaps between them.
        """

    def oldest_whole(self) -> int:
        """Return the oldest ticket of which what was read is whole."""


class StoredForm:
    """The columns of records: fields, newest frames, and codes in place of places.

    A code says whose a frame is, and which of its own: age * (frames that a record may have) + number, the age in
    tickets, 0 the number of the newest frame.

    Args:
        schema: What a transition is made of.
        groups: Where records have their frames, as the core says it.

    Attributes:
        columns: Those of a row a record.
        beside: Those of the frames beside records, of which each has as many as its codes say.
        groups: The fields that have frames in common.
        numbers: Those of the columns in the core's records.
        row_bytes: Bytes of a record's rows.
    """

    def __init__(self, schema: Schema, groups: list[tuple[list[int], int, int, int, int]]) -> None:
        self.groups: list[Group] = []
        names, fields = schema.names, tuple(schema.values())
        framed: set[int] = set()
        frames, places, self.beside = [], [], []
        for positions, newest, column, first_beside, num_beside in groups:
            field, name = fields[positions[0]], names[positions[0]]
            num_frames, shape = (1, field.shape) if field.stack is None else (field.stack, field.shape[1:])
            of_fields = [(column + i, num_frames) for i in range(len(positions))]
            self.groups.append(Group(newest, of_fields, shape, field.dtype, first_beside, num_beside))
            frames.append((newest, Column(f"{name}/frames", shape, field.dtype)))
            self.beside.append(Column(f"{name}/beside", shape, field.dtype))
            places += [
                (column + i, Column(f"{names[at]}/codes", (num_frames,), _PLACE)) for i, at in enumerate(positions)
            ]
            framed.update(positions)
        alone = [(i, Column(names[i], f.shape, f.dtype)) for i, f in enumerate(fields) if i not in framed]
        self._first_of_places = len(alone) + len(frames)
        self.numbers = [number for number, _ in [*alone, *frames, *places]]
        self.columns = [column for _, column in [*alone, *frames, *places]]
        self.row_bytes = sum(column.row_bytes for column in self.columns)

    def num_beside(self, group: Group, codes: list[Array]) -> Array:
        """Return how many frames lie beside each record, (n,), of its codes."""
        highest = np.max([each.max(axis=1, initial=0, where=each <= group.num_beside) for each in codes], axis=0)
        counts: Array = highest.astype(np.int64)
        return counts

    def codes(self, columns: list[Array]) -> Iterator[tuple[Group, list[Any]]]:
        """Yield each group, and those of the columns that are its fields' codes."""
        at = self._first_of_places
        for group in self.groups:
            yield group, columns[at : at + len(group.places)]
            at += len(group.places)


class Stored:
    """The records of a ring as columns.

    Attributes:
        form: Of the columns.
        columns: Those of a row a record.
        beside: Those of the frames beside records, of which each has as many as its codes say.
        num_spare: Records before the window that are looked up.
    """

    def __init__(self, ring: _core.Ring, schema: Schema) -> None:
        self.ring = ring
        self.num_spare = ring.num_spare
        self._records = ring.records
        self.form = form = StoredForm(schema, self._records.groups)
        self.columns, self.beside = form.columns, form.beside
        tickets = _core.transition_parts(schema.sizes)[-1]
        parts = [
            (_FROM_START, column.row_bytes, number, _core.AS_STORED)
            for number, column in zip(form.numbers, form.columns, strict=True)
        ]
        self._order = order_in_files(self.columns)
        self._parts = [*(parts[i] for i in self._order), tickets]

    def window(self) -> tuple[int, int]:
        """Return the first ticket that readers are given, and one past the last."""
        return self.ring.window()

    def empty(self, count: int) -> list[Array]:
        """Return memory of so many records: fields, newest frames, codes."""
        return [np.empty((count, *column.shape), column.dtype) for column in self.columns]

    def room(self, count: int) -> int:
        """Do as `Readable.room`."""
        return _core.block_layout(self._parts, count)[1]

    def read(self, first: int, count: int, memory: Array | None = None) -> tuple[int, list[Array], list[Array]]:
        """Copy records: the oldest ticket whose copy is whole; their columns, then each group's frames beside them.

        Whoever wrote into the ring's file may have written anything there. What is returned is what `put` takes.

        Raises:
            ValueError: A record that readers are given has places where no frame of it can be.
        """
        block = _core.Block(self._parts, count, memory)
        self.ring.read_run(first, block)
        offsets = dict(zip(self._order, block.offsets, strict=False))
        arrays: list[Array] = []
        for i, column in enumerate(self.columns):
            column_bytes = block.flat[offsets[i] : offsets[i] + count * column.row_bytes]
            arrays.append(column_bytes.view(column.dtype).reshape(count, *column.shape))
            if column.dtype == np.bool_:  # whatever byte stands for True
                np.minimum(column_bytes, 1, out=column_bytes)
        beside: list[Array] = []
        is_known = np.ones(count, np.bool_)
        for group, codes in [*self.form.codes(arrays)]:
            for each in codes:
                each[...] = self._code_of(group, each, first, is_known)
            rows, numbers = _numbered(self.form.num_beside(group, codes))
            beside.append(self._beside_of(group)[(first + rows) % self.ring.capacity, numbers])
        oldest = self.oldest_whole()
        given = max(oldest, self.ring.window()[0], first)  # others may be torn, or of slots that never held anything
        for row in np.flatnonzero(~is_known[given - first :])[:1].tolist():
            raise ValueError(f"ticket {given + row}: expected places of its frames: the ring's memory is damaged")
        return oldest, arrays, beside

    def oldest_whole(self) -> int:
        """Return the oldest ticket of which what was read is whole, of its record and beside it."""
        return self.ring.read_records(0, np.empty(0, np.uint8))

    def put(self, columns: list[Array], beside: list[Array]) -> None:
        """Lay records behind the last of the ring, which nobody else uses: at most as many as it has slots.

        Raises:
            ValueError: A code names no frame.
        """
        first, count = self.ring.num_reserved, len(columns[0])
        for (group, codes), frames in zip(self.form.codes(columns), beside, strict=True):
            slots = np.arange(first, first + count) % self.ring.capacity
            rows, numbers = _numbered(self.form.num_beside(group, codes))
            self._beside_of(group)[slots[rows], numbers] = frames
            for each in codes:
                each[...] = self._place_of(group, each, slots)
        self.ring.put(self.form.numbers, [np.ascontiguousarray(each).reshape(-1).view(np.uint8) for each in columns])

    def _code_of(self, group: Group, places: Any, first: int, is_known: Array) -> Array:
        """Return codes of places; 0 where there is none, whose rows are told."""
        start, stride = self._records.first_beside, self._records.record_bytes
        extra_bytes = max(1, self._records.beside().shape[1])
        is_beside = places >= start
        below = np.where(is_beside, places - np.uint64(start), 0)
        owners = np.where(is_beside, below // extra_bytes, places // stride).astype(np.int64)
        numbers = np.where(is_beside, 1 + (below % extra_bytes - group.first_beside) // group.frame_bytes, 0)
        slots = np.arange(first, first + len(places)) % self.ring.capacity
        ages = (slots[:, None] - owners) % self.ring.capacity
        codes = (ages.astype(_PLACE) * (group.num_beside + 1) + numbers).astype(_PLACE)
        is_right = (ages <= self.ring.num_spare) & (self._places(group, codes, slots) == places)
        is_known &= is_right.all(axis=1)
        known: Array = np.where(is_right, codes, 0)
        return known

    def _place_of(self, group: Group, codes: Any, slots: Array) -> Array:
        most = (self.ring.num_spare + 1) * (group.num_beside + 1)
        if codes.size and int(codes.max()) >= most:
            raise ValueError(f"columns: expected frames of at most {self.ring.num_spare} transitions ago")
        return self._places(group, codes, slots)

    def _places(self, group: Group, codes: Any, slots: Array) -> Array:
        ages, numbers = np.divmod(codes, np.uint64(group.num_beside + 1))
        owners = (slots[:, None] - ages.astype(np.int64)) % self.ring.capacity
        in_record = owners * self._records.record_bytes + self._records.offsets[group.newest]
        extra_bytes = self._records.beside().shape[1]
        beside = self._records.first_beside + owners * extra_bytes + group.first_beside
        at = beside + (numbers.astype(np.int64) - 1) * group.frame_bytes
        places: Array = np.where(numbers == 0, in_record, at).astype(_PLACE)
        return places

    def _beside_of(self, group: Group) -> Array:
        """Return a view of a group's frames beside all records, (capacity, frames, *shape)."""
        num_bytes = group.num_beside * group.frame_bytes
        own = self._records.beside()[:, group.first_beside : group.first_beside + num_bytes]
        frames: Array = own.view(group.dtype)
        return frames.reshape(len(own), group.num_beside, *group.shape)


def _numbered(counts: Any) -> tuple[Any, Any]:
    """Return the rows and numbers of frames of which each row has so many."""
    rows = np.repeat(np.arange(len(counts)), counts)
    return rows, np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
