# SPDX-License-Identifier: MIT
"""Minibatch memory: blocks with their fields laid out, and the pool that recycles them.

What gives minibatches their memory is a `Supply`: the pool here, or the pipeline to a device.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict, deque
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from fastreplay import _core

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from numpy.typing import NDArray

    from fastreplay._tensors import Tensors
    from fastreplay.schema import Schema

# What a pool keeps: some batch sizes, and of each as many blocks as these bytes hold, within limits.
_SIZES = 4
_BYTES_PER_SIZE = 8 << 20
_FEWEST_BLOCKS, _MOST_BLOCKS = 4, 64


_making_tensors = threading.Lock()

BlockT = TypeVar("BlockT")
OwnerT = TypeVar("OwnerT")
ResultT = TypeVar("ResultT")


class Waits:
    """How often the host waited, and how long in all."""

    __slots__ = ("_lock", "count", "seconds")

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self._lock = threading.Lock()

    def begin_again(self) -> None:
        """In the child after a fork: whoever held the lock is not there to give it back."""
        self._lock = threading.Lock()

    def add(self, count: int, seconds: float) -> None:
        """Note some waits."""
        with self._lock:
            self.count += count
            self.seconds += seconds

    def during(self, finish: Callable[[], None]) -> None:
        """Call what waits, and note how long."""
        start = perf_counter()
        finish()
        self.add(1, perf_counter() - start)


class Prefetcher(Protocol[OwnerT]):
    """Fills blocks in the order in which they are pushed, ahead of who takes them; `_core.Prefetcher` for one."""

    @property
    def num_pushed(self) -> int:
        """Blocks that were pushed and not taken."""

    @property
    def error(self) -> int:
        """Why the oldest block cannot be taken, 0 where that is because the ring is empty."""

    @property
    def num_waits(self) -> int:
        """How often `take` waited."""

    @property
    def waited_s(self) -> float:
        """The seconds in all."""

    def push(self, owner: OwnerT, block: Any, context: int) -> None:
        """Give a block to be filled; `owner` keeps it."""

    def take(self) -> OwnerT | None:
        """Return the owner of the oldest block once it is filled, None where it cannot be.

        Raises:
            StopIteration: Nothing was pushed, or `stop` was called.
        """

    def retry(self) -> None:
        """Try again to fill the block for which the ring was empty."""

    def stop(self) -> None:
        """Fill no more."""

    def drain(self) -> list[OwnerT]:
        """Take out what nobody is to have, after `stop`."""

    def abandon(self) -> None:
        """Forget, in the child after a fork, what is left in the parent."""


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

    def prefetcher(self, ring: _core.Ring, sampler: Any, depth: int) -> Prefetcher[BlockT]:
        """Make what fills `depth` blocks ahead."""

    def describe(self, error: int) -> str:
        """Return a prefetcher's error in words."""

    def note_filled(self, block: BlockT) -> None:
        """Note that the prefetcher filled a block, which is to be handed out."""

    @property
    def pinned_bytes(self) -> int:
        """Bytes of page-locked memory."""

    @property
    def num_in_flight(self) -> int:
        """Blocks that are being filled or sent, as far as the supply knows."""


class InMemory(Protocol):
    """What tensor templates are made of."""

    schema: Schema
    batch_size: int
    offsets: tuple[int, ...]

    def flat_tensor(self) -> torch.Tensor:
        """Return the block's bytes, (num_bytes,) uint8."""


class Block:
    """One native block and the arrays or tensors that lie in it.

    The templates made here are never given out; `arrays()` and `tensors` give aliases of them, and
    `is_free()` tells whether any alias, or anything made of one, is left.
    """

    __slots__ = ("_bare_references", "_tensors", "batch_size", "flat", "native", "offsets", "schema", "templates")

    context = 0  # for what sends blocks to a device, which the CPU has none of
    device = "cpu"

    def __init__(self, native: _core.Block, schema: Schema, batch_size: int) -> None:
        self.native = native
        self.schema = schema
        self.batch_size = batch_size
        self.flat = self.native.flat
        self.offsets = (*self.native.offsets, self.native.tickets_offset)
        self._tensors: TensorTemplates | None = None
        self.templates = tuple(
            self._part(offset, field.dtype, (batch_size, *field.shape))
            for offset, field in zip(self.offsets, schema.values(), strict=False)
        )
        self._bare_references = sys.getrefcount(self.flat)

    def _part(self, offset: int, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> NDArray[np.generic]:
        count = int(np.prod(shape, dtype=np.int64))
        return self.flat[offset : offset + count * dtype.itemsize].view(dtype).reshape(shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of memory."""
        return self.flat.nbytes

    @property
    def tickets(self) -> NDArray[np.int64]:
        """The tickets of the rows, (batch_size,) int64."""
        return self._part(self.offsets[-1], np.dtype(np.int64), (self.batch_size,))  # type: ignore[return-value]

    @property
    def tensors(self) -> TensorTemplates:
        """The same memory as torch tensors."""
        if self._tensors is None:
            with _making_tensors:
                if self._tensors is None:
                    tensors = TensorTemplates(self)
                    self._bare_references += 1  # by the array that the templates have to themselves
                    self._tensors = tensors
        return self._tensors

    def flat_tensor(self) -> torch.Tensor:
        """Return the block's bytes as a tensor."""
        import torch

        return torch.from_numpy(self.flat[:])

    def hand_out_tensors(self) -> tuple[torch.Tensor, ...]:
        """Return the tensors (batch_size, *shape) of a block that is free, in schema order."""
        return self.tensors.hand_out()

    def refill(self, fill: Callable[[_core.Block], ResultT]) -> ResultT:
        """Replace what the block's holder sees."""
        return fill(self.native)

    def arrays(self) -> tuple[NDArray[np.generic], ...]:
        """Return fresh arrays (batch_size, *shape) in schema order."""
        return tuple([template.view() for template in self.templates])

    def is_free(self) -> bool:
        """Tell whether nothing outside refers to the block's memory.

        Every array that descends from a template has `flat` at the end of its chain of bases, every
        tensor shares the one storage; so two counts know of all views, slices, autograd graphs and
        exports.
        """
        if sys.getrefcount(self.flat) > self._bare_references:
            return False
        return self._tensors is None or self._tensors.is_free()


class TensorTemplates:
    """A block's memory as torch tensors on one storage."""

    __slots__ = (
        "_address",
        "_bare_references",
        "_bare_uses",
        "_handle",
        "_kept",
        "_storage",
        "_templates",
        "_use_count",
        "flat",
        "tickets",
    )

    def __init__(self, block: InMemory) -> None:
        import torch

        # Tensors of inference mode could not be saved for a backward pass later.
        with torch.inference_mode(False):
            self.flat = block.flat_tensor()
            *self._templates, self.tickets = tensors_in(self.flat, block.schema, block.batch_size, block.offsets)
            self._kept = _kept_tensors(tuple(self._templates))
        # torch keeps one Python object a storage, and counts it as one use however many refer to it.
        self._storage = self.flat.untyped_storage()
        self._address = self.flat.data_ptr()
        self._handle = self._storage._cdata
        self._use_count: Callable[[int], int] = torch._C._storage_Use_Count
        self._bare_uses = self._use_count(self._handle)
        self._bare_references = sys.getrefcount(self._storage)

    def views(self) -> tuple[torch.Tensor, ...]:
        """Return fresh tensors (batch_size, *shape) in schema order."""
        # `data` makes a new tensor on the same storage, at half the cost of from_numpy or detach.
        return tuple([template.data for template in self._templates])

    def hand_out(self) -> tuple[torch.Tensor, ...]:
        """Return the tensors of a block that is free, in schema order; maybe those of the last time."""
        return self.views() if self._kept is None else self._kept.hand_out()

    def is_free(self) -> bool:
        """Tell whether nobody else uses the storage, and it still is the block's memory.

        (`share_memory_()` on a tensor of a minibatch moves it: such a block is given up.)
        """
        return (
            self._use_count(self._handle) <= self._bare_uses
            and sys.getrefcount(self._storage) <= self._bare_references
            and (self.flat.data_ptr() == self._address if self._kept is None else self._kept.are_free())
        )


def _kept_tensors(templates: tuple[torch.Tensor, ...]) -> Tensors | None:
    """Return tensors to be handed out again and again, None where torch does not tell who has them."""
    from fastreplay._tensors import Tensors
    from fastreplay._torch_abi import form_abi, shows_owners, torch_abi

    abi, form = torch_abi(), form_abi()
    return None if abi is None or form is None or not shows_owners() else Tensors(templates, abi, form)


def tensors_in(flat: torch.Tensor, schema: Schema, batch_size: int, offsets: tuple[int, ...]) -> list[torch.Tensor]:
    """Return the fields, in schema order, and the tickets that lie in a block of bytes."""
    import torch

    tensors = []
    for offset, (dtype, shape) in zip(
        offsets, [*((field.dtype, field.shape) for field in schema.values()), (np.dtype(np.int64), ())], strict=True
    ):
        full_shape = (batch_size, *shape)
        num_bytes = int(np.prod(full_shape, dtype=np.int64)) * dtype.itemsize
        torch_dtype = getattr(torch, dtype.name)
        tensors.append(flat[offset : offset + num_bytes].view(torch_dtype).view(full_shape))
    return tensors


def most_blocks(num_bytes: int) -> int:
    """Return how many blocks of a size are kept."""
    return min(max(_BYTES_PER_SIZE // max(num_bytes, 1), _FEWEST_BLOCKS), _MOST_BLOCKS)


class Recyclable(Protocol):
    """What a pool keeps."""

    @property
    def batch_size(self) -> int:
        """Rows."""

    @property
    def num_bytes(self) -> int:
        """Bytes of memory."""

    def is_free(self) -> bool:
        """Tell whether nothing outside refers to the memory."""


RecyclableT = TypeVar("RecyclableT", bound=Recyclable)


class BlockPool(Generic[RecyclableT]):
    """Keeps some blocks of each batch size and hands out those that nobody uses any more.

    What the caller still holds is never reused: it stays the caller's, and the pool forgets it once
    newer blocks have come.
    """

    __slots__ = ("_by_size", "_make")

    def __init__(self, make: Callable[[int], RecyclableT]) -> None:
        self._make = make
        self._by_size: OrderedDict[int, deque[RecyclableT]] = OrderedDict()

    def take(self, batch_size: int) -> RecyclableT:
        """Return a free block of this size, an old one where there is one."""
        blocks = self._by_size.get(batch_size)
        if blocks is None:
            return self._make(batch_size)
        for _ in range(_FEWEST_BLOCKS):  # the oldest; a caller who holds more waits for their turn
            try:
                block = blocks.popleft()
            except IndexError:  # none left, or other threads hold them
                break
            if block.is_free():
                return block
            blocks.append(block)
        return self._make(batch_size)

    def keep(self, block: RecyclableT) -> None:
        """Take a block into the pool once it was handed out."""
        blocks = self._by_size.get(block.batch_size)
        if blocks is None:
            blocks = self._by_size[block.batch_size] = deque(maxlen=most_blocks(block.num_bytes))
            while len(self._by_size) > _SIZES:
                self._by_size.popitem(last=False)
        blocks.append(block)


class HostSupply(BlockPool[Block]):
    """Minibatches where they were gathered.

    Args:
        make: Makes a block of a batch size.
        fields: Gives the fields of a block that is free: tensors or arrays.
    """

    __slots__ = ("_fields",)

    pinned_bytes = 0
    num_in_flight = 0

    def __init__(self, make: Callable[[int], Block], fields: Callable[[Block], tuple[Any, ...]]) -> None:
        super().__init__(make)
        self._fields = fields

    def hand_out(self, block: Block) -> tuple[Any, ...]:
        """Return the block's fields, and keep the block for later."""
        fields = self._fields(block)
        self.keep(block)
        return fields

    def cancel(self, block: Block) -> None:
        """Keep a block that was not handed out."""
        self.keep(block)

    def accepts(self, block: object) -> bool:
        """Tell whether it is a block in the host's memory."""
        return isinstance(block, Block)

    def prefetcher(self, ring: _core.Ring, sampler: _core.Sampler, depth: int) -> Prefetcher[Block]:
        """Make what fills blocks on a thread."""
        return _core.Prefetcher(ring, sampler, depth)

    def describe(self, error: int) -> str:
        """Return the error's number: there is none to come."""
        return str(error)

    def note_filled(self, block: Block) -> None:
        """Do nothing: it is where it is wanted."""
