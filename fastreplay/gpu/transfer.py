# SPDX-License-Identifier: MIT
"""One copy from page-locked memory to its twin on a device, and what orders it."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

import torch

from fastreplay.gpu import memory, streams
from fastreplay.gpu.library import cuda_error

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Transfer"]


class _Struct(ctypes.Structure):
    """Struct fastreplay_cuda_transfer of csrc/cuda/transfer.h."""

    _fields_ = (
        ("target", ctypes.c_void_p),
        ("host", ctypes.c_void_p),
        ("num_bytes", ctypes.c_size_t),
        ("stream", ctypes.c_void_p),
        ("release", ctypes.c_void_p),
        ("copied", ctypes.c_void_p),
        ("device", ctypes.c_int),
    )


class Transfer:
    """A page-locked block, its twin in the device's memory, and the two events between them.

    The twin is allocated for the stream that is current here, as any tensor: when the last tensor on it is gone,
    torch may give its memory to later work of that stream, which comes after the consumer's. So nothing needs
    `record_stream`.
    """

    def __init__(
        self, device: torch.device, stream: torch.cuda.Stream, send: Callable[[int], int] | None, num_bytes: int
    ) -> None:
        self._device = device
        self._stream = stream
        self._send = send  # fastreplay_cuda_send, where it is there
        with torch.inference_mode(False):  # whose tensors could not be saved for a backward pass later
            self._pinned = memory.page_locked(num_bytes, device)
            self.target = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        self.host: NDArray[np.uint8] = self._pinned.numpy()
        self._copied = streams.Mark(device)
        self._copied.set(stream)  # an event has a handle once it was recorded; here it stands for no copy
        self._is_new = True
        self._released = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._consumer = torch.cuda.current_stream(device)
        self.release()  # from who had this memory before
        self._native = _Struct(
            self.target.data_ptr(),
            self._pinned.data_ptr(),
            num_bytes,
            stream.cuda_stream,
            self._released.cuda_event,
            self._copied.event.cuda_event,
            device.index,
        )
        # torch does not know of copies that fastreplay_cuda_send started: page-locked memory that it gets back
        # may be somebody else's at once.
        self._process = os.getpid()
        streams.at_end_of(self, _keep_until_copied, self._pinned, self._copied)

    @property
    def context(self) -> int:
        """Address of the struct that fastreplay_cuda_send takes."""
        return ctypes.addressof(self._native)

    def start(self) -> None:
        """Queue the copy, after the work that still reads the target.

        Raises:
            RuntimeError: It could not be queued, and why.
        """
        if self._send is None:
            self._stream.wait_event(self._released)
            memory.copy(self.target, self._pinned, self._stream)
            self._copied.set(self._stream)
        elif error := self._send(self.context):  # 4 us on an H200's host, where torch takes 28
            raise RuntimeError(f"sample: the copy to {self._device} could not be started: {cuda_error(error)}")

    def is_copied(self) -> bool:
        """Tell whether the last copy is done."""
        return self._is_new or self._copied.is_done()

    def is_inherited(self) -> bool:
        """Tell whether it is of the process that forked this one, whose device this one cannot use."""
        return os.getpid() != self._process

    def finish(self) -> None:
        """Wait until the last copy is done."""
        self._copied.wait()

    def make_consumer_wait(self) -> None:
        """Let the current stream wait for the last copy."""
        self._is_new = False
        if streams.current_handle(self._device) != self._consumer.cuda_stream:
            self._consumer = torch.cuda.current_stream(self._device)
        self._consumer.wait_event(self._copied.event)

    def release(self) -> None:
        """Mark what the consumer has queued, here and on the stream where it got the last minibatch."""
        current = self._consumer
        if streams.current_handle(self._device) != current.cuda_stream:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._consumer)
        self._released.record(current)


def _keep_until_copied(_pinned: torch.Tensor, copied: streams.Mark) -> None:
    copied.wait()
