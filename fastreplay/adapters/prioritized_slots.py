# SPDX-License-Identifier: MIT
"""The slots of a table of steps, drawn by priority. It knows no other library, and not what lies in the slots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastreplay.buffer.replay_buffer import ReplayBuffer

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from typing_extensions import Self

    from fastreplay.buffer.priorities import Priorities, PriorityUpdate
    from fastreplay.checkpoint.folder import Folder
    from fastreplay.checkpoint.manifest import Manifest
    from fastreplay.checkpoint.said import Said
    from fastreplay.checkpoint.save import SaveSource

__all__ = ["PrioritizedSlots", "SlotDraw"]


class SlotDraw(NamedTuple):
    """Slots drawn by priority."""

    slots: NDArray[np.int64]  # (B,)
    tickets: NDArray[np.int64]  # (B,), for `update`
    weights: NDArray[np.float32]  # (B,)


class PrioritizedSlots:
    """Draws slots that are filled one after the other, over and over, in proportion to priorities.

    Args:
        num_slots: How many there are.
        rule: How they are drawn.
        seed: Of the draws.
    """

    def __init__(self, num_slots: int, rule: Priorities, seed: int) -> None:
        # A ring of tickets: slot by slot like the table, with a byte each since a record has a field.
        self._ring = ReplayBuffer(num_slots, {"nothing": ((), "uint8")}, seed=seed, output="numpy", priorities=rule)
        self._first = self._head = 0  # tickets: of slot 0 at the beginning, and the next

    def fill(self, count: int) -> None:
        """Fill the next slots, with the largest priority so far."""
        self._ring.extend(np.zeros(count, np.uint8))
        self._head += count

    def follow(self, next_slot: int, num_filled: int) -> None:
        """Fill all slots anew, each with the same priority, where others are filled than the table's."""
        num_slots = self._ring.capacity
        if (self._head - self._first) % num_slots == next_slot % num_slots and len(self._ring) == num_filled:
            return
        self._ring.clear()  # tickets go on: none means another slot than before
        self._first = self._head
        if num_filled:
            self.fill(next_slot if num_filled == next_slot else num_slots + next_slot)

    def sample(self, batch_size: int, beta: float) -> SlotDraw:
        """Draw slots; their weights have this exponent.

        Raises:
            TypeError, ValueError: As `fastreplay.ReplayBuffer.sample`.
        """
        batch: Any = self._ring.sample(batch_size, beta=beta)
        return SlotDraw((batch.ticket - self._first) % self._ring.capacity, batch.ticket, batch.weight)

    def kept_source(self) -> SaveSource:
        """Return what a checkpoint holds of the priorities: a ring of slots."""
        return self._ring._kept_source()

    def said(self) -> dict[str, int]:
        """Return what is to be known beside."""
        return {"first": self._first, "head": self._head}

    def loaded(self, folder: Folder, manifest: Manifest, said: Said) -> Self:
        """Return the like of these with what a checkpoint holds.

        Raises:
            OSError, ValueError: It is damaged, or of other slots or another rule.
        """
        made = object.__new__(type(self))
        made._ring = self._ring._loaded_alike(folder, manifest)
        made._first, made._head = said.integer("first"), said.integer("head", said.integer("first"))
        return made

    def undo(self) -> None:
        """Let the next draw be made like the last one."""
        state = self._ring.rng_state
        self._ring.rng_state = {**state, "calls": state["calls"] - 1}

    def update(self, tickets: ArrayLike, priorities: ArrayLike) -> PriorityUpdate:
        """Give slots other priorities.

        Raises:
            TypeError, ValueError: As `fastreplay.ReplayBuffer.update_priorities`.
        """
        return self._ring.update_priorities(tickets, priorities)  # type: ignore[arg-type]
