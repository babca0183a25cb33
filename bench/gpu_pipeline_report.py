# SPDX-License-Identifier: MIT
"""Minibatches on a GPU as Markdown and JSON. Measures nothing, needs no GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpu_sources import LABELS
from judging import Target, median_us, quartiles_us
from output import NONE, bullets, number, ratio, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from judging import Seconds


@dataclass
class PipelineResult:
    """One shape and batch size, measured.

    Attributes:
        title: The shape and the batch size.
        num_bytes: Of one minibatch's fields.
        ready: Seconds until one minibatch is on the device, one number a round, by source.
        rate: Seconds a minibatch on the device, many one after another, likewise.
        absent: Why a source was not measured.
    """

    title: str
    num_bytes: int
    ready: dict[str, list[float]] = field(default_factory=dict)
    rate: dict[str, list[float]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def judged(self) -> list[tuple[str, Target, Seconds]]:
        judged: list[tuple[str, Target, Seconds]] = [("ready", Target(4.0, "sb3", "sample"), self.ready)]
        if self.title == "atari 256":
            judged.append(("rate", Target(0.8, "link", "loader"), self.rate))
        return judged


@dataclass
class LearnerResult:
    """Learner steps with each source; seconds a step, one number a round."""

    title: str
    seconds: dict[str, list[float]]

    @property
    def judged(self) -> list[tuple[str, Target, Seconds]]:
        return [("learner", Target(1.05, "ceiling", "loader", is_ceiling=True), self.seconds)]


def to_markdown(results: Sequence[PipelineResult], learner: LearnerResult, header: Mapping[str, str]) -> str:
    """Return the tables of all results, below the header."""
    absent = {f"{LABELS[name]}: {reason}" for result in results for name, reason in result.absent.items()}
    parts = [
        "# Minibatches on a GPU, measured",
        bullets(header),
        "## One minibatch, until it is there (µs of the wall)",
        _times([(result.title, result.ready) for result in results]),
        "## Many, one after another (µs each, between CUDA events)",
        _times([(result.title, result.rate) for result in results]),
        "## The same in GB/s of the fields",
        _bandwidths(results),
        f"## Learner steps a second: {learner.title}",
        _learner(learner),
        "## Targets",
        _targets([*((result.title, result.judged) for result in results), ("learner", learner.judged)]),
        *([f"Not measured: {'; '.join(sorted(absent))}."] if absent else []),
    ]
    return "\n\n".join(parts) + "\n"


def to_json(results: Sequence[PipelineResult], learner: LearnerResult, header: Mapping[str, str]) -> dict[str, Any]:
    """Return all that was measured: quartiles over rounds, in µs."""
    return {
        "header": dict(header),
        "minibatches": [
            {
                "title": result.title,
                "bytes": result.num_bytes,
                "ready_us": quartiles_us(result.ready),
                "rate_us": quartiles_us(result.rate),
                "absent": result.absent,
                "targets": _json(result.judged),
            }
            for result in results
        ],
        "learner": {
            "title": learner.title,
            "us_per_step": quartiles_us(learner.seconds),
            "targets": _json(learner.judged),
        },
    }


def _json(judged: Iterable[tuple[str, Target, Seconds]]) -> list[dict[str, Any]]:
    rows = []
    for kind, target, seconds in judged:
        measured = target.ratio(seconds)
        met = None if measured is None else target.is_met(measured)
        rows.append({"of": kind, "ours": target.ours, "against": target.against, "ratio": measured, "met": met})
    return rows


def _names(all_seconds: Iterable[Seconds]) -> list[str]:
    known = {name for seconds in all_seconds for name in seconds}
    return [name for name in LABELS if name in known]


def _times(rows: Sequence[tuple[str, Seconds]]) -> str:
    names = _names(seconds for _, seconds in rows)
    cells = [[title, *(number(median_us(seconds, name)) for name in names)] for title, seconds in rows]
    return table(["minibatch", *(LABELS[name] for name in names)], cells)


def _bandwidths(results: Sequence[PipelineResult]) -> str:
    names = _names(result.rate for result in results)
    cells = []
    for result in results:
        times = [median_us(result.rate, name) for name in names]
        cells.append([result.title, *(NONE if us is None else number(result.num_bytes / us * 1e-3) for us in times)])
    return table(["minibatch", *(LABELS[name] for name in names)], cells)


def _learner(result: LearnerResult) -> str:
    ceiling = median_us(result.seconds, "ceiling")
    rows = []
    for name in _names([result.seconds]):
        us = median_us(result.seconds, name)
        if us is not None and ceiling is not None:
            rows.append([LABELS[name], number(us), f"{1e6 / us:,.0f}", f"{ceiling / us:.1%}"])
    return table(["minibatches from", "µs a step", "steps a second", "of the ceiling"], rows)


def _targets(judged: Iterable[tuple[str, Sequence[tuple[str, Target, Seconds]]]]) -> str:
    rows = []
    for title, targets in judged:
        for _, target, seconds in targets:
            measured = target.ratio(seconds)
            names = (LABELS[target.ours], LABELS[target.against])
            rows.append([title, *names, target.bound, ratio(measured), target.verdict(measured) or NONE])
    return table(["", "ours", "against", "target", "measured", "verdict"], rows)
