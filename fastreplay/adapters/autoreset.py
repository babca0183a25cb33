# SPDX-License-Identifier: MIT
"""Which steps of a vector environment end an episode, and which only reset. Knows no buffer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from gymnasium import __version__ as gymnasium_version

if TYPE_CHECKING:
    from fastreplay.adapters.columns import Array

__all__ = ["TIMEOUT", "Autoreset", "Infos", "default_autoreset", "ending_envs", "resetting_envs", "vector_timeouts"]

Autoreset: TypeAlias = Literal["next_step", "same_step", "disabled"]
# A dict an environment, or a dict of arrays as of Gymnasium's vector environments.
Infos: TypeAlias = Sequence[Mapping[str, Any]] | Mapping[str, Any]

TIMEOUT = "TimeLimit.truncated"
# What infos call the last observation of an episode once the environment has been reset.
_LAST_OBSERVATIONS = ("final_obs", "final_observation", "terminal_observation")


def default_autoreset() -> Autoreset | None:
    """Return when vector environments reset: in the step of the end before Gymnasium 1.0; since then it varies."""
    return None if int(gymnasium_version.split(".")[0]) >= 1 else "same_step"


def resetting_envs(observations: Array, ended: Mapping[int, Array], autoreset: Autoreset | None) -> list[int]:
    """Return the environments that reset in a step: those that ended in the last, and go on from there.

    Args:
        observations: (num_envs, *shape), from which the step goes on.
        ended: The last observations of the environments that ended, by environment.
        autoreset: "next_step" where each of them has to reset now.

    Raises:
        ValueError: One does not.
    """
    resets = []
    for env, last in ended.items():
        if np.array_equal(observations[env], last, equal_nan=last.dtype.kind in "fc"):
            resets.append(env)
        elif autoreset == "next_step":
            raise ValueError(
                f"obs: environment {env} ended and does not go on from its last observation, so it did not reset "
                "in the next step; pass autoreset='same_step', or 'disabled' where you reset it yourself"
            )
    return resets


def ending_envs(
    done: Array, infos: Infos, truncations: Array | None, num_envs: int, autoreset: Autoreset | None
) -> list[int]:
    """Return the environments whose episode ends with a step, and that have not been reset yet.

    Raises:
        ValueError: The infos tell of a reset, which with "next_step" is not due yet.
    """
    if any(key in info for info in ([infos] if isinstance(infos, Mapping) else infos) for key in _LAST_OBSERVATIONS):
        if autoreset == "next_step":
            raise ValueError("infos: it tells of a reset in the same step; pass autoreset='same_step'")
        return []
    ends = np.array(np.reshape(done, num_envs), dtype=bool)
    if truncations is not None:
        ends |= np.reshape(truncations, num_envs).astype(bool)
    if isinstance(infos, Mapping):
        ends |= vector_timeouts(infos, num_envs) != 0
        ends |= np.asarray(infos.get("_episode", False), dtype=bool)
    else:
        ends |= np.array([bool(info.get(TIMEOUT)) or "episode" in info for info in infos], dtype=np.bool_)
    return np.flatnonzero(ends).tolist()


def vector_timeouts(infos: Mapping[str, Any], num_envs: int) -> Array:
    """Return the timeouts (num_envs,) float32 of a vector environment's infos: values, and a mask of who has one."""
    timeouts = np.zeros(num_envs, np.float32)
    if TIMEOUT in infos:
        timeouts[...] = np.where(infos.get(f"_{TIMEOUT}", True), infos[TIMEOUT], False)
    return timeouts
