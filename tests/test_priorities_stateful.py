# SPDX-License-Identifier: MIT
"""Random operations on a buffer that draws by priority, beside an oracle that keeps masses in a dictionary."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from reference import philox
from support import IS_LONG_FORM, NativeBuffer

import fastreplay as fr

PRIORITIES = st.sampled_from([0.0, 1e-3, 0.3, 1.0, 2.0, -5.0, 40.0, 1e4])
SHARE = 1e-6  # of all mass, by which float32's sums may move a transition's edges


class Oracle:
    """What the transitions of a ring weigh, by ticket, as the paper and the documentation say it."""

    def __init__(self, capacity: int, priorities: fr.Priorities) -> None:
        self.rule = priorities
        self.capacity = capacity
        self.masses: dict[int, float] = {}  # of all that can be drawn
        self.head = 0
        self.largest = 1.0

    def base(self, p: float) -> float:
        return max(abs(p) + self.rule.eps, self.rule.floor)

    def mass(self, base: float) -> float:
        return math.pow(base, self.rule.alpha)

    def insert(self, priorities: list[Any]) -> None:
        """Insert rows: "new" for one that gets what new ones do, None for one that is not to be drawn yet."""
        initial = self.rule.initial
        new = self.mass(self.largest if initial == "max" else self.base(float(initial)))
        for p in priorities:
            self.masses.pop(self.head - self.capacity, None)
            self.masses[self.head] = new if p == "new" else 0.0 if p is None else self.mass(self.base(p))
            self.head += 1
        self.largest = max([self.largest, *(self.base(p) for p in priorities if p not in {"new", None})])

    def update(self, tickets: list[int], priorities: list[float]) -> tuple[int, int]:
        there = [(ticket, p) for ticket, p in zip(tickets, priorities, strict=True) if ticket in self.masses]
        for ticket, p in there:
            self.masses[ticket] = self.mass(self.base(p))
            self.largest = max(self.largest, self.base(p))
        return len(there), len(tickets) - len(there)

    def probabilities(self) -> dict[int, float]:
        """Return each transition's; uniform where nothing has a mass."""
        total, count, mix = sum(self.masses.values()), len(self.masses), self.rule.uniform_mix
        if total == 0:
            return dict.fromkeys(self.masses, 1 / count)
        return {ticket: mix / count + (1 - mix) * mass / total for ticket, mass in self.masses.items()}

    def num_drawable(self) -> int:
        """Return N of the weights: how many transitions have a probability above zero."""
        return sum(p > 0 for p in self.probabilities().values())

    def edges(self) -> dict[int, tuple[float, float]]:
        """Return the shares of all mass between which a target falls on each transition, slot by slot."""
        total, edges, before = sum(self.masses.values()), {}, 0.0
        for ticket in sorted(self.masses, key=lambda ticket: ticket % self.capacity):
            edges[ticket] = before / total, (before + self.masses[ticket]) / total
            before += self.masses[ticket]
        return edges


class PriorityMachine(RuleBasedStateMachine):
    """Do the same to both; what is drawn must be what the oracle says of the same random words."""

    output = "torch"

    @initialize(data=st.data(), capacity=st.integers(1, 70), seed=st.integers(0, 2**32))
    def make(self, data: st.DataObject, capacity: int, seed: int) -> None:
        options: dict[str, Any] = {
            "alpha": st.sampled_from([0.0, 0.5, 0.6, 1.0, 2.0]),
            "eps": st.sampled_from([0.0, 1e-6, 0.1]),
            "floor": st.sampled_from([0.0, 0.0, 1.0]),
            "initial": st.sampled_from(["max", "max", 0.0, 2.5]),
            "draws": st.sampled_from(["stratified", "independent"]),
            "normalize": st.sampled_from(["batch", "buffer", None]),
            "uniform_mix": st.sampled_from([0.0, 0.0, 0.3]),
        }
        self.rule = fr.Priorities(**data.draw(st.fixed_dictionaries(options), label="rule"))
        self.buffer: Any = NativeBuffer(
            capacity, {"n": ((), "int64")}, seed=seed, output=self.output, priorities=self.rule
        )
        self.oracle = Oracle(capacity, self.rule)
        self.held: list[Any] = []

    @rule(count=st.integers(0, 150), given=st.sampled_from(["new", "one", "each", "none"]), data=st.data())
    def extend(self, count: int, given: str, data: st.DataObject) -> None:
        n = np.arange(self.oracle.head, self.oracle.head + count)
        if given == "new":
            self.buffer.extend(n=n)
            return self.oracle.insert(["new"] * count)
        p: Any = None if given == "none" else data.draw(PRIORITIES, label="priority")
        if given == "each":
            p = np.random.default_rng(data.draw(st.integers(0, 99))).choice([0.0, 0.5, 3.0, -80.0], count)
        self.buffer.extend(n=n, priority=p)
        return self.oracle.insert(list(np.broadcast_to(p, count)))

    @rule(p=st.one_of(st.just("new"), st.none(), PRIORITIES))
    def add(self, p: Any) -> None:
        self.buffer.add(n=self.oracle.head, **({} if p == "new" else {"priority": p}))
        self.oracle.insert([p])

    @precondition(lambda self: self.oracle.head > 0)
    @rule(data=st.data(), as_list=st.booleans())
    def update_by_tickets(self, data: st.DataObject, as_list: bool) -> None:
        oldest = max(0, self.oracle.head - 2 * self.oracle.capacity)
        tickets = data.draw(st.lists(st.integers(oldest, self.oracle.head - 1), max_size=20), label="tickets")
        p = data.draw(st.lists(PRIORITIES, min_size=len(tickets), max_size=len(tickets)), label="priorities")
        named = tickets if as_list else np.array(tickets, np.int64)
        given = p if as_list else np.array(p, np.float32).astype(np.float64)
        assert self.buffer.update_priorities(named, given) == self.oracle.update(tickets, list(map(float, given)))

    @precondition(lambda self: self.held)
    @rule(seed=st.integers(0, 99))
    def update_a_minibatch(self, seed: int) -> None:
        batch = self.held.pop(seed % len(self.held))  # perhaps of before a lap, or a clear()
        p = np.random.default_rng(seed).exponential(size=len(batch)).astype(np.float32)
        tickets = batch.numpy().ticket.tolist()
        assert self.buffer.update_priorities(batch, p) == self.oracle.update(tickets, p.astype(float).tolist())

    @rule(bad=st.sampled_from(["NaN", "infinite", "unborn", "too few"]))
    def refuse(self, bad: str) -> None:
        newest = self.oracle.head - 1
        tickets = [newest, self.oracle.head if bad == "unborn" else newest]
        p = {"NaN": [99.0, math.nan], "infinite": [99.0, -math.inf], "too few": [99.0]}.get(bad, [99.0, 99.0])
        with pytest.raises(ValueError, match=r"priorities|tickets"):
            self.buffer.update_priorities(tickets, p)

    @rule(value=st.sampled_from([0.0, 0.5, 1.0, 30.0]))
    def set_max_priority(self, value: float) -> None:
        self.buffer.max_priority = self.oracle.largest = value

    @rule()
    def clear(self) -> None:
        self.buffer.clear()
        self.oracle.masses.clear()

    @rule(copied=st.sampled_from([copy.deepcopy, lambda buffer: pickle.loads(pickle.dumps(buffer))]))
    def replace_by_a_copy(self, copied: Any) -> None:
        self.buffer = copied(self.buffer)
        self.held = []  # which are of the old one

    @precondition(lambda self: self.oracle.masses)
    @rule(batch_size=st.integers(1, 40), beta=st.sampled_from([0.0, 0.4, 1.0]))
    def sample(self, batch_size: int, beta: float) -> None:
        state, without_mass = self.buffer.rng_state, self.buffer.stats()["without_mass"]
        batch = self.buffer.sample(batch_size, beta=beta)
        self.held = [*self.held[-3:], batch]
        drawn = batch.numpy()
        assert drawn.n.tolist() == drawn.ticket.tolist()
        probabilities, count = self.oracle.probabilities(), self.oracle.num_drawable()
        expected = np.array([probabilities[ticket] for ticket in drawn.ticket.tolist()])  # KeyError: it is not there
        assert (expected > 0).all()
        np.testing.assert_allclose(drawn.probability, expected, rtol=1e-5)
        weights = (count * expected) ** -beta
        rarest = min(p for p in probabilities.values() if p > 0)
        most = {"batch": weights.max(), "buffer": (count * rarest) ** -beta, None: 1.0}[self.rule.normalize]
        np.testing.assert_allclose(drawn.weight, weights / most, rtol=1e-4)
        has_mass = any(self.oracle.masses.values())
        assert self.buffer.stats()["without_mass"] == without_mass + (not has_mass)
        if has_mass and self.rule.uniform_mix == 0:
            self.check_targets(drawn.ticket.tolist(), philox(state["key"], 0, state["calls"], 0, batch_size))

    def check_targets(self, tickets: list[int], words: list[int]) -> None:
        """Check that row i is the transition that the call's i-th word falls on."""
        edges, size = self.oracle.edges(), len(tickets)
        for row, (ticket, word) in enumerate(zip(tickets, words, strict=True)):
            fraction = (word >> 11) * 2.0**-53
            target = (row + fraction) / size if self.rule.draws == "stratified" else fraction
            before, after = edges[ticket]
            assert before - SHARE <= target <= after + SHARE, f"row {row}"

    @precondition(lambda self: not self.oracle.masses)
    @rule()
    def sample_nothing(self) -> None:
        with pytest.raises(ValueError, match=r"empty"):
            self.buffer.sample(3)

    @invariant()
    def same_state(self) -> None:
        if not hasattr(self, "oracle"):
            return
        assert len(self.buffer) == len(self.oracle.masses)
        assert self.buffer.max_priority == pytest.approx(self.oracle.largest, rel=1e-12)
        first = self.oracle.head - len(self.oracle.masses)
        masses = self.buffer._masses.read(first, len(self.oracle.masses))
        np.testing.assert_allclose(masses, [*self.oracle.masses.values()], rtol=1e-6)


class NumpyPriorityMachine(PriorityMachine):
    output = "numpy"


@pytest.mark.parametrize("machine", [PriorityMachine, NumpyPriorityMachine])
def test_draws_are_the_oracles(machine: type[PriorityMachine]) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=300 if IS_LONG_FORM else 40, stateful_step_count=25)
    )
