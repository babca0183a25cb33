# SPDX-License-Identifier: MIT
"""The manifest of a checkpoint: what a buffer was, and which segments count. One JSON object with a checksum."""

from __future__ import annotations

import json
import os
import re
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastreplay.checkpoint.said import parsed
from fastreplay.checkpoint.segment import Entry
from fastreplay.checkpoint.stored import MOST_TICKETS

if TYPE_CHECKING:
    from fastreplay.checkpoint.folder import Folder
    from fastreplay.checkpoint.said import Said

__all__ = ["MANIFEST", "Manifest", "is_segment", "parsed_manifest", "read_manifest", "segment_name", "write_manifest"]

MANIFEST = "manifest.json"
_VERSION = 1
_MOST_BYTES = 1 << 28
_BEGIN = '{"crc32": "%08x", "checkpoint": '
_END = b"}\n"
_NAME = re.compile(r"(records|state|attached)-\d{20}-\d{20}-[0-9a-f]{16}\.safetensors")
_TEMPORARY = re.compile(rf"{re.escape(MANIFEST)}\.[0-9a-f]{{16}}\.tmp")
_ORIGIN = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is.

    Attributes:
        origin: Which buffer it is of.
        ancestors: Buffers that it was before it was loaded or forked, with one past the last ticket of each.
        buffer: What the buffer is, as it says of itself: nothing in here knows more of it.
        first: The ticket of the oldest transition.
        end: One past that of the newest.
        looks_back: How many tickets before the first are there, too, to be looked up.
        records: Segments of what was inserted, in order, without gaps.
        state: Segments of what is kept beside, masses and links; none where nothing is.
        parts: Further buffers that belong to it, by name; they have no parts of their own.
        attached: Bytes that were given to be kept with it, by name.
    """

    origin: str
    ancestors: dict[str, int]
    buffer: dict[str, Any]
    first: int
    end: int
    looks_back: int
    records: list[Entry]
    state: list[Entry]
    parts: dict[str, Manifest] = field(default_factory=dict)
    attached: dict[str, Entry] = field(default_factory=dict)

    def files(self) -> set[str]:
        """Return the names of all files but the manifest."""
        own = {entry.file for entry in [*self.records, *self.state, *self.attached.values()]}
        return own.union(*(part.files() for part in self.parts.values()))


def segment_name(kind: str, first: int, end: int, token: str) -> str:
    """Return what a new segment is called."""
    return f"{kind}-{first:020d}-{end:020d}-{token}.safetensors"


def is_segment(name: str) -> bool:
    """Tell whether a file is a segment, or what a dead saver left of a manifest: the saver's to remove."""
    return _NAME.fullmatch(name) is not None or _TEMPORARY.fullmatch(name) is not None


def write_manifest(folder: Folder, manifest: Manifest) -> None:
    """Put a manifest in the place of the one before.

    Raises:
        OSError: It cannot be written; the one before stands.
    """
    body = json.dumps({"version": _VERSION} | _said(manifest), allow_nan=False).encode()
    folder.replace(MANIFEST, (_BEGIN % zlib.crc32(body)).encode() + body + _END)


def _said(manifest: Manifest) -> dict[str, Any]:
    said = {
        "origin": manifest.origin,
        "ancestors": manifest.ancestors,
        "buffer": manifest.buffer,
        "first": manifest.first,
        "end": manifest.end,
        "looks_back": manifest.looks_back,
        "records": [_said_of(entry) for entry in manifest.records],
        "state": [_said_of(entry) for entry in manifest.state],
    }
    if manifest.parts:
        said["parts"] = {name: _said(part) for name, part in manifest.parts.items()}
    if manifest.attached:
        said["attached"] = {name: _said_of(entry) for name, entry in manifest.attached.items()}
    return said


def _said_of(entry: Entry) -> dict[str, Any]:
    said = {"file": entry.file, "first": entry.first, "end": entry.end, "crc32": entry.checksums}
    return said | {"origin": entry.origin} | ({"beside": entry.beside} if entry.beside else {})


def read_manifest(folder: Folder) -> Manifest:
    """Read the manifest of a folder.

    Raises:
        FileNotFoundError: There is none.
        OSError: It cannot be read.
        ValueError: It is damaged, or of a later fastreplay.
    """
    return parsed_manifest(_bytes_of(folder), folder.file(MANIFEST))


def parsed_manifest(data: bytes, path: str) -> Manifest:
    """Return what the bytes of a manifest say, whatever they are.

    Args:
        data: All of them.
        path: What a message calls them.

    Raises:
        ValueError: They are damaged, or of a later fastreplay.
    """
    begin = len(_BEGIN % 0)
    body = data[begin : -len(_END)]
    if data[:begin] != (_BEGIN % zlib.crc32(body)).encode() or data[-len(_END) :] != _END:
        raise ValueError(f"{path}: at byte 0: the checksum of the file is another, or it is no manifest")
    said = parsed(body, path)
    if said.entries.get("version") != _VERSION:
        said.refuse(f"version {_VERSION}, which this fastreplay can read", said.entries.get("version"))
    return _manifest(said, is_part=False)


def _manifest(said: Said, *, is_part: bool) -> Manifest:
    first = said.integer("first", 0, MOST_TICKETS)
    end = said.integer("end", first, MOST_TICKETS)
    looks_back = said.integer("looks_back", 0, first)
    ancestors = said.below("ancestors")
    parts = {} if is_part or "parts" not in said.entries else said.below("parts").named()
    attached = said.below("attached").named() if "attached" in said.entries else {}
    return Manifest(
        _checked_origin(said),
        {name: ancestors.integer(name, 0, MOST_TICKETS) for name in ancestors.entries},
        said.below("buffer").entries,
        first,
        end,
        looks_back,
        _entries(said, "records", first - looks_back, end),
        _entries(said, "state", first, end),
        {name: _manifest(part, is_part=True) for name, part in parts.items()},
        {name: _entry(each, 0, 0, MOST_TICKETS) for name, each in attached.items()},
    )


def _bytes_of(folder: Folder) -> bytes:
    with folder.naming(), open(MANIFEST, "rb", opener=lambda name, _: folder.open(name)) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _MOST_BYTES:
            raise ValueError(f"{folder.file(MANIFEST)}: expected at most {_MOST_BYTES:,} bytes, got {size:,}")
        return file.read(size)


def _checked_origin(said: Said) -> str:
    origin = said.text("origin")
    if _ORIGIN.fullmatch(origin) is None:
        said.refuse("an origin of 32 hexadecimal digits", origin)
    return origin


def _entries(said: Said, key: str, first: int, end: int) -> list[Entry]:
    """Return segments, which are one after another, and cover [first, end)."""
    entries: list[Entry] = []
    for each in said.objects(key):
        begin = each.integer("first", 0, first) if not entries else entries[-1].end
        entries.append(_entry(each, begin, begin + 1, end))
    if first < end and not entries and key == "records":
        said.refuse(f"{key} of tickets [{first}, {end})", "none")
    if entries and entries[-1].end != end:
        said.refuse(f"{key} of tickets [{first}, {end})", f"those up to {entries[-1].end}")
    return entries


def _entry(said: Said, first: int, least_end: int, most_end: int) -> Entry:
    """Return a segment from a ticket on."""
    file = said.text("file")
    if _NAME.fullmatch(file) is None:
        said.refuse("the name of a segment", file)
    if said.integer("first") != first:
        said.refuse(f"a segment from ticket {first} on", said.integer("first"))
    end = said.integer("end", least_end, most_end)
    beside = tuple(said.integers("beside")) if "beside" in said.entries else ()
    checksums = said.text("crc32")
    if re.fullmatch(r"([0-9a-f]{8})+", checksums) is None:
        said.refuse("checksums of 8 hexadecimal digits each", checksums)
    return Entry(file, first, end, beside, checksums, _checked_origin(said))
