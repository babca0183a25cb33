# SPDX-License-Identifier: MIT
# ruff: noqa: RUF001  the signs of the printed table
"""What rounds that were taken by turns say, and whether that is what was aimed at. Knows no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeAlias

import numpy as np

Seconds: TypeAlias = Mapping[str, Sequence[float]]  # a call, one number a round, by contestant


@dataclass(frozen=True)
class Target:
    """A least time(against) / time(ours), or a greatest time(ours) / time(against).

    Attributes:
        factor: The bound.
        against: A contestant's name, or "best" for the fastest rival.
        ours: The name under which ours is measured.
        is_ceiling: Whether ours may take at most `factor` times as long, instead of being faster by it.
        tolerance: Share of `factor` that is put down to noise.
    """

    factor: float
    against: str
    ours: str = "fastreplay"
    is_ceiling: bool = False
    tolerance: float = 0.0

    def ratio(self, seconds: Seconds, against: str | None = None) -> float | None:
        """Return what was measured, None where either is not; `against` says who "best" is."""
        faster = speedup(seconds, against or self.against, self.ours)
        return 1 / faster if faster is not None and self.is_ceiling else faster

    def is_met(self, ratio: float) -> bool:
        if self.is_ceiling:
            return ratio <= self.factor * (1 + self.tolerance)
        return ratio >= self.factor * (1 - self.tolerance)

    @property
    def bound(self) -> str:
        """The bound in words."""
        noise = f" (noise: {self.tolerance:.0%})" if self.tolerance else ""
        return f"{'at most' if self.is_ceiling else 'at least'} {self.factor:g}×{noise}"

    def verdict(self, ratio: float | None) -> str | None:
        return None if ratio is None else "met" if self.is_met(ratio) else "not met"


def speedup(seconds: Seconds, against: str | None, ours: str) -> float | None:
    """Return time(against) / time(ours), the median over rounds, None if not measured.

    Taken round by round, since both slow down together when the machine does.
    """
    if against is None or against not in seconds or ours not in seconds:
        return None
    pairs = zip(seconds[against], seconds[ours], strict=True)
    return median(theirs / mine for theirs, mine in pairs)


def median_us(seconds: Seconds, name: str) -> float | None:
    """Return the median in µs, None if it was not measured."""
    return median(seconds[name]) * 1e6 if name in seconds else None


def quartiles_us(seconds: Seconds) -> dict[str, dict[str, Any]]:
    """Return the quartiles over rounds in µs a call, by contestant."""
    return {
        name: dict(
            zip(("q1", "median", "q3"), (np.quantile(rounds, (0.25, 0.5, 0.75)) * 1e6).tolist(), strict=True),
            rounds=len(rounds),
        )
        for name, rounds in seconds.items()
    }
