# SPDX-License-Identifier: MIT
"""What do sequences take, beside one copy of as many bytes from memory that no cache holds, and beside TorchRL?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from absence import require
from experiment import Contestant, Contestants, Experiment, Question, Result, itself
from floor import cold_copy, lines_s
from render import Columns, Table, by_title, medians, ratio
from timing import SECONDS

import fastreplay as fr

_EPISODE, _CHUNK = 1000, 10_000
_COPY, _LINES, _TORCHRL = "copy", "lines", "torchrl"
_LABELS = {
    "fastreplay": "fastreplay",
    _TORCHRL: "TorchRL `SliceSampler`",
    _COPY: "one cold `memcpy`",
    _LINES: "the records' cache lines, copied bare",
}
_LOW: dict[str, Any] = {
    "observation": (17,),
    "action": (6,),
    "next_observation": (17,),
    "reward": (),
    "done": ((), "bool"),
}
_IMAGES: dict[str, Any] = {"observation": ((64, 64, 3), "uint8"), "action": (6,), "reward": (), "done": ((), "bool")}


@dataclass(frozen=True)
class _Work:
    key: str
    fields: dict[str, Any]
    capacity: int
    lanes: int
    batch_size: int
    follow: fr.Sequence
    inserts: bool = False  # one transition before each minibatch

    @property
    def title(self) -> str:
        burn_in = f", burn_in={self.follow.burn_in}" if self.follow.burn_in else ""
        lanes = f", {self.lanes} lanes" if self.lanes > 1 else ""
        what = "64 by 64 by 3" if self.fields is _IMAGES else "cheetah"
        rest = ", an `add` before each" if self.inserts else ""
        return f"`Sequence({self.follow.length}{burn_in})`, {self.batch_size} of {what}{lanes}{rest}"


_WORK = (
    _Work("sequences-4", _LOW, 1_000_000, 1, 256, fr.Sequence(4), inserts=True),
    _Work("sequences-80", _LOW, 1_000_000, 1, 64, fr.Sequence(80, burn_in=40)),
    _Work("sequences-80-of-16-lanes", _LOW, 1_000_000, 16, 64, fr.Sequence(80, burn_in=40)),
    _Work("sequences-65", _IMAGES, 60_000, 1, 16, fr.Sequence(65)),
)


def at_scale(shrink: int = 1) -> list[Experiment]:
    """Return the experiments with their capacities divided by `shrink`."""
    return [
        Experiment(work.key, work.title, partial(_contestants, work, work.capacity // shrink), [_TORCHRL, _LINES])
        for work in _WORK
    ]


def _contestants(work: _Work, capacity: int) -> Contestants:
    made: Contestants = {
        "fastreplay": partial(_ours, work, capacity),
        _COPY: partial(_copy, work, capacity),
        _LINES: partial(_lines, work, capacity),
    }
    return {**made, _TORCHRL: partial(_torchrl, work, capacity)} if work.inserts else made


def _rows(work: _Work, start: int, count: int) -> dict[str, Any]:
    """Return transitions that tell their numbers, of trajectories of a thousand steps a lane."""
    number = np.arange(start, start + count)
    schema = fr.Schema(work.fields)
    columns = {}
    for name, field in schema.items():
        value = (number % 251 if field.dtype == np.uint8 else number).astype(field.dtype)
        columns[name] = np.broadcast_to(value.reshape(-1, *[1] * len(field.shape)), (count, *field.shape))
    return {**columns, "done": number // work.lanes % _EPISODE == _EPISODE - 1}


def _filled(work: _Work, capacity: int) -> Any:
    buffer: Any = fr.ReplayBuffer(capacity, work.fields, lanes=work.lanes, ends=["done"], seed=0)
    for start in range(0, capacity, _CHUNK):
        rows = _rows(work, start, min(_CHUNK, capacity - start))
        buffer.extend(**rows, lanes=np.arange(start, start + len(rows["done"])) % work.lanes)
    return buffer


def _ours(work: _Work, capacity: int) -> Contestant:
    buffer = _filled(work, capacity)
    draw = partial(buffer.sample, work.batch_size, follow=work.follow)
    row = {name: value[0] for name, value in _rows(work, capacity, 1).items()}

    def between_inserts() -> Any:
        buffer.add(**row)
        return draw()

    return Contestant(between_inserts if work.inserts else draw, check=partial(_check, work, capacity, draw))


def _copy(work: _Work, capacity: int) -> Contestant:
    batch = _filled(work, min(capacity, _CHUNK)).sample(work.batch_size, follow=work.follow)
    return Contestant(cold_copy(sum(value.numel() * value.element_size() for value in batch.values())))


def _lines(work: _Work, capacity: int) -> Contestant:
    buffer = _filled(work, capacity)
    pieces = [(step * work.lanes, tuple(buffer.schema)) for step in range(work.follow.burn_in + work.follow.length)]
    return Contestant(lambda: {SECONDS: lines_s(buffer, work.batch_size, pieces)}, clock=itself)


def _torchrl(work: _Work, capacity: int) -> Contestant:
    data, tensordict = require("torchrl.data"), require("tensordict").TensorDict
    slices = data.SliceSampler(slice_len=work.follow.length, end_key="done", strict_length=False)
    buffer = data.ReplayBuffer(
        storage=data.LazyTensorStorage(capacity), sampler=slices, batch_size=work.batch_size * work.follow.length
    )

    def rows(start: int, count: int) -> Any:
        columns = {name: torch.as_tensor(value.copy()) for name, value in _rows(work, start, count).items()}
        return tensordict({**columns, "done": columns["done"][:, None]}, [count])

    for start in range(0, capacity, _CHUNK):
        buffer.extend(rows(start, min(_CHUNK, capacity - start)))
    row = rows(capacity, 1)

    def between_inserts() -> Any:
        buffer.extend(row)
        return buffer.sample()

    return Contestant(between_inserts)


def _check(work: _Work, capacity: int, draw: Any) -> None:
    """Check the steps of each row by the numbers that they tell.

    Raises:
        AssertionError: One is wrong.
    """
    batch = draw().numpy()
    step = np.arange(work.follow.burn_in + work.follow.length) - work.follow.burn_in
    number = batch.ticket[:, None] + step * work.lanes
    there = batch.mask
    assert there[:, work.follow.burn_in].all(), "fastreplay: the drawn row is missing"
    inserted = number >= capacity  # what was added between draws tells another number
    assert (inserted | ~there | (batch.reward == number)).all(), "fastreplay: a step is wrong"
    beyond = (batch.ticket // work.lanes % _EPISODE)[:, None] + step
    assert (~there | inserted | ((beyond >= 0) & (beyond < _EPISODE))).all(), "fastreplay: a trajectory was left"


def _tables(results: Sequence[Result]) -> list[Table]:
    note = "µs per call, medians over rounds; ratios are medians of the rounds' ratios."
    columns: Columns = {
        **medians(results, _LABELS),
        "over TorchRL": lambda result: ratio(result.speedup(_TORCHRL)),
        "time of ours over the copy's": lambda result: ratio(result.slowdown((_COPY,))),
        "over the bare lines'": lambda result: ratio(result.slowdown((_LINES,))),
    }
    return [Table("Sequences", note, "work", by_title(results), columns)]


QUESTION = Question(
    "sequences",
    lambda is_quick: at_scale(50) if is_quick else at_scale(),
    _tables,
    _LABELS,
    distributions=("fastreplay", "numpy", "torch", "torchrl"),
    rounds=(31, 5e-3),
    quick_rounds=(2, 5e-5),
)
