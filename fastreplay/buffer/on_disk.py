# SPDX-License-Identifier: MIT
"""A buffer whose ring lies in a file: found again as it was left, and confirmed to be on the disk."""

from __future__ import annotations

import _thread
import threading
import weakref
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastreplay import _core
from fastreplay.batch.state import Counters, checked_counters
from fastreplay.buffer.described import describe_priorities, describe_schema
from fastreplay.buffer.priorities import check_rule
from fastreplay.checkpoint.load import naming
from fastreplay.checkpoint.ring_file import RingFile
from fastreplay.checkpoint.said import Said
from fastreplay.support.living import Living
from fastreplay.support.memory_limit import memory_limit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastreplay.batch.ring_sampler import RingSampler
    from fastreplay.buffer.frames import ShareNext
    from fastreplay.buffer.lanes import Lanes
    from fastreplay.buffer.priorities import Priorities
    from fastreplay.schema import Schema

__all__ = ["OnDisk", "form_of"]

_MOST_TICKETS = 2**62
_PATIENCE_S = 1.0  # of who closes, with an insert that is under way


def form_of(
    capacity: int,
    schema: Schema,
    lanes: int | None,
    ends: tuple[str, ...] | None,
    priorities: Priorities | None,
    *,
    share_next: ShareNext,
) -> dict[str, Any]:
    """Return what of a buffer its file is made for.

    Raises:
        TypeError: The priorities are no rule.
    """
    check_rule(priorities)
    return {
        "capacity": capacity,
        **describe_schema(schema),
        "lanes": lanes,
        "ends": None if ends is None else [*ends],
        "priorities": describe_priorities(priorities),
        "share_next": share_next if isinstance(share_next, bool) else dict(share_next),
    }


class _Parts:
    """What is confirmed of a buffer: its parts, which do not keep the buffer alive."""

    def __init__(self, file: RingFile, ring: _core.Ring, lanes: Lanes | None, masses: _core.Priorities | None) -> None:
        self.file = file
        self.ring = ring
        self.lanes = None if lanes is None else lanes.core
        self.masses = masses
        self.checksums = _core.Checksums(ring, self.lanes, file.memory)
        self.sampler: RingSampler | None = None
        self.num_spawned = _core.Counter()
        self.turn = threading.RLock()
        self._within = threading.Lock()

    def confirm(self, *, is_opening: bool = False) -> None:
        """Have on the disk what is published now.

        Args:
            is_opening: Whether nobody relies on it yet.

        Raises:
            OSError: The disk has it not.
            RuntimeError: This thread is in the midst of it.
        """
        with self.turn:
            if self._within.locked():  # a signal's handler, which would have to wait for what it has interrupted
                raise RuntimeError("flush: it was called in the midst of another by the same thread")
            with self._within:
                first, end = self.ring.window()
                begin = max(first, min(self.file.confirmed.end, end))
                oldest = self.checksums.confirm(begin, end)
                first = oldest if oldest > begin else first
                self.file.confirm(first, end, self._said(end), is_opening=is_opening)

    def _said(self, end: int) -> dict[str, Any]:
        assert self.sampler is not None
        rng = self.sampler.state_not_handed_out()
        inserted = self.ring.num_inserted - (self.ring.num_reserved - end)
        return {
            "rng_state": {"key": [*rng["key"]], "calls": rng["calls"]},
            "num_spawned": self.num_spawned.value,
            "counters": self.sampler.counters_not_handed_out(),
            "inserted": max(inserted, 0),
            "overwritten": min(self.ring.num_overwritten, max(inserted, 0)),
            "skips_resets": self.lanes is not None and self.lanes.skips_resets,
        }


class Left(NamedTuple):
    """What somebody left beside transitions: the generator, how many samplers were made, what was counted."""

    key: tuple[int, int]
    calls: int
    num_spawned: int
    counters: Counters


class OnDisk:
    """The file of a buffer, which all faces of it share.

    Attributes:
        num_lost: Transitions that a loss of power took, as far as the file tells, before it was opened.

    Args:
        path: Where it is; it is made where there is none.
        form: What it is made for.
        num_bytes: Of its records.
        num_bytes_beside: Of the room for frames beside them, most of which nobody touches.

    Raises:
        OSError, RuntimeError, ValueError: As `RingFile`.
    """

    def __init__(self, path: str, form: dict[str, Any], num_bytes: int, num_bytes_beside: int) -> None:
        limit = memory_limit()
        fits = limit is None or num_bytes <= limit // 2
        self._file = RingFile(path, form, num_bytes + num_bytes_beside, fits=fits)
        self._parts: _Parts | None = None
        self._views: Living[NDArray[Any]] = Living()
        self.num_lost = 0

    def open(self) -> _core.MappedFile:
        """Open the file; return what the ring, its lanes and its priorities are made in, in this order.

        Raises:
            OSError, RuntimeError, ValueError: As `RingFile`.
        """
        with naming(self._file.path):
            return self._file.open()

    def give_up(self) -> None:
        """Let go of the file, whose buffer is not made."""
        self._file.give_up()

    def begin(self, ring: _core.Ring, lanes: Lanes | None, masses: _core.Priorities | None) -> Left | None:
        """Take up what is there.

        Returns:
            What was confirmed beside; None where the file is new.

        Raises:
            ValueError: It is damaged.
        """
        self._parts = _Parts(self._file, ring, lanes, masses)
        with naming(self._file.path):
            self._file.check_end()
            return None if self._file.is_new else self._take_up(ring, masses, self._parts)

    def _take_up(self, ring: _core.Ring, masses: _core.Priorities | None, parts: _Parts) -> Left:
        confirmed = self._file.confirmed
        said = Said(confirmed.buffer, "buffer")
        if not self._file.is_as_left():
            reserved = ring.num_reserved
            first = parts.checksums.oldest_intact(confirmed.first, confirmed.end)
            inserted = said.integer("inserted")
            overwritten = said.integer("overwritten", 0, inserted)
            self.num_lost = first - confirmed.first
            if confirmed.end < reserved < _MOST_TICKETS:
                self.num_lost += reserved - confirmed.end
            ring.start_at(first)
            ring.restore(confirmed.end - first)
            inserted = min(inserted, confirmed.end)
            ring.count(inserted, min(overwritten + first - confirmed.first, inserted))
        _core.go_on(ring, masses, parts.lanes)
        if parts.lanes is not None:
            parts.lanes.skips_resets = said.flag("skips_resets")
        rng = said.generator("rng_state")
        counters = checked_counters(said.entries["counters"])
        return Left(tuple(rng["key"]), rng["calls"], said.integer("num_spawned"), counters)

    def finish(self, sampler: RingSampler, num_spawned: _core.Counter) -> None:
        """Let the file count, whose buffer is whole; it is confirmed once more when the buffer is gone.

        Raises:
            OSError: The disk has it not.
            RuntimeError: Somebody else has made it meanwhile.
        """
        assert self._parts is not None
        self._parts.sampler, self._parts.num_spawned = sampler, num_spawned
        self._parts.confirm(is_opening=True)
        self._file.name()
        self._end = weakref.finalize(self, partial(_confirm_and_close, self._parts))

    def confirm(self) -> None:
        """Have on the disk what is published now.

        Raises:
            OSError: The disk has it not.
        """
        if self._parts is not None:
            self._parts.confirm()

    def show(self, array: NDArray[Any]) -> None:
        """Keep account of an array that lies in the file.

        Raises:
            RuntimeError: The file was closed meanwhile.
        """
        parts = self._parts
        if parts is None:  # in a child
            return
        with parts.turn:
            if parts.ring.is_closed:
                raise RuntimeError("view: the buffer was closed meanwhile")
            self._views.add(array)

    def close(self) -> None:
        """Have on the disk what is published now, and let others open the file. Again, it does nothing.

        Raises:
            OSError: The disk has it not; a second call does without.
            RuntimeError: Arrays lie in it, an insert is not finished, or this thread is in the midst of `confirm`.
        """
        parts = self._parts
        if parts is None:
            return
        with parts.turn:
            if not parts.ring.is_closed:  # an interrupt may have come after that
                self._close_ring(parts)
            self._end.detach()
            self._file.close()
            self._parts = None

    def _close_ring(self, parts: _Parts) -> None:
        num_views = len(self._views)
        if num_views:
            raise RuntimeError(
                f"close: {num_views} arrays that view() gave lie in {self._file.path}, and somebody refers to them; "
                "let go of them first"
            )
        if not self._file.is_over():
            parts.confirm()
        if not _core.close_ring(parts.ring, self._file.memory, _PATIENCE_S):
            raise RuntimeError("close: another thread is in the midst of an insert; the buffer is open as before")

    def discard(self) -> None:
        """Remove the file, if it was made for this buffer, which nobody is to find again."""
        if self._file.is_new:
            with suppress(OSError):
                Path(self._file.path).unlink()

    def leave(self) -> None:
        """In the child after a fork: the file is the parent's. What lies in it becomes memory of zeros."""
        if self._parts is None:  # as another face has said
            return
        self._parts = None
        self._end.detach()
        self._file.leave()


def _confirm_and_close(parts: _Parts) -> None:
    try:
        if not parts.ring.is_closed and not parts.file.is_over():  # which somebody was told, or wanted
            try:
                parts.confirm()
            except KeyboardInterrupt:  # which would be swallowed here
                parts.confirm()
                _thread.interrupt_main()
    finally:
        parts.file.close()
