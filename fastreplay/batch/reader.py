# SPDX-License-Identifier: MIT
"""Minibatches of a ring by address: the transitions in some slots, or at some positions from the oldest on."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from fastreplay.batch.minibatch import Minibatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastreplay import _core
    from fastreplay.batch.delivery import Delivery

__all__ = ["Reader"]

# A slice has no index that could be out of range: where it meets a writer, it is read again.
_SLICE_TRIES = 1000


class Reader:
    """Reads transitions of a ring, those of one call as they were at one moment.

    Args:
        ring: Where the transitions lie.
        delivery: Where the minibatches are to lie.

    Thread safety:
        Any thread may read.
    """

    def __init__(self, ring: _core.Ring, delivery: Delivery) -> None:
        self._ring = ring
        self._delivery = delivery

    def by_slot(self, slots: NDArray[np.int64], out: Minibatch[Any] | None) -> Minibatch[Any]:
        """Read the transitions in these slots; into `out`, if it is one: as a whole, or not at all."""
        if out is None:
            return self._read(slots, by_slot=True)
        self._delivery.replace(self._delivery.block_of(out, len(slots)), self._ring, slots)
        return self._delivery.given_again(out)

    def by_position(self, positions: NDArray[np.int64]) -> Minibatch[Any]:
        """Read the transitions at these positions: 0 is the oldest, -1 the newest."""
        return self._read(positions, by_slot=False)

    def by_slice(self, positions: slice) -> Minibatch[Any]:
        """Read the transitions of a slice of positions."""
        for _ in range(_SLICE_TRIES):
            with suppress(IndexError):  # writers that reserved more left fewer finished ones than there were
                return self._read_slice(positions)
        return self._read_slice(positions)

    def one(self, positions: NDArray[np.int64]) -> Minibatch[Any]:
        """Read the transition at the one position: its fields have no batch axis."""
        batch: Any = self._read(positions, by_slot=False)
        values, ticket = tuple([value[0] for value in batch]), batch.ticket[0]
        if isinstance(batch.values()[0], np.ndarray):
            values, ticket = tuple(map(np.asarray, values)), np.asarray(ticket)
        return Minibatch(batch.schema, values, None, None, ticket)

    def _read_slice(self, positions: slice) -> Minibatch[Any]:
        return self._read(np.arange(*positions.indices(len(self._ring)), dtype=np.int64), by_slot=False)

    def _read(self, addresses: NDArray[np.int64], *, by_slot: bool) -> Minibatch[Any]:
        block = self._delivery.take(len(addresses))
        try:
            self._ring.read(by_slot, addresses, block.native)
        except BaseException:
            self._delivery.cancel(block)
            raise
        return self._delivery.give(block)
