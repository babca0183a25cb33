# SPDX-License-Identifier: MIT
"""fastreplay's replay buffer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from timing import Call
from workloads import Columns, Transition, Workload, chunks

import fastreplay as fr
from peers.peer import Peer, PrioritizedPeer, in_order


class Fastreplay(Peer):
    """fastreplay.ReplayBuffer: keyword add and extend, a fresh minibatch from each sample."""

    name = "fastreplay"
    label = "fastreplay"
    is_rival = False

    def _build(self, workload: Workload, capacity: int) -> None:
        self.buffer = empty_buffer(workload, capacity)

    def fill(self) -> None:
        fill(self.buffer, self.workload)

    def adder(self, rows: Sequence[Transition]) -> Call:
        return by_name(self.buffer.add, rows)

    def extender(self, blocks: Sequence[Columns]) -> Call:
        return by_name(self.buffer.extend, [tuple(block.values()) for block in blocks])

    def sampler(self, batch_size: int) -> Call:
        sample = self.buffer.sample

        def run() -> tuple[torch.Tensor, ...]:
            # Unpacked, so that a minibatch which made its tensors on first use would pay for them.
            observation, action, next_observation, reward, terminated = sample(batch_size)
            return observation, action, next_observation, reward, terminated

        return run


class FastreplayPositional(Fastreplay):
    """The same buffer, with add and extend called with values in schema order."""

    name = "fastreplay-positional"
    label = "fastreplay, positional"
    ring_of = Fastreplay
    kinds = frozenset(("add", "extend"))

    def adder(self, rows: Sequence[Transition]) -> Call:
        return in_order(self.buffer.add, rows)

    def extender(self, blocks: Sequence[Columns]) -> Call:
        return in_order(self.buffer.extend, [tuple(block.values()) for block in blocks])


class FastreplayOut(Fastreplay):
    """The same buffer, sampling into one minibatch that the caller owns."""

    name = "fastreplay-out"
    label = "fastreplay `out=`"
    ring_of = Fastreplay
    kinds = frozenset(("sample",))

    def sampler(self, batch_size: int) -> Call:
        out = self.buffer.sample(batch_size)
        tuple(out)  # its tensors exist from here on
        return partial(self.buffer.sample, batch_size, out=out)


class FastreplayThreads(Fastreplay):
    """The same buffer, with two threads that copy, as they do from half a megabyte on."""

    name = "fastreplay-2-threads"
    label = "fastreplay, two threads"
    ring_of = Fastreplay
    kinds = frozenset(("sample",))
    least_bytes = 1 << 20

    def sampler(self, batch_size: int) -> Call:
        sample = super().sampler(batch_size)

        def run() -> tuple[torch.Tensor, ...]:
            before = fr.get_num_threads()
            fr.set_num_threads(2)
            try:
                drawn: tuple[torch.Tensor, ...] = sample()
                return drawn
            finally:
                fr.set_num_threads(before)

        return run


class FastreplayPrioritized(Fastreplay, PrioritizedPeer):
    """fastreplay.ReplayBuffer with priorities; a fresh minibatch from each sample."""

    kinds = PrioritizedPeer.kinds

    def _build(self, workload: Workload, capacity: int) -> None:
        self.buffer = empty_buffer(workload, capacity, priorities=fr.Priorities())

    def fill(self) -> None:
        PrioritizedPeer.fill(self)

    def fill_with(self, priorities: npt.NDArray[np.float32]) -> None:
        start = 0
        for _, columns in chunks(self.workload, self.capacity):
            self.buffer.extend(**columns, priority=priorities[start : start + len(columns["reward"])])
            start += len(columns["reward"])

    def sampler(self, batch_size: int) -> Call:
        return self.drawer(batch_size)

    def drawer(self, batch_size: int) -> Call:
        sample = self.buffer.sample

        def run() -> tuple[Any, ...]:
            batch = sample(batch_size)
            observation, action, next_observation, reward, terminated = batch
            return observation, action, next_observation, reward, terminated, batch.weight, batch

        return run

    def update(self, drawn: Any, priorities: npt.NDArray[np.float32]) -> None:
        self.buffer.update_priorities(drawn[-1], priorities)


def empty_buffer(workload: Workload, capacity: int, **options: Any) -> Any:
    fields = {name: (spec.shape, spec.dtype) for name, spec in workload.fields.items()}
    return fr.ReplayBuffer(capacity, fields, seed=0, **options)


def fill(buffer: Any, workload: Workload) -> None:
    for _, columns in chunks(workload, buffer.capacity):
        buffer.extend(**columns)


def by_name(store: Callable[..., object], rows: Sequence[Any]) -> Call:
    """Return a call that hands each row to `store`, by the fields' names."""

    def run() -> None:
        for observation, action, next_observation, reward, terminated in rows:
            store(
                observation=observation,
                action=action,
                next_observation=next_observation,
                reward=reward,
                terminated=terminated,
            )

    return run
