# SPDX-License-Identifier: MIT
"""What the buffers that stand in for other libraries' classes share: arrays, cursor, draws, saved state."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastreplay.adapters.frame_table import Dedupe, FrameTable, frames_of, row_of
from fastreplay.adapters.kept_steps import KeptSteps
from fastreplay.adapters.random_integers import Integers, checked_size, integers_of, numpy_integers
from fastreplay.adapters.step_table import COLUMNS, StepField, Steps, StepTable
from fastreplay.schema.spaces import is_discrete
from fastreplay.support.checks import checked_count, checked_index
from fastreplay.support.saving import SavedState

if TYPE_CHECKING:
    from collections.abc import Callable

    import gymnasium as gym
    from typing_extensions import Self

    from fastreplay.adapters.columns import Array
    from fastreplay.adapters.random_integers import Rng
    from fastreplay.batch.block import HostBlock

__all__ = ["Adapter", "field_of_space", "refuse_dedupe_twice", "refuse_sharing_with_timeouts", "rows_and_envs"]

# What a saved state must have, to tell its arrays' shapes and where it goes on.
_KINDS: dict[str, type[Any]] = {
    "buffer_size": int,
    "n_envs": int,
    "pos": int,
    "full": bool,
    "optimize_memory_usage": bool,
}


class _Column:
    """An attribute that is a column of the storage, and into which an assigned array is copied."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, buffer: Adapter | None, owner: type) -> Any:
        if buffer is None:
            return self
        view = getattr(buffer._table, self._name)
        if view is None:
            raise AttributeError(
                f"{type(buffer).__name__!r} object has no attribute {self._name!r}: with optimize_memory_usage the "
                "next observations are the observations of the row after"
            )
        return view

    def __set__(self, buffer: Adapter, value: Any) -> None:
        self.__get__(buffer, type(buffer))
        buffer._table.assign(self._name, value)


class Adapter(KeptSteps):
    """Base of buffers with the attributes of Stable-Baselines3's: rows of `n_envs` transitions, `pos` and `full`.

    The plain attributes are the truth: whatever sets `pos` or `full` moves the cursor. The arrays are live views; with
    `dedupe` they are put together where they are read.
    """

    buffer_size: int
    n_envs: int
    pos: int
    full: bool
    optimize_memory_usage: bool
    handle_timeout_termination: bool
    dedupe: Dedupe = False
    observation_space: Any  # a Gymnasium space
    action_space: Any
    obs_shape: Any
    action_dim: int
    device: Any
    _table: Steps
    _integers: Integers = staticmethod(numpy_integers)

    if TYPE_CHECKING:  # arrays, of Dict spaces dicts of them
        observations: Any
        next_observations: Any
        actions: Array
        rewards: Array
        dones: Array
        timeouts: Array
    else:
        observations = _Column("observations")
        next_observations = _Column("next_observations")
        actions = _Column("actions")
        rewards = _Column("rewards")
        dones = _Column("dones")
        timeouts = _Column("timeouts")

    def _begin(self, available: int | None, rng: Rng) -> None:
        """Allocate the table, warning where it takes more than the bytes that are available, and choose the draws."""
        self._table = self._new_table()
        if available is not None:
            self._warn_of_memory(available)
        self._integers = integers_of(rng)  # last: it may seed itself from NumPy's, which a refusal leaves alone

    def _new_table(self) -> Steps:
        # Actions of float64 are kept as float32, which is what networks give and take.
        dtype = np.dtype(self.action_space.dtype)
        action = StepField((self.action_dim,), np.dtype(np.float32) if dtype == np.float64 else dtype, is_reshaped=True)
        observation = self._observation_fields()
        if self.dedupe is False:
            shares = self.optimize_memory_usage
            return StepTable(self.buffer_size, self.n_envs, observation, action, shares_observations=shares)
        frames = frames_of(self.dedupe, observation)
        return FrameTable(self.buffer_size, self.n_envs, observation, action, frames)

    def _observation_fields(self) -> dict[str, StepField] | StepField:
        return field_of_space(self.observation_space, self.obs_shape)

    def _warn_of_memory(self, available: int) -> None:
        num_bytes = self._table.num_bytes
        if num_bytes > available:
            warnings.warn(
                f"This system does not seem to have enough memory for the whole replay buffer: it takes "
                f"{num_bytes / 1e9:.2f}GB, {available / 1e9:.2f}GB are available",
                stacklevel=4,
            )

    def _store(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: Any) -> bool:
        """Store a step natively; False, with nothing changed, where it needs the general way."""
        table = self._table
        if table.num_rows != self.buffer_size or table.num_envs != self.n_envs:
            return False
        timeouts = infos if self.handle_timeout_termination else None
        if timeouts is None and self.handle_timeout_termination:
            return False  # to the table it means that there are none to be kept
        if not table.write(self.pos, obs, next_obs, action, reward, done, timeouts):
            return False
        self._advance()
        return True

    def _store_by(self, store: Callable[..., object], *step: Any) -> None:
        """Store a step in the general way, by a method that writes it into a row of a buffer's arrays.

        Where they are put together as they are read, into those of a buffer of one row first.
        """
        if self.dedupe is False:
            store(self, *step)
            return
        one = self._with_one_row()
        store(one, *step)
        columns = one._table.columns()
        if not self.handle_timeout_termination:
            del columns["timeouts"]
        obs, next_obs, *numbers = (row_of(column, 0) for column in columns.values())
        timeouts = numbers[3:] or [None]
        if not self._table.write(self.pos, obs, next_obs, *numbers[:3], *timeouts):
            raise IndexError(f"pos: expected a row in [0, {self._table.num_rows}), got {self.pos}")
        self._advance()

    def _with_one_row(self) -> Self:
        """Return a buffer like this one for a single step, which lies in arrays."""
        one = object.__new__(type(self))
        one.__dict__.update(self.__dict__, buffer_size=1, pos=0, full=False, dedupe=False)
        one._table = one._new_table()
        return one

    def _advance(self) -> None:
        self.pos += 1
        if self.pos == self.buffer_size:
            self.full = True
            self.pos = 0

    def _draw_rows(self, batch_size: int) -> Array:
        batch_size = checked_size(self._integers, batch_size)
        if self.optimize_memory_usage and self.full:
            # The row at the cursor holds the last next observation; the transition it held is lost.
            return (self._integers(1, self.buffer_size, batch_size) + self.pos) % self.buffer_size
        return self._integers(0, self.buffer_size if self.full else self.pos, batch_size)

    def _native_rows(self, batch_inds: object) -> Array | None:
        """Return the rows as the native gather takes them; None where they need the general way."""
        table = self._table
        if (
            type(batch_inds) is not np.ndarray
            or batch_inds.ndim != 1
            or batch_inds.dtype.kind not in "iu"
            or not len(batch_inds)
            or table.num_rows != self.buffer_size
            or not table.is_sampled_natively
        ):
            return None
        return np.ascontiguousarray(batch_inds, dtype=np.int64)

    def _torch_device(self) -> torch.device:
        return self.device if isinstance(self.device, torch.device) else torch.device(self.device)

    def _fresh_tensors(self, block: HostBlock) -> tuple[Any, ...]:
        """Return observation, action, next observation, done and reward of a block as fresh tensors."""
        table = self._table
        values = table.tensors(block, self._torch_device())
        return table.observation(values), table.action(values), table.next_observation(values), values[-1], values[-2]

    def __getstate__(self) -> dict[str, Any]:
        """Return all attributes, the arrays as live views under their own names."""
        state = {name: value for name, value in self.__dict__.items() if name != "_table"}
        return SavedState({**state, **self._table.columns()}, self._table, self._table.save)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what a pickle holds.

        Raises:
            ValueError: The state is malformed; the buffer is as it was.
        """
        self.__dict__.update(self._attributes_of(state))

    def _attributes_of(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return the attributes that a state means, with a table of their own."""
        if not isinstance(state, dict):
            raise ValueError(f"state: expected a dict of attributes, got {type(state).__name__}")
        for name, kind in _KINDS.items():
            if not isinstance(state.get(name), (kind, np.integer if kind is int else np.bool_)):
                raise ValueError(f"state: expected {name!r}, of type {kind.__name__}, got {state.get(name)!r}")
        if state["buffer_size"] < 1 or state["n_envs"] < 1 or not 0 <= state["pos"] <= state["buffer_size"]:
            raise ValueError(
                f"state: expected at least one row and environment, and a cursor in them, got buffer_size "
                f"{state['buffer_size']}, n_envs {state['n_envs']} and pos {state['pos']}"
            )
        buffer = object.__new__(type(self))
        buffer.__dict__.update({name: value for name, value in state.items() if name not in COLUMNS})
        buffer.__dict__.update({name: kind(state[name]) for name, kind in _KINDS.items()})
        try:
            table = buffer._new_table()
        except (AttributeError, TypeError, NotImplementedError) as error:
            raise ValueError(f"state: {error}") from error
        loaded = state.loaded if isinstance(state, SavedState) else None
        if loaded is not None and loaded.is_like(table) and _are_columns_of(loaded, state):
            table, state.loaded = loaded, None  # type: ignore[attr-defined]
        else:
            table.overwrite(state)
        buffer._table = table
        return buffer.__dict__


def _are_columns_of(table: Steps, state: dict[str, Any]) -> bool:
    return all(state.get(name) is column for name, column in table.columns().items())


def rows_and_envs(buffer_size: object, n_envs: object) -> tuple[int, int]:
    """Return how many rows of transitions of how many environments there are, as Python's integers, which are kept.

    Raises:
        TypeError, ValueError: They are none, or there is no environment; the message names it.
    """
    envs = checked_count("n_envs", n_envs)
    return max(checked_index("buffer_size", buffer_size) // envs, 1), envs


def refuse_dedupe_twice(dedupe: Dedupe, optimize_memory_usage: bool) -> None:
    """Refuse to store observations once in two ways.

    Raises:
        ValueError: Both are asked for.
    """
    if dedupe is not False and optimize_memory_usage:
        raise ValueError(
            "dedupe: cannot be had together with optimize_memory_usage, which stores next observations once, too, "
            "but loses those of ends"
        )


def refuse_sharing_with_timeouts(optimize_memory_usage: bool, handle_timeout_termination: bool) -> None:
    """Refuse to store observations once where timeouts are handled.

    Raises:
        ValueError: Both are asked for.
    """
    if optimize_memory_usage and handle_timeout_termination:
        raise ValueError(
            "optimize_memory_usage: cannot be had together with handle_timeout_termination, since the "
            "observation after a timeout would be lost"
        )


def field_of_space(space: gym.Space[Any], shape: object, name: str = "observation_space") -> StepField:
    """Return how one array of observations is stored.

    Raises:
        TypeError: The space is made of several arrays.
    """
    if not isinstance(shape, tuple):
        raise TypeError(f"{name}: expected a space of one array, got {space}")
    return StepField(shape, np.dtype(space.dtype), is_reshaped=is_discrete(space))
