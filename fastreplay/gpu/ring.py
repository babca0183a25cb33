# SPDX-License-Identifier: MIT
"""A ring in the memory of a CUDA device: what csrc/cuda/sampling.h asks for, on torch's streams and memory."""

from __future__ import annotations

import ctypes
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from fastreplay.gpu import memory, streams
from fastreplay.gpu.library import cuda_error, cuda_sampling

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from fastreplay.gpu.following import Following
    from fastreplay.gpu.masses import Weighing
    from fastreplay.gpu.pieces import Piece

__all__ = ["DeviceRing", "Generator", "Stage"]

_NUM_STAGES = 2
_STAGE_BYTES = 4 << 20
_GENERATOR_BYTES = 7 * 8  # struct fastreplay_cuda_generator


class _Window(ctypes.Structure):
    """Struct fastreplay_cuda_window of csrc/cuda/sampling.h."""

    _fields_ = (("first", ctypes.c_uint64), ("size", ctypes.c_uint64), ("first_slot", ctypes.c_uint64))


class _Sampling(ctypes.Structure):
    """Struct fastreplay_cuda_sampling of csrc/cuda/sampling.h."""

    _fields_ = (
        ("now", ctypes.c_void_p),
        ("window", ctypes.c_void_p),
        ("generator", ctypes.c_void_p),
        ("records", ctypes.c_void_p),
        ("stride", ctypes.c_uint64),
        ("capacity", ctypes.c_uint64),
        ("pieces", ctypes.c_void_p),
        ("num_pieces", ctypes.c_uint64),
        ("block", ctypes.c_void_p),
        ("tickets_offset", ctypes.c_uint64),
        ("batch_size", ctypes.c_uint64),
        ("weighing", ctypes.c_void_p),
        ("following", ctypes.c_void_p),
        ("trajectories", ctypes.c_void_p),
    )


class Stage:
    """Page-locked memory of some records on their way, and of what goes with them.

    Args:
        device: The device.
        num_records: How many there is room for.
        stride: Bytes of one.
        num_beside: Bytes of what goes with each.
        num_frames: Bytes of the frames beside all of them that there is room for.
    """

    def __init__(self, device: torch.device, num_records: int, stride: int, num_beside: int, num_frames: int) -> None:
        self.num_records = num_records
        num_bytes, num_beside = num_records * stride, num_records * num_beside
        self.pinned = memory.page_locked(num_bytes + num_beside + num_frames, device)
        self.host: NDArray[np.uint8] = self.pinned.numpy()[:num_bytes]
        self.beside: NDArray[np.uint8] = self.pinned.numpy()[num_bytes : num_bytes + num_beside]
        self.frames: NDArray[np.uint8] = self.pinned.numpy()[num_bytes + num_beside :]
        self.sent = streams.Mark(device)  # its last copy


class Generator:
    """Struct fastreplay_cuda_generator in the device's memory. Only one thread at a time may call, as with its ring.

    Attributes:
        memory: The struct.
        num_queued: Its number of calls once what was queued is done, but for the replays of graphs.
        trajectories: The address of the links of those that it draws over; None where it does not.
    """

    trajectories: int | None = None

    def __init__(self, ring: DeviceRing) -> None:
        ring.refuse_capture("rng_state")
        self._ring = ring
        self.memory = ring.allocate(_GENERATOR_BYTES)
        self.num_queued = 0
        ring.free_after_use(self)

    def read(self) -> tuple[int, ...]:
        """Return what was counted, calls and rows first; wait for what is queued."""
        self._ring.refuse_capture("rng_state, stats")
        self._ring.begin()
        _, _, *counts = memory.bytes_of(self.memory).view(np.uint64).tolist()
        return tuple(counts)

    def write(self, key: tuple[int, int], calls: int, counts: Sequence[int]) -> None:
        """Set the state for what is queued from now on."""
        self._ring.refuse_capture("rng_state")
        self._ring.begin()
        self._ring.upload(self.memory, np.array([*key, calls, *counts], np.uint64))
        self._ring.end()
        self.num_queued = calls


class DeviceRing:
    """Records in the memory of a device, and the launches that draw from them, on the calling thread's current stream.

    That stream is asked for once, by `begin`, and is the one of all that is queued up to `end`; one thread at a time
    is between the two.

    Args:
        device: The device.
        capacity: Records.
        stride: Bytes of one.
        num_beside: Bytes of what goes over with each.
        most_frames: Bytes of all frames that one can have beside it.

    Raises:
        RuntimeError: There is no CUDA part, it cannot run on this device, memory cannot be had, or a graph is being
            captured.
    """

    def __init__(
        self, device: torch.device, capacity: int, stride: int, num_beside: int = 0, most_frames: int = 0
    ) -> None:
        self.device = device
        functions, reason = cuda_sampling(device.index)
        if functions is None:
            raise RuntimeError(f"storage: 'cuda' on {device} needs the CUDA part of fastreplay: {reason}")
        self._functions = functions
        self.refuse_capture("storage")
        self.capacity = capacity
        self._stride = stride
        num_staged = min(max(_STAGE_BYTES // stride, 1), capacity)
        num_frames = min(max(_STAGE_BYTES, most_frames), num_staged * most_frames)
        self.stages = tuple(Stage(device, num_staged, stride, num_beside, num_frames) for _ in range(_NUM_STAGES))
        self._records = self.allocate(capacity * stride)
        self._window = self.allocate(ctypes.sizeof(_Window))
        self._last = torch.cuda.current_stream(device)
        self._used = streams.Mark(device)
        self.end()
        self.free_after_use(self)
        self.set_window(0, 0)

    def consumer(self) -> int:
        """Return the handle of the calling thread's current stream."""
        return streams.current_handle(self.device)

    def is_captured(self, stream: int) -> bool:
        """Tell whether that stream is being captured in a graph."""
        return streams.is_captured(self.device, stream)

    def free_after_use(self, owner: object) -> None:
        """Let memory that was allocated here be free no earlier than all that was queued up to `end` is done.

        torch gives memory back to the stream that it was allocated for, whoever used it last.
        """
        streams.at_end_of(owner, self._used.hold, torch.cuda.current_stream(self.device))

    def refuse_capture(self, what: str) -> None:
        """Refuse what the replays of a graph would do wrong.

        Raises:
            RuntimeError: The calling thread's current stream is being captured.
        """
        streams.refuse_capture(self.device, self.consumer(), what)

    def begin(self) -> None:
        """Let what is queued from now on come after what was queued up to `end` on another stream."""
        if self.consumer() != self._last.cuda_stream:
            self._last = torch.cuda.current_stream(self.device)
            self._last.wait_event(self._used.event)

    def end(self) -> None:
        """Mark the end of what `begin` began."""
        self._used.set(self._last)

    def send(self, stage: Stage, num_bytes: int, offset: int) -> None:
        """Queue a copy of a stage's first bytes to a place among the records; do not wait."""
        memory.copy(self._records[offset : offset + num_bytes], stage.pinned[:num_bytes], self._last)
        stage.sent.set(self._last)

    def send_beside(self, stage: Stage, offset: int, num_bytes: int, target: torch.Tensor) -> None:
        """Queue a copy of bytes of what goes with a stage's records; do not wait."""
        first = stage.host.nbytes + offset
        memory.copy(target, stage.pinned[first : first + num_bytes], self._last)
        stage.sent.set(self._last)

    def send_frames(self, stage: Stage, offset: int, num_bytes: int, target: torch.Tensor) -> None:
        """Queue a copy of some of a stage's frames; do not wait."""
        self.send_beside(stage, stage.beside.nbytes + offset, num_bytes, target)

    @property
    def address(self) -> int:
        """That of the first record."""
        return self._records.data_ptr()

    @property
    def window(self) -> int:
        """The address of the window that graphs draw from."""
        return self._window.data_ptr()

    def set_window(self, first: int, size: int) -> None:
        """Queue that what graphs draw is drawn from `size` tickets from `first` on."""
        now = self._now(first, size)
        self.launch(self._functions.set_window, self.window, ctypes.addressof(now))

    def launch(self, function: Callable[..., int], *arguments: object) -> None:
        """Call what queues on the stream of `begin`.

        Raises:
            RuntimeError: It could not.
        """
        self.check(function(self.device.index, self._last.cuda_stream, *arguments))

    def new_generator(self) -> Generator:
        """Make a generator's state."""
        return Generator(self)

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """Return memory for the current stream."""
        with torch.inference_mode(False):  # whose tensors could not be saved for a backward pass later
            return torch.empty(num_bytes, dtype=torch.uint8, device=self.device)

    def upload(self, target: torch.Tensor, numbers: NDArray[np.generic]) -> None:
        """Queue a copy of some numbers; do not wait."""
        pinned = memory.page_locked(numbers.nbytes, self.device)
        pinned.numpy()[:] = numbers.reshape(-1).view(np.uint8)
        memory.copy(target, pinned, self._last)  # torch keeps it until then

    def new_draw(
        self,
        block: torch.Tensor,
        pieces: Sequence[Piece],
        tickets_offset: int,
        batch_size: int,
        weighing: Weighing | None,
        *,
        following: Following | None,
    ) -> Callable[[Generator, tuple[int, int] | None, list[int], float], None]:
        """Return what queues that a minibatch is drawn and gathered into a block.

        It is given the window to draw from, between `begin` and `end`, or None in the capture of a graph, whose
        replays draw from what the window is then; and the exponent of the weights. It appends 0 to a list once that is
        queued, in one step with it: no exception of a signal handler can come between the two.

        Args:
            block: Memory of a minibatch.
            pieces: Those of the fields.
            tickets_offset: Where the tickets lie in the block.
            batch_size: Rows.
            weighing: How they are drawn by priority; None for draws that are uniform.
            following: What surrounds them, in place of the pieces; None for transitions by themselves.
        """
        table = np.array(pieces, np.uint64)
        sampling = _Sampling(
            None,
            self.window,
            None,
            self._records.data_ptr(),
            self._stride,
            self.capacity,
            table.ctypes.data,
            len(pieces),
            block.data_ptr(),
            tickets_offset,
            batch_size,
            None if weighing is None else ctypes.addressof(weighing),
            None if following is None else ctypes.addressof(following.native),
        )

        def draw(
            generator: Generator,
            window: tuple[int, int] | None,
            drawn: list[int],
            beta: float,
            _read: object = (table, following),  # by the launch
        ) -> None:
            now = None if window is None else self._now(*window)
            sampling.now = None if now is None else ctypes.addressof(now)
            sampling.generator = generator.memory.data_ptr()
            sampling.trajectories = generator.trajectories
            if weighing is not None:
                weighing.beta = beta
            stream = self.consumer() if window is None else self._last.cuda_stream
            launch = partial(self._functions.sample, self.device.index, stream)
            # Without an instruction of Python's between the launch and the note of it, where a signal could be heard.
            drawn.extend(map(launch, [ctypes.byref(sampling)]))
            self.check(drawn[-1])
            if window is not None:
                generator.num_queued += 1

        return draw

    def _now(self, first: int, size: int) -> _Window:
        return _Window(first, size, first % self.capacity)

    def check(self, error: int) -> None:
        """Refuse to go on after a launch that failed.

        Raises:
            RuntimeError: The number is an error's.
        """
        if error:
            raise RuntimeError(f"storage: the launch on {self.device} failed: {cuda_error(error)}")
