# SPDX-License-Identifier: MIT
"""The priorities of a buffer's transitions: read, set, and learned anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from fastreplay.batch.minibatch import Minibatch
from fastreplay.buffer.contents import Contents
from fastreplay.buffer.priorities import PriorityUpdate, given_numbers
from fastreplay.support.checks import checked_addresses, checked_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch
    from numpy.typing import ArrayLike, NDArray

    from fastreplay import _core
    from fastreplay.buffer.priorities import Priorities

__all__ = ["Weighed"]

ArrayT = TypeVar("ArrayT")  # torch.Tensor or numpy.ndarray


class Weighed(Contents[ArrayT]):
    """Base of the replay buffer: what its transitions weigh, where they are drawn by priority."""

    _priorities: Priorities | None
    _masses: _core.Priorities | None
    _origin: int  # which ring this is, since it was made or loaded

    def update_priorities(
        self, batch: Minibatch[Any] | Sequence[int] | NDArray[np.integer] | torch.Tensor, priorities: ArrayLike
    ) -> PriorityUpdate:
        """Give transitions other priorities, as a rule their absolute TD errors.

        Args:
            batch: A minibatch of this buffer, or tickets (B,) of its transitions. Any number of minibatches may be
                on their way; their transitions may have been overwritten.
            priorities: (B,) numbers: an array, a tensor of any device or graph, a list. The sign plays no part. Of
                equal tickets the last wins.

        Returns:
            How many took effect, and how many are of transitions that were overwritten or cleared.

        Raises:
            TypeError: Tickets are no integers, or priorities no numbers.
            ValueError: The minibatch is another buffer's, the numbers are not as many, one is not finite, or no
                transition ever had the ticket; nothing has changed. Or the buffer has no priorities.

        Thread safety:
            May be called from any thread, and waits for nobody.
        """
        masses = self._weighed("update_priorities")
        tickets: Any = None
        if isinstance(batch, Minibatch):
            if batch._beside.origin not in {0, self._origin}:
                raise ValueError(
                    "batch: expected a minibatch of this buffer, got one of another, or from before a load"
                )
            tickets = batch._host_tickets()
        if tickets is None:
            named: Any = batch.ticket if isinstance(batch, Minibatch) else batch
            tickets = checked_addresses("tickets", named.detach().cpu().numpy() if hasattr(named, "detach") else named)
        return PriorityUpdate(*masses.update(tickets, given_numbers("priorities", priorities)))

    @property
    def max_priority(self) -> float:
        """The largest |p| + eps so far, which new transitions get; 1.0 at first.

        Raises:
            TypeError: What is set is no number.
            ValueError: The buffer has no priorities; or what is set is negative or not finite.
        """
        return self._weighed("max_priority").largest

    @max_priority.setter
    def max_priority(self, value: float) -> None:
        self._weighed("max_priority").largest = checked_number("max_priority", value, 0)

    def _weighed(self, what: str) -> _core.Priorities:
        if self._masses is None:
            raise ValueError(f"{what}: the buffer was made without priorities")
        return self._masses
