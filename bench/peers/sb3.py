# SPDX-License-Identifier: MIT
"""Stable-Baselines3's replay buffer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from absence import require
from timing import Call
from workloads import Columns, Transition, Workload, chunks

from peers.peer import Peer


class StableBaselines3(Peer):
    """stable_baselines3.common.buffers.ReplayBuffer; its sample answers with tensors."""

    name = "sb3"
    label = "SB3"

    def _build(self, workload: Workload, capacity: int) -> None:
        buffers = require("stable_baselines3.common.buffers")
        spaces = require("gymnasium.spaces")
        observation, action = workload.observation, workload.action
        is_image = observation.dtype == "uint8"
        low, high = (0, 255) if is_image else (-np.inf, np.inf)
        self.buffer = buffers.ReplayBuffer(
            capacity,
            spaces.Box(low, high, observation.shape, np.dtype(observation.dtype).type),
            spaces.Box(-1.0, 1.0, action.shape) if action.shape else spaces.Discrete(18),
            device="cpu",
            n_envs=self.num_envs,
        )

    def fill(self) -> None:
        # As add does it, without a million Python calls.
        buffer = self.buffer
        capacity = buffer.buffer_size * self.num_envs
        arrays = {
            "observation": buffer.observations,
            "action": buffer.actions,
            "next_observation": buffer.next_observations,
            "reward": buffer.rewards,
            "terminated": buffer.dones,
        }
        flat = {name: array.reshape(capacity, -1) for name, array in arrays.items()}
        for start, columns in chunks(self.workload, capacity):
            for name, column in columns.items():
                flat[name][start : start + len(column)] = column.reshape(len(column), -1)
        buffer.timeouts[:] = 0
        buffer.pos = 0
        buffer.full = True

    def adder(self, rows: Sequence[Transition]) -> Call:
        # What SB3's DummyVecEnv of one environment hands out: a leading axis of 1.
        return self._adding(
            (
                np.asarray(observation)[None],
                np.asarray(next_observation)[None],
                np.asarray(action)[None],
                np.array([reward], np.float32),
                np.array([terminated]),
            )
            for observation, action, next_observation, reward, terminated in rows
        )

    def extender(self, blocks: Sequence[Columns]) -> Call:
        names = ("observation", "next_observation", "action", "reward", "terminated")
        return self._adding(tuple(block[name] for name in names) for block in blocks)

    def _adding(self, steps: Iterable[tuple[Any, ...]]) -> Call:
        add = self.buffer.add
        prepared = [(*step, [{} for _ in range(self.num_envs)]) for step in steps]

        def run() -> None:
            for observation, next_observation, action, reward, done, infos in prepared:
                add(observation, next_observation, action, reward, done, infos)

        return run

    def sampler(self, batch_size: int) -> Call:
        return partial(self.buffer.sample, batch_size)

    def fields(self, batch: Any) -> Mapping[str, torch.Tensor]:
        return {
            "observation": batch.observations,
            "action": batch.actions,
            "next_observation": batch.next_observations,
            "reward": batch.rewards,
            "terminated": batch.dones,
        }
