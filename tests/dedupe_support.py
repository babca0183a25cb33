# SPDX-License-Identifier: MIT
"""Vector environments whose steps have frames in common, and two buffers, of which one stores those once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from sb3_support import assert_same, generators, the_global

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGES = spaces.Box(0, 255, (4, 6, 5), np.uint8)
COLORS = spaces.Box(0, 255, (8, 3, 3), np.uint8)  # four frames of two channels
VECTORS = spaces.Box(-9, 9, (6,), np.float32)  # three frames of two
PARTS = spaces.Dict({"image": IMAGES, "vector": spaces.Box(-9, 9, (3,), np.float64), "room": spaces.Discrete(5)})
ACTIONS: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "discrete": spaces.Discrete(4),
}


class Stream:
    """Steps of a vector environment that ends and is cut off at random.

    Args:
        observation: Box, or a Dict of such; each a stack.
        action: Of one environment.
        n_envs: Environments.
        frames: Of a stack.
        resets: "same_step": the next observation is the last of the episode, and the step after begins another.
            "next_step": the step after an end only resets. "anew": steps have nothing in common.
        seed: Of all that is drawn.
    """

    def __init__(
        self,
        observation: spaces.Space[Any],
        action: spaces.Space[Any],
        n_envs: int,
        frames: int = 4,
        resets: str = "same_step",
        seed: int = 0,
    ) -> None:
        self.space, self.action, self.n_envs, self.frames, self.resets = observation, action, n_envs, frames, resets
        self.chance = 0.15  # of an end
        self.rng = np.random.default_rng(seed)
        action.seed(seed)
        self.ended = np.zeros(n_envs, np.bool_)
        self.obs = self._each(lambda space, _: self._first(space, n_envs), None)

    def _each(self, make: Callable[[Any, Any], Any], value: Any) -> Any:
        if isinstance(self.space, spaces.Dict):
            return {key: make(part, value and value[key]) for key, part in self.space.spaces.items()}
        return make(self.space, value)

    def _random(self, space: Any, count: int, length: int) -> Any:
        if isinstance(space, spaces.Discrete):
            return self.rng.integers(int(space.n), size=count)
        return self.rng.integers(0, 3, size=(count, length, *space.shape[1:])).astype(space.dtype)

    def _first(self, space: Any, count: int) -> Any:
        """Draw the first stacks of episodes: a frame repeated, or after frames of zeros, or all others."""
        if isinstance(space, spaces.Discrete) or self.rng.random() < 0.2:
            return self._random(space, count, 0 if isinstance(space, spaces.Discrete) else space.shape[0])
        length = space.shape[0] // self.frames if space.shape[0] % self.frames == 0 else space.shape[0]
        frame = self._random(space, count, length)
        stack = np.concatenate([frame] * (space.shape[0] // length), axis=1)
        if self.rng.random() < 0.5:
            stack[:, :-length] = 0
        return stack

    def _after(self, space: Any, obs: Any) -> Any:
        if isinstance(space, spaces.Discrete) or self.resets == "anew" or space.shape[0] % self.frames:
            return self._random(space, self.n_envs, 0 if isinstance(space, spaces.Discrete) else space.shape[0])
        length = space.shape[0] // self.frames
        frame = self._random(space, self.n_envs, length)
        if self.rng.random() < 0.1:
            frame = obs[:, -length:]  # nothing moved
        return np.concatenate([obs[:, length:], frame], axis=1)

    def draw(self) -> tuple[Any, ...]:
        """Give a step: observation, next observation, action, reward, done and infos."""
        obs = self.obs
        next_obs = self._each(self._after, obs)
        firsts = self._each(lambda space, _: self._first(space, self.n_envs), None)
        if self.resets == "next_step":
            next_obs = _where(self.ended, firsts, next_obs)
        ends = self.rng.random(self.n_envs) < self.chance
        if self.resets == "next_step":
            ends &= ~self.ended
            self.ended = ends
            self.obs = next_obs
        else:
            self.obs = _where(ends, firsts, next_obs)
        is_cut = ends & (self.rng.random(self.n_envs) < 0.5)
        infos = [{"TimeLimit.truncated": bool(cut)} if end else {} for cut, end in zip(is_cut, ends, strict=True)]
        action = np.stack([self.action.sample() for _ in range(self.n_envs)])
        if self.resets == "anew":
            self.obs = firsts
        return obs, next_obs, action, self.rng.normal(size=self.n_envs), ends, infos


def _where(which: Any, these: Any, others: Any) -> Any:
    if isinstance(these, dict):
        return {key: _where(which, these[key], others[key]) for key in these}
    made = others.copy()
    made[which] = these[which]
    return made


class Pair:
    """A buffer and one that is the same with `dedupe`, each with a global random state of its own.

    Args:
        cls: Of both.
        dedupe: Of the second.
        *args: Of the constructor.
        **kwargs: The same.
    """

    def __init__(self, cls: Any, dedupe: Any, *args: Any, **kwargs: Any) -> None:
        self._generators = generators(3)
        self.buffers: list[Any] = []
        for generator, options in zip(self._generators, ({}, {"dedupe": dedupe}), strict=True):
            with the_global(generator):
                self.buffers.append(cls(*args, **kwargs, **options))

    @property
    def deduped(self) -> Any:
        return self.buffers[1]

    def do(self, action: Callable[[Any], Any]) -> Any:
        """Do the same to both; compare what it returns, the cursor and the random state."""
        results = []
        for generator, buffer in zip(self._generators, self.buffers, strict=True):
            with the_global(generator):
                results.append(action(buffer))
        assert_same(*results)
        plain, deduped = self.buffers
        assert (plain.pos, plain.full, plain.size()) == (deduped.pos, deduped.full, deduped.size())
        mine, yours = (generator.state for generator in self._generators)
        assert np.array_equal(mine["state"]["key"], yours["state"]["key"])
        return results[1]

    def compare(self) -> None:
        """Compare the rows that are filled."""
        for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
            mine, yours = (_filled(getattr(buffer, name), buffer.size()) for buffer in self.buffers)
            assert_same(mine, yours)


def _filled(column: Any, num_rows: int) -> Any:
    if isinstance(column, dict):
        return {key: _filled(part, num_rows) for key, part in column.items()}
    return np.array(column[:num_rows])
