# SPDX-License-Identifier: MIT
"""Full rings of transitions with any number of fields, of the libraries that take such: calls that draw minibatches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from absence import require
from experiment import Contestant
from timing import Call
from workloads import Columns

import fastreplay as fr

ROW_BYTES = 256
_FLOATS = ROW_BYTES // 4
_CHUNK = 4096


def _contents(num_fields: int, numbers: np.ndarray[Any, Any]) -> Columns:
    """Return the transitions with the given numbers, whose every value names the transition and the field."""
    shape = (len(numbers), _FLOATS // num_fields)
    values = [np.broadcast_to((numbers * _FLOATS + field)[:, None], shape) for field in range(num_fields)]
    return {f"field_{field}": np.ascontiguousarray(value, np.float32) for field, value in enumerate(values)}


def _chunks(num_fields: int, capacity: int) -> Iterator[Columns]:
    for start in range(0, capacity, _CHUNK):
        yield _contents(num_fields, np.arange(start, min(start + _CHUNK, capacity)))


def _fastreplay(num_fields: int, capacity: int, batch_size: int) -> Call:
    fields = {name: (column.shape[1:], "float32") for name, column in _contents(num_fields, np.arange(1)).items()}
    buffer = fr.ReplayBuffer(capacity, fields, seed=0)
    for columns in _chunks(num_fields, capacity):
        buffer.extend(**columns)
    names, sample = tuple(fields), buffer.sample
    return lambda: dict(zip(names, tuple(sample(batch_size)), strict=True))


def _numpy(num_fields: int, capacity: int, batch_size: int) -> Call:
    chunks = list(_chunks(num_fields, capacity))
    arrays = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    rng = np.random.default_rng(0)

    def sample() -> dict[str, torch.Tensor]:
        i = rng.integers(0, capacity, batch_size)
        return {name: torch.from_numpy(array[i]) for name, array in arrays.items()}

    return sample


def _cpprb(num_fields: int, capacity: int, batch_size: int) -> Call:
    fields = {name: {"shape": column.shape[1:]} for name, column in _contents(num_fields, np.arange(1)).items()}
    buffer = require("cpprb").ReplayBuffer(capacity, fields)
    for columns in _chunks(num_fields, capacity):
        buffer.add(**columns)
    return lambda: {name: torch.from_numpy(array) for name, array in buffer.sample(batch_size).items()}


def _torchrl(num_fields: int, capacity: int, batch_size: int) -> Call:
    data, tensordict = require("torchrl.data"), require("tensordict").TensorDict
    buffer = data.ReplayBuffer(storage=data.LazyTensorStorage(capacity))
    for columns in _chunks(num_fields, capacity):
        tensors = {name: torch.from_numpy(column) for name, column in columns.items()}
        buffer.extend(tensordict(tensors, [len(columns["field_0"])]))
    return partial(buffer.sample, batch_size)


_MAKERS: Mapping[str, Callable[[int, int, int], Call]] = {
    "numpy": _numpy,
    "cpprb": _cpprb,
    "torchrl": _torchrl,
    "fastreplay": _fastreplay,
}
RIVALS = ("numpy", "cpprb", "torchrl")


def contestants(num_fields: int, capacity: int, batch_size: int) -> Mapping[str, Callable[[], Contestant]]:
    """Return how each is made, with a check of what its minibatches hold."""

    def make(name: str) -> Contestant:
        call = _MAKERS[name](num_fields, capacity, batch_size)
        return Contestant(call, check=partial(_check, call, num_fields, batch_size))

    return {name: partial(make, name) for name in _MAKERS}


def _check(call: Call, num_fields: int, batch_size: int) -> None:
    drawn = call()
    first = np.asarray(drawn["field_0"]).reshape(batch_size, -1)
    numbers = first[:, 0].astype(np.int64) // _FLOATS
    assert len(np.unique(numbers)) > 1, "one transition again and again"
    for name, expected in _contents(num_fields, numbers).items():
        assert np.array_equal(np.asarray(drawn[name]).reshape(expected.shape), expected), f"{name}: wrong content"
