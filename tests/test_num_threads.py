# SPDX-License-Identifier: MIT
"""How many threads share out a large minibatch, and that its rows are the same whoever copies them."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import fastreplay as fr
from fastreplay import _core
from fastreplay.support import threads

if TYPE_CHECKING:
    from collections.abc import Iterator

_FIELDS = {"image": fr.Field((3, 64, 64), "uint8"), "reward": fr.Field(())}
_CAPACITY = 300


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the number be as it was, and begin as if none was set."""
    before = _core.num_threads()
    monkeypatch.setattr(threads, "_was_set", False)
    yield
    _core.set_num_threads(before)


@pytest.fixture
def torchs_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def filled(**options: Any) -> Any:
    buffer: Any = fr.ReplayBuffer(_CAPACITY, _FIELDS, seed=3, **options)
    numbers = np.arange(_CAPACITY)
    images = (numbers[:, None, None, None] * 7 + np.arange(3 * 64 * 64).reshape(3, 64, 64)).astype(np.uint8)
    buffer.extend(image=images, reward=numbers)
    return buffer


def is_whole(batch: Any) -> bool:
    numbers = np.asarray(batch.reward).astype(np.int64)
    images = (numbers[:, None, None, None] * 7 + np.arange(3 * 64 * 64).reshape(3, 64, 64)).astype(np.uint8)
    return np.array_equal(np.asarray(batch.image), images)


@pytest.mark.parametrize("batch_size", [1, 50, 257, 1000])
def test_the_rows_are_the_same_whoever_copies_them(batch_size: int) -> None:
    found = {}
    for count in (1, 3):
        fr.set_num_threads(count)
        buffer = filled()
        found[count] = [buffer.sample(batch_size) for _ in range(3)]
        assert all(map(is_whole, found[count]))
    for one, other in zip(found[1], found[3], strict=True):
        assert torch.equal(one.ticket, other.ticket)


@pytest.mark.parametrize("draw", [fr.Epochs(), fr.Uniform(newest_of=100), fr.Uniform(newest=20)])
def test_of_every_draw(draw: Any) -> None:
    fr.set_num_threads(4)
    buffer = filled()
    sampler = buffer.sampler(draw=draw, seed=1)
    assert all(is_whole(sampler.sample(200)) for _ in range(3))
    with sampler.loader(200, steps=3) as loader:
        assert all(map(is_whole, loader))


def test_by_priority() -> None:
    fr.set_num_threads(4)
    buffer: Any = fr.ReplayBuffer(_CAPACITY, _FIELDS, seed=3, priorities=fr.Priorities())
    buffer.extend(image=np.zeros((_CAPACITY, 3, 64, 64), np.uint8), reward=np.arange(_CAPACITY))
    batch = buffer.sample(1000)
    assert np.array_equal(batch.reward.numpy().astype(int), batch.ticket.numpy())
    assert torch.all(batch.weight == 1)


def test_rows_are_whole_beside_writers() -> None:
    fr.set_num_threads(3)
    buffer = filled(output="numpy")
    images = np.zeros((60, 3, 64, 64), np.uint8)
    is_over = threading.Event()

    def write() -> None:
        for number in range(10**9):
            if is_over.is_set():
                return
            numbers = np.full(60, number % 200)
            images[:] = (number % 200 * 7 + np.arange(3 * 64 * 64).reshape(3, 64, 64)).astype(np.uint8)
            buffer.extend(image=images, reward=numbers)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert all(is_whole(buffer.sample(256)) for _ in range(60))
    finally:
        is_over.set()
        writer.join()


def test_as_many_as_torch_has_and_at_most_eight(torchs_threads: None) -> None:
    for count, expected in ((3, 3), (1, 1), (40, 8)):
        torch.set_num_threads(count)
        filled()
        assert _core.num_threads() == fr.get_num_threads() == expected


def test_as_many_as_cores_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert fr.get_num_threads() == min(8, len(os.sched_getaffinity(0)))


def test_what_was_set_stays(torchs_threads: None) -> None:
    fr.set_num_threads(5)
    torch.set_num_threads(2)
    filled()
    assert fr.get_num_threads() == 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_shares_out_too() -> None:
    fr.set_num_threads(3)
    buffer = filled(output="numpy")
    assert is_whole(buffer.sample(500))
    child = os.fork()
    if child == 0:
        os._exit(0 if is_whole(buffer.sample(500)) else 1)
    assert os.waitpid(child, 0)[1] == 0
