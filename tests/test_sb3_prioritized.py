# SPDX-License-Identifier: MIT
"""fastreplay.sb3.DQN and its buffer: drawn by priority, weighed, given back; without priorities SB3's, bit for bit."""

from __future__ import annotations

import copy
import pickle
from types import MethodType
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from sb3_support import BOX, DICT
from stable_baselines3.common import buffers as theirs
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from support import IN_LONG_FORM
from torch.nn import functional

import fastreplay.sb3 as fr

if TYPE_CHECKING:
    from pathlib import Path

    from fastreplay.adapters.prioritized_slots import SlotDraw

ACTIONS = spaces.Discrete(4)


class Walk(gym.Env[Any, Any]):
    """A walk that ends at either side, and is cut off after 9 steps."""

    observation_space = spaces.Box(-9, 9, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.num_steps = float(self.np_random.uniform(-1, 1)), 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place += float(action) - 1
        self.num_steps += 1
        return self._observation(), abs(self.place), abs(self.place) > 3, self.num_steps == 9, {}

    def _observation(self) -> Any:
        return np.array([self.place, self.num_steps / 9], np.float32)


def envs_of(num_envs: int, *, is_normalized: bool = False) -> Any:
    envs = DummyVecEnv([Walk] * num_envs)
    return VecNormalize(envs) if is_normalized else envs


def new_model(cls: Any = fr.DQN, env: Any = None, **options: Any) -> Any:
    defaults: dict[str, Any] = {
        "buffer_size": 80,  # more than a lap
        "learning_starts": 30,
        "batch_size": 16,
        "train_freq": 2,
        "gradient_steps": 2,
        "target_update_interval": 7,
        "policy_kwargs": {"net_arch": [24]},
        "seed": 3,
        "device": "cpu",
    }
    return cls("MlpPolicy", envs_of(1) if env is None else env, **(defaults | options))


def filled(num_rows: int = 6, num_envs: int = 2, count: int = 6, **options: Any) -> Any:
    """Make a buffer of rows that tell their number."""
    np.random.seed(11)
    buffer = fr.PrioritizedReplayBuffer(num_rows * num_envs, BOX, ACTIONS, "cpu", num_envs, **options)
    fill(buffer, range(count))
    return buffer


def fill(buffer: Any, numbers: range) -> None:
    envs = np.arange(buffer.n_envs)
    for number in numbers:
        values = np.tile((10 * number + envs)[:, None], (1, 5)).astype(np.float32)
        buffer.add(values, values + 1, envs % 4, values[:, 0], envs < 0, [{}] * buffer.n_envs)


def weights_of(model: Any) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.policy.state_dict().items()}


def draw_as_sb3(buffer: Any) -> None:
    """Let a buffer whose rows all weigh the same take the rows that SB3's would, from NumPy's generator."""
    drawn = buffer._slots.sample

    def sample(_: Any, batch_size: int, beta: float) -> SlotDraw:
        draw: SlotDraw = drawn(batch_size, beta)
        assert (draw.weights == 1).all()
        rows = buffer._draw_rows(batch_size)
        return draw._replace(slots=rows * buffer.n_envs + buffer._integers(0, buffer.n_envs, batch_size))

    buffer._slots.sample = MethodType(sample, buffer._slots)


VARIANTS: dict[str, tuple[int, bool, dict[str, Any]]] = {
    "plain": (1, False, {}),
    "4-envs": (4, False, {"train_freq": 1, "batch_size": 20}),
    "n-step": (1, False, {"n_steps": 3}),
    "normalized": (2, True, {"tau": 0.3}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_priorities_it_is_sb3s_dqn_bit_for_bit(variant: str) -> None:
    num_envs, is_normalized, options = VARIANTS[variant]
    ended = []
    for cls, own in ((stable_baselines3.DQN, {}), (fr.DQN, {"replay_buffer_kwargs": {"alpha": 0, "beta": 0}})):
        model = new_model(cls, envs_of(num_envs, is_normalized=is_normalized), **options, **own)
        if own:
            draw_as_sb3(model.replay_buffer)
        np.random.seed(5)  # our buffer has drawn its seed
        model.learn(110)
        assert model._n_updates > 20
        ended.append(weights_of(model))
    assert ended[0] == ended[1]


def test_the_loss_is_weighed_and_the_errors_come_back() -> None:
    model = new_model(replay_buffer_kwargs={"alpha": 0.7})
    model.learn(60)
    buffer, twin = model.replay_buffer, copy.deepcopy(model.policy)
    batch = copy.deepcopy(buffer).sample(16, beta=buffer.beta_at(model._current_progress_remaining))
    assert batch.weights.min() < 0.99

    q = twin.q_net(batch.observations).gather(1, batch.actions)
    with torch.no_grad():
        expected = (
            batch.rewards + (1 - batch.dones) * 0.99 * twin.q_net_target(batch.next_observations).amax(1)[:, None]
        )
    loss = (batch.weights * functional.smooth_l1_loss(q, expected, reduction="none")).mean()
    twin.optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(twin.parameters(), 10)
    twin.optimizer.step()

    given: list[Any] = []
    update = buffer.update_priorities
    buffer.update_priorities = lambda *arguments: given.append((*arguments, update(*arguments)))
    model.train(1, 16)
    assert weights_of(model) == {name: value.numpy().tobytes() for name, value in twin.state_dict().items()}
    ((tickets, errors, counts),) = given
    assert np.array_equal(tickets, batch.tickets)
    assert torch.equal(errors, (q - expected)[:, 0])
    assert counts == (16, 0)


BETAS: dict[str, tuple[dict[str, Any], float, float]] = {
    "by default to one": ({}, 0.4 + 0.6 * 0.32, 1.0),
    "a number": ({"beta": 0.7}, 0.7, 0.7),
    "a schedule": ({"beta": lambda remaining: 2 - remaining}, 1.32, 2.0),
}


@pytest.mark.parametrize("kind", BETAS)
def test_beta_follows_the_training(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options, first, last = BETAS[kind]
    betas: list[float] = []
    sample = fr.PrioritizedReplayBuffer.sample

    def noted(buffer: Any, batch_size: int, env: Any, beta: float) -> Any:
        betas.append(beta)
        return sample(buffer, batch_size, env, beta)

    monkeypatch.setattr(fr.PrioritizedReplayBuffer, "sample", noted)
    new_model(replay_buffer_kwargs=options).learn(100)
    assert betas[0] == pytest.approx(first)
    assert betas[-1] == pytest.approx(last)


def test_a_seed_gives_the_same_run() -> None:
    first, second, other = (new_model(seed=seed).learn(80) for seed in (3, 3, 4))
    assert weights_of(first) == weights_of(second) != weights_of(other)


@pytest.mark.parametrize("n_steps", [3, pytest.param(1, marks=IN_LONG_FORM)])
def test_saved_in_the_middle_it_goes_on(n_steps: int, tmp_path: Path) -> None:
    callback = CheckpointCallback(45, str(tmp_path), save_replay_buffer=True)
    new_model(env=envs_of(2), n_steps=n_steps, train_freq=1).learn(90, callback=callback)
    again = []
    for _ in range(2):
        loaded = fr.DQN.load(tmp_path / "rl_model_90_steps", env=envs_of(2), device="cpu")
        loaded.load_replay_buffer(tmp_path / "rl_model_replay_buffer_90_steps")
        assert type(loaded.replay_buffer) is fr.PrioritizedReplayBuffer
        assert loaded.replay_buffer.n_steps == loaded.n_steps == n_steps
        assert copy.deepcopy(loaded.replay_buffer).sample(9).weights.min() < 0.99
        loaded.set_random_seed(5)
        again.append(weights_of(loaded.learn(80, reset_num_timesteps=False)))
    assert again[0] == again[1]


def assert_same(first: Any, second: Any) -> None:
    for mine, yours in zip(first, second, strict=True):
        assert (mine is yours is None) or torch.equal(torch.as_tensor(mine), torch.as_tensor(yours))


def test_minibatches_are_the_rows_of_their_tickets() -> None:
    buffer = filled(count=15)
    samples = buffer.sample(32)
    rows, envs = np.divmod(samples.tickets % 12, 2)
    assert samples.discounts is None
    assert np.array_equal(samples.observations.numpy(), buffer.observations[rows, envs])
    assert np.array_equal(samples.next_observations.numpy(), buffer.next_observations[rows, envs])
    assert np.array_equal(samples.rewards[:, 0].numpy(), buffer.rewards[rows, envs])
    assert np.array_equal(samples.actions.numpy(), buffer.actions[rows, envs])
    assert set(samples.rewards[:, 0].tolist()) <= {10 * number + env for number in range(9, 15) for env in (0, 1)}


def test_rows_are_drawn_as_often_as_they_weigh() -> None:
    buffer = filled(count=9, alpha=0.5, eps=0.0)
    tickets, priorities = np.arange(6, 18), np.arange(12.0)
    assert buffer.update_priorities(tickets, priorities) == (12, 0)
    counts = np.zeros(12)
    for _ in range(100):
        samples = buffer.sample(50, beta=1.0)  # of shares of mass, so that counts vary less than of independent draws
        counts += np.bincount(samples.tickets - 6, minlength=12)
        weight = priorities[samples.tickets - 6] ** -0.5
        np.testing.assert_allclose(samples.weights[:, 0], weight / weight.max(), rtol=1e-5)
    assert counts[0] == 0
    expected = 5000 * priorities**0.5 / (priorities**0.5).sum()
    assert (abs(counts - expected) <= 5 * np.sqrt(expected)).all()
    assert buffer.update_priorities([2, 7], [1.0, 1.0]) == (1, 1)  # of which one was overwritten


def test_the_cursor_may_be_moved() -> None:
    buffer = filled(count=4)
    old = buffer.sample(3).tickets
    buffer.update_priorities(old, [100.0] * 3)
    for pos, full, num_rows in ((2, False, 2), (3, True, 6), (0, True, 6)):
        buffer.observations[..., 0] = np.arange(12).reshape(6, 2)
        buffer.pos, buffer.full = pos, full
        assert set(buffer.sample(500).observations[:, 0].tolist()) == set(range(2 * num_rows))
        assert buffer.update_priorities(old, [5.0] * 3) == (0, 3)  # tickets from before are nobody's
        fill(buffer, range(40, 41))
        assert {400.0, 401.0} <= set(buffer.sample(500).observations[:, 0].tolist())
    buffer.reset()
    with pytest.raises(ValueError, match="empty"):
        buffer.sample(3)
    fill(buffer, range(7, 8))
    assert set(buffer.sample(9).rewards[:, 0].tolist()) == {70.0, 71.0}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda buffer: pickle.loads(pickle.dumps(buffer))])
def test_a_copy_goes_on_alike(copied: Any) -> None:
    buffer = filled(count=9)
    buffer.update_priorities(np.arange(6, 18), np.arange(12.0))
    other = copied(buffer)
    for each in (buffer, other):
        fill(each, range(20, 22))
        each.update_priorities([13, 14], [50.0, 60.0])
    assert_same(buffer.sample(20), other.sample(20))


@pytest.mark.parametrize("n_steps", [1, 2])
def test_buffers_of_sb3_are_converted_both_ways(n_steps: int) -> None:
    buffer = filled(count=9, n_steps=n_steps)
    as_theirs = buffer.to_sb3()
    assert type(as_theirs) is (theirs.ReplayBuffer if n_steps == 1 else theirs.NStepReplayBuffer)
    assert not {"_slots", "beta"} & vars(as_theirs).keys()
    assert as_theirs.sample(4).observations.shape == (4, 5)
    for source in (as_theirs, fr.NStepReplayBuffer.from_sb3(as_theirs) if n_steps == 2 else as_theirs):
        back = fr.PrioritizedReplayBuffer.from_sb3(source)
        assert back.n_steps == n_steps
        assert np.array_equal(back.observations, buffer.observations)
        samples = back.sample(200, beta=1.0)
        assert (samples.weights == 1).all()
        assert len(set(samples.observations[:, 0].tolist())) == 12


REFUSED: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "her": (TypeError, "replay_buffer_class: .* got HerReplayBuffer", {"replay_buffer_class": fr.HerReplayBuffer}),
    "uniform": (TypeError, "replay_buffer_class: .* got ReplayBuffer", {"replay_buffer_class": theirs.ReplayBuffer}),
    "shared observations": (NotImplementedError, "optimize_memory_usage: ", {"optimize_memory_usage": True}),
    "no steps": (ValueError, "n_steps: ", {"n_steps": 0}),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_dqn_does_not_take(kind: str) -> None:
    error, message, options = REFUSED[kind]
    with pytest.raises(error, match=message):
        new_model(**options)


def test_dict_spaces_are_refused() -> None:
    with pytest.raises(TypeError, match="observation_space: PrioritizedReplayBuffer takes no Dict space"):
        fr.PrioritizedReplayBuffer(10, DICT, ACTIONS)


def test_a_loaded_buffer_without_priorities_is_refused_and_can_be_converted() -> None:
    model = new_model().learn(40)
    model.replay_buffer = model.replay_buffer.to_sb3()
    with pytest.raises(
        TypeError, match=r"replay_buffer: expected PrioritizedReplayBuffer, got ReplayBuffer; .*from_sb3"
    ):
        model.train(1)
    model.replay_buffer = fr.PrioritizedReplayBuffer.from_sb3(model.replay_buffer)
    model.train(1)
