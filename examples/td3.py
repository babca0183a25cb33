# SPDX-License-Identifier: MIT
"""Twin delayed DDPG (TD3) on fastreplay; the loop around it is harness.py's.

    python examples/td3.py --seed 1                                    # Pendulum-v1, under a minute
    python examples/td3.py --env InvertedPendulum-v5 --steps 20000     # needs gymnasium[mujoco]

DDPG (ddpg.py) with three changes against values that are too high: two critics, of which the lower one
is believed; a policy that learns at every second step only; noise on the target's actions. Works on
Gymnasium environments whose observations are a flat Box and whose actions are a flat, bounded Box. A
run leaves its files in runs/<env>-td3-seed<seed>/. After Ctrl-C, the same command with --resume goes on
where it stopped.

Source:
    Fujimoto, van Hoof and Meger 2018, Addressing function approximation error in actor-critic methods.
        https://arxiv.org/abs/1802.09477
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
from networks import Actor, TwinCritic
from progress import Clock
from torch import Tensor

import fastreplay as fr


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser("Train TD3 on a continuous-control Gymnasium environment.", steps=12_000, learning_rate=5e-4)
    add = parser.add_argument
    add("--noise", type=number(0.0), default=0.1, help="deviation of the exploration, over the half range")
    add("--target-noise", type=number(0.0), default=0.2, help="the same, of the target's actions")
    add("--target-clip", type=number(0.0), default=0.5, help="bound of that noise, over the half range")
    add("--policy-every", type=number(1), default=2, help="gradient steps of the critics for one of the actor")
    return parser.parse_args(arguments)


class TD3(Agent):
    """The replay buffer, the networks, their targets, their optimisers, and the exploration."""

    def __init__(self, envs: Envs, args: argparse.Namespace) -> None:
        observations = flat_box(envs.single_observation_space, "observations")
        self.actions = flat_box(envs.single_action_space, "actions", bounded=True)
        self.args = args
        self.buffer = fr.ReplayBuffer.from_env(
            envs, args.capacity, dtype="float32", seed=args.seed, device=args.device, lanes=True
        )
        self.actor = Actor(observations, self.actions, args.hidden).to(args.device)
        self.critic = TwinCritic(observations, self.actions, args.hidden).to(args.device)
        self.networks = {"actor": self.actor, "critic": self.critic}
        self.target_actor = copy.deepcopy(self.actor)
        self.target_critic = copy.deepcopy(self.critic)
        # As in the paper, the targets move only at the steps in which the policy learns.
        self.follow_actor = fr.SoftUpdate(self.target_actor, self.actor, args.tau, every=args.policy_every)
        self.follow_critic = fr.SoftUpdate(self.target_critic, self.critic, args.tau, every=args.policy_every)
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), args.learning_rate, fused=True)
        self.critic_adam = torch.optim.Adam(self.critic.parameters(), args.learning_rate, fused=True)
        self.noise = args.noise * (self.actions.high - self.actions.low) / 2
        self.target_noise, self.target_clip = args.target_noise, args.target_clip
        self.policy_every, self.updates = args.policy_every, 0
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

    def smoothed_target_action(self, observation: Tensor) -> Tensor:
        """Choose the target policy's actions plus clipped noise: similar actions shall have similar values."""
        action: Tensor = self.target_actor(observation)
        noise = (self.target_noise * torch.randn_like(action)).clamp(-self.target_clip, self.target_clip)
        middle, half_range = self.actor.middle, self.actor.half_range
        return torch.clamp(action + half_range * noise, middle - half_range, middle + half_range)

    def learn(self, clock: Clock) -> dict[str, Tensor]:
        """Take one gradient step of the critics and, when due, of the actor; then soft update the targets."""
        clock("sampling")
        batch = self.buffer.sample(self.args.batch_size)

        clock("gradient")
        with torch.no_grad():
            next_action = self.smoothed_target_action(batch.next_observation)
            next_value = torch.minimum(*self.target_critic(batch.next_observation, next_action))
            # Nothing follows a terminated transition. A truncated one met the time limit, which is
            # no property of the state: what follows it still has a value.
            target = batch.reward + self.args.gamma * next_value * ~batch.terminated

        first, second = self.critic(batch.observation, batch.action)
        critic_loss = (first - target).square().mean() + (second - target).square().mean()
        self.critic_adam.zero_grad()
        critic_loss.backward()
        self.critic_adam.step()
        losses = {"critic": critic_loss}

        self.updates += 1
        if self.updates % self.policy_every == 0:
            value, _ = self.critic(batch.observation, self.actor(batch.observation))
            actor_loss = -value.mean()
            self.actor_adam.zero_grad()
            # This gradient passes through the critic, whose parameters need none of it.
            actor_loss.backward(inputs=list(self.actor.parameters()))
            self.actor_adam.step()
            losses["actor"] = actor_loss

        clock("target update")
        self.follow_actor.step()
        self.follow_critic.step()
        return losses


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, then measure the best checkpoint beside a random policy on the same episodes."""
    return run("TD3", TD3, parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
