# SPDX-License-Identifier: MIT
"""How tables of steps are kept: in checkpoints, as a replay buffer's transitions, and in pickles. It knows no library.

Of a table of records the transition in row r of environment e has a ticket that is r * num_envs + e modulo all of them.
Where steps have frames in common, tickets are those of the table's ring.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fastreplay.buffer.described import Described
from fastreplay.checkpoint.pieces import ReceivedRecords, pieces_of
from fastreplay.checkpoint.stored import Column, Stored
from fastreplay.schema.schema import Field, Schema
from fastreplay.support.saving import format_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastreplay.adapters.columns import Array
    from fastreplay.adapters.frame_table import FrameTable
    from fastreplay.adapters.step_table import StepTable
    from fastreplay.checkpoint.folder import Folder
    from fastreplay.checkpoint.manifest import Manifest
    from fastreplay.checkpoint.stored import Readable
    from fastreplay.support.saving import Format

__all__ = ["KeptFrames", "KeptTable", "SavedFrames", "bytes_of", "taken"]

_NOBODY_KNOWS = 4  # where a lane stands
_LAST = "last observation"


class KeptTable:
    """A table of records as it is kept.

    Args:
        table: It.
        schema: What is stored of a step of one environment, by the names of SB3's and ours.
    """

    def __init__(self, table: StepTable) -> None:
        self.table = table
        self.schema = _named(table._stored, table.keys)
        self.shares = "next_observation" not in self.schema.parts
        self.num_slots = table.num_rows * table.num_envs

    @property
    def next_row(self) -> int:
        """Where the next step goes, wherever the cursor was set; 0 where that tells it."""
        return 0

    def readable(self, pos: int, *, is_full: bool) -> Readable:
        """Return what a checkpoint holds of the rows before the cursor."""
        table = self.table
        first, end = 0, pos * table.num_envs
        if is_full:  # of the row at the cursor the next observation overwrote the observation, where they are shared
            first, end = end + table.num_envs * self.shares, end + self.num_slots
        columns = [Column(name, field.shape, field.dtype) for name, field in self.schema.items()]
        return _Rows(columns, self._arrays(), first, end)

    def _arrays(self) -> list[Array]:
        records = self.table._records
        return [records.column(i, field.dtype, list(field.shape)) for i, field in enumerate(self.schema.values())]

    def described(self, first: int, end: int) -> Described:
        """Return what a checkpoint says of a buffer of these transitions."""
        return self._described(first, end, lanes=None, share_next=False)

    def _described(self, first: int, end: int, *, lanes: int | None, share_next: Any) -> Described:
        options: dict[str, Any] = {
            "device": "cpu",
            "storage": "host",
            "output": "torch",
            "timeout": None,
            "priorities": None,
        }
        options |= {"lanes": lanes, "ends": None if lanes is None else [], "share_next": share_next}
        rng, ends = {"key": [0, 0], "calls": 0}, [end] * (lanes or 0)
        states = [_NOBODY_KNOWS] * len(ends)
        return Described(
            *(self.num_slots, self.schema, options, rng, 0, end, first, None),
            skips_resets=False,
            lanes=(states, ends),
        )

    def check(self, said: Described, manifest: Manifest) -> None:
        """Refuse what is of a table of another form.

        Raises:
            ValueError: It is.
        """
        expected = self.described(0, 0)
        if said.capacity != self.num_slots:
            raise ValueError(f"buffer_size: expected {self.num_slots} transitions, got {said.capacity}")
        for name in ("schema", "options"):
            mine, its = getattr(expected, name), getattr(said, name)
            if mine != its:
                raise ValueError(f"{name}: expected that of this buffer, {mine}, got {its}")
        envs = self.table.num_envs
        if manifest.first % envs or manifest.end % envs or manifest.end - manifest.first > self.num_slots:
            raise ValueError(f"expected whole steps of {envs} environments, got [{manifest.first}, {manifest.end})")

    def read(self, folder: Folder, manifest: Manifest, pos: int, *, is_full: bool, next_row: int) -> None:  # noqa: ARG002 - of frames
        """Read the steps of a checkpoint into this table, of which nobody knows.

        Raises:
            ValueError: They are not those before the cursor, or damaged.
            OSError: They cannot be read.
        """
        from fastreplay.checkpoint.load import read_columns

        window = self.readable(pos, is_full=is_full).window()
        if window != (manifest.first, manifest.end):
            raise ValueError(f"pos: expected tickets [{window[0]}, {window[1]}), got {manifest.first, manifest.end}")
        columns = [Column(name, field.shape, field.dtype) for name, field in self.schema.items()]
        arrays = self._arrays()
        for ticket, values in read_columns(folder, manifest.records, columns, manifest.first):
            for run, rows in _spans(ticket, len(values[0]), self.num_slots):
                for array, value in zip(arrays, values, strict=True):
                    array[run] = value[rows]

    def attached(self, pos: int) -> dict[str, Array]:
        """Return what else is to be kept, (n,) bytes by name: the last next observation, where they are shared."""
        if not self.shares:
            return {}
        parts = [bytes_of(column[pos % len(column)]) for column in self._observations()]
        return {_LAST: np.concatenate(parts)}

    def take(self, attached: dict[str, Array], pos: int) -> None:
        """Take that over."""
        if self.shares:
            columns = self._observations()
            sizes = [column[0].nbytes for column in columns]
            data, at = taken(attached, _LAST, (sum(sizes),), np.dtype(np.uint8)), 0
            for column, size in zip(columns, sizes, strict=True):
                column[pos % len(column)] = data[at : at + size].copy().view(column.dtype).reshape(column.shape[1:])
                at += size

    def _observations(self) -> list[Array]:
        observations: Any = self.table.observations
        return [observations] if self.table.keys is None else list(observations.values())


class KeptFrames(KeptTable):
    """A table of steps with frames in common as it is kept."""

    table: FrameTable  # type: ignore[assignment]

    def __init__(self, table: FrameTable) -> None:
        super().__init__(table)  # type: ignore[arg-type]
        counts = dict(zip([name for name in self.schema if name.startswith("observation")], table.frames, strict=True))
        later = {f"next_{name}": count for name, count in counts.items()}
        self.schema = Schema(
            {name: _stacked(field, (counts | later).get(name, 1)) for name, field in self.schema.items()}
        )
        self.shares = False

    def readable(self, pos: int, *, is_full: bool) -> Readable:  # noqa: ARG002 - the ring knows its own
        """Return what a checkpoint holds: all steps of the ring."""
        return self.stored

    @cached_property
    def stored(self) -> Stored:
        """The ring's records."""
        return Stored(self.table._ring, self.schema)

    def described(self, first: int, end: int) -> Described:
        """Return what a checkpoint says of a buffer of these transitions, which does not know what follows what."""
        share_next = {"next_observation": "observation"}
        return self._described(first, end, lanes=self.table.num_envs, share_next=share_next)

    @property
    def next_row(self) -> int:
        """Where the next step goes, wherever the cursor was set."""
        return self.table.next_row

    def read(self, folder: Folder, manifest: Manifest, pos: int, *, is_full: bool, next_row: int) -> None:  # noqa: ARG002
        """Read the steps of a checkpoint into this table, of which nobody knows."""
        from fastreplay.checkpoint.load import read_records

        read_records(folder, manifest, self.stored, manifest.first)
        self.table.go_on(next_row)


class _Rows:
    """Rows of columns by tickets, that nobody overwrites meanwhile."""

    num_spare = 0

    def __init__(self, columns: list[Column], arrays: list[Array], first: int, end: int) -> None:
        self.columns, self.beside = columns, list[Column]()
        self._arrays, self._window = arrays, (first, end)

    def window(self) -> tuple[int, int]:
        """Return the first ticket that is there, and one past the last."""
        return self._window

    def room(self, count: int) -> int:  # noqa: ARG002 - of whichever
        """Return 0: they come in memory of their own."""
        return 0

    def read(self, first: int, count: int, memory: Array | None = None) -> tuple[int, list[Array], list[Array]]:  # noqa: ARG002
        """Return rows where they lie, or copies of those that lie apart."""
        spans = [slots for slots, _ in _spans(first, count, len(self._arrays[0]))]
        parts = [[array[slots] for slots in spans] for array in self._arrays]
        return first, [each[0] if len(each) == 1 else np.concatenate(each) for each in parts], []

    def oldest_whole(self) -> int:
        """Return the first ticket."""
        return self._window[0]


class SavedFrames:
    """What is pickled in place of a table; what is loaded is a receiver whose `owner` is the table.

    Args:
        kept: The table, whose steps are saved as the pickler asks for them.
        make: Makes a table like it.
        arguments: Of `make`.
    """

    def __init__(self, kept: KeptFrames, make: Callable[..., FrameTable], arguments: tuple[Any, ...]) -> None:
        self._kept = kept
        self._make = make
        self._arguments = arguments

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        form, kept = format_of(protocol), self._kept
        return (
            _LoadedFrames,
            (self._make, self._arguments, kept.table.next_row, form),
            None,
            pieces_of(kept.stored, form),
        )


class _LoadedFrames(ReceivedRecords):
    """A table whose steps are stored as their data arrive; `owner` is it, once `is_complete`."""

    def __init__(
        self, make: Callable[..., FrameTable], arguments: tuple[Any, ...], next_row: int, form: Format
    ) -> None:
        self._table, self._next_row = make(*arguments), next_row
        super().__init__(KeptFrames(self._table).stored, form)

    @cached_property
    def owner(self) -> FrameTable:
        """The table.

        Raises:
            ValueError: It has no whole steps, or no such row.
        """
        ring, envs = self._table._ring, self._table.num_envs
        if len(ring) % envs or ring.num_reserved % envs:
            raise ValueError(f"expected whole steps of {envs} environments")
        self._table.go_on(self._next_row)
        return self._table


def bytes_of(array: Array) -> Array:
    """Return the bytes (n,) of an array of any strides."""
    flat: Array = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return flat


def taken(attached: dict[str, Array], name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Take an array out of what was kept.

    Raises:
        ValueError: It is missing, or of another size.
    """
    data = attached.pop(name, None)
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    if data is None or len(data) != num_bytes:
        raise ValueError(f"attached: expected {num_bytes} bytes of {name}, got {None if data is None else len(data)}")
    array: Array = data.copy().view(dtype).reshape(shape)
    return array


def _spans(first: int, count: int, num_slots: int) -> Iterator[tuple[slice, slice]]:
    """Yield the slots of so many tickets, and which of them those are."""
    at = 0
    while at < count:
        slot = (first + at) % num_slots
        length = min(count - at, num_slots - slot)
        yield slice(slot, slot + length), slice(at, at + length)
        at += length


def _named(stored: Schema, keys: tuple[str, ...] | None) -> Schema:
    """Return what is stored by the names of an observation's parts, where they can be names."""
    names = {"observation/0": "observation"}
    if keys is not None:
        can_be = all(str(key).isidentifier() for key in keys)
        names = {f"observation/{i}": f"observation/{key if can_be else i}" for i, key in enumerate(keys)}
    names |= {f"next_{name}": f"next_{new}" for name, new in names.items()}
    return Schema({names.get(name, name): field for name, field in stored.items()})


def _stacked(field: Field, num_frames: int) -> Field:
    if num_frames == 1:
        return field
    return Field((field.shape[0] // num_frames, *field.shape[1:]), field.dtype, stack=num_frames)
