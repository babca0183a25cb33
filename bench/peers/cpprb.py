# SPDX-License-Identifier: MIT
"""cpprb's replay buffer (Cython, C++)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from absence import require
from timing import Call
from workloads import Columns, Transition, Workload, chunks

from peers.peer import Peer, PrioritizedPeer


class Cpprb(Peer):
    """cpprb.ReplayBuffer; NumPy arrays out, scalars as (B, 1)."""

    name = "cpprb"
    label = "cpprb"

    def _build(self, workload: Workload, capacity: int) -> None:
        cpprb = require("cpprb")
        self.buffer = cpprb.ReplayBuffer(capacity, _specification(workload))

    def fill(self) -> None:
        for _, columns in chunks(self.workload, self.capacity):
            observation, action, next_observation, reward, terminated = columns.values()
            self.buffer.add(obs=observation, act=action, next_obs=next_observation, rew=reward, done=terminated)

    def adder(self, rows: Sequence[Transition]) -> Call:
        add = self.buffer.add

        def run() -> None:
            for observation, action, next_observation, reward, terminated in rows:
                add(
                    obs=observation,
                    act=action,
                    next_obs=next_observation,
                    rew=reward,
                    done=terminated,
                )

        return run

    def extender(self, blocks: Sequence[Columns]) -> Call:
        return self.adder([tuple(block.values()) for block in blocks])  # type: ignore[misc]

    def sampler(self, batch_size: int) -> Call:
        sample = self.buffer.sample

        def run() -> tuple[torch.Tensor, ...]:
            return _tensors(sample(batch_size))

        return run


class CpprbPrioritized(Cpprb, PrioritizedPeer):
    """cpprb.PrioritizedReplayBuffer; segment trees of float64."""

    kinds = PrioritizedPeer.kinds

    def _build(self, workload: Workload, capacity: int) -> None:
        cpprb = require("cpprb")
        self.buffer = cpprb.PrioritizedReplayBuffer(capacity, _specification(workload), alpha=0.6)

    def fill(self) -> None:
        PrioritizedPeer.fill(self)

    def fill_with(self, priorities: npt.NDArray[np.float32]) -> None:
        start = 0
        for _, columns in chunks(self.workload, self.capacity):
            observation, action, next_observation, reward, terminated = columns.values()
            some = priorities[start : start + len(reward)]
            self.buffer.add(
                obs=observation, act=action, next_obs=next_observation, rew=reward, done=terminated, priorities=some
            )
            start += len(reward)

    def sampler(self, batch_size: int) -> Call:
        return self.drawer(batch_size)

    def drawer(self, batch_size: int) -> Call:
        sample = self.buffer.sample

        def run() -> tuple[Any, ...]:
            batch = sample(batch_size, beta=0.4)
            return (*_tensors(batch), torch.from_numpy(batch["weights"]), batch["indexes"])

        return run

    def update(self, drawn: Any, priorities: npt.NDArray[np.float32]) -> None:
        self.buffer.update_priorities(drawn[-1], priorities)


def _specification(workload: Workload) -> dict[str, Any]:
    names = ("obs", "act", "next_obs", "rew", "done")
    return {
        name: {"shape": spec.shape or 1, "dtype": np.dtype(spec.dtype)}
        for name, spec in zip(names, workload.fields.values(), strict=True)
    }


def _tensors(batch: Any) -> tuple[torch.Tensor, ...]:
    return (
        torch.from_numpy(batch["obs"]),
        torch.from_numpy(batch["act"]),
        torch.from_numpy(batch["next_obs"]),
        torch.from_numpy(batch["rew"]),
        torch.from_numpy(batch["done"]),
    )
