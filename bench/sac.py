# SPDX-License-Identifier: MIT
"""A soft actor-critic update (Haarnoja et al. 2018) of usual size over fixed tensors, for a CUDA graph to capture."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

import fastreplay as fr

_DISCOUNT, _TAU, _LEARNING_RATE, _WIDTH = 0.99, 0.005, 3e-4, 256


def _mlp(num_inputs: int, num_outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(num_inputs, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, num_outputs)
    )


class SacLearner:
    """Networks and optimizers, and the minibatch that every update reads.

    Args:
        batch: observation, action, next_observation, reward, terminated; float32 (B, ...). Whoever has a new
            minibatch overwrites these.
    """

    def __init__(self, batch: Mapping[str, Tensor]) -> None:
        self.batch = dict(batch)
        device = self.batch["reward"].device
        num_observations, num_actions = (self.batch[name].shape[1] for name in ("observation", "action"))
        self.actor = _mlp(num_observations, 2 * num_actions).to(device)
        self.critics = nn.ModuleList(_mlp(num_observations + num_actions, 1) for _ in range(2)).to(device)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_alpha = torch.zeros((), device=device, requires_grad=True)
        self._critic_optimizer = self._adam(self.critics.parameters())
        self._actor_optimizer = self._adam([*self.actor.parameters(), self.log_alpha])
        self._target_update = fr.SoftUpdate(self.targets, self.critics, _TAU)

    def load(self, batch: Mapping[str, Tensor]) -> None:
        """Copy a minibatch into the one that updates read."""
        own = list(self.batch.values())
        torch._foreach_copy_(own, [batch[name].view_as(mine) for name, mine in zip(self.batch, own, strict=True)])

    def update(self) -> None:
        """Make one update of critics, actor, entropy coefficient and targets."""
        reward, terminated = self.batch["reward"], self.batch["terminated"]
        alpha = self.log_alpha.detach().exp()
        with torch.no_grad():
            action, log_probability = self._act(self.batch["next_observation"])
            value = self._value(self.targets, self.batch["next_observation"], action) - alpha * log_probability
            goal = reward + _DISCOUNT * (1 - terminated) * value
        inputs = torch.cat((self.batch["observation"], self.batch["action"]), dim=1)
        first, second = (nn.functional.mse_loss(critic(inputs).squeeze(1), goal) for critic in self.critics)
        self._step(self._critic_optimizer, first + second)
        action, log_probability = self._act(self.batch["observation"])
        value = self._value(self.critics, self.batch["observation"], action)
        entropy_loss = -self.log_alpha * (log_probability.detach() - action.shape[1]).mean()
        self._step(self._actor_optimizer, (alpha * log_probability - value).mean() + entropy_loss)
        self._target_update.step()

    def _act(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.actor(observation).chunk(2, dim=1)
        log_std = log_std.clamp(-5, 2)
        noise = torch.randn_like(mean)
        action = torch.tanh(mean + noise * log_std.exp())
        log_probability = -0.5 * noise.square() - log_std - 0.919 - torch.log(1 - action.square() + 1e-6)
        return action, log_probability.sum(dim=1)

    @staticmethod
    def _value(critics: Iterable[nn.Module], observation: Tensor, action: Tensor) -> Tensor:
        inputs = torch.cat((observation, action), dim=1)
        first, second = (critic(inputs).squeeze(1) for critic in critics)
        return torch.minimum(first, second)

    @staticmethod
    def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def _adam(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=_LEARNING_RATE, capturable=self.batch["reward"].is_cuda)
