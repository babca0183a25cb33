# SPDX-License-Identifier: MIT
"""How does sampling grow with minibatches, rows, rings, fields, threads and processes?"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import many_fields
from checks import check_contents
from crowds import Forks, by_threads, locked
from curves import Curve, Panel, draw
from experiment import Contestant, Contestants, Experiment, Question, Result, is_ours
from peers import PEERS
from render import NONE, Columns, Table, by_title, medians, percent, ratio, si
from timing import Call, Round
from workloads import WORKLOADS, Workload, vector
from works import HALVES, LABELS, OUT, RINGS, Work, add_rows

from experiments.buffers import over_fastest

_BATCH = 256
_CROWD_BATCH = 1024
_HAVE_LOCKS = ("fastreplay", "torchrl")  # or need none; the others get one
_CROWD = ("numpy", "sb3", "cpprb", "rlox", "tianshou", "torchrl", "fastreplay")
_SAMPLED, _INSERTED = "rows sampled a second", "rows inserted a second"
_CROWD_S, _QUICK_CROWD_S, _CROWD_ROUNDS = 0.12, 0.01, 5
_RING_BYTES = 256 << 20  # of rings of rows of many sizes: more than most caches


@dataclass(frozen=True)
class Scale:
    """At which points each curve is measured."""

    capacity: int = 1_000_000
    batches: Sequence[int] = (32, 128, 512, 2048, 8192)
    vectors: Sequence[int] = (2, 14, 62, 254, 1022, 7166)  # of observations: rows of 28 B to 57 kB
    capacities: Sequence[int] = (10_000, 100_000, 4_000_000, 1_000_000)  # the last ring is used by the next curves, too
    fields: Sequence[int] = (2, 4, 8, 16, 32, 64)
    writers: Sequence[int] = (0, 1, 2, 4)
    samplers: Sequence[int] = (1, 2, 4)
    crowd_s: float = _CROWD_S
    crowd_rounds: int = _CROWD_ROUNDS

    def shrunk(self, by: int) -> Scale:
        """Return the same with rings that are smaller by a factor."""
        return replace(self, capacity=self.capacity // by, capacities=[each // by for each in self.capacities])


_QUICK = Scale(2000, (32,), (2,), (2000,), (4,), (1,), (2,), _QUICK_CROWD_S, 2)


def at_scale(scale: Scale) -> Iterator[Experiment]:
    cheetah = WORKLOADS["cheetah"]
    for capacity in scale.capacities:
        yield _sampling("ring", capacity, f"{capacity:,} transitions", Work("sample", cheetah, _BATCH, capacity))
    for batch in scale.batches:
        yield _sampling(
            "minibatch", batch, f"{batch:,} rows a minibatch", Work("sample", cheetah, batch, scale.capacity)
        )
    crowd = Work("sample", cheetah, _CROWD_BATCH, scale.capacity)
    for samplers in scale.samplers:
        yield _crowded("threads", samplers, f"{samplers} sampling", _threads, crowd, scale)
    for processes in scale.samplers:
        yield _crowded("processes", processes, f"{processes} sampling, forked", _processes, crowd, scale)
    for writers in scale.writers:  # the last over this ring: its first lap is over
        yield _crowded("writers", writers, f"{writers} writing, 1 sampling", _beside_writers, crowd, scale)
    for size in scale.vectors:
        shape = Workload(f"vector-{size}", vector(size), vector(1), scale.capacity, _BATCH)
        capacity = min(scale.capacity, _RING_BYTES // shape.row_bytes)
        yield _sampling("row", shape.row_bytes, f"{shape.row_bytes:,} B a row", Work("sample", shape, _BATCH, capacity))
    for fields in scale.fields:
        yield _many_fields(fields, scale.capacity // 4)


def _sampling(curve: str, x: int, title: str, work: Work) -> Experiment:
    return replace(work.experiment(curve=curve, x=x), key=f"{curve}-{x}", title=title)


def _many_fields(fields: int, capacity: int) -> Experiment:
    row_bytes = many_fields.ROW_BYTES
    facts = {"rows_per_call": _BATCH, "bytes_per_call": _BATCH * row_bytes, "curve": "fields", "x": fields}
    makers = partial(many_fields.contestants, fields, capacity, _BATCH)
    title = f"{fields} fields of together {row_bytes} B"
    return Experiment(f"fields-{fields}", title, makers, many_fields.RIVALS, facts=facts)


# Threads and processes.


def _crowded(
    curve: str, x: int, title: str, make: Callable[[str, Work, int, float], Contestant], work: Work, scale: Scale
) -> Experiment:
    def contestants() -> Contestants:
        return {name: partial(make, name, work, x, scale.crowd_s) for name in _CROWD}

    rivals = [name for name in _CROWD if PEERS[name].is_rival]
    facts = {"curve": curve, "x": x}
    return Experiment(f"{curve}-{x}", title, contestants, rivals, "rows/s", facts, scale.crowd_rounds)


def _rates(counts: Sequence[int], seconds: float, num_samplers: int) -> Mapping[str, float]:
    """Return rows a second; the samplers come first."""
    sampled, inserted = sum(counts[:num_samplers]) * _CROWD_BATCH, sum(counts[num_samplers:])
    return {_SAMPLED: sampled / seconds, _INSERTED: inserted / seconds}


def _crowd(peer: Any, work: Work, run: Callable[[], Mapping[str, float]], close: Callable[[], object]) -> Contestant:
    def clock(contestant: Contestant, _round_s: float) -> Round:
        return contestant.call

    check = partial(check_contents, peer, work.workload, work.num_rows, range(work.capacity))
    return Contestant(run, check=check, clock=clock, close=close)


def _threads(name: str, work: Work, samplers: int, seconds: float, writers: int = 0) -> Contestant:
    peer = RINGS.of(PEERS[name], work)
    lock = nullcontext() if name in _HAVE_LOCKS or samplers + writers == 1 else threading.Lock()
    adders: list[Call] = [peer.adder([row]) for row in add_rows(work.workload)] if writers else []
    calls = [locked([peer.sampler(work.num_rows)], lock) for _ in range(samplers)]
    calls += [locked(adders, lock) for _ in range(writers)]
    return _crowd(peer, work, lambda: _rates(by_threads(calls, seconds), seconds, samplers), lambda: None)


def _beside_writers(name: str, work: Work, writers: int, seconds: float) -> Contestant:
    return _threads(name, work, 1, seconds, writers)


def _processes(name: str, work: Work, processes: int, seconds: float) -> Contestant:
    peer = RINGS.of(PEERS[name], work)
    forks = Forks(peer.sampler(work.num_rows), processes)
    return _crowd(peer, work, lambda: _rates(forks(seconds), seconds, processes), forks.close)


# What is said.

_CURVES = {
    "minibatch": Curve("Rows of a minibatch", "cheetah, 168 B a row", "rows"),
    "row": Curve("Bytes of a row", f"`sample({_BATCH})`", "bytes"),
    "ring": Curve("Capacity", f"`sample({_BATCH})` of cheetah, 168 B a row", "transitions"),
    "fields": Curve("Fields", f"`sample({_BATCH})`, {many_fields.ROW_BYTES} B a row", "fields"),
    "writers": Curve("Beside writers", f"they `add`, one thread calls `sample({_CROWD_BATCH})`", "writing threads"),
    "threads": Curve("Sampling threads", f"`sample({_CROWD_BATCH})` of cheetah, one ring", "threads"),
    "processes": Curve("Sampling processes", f"`sample({_CROWD_BATCH})` of cheetah, a ring forked", "processes"),
}


def _of(curve: str, results: Sequence[Result]) -> list[Result]:
    found = [result for result in results if result.experiment.facts["curve"] == curve]
    return sorted(found, key=lambda result: result.experiment.facts["x"])


def _tables(results: Sequence[Result]) -> list[Table]:
    return [_table(curve, _of(name, results)) for name, curve in _CURVES.items()]


def _table(curve: Curve, results: Sequence[Result]) -> Table:
    columns: Columns
    if any(result.experiment.unit == "rows/s" for result in results):
        note = f"Rows a second, of all together; {curve.what}."
        if curve is _CURVES["writers"]:
            note = f"Rows sampled + inserted a second; {curve.what}."
        columns = {
            **{LABELS[name]: partial(_rates_said, name=name) for name in _CROWD},
            "over the fastest rival": _over_fastest_crowd,
        }
    else:
        columns = {
            **medians(results, LABELS),
            "over the fastest rival": over_fastest,
            "of the roofline": lambda result: percent(result.of_roofline()),
            "`out=`, of the roofline": lambda result: percent(result.of_roofline(OUT)),
        }
        note = f"µs per minibatch; {curve.what}."
    return Table(curve.title, note, curve.title.lower(), by_title(results), columns)


def _rates_said(result: Result, name: str) -> str:
    sampled, inserted = (result.median(name, measure) for measure in (_SAMPLED, _INSERTED))
    if sampled is None:
        return NONE
    return si(sampled, "").rstrip() + (f" + {si(inserted, '')}" if inserted else "")


def _over_fastest_crowd(result: Result) -> str:
    rates = {name: result.median(name, _SAMPLED) or 0 for name in result.experiment.rivals}
    best = max(rates, key=rates.__getitem__)
    slowdown = result.speedup("fastreplay", best, _SAMPLED)
    return NONE if slowdown is None else f"{ratio(slowdown)} ({LABELS[best]})"


def _rows_per_s(result: Result, name: str) -> float | None:
    if result.experiment.unit == "rows/s":
        return result.median(name, _SAMPLED)
    seconds = result.median(name)
    return None if seconds is None else result.experiment.facts["rows_per_call"] / seconds


def _bytes_per_s(result: Result, name: str) -> float | None:
    rows, facts = _rows_per_s(result, name), result.experiment.facts
    return None if rows is None else rows * facts["bytes_per_call"] / facts["rows_per_call"]


def _panel(name: str, results: Sequence[Result]) -> Panel:
    """Return the lines of one curve: every peer as it is mostly called, the roofline, and the same on two threads."""
    value, unit = (_bytes_per_s, "B/s") if name == "row" else (_rows_per_s, "rows/s")
    found = _of(name, results)
    x = [result.experiment.facts["x"] for result in found]
    names = {each for result in found for each in result.readings}
    lines = {
        LABELS[each]: [value(result, each) for result in found]
        for each in PEERS
        if each in names and (each == "fastreplay" or not is_ours(each))
    }
    if any(result.experiment.roofline for result in found):
        lines["roofline"] = [value(result, result.fastest(result.experiment.roofline) or "") for result in found]
        lines[f"{LABELS[HALVES]}"] = [value(result, HALVES) for result in found]
    return Panel(_CURVES[name], x, lines, unit)


def _figures(results: Sequence[Result], header: Mapping[str, str]) -> Mapping[str, Any]:
    files = {
        "sampling.svg": ("minibatch", "row", "ring", "fields"),
        "threads.svg": ("writers", "threads", "processes"),
        "growth.png": ("minibatch", "row"),
    }
    caption = (
        f"{header['CPU']} · {header['date']} · commit {header['commit']} · medians by turns, one machine, heap kept"
    )
    panels = {name: _panel(name, results) for name in _CURVES}
    return {
        file: draw([panels[name] for name in names], caption)
        for file, names in files.items()
        if all(len(panels[name].x) > 1 for name in names)
    }


QUESTION = Question(
    "Growth",
    lambda is_quick: list(at_scale(_QUICK if is_quick else Scale())),
    _tables,
    LABELS,
    distributions=("fastreplay", "numpy", "torch", "stable-baselines3", "cpprb", "rlox", "tianshou", "torchrl"),
    rounds=(15, 5e-3),
    quick_rounds=(2, 5e-5),
    method=f"one thread but for the curves of threads and processes, whose rounds are {_CROWD_ROUNDS} of {_CROWD_S} s",
    figures=_figures,
)
