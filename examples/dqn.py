# SPDX-License-Identifier: MIT
"""Deep Q-network (DQN) on fastreplay; the loop around it is harness.py's.

    python examples/dqn.py --seed 1                    # CartPole-v1, about two minutes
    python examples/dqn.py --target hard --every 500   # the target is copied now and then, as in the paper
    python examples/dqn.py --prioritized               # minibatches by priority instead of uniformly
    python examples/dqn.py --n-step 3                  # three steps' rewards before the target's value

Works on Gymnasium environments whose observations are a flat Box and whose actions are Discrete. A run
leaves its best checkpoint, its learning curve and the numbers behind it in
runs/<env>-dqn-<target>-seed<seed>/. After Ctrl-C, the same command with --resume goes on where it stopped.

Sources:
    Lin 1992, Self-improving reactive agents based on reinforcement learning, planning and
        teaching, Machine Learning 8. https://doi.org/10.1007/BF00992699 (experience replay)
    Mnih et al. 2015, Human-level control through deep reinforcement learning, Nature 518.
        https://doi.org/10.1038/nature14236 (DQN and the hard update)
    Lillicrap et al. 2015, Continuous control with deep reinforcement learning.
        https://arxiv.org/abs/1509.02971 (the soft update)
    Sutton 1988, Learning to predict by the methods of temporal differences, Machine Learning 3.
        https://doi.org/10.1007/BF00115009 (n-step returns)
    van Hasselt, Guez and Silver 2016, Deep reinforcement learning with double Q-learning.
        https://arxiv.org/abs/1509.06461
    Schaul et al. 2016, Prioritized experience replay. https://arxiv.org/abs/1511.05952
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence

import numpy as np
import torch
from arguments import new_parser, number
from environments import Array, Envs, discrete, flat_box
from harness import Agent, run
from networks import mlp
from progress import Clock
from torch import Tensor

import fastreplay as fr

FIRST_BETA = 0.4  # exponent of the weights of prioritized minibatches, which goes to 1


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(
        "Train DQN on a Gymnasium environment with discrete actions.",
        env="CartPole-v1",
        steps=100_000,
        batch_size=256,
        tau=0.005,
        validate_every=2_000,
    )
    add = parser.add_argument
    add("--target", choices=("soft", "hard"), default="soft", help="how the target network follows")
    add("--every", type=number(1), default=200, help="gradient steps from one hard update to the next")
    add("--exploration-steps", type=number(1), default=10_000, help="steps in which epsilon falls to its last value")
    add("--last-epsilon", type=number(0.0, 1.0), default=0.05, help="share of random actions from then on")
    add("--n-step", type=number(1), default=1, help="steps whose rewards come before the target's value")
    add("--prioritized", action="store_true", help="draw transitions by their last TD error")
    return parser.parse_args(arguments)


class DQN(Agent):
    """The replay buffer, the network of action values, its target, its optimiser, and the exploration."""

    def __init__(self, envs: Envs, args: argparse.Namespace) -> None:
        observations = flat_box(envs.single_observation_space, "observations")
        self.num_actions = int(discrete(envs.single_action_space, "actions").n)
        self.args = args
        self.buffer = fr.ReplayBuffer.from_env(
            envs,
            args.capacity,
            dtype="float32",
            seed=args.seed,
            device=args.device,
            lanes=True,
            priorities=fr.Priorities(alpha=0.6) if args.prioritized else None,
        )
        self.steps = fr.NStep(args.n_step, args.gamma)
        self.online = mlp(observations.shape[0], args.hidden, self.num_actions).to(args.device)  # Q(s, .)
        self.networks = {"online": self.online}
        self.target = copy.deepcopy(self.online)
        if args.target == "soft":
            self.follow = fr.SoftUpdate(self.target, self.online, args.tau)
        else:
            self.follow = fr.SoftUpdate(self.target, self.online, tau=1.0, every=args.every)
        self.adam = torch.optim.Adam(self.online.parameters(), args.learning_rate, fused=True)
        self.rng = np.random.default_rng(args.seed)
        self.remaining = 1.0  # share of the steps that are still to come

    @torch.no_grad()
    def act(self, observation: Array) -> Array:
        """Choose the actions of the highest value, (N, *obs_shape) -> (N,)."""
        rows = torch.as_tensor(observation, dtype=torch.float32, device=self.args.device)
        action: Array = self.online(rows).argmax(dim=1).cpu().numpy()
        return action

    def explore(self, observation: Array, step: int) -> Array:
        """Choose random actions with a probability that falls with the steps, and those of act() otherwise."""
        self.remaining = 1 - step / self.args.steps
        epsilon = max(self.args.last_epsilon, 1 - step / self.args.exploration_steps)
        num_envs = len(observation)
        random = self.rng.integers(self.num_actions, size=num_envs)
        return np.where(self.rng.random(num_envs) < epsilon, random, self.act(observation))

    def learn(self, clock: Clock) -> dict[str, Tensor]:
        """Take one gradient step, then update the target."""
        clock("sampling")
        beta = 1 - (1 - FIRST_BETA) * self.remaining if self.args.prioritized else None
        batch = self.buffer.sample(self.args.batch_size, beta=beta, follow=self.steps)

        clock("gradient")
        with torch.no_grad():
            # Double DQN: one network chooses the action and the other values it, so that no error is believed
            # because it is the largest.
            choice = self.online(batch.next_observation).argmax(dim=1, keepdim=True)
            next_value = self.target(batch.next_observation).gather(1, choice).squeeze(1)
            # Nothing follows a terminated transition. A truncated one met the time limit, which is
            # no property of the state: what follows it still has a value.
            target = batch.reward + batch.discount * next_value * ~batch.terminated

        value = self.online(batch.observation).gather(1, batch.action[:, None]).squeeze(1)
        # Squared, not clipped: the few transitions on which a policy fails have by far the largest errors.
        losses = (value - target).square()
        loss = (batch.weight * losses if self.args.prioritized else losses).mean()
        self.adam.param_groups[0]["lr"] = self.args.learning_rate * self.remaining  # to 0, so that the policy settles
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        if self.args.prioritized:
            self.buffer.update_priorities(batch, value - target)

        clock("target update")
        self.follow.step()  # a hard one moves the target at every C-th call
        return {"critic": loss}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, then measure the best checkpoint beside a random policy on the same episodes."""
    args = parse_args(arguments)
    return run(f"DQN-{args.target}{'-prioritized' * args.prioritized}", DQN, args)


if __name__ == "__main__":
    sys.exit(main())
