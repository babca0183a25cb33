# SPDX-License-Identifier: MIT
"""Whole training runs with `dedupe` end in the parameters that they end in without, bit for bit."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import FrameStackObservation, RecordEpisodeStatistics
from sb3_support import assert_same
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from test_sb3_training import Line, assert_same_models

import fastreplay.cleanrl
import fastreplay.sb3 as fr

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


pytestmark = pytest.mark.share(2)


def vector(kind: str, num_envs: int, *, is_discrete: bool = False, is_stacked: bool = False) -> Any:
    envs: Any = DummyVecEnv([lambda: Line(kind, is_discrete=is_discrete)] * num_envs)
    return VecFrameStack(envs, 4) if is_stacked else envs


def stacked(num_envs: int) -> Any:
    return DummyVecEnv([lambda: FrameStackObservation(Line(), 3)] * num_envs)


# Algorithm, environments, policy, what says how much is stored once, and more.
RUNS: dict[str, tuple[Any, Callable[[], Any], str, Any, dict[str, Any]]] = {
    "dqn, stacked images": (
        DQN,
        lambda: vector("image", 2, is_discrete=True, is_stacked=True),
        "CnnPolicy",
        4,
        {"learn": 120, "policy_kwargs": {}, "train_freq": 4, "gradient_steps": 2},
    ),
    "dqn": (DQN, lambda: vector("box", 1, is_discrete=True), "MlpPolicy", True, {}),
    "sac": (SAC, lambda: vector("box", 4), "MlpPolicy", True, {"gradient_steps": 2}),
    "sac, stacks of Gymnasium's": (SAC, lambda: stacked(1), "MlpPolicy", 3, {}),
    "sac, normalized": (SAC, lambda: VecNormalize(stacked(2)), "MlpPolicy", 3, {}),
    "sac, parts": (
        SAC,
        lambda: vector("dict", 2),
        "MultiInputPolicy",
        True,
        {"buffer": fr.DictReplayBuffer, "learn": 90},
    ),
    "dqn, n steps": (
        DQN,
        lambda: vector("box", 2, is_discrete=True, is_stacked=True),
        "MlpPolicy",
        True,
        {"buffer": fr.NStepReplayBuffer, "buffer_options": {"n_steps": 3, "gamma": 0.9}, "learn": 110},
    ),
    "dqn, priorities of n steps": (
        fr.DQN,
        lambda: vector("image", 2, is_discrete=True, is_stacked=True),
        "MlpPolicy",
        4,
        {"buffer": fr.PrioritizedReplayBuffer, "n_steps": 3, "learn": 110},
    ),
    "sac, hindsight": (
        SAC,
        lambda: vector("goal", 1),
        "MultiInputPolicy",
        True,
        {"buffer": fr.HerReplayBuffer, "buffer_options": {"copy_info_dict": True}, "learn": 100},
    ),
}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", RUNS)
def test_stable_baselines3(name: str) -> None:
    cls, envs, policy, dedupe, more = RUNS[name]
    options: dict[str, Any] = {"policy_kwargs": {"net_arch": [24, 24]}, "train_freq": 1, **more}
    num_steps = options.pop("learn", 250)
    buffer = options.pop("buffer", fr.ReplayBuffer)
    buffer_options = options.pop("buffer_options", {})
    models = []
    for choice in ({}, {"dedupe": dedupe}):
        model = cls(
            policy,
            envs(),
            buffer_size=80,
            learning_starts=30,
            batch_size=16,
            seed=3,
            device="cpu",
            replay_buffer_class=buffer,
            replay_buffer_kwargs={**buffer_options, **choice},
            **options,
        )
        models.append(model.learn(num_steps))
    assert models[1].replay_buffer.dedupe is dedupe
    assert models[1].replay_buffer.full
    assert_same_models(*models)


@pytest.mark.parametrize(
    ("buffer", "options", "dedupe"),
    [(fr.ReplayBuffer, {}, 3), (fr.NStepReplayBuffer, {"n_steps": 3}, 3), (fr.HerReplayBuffer, {}, True)],
    ids=["plain", "n steps", "hindsight"],
)
def test_saved_in_the_middle(buffer: Any, options: dict[str, Any], dedupe: Any, tmp_path: Path) -> None:
    models = []
    is_of_goals = buffer is fr.HerReplayBuffer
    envs: Callable[[], Any] = partial(vector, "goal", 1) if is_of_goals else partial(stacked, 1)
    policy = "MultiInputPolicy" if is_of_goals else "MlpPolicy"
    for choice in ({}, {"dedupe": dedupe}):
        model = TD3(
            policy,
            envs(),
            buffer_size=70,
            learning_starts=30,
            batch_size=16,
            policy_kwargs={"net_arch": [24]},
            seed=3,
            device="cpu",
            replay_buffer_class=buffer,
            replay_buffer_kwargs={**options, **choice},
        )
        model.learn(90)
        model.save(tmp_path / "model")
        model.save_replay_buffer(tmp_path / "buffer")
        again = TD3.load(tmp_path / "model", env=envs(), device="cpu")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The last trajectory in the replay buffer")
            again.load_replay_buffer(tmp_path / "buffer")
        assert again.replay_buffer is not None
        again.set_random_seed(5)
        models.append(again.learn(80, reset_num_timesteps=False))
    assert models[1].replay_buffer.dedupe == dedupe  # type: ignore[union-attr]
    assert_same_models(*models)


class Screen(gym.Env[Any, Any]):
    """Shows noise; ends or is cut off at random."""

    observation_space = spaces.Box(0, 255, (6, 6), np.uint8)
    action_space = spaces.Discrete(3)

    def _screen(self) -> Any:
        return self.np_random.integers(0, 255, (6, 6), np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        return self._screen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # noqa: ARG002
        chance = self.np_random.random()
        return self._screen(), chance, bool(chance < 0.1), bool(chance > 0.9), {}


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP], ids=str)
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("handles_timeouts", [False, True])
def test_cleanrl(mode: AutoresetMode, num_envs: int, handles_timeouts: bool) -> None:
    results = []
    for dedupe in (False, True, 4):
        envs = SyncVectorEnv(
            [lambda: RecordEpisodeStatistics(FrameStackObservation(Screen(), 4))] * num_envs, autoreset_mode=mode
        )
        np.random.seed(1)  # noqa: NPY002  from which CleanRL draws
        buffer = fastreplay.cleanrl.ReplayBuffer(
            50 * num_envs,
            envs.single_observation_space,
            envs.single_action_space,
            "cpu",
            num_envs,
            handle_timeout_termination=handles_timeouts,
            dedupe=dedupe,
        )
        obs, _ = envs.reset(seed=1)
        samples = []
        for step in range(200):
            actions = np.full(num_envs, step % 3)
            next_obs, rewards, terminations, _, infos = envs.step(actions)
            real_next_obs = next_obs.copy()
            for i in np.flatnonzero(infos.get("_final_obs", np.zeros(num_envs))):
                real_next_obs[i] = infos["final_obs"][i]
            buffer.add(obs, real_next_obs, actions, rewards, terminations, infos)
            obs = next_obs
            if step % 10 == 9:
                samples.append(buffer.sample(20))
        results.append((tuple(samples), buffer.pos, buffer.full))
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])
