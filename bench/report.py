# SPDX-License-Identifier: MIT
"""The files of a question's report: Markdown, JSON and figures, written again after each experiment."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from compare import compared, earlier_report
from experiment import Question, Result
from machine import as_file_name
from render import to_json, to_markdown, write


class Report:
    """What is said of one question.

    Args:
        name: The question's.
        question: It.
        header: What the report begins with; may change between calls.
        out: Where the files go, None for nowhere.
        earlier: An earlier run's JSON file, or a folder of such, to compare with.
    """

    def __init__(
        self, name: str, question: Question, header: Mapping[str, str], out: Path | None, earlier: Path | None
    ) -> None:
        self._question, self._header, self._out = question, header, out
        machine = header.get("GPU", header["CPU"]).split(",")[0]
        self._stem = as_file_name(f"{header['date']} {machine} {name}")
        self._earlier = None if earlier is None else earlier_report(earlier, as_file_name(name))
        if earlier is not None and self._earlier is None:
            sys.stderr.write(f"{name}: nothing to compare with in {earlier}\n")
        self._images: list[str] = []

    def write(self, results: Sequence[Result]) -> str:
        """Write Markdown and JSON of what there is; return the Markdown."""
        markdown = to_markdown(self._question, results, self._header)
        if self._earlier is not None:
            markdown += f"\n{compared(results, self._earlier, self._question.labels)}\n"
        markdown += "".join(f"\n{image}\n" for image in self._images)
        if self._out is not None:
            write(self._out, self._stem, markdown, to_json(results, self._header))
        return markdown

    def draw(self, results: Sequence[Result]) -> None:
        """Write the figures; the Markdown shows them from here on."""
        if self._out is None:
            return
        for end, figure in self._question.figures(results, self._header).items():
            file = f"{self._stem}-{end}"
            figure.savefig(self._out / file, metadata={"Date": None} if end.endswith("svg") else None)
            self._images.append(f"![{self._question.title}: {end.partition('.')[0]}]({file})")
