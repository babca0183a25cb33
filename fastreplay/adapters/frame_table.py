# SPDX-License-Identifier: MIT
"""Storage of the adapters where steps have frames in common, each of which is stored once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np

from fastreplay import _core
from fastreplay.adapters.kept_tables import KeptFrames, SavedFrames
from fastreplay.adapters.native_step_table import NativeFrameTable
from fastreplay.adapters.step_columns import StepColumn, StepColumns, refuse_assignment
from fastreplay.adapters.step_table import COLUMNS, StepField, Steps, fields_of_step, overwrite_rows, schemas
from fastreplay.batch.form import Form
from fastreplay.batch.pool import Pool
from fastreplay.support.checks import checked_count, checked_index
from fastreplay.support.memory_limit import new_ring

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from typing_extensions import Self

    from fastreplay.adapters.columns import Array
    from fastreplay.schema.schema import Field

__all__ = ["Dedupe", "FrameTable", "frames_of", "row_of"]

Dedupe = bool | int | Mapping[str, int]

_READ_BYTES = 1 << 22  # through which whole columns are read


def frames_of(dedupe: Dedupe, observation: dict[str, StepField] | StepField) -> tuple[int, ...]:
    """Return how many frames each part of an observation consists of.

    Args:
        dedupe: True for 1; a number for all parts; or numbers by the names of parts, 1 for the others.
        observation: The parts of a Dict observation by name, or the one part.

    Raises:
        TypeError: `dedupe` is neither.
        ValueError: A number is not in [1, 64], there is no such part, or its first axis does not consist of as many.
    """
    parts = observation if isinstance(observation, dict) else {"observation_space": observation}
    if isinstance(dedupe, Mapping):
        for name in dedupe:
            if not isinstance(observation, dict) or name not in parts:
                raise ValueError(f"dedupe: expected names of an observation's parts, got {name!r}")
        given: dict[str, Any] = {name: dedupe.get(name, 1) for name in parts}
    elif isinstance(dedupe, (bool, np.bool_)):
        given = dict.fromkeys(parts, 1)
    else:
        checked_index("dedupe", dedupe)
        given = dict.fromkeys(parts, dedupe)
    whose = {name: f"dedupe[{name!r}]" if isinstance(dedupe, Mapping) else "dedupe" for name in parts}
    frames = tuple(checked_count(whose[name], count) for name, count in given.items())
    for (name, part), count in zip(parts.items(), frames, strict=True):
        if count > _core.MAX_FRAMES:
            raise ValueError(f"{whose[name]}: expected at most {_core.MAX_FRAMES} frames, got {count}")
        if count > 1 and (not part.shape or part.shape[0] % count != 0):
            raise ValueError(f"{whose[name]}: expected a first axis of {count} frames, and {name} is {part.shape}")
    return frames


class FrameTable(Steps, NativeFrameTable):
    """Rows of `num_envs` transitions, of which a next observation and the step after's observation are stored once.

    So is each frame, where observations are stacks of them along the first axis. What does not go on where the step
    before ended is stored in full. Steps come one after another, each in the row after the one before; in another row
    than that nothing goes but a first step, which begins anew. For one thread.

    Args:
        num_rows: Steps.
        num_envs: Transitions of a step.
        observation: The parts of a Dict observation by name, or the one part.
        action: The action.
        frames: Of how many frames each part consists.

    Attributes:
        observations, next_observations, actions, rewards, dones, timeouts: As of `StepTable`, but rows are copied
            where they are asked for, those without a step as zeros. Of the last four, rows with one can be assigned.
    """

    def __init__(
        self,
        num_rows: int,
        num_envs: int,
        observation: dict[str, StepField] | StepField,
        action: StepField,
        frames: tuple[int, ...],
    ) -> None:
        num_rows, num_envs, parts = self._begin(num_rows, num_envs, observation)
        self._arguments = (num_rows, num_envs, observation, action, frames)
        self.frames = frames
        self._stored, self.schema = schemas(parts, action)
        first_next = len(self._stored) - len(parts)
        groups = [([i, first_next + i], count) for i, count in enumerate(frames)]
        num_spare = max(frames) * num_envs
        self._ring = new_ring(self._stored.sizes, num_rows * num_envs, "buffer_size", groups, num_spare)
        super().__init__(self._ring, fields_of_step(parts, action), num_envs, len(parts), self.keys)
        self._sample(parts)
        self._reads = Pool(Form(self.schema, self.parts, {}))  # so that the other keeps what is sampled
        self.num_bytes = self._ring.records.num_bytes
        # Columns hold the table, which would else wait for the collector.
        self._columns: WeakValueDictionary[str, Any] = WeakValueDictionary()

    def __getattr__(self, name: str) -> Any:
        """Return a column, of a Dict observation a dict of them: the same as long as somebody has it."""
        if name not in COLUMNS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        column = self._columns.get(name)
        if column is None:
            self._columns[name] = column = self._made(name)
        return column

    def _made(self, name: str) -> Any:
        num_parts, num_fields = self.num_observations, len(self._stored)
        if not name.endswith("observations"):
            position = num_parts + COLUMNS[2:].index(name)
            field = tuple(self._stored.values())[position]
            records = self._records(position, field)
            write = partial(self._write_records, records)
            return self._column(name, field, partial(self._read_records, records), write)
        is_next = name == "next_observations"
        fields = tuple(self._stored.values())[num_fields - num_parts if is_next else 0 :][:num_parts]
        columns: list[Any] = []
        for i, field in enumerate(fields):
            if is_next and self.frames[i] == 1:  # of which each step has its own, after all fields
                read: Any = partial(self._read_records, self._records(num_fields + i, field))
            else:  # in minibatches the next observations come after the action
                read = partial(self._read_frames, i + (num_parts + 1 if is_next else 0))
            columns.append(self._column(name, field, read))
        return columns[0] if self.keys is None else StepColumns(zip(self.keys, columns, strict=True))

    def _records(self, position: int, field: Field) -> Array:
        return self._ring.records.column(position, field.dtype, list(field.shape))

    def _column(
        self,
        name: str,
        field: Field,
        read: Callable[[Any, Any], Array],
        write: Callable[[Any, Any, Any], None] | None = None,
    ) -> StepColumn:
        return StepColumn(name, (self.num_rows, self.num_envs, *field.shape), field.dtype, read, write)

    def _steps_before(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many steps before the next one rows were stored."""
        return (self.next_row - 1 - rows) % self.num_rows + 1

    def _read_records(self, column: Array, rows: NDArray[np.int64], envs: NDArray[np.int64]) -> Array:
        values: Array = column[self._slots(rows, envs)]
        values[self._steps_before(rows) > self.num_stored] = 0
        return values

    def _write_records(self, column: Array, rows: NDArray[np.int64], envs: NDArray[np.int64], values: Array) -> None:
        self._refuse_without_step(rows, envs)
        column[self._slots(rows, envs)] = values

    def _slots(self, rows: NDArray[np.int64], envs: NDArray[np.int64]) -> NDArray[np.int64]:
        steps = self._ring.num_reserved // self.num_envs - self._steps_before(rows)
        return steps * self.num_envs % self._ring.capacity + envs

    def _read_frames(self, position: int, rows: NDArray[np.int64], envs: NDArray[np.int64]) -> Array:
        field = tuple(self.schema.values())[position]
        values = np.zeros((len(rows), *field.shape), field.dtype)
        stored = np.flatnonzero(self._steps_before(rows) <= self.num_stored)
        length = max(1, _READ_BYTES // sum(each.row_bytes for each in self.schema.values()))
        for start in range(0, len(stored), length):
            at = stored[start : start + length]
            block = self._reads.take(len(at))
            self.gather_into(block.native, rows[at], envs[at])
            values[at] = block.arrays()[position]
        return values

    def write(
        self, row: int, obs: object, next_obs: object, action: object, reward: object, done: object, infos: object
    ) -> bool:
        """Store one step of all environments as the next row, or as the first.

        Raises:
            ValueError: It is another row; nothing was stored.
        """
        if row not in {self.next_row, 0} and self.num_stored:
            raise ValueError(
                f"pos: with dedupe steps are stored one after another, expected row {self.next_row}, or 0 to begin "
                f"anew, got {row}"
            )
        return super().write(row, obs, next_obs, action, reward, done, infos)

    def _refuse(self, rows: NDArray[np.int64], envs: NDArray[np.int64]) -> None:
        self._refuse_without_step(rows, envs)
        super()._refuse(rows, envs)

    def _refuse_without_step(self, rows: NDArray[np.int64], envs: NDArray[np.int64]) -> None:
        is_stored = self._steps_before(np.arange(self.num_rows)) <= self.num_stored
        stored = np.broadcast_to(is_stored[:, None], (self.num_rows, self.num_envs))
        without = np.flatnonzero(~stored[rows, envs])  # or NumPy's own error
        if len(without):
            raise IndexError(f"row {rows[without[0]]}: holds no step, of {self.num_stored} in {self.num_rows} rows")

    def taken(self, column: Any, rows: NDArray[np.int64], envs: NDArray[np.int64]) -> Array:
        """Return what a column has at rows and environments."""
        values: Array = column[rows, envs]
        return values

    def undo(self, rows: Array) -> Callable[[], None]:
        """Return what puts rows back as they are now, of those with a step what can be assigned."""
        stored = rows[self._steps_before(rows % self.num_rows) <= self.num_stored]
        numbers = [getattr(self, name) for name in COLUMNS[2:]]
        return partial(overwrite_rows, [(column, stored, column[stored]) for column in numbers])

    def arrays(self) -> list[Array]:
        """Return nothing: what is read is a copy."""
        return []

    def assign(self, name: str, value: Any) -> None:  # noqa: ARG002
        """Refuse to copy an array over a column."""
        refuse_assignment(name)

    def overwrite(self, state: Mapping[str, Any]) -> None:
        """Store the steps that the columns hold by the cursor, `pos` and `full`, of which this table has none."""
        columns = [_checked(column, name, state) for name, column in self.columns().items()]
        pos = state["pos"]
        for row in range(pos - self.num_rows if state["full"] else 0, pos):
            obs, next_obs, *numbers = (row_of(column, row % self.num_rows) for column in columns)
            self.write(row % self.num_rows, obs, next_obs, *numbers)

    def save(self) -> SavedFrames:
        """Return what is pickled in place of a table, in little memory."""
        return SavedFrames(self.kept(), FrameTable, self._arguments)

    def kept(self) -> KeptFrames:
        """Return the table as checkpoints hold it."""
        return KeptFrames(self)

    def like(self) -> Self:
        """Return an empty table of the same form."""
        return type(self)(*self._arguments)


def _checked(column: Any, name: str, state: Mapping[str, Any]) -> Any:
    """Return what a state has for a column."""
    if name not in state:
        raise ValueError(f"{name}: missing")
    value = state[name]
    if isinstance(column, dict):
        if not isinstance(value, dict) or not column.keys() <= value.keys():
            raise ValueError(f"{name}: expected a dict of {', '.join(column)}, got {value!r:.200}")
        return {key: _checked(part, key, value) for key, part in column.items()}
    given = value if isinstance(value, StepColumn) else np.asarray(value)
    if given.shape != column.shape or given.dtype != column.dtype:
        raise ValueError(f"{name}: expected {column.dtype} {column.shape}, got {given.dtype} {given.shape}")
    return given


def row_of(column: Any, row: int) -> Any:
    """Return a row of a column, or of each of a dict of them, as C-contiguous arrays."""
    if isinstance(column, dict):
        return {key: row_of(part, row) for key, part in column.items()}
    return np.ascontiguousarray(column[row])
