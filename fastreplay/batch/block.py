# SPDX-License-Identifier: MIT
"""Minibatch memory: blocks with their fields laid out, and the pools that they come from.

What gives minibatches their memory is a `Supply`: the pools here, or the pipeline to a device.
"""

from __future__ import annotations

import math
import sys
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np

from fastreplay import _core
from fastreplay.batch.tensors import Generations
from fastreplay.support.latest import Latest

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from numpy.typing import NDArray

    from fastreplay.batch.minibatch import Minibatch
    from fastreplay.batch.tensors import FieldTensors
    from fastreplay.schema.schema import Schema

# What a pool keeps: some batch sizes, and of each as many blocks as these bytes hold, within limits.
SIZES = 4
_BYTES_PER_SIZE = 8 << 20
_FEWEST_BLOCKS, _MOST_BLOCKS = 4, 64

ArrayT = TypeVar("ArrayT")  # torch.Tensor or numpy.ndarray
BlockT = TypeVar("BlockT")
ResultT = TypeVar("ResultT")


class Waits(_core.Waits):
    """How often the host waited, and how long in all. Has no lock, so that a finalizer may add to it."""

    def during(self, finish: Callable[[], None]) -> None:
        """Call what waits, and note how long."""
        start = perf_counter()
        finish()
        self.add(perf_counter() - start)


class Prefetcher(Protocol[ArrayT]):
    """Fills minibatches in the order of their turns, ahead of who takes them: `_core.Prefetcher`, or made of one."""

    @property
    def num_first(self) -> int:
        """How many `start` takes."""

    @property
    def wants_spare(self) -> bool:
        """Whether `put` would keep a minibatch."""

    @property
    def minibatches(self) -> list[Minibatch[ArrayT]]:
        """All in it, in order, the spare one last."""

    @property
    def num_ahead(self) -> int:
        """How many have got their turns and were not taken."""

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called."""

    @property
    def error(self) -> int:
        """Why the oldest cannot be taken, 0 where that is because the ring is empty."""

    def start(self, first: list[tuple[Minibatch[ArrayT], Any, int]]) -> None:
        """Give the first minibatches their turns: (minibatch, native block, context) each."""

    def put(self, minibatch: Minibatch[ArrayT], block: Any, context: int) -> bool:
        """Keep a spare minibatch, which gets its turn when the oldest is taken; False where that is not wanted."""

    def oldest(self) -> tuple[int, Minibatch[ArrayT]] | None:
        """Return the oldest and its number once it is filled, None where it cannot be.

        Raises:
            StopIteration: Nothing is left, or `stop` was called.
        """

    def take(self, number: int) -> bool:
        """Take the oldest out, if it still has this number."""

    def retry(self) -> None:
        """Try again to fill the minibatch for which the ring was empty."""

    def stop(self) -> None:
        """Fill no more."""

    def drop(self) -> None:
        """Forget what nobody is to have, after `stop`."""


class Supply(Protocol[BlockT]):
    """Takes minibatch memory through its life: taken, filled, handed out; or taken and cancelled."""

    def take(self, batch_size: int) -> BlockT:
        """Return a block that nobody uses, to be filled."""

    def hand_out(self, block: BlockT) -> tuple[Any, ...]:
        """Return the fields of a filled block, in schema order; it is taken again when they are gone."""

    def cancel(self, block: BlockT) -> None:
        """Take a block back that was not filled, or that nobody wants."""

    def accepts(self, block: object) -> bool:
        """Tell whether a block, as a caller's `out`, can be filled as those that are taken here."""

    def prefetcher(
        self, ring: _core.Ring, sampler: Any, depth: int, steps: int | None, waits: Waits
    ) -> Prefetcher[Any]:
        """Make what fills `depth` blocks ahead, `steps` in all."""

    def describe(self, error: int) -> str:
        """Return a prefetcher's error in words."""

    def hand_out_ahead(self, block: BlockT) -> tuple[Any, ...]:
        """Return the fields of a block that a prefetcher is to fill."""

    def make_ready(self, block: BlockT) -> None:
        """Make what a prefetcher filled fit to be read from here; as often, and from as many threads, as you like."""

    def cancel_ahead(self, block: BlockT) -> None:
        """Finish what a prefetcher, stopped by now, did with a block that nobody is to have; as often as you like."""

    @property
    def pinned_bytes(self) -> int:
        """Bytes of page-locked memory."""

    @property
    def num_in_flight(self) -> int:
        """Blocks that are being filled or sent, as far as the supply knows."""


class Layout:
    """Where the fields and the tickets of a minibatch lie in its block.

    Attributes:
        offsets: Bytes from the block's start to each field, and to the tickets.
        num_bytes: Bytes of the block.
    """

    __slots__ = ("_native", "_parts", "batch_size", "num_bytes", "offsets", "schema")

    def __init__(self, native: _core.Block, schema: Schema) -> None:
        self.schema = schema
        self.batch_size = native.batch_size
        self.offsets = (*native.offsets, native.tickets_offset)
        self.num_bytes = native.num_bytes
        rows = [*((field.dtype, field.shape) for field in schema.values()), (np.dtype(np.int64), ())]
        self._parts = [
            (offset, dtype, (self.batch_size, *shape))
            for offset, (dtype, shape) in zip(self.offsets, rows, strict=True)
        ]
        self._native = _core.Fields(self._parts)

    def arrays(self, native: _core.Block) -> tuple[NDArray[Any], ...]:
        """Return fresh arrays (B, *shape) of the fields; each owns the block through its base."""
        return self._native.arrays(native)

    def tickets(self, native: _core.Block) -> NDArray[np.int64]:
        """Return a fresh array (B,) of the tickets, as those of the fields."""
        return self._native.tickets(native)

    def tensors(self, native: _core.Block) -> tuple[torch.Tensor, ...]:
        """Return fresh CPU tensors of the fields and the tickets; each has a storage that owns the block."""
        return _imported(self._native.capsules(native))

    def tensors_in(self, flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the fields and the tickets that lie in a block's bytes (num_bytes,), as views of them."""
        import torch

        views = []
        for offset, dtype, shape in self._parts:
            num_bytes = math.prod(shape) * dtype.itemsize
            views.append(flat[offset : offset + num_bytes].view(getattr(torch, dtype.name)).view(shape))
        return tuple(views)

    def first_changed(self, native: _core.Block, arrays: tuple[NDArray[Any], ...], tickets: object) -> int:
        """Return the position of the first array, or the tickets', that is not as it is made here, -1 where all are."""
        return self._native.first_changed(native, arrays, tickets)


def _imported(capsules: tuple[object, ...]) -> tuple[torch.Tensor, ...]:
    """Return what DLPack capsules hold, as tensors that autograd may save."""
    import torch

    if torch.is_inference_mode_enabled():  # tensors made in it could not be saved for a backward pass later
        with torch.inference_mode(False):
            return tuple(map(torch._C._from_dlpack, capsules))
    return tuple(map(torch._C._from_dlpack, capsules))


def as_made(tensors: tuple[torch.Tensor, ...]) -> FieldTensors | PlainTensors:
    """Return fresh tensors, the tickets last, together with what they are like now."""
    from fastreplay.batch.tensor_offsets import tensor_offsets
    from fastreplay.batch.tensors import FieldTensors
    from fastreplay.support.torch_abi import torch_abi

    if (abi := torch_abi()) is not None and (offsets := tensor_offsets()) is not None:
        with suppress(ValueError):  # tensors of many dimensions
            return FieldTensors(tensors, abi, offsets)
    return PlainTensors(tensors)


class PlainTensors:
    """`FieldTensors` where not all of them is known: not to be handed out again, and Python is asked."""

    __slots__ = ("_made", "_tensors")

    is_reusable = False

    def __init__(self, tensors: tuple[torch.Tensor, ...]) -> None:
        self._tensors = tensors
        self._made = list(map(_form, tensors))

    @property
    def ticket(self) -> torch.Tensor:
        """The last tensor."""
        return self._tensors[-1]

    def is_pristine(self) -> bool:
        """Return False: it is not known."""
        return False

    def is_held(self) -> bool:
        """Tell whether anybody refers to one of the tensor objects."""
        return max(map(sys.getrefcount, self._tensors)) > _BARE_REFERENCES

    def hand_out(self) -> tuple[torch.Tensor, ...]:
        """Return all but the last."""
        return self._tensors[:-1]

    def first_changed(self) -> int:
        """Return the position of the first tensor that is no longer where and as it was made, -1 where all are.

        One that autograd derives from others is none either: what it would tell of them is of the old rows.
        """
        now = map(_form, self._tensors)
        return next((i for i, (form, made) in enumerate(zip(now, self._made, strict=True)) if form != made), -1)

    def count_up_versions(self) -> None:
        """Let autograd know that the tensors' memory has changed."""
        import torch

        for tensor in self._tensors:
            torch.autograd.graph.increment_version(tensor)


_BARE_REFERENCES = max(map(sys.getrefcount, (object(),)))  # of an object that only a tuple has


def _form(tensor: torch.Tensor) -> tuple[object, ...]:
    place = tensor._cdata, tensor.data_ptr()
    return *place, tensor.shape, tensor.stride(), tensor.dtype, tensor.is_neg(), tensor.is_conj(), tensor.grad_fn


class Block:
    """One minibatch's memory on the host, and the tensors that were made of it.

    It is one of the owners of its memory; each tensor's storage is another, and each array, through its base. When the
    last owner is gone, on whatever thread, the memory goes back to the pool that it came from
    (csrc/core/block_pool.hpp), and by no other way.
    """

    __slots__ = ("__weakref__", "layout", "native", "tensors")

    context = 0  # for what sends blocks to a device, which the CPU has none of
    device = "cpu"

    def __init__(self, native: _core.Block, layout: Layout) -> None:
        self.native = native
        self.layout = layout
        self.tensors: FieldTensors | PlainTensors | None = None  # the only ones that are ever made

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """Return fresh arrays (B, *shape) of the fields."""
        return self.layout.arrays(self.native)

    def hand_out_tensors(self) -> tuple[torch.Tensor, ...]:
        """Return the tensors (B, *shape) of the fields, the same ones at each call."""
        if self.tensors is None:
            self.tensors = as_made(self.layout.tensors(self.native))
        return self.tensors.hand_out()

    def ticket(self) -> NDArray[np.int64] | torch.Tensor:
        """Return the tickets (B,), in the form in which the fields were handed out."""
        return self.layout.tickets(self.native) if self.tensors is None else self.tensors.ticket

    def flat_tensor(self) -> torch.Tensor:
        """Return the block's bytes (num_bytes,) as a tensor."""
        import torch

        return torch.from_numpy(self.native.flat)

    def first_changed(self, values: tuple[Any, ...], tickets: object) -> int:
        """Return the position of the first of a minibatch's fields and tickets that is not as it was made here, or -1.

        Tickets are None where they were not asked for.
        """
        if self.tensors is not None and type(values[0]) is not np.ndarray:
            return self.tensors.first_changed()
        return self.layout.first_changed(self.native, values, tickets)

    def refill(self, fill: Callable[..., ResultT], *arguments: object) -> ResultT:
        """Replace what the block's holder sees. Where `fill` raises or returns False, nothing has changed.

        It is called with the arguments, and the native block as the last.
        """
        result = fill(*arguments, self.native)
        if result is not False and self.tensors is not None:
            self.tensors.count_up_versions()
        return result


def most_blocks(num_bytes: int) -> int:
    """Return how many blocks of a size are kept."""
    return min(max(_BYTES_PER_SIZE // max(num_bytes, 1), _FEWEST_BLOCKS), _MOST_BLOCKS)


class _Pools(NamedTuple):
    """What there is for one batch size."""

    memory: _core.BlockPool
    layout: Layout
    generations: Generations[Block]  # with their tensors


class HostPool:
    """Blocks of one layout on the host, by batch size.

    Args:
        schema: The fields of a minibatch.

    Thread safety:
        Any thread may take and keep.
    """

    __slots__ = ("_by_size", "_schema")

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._by_size: Latest[int, _Pools] = Latest(SIZES)

    def take(self, batch_size: int) -> Block:
        """Return a block that nobody else has, with the tensors that it had if they are as they were made."""
        pools = self._by_size.get(batch_size) or self._new(batch_size)
        block = pools.generations.take()
        return Block(pools.memory.take(), pools.layout) if block is None else block

    def replace(self, block: Block, ring: _core.Ring, slots: NDArray[np.int64]) -> None:
        """Replace a minibatch by the transitions in these slots: all of it, or nothing has changed."""
        pools = self._by_size.get(block.layout.batch_size) or self._new(block.layout.batch_size)
        block.refill(pools.memory.replace, ring, slots)

    def keep(self, block: Block) -> None:
        """Let a block with tensors be taken again once nobody has them."""
        pools = self._by_size.get(block.layout.batch_size)
        if pools is not None and pools.layout is block.layout:
            pools.generations.keep(block)

    def _new(self, batch_size: int) -> _Pools:
        try:
            layout = Layout(_core.Block(self._schema.sizes, batch_size), self._schema)
        except (MemoryError, ValueError):
            raise MemoryError(f"batch_size: {batch_size} transitions are more than memory can hold") from None
        most = most_blocks(layout.num_bytes) // 2  # with their tensors, and as many without
        generations: Generations[Block] = Generations(most)
        pools = _Pools(_core.BlockPool(self._schema.sizes, batch_size, most), layout, generations)
        self._by_size.put(batch_size, pools)
        return pools


class HostSupply:
    """Minibatches where they were gathered.

    Args:
        schema: Their fields.
        output: "torch" or "numpy".
    """

    __slots__ = ("_in_numpy", "_pool")

    pinned_bytes = 0
    num_in_flight = 0

    def __init__(self, schema: Schema, output: str) -> None:
        self._pool = HostPool(schema)
        self._in_numpy = output == "numpy"

    def take(self, batch_size: int) -> Block:
        """Return a block to be filled."""
        return self._pool.take(batch_size)

    def hand_out(self, block: Block) -> tuple[Any, ...]:
        """Return the block's fields."""
        if self._in_numpy:
            return block.arrays()
        tensors = block.hand_out_tensors()
        self._pool.keep(block)
        return tensors

    def cancel(self, block: Block) -> None:
        """Take back a block that was not handed out."""
        if block.tensors is not None:
            self._pool.keep(block)

    def replace(self, block: Block, ring: _core.Ring, slots: NDArray[np.int64]) -> None:
        """Replace what a block's holder sees by the transitions in these slots: all of it, or nothing has changed."""
        self._pool.replace(block, ring, slots)

    def accepts(self, block: object) -> bool:
        """Tell whether it is a block in the host's memory."""
        return isinstance(block, Block)

    def prefetcher(
        self, ring: _core.Ring, sampler: _core.Sampler, depth: int, steps: int | None, waits: Waits
    ) -> Prefetcher[Any]:
        """Make what fills blocks on a thread."""
        return _core.Prefetcher(ring, sampler, depth, steps, waits)

    def describe(self, error: int) -> str:
        """Return the error's number: there is none to come."""
        return str(error)

    def hand_out_ahead(self, block: Block) -> tuple[Any, ...]:
        """Return the block's fields: whoever has them sees what is filled in."""
        return self.hand_out(block)

    def make_ready(self, block: Block) -> None:
        """Do nothing: it is where it is wanted."""

    def cancel_ahead(self, block: Block) -> None:
        """Do nothing: it is free when its fields are gone."""
