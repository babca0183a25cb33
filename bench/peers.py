# SPDX-License-Identifier: MIT
"""The replay buffers that are measured, each called the way its own users call it.

Each adapter hands out closures: what runs inside one is what is timed. It holds the peer's own
call and what each of its callers must do around it between an environment's arrays and a loss
(torch.from_numpy where NumPy arrays come out), nothing else. Knows no clock and no target.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from absence import AbsentError
from workloads import FIELD_NAMES, Columns, Transition, Workload, chunks

if TYPE_CHECKING:
    from types import ModuleType

Call = Callable[[], Any]


def require(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        reason = f"{module} is not installed"
        raise AbsentError(reason) from error


class Peer(ABC):
    """One replay buffer of `capacity` transitions.

    Args:
        workload: The transition's shape.
        capacity: Transitions that the ring holds.
        num_envs: Transitions of one `extend`; only SB3 must know it in advance.

    Raises:
        AbsentError: If the peer is not installed or cannot hold the workload.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    kinds: ClassVar[frozenset[str]] = frozenset(("add", "extend", "sample"))  # what is measured

    def __init__(self, workload: Workload, capacity: int, *, num_envs: int = 1) -> None:
        self.workload = workload
        self.capacity = capacity
        self.num_envs = num_envs
        self._build(workload, capacity)

    @abstractmethod
    def _build(self, workload: Workload, capacity: int) -> None:
        """Make the peer's own buffer."""

    @abstractmethod
    def fill(self) -> None:
        """Store the transitions 0 to capacity - 1, so that every page of the ring is touched."""

    @abstractmethod
    def adder(self, rows: Sequence[Transition]) -> Call:
        """Return a call that adds each of the rows, one transition at a time."""

    @abstractmethod
    def extender(self, blocks: Sequence[Columns]) -> Call:
        """Return a call that adds each of the blocks, one call a block."""

    @abstractmethod
    def sampler(self, batch_size: int) -> Call:
        """Return a call that draws a minibatch of CPU tensors, all of them made."""

    def fields(self, batch: Any) -> Mapping[str, torch.Tensor]:
        """Name the tensors of what a sampler's call returned (untimed)."""
        return dict(zip(FIELD_NAMES, batch, strict=True))


class NumpyRing(Peer):
    """Preallocated arrays and fancy indexing: what most single-file training loops carry."""

    name = "numpy"
    label = "NumPy ring"

    def _build(self, workload: Workload, capacity: int) -> None:
        self.pos = 0
        self.full = False
        self.rng = np.random.default_rng(0)
        arrays = {name: np.zeros((capacity, *spec.shape), spec.dtype) for name, spec in workload.fields.items()}
        self.observation = arrays["observation"]
        self.action = arrays["action"]
        self.next_observation = arrays["next_observation"]
        self.reward = arrays["reward"]
        self.terminated = arrays["terminated"]

    def fill(self) -> None:
        for _, columns in chunks(self.workload, self.capacity):
            self.extend(*columns.values())

    def add(self, observation: Any, action: Any, next_observation: Any, reward: Any, terminated: Any) -> None:
        i = self.pos
        self.observation[i] = observation
        self.action[i] = action
        self.next_observation[i] = next_observation
        self.reward[i] = reward
        self.terminated[i] = terminated
        self._advance(1)

    def extend(self, observation: Any, action: Any, next_observation: Any, reward: Any, terminated: Any) -> None:
        n = len(reward)
        i = np.arange(self.pos, self.pos + n) % self.capacity
        self.observation[i] = observation
        self.action[i] = action
        self.next_observation[i] = next_observation
        self.reward[i] = reward
        self.terminated[i] = terminated
        self._advance(n)

    def sample(self, batch_size: int) -> tuple[torch.Tensor, ...]:
        i = self.rng.integers(0, self.capacity if self.full else self.pos, batch_size)
        return (
            torch.from_numpy(self.observation[i]),
            torch.from_numpy(self.action[i]),
            torch.from_numpy(self.next_observation[i]),
            torch.from_numpy(self.reward[i]),
            torch.from_numpy(self.terminated[i]),
        )

    def _advance(self, n: int) -> None:
        self.pos += n
        if self.pos >= self.capacity:
            self.full = True
            self.pos -= self.capacity

    def adder(self, rows: Sequence[Transition]) -> Call:
        add = self.add

        def run() -> None:
            for observation, action, next_observation, reward, terminated in rows:
                add(observation, action, next_observation, reward, terminated)

        return run

    def extender(self, blocks: Sequence[Columns]) -> Call:
        extend = self.extend
        prepared = [tuple(block.values()) for block in blocks]

        def run() -> None:
            for observation, action, next_observation, reward, terminated in prepared:
                extend(observation, action, next_observation, reward, terminated)

        return run

    def sampler(self, batch_size: int) -> Call:
        return partial(self.sample, batch_size)


class NumpySlices(NumpyRing):
    """The same ring, with slices instead of an index array while a block does not wrap around."""

    name = "numpy-slices"
    label = "NumPy ring, slices"
    kinds = frozenset(("extend",))

    def extend(self, observation: Any, action: Any, next_observation: Any, reward: Any, terminated: Any) -> None:
        start, stop = self.pos, self.pos + len(reward)
        if stop > self.capacity:
            super().extend(observation, action, next_observation, reward, terminated)
            return
        self.observation[start:stop] = observation
        self.action[start:stop] = action
        self.next_observation[start:stop] = next_observation
        self.reward[start:stop] = reward
        self.terminated[start:stop] = terminated
        self._advance(stop - start)


class StableBaselines3(Peer):
    """stable_baselines3.common.buffers.ReplayBuffer; its sample answers with tensors."""

    name = "sb3"
    label = "SB3"

    def _build(self, workload: Workload, capacity: int) -> None:
        buffers = require("stable_baselines3.common.buffers")
        spaces = require("gymnasium.spaces")
        observation, action = workload.observation, workload.action
        is_image = observation.dtype == "uint8"
        low, high = (0, 255) if is_image else (-np.inf, np.inf)
        self.buffer = buffers.ReplayBuffer(
            capacity,
            spaces.Box(low, high, observation.shape, np.dtype(observation.dtype).type),
            spaces.Box(-1.0, 1.0, action.shape) if action.shape else spaces.Discrete(18),
            device="cpu",
            n_envs=self.num_envs,
        )

    def fill(self) -> None:
        # As add does it, without a million Python calls.
        buffer = self.buffer
        capacity = buffer.buffer_size * self.num_envs
        arrays = {
            "observation": buffer.observations,
            "action": buffer.actions,
            "next_observation": buffer.next_observations,
            "reward": buffer.rewards,
            "terminated": buffer.dones,
        }
        flat = {name: array.reshape(capacity, -1) for name, array in arrays.items()}
        for start, columns in chunks(self.workload, capacity):
            for name, column in columns.items():
                flat[name][start : start + len(column)] = column.reshape(len(column), -1)
        buffer.timeouts[:] = 0
        buffer.pos = 0
        buffer.full = True

    def adder(self, rows: Sequence[Transition]) -> Call:
        # What SB3's DummyVecEnv of one environment hands out: a leading axis of 1.
        add = self.buffer.add
        prepared: list[tuple[Any, ...]] = [
            (
                np.asarray(observation)[None],
                np.asarray(next_observation)[None],
                np.asarray(action)[None],
                np.array([reward], np.float32),
                np.array([terminated]),
                [{}],
            )
            for observation, action, next_observation, reward, terminated in rows
        ]

        def run() -> None:
            for observation, next_observation, action, reward, done, infos in prepared:
                add(observation, next_observation, action, reward, done, infos)

        return run

    def extender(self, blocks: Sequence[Columns]) -> Call:
        add = self.buffer.add
        prepared: list[tuple[Any, ...]] = [
            (
                block["observation"],
                block["next_observation"],
                block["action"],
                block["reward"],
                block["terminated"],
                [{} for _ in range(self.num_envs)],
            )
            for block in blocks
        ]

        def run() -> None:
            for observation, next_observation, action, reward, done, infos in prepared:
                add(observation, next_observation, action, reward, done, infos)

        return run

    def sampler(self, batch_size: int) -> Call:
        return partial(self.buffer.sample, batch_size)

    def fields(self, batch: Any) -> Mapping[str, torch.Tensor]:
        return {
            "observation": batch.observations,
            "action": batch.actions,
            "next_observation": batch.next_observations,
            "reward": batch.rewards,
            "terminated": batch.dones,
        }


class Cpprb(Peer):
    """cpprb.ReplayBuffer; NumPy arrays out, scalars as (B, 1)."""

    name = "cpprb"
    label = "cpprb"

    def _build(self, workload: Workload, capacity: int) -> None:
        cpprb = require("cpprb")
        names = ("obs", "act", "next_obs", "rew", "done")
        self.buffer = cpprb.ReplayBuffer(
            capacity,
            {
                name: {"shape": spec.shape or 1, "dtype": np.dtype(spec.dtype)}
                for name, spec in zip(names, workload.fields.values(), strict=True)
            },
        )

    def fill(self) -> None:
        for _, columns in chunks(self.workload, self.capacity):
            observation, action, next_observation, reward, terminated = columns.values()
            self.buffer.add(obs=observation, act=action, next_obs=next_observation, rew=reward, done=terminated)

    def adder(self, rows: Sequence[Transition]) -> Call:
        add = self.buffer.add

        def run() -> None:
            for observation, action, next_observation, reward, terminated in rows:
                add(
                    obs=observation,
                    act=action,
                    next_obs=next_observation,
                    rew=reward,
                    done=terminated,
                )

        return run

    def extender(self, blocks: Sequence[Columns]) -> Call:
        return self.adder([tuple(block.values()) for block in blocks])  # type: ignore[misc]

    def sampler(self, batch_size: int) -> Call:
        sample = self.buffer.sample

        def run() -> tuple[torch.Tensor, ...]:
            batch = sample(batch_size)
            return (
                torch.from_numpy(batch["obs"]),
                torch.from_numpy(batch["act"]),
                torch.from_numpy(batch["next_obs"]),
                torch.from_numpy(batch["rew"]),
                torch.from_numpy(batch["done"]),
            )

        return run


class Rlox(Peer):
    """rlox.ReplayBuffer (Rust); float32 vectors only, NumPy arrays out, terminated as uint8."""

    name = "rlox"
    label = "rlox"

    def _build(self, workload: Workload, capacity: int) -> None:
        rlox = require("rlox")
        specs = (workload.observation, workload.action)
        if any(spec.dtype != "float32" or len(spec.shape) != 1 for spec in specs):
            reason = "float32 vectors only"
            raise AbsentError(reason)
        self.calls = 0
        self.buffer = rlox.ReplayBuffer(capacity, specs[0].shape[0], specs[1].shape[0])

    def fill(self) -> None:
        for _, columns in chunks(self.workload, self.capacity):
            self.extender([{**columns, "terminated": columns["terminated"].astype(bool)}])()

    def adder(self, rows: Sequence[Transition]) -> Call:
        push = self.buffer.push

        def run() -> None:
            for observation, action, next_observation, reward, terminated in rows:
                push(observation, action, reward, terminated, False, next_observation)

        return run

    def extender(self, blocks: Sequence[Columns]) -> Call:
        # push_batch takes flat arrays and bytes, so whoever calls it makes them: here views, where
        # rlox's own collector makes copies.
        push_batch = self.buffer.push_batch
        prepared = [(*block.values(), np.zeros(len(block["reward"]), np.bool_)) for block in blocks]

        def run() -> None:
            for observation, action, next_observation, reward, terminated, truncated in prepared:
                push_batch(
                    observation.reshape(-1),
                    next_observation.reshape(-1),
                    action.reshape(-1),
                    reward,
                    terminated.view(np.uint8),
                    truncated.view(np.uint8),
                )

        return run

    def sampler(self, batch_size: int) -> Call:
        sample = self.buffer.sample

        def run() -> tuple[torch.Tensor, ...]:
            self.calls += 1  # the seed of this call: rlox keeps no generator
            batch = sample(batch_size, self.calls)
            return (
                torch.from_numpy(batch["obs"]),
                torch.from_numpy(batch["actions"]),
                torch.from_numpy(batch["next_obs"]),
                torch.from_numpy(batch["rewards"]),
                torch.from_numpy(batch["terminated"]),
            )

        return run


class TorchRL(Peer):
    """torchrl.data.ReplayBuffer over a LazyTensorStorage; takes and gives TensorDicts, which its collectors make."""

    name = "torchrl"
    label = "TorchRL"

    def _build(self, workload: Workload, capacity: int) -> None:  # noqa: ARG002
        data, self.tensordict = require("torchrl.data"), require("tensordict").TensorDict
        self.buffer = data.ReplayBuffer(storage=data.LazyTensorStorage(capacity))

    def _as_tensordict(self, columns: Mapping[str, Any], batch_shape: list[int]) -> Any:
        # Its storage has the dtypes of the first insert, and refuses others: a caller gives flags as there.
        dtypes = {name: getattr(torch, spec.dtype) for name, spec in self.workload.fields.items()}
        return self.tensordict(
            {name: torch.as_tensor(value, dtype=dtypes[name]) for name, value in columns.items()}, batch_shape
        )

    def fill(self) -> None:
        for _, columns in chunks(self.workload, self.capacity):
            self.extender([columns])()

    def adder(self, rows: Sequence[Transition]) -> Call:
        add = self.buffer.add
        prepared = [self._as_tensordict(dict(zip(FIELD_NAMES, row, strict=True)), []) for row in rows]

        def run() -> None:
            for transition in prepared:
                add(transition)

        return run

    def extender(self, blocks: Sequence[Columns]) -> Call:
        extend = self.buffer.extend
        prepared = [self._as_tensordict(block, [len(block["reward"])]) for block in blocks]

        def run() -> None:
            for transitions in prepared:
                extend(transitions)

        return run

    def sampler(self, batch_size: int) -> Call:
        return partial(self.buffer.sample, batch_size)

    def fields(self, batch: Any) -> Mapping[str, torch.Tensor]:
        return {name: batch[name] for name in FIELD_NAMES}


class Fastreplay(Peer):
    """fastreplay.ReplayBuffer: keyword add and extend, a fresh minibatch from each sample."""

    name = "fastreplay"
    label = "fastreplay"

    def _build(self, workload: Workload, capacity: int) -> None:
        fastreplay = require("fastreplay")
        fields = {name: (spec.shape, spec.dtype) for name, spec in workload.fields.items()}
        self.buffer = fastreplay.ReplayBuffer(capacity, fields, seed=0)

    def fill(self) -> None:
        for _, columns in chunks(self.workload, self.capacity):
            self.buffer.extend(**columns)

    def adder(self, rows: Sequence[Transition]) -> Call:
        add = self.buffer.add

        def run() -> None:
            for observation, action, next_observation, reward, terminated in rows:
                add(
                    observation=observation,
                    action=action,
                    next_observation=next_observation,
                    reward=reward,
                    terminated=terminated,
                )

        return run

    def extender(self, blocks: Sequence[Columns]) -> Call:
        extend = self.buffer.extend
        prepared = [tuple(block.values()) for block in blocks]

        def run() -> None:
            for observation, action, next_observation, reward, terminated in prepared:
                extend(
                    observation=observation,
                    action=action,
                    next_observation=next_observation,
                    reward=reward,
                    terminated=terminated,
                )

        return run

    def sampler(self, batch_size: int) -> Call:
        sample = self.buffer.sample

        def run() -> tuple[torch.Tensor, ...]:
            # Unpacked, so that a minibatch which made its tensors on first use would pay for them.
            observation, action, next_observation, reward, terminated = sample(batch_size)
            return observation, action, next_observation, reward, terminated

        return run


class FastreplayPositional(Fastreplay):
    """The same buffer, with add and extend called with values in schema order."""

    name = "fastreplay-positional"
    label = "fastreplay, positional"
    kinds = frozenset(("add", "extend"))

    def adder(self, rows: Sequence[Transition]) -> Call:
        add = self.buffer.add

        def run() -> None:
            for observation, action, next_observation, reward, terminated in rows:
                add(observation, action, next_observation, reward, terminated)

        return run

    def extender(self, blocks: Sequence[Columns]) -> Call:
        extend = self.buffer.extend
        prepared = [tuple(block.values()) for block in blocks]

        def run() -> None:
            for observation, action, next_observation, reward, terminated in prepared:
                extend(observation, action, next_observation, reward, terminated)

        return run


class FastreplayOut(Fastreplay):
    """The same buffer, sampling into one minibatch that the caller owns."""

    name = "fastreplay-out"
    label = "fastreplay `out=`"
    kinds = frozenset(("sample",))

    def sampler(self, batch_size: int) -> Call:
        out = self.buffer.sample(batch_size)
        tuple(out)  # its tensors exist from here on
        return partial(self.buffer.sample, batch_size, out=out)


PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (
        NumpyRing,
        NumpySlices,
        StableBaselines3,
        Cpprb,
        Rlox,
        TorchRL,
        Fastreplay,
        FastreplayPositional,
        FastreplayOut,
    )
}
RIVALS = ("numpy", "sb3", "cpprb", "rlox")
