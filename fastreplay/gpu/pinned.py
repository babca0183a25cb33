# SPDX-License-Identifier: MIT
"""Delivery to a device through page-locked memory: which block is taken next, and which are free again."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from fastreplay import _core
from fastreplay.batch.delivery import Delivery
from fastreplay.batch.pool import most_blocks
from fastreplay.gpu.pinned_block import PinnedBlock
from fastreplay.support.latest import Latest
from fastreplay.support.living import Living

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    import torch

    from fastreplay.batch.form import Form
    from fastreplay.batch.minibatch import Minibatch
    from fastreplay.batch.waits import Waits
    from fastreplay.gpu.device import Device

__all__ = ["PinnedDelivery"]

# Blocks of one size and consumer before one that was dropped just now is taken again: its copy would wait for
# all that the consumer has queued. With three, one is held, one was dropped now, and one a step earlier.
_BLOCKS_IN_TURN = 3
_ROTATIONS = 4
_PROBES = 4


class _Rotation:
    """The blocks of one batch size that one consumer was given, or may be given."""

    __slots__ = ("free", "in_use")

    def __init__(self) -> None:
        self.free: deque[PinnedBlock] = deque()
        self.in_use: deque[PinnedBlock] = deque()

    @property
    def num_blocks(self) -> int:
        """How many there are."""
        return len(self.free) + len(self.in_use)


class PinnedDelivery(Delivery):
    """Minibatches that are gathered into page-locked memory, and sent by one asynchronous copy.

    A block goes to one consumer only, the stream that its memory was allocated for: whoever frees that memory in
    the end, its reuse is then ordered after the work that was queued on it.

    Thread safety:
        Every block lies in one queue or belongs to one thread; the queues' own operations are atomic.
    """

    place = "pinned"

    def __init__(
        self,
        device: Device,
        form: Form,
        waits: Waits,
        origin: int = 0,
    ) -> None:
        super().__init__(form, device.device, origin)
        self._device = device
        self._waits = waits
        self._rotations: Latest[tuple[int, Hashable], _Rotation] = Latest(_ROTATIONS)
        self._blocks: Living[PinnedBlock] = Living()

    @property
    def pinned_bytes(self) -> int:  # type: ignore[override]
        """Bytes of page-locked memory."""
        return sum(block.transfer.host.nbytes for block in self._blocks)

    def num_in_flight(self, num_ahead: int) -> int:  # noqa: ARG002 - loaders' blocks are known here
        """Return how many blocks are being filled or copied, or are a prefetcher's."""
        return sum(block.is_in_flight() for block in self._blocks)

    def take(self, batch_size: int) -> PinnedBlock:
        """Return a block to be filled: to be handed out or cancelled afterwards.

        Raises:
            RuntimeError: A graph is being captured.
        """
        self._device.refuse_capture("minibatch")
        rotation = self._rotation(batch_size, self._device.consumer())
        block = self._copied(rotation)
        if block is None and rotation.num_blocks >= _BLOCKS_IN_TURN:
            self._sweep(rotation)
            block = self._copied(rotation)
        if block is None and rotation.free and rotation.num_blocks >= self._most(rotation.free[0]):
            block = self._waited_for(rotation)
        if block is None:
            block = PinnedBlock(self.form, batch_size, self._device)
            self._blocks.add(block)
        self._sweep(rotation)
        block.begin()
        return block

    def give(self, block: PinnedBlock) -> Minibatch[torch.Tensor]:
        """Send a filled block, and return its twin as a minibatch."""
        block.start()
        return self._given(block, block.hand_out())

    def cancel(self, block: PinnedBlock) -> None:
        """Take a block back that was taken and is not handed out."""
        block.cancel()
        self._rotation(block.layout.batch_size, block.consumer).free.append(block)

    def give_ahead(self, block: PinnedBlock) -> Minibatch[torch.Tensor]:
        """Return the twin of a block that a prefetcher is to fill and send."""
        return self._given(block, block.hand_out_ahead())

    def make_ready(self, batch: Minibatch[Any]) -> Minibatch[Any]:
        """Let the calling thread's stream wait for what a prefetcher sent.

        Raises:
            RuntimeError: A graph is being captured.
        """
        self._device.refuse_capture("loader")
        block: Any = batch._block
        block.make_ready()
        return batch

    def cancel_ahead(self, block: PinnedBlock) -> None:
        """Finish what a prefetcher sent and nobody is to have."""
        block.cancel_ahead()

    def prefetcher(
        self,
        members: Sequence[tuple[_core.Ring | _core.Follow, _core.Sampler]],
        depth: int,
        steps: int | None,
        waits: Waits,
    ) -> _core.Prefetcher:
        """Make what fills and sends blocks on a native thread."""
        return _core.Prefetcher(members, depth, steps, waits, self._device.sender())

    def describe(self, error: int) -> str:
        """Return a sender's error in words."""
        return self._device.describe(error)

    def _given(self, block: PinnedBlock, tensors: tuple[torch.Tensor, ...]) -> Minibatch[torch.Tensor]:
        self._rotation(block.layout.batch_size, block.consumer).in_use.append(block)
        return self._minibatch(tensors, block)

    def _rotation(self, batch_size: int, consumer: Hashable) -> _Rotation:
        rotation = self._rotations.get((batch_size, consumer))
        if rotation is None:
            rotation = _Rotation()
            for old in self._rotations.put((batch_size, consumer), rotation):
                for block in (*old.free, *old.in_use):
                    self._wait_for(block)
        return rotation

    def _copied(self, rotation: _Rotation) -> PinnedBlock | None:
        """Take out the free block of longest standing that is no longer being copied."""
        for _ in range(min(_PROBES, len(rotation.free))):
            try:
                block = rotation.free.popleft()
            except IndexError:  # other threads have them
                return None
            if block.transfer.is_copied():
                return block
            rotation.free.append(block)
        return None

    def _sweep(self, rotation: _Rotation) -> None:
        """Free the blocks that nothing refers to any more; forget what is beyond the bound."""
        for _ in range(min(_PROBES, len(rotation.in_use))):
            try:
                block = rotation.in_use.popleft()
            except IndexError:  # other threads have them
                break
            if block.is_unreferenced():
                block.release()
                rotation.free.append(block)
            else:
                rotation.in_use.append(block)
        if rotation.free and len(rotation.free) > self._most(rotation.free[0]):
            surplus = self._copied(rotation)
            if surplus is not None:
                self._blocks.discard(surplus)

    def _waited_for(self, rotation: _Rotation) -> PinnedBlock | None:
        try:
            block = rotation.free.popleft()
        except IndexError:  # another thread was first
            return None
        self._wait_for(block)
        return block

    def _wait_for(self, block: PinnedBlock) -> None:
        if not block.transfer.is_copied():
            self._waits.during(block.transfer.finish)

    @staticmethod
    def _most(block: PinnedBlock) -> int:
        return most_blocks(block.transfer.host.nbytes)
