# SPDX-License-Identifier: MIT
"""Loads what was saved, and checks it: every byte, before anybody sees it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from fastreplay.checkpoint.folder import Folder
from fastreplay.checkpoint.laying import Laying
from fastreplay.checkpoint.manifest import read_manifest
from fastreplay.checkpoint.segment import Scratch, SegmentForm, read_segment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
    form, scratch = SegmentForm(stored.columns, stored.beside), Scratch()
    laying = Laying(stored, first, manifest.end, first - manifest.first + manifest.looks_back)
    for entry in manifest.records:
        if entry.end <= laying.start:
            continue
        if len(entry.beside) != len(stored.groups):
            raise ValueError(f"{folder.file(entry.file)}: expected frames beside records of {len(stored.groups)} kinds")
        arrays = read_segment(folder, form, entry, scratch)
        with naming(folder.file(entry.file)):
            laying.add(entry.first, arrays[: len(stored.columns)], arrays[len(stored.columns) :])
    laying.begin()


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
