# SPDX-License-Identifier: MIT
"""A minibatch's memory on its way to a device: a page-locked block, its twin over there, one copy from here to there.

    free -> filling -> copying -> ready -> in use -> free

Rows are gathered into the page-locked block (filling), one asynchronous copy on a side stream takes them to
the twin (copying), the consumer's stream is made to wait for that copy (ready), and views of the twin are given
out (in use) until nothing refers to them any more (free). Two fences make reuse safe: the host does not fill a
block that is still being copied, and the device does not overwrite a twin before the work that the consumer had
queued on it is done. The host itself waits for neither.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, TypeVar

from fastreplay import _core
from fastreplay.batch.layout import Layout
from fastreplay.gpu.tensors import DeviceTensors

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from fastreplay.batch.form import Form
    from fastreplay.gpu.device import Device

__all__ = ["PinnedBlock", "State"]

ResultT = TypeVar("ResultT")


class State(Enum):
    """Where a block is on its way."""

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


class PinnedBlock:
    """A page-locked block, its twin on the device, and the state that both are in.

    It belongs to one thread at a time: to who took it until it is handed out or cancelled, then to who
    takes it out of its lane.

    Raises:
        AssertionError: A call does not fit the state; the message names both states.
    """

    __slots__ = (
        "__weakref__",
        "_refuse_capture",
        "_state",
        "consumer",
        "device",
        "is_ahead",
        "layout",
        "native",
        "tensors",
        "transfer",
    )

    place = "pinned"

    def __init__(
        self,
        form: Form,
        batch_size: int,
        device: Device,
    ) -> None:
        self.device: torch.device | str = device.device
        self._refuse_capture = device.refuse_capture
        self.consumer = device.consumer()
        self.layout = Layout(form, batch_size, *_core.block_layout(form.parts, batch_size))
        self.transfer = device.allocate(max(self.layout.num_bytes, 1))
        self.native = _core.Block(form.parts, batch_size, self.transfer.host)
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

    def host_rows(self) -> None:
        """Return nothing: the tickets are the device's."""

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
        """Wait for the copy, if a prefetcher has started it, of what nobody is to have; not in a forked child."""
        if self.transfer.is_inherited():
            return
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

        Raises:
            RuntimeError: A graph is being captured.
        """
        self._refuse_capture("minibatch")
        self._enter(State.IN_USE, State.FILLING)
        filled = False
        try:
            self.transfer.finish()
            result = fill(*arguments, self.native)
            filled = result != 0
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
