# SPDX-License-Identifier: MIT
"""The options of a buffer's constructors, and their checks. Each message names the option."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, SupportsFloat, TypedDict

from fastreplay.support.checks import TORCH_DTYPES, checked_float

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import torch

    from fastreplay.buffer.frames import ShareNext
    from fastreplay.buffer.priorities import Priorities
    from fastreplay.gpu.device import Device
    from fastreplay.schema import Schema
    from fastreplay.support.checks import Seed

    Storage = Literal["host", "cuda"]

    class Options(TypedDict, total=False):
        """What every constructor takes beside the output."""

        seed: Seed
        device: torch.device | str | int
        storage: Storage
        timeout: float | None
        lanes: int | None
        ends: Sequence[str] | None
        priorities: Priorities | None
        share_next: ShareNext
        path: str | os.PathLike[str] | None


__all__ = ["check_output", "check_storage", "checked_timeout", "gpu_of"]


def checked_timeout(timeout: float | None) -> float:
    """Return the seconds to wait, infinite for None."""
    if timeout is None:
        return math.inf
    if isinstance(timeout, (bool, str)) or not isinstance(timeout, SupportsFloat):
        raise TypeError(f"timeout: expected seconds or None, got {timeout!r}")
    seconds = checked_float("timeout", timeout, "seconds or None")
    if not seconds >= 0:
        raise ValueError(f"timeout: expected a non-negative number of seconds, got {timeout}")
    return seconds


def check_output(schema: Schema, output: str, device: object) -> None:
    """Refuse an output that cannot hold these fields, or not on this device."""
    if output not in ("torch", "numpy"):
        raise ValueError(f"output: expected 'torch' or 'numpy', got {output!r}")
    if output == "numpy":
        if str(device) != "cpu":
            raise ValueError(f"device: expected 'cpu' with output='numpy', got {device!r}")
        return
    for name, field in schema.items():
        if field.dtype.name not in TORCH_DTYPES:
            raise TypeError(f"{name}: torch has no dtype for {field.dtype}; use output='numpy'")


def check_storage(storage: str, device: torch.device | Literal["cpu"]) -> None:
    """Refuse a storage that this device has not."""
    if storage not in ("host", "cuda"):
        raise ValueError(f"storage: expected 'host' or 'cuda', got {storage!r}")
    if storage == "cuda" and (device == "cpu" or device.type != "cuda"):
        raise ValueError(f"storage: expected 'host' with device={str(device)!r}, got 'cuda'")


def gpu_of(device: torch.device | Literal["cpu"]) -> Device | None:
    """Return what sends to a CUDA device; None of the CPU and other devices."""
    if device == "cpu" or device.type != "cuda":
        return None
    from fastreplay.gpu.device import Device

    return Device(device)
