# SPDX-License-Identifier: MIT
"""The small learning task behind the figures: DQN on the pendulum, cheap enough for many seeds.

DQN: Mnih et al. 2015, https://doi.org/10.1038/nature14236.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from environments import Array
from evidence.estimates import matched_tau
from evidence.pendulum import EPISODE_STEPS, TORQUES, Pendulums
from figures import Row
from networks import mlp
from torch import Tensor, nn

import fastreplay as fr

Batch: TypeAlias = fr.Minibatch[Tensor]
Draw: TypeAlias = Callable[[fr.ReplayBuffer[Tensor], int], Batch]

NUM_ENVS = 16
NUM_EVALUATION_ENVS = 32
EVALUATION_SEED = 1_000_000
GAMMA = 0.99
REWARD_SCALE = 0.1
CAPACITY = 65_536
WARMUP_STEPS = 64  # of NUM_ENVS transitions each, with random actions
EXPLORATION_STEPS = 1_000  # over which epsilon falls from 1 to its last value
LAST_EPSILON = 0.05

FIELDS: dict[str, fr.Field] = {
    "observation": fr.Field((3,), "float32"),
    "action": fr.Field((), "int64"),
    "reward": fr.Field((), "float32"),
    "next_observation": fr.Field((3,), "float32"),
}


def uniform(buffer: fr.ReplayBuffer[Tensor], batch_size: int) -> Batch:
    """Draw from all transitions of the buffer (Lin 1992, https://doi.org/10.1007/BF00992699)."""
    return buffer.sample(batch_size)


def most_recent(buffer: fr.ReplayBuffer[Tensor], batch_size: int) -> Batch:
    """Take the newest transitions, as a loop without a memory would."""
    return buffer[-batch_size:]


@dataclass(frozen=True)
class Settings:
    """What differs between runs."""

    seed: int
    batch_size: int = 64
    learning_rate: float = 1e-3
    tau: float = matched_tau(100)
    every: int = 1
    draw: Draw = uniform
    priorities: fr.Priorities | None = None


def td_targets(target: nn.Module, reward: Tensor, next_observation: Tensor) -> Tensor:
    """Return r + gamma * max Q_target(s', .), (B,); the time limit does not end the bootstrap."""
    with torch.no_grad():
        next_value: Tensor = target(next_observation).amax(dim=1)
    return reward + GAMMA * next_value


def mean_loss(
    online: Callable[[Tensor], Tensor],
    target: nn.Module,
    observation: Tensor,
    action: Tensor,
    reward: Tensor,
    next_observation: Tensor,
) -> Tensor:
    """Return the mean squared TD error of a minibatch, ()."""
    value = online(observation).gather(1, action[:, None]).squeeze(1)
    return nn.functional.mse_loss(value, td_targets(target, reward, next_observation))


class Learner:
    """DQN on NUM_ENVS environments at once: one gradient step for each step of all of them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.steps = 0
        torch.manual_seed(settings.seed)
        self.rng = np.random.default_rng(settings.seed)
        self.env = Pendulums(NUM_ENVS, settings.seed)
        self.observation = self.env.observation()
        self.buffer = fr.ReplayBuffer(CAPACITY, FIELDS, seed=settings.seed, priorities=settings.priorities)
        self.online = mlp(3, 64, len(TORQUES))  # Q(s, .)
        self.target = copy.deepcopy(self.online).requires_grad_(requires_grad=False)
        self.optimiser = torch.optim.Adam(self.online.parameters(), settings.learning_rate, fused=True)
        self.follow(settings)

    def follow(self, settings: Settings) -> None:
        """Move the target network as these settings say from now on."""
        self.update = fr.SoftUpdate(self.target, self.online, settings.tau, every=settings.every)

    def step(self) -> None:
        """Act in all environments, store, and learn from one minibatch."""
        self.interact()
        self.steps += 1
        if self.steps > WARMUP_STEPS:
            self.learn(self.settings.draw(self.buffer, self.settings.batch_size))

    def learn(self, batch: Batch) -> None:
        """Take one gradient step on the mean loss, then let the target network follow."""
        if self.settings.priorities is None:
            loss = mean_loss(self.online, self.target, *batch)
        else:
            loss = self.weighted_loss(batch)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.update.step()

    def weighted_loss(self, batch: Batch) -> Tensor:
        """Return the mean of the squared TD errors, weighted, (); the errors become the transitions' priorities."""
        value = self.online(batch.observation).gather(1, batch.action[:, None]).squeeze(1)
        error = value - td_targets(self.target, batch.reward, batch.next_observation)
        self.buffer.update_priorities(batch, error)
        loss: Tensor = (batch.weight * error.square()).mean()
        return loss

    def interact(self) -> None:
        """Take one epsilon-greedy step in every environment and store the transitions."""
        epsilon = max(LAST_EPSILON, 1 - (self.steps - WARMUP_STEPS) / EXPLORATION_STEPS)
        action = np.where(
            self.rng.random(NUM_ENVS) < epsilon,
            self.rng.integers(0, len(TORQUES), NUM_ENVS),
            greedy(self.online, self.observation),
        )
        next_observation, reward, time_is_up = self.env.step(action)
        self.buffer.extend(
            observation=self.observation,
            action=action,
            reward=REWARD_SCALE * reward,
            next_observation=next_observation,
        )
        self.observation = self.env.reset() if time_is_up else next_observation

    def evaluate(self) -> Row:
        """Play one greedy episode from each of the starts that all runs share; return their means.

        Value and discounted return are in units of the scaled reward: what the network says of the
        starts, and what came of them within the episode.
        """
        env = Pendulums(NUM_EVALUATION_ENVS, EVALUATION_SEED)
        observation = env.observation()
        with torch.no_grad():
            value = float(self.online(torch.from_numpy(observation)).amax(dim=1).mean())
        rewards = []
        for _ in range(EPISODE_STEPS):
            observation, reward, _ = env.step(greedy(self.online, observation))
            rewards.append(float(reward.mean()))
        discounted = REWARD_SCALE * float(np.dot(rewards, GAMMA ** np.arange(EPISODE_STEPS)))
        return {"return": sum(rewards), "value": value, "discounted_return": discounted}


def greedy(online: nn.Module, observation: Array) -> Array:
    """Return the action of the highest value at each observation, (N,)."""
    with torch.no_grad():
        action: Array = online(torch.from_numpy(observation)).argmax(dim=1).numpy()
    return action


def trained(settings: Settings, steps: int) -> Learner:
    """Return a learner after this many steps."""
    learner = Learner(settings)
    for _ in range(steps):
        learner.step()
    return learner


def learning_curve(job: tuple[Settings, int, int]) -> list[Row]:
    """Train (settings, steps, evaluations) and return one row an evaluation."""
    settings, steps, evaluations = job
    learner = Learner(settings)
    rows: list[Row] = []
    for step in range(1, steps + 1):
        learner.step()
        if step % (steps // evaluations) == 0:
            rows.append({"step": step, **learner.evaluate()})
    return rows


def gradient(learner: Learner, batch: Batch) -> Array:
    """Return the gradient of the mean loss with the networks as they are, flattened, (P,)."""
    parameters = list(learner.online.parameters())
    parts = torch.autograd.grad(mean_loss(learner.online, learner.target, *batch), parameters)
    return torch.cat([part.flatten() for part in parts]).numpy()
