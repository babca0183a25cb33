# SPDX-License-Identifier: MIT
"""fork: the child has the buffer as it was, less what other threads had not finished."""

from __future__ import annotations

import os
import pickle
import select
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from stall import Thread, stalled_insert
from support import FIELDS, NativeBuffer, arrays, assert_same, fill, transitions
from test_threads import WIDE, assert_whole, assert_wide, certified, extend_wide, wide_rows

import fastreplay as fr

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


def in_child(work: Callable[[], Any], timeout_s: float = 30) -> Any:
    """Fork, work in the child, and give what it returns; an exception there is a failure here."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            try:
                answer = pickle.dumps((work(), None))
            except BaseException:  # noqa: BLE001, reported to the parent
                answer = pickle.dumps((None, traceback.format_exc()))
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(answer)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    deadline = time.monotonic() + timeout_s
    answer = b""
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(deadline - time.monotonic(), 0))[0]:
            part = pipe.read(1 << 16)
            answer += part
            if not part:
                break
        else:
            os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, f"the child ended with {status}"
    result, error = pickle.loads(answer)
    assert error is None, f"in the child:\n{error}"
    return result


def ids_of(buffer: Any) -> list[int]:
    """Give the ids of all transitions by age; each is whole, and the tickets are consecutive."""
    batch = buffer[:]
    tickets, ids = assert_whole(WIDE, batch)
    assert (np.diff(tickets) == 1).all()
    found: list[int] = ids.tolist()
    return found


def sampled(buffer: Any) -> set[int]:
    _, ids = assert_whole(WIDE, buffer.sample(2000))
    return set(ids.tolist())


def live(buffer: Any, ids: list[int]) -> None:
    """Use a buffer that holds these ids, in a child, in every way."""
    start = buffer.stats()
    assert ids_of(buffer) == ids
    assert len(buffer) == len(ids)
    assert sampled(buffer) == set(ids)
    assert ids_of(pickle.loads(pickle.dumps(buffer))) == ids
    for face in buffer.spawn(2):
        assert ids_of(face) == ids
        assert sampled(face) == set(ids)
    new = 1_000_000
    for count in (1, 2, 7, 8, 9, 64, 200, 1, 3):  # several laps
        rows = certified(WIDE, np.arange(new, new + count))
        if count == 1:
            buffer.add(*(value[0] for value in rows.values()))
        else:
            buffer.extend(**rows)
        new += count
        ids = [*ids, *range(new - count, new)][-64:]
        found = ids_of(buffer)
        assert found == ids[-len(found) :]
        assert len(found) >= min(64, new - 1_000_000)
        assert sampled(buffer) == set(found)
        assert buffer.stats()["inserted"] == start["inserted"] + new - 1_000_000
    assert len(found) == 64
    assert sorted(buffer.gather(np.arange(64)).numpy()["id"].tolist()) == sorted(found)
    buffer.clear()
    assert len(buffer) == 0
    buffer.extend(**certified(WIDE, [5, 6]))
    assert ids_of(buffer) == [5, 6]


def live_anew(buffer: Any) -> None:
    """Use a buffer that holds nothing, in a child."""
    assert len(buffer) == 0
    with pytest.raises(ValueError, match="empty"):
        buffer.sample(1)
    extend_wide(buffer, 0, 3)
    live(buffer, [0, 1, 2])


@pytest.mark.share(2)
@pytest.mark.parametrize("later", [0, 20, 56])
@pytest.mark.parametrize("before", [0, 40, 64, 160])
@pytest.mark.parametrize("rows", [8, 24])
def test_the_child_has_what_was_finished(before: int, later: int, rows: int) -> None:
    """A writer is stalled in its first chunk of 8 rows, or its third, and others went on."""
    finished = rows - 8
    buffer = NativeBuffer(64, WIDE, seed=3, output="numpy", timeout=5)
    extend_wide(buffer, 0, before)
    with stalled_insert(buffer, wide_rows(before, rows), "x", at=finished + 2) as insert:
        extend_wide(buffer, before + rows, later)
        end = before + rows + later
        unfinished = set(range(before + finished, before + rows))
        ids = [ticket for ticket in range(max(end - 64, 0), end) if ticket not in unfinished]
        if ids:
            assert sampled(buffer) == set(ids)
            in_child(lambda: live(buffer, ids))
        else:
            in_child(lambda: live_anew(buffer))
        # The parent is as it was.
        assert insert.thread.is_alive()
        assert buffer.stats()["inserted"] == end
        assert_wide(buffer[:], range(max(end - 64, 0), max(before + finished, end - 64)))
        insert.release()
        assert_wide(buffer[:], range(max(end - 64, 0), end))
        extend_wide(buffer, end, 100)
        assert_wide(buffer[:], range(end + 36, end + 100))


def test_two_unfinished_inserts_with_finished_ones_between() -> None:
    buffer = NativeBuffer(64, WIDE, seed=3, output="numpy", timeout=5)
    extend_wide(buffer, 0, 60)
    with stalled_insert(buffer, wide_rows(60, 8), "x", at=7):
        extend_wide(buffer, 68, 5)
        with stalled_insert(buffer, wide_rows(73, 16), "x", at=8):
            extend_wide(buffer, 89, 11)
            ids = [*range(36, 60), *range(68, 81), *range(89, 100)]
            in_child(lambda: live(buffer, ids))
            face = buffer.spawn(1)[0]
            in_child(lambda: live(face, ids))


def test_transitions_that_move_keep_their_priorities() -> None:
    """In the child what came after an unfinished insert closes up, and weighs what it weighed."""
    buffer = NativeBuffer(64, WIDE, seed=3, output="numpy", timeout=5, priorities=fr.Priorities(alpha=1, eps=0))
    extend_wide(buffer, 0, 60)
    with stalled_insert(buffer, wide_rows(60, 8), "x", at=3):
        extend_wide(buffer, 68, 5)
        buffer.update_priorities(np.arange(73), np.r_[np.zeros(60), np.ones(8), 4, 0, 2, 0, 1])

        def child() -> dict[int, float]:
            drawn = buffer.sample(400)
            return dict(zip(drawn.id.tolist(), drawn.probability.tolist(), strict=True))

        found = in_child(child)
    assert set(found) == {68, 70, 72}
    assert found == pytest.approx({68: 4 / 7, 70: 2 / 7, 72: 1 / 7})


def test_children_of_children() -> None:
    buffer = NativeBuffer(64, WIDE, seed=3, output="numpy", timeout=5)
    extend_wide(buffer, 0, 100)

    def child() -> None:
        with stalled_insert(buffer, certified(WIDE, np.arange(500, 508)), "x"):
            in_child(lambda: live(buffer, [*range(44, 100), *range(108, 116)][8:]))

    with stalled_insert(buffer, wide_rows(100, 8), "x", at=3):
        extend_wide(buffer, 108, 8)
        in_child(child)
        assert set(range(52, 116)) - sampled(buffer) == set(range(100, 108))


def test_the_statistics_of_a_child_add_up() -> None:
    """Transitions inserted are stored, or were overwritten or dropped."""
    buffer = NativeBuffer(64, WIDE, seed=3, output="numpy")
    extend_wide(buffer, 0, 160)
    with stalled_insert(buffer, wide_rows(160, 8), "x"):
        extend_wide(buffer, 168, 8)
        before = buffer.stats()
        child = in_child(buffer.stats)
        assert buffer.stats() == before
    assert before["overwritten"] == 112
    assert child["inserted"] == 168
    assert child["overwritten"] == 112


@pytest.mark.parametrize("later", [0, 8])
def test_a_child_of_a_cleared_buffer(later: int) -> None:
    """What was cleared stays so; what comes after it is seen."""
    buffer = NativeBuffer(64, WIDE, seed=3, output="numpy", timeout=5)
    extend_wide(buffer, 0, 100)

    def child() -> tuple[int, list[int], list[int]]:
        length = len(buffer)
        ids = ids_of(buffer)
        buffer.extend(**certified(WIDE, [1, 2, 3]))
        return length, ids, sorted(sampled(buffer))

    with stalled_insert(buffer, wide_rows(100, 8), "x", at=3):
        extend_wide(buffer, 108, 16)
        buffer.clear()
        extend_wide(buffer, 124, later)
        kept = list(range(124, 124 + later))
        assert in_child(child) == (later, kept, sorted([1, 2, 3, *kept]))


def test_a_child_of_a_gated_writer() -> None:
    """A thread that waits for a slot has taken none: nothing of its row is in the child."""
    buffer = NativeBuffer(64, WIDE, seed=3, output="numpy", timeout=None)
    extend_wide(buffer, 0, 64)
    with stalled_insert(buffer, wide_rows(64, 8), "x") as insert:
        extend_wide(buffer, 72, 56)
        waiting = Thread(buffer.extend, **wide_rows(128, 1))
        time.sleep(0.1)
        assert waiting.is_alive()
        in_child(lambda: live(buffer, list(range(72, 128))))
        insert.release()
        waiting.finish()
    assert_wide(buffer[:], range(65, 129))


def test_a_child_with_nothing_unfinished_is_the_same(output: str) -> None:
    buffer = fill(NativeBuffer(100, FIELDS, seed=4, output=output), 250)
    faces = buffer.spawn(2)
    buffer.sample(3)
    everything = [buffer, *faces]

    def use() -> list[Any]:
        seen: list[Any] = []
        for each in everything:
            seen += [
                each.rng_state,
                each.stats(),
                arrays(each[:]),
                arrays(each.sample(64)),
                arrays(each.gather([3, 1])),
            ]
        first = buffer.stats()["inserted"]
        buffer.extend(**transitions(first, 30))
        return [*seen, arrays(buffer[:]), arrays(buffer.sample(20)), buffer.stats(), len(faces[1])]

    for got, expected in zip(in_child(use), use(), strict=True):
        if isinstance(expected, dict) and "ticket" in expected:
            assert_same(got, expected)
        else:
            assert got == expected


def test_a_child_writes_to_memory_of_its_own() -> None:
    buffer = NativeBuffer(64, WIDE, seed=3, output="numpy")
    extend_wide(buffer, 0, 70)
    batch = buffer.sample(32)
    seen = arrays(batch)

    def child() -> None:
        for _ in range(20):
            buffer.sample(32)
        assert_same(batch, seen)
        buffer.view("x")[:] = 0
        buffer.clear()

    in_child(child)
    assert_same(batch, seen)
    assert_wide(buffer[:], range(6, 70))


def test_forks_while_writers_and_samplers_run() -> None:
    """Each at some moment of their work: rows are whole, and a writer's are in order."""
    buffer = NativeBuffer(64, WIDE, seed=3, output="numpy")
    extend_wide(buffer, 0, 64)
    stop = False

    def insert(writer: int) -> None:
        sequence = writer << 40
        while not stop:
            buffer.extend(**certified(WIDE, np.arange(sequence, sequence + 24)))
            sequence += 24

    def sample() -> None:
        while not stop:
            assert_whole(WIDE, buffer.sample(64))

    def child() -> int:
        size = len(buffer)
        ids = np.array(ids_of(buffer))
        assert len(ids) == size
        for writer in (1, 2):
            assert (np.diff(ids[ids >> 40 == writer]) == 1).all() or size < 64
            assert (np.diff(ids[ids >> 40 == writer]) > 0).all()
        if size:
            assert sampled(buffer) == set(ids.tolist())
        buffer.extend(**certified(WIDE, np.arange(200)))
        assert ids_of(buffer) == list(range(136, 200))
        return size

    interval = sys.getswitchinterval()
    sys.setswitchinterval(2e-4)
    threads = [Thread(insert, 1), Thread(insert, 2), Thread(sample)]
    try:
        for _ in range(12):
            in_child(child)
    finally:
        stop = True
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.finish()
    assert len(buffer) == 64
