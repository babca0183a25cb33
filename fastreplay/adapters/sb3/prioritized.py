# SPDX-License-Identifier: MIT
"""A prioritized replay buffer for Stable-Baselines3, which has none of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from gymnasium import spaces
from stable_baselines3.common import buffers as sb3
from stable_baselines3.common.utils import LinearSchedule

from fastreplay.adapters.prioritized_slots import PrioritizedSlots
from fastreplay.adapters.sb3.buffers import ReplayBuffer
from fastreplay.adapters.sb3.n_step import NStepReplayBuffer
from fastreplay.buffer.priorities import Priorities
from fastreplay.support.checks import checked_count, checked_number

if TYPE_CHECKING:
    import torch as th
    from numpy.typing import ArrayLike, NDArray
    from stable_baselines3.common.type_aliases import Schedule
    from stable_baselines3.common.vec_env import VecNormalize

    from fastreplay.adapters.columns import Array
    from fastreplay.adapters.frame_table import Dedupe
    from fastreplay.buffer.priorities import PriorityUpdate
    from fastreplay.checkpoint.folder import Folder
    from fastreplay.checkpoint.manifest import Manifest
    from fastreplay.checkpoint.said import Said
    from fastreplay.checkpoint.save import SaveSource

__all__ = ["PrioritizedReplayBuffer", "PrioritizedReplayBufferSamples"]

_TO_ONE = LinearSchedule(0.4, 1.0, 1.0)
_OWN = ("_slots", "beta")  # attributes that SB3's buffers do not have


class PrioritizedReplayBufferSamples(NamedTuple):
    """A minibatch drawn by priority; tensors (B, ...) that are the caller's to keep."""

    observations: th.Tensor  # (B, *shape)
    actions: th.Tensor  # (B, action_dim)
    next_observations: th.Tensor  # (B, *shape)
    dones: th.Tensor  # (B, 1) float32
    rewards: th.Tensor  # (B, 1) float32
    discounts: th.Tensor | None  # (B, 1) float32, None where all are of one step
    weights: th.Tensor  # (B, 1) float32, of which the largest is 1
    tickets: NDArray[np.int64]  # (B,), for `update_priorities`


class PrioritizedReplayBuffer(NStepReplayBuffer):
    """A replay buffer for Stable-Baselines3 that draws by priority (Schaul et al. 2016).

    For `fastreplay.sb3.DQN`, whose `train` weighs the loss and gives the errors back. Storage, arrays and minibatches
    are those of `ReplayBuffer` here, with `n_steps` those of `NStepReplayBuffer`. New transitions get the largest
    priority so far. The draws follow `np.random.seed`, from a generator of the buffer's own.

    Args:
        buffer_size: As in `ReplayBuffer`.
        observation_space: As in `ReplayBuffer`; no Dict.
        action_space: As in `ReplayBuffer`.
        device: As in `ReplayBuffer`.
        n_envs: As in `ReplayBuffer`.
        optimize_memory_usage: Must be False.
        handle_timeout_termination: As in `ReplayBuffer`.
        n_steps: Steps of a transition at most.
        gamma: Discount factor; of use where there are several steps.
        alpha: Exponent of the priorities; 0 draws uniformly.
        beta: Exponent of the weights: a number, or a function of the share of training that remains. By default it
            goes from 0.4 to 1.
        eps: Added to every priority.
        dedupe: As in `ReplayBuffer`.

    Raises:
        NotImplementedError: `optimize_memory_usage`.
        TypeError: A Dict space, a dtype that torch lacks, or an argument of the wrong type.
        ValueError: A space with a side of length 0, an argument out of its range, or observations that are no stacks.

    Thread safety:
        None, as SB3's: one thread at a time. Where `pos` or `full` are set from outside, priorities start anew.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        n_steps: int = 1,
        gamma: float = 0.99,
        alpha: float = 0.6,
        beta: float | Schedule = _TO_ONE,
        eps: float = 1e-6,
        dedupe: Dedupe = False,
    ) -> None:
        rule = Priorities(alpha=alpha, beta=beta if not callable(beta) else 0.4, eps=eps)
        checked_count("n_steps", n_steps)
        super().__init__(
            *(buffer_size, observation_space, action_space, device, n_envs),
            *(optimize_memory_usage, handle_timeout_termination),
            n_steps=n_steps,
            gamma=gamma,
            dedupe=dedupe,
        )
        self.beta = beta
        self._slots = self._new_slots(rule)

    def _check(self, optimize_memory_usage: bool, handle_timeout_termination: bool) -> None:
        if optimize_memory_usage:
            raise NotImplementedError("optimize_memory_usage: PrioritizedReplayBuffer has none")
        if isinstance(self.observation_space, spaces.Dict):
            raise TypeError(
                f"observation_space: PrioritizedReplayBuffer takes no Dict space, got {self.observation_space}"
            )
        super()._check(optimize_memory_usage, handle_timeout_termination)

    def _new_slots(self, rule: Priorities) -> PrioritizedSlots:
        if not self._table.is_sampled_natively:
            raise TypeError(f"observation_space, action_space: torch has no dtype for {self.observation_space}")
        # Drawn last: a refusal leaves NumPy's generator alone.
        seed = int(np.random.randint(2**63 - 1))  # noqa: NPY002 - follows np.random.seed
        return PrioritizedSlots(self.buffer_size * self.n_envs, rule, seed)

    def _follow(self, pos: int, full: bool) -> None:
        num_rows = self.buffer_size if full else pos
        self._slots.follow(pos * self.n_envs, num_rows * self.n_envs)

    def add(
        self, obs: Any, next_obs: Any, action: Array, reward: Array, done: Array, infos: list[dict[str, Any]]
    ) -> None:
        """Store one step of all environments, with the largest priority so far; else as `ReplayBuffer.add`."""
        cursor = self.pos, self.full
        super().add(obs, next_obs, action, reward, done, infos)
        self._follow(*cursor)  # of what is refused no priorities are lost
        self._slots.fill(self.n_envs)

    def beta_at(self, progress_remaining: float) -> float:
        """Return the exponent of the weights when this share of training, from 1 to 0, remains.

        Raises:
            TypeError, ValueError: `beta` gives no number from 0 on.
        """
        return checked_number("beta", self.beta(progress_remaining) if callable(self.beta) else self.beta, 0)

    def sample(  # type: ignore[override]
        self, batch_size: int, env: VecNormalize | None = None, beta: float | None = None
    ) -> PrioritizedReplayBufferSamples:
        """Draw a minibatch by priority, a row from each of equal shares of all mass.

        Args:
            batch_size: Number of transitions.
            env: Normalizes observations and rewards, where given.
            beta: Exponent of the weights; None for that at the beginning of training.

        Returns:
            Tensors (B, ...) on `device` that are the caller's to keep, and tickets for `update_priorities`.

        Raises:
            ValueError: The buffer is empty, batch_size is below 1, or beta below 0.
            TypeError: batch_size is no integer, or beta no number.

        Thread safety:
            None.
        """
        self._follow(self.pos, self.full)
        draw = self._slots.sample(batch_size, self.beta_at(1.0) if beta is None else beta)
        try:
            rows, envs = np.divmod(draw.slots, self.n_envs)
            base = ReplayBuffer if self.n_steps == 1 else NStepReplayBuffer
            samples: Any = base._samples_at(self, rows, envs, env)
            weights = self._fresh(draw.weights[:, None])
        except BaseException:
            self._slots.undo()
            raise
        return PrioritizedReplayBufferSamples._make((*samples, weights, draw.tickets))

    def update_priorities(self, tickets: ArrayLike, priorities: ArrayLike) -> PriorityUpdate:
        """Give transitions other priorities, as a rule their absolute TD errors.

        Args:
            tickets: (B,), of a minibatch of this buffer.
            priorities: (B,) numbers: an array, a tensor of any device or graph. The sign plays no part. Of equal
                tickets the last wins.

        Returns:
            How many took effect, and how many are of transitions that were overwritten.

        Raises:
            TypeError: Tickets are no integers, or priorities no numbers.
            ValueError: They are not as many, a number is not finite, or no transition ever had the ticket; nothing
                has changed.

        Thread safety:
            None.
        """
        return self._slots.update(tickets, priorities)

    def _said(self) -> dict[str, Any]:
        return super()._said() | {"slots": self._slots.said()}

    def _parts(self) -> dict[str, SaveSource]:
        return {**super()._parts(), "slots": self._slots.kept_source()}

    def _take(self, said: Said, attached: dict[str, Array], parts: dict[str, tuple[Folder, Manifest]]) -> None:
        if "slots" not in parts:
            raise ValueError("parts: expected the priorities of a PrioritizedReplayBuffer")
        self._slots = self._slots.loaded(*parts.pop("slots"), said.below("slots"))
        super()._take(said, attached, parts)

    def __setstate__(self, state: Any) -> None:
        """Take over what a pickle holds; of SB3's own classes, with equal priorities.

        Raises:
            ValueError: The state is malformed; the buffer is as it was.
        """
        if not isinstance(state, dict) or "_slots" in state:
            super().__setstate__(state)
            return
        made = self._attributes_of({"n_steps": 1, "gamma": 0.99, "beta": _TO_ONE, **state})
        self.__dict__.update(made)
        self._slots = self._new_slots(Priorities())

    def to_sb3(self) -> sb3.ReplayBuffer:
        """Make a buffer of SB3's own class with these contents, which loads without fastreplay; less the priorities.

        Thread safety:
            None.
        """
        cls = sb3.ReplayBuffer if self.n_steps == 1 else sb3.NStepReplayBuffer
        made = cls.__new__(cls)
        made.__dict__.update({name: value for name, value in vars(super().to_sb3()).items() if name not in _OWN})
        return made

    @classmethod
    def _sb3_class(cls) -> type[sb3.ReplayBuffer]:
        return sb3.ReplayBuffer
