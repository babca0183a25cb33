# SPDX-License-Identifier: MIT
"""Recurrent DQN (R2D2's replay) on fastreplay; the loop around it is harness.py's.

    python examples/recurrent_dqn.py --seed 1             # CartPole without its velocities, about four minutes
    python examples/recurrent_dqn.py --memoryless         # the same with a memory that stays empty, which fails
    python examples/recurrent_dqn.py --uniform            # sequences drawn uniformly instead of by priority

What is drawn are sequences of steps of one episode. Each step is stored beside the memory that the agent began it with.
That of a sequence's first step is old by then: the network has learned since. So the first steps only bring it up to
date, which is called burn-in, and the others are learned from.

Works on Gymnasium environments whose observations are a flat Box and whose actions are Discrete. A run
leaves its best checkpoint, its learning curve and the numbers behind it in
runs/<env>-recurrent-dqn-seed<seed>/. After Ctrl-C, the same command with --resume goes on where it stopped.

Sources:
    Mnih et al. 2015, Human-level control through deep reinforcement learning, Nature 518.
        https://doi.org/10.1038/nature14236 (DQN)
    Hausknecht and Stone 2015, Deep recurrent Q-learning for partially observable MDPs.
        https://arxiv.org/abs/1507.06527
    Kapturowski et al. 2019, Recurrent experience replay in distributed reinforcement learning, ICLR.
        https://openreview.net/forum?id=r1lyTjAqYX (R2D2: stored states, burn-in, priorities of sequences)
    Cho et al. 2014, Learning phrase representations using RNN encoder-decoder for statistical machine
        translation. https://arxiv.org/abs/1406.1078 (the gated recurrent unit)
    van Hasselt, Guez and Silver 2016, Deep reinforcement learning with double Q-learning.
        https://arxiv.org/abs/1509.06461
    Lillicrap et al. 2015, Continuous control with deep reinforcement learning.
        https://arxiv.org/abs/1509.02971 (the soft update)
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from arguments import new_parser, number
from environments import Array, Envs, discrete, flat_box
from harness import Agent, run
from networks import mlp
from progress import Clock
from torch import Tensor, nn
from torch.nn import functional

import fastreplay as fr

FIRST_BETA = 0.4  # exponent of the weights of prioritized minibatches, which goes to 1


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(
        "Train a recurrent DQN on a Gymnasium environment with discrete actions.",
        env="CartPolePositions-v1",
        steps=40_000,
        num_envs=4,
        capacity=10_000,  # few, so that the memories beside them are those of networks much like the present one
        batch_size=32,
        tau=0.005,
        validate_every=2_000,
    )
    add = parser.add_argument
    add("--length", type=number(1), default=20, help="steps of a sequence that are learned from")
    add("--burn-in", type=number(0), default=10, help="steps before them that only bring the memory up to date")
    add("--exploration-steps", type=number(1), default=20_000, help="steps in which epsilon falls to its last value")
    add("--last-epsilon", type=number(0.0, 1.0), default=0.05, help="share of random actions from then on")
    add("--n-step", type=number(1), default=5, help="steps whose rewards come before the target's value")
    add("--uniform", action="store_true", help="draw sequences uniformly instead of by their last TD errors")
    add("--memoryless", action="store_true", help="remember nothing, to see what memory is worth")
    return parser.parse_args(arguments)


class Recurrent(nn.Module):
    """The value of each action, from what is seen now and what is remembered of the steps before."""

    def __init__(self, num_inputs: int, num_actions: int, hidden: int, *, memoryless: bool) -> None:
        super().__init__()
        self.num_actions, self.memoryless = num_actions, memoryless
        self.gru = nn.GRU(num_inputs + num_actions, hidden, batch_first=True)
        self.values = mlp(num_inputs + hidden, hidden, num_actions)

    def forward(self, observation: Tensor, memory: Tensor) -> Tensor:
        """Value the actions, (..., num_inputs), (..., hidden) -> (..., num_actions)."""
        values: Tensor = self.values(torch.cat([observation, memory], dim=-1))
        return values

    def remember(self, observation: Tensor, action: Tensor, memory: Tensor) -> Tensor:
        """Return what is remembered after each step, (B, T, num_inputs), (B, T), (B, hidden) -> (B, T, hidden)."""
        taken = functional.one_hot(action, self.num_actions).to(observation.dtype)
        memories: Tensor = self.gru(torch.cat([observation, taken], dim=-1), memory[None])[0]
        return torch.zeros_like(memories) if self.memoryless else memories


class RecurrentDQN(Agent):
    """The replay buffer, the network of action values, its target, its optimiser, the exploration, and the memory."""

    def __init__(self, envs: Envs, args: argparse.Namespace) -> None:
        observations = flat_box(envs.single_observation_space, "observations")
        self.num_actions = int(discrete(envs.single_action_space, "actions").n)
        self.args = args
        self.buffer = fr.ReplayBuffer.from_env(
            envs,
            args.capacity,
            dtype="float32",
            extra={"memory": (args.hidden,)},
            seed=args.seed,
            device=args.device,
            lanes=True,
            priorities=None if args.uniform else fr.Priorities(alpha=0.6),
        )
        self.sequences = fr.Sequence(length=args.length, burn_in=args.burn_in, first_only=("memory",))
        self.online = Recurrent(observations.shape[0], self.num_actions, args.hidden, memoryless=args.memoryless)
        self.online.to(args.device)
        self.networks = {"online": self.online}
        self.target = copy.deepcopy(self.online)
        self.follow = fr.SoftUpdate(self.target, self.online, args.tau)
        self.adam = torch.optim.Adam(self.online.parameters(), args.learning_rate, fused=True)
        self.rng = np.random.default_rng(args.seed)
        self.remaining = 1.0  # share of the steps that are still to come
        self.memory = self.no_memory(args.num_envs)  # of each environment, before its next step
        self.ended = np.zeros(args.num_envs, dtype=bool)  # whose last step ended an episode

    def no_memory(self, num_envs: int) -> Tensor:
        """Return what is remembered where an episode begins, (num_envs, hidden)."""
        return torch.zeros(num_envs, self.args.hidden, device=self.args.device)

    @torch.no_grad()
    def choose(self, observation: Array, memory: Tensor) -> Array:
        """Choose the actions of the highest value, (N, *obs_shape), (N, hidden) -> (N,)."""
        rows = torch.as_tensor(observation, dtype=torch.float32, device=self.args.device)
        action: Array = self.online(rows, memory).argmax(dim=1).cpu().numpy()
        return action

    @torch.no_grad()
    def remember(self, observation: Array, action: Array, memory: Tensor) -> Tensor:
        """Return what is remembered after one step, (N, hidden)."""
        rows = torch.as_tensor(observation, dtype=torch.float32, device=self.args.device)
        actions = torch.as_tensor(action, dtype=torch.int64, device=self.args.device)
        return self.online.remember(rows[:, None], actions[:, None], memory).squeeze(1)

    def act(self, observation: Array) -> Array:
        """Choose the actions of the highest value in the episodes that it trains in, (N, *obs_shape) -> (N,)."""
        return self.choose(observation, self.memory)

    def policy(self) -> Callable[[Array], Array]:
        """Return the policy without exploration, with a memory of its own, which is empty at the first call."""
        memory: Tensor | None = None

        def act(observation: Array) -> Array:
            nonlocal memory
            memory = self.no_memory(len(observation)) if memory is None else memory
            action = self.choose(observation, memory)
            memory = self.remember(observation, action, memory)
            return action

        return act

    def explore(self, observation: Array, step: int) -> Array:
        """Choose random actions with a probability that falls with the steps, and those of act() otherwise."""
        self.remaining = 1 - step / self.args.steps
        epsilon = max(self.args.last_epsilon, 1 - step / self.args.exploration_steps)
        num_envs = len(observation)
        random = self.rng.integers(self.num_actions, size=num_envs)
        return np.where(self.rng.random(num_envs) < epsilon, random, self.act(observation))

    def store(self, *step: Array) -> None:
        """Store a step of all environments, each beside the memory that it began with, and remember it."""
        observation, action, _, _, terminated, truncated = step
        self.buffer.extend(*step, memory=self.memory.cpu().numpy())
        memory = self.remember(observation, action, self.memory)
        # After an episode's end comes a step that only resets the environment, and then an episode: nothing is
        # remembered there.
        self.memory = memory * torch.as_tensor(~self.ended, device=memory.device)[:, None]
        self.ended = terminated | truncated

    def cut(self) -> None:
        """Begin new episodes, of which nothing is remembered."""
        super().cut()
        self.memory = self.no_memory(len(self.memory))
        self.ended[:] = False

    @torch.no_grad()
    def burn_in(self, network: Recurrent, batch: Any) -> Tensor:
        """Return what a network remembers where each sequence is learned from, (B, hidden)."""
        memory: Tensor = batch.memory
        for t in range(self.args.burn_in):
            now = slice(t, t + 1)
            after = network.remember(batch.observation[:, now], batch.action[:, now], memory).squeeze(1)
            memory = torch.where(batch.mask[:, now], after, memory)  # no step where the episode began later
        return memory

    def n_steps(self, reward: Tensor, terminated: Tensor, trained: Tensor, next_value: Tensor) -> Tensor:
        """Return what each step should be worth, all (B, length).

        That is the rewards of n steps, or of those that are there, and the value of what follows them. Nothing
        follows a terminated step. A truncated one met the time limit, which is no property of the state: what
        follows it still has a value.
        """
        goes_on = functional.pad(trained[:, 1:], (0, 1))
        future = target = next_value
        for _ in range(self.args.n_step):
            target = reward + self.args.gamma * future * ~terminated
            future = torch.where(goes_on, target.roll(-1, dims=1), next_value)
        return target

    def errors(self, batch: Any) -> Tensor:
        """Return by how much each step's value differs from what it should be, and 0 for steps not learned from."""
        observation, action, reward, next_observation, terminated, trained = (
            batch[name][:, self.args.burn_in :]
            for name in ("observation", "action", "reward", "next_observation", "terminated", "trained")
        )  # each (B, length, ...)
        memory = self.burn_in(self.online, batch)
        memories = self.online.remember(observation, action, memory)  # after each step
        before = torch.cat([memory[:, None], memories[:, :-1]], dim=1)
        value = self.online(observation, before).gather(2, action[:, :, None]).squeeze(2)
        with torch.no_grad():
            # Double DQN: one network chooses the action, and the other, by what it remembers itself, values it.
            choice = self.online(next_observation, memories).argmax(dim=2, keepdim=True)
            memories = self.target.remember(observation, action, self.burn_in(self.target, batch))
            next_value = self.target(next_observation, memories).gather(2, choice).squeeze(2)
            target = self.n_steps(reward, terminated, trained, next_value)
        errors: Tensor = (value - target) * trained
        return errors

    def learn(self, clock: Clock) -> dict[str, Tensor]:
        """Take one gradient step, then soft update the target."""
        clock("sampling")
        beta = None if self.args.uniform else 1 - (1 - FIRST_BETA) * self.remaining
        batch = self.buffer.sample(self.args.batch_size, beta=beta, follow=self.sequences)

        clock("gradient")
        errors = self.errors(batch)
        losses = errors.square().sum(dim=1)  # of sequences
        loss = (losses if self.args.uniform else batch.weight * losses).sum() / batch.trained.sum()
        self.adam.param_groups[0]["lr"] = self.args.learning_rate * self.remaining  # to 0, so that the policy settles
        self.adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.adam.step()
        if not self.args.uniform:
            # The priority of a sequence is 0.9 times its largest error plus 0.1 times its mean one.
            self.buffer.update_priorities(batch, functional.pad(errors, (self.args.burn_in, 0)))

        clock("target update")
        self.follow.step()
        return {"critic": loss}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, then measure the best checkpoint beside a random policy on the same episodes."""
    args = parse_args(arguments)
    return run(f"recurrent-DQN{'-memoryless' * args.memoryless}", RecurrentDQN, args)


if __name__ == "__main__":
    sys.exit(main())
