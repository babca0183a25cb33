# SPDX-License-Identifier: MIT
"""What a replay buffer must do to be measured. Knows no clock.

Each peer hands out closures: what runs inside one is what is timed. It holds the peer's own call and what each of its
callers must do around it between an environment's arrays and a loss (torch.from_numpy where NumPy arrays come out),
nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from timing import Call
from workloads import FIELD_NAMES, Columns, Transition, Workload


class Peer(ABC):
    """One replay buffer of `capacity` transitions.

    Args:
        workload: The transition's shape.
        capacity: Transitions that the ring holds.
        num_envs: Transitions of one `extend`; SB3 and Tianshou must know it in advance.

    Raises:
        AbsentError: If the peer is not installed or cannot hold the workload.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    kinds: ClassVar[frozenset[str]] = frozenset(("add", "extend", "sample"))  # what is measured
    is_rival: ClassVar[bool] = True
    environment: ClassVar[str] = ""  # a virtual environment of its own (elsewhere.py)
    least_bytes: ClassVar[int] = 0  # of a minibatch; of smaller ones it is not measured
    ring_of: ClassVar[type[Peer] | None] = None  # whose ring serves as well

    def __init__(self, workload: Workload, capacity: int, *, num_envs: int = 1) -> None:
        self.workload = workload
        self.capacity = capacity
        self.num_envs = num_envs
        self._build(workload, capacity)

    @classmethod
    def over(cls, ring: Peer) -> Peer:
        """Return a peer over the ring of another, of the class `ring_of`."""
        peer = cls.__new__(cls)
        peer.__dict__.update(ring.__dict__)
        return peer

    @abstractmethod
    def _build(self, workload: Workload, capacity: int) -> None:
        """Make the peer's own buffer."""

    @abstractmethod
    def fill(self) -> None:
        """Store the transitions 0 to capacity - 1, so that every page of the ring is touched."""

    @abstractmethod
    def adder(self, rows: Sequence[Transition]) -> Call:
        """Return a call that adds each of the rows, one transition at a time."""

    @abstractmethod
    def extender(self, blocks: Sequence[Columns]) -> Call:
        """Return a call that adds each of the blocks, one call a block."""

    @abstractmethod
    def sampler(self, batch_size: int) -> Call:
        """Return a call that draws a minibatch of CPU tensors, all of them made."""

    def fields(self, batch: Any) -> Mapping[str, torch.Tensor]:
        """Name the tensors of what a sampler's call returned (untimed)."""
        return dict(zip(FIELD_NAMES, batch, strict=True))


class PrioritizedPeer(Peer):
    """A replay buffer that draws by priority: alpha 0.6, beta 0.4, weights divided by the largest of the minibatch."""

    kinds = frozenset(("sample", "update"))

    @abstractmethod
    def fill_with(self, priorities: npt.NDArray[np.float32]) -> None:
        """Store the transitions 0 to capacity - 1, with these priorities."""

    @abstractmethod
    def drawer(self, batch_size: int) -> Call:
        """Return a call that draws a minibatch: the fields' tensors, the weights, and what `update` names it by."""

    @abstractmethod
    def update(self, drawn: Any, priorities: npt.NDArray[np.float32]) -> None:
        """Give the transitions of a minibatch other priorities."""

    def fill(self) -> None:
        """Store the transitions with priorities of many sizes."""
        self.fill_with(np.random.default_rng(0).exponential(size=self.capacity).astype(np.float32) + np.float32(0.01))

    def sampler(self, batch_size: int) -> Call:
        """Return a call that draws a minibatch of CPU tensors."""
        return self.drawer(batch_size)

    def fields(self, batch: Any) -> Mapping[str, torch.Tensor]:
        """Name the tensors of what a sampler's call returned (untimed)."""
        return dict(zip(FIELD_NAMES, batch[: len(FIELD_NAMES)], strict=True))


def in_order(store: Callable[..., object], rows: Iterable[Any]) -> Call:
    """Return a call that hands each row to `store`, its values in the order of FIELD_NAMES."""
    prepared = list(rows)

    def run() -> None:
        for observation, action, next_observation, reward, terminated in prepared:
            store(observation, action, next_observation, reward, terminated)

    return run
