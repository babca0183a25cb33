# SPDX-License-Identifier: MIT
"""What does a ring in a file take beside one in memory, where all of it is in memory anyway?

bench/ring_larger_than_memory.py measures one that is not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from experiment import Contestant, Contestants, Experiment, Question, Result
from render import Columns, Table, by_title, medians, ratio

import fastreplay as fr

_FIELDS: dict[str, Any] = {
    "observation": (17,),
    "action": (6,),
    "reward": (),
    "next_observation": (17,),
    "terminated": ((), "bool"),
}
_CAPACITY = 1_000_000
_ROWS = 5000
_IN_MEMORY = "memory"
_LABELS = {"fastreplay": "in a file", _IN_MEMORY: "in memory"}
_WORK = {
    "ring-file-add": "`add` one",
    "ring-file-extend": f"`extend` of {_ROWS}",
    "ring-file-sample-32": "`sample(32)`",
    "ring-file-sample-256": "`sample(256)`",
    "ring-file-sample-4096": "`sample(4096)`",
}


def at_scale(shrink: int = 1) -> list[Experiment]:
    """Return the experiments with their capacities divided by `shrink`."""
    capacity = _CAPACITY // shrink
    return [Experiment(key, title, partial(_contestants, key, capacity), [_IN_MEMORY]) for key, title in _WORK.items()]


def _contestants(work: str, capacity: int) -> Contestants:
    return {name: partial(_made, name, work, capacity) for name in _LABELS}


def _made(name: str, work: str, capacity: int) -> Contestant:
    folder = tempfile.TemporaryDirectory()
    where: Any = {} if name == _IN_MEMORY else {"path": Path(folder.name) / "ring"}
    buffer: Any = fr.ReplayBuffer(capacity, _FIELDS, output="numpy", seed=0, **where)
    numbers = np.arange(_ROWS, dtype=np.float32)
    wide = np.tile(numbers[:, None], 17)
    columns = (wide, wide[:, :6].copy(), numbers, wide, np.zeros(_ROWS, bool))
    row = tuple(column[3] for column in columns)
    for _ in range(0, capacity, _ROWS):
        buffer.extend(*columns)
    size = int(work.rsplit("-", maxsplit=1)[-1]) if "sample" in work else 0
    calls: dict[str, Callable[[], Any]] = {
        "ring-file-add": lambda: buffer.add(*row),
        "ring-file-extend": lambda: buffer.extend(*columns),
    }

    def check() -> None:
        batch = buffer.sample(64)
        assert (batch.observation == batch.reward[:, None]).all(), f"{name}: a row is another"
        assert folder.name  # which is there as long as this

    return Contestant(calls.get(work, lambda: buffer.sample(size)), check=check)


def _tables(results: Sequence[Result]) -> list[Table]:
    note = (
        f"µs per call, medians over rounds; ratios are medians of the rounds' ratios. {_CAPACITY:,} transitions of "
        "cheetah, NumPy output; a full ring, on the disk of this machine and in its page cache."
    )
    columns: Columns = {
        **medians(results, _LABELS),
        "time over memory": lambda result: ratio(result.slowdown((_IN_MEMORY,))),
    }
    return [Table("Rings in files", note, "work", by_title(results), columns)]


QUESTION = Question(
    "ring_files",
    lambda is_quick: at_scale(100) if is_quick else at_scale(),
    _tables,
    _LABELS,
    distributions=("fastreplay", "numpy"),
    rounds=(15, 0.05),
    quick_rounds=(2, 1e-3),
)
