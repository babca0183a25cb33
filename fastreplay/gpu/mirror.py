# SPDX-License-Identifier: MIT
"""A ring that a device's memory holds as well, and minibatches that are drawn and gathered over there.

Transitions are inserted into the native ring, as ever: any thread may, and reading, views and pickles need no
device. Before a minibatch is drawn, what was inserted since goes over through page-locked memory, as whole records,
in ring order; then the device draws what the CPU would (csrc/cuda/sampling_kernel.hpp). All of it is queued on the
caller's stream. Must not know CUDA: a ring on a device is a `RemoteRing`.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from fastreplay import _core
from fastreplay.batch.block import SIZES, Layout, most_blocks
from fastreplay.gpu.tensors import DeviceTensors
from fastreplay.support.latest import Latest

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from fastreplay.batch.block import Prefetcher, Waits
    from fastreplay.schema.schema import Schema

# Streams for which minibatch memory is kept.
_CONSUMERS = 4
# Blocks that are looked at for a free one.
_PROBES = 4
# One piece of a row is copied by 32 threads, 16 bytes each: four times at most.
_PIECE_BYTES = 2048
# Writers may overwrite all that was sent before it is told; the next try then meets others.
_TRIES = 100

ResultT = TypeVar("ResultT")


class Stage(Protocol):
    """Page-locked memory of some records on their way."""

    @property
    def host(self) -> NDArray[np.uint8]:
        """The memory, (num_bytes,)."""

    def is_sent(self) -> bool:
        """Tell whether its last copy is done; do not wait."""

    def finish(self) -> None:
        """Wait until its last copy is done."""


class Generator(Protocol):
    """The state of a generator in the device's memory."""

    def read(self) -> tuple[int, int]:
        """Return the numbers of calls made and of rows drawn; wait for what is queued."""

    def write(self, key: tuple[int, int], calls: int, num_sampled: int) -> None:
        """Set the state for what is queued from now on."""


class RemoteRing(Protocol):
    """Records in a device's memory. What is queued follows the calling thread's current stream, in order."""

    @property
    def device(self) -> torch.device:
        """What torch calls the device."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Page-locked memory, to be used by turns."""

    def consumer(self) -> Hashable:
        """Return what identifies the stream on which the calling thread queues its work."""

    def is_captured(self) -> bool:
        """Tell whether that stream is being captured in a graph."""

    def begin(self) -> None:
        """Let what is queued from now on come after what was queued between `begin` and `end` on another stream."""

    def end(self) -> None:
        """Mark the end of what `begin` began."""

    def send(self, stage: Stage, num_bytes: int, offset: int) -> None:
        """Queue a copy of a stage's first bytes to a place among the records; do not wait."""

    def set_window(self, first: int, size: int) -> None:
        """Queue that draws are of `size` tickets from `first` on."""

    def new_generator(self) -> Generator:
        """Make a generator's state."""

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """Return memory (num_bytes,) uint8 for the current stream."""

    def new_draw(
        self, block: torch.Tensor, pieces: list[tuple[int, int, int, int]], tickets_offset: int, batch_size: int
    ) -> Callable[[Generator, list[int]], None]:
        """Return what queues that a minibatch is drawn and gathered into a block.

        It appends 0 to a list once that is queued, in one step with it: no exception of a signal handler can come
        between the two.

        Args:
            block: Memory of a minibatch.
            pieces: Parts of fields, each its offset in a record, its offset in the block's row 0, the bytes from one
                row to the next, and its own.
            tickets_offset: Where the tickets lie in the block.
            batch_size: Rows.
        """


class ResidentBlock:
    """Memory of one minibatch on the device, which draws are gathered into."""

    __slots__ = (
        "_draw",
        "_drawn",
        "_flat",
        "consumer",
        "device",
        "layout",
        "remote",
        "tensors",
    )

    context = 0

    def __init__(self, remote: RemoteRing, ring: _core.Ring, schema: Schema, batch_size: int) -> None:
        self.layout = Layout(_core.Block(ring, batch_size), schema)
        self.consumer = remote.consumer()
        self._flat = remote.allocate(self.layout.num_bytes)
        self.device = remote.device
        self.remote = remote
        self.tensors = DeviceTensors(self._flat, self.layout)
        self._drawn: list[int] = []
        offsets = self.layout.offsets
        self._draw = remote.new_draw(self._flat, _pieces(ring, schema, offsets), offsets[-1], batch_size)

    @property
    def native(self) -> ResidentBlock:
        """What a sampler fills."""
        return self

    def flat_tensor(self) -> torch.Tensor:
        """Return the block's bytes."""
        return self._flat

    def draw(self, generator: Generator) -> None:
        """Queue a draw into the block."""
        self._draw(generator, [])

    @property
    def is_drawn(self) -> bool:
        """Whether `draw_once` has queued a draw."""
        return 0 in self._drawn

    def draw_once(self, generator: Generator) -> None:
        """Queue a draw into a block of a loader, if that was not done."""
        if not self.is_drawn:
            self._draw(generator, self._drawn)

    def begin_again(self) -> None:
        """Let the next `draw_once` queue a draw."""
        self._drawn = []

    def ticket(self) -> torch.Tensor:
        """Return the tickets that were handed out with the fields."""
        return self.tensors.ticket

    def first_changed(self, _values: tuple[object, ...], _tickets: object) -> int:
        """Return the position of the first field or tickets handed out that are not as they were made, or -1."""
        return self.tensors.first_changed()

    def refill(self, fill: Callable[..., ResultT], *arguments: object) -> ResultT:
        """Replace what the block's holder sees, in the order of the stream."""
        result = fill(*arguments, self)
        if result is not False:
            self.tensors.count_up_versions()
        return result

    def is_free(self) -> bool:
        """Tell whether nothing outside refers to the block's memory."""
        return self.tensors.is_free()


def _pieces(ring: _core.Ring, schema: Schema, offsets: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    pieces = []
    for record_offset, block_offset, (row_bytes, _) in zip(ring.record_offsets, offsets, schema.sizes, strict=False):
        for start in range(0, row_bytes, _PIECE_BYTES):
            num_bytes = min(_PIECE_BYTES, row_bytes - start)
            pieces.append((record_offset + start, block_offset + start, row_bytes, num_bytes))
    return pieces


class Resident:
    """A native ring's twin on a device.

    Thread safety:
        Calls that queue work take turns, so that none is torn apart by another: by one of another thread, which waits;
        by one of a signal handler or a finalizer that interrupts it, which is refused.
    """

    def __init__(self, remote: RemoteRing, ring: _core.Ring, waits: Waits) -> None:
        self._remote = remote
        self._ring = ring
        self._waits = waits
        self.is_inherited = False  # from the process that forked this one, whose device this one cannot use
        self._turn = _core.Turn()
        self._end = 0  # tickets below it were sent, or are gone
        self._window = (0, 0)
        self._next = 0

    def begin_in_child(self) -> None:
        """After a fork: whoever had the turn is not there to give it back."""
        self._turn = _core.Turn()
        self.is_inherited = True

    @property
    def remote(self) -> RemoteRing:
        """The twin."""
        return self._remote

    @property
    def pinned_bytes(self) -> int:
        """Bytes of page-locked memory."""
        return sum(stage.host.nbytes for stage in self._remote.stages)

    @property
    def num_in_flight(self) -> int:
        """Stages that are being copied."""
        return sum(not stage.is_sent() for stage in self._remote.stages)

    def flush(self) -> None:
        """Queue that the device gets what was inserted and finished before this call.

        Raises:
            RuntimeError: Another call of this thread is in the middle of queueing.
        """
        _core.call_in_turn(self._turn, partial(self._queue, None, None))

    def draw(self, draw: Callable[[Generator], None], generator: Generator) -> bool:
        """Queue a draw; False where there is nothing to draw from.

        Within the capture of a graph nothing is sent: the graph draws from what was flushed before each replay.

        Raises:
            RuntimeError: As `flush`.
        """
        return _core.call_in_turn(self._turn, partial(self._queue, draw, generator))

    def _queue(self, draw: Callable[[Generator], None] | None, generator: Generator | None) -> bool:
        if draw is not None and self._remote.is_captured():
            if self._window[1]:
                draw(cast("Generator", generator))
            return self._window[1] > 0
        self._remote.begin()
        try:
            self._flush()
            if draw is not None and self._window[1]:
                draw(cast("Generator", generator))
        finally:
            self._remote.end()
        return self._window[1] > 0

    def _flush(self) -> None:
        for _ in range(_TRIES):
            _, end = self._ring.window()
            self._send(end)
            first, _ = self._ring.window()  # after the copies: what was overwritten meanwhile is below it
            window = (first, max(end - first, 0))
            if window[1] or not len(self._ring):
                break
        if window != self._window:
            self._remote.set_window(*window)
            self._window = window

    def _send(self, end: int) -> None:
        """Send the tickets below `end` that were not sent, in runs that lie together on both sides."""
        stride, capacity = self._ring.record_bytes, self._ring.capacity
        ticket = max(self._end, self._ring.window()[0])
        while ticket < end:
            stage = self._next_stage()
            slot = ticket % capacity
            count = min(end - ticket, capacity - slot, stage.host.nbytes // stride)
            self._ring.read_records(ticket, stage.host[: count * stride])
            self._remote.send(stage, count * stride, slot * stride)
            ticket += count
        self._end = max(self._end, end)

    def _next_stage(self) -> Stage:
        stages = self._remote.stages
        stage = stages[self._next % len(stages)]
        self._next += 1
        if not stage.is_sent():
            self._waits.during(stage.finish)
        return stage


class ResidentSampler:
    """A generator on the device, with the face of `_core.Sampler`. Its numbers are asked of the device."""

    def __init__(self, resident: Resident, key: tuple[int, int]) -> None:
        self._resident = resident
        self._generator = resident.remote.new_generator()
        self.restart(key, 0, 0)

    num_redraws = 0

    @property
    def key(self) -> list[int]:
        """The generator's key."""
        return list(self._key)

    @property
    def calls(self) -> int:
        """Minibatches drawn."""
        return self._generator.read()[0]

    @property
    def num_sampled(self) -> int:
        """Rows drawn."""
        return self._generator.read()[1]

    def restart(self, key: tuple[int, int], calls: int, num_sampled: int) -> None:
        """Set the state, also for the graphs that were captured with it."""
        self._key = key
        self._generator.write(key, calls, num_sampled)

    def sample(self, _ring: _core.Ring, block: ResidentBlock) -> bool:
        """Queue a draw into a block; False where there is nothing to draw from."""
        return self._resident.draw(block.draw, self._generator)

    def sample_once(self, block: ResidentBlock) -> bool:
        """Queue a draw into a block of a loader, if that was not done; False where there is nothing to draw from."""
        return block.is_drawn or self._resident.draw(block.draw_once, self._generator)


class _Pool:
    """Blocks by batch size, of which those that nobody uses any more are taken again."""

    __slots__ = ("_by_size",)

    def __init__(self) -> None:
        self._by_size: Latest[int, deque[ResidentBlock]] = Latest(SIZES)

    def take(self, batch_size: int) -> ResidentBlock | None:
        """Return a free block of this size, None where there is none."""
        blocks = self._by_size.get(batch_size, deque())
        for _ in range(_PROBES):  # the oldest; a caller who holds more waits for their turn
            try:
                block = blocks.popleft()
            except IndexError:  # none left, or other threads hold them
                break
            if block.is_free():
                return block
            blocks.append(block)
        return None

    def keep(self, block: ResidentBlock) -> None:
        """Take a block in once it was handed out."""
        size = block.layout.batch_size
        blocks = self._by_size.get(size)
        if blocks is None:
            blocks = deque(maxlen=most_blocks(block.layout.num_bytes))
            self._by_size.put(size, blocks)
        blocks.append(block)


class ResidentSupply:
    """Memory of minibatches that are drawn on the device: one pool for each stream that asks."""

    pinned_bytes = 0
    num_in_flight = 0

    def __init__(self, remote: RemoteRing, ring: _core.Ring, schema: Schema) -> None:
        self._remote = remote
        self._ring = ring
        self._schema = schema
        self._pools: Latest[Hashable, _Pool] = Latest(_CONSUMERS)

    def take(self, batch_size: int) -> ResidentBlock:
        """Return a block whose last use comes before what is queued now.

        Raises:
            RuntimeError: A graph is being captured, whose replays would write into memory that is handed out again.
        """
        if self._remote.is_captured():
            raise RuntimeError("sample: in the capture of a graph, give `out`, a minibatch that sample() made before")
        block = self._pool(self._remote.consumer()).take(batch_size)
        return ResidentBlock(self._remote, self._ring, self._schema, batch_size) if block is None else block

    def hand_out(self, block: ResidentBlock) -> tuple[torch.Tensor, ...]:
        """Return the block's fields, and keep the block for later."""
        tensors = block.tensors.hand_out()
        self.cancel(block)
        return tensors

    def cancel(self, block: ResidentBlock) -> None:
        """Keep a block that was not handed out."""
        self._pool(block.consumer).keep(block)

    def accepts(self, block: object) -> bool:
        """Tell whether it is a block into which this ring's twin is drawn."""
        return isinstance(block, ResidentBlock) and block.remote is self._remote

    def prefetcher(
        self,
        ring: _core.Ring,  # noqa: ARG002
        sampler: ResidentSampler,
        depth: int,
        steps: int | None,
        waits: Waits,
    ) -> Prefetcher[Any]:
        """Make what draws at once: the device has the draws ahead in its queue."""
        return QueuedDraws(sampler, depth, steps, waits)

    def describe(self, error: int) -> str:
        """Return the error's number: a failed launch is told at once."""
        return str(error)

    def hand_out_ahead(self, block: ResidentBlock) -> tuple[torch.Tensor, ...]:
        """Return the block's fields: work that is queued later sees what is drawn."""
        block.begin_again()
        return self.hand_out(block)

    def make_ready(self, block: ResidentBlock) -> None:
        """Do nothing: it is where it is wanted."""

    def cancel_ahead(self, block: ResidentBlock) -> None:
        """Do nothing: it is free when its fields are gone."""

    def _pool(self, consumer: Hashable) -> _Pool:
        pool = self._pools.get(consumer)
        if pool is None:
            pool = _Pool()
            self._pools.put(consumer, pool)
        return pool


class QueuedDraws(_core.Prefetcher):
    """A prefetcher without a thread: a draw on the device costs the host a launch.

    Each minibatch is drawn once, the spare one too, in the order of their turns; who is interrupted in between goes
    on where it stopped.
    """

    def __init__(self, sampler: ResidentSampler, depth: int, steps: int | None, waits: Waits) -> None:
        super().__init__(None, None, depth, steps, waits)
        self._sampler = sampler

    def start(self, first: Sequence[tuple[Any, Any, int]]) -> None:
        """Draw the first minibatches, if there is something to draw from."""
        super().start([(minibatch, None, 0) for minibatch, _, _ in first])
        self._draw()

    def put(self, minibatch: Any, _block: Any, _context: int = 0) -> bool:
        """Keep a spare minibatch."""
        return super().put(minibatch, None)

    def oldest(self) -> tuple[int, Any] | None:
        """Return the oldest minibatch and its number, None where it could not be drawn."""
        self._draw()
        oldest = super().oldest()
        return oldest if oldest is not None and oldest[1]._block.is_drawn else None

    def _draw(self) -> None:
        for minibatch in self.minibatches:
            if not self._sampler.sample_once(minibatch._block):
                return
