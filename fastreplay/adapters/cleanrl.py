# SPDX-License-Identifier: MIT
"""Drop-in replay buffer for CleanRL's scripts: one import changed, the same minibatches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from fastreplay.adapters.autoreset import (
    TIMEOUT,
    Autoreset,
    default_autoreset,
    ending_envs,
    resetting_envs,
    vector_timeouts,
)
from fastreplay.adapters.base import Adapter, refuse_dedupe_twice, refuse_sharing_with_timeouts, rows_and_envs
from fastreplay.adapters.kept_tables import bytes_of, taken
from fastreplay.schema.spaces import action_length, is_discrete, observation_shape

if TYPE_CHECKING:
    from collections.abc import Iterable

    import gymnasium as gym

    from fastreplay.adapters.autoreset import Infos
    from fastreplay.adapters.columns import Array
    from fastreplay.adapters.random_integers import Rng
    from fastreplay.checkpoint.folder import Folder
    from fastreplay.checkpoint.manifest import Manifest
    from fastreplay.checkpoint.said import Said

__all__ = ["Autoreset", "ReplayBuffer", "ReplayBufferSamples"]

_RESETS = "resets"  # as checkpoints call them
# Tries to draw rows that hold a transition; every other row may be a reset. Then they are listed.
_MOST_DRAWS = 1000


class ReplayBufferSamples(NamedTuple):
    """A minibatch; tensors (B, ...) that are the caller's to keep."""

    observations: torch.Tensor  # (B, *shape), dtype of the space
    actions: torch.Tensor  # (B, action_dim)
    next_observations: torch.Tensor  # (B, *shape)
    dones: torch.Tensor  # (B, 1) float32, 0 where the episode timed out
    rewards: torch.Tensor  # (B, 1) float32


class ReplayBuffer(Adapter):
    """CleanRL's `ReplayBuffer` on a native ring of packed records.

    Under the same seed every call gives what CleanRL's class gives, bit for bit, but for the rows of resets (see
    `autoreset`).

    Args:
        buffer_size: Transitions at most; rounded down to a multiple of `n_envs`.
        observation_space: Box, Discrete, MultiDiscrete or MultiBinary, of one environment.
        action_space: The same.
        device: Torch device of the minibatches; "auto" is CUDA where there is one.
        n_envs: Transitions of a step.
        optimize_memory_usage: Stores an observation once, as the next observation of the row before.
        handle_timeout_termination: Reads `TimeLimit.truncated` of the infos; such an end is none to the learner.
        autoreset: When the environments reset after an end. "next_step": the step after it only resets; it is no
            transition and is never sampled. It follows an end that `done`, `truncations` or the infos tell
            (`TimeLimit.truncated`, or the `episode` of RecordEpisodeStatistics). "same_step", "disabled": in the
            same step, or by the caller; every step is a transition, as to CleanRL. None: "same_step" before
            Gymnasium 1.0; since then, whose vector environments reset in the next step by default, the steps
            tell: a step after an end is a reset where it goes on from exactly the last observation and nothing
            in the infos (`final_obs`) tells of a reset before. Where a first observation may equal the last one
            (few discrete states), say which it is.
        rng: "numpy" draws from `np.random` as CleanRL does. "native" draws from a generator of the buffer's own,
            which is seeded from `np.random` now.
        dedupe: True stores a next observation and the observation of the step after once. A number of frames does
            the same with every frame, where observations are stacks of so many along their first axis, as
            FrameStackObservation's are: 4 for CleanRL's Atari wrappers. What steps give is compared, so that
            minibatches are the same without: what does not go on where the step before ended is stored in full.

    Attributes:
        observations, next_observations: Live, writable views (rows, n_envs, *shape) of the observation's dtype;
            there are no `next_observations` with `optimize_memory_usage`. With `dedupe` this and the following are
            no arrays, but put together where they are indexed, by rows and environments: what that gives is a copy,
            `np.array` makes one of all, and to assign is refused with a ValueError; but rows of the following that
            hold a step may be, by index.
        actions: The same, (rows, n_envs, action_dim); float64 is stored as float32.
        rewards, dones, timeouts: The same, (rows, n_envs) float32.
        pos, full: The cursor. They may be set; with `dedupe`, to the beginning, as `reset` does.

    Raises:
        ValueError: `optimize_memory_usage` together with `handle_timeout_termination` or `dedupe`, an unknown
            `autoreset` or `rng`, a space with a side of length 0, or observations that are no stacks of so many
            frames.
        TypeError: `dedupe` is no bool or integer.
        NotImplementedError: A space of another kind.

    Thread safety:
        None: one thread at a time.

    Example:
        >>> import gymnasium as gym, numpy as np
        >>> from fastreplay.adapters.cleanrl import ReplayBuffer
        >>> box = gym.spaces.Box(-1, 1, (3,))
        >>> rb = ReplayBuffer(1000, box, gym.spaces.Discrete(2), "cpu", handle_timeout_termination=False)
        >>> obs = np.zeros((1, 3), np.float32)
        >>> for step in range(10):
        ...     rb.add(obs, obs + step, np.array([step % 2]), np.array([1.0]), np.array([False]), {})
        >>> data = rb.sample(4)
        >>> data.next_observations.shape, data.actions.dtype
        (torch.Size([4, 3]), torch.int64)
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        autoreset: Autoreset | None = None,
        rng: Rng = "numpy",
        dedupe: bool | int = False,
    ) -> None:
        refuse_sharing_with_timeouts(optimize_memory_usage, handle_timeout_termination)
        refuse_dedupe_twice(dedupe, optimize_memory_usage)
        if autoreset not in (None, "next_step", "same_step", "disabled"):
            raise ValueError(f"autoreset: expected 'next_step', 'same_step', 'disabled' or None, got {autoreset!r}")
        self.observation_space = observation_space
        self.action_space = action_space
        self.obs_shape = observation_shape(observation_space)
        self.action_dim = action_length(action_space)
        self.buffer_size, self.n_envs = rows_and_envs(buffer_size, n_envs)
        self.pos = 0
        self.full = False
        self.device = _device(device)
        self.optimize_memory_usage = optimize_memory_usage
        self.handle_timeout_termination = handle_timeout_termination
        if dedupe is not False:  # a state without has the names of theirs
            self.dedupe = dedupe
        self.autoreset = autoreset or default_autoreset()
        self._begin(_available_memory(), rng)
        # Which environments ended in the last step, each with its last observation.
        self._ended: dict[int, Array] = {}
        # Stored steps that are no transitions, once there is one.
        self._is_reset: Array | None = None

    def size(self) -> int:
        """Return the number of rows that are filled."""
        return self.buffer_size if self.full else self.pos

    def reset(self) -> None:
        """Forget everything."""
        self.pos = 0
        self.full = False
        self._ended = {}
        self._is_reset = None

    def add(
        self,
        obs: Array,
        next_obs: Array,
        action: Array,
        reward: Array,
        done: Array,
        infos: Infos,
        *,
        truncations: Array | None = None,
    ) -> None:
        """Store one step of all environments.

        Args:
            obs: (n_envs, *shape).
            next_obs: (n_envs, *shape), the last of the episode where it ended.
            action: (n_envs, action_dim).
            reward: (n_envs,).
            done: (n_envs,), what stops the learner from looking further: CleanRL passes the terminations.
            infos: A list of a dict an environment, or a dict of arrays (n_envs,) as of Gymnasium's vector
                environments.
            truncations: (n_envs,) bool, which episodes were cut off; looked at only to know which environments
                reset next.

        Raises:
            ValueError: With `autoreset="next_step"`, an environment that ended does not go on from its last
                observation, or the infos tell of a reset: it does not reset in the next step. With `dedupe`, `pos` was
                set to another row than the next or the first. Nothing was stored.
            Exception: What NumPy says of a value that does not fit.

        Thread safety:
            None.
        """
        timeouts = vector_timeouts(infos, self.n_envs) if isinstance(infos, Mapping) else infos
        if self.autoreset in ("same_step", "disabled"):
            self._store_step(obs, next_obs, action, reward, done, timeouts)
            return
        resets = self._resets(obs)
        ends = ending_envs(done, infos, truncations, self.n_envs, self.autoreset)
        ends = [env for env in ends if env not in resets]
        # A step that only resets is left out, unless it keeps the last observation of the step before.
        if len(resets) == self.n_envs and not self.optimize_memory_usage:
            self._ended = {}
            return
        row = self.pos
        self._store_step(obs, next_obs, action, reward, done, timeouts)
        self._mark(row, resets)
        self._ended = {env: self._last_observation(row, env) for env in ends}

    def _last_observation(self, row: int, env: int) -> Array:
        """Return a copy of the next observation of the row that was stored last."""
        if self.optimize_memory_usage:
            return np.array(self.observations[self.pos, env])
        return np.array(self.next_observations[row, env])

    def _resets(self, obs: Array) -> list[int]:
        """Return the environments that reset in this step."""
        if not self._ended:
            return []
        first = np.empty((self.n_envs, *self.obs_shape), self.observations.dtype)
        first[...] = obs.reshape(first.shape) if is_discrete(self.observation_space) else obs
        return resetting_envs(first, self._ended, self.autoreset)

    def _mark(self, row: int, resets: list[int]) -> None:
        if self._is_reset is None:
            if not resets:
                return
            self._is_reset = np.zeros((self.buffer_size, self.n_envs), dtype=bool)
        self._is_reset[row] = False
        self._is_reset[row, resets] = True

    def _store_step(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: Any) -> None:
        if not self._store(obs, next_obs, action, reward, done, infos):
            self._store_by(type(self)._store_by_numpy, obs, next_obs, action, reward, done, infos)

    def _store_by_numpy(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: Any) -> None:
        """Store what the native code does not take, as NumPy casts and broadcasts it; all of it or nothing."""
        if is_discrete(self.observation_space):
            obs = obs.reshape((self.n_envs, *self.obs_shape))
            next_obs = next_obs.reshape((self.n_envs, *self.obs_shape))
        pos = self.pos
        if self.optimize_memory_usage:
            next_row = self.observations[(pos + 1) % self.buffer_size]
        else:
            next_row = self.next_observations[pos]
        rows = [
            (self.observations[pos], obs),
            (next_row, next_obs),
            (self.actions[pos], action.reshape((self.n_envs, self.action_dim))),
            (self.rewards[pos], reward),
            (self.dones[pos], done),
        ]
        if self.handle_timeout_termination:
            is_array = isinstance(infos, np.ndarray)
            rows.append((self.timeouts[pos], infos if is_array else [info.get(TIMEOUT, False) for info in infos]))
        staged = [np.empty_like(row) for row, _ in rows]
        for values, (_, value) in zip(staged, rows, strict=True):
            values[...] = np.array(value)
        for (row, _), values in zip(rows, staged, strict=True):
            row[...] = values
        self._advance()

    def extend(self, *args: Iterable[Any]) -> None:
        """Call `add` with the items of each argument, one after the other."""
        for step in zip(*args, strict=False):
            self.add(*step)

    def sample(self, batch_size: int) -> ReplayBufferSamples:
        """Draw a minibatch uniformly, with replacement.

        Args:
            batch_size: Number of transitions.

        Returns:
            Tensors on `device` that are the caller's to keep.

        Raises:
            ValueError: The buffer holds no transition, or batch_size is negative.
            TypeError: batch_size is no integer.

        Thread safety:
            None.
        """
        is_reset = self._is_reset
        if is_reset is None:
            return self._get_samples(self._draw_rows(batch_size))
        parts = self._drawable_rows()
        if self.size() and all(is_reset[part].all() for part in parts):
            raise ValueError("sample: the buffer holds no transition, only resets")  # and nothing was drawn
        rows = self._draw_rows(batch_size)
        envs = self._integers(0, self.n_envs, len(rows))
        for _ in range(_MOST_DRAWS):
            again = np.flatnonzero(is_reset[rows, envs])
            if not len(again):
                return self._samples_at(rows, envs)
            rows[again] = self._draw_rows(len(again))
            envs[again] = self._integers(0, self.n_envs, len(again))
        again = np.flatnonzero(is_reset[rows, envs])
        places = np.concatenate([np.argwhere(~is_reset[part]) + np.array([part.start, 0]) for part in parts])
        rows[again], envs[again] = places[self._integers(0, len(places), len(again))].T
        return self._samples_at(rows, envs)

    def _drawable_rows(self) -> tuple[slice, ...]:
        """Return the rows from which `_draw_rows` draws."""
        if self.optimize_memory_usage and self.full:
            return slice(0, self.pos), slice(self.pos + 1, self.buffer_size)
        return (slice(0, self.size()),)

    def _get_samples(self, batch_inds: Array) -> ReplayBufferSamples:
        rows = self._native_rows(batch_inds)
        if rows is None:
            return self._samples_by_numpy(batch_inds, self._integers(0, self.n_envs, len(batch_inds)))
        return self._samples_at(rows, self._integers(0, self.n_envs, len(rows)))

    def _samples_at(self, rows: Array, envs: Array) -> ReplayBufferSamples:
        if type(self).to_torch is not _to_torch or "to_torch" in self.__dict__:
            return self._samples_by_numpy(rows, envs)
        return ReplayBufferSamples(*self._fresh_tensors(self._table.gather(rows, envs)))

    def _samples_by_numpy(self, rows: Array, envs: Array) -> ReplayBufferSamples:
        """Make the minibatch where the native gather cannot.

        Of no rows, of a dtype that torch may refuse, and where a subclass makes its tensors in its own way.
        """
        if self.optimize_memory_usage:
            next_obs = self.observations[(rows + 1) % self.buffer_size, envs, :]
        else:
            next_obs = self.next_observations[rows, envs, :]
        dones = self.dones[rows, envs] * (1 - self.timeouts[rows, envs])
        arrays = (
            self.observations[rows, envs, :],
            self.actions[rows, envs, :],
            next_obs,
            dones.reshape(-1, 1),
            self.rewards[rows, envs].reshape(-1, 1),
        )
        return ReplayBufferSamples(*map(self.to_torch, arrays))

    def _said(self) -> dict[str, Any]:
        return super()._said() | {"ended": sorted(self._ended)}

    def _attached(self) -> dict[str, Array]:
        last = {f"end of {env}": bytes_of(each) for env, each in self._ended.items()}
        resets = {} if self._is_reset is None else {_RESETS: bytes_of(self._is_reset)}
        return super()._attached() | last | resets

    def _take(self, said: Said, attached: dict[str, Array], parts: dict[str, tuple[Folder, Manifest]]) -> None:
        dtype, envs = (
            self.observations.dtype,
            said.integers("ended", 0, self.n_envs - 1) if "ended" in said.entries else [],
        )
        self._ended = {env: taken(attached, f"end of {env}", self.obs_shape, dtype) for env in envs}
        self._is_reset = None
        if _RESETS in attached:
            self._is_reset = taken(attached, _RESETS, (self.buffer_size, self.n_envs), np.dtype(np.uint8)) != 0
        super()._take(said, attached, parts)

    def to_torch(self, array: Array, copy: bool = True) -> torch.Tensor:
        """Return an array as a tensor on `device`; without `copy` it may share the array's memory."""
        return torch.tensor(array, device=self.device) if copy else torch.as_tensor(array, device=self.device)


_to_torch = ReplayBuffer.to_torch


def _device(device: torch.device | str) -> torch.device:
    """Return the device, the CPU in place of a CUDA device where there is none."""
    chosen = torch.device("cuda" if device == "auto" else device)
    return torch.device("cpu") if chosen.type == "cuda" and not torch.cuda.is_available() else chosen


def _available_memory() -> int | None:
    """Return the bytes of memory that are free; None where psutil is not there to tell."""
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)
