# SPDX-License-Identifier: MIT
"""What a buffer tells of itself: its generator's state, to be set again, and its counters."""

from __future__ import annotations

import operator
from typing import TypedDict, cast

__all__ = ["RngState", "Stats", "checked_rng_state"]


class RngState(TypedDict):
    """The generator's whole state: its key and the number of sample calls made."""

    key: list[int]
    calls: int


class Stats(TypedDict):
    """Counters of a buffer, since it was made."""

    inserted: int  # transitions inserted
    overwritten: int  # of these, lost because the buffer was full
    sampled: int  # rows drawn by sample() and loaders
    redraws: int  # rows drawn again because a writer overwrote them while they were copied
    without_mass: int  # minibatches drawn uniformly because no transition had a priority above zero
    bytes: int  # memory of the ring and of its priorities
    pinned_bytes: int  # page-locked memory of minibatches on their way to a GPU
    blocks_in_flight: int  # minibatches being gathered or copied, and those that loaders have ready
    waits: int  # how often sample() or a loader had to wait: for a copy that was still under way, or its thread
    wait_s: float  # the seconds that this took in all


def checked_rng_state(state: object) -> tuple[tuple[int, int], int]:
    """Return the key and the number of calls.

    Raises:
        ValueError: It is no state of a generator.
    """
    try:
        values = cast("RngState", state)
        first, second = map(operator.index, values["key"])
        calls = operator.index(values["calls"])
        if not all(0 <= number < 2**64 for number in (first, second, calls)):
            raise ValueError("not 64-bit numbers")
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"rng_state: expected {{'key': [int, int], 'calls': int}}, got {state!r}") from error
    return (first, second), calls
