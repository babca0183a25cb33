# SPDX-License-Identifier: MIT
"""Preallocated NumPy arrays and fancy indexing: what most single-file training loops carry."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from timing import Call
from workloads import Columns, Transition, Workload, chunks

from peers.peer import Peer, in_order


class NumpyRing(Peer):
    """Preallocated arrays and fancy indexing: what most single-file training loops carry."""

    name = "numpy"
    label = "NumPy ring"

    def _build(self, workload: Workload, capacity: int) -> None:
        self.pos = 0
        self.full = False
        self.rng = np.random.default_rng(0)
        arrays = {name: np.zeros((capacity, *spec.shape), spec.dtype) for name, spec in workload.fields.items()}
        self.observation = arrays["observation"]
        self.action = arrays["action"]
        self.next_observation = arrays["next_observation"]
        self.reward = arrays["reward"]
        self.terminated = arrays["terminated"]

    def fill(self) -> None:
        for _, columns in chunks(self.workload, self.capacity):
            self.extend(*columns.values())

    def add(self, observation: Any, action: Any, next_observation: Any, reward: Any, terminated: Any) -> None:
        i = self.pos
        self.observation[i] = observation
        self.action[i] = action
        self.next_observation[i] = next_observation
        self.reward[i] = reward
        self.terminated[i] = terminated
        self._advance(1)

    def extend(self, observation: Any, action: Any, next_observation: Any, reward: Any, terminated: Any) -> None:
        n = len(reward)
        i = np.arange(self.pos, self.pos + n) % self.capacity
        self.observation[i] = observation
        self.action[i] = action
        self.next_observation[i] = next_observation
        self.reward[i] = reward
        self.terminated[i] = terminated
        self._advance(n)

    def sample(self, batch_size: int) -> tuple[torch.Tensor, ...]:
        i = self.rng.integers(0, self.capacity if self.full else self.pos, batch_size)
        return (
            torch.from_numpy(self.observation[i]),
            torch.from_numpy(self.action[i]),
            torch.from_numpy(self.next_observation[i]),
            torch.from_numpy(self.reward[i]),
            torch.from_numpy(self.terminated[i]),
        )

    def _advance(self, n: int) -> None:
        self.pos += n
        if self.pos >= self.capacity:
            self.full = True
            self.pos -= self.capacity

    def adder(self, rows: Sequence[Transition]) -> Call:
        return in_order(self.add, rows)

    def extender(self, blocks: Sequence[Columns]) -> Call:
        return in_order(self.extend, [tuple(block.values()) for block in blocks])

    def sampler(self, batch_size: int) -> Call:
        return partial(self.sample, batch_size)


class NumpySlices(NumpyRing):
    """The same ring, with slices instead of an index array while a block does not wrap around."""

    name = "numpy-slices"
    label = "NumPy ring, slices"
    kinds = frozenset(("extend",))

    def extend(self, observation: Any, action: Any, next_observation: Any, reward: Any, terminated: Any) -> None:
        start, stop = self.pos, self.pos + len(reward)
        if stop > self.capacity:
            super().extend(observation, action, next_observation, reward, terminated)
            return
        self.observation[start:stop] = observation
        self.action[start:stop] = action
        self.next_observation[start:stop] = next_observation
        self.reward[start:stop] = reward
        self.terminated[start:stop] = terminated
        self._advance(stop - start)
