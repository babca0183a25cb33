# SPDX-License-Identifier: MIT
"""What does a loader win on the CPU: a loop that samples and learns, beside one whose minibatches are drawn ahead?

The learner's step is native work that leaves the minibatch's memory alone and takes as long as `sample` does, so
that drawing ahead can win at most half of the loop.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from experiment import Contestant, Contestants, Experiment, Question, Result, wall
from peers.ours import empty_buffer, fill
from render import NONE, Columns, Table, by_title, medians, speedups
from timing import Call, Round
from workloads import WORKLOADS, Workload, decode

_SIZES = (("cheetah", 256), ("cheetah", 4096), ("atari", 32))
_DEPTH = 2
_LABELS = {
    "learner": "learner alone",
    "sample": "`sample` + learner",
    "out": "`out=` + learner",
    "loader": "`loader` + learner",
}


def _experiments(is_quick: bool) -> list[Experiment]:
    shrink, calibration_s = (100, 0.02) if is_quick else (1, 0.1)
    return [
        Experiment(
            f"loader-{name}-{batch_size}",
            f"{name} {batch_size}",
            partial(_contestants, WORKLOADS[name], batch_size, WORKLOADS[name].capacity // shrink, calibration_s),
            unit="s a turn",
        )
        for name, batch_size in _SIZES
    ]


def _contestants(workload: Workload, batch_size: int, capacity: int, calibration_s: float) -> Contestants:
    """Return the turns of each loop over one buffer."""
    buffer = empty_buffer(workload, capacity)
    fill(buffer, workload)
    sample = partial(buffer.sample, batch_size)
    learn = _work_of(_median_s(sample, calibration_s), calibration_s)

    def turn(take: Call) -> Call:
        def call() -> Any:
            batch = take()
            learn()
            return batch

        return call

    def loading() -> Contestant:
        check_loader(buffer, batch_size)
        loader = buffer.loader(batch_size, depth=_DEPTH)

        def clock(contestant: Contestant, round_s: float) -> Round:
            timed = wall(contestant, round_s)

            def run() -> dict[str, float]:
                before, reading, after = buffer.stats(), timed(), buffer.stats()
                waits, rows = (after[name] - before[name] for name in ("waits", "sampled"))
                return {**reading, "waited": waits * batch_size / rows}

            return run

        return Contestant(turn(loader.__next__), clock=clock, close=loader.close)

    return {
        "learner": lambda: Contestant(learn),
        "sample": lambda: Contestant(turn(sample)),
        "out": lambda: Contestant(turn(partial(sample, out=sample()))),
        "loader": loading,
    }


def check_loader(buffer: Any, batch_size: int) -> None:
    """See that the loader yields whole transitions, those that `sample` gives."""
    twin = buffer.spawn(1)[0]
    twin.rng_state = buffer.rng_state
    with buffer.loader(batch_size, depth=_DEPTH, steps=20) as loader:
        for batch in loader:
            expected = twin.sample(batch_size)
            assert torch.equal(batch.ticket, expected.ticket)
            assert all(map(torch.equal, batch, expected))
            columns = {name: value.numpy() for name, value in batch.items()}
            assert np.array_equal(decode(columns), batch.ticket.numpy() % (1 << 20))


def _median_s(call: Call, round_s: float) -> float:
    """Return the seconds that a call takes."""
    readings = []
    end = time.perf_counter() + 2 * round_s
    while time.perf_counter() < end:
        start = time.perf_counter()
        result = call()  # noqa: F841  held until the next is there
        readings.append(time.perf_counter() - start)
    return median(readings)


def _work_of(seconds: float, round_s: float) -> Call:
    """Return one native call of about that length, which leaves the GIL and the minibatch alone."""
    numbers = np.full(1 << 16, 0.5)

    def work(length: int) -> Call:
        part = numbers[:length]
        return lambda: np.tanh(part, out=part)

    length = 16
    while length < len(numbers) and _median_s(work(length), round_s / 10) < seconds:
        length += max(16, length // 16)
    return work(length)


def _tables(results: Sequence[Result]) -> list[Table]:
    def waited(result: Result) -> str:
        series = result.series("loader", "waited")
        return NONE if series is None else f"{sum(series) / len(series):.0%}"

    columns: Columns = {
        **medians(results, _LABELS),
        "`sample` over `loader`": speedups("sample", "loader"),
        "turns that waited": waited,
    }
    return [Table("", "", "µs a turn", by_title(results), columns)]


QUESTION = Question(
    "Loader on the CPU",
    _experiments,
    _tables,
    _LABELS,
    distributions=("fastreplay", "numpy", "torch"),
    rounds=(21, 0.1),
    quick_rounds=(5, 0.02),
    method=f"medians; torch tensors; a loader of depth {_DEPTH}",
)
