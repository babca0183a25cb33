# SPDX-License-Identifier: MIT
"""TorchRL's replay buffer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from absence import require
from timing import Call
from workloads import FIELD_NAMES, Columns, Transition, Workload, chunks

from peers.peer import Peer, PrioritizedPeer


class TorchRL(Peer):
    """torchrl.data.ReplayBuffer over a LazyTensorStorage; takes and gives TensorDicts, which its collectors make."""

    name = "torchrl"
    label = "TorchRL"

    def _build(self, workload: Workload, capacity: int) -> None:  # noqa: ARG002
        data, self.tensordict = require("torchrl.data"), require("tensordict").TensorDict
        self.buffer = data.ReplayBuffer(storage=data.LazyTensorStorage(capacity))

    def _as_tensordict(self, columns: Mapping[str, Any], batch_shape: list[int]) -> Any:
        # Its storage has the dtypes of the first insert, and refuses others: a caller gives flags as there.
        dtypes = {name: getattr(torch, spec.dtype) for name, spec in self.workload.fields.items()}
        return self.tensordict(
            {name: torch.as_tensor(value, dtype=dtypes[name]) for name, value in columns.items()}, batch_shape
        )

    def fill(self) -> None:
        for _, columns in chunks(self.workload, self.capacity):
            self.extender([columns])()

    def adder(self, rows: Sequence[Transition]) -> Call:
        columns = (dict(zip(FIELD_NAMES, row, strict=True)) for row in rows)
        return _each(self.buffer.add, [self._as_tensordict(each, []) for each in columns])

    def extender(self, blocks: Sequence[Columns]) -> Call:
        return _each(self.buffer.extend, [self._as_tensordict(block, [len(block["reward"])]) for block in blocks])

    def sampler(self, batch_size: int) -> Call:
        return partial(self.buffer.sample, batch_size)

    def fields(self, batch: Any) -> Mapping[str, torch.Tensor]:
        return {name: batch[name] for name in FIELD_NAMES}


class TorchRLPrioritized(TorchRL, PrioritizedPeer):
    """torchrl.data.TensorDictPrioritizedReplayBuffer over a LazyTensorStorage; trees in C++."""

    kinds = PrioritizedPeer.kinds

    def _build(self, workload: Workload, capacity: int) -> None:  # noqa: ARG002
        data, self.tensordict = require("torchrl.data"), require("tensordict").TensorDict
        self.buffer = data.TensorDictPrioritizedReplayBuffer(
            alpha=0.6, beta=0.4, storage=data.LazyTensorStorage(capacity)
        )

    def fill(self) -> None:
        PrioritizedPeer.fill(self)

    def fill_with(self, priorities: npt.NDArray[np.float32]) -> None:
        TorchRL.fill(self)
        self.buffer.update_priority(torch.arange(self.capacity), torch.from_numpy(priorities))

    def sampler(self, batch_size: int) -> Call:
        return self.drawer(batch_size)

    def drawer(self, batch_size: int) -> Call:
        return partial(self.buffer.sample, batch_size)

    def update(self, drawn: Any, priorities: npt.NDArray[np.float32]) -> None:
        self.buffer.update_priority(drawn["index"], torch.from_numpy(priorities))

    def fields(self, batch: Any) -> Mapping[str, torch.Tensor]:
        return TorchRL.fields(self, batch)


def _each(store: Callable[[Any], object], rows: Sequence[Any]) -> Call:
    def run() -> None:
        for row in rows:
            store(row)

    return run
