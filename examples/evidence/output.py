# SPDX-License-Identifier: MIT
"""What the figures have in common: colours, intervals, CSV files, the table of claims."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import matplotlib as mpl
from evidence.estimates import Interval, mean_interval
from matplotlib.figure import Figure  # without pyplot, so it draws into files on any machine

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

Row: TypeAlias = dict[str, Any]

mpl.rcParams.update({"font.size": 9, "axes.titlesize": 10, "legend.fontsize": 8, "legend.frameon": False})

# Okabe and Ito 2008, Color Universal Design, https://jfly.uni-koeln.de/color/
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#777777"


class Claim(NamedTuple):
    """One line of the table: what is said, and what was measured."""

    claim: str
    measured: Interval
    unit: str
    samples: str


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of equal keys."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{x:.6g}" if isinstance(x, float) else x for key, x in row.items()} for row in rows)


def table(claims: Iterable[Claim]) -> str:
    """Return the claims as a Markdown table."""
    lines = ["| claim | measured | 95 % interval | over |", "|---|---:|---:|---|"]
    for claim, (mean, low, high), unit, samples in claims:
        lines.append(f"| {claim} | {number(mean)}{unit} | {number(low)} to {number(high)} | {samples} |")
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    """Write a number with three digits, or as a whole one."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def where(rows: Iterable[Row], **values: object) -> list[Row]:
    """Return the rows that have these values."""
    return [row for row in rows if all(row[key] == value for key, value in values.items())]


def column(rows: Iterable[Row], key: str) -> list[Any]:
    """Return one value of each row."""
    return [row[key] for row in rows]


def intervals(rows: Sequence[Row], x: str, y: str) -> tuple[list[Any], list[Interval]]:
    """Return the distinct values of x, in order, and the interval of y over the rows at each."""
    places = sorted({row[x] for row in rows})
    return places, [mean_interval(column(where(rows, **{x: place}), y)) for place in places]


def plot_interval(axes: Any, rows: Sequence[Row], x: str, y: str, colour: str, label: str, style: str = "-") -> None:
    """Draw the mean of y over the rows at each x, and shade its 95 % interval."""
    places, found = intervals(rows, x, y)
    marker = "o" if len(places) < 10 else None
    axes.plot(places, [i.mean for i in found], style, color=colour, label=label, marker=marker, markersize=4)
    axes.fill_between(places, [i.low for i in found], [i.high for i in found], color=colour, alpha=0.2, linewidth=0)


def new_figure(rows: int, columns: int, height: float) -> tuple[Figure, Any]:
    """Make a figure 8 inches wide, and its axes."""
    figure = Figure(figsize=(8, height), dpi=150, layout="constrained")
    axes = figure.subplots(rows, columns)
    for one in figure.axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(visible=True, color="#dddddd", linewidth=0.5)
        one.set_axisbelow(True)
    return figure, axes
