# SPDX-License-Identifier: MIT
"""Delivery of minibatches that are drawn on the device: memory over there, by stream and batch size."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

from fastreplay import _core
from fastreplay.batch.delivery import Delivery
from fastreplay.batch.form import Surroundings
from fastreplay.batch.layout import Layout
from fastreplay.batch.pool import SIZES, most_blocks
from fastreplay.gpu.mirror import MirrorGenerator, QueuedDraws
from fastreplay.gpu.pieces import Piece, RecordFields
from fastreplay.gpu.tensors import DeviceTensors
from fastreplay.support.latest import Latest

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    import torch

    from fastreplay.batch.form import Form
    from fastreplay.batch.minibatch import Minibatch
    from fastreplay.batch.waits import Waits
    from fastreplay.gpu.masses import Weighing
    from fastreplay.gpu.mirror import Mirror
    from fastreplay.gpu.ring import Generator

__all__ = ["MirrorBlock", "MirrorDelivery"]

# Streams for which minibatch memory is kept.
_CONSUMERS = 4
# Blocks that are looked at for a free one.
_PROBES = 4

ResultT = TypeVar("ResultT")


class MirrorBlock:
    """Memory of one minibatch on the device, which draws are gathered into.

    Args:
        mirror: What it is drawn from.
        source: The ring on the host.
        layout: How the minibatch lies.
        weighing: How it is drawn by priority; None for a uniform draw.

    Attributes:
        beta: The exponent of its weights at the next draw, where it has some.
    """

    __slots__ = (
        "_around",
        "_draw",
        "_drawn",
        "_flat",
        "_mirror",
        "_source",
        "_weighing",
        "beta",
        "consumer",
        "device",
        "layout",
        "place",
        "tensors",
    )

    context = 0

    def __init__(
        self,
        mirror: Mirror,
        source: _core.Ring,
        layout: Layout,
        weighing: Weighing | None,
    ) -> None:
        ring = mirror.ring
        self._mirror = mirror
        self._source = source
        self._weighing = weighing
        self._around: object = None  # what `_draw` is of; None before there is one
        self._draw: Callable[..., None]
        self.layout = layout
        self.beta = 0.0
        self.consumer = ring.consumer()
        self._flat = ring.allocate(self.layout.num_bytes)
        self.device = ring.device
        self.place = ring
        self.tensors = DeviceTensors(self._flat, self.layout)
        self._drawn: list[int] = []

    @property
    def native(self) -> MirrorBlock:
        """What a sampler fills."""
        return self

    def flat_tensor(self) -> torch.Tensor:
        """Return the block's bytes."""
        return self._flat

    def surround(self, source: _core.Ring | _core.Follow) -> None:
        """Let the next draws be of a ring's transitions, or of what surrounds them."""
        if source is self._around:
            return
        layout, pieces, following = self.layout, list[Piece](), None
        of_fields = RecordFields(self._source.records)
        if isinstance(source, Surroundings) and self._mirror.links is not None:
            following = self._mirror.links.following(source.around, layout, of_fields)
        else:
            for field, (_, row_bytes, _, conversion) in enumerate(layout.form.parts[: len(layout.form.schema)]):
                pieces += of_fields.of(field, layout.offsets[field], row_bytes, conversion)
        tickets_offset = layout.offsets[len(layout.form.schema) + len(layout.form.beside)]
        self._draw = self.place.new_draw(
            self._flat, pieces, tickets_offset, layout.batch_size, self._weighing, following=following
        )
        self._around = source

    def draw(self, generator: Generator, window: tuple[int, int] | None) -> None:
        """Queue a draw into the block."""
        self._draw(generator, window, [], self.beta)

    @property
    def is_drawn(self) -> bool:
        """Whether `draw_once` has queued a draw."""
        return 0 in self._drawn

    def draw_once(self, generator: Generator, window: tuple[int, int] | None) -> None:
        """Queue a draw into a block of a loader, if that was not done."""
        if not self.is_drawn:
            self._draw(generator, window, self._drawn, self.beta)

    def begin_again(self) -> None:
        """Let the next `draw_once` queue a draw."""
        self._drawn = []

    def ticket(self) -> torch.Tensor:
        """Return the tickets that were handed out with the fields."""
        return self.tensors.ticket

    def host_rows(self) -> None:
        """Return nothing: the tickets are the device's."""

    def first_changed(self, _values: tuple[object, ...], _tickets: object) -> int:
        """Return the position of the first field or tickets handed out that are not as they were made, or -1."""
        return self.tensors.first_changed()

    def refill(self, fill: Callable[..., ResultT], *arguments: object) -> ResultT:
        """Replace what the block's holder sees, in the order of the stream."""
        result = fill(*arguments, self)
        if result != 0:
            self.tensors.count_up_versions()
        return result

    def is_free(self) -> bool:
        """Tell whether nothing outside refers to the block's memory."""
        return self.tensors.is_free()


class _Pool:
    """Blocks by batch size, of which those that nobody uses any more are taken again."""

    __slots__ = ("_by_size",)

    def __init__(self) -> None:
        self._by_size: Latest[int, deque[MirrorBlock]] = Latest(SIZES)

    def take(self, batch_size: int) -> MirrorBlock | None:
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

    def keep(self, block: MirrorBlock) -> None:
        """Take a block in once it was handed out."""
        size = block.layout.batch_size
        blocks = self._by_size.get(size)
        if blocks is None:
            blocks = deque(maxlen=most_blocks(block.layout.num_bytes))
            self._by_size.put(size, blocks)
        blocks.append(block)


class MirrorDelivery(Delivery):
    """Memory of minibatches that are drawn on the device: one pool for each stream that asks.

    Args:
        mirror: What they are drawn from.
        source: The ring on the host.
        form: What a minibatch is made of: transitions, with weights and probabilities or without.
        origin: The number of the ring that its rows are of; 0 where nobody asks.
        options: What the core's sampler takes for draws by priority.
    """

    def __init__(
        self,
        mirror: Mirror,
        source: _core.Ring,
        form: Form,
        *,
        origin: int,
        options: tuple[bool, int, float],
    ) -> None:
        super().__init__(form, mirror.ring.device, origin)
        self._options = options
        self._mirror = mirror
        self._source = source
        self.place = mirror.ring
        self._pools: Latest[Hashable, _Pool] = Latest(_CONSUMERS)

    @property
    def pinned_bytes(self) -> int:  # type: ignore[override]
        """Bytes of page-locked memory."""
        return self._mirror.pinned_bytes

    def num_in_flight(self, num_ahead: int) -> int:
        """Return how many pieces of the ring are being copied, and how many draws loaders have queued."""
        return self._mirror.num_in_flight + num_ahead

    def take(self, batch_size: int) -> MirrorBlock:
        """Return a block whose last use comes before what is queued now.

        Raises:
            RuntimeError: A graph is being captured, whose replays would write into memory that is handed out again.
        """
        consumer = self._mirror.ring.consumer()
        if self._mirror.ring.is_captured(consumer):
            raise RuntimeError("sample: in the capture of a graph, give `out`, a minibatch that sample() made before")
        block = self._pool(consumer).take(batch_size)
        return self._new_block(batch_size) if block is None else block

    def _new_block(self, batch_size: int) -> MirrorBlock:
        layout = Layout(self.form, batch_size, *_core.block_layout(self.form.parts, batch_size))
        weighing = None
        if "weight" in self._beside and self._mirror.masses is not None:
            first = len(self.form.schema) + self._beside.index("weight")
            weighing = self._mirror.masses.weighing(self._options, *layout.offsets[first : first + 2])
        return MirrorBlock(self._mirror, self._source, layout, weighing)

    def give(self, block: MirrorBlock) -> Minibatch[torch.Tensor]:
        """Return the block as a minibatch, and keep it for later."""
        tensors = block.tensors.hand_out()
        self.cancel(block)
        return self._minibatch(tensors, block)

    def cancel(self, block: MirrorBlock) -> None:
        """Keep a block that was not handed out."""
        self._pool(block.consumer).keep(block)

    def give_ahead(self, block: MirrorBlock) -> Minibatch[torch.Tensor]:
        """Return the block as a minibatch: work that is queued later sees what is drawn."""
        block.begin_again()
        return self.give(block)

    def generator(
        self,
        key: tuple[int, int],
        calls: int = 0,
        before: MirrorGenerator | None = None,
        rule: tuple[Any, ...] = (),
    ) -> MirrorGenerator:
        """Make what draws rows, or let it go on under another key: captured graphs hold the one that they have.

        Of the rule of the host's sampler only lanes count, over whose trajectories is drawn.
        """
        if before is None:
            over_trajectories = any(isinstance(each, _core.Lanes) for each in rule)
            return MirrorGenerator(self._mirror, key, calls, over_trajectories=over_trajectories)
        before.restart_under(key, calls)
        return before

    def unseen(self, source: _core.Follow) -> _core.Follow:
        """Return the same: what a device makes in `out` is seen when all of it is there."""
        return source

    def num_calls(self, generator: MirrorGenerator) -> int:
        """Return how many minibatches a generator has drawn, or is to draw by what is queued."""
        return generator.num_queued

    def num_incomplete(self, generator: MirrorGenerator) -> int:
        """Return how many rows were given as they are, though they were to be complete."""
        return generator.num_incomplete

    def prefetcher(
        self,
        members: Sequence[tuple[_core.Ring | _core.Follow, MirrorGenerator]],
        depth: int,
        steps: int | None,
        waits: Waits,
    ) -> _core.Prefetcher:
        """Make what draws at once: the device has the draws ahead in its queue."""
        ((source, generator),) = members
        return QueuedDraws(source, generator, depth, steps, waits)

    def _pool(self, consumer: Hashable) -> _Pool:
        pool = self._pools.get(consumer)
        if pool is None:
            pool = _Pool()
            self._pools.put(consumer, pool)
        return pool
