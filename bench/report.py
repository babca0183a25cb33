# SPDX-License-Identifier: MIT
"""The replay buffers' results as Markdown and JSON. Measures nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from judging import median_us, quartiles_us, speedup
from output import NONE, bullets, number, ratio, si, table
from peers import PEERS, RIVALS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from judging import Target
    from works import Work

FLOOR, KERNEL, COPY = "floor", "kernel", "copy"
_LABELS = {FLOOR: "bare C++ gather", KERNEL: "our gather alone", COPY: "cold memcpy"}
_OUT = "fastreplay-out"
DISTRIBUTIONS = ("fastreplay", "numpy", "torch", "stable-baselines3", "cpprb", "rlox", "torchrl")


@dataclass
class Result:
    """One work, measured.

    Attributes:
        seconds: Seconds a call, one number a round, by peer name, FLOOR, KERNEL and COPY.
        absent: Why a peer has no number, by peer name.
    """

    work: Work
    capacity: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def us(self, name: str) -> float | None:
        """Return the median in µs, None if it was not measured."""
        return median_us(self.seconds, name)

    def fastest_rival(self) -> str | None:
        measured = [name for name in RIVALS if name in self.seconds]
        return min(measured, key=lambda name: median(self.seconds[name]), default=None)

    def judge(self, target: Target) -> tuple[str | None, float | None]:
        """Return whom a target compares with and the ratio, None where either is not measured."""
        against = self.fastest_rival() if target.against == "best" else target.against
        return against, target.ratio(self.seconds, against)


def to_markdown(results: Sequence[Result], header: Mapping[str, str]) -> str:
    """Return the tables of all results, below the header."""
    parts = ["# Replay buffers, measured", bullets(header)]
    for title, kinds in (("Inserting", ("add", "extend")), ("Sampling", ("sample",))):
        group = [result for result in results if result.work.kind in kinds]
        if group:
            parts += [
                f"## {title}",
                "µs per call, medians over rounds; ratios are medians of the rounds' ratios.",
                _times(group),
            ]
    parts += ["## Targets", _targets(results), "## Throughput", _throughput(results)]
    if absences := _absences(results):
        parts += [absences]
    return "\n\n".join(parts) + "\n"


def to_json(results: Sequence[Result], header: Mapping[str, str]) -> dict[str, Any]:
    """Return all that was measured: per contestant the quartiles over rounds, in µs a call."""
    return {"header": dict(header), "works": [_work_json(result) for result in results]}


def _work_json(result: Result) -> dict[str, Any]:
    work = result.work
    targets = []
    for target in work.targets:
        against, measured = result.judge(target)
        targets.append(
            {
                "ours": target.ours,
                "against": against,
                "bound": target.factor,
                "is_ceiling": target.is_ceiling,
                "ratio": measured,
                "met": None if measured is None else target.is_met(measured),
            }
        )
    return {
        "work": work.key,
        "rows_per_call": work.num_rows,
        "bytes_per_call": work.call_bytes,
        "capacity": result.capacity,
        "us_per_call": quartiles_us(result.seconds),
        "absent": result.absent,
        "targets": targets,
    }


def _times(results: Sequence[Result]) -> str:
    known = {name for result in results for name in (*result.seconds, *result.absent)}
    names = [name for name in (*PEERS, FLOOR, KERNEL, COPY) if name in known]
    rows = []
    for result in results:
        best = result.fastest_rival()
        faster = speedup(result.seconds, best, "fastreplay")
        rows.append(
            [
                result.work.title,
                f"{result.capacity:,}",
                *(number(result.us(name)) for name in names),
                NONE if best is None or faster is None else f"{ratio(faster)} ({_label(best)})",
            ]
        )
    return table(["work", "capacity", *map(_label, names), "over the fastest rival"], rows)


def _targets(results: Iterable[Result]) -> str:
    rows = []
    for result in results:
        for target in result.work.targets:
            against, measured = result.judge(target)
            name = _label(against) if against is not None else NONE
            if target.against == "best":
                name = f"fastest rival: {name}"
            rows.append(
                [
                    result.work.title,
                    _label(target.ours),
                    name,
                    target.bound,
                    ratio(measured),
                    target.verdict(measured) or NONE,
                ]
            )
    return table(["work", "ours", "against", "target", "measured", ""], rows)


def _throughput(results: Iterable[Result]) -> str:
    rows = []
    for result in results:
        best = result.fastest_rival()
        cells = [_rate(result, name) for name in ("fastreplay", _OUT, best, COPY)]
        rows.append([result.work.title, f"{result.work.call_bytes:,}", *cells])
    columns = ["fastreplay", _label(_OUT), "fastest rival", _label(COPY)]
    return table(["work", "bytes a call", *columns], rows)


def _rate(result: Result, name: str | None) -> str:
    us = result.us(name) if name is not None else None
    if us is None:
        return NONE
    rows_per_s = result.work.num_rows / us * 1e6
    return f"{si(rows_per_s)} rows/s, {si(result.work.call_bytes / us * 1e6)}B/s"


def _absences(results: Iterable[Result]) -> str:
    lines = {
        f"- {result.work.title}, {_label(name)}: {reason}"
        for result in results
        for name, reason in result.absent.items()
    }
    return f"{NONE}: not measured.\n\n" + "\n".join(sorted(lines)) if lines else ""


def _label(name: str) -> str:
    return PEERS[name].label if name in PEERS else _LABELS[name]
