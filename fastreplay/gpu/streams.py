# SPDX-License-Identifier: MIT
"""Streams and events of a device: what is asked of them, so that no capture of a graph is disturbed by it.

cudaEventQuery and cudaEventSynchronize end every capture that torch makes, on whichever thread; the CUDA part
(csrc/cuda/stream.h) asks as CUDA lets those do who know better. Without it torch is asked.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING

import torch

from fastreplay.gpu.library import cuda_error, cuda_streams

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Mark", "at_end_of", "current_handle", "is_captured", "refuse_capture"]


def current_handle(device: torch.device) -> int:
    """Return the handle of the calling thread's current stream."""
    handle: int = torch._C._cuda_getCurrentRawStream(device.index)
    return handle


def is_captured(device: torch.device, stream: int) -> bool:
    """Tell whether a stream is being captured in a graph; without the CUDA part, whether the current one is."""
    functions = cuda_streams(device.index)
    if functions is None:
        with torch.cuda.device(device):
            return torch.cuda.is_current_stream_capturing()
    return _answer(functions.is_captured(device.index, stream))


def refuse_capture(device: torch.device, stream: int, what: str) -> None:
    """Refuse what a graph cannot repeat.

    Raises:
        RuntimeError: The stream, the calling thread's current one, is being captured.
    """
    if is_captured(device, stream):
        raise RuntimeError(
            f"{what}: not in the capture of a graph, whose replays would send the same bytes again, somebody else's "
            "by then; of minibatches, sample(out=...) with storage='cuda' can be captured"
        )


class Mark:
    """How far a stream is to come: an event, asked for without harm to whatever is being captured anywhere.

    Attributes:
        event: torch's, for streams to wait for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device.index
        self._functions = cuda_streams(device.index)
        self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._is_set = False

    def set(self, stream: torch.cuda.Stream) -> None:
        """Mark what the stream was given up to now."""
        self.event.record(stream)
        self._is_set = True

    def is_done(self) -> bool:
        """Tell whether what was marked last is done, if anything was."""
        if not self._is_set:  # torch's event has no handle yet
            return True
        if self._functions is None:
            return bool(self.event.query())  # type: ignore[no-untyped-call]
        return _answer(self._functions.is_done(self._device, self.event.cuda_event))

    def wait(self) -> None:
        """Wait until what was marked last is done, if anything was."""
        if not self._is_set:
            return
        if self._functions is None:
            self.event.synchronize()
        elif error := self._functions.wait_for(self._device, self.event.cuda_event):
            raise RuntimeError(f"device: {cuda_error(error)}")

    def hold(self, stream: torch.cuda.Stream) -> None:
        """Let a stream wait, or the host where the stream is being captured, which may not wait for others."""
        if self._functions is not None and _answer(self._functions.is_captured(self._device, stream.cuda_stream)):
            self.wait()
        else:
            stream.wait_event(self.event)


def at_end_of(owner: object, call: Callable[..., object], *arguments: object) -> None:
    """Call when an object is gone, but not in a forked child, which cannot use the device."""
    weakref.finalize(owner, _call_in, os.getpid(), call, *arguments)


def _call_in(process: int, call: Callable[..., object], *arguments: object) -> None:
    if os.getpid() == process:
        call(*arguments)


def _answer(number: int) -> bool:
    if number < 0:
        raise RuntimeError(f"device: {cuda_error(-number)}")
    return number == 1
