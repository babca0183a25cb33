# SPDX-License-Identifier: MIT
"""Storage of the adapters: a table of steps of a vector environment. Knows no other library."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastreplay import _core
from fastreplay.adapters.columns import Columns, flat_columns, overwrite_all
from fastreplay.adapters.kept_tables import KeptTable
from fastreplay.adapters.native_step_table import NativeStepTable
from fastreplay.batch.form import Form
from fastreplay.batch.pool import Pool
from fastreplay.schema.schema import Field, Schema
from fastreplay.support.checks import TORCH_DTYPES, checked_count
from fastreplay.support.memory_limit import new_records
from fastreplay.support.saving import Saved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import torch
    from numpy.typing import NDArray
    from typing_extensions import Self

    from fastreplay.adapters.columns import Array, Observation
    from fastreplay.batch.block import HostBlock

__all__ = ["COLUMNS", "NSteps", "StepField", "StepTable", "Steps", "fields_of_step", "overwrite_rows", "schemas"]

# The arrays of Stable-Baselines3's buffers.
COLUMNS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class StepField(NamedTuple):
    """What each environment gives to a step: an observation's part, the action, a number.

    Attributes:
        shape: Of one environment's row.
        dtype: As stored and as sampled.
        is_reshaped: Whether a step may come in any shape of as many items.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_reshaped: bool = False


class NSteps(NamedTuple):
    """What the rewards of n-step transitions are made of."""

    rewards: NDArray[np.float32]  # (B, n), of the n steps from the start on
    is_counted: NDArray[np.bool_]  # (B, n), whether the step comes before the end
    counts: NDArray[np.float32]  # (B, 1), how many do


_NUMBER = StepField((), np.dtype(np.float32))


class Steps(NativeStepTable):
    """Base of the tables: rows of `num_envs` transitions, one row a step, and minibatches of them.

    Attributes:
        num_rows: Steps.
        num_envs: Transitions of a step.
        observations, next_observations, actions, rewards, dones, timeouts: What the table holds, by column
            (num_rows, num_envs, ...), of a Dict observation a dict of such; None where there is none.
        num_bytes: What the columns take, for a warning beforehand.
        is_sampled_natively: Whether every observation has an axis, over which SB3 and CleanRL index, and torch
            has every dtype.
        pool: Recycled memory of minibatches.
    """

    num_rows: int
    num_envs: int
    keys: tuple[str, ...] | None  # of a Dict observation's parts
    num_observations: int
    schema: Schema  # of a minibatch
    _stored: Schema  # of a step of one environment
    observations: Any
    next_observations: Any
    actions: Any
    rewards: Any
    dones: Any
    timeouts: Any
    num_bytes: int
    is_sampled_natively: bool
    pool: Pool
    _arguments: tuple[Any, ...]

    def _begin(
        self, num_rows: int, num_envs: int, observation: dict[str, StepField] | StepField
    ) -> tuple[int, int, list[StepField]]:
        """Check what the table is to be; return it with the observation's parts."""
        self._refuse_second_init()
        self.num_rows = num_rows = checked_count("buffer_size", num_rows)
        self.num_envs = num_envs = checked_count("n_envs", num_envs)
        self.keys = tuple(observation) if isinstance(observation, dict) else None
        parts = list(observation.values()) if isinstance(observation, dict) else [observation]
        if not parts:
            raise ValueError("observation_space: expected at least one part, got none")
        self.num_observations = len(parts)
        return num_rows, num_envs, parts

    def _sample(self, parts: list[StepField]) -> None:
        """Make what minibatches need, once the native table is there."""
        self.is_sampled_natively = all(part.shape for part in parts) and all(
            field.dtype.name in TORCH_DTYPES for field in self.schema.values()
        )
        self.pool = Pool(Form(self.schema, self.parts, {}))

    def _named(self, views: Iterator[Any]) -> Any:
        taken = [next(views) for _ in range(self.num_observations)]
        return taken[0] if self.keys is None else Columns(zip(self.keys, taken, strict=True))

    def gather(self, rows: NDArray[np.int64], envs: NDArray[np.int64]) -> HostBlock:
        """Copy transitions into a block.

        Its fields (B, ...) are the observation's parts, the action, the next observation's parts, reward (B, 1)
        and done * (1 - timeout) (B, 1).

        Args:
            rows: (B,) int64; negative ones count from the end.
            envs: (B,) int64.

        Raises:
            IndexError: A row or an environment is out of range.
        """
        block = self.pool.take(len(rows))
        if not self.gather_into(block.native, rows, envs):
            self._refuse(rows, envs)
        return block

    def gather_goals(
        self, block: HostBlock, rows: NDArray[np.int64], envs: NDArray[np.int64], achieved: str, desired: str
    ) -> None:
        """Copy what steps achieved over the desired goals of as many of a block's last transitions.

        Args:
            block: As `gather` returned it.
            rows: (G,) int64, G at most B.
            envs: (G,) int64.
            achieved: Which part of those steps' next observations is copied.
            desired: Over which part of the transitions' observations and next observations, of that form.

        Raises:
            IndexError: A row or an environment is out of range.
        """
        assert self.keys is not None
        if not self.gather_goals_into(block.native, rows, envs, self.keys.index(achieved), self.keys.index(desired)):
            self._refuse(rows, envs)

    def gather_n_steps(
        self, rows: NDArray[np.int64], envs: NDArray[np.int64], num_steps: int, newest_row: int
    ) -> tuple[HostBlock, NSteps]:
        """Copy n-step transitions into a block as `gather` does, but for the reward, which is left undefined.

        Args:
            rows: (B,) int64, where they start.
            envs: (B,) int64.
            num_steps: Steps at most, at least 1.
            newest_row: The row after which no step is taken.

        Raises:
            IndexError: A row or an environment is out of range.
        """
        batch_size = len(rows)
        steps = NSteps(
            np.empty((batch_size, num_steps), np.float32),
            np.empty((batch_size, num_steps), np.bool_),
            np.empty((batch_size, 1), np.float32),
        )
        block = self.pool.take(batch_size)
        if not self.gather_n_steps_into(block.native, rows, envs, newest_row, *steps):
            self._refuse(rows, envs)
        return block, steps

    def _refuse(self, rows: NDArray[np.int64], envs: NDArray[np.int64]) -> None:
        self.rewards[rows, envs]  # NumPy's own error
        raise TypeError(f"expected (B,) int64 rows and environments, got {rows.dtype} {rows.shape} and {envs.shape}")

    def observation(self, values: tuple[Any, ...]) -> Any:
        """Return the observation among a block's arrays or tensors, a dict of its parts for a Dict space."""
        return self._part(values, 0)

    def action(self, values: tuple[Any, ...]) -> Any:
        """Return the action among a block's arrays or tensors."""
        return values[self.num_observations]

    def next_observation(self, values: tuple[Any, ...]) -> Any:
        """Return the next observation among a block's arrays or tensors, a dict of its parts for a Dict space."""
        return self._part(values, self.num_observations + 1)

    def _part(self, values: tuple[Any, ...], first: int) -> Any:
        if self.keys is None:
            return values[first]
        return dict(zip(self.keys, values[first : first + self.num_observations], strict=True))

    def tensors(self, block: HostBlock, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Return a block's fields as tensors: on the CPU its own memory, else moved in one transfer."""
        if device.type != "cpu":
            return block.layout.tensors_in(block.flat_tensor().to(device))[:-1]
        tensors = block.hand_out_tensors()
        self.pool.keep(block)
        return tensors

    def columns(self) -> dict[str, Observation]:
        """Return the live views by name."""
        return {name: view for name in COLUMNS if (view := getattr(self, name)) is not None}

    def arrays(self) -> list[Array]:
        """Return the columns, those of the observation's parts among them, that lie in the table."""
        raise NotImplementedError

    def assign(self, name: str, value: Any) -> None:
        """Copy an array over a column, or a dict of such over an observation's parts.

        Raises:
            ValueError: It has another shape or dtype, or the columns are put together where they are read.
        """
        raise NotImplementedError

    def overwrite(self, state: Mapping[str, Any]) -> None:
        """Copy whole columns in, by the names of `columns()`.

        Args:
            state: The columns among the attributes of a buffer.

        Raises:
            ValueError: A column is missing, or has another shape or dtype.
        """
        raise NotImplementedError

    def save(self) -> Any:
        """Return what is pickled in place of a table, in little memory."""
        raise NotImplementedError

    def kept(self) -> KeptTable:
        """Return the table as checkpoints hold it."""
        raise NotImplementedError

    def like(self) -> Self:
        """Return an empty table of the same form."""
        raise NotImplementedError

    def taken(self, column: Any, rows: NDArray[np.int64], envs: NDArray[np.int64]) -> Array:
        """Return what one of the columns has, (B, ...), at (B,) rows and environments that hold a step."""
        raise NotImplementedError

    def undo(self, rows: Array) -> Callable[[], None]:
        """Return what puts rows back as they are now, but for what cannot be assigned."""
        raise NotImplementedError

    def apart(self, value: Any) -> Any:
        """Return a copy of an array that lies in the table; of a dict, one with such copies; else what was given."""
        if isinstance(value, dict):
            return {key: self.apart(part) for key, part in value.items()}
        is_own = isinstance(value, np.ndarray) and any(np.may_share_memory(value, column) for column in self.arrays())
        return value.copy() if is_own else value

    def is_like(self, other: Steps) -> bool:
        """Tell whether another table has rows of the same form, and as many."""
        return self._arguments == other._arguments


class StepTable(Steps):
    """Rows of `num_envs` transitions, one row a step, in packed records.

    Where the next row goes and which rows are filled is the caller's to know. For one thread.

    Args:
        num_rows: Steps.
        num_envs: Transitions of a step.
        observation: The parts of a Dict observation by name, or the one part.
        action: The action.
        shares_observations: Whether the next observation is the observation of the row after, and stored once.

    Attributes:
        observations, next_observations: Live views (num_rows, num_envs, *shape), of a Dict observation a dict of
            them; `next_observations` is None where they are shared.
        actions, rewards, dones, timeouts: Live views (num_rows, num_envs, ...).
    """

    observations: Observation
    next_observations: Observation | None
    actions: Array
    rewards: Array
    dones: Array
    timeouts: Array

    def __init__(
        self,
        num_rows: int,
        num_envs: int,
        observation: dict[str, StepField] | StepField,
        action: StepField,
        *,
        shares_observations: bool = False,
    ) -> None:
        num_rows, num_envs, parts = self._begin(num_rows, num_envs, observation)
        self._arguments = (num_rows, num_envs, observation, action, shares_observations)
        stored, self.schema = schemas(parts, action, shares_observations=shares_observations)
        self._stored = stored
        self._records = new_records(stored.sizes, num_rows * num_envs, "buffer_size")
        super().__init__(self._records, fields_of_step(parts, action), num_envs, len(parts), self.keys)
        self._sample(parts)
        views = iter([self._view(i, field) for i, field in enumerate(stored.values())])
        self.observations = self._named(views)
        self.actions, self.rewards, self.dones, self.timeouts = (next(views) for _ in range(4))
        self.next_observations = None if shares_observations else self._named(views)
        self.num_bytes = sum(array.nbytes for array in self.arrays()) - self.timeouts.nbytes  # which nobody counts

    def _view(self, index: int, field: Field) -> Array:
        column = self._records.column(index, field.dtype, field.shape)
        # Splitting the leading axis of evenly spaced records needs no copy.
        return column.reshape(self.num_rows, self.num_envs, *field.shape)

    def assign(self, name: str, value: Any) -> None:
        """Copy an array over a column, or a dict of such over an observation's parts."""
        view = getattr(self, name)
        if isinstance(view, Columns):
            view.update(value)
        else:
            overwrite_all([(view, value, name)])

    def overwrite(self, state: Mapping[str, Any]) -> None:
        """Copy whole columns in, by the names of `columns()`."""
        assignments: list[tuple[Array, object, str]] = []
        for name, view in self.columns().items():
            if name not in state:
                raise ValueError(f"{name}: missing")
            if not isinstance(view, dict):
                assignments.append((view, state[name], name))
                continue
            if not isinstance(state[name], dict) or not view.keys() <= state[name].keys():
                raise ValueError(f"{name}: expected a dict of {', '.join(view)}, got {state[name]!r:.200}")
            assignments += [(part, state[name][key], f"{name}[{key!r}]") for key, part in view.items()]
        overwrite_all(assignments)

    def arrays(self) -> list[Array]:
        """Return the live views, those of the observation's parts among them."""
        return flat_columns(self.columns())

    def taken(self, column: Array, rows: NDArray[np.int64], envs: NDArray[np.int64]) -> Array:
        """Return what a column has at rows and environments."""
        return _core.take_rows(column.reshape(-1, *column.shape[2:]), rows * self.num_envs + envs)

    def undo(self, rows: Array) -> Callable[[], None]:
        """Return what puts rows back as they are now."""
        return partial(overwrite_rows, [(view, rows, view[rows]) for view in self.arrays()])

    def save(self) -> Saved:
        """Return what is pickled in place of a table, in little memory."""
        return Saved(_table_to_fill, self._arguments, self.arrays())

    def kept(self) -> KeptTable:
        """Return the table as checkpoints hold it."""
        return KeptTable(self)

    def like(self) -> Self:
        """Return an empty table of the same form."""
        *others, shares_observations = self._arguments
        return type(self)(*others, shares_observations=shares_observations)


def overwrite_rows(assignments: Iterable[tuple[Any, Array, Array]]) -> None:
    """Copy values into rows of columns, (column, rows, values) each."""
    for column, rows, values in assignments:
        column[rows] = values


def fields_of_step(parts: list[StepField], action: StepField) -> list[StepField]:
    """Return what is given of a step, in the order in which the native table takes it."""
    return [*parts, action, _NUMBER, _NUMBER, _NUMBER, *parts]


def schemas(parts: list[StepField], action: StepField, *, shares_observations: bool = False) -> tuple[Schema, Schema]:
    """Return what is stored of a step of one environment, and what a minibatch is made of."""
    observation = {f"observation/{i}": Field(part.shape, part.dtype) for i, part in enumerate(parts)}
    here = {**observation, "action": Field(action.shape, action.dtype)}
    after = {f"next_{name}": field for name, field in observation.items()}
    numbers = {name: Field() for name in ("reward", "done", "timeout")}
    stored = Schema({**here, **numbers, **({} if shares_observations else after)})
    return stored, Schema({**here, **after, "reward": Field((1,)), "done": Field((1,))})


def _table_to_fill(*arguments: Any) -> tuple[StepTable, list[Array]]:
    *others, shares_observations = arguments
    table = StepTable(*others, shares_observations=shares_observations)
    return table, table.arrays()
