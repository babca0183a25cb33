# SPDX-License-Identifier: MIT
"""Loads what was saved, and checks it: every byte, before anybody sees it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from fastreplay.checkpoint.folder import Folder
from fastreplay.checkpoint.manifest import read_manifest
from fastreplay.checkpoint.segment import Scratch, SegmentForm, read_segment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from fastreplay.checkpoint.manifest import Manifest
    from fastreplay.checkpoint.stored import Column, Stored

    Array = NDArray[Any]

__all__ = ["check", "load", "naming", "read_records", "read_state"]

ResultT = TypeVar("ResultT")


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
    ring, form, scratch = stored.ring, SegmentForm(stored.columns, stored.beside), Scratch()
    start = max(manifest.first - manifest.looks_back, first - ring.num_spare)
    ring.start_at(start)
    is_begun = False
    for entry in manifest.records:
        if entry.end <= start:
            continue
        if len(entry.beside) != len(stored.groups):
            raise ValueError(f"{folder.file(entry.file)}: expected frames beside records of {len(stored.groups)} kinds")
        arrays = read_segment(folder, form, entry, scratch)
        columns, beside = arrays[: len(stored.columns)], arrays[len(stored.columns) :]
        counts = [stored.num_beside(group, codes) for group, codes in stored.codes(columns)]
        if [int(each.sum()) for each in counts] != [*entry.beside]:
            raise ValueError(f"{folder.file(entry.file)}: its records have other frames beside them than it holds")
        for begin, end, is_first in ((start, first, False), (first, manifest.end, True)):
            rows = slice(max(begin - entry.first, 0), min(end, entry.end) - entry.first)
            if rows.stop <= rows.start:
                continue
            if is_first and not is_begun:
                ring.begin_here()
                is_begun = True
            _lay(folder.file(entry.file), stored, [each[rows] for each in columns], _of_rows(beside, counts, rows))
    if not is_begun:
        ring.begin_here()


def _of_rows(beside: Sequence[Array], counts: Sequence[Array], rows: slice) -> list[Array]:
    """Return the frames beside some of a segment's records."""
    before = [int(each[: rows.start].sum()) for each in counts]
    taken = [int(each[rows].sum()) for each in counts]
    return [frames[a : a + n] for frames, a, n in zip(beside, before, taken, strict=True)]


def _lay(path: str, stored: Stored, columns: list[Array], beside: list[Array]) -> None:
    with naming(path):
        stored.put(columns, beside)
    stored.ring.restore(len(columns[0]))


def read_state(
    folder: Folder, manifest: Manifest, columns: list[Column], first: int
) -> Iterator[tuple[int, list[Array]]]:
    """Yield what was kept beside the transitions from a ticket on: the ticket of the first of each run, its columns.

    Raises:
        OSError, ValueError: As `load`.
    """
    form, scratch = SegmentForm(columns), Scratch()
    for entry in manifest.state if columns else ():
        if entry.beside:
            raise ValueError(f"{folder.file(entry.file)}: expected nothing beside what is kept of transitions")
        if entry.end > first:
            skipped = max(0, first - entry.first)
            yield entry.first + skipped, [each[skipped:] for each in read_segment(folder, form, entry, scratch)]


def check(folder: Folder, manifest: Manifest, records: SegmentForm, state: SegmentForm) -> int:
    """Read all of a checkpoint, and return how many bytes that was.

    Raises:
        OSError, ValueError: As `load`.
    """
    num_bytes, scratch = 0, Scratch()
    for form, entries in ((records, manifest.records), (state, manifest.state)):
        for entry in entries if form.columns else ():
            read_segment(folder, form, entry, scratch)
            num_bytes += form.num_bytes(entry)
    return num_bytes
