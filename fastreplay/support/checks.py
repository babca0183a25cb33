# SPDX-License-Identifier: MIT
"""The checks that arguments go through. Each message names the argument."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, SupportsFloat

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    Seed = int | np.random.SeedSequence | np.random.Generator | None

# What torch can hold, known here so that naming it needs no torch.
TORCH_DTYPES = frozenset(
    ["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"]  # noqa: RUF005
    + ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]
)
_INT64 = np.dtype(np.int64)
_LARGEST_ADDRESS = 2**63 - 1
_MOST_AHEAD = 2**32  # minibatches; their list alone would take 32 GB


def checked_index(name: str, value: object) -> int:
    """Return an integer: of anything that has `__index__`, but no bool."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except (TypeError, RuntimeError):  # a tensor without memory raises the latter
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__} {value!r}") from None


def checked_count(name: str, value: object) -> int:
    """Return an integer of at least 1."""
    checked = checked_index(name, value)
    if checked <= 0:
        raise ValueError(f"{name}: expected at least 1, got {checked}")
    return checked


def checked_flag(name: str, value: object) -> bool:
    """Return a truth value: a bool of Python or NumPy."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected a bool, got {type(value).__name__} {value!r}")
    return bool(value)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse what is none of some words.

    Raises:
        TypeError: It is no string.
        ValueError: It is another.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected {' or '.join(map(repr, choices))}, got {value!r}")
    if value not in choices:
        raise ValueError(f"{name}: expected {' or '.join(map(repr, choices))}, got {value!r}")


def checked_batch_size(batch_size: object) -> int:
    """Return a number of transitions that memory could hold."""
    checked = checked_count("batch_size", batch_size)
    if checked > sys.maxsize:
        raise MemoryError(f"batch_size: {checked} transitions are more than memory can hold")
    return checked


def checked_depth(depth: object) -> int:
    """Return a number of minibatches that memory could hold."""
    checked = checked_count("depth", depth)
    if checked > _MOST_AHEAD:
        raise MemoryError(f"depth: {checked} minibatches are more than memory can hold")
    return checked


def checked_steps(steps: object) -> int | None:
    """Return a number of minibatches, None for no end."""
    if steps is None:
        return None
    checked = checked_index("steps", steps)
    if checked < 0:
        raise ValueError(f"steps: expected a non-negative integer or None, got {checked}")
    return min(checked, sys.maxsize)  # of which nobody will see the end


def imported(name: str) -> Any:
    """Return a module if somebody has imported it, else None.

    Without `sys.modules.get`: it locks where there is no GIL, and the child of a fork would wait forever for a lock
    that another thread had.
    """
    return sys.modules[name] if name in sys.modules else None  # noqa: SIM401 - as said


def is_masked(value: object) -> bool:
    """Return whether an array has masked entries; without importing what makes such arrays.

    NumPy imports it when it is first asked for: in the child of a fork another thread may have held its lock.
    """
    masked = imported("numpy.ma")
    kind = getattr(masked, "MaskedArray", None)
    return kind is not None and isinstance(value, kind) and bool(masked.is_masked(value))


def num_axes(value: object) -> int:
    """Return how many axes a value has; -1 where its rows are of several lengths."""
    try:
        return np.ndim(value)  # type: ignore[arg-type]
    except ValueError:
        return -1


def checked_addresses(name: str, addresses: object) -> NDArray[np.int64]:
    """Return slots or positions as (B,) int64."""
    if type(addresses) is np.ndarray and addresses.dtype is _INT64 and addresses.ndim == 1 and addresses.flags.carray:
        return addresses
    try:
        array = np.asarray(addresses)
    except (RuntimeError, TypeError, ValueError) as error:  # rows of several lengths; a tensor that requires grad
        raise TypeError(f"{name}: expected integers, got {addresses!r}") from error
    if array.dtype == object and all(type(address) is int for address in array.flat):
        if max(map(abs, array.flat), default=0) > _LARGEST_ADDRESS:
            raise IndexError(f"{name}: {max(array.flat, key=abs)} is out of range")
        array = array.astype(np.int64)
    if array.size == 0 and not isinstance(addresses, np.ndarray):
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {addresses!r}")
    if is_masked(addresses):
        raise ValueError(f"{name}: expected integers, got masked entries")
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one dimension, got shape {array.shape}")
    if array.dtype == np.uint64 and array.size and int(array.max()) > _LARGEST_ADDRESS:
        raise IndexError(f"{name}: {array.max()} is out of range")
    return np.require(array, np.int64, ("C", "ALIGNED"))


def checked_device(device: torch.device | str | int) -> torch.device | Literal["cpu"]:
    """Return the device, "cpu" without asking torch; raise where it cannot be had."""
    if isinstance(device, str) and device == "cpu":
        return "cpu"
    import torch

    try:
        checked = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise RuntimeError(f"device: {device!r} cannot be had: {error}") from None
    return "cpu" if checked.type == "cpu" else checked


def key_of(seed: Seed) -> tuple[int, int]:
    """Return a generator's key, two 64-bit numbers."""
    if isinstance(seed, np.random.Generator):
        seed = int(seed.integers(2**63))
    if not isinstance(seed, np.random.SeedSequence):
        if seed is not None:
            seed = checked_index("seed", seed)
            if seed < 0:
                raise ValueError(f"seed: expected a non-negative integer, got {seed}")
        seed = np.random.SeedSequence(seed)
    first, second = seed.generate_state(2, np.uint64)
    return int(first), int(second)


def readable_bytes(num_bytes: float) -> str:
    """Return a number of bytes in words, of three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def checked_float(name: str, value: SupportsFloat, expected: str) -> float:
    """Return a number, infinity where no float64 holds it.

    Raises:
        TypeError: It is none: several, complex, or a tensor without memory.
    """
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}: expected {expected}, got {value!r}") from None


def checked_number(name: str, value: object, least: float, most: float = math.inf) -> float:
    """Return a finite number in [least, most].

    Raises:
        TypeError, ValueError: It is none.
    """
    # To ask a protocol takes longer than the draw of a small minibatch, which asks for its beta.
    if type(value) is not float and (isinstance(value, (bool, str)) or not isinstance(value, SupportsFloat)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    number = checked_float(name, value, "a number")
    if not math.isfinite(number) or not least <= number <= most:
        bound = f"at least {least}" if most == math.inf else f"in [{least}, {most}]"
        raise ValueError(f"{name}: expected a number {bound}, got {value!r}")
    return number


def checked_bytes(argument: str, given: object) -> dict[str, NDArray[np.uint8]]:
    """Return bytes by name as arrays (n,) uint8, where they lie.

    Raises:
        TypeError: They are no bytes, or not by name.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(f"{argument}: expected a mapping of names to bytes, got {type(given).__name__}")
    data: dict[str, NDArray[np.uint8]] = {}
    for name, value in given.items():
        if not isinstance(name, str):
            raise TypeError(f"{argument}: expected names, got {name!r}")
        try:
            view = memoryview(value)
            data[name] = np.frombuffer(view.cast("B"), np.uint8) if view.nbytes else np.empty(0, np.uint8)
        except (TypeError, ValueError, BufferError) as error:
            raise TypeError(f"{argument}: {name}: expected contiguous bytes, got {type(value).__name__}") from error
    return data
