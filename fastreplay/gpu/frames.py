# SPDX-License-Identifier: MIT
"""Frames beside the records of a ring on a CUDA device: rooms for those that are there, in chunks that stay.

What captured graphs read has the places of frames, so that more chunks are no matter to them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastreplay import _core

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from fastreplay.gpu.ring import DeviceRing, Stage

__all__ = ["DeviceFrames", "new_sent_frames"]

_CHUNK_BYTES = 4 << 20
_PLACES = 2**64


def new_sent_frames(source: _core.Ring) -> _core.SentFrames | None:
    """Return what reads a ring's records for a device, None where they have no frames in common."""
    return _core.SentFrames(source, _CHUNK_BYTES) if source.records.groups else None


class _RoomMemory:
    """Memory of some frames, for as long as anything may read it."""

    def __init__(self, ring: DeviceRing, num_bytes: int) -> None:
        self.memory: torch.Tensor = ring.allocate(num_bytes)
        ring.free_after_use(self)


class DeviceFrames:
    """What lies beside the records of a ring on a device. Calls take turns, as those of the ring.

    Args:
        ring: The one on the device.
        sent: What reads the host's.
    """

    def __init__(self, ring: DeviceRing, sent: _core.SentFrames) -> None:
        self._ring = ring
        self._sent = sent
        self._chunks: list[list[_RoomMemory]] = [[] for _ in sent.groups]

    def read(self, stage: Stage, ticket: int, records: NDArray[np.uint8]) -> int:
        """Read records into a stage's first bytes, and queue that what lies beside them goes over.

        Returns:
            How many records were read, at least one: as many as have what lies beside them in the stage, too.

        Raises:
            RuntimeError: The device has no memory for what lies beside one (torch.OutOfMemoryError).
        """
        while True:
            count, lacking, copies = self._sent.read(ticket, records, stage.frames)
            if lacking is None:
                break
            self._grow(lacking)  # and all is read again: a stage for each part would be waited for
        groups = self._sent.groups
        for group, room, num_rooms, offset in copies:
            frame_bytes, per_chunk, _ = groups[group]
            chunk, begin = self._chunks[group][room // per_chunk].memory, room % per_chunk * frame_bytes
            num_copied = num_rooms * frame_bytes
            self._ring.send_frames(stage, offset, num_copied, chunk[begin : begin + num_copied])
        return count

    def _grow(self, group: int) -> None:
        frame_bytes, per_chunk, num_chunks = self._sent.groups[group]
        chunks = self._chunks[group]
        if len(chunks) == num_chunks:  # else one is left of a call that was interrupted
            chunks.append(_RoomMemory(self._ring, per_chunk * frame_bytes))
        self._sent.add_chunk(group, (chunks[-1].memory.data_ptr() - self._ring.address) % _PLACES)
