# SPDX-License-Identifier: MIT
"""Which objects of a kind are alive. Knows nothing of them."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")


class Living(Generic[T]):
    """Objects as long as others refer to them, in the order in which they were added.

    In place of `weakref.WeakSet`, whose iteration raises when another thread adds to it, and which compares what it
    holds.

    Thread safety:
        Any thread may add and iterate at any time: each is one operation of a dictionary.
    """

    __slots__ = ("__weakref__", "_references")

    def __init__(self) -> None:
        self._references: dict[int, weakref.ref[T]] = {}

    def add(self, item: T) -> None:
        """Take an object in."""
        holder = weakref.ref(self)  # no cycle, which would wait for the garbage collector

        def forget(reference: weakref.ref[T]) -> None:
            if (living := holder()) is not None:
                living._references.pop(id(reference), None)

        reference = weakref.ref(item, forget)
        self._references[id(reference)] = reference

    def discard(self, item: T) -> None:
        """Forget an object before it is gone."""
        for key, reference in list(self._references.items()):
            if reference() is item:
                self._references.pop(key, None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[T]:
        """Yield those that are alive now."""
        return iter([item for reference in list(self._references.values()) if (item := reference()) is not None])
