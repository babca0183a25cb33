# SPDX-License-Identifier: MIT
"""What a buffer cannot be expected to beat: bare C++ gathers of the same rows, a plain copy of the bytes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np
from absence import require
from peers.ours import Fastreplay

_SOURCE_BYTES = 256 << 20  # far more than any cache holds
_ROUNDS = 64
_TIMED_BYTES = 32 << 20  # of one round of gathers: some milliseconds

_rng = np.random.default_rng(1)


def nothing() -> Callable[..., None]:
    """Return a native function that takes any arguments and does nothing.

    Raises:
        AbsentError: The native timer (bench/native) is not built.
    """
    native: Any = require("_gather_floor")
    does_nothing: Callable[..., None] = native.nothing
    return does_nothing


def gathers_s(ours: Fastreplay, batch_size: int, names: Iterable[str]) -> dict[str, float]:
    """Time C++ gathers of random rows of our ring: no draw, no check, no Python, no tensor, always the same target.

    Args:
        ours: A full ring in its first lap.
        batch_size: Rows of one gather.
        names: Of gathers. "plain_gather" goes record by record with memcpy, some records prefetched ahead, as a
            careful programmer writes it; "streamed_gather" does with stores past the caches; "plain_halves" and
            "streamed_halves" are the same on two threads, half of the rows each; "gather" is what our sample() uses.

    Returns:
        The means in seconds, of those that this processor has.

    Raises:
        AbsentError: The native timer (bench/native) is not built.
    """
    native: Any = require("_gather_floor")
    rounds = 1 + min(_ROUNDS, max(3, _TIMED_BYTES // (batch_size * ours.workload.row_bytes)))
    slots = _rng.integers(0, ours.capacity, (rounds, batch_size), dtype=np.int64)
    timers = {name: getattr(native, f"{name}_ns", None) for name in names}
    return {name: float(timer(ours.buffer._ring, slots)) * 1e-9 for name, timer in timers.items() if timer}


def lines_s(buffer: Any, batch_size: int, pieces: Iterable[tuple[int, Collection[str]]]) -> float:
    """Time a copy of the cache lines that fields of random rows' neighbours lie in, as they lie: what has to be read.

    Args:
        buffer: A full buffer in its first lap.
        batch_size: Rows of one copy.
        pieces: By how many slots a neighbour comes after its row, and which fields of it are read.

    Returns:
        The mean in seconds.

    Raises:
        AbsentError: The native timer (bench/native) is not built.
    """
    native: Any = require("_gather_floor")
    places = {name: _place(buffer.view(name)) for name in buffer.schema}
    begin = min(first for first, _ in places.values())
    spans = [(slots, places[name][0] - begin, places[name][1]) for slots, names in pieces for name in names]
    capacity = buffer.capacity - max(slots for slots, _, _ in spans)
    slots = _rng.integers(0, capacity, (1 + _ROUNDS, batch_size), dtype=np.int64)
    return float(native.copy_lines_ns(buffer._ring, slots, spans)) * 1e-9


def _place(column: Any) -> tuple[int, int]:
    """Return where a column's first row lies, and how many bytes a row has."""
    rows = np.asarray(column)
    return rows.__array_interface__["data"][0], rows[0].nbytes


def cold_copy(num_bytes: int) -> Callable[[], None]:
    """Return a call that copies `num_bytes` from memory that no cache holds, each time another."""
    num_chunks = max(1, _SOURCE_BYTES // num_bytes)
    source = np.ones((num_chunks, num_bytes), np.uint8)
    target = np.ones(num_bytes, np.uint8)
    # In random order, lest the hardware prefetches the next one.
    chunks = [source[i] for i in _rng.permutation(num_chunks)]
    position = 0

    def copy() -> None:
        nonlocal position
        np.copyto(target, chunks[position])
        position = (position + 1) % num_chunks

    return copy


def cold_write(num_bytes: int) -> Callable[[], None]:
    """Return a call that copies `num_bytes` to memory that no cache holds, the next each time, as into a ring."""
    num_chunks = max(1, _SOURCE_BYTES // num_bytes)
    source, target = np.ones(num_bytes, np.uint8), np.ones((num_chunks, num_bytes), np.uint8)
    chunks = list(target)
    position = 0

    def copy() -> None:
        nonlocal position
        np.copyto(chunks[position], source)
        position = (position + 1) % num_chunks

    return copy
