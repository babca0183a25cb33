# SPDX-License-Identifier: MIT
"""Transitions that have frames in common on their way through pickle and back: as they are stored, each frame once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastreplay import _core
from fastreplay.buffer.snapshot import ReceivedTransitions, Transitions, checked_ticket, receive
from fastreplay.support.saving import format_of, pieces, run_length

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from fastreplay.schema import Schema
    from fastreplay.support.saving import Format, Parser

    Array = NDArray[Any]

__all__ = ["FramedTransitions", "ReceivedFramed"]

_PLACE = np.dtype(np.uint64)
_FROM_START = 0  # the source of a part: the record


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


class Stored:
    """The records of a ring as they are: fields, newest frames, and codes in place of places.

    A code says whose a frame is, and which of its own: age * (frames that a record may have) + number, the age in
    tickets, 0 the number of the newest frame.
    """

    def __init__(self, ring: _core.Ring, schema: Schema) -> None:
        self.ring = ring
        self._records = ring.records
        self.groups = []
        framed: set[int] = set()
        for positions, newest, column, first_beside, num_beside in self._records.groups:
            field = tuple(schema.values())[positions[0]]
            num_frames, shape = (1, field.shape) if field.stack is None else (field.stack, field.shape[1:])
            of_fields = [(column + i, num_frames) for i in range(len(positions))]
            self.groups.append(Group(newest, of_fields, shape, field.dtype, first_beside, num_beside))
            framed.update(positions)
        fields = [(i, f.shape, f.dtype) for i, f in enumerate(schema.values()) if i not in framed]
        frames = [(group.newest, group.shape, group.dtype) for group in self.groups]
        places = [(column, (n,), _PLACE) for group in self.groups for column, n in group.places]
        self._columns = fields + frames + places
        self._first_of_places = len(fields) + len(frames)
        sizes = [(int(np.prod(shape)) * dtype.itemsize, column) for column, shape, dtype in self._columns]
        self.row_bytes = sum(size for size, _ in sizes)
        transition = _core.transition_parts(schema.sizes)
        self._parts = [(_FROM_START, size, column) for size, column in sizes] + [transition[-1]]

    def empty(self, count: int) -> list[Array]:
        """Return memory of so many records: fields, newest frames, codes."""
        return [np.empty((count, *shape), dtype) for _, shape, dtype in self._columns]

    def read(self, first: int, count: int) -> tuple[int, list[Array]]:
        """Copy records: the oldest ticket whose copy is whole; columns, then each group's frames beside them."""
        block = _core.Block(self._parts, count)
        self.ring.read_run(first, block)
        arrays: list[Array] = []
        for (_, shape, dtype), offset in zip(self._columns, block.offsets, strict=False):
            num_bytes = count * int(np.prod(shape)) * dtype.itemsize
            arrays.append(block.flat[offset : offset + num_bytes].view(dtype).reshape(count, *shape))
        for group, codes in [*self.codes(arrays)]:
            for each in codes:
                each[...] = self._code_of(group, each, first)
            rows, numbers = _numbered(self.num_beside(group, codes))
            arrays.append(self._beside_of(group)[(first + rows) % self.ring.capacity, numbers])
        return self.ring.read_records(first, np.empty(0, np.uint8)), arrays

    def num_beside(self, group: Group, codes: list[Array]) -> Array:
        """Return how many frames lie beside each record, (n,), of its codes."""
        highest = np.max([each.max(axis=1, initial=0, where=each <= group.num_beside) for each in codes], axis=0)
        counts: Array = highest.astype(np.int64)
        return counts

    def write(self, columns: list[Array], beside: list[Array]) -> None:
        """Put records into the ring behind its last, nobody else using it.

        Raises:
            ValueError: A code names no frame.
        """
        first, count = self.ring.num_reserved, len(columns[0])
        slots = np.arange(first, first + count) % self.ring.capacity
        for (group, codes), frames in zip(self.codes(columns), beside, strict=True):
            rows, numbers = _numbered(self.num_beside(group, codes))
            self._beside_of(group)[slots[rows], numbers] = frames
            for each in codes:
                each[...] = self._place_of(group, each, slots)
        for (column, shape, dtype), values in zip(self._columns, columns, strict=True):
            self._records.column(column, dtype, list(shape))[slots] = values
        self.ring.restore(count)

    def codes(self, columns: list[Array]) -> Iterator[tuple[Group, list[Any]]]:
        """Yield each group, and those of the columns that are its fields' codes."""
        at = self._first_of_places
        for group in self.groups:
            yield group, columns[at : at + len(group.places)]
            at += len(group.places)

    def _code_of(self, group: Group, places: Any, first: int) -> Array:
        start, stride = self._records.first_beside, self._records.record_bytes
        extra_bytes = max(1, self._records.beside().shape[1])
        is_beside = places >= start
        below = np.where(is_beside, places - np.uint64(start), 0)
        owners = np.where(is_beside, below // extra_bytes, places // stride).astype(np.int64)
        numbers = np.where(is_beside, 1 + (below % extra_bytes - group.first_beside) // group.frame_bytes, 0)
        slots = np.arange(first, first + len(places)) % self.ring.capacity
        ages = (slots[:, None] - owners) % self.ring.capacity
        codes = (ages.astype(_PLACE) * (group.num_beside + 1) + numbers).astype(_PLACE)
        known: Array = np.where(ages <= self.ring.num_spare, codes, 0)  # 0 for slots that never held anything
        return known

    def _place_of(self, group: Group, codes: Any, slots: Array) -> Array:
        ages, numbers = np.divmod(codes, np.uint64(group.num_beside + 1))
        if codes.size and int(ages.max()) > self.ring.num_spare:
            raise ValueError(f"columns: expected frames of at most {self.ring.num_spare} transitions ago")
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


class FramedTransitions(Transitions):
    """The transitions of a buffer that have frames in common: what they look up of older ones comes first."""

    def _pieces(self, form: Format) -> Iterator[int]:
        for ticket, count, is_kept, arrays in self._stored_runs():
            yield from (ticket, count, int(is_kept))
            for array in arrays:
                yield from pieces(np.ascontiguousarray(array), form)

    def _stored_runs(self) -> Iterator[tuple[int, int, bool, list[Array]]]:
        """Yield runs, each kind after an empty one: of what is looked up, and of what is kept.

        Where writers came past, all begins again with the newest transitions, half as many each time.
        """
        ring = self.buffer._ring
        stored = Stored(ring, self.buffer.schema)
        length = run_length(stored.row_bytes)
        first, end = ring.window()
        while True:
            start = max(first - ring.num_spare, 0)
            yield start, 0, False, []
            is_whole = True
            for is_kept, stop in ((False, first), (True, end)):
                if is_kept:
                    yield first, 0, True, []
                while is_whole and start < stop:
                    count = min(length, stop - start)
                    oldest, arrays = stored.read(start, count)
                    is_whole = start + (0 if is_kept else ring.num_spare) >= oldest
                    if is_whole:
                        yield start, count, is_kept, arrays
                        start += count
            if is_whole:
                return
            num_kept = (end - first) // 2
            oldest, end = ring.window()
            first = max(oldest, end - num_kept)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        form = format_of(protocol)
        return receive, (self.buffer, form), None, self._pieces(form)


class ReceivedFramed(ReceivedTransitions, FramedTransitions):
    """The transitions of such a buffer that is being loaded."""

    def _parse(self) -> Parser:
        ring = self.buffer._ring
        stored = Stored(ring, self.buffer.schema)
        while True:
            ticket = yield
            self.is_complete = False
            count = yield
            is_kept = yield
            checked_ticket("columns", ticket + count)
            if count:
                self._check(ticket, count, is_kept=bool(is_kept))
                yield from self._take(stored, count)
            elif is_kept:
                self.first = ticket
                ring.begin_here()
            else:
                self.first = -1
                ring.start_at(ticket)
            self._next = ticket + count
            self.is_complete = bool(is_kept)

    def _check(self, ticket: int, count: int, *, is_kept: bool) -> None:
        ring = self.buffer._ring
        most = ring.capacity - ring.num_spare if is_kept else ring.num_spare
        held = len(ring) if is_kept else ring.num_inserted
        if ticket != self._next or (self.first >= 0) != is_kept or held + count > most:
            raise ValueError(
                f"columns: expected at most {most} transitions, one after another, got {count} at {ticket}"
            )

    def _take(self, stored: Stored, count: int) -> Parser:
        columns = stored.empty(count)
        for column in columns:
            yield from self._fill(column)
        beside: list[Array] = []
        for group, codes in stored.codes(columns):
            frames = np.empty((int(stored.num_beside(group, codes).sum()), *group.shape), group.dtype)
            yield from self._fill(frames)
            beside.append(frames)
        stored.write(columns, beside)
