# SPDX-License-Identifier: MIT
"""The priorities of a buffer's transitions: read, set, and learned anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fastreplay.batch.minibatch import Minibatch
from fastreplay.buffer.contents import Contents
from fastreplay.buffer.priorities import (
    PriorityUpdate,
    axis_of_steps,
    check_finite,
    given_numbers,
    numbers,
    reduced,
    trained_in,
)
from fastreplay.support.checks import checked_addresses, checked_number, num_axes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import ArrayLike, NDArray

    from fastreplay import _core
    from fastreplay.buffer.priorities import Priorities
    from fastreplay.gpu.mirror import Mirror
    from fastreplay.gpu.mirror_masses import MirrorMasses

__all__ = ["Weighed"]

ArrayT = TypeVar("ArrayT")  # torch.Tensor or numpy.ndarray


class Weighed(Contents[ArrayT]):
    """Base of the replay buffer: what its transitions weigh, where they are drawn by priority."""

    _priorities: Priorities | None
    _masses: _core.Priorities | None
    _mirror: Mirror | None
    _origin: int  # which ring this is, since it was made or loaded

    def update_priorities(
        self,
        batch: Minibatch[Any] | Sequence[int] | NDArray[np.integer] | torch.Tensor,
        priorities: ArrayLike,
        *,
        eta: float = 0.9,
    ) -> PriorityUpdate:
        """Give transitions other priorities, as a rule their absolute TD errors.

        Args:
            batch: A minibatch of this buffer, or tickets (B,) of its transitions. Any number of minibatches may be
                on their way; their transitions may have been overwritten.
            priorities: (B,) numbers: an array, a tensor of any device or graph, a list. The sign plays no part. Of
                equal tickets the last wins. Of a minibatch of sequences also (B, L), or (L, B) where steps come first:
                each row gets eta times the largest of its trained steps, and (1 - eta) times their mean (Kapturowski et
                al. 2019).
            eta: That share, in [0, 1].

        Returns:
            How many took effect, and how many are of transitions that were overwritten or cleared. With
            storage="cuda" the device counts: two () int64 tensors over there, to be read when you like; what is told
            of tensors over there is then passed over instead of refused: a ticket that no transition had counts as
            one that is gone, and a number that is not finite in `stats()["refused"]`.

        Raises:
            TypeError: Tickets are no integers, or priorities no numbers.
            ValueError: The minibatch is another buffer's, the numbers are not as many, one is not finite, or no
                transition ever had the ticket; nothing has changed. Or the buffer has no priorities.
            RuntimeError: A graph is being captured, and the tickets or numbers are the host's.

        Thread safety:
            May be called from any thread, and waits for nobody. With storage="cuda" it is queued on the stream that is
            current, and may be captured in a graph, whose replays change the priorities of what was flushed by then.
        """
        masses = self._weighed("update_priorities")
        tickets: Any = batch
        if isinstance(batch, Minibatch):
            origin = batch._beside.origin
            if origin != self._origin:
                raise ValueError(
                    "batch: expected a minibatch of this buffer, got one of another, or from before a load"
                )
            if num_axes(priorities) == 2:
                priorities = self._reduced(batch, priorities, eta)
            rows = batch._host_rows() if self._mirror is None else None
            if rows is not None:
                return PriorityUpdate(*masses.update(rows, given_numbers("priorities", priorities)))
            tickets = batch.ticket
        if self._mirror is not None and self._mirror.masses is not None:
            return self._update_there(self._mirror.masses, tickets, priorities)
        return PriorityUpdate(*masses.update(_host_integers(tickets), given_numbers("priorities", priorities)))

    def _reduced(self, batch: Minibatch[Any], errors: Any, eta: float) -> Any:
        """Return what the errors of sequences say of their rows, where the errors are."""
        there = None if self._mirror is None else self._mirror.masses
        if there is None or not there.is_there(errors):
            return reduced(batch, errors, eta)
        trained, share = trained_in(batch, errors.shape), checked_number("eta", eta, 0, 1)
        return there.reduced(trained, errors, share, axis_of_steps(batch))

    def _slots_of(self, batch: Minibatch[Any]) -> list[int]:
        """Return the slots that a minibatch's transitions were drawn from."""
        rows = batch._host_rows()
        return (batch.ticket % self._ring.capacity).tolist() if rows is None else self._ring.slots(rows)

    def _update_slots(self, slots: list[int] | NDArray[np.int64], priorities: ArrayLike) -> None:
        """Give what lies in some slots now other priorities, on the host.

        Raises:
            IndexError: A slot holds no transition.
            TypeError, ValueError: As `update_priorities`; or an element of a list is no integer.
        """
        self._weighed("update_priorities").update_slots(slots, given_numbers("priorities", priorities))

    def _update_there(self, masses: MirrorMasses, tickets: Any, priorities: Any) -> PriorityUpdate:
        """Queue an update of what a device keeps. What is the host's is refused as it is here."""
        if not masses.is_there(tickets):
            tickets = _host_integers(tickets)
            head = self._ring.num_reserved
            for i in np.flatnonzero((tickets < 0) | (tickets >= head))[:1]:
                raise ValueError(f"tickets[{i}]: {tickets[i]} was never given to a transition: the next is {head}")
        if not masses.is_there(priorities):
            priorities = numbers("priorities", priorities)
            check_finite("priorities", priorities)
        counts: tuple[Any, Any] = masses.update(tickets, priorities)
        return PriorityUpdate(*counts)

    @property
    def max_priority(self) -> float:
        """The largest |p| + eps so far, which new transitions get; 1.0 at first.

        With storage="cuda", reading it waits for the device.

        Raises:
            TypeError: What is set is no number.
            ValueError: The buffer has no priorities; or what is set is negative or not finite.
        """
        return self._kept("max_priority").largest

    @max_priority.setter
    def max_priority(self, value: float) -> None:
        self._kept("max_priority").largest = checked_number("max_priority", value, 0)

    def _kept(self, what: str) -> _core.Priorities | MirrorMasses:
        """Return the masses where they are kept: the host's, or the device's."""
        masses = self._weighed(what)
        return masses if self._mirror is None or self._mirror.masses is None else self._mirror.masses

    def _weighed(self, what: str) -> _core.Priorities:
        if self._masses is None:
            raise ValueError(f"{what}: the buffer was made without priorities")
        return self._masses


def _host_integers(tickets: Any) -> NDArray[np.int64]:
    return checked_addresses("tickets", tickets.detach().cpu().numpy() if hasattr(tickets, "detach") else tickets)
