# SPDX-License-Identifier: MIT
"""Fields of records in pieces that threads of a device copy: struct fastreplay_cuda_piece of csrc/cuda/sampling.h."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastreplay import _core

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
        stored, converting = _converting(conversion)
        if field not in self._frames:
            for start, num_bytes in _cut(row_bytes):
                yield Piece(
                    offset + stored(start), block_offset + start, row_bytes, stored(num_bytes), converting=converting
                )
            return
        num_frames, newest = self._frames[field]
        frame_bytes = row_bytes // num_frames
        places = newest | stored(frame_bytes) | _MOST_ALIGNMENT
        for frame in range(num_frames):
            begin = block_offset + frame * frame_bytes
            for start, num_bytes in _cut(frame_bytes):
                at = offset + frame * _PLACE_BYTES
                yield Piece(
                    stored(start), begin + start, row_bytes, stored(num_bytes), at, places & -places, converting
                )


def _converting(conversion: tuple[Any, ...]) -> tuple[Callable[[int], int], int]:
    """Return what so many given bytes are of stored ones, and what becomes of these as a number."""
    source, then, factor, *_ = conversion
    if not source:
        return (lambda num_bytes: num_bytes), 0
    bits = int(np.float32(factor).view(np.uint32))
    return (lambda num_bytes: num_bytes // _FLOAT_BYTES * _NUMBER_BYTES[source]), source | then << 8 | bits << 16


def _cut(num_bytes: int) -> Iterator[tuple[int, int]]:
    for start in range(0, num_bytes, PIECE_BYTES):
        yield start, min(PIECE_BYTES, num_bytes - start)
