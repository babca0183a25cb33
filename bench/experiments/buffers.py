# SPDX-License-Identifier: MIT
"""How long do inserting and sampling take, beside the other replay buffers and the machine itself?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from experiment import Experiment, Question, Result
from render import NONE, Columns, Table, by_title, fact, medians, number, percent, ratio, si
from workloads import WORKLOADS
from works import FLOOR, HALVES, KERNEL, LABELS, OUT, THREADS, Work

_QUICK_SHRINK, _QUICK_EVERY = 50, 8
# By workload: rows of minibatches, and of an `extend`. For more rows of atari no heap is kept (timing.keep_heap).
SAMPLED: Mapping[str, Sequence[int]] = {
    **dict.fromkeys(("pendulum", "cheetah", "humanoid"), (32, 256, 8192)),
    "atari": (32, 256, 1024),
}
EXTENDED = {"pendulum": 16, "cheetah": 64, "humanoid": 64, "atari": 8}
_LEVEL = 0.98  # below, a rival is in front


def at_scale(shrink: int = 1, every: int = 1) -> list[Experiment]:
    """Return the experiments with their capacities divided by `shrink`, those that share a full ring in succession."""
    return [work.experiment() for work in _works(shrink, every)]


def _works(shrink: int, every: int) -> Iterator[Work]:
    for name, workload in WORKLOADS.items():
        capacity = workload.capacity // shrink
        for num_rows in SAMPLED[name] if every == 1 else SAMPLED[name][1:2]:
            yield Work("sample", workload, num_rows, capacity)
        if every > 1 and workload.row_bytes > 1000:  # to see that inserts run, small rows are enough
            continue
        yield Work("add", workload, 1, capacity, every)
        yield Work("extend", workload, EXTENDED[name], capacity // EXTENDED[name] * EXTENDED[name], every)


def _tables(results: Sequence[Result]) -> list[Table]:
    note = "µs per call, heaps as the method says, medians over rounds; ratios are medians of the rounds' ratios."
    groups = {
        title: [result for result in results if result.experiment.key.split("-")[0] in kinds]
        for title, kinds in (("Inserting", ("add", "extend")), ("Sampling", ("sample",)))
    }
    tables = []
    for title, group in groups.items():
        columns: Columns = {
            "capacity": fact("capacity"),
            **medians(group, LABELS),
            "over the fastest rival": over_fastest,
        }
        tables.append(Table(title, note, "work", by_title(group), columns))
    return [_behind(results), *tables, _rates(results), _rooflines(groups["Sampling"])]


def _behind(results: Sequence[Result]) -> Table:
    behind = [result for result in results if (speedup(result) or 1) < _LEVEL]
    note = f"Rows where the fastest rival takes less than {_LEVEL} of our time."
    return Table("A rival in front", note, "work", by_title(behind), {"over the fastest rival": over_fastest})


def speedup(result: Result) -> float | None:
    return result.speedup(result.fastest_rival())


def over_fastest(result: Result) -> str:
    best, faster = result.fastest_rival(), speedup(result)
    return NONE if best is None or faster is None else f"{ratio(faster)} ({LABELS[best]})"


def _rates(results: Sequence[Result]) -> Table:
    columns: Columns = {
        "bytes a call": fact("bytes_per_call"),
        **{LABELS[name]: partial(rate, name=name) for name in ("fastreplay", OUT)},
        "fastest rival": lambda result: rate(result, result.fastest_rival()),
        "roofline": lambda result: rate(result, result.fastest(result.experiment.roofline)),
    }
    return Table("Throughput", "", "work", by_title(results), columns)


def rate(result: Result, name: str | None) -> str:
    seconds, facts = result.median(name), result.experiment.facts
    if seconds is None:
        return NONE
    return ", ".join((si(facts["rows_per_call"] / seconds, "rows/s"), si(facts["bytes_per_call"] / seconds, "B/s")))


def _rooflines(sampling: Sequence[Result]) -> Table:
    def microseconds(name: str, measure: str) -> Callable[[Result], str]:
        def cell(result: Result) -> str:
            seconds = result.median(name, measure)
            return number(None if seconds is None else seconds * 1e6)

        return cell

    def share(result: Result, name: str) -> str:
        return percent(result.of_roofline(name))

    columns: Columns = {
        "plain stores": microseconds(FLOOR, "plain_gather"),
        "past the caches": microseconds(FLOOR, "streamed_gather"),
        LABELS[KERNEL]: microseconds(KERNEL, "s"),
        "two threads": microseconds(HALVES, "s"),
        "over one": lambda result: ratio(result.speedup(FLOOR, ours=HALVES)),
        "fastreplay, of the roofline": partial(share, name="fastreplay"),
        "`out=`": partial(share, name=OUT),
        "fastest rival": lambda result: share(result, result.fastest_rival() or ""),
        f"{LABELS[THREADS]}, over one": lambda result: ratio(result.speedup("fastreplay", ours=THREADS)),
    }
    note = (
        "Bare C++ gathers of the same rows, µs: no draw, no check, no Python, no tensor, into memory that is there "
        "already. The fastest on one thread is the roofline: 100% is a `sample` that costs no more."
    )
    found = [result for result in sampling if result.fastest(result.experiment.roofline)]
    return Table("Roofline", note, "work", by_title(found), columns)


QUESTION = Question(
    "Replay buffers",
    lambda is_quick: at_scale(_QUICK_SHRINK, _QUICK_EVERY) if is_quick else at_scale(),
    _tables,
    LABELS,
    distributions=("fastreplay", "numpy", "torch", "stable-baselines3", "cpprb", "rlox", "tianshou", "torchrl"),
    rounds=(15, 5e-3),
    quick_rounds=(2, 5e-5),
)
