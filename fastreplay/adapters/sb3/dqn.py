# SPDX-License-Identifier: MIT
"""Stable-Baselines3's DQN, learning from minibatches that are drawn by priority."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import stable_baselines3
import torch as th
from torch.nn import functional

from fastreplay.adapters.sb3.prioritized import PrioritizedReplayBuffer

__all__ = ["DQN"]


class DQN(stable_baselines3.DQN):
    """Stable-Baselines3's `DQN` with prioritized replay (Schaul et al. 2016), of which it takes all arguments.

    Each transition's loss is weighed by its importance weight, and its absolute TD error becomes its priority. The
    replay buffer is `PrioritizedReplayBuffer` here; its options are `replay_buffer_kwargs`, such as
    `dict(alpha=0.6, beta=0.4)`. By default the weights' exponent goes from 0.4 to 1 with the training's progress.

    Raises:
        TypeError: `replay_buffer_class` is another one, or the observation space a Dict.
        NotImplementedError: `optimize_memory_usage`.

    Thread safety:
        None, as SB3's.

    Example:
        >>> from fastreplay.sb3 import DQN
        >>> model = DQN("MlpPolicy", "CartPole-v1", buffer_size=1000, learning_starts=50)
        >>> model.learn(100).num_timesteps
        100
    """

    def _setup_model(self) -> None:
        if self.replay_buffer_class is None:
            self.replay_buffer_class = PrioritizedReplayBuffer
        if not issubclass(self.replay_buffer_class, PrioritizedReplayBuffer):
            raise TypeError(
                "replay_buffer_class: expected PrioritizedReplayBuffer, or a class derived from it, got "
                f"{self.replay_buffer_class.__name__}"
            )
        n_steps, gamma = self.n_steps, self.gamma
        self.replay_buffer_kwargs = {"n_steps": n_steps, "gamma": gamma, **self.replay_buffer_kwargs}
        self.n_steps = 1  # else SB3 warns that a class of another's is not told
        try:
            super()._setup_model()
        finally:
            self.n_steps = n_steps

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Take gradient steps on weighed minibatches, and give their transitions new priorities.

        Args:
            gradient_steps: How many.
            batch_size: Transitions of each.

        Raises:
            TypeError: The replay buffer is none that draws by priority, as one may be that was loaded.
        """
        buffer = self.replay_buffer
        if not isinstance(buffer, PrioritizedReplayBuffer):
            raise TypeError(
                f"replay_buffer: expected PrioritizedReplayBuffer, got {type(buffer).__name__}; "
                "PrioritizedReplayBuffer.from_sb3 makes one of it"
            )
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        beta = buffer.beta_at(self._current_progress_remaining)
        losses = [self._learn_from(buffer, batch_size, beta) for _ in range(gradient_steps)]
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/loss", np.mean(losses))
        self.logger.record("train/beta", beta)

    def _learn_from(self, buffer: PrioritizedReplayBuffer, batch_size: int, beta: float) -> float:
        """Take one gradient step; return the loss."""
        batch = buffer.sample(batch_size, env=self._vec_normalize_env, beta=beta)
        with th.no_grad():
            next_values = self.q_net_target(batch.next_observations).amax(dim=1, keepdim=True)
            discounts: Any = self.gamma if batch.discounts is None else batch.discounts
            targets = batch.rewards + (1 - batch.dones) * discounts * next_values
        values = self.q_net(batch.observations).gather(1, batch.actions.long())
        loss = (batch.weights * functional.smooth_l1_loss(values, targets, reduction="none")).mean()
        self.policy.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.policy.optimizer.step()
        buffer.update_priorities(batch.tickets, (values - targets).squeeze(1))
        return cast("float", loss.item())
