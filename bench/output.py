# SPDX-License-Identifier: MIT
"""Markdown tables, numbers in them, and the two files of a run. Knows nothing of what was measured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

NONE = "–"  # noqa: RUF001  the sign of the printed table


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    alignment = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, alignment, *rows))


def bullets(header: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in header.items())


def number(value: float | None) -> str:
    if value is None:
        return NONE
    decimals = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{decimals}f}"


def ratio(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}×"  # noqa: RUF001


def si(value: float) -> str:
    """Return three digits and the prefix of the unit that follows."""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "


def write(folder: Path, stem: str, markdown: str, content: Mapping[str, Any]) -> None:
    """Write `stem`.md and `stem`.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.md").write_text(markdown)
    (folder / f"{stem}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
