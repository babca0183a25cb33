# SPDX-License-Identifier: MIT
"""Minibatches of a ring that is four times as large as memory, beside one `pread` a row.

The process gives itself so little memory by a cgroup, which takes root; the file is made in the folder that is named.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastreplay as fr
from fastreplay.buffer import on_disk as disk

_FIELDS: dict[str, Any] = {
    "observation": (17,),
    "action": (6,),
    "reward": (),
    "next_observation": (17,),
    "terminated": ((), "bool"),
}
_LIMIT = 336 << 20
_BATCH, _TURNS, _CALLS = 256, 25, 4
_ROWS = 20_000
_GROUPS = (  # folder, the file of the limit: of cgroups of version 1, and of 2
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max"),
)


def fill(path: Path, capacity: int) -> None:
    """Make a ring in a file, all of which the disk has."""
    buffer: Any = fr.ReplayBuffer(capacity, _FIELDS, output="numpy", path=path)
    for first in range(0, capacity, _ROWS):
        numbers = np.arange(first, first + _ROWS, dtype=np.float32)
        wide = np.tile(numbers[:, None], 17)
        buffer.extend(wide, wide[:, :6].copy(), numbers, wide, np.zeros(_ROWS, bool))
    buffer.flush()


def limit_memory() -> None:
    """Let this process have so little memory, page cache included."""
    for folder, name in _GROUPS:
        group = folder / f"ring_larger_than_memory_{os.getpid()}"
        try:
            group.mkdir()
            (group / name).write_text(str(_LIMIT))
            (group / "cgroup.procs").write_text(str(os.getpid()))
        except OSError:
            continue
        return
    sys.exit("no cgroup can be made here: it takes root, and the controller of memory")


def by_pread(file: int, capacity: int, first: int, stride: int) -> Callable[[], None]:
    """Read as many rows one after another."""
    rng = np.random.default_rng(0)
    rows = np.empty((_BATCH, 172), np.uint8)

    def read() -> None:
        for i, row in enumerate(rng.integers(capacity, size=_BATCH)):
            rows[i] = np.frombuffer(os.pread(file, 172, first + int(row) * stride), np.uint8)

    return read


def measure(path: Path, capacity: int) -> None:
    """Print medians, by turns."""
    limit_memory()
    vars(disk)["memory_limit"] = lambda: _LIMIT
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    buffer: Any = fr.ReplayBuffer(capacity, _FIELDS, output="numpy", path=path)
    stride = buffer._ring.records.record_bytes
    calls = {"fastreplay": lambda: buffer.sample(_BATCH), "pread": by_pread(file, capacity, 4 << 20, stride)}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_TURNS):
        for name, call in calls.items():
            began = time.perf_counter()
            for _ in range(_CALLS):
                call()
            times[name].append((time.perf_counter() - began) / _CALLS)
    batch = buffer.sample(_BATCH)
    assert (batch.observation == batch.reward[:, None]).all(), "a row is another"
    ratios = [b / a for a, b in zip(times["fastreplay"], times["pread"], strict=True)]
    size = path.stat().st_size
    print(f"{size / 2**20:.0f} MiB of transitions in {_LIMIT / 2**20:.0f} MiB of memory, sample({_BATCH}), medians:")
    for name, seconds in times.items():
        print(f"  {name:10} {statistics.median(seconds) * 1e3:7.2f} ms")
    print(f"  one pread a row takes {statistics.median(ratios):.1f} times as long")


def main() -> None:
    """Fill in one process, and measure in another, whose memory is limited from the first page on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path())
    parser.add_argument("--there", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    path, capacity = arguments.folder / "ring_larger_than_memory.fr", 4 * _LIMIT // 192 // _ROWS * _ROWS
    if arguments.there:
        return measure(path, capacity)
    try:
        fill(path, capacity)
        subprocess.run([sys.executable, __file__, str(arguments.folder), "--there"], check=True)
    finally:
        path.unlink(missing_ok=True)
    return None


if __name__ == "__main__":
    main()
