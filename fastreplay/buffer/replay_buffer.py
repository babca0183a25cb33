# SPDX-License-Identifier: MIT
"""The replay buffer: a ring of transitions with uniform minibatches."""

from __future__ import annotations

import operator
import os
import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, SupportsFloat, TypedDict, TypeVar, cast, overload

import numpy as np

from fastreplay import _core
from fastreplay.batch.block import HostSupply, Supply, Waits
from fastreplay.batch.loader import Loader
from fastreplay.batch.minibatch import Minibatch
from fastreplay.buffer import insert
from fastreplay.buffer.snapshot import ReceivedTransitions, Transitions, check_contents, check_keys, checked_ticket
from fastreplay.gpu.mirror import Resident, ResidentSampler, ResidentSupply
from fastreplay.gpu.pinned import Pipeline
from fastreplay.schema.schema import Schema
from fastreplay.support.checks import (
    check_output,
    check_storage,
    checked_addresses,
    checked_batch_size,
    checked_depth,
    checked_device,
    checked_index,
    checked_steps,
    checked_timeout,
    key_of,
    readable_bytes,
)
from fastreplay.support.living import Living
from fastreplay.support.memory_limit import check_memory, new_ring

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import gymnasium as gym
    import torch
    from numpy.typing import ArrayLike, DTypeLike, NDArray
    from typing_extensions import Self

    from fastreplay.gpu.pinned import Device
    from fastreplay.schema.schema import FieldLike
    from fastreplay.support.checks import Seed, Storage
    from fastreplay.support.saving import Format

    # Arrays, torch CPU tensors, numbers, nested lists; dicts and tuples for nested names.
    TransitionValue = ArrayLike | torch.Tensor | SupportsFloat | Mapping[str, object]

__all__ = ["ReplayBuffer", "RngState", "Stats"]

ArrayT = TypeVar("ArrayT")  # torch.Tensor or numpy.ndarray

# Of Python's objects that a face is made of, at least.
_FACE_BYTES = 1024

# A slice has no index that could be out of range: where it meets a writer, it is read again.
_SLICE_TRIES = 1000


class RngState(TypedDict):
    """The generator's whole state: its key and the number of sample calls made."""

    key: list[int]
    calls: int


class _TransferStats(TypedDict):
    pinned_bytes: int  # page-locked memory of minibatches on their way to a GPU
    blocks_in_flight: int  # minibatches being gathered or copied, and those that loaders have ready
    waits: int  # how often sample() or a loader had to wait: for a copy that was still under way, or its thread
    wait_s: float  # the seconds that this took in all


class Stats(_TransferStats):
    """Counters of a buffer, since it was made."""

    inserted: int  # transitions inserted
    overwritten: int  # of these, lost because the buffer was full
    sampled: int  # rows drawn by sample() and loaders
    redraws: int  # rows drawn again because a writer overwrote them while they were copied
    bytes: int  # memory of the ring


class ReplayBuffer(insert.Inserter, Generic[ArrayT]):
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
        device: Torch device of the minibatches. On a CUDA device they are gathered into page-locked memory and sent
            by one asynchronous copy on a stream of the buffer's own; the tensors are for the stream that is current
            at the call, which is made to wait for the copy. The host is not.
        storage: "host", or "cuda" with a CUDA `device`: that device's memory holds the ring too, gets what was inserted
            before each minibatch, and draws and gathers the minibatches itself, those that the CPU would draw. They
            can be part of a CUDA graph (`flush`). Asking for `rng_state` or `stats()` then waits for the device.
        output: "torch" for tensors, "numpy" for arrays.
        timeout: Seconds that an insert waits at most for another thread's unfinished insert a whole lap
            behind; None for as long as it takes.

    Raises:
        TypeError: An argument is of the wrong type, or torch has no dtype for a field.
        ValueError: Capacity below 1, a malformed schema, an unknown output, a device without torch, a
            negative timeout.
        RuntimeError: The device, or page-locked memory for it, cannot be had; with storage="cuda", fastreplay's CUDA
            part neither. Or `__init__` was called before.
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

    if TYPE_CHECKING:
        # What type checkers and editors see; the docstrings stand in insert.pyx.
        def add(self, *values: TransitionValue, **fields: TransitionValue) -> None:
            """Insert one transition, given by field name or in schema order."""

        def extend(self, *values: TransitionValue, **fields: TransitionValue) -> None:
            """Insert n transitions, whose number is the leading axis of every field."""
    else:
        add = insert.ADD
        extend = insert.EXTEND

    @overload
    def __init__(
        self: ReplayBuffer[torch.Tensor],
        capacity: int,
        fields: Mapping[str, FieldLike],
        *,
        seed: Seed = None,
        device: torch.device | str | int = "cpu",
        storage: Storage = "host",
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
        storage: Storage = "host",
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
        storage: Storage = "host",
        output: Literal["torch", "numpy"] = "torch",
        timeout: float | None = None,
    ) -> None:
        self._refuse_second_init()
        capacity = checked_index("capacity", capacity)
        if capacity <= 0:
            raise ValueError(f"capacity: expected at least 1, got {capacity}")
        self._schema = fields if isinstance(fields, Schema) else Schema(fields)
        check_output(self._schema, output, device)
        check_memory("capacity", f"{capacity} transitions", self._schema.nbytes(capacity))
        self._output = output
        self._timeout = checked_timeout(timeout)
        self._device = checked_device(device)
        check_storage(storage, self._device)
        self._storage: Storage = storage
        self._accelerator = _accelerator(self._device)
        self._ring = new_ring(self._schema.sizes, capacity, "capacity")
        self._waits = Waits()
        self._resident = self._new_resident()
        self._begin(key_of(seed))

    def _begin(self, key: tuple[int, int]) -> None:
        self._sampler = _core.Sampler(key) if self._resident is None else ResidentSampler(self._resident, key)
        self._loaders: Living[Loader[ArrayT]] = Living()
        self._num_spawned = _core.Counter()
        self._supply = self._new_supply()
        self._drawn_supply = self._new_drawn_supply()
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
        storage: Storage = "host",
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
        storage: Storage = "host",
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
        storage: Storage = "host",
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
            storage: As in the constructor.
            output: As in the constructor.
            timeout: As in the constructor.

        Returns:
            A buffer with the fields of `Schema.from_spaces`.

        Raises:
            TypeError: A space is of a kind that has no fixed shape; or as the constructor.
            ValueError: `extra` names a field that the spaces give; or as the constructor.
            RuntimeError, MemoryError: As the constructor.
        """
        observation_space = getattr(env, "single_observation_space", env.observation_space)
        action_space = getattr(env, "single_action_space", env.action_space)
        schema = Schema.from_spaces(observation_space, action_space, dtype=dtype, extra=extra)
        return cls(capacity, schema, seed=seed, device=device, storage=storage, output=output, timeout=timeout)

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

        Raises:
            ValueError: What is set is no such state.
        """
        return {"key": list(self._sampler.key), "calls": self._sampler.calls}

    @rng_state.setter
    def rng_state(self, state: RngState) -> None:
        self._restart(*_checked_rng_state(state))

    def _restart(self, key: tuple[int, int], calls: int) -> None:
        old = self._sampler
        if isinstance(old, ResidentSampler):
            old.restart(key, calls, old.num_sampled)
        else:
            self._sampler = _core.Sampler(key, calls, old.num_sampled, old.num_redraws)

    def __len__(self) -> int:
        """Number of transitions up to the oldest unfinished insert; `sample` draws from later ones too."""
        return len(self._ring)

    def sample(self, batch_size: int, *, out: Minibatch[ArrayT] | None = None) -> Minibatch[ArrayT]:
        """Draw a minibatch uniformly, with replacement, over the stored transitions.

        Args:
            batch_size: Number of transitions, at least 1.
            out: A minibatch of this batch size and device from this buffer or one of the same schema. It is
                overwritten and returned, and no object is made. With storage="cuda", it is one of this buffer or its
                faces. On a GPU, work that was queued before sees
                the old rows, later work the new; the host waits if the last copy into it is still under way.

        Returns:
            A minibatch that is the caller's to keep.

        Raises:
            ValueError: The buffer is empty, batch_size is below 1, or `out` does not fit.
            TypeError: batch_size is no integer, or `out` no minibatch.
            MemoryError: There is no memory for a minibatch of this size.
            RuntimeError: The device refuses; or a graph is being captured, and there is no `out`.

        Thread safety:
            May be called from any thread, while others insert and sample; each needs its own `out`.
        """
        if type(batch_size) is not int or not 0 < batch_size <= sys.maxsize:
            batch_size = checked_batch_size(batch_size)
        if out is not None:
            block = self._block_of(out, batch_size, self._drawn_supply)
            if not block.refill(self._sampler.sample, self._ring):
                raise ValueError("sample: the buffer is empty")
            return out
        block = self._drawn_supply.take(batch_size)
        try:
            if not self._sampler.sample(self._ring, block.native):
                raise ValueError("sample: the buffer is empty")
        except BaseException:
            self._drawn_supply.cancel(block)
            raise
        return self._give(self._drawn_supply, block)

    def loader(self, batch_size: int, *, depth: int = 2, steps: int | None = None) -> Loader[ArrayT]:
        """Iterate over minibatches that a native thread draws ahead.

        Args:
            batch_size: Number of transitions of each, at least 1.
            depth: How many minibatches are gathered (and on a GPU copied) ahead of the consumer.
            steps: How many minibatches there are in all; None for no end.

        Returns:
            An iterator that is also a context manager; see `Loader` for what it draws and when it ends. It goes on
            with the generator that the buffer has now, also if `rng_state` is set. With storage="cuda" there is no
            thread: the draws ahead wait in the device's queue, and follow `rng_state`.

        Raises:
            TypeError: An argument is no integer.
            ValueError: batch_size or depth is below 1, or steps below 0.
            MemoryError: There is no memory for minibatches of this size.
            RuntimeError: The minibatches are for a GPU, and this build of fastreplay has no CUDA part.

        Thread safety:
            May be called from any thread.
        """
        batch_size = checked_batch_size(batch_size)
        depth, steps = checked_depth(depth), checked_steps(steps)
        supply = self._drawn_supply
        loader: Loader[ArrayT] = Loader(
            supply.prefetcher(self._ring, self._sampler, depth, steps, self._waits),
            partial(self._take_ahead, supply, batch_size),
            partial(self._give_ahead, supply),
            supply,
            batch_size=batch_size,
            depth=depth,
        )
        self._loaders.add(loader)
        return loader._begin()

    def flush(self) -> None:
        """With storage="cuda", queue that the device gets what was inserted up to now; else do nothing.

        `sample` does so itself, but for one that was captured in a CUDA graph, with `out`: each replay draws a new
        minibatch from what was flushed before, on the stream of the replays. What the graph refers to lives as
        long as this buffer and `out`.

        Thread safety:
            May be called from any thread.
        """
        if self._resident is not None:
            self._resident.flush()

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
            MemoryError: There is not memory for as many.

        Thread safety:
            May be called from any thread; what each call gets depends on their order.
        """
        n = checked_index("n", n)
        if n < 0:
            raise ValueError(f"n: expected a non-negative integer, got {n}")
        check_memory("n", f"{n} faces", n * _FACE_BYTES)
        first = self._num_spawned.add(n)
        return [self._face(np.random.SeedSequence(self._sampler.key, spawn_key=(first + i,))) for i in range(n)]

    def _face(self, seed: np.random.SeedSequence) -> Self:
        face = type(self).__new__(type(self))
        face.__dict__.update(self.__dict__)
        face._waits = Waits()
        face._begin(key_of(seed))
        return face

    def gather(
        self, slots: Sequence[int] | NDArray[np.integer], *, out: Minibatch[ArrayT] | None = None
    ) -> Minibatch[ArrayT]:
        """Read transitions by ring slot (`ticket % capacity`).

        Args:
            slots: (B,) integers in [0, capacity).
            out: A minibatch of batch size B to write into; it is changed as a whole, once all was read, or not at all.

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
        block = self._block_of(out, len(addresses), self._supply)
        self._supply.replace(block, self._ring, addresses)
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
            ValueError: The integers have more than one dimension, or the slice's step is 0.

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
            **self._transfer_stats(),
        }

    def _transfer_stats(self) -> _TransferStats:
        loaders = list(self._loaders)
        # A pipeline knows of its own.
        ahead = 0 if isinstance(self._drawn_supply, Pipeline) else sum(loader.num_ahead for loader in loaders)
        movers: list[Supply[Any] | Resident] = (
            [self._supply] if self._resident is None else [self._supply, self._resident]
        )
        return {
            "pinned_bytes": sum(mover.pinned_bytes for mover in movers),
            "blocks_in_flight": sum(mover.num_in_flight for mover in movers) + ahead,
            "waits": self._waits.count,
            "wait_s": self._waits.seconds,
        }

    def __repr__(self) -> str:
        fields = ", ".join(f"{name} {field.shape} {field.dtype.name}" for name, field in self._schema.items())
        return (
            f"{type(self).__name__}({len(self)} of {self.capacity} transitions, {readable_bytes(self.nbytes)}: "
            f"{fields}; {self._output}, {self._device})"
        )

    def __reduce__(self) -> tuple[object, ...]:
        state = {
            "first": self._ring.window()[0],
            "columns": Transitions(self),
            "rng_state": self.rng_state,
            "num_spawned": self._num_spawned.value,
            "extra": {k: v for k, v in self.__dict__.items() if k not in _NATIVE_ATTRIBUTES},
        }
        options = {
            "device": str(self._device),
            "storage": self._storage,
            "output": self._output,
            "timeout": self._timeout,
        }
        return _rebuild, (type(self), self.capacity, self._schema, options), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what a pickle holds; no other thread may use the buffer meanwhile.

        Raises:
            ValueError: The state is malformed, or of another schema; the buffer is as it was.
        """
        check_keys(state, ("first", "columns", "rng_state", "num_spawned", "extra"))
        first, columns, extra = checked_ticket("first", state["first"]), state["columns"], state["extra"]
        key, calls = _checked_rng_state(state["rng_state"])
        num_spawned = state["num_spawned"]
        if type(num_spawned) is not int or not 0 <= num_spawned <= sys.maxsize:
            raise ValueError(f"num_spawned: expected a count, got {num_spawned!r}")
        if not isinstance(extra, dict) or not all(isinstance(name, str) for name in extra):
            raise ValueError(f"extra: expected attributes by name, got {extra!r}")
        if native := _NATIVE_ATTRIBUTES & extra.keys():
            raise ValueError(f"extra: {min(native)!r} is not to be set")
        is_here = isinstance(columns, ReceivedTransitions) and columns.buffer is self
        if isinstance(columns, ReceivedTransitions) and (not columns.is_complete or columns.first < first):
            raise ValueError(f"columns: expected whole transitions from {first} on")
        if not is_here:
            if isinstance(columns, Transitions):
                if columns.buffer.schema != self._schema:
                    raise ValueError(f"columns: expected those of {self._schema}, got {columns.buffer.schema}")
                ticket, columns = columns.columns()
                first = max(first, ticket)  # some may have been overwritten meanwhile
            columns = check_contents(columns, self._schema, self.capacity)
            checked_ticket("first", first + len(columns[0]))
            self._ring.start_at(first)
            ReplayBuffer.extend(self, *columns)
        self.__dict__.update(extra)
        self._num_spawned = _core.Counter(num_spawned)
        self._restart(key, calls)

    def _receive(self, form: Format) -> ReceivedTransitions:
        """Return what the transitions of a pickle go into: this buffer while it is unused, else one like it."""
        target = self
        if self._ring.num_inserted or self._ring.window() != (0, 0):
            target = _rebuild(ReplayBuffer, self.capacity, self._schema, {"output": "numpy"})
        return ReceivedTransitions(target, partial(ReplayBuffer.extend, target), form)

    def _read_slice(self, index: slice) -> Minibatch[ArrayT]:
        for _ in range(_SLICE_TRIES):
            with suppress(IndexError):  # writers that reserved more left fewer finished ones than there were
                return self._read(np.arange(*index.indices(len(self)), dtype=np.int64), by_slot=False)
        return self._read(np.arange(*index.indices(len(self)), dtype=np.int64), by_slot=False)

    def _read(self, addresses: NDArray[np.int64], *, by_slot: bool) -> Minibatch[ArrayT]:
        supply: Supply[Any] = self._supply
        block = supply.take(len(addresses))
        try:
            self._ring.read(by_slot, addresses, block.native)
        except BaseException:
            supply.cancel(block)
            raise
        return self._give(supply, block)

    def _new_resident(self) -> Resident | None:
        if self._storage == "host" or self._accelerator is None:
            return None
        remote = self._accelerator.ring(self.capacity, self._ring.record_bytes)
        return Resident(remote, self._ring, self._waits)

    def _new_supply(self) -> HostSupply | Pipeline:
        """Make what gives memory to transitions that the host gathers."""
        if self._accelerator is not None:
            return Pipeline(self._accelerator, self._ring, self._schema, self._waits)
        return HostSupply(self._schema, self._output)

    def _new_drawn_supply(self) -> Supply[Any]:
        """Make what gives memory to minibatches."""
        if self._resident is None:
            return self._supply
        return ResidentSupply(self._resident.remote, self._ring, self._schema)

    def _give(self, supply: Supply[Any], block: Any) -> Minibatch[ArrayT]:
        return self._on_device(Minibatch(self._schema, supply.hand_out(block), block, block.layout.batch_size))

    def _take_ahead(self, supply: Supply[Any], batch_size: int) -> Minibatch[ArrayT]:
        """Make a minibatch that a prefetcher is to fill."""
        block = supply.take(batch_size)
        return Minibatch(self._schema, supply.hand_out_ahead(block), block, batch_size)

    def _give_ahead(self, supply: Supply[Any], batch: Minibatch[ArrayT]) -> Minibatch[ArrayT]:
        """Return a minibatch that a prefetcher has filled, as the consumer is to have it."""
        supply.make_ready(batch._block)
        return self._on_device(batch)

    def _on_device(self, batch: Minibatch[ArrayT]) -> Minibatch[ArrayT]:
        if self._device == "cpu" or self._accelerator is not None:
            return batch
        return cast("Minibatch[ArrayT]", batch.to(self._device))

    def _block_of(self, out: Minibatch[ArrayT], batch_size: int, supply: Supply[Any]) -> Any:
        if not isinstance(out, Minibatch):
            raise TypeError(f"out: expected a Minibatch, got {type(out).__name__}")
        block = out._block
        if block is None:
            raise ValueError(f"out: expected a minibatch that sample() or gather() made on {self._device}")
        if block.device is not self._device and block.device != self._device:
            raise ValueError(f"out: expected a minibatch on {self._device}, got one on {block.device}")
        layout = block.layout
        if layout.schema is not self._schema and layout.schema != self._schema:
            raise ValueError(f"out: expected a minibatch of {self._schema}, got one of {layout.schema}")
        if layout.batch_size != batch_size:
            raise ValueError(f"out: expected batch size {batch_size}, got {layout.batch_size}")
        changed = block.first_changed(out._values, out._ticket)
        if changed >= 0:
            name = (*self._schema, "ticket")[changed]
            done = "moved, reshaped, locked or computed from others"
            raise ValueError(f"out: expected the minibatch as it was made, got {name!r} {done}")
        if not supply.accepts(block):
            raise ValueError("out: with storage='cuda', sample() takes what sample() of this ring made, gather() other")
        return block


def _accelerator(device: torch.device | Literal["cpu"]) -> Device | None:
    if device == "cpu" or device.type != "cuda":
        return None
    from fastreplay.gpu.device import CudaDevice

    return CudaDevice(device)


# What __init__ makes; the rest of __dict__ is a subclass's own.
_NATIVE_ATTRIBUTES = frozenset(
    f"_{name}"
    for name in (
        *("schema", "output", "timeout", "device", "storage", "accelerator", "resident"),
        *("ring", "sampler", "supply", "drawn_supply", "waits", "loaders", "num_spawned"),
    )
)

_living: Living[ReplayBuffer[Any]] = Living()


def living_buffers() -> list[ReplayBuffer[Any]]:
    """Return the buffers and faces that this process can draw from."""
    return [buffer for buffer in _living if buffer._resident is None or not buffer._resident.is_inherited]


def _discard_unfinished() -> None:
    """In the child after a fork, where no other thread is left to finish its insert."""
    for buffer in _living:
        buffer._ring.discard_unfinished()
        if buffer._resident is not None:
            buffer._resident.begin_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_discard_unfinished)


def _checked_rng_state(state: object) -> tuple[tuple[int, int], int]:
    try:
        values = cast("RngState", state)
        first, second = map(operator.index, values["key"])
        calls = operator.index(values["calls"])
        if not all(0 <= number < 2**64 for number in (first, second, calls)):
            raise ValueError("not 64-bit numbers")
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"rng_state: expected {{'key': [int, int], 'calls': int}}, got {state!r}") from error
    return (first, second), calls


def _rebuild(
    cls: type[ReplayBuffer[ArrayT]], capacity: int, schema: Schema, options: dict[str, Any]
) -> ReplayBuffer[ArrayT]:
    buffer = cls.__new__(cls)
    ReplayBuffer.__init__(buffer, capacity, schema, **options)  # type: ignore[arg-type]
    return buffer
