# SPDX-License-Identifier: MIT
"""What surrounds the rows that a CUDA device draws: what csrc/cuda/following.h asks for."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastreplay import _core
from fastreplay.gpu.library import cuda_following
from fastreplay.gpu.pieces import Piece

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from numpy.typing import NDArray

    from fastreplay.batch.form import Around
    from fastreplay.batch.layout import Layout
    from fastreplay.gpu.pieces import RecordFields
    from fastreplay.gpu.ring import DeviceRing, Stage

__all__ = ["LINK_BYTES", "DeviceLinks", "Following"]

LINK_BYTES = 8  # struct fastreplay_cuda_link

# enum fastreplay_cuda_making
_OF_START, _OF_END, _OF_STEPS, _OF_STEPS_OR_0, _OF_FIRST = range(5)
_SAY_THERE, _SAY_TRAINED, _SAY_FIRST = range(5, 8)
_SUM_FLOATS, _SUM_DOUBLES, _DISCOUNT_FLOAT, _DISCOUNT_DOUBLE = range(8, 12)
_SAID = {_core.STEPS_THERE: _SAY_THERE, _core.STEPS_TRAINED: _SAY_TRAINED, _core.STEPS_FIRST: _SAY_FIRST}
_COPIED = {_core.PART_OF_START: _OF_START, _core.PART_OF_END: _OF_END}
_ALONE = (0, 1, 1)  # step 0


class _Linking(ctypes.Structure):
    """Struct fastreplay_cuda_linking of csrc/cuda/following.h."""

    _fields_ = (
        ("links", ctypes.c_void_p),
        ("capacity", ctypes.c_uint64),
        ("first_slot", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
        ("changes", ctypes.c_void_p),
        ("num_changes", ctypes.c_uint64),
    )


class _Following(ctypes.Structure):
    """Struct fastreplay_cuda_following of csrc/cuda/following.h."""

    _fields_ = (
        ("links", ctypes.c_void_p),
        ("most_before", ctypes.c_uint64),
        ("most_after", ctypes.c_uint64),
        ("is_redrawn", ctypes.c_uint64),
        ("is_time_major", ctypes.c_uint64),
        ("ways_offset", ctypes.c_uint64),
        ("way_bytes", ctypes.c_uint64),
        ("gamma", ctypes.c_double),
        ("discount_bytes", ctypes.c_uint64),
        ("discount_offset", ctypes.c_uint64),
        ("made", ctypes.c_void_p),
        ("num_made", ctypes.c_uint64),
    )


class Following(NamedTuple):
    """How the rows of a block are surrounded; both are to be kept for the launch."""

    native: _Following
    made: NDArray[np.uint64]


class DeviceLinks:
    """A link for each slot of a ring on a device. Calls take turns, as those of the ring.

    Args:
        ring: The one on the device.
        lanes: Of the host's.

    Raises:
        RuntimeError: There is no CUDA part, or memory cannot be had.
    """

    def __init__(self, ring: DeviceRing, lanes: _core.Lanes) -> None:
        functions, reason = cuda_following(ring.device.index)
        if functions is None:
            raise RuntimeError(f"lanes: on {ring.device} they need the CUDA part of fastreplay: {reason}")
        self._complete = functions.complete_links
        self._ring = ring
        self._sent = _core.SentLinks(lanes)
        self._memory: torch.Tensor = ring.allocate(ring.capacity * LINK_BYTES)
        ring.free_after_use(self)

    @property
    def address(self) -> int:
        """That of the first slot's."""
        return self._memory.data_ptr()

    def tell_changes(self) -> None:
        """Queue what is known by now of what was sent. Before each look at what is new."""
        changes = self._sent.changes()
        if len(changes):
            target = self._ring.allocate(changes.nbytes)
            self._ring.upload(target, changes)
            self._launch(0, 0, target.data_ptr(), len(changes))

    def send(self, stage: Stage, ticket: int, count: int) -> None:
        """Queue that links follow the records of a stage."""
        num_bytes = count * LINK_BYTES
        offset = stage.beside.nbytes - stage.num_records * LINK_BYTES
        self._sent.read(ticket, stage.beside[offset : offset + num_bytes])
        slot = ticket % self._ring.capacity
        target = self._memory[slot * LINK_BYTES : slot * LINK_BYTES + num_bytes]
        self._ring.send_beside(stage, offset, num_bytes, target)
        self._launch(slot, count, None, 0)

    def _launch(self, slot: int, count: int, changes: int | None, num_changes: int) -> None:
        linking = _Linking(self._memory.data_ptr(), self._ring.capacity, slot, count, changes, num_changes)
        self._ring.launch(self._complete, ctypes.addressof(linking))

    def following(self, around: Around, layout: Layout, of_fields: RecordFields) -> Following:
        """Return how the rows of a block that lies so are surrounded, of records with such fields."""
        made = np.array([[*piece, *rest] for piece, *rest in _made(around, layout, of_fields)], np.int64)
        gamma, _, stored, _, _ = around.sums or (0.0, [], [], 0, False)
        field, is_double = stored[0] if stored else (0, False)
        native = _Following(
            self._memory.data_ptr(),
            around.most_before,
            around.most_after,
            around.redraws,
            around.is_time_major,
            layout.offsets[around.ways_part],
            layout.form.parts[around.ways_part][1],
            gamma,
            (8 if is_double else 4) if stored else 0,
            of_fields.offsets[field],
            made.ctypes.data,
            len(made),
        )
        return Following(native, made.view(np.uint64))


_Made = tuple[Piece, int, int, int, int]  # struct fastreplay_cuda_made


def _made(around: Around, layout: Layout, of_fields: RecordFields) -> Iterator[_Made]:
    for (source, row_bytes, field, conversion), block_offset in zip(layout.form.parts, layout.offsets, strict=True):
        if source in _COPIED:
            for piece in of_fields.of(field, block_offset, row_bytes, conversion):
                yield (piece, _COPIED[source], *_ALONE)
    for steps, with_zeros, is_first_only, fields, parts in around.taken:
        making = _OF_FIRST if is_first_only else _OF_STEPS_OR_0 if with_zeros else _OF_STEPS
        for field, part in zip(fields, parts, strict=True):
            _, row_bytes, _, conversion = layout.form.parts[part]
            row_bytes //= 1 if is_first_only else steps.length
            for piece in of_fields.of(field, layout.offsets[part], row_bytes, conversion):
                yield (piece, making, *steps)
    for steps, what, part in around.said:
        yield (Piece(0, layout.offsets[part], 1, 1), _SAID[what], *steps)
    if around.sums is None:
        return
    _, sums, _, discount_part, is_discount_double = around.sums
    for (field, is_double), part in sums:
        num_bytes, row_bytes = 8 if is_double else 4, layout.form.parts[part][1]
        piece = Piece(of_fields.offsets[field], layout.offsets[part], row_bytes, num_bytes)
        yield (piece, _SUM_DOUBLES if is_double else _SUM_FLOATS, 0, row_bytes // num_bytes, 1)
    num_bytes = 8 if is_discount_double else 4
    making = _DISCOUNT_DOUBLE if is_discount_double else _DISCOUNT_FLOAT
    yield (Piece(0, layout.offsets[discount_part], num_bytes, num_bytes), making, *_ALONE)
