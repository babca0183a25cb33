# SPDX-License-Identifier: MIT
"""Random integers for the adapters: of NumPy's global generator, or of one of the buffer's own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from fastreplay import _core
from fastreplay.support.checks import checked_index, key_of
from fastreplay.support.keys import key_below, keyed

if TYPE_CHECKING:
    from numpy.typing import NDArray

Rng: TypeAlias = Literal["numpy", "native"]
# From low, high and a count: (count,) int64, uniformly from [low, high).
Integers: TypeAlias = Callable[[int, int, int], "NDArray[np.int64]"]

__all__ = ["Integers", "NativeIntegers", "Rng", "checked_size", "integers_of", "numpy_integers"]


def numpy_integers(low: int, high: int, count: int) -> NDArray[np.int64]:
    """Draw from NumPy's global generator."""
    if high - low == 1:  # of one environment; NumPy takes no number for that, but its time
        return np.full(count, low, np.int64)
    return np.random.randint(low, high, size=count)  # noqa: NPY002 - what the other libraries draw from


class NativeIntegers:
    """Integers of a Philox generator of its own; call k uses `numpy.random.Philox(key, counter=[0, k, 0, 0])`."""

    def __init__(self, key: tuple[int, int], calls: int = 0) -> None:
        self._draws = _core.UniformIntegers(key, calls)
        keyed.add(self)

    def __call__(self, low: int, high: int, count: int) -> NDArray[np.int64]:
        """Draw `count` integers, (count,) int64."""
        if high <= low:
            raise ValueError(f"nothing to draw from: expected low < high, got {low} and {high}")
        drawn = self._draws.below(high - low, count)
        return drawn + low if low else drawn

    def hindsight(
        self, complete: _core.IndexSet, episodes: NDArray[np.int64], goal_of: int, batch_size: int, num_goals: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Draw transitions of complete episodes, and steps that the last of them get their goals from.

        Args:
            complete: The transitions to draw from, at least one: of environment e in row r that is r * envs + e.
            episodes: (rows, envs, 2) int64, the first row and the length of each transition's episode.
            goal_of: Which steps of the episode: 0 from the transition's own on, 1 the last, 2 any.
            batch_size: Number of transitions.
            num_goals: Of how many of them.

        Returns:
            Rows and environments of the transitions, (batch_size,) int64, and rows of the steps, (num_goals,) int64.
        """
        return self._draws.hindsight(complete, episodes, episodes.shape[1], goal_of, batch_size, num_goals)

    def _rekey(self, place: tuple[int, ...]) -> None:
        self._draws = _core.UniformIntegers(key_below(self._draws.key, place), 0)

    def __reduce__(self) -> tuple[type[NativeIntegers], tuple[tuple[int, int], int]]:
        first, second = self._draws.key
        return NativeIntegers, ((first, second), self._draws.calls)


def checked_size(integers: Integers, batch_size: int) -> int:
    """Return a batch size that integers can be drawn for; NumPy's draws refuse others in its own words.

    Raises:
        TypeError: It is no integer.
        ValueError: It is negative.
        MemoryError: Memory could not hold so many.
    """
    if not isinstance(integers, NativeIntegers):
        return batch_size
    checked = checked_index("batch_size", batch_size)
    if checked < 0:
        raise ValueError(f"batch_size: expected at least 0, got {checked}")
    if checked > sys.maxsize:
        raise MemoryError(f"batch_size: {checked} transitions are more than memory can hold")
    return checked


def integers_of(rng: Rng) -> Integers:
    """Return where random integers come from.

    Args:
        rng: "numpy" for the global generator; "native" for one of its own, seeded from the global one now.

    Raises:
        ValueError: Neither.
    """
    if rng == "numpy":
        return numpy_integers
    if rng == "native":
        return NativeIntegers(key_of(int(np.random.randint(2**63 - 1))))  # noqa: NPY002 - follows np.random.seed
    raise ValueError(f"rng: expected 'numpy' or 'native', got {rng!r}")
