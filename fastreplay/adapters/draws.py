# SPDX-License-Identifier: MIT
"""Where the adapters' random integers come from: NumPy's global generator, or one of the buffer's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np

from fastreplay import _core
from fastreplay.support.checks import key_of
from fastreplay.support.living import Living

if TYPE_CHECKING:
    from numpy.typing import NDArray

Rng: TypeAlias = Literal["numpy", "native"]

__all__ = ["Draw", "NativeDraw", "Rng", "drawer", "living_draws", "numpy_draw"]


class Draw(Protocol):
    """Draws integers uniformly from [low, high)."""

    def __call__(self, low: int, high: int, count: int) -> NDArray[np.int64]:
        """Return `count` of them, (count,) int64."""


def numpy_draw(low: int, high: int, count: int) -> NDArray[np.int64]:
    """Draw from NumPy's global generator."""
    if high - low == 1:  # of one environment; NumPy takes no number for that, but its time
        return np.full(count, low, np.int64)
    return np.random.randint(low, high, size=count)  # noqa: NPY002 - what the other libraries draw from


class NativeDraw:
    """Draws from a Philox generator of its own; call k uses `numpy.random.Philox(key, counter=[0, k, 0, 0])`."""

    def __init__(self, key: tuple[int, int], calls: int = 0) -> None:
        self._draws = _core.UniformIntegers(key, calls)
        _living.add(self)

    def __call__(self, low: int, high: int, count: int) -> NDArray[np.int64]:
        """Draw `count` integers, (count,) int64."""
        if high <= low:
            raise ValueError(f"nothing to draw from: expected low < high, got {low} and {high}")
        drawn = self._draws.below(high - low, count)
        return drawn + low if low else drawn

    @property
    def key(self) -> tuple[int, int]:
        """The generator's key."""
        first, second = self._draws.key
        return first, second

    def restart(self, key: tuple[int, int]) -> None:
        """Draw under another key from now on."""
        self._draws = _core.UniformIntegers(key, 0)

    def __reduce__(self) -> tuple[type[NativeDraw], tuple[tuple[int, int], int]]:
        return NativeDraw, (self.key, self._draws.calls)


_living: Living[NativeDraw] = Living()


def living_draws() -> list[NativeDraw]:
    """Return the generators that there are."""
    return list(_living)


def drawer(rng: Rng) -> Draw:
    """Return where to draw from.

    Args:
        rng: "numpy" for the global generator; "native" for one of its own, seeded from the global one now.

    Raises:
        ValueError: Neither.
    """
    if rng == "numpy":
        return numpy_draw
    if rng == "native":
        return NativeDraw(key_of(int(np.random.randint(2**63 - 1))))  # noqa: NPY002 - follows np.random.seed
    raise ValueError(f"rng: expected 'numpy' or 'native', got {rng!r}")
