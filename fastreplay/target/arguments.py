# SPDX-License-Identifier: MIT
"""What target updates take beside tensors, tau above all, and what they refuse of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat, TypeAlias, TypeGuard

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Tau",
    "check_count",
    "check_options",
    "checked_state",
    "checked_tau",
    "is_schedule",
]

Tau: TypeAlias = float | Tensor | Callable[[int], float]


def is_schedule(tau: Tau) -> TypeGuard[Callable[[int], float]]:
    """Tell whether tau is a function of the number of the step."""
    return callable(tau) and not isinstance(tau, Tensor)


def checked_tau(tau: object) -> float | Tensor:
    """Return a number in [0, 1] as a float, or a tensor of one.

    Raises:
        TypeError, ValueError: It is neither.
    """
    if isinstance(tau, Tensor):
        if tau.shape != () or tau.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"tau: expected shape () of float32 or float64, got {tuple(tau.shape)} of {tau.dtype}")
        if tau.device.type == "meta":
            raise TypeError("tau: is on meta, and has no value")
        if tau.device.type != "cpu" or torch.compiler.is_dynamo_compiling():
            return tau  # to read it here would wait for the device, or could not be traced
        return _check_range(float(tau))
    if isinstance(tau, (bool, np.bool_, str)) or not isinstance(tau, SupportsFloat):
        raise TypeError(f"tau: expected a number, got {tau!r}")
    try:
        number = float(tau)
    except TypeError as error:  # an array of several, or of one dimension
        raise TypeError(f"tau: expected a number, got {tau!r}") from error
    except OverflowError:  # an integer, or a fraction
        raise ValueError("tau: expected a number in [0, 1], got one that is beyond every float") from None
    return _check_range(number)


def check_options(buffers: object, every: object) -> None:
    """Refuse `buffers` and `every` of `SoftUpdate` that mean nothing."""
    if buffers not in ("copy", "lerp", "skip"):
        raise ValueError(f"buffers: expected 'copy', 'lerp' or 'skip', got {buffers!r}")
    if isinstance(every, bool) or not isinstance(every, int):
        raise TypeError(f"every: expected an integer, got {every!r}")
    if every < 1:
        raise ValueError(f"every: expected at least 1, got {every}")


def check_count(count: object) -> None:
    """Refuse what is no number of steps."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ValueError(f"state: count: expected a non-negative integer, got {count!r}")


def checked_state(state: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
    """Return the count and the masters of a state that has nothing else."""
    if not isinstance(state, Mapping):
        raise TypeError(f"state: expected a mapping, got {type(state).__name__}")
    if set(state) != {"count", "masters"}:
        raise ValueError(f"state: expected count and masters, got {sorted(map(str, state))}")
    count, masters = state["count"], state["masters"]
    check_count(count)
    if not isinstance(masters, Mapping):
        raise TypeError(f"state: masters: expected a mapping, got {type(masters).__name__}")
    return count, masters


def _check_range(tau: float) -> float:
    if not 0.0 <= tau <= 1.0:
        raise ValueError(f"tau: expected a number in [0, 1], got {tau}")
    return tau
