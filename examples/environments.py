# SPDX-License-Identifier: MIT
"""Gymnasium environments that step together: made, checked, played. They know no algorithm."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import TransformObservation

Array: TypeAlias = npt.NDArray[Any]
Envs: TypeAlias = SyncVectorEnv


def positions(observation: Array) -> Array:
    """Hide what CartPole sees of velocities, (4,) -> (2,)."""
    return observation[::2]


def cart_pole_positions() -> gym.Env[Array, Any]:
    """Make a CartPole that shows where cart and pole are, but not where they are going."""
    env = CartPoleEnv()
    space = flat_box(env.observation_space, "observations")
    return TransformObservation(env, positions, Box(space.low[::2], space.high[::2]))


gym.register("CartPolePositions-v1", entry_point=f"{__name__}:cart_pole_positions", max_episode_steps=500)


def make_envs(name: str, num_envs: int, seed: int) -> Envs:
    """Make environments that step together, or leave with one line that says why there are none.

    An environment resets in the step after an episode's end (Gymnasium's next-step autoreset): that
    step's row holds no transition.
    """
    try:
        envs = SyncVectorEnv([functools.partial(gym.make, name)] * num_envs)
    except (gym.error.Error, ImportError) as error:
        sys.exit(f"error: cannot make environment {name!r}: {error}")
    envs.action_space.seed(seed)
    return envs


def flat_box(space: gym.Space[Any], what: str, *, bounded: bool = False) -> Box:
    """Return the space, or leave with one line that says why it does not fit this algorithm."""
    if not isinstance(space, Box) or len(space.shape) != 1 or not np.issubdtype(space.dtype, np.floating):
        sys.exit(f"error: {what}: expected a flat Box of floats, got {space}")
    if bounded and not space.is_bounded():
        sys.exit(f"error: {what}: expected finite bounds, got {space}")
    return space


def discrete(space: gym.Space[Any], what: str) -> Discrete:
    """Return the space, or leave with one line that says why it does not fit this algorithm."""
    if not isinstance(space, Discrete) or space.start != 0:
        sys.exit(f"error: {what}: expected Discrete from 0, got {space}")
    return space


def evaluate(envs: Envs, policy: Callable[[Array], Array], seeds: range) -> Array:
    """Play one episode from each seed without learning; return the episodes' returns, (len(seeds),).

    The policy maps observations to actions, (N, *obs_shape) -> (N, *action_shape).
    """
    observation, _ = envs.reset(seed=list(seeds))
    returns, runs = np.zeros(len(seeds)), np.ones(len(seeds), dtype=bool)
    while runs.any():
        observation, reward, terminated, truncated, _ = envs.step(policy(observation))
        returns += reward * runs
        runs &= ~(terminated | truncated)
    return returns
