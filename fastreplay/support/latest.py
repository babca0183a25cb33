# SPDX-License-Identifier: MIT
"""A mapping that keeps what was put into it last. Knows nothing of what it holds."""

from __future__ import annotations

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Latest(dict[K, V]):
    """At most so many entries: a new one puts the oldest out.

    In place of an OrderedDict, which without the GIL crashes where two threads change it (CPython 3.13).

    Args:
        most: How many are kept.

    Thread safety:
        Any thread may get and put: each step is one operation of a dictionary.
    """

    __slots__ = ("_most",)

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def put(self, key: K, value: V) -> list[V]:
        """Add an entry, and return what went for it."""
        self[key] = value
        oldest = list(self.keys())[: -self._most]  # of the view: only that is one step in a subclass
        return [old for key in oldest if (old := self.pop(key, None)) is not None]
