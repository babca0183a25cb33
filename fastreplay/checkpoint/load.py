# SPDX-License-Identifier: MIT
"""Loads what was saved, and checks it: every byte, before anybody sees it."""

from __future__ import annotations

import os
from collections import deque
from contextlib import contextmanager
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, TypeVar

from fastreplay.checkpoint.disk_threads import DiskThreads
from fastreplay.checkpoint.folder import Folder
from fastreplay.checkpoint.laying import Laying
from fastreplay.checkpoint.manifest import read_manifest
from fastreplay.checkpoint.segment import Scratch, SegmentForm, attached_form, check_read, check_size, columns_in, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from typing_extensions import Self

    from fastreplay.checkpoint.manifest import Manifest
    from fastreplay.checkpoint.segment import Entry
    from fastreplay.checkpoint.stored import Column, Stored

    Array = NDArray[Any]

__all__ = ["check", "load", "naming", "read_attached", "read_columns", "read_records"]

ResultT = TypeVar("ResultT")
# Segments ahead of one that is laid: one that is read, and one that is compared with its checksums.
_NUM_AHEAD = 2


def load(path: str, use: Callable[[Folder, Manifest], ResultT]) -> ResultT:
    """Return what a call makes of a checkpoint; it is called again where the checkpoint is replaced meanwhile.

    Savers remove what an older manifest names.

    Raises:
        FileNotFoundError: There is no checkpoint.
        OSError: It cannot be read.
        ValueError: It is damaged.
    """
    with Folder(path) as folder:
        manifest = read_manifest(folder)
        while True:
            try:
                return use(folder, manifest)
            except FileNotFoundError as error:  # noqa: PERF203 - only where a save came between
                newer = read_manifest(folder)
                if newer == manifest:
                    raise ValueError(f"{error.filename}: expected a segment, and it is missing") from error
                manifest = newer


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Let what is refused within be refused by the name of a path."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_records(folder: Folder, manifest: Manifest, stored: Stored, first: int) -> None:
    """Read the transitions from a ticket on into an empty ring that nobody else uses.

    Raises:
        OSError, ValueError: As `load`.
    """
    form = SegmentForm(stored.columns, stored.beside)
    laying = Laying(stored, first, manifest.end, first - manifest.first + manifest.looks_back)
    num_kinds = len(stored.form.groups)
    wanted = [each for each in manifest.records if each.end > laying.start]
    for entry in wanted:
        if len(entry.beside) != num_kinds:
            raise ValueError(f"{folder.file(entry.file)}: expected frames beside records of {num_kinds} kinds")
    for entry, arrays in _segments(folder, form, wanted):
        with naming(folder.file(entry.file)):
            laying.add(entry.first, arrays[: len(stored.columns)], arrays[len(stored.columns) :])
    laying.begin()


def read_columns(
    folder: Folder, entries: Sequence[Entry], columns: list[Column], first: int
) -> Iterator[tuple[int, list[Array]]]:
    """Yield what segments have from a ticket on: the first ticket of each run, and columns, valid until the next.

    Raises:
        OSError, ValueError: As `load`.
    """
    wanted = [each for each in entries if each.end > first] if columns else []
    for entry in wanted:
        if entry.beside:
            raise ValueError(f"{folder.file(entry.file)}: expected nothing beside its rows")
    for entry, arrays in _segments(folder, SegmentForm(columns), wanted):
        skipped = max(0, first - entry.first)
        yield entry.first + skipped, [each[skipped:] for each in arrays]


def read_attached(folder: Folder, manifest: Manifest) -> dict[str, Array]:
    """Return the bytes (n,) that were kept with a buffer, by name.

    Raises:
        OSError, ValueError: As `load`.
    """
    form = attached_form()
    return {name: next(_segments(folder, form, [entry]))[1][0] for name, entry in manifest.attached.items()}


def check(folder: Folder, manifest: Manifest, records: SegmentForm, state: SegmentForm) -> None:
    """Read all of a checkpoint but its parts.

    Raises:
        OSError, ValueError: As `load`.
    """
    segments = ((records, manifest.records), (state, manifest.state), (attached_form(), manifest.attached.values()))
    for form, entries in segments:
        for _ in _segments(folder, form, [*entries]) if form.columns else ():
            pass


def _segments(folder: Folder, form: SegmentForm, entries: Sequence[Entry]) -> Iterator[tuple[Entry, list[Array]]]:
    """Yield segments, and their columns, valid until the next; meanwhile those that follow are read."""
    with DiskThreads() as disk, DiskThreads() as checker:
        scratches = cycle([Scratch() for _ in range(_NUM_AHEAD + 1)])
        coming = (_Coming(folder, form, entry, next(scratches)).begin(disk, checker) for entry in entries)
        ahead = deque(islice(coming, _NUM_AHEAD))
        while ahead:
            ahead.extend(islice(coming, 1))
            now = ahead.popleft()
            yield now.entry, now.columns()


class _Coming:
    """A segment that is being read by one thread, then checked by another."""

    def __init__(self, folder: Folder, form: SegmentForm, entry: Entry, scratch: Scratch) -> None:
        self.entry = entry
        self._form, self._path = form, folder.file(entry.file)
        self._fd = folder.open(entry.file)
        try:
            self._data = scratch.of(check_size(self._fd, self._path, form, entry))
        except BaseException:
            os.close(self._fd)
            raise

    def begin(self, disk: DiskThreads, checker: DiskThreads) -> Self:
        self._read = disk.submit(read, self._fd, self._path, self._data)
        self._checked = checker.submit(self._check)
        return self

    def _check(self) -> None:
        try:
            self._read.result()
            check_read(self._fd, self._path, self.entry, self._data)
        finally:
            os.close(self._fd)

    def columns(self) -> list[Array]:
        self._checked.result()
        return columns_in(self._data, self._path, self._form, self.entry)
