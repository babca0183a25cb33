# SPDX-License-Identifier: MIT
"""Which buffer a buffer is, so that what was saved of it before is known again.

A ticket stands for one transition of one buffer. Where two go on from one, because it was loaded twice, or forked, they
have the earlier tickets in common and no later one.
"""

from __future__ import annotations

import os

__all__ = ["Lineage"]


class Lineage:
    """What a buffer is called, and what it was called up to which ticket.

    Args:
        ancestors: Names, and one past the last ticket under each.

    Thread safety:
        May be asked from any thread. `begin_in_child` is for a child after a fork, which has one, and `begin_anew` for
        a buffer that nobody else uses.
    """

    def __init__(self, ancestors: dict[str, int] | None = None) -> None:
        self.ancestors = {} if ancestors is None else ancestors
        self.name = os.urandom(16).hex()
        self._process = os.getpid()

    def begin_anew(self) -> None:
        """Go on as another buffer, which has nothing in common with this one."""
        self.ancestors = {}
        self.name = os.urandom(16).hex()

    def begin_in_child(self, end: int) -> None:
        """Go on under another name from a ticket, once a process: the parent goes on, too."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self.ancestors = {**self.ancestors, self.name: end}
            self.name = os.urandom(16).hex()
