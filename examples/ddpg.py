# SPDX-License-Identifier: MIT
"""Deep deterministic policy gradient (DDPG) on fastreplay; the loop around it is harness.py's.

    python examples/ddpg.py --seed 1                                   # Pendulum-v1, under a minute
    python examples/ddpg.py --env InvertedPendulum-v5 --steps 20000    # needs gymnasium[mujoco]

Works on Gymnasium environments whose observations are a flat Box and whose actions are a flat,
bounded Box. A run leaves its best checkpoint, its learning curve and the numbers behind it in
runs/<env>-ddpg-seed<seed>/. After Ctrl-C, the same command with --resume goes on where it stopped.

Sources:
    Lin 1992, Self-improving reactive agents based on reinforcement learning, planning and
        teaching, Machine Learning 8. https://doi.org/10.1007/BF00992699 (experience replay)
    Mnih et al. 2015, Human-level control through deep reinforcement learning, Nature 518.
        https://doi.org/10.1038/nature14236 (replay and target networks in deep learning)
    Lillicrap et al. 2015, Continuous control with deep reinforcement learning.
        https://arxiv.org/abs/1509.02971 (DDPG and the soft update)
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence

import numpy as np
import torch
from arguments import new_parser, number
from environments import Array, Envs, flat_box
from harness import Agent, run
from networks import Actor, Critic
from progress import Clock
from torch import Tensor

import fastreplay as fr


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser("Train DDPG on a continuous-control Gymnasium environment.")
    add = parser.add_argument
    add("--noise", type=number(0.0), default=0.1, help="deviation of the exploration, over the half range")
    return parser.parse_args(arguments)


class DDPG(Agent):
    """The replay buffer, the networks, their targets, their optimisers, and the exploration."""

    def __init__(self, envs: Envs, args: argparse.Namespace) -> None:
        observations = flat_box(envs.single_observation_space, "observations")
        self.actions = flat_box(envs.single_action_space, "actions", bounded=True)
        self.args = args
        self.buffer = fr.ReplayBuffer.from_env(
            envs, args.capacity, dtype="float32", seed=args.seed, device=args.device, lanes=True
        )
        self.actor = Actor(observations, self.actions, args.hidden).to(args.device)
        self.critic = Critic(observations, self.actions, args.hidden).to(args.device)
        self.networks = {"actor": self.actor, "critic": self.critic}
        self.target_actor = copy.deepcopy(self.actor)
        self.target_critic = copy.deepcopy(self.critic)
        self.follow_actor = fr.SoftUpdate(self.target_actor, self.actor, args.tau)
        self.follow_critic = fr.SoftUpdate(self.target_critic, self.critic, args.tau)
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), args.learning_rate, fused=True)
        self.critic_adam = torch.optim.Adam(self.critic.parameters(), args.learning_rate, fused=True)
        self.noise = args.noise * (self.actions.high - self.actions.low) / 2
        self.rng = np.random.default_rng(args.seed)

    @torch.no_grad()
    def act(self, observation: Array) -> Array:
        """Choose the policy's actions, (N, *obs_shape) -> (N, *action_shape), without exploration."""
        rows = torch.as_tensor(observation, dtype=torch.float32, device=self.args.device)
        action: Array = self.actor(rows).cpu().numpy().astype(self.actions.dtype, copy=False)
        return action

    def explore(self, observation: Array, _step: int) -> Array:
        """Choose the policy's actions plus Gaussian noise, within the bounds."""
        action = self.act(observation)
        noisy: Array = action + self.noise * self.rng.standard_normal(action.shape)
        return noisy.clip(self.actions.low, self.actions.high).astype(self.actions.dtype)

    def learn(self, clock: Clock) -> dict[str, Tensor]:
        """Take one gradient step of the critic and of the actor, then soft update the targets."""
        clock("sampling")
        batch = self.buffer.sample(self.args.batch_size)

        clock("gradient")
        with torch.no_grad():
            next_action = self.target_actor(batch.next_observation)
            next_value = self.target_critic(batch.next_observation, next_action)
            # Nothing follows a terminated transition. A truncated one met the time limit, which is
            # no property of the state: what follows it still has a value.
            target = batch.reward + self.args.gamma * next_value * ~batch.terminated

        critic_loss = (self.critic(batch.observation, batch.action) - target).square().mean()
        self.critic_adam.zero_grad()
        critic_loss.backward()
        self.critic_adam.step()

        # This gradient reaches the critic's parameters too; the zero_grad() above discards it there.
        actor_loss = -self.critic(batch.observation, self.actor(batch.observation)).mean()
        self.actor_adam.zero_grad()
        actor_loss.backward()
        self.actor_adam.step()

        clock("target update")
        self.follow_actor.step()
        self.follow_critic.step()
        return {"critic": critic_loss, "actor": actor_loss}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, then measure the best checkpoint beside a random policy on the same episodes."""
    return run("DDPG", DDPG, parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
