# SPDX-License-Identifier: MIT
"""The target updates' results as Markdown and JSON. Measures nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from judging import Seconds, Target, median_us, quartiles_us, speedup
from output import NONE, bullets, number, ratio, table
from updates import UPDATERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from nets import Net

DISTRIBUTIONS = ("fastreplay", "torch", "numpy", "stable-baselines3")
BYTES_PER_ELEMENT = 12  # float32: two are read, one is written
THREADS = 2
THREADED = ("foreach", "flat", "fastreplay")  # what is measured with THREADS, too


def with_threads(name: str) -> str:
    """Return the name under which an updater's times with THREADS are kept."""
    return f"{name}-{THREADS}-threads"


@dataclass(frozen=True)
class ThreadsTarget(Target):
    """A least share, in our speed-up by THREADS, of what another gains by them."""

    def ratio(self, seconds: Seconds, against: str | None = None) -> float | None:
        one, other = self.ours, against or self.against
        names = (one, with_threads(one), other, with_threads(other))
        if not all(name in seconds for name in names):
            return None
        rounds = zip(*(seconds[name] for name in names), strict=True)
        shares = [(mine / mine_2) / (theirs / theirs_2) for mine, mine_2, theirs, theirs_2 in rounds]
        return float(median(shares))


@dataclass(frozen=True)
class UpdateWork:
    """One row of the table."""

    net: Net
    targets: tuple[Target, ...] = ()
    is_threaded: bool = False

    @property
    def key(self) -> str:
        return f"target-{self.net.key}"


@dataclass
class UpdateResult:
    """One net's updates, measured.

    Attributes:
        seconds: Seconds an update, one number a round, by updater; see `with_threads`.
        absent: Why an updater has no number.
    """

    work: UpdateWork
    num_tensors: int
    num_elements: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def to_markdown(results: Sequence[UpdateResult], header: Mapping[str, str]) -> str:
    """Return the tables of all results, below the header."""
    parts = [
        "# Target updates, measured",
        bullets(header),
        "## Times",
        _TIMES,
        _times(results),
    ]
    if threaded := [result for result in results if result.work.is_threaded]:
        parts += [f"## {THREADS} threads", "µs on one thread → on two (speed-up).", _threads(threaded)]
    parts += ["## Targets", _targets(results), "## Throughput", _THROUGHPUT, _throughput(results)]
    if absences := _absences(results):
        parts += [absences]
    return "\n\n".join(parts) + "\n"


def to_json(results: Sequence[UpdateResult], header: Mapping[str, str]) -> dict[str, Any]:
    """Return all that was measured: per updater the quartiles over rounds, in µs an update."""
    return {"header": dict(header), "works": [_work_json(result) for result in results]}


_TIMES = (
    "µs per update of float32 parameters on one thread, medians over rounds; ratios are medians of the rounds' ratios."
)
_THROUGHPUT = f"GB/s, of {BYTES_PER_ELEMENT} bytes an element: target and online are read, target is written."


def _work_json(result: UpdateResult) -> dict[str, Any]:
    targets = []
    for target in result.work.targets:
        measured = target.ratio(result.seconds)
        targets.append(
            {
                "what": "speed-up by threads" if isinstance(target, ThreadsTarget) else "time",
                "ours": target.ours,
                "against": target.against,
                "bound": target.factor,
                "tolerance": target.tolerance,
                "is_ceiling": target.is_ceiling,
                "ratio": measured,
                "met": None if measured is None else target.is_met(measured),
            }
        )
    return {
        "work": result.work.key,
        "tensors": result.num_tensors,
        "elements": result.num_elements,
        "us_per_update": quartiles_us(result.seconds),
        "absent": result.absent,
        "targets": targets,
    }


def _times(results: Iterable[UpdateResult]) -> str:
    rows = [
        [
            result.work.net.title,
            f"{result.num_tensors}",
            f"{result.num_elements:,}",
            *(number(median_us(result.seconds, name)) for name in UPDATERS),
            ratio(speedup(result.seconds, "foreach", "fastreplay")),
        ]
        for result in results
    ]
    labels = [updater.label for updater in UPDATERS.values()]
    return table(["net", "tensors", "elements", *labels, f"over {UPDATERS['foreach'].label}"], rows)


def _threads(results: Iterable[UpdateResult]) -> str:
    rows = []
    for result in results:
        cells = []
        for name in THREADED:
            one, more = (number(median_us(result.seconds, key)) for key in (name, with_threads(name)))
            cells.append(f"{one} → {more} ({ratio(speedup(result.seconds, name, with_threads(name)))})")
        rows.append([result.work.net.title, *cells])
    return table(["net", *(UPDATERS[name].label for name in THREADED)], rows)


def _targets(results: Iterable[UpdateResult]) -> str:
    rows = []
    for result in results:
        for target in result.work.targets:
            measured = target.ratio(result.seconds)
            against = UPDATERS[target.against].label
            is_of_threads = isinstance(target, ThreadsTarget)
            rows.append(
                [
                    result.work.net.title,
                    f"speed-up by {THREADS} threads, over that of {against}" if is_of_threads else against,
                    target.bound,
                    ratio(measured),
                    target.verdict(measured) or NONE,
                ]
            )
    return table(["net", "`fr.SoftUpdate` against", "target", "measured", ""], rows)


def _throughput(results: Iterable[UpdateResult]) -> str:
    rows = []
    for result in results:
        cells = []
        for name in UPDATERS:
            us = median_us(result.seconds, name)
            cells.append(NONE if us is None else f"{result.num_elements * BYTES_PER_ELEMENT / us * 1e-3:.3g}")
        rows.append([result.work.net.title, *cells])
    return table(["net", *(updater.label for updater in UPDATERS.values())], rows)


def _absences(results: Iterable[UpdateResult]) -> str:
    lines = {f"- {_label(name)}: {reason}" for result in results for name, reason in result.absent.items()}
    return f"{NONE}: not measured.\n\n" + "\n".join(sorted(lines)) if lines else ""


def _label(name: str) -> str:
    one, many, _ = name.partition(with_threads(""))
    return UPDATERS[one].label + (f" on {THREADS} threads" if many else "")
