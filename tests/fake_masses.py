# SPDX-License-Identifier: MIT
"""Draws by priority as csrc/cuda makes them, with NumPy, for tests/fake_cuda.py.

All sums are made anew at each draw, in float32 and in the order of the CPU's tree, so that what is drawn from the same
masses by the same word is the same.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import fake_following
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastreplay.gpu import masses

_FIRST_MASS = 64
_MIXTURE = 1


def array(address: int, count: int, dtype: Any) -> Any:
    """Return what lies at an address."""
    raw = (ctypes.c_uint8 * (count * np.dtype(dtype).itemsize)).from_address(address)
    return np.frombuffer(raw, dtype)


def num_bytes(capacity: int) -> int:
    return _FIRST_MASS + 4 * capacity


def leaves_of(kept: Any) -> Any:
    return array(kept.memory + _FIRST_MASS, kept.capacity, np.float32)


def base_of(kept: Any, p: Any) -> Any:
    return np.maximum(np.abs(p) + kept.eps, kept.floor)


def mass_of(kept: Any, base: Any) -> Any:
    return np.minimum(base**kept.alpha, 3e38 / kept.capacity).astype(np.float32)


def begin(kept: Any) -> None:
    array(kept.memory, num_bytes(kept.capacity), np.uint8)[:] = 0


def settle(settling: Any) -> None:
    kept = settling.masses
    leaves = leaves_of(kept)
    largest = array(kept.memory, 1, np.float64)[0]
    lost, new = (
        (first + np.arange(count, dtype=np.int64)) % kept.capacity
        for first, count in ((settling.first_lost, settling.num_lost), (settling.first_new, settling.num_new))
    )
    assert not set(lost.tolist()) & set(new.tolist())
    assert max(len(lost), len(new)) <= kept.capacity
    leaves[lost] = 0
    told = leaves[new]
    leaves[new] = np.where(np.signbit(told), np.maximum(-told, mass_of(kept, largest)), told)


def update(asked: Any) -> None:
    kept = asked.masses
    leaves, state = leaves_of(kept), array(kept.memory, 2, np.uint64)
    tickets = array(asked.tickets, asked.count, np.int64) if asked.count else []
    p = array(asked.priorities, asked.count, np.float64 if asked.is_double else np.float32) if asked.count else []
    first, size, _ = array(asked.window, 3, np.uint64).tolist()
    applied = refused = 0
    for ticket, number in zip(tickets, p, strict=True):
        if not np.isfinite(number):
            refused += 1
        elif first <= ticket < first + size:
            applied += 1
            base = base_of(kept, np.float64(number))
            leaves[ticket % kept.capacity] = mass_of(kept, base)
            state.view(np.float64)[0] = max(state.view(np.float64)[0], base)
    state[1] += np.uint64(refused)
    array(asked.result, 2, np.int64)[:] = applied, asked.count - applied - refused


def prefixes(values: Any) -> Any:
    """Return the prefix sums of (n, 16) values in the CPU's order: four lanes at a time."""
    found, carry = np.empty_like(values), np.zeros(len(values), np.float32)
    for i in range(0, 16, 4):
        a, b, c, d = values[:, i : i + 4].T
        for k, lane in enumerate((a, b + a, (c + b) + a, (d + c) + (b + a))):
            found[:, i + k] = lane + carry
        carry = found[:, i + 3].copy()
    return found


def levels_of(leaves: Any) -> list[Any]:
    """Return the prefix sums of all nodes, the groups of leaves first."""
    levels: list[Any] = []
    values = leaves
    while not levels or len(values) > 1:
        values = np.concatenate([values, np.zeros(-len(values) % 16, np.float32)])
        levels.append(prefixes(values.reshape(-1, 16)))
        values = levels[-1][:, 15].copy()
    return levels


def find(levels: list[Any], target: float) -> int:
    node = 0
    for level in reversed(levels):
        sums = level[node]
        largest = (sums[15:].view(np.uint32) - np.uint32(1)).view(np.float32)[0]
        at = largest if largest < np.float32(target) else np.float32(target)
        child = next((i for i in range(15) if sums[i] > at), 15)
        target = max(0.0, target - (float(sums[child - 1]) if child else 0.0))
        node = node * 16 + child
    return node


class Draws:
    """What one minibatch is drawn from."""

    def __init__(self, weighing: Any, key: Any, call: int, window: tuple[int, int, int]) -> None:
        self.weighing, self.key, self.call = weighing, key, call
        self.first, self.size, first_slot = window
        kept = weighing.masses
        self.leaves = leaves_of(kept).copy()
        slots = (first_slot + np.arange(self.size, dtype=np.int64)) % kept.capacity
        outside = np.ones(kept.capacity, bool)
        outside[slots] = False
        assert not self.leaves[outside].any(), "what is gone has a mass"
        assert not np.signbit(self.leaves).any(), "a mass was not settled"
        self.levels = levels_of(self.leaves)
        self.total = float(self.levels[-1][0, 15])
        mix = weighing.uniform_mix
        with_mass = self.leaves[self.leaves > 0]
        self.count = max(self.size if self.total == 0 or mix > 0 else len(with_mass), 1)
        self.by_chance = mix if self.total else 1.0
        self.by_mass = (1 - mix) * self.count / self.total if self.total else 0.0
        has_zeros = mix > 0 and len(with_mass) < self.count
        self.rarest = self.times_as_likely(0.0 if has_zeros or not len(with_mass) else float(with_mass.min()))

    def times_as_likely(self, mass: float) -> float:
        return self.by_chance + self.by_mass * mass

    def word(self, row: int, attempt: int, purpose: int) -> int:
        counter = [row, self.call, attempt, purpose]  # NumPy counts before it draws
        return int(np.random.Philox(key=self.key, counter=counter).random_raw(1)[0])

    def is_uniform(self, row: int, attempt: int) -> bool:
        return bool(self.total) and (self.word(row, attempt, _MIXTURE) >> 11) * 2.0**-53 < self.weighing.uniform_mix

    def slots(self, batch_size: int) -> Iterator[int]:
        """Draw rows; give positions in the window."""
        words = np.random.Philox(key=self.key, counter=[0, self.call, 0, 0]).random_raw(batch_size).tolist()
        uniform = [self.is_uniform(row, 0) for row in range(batch_size)]
        is_stratified, stratum = self.weighing.is_stratified, 0
        share = self.total / (batch_size - sum(uniform)) if is_stratified and not all(uniform) else self.total
        first_slot = self.first % self.weighing.masses.capacity
        for row, word in enumerate(words):
            if not self.total or uniform[row]:
                yield word * self.size >> 64
                continue
            slot = find(self.levels, ((stratum if is_stratified else 0) + (word >> 11) * 2.0**-53) * share)
            stratum += 1
            attempt = 0
            while not self.leaves[slot] > 0:
                attempt += 1
                assert not self.is_uniform(row, attempt), "not needed so far"
                slot = find(self.levels, (self.word(row, attempt, 0) >> 11) * 2.0**-53 * self.total)
            yield (slot - first_slot) % len(self.leaves)

    def again(self, row: int, attempt: int) -> int | None:
        """Return a ticket that is drawn by one more attempt, None where it finds none."""
        word = self.word(row, attempt, 0)
        if not self.total or self.is_uniform(row, attempt):
            return self.first + (word * self.size >> 64)
        slot = find(self.levels, (word >> 11) * 2.0**-53 * self.total)
        return self.first + (slot - self.first) % len(self.leaves) if self.leaves[slot] > 0 else None

    def mass(self, row: int, attempt: int, ticket: int) -> float:
        """Return what a ticket weighs where what is complete is counted."""
        is_uniform = not self.total or self.is_uniform(row, attempt)
        return 1.0 if is_uniform else float(self.leaves[ticket % len(self.leaves)])

    counted_by = 2


def draw(
    sampling: Any, weighing: masses.Weighing, generator: Any, window: tuple[int, int, int], around: Any
) -> list[int]:
    """Draw by priority: write weights and probabilities, count, and return the tickets."""
    draws = Draws(weighing, generator[:2], int(generator[2]), window)
    positions = list(draws.slots(sampling.batch_size))
    if around is not None:
        trails = fake_following.Window(sampling, around[0], window[0], window[1])
        drawn = trails.completed([window[0] + position for position in positions], generator, draws)
        positions = [ticket - window[0] for ticket in drawn]
    slots = (window[2] + np.array(positions, np.int64)) % weighing.masses.capacity
    likely = np.array([draws.times_as_likely(float(mass)) for mass in draws.leaves[slots]])
    array(sampling.block + weighing.probabilities_offset, len(likely), np.float32)[:] = likely * (1 / draws.count)
    weights = likely.astype(np.float32)
    divisor = (np.float32(1), weights.min(), np.float32(draws.rarest))[weighing.normalize]
    array(sampling.block + weighing.weights_offset, len(likely), np.float32)[:] = (divisor / weights) ** np.float32(
        weighing.beta
    )
    generator[4] += np.uint64(draws.total == 0)
    return [window[0] + position for position in positions]
