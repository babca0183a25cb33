# SPDX-License-Identifier: MIT
"""A table of steps that have frames in common through pickle and back: each frame once, and no place in memory.

Of each observation it is told whether it is the next observation of the step before, and of each next observation
whether it is the observation moved on by a frame; then the rest follows from the newest frame. What does not go on so
is there in full. The table that is filled stores the steps anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastreplay.support.saving import Receiver, format_of, pieces, run_length

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastreplay.adapters.columns import Array
    from fastreplay.adapters.frame_table import FrameTable
    from fastreplay.support.saving import Format, Parser

__all__ = ["SavedSteps"]

_NUMBERS = ("actions", "rewards", "dones", "timeouts")


class _Part(NamedTuple):
    """A part of the observations of a run of steps, as bytes (steps, num_envs, frames, bytes of a frame)."""

    observation: Array
    next_observation: Array

    @classmethod
    def of(cls, table: FrameTable, i: int, num_steps: int) -> _Part:
        """Make room for a run."""
        column = _listed(table.observations)[i]
        row_bytes = column.dtype.itemsize * int(np.prod(column.shape[2:]))
        shape = (num_steps, table.num_envs, table.frames[i], row_bytes // table.frames[i])
        return cls(np.zeros(shape, np.uint8), np.zeros(shape, np.uint8))


class SavedSteps:
    """What is pickled in place of a table; what is loaded is a receiver whose `owner` is the table.

    Args:
        table: Whose steps are saved as the pickler asks for them.
        make: Makes a table like it.
        arguments: Of `make`.
    """

    def __init__(self, table: FrameTable, make: Callable[..., FrameTable], arguments: tuple[Any, ...]) -> None:
        self._table = table
        self._make = make
        self._arguments = arguments

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        form, table = format_of(protocol), self._table
        return (
            _LoadedSteps,
            (self._make, self._arguments, table.next_row, table.num_stored, form),
            None,
            self._pieces(form),
        )

    def _pieces(self, form: Format) -> Iterator[int]:
        table = self._table
        last = [part.next_observation[0] for part in (_Part.of(table, i, 1) for i in range(table.num_observations))]
        for rows in _runs(table, table.next_row, table.num_stored):
            for name in _NUMBERS:
                yield from pieces(getattr(table, name)[rows], form)
            for i, (now, after) in enumerate(
                zip(_listed(table.observations), _listed(table.next_observations), strict=True)
            ):
                part = _Part.of(table, i, len(rows))
                part.observation[...] = now[rows].view(np.uint8).reshape(part.observation.shape)
                part.next_observation[...] = after[rows].view(np.uint8).reshape(part.observation.shape)
                for array in _apart(part, last[i]):
                    yield from pieces(array, form)
                last[i] = part.next_observation[-1]


class _LoadedSteps(Receiver):
    """A table whose steps are stored as their data arrive; `owner` is it, once `is_complete`."""

    def __init__(
        self,
        make: Callable[..., FrameTable],
        arguments: tuple[Any, ...],
        next_row: int,
        num_stored: int,
        form: Format,
    ) -> None:
        self.owner = make(*arguments)
        num_rows = self.owner.num_rows
        if not (0 <= next_row < num_rows and 0 <= num_stored <= num_rows):
            raise ValueError(f"expected a cursor in {num_rows} rows, got {next_row}, and {num_stored} steps")
        self._next_row, self._num_stored = next_row, num_stored
        super().__init__(form)

    def _parse(self) -> Parser:
        table = self.owner
        last = [part.next_observation[0] for part in (_Part.of(table, i, 1) for i in range(table.num_observations))]
        for rows in _runs(table, self._next_row, self._num_stored):
            numbers = [_empty(getattr(table, name), len(rows)) for name in _NUMBERS]
            for array in numbers:
                yield from self._fill(array)
            parts = [_Part.of(table, i, len(rows)) for i in range(table.num_observations)]
            for i, part in enumerate(parts):
                yield from self._fill_part(part, last[i])
                last[i] = part.next_observation[-1]
            for k, row in enumerate(rows.tolist()):
                observations = (_given(table, [part[which][k] for part in parts]) for which in range(2))
                table.write(row, *observations, *(array[k] for array in numbers))
        self.is_complete = True
        yield

    def _fill_part(self, part: _Part, last: Array) -> Parser:
        now, after = part
        goes_on, moves_on = (np.empty(now.shape[:2], np.bool_) for _ in range(2))
        yield from self._fill(goes_on)
        first = now[~goes_on]
        yield from self._fill(first)
        yield from self._fill(moves_on)
        others = after[~moves_on]
        yield from self._fill(others)
        newest = after[moves_on, -1]
        yield from self._fill(newest)
        now[~goes_on], after[~moves_on], after[moves_on, -1] = first, others, newest
        for k in range(len(now)):
            now[k, goes_on[k]] = (after[k - 1] if k else last)[goes_on[k]]
            after[k, moves_on[k], :-1] = now[k, moves_on[k], 1:]


def _apart(part: _Part, last: Array) -> tuple[Array, ...]:
    """Return what tells a run's observations, in the order in which they are read."""
    now, after = part
    before = np.concatenate([last[None], after[:-1]])
    goes_on = (now == before).all(axis=(2, 3))
    moves_on = (after[:, :, :-1] == now[:, :, 1:]).all(axis=(2, 3))
    return goes_on, now[~goes_on], moves_on, after[~moves_on], after[moves_on, -1]


def _runs(table: FrameTable, next_row: int, num_stored: int) -> Iterator[Array]:
    """Yield rows, from the oldest step on, as many at once as take little memory."""
    row_bytes = table.num_envs * sum(field.row_bytes for field in table.schema.values())
    length = run_length(row_bytes)
    for start in range(-num_stored, 0, length):
        yield np.arange(next_row + start, next_row + min(0, start + length)) % table.num_rows


def _listed(columns: Any) -> list[Any]:
    return list(columns.values()) if isinstance(columns, dict) else [columns]


def _empty(column: Any, num_steps: int) -> Array:
    return np.empty((num_steps, *column.shape[1:]), column.dtype)


def _given(table: FrameTable, parts: list[Array]) -> Any:
    """Return bytes of a step's observation as they are added."""
    columns = _listed(table.observations)
    arrays = [
        part.reshape(-1).view(column.dtype).reshape(column.shape[1:])
        for part, column in zip(parts, columns, strict=True)
    ]
    return arrays[0] if table.keys is None else dict(zip(table.keys, arrays, strict=True))
