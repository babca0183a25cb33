# SPDX-License-Identifier: MIT
"""fastreplay.sb3's NStepReplayBuffer against SB3's own, call by call and bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sb3_support import ACTIONS, BOX, IMAGE, OBSERVATIONS, Steps, Twins, run_program
from test_sb3_buffers import vec_normalize

import fastreplay.sb3 as fsb3
from fastreplay.adapters.sb3 import n_step


@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize("n_steps", [1, 2, 3, 5, 7, 8, 20])
@pytest.mark.parametrize("handle_timeouts", [True, False])
def test_random_programs(n_steps: int, n_envs: int, handle_timeouts: bool) -> None:
    twins = Twins(
        "NStepReplayBuffer",
        11 * n_envs,
        BOX,
        ACTIONS["box"],
        "cpu",
        n_envs,
        n_steps=n_steps,
        handle_timeout_termination=handle_timeouts,
    )
    run_program(twins, Steps(BOX, ACTIONS["box"], n_envs), seed=n_steps, num_operations=150)


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_every_space(observation: str) -> None:
    space = OBSERVATIONS[observation]
    twins = Twins("NStepReplayBuffer", 30, space, ACTIONS["discrete"], "cpu", 2, gamma=0.9)
    run_program(twins, Steps(space, ACTIONS["discrete"], 2), seed=0)


def filled(n_steps: int = 3, *, ends: float = 0.15, **options: Any) -> Twins:
    """Several laps of a buffer of 1000 rows."""
    twins = Twins("NStepReplayBuffer", 2000, BOX, ACTIONS["box"], "cpu", 2, n_steps=n_steps, **options)
    for buffer in twins.buffers:
        rng = np.random.default_rng(5)
        buffer.rewards[...] = rng.normal(size=buffer.rewards.shape)
        buffer.dones[...] = rng.random(buffer.dones.shape) < ends
        buffer.timeouts[...] = buffer.dones * (rng.random(buffer.dones.shape) < 0.5)
        buffer.observations[...] = rng.normal(size=buffer.observations.shape)
        buffer.next_observations[...] = rng.normal(size=buffer.observations.shape)
        buffer.pos, buffer.full = 321, True
    twins.compare()
    return twins


@pytest.mark.parametrize("n_steps", [1, 3, 5, 7, 9, 17, 130])
@pytest.mark.parametrize("ends", [0.0, 0.15, 1.0])
def test_large_minibatches(n_steps: int, ends: float) -> None:
    twins = filled(n_steps, ends=ends)
    samples = twins.call("sample", 4000)
    counts = np.round(np.log(samples.discounts.numpy()) / np.log(0.99))
    assert counts.max() == (1 if ends == 1 else n_steps if n_steps < 20 or not ends else counts.max())


@pytest.mark.parametrize("gamma", [0.99, 1, 0, 1.0, 0.5, np.float32(0.9), np.float64(0.9)])
def test_every_gamma(gamma: Any) -> None:
    filled(gamma=gamma).call("sample", 256)


def test_gamma_and_n_steps_set_from_outside() -> None:
    twins = filled()
    for name, value in (("gamma", 0.7), ("n_steps", 6), ("n_steps", 1)):
        twins.do(lambda buffer: setattr(buffer, name, value))  # noqa: B023
        twins.call("sample", 100)
    twins.do(lambda buffer: setattr(buffer, "n_steps", 0))
    assert twins.call("sample", 100)[0] == "raised"


def test_around_the_cursor() -> None:
    """No step leads over the newest row, into the oldest of another episode."""
    for pos in (0, 1, 500, 999):
        twins = filled(5, ends=0)
        twins.do(lambda buffer: setattr(buffer, "pos", pos))  # noqa: B023
        rows = np.arange(pos - 6, pos + 2) % 1000
        samples = twins.call("_get_samples", rows)
        counts = np.round(np.log(samples.discounts.numpy().ravel()) / np.log(0.99)).astype(int)
        assert counts.tolist() == [5, 5, 4, 3, 2, 1, 5, 5]
    for buffer in twins.buffers:  # what ended there ended there, as it did
        buffer.dones[998], buffer.timeouts[998] = [1, 1], [0, 1]
    samples = twins.call("_get_samples", np.full(50, 996))
    assert set(samples.dones.flatten().tolist()) == {0, 1}


def test_odd_values_of_the_flags() -> None:
    twins = filled()
    for buffer in twins.buffers:
        rng = np.random.default_rng(1)
        buffer.dones[...] = rng.choice([0, 0.5, -1, 1], size=buffer.dones.shape)
        buffer.timeouts[...] = rng.choice([0, 0, 0.25, 3], size=buffer.dones.shape)
    twins.call("sample", 3000)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -0.0, 3e38])
def test_odd_rewards(value: float) -> None:
    twins = filled()
    for buffer in twins.buffers:
        buffer.rewards[::3] = value
    with np.errstate(all="ignore"):
        twins.call("sample", 500)


def test_invalid_rewards_warn_as_numpy_does() -> None:
    for buffer in filled().buffers:
        buffer.rewards[...] = np.inf
        with pytest.warns(RuntimeWarning, match="invalid value"):
            buffer.sample(200)


@pytest.mark.parametrize("norm_reward", [True, False])
@pytest.mark.parametrize("n_steps", [3, 12])
def test_vec_normalize(norm_reward: bool, n_steps: int) -> None:
    env = vec_normalize(BOX, norm_reward=norm_reward)
    twins = filled(n_steps)
    twins.do(lambda buffer: buffer.sample(200, env=env))


def test_sums_that_numpy_would_order_otherwise_are_numpys(monkeypatch: pytest.MonkeyPatch) -> None:
    assert n_step._sums_alike(3)
    assert not n_step._sums_alike(8)
    monkeypatch.setattr(n_step, "_sums_alike", lambda _: False)
    filled().call("sample", 500)


def test_results_are_the_callers() -> None:
    buffer = filled().ours
    first = buffer.sample(64)
    kept = [tensor.clone() for tensor in first]
    for tensor in buffer.sample(64):
        tensor.fill_(7)
    assert all(torch.equal(mine, yours) for mine, yours in zip(kept, first, strict=True))


def test_native_generator() -> None:
    np.random.seed(0)
    buffer = fsb3.NStepReplayBuffer(100, BOX, ACTIONS["box"], "cpu", rng="native", n_steps=2)
    buffer.rewards[...] = 1
    buffer.full = True
    before = np.random.get_state(legacy=False)["state"]["pos"]
    assert set(buffer.sample(300).rewards.flatten().tolist()) == {1, 1 + float(np.float32(0.99))}
    assert np.random.get_state(legacy=False)["state"]["pos"] == before


def test_refuses_shared_observations() -> None:
    with pytest.raises(NotImplementedError, match="optimize_memory_usage"):
        fsb3.NStepReplayBuffer(10, IMAGE, ACTIONS["box"], optimize_memory_usage=True, handle_timeout_termination=False)
