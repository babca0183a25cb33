# SPDX-License-Identifier: MIT
"""Steps that are part of no transition of n steps yet, and how they are kept. It knows no other library."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastreplay.adapters.kept_tables import bytes_of, taken

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastreplay.adapters.columns import Array

__all__ = ["PendingStep", "bytes_of_steps", "taken_steps"]

# As checkpoints hold them.
_NUMBERS = {"action": "int64", "reward": "float64", "done": "uint8"}


class PendingStep(NamedTuple):
    """One step of the environment, until it is part of no transition to come."""

    obs: NDArray[np.uint8]
    action: int
    reward: float
    done: bool
    last_obs: NDArray[np.uint8] | None  # where done


def bytes_of_steps(steps: list[PendingStep]) -> dict[str, Array]:
    """Return what is kept of steps, (n,) bytes by name."""
    frames = [bytes_of(each) for step in steps for each in (step.obs, step.last_obs) if each is not None]
    columns = {name: np.array([getattr(step, name) for step in steps], dtype) for name, dtype in _NUMBERS.items()}
    kept = {name: bytes_of(column) for name, column in columns.items()}
    return kept | {"frames": np.concatenate([np.empty(0, np.uint8), *frames])}


def taken_steps(attached: dict[str, Array], count: int, obs_shape: tuple[int, ...]) -> list[PendingStep]:
    """Take so many steps out of what was kept.

    Raises:
        ValueError: Something is missing, or of another size.
    """
    columns = [taken(attached, name, (count,), np.dtype(dtype)).tolist() for name, dtype in _NUMBERS.items()]
    is_done = [bool(each) for each in columns[2]]
    frames = iter(taken(attached, "frames", (count + sum(is_done), *obs_shape), np.dtype(np.uint8)))
    return [
        PendingStep(next(frames).copy(), action, reward, done, next(frames).copy() if done else None)
        for action, reward, done in zip(columns[0], columns[1], is_done, strict=True)
    ]
