# SPDX-License-Identifier: MIT
"""Reading without drawing: b[i] oldest first, gather by ring slot, live views of a column."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from support import FIELDS, MakeBuffer, NativeBuffer, arrays, assert_holds, assert_same, fill, unchanged

import fastreplay as fr

if TYPE_CHECKING:
    from collections.abc import Callable

SLICES = [
    slice(None),
    slice(0, 0),
    slice(5, 2),
    slice(3, 4),
    slice(2, 9),
    slice(-4, None),
    slice(None, -8),
    slice(None, None, 3),
    slice(None, None, -1),
    slice(8, 1, -3),
    slice(-100, 100),
    slice(100, 200),
    slice(np.int64(1), np.int64(5), np.int64(2)),
]


@pytest.fixture(params=[4, 10, 13, 57], ids="{} inserted".format)
def buffer(request: pytest.FixtureRequest, make_buffer: MakeBuffer) -> Any:
    return fill(make_buffer(10), request.param)


def window(buffer: Any) -> range:
    """The stored tickets, oldest first."""
    head = buffer.stats()["inserted"]
    return range(head - len(buffer), head)


def test_an_integer_gives_one_transition(buffer: Any) -> None:
    for i in range(-len(buffer), len(buffer)):
        assert_holds(buffer[i], window(buffer)[i])
        assert_holds(buffer[np.int32(i)], window(buffer)[i])
    one = buffer[0]
    assert one["observation"].shape == (3,)
    assert one["reward"].shape == one.ticket.shape == ()
    with pytest.raises(TypeError):
        len(one)


@pytest.mark.parametrize("index", SLICES, ids=str)
def test_slices(buffer: Any, index: slice) -> None:
    batch = buffer[index]
    assert_holds(batch, list(window(buffer)[index]))
    assert len(batch) == len(window(buffer)[index])


def misaligned(indices: list[int]) -> Any:
    array = np.zeros(8 * len(indices) + 1, np.uint8)[1:].view(np.int64)
    array[:] = indices
    return array


@pytest.mark.parametrize(
    "convert",
    [
        list,
        tuple,
        np.array,
        torch.tensor,
        lambda i: np.array(i, dtype=np.int8),
        lambda i: np.repeat(i, 2)[::2],
        lambda i: np.array(i[::-1], dtype=np.int32)[::-1],
        lambda i: np.array(i, dtype=">i8"),
        lambda i: np.array(i, dtype=object),
        lambda i: np.frombuffer(np.array(i).tobytes(), np.int64),
        misaligned,
    ],
    ids=[
        "list",
        "tuple",
        "array",
        "tensor",
        "int8",
        "strided",
        "reversed",
        "swapped",
        "objects",
        "read-only",
        "misaligned",
    ],
)
def test_index_arrays(buffer: Any, convert: Callable[[list[int]], Any]) -> None:
    for index in ([0], [3, 0, 0, -1, 2, -4], [1] * 40):
        if isinstance(converted := convert(index), tuple):
            converted = list(converted)
        assert_holds(buffer[converted], [window(buffer)[i] for i in index])
    slots = [t % 10 for t in window(buffer)][::-1]
    assert_holds(buffer.gather(convert(slots)), list(window(buffer))[::-1])
    out = buffer.sample(len(slots))
    assert buffer.gather(convert(slots), out=out) is out
    assert_holds(out, list(window(buffer))[::-1])
    unsigned = np.array(slots, dtype=np.uint64)
    assert_holds(buffer.gather(unsigned), list(window(buffer))[::-1])


@pytest.mark.parametrize("empty", [[], np.array([], dtype=int), range(0)])
def test_no_indices_give_no_rows(buffer: Any, empty: Any) -> None:
    for batch in (buffer[empty], buffer.gather(empty), buffer[0:0]):
        assert len(batch) == 0
        assert_holds(batch, [])


def test_an_empty_buffer_is_an_empty_sequence(make_buffer: MakeBuffer) -> None:
    buffer = make_buffer(10)
    assert_holds(buffer[:], [])
    assert_holds(buffer[::-1], [])
    assert_holds(buffer[[]], [])
    for index in (0, -1, [0]):
        with pytest.raises(IndexError):
            buffer[index]


def test_out_of_range(buffer: Any) -> None:
    beyond = [2**31, 2**63 - 1, -(2**63), 2**64, 2**200, -(2**200)]
    for index in (len(buffer), -len(buffer) - 1, *beyond):
        with pytest.raises(IndexError):
            buffer[index]
    wrapping = np.array([0, 2**64 - 1], dtype=np.uint64)  # -1, if it were cast without a look
    lists = [wrapping, *([0, index] for index in beyond[:3])]
    for indices in ([0, len(buffer)], [-len(buffer) - 1, 0], *lists):
        with pytest.raises(IndexError):
            buffer[indices]
    for slots in ([10], [0, -1], *lists):
        with pytest.raises(IndexError):
            buffer.gather(slots)
    with unchanged(buffer), pytest.raises(IndexError):
        buffer.gather([0, 10])


def test_slots_without_a_transition(make_buffer: MakeBuffer) -> None:
    buffer = fill(make_buffer(10), 4)
    with unchanged(buffer), pytest.raises(IndexError, match="7"):
        buffer.gather([0, 7])
    buffer = fill(make_buffer(10), 23)
    buffer.clear()
    fill(buffer, 2)  # tickets 23 and 24, slots 3 and 4
    assert_holds(buffer.gather([4, 3]), [24, 23])
    with unchanged(buffer), pytest.raises(IndexError, match="2"):
        buffer.gather([3, 2])


@pytest.mark.parametrize(
    "index", [1.0, np.float32(1), "reward", None, ..., [1.0], ["0"], (0, 1.5), {}, np.array([1.0])]
)
def test_indices_that_are_no_integers(buffer: Any, index: Any) -> None:
    with unchanged(buffer), pytest.raises(TypeError):
        buffer[index]
    with unchanged(buffer), pytest.raises(TypeError):
        buffer.gather(index)


def test_masks_are_refused(buffer: Any) -> None:
    """A mask of the ring could be read as slots 0 and 1: use np.flatnonzero."""
    for mask in (np.ones(len(buffer), bool), [True] * len(buffer), torch.ones(len(buffer)).bool()):
        with unchanged(buffer), pytest.raises(TypeError):
            buffer[mask]
        with unchanged(buffer), pytest.raises(TypeError):
            buffer.gather(mask)


def test_more_than_one_axis_is_refused(buffer: Any) -> None:
    for index in (np.zeros((2, 2), int), [[0, 1], [1, 0]]):
        with unchanged(buffer), pytest.raises(ValueError, match=r"\(2, 2\)"):
            buffer[index]
        with unchanged(buffer), pytest.raises(ValueError, match=r"\(2, 2\)"):
            buffer.gather(index)


def test_reading_neither_draws_nor_counts(buffer: Any) -> None:
    before = buffer.rng_state, buffer.stats()
    assert_same(buffer[:], buffer.gather([t % 10 for t in window(buffer)]))
    assert (buffer.rng_state, buffer.stats()) == before


def test_a_view_is_a_column_of_the_ring(buffer: Any) -> None:
    for name, spec in fr.Schema(FIELDS).items():
        column = buffer.view(name)
        assert isinstance(column, np.ndarray)
        assert column.shape == (10, *spec.shape)
        assert column.dtype == spec.dtype
        assert column.flags.writeable
        assert column.flags.aligned
        by_slot = [t % 10 for t in window(buffer)]
        np.testing.assert_array_equal(column[by_slot], arrays(buffer[:])[name])


def test_a_view_is_live(buffer: Any) -> None:
    columns = {name: buffer.view(name) for name in FIELDS}
    ticket = window(buffer)[-1] + 1
    fill(buffer, 1)
    assert columns["reward"][ticket % 10] == 2 * ticket
    columns["reward"][ticket % 10] = -1
    columns["pixels"][ticket % 10, 1] = 7
    newest = arrays(buffer[-1])
    assert newest["reward"] == -1
    assert newest["pixels"][1].tolist() == [7, 7, 7]
    for other in FIELDS:  # and nothing beside it was written
        if other not in ("reward", "pixels"):
            np.testing.assert_array_equal(newest[other], columns[other][ticket % 10])
    assert buffer.view("reward")[ticket % 10] == -1


def test_a_view_keeps_the_ring_alive(output: str) -> None:
    buffer = fill(NativeBuffer(1000, FIELDS, output=output), 1000)
    column = buffer.view("observation")
    expected = column.copy()
    row = column[3]
    del buffer, column
    others = [fill(NativeBuffer(1000, FIELDS), 7) for _ in range(5)]
    assert row.tolist() == expected[3].tolist()
    row[:] = 5
    assert len(others[0]) == 7


def test_native_views_are_strided_over_records() -> None:
    buffer = NativeBuffer(50, FIELDS)
    columns = [buffer.view(name) for name in FIELDS]
    assert {column.strides[0] for column in columns} == {buffer.schema.record_bytes}
    starts = [column.ctypes.data for column in columns]
    assert max(starts) - min(starts) < buffer.schema.record_bytes
    assert not any(np.shares_memory(a, b) for i, a in enumerate(columns) for b in columns[i + 1 :])
