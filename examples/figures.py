# SPDX-License-Identifier: MIT
"""Figures of one style, and the CSV files and Markdown tables that stand beside them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib as mpl
from matplotlib.figure import Figure  # without pyplot, so it draws into files on any machine

Row: TypeAlias = dict[str, Any]  # of a CSV file

# Okabe and Ito 2008, Color Universal Design, https://jfly.uni-koeln.de/color/
BLUE, SKY_BLUE, ORANGE, GREEN, GREY = "#0072B2", "#56B4E9", "#D55E00", "#009E73", "#777777"

mpl.rcParams.update({"font.size": 9, "axes.titlesize": 10, "legend.fontsize": 8, "legend.frameon": False})


def new_figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, Any]:
    """Make a figure of this size in inches; return it and its axes, as `Figure.subplots` does."""
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.subplots(rows, columns)
    for one in figure.axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(visible=True, color="#dddddd", linewidth=0.5)
        one.set_axisbelow(True)
    return figure, axes


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of equal keys, numbers with six digits."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{x:.6g}" if isinstance(x, float) else x for key, x in row.items()} for row in rows)


def read_csv(path: Path) -> list[Row]:
    """Return the rows of a file, each value as text; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def markdown(rows: Iterable[Sequence[str]], alignment: str) -> str:
    """Return rows as a table, the first as its head; a letter a column says l(eft) or r(ight)."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    rule = "|".join({"l": "---", "r": "---:"}[side] for side in alignment)
    return "\n".join([head, f"|{rule}|", *body]) + "\n"


def where(rows: Iterable[Row], **values: object) -> list[Row]:
    """Return the rows that have these values."""
    return [row for row in rows if all(row[key] == value for key, value in values.items())]


def column(rows: Iterable[Row], key: str) -> list[Any]:
    """Return one value of each row."""
    return [row[key] for row in rows]
