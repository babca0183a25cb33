# SPDX-License-Identifier: MIT
"""fastreplay.cleanrl.PrioritizedReplayBuffer beside what rainbow_atari.py's buffer is defined to do."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from dedupe_support import IMAGES as STACKS
from dedupe_support import Stream as Frames
from gymnasium import spaces
from sb3_support import assert_same

from fastreplay.cleanrl import PrioritizedBatch, PrioritizedReplayBuffer

SHAPE = (2, 3, 3)
GAMMA, ALPHA, BETA, EPS = 0.97, 0.5, 0.4, 1e-6


class Stream(NamedTuple):
    """Steps of one environment; frames that tell the step."""

    obs: Any
    actions: Any
    rewards: Any
    next_obs: Any
    dones: Any


def stream(num_steps: int, share_of_ends: float = 0.2, seed: int = 0) -> Stream:
    rng = np.random.default_rng(seed)
    obs, next_obs = rng.integers(0, 256, (2, num_steps, *SHAPE), dtype=np.uint8)
    dones = rng.random(num_steps) < share_of_ends
    return Stream(obs, rng.integers(4, size=num_steps), rng.normal(size=num_steps), next_obs, dones)


def transitions(steps: Stream, n: int) -> list[tuple[Any, ...]]:
    """Say, with all steps in sight, what is stored: (obs, action, n-step reward, last obs, whether it ended).

    What begins at `first` lasts n steps, or to an end among them. The end throws away what else had begun by the
    step that completes it.
    """
    found: list[tuple[Any, ...]] = []
    first = 0
    while first + n <= len(steps.rewards):
        ends = np.flatnonzero(steps.dones[first : first + n])
        last = first + (ends[0] if len(ends) else n - 1)
        total = sum(GAMMA**i * reward for i, reward in enumerate(steps.rewards[first : last + 1]))
        found.append((steps.obs[first], steps.actions[first], total, steps.next_obs[last], len(ends) > 0))
        first = first + n if len(ends) else first + 1
    return found


def add_all(buffer: PrioritizedReplayBuffer, steps: Stream) -> None:
    """Add steps as a vector environment of one gives them, in arrays that it uses again."""
    obs, next_obs = np.empty((1, *SHAPE), np.uint8), np.empty((1, *SHAPE), np.uint8)
    for step in zip(*steps, strict=True):
        obs[0], next_obs[0] = step[0], step[3]
        buffer.add(obs, step[1][None], step[2][None], next_obs, step[4][None])


def made(capacity: int = 40, n_step: int = 3, count: int = 0, **options: Any) -> PrioritizedReplayBuffer:
    options = {"gamma": GAMMA, "alpha": ALPHA, "beta": BETA, "eps": EPS, **options}
    buffer = PrioritizedReplayBuffer(capacity, SHAPE, "cpu", n_step, **options)
    add_all(buffer, stream(count))
    return buffer


def weighted(count: int = 100, n_step: int = 1, **options: Any) -> tuple[PrioritizedReplayBuffer, Any]:
    """Make a full buffer, and return it with its rows' masses."""
    buffer = made(count=count, n_step=n_step, **options)
    priorities = np.random.default_rng(1).gamma(0.5, 2, buffer.size)
    buffer.update_priorities(np.arange(buffer.size), -priorities)
    return buffer, (priorities + buffer.eps) ** buffer.alpha


@pytest.mark.parametrize("n_step", [1, 2, 3, 5])
@pytest.mark.parametrize("share_of_ends", [0.0, 0.2, 0.6])
def test_transitions_are_of_n_steps(n_step: int, share_of_ends: float) -> None:
    steps = stream(130, share_of_ends, seed=n_step)
    expected = transitions(steps, n_step)
    buffer = made(40, n_step)
    add_all(buffer, steps)
    assert buffer.pos == len(expected) % 40
    assert buffer.size == min(len(expected), 40)
    for number in range(max(0, len(expected) - 40), len(expected)):
        obs, action, reward, next_obs, done = expected[number]
        row = number % 40
        assert np.array_equal(buffer.buffer_obs[row], obs)
        assert np.array_equal(buffer.buffer_next_obs[row], next_obs)
        assert buffer.buffer_actions[row] == action
        assert buffer.buffer_rewards[row] == np.float32(reward)
        assert buffer.buffer_dones[row] == done


def test_minibatches_have_cleanrls_form() -> None:
    buffer = made(count=100)
    data = buffer.sample(8)
    assert type(data) is PrioritizedBatch
    forms = {name: (value.dtype, tuple(value.shape)) for name, value in data._asdict().items() if name != "indices"}
    assert forms == {
        "observations": (torch.uint8, (8, *SHAPE)),
        "actions": (torch.int64, (8, 1)),
        "rewards": (torch.float32, (8, 1)),
        "next_observations": (torch.uint8, (8, *SHAPE)),
        "dones": (torch.bool, (8, 1)),
        "weights": (torch.float32, (8, 1)),
    }
    assert [type(row) for row in data.indices] == [int] * 8
    assert np.array_equal(data.observations.numpy(), buffer.buffer_obs[data.indices])
    assert np.array_equal(data.next_observations.numpy(), buffer.buffer_next_obs[data.indices])
    assert np.array_equal(data.rewards[:, 0].numpy(), buffer.buffer_rewards[data.indices])


def test_each_row_is_of_its_share_of_the_mass_and_weighs_what_corrects_for_it() -> None:
    buffer, masses = weighted()
    above = np.cumsum(masses) / masses.sum()
    for buffer.beta in (0.0, 0.4, 1.0):
        for _ in range(20):
            data = buffer.sample(16)
            rows, shares = np.array(data.indices), np.arange(16) / 16
            assert (above[rows] >= shares - 1e-6).all()
            assert (above[rows] - masses[rows] / masses.sum() <= shares + 1 / 16 + 1e-6).all()
            weights = (buffer.size * masses[rows] / masses.sum()) ** -buffer.beta
            np.testing.assert_allclose(data.weights[:, 0], weights / weights.max(), rtol=1e-5)


def test_rows_are_drawn_as_often_as_they_weigh() -> None:
    buffer, masses = weighted(capacity=20)
    counts = np.bincount([row for _ in range(1000) for row in buffer.sample(32).indices], minlength=20)
    expected = 32_000 * masses / masses.sum()
    assert (abs(counts - expected) < 5 * np.sqrt(expected) + 5).all()


def test_new_transitions_get_the_largest_priority_so_far() -> None:
    buffer = made(capacity=10, n_step=1, count=4)
    assert buffer.max_priority == 1.0
    buffer.update_priorities([0, 1], [0.5, -7.0])
    assert buffer.max_priority == pytest.approx(7 + EPS)
    add_all(buffer, stream(1))
    masses = np.array([0.5 + EPS, 7 + EPS, 1, 1, 7 + EPS]) ** ALPHA
    weight = (5 * masses / masses.sum()) ** -BETA
    data = buffer.sample(200)
    np.testing.assert_allclose(data.weights[:, 0], weight[data.indices] / weight.max(), rtol=1e-5)
    buffer.max_priority = 2.0
    assert buffer.max_priority == 2.0


def test_of_equal_rows_the_last_priority_wins_also_after_laps() -> None:
    buffer = made(capacity=7, n_step=1, count=25, eps=0.0)
    buffer.update_priorities(np.arange(7), np.zeros(7))
    buffer.update_priorities([2, 5, 2], np.array([9.0, 0.0, 3.0], np.float32))
    assert set(buffer.sample(20).indices) == {2}
    buffer.update_priorities([2, 5], torch.tensor([0.0, 3.0], requires_grad=True))
    assert set(buffer.sample(20).indices) == {5}


@pytest.mark.parametrize("form", [list, np.array, lambda rows: [np.int64(row) for row in rows], torch.tensor])
def test_rows_may_be_given_in_any_form(form: Any) -> None:
    buffer = made(capacity=7, n_step=1, count=25, eps=0.0)
    buffer.update_priorities(form(range(7)), np.zeros(7))
    buffer.update_priorities(form([0, 6]), [1.0, 1.0])  # the newest lap ends in between
    assert set(buffer.sample(20).indices) == {0, 6}


@pytest.mark.parametrize("rows", [[True], [1, 2.0], [[1]], [1, None], ["1"]])
def test_rows_that_are_no_integers_are_refused(rows: Any) -> None:
    buffer = made(capacity=7, n_step=1, count=25)
    before = buffer.max_priority
    with pytest.raises(TypeError, match=r"indices: expected integers, got "):
        buffer.update_priorities(rows, [9.0] * len(rows))
    assert buffer.max_priority == before


@pytest.mark.parametrize("rows", [[0, 3], [0, 7], [0, -1], [0, 2**70], np.array([0, 3]), np.array([0, -1])])
def test_rows_without_a_transition_are_refused(rows: Any) -> None:
    buffer = made(capacity=7, n_step=1, count=3)
    with pytest.raises(IndexError):
        buffer.update_priorities(rows, [9.0, 9.0])
    assert buffer.max_priority == 1


def test_a_row_may_change_the_list_that_it_is_in() -> None:
    class Row:
        def __index__(self) -> int:
            rows.clear()
            return 1

    buffer = made(capacity=7, n_step=1, count=25)
    rows: list[Any] = [0, Row(), 2]
    with pytest.raises(ValueError, match=r"priorities: expected one for each of 2 transitions, got 3"):
        buffer.update_priorities(rows, [9.0] * 3)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda buffer: pickle.loads(pickle.dumps(buffer))])
def test_a_copy_goes_on_alike(copied: Any) -> None:
    buffer, _ = weighted(n_step=3)
    other = copied(buffer)
    for each in (buffer, other):
        each.update_priorities([1, 2], [3.0, 4.0])
        add_all(each, stream(3, 0.0, seed=5))
    assert (buffer.pos, buffer.size) == (other.pos, other.size)
    for mine, yours in zip(buffer.sample(9), other.sample(9), strict=True):
        assert torch.equal(torch.as_tensor(mine), torch.as_tensor(yours))


def test_the_draws_follow_numpys_seed() -> None:
    drawn = []
    for seed in (3, 3, 4):
        np.random.seed(seed)  # noqa: NPY002 - what the draws follow
        drawn.append(made(count=100).sample(16).indices)
    assert drawn[0] == drawn[1] != drawn[2]


def with_stacks(num_steps: int, frames: int, seed: int = 0) -> list[tuple[Any, ...]]:
    """Draw steps of which observations are stacks of four frames, or of two of two channels."""
    steps = Frames(STACKS, spaces.Discrete(4), 1, frames, seed=seed)
    steps.chance = 0.1
    drawn = [steps.draw() for _ in range(num_steps)]
    return [(obs, action, reward, next_obs, done) for obs, next_obs, action, reward, done, _ in drawn]


@pytest.mark.parametrize("n_step", [1, 2, 3, 7])
@pytest.mark.parametrize("dedupe", [True, 4, 2])
def test_with_dedupe_minibatches_are_the_same(n_step: int, dedupe: Any) -> None:
    pair = []
    for options in ({}, {"dedupe": dedupe}):
        np.random.seed(3)  # noqa: NPY002 - what the draws follow
        pair.append(PrioritizedReplayBuffer(30, STACKS.shape, "cpu", n_step, GAMMA, **options))
    for number, step in enumerate(with_stacks(120, 2 if dedupe == 2 else 4, seed=n_step)):
        for buffer in pair:
            buffer.add(*step)
        if not pair[0].size:
            continue
        assert_same(*(tuple(buffer.sample(8)) for buffer in pair))
        rows, errors = np.arange(pair[0].size)[::3], np.random.default_rng(number).random(10)
        for buffer in pair:
            buffer.update_priorities(rows, errors[: len(rows)])
        if number == 60:
            pair = [pair[0], pickle.loads(pickle.dumps(pair[1]))]
    plain, deduped = pair
    assert (plain.pos, plain.size, plain.max_priority) == (deduped.pos, deduped.size, deduped.max_priority)
    for name in ("buffer_actions", "buffer_rewards", "buffer_dones"):
        assert_same(getattr(plain, name), getattr(deduped, name))
    for name in ("buffer_obs", "buffer_next_obs"):
        with pytest.raises(ValueError, match=f"{name}: with dedupe observations are put together"):
            getattr(deduped, name)


@pytest.mark.parametrize(("n_step", "dedupe", "num_frames"), [(1, 4, 1), (3, 4, 2), (3, True, 4), (1, True, 4)])
def test_with_dedupe_frames_are_stored_once(n_step: int, dedupe: Any, num_frames: int) -> None:
    """Of a trajectory without end: by the bytes of the ring, and of what lies beside it."""
    buffer = PrioritizedReplayBuffer(1000, STACKS.shape, "cpu", n_step, GAMMA, dedupe=dedupe)
    steps = Frames(STACKS, spaces.Discrete(4), 1)
    steps.chance = 0
    for _ in range(1200):
        obs, next_obs, action, reward, done, _ = steps.draw()
        buffer.add(obs, action, reward, next_obs, done)
    frame_bytes, places = 30, 8 * 8
    assert buffer._shared is not None
    taken = buffer._shared._pairs.stats()["bytes"] / 1000
    assert taken < num_frames * frame_bytes + places + 60  # what links, padding and spare slots take


def test_what_dedupe_refuses() -> None:
    made: Any = partial(PrioritizedReplayBuffer, 30, STACKS.shape, "cpu", 3, GAMMA)
    np.random.seed(3)  # noqa: NPY002 - which a refusal leaves alone
    before = np.random.get_state()[2]  # type: ignore[index]  # noqa: NPY002
    with pytest.raises(ValueError, match=r"dedupe: expected a first axis of 3 frames, and obs_shape is \(4, 6, 5\)"):
        made(dedupe=3)
    with pytest.raises(ValueError, match="dedupe: expected at least 1, got 0"):
        made(dedupe=0)
    with pytest.raises(TypeError, match="dedupe: expected an integer, got str 'next'"):
        made(dedupe="next")
    assert np.random.get_state()[2] == before  # type: ignore[index]  # noqa: NPY002
