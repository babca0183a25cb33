# SPDX-License-Identifier: MIT
"""Minibatches on their way to a GPU: the state machine, every interleaving on a fake device, a real one if there is."""

from __future__ import annotations

import ctypes
import gc
import re
import threading
import warnings
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from fake_cuda import (
    DEVICE,
    FakeCuda,
    Stream,
    cuda_device,
    queue_check,
    sample_into_one,
    sample_without_waits,
    the_host_never_waits,
)
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support import FIELDS, IS_LONG_FORM, NativeBuffer, arrays, assert_same, fill

import fastreplay as fr
from fastreplay import _core
from fastreplay.batch.form import transition_form
from fastreplay.gpu import device, library, memory, transfer
from fastreplay.gpu.pinned import PinnedDelivery
from fastreplay.gpu.pinned_block import PinnedBlock, State

if TYPE_CHECKING:
    from collections.abc import Callable


def gpu_buffer(seed: int = 0, count: int = 150) -> Any:
    return fill(NativeBuffer(100, FIELDS, seed=seed, device="cuda:0"), count)


def cpu_buffer(seed: int = 0, count: int = 150) -> Any:
    return fill(NativeBuffer(100, FIELDS, seed=seed, output="numpy"), count)


def block_of(batch: Any) -> PinnedBlock:
    block: PinnedBlock = batch._block
    assert isinstance(block, PinnedBlock)
    return block


def delivery_of(buffer: Any) -> PinnedDelivery:
    delivery: PinnedDelivery = next(iter(buffer._deliveries))
    assert isinstance(delivery, PinnedDelivery)
    return delivery


def rotations_of(delivery: PinnedDelivery) -> tuple[list[PinnedBlock], list[PinnedBlock]]:
    """Give the blocks that lie free, and those that were handed out."""
    rotations = delivery._rotations.values()
    return [block for each in rotations for block in each.free], [block for each in rotations for block in each.in_use]


# The block's own states.

ENTERED = {  # how to come to a state from a new block
    State.FREE: [],
    State.FILLING: ["begin"],
    State.COPYING: ["begin", "start"],
    State.IN_USE: ["begin", "start", "hand_out"],
}
LEGAL = {
    State.FREE: {"begin"},
    State.FILLING: {"start", "hand_out_ahead", "cancel"},
    State.COPYING: {"hand_out"},
    State.IN_USE: {"release", "refill"},
}
CALLS: dict[str, Any] = {
    **{
        name: lambda block, name=name: getattr(block, name)()
        for name in ("begin", "start", "hand_out_ahead", "hand_out", "cancel", "release")
    },
    "refill": lambda block: block.refill(lambda _: True),
}


def block_bytes(buffer: Any, batch_size: int) -> int:
    return _core.block_layout(_core.transition_parts(buffer.schema.sizes), batch_size)[1]


def new_block(cuda: FakeCuda) -> PinnedBlock:
    buffer = gpu_buffer()
    return PinnedBlock(transition_form(buffer.schema), 4, buffer._gpu)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("state", ENTERED, ids=lambda state: state.name)
def test_only_the_steps_of_the_way_are_taken(cuda: FakeCuda, state: State, call: str) -> None:
    block = new_block(cuda)
    for step in ENTERED[state]:
        CALLS[step](block)
    cuda.run_all()
    assert block.state is state
    queued = [len(stream.queue) for stream in cuda.streams]
    if call in LEGAL[state]:
        CALLS[call](block)
        assert block.state is not state or call == "refill"
    else:
        with pytest.raises(AssertionError, match=rf"block: {state.value} -> [\w ]+ is no step"):
            CALLS[call](block)
        assert block.state is state
        assert [len(stream.queue) for stream in cuda.streams] == queued


def test_a_block_that_is_being_copied_is_not_filled(cuda: FakeCuda) -> None:
    block = new_block(cuda)
    for step in ("begin", "start", "hand_out", "release"):
        CALLS[step](block)
    with pytest.raises(AssertionError, match="being copied"):
        block.begin()
    cuda.run_all()
    block.begin()


def test_a_block_that_is_referred_to_is_not_freed(cuda: FakeCuda) -> None:
    block = new_block(cuda)
    block.begin()
    block.start()
    held = block.hand_out()[0][1:2]
    with pytest.raises(AssertionError, match="referred to"):
        block.release()
    del held
    block.release()
    assert block.state is State.FREE


# What a caller sees.


def test_a_minibatch_is_one_copy_to_one_block(cuda: FakeCuda) -> None:
    buffer, twin = gpu_buffer(3), cpu_buffer(3)
    batch = buffer.sample(16)
    block = block_of(batch)
    assert cuda.num_blocks == 1
    base, end = block.transfer.target.data_ptr(), block.transfer.target.data_ptr() + block.transfer.target.numel()
    for value in (*batch, batch.ticket):
        assert base <= value.data_ptr() < end
        assert value.untyped_storage().data_ptr() == base
    expected = arrays(twin.sample(16))
    assert not block.transfer.is_copied()
    assert buffer.stats()["blocks_in_flight"] == 1
    ran = queue_check(cuda.current, batch, expected)
    assert cuda.num_host_waits == 0
    cuda.run_all()
    assert ran
    assert_same({**{name: value.numpy() for name, value in batch.items()}, "ticket": batch.ticket.numpy()}, expected)
    stats = buffer.stats()
    assert (stats["blocks_in_flight"], stats["waits"], stats["wait_s"]) == (0, 0, 0.0)
    assert stats["pinned_bytes"] == block.transfer.host.nbytes == block_bytes(buffer, 16)


def test_the_consumer_waits_for_the_copy_and_nobody_else(cuda: FakeCuda) -> None:
    buffer = gpu_buffer(3)
    batch = buffer.sample(16)
    ran = queue_check(cuda.current, batch, arrays(cpu_buffer(3).sample(16)))
    while cuda.current.run():
        pass
    assert not ran
    while cuda.side.run():
        pass
    cuda.run_all()
    assert ran


def test_held_minibatches_keep_what_they_are_without_torchs_functions(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastreplay.support.torch_abi.torch_abi", lambda: None)
    buffer, twin = gpu_buffer(1), cpu_buffer(1)
    held = [buffer.sample(16) for _ in range(12)]
    cuda.run_all()
    for batch in held:
        assert np.array_equal(batch.ticket.numpy(), twin.sample(16).ticket)
    assert buffer.sample(16, out=held[0]) is held[0]


def test_a_training_loop_needs_three_blocks_and_no_wait(cuda: FakeCuda) -> None:
    """The host runs ahead of the device by a step or two."""
    buffer, twin, batch = gpu_buffer(1), cpu_buffer(1), None
    for _ in range(100):
        batch = buffer.sample(16)
        queue_check(cuda.current, batch, arrays(twin.sample(16)))
        for _ in range(8):
            cuda.run_any()
    cuda.run_all()
    assert batch is not None
    assert cuda.num_blocks <= 4
    assert cuda.num_host_waits == 0


def test_a_copy_does_not_wait_for_the_step_before_it(cuda: FakeCuda) -> None:
    """It overlaps with the work on the minibatch before, which may take as long as it likes."""
    buffer, batch = gpu_buffer(1), None
    for _ in range(6):
        batch = buffer.sample(16)
        cuda.run_all()
    stuck = True
    cuda.current.do(lambda: not stuck)  # the work on this minibatch
    previous, batch = batch, buffer.sample(16)
    while cuda.side.run():
        pass
    assert block_of(batch).transfer.is_copied()
    stuck = False
    cuda.run_all()
    assert previous is not None


def test_a_block_is_not_overwritten_before_the_work_on_it(cuda: FakeCuda) -> None:
    """The work is queued, the minibatch gone, its page-locked block free: the next copy to it still waits."""
    buffer, twin = gpu_buffer(1), cpu_buffer(1)
    for _ in range(6):
        queue_check(cuda.current, buffer.sample(16), arrays(twin.sample(16)))
        cuda.run_all()
    num_blocks, ran = cuda.num_blocks, []
    for _ in range(num_blocks + 1):
        ran.append(queue_check(cuda.current, buffer.sample(16), arrays(twin.sample(16))))
        while cuda.side.run():
            pass
    assert cuda.num_blocks == num_blocks
    assert not any(ran)
    cuda.run_all()
    assert all(ran)


def test_a_slow_device_makes_the_host_wait_in_the_end(cuda: FakeCuda) -> None:
    """Blocks of 64 rows are many; what is dropped and not copied yet is not reused, and not multiplied for ever."""
    buffer, twin = gpu_buffer(1), cpu_buffer(1)
    for _ in range(300):
        queue_check(cuda.current, buffer.sample(64), arrays(twin.sample(64)))
    assert len(delivery_of(buffer)._blocks) <= 64 + 3
    stats = buffer.stats()
    assert stats["waits"] == cuda.num_host_waits > 5
    assert stats["wait_s"] > 0
    cuda.run_all()


def test_held_minibatches_are_left_alone_and_surplus_blocks_go(cuda: FakeCuda) -> None:
    buffer, twin = gpu_buffer(1), cpu_buffer(1)
    held = [(buffer.sample(64), arrays(twin.sample(64))) for _ in range(200)]
    assert len({id(block_of(batch)) for batch, _ in held}) == 200
    for batch, expected in held:
        queue_check(cuda.current, batch, expected)
    cuda.run_all()
    assert buffer.stats()["waits"] == 0
    for batch, expected in held:
        assert_same({**{n: v.numpy() for n, v in batch.items()}, "ticket": batch.ticket.numpy()}, expected)
    held.clear()
    del batch, expected
    for _ in range(300):
        buffer.sample(64)
        cuda.run_all()
    assert buffer.stats()["pinned_bytes"] <= 66 * block_bytes(buffer, 64)


def test_a_loop_over_a_loader_needs_depth_and_a_few_blocks(cuda: FakeCuda) -> None:
    buffer, twin = gpu_buffer(1), cpu_buffer(1)
    with buffer.loader(16, depth=3, steps=100) as loader:
        for batch in loader:
            queue_check(cuda.current, batch, arrays(twin.sample(16)))
            for _ in range(8):
                cuda.run_any()
            del batch
    assert twin.rng_state["calls"] == 100
    cuda.run_all()
    assert cuda.num_blocks <= 3 + 4
    assert cuda.num_sends == 100
    assert len(cuda.send_threads) <= 2  # the loader's, and its consumer's where that one came first


def test_weights_come_along(cuda: FakeCuda) -> None:
    gpu, cpu = [
        fill(NativeBuffer(100, FIELDS, seed=0, priorities=fr.Priorities(beta=0.7), **options), 150)
        for options in ({"device": "cuda:0"}, {"output": "numpy"})
    ]

    def compare(batch: Any, expected: Any) -> None:
        cuda.run_all()
        arrays = batch.numpy()
        for name in ("ticket", "weight", "probability", *FIELDS):
            np.testing.assert_array_equal(getattr(arrays, name), getattr(expected, name))

    out = gpu.sample(16)
    compare(out, cpu.sample(16))
    for step in range(4):
        errors = np.arange(16) + step
        assert gpu.update_priorities(out, torch.from_numpy(errors)) == (16, 0)
        cpu.update_priorities(out.ticket.cpu().numpy(), errors)
        compare(gpu.sample(16, out=out), cpu.sample(16))
    with gpu.loader(8, steps=5) as ahead, cpu.loader(8, steps=5) as expected:
        for batch, other in zip(ahead, expected, strict=True):
            compare(batch, other)


def test_a_loader_copies_ahead(cuda: FakeCuda) -> None:
    buffer = gpu_buffer(1)
    with buffer.loader(16, depth=3) as loader:
        next(loader)
        blocks = delivery_of(buffer)._blocks
        while cuda.num_sends < 4:
            pass
        cuda.run_all()
        assert sum(block.is_ahead for block in blocks) == 3
        assert all(block.transfer.is_copied() for block in blocks)
        assert buffer.stats()["blocks_in_flight"] == 3
    assert buffer.stats()["blocks_in_flight"] == 0


def test_a_failed_copy_reaches_the_consumer(cuda: FakeCuda) -> None:
    cuda.send_error = 700
    buffer = gpu_buffer()
    loader = buffer.loader(16)
    with pytest.raises(RuntimeError, match="copy to the device could not be started: fake error 700"):
        next(loader)
    assert list(loader) == []
    cuda.run_all()
    blocks = list(delivery_of(buffer)._blocks)
    assert blocks
    assert all(block.is_unreferenced() and not block.is_in_flight() for block in blocks)


def test_no_loader_without_the_cuda_part(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = gpu_buffer()
    monkeypatch.setattr(device, "cuda_sender", lambda: (0, "built without a CUDA compiler"))
    with pytest.raises(RuntimeError, match="need the CUDA part of fastreplay: built without a CUDA compiler"):
        buffer.loader(16)
    assert len(buffer.sample(16)) == 16  # which needs torch alone


def test_closing_waits_for_copies(cuda: FakeCuda) -> None:
    """What was sent for nobody is over before its memory may go."""
    buffer = gpu_buffer()
    loader = buffer.loader(16, depth=4)
    while cuda.num_sends < 4:
        pass
    loader.close()
    assert all(block.transfer.is_copied() for block in delivery_of(buffer)._blocks)
    assert sum(block.is_unreferenced() for block in delivery_of(buffer)._blocks) == 4
    num_blocks = cuda.num_blocks
    for _ in range(4):
        buffer.gather(np.arange(16))
    assert cuda.num_blocks == num_blocks  # they are taken again


def test_out_is_seen_by_what_is_queued_later(cuda: FakeCuda) -> None:
    buffer, twin = gpu_buffer(5), cpu_buffer(5)
    out, checks = sample_into_one(cuda, buffer, twin)
    assert cuda.num_blocks == 1
    cuda.run_all()
    assert all(checks)
    assert buffer.gather([3] * 16, out=out) is out
    ran = queue_check(cuda.current, out, arrays(twin.gather([3] * 16)))
    cuda.run_all()
    assert ran


@pytest.mark.parametrize("call", ["sample", "gather", "index", "loader", "next", "last", "out"])
def test_a_capture_is_refused(cuda: FakeCuda, call: str) -> None:
    """Each replay would send what the page-locked memory holds by then."""
    buffer, twin = gpu_buffer(5), cpu_buffer(5)
    out, loader, ending = buffer.sample(16), buffer.loader(4), buffer.loader(4, depth=1, steps=1)
    calls: dict[str, Callable[[], object]] = {
        "sample": lambda: buffer.sample(4),
        "gather": lambda: buffer.gather([3]),
        "index": lambda: buffer[3],
        "loader": lambda: buffer.loader(4),
        "next": lambda: next(loader),
        "last": lambda: next(ending),  # which takes no other block
        "out": lambda: buffer.sample(16, out=out),
    }
    with cuda.capture() as graph, pytest.raises(RuntimeError, match=r"not in the capture of a graph"):
        calls[call]()
    assert not graph
    ran = queue_check(cuda.current, out, arrays(twin.sample(16)))
    cuda.run_all()
    assert ran
    calls[call]()
    cuda.run_all()


def test_threads_sample_while_another_captures(cuda: FakeCuda) -> None:
    buffer, twin = gpu_buffer(5), cpu_buffer(5)

    def sample() -> None:
        for _ in range(100):  # until it waits for a block
            queue_check(cuda.current, buffer.sample(64), arrays(twin.sample(64)))

    with cuda.capture() as graph:
        thread = threading.Thread(target=sample)
        thread.start()
        thread.join()
    assert buffer.stats()["waits"] > 0
    assert not graph
    cuda.run_all()


def test_a_refused_out_changes_nothing(cuda: FakeCuda) -> None:
    buffer, twin = gpu_buffer(5), cpu_buffer(5)
    out, expected = buffer.sample(16), arrays(twin.sample(16))
    with pytest.raises(ValueError, match="expected batch size 15"):
        buffer.sample(15, out=out)
    with pytest.raises(ValueError, match=r"out: expected a minibatch on cuda:0, got one on cpu"):
        buffer.sample(16, out=twin.sample(16))
    with pytest.raises(ValueError, match=r"out: expected a minibatch on cpu, got one on cuda:0"):
        twin.sample(16, out=out)
    with pytest.raises(IndexError):
        buffer.gather([100] * 16, out=out)
    buffer.clear()
    with pytest.raises(ValueError, match="empty"):
        buffer.sample(16, out=out)
    assert block_of(out).state is State.IN_USE
    ran = queue_check(cuda.current, out, expected)
    cuda.run_all()
    assert ran


def test_refused_calls_lose_no_block(cuda: FakeCuda) -> None:
    buffer = gpu_buffer()
    for _ in range(50):
        with pytest.raises(IndexError):
            buffer.gather([100] * 16)
    buffer.clear()
    for _ in range(50):
        with pytest.raises(ValueError, match="empty"):
            buffer.sample(16)
    assert cuda.num_blocks == 1


def test_reading_by_age_and_slot(cuda: FakeCuda) -> None:
    buffer, twin = gpu_buffer(), cpu_buffer()
    for batch, expected in (
        (buffer[5:9], twin[5:9]),
        (buffer.gather([7, 8]), twin.gather([7, 8])),
        (buffer[[0, -1]], twin[[0, -1]]),
        (buffer[:0], twin[:0]),
    ):
        ran = queue_check(cuda.current, batch, arrays(expected))
        cuda.run_all()
        assert ran
    one = buffer[-1]
    cuda.run_all()
    assert int(one.ticket) == int(twin[-1].ticket)


def test_many_batch_sizes_keep_few_blocks(cuda: FakeCuda) -> None:
    buffer = gpu_buffer()
    for size in range(1, 60):
        buffer.sample(size)
    cuda.run_all()
    gc.collect()
    assert len(delivery_of(buffer)._blocks) <= 4 * 3


def test_faces_share_the_device_and_no_block(cuda: FakeCuda) -> None:
    buffer = gpu_buffer()
    first, second = buffer.spawn(2)
    held = [face.sample(8) for face in (buffer, first, second)]
    assert len({id(block_of(batch)) for batch in held}) == 3
    assert len(cuda.streams) == 2
    assert first.stats()["pinned_bytes"] == block_bytes(buffer, 8)


def test_minibatches_outlive_their_buffer(cuda: FakeCuda) -> None:
    buffer = gpu_buffer(2)
    batch = buffer.sample(16)
    del buffer
    gc.collect()
    ran = queue_check(cuda.current, batch, arrays(cpu_buffer(2).sample(16)))
    cuda.run_all()
    assert ran


def test_page_locked_memory_is_not_given_back_while_it_is_copied(cuda: FakeCuda) -> None:
    """The tensors keep the device's memory, and nothing keeps what it is copied from."""
    buffer, twin = gpu_buffer(2), cpu_buffer(2)
    loader = buffer.loader(16, depth=1, steps=1)
    batch = next(loader)
    reward, sent = batch.reward, block_of(batch).transfer
    assert not sent.is_copied()
    copied_when_freed: list[bool] = []
    copied: Any = sent._copied
    weakref.finalize(sent._pinned, lambda event: copied_when_freed.append(event.token.done), copied.event)
    del batch, sent, copied, loader, buffer
    gc.collect()
    assert copied_when_freed == [True]
    assert np.array_equal(reward.numpy(), twin.sample(16).reward)


def test_inference_mode_leaves_no_trace(cuda: FakeCuda) -> None:
    buffer = gpu_buffer()
    with torch.inference_mode():
        for _ in range(5):
            buffer.sample(16)
            cuda.run_all()
    num_blocks = cuda.num_blocks
    batch = buffer.sample(16)
    assert cuda.num_blocks == num_blocks
    weight = torch.ones(16, requires_grad=True)
    (weight * batch.reward).sum().backward()


def test_another_stream_takes_over_a_loader(cuda: FakeCuda) -> None:
    """What is drawn for one stream and handed out on another is fenced for both."""
    buffer, twin = gpu_buffer(2), cpu_buffer(2)
    streams = [cuda.current, Stream(cuda)]
    cuda.streams.insert(0, streams[1])
    loader = buffer.loader(16, depth=2)
    for i in range(60):
        cuda.current = streams[i // 3 % 2]
        batch = next(loader)
        queue_check(cuda.current, batch, arrays(twin.sample(16)))
        if i % 4 == 0:
            cuda.side.run()
            streams[0].run()
    loader.close()
    cuda.run_all()


class Interleavings(RuleBasedStateMachine):
    """Samples, loaders, `out=`, releases; streams that run when the machine says. Every read must find its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.cuda = FakeCuda()
        self.cuda.install(self.patch)
        self.held: list[tuple[Any, Stream, dict[str, Any]]] = []
        self.most_held = 0
        self.loader: Any = None
        self.ahead: list[int] = []  # the call numbers of what the loader has drawn
        self.reads: list[list[bool]] = []

    @initialize(depth=st.integers(1, 3), seed=st.integers(0, 3))
    def begin(self, depth: int, seed: int) -> None:
        self.depth = depth
        self.buffer, self.twin = gpu_buffer(seed), cpu_buffer(seed)
        self.key = self.buffer.rng_state["key"]
        self.consumers = [self.cuda.current, Stream(self.cuda)]
        self.cuda.streams.insert(0, self.consumers[1])

    def expected(self, batch_size: int, call: int) -> dict[str, Any]:
        self.twin.rng_state = {"key": self.key, "calls": call}
        return arrays(self.twin.sample(batch_size))

    def hold(self, batch: Any, expected: dict[str, Any]) -> None:
        assert block_of(batch) not in [block_of(held) for held, _, _ in self.held]
        self.held.append((batch, self.cuda.current, expected))
        self.most_held = max(self.most_held, len(self.held))
        self.reads.append(queue_check(self.cuda.current, batch, expected))

    @rule(batch_size=st.sampled_from([3, 8]), kept=st.booleans())
    def sample(self, batch_size: int, kept: bool) -> None:
        call = self.buffer.rng_state["calls"]
        batch, expected = self.buffer.sample(batch_size), self.expected(batch_size, call)
        if kept:
            self.hold(batch, expected)
        else:
            self.reads.append(queue_check(self.cuda.current, batch, expected))

    @rule(slots=st.lists(st.integers(0, 99), min_size=3, max_size=3))
    def gather(self, slots: list[int]) -> None:
        self.hold(self.buffer.gather(slots), arrays(self.twin.gather(slots)))

    @rule()
    def refused(self) -> None:
        with pytest.raises(IndexError):
            self.buffer.gather([1, 100, 2])

    @precondition(lambda self: self.loader is None)
    @rule()
    def open_loader(self) -> None:
        first = self.buffer.rng_state["calls"]
        self.loader = self.buffer.loader(8, depth=self.depth)
        self.ahead = list(range(first, first + self.depth))

    @precondition(lambda self: self.loader is not None)
    @rule(kept=st.booleans())
    def load(self, kept: bool) -> None:
        self.ahead.append(self.buffer.rng_state["calls"])
        batch, expected = next(self.loader), self.expected(8, self.ahead.pop(0))
        if kept:
            self.hold(batch, expected)
        else:
            self.reads.append(queue_check(self.cuda.current, batch, expected))

    @precondition(lambda self: self.loader is not None)
    @rule()
    def close_loader(self) -> None:
        self.loader.close()
        self.loader = None

    @precondition(lambda self: self.held)
    @rule(data=st.data(), fails=st.booleans())
    def out(self, data: st.DataObject, fails: bool) -> None:
        place = data.draw(st.integers(0, len(self.held) - 1))
        batch, _, expected = self.held[place]
        if fails:
            with pytest.raises(IndexError):
                self.buffer.gather([100] * len(batch), out=batch)
        else:
            call = self.buffer.rng_state["calls"]
            self.buffer.sample(len(batch), out=batch)
            expected = self.expected(len(batch), call)
        self.held[place] = (batch, self.cuda.current if not fails else self.held[place][1], expected)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def work(self, data: st.DataObject) -> None:
        batch, stream, expected = self.held[data.draw(st.integers(0, len(self.held) - 1))]
        self.reads.append(queue_check(stream, batch, expected))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        del self.held[data.draw(st.integers(0, len(self.held) - 1))]

    @rule(which=st.sampled_from(["side", 0, 1]), count=st.integers(1, 6))
    def run(self, which: Literal["side", 0, 1], count: int) -> None:
        stream = self.cuda.side if which == "side" else self.consumers[which]
        for _ in range(count):
            stream.run()

    @rule()
    def settle(self) -> None:
        self.cuda.run_all()

    @rule(count=st.integers(1, 6), batch_size=st.sampled_from([3, 8]))
    def sample_faster_than_is_worked(self, count: int, batch_size: int) -> None:
        for _ in range(count):
            self.sample(batch_size, kept=False)
            while self.cuda.side.run():
                pass

    @rule(which=st.integers(0, 1))
    def switch_stream(self, which: int) -> None:
        self.cuda.current = self.consumers[which]

    @invariant()
    def every_block_is_in_one_state(self) -> None:
        if not hasattr(self, "buffer"):
            return
        delivery = delivery_of(self.buffer)
        free, in_use = rotations_of(delivery)
        assert len(set(map(id, free + in_use))) == len(free) + len(in_use)
        assert all(block.state is State.FREE for block in free)
        assert all(block.state is State.IN_USE for block in in_use)
        assert not any(block.state is State.FILLING for block in delivery._blocks)
        ahead = [block for block in delivery._blocks if block.is_ahead]
        assert len(ahead) == (self.depth if self.loader is not None else 0)
        assert {id(block_of(batch)) for batch, _, _ in self.held} <= set(map(id, in_use))
        # Two sizes on two streams; a few blocks each to take turns, and what is not copied yet, within the bound.
        assert len(delivery._blocks) <= self.most_held + self.depth + 4 * 64

    def teardown(self) -> None:
        if self.loader is not None:
            self.loader.close()
        self.cuda.run_all()
        assert all(self.reads)
        for batch, _, expected in self.held:
            assert_same({**{n: v.numpy() for n, v in batch.items()}, "ticket": batch.ticket.numpy()}, expected)
        self.patch.undo()


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=150 if IS_LONG_FORM else 60, stateful_step_count=50)


# The parts that a fake cannot stand for.


def test_a_machine_without_a_gpu_says_why() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(RuntimeError, match=r"device: 'cuda:0' cannot be had"):
        NativeBuffer(10, FIELDS, device="cuda:0")
    with pytest.raises(
        RuntimeError, match=r"device: cuda:0 needs page-locked memory, and 4096 bytes of it cannot be had"
    ):
        device.Device(DEVICE)


def test_memory_that_is_not_page_locked_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pageable = torch.empty(10, dtype=torch.uint8)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: pageable)
    with pytest.raises(RuntimeError, match="torch gave 10 bytes that are not"):
        memory.page_locked(10, DEVICE)


def test_the_struct_is_that_of_the_header() -> None:
    header = (Path(__file__).parents[1] / "csrc/cuda/transfer.h").read_text()
    body = header[header.index("struct fastreplay_cuda_transfer {") : header.index("};")]
    fields = re.findall(r"^\s*(.+?[ *])(\w+);", body, re.MULTILINE)
    kinds = {"size_t ": ctypes.c_size_t, "int ": ctypes.c_int}
    assert [(name, kinds.get(kind, ctypes.c_void_p)) for kind, name in fields] == list(transfer._Struct._fields_)


def test_the_native_sender_reports_what_is_wrong() -> None:
    loaded = library._cuda_library()
    if loaded is None:
        pytest.skip("built without CUDA")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    error = loaded.fastreplay_cuda_send(ctypes.byref(transfer._Struct()))
    assert error != 0
    assert library.cuda_error(error)
    assert library.cuda_sender()[0] == 0


def test_torch_is_let_wait_again_after_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the test fails, and though setting the mode warns, which is an error here."""
    modes: list[str] = []

    def set_mode(mode: str) -> None:
        modes.append(mode)
        warnings.warn("a prototype", UserWarning, stacklevel=2)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    with pytest.raises(ZeroDivisionError), the_host_never_waits():
        raise ZeroDivisionError
    assert modes == ["error", "default"]


class TestOnADevice:
    pytestmark = cuda_device

    def buffers(self) -> tuple[Any, Any]:
        return gpu_buffer(7), cpu_buffer(7)

    def test_sample(self) -> None:
        buffer, twin = self.buffers()
        held = [(buffer.sample(32), arrays(twin.sample(32))) for _ in range(20)]
        for batch, expected in held:
            assert batch.reward.device == DEVICE
            assert_same(batch, expected)
        assert block_of(held[0][0]).transfer._pinned.is_pinned()
        assert buffer.stats()["waits"] == 0

    def test_the_host_never_waits(self) -> None:
        buffer, _ = self.buffers()
        sample_without_waits(buffer)

    @pytest.mark.parametrize("way", ["sample", "loader", "out"])
    def test_a_block_is_not_overwritten_before_the_consumer_is_done(self, way: str) -> None:
        buffer, twin = self.buffers()
        loader, out = buffer.loader(32), buffer.sample(32)
        if way != "out":
            loader, out = buffer.loader(32), None
        buffer.rng_state = twin.rng_state
        buffer.sample(32)
        loader.close()
        buffer.rng_state = twin.rng_state
        loader = buffer.loader(32) if way == "loader" else None
        copies = []
        for _ in range(200):
            torch.cuda._sleep(200_000)  # type: ignore[no-untyped-call]
            batch = next(loader) if loader is not None else buffer.sample(32, out=out)
            copies.append((batch.reward.clone(), batch.ticket.clone()))
            del batch
        torch.cuda.synchronize()
        for reward, ticket in copies:
            expected = twin.sample(32)
            assert np.array_equal(reward.cpu(), expected.reward)
            assert np.array_equal(ticket.cpu(), expected.ticket)

    def test_on_a_stream_of_the_callers(self) -> None:
        buffer, twin = self.buffers()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            sums = [buffer.sample(32).reward.sum() for _ in range(50)]
        stream.synchronize()
        for got in sums:
            assert float(got) == float(twin.sample(32).reward.sum())


def test_loaders_are_public() -> None:
    assert fr.Loader.__name__ in fr.__all__
