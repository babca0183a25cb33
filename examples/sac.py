# SPDX-License-Identifier: MIT
"""Soft actor-critic (SAC) on fastreplay, in one file.

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
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from gymnasium.spaces import Box
from harness import Array, Clock, Envs, Run, flat_box, make_envs, new_parser
from torch import Tensor, nn
from torch.nn import functional

import fastreplay as fr

LOG_DEVIATIONS = (-20.0, 2.0)  # bounds of the policy's log standard deviation, as in the paper


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    return new_parser("Train SAC on a continuous-control Gymnasium environment.").parse_args(arguments)


def mlp(num_inputs: int, hidden: int, num_outputs: int) -> nn.Sequential:
    """Make a network with two hidden layers, (..., num_inputs) -> (..., num_outputs)."""
    first, second, last = nn.Linear(num_inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, num_outputs)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)


class Actor(nn.Module):
    """The stochastic policy: a Gaussian at each state, squashed by tanh into the action's bounds."""

    middle: Tensor  # (*action_shape,)
    half_range: Tensor  # (*action_shape,)

    def __init__(self, observations: Box, actions: Box, hidden: int) -> None:
        super().__init__()
        self.net = mlp(observations.shape[0], hidden, 2 * actions.shape[0])
        low, high = torch.tensor(actions.low).float(), torch.tensor(actions.high).float()
        self.register_buffer("middle", (high + low) / 2)
        self.register_buffer("half_range", (high - low) / 2)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Draw actions and their log densities: (B, *obs_shape) -> (B, *action_shape), (B,), float32."""
        mean, log_deviation = self.net(observation).chunk(2, dim=-1)
        log_deviation = log_deviation.clamp(*LOG_DEVIATIONS)
        noise = torch.randn_like(mean)
        raw = mean + log_deviation.exp() * noise  # the gradient passes through the draw
        log_gaussian = -0.5 * noise.square() - log_deviation - 0.5 * math.log(2 * math.pi)
        # The density of tanh(raw), in [-1, 1]: log(1 - tanh(raw)^2), in a form that does not overflow.
        log_slope = 2 * (math.log(2) - raw - functional.softplus(-2 * raw))
        return self.middle + self.half_range * raw.tanh(), (log_gaussian - log_slope).sum(dim=-1)

    def most_likely(self, observation: Tensor) -> Tensor:
        """Return the squashed mean: (..., *obs_shape) -> (..., *action_shape), float32."""
        mean, _ = self.net(observation).chunk(2, dim=-1)
        return self.middle + self.half_range * torch.tanh(mean)


class TwinCritic(nn.Module):
    """Two action values Q(s, a), learned apart: (B, *obs_shape), (B, *action_shape) -> 2 times (B,), float32.

    Where they disagree the lower one is believed, since a policy seeks out values that are too high.
    """

    def __init__(self, observations: Box, actions: Box, hidden: int) -> None:
        super().__init__()
        self.first = mlp(observations.shape[0] + actions.shape[0], hidden, 1)
        self.second = mlp(observations.shape[0] + actions.shape[0], hidden, 1)

    def forward(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Value each action at its observation, twice."""
        both = torch.cat([observation, action], dim=-1)
        return self.first(both).squeeze(-1), self.second(both).squeeze(-1)


class SAC:
    """The networks, the critics' target, the optimisers, and the temperature."""

    def __init__(self, envs: Envs, args: argparse.Namespace) -> None:
        observations = flat_box(envs.single_observation_space, "observations")
        self.actions = flat_box(envs.single_action_space, "actions", bounded=True)
        self.gamma, self.device = args.gamma, args.device
        self.actor = Actor(observations, self.actions, args.hidden).to(self.device)
        self.critic = TwinCritic(observations, self.actions, args.hidden).to(self.device)
        self.target_critic = copy.deepcopy(self.critic)
        self.follow_critic = fr.SoftUpdate(self.target_critic, self.critic, args.tau)
        self.log_temperature = torch.zeros((), device=self.device, requires_grad=True)
        self.target_entropy = -float(self.actions.shape[0])  # nats, of actions in [-1, 1]
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), args.learning_rate, fused=True)
        self.critic_adam = torch.optim.Adam(self.critic.parameters(), args.learning_rate, fused=True)
        self.temperature_adam = torch.optim.Adam([self.log_temperature], args.learning_rate, fused=True)

    def networks(self) -> Mapping[str, nn.Module]:
        """Name the networks that a checkpoint holds."""
        return {"actor": self.actor, "critic": self.critic}

    def to_env(self, action: Tensor) -> Array:
        """Return the actions as the environment takes them."""
        rows: Array = action.cpu().numpy().astype(self.actions.dtype, copy=False)
        return rows

    @torch.no_grad()
    def act(self, observation: Array) -> Array:
        """Choose the most likely actions, (N, *obs_shape) -> (N, *action_shape)."""
        rows = torch.as_tensor(observation, dtype=torch.float32, device=self.device)
        return self.to_env(self.actor.most_likely(rows))

    @torch.no_grad()
    def explore(self, observation: Array) -> Array:
        """Draw actions from the policy."""
        rows = torch.as_tensor(observation, dtype=torch.float32, device=self.device)
        action, _ = self.actor(rows)
        return self.to_env(action)

    def update(self, batch: fr.Minibatch[Tensor], clock: Clock) -> dict[str, Tensor]:
        """Take one gradient step of critics, actor and temperature, then soft update the critics' target."""
        clock("gradient")
        temperature = self.log_temperature.detach().exp()
        with torch.no_grad():
            next_action, next_log_density = self.actor(batch.next_observation)
            next_value = torch.minimum(*self.target_critic(batch.next_observation, next_action))
            next_value -= temperature * next_log_density
            # Nothing follows a terminated transition. A truncated one met the time limit, which is
            # no property of the state: what follows it still has a value.
            target = batch.reward + self.gamma * next_value * ~batch.terminated

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


def train(run: Run, args: argparse.Namespace) -> SAC:
    """Interact, store, sample, update; repeat."""
    envs = make_envs(args.env, args.num_envs, args.seed)
    agent = SAC(envs, args)
    buffer = fr.ReplayBuffer.from_env(envs, args.capacity, dtype="float32", seed=args.seed, device=args.device)
    observation, _ = envs.reset(seed=args.seed)
    ended = np.zeros(args.num_envs, dtype=bool)
    if args.resume:
        agent, buffer, envs, observation, ended = run.load()

    for step in run.steps():
        run.clock("environment")
        warm = step > args.warmup
        action = agent.explore(observation) if warm else envs.action_space.sample()
        next_observation, reward, terminated, truncated, _ = envs.step(action)
        # The step after an episode's end only resets the environment: its row is no transition.
        goes_on = ~ended
        transitions = (observation, action, reward, next_observation, terminated, truncated)
        buffer.extend(*(rows[goes_on] for rows in transitions))
        observation, ended = next_observation, terminated | truncated
        run.count(reward, ended)

        for _ in range(args.updates if warm else 0):
            run.clock("sampling")
            batch = buffer.sample(args.batch_size)
            losses = agent.update(batch, run.clock)
            run.losses(losses)
        run.validate(agent)
    run.save(agent, buffer, envs, observation, ended)
    return agent


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, then measure the best checkpoint beside a random policy on the same episodes."""
    args = parse_args(arguments)
    with Run("SAC", args) as run:
        return run.report(train(run, args))


if __name__ == "__main__":
    sys.exit(main())
