# SPDX-License-Identifier: MIT
"""The drop-ins that look further than a step, with `dedupe`: n steps, priorities, hindsight; and numbers assigned."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from dedupe_support import ACTIONS, IMAGES, VECTORS, Pair, Stream
from gymnasium import spaces
from sb3_support import assert_same
from stable_baselines3 import HerReplayBuffer as TheirHer
from stable_baselines3.common import buffers as sb3_buffers
from stable_baselines3.common.vec_env import DummyVecEnv
from test_sb3_buffers import vec_normalize
from test_sb3_her import ACTION, STRATEGIES, GoalEnv, compare

import fastreplay.sb3 as fr

if TYPE_CHECKING:
    from collections.abc import Callable

N_STEP, PRIORITIZED = fr.NStepReplayBuffer, fr.PrioritizedReplayBuffer
# Class, observations, frames of a stack, and what says so.
KINDS: dict[str, tuple[Any, spaces.Space[Any], int, Any]] = {
    "n steps": (N_STEP, IMAGES, 4, 4),
    "n steps, next ones only": (partial(N_STEP, n_steps=5), VECTORS, 3, True),
    "more steps than NumPy adds in order": (partial(N_STEP, n_steps=9), VECTORS, 3, 3),
    "priorities": (PRIORITIZED, IMAGES, 4, 4),
    "priorities of n steps": (partial(PRIORITIZED, n_steps=3), VECTORS, 3, True),
}


def pair_of(kind: str, n_envs: int = 2, resets: str = "same_step", **options: Any) -> tuple[Pair, Stream]:
    cls, space, frames, dedupe = KINDS[kind]
    pair = Pair(cls, dedupe, 30 * n_envs, space, ACTIONS["box"], "cpu", n_envs, **options)
    return pair, Stream(space, ACTIONS["box"], n_envs, frames, resets, seed=n_envs)


def drive(pair: Pair, stream: Stream, num_steps: int = 100, *, infinite: bool = False) -> None:
    """Add steps, of which some may have infinite rewards; sample, and give other priorities."""
    for number in range(num_steps):
        obs, next_obs, action, reward, *rest = stream.draw()
        if infinite and number % 23 == 11:
            reward[0] = np.inf
        pair.do(lambda buffer: buffer.add(obs, next_obs, action, reward, *rest))  # noqa: B023
        if number % 3 == 0:
            with np.errstate(invalid="ignore"):
                samples = pair.do(lambda buffer: buffer.sample(40))
            if hasattr(samples, "tickets"):
                tickets, errors = samples.tickets, stream.rng.random(40)
                pair.do(lambda buffer: buffer.update_priorities(tickets, errors))  # noqa: B023
        if number % 20 == 19:
            pair.compare()


@pytest.mark.parametrize("resets", ["same_step", "next_step", "anew"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_minibatches(kind: str, resets: str) -> None:
    pair, stream = pair_of(kind, 1 if resets == "anew" else 3, resets)
    drive(pair, stream, infinite=True)
    assert pair.deduped.full
    with np.errstate(invalid="ignore"):
        pair.do(lambda buffer: buffer._get_samples(np.array([0, -1, 29, 5])))
        pair.do(lambda buffer: buffer._get_samples(np.array([3, 4], np.int16)))


@pytest.mark.parametrize("pos", [0, 3, 10, 29])
def test_a_cursor_that_was_set_cuts_steps_where_it_does_without(pos: int) -> None:
    for num_steps in (40, 12):
        pair, stream = pair_of("n steps, next ones only")
        drive(pair, stream, num_steps)
        if num_steps == 12 and pos > 12:
            continue
        pair.do(lambda buffer: setattr(buffer, "pos", pos))
        rows = np.arange(30 if num_steps == 40 else max(pos, 1))
        pair.do(lambda buffer: buffer._get_samples(rows))  # noqa: B023


@pytest.mark.parametrize("kind", ["n steps", "priorities of n steps"])
def test_pickles_and_copies(kind: str) -> None:
    for num_steps in (0, 4, 70):
        pair, stream = pair_of(kind, 2, "next_step")
        drive(pair, stream, num_steps)
        copies: list[Callable[[Any], Any]] = [
            copy.deepcopy,
            copy.copy,
            lambda buffer: pickle.loads(pickle.dumps(buffer)),
        ]
        for copied in copies:
            pair.buffers = [copied(buffer) for buffer in pair.buffers]
            pair.compare()
            drive(pair, stream, 20)


@pytest.mark.parametrize("kind", ["n steps", "priorities", "priorities of n steps"])
def test_begin_anew_and_to_sb3_and_back(kind: str) -> None:
    pair, stream = pair_of(kind)
    for num_steps in (3, 45, 20):
        drive(pair, stream, num_steps)
        theirs = pair.deduped.to_sb3()
        assert type(theirs) in {sb3_buffers.ReplayBuffer, sb3_buffers.NStepReplayBuffer}
        assert vars(theirs).keys() == vars(pair.buffers[0].to_sb3()).keys()
        assert_same(theirs.rewards, np.array(pair.deduped.rewards))
        assert type(pair.deduped).from_sb3(theirs).dedupe is False
        pair.do(lambda buffer: buffer.reset())


class Hooked(fr.NStepReplayBuffer):
    """Makes tensors in its own way, and may refuse rewards in the middle of SB3's own code."""

    refuses = False

    def to_torch(self, array: Any, copy: bool = True) -> torch.Tensor:  # noqa: ARG002
        return torch.as_tensor(array + 1)

    @staticmethod
    def _normalize_reward(reward: Any, env: Any = None) -> Any:  # noqa: ARG004
        if Hooked.refuses:
            raise OSError("no rewards")
        return reward


def test_hooks_get_what_they_get_without(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(Hooked, 4, 60, IMAGES, ACTIONS["box"], "cpu", 2)
    drive(pair, Stream(IMAGES, ACTIONS["box"], 2))
    before = [np.array(buffer.timeouts) for buffer in pair.buffers]
    monkeypatch.setattr(Hooked, "refuses", True)
    for buffer in pair.buffers:
        with pytest.raises(OSError, match="no rewards"):
            buffer.sample(3)
    assert_same(tuple(before), tuple(np.array(buffer.timeouts) for buffer in pair.buffers))


def test_normalized() -> None:
    pair, stream = pair_of("n steps, next ones only")
    drive(pair, stream, 50)
    env = vec_normalize(VECTORS, norm_reward=True)
    pair.do(lambda buffer: buffer.sample(30, env=env))
    pair.do(lambda buffer: setattr(buffer, "n_steps", 2))
    pair.do(lambda buffer: buffer.sample(30))


def test_they_take_as_little_as_the_plain_class() -> None:
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    makes: tuple[Callable[..., Any], ...] = (fr.ReplayBuffer, N_STEP, PRIORITIZED)
    taken = {make(3000, space, spaces.Discrete(4), "cpu", 2, dedupe=4)._table.num_bytes for make in makes}
    assert len(taken) == 1
    assert taken.pop() < 3100 * 7300


def test_refusals() -> None:
    for cls in (N_STEP, PRIORITIZED):
        made = partial(cls, 20, IMAGES, ACTIONS["box"], "cpu", 2)
        with pytest.raises(ValueError, match="dedupe: expected a first axis of 3 frames"):
            made(dedupe=3)
        shared = {"optimize_memory_usage": True, "handle_timeout_termination": False}
        with pytest.raises(
            (ValueError, NotImplementedError), match=r"dedupe: cannot be had|optimize_memory_usage: Pri"
        ):
            made(**shared, dedupe=4)
        with pytest.raises(NotImplementedError, match="optimize_memory_usage"):
            made(**shared)


def test_numbers_can_be_assigned_where_a_step_is() -> None:
    pair, stream = pair_of("n steps")
    drive(pair, stream, 12)
    poke: list[Callable[[Any], Any]] = [
        lambda buffer: buffer.dones.__setitem__(-30 + 11, True),
        lambda buffer: buffer.timeouts.__setitem__((11, 1), 1),
        lambda buffer: buffer.rewards.__setitem__((slice(2, 9, 3), 0), [1, 2, 3]),
        lambda buffer: buffer.rewards.__setitem__((np.array([1, 1]), np.array([0, 0])), [4, 5]),
        lambda buffer: buffer.actions.__setitem__((3, ..., slice(1)), 7),
    ]
    for change in poke:
        pair.do(change)
        pair.compare()
    pair.do(lambda buffer: buffer._get_samples(np.arange(12)))
    rewards = pair.deduped.rewards
    with pytest.raises(IndexError, match="row 12: holds no step, of 12 in 30 rows"):
        rewards[10:14] = 1
    with pytest.raises(ValueError, match="broadcast"):
        rewards[:3] = np.zeros(5)
    with pytest.raises(IndexError, match="out of bounds"):
        rewards[30] = 1
    pair.compare()
    drive(pair, stream, 40)
    pair.do(lambda buffer: buffer.dones.__setitem__(slice(None), 0))
    pair.do(lambda buffer: buffer.sample(50))


class Goals:
    """Steps of environments with goals, episode after episode: the same goal in each, and frames in common.

    Args:
        n_envs: Environments.
        resets: As of `Stream`.
        mean_length: Of the episodes.
    """

    space = spaces.Dict(
        {
            "observation": IMAGES,
            "achieved_goal": spaces.Box(-9, 9, (3,), np.float32),
            "desired_goal": spaces.Box(-9, 9, (3,), np.float32),
        }
    )

    def __init__(self, n_envs: int, resets: str, mean_length: int = 5) -> None:
        self.stream = Stream(IMAGES, ACTION, n_envs, 4, resets, seed=n_envs)
        self.stream.chance = 1 / mean_length
        self.rng = self.stream.rng
        self.achieved, self.desired = self._goals(), self._goals()

    def _goals(self) -> Any:
        return self.rng.normal(size=(self.stream.n_envs, 3)).astype(np.float32)

    def draw(self) -> tuple[Any, ...]:
        """Give a step: observation, next observation, action, reward, done and infos."""
        obs, next_obs, action, reward, ends, infos = self.stream.draw()
        achieved, after = self.achieved, self._goals()
        parts = [
            {"observation": obs, "achieved_goal": achieved, "desired_goal": self.desired.copy()},
            {"observation": next_obs, "achieved_goal": after, "desired_goal": self.desired.copy()},
        ]
        self.achieved = np.where(ends[:, None], self._goals(), after)
        self.desired = np.where(ends[:, None], self._goals(), self.desired)
        infos = [{**info, "weight": float(self.rng.random())} for info in infos]
        return (*parts, action, reward.astype(np.float32), ends, infos)


def her_pair(n_envs: int, rows: int, dedupe: Any, **options: Any) -> list[Any]:
    args = (rows * n_envs, Goals.space, ACTION, DummyVecEnv([GoalEnv]), "cpu", n_envs)
    return [TheirHer(*args, **options), fr.HerReplayBuffer(*args, **options, dedupe=dedupe)]


def add(buffers: list[Any], goals: Goals, num_steps: int = 1) -> None:
    for _ in range(num_steps):
        step = goals.draw()
        for buffer in buffers:
            buffer.add(*copy.deepcopy(step))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("n_envs", "resets"), [(1, "next_step"), (3, "same_step")])
def test_hindsight_is_sb3s(strategy: str, n_envs: int, resets: str) -> None:
    dedupe = {"observation": 4} if n_envs > 1 else True
    buffers = her_pair(n_envs, 23, dedupe, goal_selection_strategy=strategy, copy_info_dict=n_envs > 1)
    goals = Goals(n_envs, resets)
    compare(buffers[0], buffers[1])
    for number in range(60):
        add(buffers, goals)
        if number % 7 == 0:
            compare(buffers[0], buffers[1], seed=number)
    assert buffers[1].full


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_hindsight_of_episodes_as_long_as_the_buffer(rows: int) -> None:
    buffers, goals = her_pair(2, rows, {"observation": 4}), Goals(2, "same_step", rows)
    for number in range(50):
        add(buffers, goals)
        if number % 5 == 0:
            compare(buffers[0], buffers[1], seed=number)


def test_hindsight_in_a_subclass_goes_the_general_way() -> None:
    class Own(fr.HerReplayBuffer):
        def _get_real_samples(self, *args: Any) -> Any:
            return super()._get_real_samples(*args)

    args = (46, Goals.space, ACTION, DummyVecEnv([GoalEnv]), "cpu", 2)
    buffers: list[Any] = [TheirHer(*args), Own(*args, dedupe={"observation": 4})]
    goals = Goals(2, "same_step")
    add(buffers, goals, 40)
    compare(buffers[0], buffers[1])


def test_hindsight_saved_loaded_and_truncated() -> None:
    for num_steps in (3, 27, 50):
        buffers, goals = her_pair(2, 20, {"observation": 4}, copy_info_dict=True), Goals(2, "same_step")
        add(buffers, goals, num_steps)
        theirs, ours = buffers
        loaded = [pickle.loads(pickle.dumps(buffer)) for buffer in (theirs, ours)]
        loaded += [copy.deepcopy(ours), fr.HerReplayBuffer.from_sb3(ours), ours.to_sb3()]
        assert [getattr(buffer, "dedupe", None) for buffer in loaded] == [None, *[{"observation": 4}] * 2, False, None]
        for buffer in loaded:
            buffer.env = DummyVecEnv([GoalEnv])
            if num_steps == 27:
                with pytest.warns(UserWarning, match="The last trajectory in the replay buffer will be truncated"):
                    buffer.truncate_last_trajectory()
        for number in range(5):
            add(loaded, goals, 5)
            for buffer in loaded[1:]:
                compare(loaded[0], buffer, seed=number)


def test_a_step_with_an_odd_end_leaves_hindsight_as_it_was() -> None:
    buffers, goals = her_pair(2, 20, True), Goals(2, "same_step")
    add(buffers, goals, 30)
    for ends in (np.zeros((2, 2), np.bool_), np.zeros(1, np.bool_)):
        *step, _, infos = goals.draw()
        with pytest.raises((ValueError, IndexError)):
            buffers[1].add(*step, ends, infos)
        compare(buffers[0], buffers[1])
        add(buffers, goals, 10)
        compare(buffers[0], buffers[1])


def test_hindsight_begins_anew() -> None:
    _, ours = her_pair(2, 20, True)
    goals = Goals(2, "same_step")
    add([ours], goals, 30)
    ours.reset()
    with pytest.raises(RuntimeError, match="Unable to sample before the end of the first episode"):
        ours.sample(3)
    buffers = [her_pair(2, 20, True)[0], ours]
    for _ in range(30):
        add(buffers, goals)
    compare(buffers[0], buffers[1])
