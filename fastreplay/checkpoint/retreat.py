# SPDX-License-Identifier: MIT
"""Which transitions to copy out of a ring beside writers: fewer each time that they come past, so that it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastreplay.checkpoint.stored import MOST_TICKETS

if TYPE_CHECKING:
    from fastreplay import _core
    from fastreplay.checkpoint.stored import Readable

__all__ = ["Retreat"]


class Retreat:
    """The tickets that one copy tries for.

    Each try leaves out what the next may come too late for, more each time; at most half of what is left.

    Args:
        source: Where they are.
        most: How many at most, the newest.

    Attributes:
        oldest: The oldest that there was at first.
        newest: One past the newest that there was then.
        first: The first that is tried for now; who finds it overwritten may move it on.
        end: One past the last.
    """

    def __init__(self, source: _core.Ring | Readable, most: int = MOST_TICKETS) -> None:
        self._source = source
        self._most = most
        self._num_left_out = 0
        self.oldest, self.newest = _, self.end = source.window()
        self.first = max(self.oldest, self.end - most)
        self._num_kept = self.end - self.first

    def go(self) -> bool:
        """Try for fewer; False where none is left."""
        still, self.end = self._source.window()
        self._num_left_out = 2 * max(self._num_left_out, still - self.first, 1)
        self._num_kept = max(self._num_kept // 2, min(self.end - still - self._num_left_out, self._most))
        self.first = max(still, self.end - self._num_kept)
        return self._num_kept > 0
