# SPDX-License-Identifier: MIT
"""Random integers for the adapters: of NumPy's global generator, or of one of the buffer's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from fastreplay import _core
from fastreplay.support.checks import key_of
from fastreplay.support.keys import key_below, keyed

if TYPE_CHECKING:
    from numpy.typing import NDArray

Rng: TypeAlias = Literal["numpy", "native"]
# From low, high and a count: (count,) int64, uniformly from [low, high).
Integers: TypeAlias = Callable[[int, int, int], "NDArray[np.int64]"]

__all__ = ["Integers", "NativeIntegers", "Rng", "integers_of", "numpy_integers"]


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

    def _rekey(self, place: tuple[int, ...]) -> None:
        self._draws = _core.UniformIntegers(key_below(self._draws.key, place), 0)

    def __reduce__(self) -> tuple[type[NativeIntegers], tuple[tuple[int, int], int]]:
        first, second = self._draws.key
        return NativeIntegers, ((first, second), self._draws.calls)


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
