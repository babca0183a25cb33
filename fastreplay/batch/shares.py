# SPDX-License-Identifier: MIT
"""How many rows of each minibatch several members get. Knows nothing of what they draw."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import accumulate
from typing import TYPE_CHECKING

from fastreplay import _core
from fastreplay.support.checks import checked_number

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Shares"]


class Shares:
    """The shares of a mixture's members, in proportion to some numbers.

    Args:
        given: A number of at least 0 for each member, of which one is more.
        count: How many members there are.

    Raises:
        TypeError: They are no numbers.
        ValueError: They are not as many, one is negative or not finite, or all are 0.

    Attributes:
        given: The numbers.
        values: What they come to, 1 in all.
    """

    def __init__(self, given: Iterable[float], count: int) -> None:
        self.given = tuple([checked_number("shares", each, 0) for each in _listed(given)])
        numbers = [*map(Fraction, self.given)]
        if len(numbers) != count:
            raise ValueError(f"shares: expected one for each of {count} members, got {len(numbers)}")
        total = sum(numbers)
        if total == 0:
            raise ValueError("shares: expected one above 0, got none")
        self.values = tuple(float(each / total) for each in numbers)
        scale = math.lcm(*(each.denominator for each in numbers))
        weights = [int(each * scale) for each in numbers]
        # The largest first: what it is short of or has too much is what is left for the others to share.
        largest_first = sorted(range(count), key=lambda i: -weights[i])
        left = [*accumulate(weights[i] for i in reversed(largest_first))][::-1]
        self._steps = [(i, weights[i], rest) for i, rest in zip(largest_first, left, strict=True)]
        self._bounds = [int(sum(numbers[: i + 1]) * 2**64 / total) for i in range(count - 1)]
        self._last = max(i for i in range(count) if weights[i] > 0)

    def exact(self, rows_before: int, num_rows: int) -> list[int]:
        """Return each member's of some rows, which come after so many others.

        What all rows up to some number give each is a function of that number alone, and so is what some of them do:
        nothing has to be remembered of who was given too little. Of all rows so far, the first of two members has its
        share rounded to the nearest row, and the second the others; a further one has the same of what is left.
        """
        counts = [0] * len(self._steps)
        before, after = rows_before, rows_before + num_rows
        for i, weight, left in self._steps:
            if weight == 0:
                break
            first, end = _nearest(before, weight, left), _nearest(after, weight, left)
            counts[i] = end - first
            before, after = before - first, after - end
        return counts

    def expected(self, key: tuple[int, int], rows_before: int, num_rows: int) -> list[int]:
        """Return each member's, of rows that fall to each by itself, independently: a multinomial draw."""
        bounds = [min(each, 2**64 - 1) for each in self._bounds[: self._last]]
        drawn: Sequence[int] = _core.draw_shares(key, rows_before, bounds, num_rows)
        return [*drawn, *[0] * (len(self._steps) - len(drawn))]


def _nearest(rows: int, weight: int, left: int) -> int:
    return (2 * rows * weight + left) // (2 * left)


def _listed(given: Iterable[float]) -> list[float]:
    try:
        return list(given)
    except TypeError:
        raise TypeError(f"shares: expected a number for each member, got {given!r}") from None
