# SPDX-License-Identifier: MIT
"""Many threads on one buffer, stalled writers, timeouts, faces; FASTREPLAY_THREADS_S seconds of stress."""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from stall import Stall, Thread, stalled_insert
from support import FIELDS, HAS_GIL, NativeBuffer, arrays, assert_holds, assert_same, fill, handling, transitions

import fastreplay as fr
from fastreplay.support.checks import key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from stall import StalledInsert

    Array = NDArray[Any]

STRESS_S = float(os.environ.get("FASTREPLAY_THREADS_S", "4"))
PATIENCE_S = 30  # with the machine, not with us

SCHEMAS: dict[str, dict[str, Any]] = {
    "16 B": {"id": ((), "int64"), "check": ((), "int64")},
    "168 B": {"flag": ((), "bool"), "vector": ((17,), "float64"), "id": ((), "int64"), "pixels": ((3, 5), "uint8")},
    "28 kB": {"id": ((), "int64"), "image": ((4, 84, 84), "uint8")},
}
WIDE: dict[str, Any] = {"id": ((), "int64"), "x": (1024,)}  # 8 rows are long enough to be copied without the GIL
ODD = np.uint64(0x9E3779B97F4A7C15)


def certified(fields: dict[str, Any], ids: Any) -> dict[str, Array]:
    """Give the rows (n, *shape) of these ids: every byte of a row follows from its id."""
    ids = np.asarray(ids, dtype=np.int64)
    mixed = (ids.astype(np.uint64) * ODD) ^ (ids.astype(np.uint64) >> np.uint64(7))
    rows: dict[str, Array] = {}
    for name, spec in fields.items():
        shape, dtype = (spec[0], np.dtype(spec[1])) if isinstance(spec[0], tuple) else (spec, np.dtype("float32"))
        num_bytes = int(np.prod(shape, dtype=int)) * dtype.itemsize
        if name == "id":
            rows[name] = ids
        elif dtype.kind == "b":
            rows[name] = (mixed >> np.uint64(40)) % np.uint64(2) == 1
        elif num_bytes % 8 == 0:
            words = mixed[:, None] + ODD * np.arange(num_bytes // 8, dtype=np.uint64)
            rows[name] = words.view(dtype).reshape(-1, *shape)
        else:
            small = (mixed >> np.uint64(48)).astype(np.uint8)[:, None] + np.arange(num_bytes, dtype=np.uint8)
            rows[name] = small.view(dtype).reshape(-1, *shape)
    return rows


def as_bytes(rows: Array) -> Array:
    num_bytes = int(np.prod(rows.shape[1:], dtype=int)) * rows.itemsize
    return np.ascontiguousarray(rows).reshape(-1).view(np.uint8).reshape(len(rows), num_bytes)


def assert_whole(fields: dict[str, Any], batch: Any) -> tuple[Array, Array]:
    """Assert that every row of a minibatch is what its id says; give (tickets, ids)."""
    batch = batch.numpy()
    ids = batch["id"].copy()
    for name, expected in certified(fields, ids).items():
        got = batch[name]
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
        torn = (as_bytes(got) != as_bytes(expected)).any(axis=1)
        assert not torn.any(), f"torn {name} in rows {np.flatnonzero(torn)} of ids {ids[torn]}"
    return batch.ticket.copy(), ids


def wide_rows(first: int, count: int) -> dict[str, Array]:
    return certified(WIDE, np.arange(first, first + count))


def extend_wide(buffer: Any, first: int, count: int) -> None:
    """Insert `count` rows of WIDE whose ids are their tickets."""
    for start in range(first, first + count, 8):
        buffer.extend(**wide_rows(start, min(8, first + count - start)))


def assert_wide(batch: Any, tickets: Any) -> None:
    got, ids = assert_whole(WIDE, batch)
    assert got.tolist() == ids.tolist() == list(tickets)


def buffer_state(buffer: Any) -> tuple[Any, ...]:
    """All that another insert changes, and the bytes of every slot."""
    views = [buffer.view(name).tobytes() for name in buffer.schema]
    return len(buffer), buffer.stats(), buffer.rng_state, buffer._ring.window(), views


@contextmanager
def switching(seconds: float) -> Iterator[None]:
    """Make Python change threads this often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


# Everybody at once.

WRITER = 1 << 40  # id = writer * WRITER + sequence
MOST_TICKETS = 1 << 23  # of one round


class Crowd:
    """Threads that each do everything to one buffer, and what they learnt together."""

    def __init__(self, schema: str, output: str, *, clears: bool, seconds: float) -> None:
        self.fields = SCHEMAS[schema]
        self.longest = {"16 B": 5000, "168 B": 600, "28 kB": 40}[schema]
        self.buffer = NativeBuffer(self.longest * 4 // 5, self.fields, seed=1, output=output)
        self.clears = clears
        self.id_of = np.zeros(MOST_TICKETS, dtype=np.int64)  # by ticket; 0: not seen
        self.insert(0, 0, 1)
        self.buffer.sample(1)  # imports torch, which may take longer than the test
        self.deadline = time.monotonic() + seconds

    def insert(self, writer: int, sequence: int, count: int) -> None:
        rows = certified(self.fields, writer * WRITER + 1 + np.arange(sequence, sequence + count))
        if count == 1:
            self.buffer.add(**{name: value[0] for name, value in rows.items()})
        else:
            self.buffer.extend(*rows.values())

    def check(self, batch: Any) -> None:
        tickets, ids = assert_whole(self.fields, batch)
        known = self.id_of[tickets]
        assert ((known == 0) | (known == ids)).all(), "a ticket had two rows"
        self.id_of[tickets] = ids
        assert np.array_equal(self.id_of[tickets], ids)

    def read(self, way: int, rng: np.random.Generator, out: Any) -> Any:
        buffer, size = self.buffer, self.longest // 2
        if way == 0:
            return buffer.sample(int(rng.integers(1, self.longest)))
        if way == 1:
            assert buffer.sample(size, out=out) is out
            return out
        if way == 2:
            return buffer.gather(rng.integers(buffer.capacity, size=3))
        if way == 3:
            length = len(buffer)
            return buffer[length // 2 : length // 2 + 2]
        one = buffer[[-1]] if rng.integers(2) else buffer[-1]
        if one.batch_size is None:  # checked as a batch of one
            assert one.numpy()["id"].shape == ()
            rows = certified(self.fields, [int(one.numpy()["id"])])
            for name, expected in rows.items():
                assert one.numpy()[name].tobytes() == expected.tobytes()
            return None
        return one

    def work(self, writer: int) -> tuple[int, int]:
        rng = np.random.default_rng(writer)
        inserted = num_read = 0
        out = NativeBuffer(1, self.fields, output="numpy")
        out.extend(**certified(self.fields, [1]))
        out = out.sample(self.longest // 2)
        while time.monotonic() < self.deadline:
            stats = self.buffer.stats()
            if stats["inserted"] > MOST_TICKETS - 16 * self.longest:
                break
            action = rng.random()
            if action < 0.4:
                count = int(rng.integers(1, self.longest)) if action < 0.15 else 1
                self.insert(writer, inserted, count)
                inserted += count
            elif action < 0.95:
                try:
                    batch = self.read(int(rng.integers(5)), rng, out)
                except IndexError:  # the slot, or all at the time, were being overwritten
                    continue
                except ValueError as error:
                    if self.clears and "empty" in str(error):
                        continue
                    raise
                if batch is not None:
                    self.check(batch)
                num_read += 1
            elif action < 0.997 or not self.clears:
                assert 0 <= len(self.buffer) <= self.buffer.capacity
                assert self.buffer.stats()["inserted"] >= stats["inserted"]
            else:
                self.buffer.clear()
        return inserted, num_read

    def run(self) -> None:
        with switching(5e-4):
            threads = [Thread(self.work, writer) for writer in range(1, 9)]
            results = [thread.finish(60 + STRESS_S) for thread in threads]
        total = 1 + sum(inserted for inserted, _ in results)
        stats = self.buffer.stats()
        assert stats["inserted"] == total
        assert sum(num_read for _, num_read in results) > 0
        batch = self.buffer[:]
        self.check(batch)
        tickets = arrays(batch)["ticket"]
        assert np.array_equal(tickets, np.arange(total - len(tickets), total))
        assert len(tickets) == len(self.buffer)
        if not self.clears:
            assert len(self.buffer) == min(total, self.buffer.capacity)
            assert stats["overwritten"] == total - len(self.buffer)
        self.check_order()

    def check_order(self) -> None:
        ids = self.id_of[self.id_of > 0] - 1  # in the order of their tickets
        assert len(np.unique(ids // WRITER)) > 4
        for writer in range(1, 9):
            mine = ids[ids // WRITER == writer]
            assert (np.diff(mine) > 0).all(), "a writer's rows are out of order, or twice there"


CROWDS = [
    ("16 B", "torch", False),
    ("16 B", "numpy", True),
    ("168 B", "torch", True),
    ("168 B", "numpy", False),
    ("28 kB", "torch", False),
    ("28 kB", "numpy", True),
]


@pytest.mark.parametrize(("schema", "output", "clears"), CROWDS)
def test_eight_threads_insert_and_read_at_once(schema: str, output: str, clears: bool) -> None:
    end = time.monotonic() + STRESS_S / len(CROWDS)
    while (left := end - time.monotonic()) > 0:
        Crowd(schema, output, clears=clears, seconds=min(max(left, 0.3), 5)).run()


def test_the_certificate_sees_a_torn_row() -> None:
    for fields in SCHEMAS.values():
        buffer = NativeBuffer(4, fields, seed=0, output="numpy")
        buffer.extend(**certified(fields, [3, 4, 5, WRITER + 3]))
        assert_whole(fields, buffer[:])
        for name in fields:
            if name in ("id", "flag"):  # a wrong id is seen by the other fields, a flag is right half the time
                continue
            batch = buffer[:]
            values = batch[name].reshape(4, -1)
            values[1, -1] = values[2, -1]
            with pytest.raises(AssertionError, match="torn"):
                assert_whole(fields, batch)


# The GIL.


@contextmanager
def repeating(call: Callable[[], Any]) -> Iterator[list[int]]:
    """Call it again and again in another thread; the list's item counts the calls."""
    stop, calls = threading.Event(), [0]

    def loop() -> None:
        while not stop.is_set():
            call()
            calls[0] += 1

    thread = Thread(loop)
    try:
        yield calls
    finally:
        stop.set()
        thread.finish()


def test_python_goes_on_while_another_thread_samples() -> None:
    """No thread is asked to give the GIL away here: what runs within a sample of another runs without it."""
    fields = {"observation": (376,), "action": (17,), "reward": (), "next_observation": (376,), "done": ((), "bool")}
    buffer = NativeBuffer(20_000, fields, seed=0, output="numpy")
    buffer.extend(*(np.zeros((20_000, *f.shape), f.dtype) for f in buffer.schema.values()))
    out = buffer.sample(4096)
    progress, seen, is_over = 0, 0, False

    def sample() -> None:
        nonlocal seen, is_over
        for _ in range(2000):
            before = progress
            buffer.sample(4096, out=out)
            seen += progress > before
            if seen >= 3:
                break
        is_over = True

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        thread = Thread(sample)
        while not is_over:
            progress += 1
            time.sleep(0)  # gives it away
        thread.finish()
    finally:
        sys.setswitchinterval(interval)
    assert seen >= 3


# A stalled writer. Capacity 64 in chunks of 8, tickets 0..103 in, 104..111 stalled.

STALLED = range(104, 112)


@contextmanager
def stalled(
    room: int = 56, *, output: str = "numpy", timeout: float | None = 0.2
) -> Iterator[tuple[Any, StalledInsert]]:
    """Give a buffer with a stalled writer, and room for so many more rows before the gate."""
    buffer = NativeBuffer(64, WIDE, seed=2, output=output, timeout=timeout)
    extend_wide(buffer, 0, STALLED.start)
    with stalled_insert(buffer, wide_rows(STALLED.start, len(STALLED)), "x", at=3) as insert:
        extend_wide(buffer, STALLED.stop, 56 - room)
        yield buffer, insert


def next_ticket(buffer: Any) -> int:
    ticket: int = buffer.stats()["inserted"]
    return ticket


def add_wide(buffer: Any) -> None:
    buffer.add(**{name: value[0] for name, value in wide_rows(next_ticket(buffer), 1).items()})


def test_a_stall_stalls() -> None:
    content = np.arange(30_000, dtype=np.float64)[:, None]
    stall = Stall(content, first_missing=10_000)
    assert np.array_equal(stall.rows[:9000], content[:9000])
    thread = Thread(stall.rows[20_000:].copy)
    stall.wait()
    time.sleep(0.05)
    assert thread.is_alive()
    stall.release()
    assert np.array_equal(thread.finish(), content[20_000:])
    assert np.array_equal(stall.rows, content)
    stall.close()


def test_reading_goes_on_beside_a_stalled_writer(output: str) -> None:
    with stalled(output=output) as (buffer, insert):
        for inserted in (0, 8, 24, 24):
            extend_wide(buffer, next_ticket(buffer), inserted)
            end = next_ticket(buffer)
            first = max(end - 64, 0)
            tickets, ids = assert_whole(WIDE, buffer.sample(4096))
            assert np.array_equal(tickets, ids)
            assert set(tickets.tolist()) == set(range(first, end)) - set(STALLED)
            # What is read by age ends where the unfinished rows begin.
            assert len(buffer) == STALLED.start - first
            assert_wide(buffer[:], range(first, STALLED.start))
            for ticket in (STALLED[0], STALLED[-1]):
                with pytest.raises(IndexError):
                    buffer.gather([ticket % 64])
        assert next_ticket(buffer) == STALLED.start + 64
        assert insert.thread.is_alive()
        insert.release()
        assert_wide(buffer[:], range(104, 168))
        assert set(arrays(buffer.sample(4096))["ticket"].tolist()) == set(range(104, 168))
        extend_wide(buffer, 168, 100)
        assert_wide(buffer[:], range(204, 268))


def test_draws_beside_a_stalled_writer_are_uniform() -> None:
    with stalled() as (buffer, _):
        extend_wide(buffer, 112, 20)
        tickets = np.concatenate([buffer.sample(4000).ticket for _ in range(20)])
    counts = np.bincount(tickets - 68, minlength=64)
    counts = np.delete(counts, np.arange(104, 112) - 68)
    assert len(counts) == 56
    expected = counts.sum() / 56
    assert np.abs(counts - expected).max() < 6 * np.sqrt(expected)


@pytest.mark.parametrize("timeout", [0, 0.0005, 0.12, 0.4])
@pytest.mark.parametrize("call", ["add", "extend", "long extend"])
def test_an_insert_times_out_and_changes_nothing(call: str, timeout: float) -> None:
    """Waits the time, names the ticket, and may be tried again."""
    count = {"add": 1, "extend": 3, "long extend": 30}[call]
    with stalled(room=0, timeout=timeout) as (buffer, insert):
        before = buffer_state(buffer)
        rows = wide_rows(168, count)
        for _ in range(2):
            start = time.monotonic()
            with pytest.raises(TimeoutError, match=rf"transition 104,.*{timeout:g} s; 0 of {count} rows were inserted"):
                add_wide(buffer) if call == "add" else buffer.extend(**rows)
            assert timeout <= time.monotonic() - start < timeout + PATIENCE_S
            assert buffer_state(buffer) == before
        insert.release()
        assert_wide(buffer[:], range(104, 168))
        buffer.extend(**rows)
        assert_wide(buffer[:], range(104 + count, 168 + count))


def test_an_extend_tells_how_many_rows_are_in() -> None:
    with stalled(room=20) as (buffer, insert):
        first = next_ticket(buffer)
        rows = wide_rows(first, 50)
        with pytest.raises(TimeoutError, match=r"transition 104,.*0\.2 s; 16 of 50 rows were inserted"):
            buffer.extend(**rows)
        assert next_ticket(buffer) == first + 16
        assert set(range(first, first + 16)) <= set(arrays(buffer.sample(4096))["ticket"].tolist())
        extend_wide(buffer, first + 16, 4)
        with pytest.raises(TimeoutError, match="0 of 1 rows"):
            add_wide(buffer)
        insert.release()
        assert_wide(buffer[:], range(first + 20 - 64, first + 20))
        buffer.extend(**{name: value[20:] for name, value in rows.items()})
        assert_wide(buffer[:], range(first + 50 - 64, first + 50))


def test_the_timeout_counts_from_the_last_progress() -> None:
    """Two writers stall one after the other: no wait is as long as the timeout, unless we sleep too long."""
    for _ in range(20):
        buffer = NativeBuffer(64, WIDE, seed=2, output="numpy", timeout=0.8)
        extend_wide(buffer, 0, 64)
        with (
            stalled_insert(buffer, wide_rows(64, 8), "x") as first,
            stalled_insert(buffer, wide_rows(72, 8), "x") as second,
        ):
            extend_wide(buffer, 80, 48)
            thread = Thread(buffer.extend, **wide_rows(128, 16))
            time.sleep(0.5)
            first.release()
            time.sleep(0.5)
            second.release()
            with suppress(TimeoutError):
                thread.finish()
                assert_wide(buffer[:], range(80, 144))
                return
    raise AssertionError("it counts from the beginning")


def test_without_a_timeout_an_insert_waits() -> None:
    with stalled(room=0, timeout=None) as (buffer, insert):
        threads = [Thread(buffer.extend, **certified(WIDE, np.arange(count) + WRITER * count)) for count in (1, 7, 16)]
        time.sleep(0.3)
        assert all(thread.is_alive() for thread in threads)
        assert next_ticket(buffer) == 168
        insert.release()
        for thread in threads:
            thread.finish()
        assert next_ticket(buffer) == 168 + 24
        _, ids = assert_whole(WIDE, buffer[:])
        assert ids[:40].tolist() == list(range(128, 168))
        assert sorted(ids[40:]) == [count * WRITER + i for count in (1, 7, 16) for i in range(count)]


def test_threads_that_give_up_at_the_gate_leave_nothing_behind() -> None:
    with stalled(room=8, timeout=0.1) as (buffer, insert):
        extend_wide(buffer, next_ticket(buffer), 5)
        before = buffer_state(buffer)
        threads = [Thread(buffer.extend, **wide_rows(0, count)) for count in (4, 5, 6, 7)]
        for thread in threads:
            with pytest.raises(TimeoutError):
                thread.finish()
        assert buffer_state(buffer) == before
        insert.release()
        extend_wide(buffer, next_ticket(buffer), 90)
        end = next_ticket(buffer)
        assert_wide(buffer[:], range(end - 64, end))


def test_two_stalled_writers_finish_in_the_other_order() -> None:
    buffer = NativeBuffer(64, WIDE, seed=2, output="numpy", timeout=0)
    extend_wide(buffer, 0, 40)
    with (
        stalled_insert(buffer, wide_rows(40, 8), "x") as first,
        stalled_insert(buffer, wide_rows(48, 8), "x", at=7) as second,
    ):
        extend_wide(buffer, 56, 20)
        second.release()
        assert_wide(buffer[:], range(12, 40))
        assert set(buffer.sample(2000).ticket.tolist()) == set(range(12, 76)) - set(range(40, 48))
        first.release()
        assert_wide(buffer[:], range(12, 76))


def test_a_buffer_whose_only_rows_are_unfinished_says_so(output: str) -> None:
    buffer = NativeBuffer(64, WIDE, seed=2, output=output)
    state = buffer.rng_state
    with stalled_insert(buffer, wide_rows(0, 8), "x", at=5) as insert:
        assert len(buffer) == len(buffer[:]) == 0
        samplers = [buffer.sampler(draw=draw) for draw in (fr.Uniform(newest_of=3), fr.Uniform(newest=2), fr.Epochs())]
        for sampler in (buffer, *samplers):
            with pytest.raises(ValueError, match="the inserts of the 8 transitions there are are unfinished"):
                sampler.sample(4)
        insert.release()
    buffer.rng_state = state
    assert_wide(buffer[:], range(8))
    assert len(buffer.sample(4)) == 4


def test_a_slice_gives_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where others insert, and the rows before an unfinished one grow fewer, while it looks."""
    with stalled() as (buffer, _):
        kind = type(buffer)
        length = kind.__len__

        def slow_length(self: Any) -> int:
            result: int = length(self)
            monkeypatch.setattr(kind, "__len__", length)
            extend_wide(self, next_ticket(self), 16)
            return result

        monkeypatch.setattr(kind, "__len__", slow_length)
        tickets, _ids = assert_whole(WIDE, buffer[:])
        assert tickets.tolist() in (list(range(48, 104)), list(range(64, 104)))


@contextlib.contextmanager
def overwritten_without_gil() -> Iterator[None]:
    """Let rows be overwritten at each of many tries, as they may be by a writer that never pauses for the GIL."""
    try:
        yield
    except RuntimeError as error:
        if HAS_GIL or "overwritten at each try" not in str(error):
            raise


def test_slices_beside_a_writer_raise_nothing() -> None:
    buffer = NativeBuffer(64, {"id": ((), "int64")}, seed=0, output="numpy")
    rows = np.arange(50_000)
    buffer.extend(rows)
    with repeating(lambda: buffer.extend(rows)):
        for _ in range(3000):
            with overwritten_without_gil():
                tickets = buffer[:].ticket
                assert (np.diff(tickets) == 1).all()
                assert len(tickets) <= 64


def test_clear_beside_a_stalled_writer() -> None:
    with stalled(room=16) as (buffer, insert):
        buffer.clear()
        assert len(buffer) == 0
        with pytest.raises(ValueError, match="empty"):
            buffer.sample(4)
        first = next_ticket(buffer)
        extend_wide(buffer, first, 8)
        assert set(buffer.sample(500).ticket.tolist()) == set(range(first, first + 8))
        insert.release()
        assert_wide(buffer[:], range(first, first + 8))
        extend_wide(buffer, first + 8, 80)
        assert_wide(buffer[:], range(first + 24, first + 88))


def test_a_timeout_names_the_unfinished_ticket_after_a_clear() -> None:
    with stalled(room=0, timeout=0) as (buffer, _):
        buffer.clear()
        with pytest.raises(TimeoutError, match="transition 104,"):
            add_wide(buffer)


def test_a_copy_beside_a_stalled_writer_ends_before_it(output: str) -> None:
    with stalled(room=40, output=output, timeout=1.5) as (buffer, _):
        for clone in (copy.deepcopy(buffer), pickle.loads(pickle.dumps(buffer))):
            assert_wide(clone[:], range(64, 104))
            extend_wide(clone, 104, 200)
            assert_wide(clone[:], range(240, 304))


# Signals.


class InterruptedHereError(Exception):
    """Raised by a signal handler, so that a test that fails is not taken for a Ctrl-C."""


def send(number: int, after_s: float) -> tuple[Thread, list[float]]:
    """Send a signal to this thread from another."""
    here, sent = threading.get_ident(), []

    def run() -> None:
        time.sleep(after_s)
        sent.append(time.monotonic())
        signal.pthread_kill(here, number)

    return Thread(run), sent


def interrupt(number: int, frame: Any) -> None:
    raise InterruptedHereError


@pytest.mark.parametrize("timeout", [None, 1000])
@pytest.mark.parametrize("count", [1, 50])
def test_ctrl_c_ends_the_wait(count: int, timeout: float | None) -> None:
    with stalled(room=0, timeout=timeout) as (buffer, insert):
        before = buffer_state(buffer)
        for _ in range(2):
            with handling(signal.SIGINT, interrupt):
                thread, sent = send(signal.SIGINT, 0.2)
                with pytest.raises(InterruptedHereError):
                    buffer.extend(**wide_rows(168, count))
                assert time.monotonic() - sent[0] < PATIENCE_S
                thread.finish()
            assert buffer_state(buffer) == before
        insert.release()
        buffer.extend(**wide_rows(168, count))
        assert_wide(buffer[:], range(104 + count, 168 + count))


def test_a_real_ctrl_c_is_a_keyboard_interrupt() -> None:
    with stalled(room=0, timeout=None) as (buffer, insert), handling(signal.SIGINT, signal.default_int_handler):
        thread, _ = send(signal.SIGINT, 0.1)
        with pytest.raises(KeyboardInterrupt):
            add_wide(buffer)
        thread.finish()
        insert.release()
        add_wide(buffer)
        assert_wide(buffer[:], range(105, 169))


def test_a_signal_that_raises_nothing_does_not_end_the_wait() -> None:
    calls = []
    with stalled(room=0, timeout=0.5) as (buffer, _), handling(signal.SIGUSR1, lambda *_: calls.append(1)):
        start = time.monotonic()
        thread, _ = send(signal.SIGUSR1, 0.1)
        with pytest.raises(TimeoutError):
            add_wide(buffer)
        assert time.monotonic() - start >= 0.5
        thread.finish()
    assert calls == [1]


# Minibatches.


def test_held_minibatches_never_change(output: str) -> None:
    """Nor do views of them, through many laps, while other threads recycle blocks."""
    buffer = fill(NativeBuffer(300, FIELDS, seed=3, output=output), 300)
    deadline = time.monotonic() + min(STRESS_S, 30) / 6
    stop = threading.Event()

    def insert() -> None:
        for ticket in itertools.count(300, 50):
            if stop.is_set():
                return
            buffer.extend(**transitions(ticket, 50))

    def hold(seed: int) -> int:
        rng = np.random.default_rng(seed)
        held: list[tuple[Any, dict[str, Any], list[Any]]] = []
        out = buffer.sample(64)
        drawn = 0
        while time.monotonic() < deadline or drawn < 30:
            batch = buffer.sample(int(rng.choice([64, 65, 2000])))
            seen = arrays(batch)
            assert_holds(batch, seen["ticket"])
            views = [batch.reward[::2], batch.observation[3:5]]
            held.append((batch if rng.integers(2) else None, seen, views))
            del batch
            assert buffer.sample(64, out=out) is out
            assert_holds(out, arrays(out)["ticket"])
            if len(held) > 20:
                check_held(held.pop(int(rng.integers(20))))
            drawn += 1
        for item in held:
            check_held(item)
        return next_ticket(buffer)

    def check_held(item: tuple[Any, dict[str, Any], list[Any]]) -> None:
        batch, seen, (reward, observation) = item
        if batch is not None:
            assert_same(batch, seen)
        assert np.array_equal(np.asarray(reward), seen["reward"][::2])
        assert np.array_equal(np.asarray(observation), seen["observation"][3:5])

    with switching(2e-4):
        writer = Thread(insert)
        samplers = [Thread(hold, seed) for seed in range(3)]
        try:
            inserted = [sampler.finish() for sampler in samplers]
        finally:
            stop.set()
        writer.finish()
    assert min(inserted) > 3 * 300


# Ends.


def test_the_last_reference_may_go_while_a_thread_is_inside() -> None:
    buffer = NativeBuffer(64, WIDE, seed=2, output="numpy")
    extend_wide(buffer, 0, 64)
    gone, ring = weakref.ref(buffer), weakref.ref(buffer._ring) if hasattr(buffer._ring, "__weakref__") else None
    with stalled_insert(buffer, wide_rows(64, 8), "x", at=2) as insert:
        del buffer
        gc.collect()
        assert gone() is not None
        insert.release()
    gc.collect()
    assert gone() is None
    assert ring is None or ring() is None


def test_buffers_are_dropped_while_threads_use_them(output: str) -> None:
    """The threads find the buffer in a box whose content is replaced all the time."""
    rows = {
        schema: certified(fields, np.arange(1, 3000 if schema == "16 B" else 40)) for schema, fields in SCHEMAS.items()
    }
    box: list[tuple[str, Any, Any]] = []

    def renew(turn: int) -> None:
        schema = list(SCHEMAS)[turn % 3]
        buffer = NativeBuffer(50, SCHEMAS[schema], seed=turn, output=output)
        buffer.extend(**rows[schema])
        face = buffer.spawn(1)[0]
        box[:] = [(schema, buffer, face)]

    renew(0)
    stop = threading.Event()

    def use(way: int) -> int:
        turns = 0
        while not stop.is_set():
            turns += 1
            if way == 0:
                ((schema, buffer, _),) = box  # the call has the last reference where the box changes meanwhile
                extend = buffer.extend
                del buffer, _
                extend(*rows[schema].values())
                del extend
            elif way == 1:
                box[0][2].sample(2000)
            else:
                with contextlib.suppress(IndexError), overwritten_without_gil():  # rows that are being overwritten
                    len(box[0][1][:20] if way == 2 else box[0][1].gather(np.arange(30)))
        return turns

    with switching(1e-4):
        threads = [Thread(use, way) for way in range(4)]
        end = time.monotonic() + min(STRESS_S, 30) / 6
        for turn in itertools.count():
            renew(turn)
            if time.monotonic() > end and turn > 50:
                break
        stop.set()
        turns = [thread.finish() for thread in threads]
    assert min(turns) > 0


EXITS = {
    "sample": "buffer.sample(4096)",
    "extend": "buffer.extend(x)",
    "read": "buffer.gather(slots)",
    "pickle": "pickle.dumps(buffer)",
    "add": "buffer.add(x[0])",
}


@pytest.mark.share(2)
@pytest.mark.parametrize("call", EXITS)
def test_the_interpreter_exits_while_daemons_are_inside(call: str) -> None:
    code = f"""
import pickle, threading, time
import numpy as np, fastreplay as fr
buffer = fr.ReplayBuffer(4096, {{"x": (376,)}}, output="numpy", seed=0)
x, slots = np.zeros((4096, 376), "f4"), np.arange(1000, 2000)
buffer.extend(x)
def loop():
    while True:
        {EXITS[call]}
for _ in range(2):
    threading.Thread(target=loop, daemon=True).start()
time.sleep(0.1)
"""
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")


def test_the_interpreter_exits_while_a_daemon_waits_at_the_gate() -> None:
    code = f"""
import ctypes, sys
sys.path[:0] = {sys.path!r}
from test_threads import *
context = stalled(room=0, timeout=None)
buffer, insert = context.__enter__()
thread = Thread(buffer.extend, **wide_rows(168, 1))
time.sleep(0.2)
assert thread.is_alive() and insert.thread.is_alive()
ctypes.pythonapi.Py_IncRef(ctypes.py_object(context))  # not to be ended when the modules are gone already
"""
    with stalled():  # skips where it cannot be had
        pass
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


# Copies of a buffer in use.


@pytest.mark.parametrize("clears", [False, True])
def test_copies_of_a_buffer_in_use(output: str, clears: bool) -> None:
    """One writer, so that a row tells its ticket: what is copied are whole, consecutive transitions."""
    fields = {**FIELDS, "padding": (200,)}
    buffer = NativeBuffer(3000, fields, seed=3, output=output)
    stop = threading.Event()
    padding = np.zeros((400, 200), np.float32)

    def rows(ticket: int, count: int) -> dict[str, Any]:
        padding[:] = (ticket + np.arange(400))[:, None]
        return {**transitions(ticket, count), "padding": padding[:count]}

    buffer.extend(**rows(0, 400))

    def insert() -> int:
        ticket = 400
        while not stop.is_set():
            count = 1 + ticket * 7 % 400
            if count % 3:
                buffer.extend(**rows(ticket, count))
            else:
                count = 1
                buffer.add(**{name: value[0] for name, value in rows(ticket, 1).items()})
            ticket += count
        return ticket

    def read() -> None:
        while not stop.is_set():
            with contextlib.suppress(*[ValueError] * clears):  # empty
                buffer.sample(100)

    def clear() -> None:
        while clears and not stop.wait(0.02):
            buffer.clear()

    seen = []
    with switching(5e-4):
        threads = [Thread(insert), Thread(read), Thread(clear)]
        try:
            end = time.monotonic() + min(STRESS_S, 30) / 8
            for turn in itertools.count():
                newest = buffer.stats()["inserted"]
                clone = copy.deepcopy(buffer) if turn % 2 else pickle.loads(pickle.dumps(buffer))
                batch = arrays(clone[:])
                tickets = batch["ticket"]
                assert np.array_equal(tickets, np.arange(len(tickets)) + (tickets[0] if len(tickets) else 0))
                if len(tickets):
                    assert (batch.pop("padding") == tickets.astype(np.float32)[:, None]).all()
                    assert_same(batch, {**transitions(int(tickets[0]), len(tickets)), "ticket": tickets})
                    assert clears or tickets[-1] >= newest - 1 - buffer.capacity // 8
                seen.append(len(tickets))
                if time.monotonic() > end and turn >= 6:
                    break
        finally:
            stop.set()
        inserted = threads[0].finish()
        for thread in threads:
            thread.finish()
    assert buffer.stats()["inserted"] == inserted
    assert max(seen) > 0


# Faces.


def test_faces_in_threads_draw_what_they_draw_one_after_another(output: str) -> None:
    def make() -> Any:
        return fill(NativeBuffer(1000, FIELDS, seed=11, output=output), 1700)

    def draw(face: Any) -> list[dict[str, Any]]:
        return [arrays(face.sample(size)) for size in (64, 1, 2000, 333) * 8]

    expected = [draw(face) for face in make().spawn(6)]
    with switching(1e-5):
        got = [thread.finish() for thread in [Thread(draw, face) for face in make().spawn(6)]]
    for mine, theirs in zip(got, expected, strict=True):
        for batch, want in zip(mine, theirs, strict=True):
            assert_same(batch, want)
    firsts = [batches[0]["ticket"].tolist() for batches in expected]
    assert all(a != b for a, b in itertools.combinations([*firsts, make().sample(64).ticket.tolist()], 2))


def test_a_face_draws_by_a_spawned_seed_sequence(output: str) -> None:
    """Reproduced with NumPy alone."""
    buffer = fill(NativeBuffer(100, FIELDS, seed=12, output=output), 137)
    key = np.random.SeedSequence(12).generate_state(2, np.uint64)
    assert buffer.rng_state["key"] == key.tolist()
    faces = [*buffer.spawn(2), *buffer.spawn(0), *buffer.spawn(3)]
    twins = np.random.SeedSequence(key.tolist()).spawn(5)
    for i, (face, twin) in enumerate(zip(faces, twins, strict=True)):
        own = np.random.SeedSequence(key.tolist(), spawn_key=(i,)).generate_state(2, np.uint64)
        assert own.tolist() == twin.generate_state(2, np.uint64).tolist() == list(key_of(twin))
        assert face.rng_state == {"key": own.tolist(), "calls": 0}
        for call in range(3):
            words = np.random.Philox(key=own, counter=[0, call, 0, 0]).random_raw(50)
            assert_holds(face.sample(50), [37 + (int(word) * 100 >> 64) for word in words])


def test_spawning_goes_on_and_leaves_the_parent_alone() -> None:
    first, second = (fill(NativeBuffer(100, FIELDS, seed=7), 100) for _ in range(2))
    first.sample(5)
    state, stats = first.rng_state, first.stats()
    keys = [face.rng_state["key"] for face in (*first.spawn(3), *first.spawn(np.int64(2)))]
    assert keys == [face.rng_state["key"] for face in second.spawn(5)]
    assert len({tuple(key) for key in [*keys, state["key"]]}) == 6
    assert (first.rng_state, first.stats()) == (state, stats)
    other = NativeBuffer(100, FIELDS, seed=8)
    assert not {tuple(face.rng_state["key"]) for face in other.spawn(5)} & {tuple(key) for key in keys}


def test_faces_of_faces_differ() -> None:
    buffer = fill(NativeBuffer(100, FIELDS, seed=7), 100)
    faces = buffer.spawn(3)
    faces += [grandchild for face in faces for grandchild in face.spawn(3)]
    assert len({tuple(face.rng_state["key"]) for face in [buffer, *faces]}) == 13


def test_spawning_in_threads_gives_no_generator_twice() -> None:
    buffer = NativeBuffer(10, FIELDS, seed=7)
    with switching(1e-6):
        threads = [Thread(lambda: [buffer.spawn(1)[0] for _ in range(50)]) for _ in range(6)]
        faces = [face for thread in threads for face in thread.finish()]
    keys = sorted(face.rng_state["key"] for face in faces)
    assert keys == sorted(face.rng_state["key"] for face in NativeBuffer(10, FIELDS, seed=7).spawn(300))


def test_what_a_face_inserts_is_seen_by_all(output: str) -> None:
    buffer = NativeBuffer(10, FIELDS, seed=7, output=output)
    faces = buffer.spawn(2)
    fill(faces[0], 4)
    fill(buffer, 3)
    fill(faces[1], 9, chunk=4)
    for each in (buffer, *faces):
        assert_holds(each[:], range(6, 16))
        assert next_ticket(each) == 16
    assert [each.stats()["sampled"] for each in (buffer, *faces)] == [0, 0, 0]
    faces[0].sample(7)
    faces[1].sample(8, out=buffer.sample(8))
    assert [each.stats()["sampled"] for each in (buffer, *faces)] == [8, 7, 8]
    faces[1].clear()
    assert [len(each) for each in (buffer, *faces)] == [0, 0, 0]
    del buffer
    gc.collect()
    fill(faces[0], 3)
    assert set(arrays(faces[1].sample(50))["ticket"].tolist()) == {16, 17, 18}


class Labelled(NativeBuffer):  # type: ignore[misc]
    """A subclass with a constructor and attributes of its own."""

    def __init__(self, label: str) -> None:
        super().__init__(50, FIELDS, seed=5, timeout=0.25)
        self.label = label
        self.notes: list[str] = []


def test_faces_of_a_subclass_keep_its_attributes() -> None:
    buffer = fill(Labelled("mine"), 60)
    faces = buffer.spawn(2)
    buffer.label = "changed"
    for face in faces:
        assert type(face) is Labelled
        assert face.label == "mine"
        assert face.notes is buffer.notes
        assert (face.capacity, face.schema, repr(face)) == (50, buffer.schema, repr(buffer))
    faces[0].label = "its own"
    assert (buffer.label, faces[1].label) == ("changed", "mine")


def test_a_pickled_face_is_a_buffer_of_its_own(output: str) -> None:
    buffer = fill(NativeBuffer(50, FIELDS, seed=5, output=output, timeout=0.5), 60)
    face = buffer.spawn(3)[1]
    face.sample(4)
    grandchild = face.spawn(1)[0]
    for clone in (pickle.loads(pickle.dumps(face)), copy.deepcopy(face)):
        assert clone.rng_state == face.rng_state != buffer.rng_state
        assert_same(clone[:], buffer[:])
        before = face.rng_state
        assert_same(clone.sample(30), face.sample(30))
        face.rng_state = before
        fill(clone, 5)
        assert next_ticket(buffer) == 60
        assert clone.spawn(1)[0].rng_state["key"] not in (grandchild.rng_state["key"], face.rng_state["key"])
    copies = pickle.loads(pickle.dumps(buffer)).spawn(1), buffer.spawn(1)
    assert copies[0][0].rng_state == copies[1][0].rng_state


def test_faces_wait_as_long_as_their_buffer() -> None:
    with stalled(room=0, timeout=0.1) as (buffer, _):
        for each in (buffer.spawn(1)[0], buffer.spawn(1)[0].spawn(1)[0]):
            with pytest.raises(TimeoutError, match=r"0\.1 s"):
                add_wide(each)


@pytest.mark.parametrize(
    ("n", "error", "message"),
    [
        (-1, ValueError, "n: expected a non-negative integer, got -1"),
        (1.5, TypeError, "n: expected an integer, got float 1.5"),
        ("2", TypeError, "n: expected an integer, got str '2'"),
        (True, TypeError, "n: expected an integer, got True"),
        (None, TypeError, "n: expected an integer, got NoneType None"),
    ],
)
def test_refused_numbers_of_faces(n: Any, error: type[Exception], message: str) -> None:
    buffer = NativeBuffer(10, FIELDS, seed=7)
    with pytest.raises(error, match=f"^{message}$"):
        buffer.spawn(n)
    assert buffer.spawn(1)[0].rng_state == NativeBuffer(10, FIELDS, seed=7).spawn(1)[0].rng_state
