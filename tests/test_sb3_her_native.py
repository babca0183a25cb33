# SPDX-License-Identifier: MIT
"""HerReplayBuffer with rng="native": as often as Stable-Baselines3's draws it, and given the draws the same bits."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from sb3_support import assert_same
from stable_baselines3 import HerReplayBuffer as TheirHer
from stable_baselines3.common.vec_env import DummyVecEnv
from test_sb3_buffers import vec_normalize
from test_sb3_her import OBSERVATION, STRATEGIES, GoalEnv, Numbered, Traffic, make, random_state

import fastreplay.sb3 as fr
from fastreplay import _core

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


class Given(TheirHer):
    """SB3's own, of transitions and goals that are given."""

    goal_rows: NDArray[np.int64]

    def _sample_goals(self, _rows: Any, envs: Any) -> Any:
        return self.next_observations["achieved_goal"][self.goal_rows, envs]

    def given(self, rows: NDArray[np.int64], envs: NDArray[np.int64], goal_rows: NDArray[np.int64], env: Any) -> Any:
        self.goal_rows, num_real = goal_rows, len(rows) - len(goal_rows)
        real = self._get_real_samples(rows[:num_real], envs[:num_real], env)
        return joined(real, self._get_virtual_samples(rows[num_real:], envs[num_real:], env))


def joined(*samples: Any) -> Any:
    if isinstance(samples[0], dict):
        return {key: joined(*(each[key] for each in samples)) for key in samples[0]}
    if isinstance(samples[0], tuple):
        return tuple(joined(*parts) for parts in zip(*samples, strict=True))
    return None if samples[0] is None else torch.cat(samples)


def assert_as_given(theirs: Given, ours: Any, size: int, env: Any = None) -> None:
    """Compare a minibatch of ours with what SB3 makes of the same transitions and goals."""
    num_goals = int(ours.her_ratio * size)
    goal_of = STRATEGIES.index(ours.goal_selection_strategy.name.lower())
    draws = copy.deepcopy(ours._integers)
    rows, envs, goal_rows = draws.hindsight(ours._valid, ours._episodes, goal_of, size, num_goals)
    state = random_state()
    found = tuple(ours.sample(size, env))
    assert_same(theirs.given(rows, envs, goal_rows, env), found)
    assert_same(state, random_state())
    assert ours._integers._draws.calls == draws._draws.calls  # one call, of the generator's


def check_as_given(num_envs: int, steps: int, env: Any = None, dedupe: bool = False, **options: Any) -> None:
    theirs: Any = make(Given, 23, num_envs, **options)
    ours: Any = make(fr.HerReplayBuffer, 23, num_envs, rng="native", dedupe=dedupe, **options)
    traffic = Traffic(num_envs, seed=num_envs)
    for step in range(steps):
        arguments = traffic.step()
        for buffer in (theirs, ours):
            buffer.add(*copy.deepcopy(arguments))
        if step == 60:
            for buffer in (theirs, ours):
                with pytest.warns(UserWarning, match="will be truncated"):
                    buffer.truncate_last_trajectory()
        if len(ours._valid) and step % 2 == 0:
            for size in (1, 2, 33):
                assert_as_given(theirs, ours, size, env)


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dedupe", [False, True])
def test_given_the_draws_it_is_sb3s(num_envs: int, strategy: str, dedupe: bool) -> None:
    check_as_given(num_envs, 70, dedupe=dedupe, goal_selection_strategy=strategy, copy_info_dict=num_envs > 1)


@pytest.mark.parametrize("num_sampled_goal", [0, 1, 100])
def test_number_of_goals(num_sampled_goal: int) -> None:
    check_as_given(2, 30, n_sampled_goal=num_sampled_goal)


def test_normalized() -> None:
    check_as_given(2, 30, vec_normalize(OBSERVATION))


def frequencies(buffer: Any, num_batches: int, size: int) -> Counter[tuple[Any, ...]]:
    """Count what is drawn: (is virtual, environment, number of the step, of the goal's)."""
    counts: Counter[tuple[Any, ...]] = Counter()
    is_virtual = np.arange(size) >= size - int(buffer.her_ratio * size)
    for _ in range(num_batches):
        data = buffer.sample(size)
        places, goals = data.observations["observation"].numpy(), data.observations["desired_goal"].numpy()
        columns = (is_virtual, places[:, 1], places[:, 0], goals[:, 0])
        counts.update(zip(*(column.tolist() for column in columns), strict=True))
    return counts


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("num_envs", "rows", "steps", "num_sampled_goal"),
    [(1, 24, 61, 4), (3, 14, 40, 1), (2, 200, 21, 2), (1, 9, 300, 4)],
    ids=["wrapped", "several", "few of many", "few episodes"],
)
def test_drawn_as_often_as_by_sb3(strategy: str, num_envs: int, rows: int, steps: int, num_sampled_goal: int) -> None:
    np.random.seed(rows)
    options: dict[str, Any] = {"goal_selection_strategy": strategy, "n_sampled_goal": num_sampled_goal}
    ours = make(fr.HerReplayBuffer, rows, num_envs, rng="native", **options)
    buffers = [make(TheirHer, rows, num_envs, **options), ours]
    numbered = Numbered(rows, num_envs)
    while numbered.step_number < steps or not any(numbered.complete(env) for env in range(num_envs)):
        step = numbered.step()
        for buffer in buffers:
            buffer.add(*copy.deepcopy(step))
    theirs, mine = (frequencies(buffer, 12, 1500) for buffer in buffers)
    chi_square = sum((theirs[key] - mine[key]) ** 2 / (theirs[key] + mine[key]) for key in theirs | mine)
    freedom = len(theirs | mine) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


def filled(steps: int = 50, kind: type[Any] = fr.HerReplayBuffer, **options: Any) -> Any:
    buffer, traffic = make(kind, 20, 2, **{"rng": "native", **options}), Traffic(2)
    for _ in range(steps):
        buffer.add(*traffic.step())
    return buffer


def test_rewards_are_asked_for_once() -> None:
    buffer, asked = filled(), []

    class Env(GoalEnv):
        def compute_reward(self, achieved: Any, desired: Any, infos: Any) -> Any:
            asked.append((achieved.shape, desired.shape, len(infos)))
            desired += 1  # what it changes is changed, as with SB3
            return super().compute_reward(achieved, desired, infos)

    buffer.env = DummyVecEnv([Env])
    data = buffer.sample(50)
    assert asked == [((40, 3), (40, 3), 40)]
    expected = GoalEnv().compute_reward(
        data.next_observations["achieved_goal"][10:].numpy(), data.observations["desired_goal"][10:].numpy(), [{}] * 40
    )
    assert_same(data.rewards[10:, 0].numpy(), expected.astype(np.float32))
    assert_same(data.observations["desired_goal"][10:], data.next_observations["desired_goal"][10:])


def test_own_goals_are_used() -> None:
    class Own(fr.HerReplayBuffer):
        def _sample_goals(self, batch_indices: Any, env_indices: Any) -> Any:
            return super()._sample_goals(batch_indices, env_indices) * 0 + 7

    assert (filled(kind=Own).sample(50).observations["desired_goal"][10:] == 7).all()
    buffer = filled()
    buffer._sample_goals = lambda rows, envs: np.full((len(rows), len(envs.shape) + 2), 8, np.float32)
    assert (buffer.sample(50).observations["desired_goal"][10:] == 8).all()


def test_no_complete_episode_is_told_as_by_sb3() -> None:
    messages = []
    for buffer in (make(TheirHer, 20, 2), make(fr.HerReplayBuffer, 20, 2, rng="native")):
        with pytest.raises(RuntimeError) as caught:
            buffer.sample(4)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("dedupe", [False, True])
def test_draws_go_on_where_they_were_kept(tmp_path: Path, dedupe: bool) -> None:
    buffer = filled(steps=47, dedupe=dedupe)
    buffer.sample(8)
    with pytest.warns(UserWarning, match="will be truncated"):
        buffer.truncate_last_trajectory()
    buffer.save(tmp_path / "kept")
    loaded = [pickle.loads(pickle.dumps(buffer)), copy.deepcopy(buffer), filled(steps=3, dedupe=dedupe)]
    loaded[2].load(tmp_path / "kept")
    for other in loaded[:2]:
        other.set_env(DummyVecEnv([GoalEnv]))
    for _ in range(3):
        expected = tuple(buffer.sample(64))
        for other in loaded:
            assert_same(expected, tuple(other.sample(64)))


def test_native_calls_refuse_what_does_not_fit() -> None:
    buffer = filled()
    draws, episodes = _core.UniformIntegers((1, 2)), buffer._episodes
    for wrong in ((episodes[:-1], 2, 0, 8, 4), (episodes, 3, 0, 8, 4), (episodes, 0, 0, 8, 4)):
        with pytest.raises(ValueError, match="expected the trajectory of each transition"):
            draws.hindsight(buffer._valid, *wrong)
    with pytest.raises(ValueError, match="at most as many goals"):
        draws.hindsight(buffer._valid, episodes, 2, 0, 8, 9)
    with pytest.raises(ValueError, match="no such strategy"):
        draws.hindsight(buffer._valid, episodes, 2, 3, 8, 4)
    with pytest.raises(ValueError, match="nothing to draw from"):
        draws.hindsight(_core.IndexSet(40), episodes, 2, 0, 8, 4)
    with pytest.raises(TypeError):
        draws.hindsight(buffer._valid, episodes.astype(float), 2, 0, 8, 4)
    table, envs = buffer._table, np.zeros(4, np.int64)
    block = table.gather(envs, envs)
    assert not table.gather_goals_into(block.native, envs + 20, envs, 0, 1)
    assert not table.gather_goals_into(block.native, envs, envs[:3], 0, 1)
    with pytest.raises(IndexError):
        table.gather_goals(block, envs, envs + 2, "achieved_goal", "desired_goal")
    for rows, achieved, desired in ((np.zeros(5, np.int64), 0, 1), (envs, 3, 1), (envs, 0, 3), (envs, 0, 2)):
        with pytest.raises(ValueError, match="no such goals"):
            table.gather_goals_into(block.native, rows, np.zeros_like(rows), achieved, desired)


def test_episodes_that_were_poked_are_refused_or_in_the_table() -> None:
    """What a caller writes into `ep_start` is not looked at; nothing outside of the table is read for it."""
    for value in (-(2**63), -1, 19, 2**62, 2**63 - 1):
        buffer = filled()
        buffer.ep_start[...] = value
        with suppress(IndexError):
            assert buffer.sample(64).rewards.shape == (64, 1)


@pytest.mark.parametrize("rng", ["numpy", "native"])
@pytest.mark.parametrize("ratio", [-0.25, 1.25, 7, float("nan"), float("inf"), np.float32(1.5)])
def test_a_ratio_that_is_no_share_is_refused(rng: str, ratio: Any) -> None:
    """Before anything is drawn; a share is taken, ends included."""
    buffer = filled(rng=rng)
    state = random_state(), pickle.dumps(buffer._integers)
    share, buffer.her_ratio = buffer.her_ratio, ratio
    with pytest.raises(ValueError, match=r"her_ratio: expected a number in \[0, 1\], got"):
        buffer.sample(8)
    assert_same(state, (random_state(), pickle.dumps(buffer._integers)))
    for taken in (0, 1, np.float64(0.5), share):
        buffer.her_ratio = taken
        assert len(buffer.sample(8).rewards) == 8
