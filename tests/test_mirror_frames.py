# SPDX-License-Identifier: MIT
"""Frames in common with storage="cuda", on a fake device, and on a real one where there is one.

Beside each buffer stands one on the CPU, which draws the same rows. What reads the frames for a device, and what the
kernels make of them, tests/cpp/test_sent_frames.cpp runs on the CPU.
"""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import FakeCuda, cuda_device, queue_check, the_host_never_waits
from stall import stalled_insert
from support import NativeBuffer
from test_mirror_lanes import EXACT, content, draw_both

import fastreplay as fr
from fastreplay.gpu import frames, ring

Fields = dict[str, Any]
REST: Fields = {"reward": (), "terminated": ((), "bool")}
SHAPE = (40, 60)  # a frame of more than one piece


def paired(field: Any) -> Fields:
    return {"observation": field, "next_observation": field, **REST}


SHARED: dict[str, tuple[Fields, Any]] = {
    "shared": (paired(fr.Field((3,), "float64")), True),
    "stacked": ({"observation": fr.Field(SHAPE, "uint8", stack=4), **REST}, False),
    "both": (paired(fr.Field(SHAPE, "uint8", stack=3)), True),
    "groups": (
        {
            "image": fr.Field(SHAPE, "uint8", stack=2),
            "joints": (5,),
            "sound": fr.Field((2,), "float16", stack=3),
            "next_joints": (5,),
            **REST,
        },
        {"next_joints": "joints"},
    ),
}
FOLLOWS: list[Any] = [
    None,
    fr.NStep(3, 0.9),
    fr.Sequence(3, burn_in=2, pad="zero"),
    fr.NStep(2, 0.9, incomplete="redraw"),
    fr.Sequence(2, burn_in=1, time_major=True),
]


class Streams:
    """Rows of lanes whose stacks go on, begin anew, or break off in the middle."""

    def __init__(self, fields: Fields, share_next: Any, lanes: int, seed: int) -> None:
        self._fields = fr.Schema(fields)
        self._next: dict[str, str] = share_next if isinstance(share_next, dict) else {}
        if share_next is True:
            self._next = {name: name.removeprefix("next_") for name in self._fields if name.startswith("next_")}
        self._random = np.random.default_rng(seed)
        self._stacks: list[dict[str, Any]] = [{} for _ in range(lanes)]

    def rows(self, order: Any) -> Fields:
        made = [self._row(self._stacks[lane]) for lane in order]
        return {name: np.stack([row[name] for row in made]) for name in self._fields}

    def _row(self, stacks: dict[str, Any]) -> Fields:
        row: Fields = {"reward": np.float32(self._random.normal()), "terminated": self._random.random() < 0.1}
        breaks = self._random.random() < 0.1
        for name, field in self._fields.items():
            if name in row or name in self._next:
                continue
            if name not in self._next.values() or name not in stacks or breaks:
                stacks[name] = self._later(stacks.get(name), field, breaks=breaks)
            row[name] = stacks[name]
        for name, before in self._next.items():
            row[name] = stacks[before] = self._later(row[before], self._fields[before], breaks=False)
        if row["terminated"]:
            stacks.clear()
        return row

    def _later(self, stack: Any, field: Any, *, breaks: bool) -> Any:
        new = self._random.integers(0, 256, field.shape).astype(field.dtype)
        if not field.stack:
            return new
        count = field.stack
        of_frames = new.reshape(count, -1)
        if stack is None:
            of_frames[:] = of_frames[0]
        elif not breaks:
            of_frames[:-1] = stack.reshape(count, -1)[1:]
        return new


def pair(kind: str, capacity: int, *, lanes: int = 2, seed: int = 0, **options: Any) -> tuple[Any, Any, Streams]:
    """Make a buffer on the device, one on the CPU, and what gives them rows."""
    fields, share_next = SHARED[kind]
    options = {"lanes": lanes, "seed": seed, "share_next": share_next, **options}
    there = NativeBuffer(capacity, fields, device="cuda:0", storage="cuda", **options)
    return there, NativeBuffer(capacity, fields, output="numpy", **options), Streams(fields, share_next, lanes, seed)


def fill(streams: Streams, count: int, *buffers: Any, lanes: int = 2) -> None:
    for _ in range(count // lanes):
        rows = streams.rows(range(lanes))
        for each in buffers:
            each.extend(**rows)


@pytest.mark.parametrize("kind", SHARED)
class TestOnAnyDevice:
    """The same on the fake device and on a real one."""

    @pytest.mark.parametrize("priorities", [None, EXACT], ids=["uniform", "by priority"])
    def test_it_makes_what_the_cpu_makes(self, any_cuda: Any, kind: str, priorities: Any, monkeypatch: Any) -> None:
        """Laps, ends, cuts, breaks, lanes that come by turns, clears, frames in many chunks."""
        monkeypatch.setattr(frames, "_CHUNK_BYTES", 6000)
        there, twin, streams = pair(kind, 31, lanes=3, priorities=priorities)
        random = np.random.default_rng(1)
        for step in range(15):
            order = random.integers(0, 3, random.integers(1, 30))
            rows, given = streams.rows(order), {}
            if priorities is not None:
                given = {"priority": random.exponential(size=len(order))}
            for each in (there, twin):
                if step % 6 == 5:
                    each.clear()  # what comes next has frames of what was before
                each.extend(**rows, lanes=order, **given)
                if step % 3 == 1:
                    each.cut(int(order[-1]))
            for follow in {FOLLOWS[0], FOLLOWS[step % len(FOLLOWS)]}:
                draw_both(any_cuda, there, twin, follow=follow)
        assert there.rng_state == twin.rng_state
        assert getattr(any_cuda, "num_host_waits", 0) == 0

    def test_the_first_draw_after_some_laps(self, any_cuda: Any, kind: str) -> None:
        """What the oldest transitions look up is sent with them."""
        for count, priorities in ((20, None), (72, EXACT), (146, EXACT), (146, None)):
            there, twin, streams = pair(kind, 24, priorities=priorities)
            fill(streams, count, there, twin)
            draw_both(any_cuda, there, twin, 40, times=2)
            for each in (there, twin):
                each.clear()
            fill(streams, 4, there, twin)
            draw_both(any_cuda, there, twin, 40, times=2)

    def test_a_graph_draws_from_what_was_flushed(self, any_cuda: Any, kind: str, monkeypatch: Any) -> None:
        """Also of frames that lie where nothing was when it was captured."""
        monkeypatch.setattr(frames, "_CHUNK_BYTES", 1)
        there, twin, streams = pair(kind, 24)
        fill(streams, 4, there, twin)
        follow = fr.Sequence(2, burn_in=1)
        outs = [there.sample(16), there.sample(16, follow=follow)]
        twin.sample(16), twin.sample(16, follow=follow)
        with any_cuda.capture() as graph:
            there.sample(16, out=outs[0])
            there.sample(16, out=outs[1], follow=follow)
        for _ in range(4):
            fill(streams, 18, there, twin)
            there.flush()
            any_cuda.replay(graph)
            any_cuda.run_all()
            for out, batch in zip(outs, (twin.sample(16), twin.sample(16, follow=follow)), strict=True):
                expected = content(batch)
                assert all(content(out)[name].tobytes() == value.tobytes() for name, value in expected.items())

    def test_pickles_go_on(self, any_cuda: Any, kind: str) -> None:
        there, twin, streams = pair(kind, 24)
        fill(streams, 60, there, twin)
        there.sample(3), twin.sample(3)
        there, twin = (pickle.loads(pickle.dumps(each)) for each in (there, twin))
        for _ in range(3):
            draw_both(any_cuda, there, twin, 40)
            fill(streams, 10, there, twin)


def test_beside_a_writer_rows_are_whole(any_cuda: Any) -> None:
    """Of a buffer so small that much is overwritten while it is read."""
    each = np.random.default_rng(0).integers(0, 256, (203, 12, 10), np.uint8)
    stacks = np.stack([each[i : i + 3] for i in range(201)])
    made = {"observation": stacks[:-1], "next_observation": stacks[1:], "reward": np.arange(200, dtype=np.float32)}
    made["terminated"] = np.arange(200) == 199
    fields = paired(fr.Field((12, 10), "uint8", stack=3))
    there = NativeBuffer(20, fields, device="cuda:0", storage="cuda", lanes=1, seed=0, share_next=True)
    there.extend(**made)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            there.extend(**made)
            there.extend(**{name: values[50:60] for name, values in made.items()})

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            for _ in range(150):
                batch = there.sample(8)
                any_cuda.run_all()
                numbers = batch.reward.cpu().numpy().astype(int)
                for name in ("observation", "next_observation"):
                    np.testing.assert_array_equal(batch[name].cpu().numpy(), made[name][numbers])
        finally:
            stop.set()
        writing.result()


def test_what_was_unfinished_when_all_was_cleared(cuda: FakeCuda) -> None:
    """It is sent once it is finished, to be looked up, and weighs nothing."""
    there, twin, streams = pair("both", 40, lanes=1, priorities=EXACT)
    fill(streams, 6, there, twin, lanes=1)
    draw_both(cuda, there, twin)
    rows = streams.rows([0] * 4)
    with stalled_insert(there, rows, "observation", at=1, lanes=[0] * 4):
        there.clear()
        there.flush()
    twin.extend(**rows)
    twin.clear()
    fill(streams, 3, there, twin, lanes=1)
    draw_both(cuda, there, twin, times=5)


def test_frames_beside_records_go_over_once(cuda: FakeCuda) -> None:
    there, _, streams = pair("both", 40, lanes=1)
    rows = streams.rows([0] * 30)
    there.extend(**rows)
    there.sample(4)
    num_beside = there._lanes.core.num_bytes - NativeBuffer(40, SHARED["stacked"][0], lanes=1)._lanes.core.num_bytes
    cuda.run_all()
    mirrored = there._mirror.ring
    sent = 30 * (mirrored._stride + 8)
    assert num_beside > 0
    assert cuda.num_copied_bytes - sent < num_beside + 2 * 4096 * 30
    before = cuda.num_copied_bytes
    there.sample(4)
    assert cuda.num_copied_bytes == before


def test_without_memory_for_frames_it_says_so_and_goes_on(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost: the same draw is made once there is some."""
    monkeypatch.setattr(frames, "_CHUNK_BYTES", 1)
    there, twin, streams = pair("both", 40)
    fill(streams, 10, there, twin)
    draw_both(cuda, there, twin)
    fill(streams, 60, there, twin)
    mirrored, allocate = there._mirror.ring, there._mirror.ring.allocate

    def refuse(num_bytes: int) -> Any:
        raise torch.OutOfMemoryError(f"tried to allocate {num_bytes} bytes")

    monkeypatch.setattr(mirrored, "allocate", refuse)
    for call in (there.flush, lambda: there.sample(16)):
        with pytest.raises(RuntimeError, match="tried to allocate 2400 bytes"):
            call()
    monkeypatch.setattr(mirrored, "allocate", allocate)
    draw_both(cuda, there, twin, times=3)


def test_a_graph_draws_nothing_until_a_failed_flush_is_made_up_for(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where records were sent by then, to the places of those that it would draw."""
    monkeypatch.setattr(ring, "_STAGE_BYTES", 10_000)  # of some records: a flush is several runs
    there, twin, streams = pair("both", 20, lanes=1, priorities=EXACT)
    fill(streams, 26, there, twin, lanes=1)
    out, before = there.sample(8), content(twin.sample(8))
    with cuda.capture() as graph:
        there.sample(8, out=out)
    mirrored, send = there._mirror.ring, there._mirror.ring.send
    sent: list[tuple[Any, ...]] = []

    def send_one(*run: Any) -> None:
        if sent:
            raise KeyboardInterrupt
        sent.append(run)
        send(*run)

    fill(streams, 12, there, twin, lanes=1)
    monkeypatch.setattr(mirrored, "send", send_one)
    with pytest.raises(KeyboardInterrupt):
        there.flush()
    monkeypatch.setattr(mirrored, "send", send)
    assert sent
    cuda.replay(graph)
    cuda.run_all()
    assert all(content(out)[name].tobytes() == value.tobytes() for name, value in before.items() if name != "weight")
    draw_both(cuda, there, twin, times=3)


def test_an_interrupt_in_the_midst_of_growing(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "_CHUNK_BYTES", 1)
    there, twin, streams = pair("both", 40)
    fill(streams, 30, there, twin)
    sent = there._mirror.frames._sent

    class Interrupted:
        groups = sent.groups
        read = staticmethod(sent.read)

        @staticmethod
        def add_chunk(*_: int) -> None:
            raise KeyboardInterrupt

    there._mirror.frames._sent = Interrupted
    with pytest.raises(KeyboardInterrupt):
        there.flush()
    there._mirror.frames._sent = sent
    draw_both(cuda, there, twin, times=3)


def test_chunks_are_for_what_is_there(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for every transition; and what is not needed any more is used again."""
    monkeypatch.setattr(frames, "_CHUNK_BYTES", 1)
    there, twin, streams = pair("both", 20, lanes=1)
    for _ in range(30):
        fill(streams, 10, there, twin, lanes=1)
        there.flush()
    cuda.run_all()
    assert len(there._mirror.frames._chunks[0]) < 60
    draw_both(cuda, there, twin)


def test_a_queued_draw_finds_its_frames(cuda: FakeCuda) -> None:
    """Though the next flush was queued before it ran."""
    there, twin, streams = pair("both", 20)
    for _ in range(12):
        fill(streams, 16, there, twin)
        batch = there.sample(8)
        queue_check(cuda.current, batch, content(twin.sample(8)))
    cuda.run_all()


class TestOnARealDevice:
    pytestmark = cuda_device

    def test_the_host_never_waits(self) -> None:
        there, _, streams = pair("both", 200)
        fill(streams, 300, there)
        there.sample(64)
        torch.cuda.synchronize()
        with the_host_never_waits():
            for _ in range(5):
                there.extend(**streams.rows(range(2)))
                there.sample(64).reward.add_(1)

    def test_stacks_of_images_of_their_usual_size(self) -> None:
        """Whose frames come in some chunks, and lie where nothing is aligned."""
        fields = paired(fr.Field((84, 84), "uint8", stack=4))
        there = NativeBuffer(1500, fields, device="cuda:0", storage="cuda", lanes=4, seed=0, share_next=True)
        twin = NativeBuffer(1500, fields, output="numpy", lanes=4, seed=0, share_next=True)
        streams = Streams(fields, True, 4, 0)
        for _ in range(20):
            fill(streams, 200, there, twin, lanes=4)
            for follow in (None, fr.NStep(3, 0.99)):
                batch, expected = there.sample(256, follow=follow), content(twin.sample(256, follow=follow))
                assert all(content(batch)[name].tobytes() == value.tobytes() for name, value in expected.items())
