# SPDX-License-Identifier: MIT
"""What do threads do to inserting and sampling?"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
from absence import require
from crowds import by_threads, locked
from experiment import Contestant, Contestants, Experiment, Question, Result, itself
from peers import PEERS
from render import NONE, Columns, Table, by_title, number, ratio, si
from timing import Call, Round
from workloads import WORKLOADS
from works import add_rows

_PEERS = ("fastreplay", "sb3", "cpprb", "torchrl", "numpy")
_HAVE_LOCKS = ("fastreplay", "torchrl")  # or need none; the others get one
_BATCH_SIZE = 256
_SIZES, _QUICK_SIZES = (16, 165, 256, 1024), (165,)  # bytes of a row; 165 are cheetah's
_CAPACITY, _QUICK_CAPACITY = 1_000_000, 10_000
_QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "p99.99": 0.9999, "most": 1.0}


# Without Python: bench/native/protocol_timer.cpp takes 101 rounds by turns itself.


def _native(sizes: Sequence[int], capacity: int) -> Iterator[Experiment]:
    single = [size for size in sizes if size != 256]
    for size in single:
        yield _timer("insert_ns", f"insert one row of {size} B", "ns bare", size, capacity)
    for size in single:
        yield _timer("sample_ns", f"sampled row of {size} B", "ns bare", size, capacity, _BATCH_SIZE)
    title = f"sample({_BATCH_SIZE}) of 165 B beside a writer"
    yield _timer("sample_rates", title, "/s alone", 165, capacity, _BATCH_SIZE)
    for num_rows in (1, 64):
        for size in sizes:
            title = f"two writers, {num_rows} rows of {size} B an insert"
            yield _timer("insert_rates", title, "rows/s by one", size, capacity, num_rows)
    for size in sizes:
        if size >= 256:
            title = f"two threads, nothing but an atomic count and a copy of {size} B"
            yield _timer("count_rates", title, "rows/s by one", size, capacity)


def _timer(function: str, title: str, unit: str, *arguments: int) -> Experiment:
    def make() -> Contestant:
        timer: Any = require("_protocol_timer")

        def call() -> dict[str, float]:
            found = getattr(timer, function)(*arguments)
            # Times come as (ours, bare); rates as (alone, beside another).
            return dict(zip(("ours", "against") if unit == "ns bare" else ("against", "ours"), found, strict=True))

        return Contestant(call, clock=itself)

    key = f"native-{function}-{'-'.join(map(str, arguments))}"
    return Experiment(key, title, lambda: {"native": make}, unit=unit, rounds=1)


def _native_table(results: Sequence[Result]) -> Table:
    def cell(result: Result, measure: str) -> str:
        value, unit = result.median("native", measure), result.experiment.unit
        if measure == "ours":
            unit = unit.split(" ")[0]
        return NONE if value is None else f"{value:.1f} {unit}" if unit.startswith("ns") else si(value, unit)

    def measured(result: Result) -> str:
        ours, against = (result.median("native", measure) for measure in ("ours", "against"))
        if ours is None or against is None:
            return NONE
        if result.experiment.unit == "ns bare":
            return f"{ours - against:+.1f} ns"
        return ratio(ours / against)

    columns: Columns = {measure: partial(cell, measure=measure) for measure in ("ours", "against")}
    columns = {**columns, "measured": measured}
    return Table("Without Python", "", "work", by_title(results), columns)


# One thread inserts, one samples.


def _together(capacity: int) -> Experiment:
    rivals = [name for name in _PEERS if PEERS[name].is_rival]
    makers = {name: partial(_pair, name, capacity) for name in _PEERS}
    return Experiment("together", "one thread inserts, one samples", lambda: makers, rivals, unit="rows/s")


def _pair(name: str, capacity: int) -> Contestant:
    peer = PEERS[name](WORKLOADS["cheetah"], capacity)
    peer.fill()
    lock = nullcontext() if name in _HAVE_LOCKS else threading.Lock()
    add = locked([peer.adder([row]) for row in add_rows(peer.workload)], lock)
    sample = locked([peer.sampler(_BATCH_SIZE)], lock)

    def clock(contestant: Contestant, round_s: float) -> Round:
        def run() -> dict[str, float]:
            added, sampled = contestant.call(round_s)
            rates = {"inserted": added / round_s, "sampled": sampled * _BATCH_SIZE / round_s}
            return {**rates, "together": sum(rates.values())}

        return run

    return Contestant(partial(by_threads, [add, sample]), clock=clock)


def _together_table(result: Result) -> Table:
    def rate(measure: str) -> Callable[[str], str]:
        return lambda name: si(result.median(name, measure), "rows/s")

    def over(name: str) -> str:
        ours, theirs = (result.median(each, "together") for each in ("fastreplay", name))
        return NONE if ours is None or theirs is None else ratio(ours / theirs)

    rows = {PEERS[name].label: name for name in _PEERS if name in result.readings}
    columns = {measure: rate(measure) for measure in ("inserted", "sampled", "together")}
    return Table("One thread inserts, one samples", "", "buffer", rows, {**columns, "ours over it": over})


# How long single calls take.


def _latency(capacity: int, seconds: float) -> Experiment:
    def contestants() -> Contestants:
        peer = PEERS["fastreplay"](WORKLOADS["cheetah"], capacity)
        peer.fill()
        alone = partial(_quantiles, [peer.adder([row]) for row in add_rows(peer.workload)], seconds)

        def beside_sampling() -> dict[str, float]:
            sample, stop = peer.sampler(4096), threading.Event()

            def sample_on() -> None:
                while not stop.is_set():
                    sample()

            thread = threading.Thread(target=sample_on)
            thread.start()
            try:
                return alone()
            finally:
                stop.set()
                thread.join()

        calls: dict[str, Call] = {"alone": alone, "beside sample(4096)": beside_sampling}
        return {name: partial(Contestant, call, clock=itself) for name, call in calls.items()}

    return Experiment("latency", "`add`, cheetah", contestants, unit="s a call", rounds=1)


def _quantiles(adders: Sequence[Call], seconds: float) -> dict[str, float]:
    taken = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for add in adders:
            start = time.perf_counter_ns()
            add()
            taken.append(time.perf_counter_ns() - start)
    return {name: float(np.quantile(taken, q)) * 1e-9 for name, q in _QUANTILES.items()}


def _latency_table(result: Result) -> Table:
    def quantile(measure: str) -> Callable[[str], str]:
        return lambda name: f"{number((result.median(name, measure) or 0) * 1e6)} µs"

    columns = {measure: quantile(measure) for measure in _QUANTILES}
    return Table("How long `add` takes", "", "`add`, cheetah", {name: name for name in result.readings}, columns)


def _experiments(is_quick: bool) -> list[Experiment]:
    capacity = _QUICK_CAPACITY if is_quick else _CAPACITY
    native = _native(_QUICK_SIZES if is_quick else _SIZES, capacity)
    return [*native, _together(capacity), _latency(capacity, 0.4 if is_quick else 5.0)]


def _tables(results: Sequence[Result]) -> list[Table]:
    native = [result for result in results if result.experiment.key.startswith("native")]
    single = {"together": _together_table, "latency": _latency_table}
    others = [single[result.experiment.key](result) for result in results if result.experiment.key in single]
    return [_native_table(native), *others]


QUESTION = Question(
    "Threads",
    _experiments,
    _tables,
    {**{name: peer.label for name, peer in PEERS.items()}, "native": "the native timer (make .venv/.bench)"},
    distributions=("fastreplay", "numpy", "torch", "stable-baselines3", "cpprb", "torchrl"),
    rounds=(7, 0.4),
    quick_rounds=(3, 0.02),
    method="native parts: 101 rounds by turns",
)
