# SPDX-License-Identifier: MIT
"""Stable-Baselines3's hindsight replay buffer on a native ring, with a sample whose time grows with the batch."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from stable_baselines3 import her as sb3
from stable_baselines3.common.buffers import DictReplayBuffer as TheirDictReplayBuffer
from stable_baselines3.her.goal_selection_strategy import KEY_TO_GOAL_STRATEGY, GoalSelectionStrategy

from fastreplay import _core
from fastreplay.adapters.kept_infos import bytes_of_infos, infos_of
from fastreplay.adapters.kept_tables import bytes_of, taken
from fastreplay.adapters.random_integers import NativeIntegers, checked_size, numpy_integers
from fastreplay.adapters.sb3.buffers import DictReplayBuffer
from fastreplay.support.checks import checked_number

if TYPE_CHECKING:
    import torch as th
    from gymnasium import spaces
    from numpy.typing import NDArray
    from stable_baselines3.common.buffers import ReplayBuffer
    from stable_baselines3.common.type_aliases import DictReplayBufferSamples
    from stable_baselines3.common.vec_env import VecEnv, VecNormalize
    from typing_extensions import Self

    from fastreplay.adapters.columns import Array
    from fastreplay.adapters.frame_table import Dedupe
    from fastreplay.adapters.random_integers import Rng
    from fastreplay.checkpoint.folder import Folder
    from fastreplay.checkpoint.manifest import Manifest
    from fastreplay.checkpoint.said import Said

__all__ = ["HerReplayBuffer"]

_real_samples, _virtual_samples = sb3.HerReplayBuffer._get_real_samples, sb3.HerReplayBuffer._get_virtual_samples
_EPISODES = ("ep_start", "ep_length", "_current_ep_start")
_STRATEGIES = tuple(GoalSelectionStrategy)  # in the order in which they are drawn natively
_RANDOM_BITS = 53  # as many as a float64 holds


class HerReplayBuffer(DictReplayBuffer, sb3.HerReplayBuffer):
    """Stable-Baselines3's `HerReplayBuffer` on a native ring, the same bit for bit.

    SB3 looks through the whole buffer for transitions of complete episodes at every `sample`. Here they are kept as
    an ordered set that changes as episodes end and are overwritten, and of which the k-th member is found in
    O(log(capacity)). Goals are drawn and rewards computed by the same calls in the same order. With `rng="native"` one
    native call draws transitions and goals, each as likely as in SB3; unless `_sample_goals` is overridden.

    Andrychowicz et al. 2017, https://arxiv.org/abs/1707.01495.

    Args:
        buffer_size: As in `ReplayBuffer`, like all that is not described here.
        observation_space: A Dict of "observation", "achieved_goal" and "desired_goal".
        action_space: As in `ReplayBuffer`.
        env: Whose `compute_reward` rewards virtual transitions.
        device: As in `ReplayBuffer`.
        n_envs: As in `ReplayBuffer`.
        optimize_memory_usage: Must be False.
        handle_timeout_termination: As in `ReplayBuffer`.
        n_sampled_goal: Virtual transitions for each real one.
        goal_selection_strategy: "future", "final" or "episode".
        copy_info_dict: Whether infos are stored, and passed to `compute_reward`.
        rng: As in `ReplayBuffer`.
        dedupe: As in `DictReplayBuffer`.

    Attributes:
        ep_start: (rows, n_envs) int64, the first row of each transition's episode.
        ep_length: (rows, n_envs) int64, the length of its episode, 0 where that is not complete. A view that cannot
            be written; it may be assigned as a whole.
        infos: (rows, n_envs) of dicts, made when it is first asked for.
        env: As given; None in what was pickled, until `set_env`.

    Raises:
        KeyError, AssertionError: An unknown strategy, as SB3; or as `DictReplayBuffer`.
        ValueError, TypeError: As `ReplayBuffer`.

    Thread safety:
        None, as SB3's: one thread at a time.
    """

    env: VecEnv | None

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Dict,
        action_space: spaces.Space[Any],
        env: VecEnv,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        n_sampled_goal: int = 4,
        goal_selection_strategy: GoalSelectionStrategy | str = "future",
        copy_info_dict: bool = False,
        *,
        rng: Rng = "numpy",
        dedupe: Dedupe = False,
    ) -> None:
        if isinstance(goal_selection_strategy, str):
            goal_selection_strategy = KEY_TO_GOAL_STRATEGY[goal_selection_strategy.lower()]
        assert isinstance(goal_selection_strategy, GoalSelectionStrategy), (
            f"goal_selection_strategy: expected one of {list(GoalSelectionStrategy)}, got {goal_selection_strategy!r}"
        )
        # Not SB3's own class's, which would fill an array of dicts.
        DictReplayBuffer.__init__(
            self, buffer_size, observation_space, action_space, device, n_envs, optimize_memory_usage,
            handle_timeout_termination, rng=rng, dedupe=dedupe,
        )  # fmt: skip
        self.env = env
        self.copy_info_dict = copy_info_dict
        self.goal_selection_strategy = goal_selection_strategy
        self.n_sampled_goal = n_sampled_goal
        self.her_ratio = 1 - (1.0 / (n_sampled_goal + 1))
        shape = (self.buffer_size, n_envs)
        self._current_ep_start = np.zeros(n_envs, np.int64)
        self._new_episodes(shape)

    @cached_property
    def infos(self) -> Array:  # type: ignore[override]
        """The infos of the transitions, (rows, n_envs) of dicts; empty ones unless `copy_info_dict`."""
        return np.array([[{} for _ in range(self.n_envs)] for _ in range(self.buffer_size)])

    def _new_episodes(self, shape: tuple[int, int]) -> None:
        # Side by side, since both are read of every transition that is drawn.
        self._episodes = np.zeros((*shape, 2), np.int64)
        self._lengths = self._episodes[..., 1]
        self._valid = _core.IndexSet(self._lengths.size)

    @property
    def ep_start(self) -> NDArray[np.int64]:
        """The first rows of the transitions' episodes, (rows, n_envs) int64, live."""
        return self._episodes[..., 0]

    @ep_start.setter
    def ep_start(self, starts: NDArray[np.int64]) -> None:
        self._episodes[..., 0] = starts

    @property
    def ep_length(self) -> NDArray[np.int64]:
        """The lengths of the transitions' episodes, (rows, n_envs) int64, 0 where not complete."""
        view = self._lengths.view()
        view.flags.writeable = False
        return view

    @ep_length.setter
    def ep_length(self, lengths: NDArray[np.int64]) -> None:
        self._lengths[...] = lengths
        self._valid = _core.IndexSet(self._lengths.size)
        # Runs of members, each filled at once.
        flags = np.concatenate(([False], self._lengths.ravel() > 0, [False]))
        edges = np.flatnonzero(flags[1:] != flags[:-1])
        for first, end in edges.reshape(-1, 2):
            self._valid.fill(int(first), int(end - first), 1, True)

    def reset(self) -> None:
        """Forget everything; SB3's own class keeps its episodes, which without `dedupe` are those of the rows still."""
        super().reset()
        if self.dedupe is not False:
            self._current_ep_start[...] = 0
            self._new_episodes((self.buffer_size, self.n_envs))

    def add(  # type: ignore[override]
        self,
        obs: dict[str, Array],
        next_obs: dict[str, Array],
        action: Array,
        reward: Array,
        done: Array,
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one step of all environments; an old episode of which a row is overwritten is not sampled any more.

        Args:
            obs: A dict of (n_envs, *shape).
            next_obs: The same, the last of the episode where it ended.
            action: (n_envs, action_dim).
            reward: (n_envs,).
            done: (n_envs,).
            infos: A dict an environment.

        Raises:
            Exception: What SB3's class raises; here nothing was stored then.

        Thread safety:
            None.
        """
        pos = self.pos
        row_infos = new_infos = np.empty(self.n_envs, object)
        if self.copy_info_dict:
            row_infos = self.infos[pos]
            new_infos[...] = infos
        try:
            ends = [env for env in range(self.n_envs) if done[env]]
        except Exception:
            # SB3 looks at it when the step is stored: what it refuses in that comes first.
            DictReplayBuffer.add(self._with_one_row(), obs, next_obs, action, reward, done, infos)
            raise
        DictReplayBuffer.add(self, obs, next_obs, action, reward, done, infos)
        # Nothing is refused from here on.
        lengths = self._lengths[pos].tolist()
        if any(lengths):
            for env, length in enumerate(lengths):
                if length > 0:
                    self._set_length(env, pos, int(self._episodes[pos, env, 0]) + length, 0)
        self._episodes[pos, :, 0] = self._current_ep_start
        row_infos[...] = new_infos
        for env in ends:
            self._compute_episode_length(env)

    def _add_by_sb3(self, *step: Any) -> None:
        TheirDictReplayBuffer.add(self, *step)  # not what their HerReplayBuffer does beside it

    def _compute_episode_length(self, env_idx: int) -> None:
        start, end = int(self._current_ep_start[env_idx]), self.pos
        if end < start:
            end += self.buffer_size
        self._set_length(env_idx, start, end, end - start)
        self._current_ep_start[env_idx] = self.pos

    def _set_length(self, env: int, first: int, end: int, length: int) -> None:
        """Set the episode length of rows first to end - 1, modulo the ring, of one environment."""
        while first < end:
            row = first % self.buffer_size
            count = min(end - first, self.buffer_size - row)
            self._lengths[row : row + count, env] = length
            self._valid.fill(row * self.n_envs + env, count, self.n_envs, length > 0)
            first += count

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> DictReplayBufferSamples:  # type: ignore[override]
        """Draw a minibatch from complete episodes, real transitions first, then those with new goals.

        Args:
            batch_size: Number of transitions.
            env: Normalizes observations and rewards, where given.

        Returns:
            Tensors (B, ...) on `device` that are the caller's to keep.

        Raises:
            RuntimeError: No episode is complete.
            ValueError, TypeError: batch_size is negative, or no integer; or `her_ratio` no number in [0, 1].

        Thread safety:
            None.
        """
        checked_number("her_ratio", self.her_ratio, 0, 1)
        batch_size = checked_size(self._integers, batch_size)
        if not self._is_sampled_natively() or self._is_left_to_sb3(env) or batch_size < 1:
            return sb3.HerReplayBuffer.sample(self, batch_size, env)
        num_virtual = int(self.her_ratio * batch_size)
        integers, strategy = self._integers, self.goal_selection_strategy
        has_own_goals = getattr(self._sample_goals, "__func__", None) is HerReplayBuffer._sample_goals
        goal_rows = None
        if isinstance(integers, NativeIntegers) and strategy in _STRATEGIES and has_own_goals:
            goal_of = _STRATEGIES.index(strategy)
            rows, envs, goal_rows = integers.hindsight(self._valid, self._episodes, goal_of, batch_size, num_virtual)
        else:
            members = self._valid.select(integers(0, len(self._valid), batch_size))
            # Virtual ones are drawn first and returned last.
            members = np.concatenate((members[num_virtual:], members[:num_virtual]))
            rows, envs = np.divmod(members, self.n_envs) if self.n_envs > 1 else (members, np.zeros_like(members))
        samples = self._samples_with_goals(rows, envs, batch_size - num_virtual, goal_rows, env)
        return cast("DictReplayBufferSamples", samples)

    def _is_sampled_natively(self) -> bool:
        cls, parts = type(self), self.observations
        achieved, desired = parts["achieved_goal"], parts["desired_goal"]
        return (
            len(self._valid) > 0
            and self._table.is_sampled_natively
            and self._table.num_rows == self.buffer_size
            and cls._get_real_samples is _real_samples
            and cls._get_virtual_samples is _virtual_samples
            and achieved.shape == desired.shape
            and achieved.dtype == desired.dtype
        )

    def _samples_with_goals(
        self, rows: Array, envs: Array, num_real: int, goal_rows: Array | None, env: VecNormalize | None
    ) -> Any:
        """Gather transitions, of which those from `num_real` on get new rewards and goals, of these rows or drawn."""
        block = self._table.gather(rows, envs)
        virtual_rows, virtual_envs = rows[num_real:], envs[num_real:]
        if goal_rows is not None:
            self._table.gather_goals(block, goal_rows, virtual_envs, "achieved_goal", "desired_goal")
        arrays = block.arrays()
        obs, next_obs = self._table.observation(arrays), self._table.next_observation(arrays)
        infos: Any = [{} for _ in range(len(virtual_rows))]
        if self.copy_info_dict:
            infos = copy.deepcopy(self.infos[virtual_rows, virtual_envs])
        goals = obs["desired_goal"][num_real:].copy()
        if goal_rows is None:
            goals = self._sample_goals(virtual_rows, virtual_envs)
        assert self.env is not None, "env: expected a VecEnv to compute rewards with; call set_env"
        # All environments are taken to be alike.
        # Arrays that it may change, as with SB3, and keep: those of the block become the minibatch's tensors.
        achieved = next_obs["achieved_goal"][num_real:].copy()
        (rewards,) = self.env.env_method("compute_reward", achieved, goals, infos, indices=[0])
        next_obs["achieved_goal"][num_real:] = achieved
        obs["desired_goal"][num_real:] = goals
        next_obs["desired_goal"][num_real:] = goals
        arrays[-2][num_real:] = rewards.astype(np.float32).reshape(-1, 1)
        return self._sample_type(*self._tensors(block, env))

    def _sample_goals(self, batch_indices: Array, env_indices: Array) -> Array:
        starts, lengths = _core.take_rows(self._episodes.reshape(-1, 2), batch_indices * self.n_envs + env_indices).T
        if self.goal_selection_strategy == GoalSelectionStrategy.FINAL:
            steps = lengths - 1
        elif self.goal_selection_strategy == GoalSelectionStrategy.FUTURE:
            steps = self._draw_between((batch_indices - starts) % self.buffer_size, lengths)
        elif self.goal_selection_strategy == GoalSelectionStrategy.EPISODE:
            steps = self._draw_between(0, lengths)
        else:
            raise ValueError(f"goal_selection_strategy: not supported: {self.goal_selection_strategy!r}")
        achieved = self.next_observations["achieved_goal"]
        return self._table.taken(achieved, (steps + starts) % self.buffer_size, env_indices)

    def _draw_between(self, low: Array | int, high: Array) -> Array:
        """Draw one integer from each [low, high), (B,) int64."""
        if self._integers is numpy_integers:
            return np.random.randint(low, high)  # noqa: NPY002 - what SB3 draws from
        shares = self._integers(0, 1 << _RANDOM_BITS, len(high)) * 0.5**_RANDOM_BITS  # in [0, 1)
        return cast("Array", low + (shares * (high - low)).astype(np.int64))

    def _attached(self) -> dict[str, Array]:
        infos = {"infos": bytes_of_infos(self.infos[: self.size()])} if self.copy_info_dict else {}
        return super()._attached() | infos | {name: bytes_of(getattr(self, name)) for name in _EPISODES}

    def _take(self, said: Said, attached: dict[str, Array], parts: dict[str, tuple[Folder, Manifest]]) -> None:
        shape = (self.buffer_size, self.n_envs)
        if self.copy_info_dict and "infos" not in attached:
            raise ValueError("copy_info_dict: expected a checkpoint with infos, got one without")
        if not self.copy_info_dict and "infos" in attached:
            raise ValueError("copy_info_dict: expected a checkpoint without infos, got one with; True takes them over")
        infos = attached.pop("infos", None)
        arrays = {
            name: taken(attached, name, shape[name == "_current_ep_start" :], np.dtype(np.int64)) for name in _EPISODES
        }
        super()._take(said, attached, parts)
        self._take_episodes(arrays)
        self.__dict__.pop("infos", None)
        if infos is not None:
            self.infos[: self.size()] = infos_of(infos, self.size(), self.n_envs)

    def __getstate__(self) -> dict[str, Any]:
        """Return all attributes but `env`, which may not be picklable."""
        state = super().__getstate__()
        for name in ("env", "_valid", "_episodes", "_lengths"):
            del state[name]
        state |= {"ep_start": self.ep_start, "ep_length": self.ep_length}
        return state

    def _attributes_of(self, state: dict[str, Any]) -> dict[str, Any]:
        attributes = super()._attributes_of(state)
        buffer = object.__new__(type(self))
        buffer.__dict__.update(attributes, env=None)
        for name in ("ep_start", "ep_length"):
            buffer.__dict__.pop(name, None)
        buffer._take_episodes(state)
        return buffer.__dict__

    def _take_episodes(self, given: dict[str, Any]) -> None:
        """Take over episodes; this buffer is nobody else's yet.

        Raises:
            ValueError: They are of another form, or of other rows.
        """
        shape = (self.buffer_size, self.n_envs)
        for name, expected in zip(_EPISODES, (shape, shape, shape[1:]), strict=True):
            array = np.asarray(given.get(name))
            if array.shape != expected or array.dtype.kind not in "iu":
                raise ValueError(f"{name}: expected integers {expected}, got {array.dtype} {array.shape}")
            if array.min(initial=0) < 0 or array.max(initial=0) > shape[0] - (name != "ep_length"):
                raise ValueError(f"{name}: expected rows and lengths of {shape[0]} rows at most")
        self._new_episodes(shape)
        self.ep_start, self.ep_length, self._current_ep_start = (given[name] for name in _EPISODES)

    @classmethod
    def from_sb3(cls, buffer: ReplayBuffer) -> Self:
        """Make a buffer of this class as `ReplayBuffer.from_sb3` does, with the other's `env`."""
        made = super().from_sb3(buffer)
        made.env = cast("HerReplayBuffer", buffer).env
        return made

    def to_sb3(self) -> ReplayBuffer:
        """Make a buffer of SB3's own class with these contents, this cursor and `env`."""
        made = super().to_sb3()
        made.__dict__.update(env=self.env, infos=self.infos)
        return made
