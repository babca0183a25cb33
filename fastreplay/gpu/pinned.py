# SPDX-License-Identifier: MIT
"""Minibatches on their way to a device: page-locked blocks, their twins over there, one copy each.

    free -> filling -> copying -> ready -> in use -> free

Rows are gathered into the page-locked block (filling), one asynchronous copy on a side stream takes them to
the twin (copying), the consumer's stream is made to wait for that copy (ready), and views of the twin are given
out (in use) until nothing refers to them any more (free). Two fences make reuse safe: the host does not fill a
block that is still being copied, and the device does not overwrite a twin before the work that the consumer had
queued on it is done. The host itself waits for neither. Must not know CUDA: a device is a `Device`.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from fastreplay import _core
from fastreplay.batch.block import Layout, most_blocks
from fastreplay.gpu.tensors import DeviceTensors
from fastreplay.support.latest import Latest
from fastreplay.support.living import Living

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from fastreplay.batch.block import Prefetcher, Waits
    from fastreplay.gpu.mirror import RemoteRing
    from fastreplay.schema.schema import Schema

# Slots of one size and consumer before a block that was dropped just now is taken again: its copy would wait for
# all that the consumer has queued. With three, one is held, one was dropped now, and one a step earlier.
_SLOTS_IN_TURN = 3
_LANES = 4
_PROBES = 4

ResultT = TypeVar("ResultT")


class Sender(NamedTuple):
    """What sends filled blocks to a device from native threads."""

    address: int  # of a C function: given a block's context, it returns 0 or an error number
    describe: Callable[[int], str]  # the error number in words


class Transfer(Protocol):
    """A page-locked block, its twin on the device, and what orders the copy from one to the other.

    The consumer is the calling thread's current stream on the device.
    """

    @property
    def host(self) -> NDArray[np.uint8]:
        """The page-locked block, (num_bytes,)."""

    @property
    def target(self) -> torch.Tensor:
        """Its twin, (num_bytes,) uint8, allocated for the consumer's stream."""

    @property
    def context(self) -> int:
        """Address to be given to the device's `sender`."""

    def start(self) -> None:
        """Queue the copy on the side stream, after what `release` marked; do not wait."""

    def is_copied(self) -> bool:
        """Tell whether the last copy is done; do not wait."""

    def finish(self) -> None:
        """Wait until the last copy is done."""

    def make_consumer_wait(self) -> None:
        """Let what the consumer queues from now on come after the last copy."""

    def release(self) -> None:
        """Let the next copy come after what the consumer has queued up to now."""


class Device(Protocol):
    """An accelerator with streams."""

    @property
    def device(self) -> torch.device:
        """What torch calls it."""

    def consumer(self) -> Hashable:
        """Return what identifies the stream on which the calling thread queues its work."""

    def allocate(self, num_bytes: int) -> Transfer:
        """Make a transfer; raise RuntimeError where the memory cannot be had or page-locked."""

    def ring(self, capacity: int, stride: int) -> RemoteRing:
        """Make a ring of records in the device's memory.

        Raises:
            RuntimeError: It cannot be had, and why.
        """

    def sender(self) -> Sender:
        """Return what starts transfers from native threads.

        Raises:
            RuntimeError: There is nothing that does, and why.
        """


class State(Enum):
    """Where a slot is on its way."""

    FREE = "free"
    FILLING = "filling"
    COPYING = "copying"
    READY = "ready"
    IN_USE = "in use"


# Beside the way round: a block that is not filled after all, and one that its holder has filled anew (`out=`).
_NEXT = {
    State.FREE: (State.FILLING,),
    State.FILLING: (State.COPYING, State.FREE, State.IN_USE),
    State.COPYING: (State.READY,),
    State.READY: (State.IN_USE,),
    State.IN_USE: (State.FREE, State.FILLING),
}


class Slot:
    """One transfer and the state that both its blocks are in.

    A slot belongs to one thread at a time: to who took it until it is handed out or cancelled, then to who
    takes it out of its lane.

    Raises:
        AssertionError: A call does not fit the state; the message names both states.
    """

    __slots__ = (
        "__weakref__",
        "_state",
        "consumer",
        "device",
        "is_ahead",
        "layout",
        "native",
        "tensors",
        "transfer",
    )

    def __init__(self, ring: _core.Ring, schema: Schema, batch_size: int, device: Device) -> None:
        self.device: torch.device | str = device.device
        self.consumer = device.consumer()
        self.transfer = device.allocate(max(ring.block_bytes(batch_size), 1))
        self.native = _core.Block(ring, batch_size, self.transfer.host)
        self.layout = Layout(self.native, schema)
        self.tensors = DeviceTensors(self.transfer.target, self.layout)
        self.is_ahead = False  # a prefetcher was given its minibatch, and lets it go if it is interrupted
        self._state = State.FREE

    @property
    def state(self) -> State:
        """Where it is on its way."""
        return self._state

    @property
    def context(self) -> int:
        """What the device's sender takes."""
        return self.transfer.context

    def flat_tensor(self) -> torch.Tensor:
        """Return the twin's bytes."""
        return self.transfer.target

    def ticket(self) -> torch.Tensor:
        """Return the tickets that were handed out with the fields."""
        return self.tensors.ticket

    def first_changed(self, _values: tuple[object, ...], _tickets: object) -> int:
        """Return the position of the first field or tickets handed out that are not as they were made, or -1."""
        return self.tensors.first_changed()

    def is_unreferenced(self) -> bool:
        """Tell whether nothing outside refers to the twin's memory."""
        return self.tensors.is_free()

    def is_in_flight(self) -> bool:
        """Tell whether it is being filled or copied, or is a prefetcher's."""
        is_ahead = self.is_ahead and not self.is_unreferenced()
        return is_ahead or self._state is State.FILLING or not self.transfer.is_copied()

    def begin(self) -> None:
        """Free -> filling: the host may write into the block."""
        if not self.transfer.is_copied():
            raise AssertionError("block: it is to be filled while it is being copied")
        self._enter(State.FREE, State.FILLING)

    def start(self) -> None:
        """Filling -> copying: start the copy."""
        self._enter(State.FILLING, State.COPYING)
        self.transfer.start()

    def hand_out_ahead(self) -> tuple[torch.Tensor, ...]:
        """Filling -> in use: return tensors that a prefetcher keeps until it has filled and sent the block."""
        tensors = self.tensors.hand_out()
        self._enter(State.FILLING, State.IN_USE)
        self.is_ahead = True
        return tensors

    def make_ready(self) -> None:
        """Let what is queued from now on come after the copy that a prefetcher has started."""
        self.transfer.make_consumer_wait()
        self.is_ahead = False

    def cancel_ahead(self) -> None:
        """Wait for the copy, if a prefetcher has started it, of what nobody is to have."""
        self.transfer.finish()
        self.transfer.make_consumer_wait()
        self.is_ahead = False

    def hand_out(self) -> tuple[torch.Tensor, ...]:
        """Copying -> ready -> in use: return tensors that are right for what is queued from now on."""
        self._make_ready()
        return self.tensors.hand_out()

    def release(self) -> None:
        """In use -> free: nothing refers to the twin; its next copy comes after what was queued on it."""
        if not self.is_unreferenced():
            raise AssertionError("block: it is to be freed while it is referred to")
        self._enter(State.IN_USE, State.FREE)
        self.is_ahead = False
        self.transfer.release()

    def cancel(self) -> None:
        """Filling -> free: it was not filled, or nobody wants it; a copy that was started is waited for."""
        self._enter(State.FILLING, State.FREE)
        self.transfer.finish()
        self.transfer.make_consumer_wait()

    def refill(self, fill: Callable[..., ResultT], *arguments: object) -> ResultT:
        """In use -> filling -> copying -> ready -> in use: replace what its holder sees.

        What the consumer has queued up to now sees the old rows. Where `fill` raises or returns False,
        nothing changes.
        """
        self._enter(State.IN_USE, State.FILLING)
        filled = False
        try:
            self.transfer.finish()
            result = fill(*arguments, self.native)
            filled = result is not False
        finally:
            if not filled:
                self._enter(State.FILLING, State.IN_USE)
        if filled:
            self.transfer.release()
            self.start()
            self._make_ready()
            self.tensors.count_up_versions()
        return result

    def _make_ready(self) -> None:
        self._enter(State.COPYING, State.READY)
        self.transfer.make_consumer_wait()
        self._enter(State.READY, State.IN_USE)

    def _enter(self, expected: State, state: State) -> None:
        if self._state is not expected or state not in _NEXT[expected]:
            raise AssertionError(f"block: {self._state.value} -> {state.value} is no step of its way")
        self._state = state


class _Lane:
    """The slots of one batch size that one consumer was given, or may be given."""

    __slots__ = ("free", "in_use")

    def __init__(self) -> None:
        self.free: deque[Slot] = deque()
        self.in_use: deque[Slot] = deque()


class Pipeline:
    """Hands out free slots, and finds out which of them are free again.

    A slot goes to one consumer only, the stream that its memory was allocated for: whoever frees that memory in
    the end, its reuse is then ordered after the work that was queued on it.

    Thread safety:
        Every slot lies in one queue or belongs to one thread; the queues' own operations are atomic.
    """

    def __init__(self, device: Device, ring: _core.Ring, schema: Schema, waits: Waits) -> None:
        self._device = device
        self._ring = ring
        self._schema = schema
        self._waits = waits
        self._lanes: Latest[tuple[int, Hashable], _Lane] = Latest(_LANES)
        self._slots: Living[Slot] = Living()

    @property
    def pinned_bytes(self) -> int:
        """Bytes of page-locked memory."""
        return sum(slot.transfer.host.nbytes for slot in self._slots)

    @property
    def num_in_flight(self) -> int:
        """Blocks that are being filled or copied."""
        return sum(slot.is_in_flight() for slot in self._slots)

    def take(self, batch_size: int) -> Slot:
        """Return a slot to be filled: to be handed out or cancelled afterwards."""
        lane = self._lane(batch_size, self._device.consumer())
        slot = self._copied(lane)
        if slot is None and len(lane.free) + len(lane.in_use) >= _SLOTS_IN_TURN:
            self._sweep(lane)
            slot = self._copied(lane)
        if slot is None and lane.free and len(lane.free) + len(lane.in_use) >= self._most(lane.free[0]):
            slot = self._waited_for(lane)
        if slot is None:
            slot = Slot(self._ring, self._schema, batch_size, self._device)
            self._slots.add(slot)
        self._sweep(lane)
        slot.begin()
        return slot

    def hand_out(self, slot: Slot) -> tuple[torch.Tensor, ...]:
        """Send a filled slot, and return its fields as tensors on the device."""
        slot.start()
        tensors = slot.hand_out()
        self._lane(slot.layout.batch_size, slot.consumer).in_use.append(slot)
        return tensors

    def cancel(self, slot: Slot) -> None:
        """Take a slot back that was taken and is not handed out."""
        slot.cancel()
        self._lane(slot.layout.batch_size, slot.consumer).free.append(slot)

    def hand_out_ahead(self, slot: Slot) -> tuple[torch.Tensor, ...]:
        """Return the fields of a slot that a prefetcher is to fill and send."""
        tensors = slot.hand_out_ahead()
        self._lane(slot.layout.batch_size, slot.consumer).in_use.append(slot)
        return tensors

    def make_ready(self, slot: Slot) -> None:
        """Let the calling thread's stream wait for what a prefetcher sent."""
        slot.make_ready()

    def cancel_ahead(self, slot: Slot) -> None:
        """Finish what a prefetcher sent and nobody is to have."""
        slot.cancel_ahead()

    def replace(self, slot: Slot, ring: _core.Ring, slots: NDArray[np.int64]) -> None:
        """Replace what a slot's holder sees by the transitions in these slots of the ring, or change nothing.

        They are read into the page-locked block, which nobody sees.
        """
        slot.refill(ring.read, True, slots)

    def accepts(self, block: object) -> bool:
        """Tell whether it is a slot."""
        return isinstance(block, Slot)

    def prefetcher(
        self, ring: _core.Ring, sampler: _core.Sampler, depth: int, steps: int | None, waits: Waits
    ) -> Prefetcher[Any]:
        """Make what fills and sends slots on a native thread."""
        return _core.Prefetcher(ring, sampler, depth, steps, waits, self._device.sender().address)

    def describe(self, error: int) -> str:
        """Return a sender's error in words."""
        return self._device.sender().describe(error)

    def _lane(self, batch_size: int, consumer: Hashable) -> _Lane:
        lane = self._lanes.get((batch_size, consumer))
        if lane is None:
            lane = _Lane()
            for old in self._lanes.put((batch_size, consumer), lane):
                for slot in (*old.free, *old.in_use):
                    self._wait_for(slot)
        return lane

    def _copied(self, lane: _Lane) -> Slot | None:
        """Take out the free slot of longest standing whose block is no longer being copied."""
        for _ in range(_PROBES):
            try:
                slot = lane.free.popleft()
            except IndexError:
                return None
            if slot.transfer.is_copied():
                return slot
            lane.free.append(slot)
        return None

    def _sweep(self, lane: _Lane) -> None:
        """Free the slots that nothing refers to any more; forget what is beyond the bound."""
        for _ in range(_PROBES):
            try:
                slot = lane.in_use.popleft()
            except IndexError:
                break
            if slot.is_unreferenced():
                slot.release()
                lane.free.append(slot)
            else:
                lane.in_use.append(slot)
        if lane.free and len(lane.free) > self._most(lane.free[0]) and (surplus := self._copied(lane)) is not None:
            self._slots.discard(surplus)

    def _waited_for(self, lane: _Lane) -> Slot | None:
        try:
            slot = lane.free.popleft()
        except IndexError:  # another thread was first
            return None
        self._wait_for(slot)
        return slot

    def _wait_for(self, slot: Slot) -> None:
        if not slot.transfer.is_copied():
            self._waits.during(slot.transfer.finish)

    @staticmethod
    def _most(slot: Slot) -> int:
        return most_blocks(slot.transfer.host.nbytes)
