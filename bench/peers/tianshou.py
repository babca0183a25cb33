# SPDX-License-Identifier: MIT
"""Tianshou's replay buffer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from absence import require
from timing import Call
from workloads import Columns, Transition, Workload, chunks

from peers.peer import Peer

_NAMES = ("obs", "act", "obs_next", "rew", "terminated")  # in the order of FIELD_NAMES


class Tianshou(Peer):
    """tianshou.data.ReplayBuffer, VectorReplayBuffer; takes and gives Batches, which its collectors make."""

    name = "tianshou"
    label = "Tianshou"

    def _build(self, workload: Workload, capacity: int) -> None:  # noqa: ARG002
        data = require("tianshou.data")
        self.batch = data.Batch
        many = self.num_envs > 1
        self.buffer = data.VectorReplayBuffer(capacity, self.num_envs) if many else data.ReplayBuffer(capacity)

    def fill(self) -> None:
        # As its from_data does it, without a million Python calls.
        dtypes = {"rew": np.float64, "terminated": bool}  # what it makes of them
        columns = {
            name: np.empty((self.capacity, *spec.shape), dtypes.get(name, spec.dtype))
            for name, spec in zip(_NAMES, self.workload.fields.values(), strict=True)
        }
        for start, some in chunks(self.workload, self.capacity):
            for array, values in zip(columns.values(), some.values(), strict=True):
                array[start : start + len(values)] = values
        columns["truncated"] = np.zeros(self.capacity, bool)
        self.buffer.set_batch(self.batch(**columns, done=columns["terminated"]))
        for each in self.buffer.buffers if self.num_envs > 1 else [self.buffer]:
            each._size = each.maxsize
        if self.num_envs > 1:
            self.buffer._lengths[:] = [each.maxsize for each in self.buffer.buffers]

    def adder(self, rows: Sequence[Transition]) -> Call:
        flags = {"truncated": np.bool_(False), "info": {}}
        return self._adding([self.batch(**dict(zip(_NAMES, row, strict=True)), **flags) for row in rows])

    def extender(self, blocks: Sequence[Columns]) -> Call:
        flags = {"truncated": np.zeros(self.num_envs, bool)}
        return self._adding([self.batch(**dict(zip(_NAMES, block.values(), strict=True)), **flags) for block in blocks])

    def _adding(self, prepared: Sequence[Any]) -> Call:
        add = self.buffer.add

        def run() -> None:
            for batch in prepared:
                add(batch)

        return run

    def sampler(self, batch_size: int) -> Call:
        sample = self.buffer.sample

        def run() -> tuple[torch.Tensor, ...]:
            drawn, _ = sample(batch_size)
            return tuple(torch.from_numpy(drawn[name]) for name in _NAMES)

        return run
