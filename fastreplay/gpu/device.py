# SPDX-License-Identifier: MIT
"""A CUDA device: the stream of whoever asks, and the side stream on which minibatches are copied to it."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch

from fastreplay.gpu import memory, streams
from fastreplay.gpu.following import LINK_BYTES, DeviceLinks
from fastreplay.gpu.frames import DeviceFrames, new_sent_frames
from fastreplay.gpu.library import cuda_error, cuda_sender
from fastreplay.gpu.masses import MASS_BYTES
from fastreplay.gpu.mirror import Mirror
from fastreplay.gpu.mirror_delivery import MirrorDelivery
from fastreplay.gpu.mirror_masses import MirrorMasses
from fastreplay.gpu.pinned import PinnedDelivery
from fastreplay.gpu.ring import DeviceRing
from fastreplay.gpu.transfer import Transfer

if TYPE_CHECKING:
    from fastreplay import _core
    from fastreplay.batch.form import Form
    from fastreplay.batch.waits import Waits

__all__ = ["Device"]

_PROBE_BYTES = 4096


class Device:
    """A CUDA device.

    Attributes:
        device: What torch calls it.

    Raises:
        RuntimeError: Memory cannot be page-locked here.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        memory.page_locked(_PROBE_BYTES, device)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        address, _ = cuda_sender()
        self._send = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(address) if address else None

    def consumer(self) -> int:
        """Return the handle of the calling thread's current stream, on which it queues its work."""
        return streams.current_handle(self.device)

    def refuse_capture(self, what: str) -> None:
        """Refuse what the replays of a graph would do wrong.

        Raises:
            RuntimeError: The calling thread's current stream is being captured.
        """
        streams.refuse_capture(self.device, self.consumer(), what)

    def pinned_delivery(
        self,
        form: Form,
        waits: Waits,
        origin: int = 0,
    ) -> PinnedDelivery:
        """Make the delivery of minibatches that the host gathers."""
        return PinnedDelivery(self, form, waits, origin)

    def mirror(
        self,
        ring: _core.Ring,
        waits: Waits,
        masses: _core.Priorities | None,
        rule: tuple[float, float, float],
        lanes: _core.Lanes | None,
    ) -> Mirror:
        """Make a twin of a ring in the device's memory; of its masses, that follow a rule, links and frames, if any.

        Raises:
            RuntimeError: It cannot be had, and why.
        """
        num_beside = (0 if masses is None else MASS_BYTES) + (0 if lanes is None else LINK_BYTES)
        sent = new_sent_frames(ring)
        most_frames = 0 if sent is None else sent.most_bytes
        there = DeviceRing(self.device, ring.capacity, ring.records.record_bytes, num_beside, most_frames)
        mirror = Mirror(there, ring, waits)
        if sent is not None:
            mirror.frames = DeviceFrames(there, sent)
        if masses is not None:
            mirror.masses = MirrorMasses(mirror, masses, rule)
        if lanes is not None:
            mirror.links = mirror.in_turn(DeviceLinks, mirror.ring, lanes)
        return mirror

    def mirror_delivery(
        self,
        mirror: Mirror,
        ring: _core.Ring,
        form: Form,
        *,
        origin: int,
        options: tuple[bool, int, float],
    ) -> MirrorDelivery:
        """Make the delivery of minibatches that the device draws from a twin."""
        return MirrorDelivery(mirror, ring, form, origin=origin, options=options)

    def allocate(self, num_bytes: int) -> Transfer:
        """Make a page-locked block and its twin.

        Raises:
            RuntimeError: The memory cannot be had or page-locked.
        """
        return Transfer(self.device, self._stream, self._send, num_bytes)

    def sender(self) -> int:
        """Return the address of fastreplay_cuda_send (csrc/cuda/transfer.h), which starts transfers without Python.

        Raises:
            RuntimeError: There is none, and why.
        """
        address, reason = cuda_sender()
        if not address:
            raise RuntimeError(f"loader: copies to {self.device} need the CUDA part of fastreplay: {reason}")
        return address

    def describe(self, error: int) -> str:
        """Return a sender's error in words."""
        return cuda_error(error)
