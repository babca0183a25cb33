# SPDX-License-Identifier: MIT
"""Fields of records in pieces that threads of a device copy: struct fastreplay_cuda_piece of csrc/cuda/sampling.h."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastreplay import _core

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PIECE_BYTES", "Piece", "RecordFields"]

# One piece of a row is copied by 32 threads, each with 64 bytes on their way at once.
PIECE_BYTES = 2048

_PLACE_BYTES = 8
_FLOAT_BYTES = 4
_NUMBER_BYTES = {source: 1 if name in ("bool", "uint8", "int8") else 2 for name, source in _core.CONVERTED_FROM.items()}
_MOST_ALIGNMENT = 16  # that a copy asks for


class Piece(NamedTuple):
    """Struct fastreplay_cuda_piece, whose comments say what the numbers are."""

    record_offset: int
    block_offset: int
    row_bytes: int
    num_bytes: int
    place_offset: int = 0
    frame_alignment: int = 0
    converting: int = 0
    shift: int = 0
    first_number: int = 0
    number_bytes: int = 0
    height: int = 0
    width: int = 0
    field: int = 0


class RecordFields:
    """The fields of some records, to be cut into pieces."""

    def __init__(self, records: _core.Records) -> None:
        self.offsets = records.offsets
        self._frames: dict[int, tuple[int, int]] = {}  # of a field with frames: how many a row has, where the newest is
        for fields, newest, _, _, num_others in records.groups:
            for field in fields:
                self._frames[field] = ((num_others + 1) // len(fields), self.offsets[newest])

    def of(self, field: int, block_offset: int, row_bytes: int, conversion: tuple[Any, ...]) -> Iterator[Piece]:
        """Cut rows of a field, which the block has from `block_offset` on, of so many bytes there."""
        offset = self.offsets[field]
        cut = _Cut(field, row_bytes, conversion)
        if field not in self._frames:
            for start, num_bytes in _cut(row_bytes):
                yield cut.piece(offset, start, block_offset + start, num_bytes)
            return
        num_frames, newest = self._frames[field]
        frame_bytes = row_bytes // num_frames
        places = newest | cut.stored(frame_bytes) | _MOST_ALIGNMENT
        for frame in range(num_frames):
            begin, place = block_offset + frame * frame_bytes, offset + frame * _PLACE_BYTES
            for start, num_bytes in _cut(frame_bytes):
                yield cut.piece(0, start, begin + start, num_bytes)._replace(
                    place_offset=place, frame_alignment=places & -places
                )


class _Cut:
    """What pieces of a field have in common: a row's bytes in the block, and what becomes of the stored ones."""

    def __init__(self, field: int, row_bytes: int, conversion: tuple[Any, ...]) -> None:
        source, then, factor, self._shift, number_bytes, *image = conversion
        self._field, self._row_bytes, self._image = field, row_bytes, (number_bytes, *image)
        self._stored_bytes, self._given_bytes = 1, 1
        self._converting = 0
        if source:
            self._stored_bytes, self._given_bytes = _NUMBER_BYTES[source], _FLOAT_BYTES
            self._converting = source | then << 8 | int(np.float32(factor).view(np.uint32)) << 16

    def stored(self, num_bytes: int) -> int:
        """Return what so many given bytes are of stored ones."""
        return num_bytes // self._given_bytes * self._stored_bytes

    def piece(self, record_offset: int, start: int, block_offset: int, num_bytes: int) -> Piece:
        """Return the piece of so many given bytes that begins so far from the row's, or the frame's, beginning."""
        at = self.stored(start)
        piece = Piece(
            record_offset + at, block_offset, self._row_bytes, self.stored(num_bytes), converting=self._converting
        )
        if not self._shift:
            return piece
        number_bytes, height, width = self._image
        return piece._replace(
            record_offset=record_offset,
            shift=self._shift,
            first_number=at // number_bytes,
            number_bytes=number_bytes,
            height=height,
            width=width,
            field=self._field,
        )


def _cut(num_bytes: int) -> Iterator[tuple[int, int]]:
    for start in range(0, num_bytes, PIECE_BYTES):
        yield start, min(PIECE_BYTES, num_bytes - start)
