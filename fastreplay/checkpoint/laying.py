# SPDX-License-Identifier: MIT
"""Records on their way into a ring that nobody else uses: from a folder, or from another ring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fastreplay.checkpoint.retreat import Retreat
    from fastreplay.checkpoint.stored import Stored

    Array = NDArray[Any]

__all__ = ["Laying", "copied"]

_BYTES = 1 << 20  # of records that are copied at a time, which the second cache level holds


class Laying:
    """Lays records into an empty ring, or begins it anew: what is only looked up, then what is kept.

    Args:
        stored: The ring's records.
        first: The ticket from which they are kept.
        end: One past the last.
        looks_back: How many before the first are looked up.
    """

    def __init__(self, stored: Stored, first: int, end: int, looks_back: int) -> None:
        self._stored = stored
        self._first = first
        self._end = end
        self.start = max(first - min(looks_back, stored.ring.num_spare), 0)
        self._is_begun = False
        stored.ring.start_at(self.start)

    def add(self, ticket: int, columns: list[Array], beside: list[Array]) -> None:
        """Lay what follows: records from a ticket on, and the frames beside them.

        Raises:
            ValueError: A code names no frame, or there are other frames beside records than they name.
        """
        stored, stop = self._stored, ticket + len(columns[0])
        counts = [stored.form.num_beside(group, codes) for group, codes in stored.form.codes(columns)]
        if [int(each.sum()) for each in counts] != [len(frames) for frames in beside]:
            raise ValueError("its records have other frames beside them than it holds")
        for begin, end, is_kept in ((self.start, self._first, False), (self._first, self._end, True)):
            rows = slice(max(begin - ticket, 0), min(end, stop) - ticket)
            if rows.stop <= rows.start:
                continue
            if is_kept:
                self.begin()
            stored.put([each[rows] for each in columns], _of_rows(beside, counts, rows))
            stored.ring.restore(rows.stop - rows.start)

    def begin(self) -> None:
        """Keep what follows, unless that is so."""
        if not self._is_begun:
            self._is_begun = True
            self._stored.ring.begin_here()


def _of_rows(beside: Sequence[Array], counts: Sequence[Array], rows: slice) -> list[Array]:
    """Return the frames beside some of the records."""
    before = [int(each[: rows.start].sum()) for each in counts]
    taken = [int(each[rows].sum()) for each in counts]
    return [frames[a : a + n] for frames, a, n in zip(beside, before, taken, strict=True)]


def copied(source: Stored, target: Stored, wanted: Retreat) -> bool:
    """Copy records into another ring; False, to be begun anew, where writers come past."""
    spare = source.ring.num_spare if wanted.first < wanted.end else 0  # for what is kept
    laying = Laying(target, wanted.first, wanted.end, spare)
    count = max(1, _BYTES // max(1, source.form.row_bytes))
    for begin, end, is_kept in ((laying.start, wanted.first, False), (wanted.first, wanted.end, True)):
        for ticket in range(begin, end, count):
            oldest, columns, beside = source.read(ticket, min(count, end - ticket))
            if oldest > ticket + (0 if is_kept else spare):
                return False
            laying.add(ticket, columns, beside)
    laying.begin()
    return True
