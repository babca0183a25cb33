# SPDX-License-Identifier: MIT
"""Checks a checkpoint without making a buffer of it, and says what it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fastreplay import _core
from fastreplay.buffer.described import Described
from fastreplay.buffer.frames import frames_in
from fastreplay.buffer.held import checked_path
from fastreplay.buffer.kept import state_columns
from fastreplay.checkpoint.load import check, load
from fastreplay.checkpoint.manifest import MANIFEST
from fastreplay.checkpoint.segment import SegmentForm, attached_form
from fastreplay.checkpoint.stored import StoredForm
from fastreplay.support.checks import readable_bytes

if TYPE_CHECKING:
    import os

    from fastreplay.buffer.priorities import Priorities
    from fastreplay.checkpoint.folder import Folder
    from fastreplay.checkpoint.manifest import Manifest
    from fastreplay.schema import Schema

__all__ = ["Checkpoint", "describe", "verify"]


class Checkpoint(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        first: The ticket of the oldest transition.
        end: One past that of the newest.
        capacity: Of the buffer.
        schema: What a transition is made of.
        lanes: How many streams; None for transitions by themselves.
        priorities: The rule to draw by; None for uniform draws.
        num_files: Segments.
        num_bytes: Of these.
        attached: The bytes that were given to be kept with it, how many by name.
    """

    first: int
    end: int
    capacity: int
    schema: Schema
    lanes: int | None
    priorities: Priorities | None
    num_files: int
    num_bytes: int
    attached: dict[str, int]

    def __str__(self) -> str:
        count, size = f"{self.end - self.first:,} of {self.capacity:,}", readable_bytes(self.num_bytes)
        lines = [
            f"{count} transitions, tickets [{self.first}, {self.end}), {size} in {self.num_files} segments",
            f"lanes {self.lanes}, priorities {self.priorities}",
            *(f"  {name}: {field}" for name, field in self.schema.items()),
            *(f"  attached {name}: {readable_bytes(count)}" for name, count in self.attached.items()),
        ]
        return "\n".join(lines)


def describe(path: str | os.PathLike[str]) -> Checkpoint:
    """Return what the manifest of a checkpoint says; the segments are not read.

    Args:
        path: The folder.

    Raises:
        TypeError: `path` is no path.
        FileNotFoundError: There is no checkpoint.
        OSError, ValueError: It cannot be read, or is damaged.
    """
    return load(checked_path(path), _described)


def verify(path: str | os.PathLike[str]) -> Checkpoint:
    """Read all of a checkpoint, and compare it with its checksums.

    Args:
        path: The folder.

    Returns:
        What it holds.

    Raises:
        TypeError: `path` is no path.
        FileNotFoundError: There is no checkpoint.
        OSError: It cannot be read.
        ValueError: It is damaged; the message names the file and the place.

    Thread safety:
        May be called from any thread and process, also while the folder is saved into.
    """
    return load(checked_path(path), _verified)


def _verified(folder: Folder, manifest: Manifest) -> Checkpoint:
    for each in (manifest, *manifest.parts.values()):
        check(folder, each, *_forms(Described.of(each.buffer, folder.file(MANIFEST))))
    return _described(folder, manifest)


def _described(folder: Folder, manifest: Manifest) -> Checkpoint:
    path = folder.file(MANIFEST)
    said = Described.of(manifest.buffer, path)
    num_bytes = 0
    for each in (manifest, *manifest.parts.values()):
        records, state = _forms(Described.of(each.buffer, path))
        num_bytes += sum(map(records.num_bytes, each.records)) + sum(map(state.num_bytes, each.state))
        num_bytes += sum(map(attached_form().num_bytes, each.attached.values()))
    return Checkpoint(
        manifest.first,
        manifest.end,
        said.capacity,
        said.schema,
        said.options["lanes"],
        said.options["priorities"],
        len(manifest.files()),
        num_bytes,
        {name: entry.end for name, entry in manifest.attached.items()},
    )


def _forms(said: Described) -> tuple[SegmentForm, SegmentForm]:
    """Return the forms of the segments of records and of what is kept beside."""
    lanes, schema = said.options["lanes"], said.schema
    frames = frames_in(schema, said.options["share_next"], lanes)
    stored = StoredForm(schema, _core.record_groups(schema.sizes, frames.groups))
    columns = state_columns(has_masses=said.options["priorities"] is not None, has_lanes=lanes is not None)
    return SegmentForm(stored.columns, stored.beside), SegmentForm(columns)
