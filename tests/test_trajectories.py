# SPDX-License-Identifier: MIT
"""Draws over trajectories: each that is there as likely as every other, then each of its transitions."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import numpy as np
import pytest
from scipy import stats
from support import NativeBuffer

import fastreplay as fr

OVER = fr.Uniform(over="trajectories")
FIELDS: dict[str, Any] = {"number": ((), "int64"), "done": ((), "bool")}


def filled(
    lengths: list[int], capacity: int = 1000, lanes: int = 1, **options: Any
) -> tuple[Any, np.ndarray[Any, Any]]:
    """Give a buffer of trajectories a lane, in turn, and to which of them each of its transitions belongs."""
    buffer = NativeBuffer(capacity, FIELDS, lanes=lanes, ends=["done"], output="numpy", seed=3, **options)
    steps: list[list[tuple[int, bool]]] = [[] for _ in range(lanes)]
    for i, length in enumerate(lengths):
        steps[i % lanes] += [(i, k == length - 1) for k in range(length)]
    belongs = []
    while any(steps):
        for lane in range(lanes):
            if steps[lane]:
                number, is_end = steps[lane].pop(0)
                buffer.add(number, is_end, lane=lane)
                belongs.append(number)
    return buffer, np.array(belongs[-capacity:])


def expected(belongs: Any) -> Any:
    """Give the probability of each transition."""
    numbers, counts = np.unique(belongs, return_counts=True)
    of = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    return np.array([1 / len(numbers) / of[number] for number in belongs.tolist()])


def assert_drawn(buffer: Any, belongs: Any, sampler: Any, count: int = 60_000, **options: Any) -> None:
    first = int(buffer[0].ticket)
    drawn = np.concatenate([sampler.sample(1000, **options).ticket for _ in range(count // 1000)]) - first
    probability = expected(belongs)
    found = np.bincount(drawn, minlength=len(belongs))
    assert stats.chisquare(found, probability * count).pvalue > 1e-4


@pytest.mark.parametrize(
    ("lengths", "capacity", "lanes"),
    [
        ([1, 30, 2, 100, 5], 1000, 1),
        ([1] * 50, 1000, 2),
        ([200], 1000, 1),
        ([40, 7, 90, 3, 25, 60, 1, 1], 100, 3),  # the first have left the buffer, or parts of them
    ],
)
def test_each_trajectory_is_as_likely(lengths: list[int], capacity: int, lanes: int) -> None:
    buffer, belongs = filled(lengths, capacity, lanes)
    assert_drawn(buffer, belongs, buffer.sampler(draw=OVER, seed=1))
    with buffer.sampler(draw=OVER, seed=1).loader(100, steps=20) as loader:
        ahead = np.concatenate([batch.ticket for batch in loader])
    again = buffer.sampler(draw=OVER, seed=1)
    np.testing.assert_array_equal(ahead, np.concatenate([again.sample(100).ticket for _ in range(20)]))


def test_rows_know_nothing_of_each_other() -> None:
    """Which step a row takes says nothing of where any other row of the minibatch falls."""
    buffer, _ = filled([2] * 500)
    drawn = buffer.sampler(draw=OVER, seed=1).sample(16_384).ticket
    step, place = drawn % 2 - 0.5, drawn - drawn.mean()
    spectrum = np.fft.fft(step)  # all distances between rows at once, then rows at multiples of each other
    apart = np.fft.ifft(spectrum * np.fft.fft(place).conj()).real
    assert np.abs(apart).max() < 5.5 * step.std() * place.std() * np.sqrt(len(drawn))
    for factor in (2, 3, 4, 5, 8):
        for first in range(factor):
            others = place[first::factor]
            both = step[: len(others)] * others
            assert abs(both.sum()) < 5 * 0.5 * place.std() * np.sqrt(len(both)), (factor, first)


def test_cuts_end_and_clears_forget() -> None:
    buffer, _ = filled([50])
    buffer.clear()
    with pytest.raises(ValueError, match="empty"):
        buffer.sampler(draw=OVER).sample(3)
    for number, count in ((1, 20), (2, 3)):
        for _ in range(count):
            buffer.add(number, False)
        buffer.cut()
    assert_drawn(buffer, np.repeat([1, 2], [20, 3]), buffer.sampler(draw=OVER, seed=1))
    loaded = pickle.loads(pickle.dumps(buffer))
    assert_drawn(loaded, np.repeat([1, 2], [20, 3]), loaded.sampler(draw=OVER, seed=1))


def test_only_complete_rows_are_drawn_where_it_is_asked_for() -> None:
    """A row that is not is drawn again from all trajectories, not from its own alone."""
    buffer, belongs = filled([4, 30])
    buffer.add(7, False)
    buffer.add(7, False)
    sampler = buffer.sampler(draw=OVER, follow=fr.NStep(2, 1.0, reward=(), incomplete="redraw"), seed=1)
    belongs = np.append(belongs, [7, 7])
    probability = expected(belongs)
    probability[-1] = 0  # the newest: what comes after it is yet to come
    drawn = np.concatenate([sampler.sample(1000).ticket for _ in range(60)])
    found = np.bincount(drawn, minlength=len(belongs))
    assert found[-1] == 0
    assert stats.chisquare(found[:-1], probability[:-1] / probability.sum() * 60_000).pvalue > 1e-4


def test_one_row_of_many_is_found() -> None:
    """After many looks all are counted once."""
    buffer = NativeBuffer(3_000, FIELDS, lanes=1, ends=["done"], output="numpy", seed=3)
    buffer.extend(np.arange(3_000), np.zeros(3_000, bool))
    sampler = buffer.sampler(draw=OVER, follow=fr.Sequence(2_999, incomplete="redraw"), seed=1)
    assert set(sampler.sample(3).ticket.tolist()) <= {0, 1}
    alone = buffer.sampler(draw=OVER, follow=fr.Sequence(3_000, incomplete="redraw"), seed=1)
    assert alone.sample(1).ticket.tolist() == [0]


def test_beside_writers_rows_are_whole() -> None:
    fields = {"number": ((), "int64"), "same": ((4,), "int64"), "done": ((), "bool")}
    buffer = NativeBuffer(64, fields, lanes=2, ends=["done"], output="numpy", seed=3, timeout=30)
    stop = threading.Event()

    def write(lane: int) -> None:
        number = 0
        while not stop.is_set():
            buffer.add(number, np.full(4, number), number % (5 + 20 * lane) == 4, lane=lane)
            number += 1

    writers = [threading.Thread(target=write, args=(lane,)) for lane in range(2)]
    for writer in writers:
        writer.start()
    try:
        while len(buffer) < 64:
            pass
        sampler = buffer.sampler(draw=OVER, seed=1)
        for _ in range(60):
            batch = sampler.sample(32)
            assert (batch.same == batch.number[:, None]).all()
            buffer.clear()
            while len(buffer) < 2:
                pass
    finally:
        stop.set()
        for writer in writers:
            writer.join()
