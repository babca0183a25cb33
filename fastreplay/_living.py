# SPDX-License-Identifier: MIT
"""Which objects of a kind are alive. Knows nothing of them."""

from __future__ import annotations

import weakref
from typing import Generic, TypeVar

T = TypeVar("T")


class Living(Generic[T]):
    """Objects as long as others refer to them, in the order in which they were added.

    In place of `weakref.WeakSet`, whose iteration raises when another thread adds to it, and which compares what it
    holds.

    Thread safety:
        Any thread may add and list at any time: each is one operation of a dictionary.
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

    def list(self) -> list[T]:
        """Return those that are alive."""
        return [item for reference in list(self._references.values()) if (item := reference()) is not None]
