# SPDX-License-Identifier: MIT
"""Lanes, and the n steps that surround a row: beside a list of trajectories a lane, bit by bit."""

from __future__ import annotations

import copy
import os
import pickle
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from stall import stalled_insert
from support import NativeBuffer
from test_fork import in_child

import fastreplay as fr

STEPS: dict[str, Any] = {
    "observation": (2,),
    "action": ((), "int64"),
    "reward": (),
    "costs": ((2,), "float64"),
    "next_observation": (2,),
    "terminated": ((), "bool"),
    "truncated": (),
    "pixels": ((3, 2), "uint8"),
}
SHARED: dict[str, Any] = {**STEPS, "pixels": fr.Field((2,), "uint8", stack=3)}


def rows(first: int, terminated: list[bool], truncated: list[bool]) -> dict[str, Any]:
    """Give rows that tell their numbers."""
    t = np.arange(first, first + len(terminated))
    return {
        "observation": np.stack([t, -t], 1).astype(np.float32),
        "action": t,
        "reward": (np.sin(t * 1.7) * 3).astype(np.float32),
        "costs": np.stack([np.cos(t), t / 3], 1),
        "next_observation": np.stack([t + 0.5, t * 2], 1).astype(np.float32),
        "terminated": np.array(terminated, bool),
        "truncated": np.where(np.array(truncated, bool), -2.0, -0.0).astype(np.float32),
        "pixels": np.stack([np.stack([(t - age) % 256, t // 256], 1) for age in (2, 1, 0)], 1).astype(np.uint8),
    }


@dataclass
class Oracle:
    """All that was ever inserted, by ticket; and for each what follows it in its trajectory."""

    capacity: int
    num_lanes: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    successor: dict[int, int] = field(default_factory=dict)
    newest: list[int | None] = field(default_factory=list)  # of each lane, where its trajectory goes on
    first_of: set[int] = field(default_factory=set)  # tickets that begin a trajectory
    closed: set[int] = field(default_factory=set)  # tickets after which there is an end, or a cut
    lost: set[int] = field(default_factory=set)  # lanes of which what came last is not known
    ended: set[int] = field(default_factory=set)  # lanes that stand after an end
    base: int = 0

    def __post_init__(self) -> None:
        self.newest = [None] * self.num_lanes

    def insert(self, lane: int, row: dict[str, Any]) -> None:
        ticket = len(self.rows)
        self.rows.append(row)
        before = self.newest[lane]
        if before is not None and ticket - before < self.capacity:
            self.successor[before] = ticket
        elif before is None and lane not in self.lost:
            self.first_of.add(ticket)
        self.lost.discard(lane)
        self.ended.discard(lane)
        self.newest[lane] = ticket
        if row["terminated"] or row["truncated"]:
            self.cut(lane)
            self.ended.add(lane)

    def leave_out(self, lane: int, *, is_end: bool) -> None:
        """Leave a row out: that of a reset, if it follows an end."""
        was_end = lane in self.ended
        self.newest[lane] = None
        (self.ended.add if is_end and not was_end else self.ended.discard)(lane)
        (self.lost.discard if is_end or was_end else self.lost.add)(lane)

    def cut(self, lane: int) -> None:
        if (newest := self.newest[lane]) is not None:
            self.closed.add(newest)
        self.lost.discard(lane)
        self.ended.discard(lane)
        self.newest[lane] = None

    def around(self, ticket: int, before: int, after: int) -> tuple[dict[int, int], bool]:
        """Give the ticket of each step that is there, and whether the trajectory itself has no more."""
        steps, predecessor = {0: ticket}, {later: each for each, later in self.successor.items()}
        for step in range(1, after + 1):
            if steps[step - 1] not in self.successor:
                break
            steps[step] = self.successor[steps[step - 1]]
        for step in range(-1, -before - 1, -1):
            if predecessor.get(steps[step + 1], -1) < self.first:
                break
            steps[step] = predecessor[steps[step + 1]]
        has_begun = min(steps) == -before or steps[min(steps)] in self.first_of
        return steps, has_begun and (max(steps) == after or steps[max(steps)] in self.closed)

    def trajectory_stats(self, before: int, after: int) -> dict[str, int]:
        """Count one by one what there is."""
        tickets = range(self.first, len(self.rows))
        followed = {later for each, later in self.successor.items() if each >= self.first}
        begins = [t for t in tickets if t not in followed]
        return {
            "transitions": len(tickets),
            "trajectories": len(begins),
            "longest": max([len(self.around(t, 0, len(self.rows))[0]) for t in begins], default=0),
            "without_beginning": sum(t not in self.first_of for t in begins),
            "complete": sum(self.around(t, before, after)[1] for t in tickets),
        }

    @property
    def first(self) -> int:
        return max(self.base, len(self.rows) - self.capacity)

    def n_step(self, ticket: int, n: int, gamma: float) -> tuple[list[int], dict[str, Any], float]:
        chain = [ticket]
        while len(chain) < n and chain[-1] in self.successor:
            chain.append(self.successor[chain[-1]])
        weight, reward, costs = 1.0, np.float64(0), np.zeros(2)
        for each in chain:
            reward += weight * np.float64(self.rows[each]["reward"])
            costs += weight * self.rows[each]["costs"]
            weight *= gamma
        begin, last = self.rows[ticket], self.rows[chain[-1]]
        expected = {**begin, **{name: last[name] for name in ("next_observation", "terminated", "truncated")}}
        return chain, {**expected, "reward": np.float32(reward), "costs": costs}, weight


def assert_follows(oracle: Oracle, batch: Any, rule: fr.NStep) -> None:
    batch = batch.numpy()
    for i, ticket in enumerate(batch.ticket.tolist()):
        assert oracle.first <= ticket < len(oracle.rows)
        _, expected, weight = oracle.n_step(ticket, rule.n, rule.gamma)
        for name, value in expected.items():
            assert np.asarray(batch[name][i]).tobytes() == np.asarray(value, batch[name].dtype).tobytes(), name
        assert batch.discount[i] == np.float32(weight)


def assert_surrounds(oracle: Oracle, batch: Any, rule: fr.Sequence) -> None:
    """Check each step of each row against the oracle."""
    batch = batch.numpy()
    length, stride = rule.burn_in + rule.length, rule.stride
    for i, ticket in enumerate(batch.ticket.tolist()):
        assert oracle.first <= ticket < len(oracle.rows)
        steps, is_complete = oracle.around(ticket, rule.burn_in * stride, (rule.length - 1) * stride)
        assert is_complete or rule.incomplete == "pad"
        for k in range(length):
            step = (k - rule.burn_in) * stride
            is_there = step in steps
            nearest = steps[min(max(step, min(steps)), max(steps))]
            assert batch.mask[i, k] == is_there
            assert batch.trained[i, k] == (is_there and k >= rule.burn_in)
            assert batch.is_first[i, k] == (is_there and nearest in oracle.first_of)
            for name in STEPS:
                got = batch[name][i, k] if name not in rule.first_only else None
                expected = np.asarray(oracle.rows[nearest][name], batch[name].dtype)
                if not is_there and rule.pad == "zero":
                    expected = np.zeros_like(expected)
                assert got is None or np.asarray(got).tobytes() == expected.tobytes(), (name, step)
        for name in rule.first_only:
            first = next(k for k in range(length) if batch.mask[i, k])
            expected = oracle.rows[steps[(first - rule.burn_in) * stride]][name]
            assert np.asarray(batch[name][i]).tobytes() == np.asarray(expected, batch[name].dtype).tobytes()


def assert_windows(oracle: Oracle, batch: Any, rule: fr.Window) -> None:
    """Check each step of the fields that are named, and the row's own others."""
    batch, taken = batch.numpy(), dict(rule.steps)
    before, after = (max(0, *(sign * each[end] for each in taken.values())) for sign, end in ((-1, 0), (1, -1)))
    for i, ticket in enumerate(batch.ticket.tolist()):
        steps, is_complete = oracle.around(ticket, before, after)
        assert is_complete or rule.incomplete == "pad"
        for name in STEPS:
            if name not in taken:
                assert batch[name][i].tobytes() == np.asarray(oracle.rows[ticket][name], batch[name].dtype).tobytes()
                continue
            mask = getattr(batch, f"{name}_mask")[i]
            assert mask.tolist() == [step in steps for step in taken[name]]
            for k, step in enumerate(taken[name]):
                nearest = steps[min(max(step, min(steps)), max(steps))]
                expected = np.asarray(oracle.rows[nearest][name], batch[name].dtype)
                if step not in steps and rule.pad == "zero":
                    expected = np.zeros_like(expected)
                assert np.asarray(batch[name][i, k]).tobytes() == expected.tobytes()


RANGES = st.builds(lambda first, count, stride: range(first, first + count * stride, stride),
                   st.integers(-6, 4), st.integers(1, 5), st.integers(1, 3))  # fmt: skip


def rule_of(n: int, gamma: float) -> fr.NStep:
    return fr.NStep(n, gamma, reward=("reward", "costs"))


class Streams(RuleBasedStateMachine):
    """Interleaved lanes, ends of both kinds, cuts, laps, clears, copies, several rules at once."""

    @initialize(
        capacity=st.sampled_from([1, 2, 3, 7, 30, 64]),
        lanes=st.sampled_from([1, 2, 5]),
        output=st.sampled_from(["numpy", "torch"]),
        weighed=st.booleans(),
        shares=st.booleans(),
    )
    def make(self, capacity: int, lanes: int, output: str, *, weighed: bool, shares: bool) -> None:
        priorities = fr.Priorities() if weighed else None
        options: dict[str, Any] = {"seed": 5, "output": output, "priorities": priorities, "timeout": 10}
        fields = SHARED if shares else STEPS
        self.buffer = NativeBuffer(capacity, fields, lanes=lanes, share_next=shares, **options)
        self.lanes = lanes
        self.oracle = Oracle(capacity, lanes)
        self.given: dict[int, tuple[Any, Any]] = {}  # by lane, the newest next observation and pixels

    def rows(self, order: list[int], ends: list[int]) -> dict[str, Any]:
        """Give rows of these lanes, most of which go on where their lanes were."""
        made = rows(len(self.oracle.rows), [end == 1 for end in ends], [end == 2 for end in ends])
        for i, lane in enumerate(order):
            pixels, number = made["pixels"][i], int(made["action"][i])
            if lane in self.given and number % 5 > 0:
                made["observation"][i] = self.given[lane][0]
                pixels[:-1] = self.given[lane][1][1:]
            elif number % 3 == 0:
                pixels[:] = pixels[-1]  # as wrappers do after a reset
            self.given[lane] = made["next_observation"][i], pixels
        return made

    def insert(self, order: list[int], ends: list[int], **how: Any) -> None:
        made = self.rows(order, ends)
        self.buffer.extend(**made, **how)
        for i, lane in enumerate(order):
            self.oracle.insert(lane, {name: values[i] for name, values in made.items()})

    @rule(lane=st.integers(0, 4), end=st.sampled_from([0, 0, 0, 1, 2]))
    def add(self, lane: int, end: int) -> None:
        lane %= self.lanes
        made = {k: v[0] for k, v in self.rows([lane], [end]).items()}
        self.buffer.add(**made, **({"lane": lane} if self.lanes > 1 or lane % 2 else {}))
        self.oracle.insert(lane, made)

    @rule(ends=st.lists(st.sampled_from([0, 0, 0, 0, 1, 2]), min_size=5, max_size=5))
    def step(self, ends: list[int]) -> None:
        self.insert(list(range(self.lanes)), ends[: self.lanes])

    @rule(
        order=st.lists(st.tuples(st.integers(0, 4), st.sampled_from([0, 0, 0, 0, 1, 2])), min_size=1, max_size=20),
    )
    def extend(self, order: list[tuple[int, int]]) -> None:
        lanes = [lane % self.lanes for lane, _ in order]
        self.insert(lanes, [end for _, end in order], lanes=lanes)

    @rule(lane=st.integers(0, 4), count=st.integers(0, 40))
    def extend_one(self, lane: int, count: int) -> None:
        lane %= self.lanes
        self.insert([lane] * count, [0] * count, lanes=lane)

    @rule(
        mask=st.lists(st.booleans(), min_size=5, max_size=5), ends=st.lists(st.integers(0, 2), min_size=5, max_size=5)
    )
    def masked_step(self, mask: list[bool], ends: list[int]) -> None:
        mask, ends = mask[: self.lanes], ends[: self.lanes]
        kept = [lane for lane in range(self.lanes) if mask[lane]]
        numbers = np.cumsum(mask) - 1 + len(self.oracle.rows)
        made = [rows(int(numbers[i]), [ends[i] == 1], [ends[i] == 2]) for i in range(self.lanes)]
        fields = {name: np.concatenate([each[name] for each in made]) for name in STEPS}
        self.buffer.extend(**fields, mask=np.array(mask))
        for lane in {*range(self.lanes)} - {*kept}:
            self.oracle.leave_out(lane, is_end=ends[lane] > 0)
        for lane in kept:
            self.oracle.insert(lane, {name: values[lane] for name, values in fields.items()})

    @rule(lane=st.integers(0, 4))
    def cut(self, lane: int) -> None:
        lane %= self.lanes
        self.buffer.cut(lane)
        self.oracle.cut(lane)

    @rule()
    def clear(self) -> None:
        self.buffer.clear()
        self.oracle.base = len(self.oracle.rows)

    @rule(how=st.sampled_from(["pickle", "copy", "deepcopy", "face"]))
    def reproduce(self, how: str) -> None:
        if how == "face":
            (self.buffer,) = self.buffer.spawn(1)
            return
        before = self.buffer
        ways = {"pickle": lambda b: pickle.loads(pickle.dumps(b)), "copy": copy.copy, "deepcopy": copy.deepcopy}
        self.buffer = ways[how](before)
        # What had left the ring is not saved: a lane whose newest transition had, begins anew.
        for lane, newest in enumerate(self.oracle.newest):
            if newest is not None and newest < self.oracle.first:
                self.oracle.newest[lane] = None
                self.oracle.lost.add(lane)

    @precondition(lambda self: len(self.buffer) > 0)
    @rule(n=st.integers(1, 12), gamma=st.sampled_from([0.0, 0.5, 0.99, 1.0, 1.5]), ahead=st.booleans())
    def sample(self, n: int, gamma: float, *, ahead: bool) -> None:
        follow = rule_of(n, gamma)
        if ahead:
            with self.buffer.loader(17, steps=2, follow=follow) as loader:
                for batch in loader:
                    assert_follows(self.oracle, batch, follow)
        else:
            assert_follows(self.oracle, self.buffer.sample(33, follow=follow), follow)
        epochs = self.buffer.sampler(draw=fr.Epochs(), follow=follow)
        drawn = epochs.sample(100)
        assert_follows(self.oracle, drawn, follow)
        assert sorted(map(int, drawn.ticket)) == list(range(self.oracle.first, len(self.oracle.rows)))

    def drawn(self, follow: Any, *, ahead: bool) -> Any:
        """Give minibatches, or none where nothing is complete."""
        if ahead:
            with self.buffer.loader(17, steps=2, follow=follow) as loader:
                yield from loader
        else:
            first = self.buffer.sample(33, follow=follow)
            yield first
            yield self.buffer.sample(33, follow=follow, out=first)

    @precondition(lambda self: len(self.buffer) > 0)
    @rule(
        follow=st.builds(
            fr.Sequence,
            st.integers(1, 9),
            st.integers(0, 7),
            st.integers(1, 3),
            st.sampled_from(["pad", "redraw"]),
            st.sampled_from(["edge", "zero"]),
            st.sampled_from([(), ("costs",), ("action", "observation")]),
        ),
        ahead=st.booleans(),
    )
    def sample_sequences(self, follow: fr.Sequence, *, ahead: bool) -> None:
        tickets = range(self.oracle.first, len(self.oracle.rows))
        reach = follow.burn_in * follow.stride, (follow.length - 1) * follow.stride
        expected = self.oracle.trajectory_stats(*reach)
        assert self.buffer.trajectory_stats(follow) == expected
        if follow.incomplete == "redraw" and not expected["complete"]:
            with pytest.raises(ValueError, match="no window of"):
                next(iter(self.drawn(follow, ahead=False)))
            return
        for batch in self.drawn(follow, ahead=ahead):
            assert_surrounds(self.oracle, batch, follow)
        if follow.incomplete == "pad":
            drawn = self.buffer.sampler(draw=fr.Epochs(), follow=follow).sample(100)
            assert_surrounds(self.oracle, drawn, follow)
            assert sorted(map(int, drawn.ticket)) == [*tickets]

    @precondition(lambda self: len(self.buffer) > 0)
    @rule(observation=RANGES, costs=RANGES, pad=st.sampled_from(["edge", "zero"]), ahead=st.booleans())
    def sample_windows(self, observation: range, costs: range, pad: Any, *, ahead: bool) -> None:
        follow = fr.Window({"observation": observation, "costs": costs}, pad=pad)
        for batch in self.drawn(follow, ahead=ahead):
            assert_windows(self.oracle, batch, follow)

    @invariant()
    def holds_as_many(self) -> None:
        if hasattr(self, "oracle"):
            assert len(self.buffer) == len(self.oracle.rows) - self.oracle.first


TestStreams = Streams.TestCase
TestStreams.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def filled(count: int = 60, lanes: int = 1, **options: Any) -> Any:
    """Give a buffer of so many steps, of which every tenth terminates."""
    buffer = NativeBuffer(100, STEPS, seed=0, lanes=lanes, **{"output": "numpy", **options})
    for t in range(count):
        ends = [t % 10 == 9] * lanes
        buffer.extend(**rows(t * lanes, ends, [False] * lanes))
    return buffer


def test_targets_of_a_truncated_trajectory_bootstrap() -> None:
    buffer = NativeBuffer(10, {"reward": (), "terminated": ((), "bool"), "truncated": ((), "bool")}, lanes=1, seed=0)
    for terminated, truncated in ((False, False), (True, False), (False, False), (False, True)):
        buffer.add(1.0, terminated, truncated)
    drawn = buffer.sampler(draw=fr.Epochs(shuffle=False), follow=fr.NStep(5, 0.5)).sample(4)
    assert drawn.reward.tolist() == [1.5, 1, 1.5, 1]
    assert drawn.discount.tolist() == [0.25, 0.5, 0.25, 0.5]
    assert drawn.terminated.tolist() == [True, True, False, False]


def test_editing_an_end_through_a_view_moves_nothing() -> None:
    buffer = filled()
    before = buffer.sampler(draw=fr.Epochs(shuffle=False)).sample(60, follow=fr.NStep(4, 0.9)).discount.copy()
    buffer.view("terminated")[...] = True
    after = buffer.sampler(draw=fr.Epochs(shuffle=False)).sample(60, follow=fr.NStep(4, 0.9)).discount
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("bool", [True]),
        ("uint8", [1, 255]),
        ("int32", [-1, 1 << 30]),
        ("int64", [-(2**63), 1 << 40]),
        ("float16", [1, -1, np.inf]),
        ("float32", [1, 1e-45, -np.inf, np.nan]),
        ("float64", [5e-324, np.nan]),
    ],
)
def test_every_number_but_zero_ends(dtype: str, values: list[float]) -> None:
    zeros = [0, -0.0] if dtype.startswith("f") else [0]
    for value, is_end in [*((v, True) for v in values), *((z, False) for z in zeros)]:
        buffer = NativeBuffer(10, {"reward": (), "done": ((3,), dtype)}, lanes=1, ends=["done"], seed=0)
        buffer.add(1.0, np.array([0, value, 0], dtype))
        buffer.add(1.0, np.zeros(3, dtype))
        drawn = buffer.sampler(draw=fr.Epochs(shuffle=False), follow=fr.NStep(2, 1.0)).sample(2)
        assert drawn.reward.tolist() == [1 if is_end else 2, 1], (dtype, value)


def test_a_stored_discount_weighs_what_comes_after() -> None:
    fields = {"reward": ((), "float64"), "discount": ((), "float64"), "last": ((), "bool")}
    buffer = NativeBuffer(10, fields, lanes=1, ends=["last"], output="numpy", seed=0)
    buffer.extend(reward=[1, 2, 4], discount=[0.5, 0.25, 0.0], last=[False, False, True])
    follow = fr.NStep(3, 0.9, discount="discount")
    drawn = buffer.sampler(draw=fr.Epochs(shuffle=False), follow=follow).sample(3)
    w1 = 1.0 * 0.9 * 0.5
    w2 = w1 * 0.9 * 0.25
    assert drawn.reward.tolist() == [1 + w1 * 2 + w2 * 4, 2 + 0.9 * 0.25 * 4, 4]
    assert drawn.discount.tolist() == [0, 0, 0]
    assert drawn.discount.dtype == np.float64


@pytest.mark.parametrize("share", [False, True])
def test_which_fields_are_those_of_the_last_step(*, share: bool) -> None:
    """What is the next of something by its name, or is said to be; each part of a dict; nothing else."""
    nexts = {"seen_next": (3,), "next_nested/a": (), "next_nested/b/c": (2,)}
    nows = {"seen": (3,), "nested/a": (), "nested/b/c": (2,), "later": (), "next": ()}
    buffer = NativeBuffer(
        20,
        {**nexts, **nows, "reward": (), "terminated": ((), "bool")},
        lanes=1,
        share_next=share,
        output="numpy",
        seed=0,
    )
    for i in range(12):
        of_now = {name: np.full(shape, i) for name, shape in nows.items()}
        of_next = {name: np.full(shape, i + 1) for name, shape in nexts.items()}
        buffer.add(**of_next, **of_now, reward=1, terminated=i == 7)

    last = np.array([2, 3, 4, 5, 6, 7, 7, 7, 10, 11, 11, 11])
    for said in ((), "later", ["later", "nested"], ["nested/b"]):
        parts = (said,) if isinstance(said, str) else said
        of_last = {name for name in nows for part in parts if f"{name}/".startswith(f"{part}/")}
        batch = buffer.sampler(draw=fr.Epochs(shuffle=False), follow=fr.NStep(3, 1.0, last=said)).sample(12)
        for name, shape in nows.items():
            steps = last if name in of_last else np.arange(12)
            assert (batch[name].reshape(12, -1) == steps[:, None]).all(), (said, name)
            assert batch[name].shape == (12, *shape)
        for name in nexts:
            assert (batch[name].reshape(12, -1) == last[:, None] + 1).all(), (said, name)


def test_endless_streams_and_other_names() -> None:
    buffer = NativeBuffer(10, {"reward": ()}, lanes=1, ends=(), output="numpy", seed=0)
    buffer.extend([1, 2, 3, 4])
    order = buffer.sampler(draw=fr.Epochs(shuffle=False), follow=fr.NStep(10, 1.0))
    assert order.sample(4).reward.tolist() == [10, 9, 7, 4]
    buffer.cut()
    buffer.extend([5, 6])
    order = buffer.sampler(draw=fr.Epochs(shuffle=False), follow=fr.NStep(10, 1.0))
    assert order.sample(6).reward.tolist() == [10, 9, 7, 4, 11, 6]


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_vector_environments_bring_their_lanes(mode: str) -> None:
    """Of Gymnasium: rows that only reset are left out, and no window crosses an end."""
    modes = gym.vector.AutoresetMode
    kind = modes.NEXT_STEP if mode == "next_step" else modes.SAME_STEP
    envs = gym.make_vec("CartPole-v1", 3, vectorization_mode="sync", vector_kwargs={"autoreset_mode": kind})
    buffer: Any = fr.ReplayBuffer.from_env(envs, 3000, lanes=True, output="numpy", seed=0)
    obs, _ = envs.reset(seed=0)
    envs.action_space.seed(0)
    ended = np.zeros(3, bool)
    num_transitions = 0
    for _ in range(300):
        action = envs.action_space.sample()
        next_obs, reward, terminated, truncated, info = envs.step(action)
        stored = next_obs
        if mode == "same_step" and "final_obs" in info:
            stored = next_obs.copy()
            for env in np.flatnonzero(info["_final_obs"]):
                stored[env] = info["final_obs"][env]
        buffer.extend(obs, action, reward, stored, terminated, truncated)
        num_transitions += 3 - int(ended.sum()) if mode == "next_step" else 3
        ended, obs = terminated | truncated, next_obs
    assert len(buffer) == num_transitions
    rules = [fr.NStep(n, 1.0) for n in (1, 3)]
    alone, three = (buffer.sampler(draw=fr.Epochs(shuffle=False), follow=rule).sample(3000) for rule in rules)
    assert set(three.reward.tolist()) == {1, 2, 3}
    for i in range(0, len(alone), 7):
        # The next observation of three steps is that of the last one, found by its observation.
        at: Any = i
        for _ in range(int(three.reward[i]) - 1):
            (at,) = np.flatnonzero((alone.observation == alone.next_observation[at]).all(1))
        np.testing.assert_array_equal(three.next_observation[i], alone.next_observation[at])
        assert three.terminated[i] == alone.terminated[at]


def same_steps(envs: Any, how: Any, **options: Any) -> Any:
    """Fill a buffer with 60 steps of CartPole pushed one way, whose episodes are short."""
    buffer: Any = fr.ReplayBuffer.from_env(envs, 3000, output="numpy", seed=0, **options)
    obs, _ = envs.reset(seed=0)
    ended = np.zeros(envs.num_envs, bool)
    for _ in range(60):
        action = np.zeros(envs.num_envs, np.int64)
        next_obs, reward, terminated, truncated, _ = envs.step(action)
        buffer.extend(obs, action, reward, next_obs, terminated, truncated, **how(ended))
        ended, obs = terminated | truncated, next_obs
    return buffer


def test_resets_are_left_out_whatever_way_rows_are_given() -> None:
    """A row after an end only resets: also where lanes are named, where a mask leaves it out, in another order."""
    envs = gym.make_vec("CartPole-v1", 3, vectorization_mode="sync")
    plain = same_steps(envs, lambda _: {}, lanes=True)
    assert 100 < len(plain) < 180
    for how, lanes in (
        (lambda _: {}, 3),
        (lambda _: {"lanes": np.arange(3)}, True),
        (lambda ended: {"mask": ~ended}, True),
        (lambda ended: {"mask": ~ended, "lanes": np.arange(3)}, 3),
    ):
        other = same_steps(envs, how, lanes=lanes)
        np.testing.assert_array_equal(other[:].observation, plain[:].observation)
        follow = fr.NStep(4, 0.9)
        order = [each.sampler(draw=fr.Epochs(shuffle=False), follow=follow).sample(200) for each in (plain, other)]
        np.testing.assert_array_equal(order[0].next_observation, order[1].next_observation)
        np.testing.assert_array_equal(order[0].discount, order[1].discount)
    masked = NativeBuffer(60, STEPS, seed=0, lanes=3)  # that knows of no resets, told by its user
    assert masked.lanes == 3


@pytest.mark.parametrize(
    "wraps", [lambda env: env, gym.wrappers.FlattenObservation, gym.wrappers.RecordEpisodeStatistics]
)
@pytest.mark.parametrize("lanes", [True, 1, 2])
def test_one_environment_that_resets_itself(wraps: Any, lanes: Any) -> None:
    """By Gymnasium's `Autoreset`, in the step after an end, whatever is around it; else every step is a transition."""
    plain = gym.make("CartPole-v1")
    env = wraps(gym.wrappers.Autoreset(plain))
    buffer: Any = fr.ReplayBuffer.from_env(env, 500, lanes=lanes, output="numpy")
    other: Any = fr.ReplayBuffer.from_env(wraps(plain), 500, lanes=lanes, output="numpy")
    where = {} if lanes in (True, 1) else {"lane": 1}
    obs, _ = env.reset(seed=0)
    num_resets, ended = 0, False
    for _ in range(100):
        next_obs, reward, terminated, truncated, _ = env.step(1)
        for each in (buffer, other):
            each.add(obs, 1, reward, next_obs, terminated, truncated, **where)
        num_resets += ended
        obs, ended = next_obs, terminated or truncated
    assert num_resets > 5
    assert (len(buffer), len(other)) == (100 - num_resets, 100)
    assert (buffer[:].reward == 1).all()
    steps = buffer.sampler(draw=fr.Epochs(shuffle=False), follow=fr.Sequence(2)).sample(500)
    goes_on = steps.mask[:, 1]
    np.testing.assert_array_equal(steps.observation[goes_on, 1], steps.next_observation[goes_on, 0])


def test_resets_of_one_lane_in_one_call() -> None:
    """Successive rows: each tells what the next one is."""
    envs = gym.make_vec("CartPole-v1", 1, vectorization_mode="sync")
    buffer: Any = fr.ReplayBuffer.from_env(envs, 100, lanes=True, output="numpy")
    ends = np.array([0, 1, 0, 0, 1, 0, 0, 0], bool)
    fields = (np.zeros((8, 4)), np.arange(8) % 2, np.arange(8.0), np.zeros((8, 4)), ends, np.zeros(8, bool))
    buffer.extend(*fields)
    assert buffer[:].reward.tolist() == [0, 1, 3, 4, 6, 7]
    buffer.clear()
    for i in range(8):
        buffer.add(*(value[i] for value in fields))
    assert buffer[:].reward.tolist() == [0, 1, 3, 4, 6, 7]
    buffer.add(*(value[1] for value in fields))
    buffer.cut()  # reset by hand: the next row is none of a reset
    buffer.add(*(value[0] for value in fields))
    assert len(buffer) == 8


def test_lanes_fit_the_environment() -> None:
    envs = gym.make_vec("CartPole-v1", 3, vectorization_mode="sync")
    with pytest.raises(ValueError, match="lanes: expected True, or one for each of 3 environments, got 1"):
        fr.ReplayBuffer.from_env(envs, 100, lanes=1)
    with pytest.raises(ValueError, match="ends: expected 'terminated' and 'truncated' among them"):
        fr.ReplayBuffer.from_env(envs, 100, lanes=True, ends=["terminated"])
    buffer: Any = fr.ReplayBuffer.from_env(envs, 100, lanes=6)  # those of another process, too
    assert (buffer.lanes, buffer.ends) == (6, ("terminated", "truncated"))
    assert fr.ReplayBuffer.from_env(envs, 100).lanes is None


def test_no_window_crosses_a_row_that_was_left_out() -> None:
    fields = {"reward": (), "terminated": ((), "bool")}
    for ends in ([0, 0, 0, 0], [0, 1, 0, 0]):
        buffer = NativeBuffer(10, fields, lanes=1, output="numpy", seed=0)
        buffer.extend([1, 1, 1, 1], np.array(ends, bool), mask=[True, False, True, True])
        order = buffer.sampler(draw=fr.Epochs(shuffle=False), follow=fr.NStep(3, 1.0))
        assert order.sample(3).reward.tolist() == [1, 2, 1]


def test_a_single_environment_is_one_lane() -> None:
    env = gym.make("CartPole-v1")
    buffer: Any = fr.ReplayBuffer.from_env(env, 100, lanes=True)
    obs, _ = env.reset(seed=0)
    for _ in range(50):
        action = env.action_space.sample()
        next_obs, reward, terminated, truncated, _ = env.step(action)
        buffer.add(obs, action, reward, next_obs, terminated, truncated)
        obs = env.reset()[0] if terminated or truncated else next_obs
    assert len(buffer) == 50
    assert buffer.sample(64, follow=fr.NStep(3, 1.0)).reward.max() == 3


WIDE: dict[str, Any] = {"x": ((8, 1024), "float32"), "reward": ((), "float64"), "done": ((), "bool")}


def wide(first: int, count: int) -> dict[str, Any]:
    """Give rows that take a page each, so that their inserts stall where a test says."""
    t = np.arange(first, first + count)
    return {"x": np.tile(t.astype(np.float32)[:, None, None], (1, 8, 1024)), "reward": t * 1.0, "done": t < 0}


def test_a_lane_has_one_owner_at_a_time() -> None:
    """A second thread in a lane is refused before a ticket is taken, also one that cuts; other lanes go on."""
    buffer = NativeBuffer(64, WIDE, seed=0, lanes=3, ends=["done"], output="numpy", timeout=5)
    buffer.extend(**wide(0, 3))
    with stalled_insert(buffer, {**wide(3, 8)}, "x", at=4, lanes=1) as insert:
        message = "^lane 1: another thread is inserting into it; a lane has one owner at a time$"
        attempts: tuple[Any, ...] = (
            lambda: buffer.extend(**wide(90, 1), lanes=1),
            lambda: buffer.extend(**wide(90, 3)),
            lambda: buffer.extend(**wide(90, 4), lanes=[0, 2, 1, 0]),
            lambda: buffer.add(**{name: value[0] for name, value in wide(90, 1).items()}, lane=1),
            lambda: buffer.cut(1),
            lambda: buffer.spawn(1)[0].cut(1),
        )
        for refused in attempts:
            with pytest.raises(RuntimeError, match=message):
                refused()
        assert buffer.stats()["inserted"] == 3 + 8
        buffer.extend(**wide(11, 2), lanes=[0, 2])  # the lanes that a refused call named before are free again
        buffer.cut(2)
        insert.release()
    buffer.extend(**wide(13, 3))
    drawn = buffer.sampler(draw=fr.Epochs(shuffle=False), follow=fr.NStep(100, 1.0)).sample(16)
    tickets = [*range(16)]
    lane_0, lane_1 = [0, 11, 13], [1, *range(3, 11), 14]
    expected = {t: sum(lane[lane.index(t) :]) for lane in (lane_0, lane_1, [2, 12], [15]) for t in lane}
    assert dict(zip(tickets, drawn.reward.tolist(), strict=True)) == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_of_an_unfinished_insert_has_the_other_lanes_whole() -> None:
    """What is unfinished is dropped, what came later moves, and the lane begins anew."""
    buffer = NativeBuffer(64, WIDE, seed=0, lanes=3, ends=["done"], output="numpy", timeout=5)
    for t in range(0, 30, 3):
        buffer.extend(**wide(t, 3))

    def child() -> list[tuple[float, float]]:
        buffer.extend(**wide(100, 3))
        order = buffer.sampler(draw=fr.Epochs(shuffle=False), follow=fr.NStep(3, 1.0))
        drawn = order.sample(64)
        return list(zip(drawn.x[:, 0, 0].tolist(), drawn.reward.tolist(), strict=True))

    with stalled_insert(buffer, wide(30, 8), "x", at=3, lanes=1):  # in its first chunk of 8: none is published
        for t in range(38, 46, 2):
            buffer.extend(**wide(t, 2), lanes=[2, 0])
        found = in_child(child)
    lanes = {
        0: [*range(0, 30, 3), 39, 41, 43, 45, 100],
        1: [*range(1, 30, 3)],
        2: [*range(2, 30, 3), 38, 40, 42, 44, 102],
    }
    expected = {t: sum(lane[i : i + 3]) for lane in lanes.values() for i, t in enumerate(lane)}
    assert dict(found) == {**expected, 101: 101}
    assert [number for number, _ in found] == [*range(30), *range(38, 46), 100, 101, 102]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("weighed", [False, True])
def test_lanes_go_on_in_a_child(*, weighed: bool) -> None:
    buffer = filled(30, lanes=3, priorities=fr.Priorities() if weighed else None)
    follow = rule_of(5, 0.9)

    def go_on() -> tuple[Any, Any]:
        buffer.extend(**rows(90, [False] * 3, [False] * 3))
        drawn = buffer.sampler(draw=fr.Epochs(shuffle=False)).sample(100, follow=follow)
        return drawn.reward.tolist(), drawn.discount.tolist()

    assert in_child(go_on) == go_on()


def test_rules_share_draws_and_take_each_others_minibatches() -> None:
    buffer, twin = filled(), filled()
    one, other = fr.NStep(3, 0.9), fr.NStep(5, 0.5)
    first = buffer.sample(16, follow=one)
    held = first.reward
    second = buffer.sample(16, follow=other, out=first)
    assert second is first
    assert second.reward is held
    assert twin.sample(16).ticket.tolist() != second.ticket.tolist()
    assert twin.sample(16).ticket.tolist() == second.ticket.tolist()  # the second call, whatever follows
    with pytest.raises(ValueError, match="out: expected a minibatch of fields alone"):
        buffer.sample(16, out=first)
    with pytest.raises(ValueError, match="out: expected a minibatch with discount"):
        buffer.sample(16, out=buffer.sample(16), follow=one)
    with pytest.raises(
        ValueError, match="out: expected a minibatch whose follow reaches as far and makes the same fields"
    ):
        buffer.sample(16, out=first, follow=fr.NStep(3, 0.9, reward="costs"))
    assert buffer.sample(16, follow=fr.NStep(3, 0.9)).to("cpu").discount.shape == (16,)
    halved = buffer.sample(16, follow=fr.NStep(3, 0.9)).to(torch.bfloat16)
    assert (halved.reward.dtype, halved.discount.dtype) == (torch.bfloat16, torch.float32)


def test_weights_and_priorities_are_of_the_drawn_step() -> None:
    buffer = filled(priorities=fr.Priorities(alpha=1, eps=0))
    buffer.update_priorities(np.arange(60), np.where(np.arange(60) == 12, 1.0, 0.0))
    drawn = buffer.sample(8, follow=fr.NStep(3, 0.9))
    assert set(drawn.ticket.tolist()) == {12}
    assert drawn.weight.tolist() == [1] * 8
    assert buffer.update_priorities(drawn, np.zeros(8)) == (8, 0)


def test_samplers_keep_their_rule() -> None:
    buffer = filled()
    sampler = buffer.sampler(follow=fr.NStep(3, 0.9), seed=4)
    again = pickle.loads(pickle.dumps(sampler))
    assert again.follow == sampler.follow == fr.NStep(3, 0.9)
    np.testing.assert_array_equal(again.sample(32).reward, sampler.sample(32).reward)
    state = sampler.rng_state
    first = sampler.sample(32).reward.copy()
    sampler.rng_state = state
    np.testing.assert_array_equal(sampler.sample(32).reward, first)
    assert sampler.stats()["sampled"] == 96
    assert "NStep(n=3, gamma=0.9" in repr(sampler)


def test_memory_is_told() -> None:
    plain, with_lanes = NativeBuffer(1000, STEPS), NativeBuffer(1000, STEPS, lanes=1)
    assert with_lanes.stats()["bytes"] - plain.stats()["bytes"] < 17 * 1000
    assert plain.stats()["bytes"] == NativeBuffer(1000, STEPS).stats()["bytes"]


@pytest.mark.parametrize("has_priorities", [False, True])
@pytest.mark.parametrize("given", ["in order", "by name", "in another order", "the lane first", "the lane between"])
def test_the_lane_of_an_add(given: str, *, has_priorities: bool) -> None:
    fields: dict[str, Any] = {"observation": (2,), "reward": (), "terminated": ((), "bool")}
    options: dict[str, Any] = {"priorities": fr.Priorities()} if has_priorities else {}
    buffers = [NativeBuffer(10, fields, output="numpy", lanes=3, **options) for _ in range(2)]
    for step in range(25):
        row = {"observation": np.full(2, step, np.float32), "reward": step, "terminated": step % 4 == 3}
        lane = {"lane": (step * 2) % 3}
        if given == "in order":
            buffers[0].add(*row.values(), **lane)
        elif given == "by name":
            buffers[0].add(**row, **lane)
        elif given == "in another order":
            buffers[0].add(**dict(reversed(row.items())), **lane)
        elif given == "the lane first":
            buffers[0].add(**lane, **row)
        else:
            buffers[0].add(row.pop("observation"), reward=row.pop("reward"), **lane, **row)
        buffers[1].extend(
            observation=[[step] * 2], reward=[step], terminated=[step % 4 == 3], lanes=np.array([lane["lane"]])
        )
    drawn = [
        each.sampler(draw=fr.Epochs(shuffle=False), follow=fr.Sequence(3, burn_in=2)).sample(10) for each in buffers
    ]
    for name, value in drawn[1].items():
        np.testing.assert_array_equal(drawn[0][name], value, err_msg=name)
    np.testing.assert_array_equal(drawn[0].mask, drawn[1].mask)


def test_the_lane_of_an_add_takes_no_code_of_pythons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which took a hundred times as long as the insert."""
    buffer = NativeBuffer(10, {"reward": ()}, output="numpy", lanes=2, ends=())
    nested = NativeBuffer(10, {"a/x": (), "a/y": ()}, output="numpy", lanes=2, ends=())
    monkeypatch.setattr("fastreplay.buffer.insert.Given", None)
    for lane in (0, 1, 1):
        buffer.add(lane, lane=lane)
        buffer.add(reward=lane, lane=lane)
    assert buffer[:].reward.tolist() == [0, 0, 1, 1, 1, 1]
    nested.add(**{"a/x": 1.0, "a/y": 2.0}, lane=1)
    with pytest.raises(TypeError, match="not callable"):
        buffer.add(0.0, lane=np.int64(1))


@pytest.mark.parametrize("lane", [-1, 2, 2**31, 2**63, 2**70, -(2**70)])
def test_a_lane_that_is_none(lane: int) -> None:
    buffer = NativeBuffer(10, {"reward": ()}, output="numpy", lanes=2, ends=())
    with pytest.raises(ValueError, match=rf"^lane: expected a lane in \[0, 2\), got {lane}$"):
        buffer.add(1.0, lane=lane)
    with pytest.raises(ValueError, match=rf"^lanes: expected a lane in \[0, 2\), got {lane}$"):
        buffer.extend([1.0, 2.0], lanes=lane)
    if abs(lane) < 2**63:
        with pytest.raises(ValueError, match=rf"^lanes\[1\]: expected a lane in \[0, 2\), got {lane}$"):
            buffer.extend([1.0, 2.0, 3.0], lanes=[0, lane, 1])
    for bad in (1.0, "1", True, None, torch.tensor(1.0)):
        with pytest.raises((TypeError, ValueError), match=r"^lane: expected (an integer, got|which of the 2)"):
            buffer.add(1.0, lane=bad)
    with pytest.raises(TypeError, match=r"^unknown field 'rewrd'; expected reward"):
        buffer.add(rewrd=1.0, lane=1)
    with pytest.raises(TypeError, match=r"^missing field 'reward'"):
        buffer.add(lane=1)
    with pytest.raises(TypeError, match=r"^expected at most 1 field"):
        buffer.add(1.0, 2.0, lane=1)
    assert len(buffer) == 0


def test_a_mask_may_be_a_tensor() -> None:
    buffer = NativeBuffer(10, {"reward": ()}, lanes=1, ends=())
    buffer.extend([0, 1, 2], mask=torch.tensor([True, False, True]))
    buffer.extend([3, 4, 5], mask=torch.tensor([[False, True], [True, False], [False, True]])[:, 0])
    assert buffer[:].reward.tolist() == [0, 2, 4]
