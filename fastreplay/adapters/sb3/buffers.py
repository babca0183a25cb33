# SPDX-License-Identifier: MIT
"""Stable-Baselines3's replay buffers on a native ring: the same calls, the same minibatches bit for bit."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common import buffers as sb3
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from fastreplay.adapters.base import (
    Adapter,
    field_of_space,
    refuse_dedupe_twice,
    refuse_sharing_with_timeouts,
    rows_and_envs,
)
from fastreplay.adapters.random_integers import numpy_integers
from fastreplay.adapters.step_columns import StepColumn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

    from fastreplay.adapters.columns import Array
    from fastreplay.adapters.frame_table import Dedupe
    from fastreplay.adapters.random_integers import Rng
    from fastreplay.adapters.step_table import StepField
    from fastreplay.batch.block import HostBlock

__all__ = ["DictReplayBuffer", "ReplayBuffer"]

# What SB3 hands the arrays of a minibatch to. In a subclass it may do anything, sample included.
_to_torch, _normalize_obs = sb3.BaseBuffer.to_torch, sb3.BaseBuffer._normalize_obs
_normalize_reward = sb3.BaseBuffer._normalize_reward

_OWN = {"_integers", "dedupe"}  # attributes that SB3's buffers do not have
_NORMALIZERS = {"normalize_obs", "normalize_reward"}


class ReplayBuffer(Adapter, sb3.ReplayBuffer):
    """Stable-Baselines3's `ReplayBuffer` with its arrays in one native ring of packed records.

    For `replay_buffer_class=`. Under the same seed every call gives what SB3's class gives, bit for bit. What the
    native code does not take (unusual types and shapes) goes through SB3's own methods, which find their arrays
    here as live views; so do errors.

    Args:
        buffer_size: Transitions at most; rounded down to a multiple of `n_envs`.
        observation_space: Box, Discrete, MultiDiscrete or MultiBinary.
        action_space: The same.
        device: Torch device of the minibatches.
        n_envs: Transitions of a step.
        optimize_memory_usage: Stores an observation once, as the next observation of the row before.
        handle_timeout_termination: Reads `TimeLimit.truncated` of the infos; such an end is none to the learner.
        rng: "numpy" draws from `np.random` as SB3 does. "native" draws from a generator of the buffer's own,
            which is seeded from `np.random` now.
        dedupe: True stores a next observation and the observation of the step after once. A number of frames does
            the same with every frame, where observations are stacks of so many along their first axis, as
            VecFrameStack's are after VecTransposeImage: 4 for (4, 84, 84) of gray frames, and for (12, 84, 84) of
            four frames of three channels. What steps give is compared, so that minibatches are the same without:
            what does not go on where the step before ended is stored in full.

    Attributes:
        observations, next_observations: Live, writable views (rows, n_envs, *shape) of the observation's dtype;
            there are no `next_observations` with `optimize_memory_usage`. An array that is assigned is copied in;
            one of another shape or dtype is refused with a ValueError. With `dedupe` this and the following are no
            arrays, but put together where they are indexed, by rows and environments: what that gives is a copy,
            `np.array` makes one of all, and to assign is refused with a ValueError; but rows of the following that
            hold a step may be, by index.
        actions: The same, (rows, n_envs, action_dim); float64 is stored as float32.
        rewards, dones, timeouts: The same, (rows, n_envs) float32.
        pos, full: The cursor. They may be set; with `dedupe`, to the beginning, as `reset` does.

    Raises:
        ValueError: `optimize_memory_usage` together with `handle_timeout_termination` or `dedupe`, an unknown `rng`,
            a space with a side of length 0, or observations that are no stacks of so many frames.
        TypeError: A Dict space (use `DictReplayBuffer`), a dtype that is no number, or `dedupe` of another type.

    Thread safety:
        None, as SB3's: one thread at a time.
    """

    _sample_type: ClassVar[Any] = ReplayBufferSamples

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        rng: Rng = "numpy",
        dedupe: Dedupe = False,
    ) -> None:
        rows, n_envs = rows_and_envs(buffer_size, n_envs)
        # Not SB3's own class's, which would allocate the arrays.
        sb3.BaseBuffer.__init__(self, rows, observation_space, action_space, device, n_envs=n_envs)
        if dedupe is not False:  # a state without has the names of theirs
            self.dedupe = dedupe
        self._check(optimize_memory_usage, handle_timeout_termination)
        self.optimize_memory_usage = optimize_memory_usage
        self.handle_timeout_termination = handle_timeout_termination
        # Where SB3 can tell how much memory there is, it does so before it allocates.
        psutil: Any = vars(sb3)["psutil"]
        self._begin(None if psutil is None else psutil.virtual_memory().available, rng)

    def _check(self, optimize_memory_usage: bool, handle_timeout_termination: bool) -> None:
        refuse_sharing_with_timeouts(optimize_memory_usage, handle_timeout_termination)
        refuse_dedupe_twice(self.dedupe, optimize_memory_usage)
        if isinstance(self.observation_space, spaces.Dict):
            raise TypeError(f"observation_space: a Dict space needs DictReplayBuffer, got {self.observation_space}")

    def add(
        self,
        obs: Any,
        next_obs: Any,
        action: Array,
        reward: Array,
        done: Array,
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one step of all environments.

        Args:
            obs: (n_envs, *shape); a dict of such for a Dict space.
            next_obs: The same, the last of the episode where it ended, not the first of the next.
            action: (n_envs, action_dim).
            reward: (n_envs,).
            done: (n_envs,).
            infos: A dict an environment.

        Raises:
            ValueError: With `dedupe`, `pos` was set to another row than the next or the first; nothing was stored.
            Exception: What SB3's class raises; here nothing was stored then.

        Thread safety:
            None.
        """
        # The ring would take an array of timeouts, which SB3 does not.
        if type(infos) is list and self._store(obs, next_obs, action, reward, done, infos):
            return
        # SB3 reshapes the parts of a dict in place; here the caller's stays as it was. It stores field after field;
        # here none is overwritten that is stored later.
        obs, next_obs, action, reward, done = map(self._table.apart, (obs, next_obs, action, reward, done))
        # With shared observations it writes two rows.
        with self._kept_on_error(self.pos, (self.pos + 1) % self.buffer_size):
            self._store_by(type(self)._add_by_sb3, obs, next_obs, action, reward, done, infos)

    def _add_by_sb3(self, *step: Any) -> None:
        super().add(*step)

    @contextmanager
    def _kept_on_error(self, *rows: int) -> Iterator[None]:
        """Put rows back that SB3 had written when something was refused: it stores field after field."""
        put_back = self._table.undo(np.array(rows) % self._table.num_rows)
        try:
            yield
        except BaseException:
            put_back()
            raise

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Draw a minibatch uniformly, with replacement.

        Args:
            batch_size: Number of transitions.
            env: Normalizes observations and rewards, where given.

        Returns:
            Tensors (B, ...) on `device` that are the caller's to keep.

        Raises:
            ValueError: The buffer is empty, or batch_size negative.
            TypeError: batch_size is no integer.

        Thread safety:
            None.
        """
        return cast("ReplayBufferSamples", self._get_samples(self._draw_rows(batch_size), env=env))

    def _get_samples(self, batch_inds: Array, env: VecNormalize | None = None) -> Any:
        rows = self._native_rows(batch_inds)
        if rows is None or self._is_left_to_sb3(env):
            return super()._get_samples(batch_inds, env=env)
        return self._samples_at(rows, self._integers(0, self.n_envs, len(rows)), env)

    def _has_hooks(self) -> bool:
        """Tell whether anything but SB3's own code is to see the arrays of a minibatch on their way to tensors."""
        cls, own = type(self), self.__dict__
        return (
            cls.to_torch is not _to_torch
            or cls._normalize_obs is not _normalize_obs
            or cls._normalize_reward is not _normalize_reward
            or "to_torch" in own
            or "_normalize_obs" in own
            or "_normalize_reward" in own
        )

    def _is_left_to_sb3(self, env: VecNormalize | None) -> bool:
        """Tell whether SB3's own methods make the minibatch: then hooks get what they get there, in the same order."""
        is_plain = env is None or (type(env) is VecNormalize and not _NORMALIZERS & env.__dict__.keys())
        return self._integers is numpy_integers and (not is_plain or self._has_hooks())

    def _samples_at(self, rows: Array, envs: Array, env: VecNormalize | None) -> Any:
        """Gather the transitions at (B,) int64 rows and environments."""
        return self._sample_type(*self._tensors(self._table.gather(rows, envs), env))

    def _tensors(self, block: HostBlock, env: VecNormalize | None, rewards: Array | None = None) -> tuple[Any, ...]:
        """Return observation, action, next observation, done and reward of a block as SB3's samples have them.

        Fresh tensors of the block's own memory, or what SB3's hooks make of its arrays. `rewards`, a fresh array
        (B, 1) that needs no normalization, stands for the block's.
        """
        if env is None and not self._has_hooks():
            *others, reward = self._fresh_tensors(block)
            return (*others, reward if rewards is None else self._fresh(rewards))
        table = self._table
        arrays = block.arrays()
        next_obs = self._normalize_obs(table.next_observation(arrays), env)
        obs = self._normalize_obs(table.observation(arrays), env)
        if rewards is None:
            rewards = self._normalize_reward(arrays[-2], env)
        return (
            self._to_torch(obs),
            self.to_torch(table.action(arrays)),
            self._to_torch(next_obs),
            self.to_torch(arrays[-1]),
            self.to_torch(rewards),
        )

    def _to_torch(self, observation: Any) -> Any:
        if isinstance(observation, dict):
            return {key: self.to_torch(part) for key, part in observation.items()}
        return self.to_torch(observation)

    def _fresh(self, array: Array) -> th.Tensor:
        """Return a tensor of an array that nobody else holds."""
        if self._has_hooks() or self._torch_device().type != "cpu":
            return self.to_torch(array)
        return th.from_numpy(array)

    @classmethod
    def from_sb3(cls, buffer: sb3.ReplayBuffer) -> Self:
        """Make a buffer of this class with the contents and the cursor of SB3's own.

        Args:
            buffer: One of SB3's class that this class stands for, for example as `load_from_pkl` returned it.

        Raises:
            TypeError: The buffer is of another kind.

        Thread safety:
            None.
        """
        expected = cls._sb3_class()
        if not isinstance(buffer, expected):
            raise TypeError(f"buffer: expected a {expected.__name__} of SB3, got {type(buffer).__name__}")
        made = cls.__new__(cls)
        state = buffer.__getstate__() if isinstance(buffer, ReplayBuffer) else dict(vars(buffer))
        made.__setstate__({name: value for name, value in state.items() if name != "dedupe"})
        return made

    def to_sb3(self) -> sb3.ReplayBuffer:
        """Make a buffer of SB3's own class with these contents and this cursor, which loads without fastreplay.

        Thread safety:
            None.
        """
        made = self._sb3_class().__new__(self._sb3_class())
        made.__dict__.update({name: _copied(value) for name, value in self.__getstate__().items() if name not in _OWN})
        return made

    @classmethod
    def _sb3_class(cls) -> type[sb3.ReplayBuffer]:
        """Return the class of SB3 that this one stands for."""
        return next(base for base in cls.__mro__ if base.__module__.startswith("stable_baselines3."))


class DictReplayBuffer(ReplayBuffer, sb3.DictReplayBuffer):
    """Stable-Baselines3's `DictReplayBuffer`, as `ReplayBuffer` here; for Dict observation spaces.

    Args:
        buffer_size: As in `ReplayBuffer`, like all that follows.
        observation_space: A Dict of Box, Discrete, MultiDiscrete and MultiBinary spaces.
        action_space: As in `ReplayBuffer`.
        device: As in `ReplayBuffer`.
        n_envs: As in `ReplayBuffer`.
        optimize_memory_usage: Must be False.
        handle_timeout_termination: As in `ReplayBuffer`.
        rng: As in `ReplayBuffer`.
        dedupe: As in `ReplayBuffer`: of all parts; or numbers of frames by the names of those parts that are stacks.

    Attributes:
        observations, next_observations: Dicts of live, writable views (rows, n_envs, *shape). Assigning a part
            copies into the view.

    Raises:
        AssertionError: The observation space is no Dict, or `optimize_memory_usage`.
        ValueError, TypeError: As `ReplayBuffer`.

    Thread safety:
        None, as SB3's: one thread at a time.
    """

    _sample_type: ClassVar[Any] = DictReplayBufferSamples

    def _check(self, optimize_memory_usage: bool, handle_timeout_termination: bool) -> None:  # noqa: ARG002
        assert isinstance(self.obs_shape, dict), f"observation_space: expected a Dict, got {self.observation_space}"
        assert not optimize_memory_usage, "optimize_memory_usage: DictReplayBuffer has none"

    def _observation_fields(self) -> dict[str, StepField] | StepField:
        parts = cast("spaces.Dict", self.observation_space).spaces
        return {key: field_of_space(parts[key], shape, name=key) for key, shape in self.obs_shape.items()}

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> DictReplayBufferSamples:  # type: ignore[override]
        """Draw a minibatch uniformly, with replacement; as `ReplayBuffer.sample`, with dicts of observations."""
        return cast("DictReplayBufferSamples", super().sample(batch_size, env=env))


def _copied(value: Any) -> Any:
    """Return arrays, and dicts of them, as NumPy's own."""
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    return np.array(value) if isinstance(value, (np.ndarray, StepColumn)) else value
