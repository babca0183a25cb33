# SPDX-License-Identifier: MIT
"""Saves a buffer beside who inserts and samples: nobody waits, and what was saved before is not written again."""

from __future__ import annotations

import secrets
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastreplay.checkpoint.disk_threads import DiskThreads
from fastreplay.checkpoint.folder import Folder
from fastreplay.checkpoint.manifest import MANIFEST, Manifest, is_segment, read_manifest, segment_name, write_manifest
from fastreplay.checkpoint.retreat import Retreat
from fastreplay.checkpoint.segment import Entry, Scratch, SegmentForm, attached_form, checksums_of
from fastreplay.checkpoint.stored import ROWS_TOGETHER

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from fastreplay import _core
    from fastreplay.checkpoint.disk_threads import Pending
    from fastreplay.checkpoint.lineage import Lineage
    from fastreplay.checkpoint.stored import Column, Readable

    Array = NDArray[Any]

__all__ = ["SaveSource", "SavedRange", "save"]

# Of a segment: what is made of it at once, and what is written again where few rows came since the last save.
_SEGMENT_BYTES = 16 << 20
_LEAST_ROW_BYTES = 64  # else of shorter rows, beside which 8 bytes are read, more would be in memory
# Segments in memory: one that is made, while the disk takes one and is waited for to have another.
_MOST_SEGMENTS = 3


class SavedRange(NamedTuple):
    """Which transitions a checkpoint has: tickets [first, end)."""

    first: int
    end: int
    lost: int  # of those there were at the call, overwritten before they were read


@dataclass(frozen=True)
class SaveSource:
    """What is saved of a buffer.

    Attributes:
        stored: Its records; those of a ring where inserts are to wait.
        lineage: Which buffer it is.
        describe: Returns what it says of itself now, but for what was inserted from a ticket on.
        state_columns: What is kept beside its transitions.
        read_state: Returns that of so many tickets from one on.
        holding: Locked by the save that lets inserts of the buffer wait.
        parts: Further buffers that belong to it, by name, without parts of their own.
    """

    stored: Readable
    lineage: Lineage
    describe: Callable[[int], dict[str, Any]]
    state_columns: list[Column]
    read_state: Callable[[int, int], list[Array]]
    holding: threading.Lock
    parts: Mapping[str, SaveSource] = field(default_factory=dict)


def save(path: str, source: SaveSource, attached: Mapping[str, Array], *, full: bool, hold: bool) -> SavedRange:
    """Save a buffer into a folder, in the place of what was saved there before.

    Args:
        path: The folder.
        source: What is saved.
        attached: Bytes (n,) that are kept with it, by name.
        full: Whether to write again what is there.
        hold: Whether inserts wait before they overwrite what was not read.

    Raises:
        RuntimeError: Another save holds inserts; or writers were so fast that nothing could be read.
        OSError: It cannot be written; what was saved before stands.
        ValueError: Something else lies in the folder, or a checkpoint of a later fastreplay.
    """
    with Folder.made(path) as folder, folder.naming():
        _before(folder)  # before there is anything of ours in somebody else's
        with folder.turn():
            return _save(folder, source, attached, full=full, hold=hold)


def _save(folder: Folder, source: SaveSource, attached: Mapping[str, Array], *, full: bool, hold: bool) -> SavedRange:
    """Save into a folder in which nobody else does."""
    before = _before(folder)
    folder.sync()  # the rename of who was killed after it: what the manifest before that one names goes next
    _remove_all_but(folder, before)
    try:
        manifest, saved = _written(folder, source, None if full else before, hold=hold)
        entries = {name: _attach(folder, data, source.lineage.name) for name, data in attached.items()}
        folder.sync()
        write_manifest(folder, replace(manifest, attached=entries))
    except BaseException:
        with suppress(OSError, ValueError):  # else it is left to the next save
            # The new one stands where it was the last wait for the disk that failed. Then either may be there after a
            # loss of power, and the files of both stay.
            _remove_all_but(folder, before, _before(folder))
        raise
    with suppress(OSError):  # as above; what was saved is
        _remove_all_but(folder, replace(manifest, attached=entries))
    return saved


def _written(
    folder: Folder, source: SaveSource, before: Manifest | None, *, hold: bool = False
) -> tuple[Manifest, SavedRange]:
    """Write the segments of a buffer and its parts; return what the manifest is to say."""
    saving = _Saving(folder, source, [] if before is None else before.records)
    manifest, saved = saving.run_holding() if hold else saving.run()
    there = {} if before is None else before.parts
    parts = {name: _written(folder, part, there.get(name))[0] for name, part in source.parts.items()}
    return replace(manifest, parts=parts), saved


def _attach(folder: Folder, data: Array, origin: str) -> Entry:
    entry = Entry(segment_name("attached", 0, len(data), secrets.token_hex(8)), 0, len(data), (), "", origin)
    parts: list[Any] = [np.frombuffer(attached_form().header(entry), np.uint8), data]
    folder.finish(folder.write(entry.file, parts))
    return replace(entry, checksums=checksums_of(parts))


def _before(folder: Folder) -> Manifest | None:
    names = folder.names()
    if MANIFEST in names:
        return read_manifest(folder)
    for name in names:
        if name != "lock" and not is_segment(name):
            raise ValueError(f"{folder.path}: expected a new or empty folder, or a checkpoint, and there is {name!r}")
    return None


def _remove_all_but(folder: Folder, *manifests: Manifest | None) -> None:
    kept = {name for manifest in manifests if manifest is not None for name in manifest.files()}
    for name in folder.names():
        if is_segment(name) and name not in kept:
            folder.remove(name)


class _Saving:
    """One save.

    Args:
        folder: Where to.
        source: What.
        before: Segments of records that are there.
    """

    def __init__(self, folder: Folder, source: SaveSource, before: list[Entry]) -> None:
        self._folder = folder
        self._source = source
        self._stored = source.stored
        self._form = SegmentForm(source.stored.columns, source.stored.beside)
        self._state_form = SegmentForm(source.state_columns)
        self._origin, self._ancestors = source.lineage.name, source.lineage.ancestors
        self._there = [entry for entry in before if self._is_of_this(entry)]
        self._unfinished: deque[tuple[Pending, Scratch]] = deque()
        self._held: _core.Ring | None = None

    def _is_of_this(self, entry: Entry) -> bool:
        return entry.origin == self._origin or entry.end <= self._ancestors.get(entry.origin, 0)

    def run_holding(self) -> tuple[Manifest, SavedRange]:
        """Do as `run`; inserts wait before they overwrite what is read.

        Raises:
            RuntimeError: Another save lets them wait.
        """
        ring: _core.Ring = self._stored.ring  # type: ignore[attr-defined]
        if self._source.holding.locked():
            raise RuntimeError("save: expected hold=False while another save of this buffer holds inserts")
        with self._source.holding:  # wherever an interrupt comes now, the hold that is let go is this save's
            try:
                ring.try_hold(max(0, ring.window()[0] - ring.num_spare))
                self._held = ring
                return self.run()
            finally:
                ring.let_go()

    def run(self) -> tuple[Manifest, SavedRange]:
        """Write segments; return what the manifest is to say, and which transitions there are.

        Raises:
            RuntimeError: Writers came past until nothing was left.
        """
        wanted = Retreat(self._stored)
        with DiskThreads(_MOST_SEGMENTS - 1) as self._disk:
            while True:
                end = wanted.end
                described = self._source.describe(end)
                state = self._write(wanted.first, end, self._state_form, self._read_state, "state")
                if state:  # what was overwritten before that was read has none
                    wanted.first = min(max(wanted.first, self._stored.oldest_whole()), end)
                first = wanted.first
                records = self._records(first, end) if first < end or wanted.oldest == wanted.newest else None
                if records is not None:
                    break
                if not wanted.go():
                    raise RuntimeError(
                        f"save: writers overwrote all of {wanted.newest - wanted.oldest} transitions before they were "
                        "read; with hold=True they wait"
                    )
            while self._unfinished:
                self._unfinished.popleft()[0].result()
        looks_back = min(first, self._stored.num_spare)
        manifest = Manifest(self._origin, self._ancestors, described, first, end, looks_back, records, state or [])
        return manifest, SavedRange(first, end, min(first, wanted.newest) - wanted.oldest)

    def _records(self, first: int, end: int) -> list[Entry] | None:
        """Return the segments of some tickets and those that they look up: what is there, and what is written now.

        None where writers came past; what was written is there.
        """
        at = max(0, first - self._stored.num_spare)
        entries: list[Entry] = []
        self._there = self._worth_keeping(at, end)
        for entry in [*self._there, None]:
            stop = end if entry is None else entry.first
            for begin, limit in ((at, min(stop, first)), (max(at, first), stop)):
                spare = self._stored.num_spare if limit <= first else 0
                written = self._write(begin, limit, self._form, partial(self._read_records, spare), "records")
                if written is None:
                    return None
                entries += written
            if entry is not None:
                entries.append(entry)
                at = entry.end
        return entries

    def _worth_keeping(self, start: int, end: int) -> list[Entry]:
        """Return the segments there of any of the tickets, without small ones at the end: they are written anew."""
        kept = [entry for entry in sorted(self._there, key=lambda each: each.first) if start < entry.end <= end]
        if kept and kept[-1].end == end:
            return kept
        most_rows = _rows_of(self._form)
        while kept and start <= kept[-1].first and end - kept[-1].first <= most_rows:
            kept.pop()
        return kept

    def _write(
        self, first: int, end: int, form: SegmentForm, read: Callable[[Entry, Scratch], _Rows | None], kind: str
    ) -> list[Entry] | None:
        """Write tickets in segments; None where one is read too late."""
        entries: list[Entry] = []
        rows = _rows_of(form)
        for start in range(first, end, rows) if form.columns else ():
            stop = min(end, start + rows)
            scratch = self._free_scratch()
            entry = Entry(segment_name(kind, start, stop, secrets.token_hex(8)), start, stop, (), "", self._origin)
            got = read(entry, scratch)
            if got is None:
                return None
            entry = replace(entry, beside=tuple(len(each) for each in got.beside))
            data = scratch.laid(form, entry, [*got.columns, *got.beside])
            entries.append(replace(entry, checksums=checksums_of([data])))
            self._unfinished.append((self._disk.submit(self._finish, entry.file, data), scratch))
            if kind == "records":
                self._there.append(entries[-1])
        return entries

    def _free_scratch(self) -> Scratch:
        """Return memory, from which the disk has what was in it."""
        if len(self._unfinished) < _MOST_SEGMENTS:
            return Scratch()
        pending, scratch = self._unfinished.popleft()
        pending.result()
        return scratch

    def _finish(self, name: str, data: Any) -> None:
        """Let the disk take a file while the next is made."""
        self._folder.finish(self._folder.write(name, [data], past_cache=True))

    def _read_records(self, spare: int, entry: Entry, scratch: Scratch) -> _Rows | None:
        """Read records, of which what is only looked up may lie in slots that readers are not given."""
        count, memory = entry.end - entry.first, None
        if not self._stored.beside:  # which in the file may lie between the columns
            begin = len(self._form.header(entry))
            memory = scratch.of(begin + self._stored.room(count))[begin:]
        oldest, columns, beside = self._stored.read(entry.first, count, memory)
        if self._held is not None:
            self._held.hold_on_from(max(0, entry.end - self._stored.num_spare))
        return _Rows(columns, beside) if oldest <= entry.first + spare else None

    def _read_state(self, entry: Entry, scratch: Scratch) -> _Rows:  # noqa: ARG002 - it comes in memory of its own
        return _Rows(self._source.read_state(entry.first, entry.end - entry.first), [])


class _Rows(NamedTuple):
    columns: list[Array]
    beside: list[Array]


def _rows_of(form: SegmentForm) -> int:
    """Return how many rows a segment has at most."""
    most = max(1, _SEGMENT_BYTES // max(_LEAST_ROW_BYTES, form.row_bytes))
    return most - most % ROWS_TOGETHER if most > ROWS_TOGETHER else most
