# SPDX-License-Identifier: MIT
"""rlox's replay buffer (Rust)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from absence import AbsentError, require
from timing import Call
from workloads import Columns, Transition, Workload, chunks

from peers.peer import Peer, PrioritizedPeer


class Rlox(Peer):
    """rlox.ReplayBuffer (Rust); float32 vectors only, NumPy arrays out, terminated as uint8."""

    name = "rlox"
    label = "rlox"

    def _build(self, workload: Workload, capacity: int) -> None:
        self.calls = 0
        self.buffer = require("rlox").ReplayBuffer(capacity, *_sizes(workload))

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
            return _tensors(sample(batch_size, self.calls))

        return run


class RloxPrioritized(Rlox, PrioritizedPeer):
    """rlox.PrioritizedReplayBuffer (Rust); a sum tree."""

    kinds = PrioritizedPeer.kinds

    def _build(self, workload: Workload, capacity: int) -> None:
        self.calls = 0
        self.buffer = require("rlox").PrioritizedReplayBuffer(capacity, *_sizes(workload), 0.6, 0.4)

    def fill(self) -> None:
        PrioritizedPeer.fill(self)

    def fill_with(self, priorities: npt.NDArray[np.float32]) -> None:
        given = iter(priorities.tolist())
        for _, columns in chunks(self.workload, self.capacity):
            for observation, action, next_observation, reward, terminated in zip(*columns.values(), strict=True):
                done = bool(terminated)
                self.buffer.push(observation, action, reward, done, False, next_observation, next(given))

    def sampler(self, batch_size: int) -> Call:
        return self.drawer(batch_size)

    def drawer(self, batch_size: int) -> Call:
        sample = self.buffer.sample

        def run() -> tuple[Any, ...]:
            self.calls += 1
            batch = sample(batch_size, self.calls)
            return (*_tensors(batch), torch.from_numpy(batch["weights"]), batch["indices"])

        return run

    def update(self, drawn: Any, priorities: npt.NDArray[np.float32]) -> None:
        self.buffer.update_priorities(drawn[-1], priorities.astype(np.float64))  # it takes no others


def _sizes(workload: Workload) -> tuple[int, int]:
    specs = (workload.observation, workload.action)
    if any(spec.dtype != "float32" or len(spec.shape) != 1 for spec in specs):
        reason = "float32 vectors only"
        raise AbsentError(reason)
    return specs[0].shape[0], specs[1].shape[0]


def _tensors(batch: Any) -> tuple[torch.Tensor, ...]:
    return (
        torch.from_numpy(batch["obs"]),
        torch.from_numpy(batch["actions"]),
        torch.from_numpy(batch["next_obs"]),
        torch.from_numpy(batch["rewards"]),
        torch.from_numpy(batch["terminated"]),
    )
