# SPDX-License-Identifier: MIT
"""A run beside an earlier one, each by what was measured in the same turns: machines have fast and slow days."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiment import Quartiles, Result
from render import Columns, Table, percent

_TELLS = 0.05  # less of a change is none


def earlier_report(path: Path, stem_end: str) -> Mapping[str, Any] | None:
    """Return what an earlier run wrote of a question, None where that is not there.

    Args:
        path: A JSON file of a run, or a folder of such, of which the newest counts.
        stem_end: How the names of the question's files end.
    """
    files = path.glob("*.json") if path.is_dir() else [path]
    found = [file for file in files if file.stem.endswith(f"-{stem_end}")]
    newest = max(found, key=lambda file: file.stat().st_mtime, default=None)
    return None if newest is None else json.loads(newest.read_text())


def compared(results: Sequence[Result], earlier: Mapping[str, Any], labels: Mapping[str, str]) -> Table:
    """Return the table of all of ours that both runs measured."""
    then = {experiment["key"]: experiment.get("over_yardstick", {}) for experiment in earlier["experiments"]}
    rows: dict[str, tuple[Quartiles, Quartiles]] = {}
    for result in results:
        for name, before in then.get(result.experiment.key, {}).items():
            now = result.over_yardstick(name, before["yardstick"])
            if now is not None:
                rows[f"{result.experiment.title}, {labels.get(name, name)}"] = before, now
    slower = sum(_verdict(row) == "slower" for row in rows.values())
    note = (
        f"Time over that of what it is measured by, in the same turns; then: {earlier['header']['date']}, commit "
        f"{earlier['header'].get('commit', 'unknown')}. {slower} of {len(rows)} slower: by more than "
        f"{_TELLS:.0%}, and the quartiles apart."
    )
    columns: Columns = {
        "by": lambda row: labels.get(row[0]["yardstick"], row[0]["yardstick"]),
        "then": _median(0),
        "now": _median(1),
        "change": lambda row: percent(_change(row)),
        "": _verdict,
    }
    return Table("Compared with an earlier run", note, "work", rows, columns)


def _median(which: int) -> Callable[[tuple[Quartiles, Quartiles]], str]:
    return lambda row: f"{row[which]['median']:.3g}"


def _change(row: tuple[Quartiles, Quartiles]) -> float:
    before, now = row
    return float(now["median"] / before["median"] - 1)


def _verdict(row: tuple[Quartiles, Quartiles]) -> str:
    before, now = row
    if _change(row) > _TELLS and now["q1"] > before["q3"]:
        return "slower"
    return "faster" if _change(row) < -_TELLS and now["q3"] < before["q1"] else ""
