# SPDX-License-Identifier: MIT
"""What the figures claim: means with their intervals, as curves and as lines of a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from evidence.estimates import Interval, mean_interval
from figures import Row, column, markdown, where


class Claim(NamedTuple):
    """One line of the table: what is said, and what was measured."""

    claim: str
    measured: Interval
    unit: str
    samples: str


def table(claims: Iterable[Claim]) -> str:
    """Return the claims as a Markdown table."""
    lines = [
        (claim, f"{number(mean)}{unit}", f"{number(low)} to {number(high)}", samples)
        for claim, (mean, low, high), unit, samples in claims
    ]
    return markdown([("claim", "measured", "95 % interval", "over"), *lines], "lrrl")


def number(value: float) -> str:
    """Write a number with three digits, or as a whole one."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def difference(more: Iterable[float], less: Iterable[float]) -> Interval:
    """Return the interval of a difference that is taken seed by seed."""
    return mean_interval([a - b for a, b in zip(more, less, strict=True)])


def ratio(above: Iterable[float], below: Iterable[float]) -> Interval:
    """Return the interval of a ratio that is taken seed by seed, or repeat by repeat."""
    return mean_interval([a / b for a, b in zip(above, below, strict=True)])


def intervals(rows: Sequence[Row], x: str, y: str) -> tuple[list[Any], list[Interval]]:
    """Return the distinct values of x, in order, and the interval of y over the rows at each."""
    places = sorted({row[x] for row in rows})
    return places, [mean_interval(column(where(rows, **{x: place}), y)) for place in places]


def plot_interval(axes: Any, rows: Sequence[Row], x: str, y: str, colour: str, label: str) -> None:
    """Draw the mean of y over the rows at each x, and shade its 95 % interval."""
    places, found = intervals(rows, x, y)
    marker = "o" if len(places) < 10 else None
    axes.plot(places, [i.mean for i in found], color=colour, label=label, marker=marker, markersize=4)
    axes.fill_between(places, [i.low for i in found], [i.high for i in found], color=colour, alpha=0.2, linewidth=0)
