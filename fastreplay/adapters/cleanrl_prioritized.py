# SPDX-License-Identifier: MIT
"""Drop-in prioritized replay buffer of n-step transitions for CleanRL's `rainbow_atari.py`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastreplay.adapters.kept_steps import Loading, said_of_adapter
from fastreplay.adapters.pending_steps import PendingStep, bytes_of_steps, taken_steps
from fastreplay.adapters.shared_frames import SharedFrames
from fastreplay.buffer.held import checked_path
from fastreplay.buffer.priorities import Priorities
from fastreplay.buffer.replay_buffer import ReplayBuffer
from fastreplay.support.checks import checked_addresses, checked_count, checked_number

if TYPE_CHECKING:
    import os

    import torch
    from numpy.typing import ArrayLike, NDArray

    from fastreplay.adapters.columns import Array
    from fastreplay.checkpoint.folder import Folder
    from fastreplay.checkpoint.manifest import Manifest

__all__ = ["PrioritizedBatch", "PrioritizedReplayBuffer"]


class PrioritizedBatch(NamedTuple):
    """A minibatch drawn by priority; tensors (B, ...) that are the caller's to keep."""

    observations: torch.Tensor  # (B, *obs_shape) uint8
    actions: torch.Tensor  # (B, 1) int64
    rewards: torch.Tensor  # (B, 1) float32, of n steps
    next_observations: torch.Tensor  # (B, *obs_shape) uint8, after n steps
    dones: torch.Tensor  # (B, 1) bool
    indices: list[int]  # B rows of the buffer
    weights: torch.Tensor  # (B, 1) float32, of which the largest is 1


class PrioritizedReplayBuffer(Loading):
    """CleanRL's `PrioritizedReplayBuffer` on a native ring and a native tree of priorities.

    Every step but the first n - 1 completes the transition that began n - 1 steps before: the discounted sum of
    rewards up to an end, if there is one among the n, and the observation after it. As in CleanRL an end throws
    away what was begun after the transition that it completes, and a truncation, which `done` does not tell,
    ends nothing.

    Draws, weights and priorities follow the same rule (Schaul et al. 2016); the rows that a seed gives are others,
    since the generator is the buffer's own: it is seeded from `np.random` now.

    Args:
        capacity: Transitions at most.
        obs_shape: Of the observations, which are bytes.
        device: Torch device of the minibatches.
        n_step: Steps of a transition.
        gamma: Discount of a step.
        alpha: Exponent of the priorities.
        beta: Exponent of the weights; may be set at any time.
        eps: Added to every priority.
        dedupe: True stores observations once: that after a transition is the one from which the transition n_step
            later starts, and costs nothing there. A number of frames instead stores each frame once, where
            observations are stacks of so many along their first axis: for `n_step=1` altogether, for more both among
            the observations and among the next ones. Minibatches are the same; observations have no views.

    Attributes:
        beta, gamma: As given; may be set.
        max_priority: The largest |priority| + eps so far, 1 at first, which new transitions get; may be set.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of its range, or observations are no stacks of so many frames.
        MemoryError: The buffer would not fit into this machine's memory.

    Thread safety:
        None: one thread at a time.

    Example:
        >>> import numpy as np
        >>> from fastreplay.adapters.cleanrl_prioritized import PrioritizedReplayBuffer
        >>> rb = PrioritizedReplayBuffer(1000, (4, 84, 84), "cpu", n_step=3, gamma=0.99)
        >>> frames = np.zeros((1, 4, 84, 84), np.uint8)
        >>> for step in range(10):
        ...     rb.add(frames, np.array([step % 4]), np.array([1.0]), frames, np.array([False]))
        >>> data = rb.sample(32)
        >>> rb.size, data.observations.shape, round(data.rewards[0].item(), 4)
        (8, torch.Size([32, 4, 84, 84]), 2.9701)
        >>> rb.update_priorities(data.indices, np.arange(32.0))
    """

    def __init__(
        self,
        capacity: int,
        obs_shape: tuple[int, ...],
        device: torch.device | str,
        n_step: int,
        gamma: float,
        alpha: float = 0.6,
        beta: float = 0.4,
        eps: float = 1e-6,
        *,
        dedupe: bool | int = False,
    ) -> None:
        self.device = device
        self._n_step = checked_count("n_step", n_step)
        self.gamma = checked_number("gamma", gamma, 0)
        self.beta = beta
        self._rule = Priorities(alpha=alpha, beta=beta, eps=eps)
        observation = (tuple(obs_shape), "uint8")
        # Numbers in arrays of one, as the script's minibatches have them: to reshape a tensor takes as long as a draw.
        fields: dict[str, Any] = {"obs": observation, "action": ((1,), "int64"), "reward": (1,)}
        fields |= {"next_obs": observation, "done": ((1,), "bool")}
        self._shared: SharedFrames | None = None
        if dedupe is not False:  # apart from what is drawn, whose draws are those without
            self._shared = SharedFrames(capacity, tuple(obs_shape), device, self._n_step, dedupe)
            del fields["obs"], fields["next_obs"]
        self._buffer = ReplayBuffer(capacity, fields, seed=0, device=device, priorities=self._rule)
        # Seeded last: a refusal leaves NumPy's generator alone.
        seed = int(np.random.randint(2**63 - 1))  # noqa: NPY002 - follows np.random.seed
        self._buffer.rng_state = {"key": [seed, 0], "calls": 0}
        self._obs_shapes = (shape := tuple(obs_shape)), (1, *shape)
        # Of the transition that is added: arrays go into the ring as they lie.
        self._action, self._reward, self._done = np.zeros(1, np.int64), np.zeros(1), np.zeros(1, np.bool_)
        self._num_added = 0
        self._steps: list[PendingStep] = []  # the newest n_step that no end has thrown away, at most

    @property
    def capacity(self) -> int:
        """Transitions at most."""
        return self._buffer.capacity

    @property
    def n_step(self) -> int:
        """Steps of a transition."""
        return self._n_step

    @property
    def alpha(self) -> float:
        """Exponent of the priorities."""
        return self._rule.alpha

    @property
    def eps(self) -> float:
        """Added to every priority."""
        return self._rule.eps

    @property
    def size(self) -> int:
        """Transitions that are stored."""
        return len(self._buffer)

    @property
    def pos(self) -> int:
        """The row that is written next."""
        return self._num_added % self.capacity

    @property
    def max_priority(self) -> float:
        """The largest |priority| + eps so far.

        Raises:
            TypeError, ValueError: What is set is no finite number from 0 on.
        """
        return self._buffer.max_priority

    @max_priority.setter
    def max_priority(self, value: float) -> None:
        self._buffer.max_priority = value

    @property
    def buffer_obs(self) -> Array:
        """Live view (capacity, *obs_shape) uint8.

        Raises:
            ValueError: With `dedupe`.
        """
        return self._view_of("obs")

    @property
    def buffer_next_obs(self) -> Array:
        """Live view (capacity, *obs_shape) uint8.

        Raises:
            ValueError: With `dedupe`.
        """
        return self._view_of("next_obs")

    def _view_of(self, name: str) -> Array:
        if self._shared is not None:
            raise ValueError(f"buffer_{name}: with dedupe observations are put together where they are sampled")
        return self._buffer.view(name)

    @property
    def buffer_actions(self) -> Array:
        """Live view (capacity,) int64."""
        return self._buffer.view("action")[:, 0]

    @property
    def buffer_rewards(self) -> Array:
        """Live view (capacity,) float32."""
        return self._buffer.view("reward")[:, 0]

    @property
    def buffer_dones(self) -> Array:
        """Live view (capacity,) bool."""
        return self._buffer.view("done")[:, 0]

    def add(self, obs: ArrayLike, action: ArrayLike, reward: ArrayLike, next_obs: ArrayLike, done: ArrayLike) -> None:
        """Take in a step of one environment, and store the transition that it completes.

        Args:
            obs: (*obs_shape) or (1, *obs_shape) uint8.
            action: One integer, of any shape, like the numbers that follow.
            reward: One number.
            next_obs: As `obs`, the last of the episode where it ended.
            done: Whether the episode terminated.

        Raises:
            TypeError: Observations are no bytes, or the others no numbers of their kind.
            ValueError: A shape is another; the step is not taken in.

        Thread safety:
            None.
        """
        after = self._frames("next_obs", next_obs)
        is_end = bool(_number("done", done, "biuf"))
        step = PendingStep(
            self._frames("obs", obs).copy(),
            int(_number("action", action, "iu")),
            float(_number("reward", reward, "biuf")),
            is_end,
            after.copy() if is_end else None,
        )
        steps = [*self._steps, step][-self._n_step :]
        if len(steps) < self._n_step:
            self._steps = steps
            return
        total, last_obs = self._return_of(steps)
        first, is_done = steps[0], last_obs is not None
        self._action[0], self._reward[0], self._done[0] = first.action, total, is_done
        next_obs = after if last_obs is None else last_obs
        if self._shared is None:
            self._buffer.add(first.obs, self._action, self._reward, next_obs, self._done)
        else:
            self._shared.add(first.obs, next_obs)
            self._buffer.add(self._action, self._reward, self._done)
        self._num_added += 1
        self._steps = [] if is_done else steps

    def _return_of(self, steps: list[PendingStep]) -> tuple[float, NDArray[np.uint8] | None]:
        """Return the discounted rewards up to an end, and the observation there; None where there is none."""
        total = 0.0
        for i, step in enumerate(steps):
            total += self.gamma**i * step.reward
            if step.done:
                return total, step.last_obs
        return total, None

    def _frames(self, name: str, value: ArrayLike) -> NDArray[np.uint8]:
        array, shapes = np.asarray(value), self._obs_shapes
        if array.dtype != np.uint8:
            raise TypeError(f"{name}: expected uint8, got {array.dtype}")
        if array.shape not in shapes:
            raise ValueError(f"{name}: expected shape {shapes[0]} or {shapes[1]}, got {array.shape}")
        return array.reshape(shapes[0])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save into a folder what was added, the priorities, and the steps that are part of no transition yet.

        What is there of this buffer from an earlier save is not written again: rows that were changed through views
        since then are not saved. At every moment the folder holds the checkpoint before or the new one, whole.

        Args:
            path: The folder; it is made where there is none. It may hold a checkpoint, of any buffer, which is
                replaced; else it is empty.

        Raises:
            OSError: It cannot be written; what was saved before stands.
            ValueError: Something else lies in the folder.
            RuntimeError: It was called in the midst of a save into the folder by the same thread.
            TypeError: `path` is no path.

        Thread safety:
            None, as all of this class; but saves into one folder, of any process, take turns.
        """
        where = checked_path(path)
        from fastreplay.checkpoint.save import save

        source, steps = self._buffer._kept_source(), self._steps
        said = {"adapter": {"n_step": self._n_step, "num_steps": len(steps)}}
        parts = {} if self._shared is None else {"pairs": self._shared.kept_source()}
        about = replace(source, describe=lambda end: source.describe(end) | said, parts=parts)
        save(where, about, bytes_of_steps(steps), full=False, hold=False)

    def _loaded(self, folder: Folder, manifest: Manifest) -> dict[str, Any]:
        from fastreplay.checkpoint.load import naming, read_attached
        from fastreplay.checkpoint.said import Said

        said = said_of_adapter(manifest, folder.path)
        with naming(folder.path):
            told = {"capacity": Said(manifest.buffer, "buffer").integer("capacity"), "n_step": said.integer("n_step")}
            for name, its in told.items():
                if its != getattr(self, name):  # rows would be others'
                    raise ValueError(f"{name}: expected {getattr(self, name)}, got {its}")
            parts = {} if self._shared is None else {"pairs"}
            if manifest.parts.keys() != set(parts):
                raise ValueError(f"dedupe: expected a checkpoint of {[*parts]} beside, got {[*manifest.parts]}")
            num_steps, attached = said.integer("num_steps", 0, self._n_step), read_attached(folder, manifest)
            steps = taken_steps(attached, num_steps, self._obs_shapes[0])
            shared = None if self._shared is None else self._shared.loaded(folder, manifest.parts["pairs"])
            if shared is not None and manifest.parts["pairs"].end != manifest.end:
                raise ValueError("pairs: expected as many as there are transitions")
            buffer = self._buffer._loaded_alike(folder, manifest)
        return {"_buffer": buffer, "_shared": shared, "_steps": steps, "_num_added": manifest.end}

    def sample(self, batch_size: int) -> PrioritizedBatch:
        """Draw a minibatch by priority, a row from each of equal shares of all mass.

        Args:
            batch_size: Number of transitions.

        Returns:
            Tensors on `device` that are the caller's to keep, and the rows for `update_priorities`.

        Raises:
            ValueError: The buffer is empty, batch_size is below 1, or `beta` was set to a number below 0.
            TypeError: batch_size is no integer, or `beta` was set to no number.

        Thread safety:
            None.
        """
        batch = self._buffer.sample(batch_size, beta=self.beta)
        slots, weights = self._buffer._slots_of(batch), batch.weight.view(-1, 1)
        if self._shared is None:
            obs, action, reward, next_obs, done = batch
        else:
            action, reward, done = batch
            obs, next_obs = self._shared.at(slots)
        return PrioritizedBatch(obs, action, reward, next_obs, done, slots, weights)

    def update_priorities(self, indices: ArrayLike, priorities: ArrayLike) -> None:
        """Give rows other priorities; of equal rows the last wins.

        Args:
            indices: (B,) rows, as `sample` gave them.
            priorities: (B,) numbers, whose sign plays no part.

        Raises:
            IndexError: A row holds no transition.
            TypeError: Rows are no integers, or priorities no numbers.
            ValueError: They are not as many, or a number is not finite; nothing has changed.

        Thread safety:
            None.
        """
        slots = indices if isinstance(indices, list) else checked_addresses("indices", indices)
        self._buffer._update_slots(slots, priorities)


def _number(name: str, value: ArrayLike, kinds: str) -> Any:
    """Return the one number of an array of any shape."""
    array = np.asarray(value)
    if array.dtype.kind not in kinds:
        raise TypeError(f"{name}: expected a number, got {array.dtype}")
    if array.size != 1:
        raise ValueError(f"{name}: expected one number, since one environment is stored, got shape {array.shape}")
    return array.item()
