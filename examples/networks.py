# SPDX-License-Identifier: MIT
"""The networks of the algorithms: two hidden layers each, float32 throughout."""

from __future__ import annotations

import torch
from gymnasium.spaces import Box
from torch import Tensor, nn


def mlp(num_inputs: int, hidden: int, num_outputs: int) -> nn.Sequential:
    """Make a network with two hidden layers, (..., num_inputs) -> (..., num_outputs)."""
    first, second, last = nn.Linear(num_inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, num_outputs)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)


class ActionBounds(nn.Module):
    """The finite bounds of a Box of actions, beside the parameters of the policy that keeps them."""

    middle: Tensor  # (*action_shape,)
    half_range: Tensor  # (*action_shape,)

    def __init__(self, actions: Box) -> None:
        super().__init__()
        low, high = torch.tensor(actions.low).float(), torch.tensor(actions.high).float()
        self.register_buffer("middle", (high + low) / 2)
        self.register_buffer("half_range", (high - low) / 2)

    def squash(self, raw: Tensor) -> Tensor:
        """Map any numbers into the bounds, by tanh."""
        return self.middle + self.half_range * torch.tanh(raw)


class Actor(ActionBounds):
    """The deterministic policy mu(s): (..., *obs_shape) -> (..., *action_shape)."""

    def __init__(self, observations: Box, actions: Box, hidden: int) -> None:
        super().__init__(actions)
        self.net = mlp(observations.shape[0], hidden, actions.shape[0])

    def forward(self, observation: Tensor) -> Tensor:
        """Choose actions within the bounds."""
        return self.squash(self.net(observation))


class Critic(nn.Module):
    """The action value Q(s, a): (B, *obs_shape), (B, *action_shape) -> (B,)."""

    def __init__(self, observations: Box, actions: Box, hidden: int) -> None:
        super().__init__()
        self.net = mlp(observations.shape[0] + actions.shape[0], hidden, 1)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Value each action at its observation."""
        value: Tensor = self.net(torch.cat([observation, action], dim=-1))
        return value.squeeze(-1)


class TwinCritic(nn.Module):
    """Two action values Q(s, a), learned apart: (B, *obs_shape), (B, *action_shape) -> 2 times (B,).

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
