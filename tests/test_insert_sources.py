# SPDX-License-Identifier: MIT
"""Where inserted values may come from: the buffer itself, minibatches, mappings, and what changes meanwhile."""

from __future__ import annotations

import gc
import threading
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from reference import ReferenceBuffer
from stall import Thread, stalled_insert
from support import (
    FIELDS,
    MakeBuffer,
    MeddlingKey,
    NativeBuffer,
    arrays,
    assert_holds,
    assert_same,
    fill,
    transitions,
    unchanged,
)
from test_threads import WIDE, extend_wide, wide_rows

if TYPE_CHECKING:
    from collections.abc import Callable


def numbered(make: Any, fields: dict[str, Any], count: int, capacity: int = 100) -> Any:
    """Fill a buffer of float32 fields with numbers that are all different."""
    buffer = make(capacity, fields)
    step = 0
    for _ in range(count):
        row = {}
        for name, shape in fields.items():
            row[name] = np.arange(step, step + int(np.prod(shape)), dtype=np.float32).reshape(shape)
            step += row[name].size
        buffer.add(**row)
    return buffer


# The buffer's own memory.


@pytest.mark.parametrize("wrap", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
@pytest.mark.parametrize("count", [1, 7, 60, 99, 100])
@pytest.mark.parametrize("start", [0, 3, 41])
@pytest.mark.parametrize("inserted", [100, 105, 142, 199])
def test_rows_of_the_buffer_itself(make_buffer: MakeBuffer, inserted: int, start: int, count: int, wrap: Any) -> None:
    """One field of 64 bytes: its column is contiguous, and an insert over the end overwrites what it still reads."""
    buffer = numbered(make_buffer, {"o": (16,)}, inserted)
    source = buffer.view("o")[start : start + count]
    expected = source.copy()
    buffer.extend(o=wrap(source))
    np.testing.assert_array_equal(arrays(buffer[-len(expected) :])["o"], expected)


@pytest.mark.parametrize("inserted", [100, 133])
@pytest.mark.parametrize("offset", [-20, -15, -1, 0, 1, 8, 16, 17])
def test_rows_that_lie_across_the_slots_to_be_written(make_buffer: MakeBuffer, inserted: int, offset: int) -> None:
    """Memory that begins in the middle of one record and ends in another's."""
    buffer = numbered(make_buffer, {"o": (16,)}, inserted)
    flat = buffer.view("o").reshape(-1)
    first = max(inserted % 100 * 16 + offset, 0)
    source = flat[first : first + 10 * 16].reshape(10, 16)
    expected = source.copy()
    assert np.shares_memory(source, buffer.view("o"))
    buffer.extend(o=source)
    np.testing.assert_array_equal(arrays(buffer[-10:])["o"], expected)
    source = flat[first : first + 16]
    expected = source.copy()
    buffer.add(o=source)
    np.testing.assert_array_equal(arrays(buffer[-1])["o"], expected)


@pytest.mark.parametrize("call", ["add", "extend"])
@pytest.mark.parametrize("shape", [(4,), (2, 3), (3000,), ()], ids=str)
def test_fields_that_change_places(make_buffer: MakeBuffer, shape: tuple[int, ...], call: str) -> None:
    """A row's fields, given for each other: whichever is written first, both hold what was given."""
    for slot in range(4):
        buffer = numbered(make_buffer, {"a": shape, "b": shape}, 4 + slot, capacity=4)
        at = slice(slot, slot + 1) if call == "extend" else (slot, ...)
        given = {"a": buffer.view("b")[at], "b": buffer.view("a")[at]}
        expected = {name: value.copy() for name, value in given.items()}
        getattr(buffer, call)(**given)
        got = arrays(buffer[-1:] if call == "extend" else buffer[-1])
        for name, value in expected.items():
            np.testing.assert_array_equal(got[name], value)


def test_a_whole_buffer_into_itself_and_its_faces(make_buffer: MakeBuffer) -> None:
    buffer = numbered(make_buffer, {"o": (16,)}, 130)
    expected = buffer.view("o").copy()
    buffer.extend(buffer.view("o"))
    np.testing.assert_array_equal(arrays(buffer[:])["o"], expected)
    if not isinstance(buffer, ReferenceBuffer):
        (face,) = buffer.spawn(1)
        expected = buffer.view("o")[:77].copy()
        face.extend(buffer.view("o")[:77])
        np.testing.assert_array_equal(arrays(buffer[-77:])["o"], expected)


def test_large_rows_of_the_buffer_itself() -> None:
    """Beyond what is copied with the GIL, and beyond one reservation."""
    buffer = NativeBuffer(64, {"o": (4096,)}, output="numpy")
    rows = np.arange(64 * 4096, dtype=np.float32).reshape(64, 4096)
    buffer.extend(rows)
    buffer.extend(rows[:5])
    expected = buffer.view("o").copy()
    buffer.extend(buffer.view("o"))
    np.testing.assert_array_equal(buffer[:].o, expected)


# Minibatches and mappings.


class Fields(dict[str, Any]):
    """A mapping of somebody's own."""


class Named:
    """No Mapping, but with names, as a TensorDict."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def keys(self) -> Any:
        return self._values.keys()

    def items(self) -> Any:
        return self._values.items()

    def __getitem__(self, name: str) -> Any:
        return self._values[name]


@pytest.mark.parametrize("wrap", [dict, MappingProxyType, Fields, Named, lambda rows: dict(reversed(rows.items()))])
def test_a_mapping_of_all_fields(make_buffer: MakeBuffer, wrap: Callable[[Any], Any]) -> None:
    buffer = fill(make_buffer(10), 3)
    buffer.extend(wrap(transitions(3, 4)))
    buffer.add(wrap({name: rows[0] for name, rows in transitions(7, 1).items()}))
    assert_holds(buffer[:], range(8))


@pytest.mark.parametrize("kinds", ["numpy torch", "torch numpy", "torch torch", "numpy numpy"])
def test_buffers_merge_and_grow_by_minibatches(kinds: str) -> None:
    ours, theirs = kinds.split()
    small = fill(NativeBuffer(10, FIELDS, output=theirs, seed=1), 13)
    big = NativeBuffer(100, FIELDS, output=ours)
    big.extend(small[:])
    big.extend(small.gather(np.arange(10)))
    for i in range(10):
        big.add(small[i])
    batch = small.sample(20)
    big.extend(batch)
    big.extend(batch.numpy())
    order = [*range(3, 13), *(10, 11, 12, *range(3, 10)), *range(3, 13), *[int(t) for t in batch.ticket] * 2]
    got, expected = arrays(big[:]), arrays(fill(NativeBuffer(100, FIELDS, output="numpy"), 13)[order])
    assert_same({**got, "ticket": expected["ticket"]}, expected)
    big.extend(big[:])
    big.add(big[0])
    assert len(big) == 100


def test_a_mapping_in_a_buffer_of_one_field(make_buffer: MakeBuffer) -> None:
    buffer = make_buffer(10, {"x": (2,)})
    buffer.extend({"x": [[1, 2], [3, 4]]})
    buffer.add({"x": [5, 6]})
    buffer.extend(buffer[:])
    buffer.add(buffer[1])
    assert arrays(buffer[:])["x"].tolist() == [[1, 2], [3, 4], [5, 6], [1, 2], [3, 4], [5, 6], [3, 4]]
    with pytest.raises(TypeError, match="unknown field 'y'"):
        buffer.add({"y": [1, 2]})
    with pytest.raises(TypeError, match="missing field 'x'"):
        buffer.add({})


@pytest.mark.parametrize("call", ["add", "extend"])
def test_a_mapping_beside_named_fields(make_buffer: MakeBuffer, call: str) -> None:
    buffer = make_buffer(10, {"x": (), "y": (), "z": ()})
    rows = {"x": 1.0, "y": 2.0} if call == "add" else {"x": [1.0], "y": [2.0]}
    getattr(buffer, call)(rows, z=3.0 if call == "add" else [3.0])
    assert [value.item() for value in arrays(buffer[0]).values()][:3] == [1, 2, 3]
    with pytest.raises(TypeError, match="'x'"):
        getattr(buffer, call)(rows, x=rows["x"], z=rows["x"])


@pytest.mark.parametrize("call", ["add", "extend"])
def test_names_that_do_not_fit_are_named(make_buffer: MakeBuffer, call: str) -> None:
    buffer = fill(make_buffer(10), 13)
    rows = transitions(13, 2) if call == "extend" else {n: v[0] for n, v in transitions(13, 1).items()}
    for name in FIELDS:
        with unchanged(buffer), pytest.raises(TypeError, match=f"missing field '{name}'"):
            getattr(buffer, call)({n: v for n, v in rows.items() if n != name})
    with unchanged(buffer), pytest.raises(TypeError, match="unknown field 'extra'"):
        getattr(buffer, call)({**rows, "extra": rows["reward"]})
    other = make_buffer(4, {"observation": (3,), "weight": ()})
    other.add(observation=[1, 2, 3], weight=1.0)
    with unchanged(buffer), pytest.raises(TypeError, match="unknown field 'weight'"):
        getattr(buffer, call)(other[:] if call == "extend" else other[0])


def test_one_mapping_may_be_the_first_part_or_all() -> None:
    """Where observations are nested, the keys tell."""
    buffer = NativeBuffer(9, {"o/a": (), "o/b": ()}, output="numpy")
    buffer.add({"a": 1, "b": 2})
    buffer.add({"o": {"a": 3, "b": 4}})
    buffer.add({"o/a": 5, "o/b": 6})
    buffer.add(buffer[2])
    buffer.extend(buffer[:])
    assert buffer[:]["o/a"].tolist() == [1, 3, 5, 5] * 2
    assert buffer[:]["o/b"].tolist() == [2, 4, 6, 6] * 2
    for wrong, message in (({"a": 1}, "missing field 'o/b'"), ({"a": 1, "b": 2, "c": 3}, "unknown field 'o/c'")):
        with pytest.raises(TypeError, match=message):
            buffer.add(wrong)
    buffer = NativeBuffer(9, {"o/a": (), "o/b": (), "r": ()}, output="numpy")
    buffer.add({"o": {"a": 1, "b": 2}, "r": 3})
    buffer.add({"a": 1, "b": 2}, r=3)
    buffer.add({"a": 1, "b": 2}, 3)
    buffer.add(buffer[0])
    for i in range(4):
        assert [value.item() for value in buffer[i]] == [1, 2, 3]
    for inner in ({"a": 1}, 1):
        one = NativeBuffer(2, {"a/a": ()} if inner != 1 else {"a": ()}, output="numpy")
        one.add({"a": inner})
        assert one[0]["a/a" if inner != 1 else "a"].item() == 1


# Masked entries, tensors in lists.


@pytest.mark.parametrize(
    "value",
    [
        np.ma.masked,
        np.ma.masked_array(1.0, mask=True),
        [np.ma.masked],
        [[1.0, np.ma.masked]],
        np.ma.masked_array([1.0, 2.0], mask=[False, True]),
        [np.ma.masked_array([1.0, 2.0], mask=[False, True])],
        (np.ma.masked_array([1.0, 2.0], mask=True),),
    ],
    ids=repr,
)
@pytest.mark.parametrize("call", ["add", "extend"])
def test_masked_entries_are_refused_by_name(make_buffer: MakeBuffer, value: Any, call: str) -> None:
    buffer = make_buffer(3, {"x": (), "y": ()})
    with pytest.raises(ValueError, match=r"^y: .*masked"):
        getattr(buffer, call)(x=1.0 if call == "add" else [1.0], y=value)
    assert len(buffer) == 0


def test_masked_arrays_without_a_masked_entry_are_arrays(make_buffer: MakeBuffer) -> None:
    buffer = make_buffer(9, {"x": (2,)})
    buffer.add(x=np.ma.masked_array([1.0, 2.0], mask=False))
    buffer.extend(x=np.ma.masked_invalid([[1.0, 2.0]]))
    buffer.extend(x=[np.ma.masked_array([1.0, 2.0])])
    assert arrays(buffer[:])["x"].tolist() == [[1, 2]] * 3


@pytest.mark.parametrize(
    "make",
    [
        lambda a: [torch.tensor(row, requires_grad=True) for row in a],
        lambda a: tuple(torch.tensor(row, requires_grad=True) * 1 for row in a),
        lambda a: [torch.nn.Parameter(torch.tensor(row)) for row in a],
        lambda a: [[torch.tensor(item, requires_grad=True) for item in row] for row in a],
        lambda a: [torch.tensor(row) if i % 2 else row.tolist() for i, row in enumerate(a)],
        lambda a: [torch.tensor(row) if i % 2 else row for i, row in enumerate(a)],
        lambda a: [torch.tensor(a[0] + 0j).conj().real.requires_grad_(), *map(torch.tensor, a[1:])],
    ],
    ids=["leaves", "results", "parameters", "nested", "beside lists", "beside arrays", "conjugate"],
)
def test_lists_of_tensors(make_buffer: MakeBuffer, make: Callable[[Any], Any]) -> None:
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    buffer = make_buffer(9, {"x": (2,)})
    buffer.extend(x=make(rows))
    buffer.extend(make(rows))
    assert arrays(buffer[:])["x"].tolist() == [*rows.tolist(), *rows.tolist()]
    buffer = make_buffer(9, {"x": (3, 2)})
    buffer.add(x=make(rows))
    assert arrays(buffer[0])["x"].tolist() == rows.tolist()


@pytest.mark.parametrize(
    "value",
    [
        [torch.ones(2, device="meta"), torch.ones(2)],
        [torch.ones(2), torch.ones(2).bfloat16()],
        [torch.ones(2).to_sparse()],
        [torch.ones(2), torch.ones(3)],
        [torch.ones(2) * 1j],
    ],
    ids=["meta", "bfloat16", "sparse", "ragged", "complex"],
)
def test_lists_of_tensors_that_do_not_fit_are_refused_by_name(value: Any) -> None:
    buffer = NativeBuffer(3, {"x": (2,)})
    with pytest.raises((TypeError, ValueError), match=r"^x: "):
        buffer.extend(x=value)
    assert len(buffer) == 0


# What changes while it is inserted.


class Meddling:
    """A value that does something to the others while it is converted."""

    def __init__(self, meddle: Callable[[], object], value: Any) -> None:
        self._meddle, self._value = meddle, value

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        self._meddle()
        return np.asarray(self._value)


def freed(array: Any) -> None:
    """Give an array's memory back, and let something else have it."""
    num_bytes = array.nbytes
    array.resize(0, refcheck=False)
    np.full(num_bytes, 0xAB, np.uint8)


def reshaped(array: Any) -> None:
    array.shape = (array.size, 1)


CHANGES: list[Any] = [
    pytest.param(freed, id="freed"),
    pytest.param(lambda array: array.resize(array.size // 2, refcheck=False), id="halved"),
    pytest.param(lambda array: array.resize(array.size * 1000, refcheck=False), id="enlarged"),
    pytest.param(reshaped, id="reshaped", marks=pytest.mark.filterwarnings("ignore::DeprecationWarning")),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("call", ["add", "extend"])
@pytest.mark.parametrize("place", [0, 2])
def test_an_argument_that_another_one_changes(place: int, call: str, change: Any) -> None:
    """The first array was looked at, or is to be, when the other is converted: refused, and nothing stored."""
    fields = {"a": (1000,), "b": (), "c": (1000,)}
    buffer = NativeBuffer(8, fields, output="numpy")
    lead = () if call == "add" else (1,)
    for _ in range(5):
        victim = np.ones((*lead, 1000), np.float32)
        values = {"a": victim, "c": np.ones((*lead, 1000), np.float32)}
        if place == 2:
            values["a"], values["c"] = values["c"], values["a"]
        meddling = Meddling(lambda victim=victim: change(victim), np.full(lead, 2.0))  # type: ignore[misc]
        with pytest.raises(ValueError, match=r"^(a|c): "):
            getattr(buffer, call)(a=values["a"], b=meddling, c=values["c"])
    assert len(buffer) == 0


@pytest.mark.parametrize("call", ["add", "extend"])
def test_an_argument_whose_contents_another_one_changes(call: str) -> None:
    """What is stored is what the array held at some time during the call."""
    buffer = NativeBuffer(8, {"a": (4,), "b": ()}, output="numpy")
    lead = () if call == "add" else (1,)
    victim = np.ones((*lead, 4), np.float32)
    getattr(buffer, call)(a=victim, b=Meddling(lambda: victim.fill(3), np.zeros(lead)))
    assert buffer[0].a.tolist() in ([1.0] * 4, [3.0] * 4)


@pytest.mark.parametrize("call", ["add", "extend"])
def test_a_converted_value_that_a_later_one_frees(call: str) -> None:
    """What `__array__` gave, a subclass's memory or a tensor's storage goes: the copy was made before."""
    lead = () if call == "add" else (1,)

    class Sub(np.ndarray):
        pass

    def subclass() -> tuple[Any, Callable[[], object]]:
        value = np.ones((*lead, 1000), np.float32).view(Sub).copy()
        return value, lambda: freed(value)

    def given() -> tuple[Any, Callable[[], object]]:
        value = np.ones((*lead, 1000), np.float32)
        return Meddling(lambda: None, value), lambda: freed(value)

    def tensor() -> tuple[Any, Callable[[], object]]:
        value = torch.ones((*lead, 1000))
        return value, lambda: value.set_(torch.zeros(1))  # type: ignore[call-overload]

    for make in (subclass, given, tensor):
        buffer = NativeBuffer(8, {"a": (1000,), "b": ()}, output="numpy")
        for _ in range(8):
            value, free = make()
            getattr(buffer, call)(a=value, b=Meddling(free, np.full(lead, 2.0)))
        assert (buffer[:].a == 1).all()


@pytest.mark.parametrize("call", ["add", "extend"])
def test_a_finalizer_that_frees_an_argument(call: str) -> None:
    """The collector runs inside the call, whenever something is made there."""
    buffer = NativeBuffer(8, {"a": (100,), "b": (100,), "c": ()}, output="numpy")
    lead = () if call == "add" else (3,)
    thresholds = gc.get_threshold()
    refused = 0
    try:
        for _ in range(300):
            victim = np.ones((*lead, 100), np.float32)

            class Bomb:
                def __init__(self, victim: Any) -> None:
                    self.me, self.victim = self, victim

                def __del__(self) -> None:
                    freed(self.victim)

            gc.disable()
            Bomb(victim)
            gc.set_threshold(1)
            gc.enable()
            try:
                getattr(buffer, call)(a=victim, b=np.ones((*lead, 100)).tolist(), c=np.full(lead, 2.0))
            except ValueError as error:
                assert str(error).startswith("a: ")  # noqa: PT017 - it need not come
                refused += 1
            finally:
                gc.set_threshold(*thresholds)
    finally:
        gc.set_threshold(*thresholds)
        gc.enable()
    if len(buffer):
        assert (buffer[:].a == 1).all()
    assert buffer.stats()["inserted"] == (300 - refused) * (1 if call == "add" else 3)


def test_a_keyword_that_inserts_when_it_is_looked_up() -> None:
    """Names that come for the first time are looked up by code of anybody's: the inner call's order is its own."""
    buffer = NativeBuffer(100, {"a": (), "b": (), "c": ()}, output="numpy")
    depth = 0

    def meddle() -> None:
        nonlocal depth
        if depth == 0:
            depth += 1
            buffer.add(c=3.0, a=1.0, b=2.0)
            buffer.add(1.0, c=3.0, b=2.0)
            depth -= 1

    for name in "abc":
        key = MeddlingKey(name)
        key.meddle = meddle
        rest = [other for other in "abc" if other != name]
        for order in ([key, *rest], [rest[0], key, rest[1]], [*rest, key]):
            buffer.add(**{other: float("abc".index(str(other)) + 1) for other in order})
    for i in range(len(buffer)):
        assert [value.item() for value in buffer[i]] == [1, 2, 3]


def test_a_signal_handler_that_frees_what_waits_to_be_inserted() -> None:
    """An insert that waits for another thread lets handlers run: it has copied its rows by then."""
    import os
    import signal

    if not hasattr(signal, "SIGUSR1") or threading.current_thread() is not threading.main_thread():
        pytest.skip("this needs a signal")
    for count in (1, 8, 300):
        buffer = NativeBuffer(64, WIDE, seed=3, output="numpy", timeout=None)
        extend_wide(buffer, 0, 64)
        rows = wide_rows(64, 8)
        with stalled_insert(buffer, rows, "x") as insert:
            extend_wide(buffer, 72, 56)
            late = {name: value.copy() for name, value in wide_rows(128, count).items()}

            def handler(*_: object, late: Any = late, insert: Any = insert) -> None:
                for value in late.values():
                    freed(value)
                insert.release()

            before = signal.signal(signal.SIGUSR1, handler)
            try:
                # While this thread waits in the core.
                timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
                timer.start()
                buffer.extend(**late)
                timer.join()
            finally:
                signal.signal(signal.SIGUSR1, before)
        expected = wide_rows(128 + count - min(count, 10), min(count, 10))
        got = arrays(buffer[-min(count, 10) :])
        for name, value in expected.items():
            np.testing.assert_array_equal(got[name], value)


def test_an_insert_that_was_interrupted_while_it_waited() -> None:
    """An add has stored nothing; the buffer goes on."""
    buffer = NativeBuffer(64, WIDE, seed=3, output="numpy", timeout=0.05)
    extend_wide(buffer, 0, 64)
    with stalled_insert(buffer, wide_rows(64, 8), "x") as insert:
        extend_wide(buffer, 72, 56)
        late = Thread(buffer.extend, **wide_rows(128, 1))
        with pytest.raises(TimeoutError, match="0 of 1 rows were inserted"):
            late.finish()
        insert.release()
        extend_wide(buffer, 128, 1)
    assert buffer.stats()["inserted"] == 129
