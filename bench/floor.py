# SPDX-License-Identifier: MIT
"""What a buffer cannot be expected to beat: bare C++ gathers of the same rows, a plain copy of the bytes."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

_SOURCE_BYTES = 256 << 20  # far more than any cache holds
_ROUNDS = 64

_rng = np.random.default_rng(1)


def gather_us(buffer: Any, batch_size: int, gather: str) -> float | None:
    """Time a C++ gather of random rows of `buffer`: no draw, no check, no Python, no tensor.

    Args:
        buffer: A full fastreplay.ReplayBuffer in its first lap.
        batch_size: Rows of one gather.
        gather: "plain_gather", record by record with memcpy and eight records prefetched ahead, what
            a careful programmer writes; or "gather", the kernel that our sample() uses.

    Returns:
        The median over rounds in µs, or None where the native timer (bench/native) is not built.
    """
    try:
        native = importlib.import_module("_gather_floor")
    except ImportError:
        return None
    slots = _rng.integers(0, buffer.capacity, (_ROUNDS, batch_size), dtype=np.int64)
    return float(getattr(native, f"{gather}_ns")(buffer._ring, slots)) * 1e-3


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
