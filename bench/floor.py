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

_rng = np.random.default_rng(1)


def gather_s(ours: Fastreplay, batch_size: int, gather: str) -> float:
    """Time a C++ gather of random rows of our ring: no draw, no check, no Python, no tensor.

    Args:
        ours: A full ring in its first lap.
        batch_size: Rows of one gather.
        gather: "plain_gather", record by record with memcpy and eight records prefetched ahead, what
            a careful programmer writes; or "gather", the kernel that our sample() uses.

    Returns:
        The median over rounds in seconds.

    Raises:
        AbsentError: The native timer (bench/native) is not built.
    """
    native: Any = require("_gather_floor")
    slots = _rng.integers(0, ours.capacity, (_ROUNDS, batch_size), dtype=np.int64)
    return float(getattr(native, f"{gather}_ns")(ours.buffer._ring, slots)) * 1e-9


def lines_s(buffer: Any, batch_size: int, pieces: Iterable[tuple[int, Collection[str]]]) -> float:
    """Time a copy of the cache lines that fields of random rows' neighbours lie in, as they lie: what has to be read.

    Args:
        buffer: A full buffer in its first lap.
        batch_size: Rows of one copy.
        pieces: By how many slots a neighbour comes after its row, and which fields of it are read.

    Returns:
        The median over rounds in seconds.

    Raises:
        AbsentError: The native timer (bench/native) is not built.
    """
    native: Any = require("_gather_floor")
    places = {name: _place(buffer.view(name)) for name in buffer.schema}
    begin = min(first for first, _ in places.values())
    spans = [(slots, places[name][0] - begin, places[name][1]) for slots, names in pieces for name in names]
    capacity = buffer.capacity - max(slots for slots, _, _ in spans)
    slots = _rng.integers(0, capacity, (_ROUNDS, batch_size), dtype=np.int64)
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
