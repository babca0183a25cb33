# SPDX-License-Identifier: MIT
"""Whole training runs of SB3's algorithms with its own classes and with ours end in the same parameters."""

from __future__ import annotations

import runpy
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DDPG, DQN, SAC, TD3, HerReplayBuffer
from stable_baselines3.common import buffers as theirs
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from support import IN_LONG_FORM

import fastreplay.sb3 as fr

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ALGORITHMS: dict[str, Any] = {"dqn": DQN, "ddpg": DDPG, "td3": TD3, "sac": SAC}
Env = gym.Env[Any, Any]


class Line(gym.Env[Any, Any]):
    """A point on a line that shall come to a goal; ends there, and is cut off after 17 steps.

    Args:
        kind: "box", "image" or "dict" observations; "goal" for those of a goal environment.
        is_discrete: Whether actions are.
    """

    def __init__(self, kind: str = "box", *, is_discrete: bool = False) -> None:
        box = spaces.Box(-5, 5, (3,), np.float32)
        goal = spaces.Box(-5, 5, (1,), np.float32)
        parts: dict[str, spaces.Space[Any]] = {"observation": box, "achieved_goal": goal, "desired_goal": goal}
        kinds: dict[str, spaces.Space[Any]] = {
            "box": box,
            "image": spaces.Box(0, 255, (1, 36, 36), np.uint8),
            "dict": spaces.Dict({"where": box, "seen": spaces.Box(0, 255, (1, 36, 36), np.uint8)}),
            "goal": spaces.Dict(parts),
        }
        self.observation_space = kinds[kind]
        self.action_space = spaces.Discrete(3) if is_discrete else spaces.Box(-1, 1, (1,), np.float32)
        self.kind = kind
        self.place = self.goal = 0.0
        self.num_steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.goal = self.np_random.uniform(-3, 3, 2).tolist()
        self.num_steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        discrete = isinstance(self.action_space, spaces.Discrete)
        self.place = float(np.clip(self.place + (float(action) - 1 if discrete else float(action[0])), -4, 4))
        self.num_steps += 1
        reward = float(self.compute_reward(np.array([self.place]), np.array([self.goal]), {}))
        return self._observation(), reward, reward > -0.4, self.num_steps == 17, {}

    def compute_reward(self, achieved: Any, desired: Any, infos: Any) -> Any:
        return -np.abs(achieved - desired)[..., 0]

    def _observation(self) -> Any:
        box = np.array([self.place, self.goal, self.num_steps / 17], np.float32)
        image = np.full((1, 36, 36), int(20 * (self.place + 4)), np.uint8)
        achieved, desired = (np.array([value], np.float32) for value in (self.place, self.goal))
        return {
            "box": box,
            "image": image,
            "dict": {"where": box, "seen": image},
            "goal": {"observation": box, "achieved_goal": achieved, "desired_goal": desired},
        }[self.kind]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def vector(make: Callable[[], Env], num_envs: int) -> DummyVecEnv:
    return DummyVecEnv([make] * num_envs)


def trained(
    name: str,
    make: Callable[[], Env],
    *,
    num_envs: int = 1,
    buffer: type[Any] | None = None,
    is_accelerated: bool = False,
    steps: int = 110,
    **kwargs: Any,
) -> Any:
    """Train, and return the model."""
    defaults: dict[str, Any] = {
        "policy": "MlpPolicy",
        "buffer_size": 80,  # more than a lap
        "learning_starts": 30,
        "batch_size": 16,
        "train_freq": 2 if num_envs == 1 else 1,
        "gradient_steps": 2,
        "policy_kwargs": {"net_arch": [24, 24]},
        "seed": 3,
        "device": "cpu",
    }
    if name == "dqn":
        defaults |= {"target_update_interval": 7, "tau": 0.3}
    with fr.accelerate() if is_accelerated else nullcontext():
        model = ALGORITHMS[name](env=vector(make, num_envs), replay_buffer_class=buffer, **(defaults | kwargs))
        model.learn(steps)
    return model


def assert_same_models(first: Any, second: Any) -> None:
    one, other = first.policy.state_dict(), second.policy.state_dict()
    assert list(one) == list(other)
    for name, tensor in one.items():
        assert tensor.numpy().tobytes() == other[name].numpy().tobytes(), name
    assert first.num_timesteps == second.num_timesteps
    assert first._n_updates == second._n_updates > 20


def assert_is_ours(model: Any) -> None:
    assert type(model.replay_buffer).__module__.startswith("fastreplay.")


def line_of(name: str, kind: str = "box") -> Callable[[], Env]:
    return lambda: Line(kind, is_discrete=name == "dqn")


@pytest.mark.share(2)
@pytest.mark.parametrize("num_envs", [1, pytest.param(4, marks=IN_LONG_FORM)])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_each_algorithm(name: str, num_envs: int) -> None:
    """By the class as an argument, and by accelerate(), which changes the target update too."""
    reference = trained(name, line_of(name), num_envs=num_envs)
    assert type(reference.replay_buffer) is theirs.ReplayBuffer
    for choice in ({"buffer": fr.ReplayBuffer}, {"is_accelerated": True}):
        model = trained(name, line_of(name), num_envs=num_envs, **choice)
        assert type(model.replay_buffer) is fr.ReplayBuffer
        assert_same_models(reference, model)


def test_another_seed_ends_elsewhere() -> None:
    """So that the comparison cannot be one of nothing."""
    first, second = trained("sac", line_of("sac")), trained("sac", line_of("sac"), seed=4)
    with pytest.raises(AssertionError):
        assert_same_models(first, second)


@pytest.mark.share(2)
@pytest.mark.parametrize(("name", "env"), [("dqn", "CartPole-v1"), ("td3", "Pendulum-v1"), ("sac", "Pendulum-v1")])
def test_environments_of_gymnasium(name: str, env: str) -> None:
    models = [trained(name, lambda: gym.make(env), is_accelerated=flag) for flag in (False, True)]
    assert_is_ours(models[1])
    assert_same_models(*models)


VARIANTS: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "n-step": ("dqn", "box", 1, {"n_steps": 3}),
    "n-step-4-envs": ("sac", "box", 4, {"n_steps": 3}),
    "shared-observations": (
        "dqn",
        "box",
        2,
        {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}},
    ),
    "images": ("dqn", "image", 2, {"policy": "CnnPolicy", "steps": 90, "policy_kwargs": {}}),
    "dict": ("sac", "dict", 2, {"policy": "MultiInputPolicy", "steps": 90}),
    "no-timeouts": ("td3", "box", 1, {"replay_buffer_kwargs": {"handle_timeout_termination": False}}),
    "hard-target": ("dqn", "box", 1, {"tau": 1.0}),
    "her": (
        "sac",
        "goal",
        2,
        {
            "policy": "MultiInputPolicy",
            "buffer": HerReplayBuffer,
            "learning_starts": 40,
            "replay_buffer_kwargs": {"n_sampled_goal": 2},
        },
    ),
}


@pytest.mark.share(2)
@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=[IN_LONG_FORM] * (name in {"dict", "images"})) for name in VARIANTS]
)
def test_variants(variant: str) -> None:
    name, kind, num_envs, arguments = VARIANTS[variant]
    models = [
        trained(name, line_of(name, kind), num_envs=num_envs, is_accelerated=flag, **arguments)
        for flag in (False, True)
    ]
    assert_is_ours(models[1])
    assert_same_models(*models)


def test_normalized() -> None:
    models = []
    for buffer in (None, fr.ReplayBuffer):
        env = VecNormalize(vector(line_of("sac"), 2), norm_obs=True, norm_reward=True)
        model = SAC(
            "MlpPolicy",
            env,
            buffer_size=80,
            learning_starts=30,
            batch_size=16,
            policy_kwargs={"net_arch": [24, 24]},
            seed=3,
            device="cpu",
            replay_buffer_class=buffer,
        )
        models.append(model.learn(110))
    assert_is_ours(models[1])
    assert_same_models(*models)


@pytest.mark.parametrize("kind", ["box", pytest.param("goal", marks=IN_LONG_FORM)])
def test_saved_in_the_middle(kind: str, tmp_path: Path) -> None:
    """A model and its buffer, saved by a checkpoint callback and loaded again, go on as SB3's do."""
    policy = {"box": "MlpPolicy", "goal": "MultiInputPolicy"}[kind]
    models = []
    for is_accelerated in (False, True):
        folder = tmp_path / str(is_accelerated)
        with fr.accelerate() if is_accelerated else nullcontext():
            model = TD3(
                policy,
                vector(line_of("td3", kind), 1),
                buffer_size=70,
                learning_starts=30,
                batch_size=16,
                policy_kwargs={"net_arch": [24]},
                seed=3,
                device="cpu",
                replay_buffer_class=HerReplayBuffer if kind == "goal" else None,
            )
            checkpoint = CheckpointCallback(90, str(folder), save_replay_buffer=True)
            model.learn(90, callback=checkpoint)
            again = TD3.load(folder / "rl_model_90_steps", env=vector(line_of("td3", kind), 1), device="cpu")
            again.load_replay_buffer(folder / "rl_model_replay_buffer_90_steps", truncate_last_traj=False)
            again.set_random_seed(5)
            again.learn(80, reset_num_timesteps=False)
        models.append(again)
    assert_is_ours(models[1])
    assert_same_models(*models)


def test_the_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    example = Path(__file__).parents[1] / "examples" / "sb3_dropin.py"
    monkeypatch.setattr(sys, "argv", [str(example), "--steps", "130"])
    runpy.run_path(str(example), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].strip() for line in lines[:2]] == ["SB3", "fastreplay"]
    assert lines[2].endswith("parameters, bit for bit.")
