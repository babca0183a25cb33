# SPDX-License-Identifier: MIT
"""Soft actor-critic (SAC) on fastreplay; the loop around it is harness.py's.

    python examples/sac.py --seed 1                                    # Pendulum-v1, under a minute
    python examples/sac.py --env HalfCheetah-v5 --steps 70000 --warmup 5000 --hidden 128

The second needs gymnasium[mujoco]. Works on Gymnasium environments whose observations are a flat Box
and whose actions are a flat, bounded Box. A run leaves its files in runs/<env>-sac-seed<seed>/. After
Ctrl-C, the same command with --resume goes on where it stopped.

Sources:
    Haarnoja, Zhou, Abbeel and Levine 2018, Soft actor-critic: off-policy maximum entropy deep
        reinforcement learning with a stochastic actor. https://arxiv.org/abs/1801.01290
    Haarnoja et al. 2018, Soft actor-critic algorithms and applications.
        https://arxiv.org/abs/1812.05905 (the temperature that is learned)
    Fujimoto, van Hoof and Meger 2018, https://arxiv.org/abs/1802.09477 (the lower of two critics)
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Sequence

import torch
from arguments import new_parser
from environments import Array, Envs, flat_box
from gymnasium.spaces import Box
from harness import Agent, run
from networks import ActionBounds, TwinCritic, mlp
from progress import Clock
from torch import Tensor
from torch.nn import functional

import fastreplay as fr

LOG_DEVIATIONS = (-20.0, 2.0)  # bounds of the policy's log standard deviation, as in the paper


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    return new_parser("Train SAC on a continuous-control Gymnasium environment.").parse_args(arguments)


class Actor(ActionBounds):
    """The stochastic policy: a Gaussian at each state, squashed by tanh into the action's bounds."""

    def __init__(self, observations: Box, actions: Box, hidden: int) -> None:
        super().__init__(actions)
        self.net = mlp(observations.shape[0], hidden, 2 * actions.shape[0])

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Draw actions and their log densities: (B, *obs_shape) -> (B, *action_shape), (B,), float32."""
        mean, log_deviation = self.net(observation).chunk(2, dim=-1)
        log_deviation = log_deviation.clamp(*LOG_DEVIATIONS)
        noise = torch.randn_like(mean)
        raw = mean + log_deviation.exp() * noise  # the gradient passes through the draw
        log_gaussian = -0.5 * noise.square() - log_deviation - 0.5 * math.log(2 * math.pi)
        # The density of tanh(raw), in [-1, 1]: log(1 - tanh(raw)^2), in a form that does not overflow.
        log_slope = 2 * (math.log(2) - raw - functional.softplus(-2 * raw))
        return self.squash(raw), (log_gaussian - log_slope).sum(dim=-1)

    def most_likely(self, observation: Tensor) -> Tensor:
        """Return the squashed mean: (..., *obs_shape) -> (..., *action_shape), float32."""
        mean, _ = self.net(observation).chunk(2, dim=-1)
        return self.squash(mean)


class SAC(Agent):
    """The replay buffer, the networks, the critics' target, the optimisers, and the temperature."""

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
        self.target_critic = copy.deepcopy(self.critic)
        self.follow_critic = fr.SoftUpdate(self.target_critic, self.critic, args.tau)
        self.log_temperature = torch.zeros((), device=args.device, requires_grad=True)
        self.target_entropy = -float(self.actions.shape[0])  # nats, of actions in [-1, 1]
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), args.learning_rate, fused=True)
        self.critic_adam = torch.optim.Adam(self.critic.parameters(), args.learning_rate, fused=True)
        self.temperature_adam = torch.optim.Adam([self.log_temperature], args.learning_rate, fused=True)

    def to_env(self, action: Tensor) -> Array:
        """Return the actions as the environment takes them."""
        rows: Array = action.cpu().numpy().astype(self.actions.dtype, copy=False)
        return rows

    @torch.no_grad()
    def act(self, observation: Array) -> Array:
        """Choose the most likely actions, (N, *obs_shape) -> (N, *action_shape)."""
        rows = torch.as_tensor(observation, dtype=torch.float32, device=self.args.device)
        return self.to_env(self.actor.most_likely(rows))

    @torch.no_grad()
    def explore(self, observation: Array, _step: int) -> Array:
        """Draw actions from the policy."""
        rows = torch.as_tensor(observation, dtype=torch.float32, device=self.args.device)
        action, _ = self.actor(rows)
        return self.to_env(action)

    def learn(self, clock: Clock) -> dict[str, Tensor]:
        """Take one gradient step of critics, actor and temperature, then soft update the critics' target."""
        clock("sampling")
        batch = self.buffer.sample(self.args.batch_size)

        clock("gradient")
        temperature = self.log_temperature.detach().exp()
        with torch.no_grad():
            next_action, next_log_density = self.actor(batch.next_observation)
            next_value = torch.minimum(*self.target_critic(batch.next_observation, next_action))
            next_value -= temperature * next_log_density
            # Nothing follows a terminated transition. A truncated one met the time limit, which is
            # no property of the state: what follows it still has a value.
            target = batch.reward + self.args.gamma * next_value * ~batch.terminated

        first, second = self.critic(batch.observation, batch.action)
        critic_loss = (first - target).square().mean() + (second - target).square().mean()
        self.critic_adam.zero_grad()
        critic_loss.backward()
        self.critic_adam.step()

        action, log_density = self.actor(batch.observation)
        value = torch.minimum(*self.critic(batch.observation, action))
        actor_loss = (temperature * log_density - value).mean()
        self.actor_adam.zero_grad()
        # This gradient passes through the critics, whose parameters need none of it.
        actor_loss.backward(inputs=list(self.actor.parameters()))
        self.actor_adam.step()

        # It rises while the policy is less random than it should be.
        temperature_loss = -self.log_temperature.exp() * (log_density.detach() + self.target_entropy).mean()
        self.temperature_adam.zero_grad()
        temperature_loss.backward()
        self.temperature_adam.step()

        clock("target update")
        self.follow_critic.step()
        return {"critic": critic_loss, "actor": actor_loss, "temperature": temperature}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, then measure the best checkpoint beside a random policy on the same episodes."""
    return run("SAC", SAC, parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
