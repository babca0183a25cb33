# SPDX-License-Identifier: MIT
"""What a buffer cannot be expected to beat: bare C++ gathers of the same rows, a plain copy of the bytes."""

from __future__ import annotations

from collections.abc import Callable
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
