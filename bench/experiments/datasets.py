# SPDX-License-Identifier: MIT
"""What does a file of D4RL's shape take into a buffer, beside reading all of it, and beside a loop of `add`?"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
    "truncated": ((), "bool"),
}
_COLUMNS = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
_ROWS = 1_000_000
_LENGTH = 1000  # of a trajectory
_WHOLE, _LOOP, _READ, _UNPACKED = "whole", "loop", "read", "unpacked"
_LABELS = {
    "fastreplay": "`load_hdf5`",
    _WHOLE: "all read, one `extend`",
    _LOOP: "all read, a loop of `add`",
    _READ: "all read, no buffer",
    _UNPACKED: "chunks unpacked, no more",
}
_WORK: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "hdf5-plain": ("contiguous", {}),
    "hdf5-gzip": ("compressed, as D4RL's are", {"compression": "gzip"}),
}


def at_scale(shrink: int = 1) -> list[Experiment]:
    """Return the experiments with their rows divided by `shrink`."""
    return [
        Experiment(key, title, partial(_contestants, options, _ROWS // shrink))
        for key, (title, options) in _WORK.items()
    ]


class _File:
    """A file as long as it is referred to."""

    def __init__(self, options: Mapping[str, Any], num_rows: int) -> None:
        import h5py

        self._made = tempfile.TemporaryDirectory()
        self.path = Path(self._made.name) / "data.hdf5"
        rng = np.random.default_rng(0)
        walk = rng.normal(size=(num_rows + 1, 17)).astype(np.float32)
        row = np.arange(num_rows)
        columns = {
            "observations": walk[:-1],
            "actions": rng.uniform(-1, 1, (num_rows, 6)).astype(np.float32),
            "rewards": rng.normal(size=num_rows).astype(np.float32),
            "next_observations": walk[1:],
            "terminals": np.zeros(num_rows, bool),
            "timeouts": row % _LENGTH == _LENGTH - 1,
        }
        with h5py.File(self.path, "w") as file:
            for name, column in columns.items():
                file.create_dataset(name, data=column, **options)


def _contestants(options: Mapping[str, Any], num_rows: int) -> Contestants:
    file = _File(options, num_rows)
    makers: Contestants = {
        "fastreplay": partial(_contestant, file, num_rows, _stream),
        _WHOLE: partial(_contestant, file, num_rows, _read_whole),
        _LOOP: partial(_contestant, file, num_rows, _read_and_add),
        _READ: lambda: Contestant(lambda: _whole(file.path)),
    }
    return {**makers, _UNPACKED: partial(_unpacked, file)} if options else makers


def _unpacked(file: _File) -> Contestant:
    """Unpack what lies in memory as it lies in the file, by as many threads: what remains if all else took no time."""
    import deflate
    import h5py

    packed: list[tuple[bytes, int]] = []
    with h5py.File(file.path) as opened:
        for dataset in map(opened.get, _COLUMNS):
            num_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
            places = [dataset.id.get_chunk_info(i).chunk_offset for i in range(dataset.id.get_num_chunks())]
            packed += [(dataset.id.read_direct_chunk(place)[1], num_bytes) for place in places]
    num_threads = fr.get_num_threads()
    threads = ThreadPoolExecutor(num_threads)

    def unpack(share: Sequence[tuple[bytes, int]]) -> None:
        for data, num_bytes in share:
            deflate.zlib_decompress(data, num_bytes)

    shares = [packed[i::num_threads] for i in range(num_threads)]
    return Contestant(lambda: list(threads.map(unpack, shares)))


def _contestant(file: _File, num_rows: int, fill: Any) -> Contestant:
    buffer: Any = fr.ReplayBuffer(num_rows, _FIELDS, output="numpy", seed=0)

    def call() -> None:
        buffer.clear()
        fill(buffer, file.path)

    def check() -> None:
        call()
        assert len(buffer) == num_rows
        newest = buffer[-5:]
        assert (newest.next_observation[:-1] == newest.observation[1:]).all()
        assert newest.truncated.tolist() == [False] * 4 + [True]

    return Contestant(call, check=check)


def _stream(buffer: Any, path: Path) -> None:
    buffer.load_hdf5(path, progress=False)


def _whole(path: Path) -> list[Any]:
    import h5py

    with h5py.File(path) as file:
        return [file[name][:] for name in _COLUMNS]


def _read_whole(buffer: Any, path: Path) -> None:
    buffer.extend(*_whole(path))


def _read_and_add(buffer: Any, path: Path) -> None:
    add = buffer.add
    for row in zip(*_whole(path), strict=True):
        add(*row)


def _tables(results: Sequence[Result]) -> list[Table]:
    note = (
        f"µs per call, medians over rounds; ratios are medians of the rounds' ratios. {_ROWS:,} rows of 17 and 6 "
        "numbers with next observations, files that are in memory, into a buffer that was full before."
    )
    columns: Columns = {
        **medians(results, _LABELS),
        "speed beside one extend": lambda result: ratio(result.speedup(_WHOLE)),
        "beside a loop": lambda result: ratio(result.speedup(_LOOP)),
    }
    return [Table("Datasets", note, "layout", by_title(results), columns)]


QUESTION = Question(
    "datasets",
    lambda is_quick: at_scale(100) if is_quick else at_scale(),
    _tables,
    _LABELS,
    distributions=("fastreplay", "numpy", "h5py", "deflate"),
    num_threads=lambda: len(os.sched_getaffinity(0)),  # which unpack
    rounds=(3, 1e-3),
    quick_rounds=(2, 5e-5),
)
