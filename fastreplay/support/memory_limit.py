# SPDX-License-Identifier: MIT
"""How much memory there is, so that an absurd request is refused before it is made."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

from fastreplay import _core

if TYPE_CHECKING:
    from collections.abc import Callable

StorageT = TypeVar("StorageT")

_MEMINFO = "/proc/meminfo"
_CGROUP_LIMIT = "/sys/fs/cgroup/memory.max"


# More than any machine addresses, and few enough that the core's sums of sizes fit into 64 bits.
_MOST_BYTES = 2**60


def new_ring(
    sizes: list[tuple[int, int]],
    capacity: int,
    name: str,
    groups: list[tuple[list[int], int]],
    num_spare: int,
    *,
    file: _core.MappedFile | None = None,
    has_links: bool = False,
) -> _core.Ring:
    """Make a ring, as `new_records` makes records.

    Args:
        sizes: As there.
        capacity: As there.
        name: As there.
        groups: Which of the fields have frames in common, and how many frames a row of each has.
        num_spare: Transitions that are kept longer than for the reader.
        file: What it lies in, in place of memory.
        has_links: Whether small records have room for what links them to others.
    """
    num_bytes = (capacity + num_spare) * _core.record_bytes(sizes, groups, has_links)
    if file is None:
        check_memory(name, f"{capacity} transitions", num_bytes)
    return _made(
        lambda: _core.Ring(sizes, capacity + num_spare, groups, num_spare, file, has_links), num_bytes, capacity, name
    )


def new_records(sizes: list[tuple[int, int]], capacity: int, name: str) -> _core.Records:
    """Make records.

    Args:
        sizes: Of their fields.
        capacity: Transitions, at least 1.
        name: What the caller calls the capacity.

    Raises:
        MemoryError: They cannot be had; the message says how much they would take.
    """
    num_bytes = capacity * _core.record_bytes(sizes)
    return _made(lambda: _core.Records(sizes, capacity), num_bytes, capacity, name)


def _made(make: Callable[[], StorageT], num_bytes: int, capacity: int, name: str) -> StorageT:
    try:
        if num_bytes <= _MOST_BYTES:
            return make()
    except MemoryError:
        pass
    raise MemoryError(f"{name}: {capacity} transitions would take {num_bytes:,} bytes, which cannot be had")


def check_memory(name: str, things: str, num_bytes: int) -> None:
    """Refuse what cannot fit.

    Args:
        name: What the caller calls the number of things.
        things: How many of what.
        num_bytes: What they take, at least.

    Raises:
        MemoryError: More bytes than the machine, or the container, has at all, or than any has where that is not known.
    """
    limit = memory_limit()
    if limit is not None and num_bytes > limit:
        raise MemoryError(f"{name}: {things} would take {num_bytes:,} bytes, {limit:,} are available on this machine")
    if num_bytes > _MOST_BYTES:
        raise MemoryError(f"{name}: {things} would take {num_bytes:,} bytes, which cannot be had")


def memory_limit() -> int | None:
    """Return the bytes of memory and swap that this process may use; None where it cannot be told."""
    limits = [limit for limit in (_physical(), _container()) if limit is not None]
    return min(limits, default=None)


def _physical() -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in _read(_MEMINFO).splitlines())
        return sum(int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "SwapTotal"))
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _container() -> int | None:
    try:
        return int(_read(_CGROUP_LIMIT))
    except (OSError, ValueError):  # "max": no limit
        return None


def _read(path: str) -> str:
    with open(path) as file:  # noqa: PTH123 - pathlib costs 5 ms of import time
        return file.read()
