# SPDX-License-Identifier: MIT
"""What the buffers that stand in for other libraries' classes share: arrays, cursor, draws, saved state."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastreplay.adapters.draws import Draw, numpy_draw
from fastreplay.adapters.steps import Columns, Part, VectorRing, overwrite
from fastreplay.schema.spaces import is_discrete
from fastreplay.support.saving import SavedState

if TYPE_CHECKING:
    import gymnasium as gym

    from fastreplay.adapters.steps import Array
    from fastreplay.batch.block import HostBlock

__all__ = ["Adapter"]

_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
# What a saved state must have, to tell its arrays' shapes and where it goes on.
_KINDS = {"buffer_size": int, "n_envs": int, "pos": int, "full": bool, "optimize_memory_usage": bool}
_COUNTED_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones")


class _Column:
    """An attribute that is a live view of the storage, and into which an assigned array is copied."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, buffer: Adapter | None, owner: type) -> Any:
        if buffer is None:
            return self
        view = getattr(buffer._ring, self._name)
        if view is None:
            raise AttributeError(
                f"{type(buffer).__name__!r} object has no attribute {self._name!r}: with optimize_memory_usage the "
                "next observations are the observations of the row after"
            )
        return view

    def __set__(self, buffer: Adapter, value: Any) -> None:
        view = self.__get__(buffer, type(buffer))
        if isinstance(view, Columns):
            view.update(value)
        else:
            overwrite(view, value, self._name)


class Adapter:
    """Base of buffers with the attributes of Stable-Baselines3's: rows of `n_envs` transitions, `pos` and `full`.

    The plain attributes are the truth: whatever sets `pos` or `full` moves the cursor. The arrays are live views.
    """

    buffer_size: int
    n_envs: int
    pos: int
    full: bool
    optimize_memory_usage: bool
    handle_timeout_termination: bool
    observation_space: Any  # a Gymnasium space
    action_space: Any
    obs_shape: Any
    action_dim: int
    device: Any
    _ring: VectorRing
    _draw: Draw = staticmethod(numpy_draw)

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

    def _new_ring(self) -> VectorRing:
        # Actions of float64 are kept as float32, which is what networks give and take.
        dtype = np.dtype(self.action_space.dtype)
        action = np.dtype(np.float32) if dtype == np.float64 else dtype
        return VectorRing(
            self.buffer_size,
            self.n_envs,
            self._observation_parts(),
            Part((self.action_dim,), action, is_reshaped=True),
            shares_observations=self.optimize_memory_usage,
        )

    def _observation_parts(self) -> dict[str, Part] | Part:
        return part_of(self.observation_space, self.obs_shape)

    def _warn_of_memory(self, available: int) -> None:
        views = [view for name, view in self._ring.columns().items() if name in _COUNTED_ARRAYS]
        arrays = [part for view in views for part in (view.values() if isinstance(view, dict) else [view])]
        num_bytes = sum(array.nbytes for array in arrays)
        if num_bytes > available:
            warnings.warn(
                f"This system does not seem to have enough memory for the whole replay buffer: it takes "
                f"{num_bytes / 1e9:.2f}GB, {available / 1e9:.2f}GB are available",
                stacklevel=3,
            )

    def _store(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: Any) -> bool:
        """Store a step natively; False, with nothing changed, where it needs the general way."""
        ring = self._ring
        if ring.num_rows != self.buffer_size or ring.num_envs != self.n_envs:
            return False
        timeouts = infos if self.handle_timeout_termination else None
        if timeouts is None and self.handle_timeout_termination:
            return False  # to the ring it means that there are none to be kept
        if not ring.write(self.pos, obs, next_obs, action, reward, done, timeouts):
            return False
        self._advance()
        return True

    def _advance(self) -> None:
        self.pos += 1
        if self.pos == self.buffer_size:
            self.full = True
            self.pos = 0

    def _draw_rows(self, batch_size: int) -> Array:
        if self.optimize_memory_usage and self.full:
            # The row at the cursor holds the last next observation; the transition it held is lost.
            return (self._draw(1, self.buffer_size, batch_size) + self.pos) % self.buffer_size
        return self._draw(0, self.buffer_size if self.full else self.pos, batch_size)

    def _native_rows(self, batch_inds: object) -> Array | None:
        """Return the rows as the native gather takes them; None where they need the general way."""
        ring = self._ring
        if (
            type(batch_inds) is not np.ndarray
            or batch_inds.ndim != 1
            or batch_inds.dtype.kind not in "iu"
            or not len(batch_inds)
            or ring.num_rows != self.buffer_size
            or not ring.is_sampled_natively
        ):
            return None
        return np.ascontiguousarray(batch_inds, dtype=np.int64)

    def _torch_device(self) -> torch.device:
        return self.device if isinstance(self.device, torch.device) else torch.device(self.device)

    def _fresh_tensors(self, block: HostBlock) -> tuple[Any, ...]:
        """Return observation, action, next observation, done and reward of a block as fresh tensors."""
        ring = self._ring
        values = ring.tensors(block, self._torch_device())
        return ring.observation(values), ring.action(values), ring.next_observation(values), values[-1], values[-2]

    def __getstate__(self) -> dict[str, Any]:
        """Return all attributes, the arrays as live views under their own names."""
        state = {name: value for name, value in self.__dict__.items() if name != "_ring"}
        return SavedState({**state, **self._ring.columns()}, self._ring, self._ring.save)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what a pickle holds.

        Raises:
            ValueError: The state is malformed; the buffer is as it was.
        """
        self.__dict__.update(self._attributes_of(state))

    def _attributes_of(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return the attributes that a state means, with a ring of their own."""
        if not isinstance(state, dict):
            raise ValueError(f"state: expected a dict of attributes, got {type(state).__name__}")
        for name, kind in _KINDS.items():
            if not isinstance(state.get(name), kind):
                raise ValueError(f"state: expected {name!r}, of type {kind.__name__}, got {state.get(name)!r}")
        if state["buffer_size"] < 1 or state["n_envs"] < 1 or not 0 <= state["pos"] <= state["buffer_size"]:
            raise ValueError(
                f"state: expected at least one row and environment, and a cursor in them, got buffer_size "
                f"{state['buffer_size']}, n_envs {state['n_envs']} and pos {state['pos']}"
            )
        buffer = object.__new__(type(self))
        buffer.__dict__.update({name: value for name, value in state.items() if name not in _ARRAYS})
        try:
            ring = buffer._new_ring()
        except (AttributeError, TypeError, NotImplementedError) as error:
            raise ValueError(f"state: {error}") from error
        loaded = state.loaded if isinstance(state, SavedState) else None
        if loaded is not None and loaded.is_like(ring) and _are_columns_of(loaded, state):
            ring, state.loaded = loaded, None  # type: ignore[attr-defined]
        else:
            ring.overwrite(state)
        buffer._ring = ring
        return buffer.__dict__


def _are_columns_of(ring: VectorRing, state: dict[str, Any]) -> bool:
    return all(state.get(name) is column for name, column in ring.columns().items())


def part_of(space: gym.Space[Any], shape: object, name: str = "observation_space") -> Part:
    """Return how one array of observations is stored.

    Raises:
        TypeError: The space is made of several arrays.
    """
    if not isinstance(shape, tuple):
        raise TypeError(f"{name}: expected a space of one array, got {space}")
    return Part(shape, np.dtype(space.dtype), is_reshaped=is_discrete(space))
