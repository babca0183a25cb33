# SPDX-License-Identifier: MIT
"""The records of a ring on their way through pickle and back: as they are stored, each frame once, in little memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastreplay.checkpoint.stored import MOST_TICKETS
from fastreplay.support.saving import Receiver, pieces, run_length

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from fastreplay.checkpoint.stored import Stored
    from fastreplay.support.saving import Format, Parser

    Array = NDArray[Any]

__all__ = ["ReceivedRecords", "checked_ticket", "pieces_of"]


def pieces_of(stored: Stored, form: Format) -> Iterator[int]:
    """Yield the records of a ring, in runs of some hundred kilobytes, which are read when the pickler asks for them.

    Writers are not stopped. Each run begins with its first ticket, how many there are, and whether they are kept or
    only looked up; before the first of a kind there is an empty one. Where writers came past, all begins again with the
    newest.
    """
    for ticket, count, is_kept, arrays in _runs(stored):
        yield from (ticket, count, int(is_kept))
        for array in arrays:
            yield from pieces(np.ascontiguousarray(array), form)


def _runs(stored: Stored) -> Iterator[tuple[int, int, bool, list[Array]]]:
    from fastreplay.checkpoint.retreat import Retreat

    length, wanted = run_length(stored.form.row_bytes), Retreat(stored)
    while True:
        is_whole, num_before = True, stored.num_spare if wanted.first < wanted.end else 0
        start = max(wanted.first - num_before, 0)
        yield start, 0, False, []
        for is_kept, stop in ((False, wanted.first), (True, wanted.end)):
            if is_whole and is_kept:
                yield wanted.first, 0, True, []
            while is_whole and start < stop:
                count = min(length, stop - start)
                oldest, columns, beside = stored.read(start, count)
                is_whole = start + (0 if is_kept else stored.num_spare) >= oldest
                if is_whole:
                    yield start, count, is_kept, [*columns, *beside]
                    start += count
        if is_whole:
            return
        wanted.go()


class ReceivedRecords(Receiver):
    """The records of a ring that is being loaded: they are laid into an empty one as they come.

    Attributes:
        first: The ticket of the first that is kept; -1 before there is one.
    """

    def __init__(self, stored: Stored, form: Format) -> None:
        self._stored = stored
        self.first = self._next = -1
        super().__init__(form)

    def _parse(self) -> Parser:
        ring = self._stored.ring
        while True:
            ticket = yield
            self.is_complete = False
            count = yield
            is_kept = yield
            checked_ticket("columns", ticket + count)
            if count or is_kept:
                self._check(ticket, count, is_kept=bool(is_kept))
            if count:
                yield from self._take(count)
            elif is_kept:
                self.first = ticket
                ring.begin_here()
            else:
                self.first = -1
                ring.start_at(ticket)
            self._next = ticket + count
            self.is_complete = bool(is_kept)

    def _check(self, ticket: int, count: int, *, is_kept: bool) -> None:
        ring = self._stored.ring
        most = ring.capacity - ring.num_spare if is_kept else ring.num_spare
        held = len(ring) if is_kept else ring.num_inserted
        if ticket != self._next or (count and (self.first >= 0) != is_kept) or held + count > most:
            raise ValueError(
                f"columns: expected at most {most} transitions, one after another, got {count} at {ticket}"
            )

    def _take(self, count: int) -> Parser:
        stored = self._stored
        columns = stored.empty(count)
        for column in columns:
            yield from self._fill(column)
        beside: list[Array] = []
        for group, codes in stored.form.codes(columns):
            frames = np.empty((int(stored.form.num_beside(group, codes).sum()), *group.shape), group.dtype)
            yield from self._fill(frames)
            beside.append(frames)
        stored.put(columns, beside)
        stored.ring.restore(count)


def checked_ticket(name: str, ticket: object) -> int:
    """Return a ticket that a ring can start at.

    Raises:
        ValueError: It is no count of inserts.
    """
    if type(ticket) is not int or not 0 <= ticket <= MOST_TICKETS:
        raise ValueError(f"{name}: expected a ticket, an integer in [0, 2**62], got {ticket!r}")
    return ticket
