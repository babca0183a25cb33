# SPDX-License-Identifier: MIT
"""Transitions that have frames in common on their way through pickle and back: as they are stored, each frame once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastreplay.buffer.snapshot import ReceivedTransitions, Transitions, checked_ticket, receive
from fastreplay.checkpoint.stored import Stored
from fastreplay.support.saving import format_of, pieces, run_length

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from fastreplay.support.saving import Format, Parser

    Array = NDArray[Any]

__all__ = ["FramedTransitions", "ReceivedFramed"]


class FramedTransitions(Transitions):
    """The transitions of a buffer that have frames in common: what they look up of older ones comes first."""

    def _pieces(self, form: Format) -> Iterator[int]:
        for ticket, count, is_kept, arrays in self._stored_runs():
            yield from (ticket, count, int(is_kept))
            for array in arrays:
                yield from pieces(np.ascontiguousarray(array), form)

    def _stored_runs(self) -> Iterator[tuple[int, int, bool, list[Array]]]:
        """Yield runs, each kind after an empty one: of what is looked up, and of what is kept.

        Where writers came past, all begins again with the newest transitions, half as many each time.
        """
        ring = self.buffer._ring
        stored = Stored(ring, self.buffer.schema)
        length = run_length(stored.row_bytes)
        first, end = ring.window()
        while True:
            start = max(first - ring.num_spare, 0)
            yield start, 0, False, []
            is_whole = True
            for is_kept, stop in ((False, first), (True, end)):
                if is_kept:
                    yield first, 0, True, []
                while is_whole and start < stop:
                    count = min(length, stop - start)
                    oldest, columns, beside = stored.read(start, count)
                    is_whole = start + (0 if is_kept else ring.num_spare) >= oldest
                    if is_whole:
                        yield start, count, is_kept, [*columns, *beside]
                        start += count
            if is_whole:
                return
            num_kept = (end - first) // 2
            oldest, end = ring.window()
            first = max(oldest, end - num_kept)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        form = format_of(protocol)
        return receive, (self.buffer, form), None, self._pieces(form)


class ReceivedFramed(ReceivedTransitions, FramedTransitions):
    """The transitions of such a buffer that is being loaded."""

    def _parse(self) -> Parser:
        ring = self.buffer._ring
        stored = Stored(ring, self.buffer.schema)
        while True:
            ticket = yield
            self.is_complete = False
            count = yield
            is_kept = yield
            checked_ticket("columns", ticket + count)
            if count:
                self._check(ticket, count, is_kept=bool(is_kept))
                yield from self._take(stored, count)
            elif is_kept:
                self.first = ticket
                ring.begin_here()
            else:
                self.first = -1
                ring.start_at(ticket)
            self._next = ticket + count
            self.is_complete = bool(is_kept)

    def _check(self, ticket: int, count: int, *, is_kept: bool) -> None:
        ring = self.buffer._ring
        most = ring.capacity - ring.num_spare if is_kept else ring.num_spare
        held = len(ring) if is_kept else ring.num_inserted
        if ticket != self._next or (self.first >= 0) != is_kept or held + count > most:
            raise ValueError(
                f"columns: expected at most {most} transitions, one after another, got {count} at {ticket}"
            )

    def _take(self, stored: Stored, count: int) -> Parser:
        columns = stored.empty(count)
        for column in columns:
            yield from self._fill(column)
        beside: list[Array] = []
        for group, codes in stored.codes(columns):
            frames = np.empty((int(stored.num_beside(group, codes).sum()), *group.shape), group.dtype)
            yield from self._fill(frames)
            beside.append(frames)
        stored.put(columns, beside)
        self.buffer._ring.restore(count)
