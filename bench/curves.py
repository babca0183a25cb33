# SPDX-License-Identifier: MIT
"""Figures of curves: a panel each, every line named at its end. Knows nothing of what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

# Okabe and Ito 2008, Color Universal Design, https://jfly.uni-koeln.de/color/
_OURS, _BOUND = "#0072B2", "#777777"
_OTHERS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C5109", "#5E3C99")
_HEIGHT, _WIDTH = 3.3, 4.6  # of a panel, in inches
_APART = 0.055  # of labels, as a share of a panel's height


@dataclass(frozen=True)
class Curve:
    """What grows.

    Attributes:
        title: Its name.
        what: What is done meanwhile.
        unit: Of the axis.
    """

    title: str
    what: str
    unit: str


@dataclass(frozen=True)
class Panel:
    """A curve as measured.

    Attributes:
        x: How much there was.
        lines: By label, one value a point of `x`, None where it was not measured.
        unit: Of the lines.
    """

    curve: Curve
    x: Sequence[float]
    lines: Mapping[str, Sequence[float | None]]
    unit: str


def draw(panels: Sequence[Panel], caption: str) -> Any:
    """Return a matplotlib figure of panels side by side, at most two in a row where there are four."""
    import matplotlib as mpl
    from matplotlib.figure import Figure  # without pyplot, so it draws into files on any machine

    columns = 2 if len(panels) == 4 else len(panels)
    rows = math.ceil(len(panels) / columns)
    names = dict.fromkeys(name for panel in panels for name in panel.lines)
    others = [name for name in names if name not in {"fastreplay", "roofline"} and "two threads" not in name]
    colours = dict(zip(others, _OTHERS, strict=False))
    with mpl.rc_context({"font.size": 9, "axes.titlesize": 10, "svg.hashsalt": "fastreplay"}):
        figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * rows + 0.3), dpi=150, layout="constrained")
        for axes, panel in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=True):
            _draw_panel(axes, panel, colours)
        figure.supxlabel(fill(caption, 75 * columns), fontsize=7, color=_BOUND)
    return figure


def _draw_panel(axes: Any, panel: Panel, colours: Mapping[str, str]) -> None:
    from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator, NullLocator

    is_counted = max(panel.x) < 10  # and may be 0
    at = list(range(len(panel.x))) if is_counted else list(panel.x)
    axes.set_yscale("log")
    if is_counted:
        axes.set_xticks(at, [f"{x:g}" for x in panel.x])
    else:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(at))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(EngFormatter(places=0, sep=""))
    ends = [_draw_line(axes, name, at, values, colours) for name, values in panel.lines.items()]
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_xlabel(f"{panel.curve.unit}; {panel.curve.what.replace('`', '')}")
    axes.set_ylabel(panel.unit)
    axes.set_title(panel.curve.title, loc="left", fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#dddddd", linewidth=0.5)
    axes.set_axisbelow(True)
    _name_lines(axes, at[-1], [end for end in ends if end is not None])


def _draw_line(
    axes: Any, name: str, at: Sequence[float], values: Sequence[float | None], colours: Mapping[str, str]
) -> tuple[float, str, str] | None:
    """Draw one line; return where it ends, its label and its colour, None where nothing was measured."""
    points = [(x, value) for x, value in zip(at, values, strict=True) if value]
    if not points:
        return None
    is_bound = name == "roofline" or "two threads" in name
    colour = _OURS if name == "fastreplay" else _BOUND if is_bound else colours[name]
    style = {"linestyle": "--" if name == "roofline" else ":", "marker": ""} if is_bound else {"marker": "o"}
    width = 2.4 if name == "fastreplay" else 1.2
    axes.plot(*zip(*points, strict=True), color=colour, linewidth=width, markersize=3, **style)
    return points[-1][1], name, colour


def _name_lines(axes: Any, x: float, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write each line's name beside its end, far enough from the next one's."""
    if not ends:
        return
    low, high = (math.log(value) for value in axes.get_ylim())
    heights = _spread([(math.log(value) - low) / (high - low) for value, _, _ in sorted(ends)])
    right = axes.get_xaxis_transform()  # x by the data, y by the panel
    for height, (_, name, colour) in zip(heights, sorted(ends), strict=True):
        axes.annotate(
            name, (x, height), xycoords=right, xytext=(6, 0), textcoords="offset points",
            va="center", color=colour, fontsize=8, fontweight="bold" if name == "fastreplay" else "normal",
            annotation_clip=False,
        )  # fmt: skip


def _spread(heights: Sequence[float]) -> list[float]:
    """Return heights in ascending order moved as little as lets them stand apart, and above the axis.

    Those that meet make one pile, whose middle is where theirs was.
    """
    piles: list[list[float]] = []
    for height in heights:
        piles.append([height])
        while len(piles) > 1 and _bottom(piles[-1]) < _bottom(piles[-2]) + len(piles[-2]) * _APART:
            last = piles.pop()
            piles[-1] += last
    apart = [_bottom(pile) + i * _APART for pile in piles for i in range(len(pile))]
    return [max(height, _APART * (i + 0.5)) for i, height in enumerate(apart)]


def _bottom(pile: Sequence[float]) -> float:
    """Return where the lowest of a pile stands."""
    return sum(pile) / len(pile) - (len(pile) - 1) / 2 * _APART
