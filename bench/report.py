# SPDX-License-Identifier: MIT
# ruff: noqa: RUF001  the signs of the printed table
"""Results as Markdown and JSON, with the machine they were taken on. Measures nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from peers import PEERS, RIVALS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from works import Target, Work

ROOT = Path(__file__).resolve().parent.parent
NONE = "–"
FLOOR, KERNEL, COPY = "floor", "kernel", "copy"
_LABELS = {FLOOR: "bare C++ gather", KERNEL: "our gather alone", COPY: "cold memcpy"}
_OUT = "fastreplay-out"
_DISTRIBUTIONS = ("fastreplay", "numpy", "torch", "stable-baselines3", "cpprb", "rlox")

_L3 = "/sys/devices/system/cpu/cpu0/cache/index3/size"
_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"


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
        return median(self.seconds[name]) * 1e6 if name in self.seconds else None

    def fastest_rival(self) -> str | None:
        measured = [name for name in RIVALS if name in self.seconds]
        return min(measured, key=lambda name: median(self.seconds[name]), default=None)

    def speedup(self, against: str | None, ours: str) -> float | None:
        """Return time(against) / time(ours), the median over rounds, None if not measured.

        Taken round by round, since both slow down together when the machine does.
        """
        if against not in self.seconds or ours not in self.seconds:
            return None
        pairs = zip(self.seconds[against], self.seconds[ours], strict=True)
        return median(theirs / mine for theirs, mine in pairs)

    def judge(self, target: Target) -> tuple[str | None, float | None]:
        """Return whom a target compares with and the ratio, None where either is not measured."""
        against = self.fastest_rival() if target.against == "best" else target.against
        speedup = self.speedup(against, target.ours)
        if speedup is None:
            return against, None
        return against, 1 / speedup if target.is_ceiling else speedup


def describe_machine() -> dict[str, str]:
    """Return what a reader needs to judge or repeat the numbers, in the order of printing."""
    cores = len(os.sched_getaffinity(0))
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "CPU": f"{cpu_name()}, {cores} cores, L3 {_read(_L3) or 'unknown'}",
        "memory": f"{memory_bytes / 2**30:.0f} GiB, huge pages {_read(_HUGE_PAGES) or 'unknown'}",
        "system": f"{platform.system()} {platform.release()}, load {os.getloadavg()[0]:.2f}",
        "Python": platform.python_version(),
        **{name: _version(name) for name in _DISTRIBUTIONS},
        "commit": _commit(),
    }


def cpu_name() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def to_markdown(results: Sequence[Result], header: Mapping[str, str]) -> str:
    """Return the tables of all results, below the header."""
    parts = ["# Replay buffers, measured", _bullets(header)]
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
        against, ratio = result.judge(target)
        targets.append(
            {
                "ours": target.ours,
                "against": against,
                "bound": target.factor,
                "is_ceiling": target.is_ceiling,
                "ratio": ratio,
                "met": None if ratio is None else target.is_met(ratio),
            }
        )
    return {
        "work": work.key,
        "rows_per_call": work.num_rows,
        "bytes_per_call": work.call_bytes,
        "capacity": result.capacity,
        "us_per_call": {
            name: dict(
                zip(
                    ("q1", "median", "q3"),
                    (np.quantile(seconds, (0.25, 0.5, 0.75)) * 1e6).tolist(),
                    strict=True,
                ),
                rounds=len(seconds),
            )
            for name, seconds in result.seconds.items()
        },
        "absent": result.absent,
        "targets": targets,
    }


def _times(results: Sequence[Result]) -> str:
    known = {name for result in results for name in (*result.seconds, *result.absent)}
    names = [name for name in (*PEERS, FLOOR, KERNEL, COPY) if name in known]
    rows = []
    for result in results:
        best = result.fastest_rival()
        speedup = result.speedup(best, "fastreplay")
        rows.append(
            [
                result.work.title,
                f"{result.capacity:,}",
                *(_number(result.us(name)) for name in names),
                NONE if best is None or speedup is None else f"{speedup:.2f}× ({_label(best)})",
            ]
        )
    return _table(["work", "capacity", *map(_label, names), "over the fastest rival"], rows)


def _targets(results: Iterable[Result]) -> str:
    rows = []
    for result in results:
        for target in result.work.targets:
            against, ratio = result.judge(target)
            name = _label(against) if against is not None else NONE
            if target.against == "best":
                name = f"fastest rival: {name}"
            rows.append(
                [
                    result.work.title,
                    _label(target.ours),
                    name,
                    f"{'at most' if target.is_ceiling else 'at least'} {target.factor:g}×",
                    NONE if ratio is None else f"{ratio:.2f}×",
                    NONE if ratio is None else "met" if target.is_met(ratio) else "not met",
                ]
            )
    return _table(["work", "ours", "against", "target", "measured", ""], rows)


def _throughput(results: Iterable[Result]) -> str:
    rows = []
    for result in results:
        best = result.fastest_rival()
        cells = [_rate(result, name) for name in ("fastreplay", _OUT, best, COPY)]
        rows.append([result.work.title, f"{result.work.call_bytes:,}", *cells])
    columns = ["fastreplay", _label(_OUT), "fastest rival", _label(COPY)]
    return _table(["work", "bytes a call", *columns], rows)


def _rate(result: Result, name: str | None) -> str:
    us = result.us(name) if name is not None else None
    if us is None:
        return NONE
    rows_per_s = result.work.num_rows / us * 1e6
    return f"{_si(rows_per_s)} rows/s, {_si(result.work.call_bytes / us * 1e6)}B/s"


def _absences(results: Iterable[Result]) -> str:
    lines = {
        f"- {result.work.title}, {_label(name)}: {reason}"
        for result in results
        for name, reason in result.absent.items()
    }
    return f"{NONE}: not measured.\n\n" + "\n".join(sorted(lines)) if lines else ""


def _label(name: str) -> str:
    return PEERS[name].label if name in PEERS else _LABELS[name]


def _number(us: float | None) -> str:
    if us is None:
        return NONE
    decimals = 3 if us < 1 else 2 if us < 10 else 1 if us < 100 else 0
    return f"{us:.{decimals}f}"


def _si(value: float) -> str:
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    alignment = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, alignment, *rows))


def _bullets(header: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in header.items())


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ("git", "-C", str(ROOT), *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return f"{head}, with changes" if git("status", "--porcelain") else head
    except (OSError, subprocess.CalledProcessError):
        return "none"
