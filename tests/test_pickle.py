# SPDX-License-Identifier: MIT
"""pickle and deepcopy: contents, tickets, generator, and the same behaviour ever after."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from support import FIELDS, MakeBuffer, NativeBuffer, arrays, assert_holds, assert_same, fill, transitions

if TYPE_CHECKING:
    from collections.abc import Callable

COPIES: list[Callable[[Any], Any]] = [
    copy.deepcopy,
    *(
        partial(lambda protocol, b: pickle.loads(pickle.dumps(b, protocol)), protocol)
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)
    ),
]


@pytest.fixture(params=COPIES, ids=["deepcopy", "p2", "p3", "p4", "p5"])
def clone(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    function: Callable[[Any], Any] = request.param
    return function


def live(buffer: Any, ticket: int) -> list[dict[str, Any]]:
    """Use a buffer in every way; `ticket` is its next one."""
    seen = [arrays(buffer[:])]
    for count in (1, 4, 13):
        buffer.extend(**transitions(ticket, count))
        buffer.add(*(rows[0] for rows in transitions(ticket + count, 1).values()))
        ticket += count + 1
        seen += [arrays(buffer.sample(9)), arrays(buffer[:]), arrays(buffer.gather([(ticket - 1) % 10]))]
    assert_holds(buffer[-1], ticket - 1)
    buffer.clear()
    buffer.extend(**transitions(ticket, 3))
    return [*seen, arrays(buffer.sample(20)), arrays(buffer[:])]


@pytest.mark.parametrize("count", [0, 1, 7, 10, 23, 1000])
@pytest.mark.parametrize("cleared", [False, True])
def test_the_copy_goes_on_as_the_original(
    make_buffer: MakeBuffer, clone: Callable[[Any], Any], count: int, cleared: bool
) -> None:
    buffer = fill(make_buffer(10, seed=3), count)
    if count:
        buffer.sample(5)
    if cleared:
        buffer.clear()
    other = clone(buffer)
    assert type(other) is type(buffer)
    assert (len(other), other.capacity) == (len(buffer), buffer.capacity)
    assert other.rng_state == buffer.rng_state
    assert_same(other[:], buffer[:])
    before = buffer.stats(), other.stats()
    for got, expected in zip(live(other, count), live(buffer, count), strict=True):
        assert_same(got, expected)
    assert other.rng_state == buffer.rng_state
    went_on = [
        {key: after[key] - start[key] for key in start}
        for start, after in zip(before, (buffer.stats(), other.stats()), strict=True)
    ]
    assert went_on[0] == went_on[1]


def test_the_copy_is_independent(make_buffer: MakeBuffer, clone: Callable[[Any], Any]) -> None:
    buffer = fill(make_buffer(10), 13)
    other = clone(buffer)
    contents, state = arrays(buffer[:]), buffer.rng_state
    for name in FIELDS:
        other.view(name)[:] = 1
    live(other, 13)
    assert_same(buffer[:], contents)
    assert buffer.rng_state == state


def test_native_members_survive(output: str, clone: Callable[[Any], Any]) -> None:
    buffer = fill(NativeBuffer(10, FIELDS, seed=3, output=output), 13)
    other = clone(buffer)
    assert other.schema == buffer.schema
    assert other.nbytes == buffer.nbytes
    assert repr(other) == repr(buffer)
    kind = torch.Tensor if output == "torch" else np.ndarray
    assert all(isinstance(value, kind) for value in other.sample(3))
    with pytest.raises(ValueError, match=r"reward: expected shape \(\), got \(1,\)"):
        other.add(**{**{n: rows[0] for n, rows in transitions(13, 1).items()}, "reward": [1.0]})


def test_every_bit_survives(clone: Callable[[Any], Any]) -> None:
    bits = np.array([0x7FA00001, 0xFFC12345, 0x80000000, 1], dtype="u4")
    fields = {"x": (4,), "wide": ((2,), "longdouble"), "z": ((), "complex64"), "h": ((3,), "float16")}
    buffer = NativeBuffer(3, fields, seed=0, output="numpy")
    third = np.longdouble(1) / 3
    for i in range(5):
        buffer.add(bits.view("f4"), [third, -np.inf], complex(np.nan, -0.0), [i, -0.0, np.inf])
    assert_same(clone(buffer)[:], buffer[:])


def test_a_large_buffer(clone: Callable[[Any], Any]) -> None:
    buffer = NativeBuffer(20_000, {"x": (32,), "i": ((), "int64")}, seed=0)
    rng = np.random.default_rng(0)
    for start in range(0, 30_000, 10_000):
        buffer.extend(rng.random((10_000, 32), np.float32), np.arange(start, start + 10_000))
    other = clone(buffer)
    assert_same(other[:], buffer[:])
    assert_same(other.sample(64), buffer.sample(64))


def test_generators_are_not_shared(make_buffer: MakeBuffer) -> None:
    """A deep copy draws the same; both go on by themselves."""
    buffer = fill(make_buffer(10), 10)
    other = copy.deepcopy(buffer)
    first, second = buffer.sample(30), buffer.sample(30)
    assert_same(other.sample(30), first)
    assert_same(other.sample(30), second)


@pytest.mark.parametrize("timeout", [None, 0, 0.25, 3])
def test_the_timeout_survives(output: str, clone: Callable[[Any], Any], timeout: float | None) -> None:
    buffer = NativeBuffer(10, FIELDS, seed=3, output=output, timeout=timeout)
    other = clone(clone(buffer))
    assert other._timeout == buffer._timeout == (float("inf") if timeout is None else timeout)
    assert other.spawn(1)[0]._timeout == buffer._timeout


def test_a_copy_spawns_on_where_the_original_would(clone: Callable[[Any], Any]) -> None:
    buffer = NativeBuffer(10, FIELDS, seed=3)
    buffer.spawn(2)
    keys = [face.rng_state["key"] for face in clone(buffer).spawn(2)]
    assert keys == [face.rng_state["key"] for face in buffer.spawn(2)]
