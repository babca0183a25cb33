# SPDX-License-Identifier: MIT
"""Stable-Baselines3's n-step replay buffer on a native ring."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from stable_baselines3.common import buffers as sb3
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from fastreplay.adapters.native_step_table import discounted_sums
from fastreplay.adapters.sb3.buffers import ReplayBuffer

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecNormalize

    from fastreplay.adapters.columns import Array

__all__ = ["NStepReplayBuffer"]


class NStepReplayBuffer(ReplayBuffer, sb3.NStepReplayBuffer):
    """Stable-Baselines3's `NStepReplayBuffer` on a native ring, the same bit for bit.

    The steps are followed natively. Rewards are discounted and summed in SB3's order of operations, so that every
    rounding is the same.

    Args:
        *args: As in `ReplayBuffer`.
        n_steps: Steps of a transition at most.
        gamma: Discount factor.
        **kwargs: As in `ReplayBuffer`.

    Raises:
        NotImplementedError: `optimize_memory_usage`.
        ValueError, TypeError: As `ReplayBuffer`.

    Thread safety:
        None, as SB3's: one thread at a time.
    """

    def __init__(self, *args: Any, n_steps: int = 3, gamma: float = 0.99, **kwargs: Any) -> None:
        ReplayBuffer.__init__(self, *args, **kwargs)
        self.n_steps = n_steps
        self.gamma = gamma

    def _check(self, optimize_memory_usage: bool, handle_timeout_termination: bool) -> None:
        super()._check(optimize_memory_usage, handle_timeout_termination)
        if optimize_memory_usage:
            raise NotImplementedError("optimize_memory_usage: NStepReplayBuffer has none")

    def _get_samples(self, batch_inds: Array, env: VecNormalize | None = None) -> ReplayBufferSamples:
        rows = self._native_rows(batch_inds)
        if rows is None or self._is_left_to_sb3(env) or self.n_steps < 1 or not 0 <= self.pos <= self.buffer_size:
            with self._kept_on_error(self.pos - 1):  # whose timeouts SB3 changes while it samples
                return sb3.NStepReplayBuffer._get_samples(self, batch_inds, env)
        return self._samples_at(rows, self._integers(0, self.n_envs, len(rows)), env)

    def _samples_at(self, rows: Array, envs: Array, env: VecNormalize | None) -> ReplayBufferSamples:
        block, steps = self._table.gather_n_steps(rows, envs, self.n_steps, (self.pos - 1) % self.buffer_size)
        rewards = self._normalize_reward(steps.rewards, env)
        discounts = self.gamma ** np.arange(self.n_steps, dtype=np.float32).reshape(1, -1)
        returns = _returns(rewards, discounts, steps.is_counted)
        obs, actions, next_obs, dones, returned = self._tensors(block, env, returns)
        return ReplayBufferSamples(obs, actions, next_obs, dones, returned, self._fresh(self.gamma**steps.counts))


def _returns(rewards: Array, discounts: Array, is_counted: Array) -> Array:
    """Sum the rewards (B, n) that are counted, discounted; (B, 1)."""
    if _sums_alike(rewards.shape[1]):
        sums = np.empty((len(rewards), 1), np.float32)
        if discounted_sums(rewards, discounts, is_counted, sums):
            return sums
    return _numpy_returns(rewards, discounts, is_counted)


def _numpy_returns(rewards: Array, discounts: Array, is_counted: Array) -> Array:
    return cast("Array", (rewards * discounts * is_counted).sum(axis=1, keepdims=True))


@cache
def _sums_alike(num_steps: int) -> bool:
    """Tell whether NumPy adds this many numbers in order, by trying; it has other orders for longer rows."""
    if num_steps >= 8:
        return False
    rng = np.random.Generator(np.random.PCG64(0))
    rewards = rng.normal(size=(512, num_steps)).astype(np.float32)
    rewards[::7] = -0.0
    is_counted = np.arange(num_steps) <= rng.integers(num_steps, size=(512, 1))
    discounts = np.float32(0.99) ** np.arange(num_steps, dtype=np.float32).reshape(1, -1)
    sums = np.empty((512, 1), np.float32)
    expected = _numpy_returns(rewards, discounts, is_counted)
    return discounted_sums(rewards, discounts, is_counted, sums) and sums.tobytes() == expected.tobytes()
