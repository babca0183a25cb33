# SPDX-License-Identifier: MIT
"""rlox's replay buffer (Rust)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from absence import AbsentError, require
from timing import Call
from workloads import Columns, Transition, Workload, chunks

from peers.peer import Peer


class Rlox(Peer):
    """rlox.ReplayBuffer (Rust); float32 vectors only, NumPy arrays out, terminated as uint8."""

    name = "rlox"
    label = "rlox"

    def _build(self, workload: Workload, capacity: int) -> None:
        rlox = require("rlox")
        specs = (workload.observation, workload.action)
        if any(spec.dtype != "float32" or len(spec.shape) != 1 for spec in specs):
            reason = "float32 vectors only"
            raise AbsentError(reason)
        self.calls = 0
        self.buffer = rlox.ReplayBuffer(capacity, specs[0].shape[0], specs[1].shape[0])

    def fill(self) -> None:
        for _, columns in chunks(self.workload, self.capacity):
            self.extender([{**columns, "terminated": columns["terminated"].astype(bool)}])()

    def adder(self, rows: Sequence[Transition]) -> Call:
        push = self.buffer.push

        def run() -> None:
            for observation, action, next_observation, reward, terminated in rows:
                push(observation, action, reward, terminated, False, next_observation)

        return run

    def extender(self, blocks: Sequence[Columns]) -> Call:
        # push_batch takes flat arrays and bytes, so whoever calls it makes them: here views, where
        # rlox's own collector makes copies.
        push_batch = self.buffer.push_batch
        prepared = [(*block.values(), np.zeros(len(block["reward"]), np.bool_)) for block in blocks]

        def run() -> None:
            for observation, action, next_observation, reward, terminated, truncated in prepared:
                push_batch(
                    observation.reshape(-1),
                    next_observation.reshape(-1),
                    action.reshape(-1),
                    reward,
                    terminated.view(np.uint8),
                    truncated.view(np.uint8),
                )

        return run

    def sampler(self, batch_size: int) -> Call:
        sample = self.buffer.sample

        def run() -> tuple[torch.Tensor, ...]:
            self.calls += 1  # the seed of this call: rlox keeps no generator
            batch = sample(batch_size, self.calls)
            return (
                torch.from_numpy(batch["obs"]),
                torch.from_numpy(batch["actions"]),
                torch.from_numpy(batch["next_obs"]),
                torch.from_numpy(batch["rewards"]),
                torch.from_numpy(batch["terminated"]),
            )

        return run
