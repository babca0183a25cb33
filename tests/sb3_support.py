# SPDX-License-Identifier: MIT
"""Stable-Baselines3's buffer and ours side by side: the same calls, everything observable compared."""

from __future__ import annotations

import copy
import pickle
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common import buffers as sb3_buffers

import fastreplay.sb3

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BOX = spaces.Box(-1, 1, (5,), np.float32)
BOX64 = spaces.Box(-1, 1, (3,), np.float64)
IMAGE = spaces.Box(0, 255, (2, 6, 5), np.uint8)
OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "box": BOX,
    "box64": BOX64,
    "image": IMAGE,
    "discrete": spaces.Discrete(7),
    "multi-discrete": spaces.MultiDiscrete([3, 4]),
    "multi-binary": spaces.MultiBinary(4),
}
ACTIONS: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "box64": spaces.Box(-1, 1, (2, 2), np.float64),
    "discrete": spaces.Discrete(4),
    "multi-discrete": spaces.MultiDiscrete([3, 4]),
    "multi-binary": spaces.MultiBinary(3),
}
DICT = spaces.Dict({"vector": BOX, "goal": BOX64, "image": IMAGE, "room": spaces.Discrete(5)})

ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def assert_same(theirs: Any, ours: Any) -> None:
    """Compare tensors and arrays bit for bit, in dtype and shape, and what is made of them."""
    if isinstance(theirs, torch.Tensor):
        assert isinstance(ours, torch.Tensor)
        assert theirs.device == ours.device
        assert_same(theirs.cpu().numpy(), ours.cpu().numpy())
    elif isinstance(theirs, np.ndarray):
        assert isinstance(ours, np.ndarray)
        assert (theirs.dtype, theirs.shape) == (ours.dtype, ours.shape)
        assert theirs.tobytes() == ours.tobytes()
    elif isinstance(theirs, dict):
        assert list(theirs) == list(ours)
        for key in theirs:
            assert_same(theirs[key], ours[key])
    elif isinstance(theirs, tuple):
        assert type(theirs) is type(ours)
        assert len(theirs) == len(ours)
        for mine, yours in zip(theirs, ours, strict=True):
            assert_same(mine, yours)
    else:
        assert theirs == ours


def generators(seed: int = 0) -> list[np.random.MT19937]:
    """Make two generators in the state that `np.random.seed` brings the global one to."""
    made = []
    for _ in range(2):
        generator = np.random.MT19937()
        generator.state = cast("Any", np.random.RandomState(seed).get_state(legacy=False))
        made.append(generator)
    return made


@contextmanager
def the_global(generator: np.random.MT19937) -> Iterator[None]:
    """Let `np.random` draw from this one."""
    numpy_random: Any = np.random  # whose stub does not name these two
    before = numpy_random.get_bit_generator()
    numpy_random.set_bit_generator(generator)
    try:
        yield
    finally:
        numpy_random.set_bit_generator(before)


class Twins:
    """A buffer of SB3's class and one of ours, each with a global random state of its own.

    Args:
        name: The class, of `stable_baselines3.common.buffers` and of `fastreplay.sb3`.
        *args: Of its constructor.
        seed: Of `np.random`, before construction.
        **kwargs: Of its constructor.
    """

    def __init__(self, name: str, *args: Any, seed: int = 0, **kwargs: Any) -> None:
        self._generators = generators(seed)
        self.buffers: list[Any] = []
        for generator, module in zip(self._generators, (sb3_buffers, fastreplay.sb3), strict=True):
            with the_global(generator):
                self.buffers.append(getattr(module, name)(*args, **kwargs))

    @property
    def theirs(self) -> Any:
        return self.buffers[0]

    @property
    def ours(self) -> Any:
        return self.buffers[1]

    def do(self, action: Callable[[Any], Any]) -> Any:
        """Do the same to both and compare result or error, arrays, cursor and random state; return our result.

        What is refused has changed nothing of ours. SB3 stores field after field: what it had written is put back.
        """
        results: list[Any] = []
        before = _arrays(self.ours)
        for generator, buffer in zip(self._generators, self.buffers, strict=True):
            with the_global(generator):
                results.append(_outcome(action, buffer))
        assert_same(*results)
        if type(results[1]) is tuple and results[1][:1] == ("raised",):
            assert_same(before, _arrays(self.ours))
            for name, array in before.items():
                _overwrite(getattr(self.theirs, name), array)
        self.compare()
        return results[1]

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of both, with copies of the same arguments."""
        return self.do(lambda buffer: getattr(buffer, method)(*copy.deepcopy(args), **copy.deepcopy(kwargs)))

    def replace(self, make: Callable[[Any], Any]) -> None:
        """Replace both buffers by what `make` makes of them."""
        self.buffers = [make(buffer) for buffer in self.buffers]
        self.compare()

    def compare(self) -> None:
        theirs, ours = self.buffers
        for name in ("buffer_size", "n_envs", "pos", "full", "device", "obs_shape", "action_dim"):
            assert getattr(theirs, name) == getattr(ours, name), name
        assert theirs.size() == ours.size()
        for name in ARRAYS:
            assert hasattr(theirs, name) == hasattr(ours, name), name
            if hasattr(theirs, name):
                assert_same(getattr(theirs, name), _plain(getattr(ours, name)))
        mine, yours = (generator.state for generator in self._generators)
        assert np.array_equal(mine["state"]["key"], yours["state"]["key"])
        assert mine["state"]["pos"] == yours["state"]["pos"]


def _outcome(action: Callable[[Any], Any], buffer: Any) -> Any:
    try:
        return action(buffer)
    except Exception as error:  # noqa: BLE001  whatever it is, it has to be the same
        return ("raised", type(error).__name__, str(error))


def _arrays(buffer: Any) -> dict[str, Any]:
    return {name: copy.deepcopy(_plain(getattr(buffer, name))) for name in ARRAYS if hasattr(buffer, name)}


def _overwrite(arrays: Any, values: Any) -> None:
    for part, value in (
        zip(arrays.values(), values.values(), strict=True) if isinstance(arrays, dict) else [(arrays, values)]
    ):
        part[...] = value


def _plain(arrays: Any) -> Any:
    return dict(arrays) if isinstance(arrays, dict) else arrays


class Steps:
    """Draws what an environment's step may hand to `add`, in the forms that loops use."""

    def __init__(self, observation: spaces.Space[Any], action: spaces.Space[Any], n_envs: int, seed: int = 0) -> None:
        self.observation, self.action, self.n_envs = observation, action, n_envs
        self.rng = np.random.default_rng(seed)
        observation.seed(seed)
        action.seed(seed + 1)

    def draw(self) -> tuple[Any, ...]:
        n = self.n_envs
        reward = self.rng.normal(size=n)
        done = self.rng.random(n) < 0.15
        return (
            self._in_some_form(self.rows(self.observation)),
            self._in_some_form(self.rows(self.observation)),
            self._in_some_form(self.rows(self.action)),
            reward.astype(np.float32) if self.rng.random() < 0.5 else reward,
            done if self.rng.random() < 0.5 else done.astype(np.float32),
            self._infos(),
        )

    def rows(self, space: spaces.Space[Any]) -> Any:
        """Draw (n_envs, *shape) of a space, a dict of such of a Dict space."""
        rows = [space.sample() for _ in range(self.n_envs)]
        if isinstance(space, spaces.Dict):
            return {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        return np.stack(rows)

    def _in_some_form(self, rows: Any) -> Any:
        if isinstance(rows, dict):
            return rows
        if rows.dtype.kind == "f" and self.rng.random() < 0.3:
            return rows.astype(np.float64)
        return rows[0] if self.n_envs == 1 and self.rng.random() < 0.1 else rows

    def _infos(self) -> list[dict[str, Any]]:
        values: list[Any] = [{}, {}, {"TimeLimit.truncated": True}, {"TimeLimit.truncated": False}]
        values += [{"TimeLimit.truncated": np.True_}, {"episode": {"r": 1.0}}]
        return [copy.copy(values[self.rng.integers(len(values))]) for _ in range(self.n_envs)]


def pickled(buffer: Any) -> Any:
    return pickle.loads(pickle.dumps(buffer, pickle.HIGHEST_PROTOCOL))


def poke_dones(buffer: Any) -> None:
    """Do as SB3 does before it learns on after a load: mark the last step as an end."""
    buffer.dones[(buffer.pos - 1) % buffer.buffer_size] = True


def run_program(twins: Twins, steps: Steps, seed: int, num_operations: int = 60) -> None:
    """Do a random sequence of what agents and their users do to a buffer."""
    rng = np.random.default_rng(seed)
    rows = twins.ours.buffer_size
    is_ready = False
    for _ in range(num_operations):
        operation = rng.integers(20)
        if operation < 11 or not is_ready:
            twins.call("add", *steps.draw())
            is_ready = True
        elif operation < 14:
            twins.call("sample", int(rng.integers(1, 20)))
        elif operation == 14:
            twins.call("_get_samples", rng.integers(-rows, rows, size=int(rng.integers(1, 9))))
        elif operation == 15:
            twins.do(poke_dones)
        elif operation == 16:
            row, value = int(rng.integers(rows)), float(rng.normal())
            twins.do(lambda buffer: buffer.rewards.__setitem__((row, slice(None)), value))  # noqa: B023
            twins.do(lambda buffer: buffer.timeouts.__setitem__(row, value > 1))  # noqa: B023
        elif operation == 17:
            pos = int(rng.integers(1, rows + 1)) % rows
            twins.do(lambda buffer: setattr(buffer, "pos", pos))  # noqa: B023
            twins.do(lambda buffer: setattr(buffer, "full", True))
        elif operation == 18:
            twins.replace(pickled if rng.random() < 0.5 else copy.deepcopy)
        elif rng.random() < 0.2:
            twins.call("reset")
            is_ready = False
        else:
            twins.call("extend", *zip(*(steps.draw() for _ in range(3)), strict=True))
