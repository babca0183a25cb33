# SPDX-License-Identifier: MIT
"""What the transitions of a mirrored ring weigh.

The device's memory has the truth. The host's masses are what inserts leave there for the next flush: that of a
priority which came with the row, or, with the sign set, the largest that the host knows of, below which a new
transition's is not.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastreplay.gpu import memory
from fastreplay.gpu.masses import DeviceMasses, MassRule

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastreplay import _core
    from fastreplay.gpu.masses import Weighing
    from fastreplay.gpu.mirror import Mirror
    from fastreplay.gpu.ring import Stage

__all__ = ["MirrorMasses"]


class MirrorMasses:
    """The masses of a mirrored ring.

    Args:
        mirror: The ring's.
        source: What inserts leave on the host.
        rule: alpha, eps and floor.

    Raises:
        RuntimeError: The device has no place for them.

    Thread safety:
        As the mirror, but for what is called from its flush.
    """

    def __init__(self, mirror: Mirror, source: _core.Priorities, rule: tuple[float, float, float]) -> None:
        self._mirror = mirror
        self._source = source
        self._there = mirror.in_turn(DeviceMasses, mirror.ring, MassRule(*rule))
        self._settled = 0  # tickets below it count over there, or are gone

    def weighing(self, options: tuple[bool, int, float], weights_offset: int, probabilities_offset: int) -> Weighing:
        """Return how a minibatch is drawn, with the options of the core's sampler."""
        return self._there.weighing(options, weights_offset, probabilities_offset)

    def send(self, stage: Stage, ticket: int, count: int) -> None:
        """Queue, from a flush, that masses follow the records of a stage."""
        self._there.send(stage, self._source.read(ticket, count), ticket % self._mirror.ring.capacity)

    def settle(self, first_before: int, first: int, end: int) -> None:
        """Queue, from a flush, that tickets from `first` to `end` count, and none before it."""
        if (first, end) == (first_before, self._settled):
            return
        oldest = max(end - self._mirror.ring.capacity, 0)
        lost = range(max(first_before, oldest), min(first, end))
        self._there.settle(lost, range(max(first, self._settled), end))
        self._settled = end

    def is_there(self, value: object) -> bool:
        """Tell whether a value is a tensor on the device."""
        return isinstance(value, torch.Tensor) and memory.is_on(value, self._mirror.ring.device)

    def reduced(self, trained: torch.Tensor, errors: torch.Tensor, eta: float, axis: int) -> torch.Tensor:
        """Queue what the errors of sequences, with steps along an axis, say of their rows, (B,) float64; do not wait.

        Raises:
            TypeError: They are no numbers.
        """
        if errors.is_complex():
            raise TypeError(f"priorities: expected numbers, got {errors.dtype}")
        found = torch.where(trained, errors.detach().to(torch.float64).abs(), 0.0)
        return eta * found.amax(dim=axis) + (1 - eta) * found.sum(dim=axis) / trained.sum(dim=axis)

    def update(self, tickets: Any, priorities: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Queue that transitions get other priorities; do not wait.

        Args:
            tickets: (B,) integers: a tensor on the device, or an int64 array.
            priorities: B numbers: the same, or a float64 array.

        Returns:
            How many take effect, and how many are of transitions that are gone, () int64 each on the device.

        Raises:
            TypeError: A tensor is of another dtype.
            ValueError: They are not as many.
            RuntimeError: A graph is being captured, which would send the same array again.
        """
        named, numbers = _integers(tickets), _numbers(priorities)
        if _count(named) != _count(numbers):
            expected = f"expected one for each of {_count(named)} transitions"
            raise ValueError(f"priorities: {expected}, got {_count(numbers)}")
        applied, stale = self._mirror.in_turn(self._update, named, numbers).unbind()
        return applied, stale

    def _update(self, tickets: Any, priorities: Any) -> torch.Tensor:
        ring = self._mirror.ring
        if isinstance(tickets, np.ndarray) or isinstance(priorities, np.ndarray):
            ring.refuse_capture("update_priorities, of numbers that are the host's")
        result = ring.allocate(2 * 8).view(torch.int64)

        def change(stream: int) -> None:
            self._there.update(self._sent(tickets), self._sent(priorities), result, stream)

        self._mirror.change(change)
        return result

    def _sent(self, values: Any) -> torch.Tensor:
        """Return a tensor on the device: the values, or a copy that is queued."""
        if not isinstance(values, np.ndarray):
            return values  # type: ignore[no-any-return]
        target = self._mirror.ring.allocate(values.nbytes + 8)[: values.nbytes]  # of none, too, a view may be made
        self._mirror.ring.upload(target, values)
        return target.view(torch.int64 if values.dtype == np.int64 else torch.float64)

    @property
    def largest(self) -> float:
        """The largest |p| + eps so far; waits for what is queued."""
        return max(self._source.largest, self._state()[0])

    @largest.setter
    def largest(self, value: float) -> None:
        self._mirror.in_turn(self._set_largest, value)

    def _set_largest(self, value: float) -> None:
        self._mirror.ring.refuse_capture("max_priority")
        self._mirror.send_all()  # what was inserted before has what was the largest by then
        self._source.largest = value
        self._there.forget_largest()

    @property
    def num_refused(self) -> int:
        """How many priorities of updates were no finite numbers, and passed over; waits for what is queued."""
        return self._state()[1]

    def _state(self) -> tuple[float, int]:
        return self._mirror.in_turn(self._read_state)

    def _read_state(self) -> tuple[float, int]:
        self._mirror.ring.refuse_capture("max_priority, stats")
        return self._there.read_state()

    def read(self, first: int, count: int) -> NDArray[np.float32]:
        """Return the masses of tickets first, first + 1, ..., 0 for those that are not there; wait."""
        return self._mirror.in_turn(partial(self._read, first, count))

    def _read(self, first: int, count: int) -> NDArray[np.float32]:
        self._mirror.ring.refuse_capture("pickle")
        oldest, size = self._mirror.send_all()
        masses = self._there.read()
        tickets = np.arange(first, first + count)
        is_there = (tickets >= oldest) & (tickets < oldest + size)
        return np.where(is_there, masses[tickets % len(masses)], np.float32(0))


def _count(values: Any) -> int:
    return math.prod(values.shape)


def _integers(tickets: Any) -> Any:
    if isinstance(tickets, np.ndarray):
        return tickets
    if tickets.dtype == torch.bool or tickets.is_floating_point() or tickets.is_complex():
        raise TypeError(f"tickets: expected integers, got {tickets.dtype}")
    if tickets.ndim != 1:
        raise ValueError(f"tickets: expected one dimension, got shape {tuple(tickets.shape)}")
    return tickets.to(torch.int64).contiguous()


def _numbers(priorities: Any) -> Any:
    if isinstance(priorities, np.ndarray):
        return priorities
    if priorities.is_complex():
        raise TypeError(f"priorities: expected numbers, got {priorities.dtype}")
    priorities = priorities.detach()
    if priorities.dtype not in {torch.float32, torch.float64}:
        priorities = priorities.to(torch.float32 if priorities.is_floating_point() else torch.float64)
    return priorities.contiguous()
