# SPDX-License-Identifier: MIT
"""A CUDA device whose streams run when the test says so, for fastreplay/gpu/device.py on any machine.

Streams are queues of operations, events have CUDA's meaning (a wait is for the record made last before it), copies
read and write their bytes at the moment they run. So a block that is overwritten too early, by the host or by the
device, shows in what a queued read finds. Memory that was given back is poisoned: the device's when what its stream was
given before is done, page-locked memory when the copies that torch knows of are done. A stream may be captured in a
graph, and until that is over no event may be asked for, but as csrc/cuda/stream.h does. Each thread has a current
stream of its own.
"""

from __future__ import annotations

import ctypes
import threading
import warnings
import weakref
from collections import deque
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import fake_following
import fake_masses
import numpy as np
import pytest
import torch
from support import arrays, assert_same

import fastreplay.buffer.replay_buffer
from fastreplay.gpu import device, following, masses, memory, ring, streams, transfer
from fastreplay.gpu.library import CudaFollowing, CudaMasses, CudaSampling, CudaStreams
from fastreplay.gpu.pieces import Piece
from fastreplay.support.checks import checked_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEVICE = torch.device("cuda:0")
_PIECE_WORDS = len(Piece._fields)

# For tests of a real one.
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
cuda_device = [pytest.mark.cuda, needs_cuda]


@contextmanager
def the_host_never_waits() -> Iterator[None]:
    """Let torch refuse, on a real device, whatever makes the host wait for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode is a prototype, once a process
        try:
            torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


class RealCuda:
    """What tests ask of a fake device, done by a real one."""

    def run_all(self) -> None:
        torch.cuda.synchronize()

    @contextmanager
    def capture(self) -> Iterator[Any]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            yield graph

    def replay(self, graph: Any) -> None:
        graph.replay()

    def tensor(self, values: Any) -> torch.Tensor:
        return torch.as_tensor(values, device=DEVICE)


class Token:
    """One record of an event."""

    def __init__(self, done: bool = False) -> None:
        self.done = done


class Stream:
    """Operations in order: each returns False where it cannot run yet."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.queue: deque[Callable[[], bool]] = deque()
        self.graph: list[Callable[[], object]] | None = None  # what it is captured in
        self.cuda_stream = cuda.handle(self)

    def do(self, work: Callable[[], object]) -> None:
        if self.graph is None:
            self.queue.append(lambda: work() is not False)
        else:
            self.graph.append(work)

    def wait_event(self, event: Event) -> None:
        assert self.graph is None, "a graph cannot wait for what is outside of it"
        token = event.token
        self.queue.append(lambda: token.done)

    def wait_stream(self, other: Stream) -> None:
        event = Event(self.cuda)
        event.record(other)
        self.wait_event(event)

    def run(self) -> bool:
        """Run the next operation; False where there is none that can."""
        if not self.queue or not self.queue[0]():
            return False
        self.queue.popleft()
        return True


class Event:
    """As torch.cuda.Event: made when it is first recorded."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.token = Token(done=True)
        self.cuda_event = 0

    def record(self, stream: Stream) -> None:
        self.cuda_event = self.cuda_event or self.cuda.handle(self)
        self.token = token = Token()
        stream.do(lambda: setattr(token, "done", True))

    def query(self) -> bool:
        assert not self.cuda.num_captures, "cudaEventQuery ended a capture"
        return self.token.done

    def synchronize(self) -> None:
        assert not self.cuda.num_captures, "cudaEventSynchronize ended a capture"
        self.wait()

    def wait(self) -> None:
        self.cuda.num_host_waits += 1
        token = self.token
        while not token.done:
            assert self.cuda.run_any(), "the host waits for ever"


class FakeCuda:
    """The device, its run-time, and fastreplay_cuda_send for it.

    Attributes:
        side: The stream of the copies, of the last device made.
        current: The calling thread's current stream.
        num_captures: Captures that are going on.
        num_host_waits: How often the host waited for an event.
        send_error: What fastreplay_cuda_send returns, if not 0.
        is_sending: Set once fastreplay_cuda_send was called.
        may_send: Cleared, it makes fastreplay_cuda_send wait.
        launch_error: What fastreplay_cuda_set_window and fastreplay_cuda_sample return, if not 0.
    """

    def __init__(self) -> None:
        self.handles: list[Any] = []
        self.streams: list[Stream] = []
        self.memory: list[Any] = []  # kept, so that queued reads may look at what was freed
        self.last_copies: dict[int, tuple[Stream, Token]] = {}  # from page-locked memory, those that torch knows of
        self._threads = threading.local()
        self._default = self.new_stream()
        self.num_captures = 0
        self.num_host_waits = 0
        self.num_sends = 0
        self.num_copied_bytes = 0
        self.send_error = 0
        self.launch_error = 0
        self.is_sending = threading.Event()
        self.may_send = threading.Event()
        self.may_send.set()
        self.send_threads: set[int] = set()
        self._send = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(self.send)  # kept: C holds its address only

    @property
    def current(self) -> Stream:
        stream: Stream = getattr(self._threads, "stream", self._default)
        return stream

    @current.setter
    def current(self, stream: Stream) -> None:
        self._threads.stream = stream

    @contextmanager
    def capture(self) -> Iterator[list[Callable[[], object]]]:
        """Capture what this thread queues, on a stream of its own, in a graph."""
        before, stream = self.current, Stream(self)
        self.current, stream.graph = stream, []
        self.num_captures += 1
        try:
            yield stream.graph
        finally:
            self.num_captures -= 1
            self.current, stream.graph = before, None

    @property
    def num_blocks(self) -> int:
        """Page-locked blocks with their twins; the first piece of memory is a device's try."""
        return len(self.memory) // 2

    @property
    def side(self) -> Stream:
        return self.streams[-1]

    def handle(self, thing: object) -> int:
        self.handles.append(thing)
        return len(self.handles)

    def of_handle(self, handle: int) -> Any:
        assert handle > 0
        return self.handles[handle - 1]

    def new_stream(self, _device: object = None) -> Stream:
        self.streams.append(Stream(self))
        return self.streams[-1]

    def run_any(self) -> bool:
        """Run one operation of any stream."""
        return any(stream.run() for stream in self.streams)

    def run_all(self) -> None:
        """Run everything that is queued."""
        while self.run_any():
            pass
        assert not any(stream.queue for stream in self.streams), "streams wait for each other"

    def allocate(self, num_bytes: int, **_: object) -> torch.Tensor:
        """Return memory of the device."""
        return self._allocate(num_bytes, self.current)

    def page_locked(self, num_bytes: int, _device: object = None) -> torch.Tensor:
        return self._allocate(num_bytes, None)

    def _allocate(self, num_bytes: int, stream: Stream | None) -> torch.Tensor:
        memory = torch.full((num_bytes,), 0xEE, dtype=torch.uint8).numpy()
        self.memory.append(memory)
        lent = memory[:]  # torch refers to it as long as any tensor has the storage

        def poison() -> bool:
            memory.fill(0xDD)
            return True

        def give_back() -> None:
            last = stream or self._last_copy(memory.ctypes.data)
            if last is None:
                poison()
            else:
                last.queue.append(poison)

        weakref.finalize(lent, give_back).atexit = False
        return torch.from_numpy(lent)

    def _last_copy(self, address: int) -> Stream | None:
        stream, token = self.last_copies.get(address, (None, None))
        return None if token is None or token.done else stream

    def copy(self, target: torch.Tensor, source: torch.Tensor, stream: Stream) -> None:
        self.copy_bytes(target.data_ptr(), source.data_ptr(), target.numel(), stream)
        event = Event(self)
        event.record(stream)
        self.last_copies[source.data_ptr()] = (stream, event.token)

    def copy_bytes(self, target: int, source: int, num_bytes: int, stream: Stream) -> None:
        self.num_copied_bytes += num_bytes
        stream.do(lambda: ctypes.memmove(target, source, num_bytes) and None)

    def send(self, context: int) -> int:
        """Do what csrc/cuda/stream.cu does."""
        self.is_sending.set()
        self.may_send.wait(10)
        if self.send_error:
            return self.send_error
        self.num_sends += 1
        self.send_threads.add(threading.get_native_id())
        sent = transfer._Struct.from_address(context)
        assert sent.device == DEVICE.index
        stream = self.of_handle(sent.stream)
        stream.wait_event(self.of_handle(sent.release))
        self.copy_bytes(sent.target, sent.host, sent.num_bytes, stream)
        self.of_handle(sent.copied).record(stream)
        return 0

    def set_window(self, device: int, stream: int, window: int, now: int) -> int:
        """Do what csrc/cuda/sampling.cu does."""
        assert (device, self.of_handle(stream).graph) == (DEVICE.index, None)
        if not self.launch_error:
            values = numbers(now, 3).tolist()
            self.of_handle(stream).do(lambda: numbers(window, 3).put([0, 1, 2], values))
        return self.launch_error

    def sample(self, device: int, stream: int, reference: Any) -> int:
        """Do what csrc/cuda/sampling.cu does, with NumPy."""
        assert device == DEVICE.index
        sampling = ring._Sampling.from_buffer_copy(reference._obj)  # a launch copies its arguments
        if self.launch_error:
            return self.launch_error
        now = numbers(sampling.now, 3).tolist() if sampling.now else None
        pieces = numbers(sampling.pieces, _PIECE_WORDS * sampling.num_pieces).reshape(-1, _PIECE_WORDS).tolist()
        weighing = copied(masses.Weighing, sampling.weighing) if sampling.weighing else None
        around = None
        if sampling.following:
            rule = copied(following._Following, sampling.following)
            words = _PIECE_WORDS + 4
            around = rule, numbers(rule.made, words * rule.num_made).reshape(-1, words).view(np.int64).tolist()
        self.of_handle(stream).do(lambda: sample(sampling, now, pieces, weighing, around))
        return 0

    def launch(self, kind: Any, run: Callable[[Any], None]) -> Callable[[int, int, int], int]:
        """Return what does as csrc/cuda/masses.cu and following.cu."""

        def queue(device: int, stream: int, address: int) -> int:
            assert device == DEVICE.index
            if not self.launch_error:
                parameters = copied(kind, address)
                self.of_handle(stream).do(lambda: run(parameters))
            return self.launch_error

        return queue

    def tensor(self, values: Any) -> torch.Tensor:
        """Return values in memory of the device, where they are at once."""
        given = torch.as_tensor(values).contiguous()
        made = self.allocate(given.numel() * given.itemsize).view(given.dtype).view(given.shape)
        return made.copy_(given)

    def is_on(self, tensor: torch.Tensor, _device: object) -> bool:
        address = tensor.data_ptr()
        return any(memory.ctypes.data <= address < memory.ctypes.data + memory.nbytes for memory in self.memory)

    def is_done(self, device: int, event: int) -> int:
        """Do what csrc/cuda/stream.cu does."""
        assert device == DEVICE.index
        return int(self.of_handle(event).token.done)

    def wait_for(self, device: int, event: int) -> int:
        assert device == DEVICE.index
        self.of_handle(event).wait()
        return 0

    def is_captured(self, device: int, stream: int) -> int:
        assert device == DEVICE.index
        return int(self.of_handle(stream).graph is not None)

    def replay(self, graph: list[Callable[[], object]]) -> None:
        """Queue what was captured."""
        for launch in graph:
            self.current.do(launch)

    def bytes_of(self, memory: torch.Tensor) -> Any:
        self.run_all()
        return memory.numpy().copy()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let `device="cuda"` be this device."""
        address = ctypes.cast(self._send, ctypes.c_void_p).value
        cuda = SimpleNamespace(
            Stream=self.new_stream,
            Event=lambda: Event(self),
            current_stream=lambda _device: self.current,
        )
        fake_torch = SimpleNamespace(
            cuda=cuda,
            empty=self.allocate,
            uint8=torch.uint8,
            inference_mode=torch.inference_mode,
            _C=SimpleNamespace(_cuda_getCurrentRawStream=lambda _index: self.current.cuda_stream),
        )
        asked = CudaStreams(self.is_done, self.wait_for, self.is_captured)
        monkeypatch.setattr(streams, "torch", fake_torch)
        monkeypatch.setattr(streams, "cuda_streams", lambda _device: asked)
        sampling = CudaSampling(self.set_window, self.sample)
        monkeypatch.setattr(device, "torch", fake_torch)
        monkeypatch.setattr(ring, "torch", fake_torch)
        monkeypatch.setattr(transfer, "torch", fake_torch)
        monkeypatch.setattr(ring, "cuda_sampling", lambda _device: (sampling, ""))
        monkeypatch.setattr(ring, "cuda_error", lambda error: f"fake error {error}")
        kept = CudaMasses(
            fake_masses.num_bytes,
            self.launch(masses._Masses, fake_masses.begin),
            self.launch(masses._Settling, fake_masses.settle),
            self.launch(masses._Update, fake_masses.update),
        )
        monkeypatch.setattr(masses, "cuda_masses", lambda _device: (kept, ""))
        linking = CudaFollowing(self.launch(following._Linking, fake_following.complete_links))
        monkeypatch.setattr(following, "cuda_following", lambda _device: (linking, ""))
        monkeypatch.setattr(memory, "is_on", self.is_on)
        monkeypatch.setattr(memory, "bytes_of", self.bytes_of)
        monkeypatch.setattr(memory, "page_locked", self.page_locked)
        monkeypatch.setattr(memory, "copy", self.copy)
        monkeypatch.setattr(device, "cuda_sender", lambda: (address, ""))
        monkeypatch.setattr(device, "cuda_error", lambda error: f"fake error {error}")
        monkeypatch.setattr(transfer, "cuda_error", lambda error: f"fake error {error}")
        monkeypatch.setattr(
            fastreplay.buffer.replay_buffer,
            "checked_device",
            lambda device: checked_device(device) if device == "cpu" else DEVICE,
        )


def sample(
    sampling: ring._Sampling,
    now: list[int] | None,
    pieces: list[list[int]],
    weighing: masses.Weighing | None,
    around: tuple[Any, list[list[int]]] | None,
) -> None:
    """Draw and gather by NumPy's own Philox, below a bound so small that no word is thrown away."""
    if now is not None:
        numbers(sampling.window, 3)[:] = now
    first, size, first_slot = numbers(sampling.window, 3).tolist()
    if not size:
        return
    generator = numbers(sampling.generator, 7)
    shifts = fake_following.Shifts(generator)
    tickets = numbers(sampling.block + sampling.tickets_offset, sampling.batch_size)
    over = fake_following.TrajectoryDraws(sampling, generator, first, size) if sampling.trajectories else None
    if over is not None:
        tickets[:] = [over.found(row, 0, lambda _: True) for row in range(sampling.batch_size)]
    elif weighing is None:
        counter = [0, int(generator[2]), 0, 0]
        words = np.random.Philox(key=generator[:2], counter=counter).random_raw(sampling.batch_size)
        tickets[:] = [first + (word * size >> 64) for word in words.tolist()]
    else:
        tickets[:] = fake_masses.draw(sampling, weighing, generator, (first, size, first_slot), around)
    if around is not None:
        window = fake_following.Window(sampling, around[0], first, size)
        if weighing is None:
            draws = over or fake_following.UniformDraws(generator, window)
            tickets[:] = window.completed(tickets.tolist(), generator, draws)
        window.make(sampling, around, tickets.tolist(), shifts)
    generator[2:4] += np.array([1, sampling.batch_size], np.uint64)
    for row, ticket in enumerate(tickets.tolist()):
        offset = (first_slot + ticket - first) % sampling.capacity * sampling.stride
        for piece in pieces:
            _, block_offset, row_bytes, *_ = piece
            source = fake_following.source_of(piece, sampling.records, offset)
            fake_following.give(piece, sampling.block + block_offset + row * row_bytes, source, shifts, row)


def copied(kind: Any, address: int) -> Any:
    """Return the struct at an address, as a launch copies it."""
    return kind.from_buffer_copy(kind.from_address(address))


def numbers(address: int, count: int) -> Any:
    return np.ctypeslib.as_array((ctypes.c_uint64 * count).from_address(address))


def queue_check(stream: Stream, batch: Any, expected: dict[str, Any]) -> list[bool]:
    """Queue work that compares a minibatch when it runs, without a reference to it; tell when it did."""
    memory, layout = batch._block.flat_tensor(), batch._block.layout
    address, num_bytes = memory.data_ptr(), memory.numel()
    del memory
    ran: list[bool] = []

    def look() -> None:
        flat = torch.frombuffer(bytearray(ctypes.string_at(address, num_bytes)), dtype=torch.uint8)
        *fields, ticket = (tensor.numpy() for tensor in layout.tensors_in(flat))
        names = (*layout.form.schema, *layout.form.beside)
        assert_same({**dict(zip(names, fields, strict=True)), "ticket": ticket}, expected)
        ran.append(True)

    stream.do(look)
    return ran


def sample_into_one(cuda: FakeCuda, buffer: Any, twin: Any) -> tuple[Any, list[list[bool]]]:
    """Draw into one `out` again and again, each time followed by work that looks at it; return it, and its checks."""
    out = buffer.sample(16)
    reward = out.reward
    checks = [queue_check(cuda.current, out, arrays(twin.sample(16)))]
    for _ in range(5):
        assert buffer.sample(16, out=out) is out
        checks.append(queue_check(cuda.current, out, arrays(twin.sample(16))))
    assert out.reward is reward
    return out, checks


def sample_without_waits(buffer: Any) -> None:
    """Draw minibatches and work on them; torch raises where the host would wait for the device."""
    for _ in range(5):
        batch = buffer.sample(32)
    torch.cuda.synchronize()
    with the_host_never_waits():
        for _ in range(20):
            batch = buffer.sample(32)
            batch.reward.add_(1)
