# SPDX-License-Identifier: MIT
"""Subclasses whose hooks sample themselves, change or keep what they get: the same as with SB3's and CleanRL's."""

from __future__ import annotations

import functools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_support import assert_same
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common import buffers as sb3_buffers
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import fastreplay.cleanrl
import fastreplay.sb3 as fsb3

BOX = spaces.Box(-1, 1, (3,), np.float32)
GOALS = spaces.Dict(dict.fromkeys(("observation", "achieved_goal", "desired_goal"), BOX))
KINDS = {
    "ReplayBuffer": (sb3_buffers.ReplayBuffer, fsb3.ReplayBuffer),
    "DictReplayBuffer": (sb3_buffers.DictReplayBuffer, fsb3.DictReplayBuffer),
    "NStepReplayBuffer": (sb3_buffers.NStepReplayBuffer, fsb3.NStepReplayBuffer),
    "HerReplayBuffer": (HerReplayBuffer, fsb3.HerReplayBuffer),
}
HOOKS = ("_normalize_reward", "_normalize_obs", "to_torch")


class Env(gym.Env[Any, Any]):
    """Of goals, with something to do before each reward."""

    observation_space = GOALS
    action_space = BOX
    before: Any = None

    def compute_reward(self, achieved: Any, desired: Any, _infos: Any) -> Any:
        if self.before is not None:
            self.before(achieved, desired)
        return -np.linalg.norm(achieved - desired, axis=-1)


class FlatEnv(Env):
    """Without goals."""

    observation_space = BOX  # type: ignore[assignment]


class Busy:
    """Samples within itself, never twice as deep, changes what it gets, and keeps it.

    Every array and sample that came by is kept beside a copy of it.
    """

    def __init__(self, buffer: Any, changes: bool) -> None:
        self.buffer, self.changes = buffer, changes
        self.depth = 0
        self.kept: list[tuple[Any, Any]] = []

    def __call__(self, *values: Any) -> None:
        if self.depth:
            return
        self.depth = 1
        for value in values:
            for part in value.values() if isinstance(value, dict) else [value]:
                if self.changes and part.dtype.kind == "f":
                    np.multiply(part, 0.5, out=part)
                self.keep(part)
        for batch_size in (16, 5):
            for part in flat(self.buffer.sample(batch_size)):
                self.keep(part)
        self.depth = 0

    def keep(self, value: Any) -> None:
        self.kept.append((value, copied(value)))

    def check(self) -> None:
        if self.changes:
            return  # by itself: SB3 hands some arrays out twice
        for value, before in self.kept:
            np.testing.assert_array_equal(copied(value), before)


def flat(samples: Any) -> list[Any]:
    found: list[Any] = []
    for part in samples:
        found += part.values() if isinstance(part, dict) else [] if part is None else [part]
    return found


def copied(value: Any) -> Any:
    return value.numpy().copy() if isinstance(value, torch.Tensor) else np.array(value)


def hooked(cls: Any, hook: str) -> Any:
    def call(self: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        self.busy(value)
        return getattr(super(made, self), hook)(value, *args, **kwargs)

    made: Any = type(cls.__name__, (cls,), {hook: call, "busy": staticmethod(lambda *_: None)})
    return made


def filled(cls: Any, kind: str, env: Any) -> Any:
    space = GOALS if kind in ("DictReplayBuffer", "HerReplayBuffer") else BOX
    options = {"env": env} if kind == "HerReplayBuffer" else {}
    buffer = cls(120, space, BOX, device="cpu", n_envs=2, **options)
    rng = np.random.default_rng(0)

    def rows() -> Any:
        if space is BOX:
            return rng.random((2, 3), np.float32)
        return {name: rng.random((2, 3), np.float32) for name in GOALS.spaces}

    for i in range(75):
        infos = [{"TimeLimit.truncated": i % 3 == 0}, {}]
        buffer.add(rows(), rows(), rng.random((2, 3), np.float32), rng.random(2), np.array([i % 7 == 0] * 2), infos)
    return buffer


def run(buffer: Any, busy: Busy, normalize: Any = None) -> list[Any]:
    """Sample some times under one seed; return what came, which must stay what it is."""
    np.random.seed(3)
    found = []
    for batch_size in (16, 16, 5, 33):
        sample = buffer.sample(batch_size, normalize) if normalize is not None else buffer.sample(batch_size)
        found.append((sample, [copied(part) for part in flat(sample)]))
    for sample, before in found:
        assert_same(tuple(map(copied, flat(sample))), tuple(before))
    busy.check()
    for sample, _ in found:
        for part in flat(sample):
            part.zero_()  # a learner's own; nobody else has it
    busy.check()
    state: Any = np.random.get_state()
    return [*(part for _, before in found for part in before), *(before for _, before in busy.kept), state[2]]


@pytest.mark.parametrize("changes", [False, True], ids=["keeps", "changes and keeps"])
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("kind", KINDS)
def test_hooks_that_sample(kind: str, hook: str, changes: bool) -> None:
    found = []
    for cls in KINDS[kind]:
        buffer = filled(hooked(cls, hook), kind, DummyVecEnv([Env]))
        busy = buffer.busy = Busy(buffer, changes)
        found.append(run(buffer, busy))
        assert len(busy.kept) > 40
    assert_same(tuple(found[0]), tuple(found[1]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_set_on_an_instance(kind: str, hook: str) -> None:
    found = []
    for cls in KINDS[kind]:
        buffer = filled(cls, kind, DummyVecEnv([Env]))
        busy = Busy(buffer, changes=False)
        original = getattr(buffer, hook)

        def call(value: Any, *args: Any, busy: Any = busy, original: Any = original, **kwargs: Any) -> Any:
            busy(value)
            return original(value, *args, **kwargs)

        setattr(buffer, hook, call)
        found.append(run(buffer, busy))
        assert busy.kept
    assert_same(tuple(found[0]), tuple(found[1]))


class Normalizer(VecNormalize):
    """Does something else first."""

    busy: Any = staticmethod(lambda *_: None)

    def normalize_obs(self, obs: Any) -> Any:
        self.busy(obs)
        return super().normalize_obs(obs)

    def normalize_reward(self, reward: Any) -> Any:
        self.busy(reward)
        return super().normalize_reward(reward)


@pytest.mark.parametrize("changes", [False, True], ids=["keeps", "changes and keeps"])
@pytest.mark.parametrize("kind", KINDS)
def test_normalizers_that_sample(kind: str, changes: bool) -> None:
    found = []
    for cls in KINDS[kind]:
        env = DummyVecEnv([Env if "Dict" in kind or "Her" in kind else FlatEnv])
        buffer = filled(cls, kind, env)
        normalizer = Normalizer(env)
        normalizer.busy = busy = Busy(buffer, changes)
        found.append(run(buffer, busy, normalizer))
        assert busy.kept
    assert_same(tuple(found[0]), tuple(found[1]))


@pytest.mark.parametrize("changes", [False, True], ids=["keeps", "changes and keeps"])
def test_rewards_that_sample(changes: bool) -> None:
    found = []
    for cls in KINDS["HerReplayBuffer"]:
        env = DummyVecEnv([Env])
        buffer = filled(cls, "HerReplayBuffer", env)
        env.envs[0].before = busy = Busy(buffer, changes)  # type: ignore[attr-defined]
        found.append(run(buffer, busy))
        assert busy.kept
    assert_same(tuple(found[0]), tuple(found[1]))


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("kind", KINDS)
def test_hooks_and_a_generator_of_ones_own(kind: str, hook: str) -> None:
    """SB3's has none; what hooks do changes nothing of what was drawn before, or is held."""

    def rewards(is_busy: bool) -> list[Any]:
        np.random.seed(0)
        cls = functools.partial(hooked(KINDS[kind][1], hook), rng="native")
        buffer = filled(cls, kind, DummyVecEnv([Env]))
        busy = Busy(buffer, changes=False)
        if is_busy:
            buffer.busy = busy
        samples = [buffer.sample(16)]
        first = [copied(part) for part in flat(samples[0])]
        run(buffer, busy)
        return first

    got, expected = rewards(is_busy=True), rewards(is_busy=False)
    if kind != "HerReplayBuffer":  # whose goals are drawn after
        assert_same(tuple(got), tuple(expected))


class TheirCleanrl(sb3_buffers.ReplayBuffer):
    """CleanRL's is a copy of SB3's."""


@pytest.mark.parametrize("changes", [False, True], ids=["keeps", "changes and keeps"])
@pytest.mark.parametrize("on_instance", [False, True])
def test_cleanrl_tensors_made_in_ones_own_way(changes: bool, on_instance: bool) -> None:
    found = []
    for cls in (TheirCleanrl, fastreplay.cleanrl.ReplayBuffer):
        buffer = filled(cls if on_instance else hooked(cls, "to_torch"), "ReplayBuffer", None)
        busy = Busy(buffer, changes)
        if on_instance:
            original = buffer.to_torch

            def call(value: Any, busy: Any = busy, original: Any = original) -> torch.Tensor:
                busy(value)
                tensor: torch.Tensor = original(value)
                return tensor

            buffer.to_torch = call
        else:
            buffer.busy = busy
        found.append(run(buffer, busy))
        assert busy.kept
    assert_same(tuple(found[0]), tuple(found[1]))
