# SPDX-License-Identifier: MIT
"""HerReplayBuffer against Stable-Baselines3's, on the same draws, and against a list of episodes."""

from __future__ import annotations

import copy
import pickle
import tracemalloc
import warnings
from collections import Counter
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from sb3_support import assert_same
from stable_baselines3 import HerReplayBuffer as TheirHer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy

import fastreplay.sb3 as fr
from fastreplay import _core

GOAL_SIZE = 3
OBSERVATION = spaces.Dict(
    {
        "observation": spaces.Box(-9, 9, (4,), np.float32),
        "achieved_goal": spaces.Box(-9, 9, (GOAL_SIZE,), np.float32),
        "desired_goal": spaces.Box(-9, 9, (GOAL_SIZE,), np.float32),
    }
)
ACTION = spaces.Box(-1, 1, (2,), np.float32)
STRATEGIES = ("future", "final", "episode")


class GoalEnv(gym.Env[Any, Any]):
    """Rewards by the distance of goals, and by the infos where there are some."""

    observation_space = OBSERVATION
    action_space = ACTION

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}

    def compute_reward(self, achieved: Any, desired: Any, infos: Any) -> Any:
        weights = np.array([info.get("weight", 1.0) for info in infos])
        return -np.linalg.norm(achieved - desired, axis=-1) * weights


class SbOnOurs(TheirHer, fr.DictReplayBuffer):  # type: ignore[misc]
    """SB3's own HER code, on our storage."""


class Traffic:
    """Steps of several environments with episodes of random length."""

    def __init__(self, num_envs: int, seed: int = 0, space: spaces.Dict = OBSERVATION, mean_length: int = 5) -> None:
        self.rng = np.random.Generator(np.random.PCG64(seed))
        self.num_envs, self.space, self.mean_length = num_envs, space, mean_length
        self.counter = 0

    def observation(self) -> dict[str, Any]:
        return {
            key: self.rng.normal(size=(self.num_envs, *box.shape)).astype(box.dtype)  # type: ignore[misc]
            for key, box in self.space.items()
        }

    def step(self) -> tuple[Any, ...]:
        done = self.rng.random(self.num_envs) < 1 / self.mean_length
        infos = [
            {"TimeLimit.truncated": bool(self.rng.random() < 0.5 and end), "weight": float(self.rng.random())}
            for end in done
        ]
        action = self.rng.uniform(-1, 1, (self.num_envs, 2)).astype(np.float32)
        reward = self.rng.normal(size=self.num_envs).astype(np.float32)
        return self.observation(), self.observation(), action, reward, done, infos


def make(kind: type[Any], rows: int, num_envs: int, *, space: spaces.Dict = OBSERVATION, **kwargs: Any) -> Any:
    env = DummyVecEnv([GoalEnv])
    return kind(rows * num_envs, space, ACTION, env, device="cpu", n_envs=num_envs, **kwargs)


def state_of(buffer: Any) -> dict[str, Any]:
    names = ("ep_start", "ep_length", "_current_ep_start", "rewards", "dones", "timeouts", "actions")
    return {name: np.array(getattr(buffer, name)) for name in names} | {
        "observations": {key: np.array(value) for key, value in buffer.observations.items()},
        "next_observations": {key: np.array(value) for key, value in buffer.next_observations.items()},
        "cursor": (buffer.pos, buffer.full, buffer.buffer_size),
    }


def random_state() -> tuple[Any, ...]:
    """Return the words of NumPy's global generator and its place in them."""
    state: Any = np.random.get_state()
    return state[1], state[2]


def sampled(buffer: Any, batch_size: int, seed: int, env: Any = None) -> Any:
    """Sample, and return what came and the random state after."""
    np.random.seed(seed)
    found = tuple(buffer.sample(batch_size, env=env))
    return found, random_state()


def compare(theirs: Any, ours: Any, seed: int = 0, env: Any = None) -> None:
    for name, value in state_of(theirs).items():
        assert_same(value, state_of(ours)[name])
    if not (np.array(theirs.ep_length) > 0).any():
        with pytest.raises(RuntimeError, match="Unable to sample before the end of the first episode"):
            ours.sample(4)
        return
    for batch_size in (1, 2, 7, 64):
        first, second = sampled(theirs, batch_size, seed, env), sampled(ours, batch_size, seed, env)
        assert_same(first[0], second[0])
        assert_same(first[1], second[1])


@pytest.mark.parametrize("kind", [fr.HerReplayBuffer, SbOnOurs], ids=["ours", "theirs-on-ours"])
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("copy_info_dict", [False, True])
def test_same_minibatches(kind: type[Any], num_envs: int, strategy: str, copy_info_dict: bool) -> None:
    buffers = [
        make(k, 23, num_envs, goal_selection_strategy=strategy, copy_info_dict=copy_info_dict) for k in (TheirHer, kind)
    ]
    traffic = Traffic(num_envs, seed=num_envs)
    compare(*buffers)
    for step in range(150):
        arguments = traffic.step()
        for buffer in buffers:
            buffer.add(*copy.deepcopy(arguments))
        if step < 30 or step % 5 == 0:
            compare(buffers[0], buffers[1], seed=step)


@pytest.mark.parametrize("mean_length", [1, 3, 40, 10_000])
@pytest.mark.parametrize("rows", [1, 2, 9, 64])
def test_same_for_every_length_of_episodes(mean_length: int, rows: int) -> None:
    """Episodes as long as the buffer and longer, and buffers of one row."""
    buffers = [make(kind, rows, 2) for kind in (TheirHer, fr.HerReplayBuffer)]
    traffic = Traffic(2, seed=mean_length, mean_length=mean_length)
    for step in range(200):
        arguments = traffic.step()
        if step == 130:
            arguments[4][:] = True
        for buffer in buffers:
            buffer.add(*copy.deepcopy(arguments))
        if step % 7 == 0 or step in (130, 131):
            compare(buffers[0], buffers[1], seed=step)


def test_an_episode_of_exactly_the_buffer_is_lost_as_in_sb3() -> None:
    buffers = [make(kind, 6, 1) for kind in (TheirHer, fr.HerReplayBuffer)]
    traffic = Traffic(1, mean_length=10**9)
    for step in range(6):
        arguments = traffic.step()
        arguments[4][:] = step == 5
        for buffer in buffers:
            buffer.add(*copy.deepcopy(arguments))
    assert not (buffers[0].ep_length > 0).any()
    compare(*buffers)


@pytest.mark.parametrize("num_sampled_goal", [0, 1, 4, 100])
def test_number_of_goals(num_sampled_goal: int) -> None:
    buffers = [make(kind, 40, 2, n_sampled_goal=num_sampled_goal) for kind in (TheirHer, fr.HerReplayBuffer)]
    traffic = Traffic(2)
    for _ in range(70):
        arguments = traffic.step()
        for buffer in buffers:
            buffer.add(*copy.deepcopy(arguments))
    compare(*buffers)


def test_goals_of_another_dtype_go_the_general_way() -> None:
    space = spaces.Dict({**OBSERVATION.spaces, "achieved_goal": spaces.Box(-9, 9, (GOAL_SIZE,), np.float64)})
    buffers = [make(kind, 20, 2, space=space) for kind in (TheirHer, fr.HerReplayBuffer)]
    traffic = Traffic(2, space=space)
    for _ in range(50):
        arguments = traffic.step()
        for buffer in buffers:
            buffer.add(*copy.deepcopy(arguments))
    compare(*buffers)
    assert sampled(buffers[1], 8, 0)[0][0]["desired_goal"].dtype.itemsize == 8


def test_overridden_parts_are_used() -> None:
    def mark(data: Any) -> Any:
        return data._replace(rewards=data.rewards * 0 + 5)

    class Theirs(TheirHer):
        def _get_virtual_samples(self, *arguments: Any) -> Any:
            return mark(super()._get_virtual_samples(*arguments))

    class Ours(fr.HerReplayBuffer):
        def _get_virtual_samples(self, *arguments: Any) -> Any:
            return mark(super()._get_virtual_samples(*arguments))

    class TheirGoals(TheirHer):
        def _sample_goals(self, rows: Any, envs: Any) -> Any:
            return super()._sample_goals(rows, envs) * np.float32(0.5)

    class OurGoals(fr.HerReplayBuffer):
        def _sample_goals(self, rows: Any, envs: Any) -> Any:
            return super()._sample_goals(rows, envs) * np.float32(0.5)

    for kinds in ((Theirs, Ours), (TheirGoals, OurGoals)):
        buffers = [make(kind, 20, 1) for kind in kinds]
        traffic = Traffic(1)
        for _ in range(50):
            arguments = traffic.step()
            for buffer in buffers:
                buffer.add(*copy.deepcopy(arguments))
        compare(*buffers)


def test_normalized() -> None:
    normalizer = VecNormalize(DummyVecEnv([GoalEnv]), norm_obs=True, norm_reward=True)
    buffers = [make(kind, 30, 2) for kind in (TheirHer, fr.HerReplayBuffer)]
    traffic = Traffic(2)
    for _ in range(60):
        arguments = traffic.step()
        for key, statistics in normalizer.obs_rms.items():
            statistics.update(arguments[0][key])
        normalizer.ret_rms.update(arguments[3])
        for buffer in buffers:
            buffer.add(*copy.deepcopy(arguments))
    compare(buffers[0], buffers[1], env=normalizer)


def filled(kind: type[Any], rows: int = 20, num_envs: int = 2, steps: int = 50, **kwargs: Any) -> Any:
    buffer, traffic = make(kind, rows, num_envs, **kwargs), Traffic(num_envs)
    for _ in range(steps):
        buffer.add(*traffic.step())
    return buffer


def test_truncated_and_continued() -> None:
    """With the warning that SB3 gives."""
    for num_steps in (3, 27, 50):
        buffers = [filled(kind, steps=num_steps) for kind in (TheirHer, fr.HerReplayBuffer)]
        for buffer in buffers:
            with pytest.warns(UserWarning, match="The last trajectory in the replay buffer will be truncated"):
                buffer.truncate_last_trajectory()
            with warnings.catch_warnings():  # nothing is left to truncate
                warnings.simplefilter("error")
                buffer.truncate_last_trajectory()
        compare(*buffers)
        traffic = Traffic(2, seed=1)
        for _ in range(40):
            arguments = traffic.step()
            for buffer in buffers:
                buffer.add(*copy.deepcopy(arguments))
            compare(*buffers)


@pytest.mark.parametrize("copy_info_dict", [False, True])
def test_saved_and_loaded(copy_info_dict: bool) -> None:
    theirs, ours = (filled(kind, copy_info_dict=copy_info_dict) for kind in (TheirHer, fr.HerReplayBuffer))
    env = DummyVecEnv([GoalEnv])
    loaded = [pickle.loads(pickle.dumps(buffer)) for buffer in (theirs, ours)]
    loaded.append(copy.deepcopy(ours))
    loaded.append(fr.HerReplayBuffer.from_sb3(pickle.loads(pickle.dumps(theirs))))
    loaded.append(loaded[1].to_sb3())
    assert type(loaded[-1]) is TheirHer
    for buffer in loaded:
        assert buffer.env is None
        with pytest.raises(AssertionError):
            buffer.sample(8)
        buffer.set_env(env)
        with pytest.raises(ValueError, match="already"):
            buffer.set_env(env)
    traffic = Traffic(2, seed=7)
    for step in range(30):
        arguments = traffic.step()
        for buffer in (theirs, *loaded):
            buffer.add(*copy.deepcopy(arguments))
        for buffer in loaded:
            compare(theirs, buffer, seed=step)


@pytest.mark.parametrize("copy_info_dict", [False, True])
@pytest.mark.parametrize("dedupe", [False, True])
def test_conversions_keep_the_environment(copy_info_dict: bool, dedupe: bool) -> None:
    """So that they sample at once; pickles of them have none, as SB3's."""
    theirs = filled(TheirHer, copy_info_dict=copy_info_dict)
    ours = filled(fr.HerReplayBuffer, copy_info_dict=copy_info_dict, dedupe=dedupe)
    made = [fr.HerReplayBuffer.from_sb3(theirs), fr.HerReplayBuffer.from_sb3(ours), ours.to_sb3()]
    for buffer, source in zip(made, (theirs, ours, ours), strict=True):
        assert buffer.env is source.env is not None
        compare(theirs, buffer, seed=3)
        assert pickle.loads(pickle.dumps(buffer)).env is None


def test_lengths_cannot_be_poked_in_part() -> None:
    buffers = [filled(kind) for kind in (TheirHer, fr.HerReplayBuffer)]
    with pytest.raises(ValueError, match="read-only"):
        buffers[1].ep_length[3, 0] = 0
    lengths = np.array(buffers[0].ep_length)
    lengths[::3] = 0
    for buffer in buffers:
        buffer.ep_length = lengths
    compare(*buffers)


def test_infos_are_made_when_asked_for() -> None:
    buffer = filled(fr.HerReplayBuffer)
    assert "infos" not in vars(buffer)
    assert buffer.infos.shape == (20, 2)
    assert all(info == {} for info in buffer.infos.flat)
    assert buffer.infos[0, 0] is not buffer.infos[0, 1]


def test_refusals() -> None:
    with pytest.raises(KeyError):
        make(fr.HerReplayBuffer, 8, 1, goal_selection_strategy="past")
    with pytest.raises(AssertionError, match="goal_selection_strategy: expected one of"):
        make(fr.HerReplayBuffer, 8, 1, goal_selection_strategy=3)
    with pytest.raises(AssertionError, match="optimize_memory_usage"):
        make(fr.HerReplayBuffer, 8, 1, optimize_memory_usage=True)
    buffer = filled(fr.HerReplayBuffer, goal_selection_strategy=GoalSelectionStrategy.FINAL)
    buffer.goal_selection_strategy = "past"
    with pytest.raises(ValueError, match="goal_selection_strategy: not supported: 'past'"):
        buffer.sample(8)


class Numbered:
    """Steps whose values say which episode and step they are, and what was stored of them."""

    def __init__(self, rows: int, num_envs: int) -> None:
        self.rows, self.num_envs = rows, num_envs
        self.rng = np.random.Generator(np.random.PCG64(3))
        self.episodes: list[list[list[int]]] = [[[]] for _ in range(num_envs)]  # of numbers of steps
        self.step_number = 0

    def step(self) -> tuple[Any, ...]:
        number = self.step_number
        self.step_number += 1
        done = self.rng.random(self.num_envs) < 0.2
        values = np.array([[number, env, 0] for env in range(self.num_envs)], np.float32)
        obs = {
            "observation": np.hstack((values, np.ones((self.num_envs, 1), np.float32))),
            "achieved_goal": values - 0.5,
            "desired_goal": -values,
        }
        next_obs = {**obs, "achieved_goal": values}
        for env in range(self.num_envs):
            self.episodes[env][-1].append(number)
            if done[env]:
                self.episodes[env].append([])
        return (
            obs,
            next_obs,
            np.zeros((self.num_envs, 2), np.float32),
            np.zeros(self.num_envs),
            done,
            [{} for _ in range(self.num_envs)],
        )

    def complete(self, env: int) -> list[list[int]]:
        """Return the episodes of which nothing is overwritten, as lists of numbers of steps."""
        oldest = self.step_number - self.rows
        return [episode for episode in self.episodes[env][:-1] if episode and episode[0] >= oldest]


@pytest.mark.parametrize("rng", ["numpy", "native"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_oracle(strategy: str, rng: str) -> None:
    """Every complete transition is drawn equally often, with goals from where the strategy says."""
    np.random.seed(5)
    buffer, steps = make(fr.HerReplayBuffer, 24, 2, goal_selection_strategy=strategy, rng=rng), Numbered(24, 2)
    for _ in range(61):
        buffer.add(*steps.step())
    expected = {(number, env): e for env in range(2) for e in steps.complete(env) for number in e}
    assert len(expected) > 10
    batch_size, num_batches = 500, 40
    drawn: Counter[tuple[int, int]] = Counter()
    goals: Counter[tuple[int, int, int]] = Counter()
    for _ in range(num_batches):
        data = buffer.sample(batch_size)
        numbers, envs = (data.observations["observation"][:, i].int().tolist() for i in range(2))
        wanted = data.observations["desired_goal"]
        assert_same(wanted, data.next_observations["desired_goal"])
        num_real = batch_size - int(0.8 * batch_size)
        for i, place in enumerate(zip(numbers, envs, strict=True)):
            drawn[place] += 1
            goal = wanted[i].int().tolist()
            if i < num_real:
                assert goal == [-place[0], -place[1], 0]
                continue
            assert goal[1:] == [place[1], 0]
            assert float(data.rewards[i]) == -abs(place[0] - goal[0])
            goals[(*place, goal[0])] += 1
    assert set(drawn) == set(expected)
    mean = batch_size * num_batches / len(expected)
    chi_square = sum((count - mean) ** 2 / mean for count in drawn.values())
    freedom = len(expected) - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5
    for (number, env), episode in expected.items():
        allowed = {"future": [n for n in episode if n >= number], "final": episode[-1:], "episode": episode}[strategy]
        counts = [goals[number, env, goal] for goal in allowed]
        assert sum(counts) == sum(n for (a, b, _), n in goals.items() if (a, b) == (number, env))
        mean = sum(counts) / len(counts)
        assert sum((count - mean) ** 2 / mean for count in counts) < len(counts) - 1 + 6 * (2 * len(counts)) ** 0.5


def test_native_draws_leave_numpys_alone_and_are_kept() -> None:
    np.random.seed(1)
    buffer = filled(fr.HerReplayBuffer, rng="native")
    state = random_state()
    again = copy.deepcopy(buffer)
    again.set_env(DummyVecEnv([GoalEnv]))
    assert_same(tuple(buffer.sample(64)), tuple(again.sample(64)))
    assert_same(state, random_state())


def test_sampling_looks_at_as_little_of_large_buffers() -> None:
    """SB3's lists every row that could be drawn."""

    def peak_bytes(rows: int) -> int:
        buffer = make(fr.HerReplayBuffer, rows, 1)
        buffer.pos, buffer.full = 0, True
        buffer.ep_start = np.arange(rows).reshape(-1, 1) // 50 * 50
        buffer.ep_length = np.full((rows, 1), 50)
        buffer.sample(64)
        tracemalloc.start()
        try:
            buffer.sample(64)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak_bytes(300_000) == pytest.approx(peak_bytes(30_000), rel=0.1)


def test_index_set_against_a_sorted_list() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    for bound in (1, 63, 64, 65, 1000, 4096):
        members, flags = _core.IndexSet(bound), np.zeros(bound, bool)
        for _ in range(200):
            stride = int(rng.integers(1, 5))
            first = int(rng.integers(bound))
            count = int(rng.integers(0, (bound - 1 - first) // stride + 2))
            is_member = bool(rng.random() < 0.6)
            members.fill(first, count, stride, is_member)
            flags[first : first + count * stride : stride][:count] = is_member
            expected = np.flatnonzero(flags)
            assert len(members) == len(expected)
            assert_same(members.select(np.arange(len(expected))), expected)
        for arguments in ((bound, 1, 1), (0, bound + 1, 1), (0, 2, 0)):
            with pytest.raises(IndexError, match=f"expected indices below {bound}"):
                members.fill(*arguments, True)
        for rank in (-1, len(members)):
            with pytest.raises(IndexError, match=f"expected ranks below {len(members)}"):
                members.select(np.array([rank]))


def test_rows_are_taken_as_numpy_takes_them() -> None:
    table = np.arange(240, dtype=np.float32).reshape(20, 4, 3)[:, 1:3]
    indices = np.random.Generator(np.random.PCG64(0)).integers(0, 20, 100)
    columns = np.arange(60, dtype=np.float32).reshape(20, 3)[:, 1:2]  # an axis of length 1 and another's stride
    for rows in (table, table[::-1], table[:, 0], table[:, 0, 0], columns, columns.reshape(20, 1, 1)):
        np.testing.assert_array_equal(_core.take_rows(rows, indices), rows[indices])
    assert _core.take_rows(table, indices[:0]).shape == (0, 2, 3)
    for outside in (-1, 20):
        with pytest.raises(IndexError, match="below the length"):
            _core.take_rows(table, np.array([3, outside]))
    with pytest.raises(ValueError, match="without gaps"):
        _core.take_rows(table[:, :, :2], indices)
