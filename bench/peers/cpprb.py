# SPDX-License-Identifier: MIT
"""cpprb's replay buffer (Cython, C++)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from absence import require
from timing import Call
from workloads import Columns, Transition, Workload, chunks

from peers.peer import Peer


class Cpprb(Peer):
    """cpprb.ReplayBuffer; NumPy arrays out, scalars as (B, 1)."""

    name = "cpprb"
    label = "cpprb"

    def _build(self, workload: Workload, capacity: int) -> None:
        cpprb = require("cpprb")
        names = ("obs", "act", "next_obs", "rew", "done")
        self.buffer = cpprb.ReplayBuffer(
            capacity,
            {
                name: {"shape": spec.shape or 1, "dtype": np.dtype(spec.dtype)}
                for name, spec in zip(names, workload.fields.values(), strict=True)
            },
        )

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
            batch = sample(batch_size)
            return (
                torch.from_numpy(batch["obs"]),
                torch.from_numpy(batch["act"]),
                torch.from_numpy(batch["next_obs"]),
                torch.from_numpy(batch["rew"]),
                torch.from_numpy(batch["done"]),
            )

        return run
