# SPDX-License-Identifier: MIT
"""What do a checkpoint, the next one and loading it take, beside the same bytes written plainly, and pickle?

FASTREPLAY_CHECKPOINT_MB=4000 python bench/run.py checkpoints    of so many megabytes in place of 250, without pickle
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from experiment import Contestant, Contestants, Experiment, Question, Result, itself
from render import Columns, Table, by_title, medians, ratio
from timing import SECONDS, Reading

import fastreplay as fr

_FIELDS: dict[str, Any] = {
    "observation": (17,),
    "action": (6,),
    "reward": (),
    "next_observation": (17,),
    "terminated": ((), "bool"),
    "truncated": ((), "bool"),
}
_ROW_BYTES = sum(field.row_bytes for field in fr.Schema(_FIELDS).values())
_MEGABYTES = int(os.environ.get("FASTREPLAY_CHECKPOINT_MB", "250"))
_CAPACITY = _MEGABYTES * 10**6 // _ROW_BYTES
_MOST_PICKLED = 1000  # megabytes
_ROWS = 5000
_PLAIN, _PICKLE = "plain", "pickle"
_LABELS = {
    "fastreplay": "fastreplay",
    _PLAIN: "the bytes, plainly",
    _PICKLE: "`pickle`, and `fsync`",
}
_WORK = {
    "checkpoint-save": "`save`",
    "checkpoint-save-again": "`save` after 1 % new transitions",
    "checkpoint-load": "`load`, of files that are in memory",
    "checkpoint-load-fresh": "the same in a new process, beside reading into memory that is as new",
    "checkpoint-load-disk": "the same again, of files that the disk alone has",
}
# Seconds, in a process of its own: new memory costs a virtual machine more than what is used again.
_LOAD = """
import sys, time
import fastreplay as fr
fr.ReplayBuffer.load(sys.argv[2])  # what is imported for it
begin = time.perf_counter()
buffer = fr.ReplayBuffer.load(sys.argv[1])
print(time.perf_counter() - begin)
"""
_READ = """
import os, sys, time
import numpy as np
begin = time.perf_counter()
data = np.empty(os.path.getsize(sys.argv[1]), np.uint8)
with open(sys.argv[1], "rb", buffering=0) as file:
    for start in range(0, len(data), 1 << 20):
        file.readinto(memoryview(data)[start : start + (1 << 20)])
print(time.perf_counter() - begin)
"""


def at_scale(shrink: int = 1) -> list[Experiment]:
    """Return the experiments with their capacities divided by `shrink`."""
    capacity = _CAPACITY // shrink
    return [Experiment(key, title, partial(_contestants, key, capacity), [_PLAIN]) for key, title in _WORK.items()]


def _contestants(work: str, capacity: int) -> Contestants:
    makers = {"fastreplay": _ours, _PLAIN: _plain, _PICKLE: _pickle}
    if work.endswith(("fresh", "disk")):
        makers = {"fastreplay": _ours_fresh, _PLAIN: _plain_fresh}
    elif _MEGABYTES > _MOST_PICKLED:
        del makers[_PICKLE]
    return {name: partial(make, work, capacity) for name, make in makers.items()}


class _Folder:
    """A folder as long as it is referred to."""

    def __init__(self) -> None:
        self._made = tempfile.TemporaryDirectory()
        self.path = Path(self._made.name)


def _filled(capacity: int) -> Any:
    buffer: Any = fr.ReplayBuffer(capacity, _FIELDS, output="numpy", seed=0)
    _insert(buffer, capacity)
    return buffer


def _insert(buffer: Any, num_rows: int) -> None:
    for start in range(0, num_rows, _ROWS):
        numbers = np.arange(start, min(num_rows, start + _ROWS), dtype=np.float32)
        wide = np.broadcast_to(numbers[:, None], (len(numbers), 17))
        no = np.zeros(len(numbers), bool)
        buffer.extend(wide, wide[:, :6], numbers, wide, no, no)


def _ours(work: str, capacity: int) -> Contestant:
    buffer, folder = _filled(capacity), _Folder()
    buffer.save(folder.path / "kept")
    _be_cached(folder.path / "kept", is_wanted=True)

    def save() -> None:
        path = folder.path / "new"
        shutil.rmtree(path, ignore_errors=True)
        buffer.save(path)

    def save_again() -> None:
        _insert(buffer, capacity // 100)
        buffer.save(folder.path / "kept")

    def load() -> Any:
        return fr.ReplayBuffer.load(folder.path / "kept")

    def check() -> None:
        assert (load()[:].reward == buffer[:].reward).all(), "fastreplay: what was loaded is something else"

    return Contestant({"save": save, "again": save_again, "load": load}[work.rsplit("-", maxsplit=1)[-1]], check=check)


def _ours_fresh(work: str, capacity: int) -> Contestant:
    folder = _Folder()
    for name, count in (("kept", capacity), ("few", 10)):
        _filled(count).save(folder.path / name)
    return Contestant(lambda: _in_child(work, _LOAD, folder.path / "kept", folder.path / "few"), clock=itself)


def _plain_fresh(work: str, capacity: int) -> Contestant:
    folder = _Folder()
    (folder.path / "plain").write_bytes(bytes(capacity * _ROW_BYTES))
    return Contestant(lambda: _in_child(work, _READ, folder.path / "plain"), clock=itself)


def _in_child(work: str, code: str, *paths: Path) -> Reading:
    _be_cached(paths[0], is_wanted=not work.endswith("disk"))
    done = subprocess.run([sys.executable, "-c", code, *map(str, paths)], check=True, capture_output=True, text=True)
    return {SECONDS: float(done.stdout)}


def _be_cached(path: Path, *, is_wanted: bool) -> None:
    """Let the system have a file, or those of a folder, in memory, or not."""
    for each in [*path.iterdir()] if path.is_dir() else [path]:
        with each.open("rb") as file:
            if is_wanted:
                while file.read(1 << 20):
                    pass
            else:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _plain(work: str, capacity: int) -> Contestant:
    """Write as many bytes as there are new, from memory that is there, or read them."""
    folder = _Folder()
    rows = capacity // 100 if work.endswith("again") else capacity
    data: Any = np.ones(rows * _ROW_BYTES, np.uint8)

    def write() -> None:
        (folder.path / "plain").unlink(missing_ok=True)
        with (folder.path / "plain").open("wb", buffering=0) as file:
            for start in range(0, len(data), 1 << 20):
                file.write(memoryview(data)[start : start + (1 << 20)])
            os.fsync(file.fileno())

    def read() -> None:
        with (folder.path / "plain").open("rb", buffering=0) as file:
            for start in range(0, len(data), 1 << 20):
                file.readinto(memoryview(data)[start : start + (1 << 20)])

    write()
    return Contestant(read if work.endswith("load") else write)


def _pickle(work: str, capacity: int) -> Contestant:
    buffer, folder = _filled(capacity), _Folder()

    def dump() -> None:
        with (folder.path / "pickle").open("wb") as file:
            pickle.dump(buffer, file)
            file.flush()
            os.fsync(file.fileno())

    def load() -> Any:
        with (folder.path / "pickle").open("rb") as file:
            return pickle.load(file)

    dump()
    return Contestant(load if work.endswith("load") else dump)


def _tables(results: Sequence[Result]) -> list[Table]:
    note = (
        f"µs per call, medians over rounds; ratios are medians of the rounds' ratios. {_CAPACITY:,} transitions of "
        f"cheetah, {_MEGABYTES} MB, on the disk of this machine; all but `load` wait until it has them."
    )
    columns: Columns = {
        **medians(results, _LABELS),
        "time over plain": lambda result: ratio(result.slowdown((_PLAIN,))),
    }
    return [Table("Checkpoints", note, "work", by_title(results), columns)]


QUESTION = Question(
    "checkpoints",
    lambda is_quick: at_scale(100) if is_quick else at_scale(),
    _tables,
    _LABELS,
    distributions=("fastreplay", "numpy"),
    rounds=(5, 1e-3),
    quick_rounds=(2, 5e-5),
)
