# SPDX-License-Identifier: MIT
"""A buffer whose ring lies in a file: found again as it was left, and confirmed to be on the disk."""

from __future__ import annotations

import _thread
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from fastreplay import _core
from fastreplay.batch.state import Counters, checked_counters
from fastreplay.buffer.described import describe_priorities, describe_schema
from fastreplay.checkpoint.load import naming
from fastreplay.checkpoint.ring_file import RingFile
from fastreplay.checkpoint.said import Said
from fastreplay.support.memory_limit import memory_limit

if TYPE_CHECKING:
    from fastreplay.batch.ring_sampler import RingSampler
    from fastreplay.buffer.lanes import Lanes
    from fastreplay.buffer.priorities import Priorities
    from fastreplay.schema import Schema

__all__ = ["OnDisk", "form_of"]

_MOST_TICKETS = 2**62


def form_of(
    capacity: int, schema: Schema, lanes: int | None, ends: tuple[str, ...] | None, priorities: Priorities | None
) -> dict[str, Any]:
    """Return what of a buffer its file is made for."""
    return {
        "capacity": capacity,
        **describe_schema(schema),
        "lanes": lanes,
        "ends": None if ends is None else [*ends],
        "priorities": describe_priorities(priorities),
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
        self._turn = threading.RLock()
        self._is_within = False

    def confirm(self) -> None:
        """Have on the disk what is published now.

        Raises:
            OSError: The disk has it not.
            RuntimeError: This thread is in the midst of it.
        """
        with self._turn:
            if self._is_within:  # a signal's handler, which would have to wait for what it has interrupted
                raise RuntimeError("flush: it was called in the midst of another by the same thread")
            self._is_within = True
            try:
                first, end = self.ring.window()
                begin = max(first, min(self.file.confirmed.end, end))
                oldest = self.checksums.confirm(begin, end)
                self.file.confirm(oldest if oldest > begin else first, end, self._said(end))
            finally:
                self._is_within = False

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

    Raises:
        OSError, RuntimeError, ValueError: As `RingFile`.
    """

    def __init__(self, path: str, form: dict[str, Any], num_bytes: int) -> None:
        limit = memory_limit()
        self._file = RingFile(path, form, num_bytes, fits=limit is None or num_bytes <= limit // 2)
        self._parts: _Parts | None = None
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
        self._parts.confirm()
        self._file.name()
        self._end = weakref.finalize(self, partial(_confirm_and_close, self._parts))

    def confirm(self) -> None:
        """Have on the disk what is published now.

        Raises:
            OSError: The disk has it not.
        """
        if self._parts is not None:
            self._parts.confirm()

    def leave(self) -> None:
        """In the child after a fork: the file is the parent's. What lies in it becomes memory of zeros."""
        if self._parts is None:  # as another face has said
            return
        self._parts = None
        self._end.detach()
        self._file.leave()


def _confirm_and_close(parts: _Parts) -> None:
    try:
        if not parts.file.is_over():  # which somebody was told, or wanted
            try:
                parts.confirm()
            except KeyboardInterrupt:  # which would be swallowed here
                parts.confirm()
                _thread.interrupt_main()
    finally:
        parts.file.close()
