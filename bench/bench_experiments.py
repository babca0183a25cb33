# SPDX-License-Identifier: MIT
"""The contestants whose calls can be timed one by one, under pytest-benchmark."""

from __future__ import annotations

import gc
import os

import pytest
from absence import AbsentError
from experiment import Experiment
from experiments import buffers, growth, sb3, target
from nets import NETS
from peers import PEERS
from pytest_benchmark.fixture import BenchmarkFixture
from timing import loops_for
from works import RINGS

# Divides every capacity, for a quick look: FASTREPLAY_BENCH_SHRINK=100 pytest bench
_SHRINK = int(os.environ.get("FASTREPLAY_BENCH_SHRINK", "1"))
_ROUND_S = 5e-3
_NUM_ROUNDS = 60
# Some are timed by themselves, or in another process.
_OTHER_CLOCKS = ("floor", "halves", "kernel", "threads", *(name for name, peer in PEERS.items() if peer.environment))
_BY_CALLS = [one for one in growth.at_scale(growth.Scale().shrunk(_SHRINK)) if one.unit == "s a call"]
_RATES = {"rows_per_call": "rows_per_s", "bytes_per_call": "bytes_per_s", "elements": "elements_per_s"}

CASES = [
    pytest.param(experiment, name, id=f"{experiment.key}-{name}")
    for experiment in (*buffers.at_scale(_SHRINK), *map(target.experiment, NETS), *sb3.at_scale(_SHRINK), *_BY_CALLS)
    for name in experiment.contestants()
    if not name.endswith(_OTHER_CLOCKS)
]


@pytest.mark.parametrize(("experiment", "name"), CASES)
def bench_contestant(experiment: Experiment, name: str, benchmark: BenchmarkFixture) -> None:
    try:
        contestant = experiment.contestants()[name]()  # made anew: no other case's ring stays in memory
        contestant.check()
    except AbsentError as reason:
        pytest.skip(str(reason))
    each = contestant.calls_each
    benchmark.group = f"{experiment.key}, {each} a call"
    benchmark.pedantic(  # type: ignore[no-untyped-call]
        contestant.call, rounds=_NUM_ROUNDS, iterations=loops_for(contestant.call, _ROUND_S), warmup_rounds=1
    )
    if benchmark.stats is not None:  # None with --benchmark-disable
        call_s = float(benchmark.stats.stats.median) / each
        benchmark.extra_info["us_per_call"] = call_s * 1e6
        for fact, rate in _RATES.items():
            if fact in experiment.facts:
                benchmark.extra_info[rate] = experiment.facts[fact] / call_s
    contestant.check()
    contestant.close()
    del contestant
    RINGS.clear()
    gc.collect()  # gigabytes, before the next ring is made
