# SPDX-License-Identifier: MIT
"""storage="cuda": the ring in a device's memory, on a fake device; the kernels where there is a real one.

What the kernels do, tests/cpp/test_sampling.cpp runs on the CPU; here a stand-in draws with NumPy's Philox from
whatever the device's memory holds at that moment.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import re
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from fake_cuda import DEVICE, FakeCuda, Stream, cuda_device, queue_check, sample_into_one, sample_without_waits
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from support import FIELDS, IS_LONG_FORM, NativeBuffer, arrays, assert_same, fill, transitions
from two_streams import TwoStreams

import fastreplay as fr
from fastreplay import _core
from fastreplay.gpu import library, ring

if TYPE_CHECKING:
    from collections.abc import Callable


def resident_buffer(seed: int = 0, count: int = 150, capacity: int = 100, fields: Any = FIELDS) -> Any:
    return fill(NativeBuffer(capacity, fields, seed=seed, device="cuda:0", storage="cuda"), count)


def cpu_buffer(seed: int = 0, count: int = 150, capacity: int = 100) -> Any:
    return fill(NativeBuffer(capacity, FIELDS, seed=seed, output="numpy"), count)


def content(batch: Any) -> dict[str, Any]:
    return {**{name: value.cpu().numpy() for name, value in batch.items()}, "ticket": batch.ticket.cpu().numpy()}


# What a caller sees.


@pytest.mark.parametrize("batch_size", [1, 16, 300])
@pytest.mark.parametrize("count", [1, 60, 100, 150, 1234])
def test_it_draws_what_the_cpu_draws(cuda: FakeCuda, count: int, batch_size: int) -> None:
    buffer, twin = resident_buffer(3, count), cpu_buffer(3, count)
    for _ in range(3):
        batch, expected = buffer.sample(batch_size), arrays(twin.sample(batch_size))
        ran = queue_check(cuda.current, batch, expected)
        cuda.run_all()
        assert ran
        assert_same(content(batch), expected)
    assert buffer.rng_state == twin.rng_state
    assert buffer.stats()["sampled"] == twin.stats()["sampled"]
    assert cuda.num_host_waits == 0


def test_what_is_inserted_between_draws_is_seen(cuda: FakeCuda) -> None:
    """Around the end of the ring, more than a stage holds, and one by one."""
    buffer, twin = resident_buffer(1, 0), cpu_buffer(1, 0)
    first = 0
    for count in (1, 1, 5, 90, 30, 100, 99, 101, 350, 0, 7):
        for each in (buffer, twin):
            if count:
                each.extend(**transitions(first, count))
        first += count
        queue_check(cuda.current, buffer.sample(16), arrays(twin.sample(16)))
    cuda.run_all()
    assert cuda.num_host_waits == buffer.stats()["waits"]


def test_only_what_is_new_goes_over(cuda: FakeCuda) -> None:
    buffer = resident_buffer(1, 100)
    buffer.sample(16)
    cuda.run_all()
    copied = cuda.num_copied_bytes
    buffer.extend(**transitions(100, 3))
    buffer.sample(16)
    cuda.run_all()
    assert cuda.num_copied_bytes - copied == 3 * buffer._ring.records.record_bytes
    for _ in range(5):
        buffer.sample(16)
    cuda.run_all()
    assert cuda.num_copied_bytes - copied == 3 * buffer._ring.records.record_bytes


def test_a_row_of_many_pieces(cuda: FakeCuda) -> None:
    fields = {"image": ((70, 73), "uint8"), "odd": ((3,), "uint8"), "x": (2,)}
    buffer = NativeBuffer(20, fields, seed=0, device="cuda:0", storage="cuda")
    twin = NativeBuffer(20, fields, seed=0, output="numpy")
    random = np.random.default_rng(0)
    rows = {
        "image": random.integers(0, 256, (30, 70, 73), np.uint8),
        "odd": random.integers(0, 256, (30, 3), np.uint8),
        "x": random.random((30, 2), np.float32),
    }
    buffer.extend(**rows), twin.extend(**rows)
    batch = buffer.sample(8)
    cuda.run_all()
    assert_same(content(batch), arrays(twin.sample(8)))


def test_an_empty_buffer_draws_nothing(cuda: FakeCuda) -> None:
    buffer, twin = resident_buffer(1, 0), cpu_buffer(1, 0)
    out_of_range = pytest.raises(ValueError, match="sample: the buffer is empty")
    with out_of_range:
        buffer.sample(4)
    fill(buffer, 50), fill(twin, 50)
    queue_check(cuda.current, buffer.sample(16), arrays(twin.sample(16)))
    buffer.clear(), twin.clear()
    with pytest.raises(ValueError, match="sample: the buffer is empty"):
        buffer.sample(16)
    for each in (buffer, twin):
        each.extend(**transitions(50, 4))
    queue_check(cuda.current, buffer.sample(16), arrays(twin.sample(16)))
    cuda.run_all()
    assert buffer.rng_state == twin.rng_state


def test_held_minibatches_are_left_alone_and_memory_is_recycled(cuda: FakeCuda) -> None:
    buffer, twin = resident_buffer(1), cpu_buffer(1)
    held = [(buffer.sample(16), arrays(twin.sample(16))) for _ in range(20)]
    addresses = {batch.reward.data_ptr() for batch, _ in held}
    assert len(addresses) == 20
    cuda.run_all()
    for batch, expected in held:
        assert_same(content(batch), expected)
    held.clear()
    del batch, expected
    for _ in range(50):
        batch = buffer.sample(16)
        queue_check(cuda.current, batch, arrays(twin.sample(16)))
        assert batch.reward.data_ptr() in addresses
    cuda.run_all()


def test_out_is_seen_by_what_is_queued_later(cuda: FakeCuda) -> None:
    buffer, twin = resident_buffer(5), cpu_buffer(5)
    _, checks = sample_into_one(cuda, buffer, twin)
    cuda.run_all()
    assert all(checks)


def test_a_draw_needs_no_block_of_the_host(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even to learn how a minibatch lies."""
    buffer, twin = resident_buffer(5), cpu_buffer(5)
    expected = arrays(twin.sample(16))
    for name in ("Block", "BlockPool"):
        monkeypatch.setattr(_core, name, None)
    batch = buffer.sample(16)
    cuda.run_all()
    assert_same(content(batch), expected)


def test_reading_needs_no_twin(cuda: FakeCuda) -> None:
    buffer, twin = resident_buffer(), cpu_buffer()
    batch = buffer[5:9]
    cuda.run_all()
    assert_same(content(batch), arrays(twin[5:9]))
    assert np.array_equal(buffer.view("reward"), twin.view("reward"))
    again = buffer.gather([3, 4], out=buffer.gather([7, 8]))
    cuda.run_all()
    assert_same(content(again), arrays(twin.gather([3, 4])))


def test_memory_of_another_kind_is_refused(cuda: FakeCuda) -> None:
    buffer, other = resident_buffer(), resident_buffer()
    plain = fill(NativeBuffer(100, FIELDS, seed=0, device="cuda:0"), 100)
    calls: list[Callable[[], Any]] = [
        lambda: buffer.sample(2, out=buffer.gather([7, 8])),
        lambda: buffer.sample(2, out=other.sample(2)),
        lambda: buffer.sample(2, out=plain.sample(2)),
        lambda: buffer.gather([7, 8], out=buffer.sample(2)),
        lambda: plain.sample(2, out=buffer.sample(2)),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"out: with storage='cuda', sample\(\) takes what sample\(\) of"):
            call()
    with pytest.raises(ValueError, match="expected batch size 3"):
        buffer.sample(3, out=buffer.sample(2))
    (face,) = buffer.spawn(1)
    out = buffer.sample(2)
    assert face.sample(2, out=out) is out


def test_the_generator_is_saved_and_set(cuda: FakeCuda) -> None:
    buffer, twin = resident_buffer(2), cpu_buffer(2)
    buffer.sample(16)
    state = buffer.rng_state
    once = buffer.sample(16)
    buffer.rng_state = state
    again = buffer.sample(16)
    twin.sample(16)
    cuda.run_all()
    assert_same(content(once), content(again))
    assert_same(content(once), arrays(twin.sample(16)))


def test_a_pickle_holds_it_all(cuda: FakeCuda) -> None:
    buffer, twin = resident_buffer(2), cpu_buffer(2)
    buffer.sample(16), twin.sample(16)
    copy = pickle.loads(pickle.dumps(buffer))
    assert (copy._storage, copy.rng_state) == ("cuda", buffer.rng_state)
    queue_check(cuda.current, copy.sample(16), arrays(twin.sample(16)))
    cuda.run_all()


def test_faces_share_the_ring_and_no_generator(cuda: FakeCuda) -> None:
    buffer, twin = resident_buffer(2), cpu_buffer(2)
    for face, expected in zip((buffer, *buffer.spawn(2)), (twin, *twin.spawn(2)), strict=True):
        queue_check(cuda.current, face.sample(16), arrays(expected.sample(16)))
    copied = cuda.num_copied_bytes
    buffer.extend(**transitions(150, 1)), twin.extend(**transitions(150, 1))
    for face, expected in zip(buffer.spawn(1), twin.spawn(1), strict=True):
        queue_check(cuda.current, face.sample(16), arrays(expected.sample(16)))
    cuda.run_all()
    assert cuda.num_copied_bytes > copied


@pytest.mark.parametrize("depth", [1, 3])
def test_a_loader_queues_draws_ahead(cuda: FakeCuda, depth: int) -> None:
    buffer, twin = resident_buffer(4), cpu_buffer(4)
    before = threading.active_count()
    with buffer.loader(16, depth=depth, steps=20) as loader:
        assert loader.num_ahead == buffer.stats()["blocks_in_flight"] == depth
        for batch in loader:
            queue_check(cuda.current, batch, arrays(twin.sample(16)))
    cuda.run_all()
    assert (twin.rng_state["calls"], threading.active_count()) == (20, before)
    assert buffer.rng_state == twin.rng_state


def test_a_loader_of_an_empty_buffer_goes_on_once_it_is_filled(cuda: FakeCuda) -> None:
    buffer, twin = resident_buffer(4, 0), cpu_buffer(4, 0)
    loader = buffer.loader(16, depth=3)
    for _ in range(3):
        with pytest.raises(ValueError, match="empty"):
            next(loader)
    fill(buffer, 50), fill(twin, 50)
    for _ in range(5):
        queue_check(cuda.current, next(loader), arrays(twin.sample(16)))
    loader.close()
    assert list(loader) == []
    cuda.run_all()


# Streams and graphs.


def test_streams_follow_each_other(cuda: FakeCuda) -> None:
    """Inserts go over on one stream, draws are made on another, in the order of the calls."""
    buffer, twin = resident_buffer(2, 0), cpu_buffer(2, 0)
    streams = [cuda.current, Stream(cuda)]
    cuda.streams.append(streams[1])
    held = []
    for i in range(40):
        cuda.current = streams[i * 7 // 3 % 2]
        for each in (buffer, twin):
            each.extend(**transitions(3 * i, 3))
        held.append(buffer.sample(8))
        queue_check(cuda.current, held[-1], arrays(twin.sample(8)))
        streams[i % 2].run()
    cuda.run_all()


def test_a_slow_device_makes_the_host_wait_for_a_stage(cuda: FakeCuda) -> None:
    buffer, twin = resident_buffer(2, 0), cpu_buffer(2, 0)
    for i in range(5):
        for each in (buffer, twin):
            each.extend(**transitions(3 * i, 3))
        queue_check(cuda.current, buffer.sample(8), arrays(twin.sample(8)))
    stats = buffer.stats()
    assert stats["waits"] == cuda.num_host_waits == 3
    assert stats["wait_s"] > 0
    assert stats["pinned_bytes"] == 2 * 100 * buffer._ring.records.record_bytes
    cuda.run_all()
    assert buffer.stats()["blocks_in_flight"] == 0


def test_a_captured_draw_is_new_at_each_replay(cuda: FakeCuda) -> None:
    buffer, twin = resident_buffer(2), cpu_buffer(2)
    out = buffer.sample(16)
    queue_check(cuda.current, out, arrays(twin.sample(16)))
    with cuda.capture() as graph:
        assert buffer.sample(16, out=out) is out
    cuda.run_all()
    for i in range(5):
        cuda.replay(graph)
        queue_check(cuda.current, out, arrays(twin.sample(16)))
        for each in (buffer, twin):
            each.extend(**transitions(150 + 10 * i, 10))
        buffer.flush()
    cuda.run_all()
    assert buffer.rng_state == twin.rng_state
    buffer.rng_state = twin.rng_state = {"key": [8, 9], "calls": 3}
    cuda.replay(graph)
    ran = queue_check(cuda.current, out, arrays(twin.sample(16)))
    cuda.run_all()
    assert ran


def test_a_capture_needs_memory_that_is_there(cuda: FakeCuda) -> None:
    buffer = resident_buffer()
    with cuda.capture() as graph, pytest.raises(RuntimeError, match="in the capture of a graph, give `out`"):
        buffer.sample(16)
    assert not graph


@pytest.mark.parametrize(
    "call", ["flush", "rng_state", "set rng_state", "stats", "spawn", "loader", "gather", "pickle"]
)
def test_what_a_replay_could_not_repeat_is_refused(cuda: FakeCuda, call: str) -> None:
    buffer = resident_buffer()
    state = buffer.rng_state
    calls: dict[str, Callable[[], object]] = {
        "flush": buffer.flush,
        "rng_state": lambda: buffer.rng_state,
        "set rng_state": lambda: setattr(buffer, "rng_state", state),
        "stats": buffer.stats,
        "spawn": lambda: buffer.spawn(1),
        "loader": lambda: buffer.loader(4),
        "gather": lambda: buffer.gather([3]),
        "pickle": lambda: pickle.loads(pickle.dumps(buffer)),
    }
    with cuda.capture() as graph, pytest.raises(RuntimeError, match=r"in the capture of a graph"):
        calls[call]()
    assert not graph
    calls[call]()


def test_threads_sample_while_another_captures(cuda: FakeCuda) -> None:
    """No event is asked for but as csrc/cuda/stream.h does, also where a stage is to be waited for."""
    buffer, twin = resident_buffer(2), cpu_buffer(2)
    out = buffer.sample(16)
    twin.sample(16)

    def sample() -> None:
        for i in range(5):
            for each in (buffer, twin):
                each.extend(**transitions(150 + 3 * i, 3))
            queue_check(cuda.current, buffer.sample(8), arrays(twin.sample(8)))

    with cuda.capture() as graph:
        assert len(graph) == 0
        thread = threading.Thread(target=sample)
        thread.start()
        thread.join()
        buffer.sample(16, out=out)
    cuda.run_all()
    cuda.replay(graph)
    ran = queue_check(cuda.current, out, arrays(twin.sample(16)))
    cuda.run_all()
    assert ran


def test_numbers_are_asked_for_in_turn(cuda: FakeCuda) -> None:
    """What another thread's stream is given is no part of what this one queues."""
    buffer = resident_buffer(2)
    buffer.sample(4)
    stream, other = Stream(cuda), Stream(cuda)
    cuda.streams += [stream, other]
    mirror = buffer._mirror
    done = threading.Event()

    def ask() -> None:
        cuda.current = other
        assert buffer.stats()["sampled"] == 12
        done.set()

    thread = threading.Thread(target=ask)
    send, sent = mirror.ring.send, list[object]()

    def send_while_asked(*arguments: Any) -> None:
        if not sent:
            thread.start()
            assert not done.wait(0.1)
        sent.append(mirror.ring._last)
        send(*arguments)

    mirror.ring.send = send_while_asked
    cuda.current = stream
    buffer.extend(**transitions(150, 3))
    batch = buffer.sample(8)
    thread.join()
    assert sent == [stream]
    assert batch is not None


def test_a_generators_memory_is_not_free_before_its_last_draw(cuda: FakeCuda) -> None:
    """It was made on one stream, and used on another."""
    buffer, twin = resident_buffer(2), cpu_buffer(2)
    (face,), (expected,) = buffer.spawn(1), twin.spawn(1)
    made_on = cuda.current
    cuda.current = Stream(cuda)
    cuda.streams.append(cuda.current)
    batch = face.sample(8)
    ran = queue_check(cuda.current, batch, arrays(expected.sample(8)))
    del face
    gc.collect(0)
    while made_on.run():
        pass
    cuda.run_all()
    assert ran


def test_a_captured_draw_needs_no_memory_but_the_buffers_and_outs(cuda: FakeCuda) -> None:
    buffer, twin = resident_buffer(2), cpu_buffer(2)
    out = buffer.sample(16)
    twin.sample(16)
    with cuda.capture() as graph:
        buffer.sample(16, out=out)
    for size in range(1, 20):
        buffer.sample(size), twin.sample(size)
    gc.collect(0)
    cuda.run_all()
    cuda.replay(graph)
    ran = queue_check(cuda.current, out, arrays(twin.sample(16)))
    cuda.run_all()
    assert ran


@pytest.mark.parametrize("storage", ["cuda", "host"])
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_leaves_the_device_alone(cuda: FakeCuda, storage: str) -> None:
    """Where the last reference goes over there, a loader's too: whatever is asked of the device, the child ends."""
    held: list[Any] = [fill(NativeBuffer(100, FIELDS, seed=0, device="cuda:0", storage=storage), 100)]
    held += [held[0].loader(4), held[0].sample(4)]
    cuda.run_all()

    def end_in_child(*_: object) -> int:
        os._exit(3)

    pid = os.fork()
    if pid == 0:
        cuda.handles[:] = [SimpleNamespace(token=None, wait=end_in_child)] * len(cuda.handles)
        Stream.wait_event = end_in_child  # type: ignore[assignment,method-assign]
        held.clear()
        gc.collect()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_flushing_is_for_the_device_alone() -> None:
    buffer = cpu_buffer()
    buffer.flush()
    assert buffer.stats()["waits"] == 0


# Errors.


def test_a_failed_launch_says_so(cuda: FakeCuda) -> None:
    buffer = resident_buffer()
    buffer.sample(4)
    cuda.launch_error = 700
    with pytest.raises(RuntimeError, match="storage: the launch on cuda:0 failed: fake error 700"):
        buffer.sample(4)
    cuda.launch_error = 0
    buffer.sample(4)


def test_no_storage_without_the_cuda_part(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "cuda_sampling", lambda _: (None, "built without a CUDA compiler"))
    message = "storage: 'cuda' on cuda:0 needs the CUDA part of fastreplay: built without a CUDA compiler"
    with pytest.raises(RuntimeError, match=message):
        resident_buffer()


def test_refused_arguments() -> None:
    with pytest.raises(ValueError, match="storage: expected 'host' or 'cuda', got 'gpu'"):
        NativeBuffer(10, FIELDS, storage="gpu")
    with pytest.raises(ValueError, match="storage: expected 'host' with device='cpu', got 'cuda'"):
        NativeBuffer(10, FIELDS, storage="cuda")
    with pytest.raises(ValueError, match="storage: expected 'host' with device='meta', got 'cuda'"):
        NativeBuffer(10, FIELDS, device="meta", storage="cuda")


@pytest.mark.parametrize("name", ["sampling"])
def test_the_struct_is_that_of_the_header(name: str) -> None:
    header = (Path(__file__).parents[1] / "csrc/cuda/sampling.h").read_text()
    start = header.index(f"struct fastreplay_cuda_{name} {{")
    body = header[start : header.index("};", start)]
    fields = re.findall(r"^\s*(.+?[ *])(\w+);", body, re.MULTILINE)
    kinds = {"uint64_t ": ctypes.c_uint64}
    assert [(name, kinds.get(kind, ctypes.c_void_p)) for kind, name in fields] == list(ring._Sampling._fields_)


def test_the_library_says_why_it_cannot() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    functions, reason = library.cuda_sampling(0)
    assert functions is None
    assert reason == fr.backend_info()["cuda_status"]
    loaded = library._cuda_library()
    if loaded is not None:
        assert loaded.fastreplay_cuda_prepare_sampling(0) != 0


class Interleavings(TwoStreams):
    """Inserts, draws, replays, on two streams that run when the machine says. Every read must find its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[tuple[Any, Stream, dict[str, Any]]] = []
        self.num_inserted = 0

    @initialize(seed=st.integers(0, 3), capacity=st.sampled_from([1, 7, 20]))
    def begin(self, seed: int, capacity: int) -> None:
        self.buffer, self.twin = resident_buffer(seed, 0, capacity), cpu_buffer(seed, 0, capacity)

    @rule(count=st.integers(1, 25))
    def insert(self, count: int) -> None:
        for each in (self.buffer, self.twin):
            each.extend(**transitions(self.num_inserted, count))
        self.num_inserted += count

    @rule()
    def clear(self) -> None:
        self.buffer.clear(), self.twin.clear()

    @rule()
    def flush(self) -> None:
        self.buffer.flush()

    @precondition(lambda self: len(self.twin) > 0)
    @rule(batch_size=st.sampled_from([3, 8]), kept=st.booleans())
    def sample(self, batch_size: int, kept: bool) -> None:
        batch, expected = self.buffer.sample(batch_size), arrays(self.twin.sample(batch_size))
        self.reads.append(queue_check(self.cuda.current, batch, expected))
        if kept:
            addresses = [held.reward.data_ptr() for held, _, _ in self.held]
            assert batch.reward.data_ptr() not in addresses
            self.held.append((batch, self.cuda.current, expected))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        del self.held[data.draw(st.integers(0, len(self.held) - 1))]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def work(self, data: st.DataObject) -> None:
        batch, stream, expected = self.held[data.draw(st.integers(0, len(self.held) - 1))]
        self.reads.append(queue_check(stream, batch, expected))

    def teardown(self) -> None:
        self.cuda.run_all()
        for batch, _, expected in self.held:
            assert_same(content(batch), expected)
        super().teardown()


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=100 if IS_LONG_FORM else 40, stateful_step_count=50)


class TestOnAnyDevice:
    """The same on the fake device and on a real one."""

    def test_a_flush_of_many_stages_and_laps(self, any_cuda: Any) -> None:
        fields = {"image": ((64, 1024), "uint8"), "reward": ()}
        buffer = NativeBuffer(150, fields, seed=1, device="cuda:0", storage="cuda")
        twin = NativeBuffer(150, fields, seed=1, output="numpy")
        random = np.random.default_rng(0)
        for count in (150, 40, 400):  # 64 KiB a record: 9.8 MB, and two stages of 4 MiB
            rows = {"image": random.integers(0, 256, (count, 64, 1024), np.uint8), "reward": np.arange(count) * 0.5}
            buffer.extend(**rows), twin.extend(**rows)
            buffer.flush()
            batch = buffer.sample(20)
            any_cuda.run_all()
            assert_same(content(batch), arrays(twin.sample(20)))

    @pytest.mark.parametrize("row_bytes", [(1, 1, 1), (3, 5, 7), (17, 4, 1), (2047, 8, 2049), (4096, 16, 12)])
    def test_odd_record_offsets(self, any_cuda: Any, row_bytes: tuple[int, ...]) -> None:
        fields = {f"field_{i}": ((num_bytes,), "uint8") for i, num_bytes in enumerate(row_bytes)}
        fields["wide"] = ((3,), "float64")
        buffer = NativeBuffer(33, fields, seed=1, device="cuda:0", storage="cuda")
        twin = NativeBuffer(33, fields, seed=1, output="numpy")
        random = np.random.default_rng(0)
        rows = {name: random.integers(0, 256, (50, *shape)).astype(dtype) for name, (shape, dtype) in fields.items()}
        buffer.extend(**rows), twin.extend(**rows)
        for batch_size in (1, 31, 257):
            batch = buffer.sample(batch_size)
            any_cuda.run_all()
            assert_same(content(batch), arrays(twin.sample(batch_size)))

    def test_a_record_of_more_pieces_than_a_launch_takes(self, any_cuda: Any) -> None:
        fields = {"image": ((600, 1001), "uint8"), "reward": ()}  # 294 pieces
        buffer = NativeBuffer(5, fields, seed=1, device="cuda:0", storage="cuda")
        twin = NativeBuffer(5, fields, seed=1, output="numpy")
        rows = {"image": np.random.default_rng(0).integers(0, 256, (7, 600, 1001), np.uint8), "reward": np.arange(7.0)}
        buffer.extend(**rows), twin.extend(**rows)
        batch = buffer.sample(3)
        any_cuda.run_all()
        assert_same(content(batch), arrays(twin.sample(3)))

    @pytest.mark.parametrize("capacity", [1, 7])
    def test_a_window_of_one(self, any_cuda: Any, capacity: int) -> None:
        buffer, twin = resident_buffer(1, 0, capacity), cpu_buffer(1, 0, capacity)
        for i in range(3):
            for each in (buffer, twin):
                each.clear()
                each.extend(**transitions(i, 1))
            batch = buffer.sample(9)
            any_cuda.run_all()
            assert_same(content(batch), arrays(twin.sample(9)))

    def test_a_thousand_turns_of_a_loader(self, any_cuda: Any) -> None:
        buffer, twin = resident_buffer(4), cpu_buffer(4)
        with buffer.loader(16, depth=2, steps=1000) as loader:
            for batch in loader:
                any_cuda.run_all()
                assert_same(content(batch), arrays(twin.sample(16)))

    def test_graphs_draw_from_what_was_flushed(self, any_cuda: Any) -> None:
        buffer, twin = resident_buffer(4, 20), cpu_buffer(4, 20)
        out = buffer.sample(16)
        twin.sample(16)
        with any_cuda.capture() as graph:
            buffer.sample(16, out=out)
        for size in (8, 24):
            for each in (buffer, twin):
                each.extend(**transitions(20 + 100 * size, 15))
                each.sample(size)
                each.extend(**transitions(35 + 100 * size, 90))
            buffer.flush()
            any_cuda.replay(graph)
            any_cuda.run_all()
            assert_same(content(out), arrays(twin.sample(16)))

    def test_what_a_replay_could_not_repeat_is_refused(self, any_cuda: Any) -> None:
        buffer, twin = resident_buffer(4), cpu_buffer(4)
        out = buffer.sample(16)
        twin.sample(16)
        with any_cuda.capture() as graph:
            for call in (buffer.flush, buffer.stats, lambda: buffer.gather([3]), lambda: buffer.sample(16)):
                with pytest.raises(RuntimeError, match="in the capture of a graph"):
                    call()
            buffer.sample(16, out=out)
        any_cuda.replay(graph)
        any_cuda.run_all()
        assert_same(content(out), arrays(twin.sample(16)))

    def test_a_thread_samples_while_another_captures(self, any_cuda: Any) -> None:
        buffer, twin, other = resident_buffer(4), cpu_buffer(4), resident_buffer(5)
        out = other.sample(16)
        buffer.sample(8), twin.sample(8)  # its memory is there; cudaMalloc would end the capture
        found: list[Any] = []

        def sample() -> None:
            for i in range(4):
                for each in (buffer, twin):
                    each.extend(**transitions(150 + 3 * i, 3))
                batch = buffer.sample(8, out=found[0][0] if found else None)
                found.append((batch, arrays(twin.sample(8))))

        thread = threading.Thread(target=sample)
        with any_cuda.capture() as graph:
            thread.start()
            thread.join()
            other.sample(16, out=out)
        any_cuda.replay(graph)
        any_cuda.run_all()
        assert len(found) == 4
        assert_same(content(found[-1][0]), found[-1][1])


class TestOnADevice:
    pytestmark = cuda_device

    def test_threads_on_streams_of_their_own(self) -> None:
        buffer = resident_buffer(4, 100)
        wrong: list[object] = []

        def sample() -> None:
            with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
                for _ in range(50):
                    batch = buffer.sample(8)
                    buffer.stats()
                    found = content(batch)
                    if not np.array_equal(found["reward"], transitions(0, 100)["reward"][found["ticket"]]):
                        wrong.append(found)

        threads = [threading.Thread(target=sample) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert buffer.stats()["sampled"] == 800

    @pytest.mark.parametrize("batch_size", [1, 16, 300, 5000])
    def test_it_draws_what_the_cpu_draws(self, batch_size: int) -> None:
        buffer, twin = resident_buffer(3, 0), cpu_buffer(3, 0)
        for i in range(20):
            for each in (buffer, twin):
                each.extend(**transitions(17 * i, 17))
            batch = buffer.sample(batch_size)
            assert batch.reward.device == DEVICE
            assert_same(batch, twin.sample(batch_size))
        assert buffer.rng_state == twin.rng_state

    def test_the_host_never_waits(self) -> None:
        buffer = resident_buffer(3)
        sample_without_waits(buffer)

    def test_a_captured_draw_is_new_at_each_replay(self) -> None:
        buffer, twin = resident_buffer(3), cpu_buffer(3)
        out = buffer.sample(32)
        assert_same(out, twin.sample(32))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            buffer.sample(32, out=out)
        for i in range(10):
            graph.replay()
            assert_same(out, twin.sample(32))
            for each in (buffer, twin):
                each.extend(**transitions(150 + 10 * i, 10))
            buffer.flush()

    def test_memory_goes_with_the_buffer(self) -> None:
        gc.collect()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        buffer = resident_buffer(3)
        buffer.sample(32)
        assert torch.cuda.memory_allocated() > before
        del buffer
        gc.collect()
        assert torch.cuda.memory_allocated() == before
