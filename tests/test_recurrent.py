# SPDX-License-Identifier: MIT
"""examples/recurrent_dqn.py: what it remembers and stores, and what it learns from sequences, beside a slow loop."""

from __future__ import annotations

import copy
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from test_examples import BATCH_SIZE, all_equal, new_agent, parameters

sys.path.append(str(Path(__file__).parents[1] / "examples"))

import environments
import progress

LENGTH, BURN_IN = 4, 3  # of test_examples.py's agents
STEPS = LENGTH + BURN_IN


def agent_of(num_envs: int, *arguments: str) -> Any:
    return new_agent("recurrent", "--num-envs", str(num_envs), *arguments)


def remembered(network: Any, episode: list[tuple[Any, int]], memory: torch.Tensor) -> torch.Tensor:
    """Return what is remembered after these observations and actions, (1, hidden), one step after the other."""
    for observation, action in episode:
        rows = torch.as_tensor(observation).float().reshape(1, 1, -1)
        memory = network.remember(rows, torch.tensor([[int(action)]]), memory)[:, 0]
    return memory


# What is remembered


def test_each_step_is_stored_beside_what_was_remembered_before_it() -> None:
    """Two environments whose episodes end at different times; the step after an end only resets."""
    agent, rng = agent_of(2), np.random.default_rng(0)
    episodes: list[list[tuple[Any, int]]] = [[], []]
    ended, expected = np.zeros(2, bool), []
    for t in range(25):
        observation, after = rng.standard_normal((2, 2, 2)).astype(np.float32)
        action, terminated = rng.integers(3, size=2), np.array([t % 7 == 6, False]) & ~ended
        truncated = np.array([False, t % 5 == 4]) & ~ended
        for lane in range(2):
            if ended[lane]:
                episodes[lane] = []
                continue
            with torch.no_grad():
                expected.append(remembered(agent.online, episodes[lane], agent.no_memory(1)))
            episodes[lane].append((observation[lane], action[lane]))
        agent.store(observation, action, np.zeros(2), after, terminated, truncated)
        ended = terminated | truncated
    stored = agent.buffer[:].memory
    assert len(stored) == len(expected) < 50
    assert torch.allclose(stored, torch.cat(expected), atol=1e-6)
    assert not torch.equal(stored[-1], stored[-2])


def test_it_acts_upon_what_it_remembers() -> None:
    agent, rows = agent_of(1), np.random.default_rng(0).standard_normal((300, 2)).astype(np.float32)
    agent.memory = agent.no_memory(300)
    before = agent.act(rows)
    agent.memory = torch.randn(300, agent.args.hidden)
    after = agent.act(rows)
    with torch.no_grad():
        assert np.array_equal(after, agent.online(torch.from_numpy(rows), agent.memory).argmax(1).numpy())
    assert not np.array_equal(before, after)


def test_a_policy_begins_with_no_memory_and_leaves_the_trainings_alone() -> None:
    agent, rng = agent_of(2), np.random.default_rng(0)
    agent.memory = torch.randn(2, agent.args.hidden)
    kept, rows = agent.memory.clone(), rng.standard_normal((6, 50, 2)).astype(np.float32)
    first, second = agent.policy(), agent.policy()
    memory = agent.no_memory(50)
    for row in rows:
        with torch.no_grad():
            action = agent.online(torch.from_numpy(row), memory).argmax(1)
            memory = agent.online.remember(torch.from_numpy(row)[:, None], action[:, None], memory)[:, 0]
        assert np.array_equal(first(row), action.numpy())
    assert np.array_equal(second(rows[0]), agent.policy()(rows[0]))
    assert torch.equal(agent.memory, kept)


def test_without_a_memory_nothing_is_remembered() -> None:
    agent = agent_of(1, "--memoryless")
    rows, actions = torch.randn(5, 4, 2), torch.zeros(5, 4, dtype=torch.int64)
    assert not agent.online.remember(rows, actions, torch.zeros(5, agent.args.hidden)).any()
    sizes = [sum(map(torch.numel, each.online.parameters())) for each in (agent, agent_of(1))]
    assert sizes[0] == sizes[1]


def test_after_a_cut_nothing_is_remembered_and_no_row_is_left_out() -> None:
    agent = agent_of(1)
    step = [np.ones((1, 2)), np.ones(1, np.int64), np.ones(1), np.ones((1, 2))]
    false, true = np.zeros(1, bool), np.ones(1, bool)
    agent.store(*step, false, true)
    agent.cut()
    agent.store(*step, false, false)
    agent.store(*step, false, false)
    memories = agent.buffer[:].memory
    assert len(memories) == 3
    assert [bool(memory.any()) for memory in memories] == [False, False, True]


# What is learned


def sequences(seed: int = 0) -> Any:
    """Return sequences that are whole, that begin late, that end early in each of the ways, and that are one step."""
    rng = torch.Generator().manual_seed(seed)
    size = 6
    mask = torch.ones(size, STEPS, dtype=torch.bool)
    mask[1, :2] = False  # the episode began there
    mask[2, -2:] = False  # terminated
    mask[3, -1:] = False  # truncated
    mask[4, -2:] = False  # the newest row
    mask[5], mask[5, BURN_IN] = False, True
    terminated = torch.zeros(size, STEPS, dtype=torch.bool)
    terminated[2, -3] = terminated[5, BURN_IN] = True
    trained = mask.clone()
    trained[:, :BURN_IN] = False
    fields = {
        "observation": torch.randn(size, STEPS, 2, generator=rng),
        "action": torch.randint(3, (size, STEPS), generator=rng),
        "reward": torch.randn(size, STEPS, generator=rng),
        "next_observation": torch.randn(size, STEPS, 2, generator=rng),
        "terminated": terminated,
        "memory": torch.randn(size, 16, generator=rng),
        "mask": mask,
        "trained": trained,
        "weight": torch.rand(size, generator=rng) + 0.1,
    }
    return Sequences(**fields)


class Sequences(SimpleNamespace):
    """What `fr.Sequence` makes of a minibatch, as far as the agent looks."""

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


def learn(agent: Any, batch: Any) -> tuple[float, Any]:
    """Let an agent learn from this minibatch; return the loss, and the errors that it gives back."""
    given: list[Any] = []

    def sample(size: int, *, beta: float | None, follow: Any) -> Any:
        assert (size, follow) == (agent.args.batch_size, agent.sequences)
        assert beta == (None if agent.args.uniform else pytest.approx(1 - 0.6 * agent.remaining))
        return batch

    def update_priorities(minibatch: Any, errors: Any) -> None:
        assert minibatch is batch
        given.append(errors)

    agent.buffer = SimpleNamespace(sample=sample, update_priorities=update_priorities)
    loss = float(agent.learn(progress.Clock())["critic"].item())
    assert len(given) == (not agent.args.uniform)
    return loss, given[0] if given else None


def different_target(agent: Any) -> None:
    """Give the target network other parameters than the online one's."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in agent.target.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def slow_errors(agent: Any, batch: Any, n: int) -> torch.Tensor:
    """Return the errors (B, L) of Double DQN on n steps, one step of one sequence after the other."""
    rows = []
    for i in range(len(batch.mask)):
        real = [t for t in range(STEPS) if batch.mask[i, t]]
        # What each network remembers before a step, and after the last one.
        online: dict[int, torch.Tensor] = {}
        target: dict[int, torch.Tensor] = {}
        for network, memories in ((agent.online, online), (agent.target, target)):
            memory = batch.memory[i : i + 1]
            for t in real:
                memories[t] = memory.detach() if t <= BURN_IN else memory
                memory = remembered(network, [(batch.observation[i, t], batch.action[i, t])], memories[t])
            memories[real[-1] + 1] = memory
        errors = [torch.zeros(())] * STEPS
        for t in (t for t in real if t >= BURN_IN):
            goal, weight = torch.zeros(()), 1.0
            for k in itertools.count(t):
                goal, weight = goal + weight * batch.reward[i, k], weight * agent.args.gamma
                if k + 1 == t + n or k == real[-1]:
                    break
            if not batch.terminated[i, k]:
                after = batch.next_observation[i, k : k + 1]
                with torch.no_grad():
                    choice = int(agent.online(after, online[k + 1]).argmax())
                    goal += weight * agent.target(after, target[k + 1])[0, choice]
            value = agent.online(batch.observation[i, t : t + 1], online[t])[0, batch.action[i, t]]
            errors[t] = value - goal
        rows.append(torch.stack(errors))
    return torch.stack(rows)


@pytest.mark.parametrize("arguments", [(), ("--uniform",), ("--n-step", "1"), ("--n-step", "3", "--gamma", "0.5")])
def test_losses_gradients_and_errors_are_those_of_a_slow_loop(arguments: tuple[str, ...]) -> None:
    agent, batch = agent_of(1, *arguments), sequences()
    different_target(agent)
    errors = slow_errors(agent, batch, agent.args.n_step)
    weight = torch.ones(len(errors)) if agent.args.uniform else batch.weight
    expected = (weight[:, None] * errors.square()).sum() / batch.trained.sum()
    gradients = torch.autograd.grad(expected, list(agent.online.parameters()))
    loss, given = learn(agent, batch)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    for parameter, gradient in zip(agent.online.parameters(), gradients, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-5)
    if not agent.args.uniform:
        assert given.shape == batch.mask.shape
        assert torch.allclose(given, errors.detach(), atol=1e-5)


def test_what_lies_beside_a_sequence_is_not_learned_from() -> None:
    agents, batches = [agent_of(1) for _ in range(2)], [sequences() for _ in range(2)]
    for name in ("observation", "reward", "next_observation"):
        batches[1][name][~batches[1].mask] = 1e3
    batches[1].terminated |= ~batches[1].mask
    (mine, my_errors), (its, its_errors) = (learn(*pair) for pair in zip(agents, batches, strict=True))
    assert mine == its
    assert torch.equal(my_errors, its_errors)
    assert all_equal(parameters(agents[0].online), parameters(agents[1].online))


def test_the_target_follows_softly() -> None:
    agent = agent_of(1, "--tau", "0.25")
    before = parameters(agent.target)
    learn(agent, sequences())
    expected = [a.lerp(b, 0.25) for a, b in zip(before, parameters(agent.online), strict=True)]
    assert all_equal(expected, parameters(agent.target))


def test_it_explores_less_and_learns_in_smaller_steps() -> None:
    agent, rows = agent_of(1, "--exploration-steps", "60"), np.ones((20_000, 2), np.float32)
    agent.memory = agent.no_memory(len(rows))
    greedy = agent.act(rows)
    for step, epsilon in ((0, 1.0), (30, 0.5), (60, 0.05), (119, 0.05)):
        assert (agent.explore(rows, step) != greedy).mean() == pytest.approx(epsilon * 2 / 3, abs=0.015)
    before = parameters(agent.online)
    agent.explore(rows, agent.args.steps)
    learn(agent, sequences())
    assert all_equal(before, parameters(agent.online))


def test_priorities_become_those_of_sequences() -> None:
    """With the buffer itself: 0.9 times the largest error and 0.1 times the mean one, of the steps learned from."""
    agent, rng, no = agent_of(1), np.random.default_rng(0), np.zeros(1, bool)
    for t in range(40):
        observation, after = rng.standard_normal((2, 1, 2)).astype(np.float32)
        agent.store(observation, rng.integers(3, size=1), np.array([100.0 * t]), after, no, no)
    batch = copy.deepcopy(agent.buffer).sample(BATCH_SIZE, beta=0.4, follow=agent.sequences)
    with torch.no_grad():
        sizes = agent.errors(batch).abs()
    expected = 0.9 * sizes.amax(1) + 0.1 * sizes.sum(1) / batch.trained.sum(1)
    agent.buffer.max_priority = 0.0
    agent.remaining = 1.0
    agent.learn(progress.Clock())
    assert agent.buffer.max_priority == pytest.approx(float(expected.max()), rel=1e-4)


# What it is trained on


def test_cart_pole_shows_its_positions_only() -> None:
    whole, hidden = gym.make("CartPole-v1"), gym.make("CartPolePositions-v1")
    assert hidden.observation_space.shape == (2,)
    assert hidden.spec is not None
    assert hidden.spec.max_episode_steps == 500
    seen, shown = whole.reset(seed=5)[0], hidden.reset(seed=5)[0]
    assert np.array_equal(shown, seen[[0, 2]])
    for _ in range(8):
        mine, its = whole.step(1), hidden.step(1)
        assert np.array_equal(its[0], mine[0][[0, 2]])
        assert its[1:4] == mine[1:4]
    assert environments.make_envs("CartPolePositions-v1", 2, 0).single_observation_space == hidden.observation_space
