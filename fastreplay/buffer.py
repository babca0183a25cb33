# SPDX-License-Identifier: MIT
"""The replay buffer: a ring of transitions with uniform minibatches."""

from __future__ import annotations

import operator
import os
import sys
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, Literal, SupportsFloat, TypedDict, TypeVar, cast, overload

import numpy as np

from fastreplay import _core, _fastpath
from fastreplay._arguments import (
    check_output,
    checked_addresses,
    checked_batch_size,
    checked_device,
    checked_index,
    checked_timeout,
    key_of,
    readable_bytes,
)
from fastreplay._blocks import Block, BlockPool
from fastreplay._limits import check_memory
from fastreplay.minibatch import Minibatch
from fastreplay.schema import Schema

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import gymnasium as gym
    import torch
    from numpy.typing import ArrayLike, DTypeLike, NDArray
    from typing_extensions import Self

    from fastreplay._arguments import Seed
    from fastreplay.schema import FieldLike

    # Arrays, torch CPU tensors, numbers, nested lists; dicts and tuples for nested names.
    TransitionValue = ArrayLike | torch.Tensor | SupportsFloat | Mapping[str, object]

__all__ = ["ReplayBuffer", "RngState", "Stats"]

ArrayT = TypeVar("ArrayT")  # torch.Tensor or numpy.ndarray

# Transitions copied at once into a pickle.
_SNAPSHOT_ROWS = 4096
# A slice has no index that could be out of range: where it meets a writer, it is read again.
_SLICE_TRIES = 1000


class RngState(TypedDict):
    """The generator's whole state: its key and the number of sample calls made."""

    key: list[int]
    calls: int


class Stats(TypedDict):
    """Counters of a buffer, since it was made."""

    inserted: int  # transitions inserted
    overwritten: int  # of these, lost because the buffer was full
    sampled: int  # rows handed out by sample()
    redraws: int  # rows drawn again because a writer overwrote them while they were copied
    bytes: int  # memory of the ring


class ReplayBuffer(_fastpath.Inserter, Generic[ArrayT]):
    """A ring of transitions with uniform minibatches.

    Experience replay (Lin 1992; Mnih et al. 2015): store every transition, overwrite the oldest,
    learn from uniform random minibatches. Transitions lie as packed records in native memory; a
    minibatch is drawn and gathered by one native call into recycled, contiguous memory.

    Args:
        capacity: Transitions that the buffer holds at most.
        fields: A `Schema`, or a mapping of name to `Field`, `(shape, dtype)`, or a bare shape tuple
            (float32).
        seed: Seeds the buffer's own generator: an int, a SeedSequence, a NumPy Generator (a seed is
            drawn from it), or None for fresh entropy. The same seed and the same calls give the
            same minibatches on every platform.
        device: Torch device of the minibatches.
        output: "torch" for tensors, "numpy" for arrays.
        timeout: Seconds that an insert waits at most for another thread's unfinished insert a whole lap
            behind; None for as long as it takes.

    Raises:
        TypeError: An argument is of the wrong type, or torch has no dtype for a field.
        ValueError: Capacity below 1, a malformed schema, an unknown output, a device without torch, a
            negative timeout.
        RuntimeError: The device cannot be had.
        MemoryError: The buffer would not fit into this machine's memory.

    Thread safety:
        Every method may be called from any thread at any time. A minibatch holds whole transitions,
        each drawn uniformly from those that were in the buffer when it was checked, which is after it
        was copied. A batch that `extend` inserts is not atomic, its rows are. After a fork the child has
        the buffer as it was, less the inserts that other threads had not finished.

    Example:
        >>> import fastreplay as fr
        >>> fields = {"observation": (3,), "action": ((), "int64")}
        >>> buffer = fr.ReplayBuffer(1000, fields, seed=0)
        >>> for step in range(10):
        ...     buffer.add(observation=[step, 0, 1], action=step % 2)
        >>> batch = buffer.sample(4)
        >>> batch.observation.shape, batch.action.dtype
        (torch.Size([4, 3]), torch.int64)
        >>> buffer
        ReplayBuffer(10 of 1000 transitions, 36 kB: observation (3,) float32, action () int64; torch, cpu)
    """

    _num_spawned = 0

    if TYPE_CHECKING:
        # What type checkers and editors see; the docstrings stand in _fastpath.pyx.
        def add(self, *values: TransitionValue, **fields: TransitionValue) -> None:
            """Insert one transition, given by field name or in schema order."""

        def extend(self, *values: TransitionValue, **fields: TransitionValue) -> None:
            """Insert n transitions, whose number is the leading axis of every field."""
    else:
        add = _fastpath.ADD
        extend = _fastpath.EXTEND

    @overload
    def __init__(
        self: ReplayBuffer[torch.Tensor],
        capacity: int,
        fields: Mapping[str, FieldLike],
        *,
        seed: Seed = None,
        device: torch.device | str | int = "cpu",
        output: Literal["torch"] = "torch",
        timeout: float | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self: ReplayBuffer[NDArray[np.generic]],
        capacity: int,
        fields: Mapping[str, FieldLike],
        *,
        seed: Seed = None,
        device: torch.device | str | int = "cpu",
        output: Literal["numpy"],
        timeout: float | None = None,
    ) -> None: ...
    def __init__(
        self,
        capacity: int,
        fields: Mapping[str, FieldLike],
        *,
        seed: Seed = None,
        device: torch.device | str | int = "cpu",
        output: Literal["torch", "numpy"] = "torch",
        timeout: float | None = None,
    ) -> None:
        capacity = checked_index("capacity", capacity)
        if capacity <= 0:
            raise ValueError(f"capacity: expected at least 1, got {capacity}")
        self._schema = fields if isinstance(fields, Schema) else Schema(fields)
        check_output(self._schema, output, device)
        check_memory(self._schema.nbytes(capacity), capacity)
        self._output = output
        self._timeout = checked_timeout(timeout)
        self._device = checked_device(device)
        self._ring = _core.Ring(self._schema.sizes, capacity)
        self._begin(_core.Sampler(key_of(seed)))

    def _begin(self, sampler: _core.Sampler) -> None:
        self._sampler = sampler
        self._pool = BlockPool(self._new_block)
        super().__init__(self._ring, self._schema, self._timeout)
        _living.add(self)

    @overload
    @classmethod
    def from_env(
        cls,
        env: gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any],
        capacity: int,
        *,
        dtype: DTypeLike | None = None,
        extra: Mapping[str, FieldLike] | None = None,
        seed: Seed = None,
        device: torch.device | str | int = "cpu",
        output: Literal["torch"] = "torch",
        timeout: float | None = None,
    ) -> ReplayBuffer[torch.Tensor]: ...
    @overload
    @classmethod
    def from_env(
        cls,
        env: gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any],
        capacity: int,
        *,
        dtype: DTypeLike | None = None,
        extra: Mapping[str, FieldLike] | None = None,
        seed: Seed = None,
        device: torch.device | str | int = "cpu",
        output: Literal["numpy"],
        timeout: float | None = None,
    ) -> ReplayBuffer[NDArray[np.generic]]: ...
    @classmethod
    def from_env(
        cls,
        env: gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any],
        capacity: int,
        *,
        dtype: DTypeLike | None = None,
        extra: Mapping[str, FieldLike] | None = None,
        seed: Seed = None,
        device: torch.device | str | int = "cpu",
        output: Literal["torch", "numpy"] = "torch",
        timeout: float | None = None,
    ) -> ReplayBuffer[torch.Tensor] | ReplayBuffer[NDArray[np.generic]]:
        """Make a buffer for the transitions of a Gymnasium environment.

        Args:
            env: An environment or a vector environment. One transition is that of a single
                environment; `extend` takes a vector step.
            capacity: Transitions that the buffer holds at most.
            dtype: Stores floating-point observations and actions in this dtype.
            extra: Further fields.
            seed: As in the constructor.
            device: As in the constructor.
            output: As in the constructor.
            timeout: As in the constructor.

        Returns:
            A buffer with the fields of `Schema.from_spaces`.

        Raises:
            TypeError: A space is of a kind that has no fixed shape.
        """
        observation_space = getattr(env, "single_observation_space", env.observation_space)
        action_space = getattr(env, "single_action_space", env.action_space)
        schema = Schema.from_spaces(observation_space, action_space, dtype=dtype, extra=extra)
        return cls(capacity, schema, seed=seed, device=device, output=output, timeout=timeout)

    @property
    def schema(self) -> Schema:
        """The fields of a transition."""
        return self._schema

    @property
    def capacity(self) -> int:
        """Transitions that the buffer holds at most."""
        return self._ring.capacity

    @property
    def nbytes(self) -> int:
        """Bytes of the ring; `Schema.nbytes(capacity)` tells them beforehand."""
        return self._ring.num_bytes

    @property
    def rng_state(self) -> RngState:
        """The generator's state, to be saved and set again.

        Setting it repeats the minibatches from that point on, given the same contents.
        """
        return {"key": list(self._sampler.key), "calls": self._sampler.calls}

    @rng_state.setter
    def rng_state(self, state: RngState) -> None:
        try:
            first, second = map(operator.index, state["key"])
            calls = operator.index(state["calls"])
            if not all(0 <= number < 2**64 for number in (first, second, calls)):
                raise ValueError("not 64-bit numbers")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"rng_state: expected {{'key': [int, int], 'calls': int}}, got {state!r}") from error
        old = self._sampler
        self._sampler = _core.Sampler((first, second), calls, old.num_sampled, old.num_redraws)

    def __len__(self) -> int:
        """Number of transitions up to the oldest unfinished insert; `sample` draws from later ones too."""
        return len(self._ring)

    def sample(self, batch_size: int, *, out: Minibatch[ArrayT] | None = None) -> Minibatch[ArrayT]:
        """Draw a minibatch uniformly, with replacement, over the stored transitions.

        Args:
            batch_size: Number of transitions, at least 1.
            out: A minibatch of this batch size from this buffer or one of the same schema. It is
                overwritten and returned, and no object is made.

        Returns:
            A minibatch that is the caller's to keep.

        Raises:
            ValueError: The buffer is empty, batch_size is below 1, or `out` does not fit.
            TypeError: batch_size is no integer, or `out` no minibatch.

        Thread safety:
            May be called from any thread, while others insert and sample; each needs its own `out`.
        """
        if type(batch_size) is not int or not 0 < batch_size <= sys.maxsize:
            batch_size = checked_batch_size(batch_size)
        if out is not None:
            if not self._sampler.sample(self._ring, self._block_of(out, batch_size).native):
                raise ValueError("sample: the buffer is empty")
            return out
        block = self._pool.take(batch_size)
        if not self._sampler.sample(self._ring, block.native):
            raise ValueError("sample: the buffer is empty")
        return self._give(block)

    def spawn(self, n: int) -> list[Self]:
        """Make n more faces of this buffer: the same transitions, each with a generator of its own.

        One sampler a thread makes each thread's minibatches reproducible by themselves, whatever the
        others do, given the same contents. The generators follow from this buffer's key and the number
        of faces spawned before, as in `numpy.random.SeedSequence.spawn`.

        Args:
            n: How many.

        Returns:
            Buffers whose `rng_state` and sampling counters are their own.

        Raises:
            TypeError, ValueError: `n` is no integer, or negative.

        Thread safety:
            May be called from any thread; what each call gets depends on their order.
        """
        n = checked_index("n", n)
        if n < 0:
            raise ValueError(f"n: expected a non-negative integer, got {n}")
        first = self._num_spawned
        self._num_spawned += n
        return [self._face(np.random.SeedSequence(self._sampler.key, spawn_key=(first + i,))) for i in range(n)]

    def _face(self, seed: np.random.SeedSequence) -> Self:
        face = type(self).__new__(type(self))
        face.__dict__.update(self.__dict__)
        face._num_spawned = 0
        face._begin(_core.Sampler(key_of(seed)))
        return face

    def gather(
        self, slots: Sequence[int] | NDArray[np.integer], *, out: Minibatch[ArrayT] | None = None
    ) -> Minibatch[ArrayT]:
        """Read transitions by ring slot (`ticket % capacity`).

        Args:
            slots: (B,) integers in [0, capacity).
            out: A minibatch of batch size B to write into.

        Returns:
            The transitions in the order of `slots`.

        Raises:
            IndexError: A slot holds no transition.
            RuntimeError: Other threads overwrote the transitions at each of many tries.
            TypeError: The slots are no integers.
            ValueError: They have more than one dimension, or `out` does not fit.

        Thread safety:
            May be called from any thread.
        """
        addresses = checked_addresses("slots", slots)
        if out is None:
            return self._read(addresses, by_slot=True)
        self._ring.read(True, addresses, self._block_of(out, len(addresses)).native)
        return out

    def __getitem__(self, index: int | slice | Sequence[int] | NDArray[np.integer]) -> Minibatch[ArrayT]:
        """Read transitions by age: 0 is the oldest, -1 the newest.

        Args:
            index: An integer gives one transition, its fields without a batch axis; a slice or (B,)
                integers give a minibatch.

        Raises:
            IndexError: Out of range.
            RuntimeError: Other threads overwrote the transitions at each of many tries.
            TypeError: No integer, slice or integers.

        Thread safety:
            May be called from any thread; the transitions read are of one moment.
        """
        if isinstance(index, slice):
            return self._read_slice(index)
        if isinstance(index, (int, np.integer)) and not isinstance(index, bool):
            batch = self._read(checked_addresses("index", [index]), by_slot=False)
            values = tuple(value[0] for value in batch)  # type: ignore[index]
            ticket = batch.ticket[0]  # type: ignore[index]
            if self._output == "numpy":
                values, ticket = tuple(np.asarray(value) for value in values), np.asarray(ticket)
            return Minibatch(self._schema, cast("tuple[ArrayT, ...]", values), None, None, cast("ArrayT", ticket))
        return self._read(checked_addresses("index", index), by_slot=False)

    def view(self, name: str) -> NDArray[np.generic]:
        """Return a live, writable, strided (capacity, *shape) array of one field, without a copy.

        Row `ticket % capacity` is the field of that ticket. Unchecked: while other threads insert,
        rows may change as they are read.

        Raises:
            KeyError: There is no such field.
        """
        if name not in self._schema:
            raise KeyError(f"{name!r}; the fields are {', '.join(self._schema)}")
        field = self._schema[name]
        return self._ring.column(self._schema.position(name), field.dtype, list(field.shape))

    def clear(self) -> None:
        """Forget every transition. Tickets and the generator go on.

        Thread safety:
            May be called from any thread; transitions whose insert is under way are forgotten too.
        """
        self._ring.clear()

    def stats(self) -> Stats:
        """Return the counters since the buffer was made.

        Thread safety:
            May be called from any thread; the counters are read one after another.
        """
        return {
            "inserted": self._ring.num_inserted,
            "overwritten": self._ring.num_overwritten,
            "sampled": self._sampler.num_sampled,
            "redraws": self._sampler.num_redraws,
            "bytes": self._ring.num_bytes,
        }

    def __repr__(self) -> str:
        fields = ", ".join(f"{name} {field.shape} {field.dtype.name}" for name, field in self._schema.items())
        return (
            f"{type(self).__name__}({len(self)} of {self.capacity} transitions, {readable_bytes(self.nbytes)}: "
            f"{fields}; {self._output}, {self._device})"
        )

    def __reduce__(self) -> tuple[object, ...]:
        first, columns = self._snapshot()
        state = {
            "first": first,
            "columns": columns,
            "rng_state": self.rng_state,
            "extra": {k: v for k, v in self.__dict__.items() if k not in _NATIVE_ATTRIBUTES},
        }
        options = {"device": str(self._device), "output": self._output, "timeout": self._timeout}
        return _rebuild, (type(self), self.capacity, self._schema, options), state

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(cast("dict[str, object]", state["extra"]))
        self._ring.start_at(cast("int", state["first"]))
        self.extend(*cast("tuple[NDArray[np.generic], ...]", state["columns"]))
        self.rng_state = cast("RngState", state["rng_state"])

    def _snapshot(self) -> tuple[int, tuple[NDArray[np.generic], ...]]:
        """Copy the published transitions without stopping writers.

        Copied in ascending order: what writers overwrite meanwhile is at the beginning, and is
        dropped.
        """
        first, end = self._ring.window()
        columns = tuple(np.empty((end - first, *field.shape), field.dtype) for field in self._schema.values())
        whole = first
        for start in range(first, end, _SNAPSHOT_ROWS):
            stop = min(start + _SNAPSHOT_ROWS, end)
            block = self._new_block(stop - start)
            whole = max(whole, min(self._ring.read_run(start, block.native), stop))
            for column, template in zip(columns, block.templates, strict=True):
                column[start - first : stop - first] = template
        return whole, tuple(column[whole - first :] for column in columns)

    def _new_block(self, batch_size: int) -> Block:
        return Block(_core.Block(self._ring, batch_size), self._schema, batch_size)

    def _read_slice(self, index: slice) -> Minibatch[ArrayT]:
        for _ in range(_SLICE_TRIES):
            with suppress(IndexError):  # writers that reserved more left fewer finished ones than there were
                return self._read(np.arange(*index.indices(len(self)), dtype=np.int64), by_slot=False)
        return self._read(np.arange(*index.indices(len(self)), dtype=np.int64), by_slot=False)

    def _read(self, addresses: NDArray[np.int64], *, by_slot: bool) -> Minibatch[ArrayT]:
        block = self._pool.take(len(addresses))
        self._ring.read(by_slot, addresses, block.native)
        return self._give(block)

    def _give(self, block: Block) -> Minibatch[ArrayT]:
        values = block.arrays() if self._output == "numpy" else block.tensors.hand_out()
        batch: Minibatch[ArrayT] = Minibatch(self._schema, cast("tuple[ArrayT, ...]", values), block, block.batch_size)
        self._pool.keep(block)
        return batch if self._device == "cpu" else cast("Minibatch[ArrayT]", batch.to(self._device))

    def _block_of(self, out: Minibatch[ArrayT], batch_size: int) -> Block:
        if not isinstance(out, Minibatch):
            raise TypeError(f"out: expected a Minibatch, got {type(out).__name__}")
        block = out._block
        if block is None:
            raise ValueError("out: expected a minibatch that sample() or gather() made on the CPU")
        if block.schema is not self._schema and block.schema != self._schema:
            raise ValueError(f"out: expected a minibatch of {self._schema}, got one of {block.schema}")
        if block.batch_size != batch_size:
            raise ValueError(f"out: expected batch size {batch_size}, got {block.batch_size}")
        return block


# What __init__ makes; the rest of __dict__ is a subclass's own.
_NATIVE_ATTRIBUTES = frozenset(["_schema", "_output", "_timeout", "_device", "_sampler", "_ring", "_pool"])

_living: weakref.WeakSet[ReplayBuffer[Any]] = weakref.WeakSet()


def _discard_unfinished() -> None:
    """In the child after a fork, where no other thread is left to finish its insert."""
    for buffer in list(_living):
        buffer._ring.discard_unfinished()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_discard_unfinished)


def _rebuild(
    cls: type[ReplayBuffer[ArrayT]], capacity: int, schema: Schema, options: dict[str, Any]
) -> ReplayBuffer[ArrayT]:
    buffer = cls.__new__(cls)
    ReplayBuffer.__init__(buffer, capacity, schema, **options)  # type: ignore[arg-type]
    return buffer
