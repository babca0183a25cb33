# SPDX-License-Identifier: MIT
"""Rounds: many calls under one reading of the clock, taken by turns.

On a shared machine the speed drifts over seconds. Contestants that take turns, a few milliseconds
each, drift together, and a median over rounds drops the turns that were interrupted.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter_ns
from typing import Any, TypeAlias

import numpy as np
from absence import Absences

_LONG = 50  # rounds' lengths: what takes longer is more than a round anyway
SECONDS = "s"  # the measure of a round that has one: seconds a call
Call: TypeAlias = Callable[..., Any]
Reading: TypeAlias = Mapping[str, float]  # by measure
Round: TypeAlias = Callable[[], Reading]


def keep_heap() -> bool:
    """Make glibc keep what is freed, so that no contestant pays page faults for the others' history.

    By default the heap's top is given back to the system whenever enough of it is free. Which peer's
    next minibatch then faults its pages in again (several times its price) depends on what else
    lives in the process.

    Returns:
        Whether the C library took it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    m_trim_threshold, m_mmap_threshold = -1, -3
    # Beyond 32 MiB, the most that glibc accepts, lie the rings and no minibatch.
    return bool(mallopt(m_mmap_threshold, 32 << 20) and mallopt(m_trim_threshold, 1 << 30))


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect garbage now, and none until the end of the block."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def elapsed_s(call: Call, loops: int, warm_ups: int = 0) -> float:
    """Return the seconds that `loops` calls take after uncounted ones; each result lives until the next is there."""
    result = None
    for _ in range(warm_ups):
        result = call()
    start = perf_counter_ns()
    for _ in range(loops):
        result = call()  # noqa: F841  held as a training loop holds its minibatch
    return (perf_counter_ns() - start) * 1e-9


def loops_for(call: Call, round_s: float) -> int:
    """Return how many calls fill a round of `round_s` seconds; warms the call up."""
    loops = 1
    while (taken := _least_s(call, loops, round_s)) < round_s / 4:
        loops *= 2
    return max(1, round(loops * round_s / taken))


def _least_s(call: Call, loops: int, round_s: float) -> float:
    """Return the least of several readings, as an interruption would make the rounds far too short."""
    readings: list[float] = []
    while len(readings) < 5 and sum(readings) < _LONG * round_s:
        readings.append(elapsed_s(call, loops, loops // 16 + 1))
    return min(readings)


def wall_round(call: Call, *, round_s: float, calls_each: int = 1) -> Round:
    """Return a round over `call`.

    Args:
        call: What is timed.
        round_s: How long a round should be, in seconds.
        calls_each: How many of the contestant's calls one `call` makes.
    """
    loops = loops_for(call, round_s)
    # Back into the caches, after the others' turns; they are lost on a call that takes as long as many rounds.
    warm_ups = loops // 16 + 1 if elapsed_s(call, 1) < _LONG * round_s else 0
    return lambda: {SECONDS: elapsed_s(call, loops, warm_ups) / (loops * calls_each)}


def take_turns(rounds: Mapping[str, Round], num_rounds: int, absent: Absences) -> dict[str, list[Reading]]:
    """Measure every contestant once a cycle, in an order that is drawn anew for each cycle.

    Args:
        rounds: The contestants.
        num_rounds: How many cycles.
        absent: Where the reason goes of a rival that fails.

    Returns:
        The readings of each contestant that did not fail, one a cycle.
    """
    order = np.random.default_rng(0)
    names = list(rounds)
    readings: dict[str, list[Reading]] = {name: [] for name in names}
    with no_garbage_collection():
        for _ in range(num_rounds):
            for i in order.permutation(len(names)):
                name = names[i]
                if name not in absent:
                    with absent.excused(name):
                        readings[name].append(rounds[name]())
    return {name: taken for name, taken in readings.items() if name not in absent}
