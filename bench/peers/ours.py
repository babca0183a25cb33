# SPDX-License-Identifier: MIT
"""fastreplay's replay buffer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from timing import Call
from workloads import Columns, Transition, Workload, chunks

import fastreplay as fr
from peers.peer import Peer, in_order


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
        return _by_name(self.buffer.add, rows)

    def extender(self, blocks: Sequence[Columns]) -> Call:
        return _by_name(self.buffer.extend, [tuple(block.values()) for block in blocks])

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
    kinds = frozenset(("add", "extend"))

    def adder(self, rows: Sequence[Transition]) -> Call:
        return in_order(self.buffer.add, rows)

    def extender(self, blocks: Sequence[Columns]) -> Call:
        return in_order(self.buffer.extend, [tuple(block.values()) for block in blocks])


class FastreplayOut(Fastreplay):
    """The same buffer, sampling into one minibatch that the caller owns."""

    name = "fastreplay-out"
    label = "fastreplay `out=`"
    kinds = frozenset(("sample",))

    def sampler(self, batch_size: int) -> Call:
        out = self.buffer.sample(batch_size)
        tuple(out)  # its tensors exist from here on
        return partial(self.buffer.sample, batch_size, out=out)


def empty_buffer(workload: Workload, capacity: int, **options: Any) -> Any:
    fields = {name: (spec.shape, spec.dtype) for name, spec in workload.fields.items()}
    return fr.ReplayBuffer(capacity, fields, seed=0, **options)


def fill(buffer: Any, workload: Workload) -> None:
    for _, columns in chunks(workload, buffer.capacity):
        buffer.extend(**columns)


def _by_name(store: Callable[..., object], rows: Sequence[Any]) -> Call:
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
