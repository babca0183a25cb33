# SPDX-License-Identifier: MIT
"""Reports of results: Markdown tables to read, JSON to go on with. Knows nothing of what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from timing import SECONDS

if TYPE_CHECKING:
    from pathlib import Path

    from experiment import Question, Result
    from timing import Reading

NONE = "–"  # noqa: RUF001  the sign of the printed table
Columns: TypeAlias = Mapping[str, Callable[[Any], str]]  # heading -> from what a row is about to its cell


@dataclass(frozen=True)
class Table:
    """A titled table.

    Attributes:
        title: "" for none.
        note: What stands between title and table, "" for nothing.
        head: Heading of the rows' names.
        rows: What each row is about, by name; often a Result by its experiment's title.
        columns: The cells.
    """

    title: str
    note: str
    head: str
    rows: Mapping[str, Any]
    columns: Columns

    def __str__(self) -> str:
        alignment = ["---", *["---:"] * len(self.columns)]
        cells = [[name, *(cell(row) for cell in self.columns.values())] for name, row in self.rows.items()]
        lines = ["| " + " | ".join(line) + " |" for line in ([self.head, *self.columns], alignment, *cells)]
        title = f"## {self.title}" if self.title else ""
        return "\n\n".join(part for part in (title, self.note, "\n".join(lines)) if part)


def by_title(results: Sequence[Result]) -> dict[str, Result]:
    return {result.experiment.title: result for result in results}


def fact(name: str) -> Callable[[Result], str]:
    """Return the cells of a number that an experiment states of itself."""
    return lambda result: f"{result.experiment.facts[name]:,}"


def medians(
    results: Sequence[Result],
    labels: Mapping[str, str],
    measure: str = SECONDS,
    form: Callable[[Result, float], str] | None = None,
) -> Columns:
    """Return a column for each contestant that was measured, or is absent, in any of the results.

    Args:
        results: The rows.
        labels: The contestants in the columns' order, and what they are called.
        measure: Whose median is meant.
        form: From a result and a median to its cell; µs of seconds by default.
    """
    known = {name for result in results for name in labels if result.series(name, measure) or name in result.absent}

    def cells(name: str) -> Callable[[Result], str]:
        def cell(result: Result) -> str:
            value = result.median(name, measure)
            return NONE if value is None else form(result, value) if form else number(value * 1e6)

        return cell

    return {label: cells(name) for name, label in labels.items() if name in known}


def speedups(against: str, ours: str = "fastreplay", measure: str = SECONDS) -> Callable[[Result], str]:
    """Return the cells of how many times as long `against` takes."""
    return lambda result: ratio(result.speedup(against, ours, measure))


def number(value: float | None) -> str:
    if value is None:
        return NONE
    decimals = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{decimals}f}"


def ratio(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}×"  # noqa: RUF001


def percent(share: float | None) -> str:
    return NONE if share is None else f"{share:.1%}"


def si(value: float | None, unit: str) -> str:
    """Return three digits and the unit with its prefix."""
    if value is None:
        return NONE
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def to_markdown(question: Question, results: Sequence[Result], header: Mapping[str, str]) -> str:
    """Return the report: the header, the tables, and who is absent."""
    parts = [f"# {question.title}, measured", "\n".join(f"- {name}: {value}" for name, value in header.items())]
    parts += [str(table) for table in question.tables(results) if table.rows]
    absent = {
        f"- {result.experiment.title}, {question.labels.get(name, name)}: {reason}"
        for result in results
        for name, reason in result.absent.items()
    }
    if absent:
        parts += [f"{NONE}: not measured.", "\n".join(sorted(absent))]
    return "\n\n".join(parts) + "\n"


def to_json(results: Sequence[Result], header: Mapping[str, str]) -> dict[str, Any]:
    """Return all that was measured, as quartiles over rounds."""
    experiments = [
        {
            "key": result.experiment.key,
            "title": result.experiment.title,
            "unit": result.experiment.unit,
            **result.experiment.facts,
            "readings": {name: _quartiles(readings) for name, readings in result.readings.items()},
            "is_exact": result.is_exact,
            "absent": result.absent,
            "over_yardstick": result.ours_over_yardstick(),
        }
        for result in results
    ]
    return {"header": dict(header), "experiments": experiments}


def _quartiles(readings: Sequence[Reading]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for measure in readings[0]:
        values = np.quantile([reading[measure] for reading in readings], (0.25, 0.5, 0.75))
        found[measure] = dict(zip(("q1", "median", "q3"), values.tolist(), strict=True), rounds=len(readings))
    return found


def aligned(markdown: str) -> str:
    """Return the text for a terminal: the columns of each table one under the other."""
    parts = markdown.split("\n\n")
    return "\n\n".join(_aligned_table(part) if part.startswith("| ") else part for part in parts)


def _aligned_table(table: str) -> str:
    head, alignment, *body = (
        [cell.strip() for cell in line.strip("|\n").split("|")] for line in table.split("\n") if line
    )
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if side.endswith(":") else cell.ljust(width)
            for cell, width, side in zip(line, widths, alignment, strict=True)
        ).rstrip()
        for line in (head, ["-" * width for width in widths], *body)
    ]
    return "\n".join(lines) + "\n" * table.endswith("\n")


def write(folder: Path, stem: str, markdown: str, content: Mapping[str, Any]) -> None:
    """Write `stem`.md and `stem`.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.md").write_text(markdown)
    (folder / f"{stem}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
