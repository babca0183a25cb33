# SPDX-License-Identifier: MIT
"""add and extend: every accepted kind of value, every refusal, and that a refusal changes nothing."""

from __future__ import annotations

import array
import contextlib
import itertools
import re
import sys
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
import torch
from support import (
    FIELDS,
    MakeBuffer,
    NativeBuffer,
    arrays,
    assert_holds,
    assert_same,
    assert_same_bits,
    fill,
    transitions,
    unchanged,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROW = {name: rows[0] for name, rows in transitions(0, 1).items()}


def stored(make_buffer: MakeBuffer, value: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """Add one value to a buffer of one field; give what the buffer then holds."""
    buffer = make_buffer(2, {"x": (shape, dtype)})
    assert buffer.add(x=value) is None
    return arrays(buffer[0])["x"]


@pytest.mark.parametrize("chunk", [1, 2, 9, 10, 11, 20, 31, 100])
@pytest.mark.parametrize("offset", [0, 1, 9, 10, 13])
def test_extend_over_the_lap(make_buffer: MakeBuffer, offset: int, chunk: int) -> None:
    buffer = fill(make_buffer(10), offset)
    buffer.extend(**transitions(offset, chunk))
    total = offset + chunk
    assert len(buffer) == min(total, 10)
    assert_holds(buffer[:], range(max(0, total - 10), total))
    assert buffer.stats()["inserted"] == total
    assert buffer.stats()["overwritten"] == max(0, total - 10)
    slots = np.arange(total - len(buffer), total) % 10
    assert_holds(buffer.gather(slots), range(total - len(buffer), total))


def test_add_over_the_lap(make_buffer: MakeBuffer) -> None:
    buffer = make_buffer(4)
    for t in range(11):
        buffer.add(**{name: rows[0] for name, rows in transitions(t, 1).items()})
        assert_holds(buffer[:], range(max(0, t - 3), t + 1))


def test_a_ring_of_one_slot(make_buffer: MakeBuffer) -> None:
    buffer = make_buffer(1)
    for t in range(3):
        buffer.add(*(rows[0] for rows in transitions(t, 1).values()))
        assert_holds(buffer[:], [t])
    fill(buffer, 5, chunk=5)
    assert_holds(buffer[:], [7])


def test_positional_and_keyword_values_mean_the_same(make_buffer: MakeBuffer) -> None:
    buffer = make_buffer(10)
    rows = transitions(0, 2)
    buffer.extend(*rows.values())
    rows = transitions(2, 2)
    buffer.extend(**{name: rows[name] for name in reversed(rows)})
    row = {name: r[0] for name, r in transitions(4, 1).items()}
    buffer.add(**{name: row[name] for name in reversed(row)})
    assert_holds(buffer[:], range(5))


def test_a_call_with_other_names_does_not_disturb_the_next(make_buffer: MakeBuffer) -> None:
    """One call site passes the same tuple of names each time: what is known of it must not go stale."""
    buffer = make_buffer(100, {"a": (), "b": (), "c": ()})

    def same_site() -> None:
        buffer.add(c=3.0, b=2.0, a=1.0)

    for names in itertools.permutations(["a", "b", "c", "stranger"], 3):
        same_site()
        with pytest.raises(TypeError) if "stranger" in names else contextlib.nullcontext():
            buffer.add(**dict.fromkeys(names, 1.0))
        with pytest.raises(TypeError):
            buffer.add(7.0, a=8.0, c=9.0)
        same_site()
        assert [value.item() for value in arrays(buffer[-1]).values()][:3] == [1.0, 2.0, 3.0]
    buffer.add(4.0, c=6.0, b=5.0)
    assert [value.item() for value in arrays(buffer[-1]).values()][:3] == [4.0, 5.0, 6.0]


def test_a_schema_of_many_fields(make_buffer: MakeBuffer) -> None:
    fields = {f"f{i}": ((i % 3 + 1,) if i % 2 else (), "int32") for i in range(150)}
    buffer = make_buffer(5, fields)
    row = {name: np.full(shape, i) for i, (name, (shape, _)) in enumerate(fields.items())}
    buffer.add(*row.values())
    buffer.add(**dict(reversed(row.items())))
    buffer.extend(**{name: np.stack([value] * 2) for name, value in row.items()})
    for i, (name, value) in enumerate(arrays(buffer[:]).items()):
        assert name == "ticket" or np.all(value == i)


def test_extend_by_nothing_is_a_no_op(make_buffer: MakeBuffer) -> None:
    buffer = fill(make_buffer(5), 3)
    with unchanged(buffer):
        assert buffer.extend(**transitions(3, 0)) is None
    assert len(buffer) == 4


NUMBERS = np.arange(24.0).reshape(4, 6)
UNALIGNED = np.frombuffer(b"x" + np.arange(6.0).tobytes(), dtype="u1")[1:].view("f8")
READ_ONLY = np.arange(6.0)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(np.arange(6.0), id="contiguous"),
        pytest.param(NUMBERS[:, 1][[0, 1, 2, 3, 0, 1]], id="copied"),
        pytest.param(NUMBERS.reshape(-1)[::4], id="strided"),
        pytest.param(NUMBERS[1, ::-1], id="negative stride"),
        pytest.param(np.broadcast_to(2.5, 6), id="zero stride"),
        pytest.param(UNALIGNED, id="unaligned"),
        pytest.param(READ_ONLY, id="read-only"),
        pytest.param(np.arange(6, dtype="f8").astype(">f8"), id="swapped bytes"),
        pytest.param(np.arange(6, dtype="f2"), id="float16"),
        pytest.param(np.arange(6, dtype="g"), id="longdouble"),
        pytest.param(np.arange(6, dtype="u1"), id="uint8"),
        pytest.param(np.arange(6) > 2, id="bool"),
        pytest.param([0.5, 1, True, 3, np.float32(4), 5], id="list"),
        pytest.param((1, 2, 3, 4, 5, 6), id="tuple"),
        pytest.param(array.array("f", range(6)), id="array.array"),
        pytest.param(np.arange(6.0).data, id="memoryview"),
        pytest.param(torch.arange(6.0), id="tensor"),
        pytest.param(torch.arange(24.0)[::4], id="strided tensor"),
        pytest.param(torch.arange(6.0, dtype=torch.float16), id="half tensor"),
        pytest.param(torch.arange(6), id="int64 tensor"),
        pytest.param(torch.arange(6.0, requires_grad=True), id="leaf that requires grad"),
        pytest.param(torch.arange(6.0, requires_grad=True) * 2, id="result that requires grad"),
        pytest.param(torch.nn.Parameter(torch.arange(6.0)), id="parameter"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
def test_values_of_one_row(make_buffer: MakeBuffer, value: Any, dtype: str) -> None:
    plain = value.detach() if isinstance(value, torch.Tensor) else value
    expected = np.asarray(plain).astype(dtype)
    assert_same_bits(stored(make_buffer, value, (6,), dtype), expected)
    buffer = make_buffer(4, {"x": ((), dtype)})
    buffer.extend(x=value)
    assert_same_bits(arrays(buffer[:])["x"], expected[2:])


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "float64"])
@pytest.mark.parametrize(
    "layout",
    [
        lambda a: a,
        np.asfortranarray,
        lambda a: a[::-1, ::-1, ::-1][::-1, ::-1, ::-1],
        lambda a: np.repeat(a, 2, axis=1)[:, ::2],
        lambda a: np.ascontiguousarray(a.transpose(2, 0, 1)).transpose(1, 2, 0),
        lambda a: torch.from_numpy(np.ascontiguousarray(a.T)).permute(2, 1, 0),
        lambda a: a.tolist(),
    ],
    ids=["C", "Fortran", "negative", "strided", "transposed", "permuted tensor", "nested lists"],
)
def test_layouts_of_several_axes(make_buffer: MakeBuffer, layout: Callable[[Any], Any], dtype: str) -> None:
    rows = np.arange(7 * 4 * 5).reshape(7, 4, 5).astype("uint8")
    fields = {"pad": ((), "int8"), "x": ((4, 5), dtype)}
    buffer = make_buffer(6, fields)
    buffer.add(pad=1, x=layout(rows)[0])
    buffer.extend(pad=np.ones(6, "int8"), x=layout(rows[1:]))
    assert_same_bits(arrays(buffer[:])["x"], rows[1:].astype(dtype))


def test_a_large_extend(make_buffer: MakeBuffer) -> None:
    """Past any threshold for releasing the GIL; contiguous, strided and cast."""
    rows = np.random.default_rng(0).normal(size=(3000, 2, 64))
    buffer = make_buffer(2500, {"x": ((64,), "float64"), "y": (64,), "z": ((64,), "float64")})
    buffer.extend(x=rows[:, 0], y=rows[:, 1], z=np.ascontiguousarray(rows[:, 0]))
    got = arrays(buffer[:])
    assert_same_bits(got["x"], rows[500:, 0])
    assert_same_bits(got["y"], rows[500:, 1].astype(np.float32))
    assert_same_bits(got["z"], rows[500:, 0])


@pytest.mark.parametrize(
    "sizes", [range(1, 80), range(80, 160), (255, 256, 257, 2000, 8191, 8192, 8193, 28224)], ids=str
)
def test_rows_of_every_size(make_buffer: MakeBuffer, sizes: Sequence[int]) -> None:
    """Copies are specialized by size: all bytes of a row arrive, and none beside it change."""
    for row_bytes in sizes:
        rng = np.random.default_rng(row_bytes)
        buffer = make_buffer(70, {"a": ((3,), "uint8"), "x": ((row_bytes,), "uint8"), "z": ((), "uint8")})
        rows = [rng.integers(256, size=(70, *shape), dtype="uint8") for shape in ((3,), (row_bytes,), ())]
        buffer.extend(*(column[:69] for column in rows))
        buffer.add(*(column[69] for column in rows))
        order = rng.integers(70, size=150)
        for batch, index in ((buffer.gather(order), order), (buffer[:3], slice(3)), (buffer[69], 69)):
            for got, column in zip(list(arrays(batch).values())[:3], rows, strict=True):
                assert_same_bits(got, np.asarray(column[index]))


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (True, "bool"),
        (np.True_, "bool"),
        (torch.tensor(True), "bool"),
        (True, "int8"),
        (False, "float32"),
        (7, "uint8"),
        (-7, "int64"),
        (2**63 - 1, "int64"),
        (2**64 - 1, "uint64"),
        (7, "float16"),
        (7, "complex128"),
        (2**53 + 1, "float64"),
        (2**63, "float32"),
        (-(2**70), "float32"),
        (0.1, "float16"),
        (0.1, "float32"),
        (0.1, "float64"),
        (0.1, "complex64"),
        (1 - 2j, "complex64"),
        (np.float32(0.1), "float64"),
        (np.float64(0.1), "float32"),
        (np.longdouble(0.1), "float32"),
        (np.int8(-3), "int64"),
        (np.uint64(3), "int8"),
        (np.uint16(65535), "float16"),
        (np.array(0.1), "float32"),
        (np.array([[3]])[0, 0, ...], "int32"),
        (torch.tensor(0.1), "float64"),
        (torch.tensor(4, dtype=torch.uint8), "int16"),
        (float("nan"), "float16"),
        (float("inf"), "float32"),
        (-0.0, "float32"),
        (1e300, "float32"),  # beyond the range: infinity, as in IEEE 754, and no warning
        (-1e300, "float16"),
        (65520.0, "float16"),
        (1e300 - 1e300j, "complex64"),
        (1e-46, "float32"),
    ],
    ids=lambda value: f"{type(value).__name__} {value}",
)
def test_scalars(make_buffer: MakeBuffer, value: Any, dtype: str) -> None:
    with np.errstate(over="ignore"):
        expected = np.asarray(value).astype(dtype)
    assert_same_bits(stored(make_buffer, value, (), dtype), expected)


@pytest.mark.parametrize("dtype", [*"bBhHiIlLqQ"])
def test_the_limits_of_integers(make_buffer: MakeBuffer, dtype: str) -> None:
    info = np.iinfo(dtype)
    buffer = make_buffer(9, {"x": ((), "int64"), "y": ((2,), dtype), "z": ((), dtype)})
    for value in (int(info.min), int(info.max)):
        buffer.add(x=0, y=[value, value], z=value)
        buffer.add(x=0, y=np.full(2, value), z=np.asarray(value)[()])
    before = arrays(buffer[:])
    assert before["y"].max() == before["z"].max() == info.max
    assert before["z"].min() == info.min
    for value in (int(info.min) - 1, int(info.max) + 1):
        for bad in (value, np.asarray(value)[()], np.asarray(value)):
            with pytest.raises(ValueError, match=f"z: .*{value}"):
                buffer.add(x=0, y=[0, 1], z=bad)
        with pytest.raises(ValueError, match=f"y: .*{value}"):
            buffer.add(x=0, y=[value, value], z=1)
    assert_same(buffer[:], before)


def test_nan_payloads_and_signed_zeros_are_data(make_buffer: MakeBuffer) -> None:
    bits = np.array([0x7FA00001, 0xFFC12345, 0x7F800000, 0xFF800000, 0x80000000, 1], dtype="u4")
    buffer = make_buffer(9, {"x": (6,), "y": ()})
    buffer.add(x=bits.view("f4"), y=bits[:1].view("f4").reshape(()))
    buffer.extend(x=np.tile(bits.view("f4"), (2, 1)), y=bits[:2].view("f4"))
    got = arrays(buffer[:])
    assert_same_bits(got["x"], np.tile(bits.view("f4"), (3, 1)))
    assert_same_bits(got["y"], bits[[0, 0, 1]].view("f4"))


def test_values_are_copied(make_buffer: MakeBuffer) -> None:
    buffer = make_buffer(4, {"x": (3,)})
    row = np.ones(3, dtype=np.float32)
    buffer.add(x=row)
    row[:] = 2
    buffer.extend(x=row[None])
    row[:] = 3
    assert arrays(buffer[:])["x"].tolist() == [[1, 1, 1], [2, 2, 2]]


def test_nested_values(make_buffer: MakeBuffer) -> None:
    buffer = make_buffer(5, {"o/pos": (2,), "o/in/left": (), "o/in/right": (), "pair/0": (), "pair/1": (), "r": ()})
    buffer.add(o={"pos": [1, 2], "in": {"left": 3, "right": 4}}, pair=(5, 6), r=7)
    buffer.add(r=7, pair={"0": 5, "1": 6}, o={"in": {"right": 4, "left": 3}, "pos": [1, 2]})
    buffer.add([1, 2], 3, 4, 5, 6, 7)
    buffer.extend(
        **{"o/pos": [[1, 2]] * 2, "o/in/left": [3, 3], "o/in": {"right": [4, 4]}},
        **{"pair": {"0": [5, 5]}, "pair/1": [6, 6], "r": [7, 7]},
    )
    got = arrays(buffer[:])
    assert got["o/pos"].tolist() == [[1, 2]] * 5
    for value, name in enumerate(("o/in/left", "o/in/right", "pair/0", "pair/1", "r"), start=3):
        assert got[name].tolist() == [value] * 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"o": {"pos": [1, 2]}}, "missing field 'o/vel'"),
        ({"o": {"pos": [1, 2], "vel": 3, "acc": 1}}, "unknown field 'o/acc'"),
        ({"o": {"pos": [1, 2], "vel": 3}, "o/vel": 3}, "o/vel"),
        ({"o": {"pos": {"x": 1}, "vel": 3}}, "o/pos"),
        ({"o": [1, 2, 3]}, "'o'|o:"),
    ],
)
@pytest.mark.parametrize("call", ["add", "extend"])
def test_refused_nested_values(make_buffer: MakeBuffer, values: dict[str, Any], message: str, call: str) -> None:
    buffer = make_buffer(5, {"o/pos": (2,), "o/vel": ()})
    with pytest.raises(TypeError, match=message):
        getattr(buffer, call)(**values)
    assert len(buffer) == 0


class Exploding:
    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise ZeroDivisionError("from the caller's own code")


def nothing(error: type[Exception], message: str, **values: Any) -> Any:
    return pytest.param(error, message, values, id=f"{message} {list(values)}")


REFUSED_ADD = [
    nothing(TypeError, "unknown field 'rewrd'", rewrd=1.0),
    nothing(ValueError, "observation: expected shape (3,), got (2,)", observation=[1.0, 2.0]),
    nothing(ValueError, "observation: expected shape (3,), got (1, 3)", observation=[[1, 2, 3]]),
    nothing(ValueError, "observation: expected shape (3,), got ()", observation=1.0),
    nothing(ValueError, "reward: expected shape (), got (1,)", reward=[1.0]),
    nothing(ValueError, "reward: expected shape (), got (1, 1)", reward=np.ones((1, 1), "f4")),
    nothing(ValueError, "reward: expected shape (), got (0,)", reward=np.zeros(0, "f4")),
    nothing(ValueError, "pixels: expected shape (2, 3), got (3, 2)", pixels=np.ones((3, 2), "u1")),
    nothing(ValueError, "pixels: expected shape (2, 3), got (6,)", pixels=torch.ones(6).byte()),
    nothing(TypeError, "action: expected int64, got float", action=[1.5, 2.0]),
    nothing(TypeError, "action: expected int64, got float", action=torch.ones(2)),
    nothing(TypeError, "action: expected int64, got complex", action=np.ones(2, "c8")),
    nothing(TypeError, "reward: expected float32, got complex", reward=1j),
    nothing(TypeError, "terminated: expected bool, got", terminated=1),
    nothing(TypeError, "terminated: expected bool, got float", terminated=0.0),
    nothing(TypeError, "terminated: expected bool, got uint8", terminated=np.uint8(0)),
    nothing(TypeError, "reward: expected float32, got", reward="1.0"),
    nothing(TypeError, "reward: expected float32, got", reward=b"1"),
    nothing(TypeError, "reward: expected float32, got", reward=None),
    nothing(TypeError, "reward: expected float32, got", reward={}),
    nothing(TypeError, "reward: expected float32, got datetime64", reward=np.datetime64("2020")),
    nothing(TypeError, "observation: expected float32, got object", observation=[1, None, 2]),
    nothing(ValueError, "observation: ", observation=[[1.0], [1.0, 2.0], 3.0]),
    nothing(TypeError, "reward: expected float32, got", reward=torch.tensor(1.0).bfloat16()),
    nothing(TypeError, "reward: expected float32, got", reward=torch.empty((), device="meta")),
    nothing(ValueError, "pixels: ... uint8 ... got 256", pixels=np.full((2, 3), 256)),
    nothing(ValueError, "pixels: ... uint8 ... got -1", pixels=[[0, 0, 0], [0, 0, -1]]),
    nothing(ValueError, "pixels: ... uint8 ... got -128", pixels=np.full((2, 3), -128, "i1")),
    nothing(ValueError, "pixels: ... uint8 ... got 300", pixels=torch.full((2, 3), 300)),
    nothing(ValueError, f"action: ... int64 ... got {2**63}", action=np.full(2, 2**63, "u8")),
    nothing(ValueError, f"action: ... int64 ... got {2**70}", action=[2**70, 0]),
    nothing(ZeroDivisionError, "from the caller's own code", reward=Exploding()),
    nothing(ZeroDivisionError, "from the caller's own code", terminated=Exploding()),
]


def pattern(message: str) -> str:
    return re.escape(message).replace(r"\ \.\.\.\ ", ".*")


@pytest.mark.parametrize("fill_count", [0, 4, 13])
@pytest.mark.parametrize(("error", "message", "values"), REFUSED_ADD)
def test_a_refused_add_changes_nothing(
    make_buffer: MakeBuffer,
    fill_count: int,
    error: type[Exception],
    message: str,
    values: dict[str, Any],
) -> None:
    buffer = fill(make_buffer(10), fill_count)
    with unchanged(buffer), pytest.raises(error, match=pattern(message)):
        buffer.add(**{**ROW, **values})
    if next(iter(values)) in FIELDS:
        with unchanged(buffer), pytest.raises(error, match=pattern(message)):
            buffer.add(*{**ROW, **values}.values())


def rows_of(value: Any, count: int) -> Any:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return torch.stack([value] * count) if isinstance(value, torch.Tensor) else [value] * count
    return value if isinstance(value, Exploding) else [value] * count


@pytest.mark.parametrize("count", [1, 8, 25])
@pytest.mark.parametrize(("error", "message", "values"), [p for p in REFUSED_ADD if "shape" not in str(p.values[1])])
def test_a_refused_extend_changes_nothing(
    make_buffer: MakeBuffer,
    count: int,
    error: type[Exception],
    message: str,
    values: dict[str, Any],
) -> None:
    buffer = fill(make_buffer(10), 13)
    rows = {**transitions(13, count), **{n: rows_of(v, count) for n, v in values.items()}}
    with unchanged(buffer), pytest.raises(error, match=pattern(message)):
        buffer.extend(**rows)


@pytest.mark.parametrize(
    ("message", "values"),
    [
        ("reward: expected shape (8,), got (8, 1)", {"reward": np.ones((8, 1), "f4")}),
        ("reward: expected shape (8,), got ()", {"reward": 1.0}),
        ("reward: expected shape (8,), got (1,)", {"reward": [1.0]}),
        ("reward: expected shape (8,), got (7,)", {"reward": torch.ones(7)}),
        ("terminated: expected shape (8,), got (0,)", {"terminated": np.zeros(0, bool)}),
        ("action: expected shape (8, 2), got (9, 2)", {"action": np.ones((9, 2), "i8")}),
        ("action: expected shape (8, 2), got (2, 8)", {"action": np.ones((2, 8), "i8")}),
        ("pixels: expected shape (8, 2, 3), got (8, 3, 2)", {"pixels": np.ones((8, 3, 2), "u1")}),
        ("observation: expected shape ... 3), got (8, 4)", {"observation": np.ones((8, 4), "f4")}),
        ("observation: expected shape ... 3), got (3,)", {"observation": [1, 2, 3]}),
        ("observation: expected shape ... 3), got ()", {"observation": 1}),
    ],
)
def test_extend_refuses_shapes(make_buffer: MakeBuffer, message: str, values: dict[str, Any]) -> None:
    buffer = fill(make_buffer(10), 13)
    with unchanged(buffer), pytest.raises(ValueError, match=pattern(message)):
        buffer.extend(**{**transitions(13, 8), **values})
    rows = {**transitions(14, 8), "observation": np.ones((7, 3), "f4")}
    with unchanged(buffer), pytest.raises(ValueError, match=r"8.*7|7.*8"):  # one of the two is wrong
        buffer.extend(**rows)


@pytest.mark.parametrize("call", ["add", "extend"])
def test_missing_and_surplus_values(make_buffer: MakeBuffer, call: str) -> None:
    buffer = fill(make_buffer(10), 13)
    insert = getattr(buffer, call)
    values = ROW if call == "add" else transitions(13, 4)
    for name in FIELDS:
        with unchanged(buffer), pytest.raises(TypeError, match=f"missing field '{name}'"):
            insert(**{n: v for n, v in values.items() if n != name})
    with unchanged(buffer), pytest.raises(TypeError, match="missing field 'terminated'"):
        insert(*list(values.values())[:4])
    with unchanged(buffer), pytest.raises(TypeError, match=r"5.*6"):
        insert(*values.values(), 1.0)
    with unchanged(buffer), pytest.raises(TypeError, match="missing field 'observation'"):
        insert()
    with unchanged(buffer), pytest.raises(TypeError, match=r"observation|positional"):
        insert(*values.values(), observation=values["observation"])


ORDERS: dict[str, Any] = {
    "as they are": lambda names: names,
    "reversed": lambda names: names[::-1],
    "rotated": lambda names: names[7:] + names[:7],
    "two swapped": lambda names: [*names[:3], names[-1], *names[4:-1], names[3]],
    "shuffled": lambda names: [names[i] for i in np.random.default_rng(0).permutation(len(names))],
}


@pytest.mark.parametrize("num_positional", [0, 1, 5])
@pytest.mark.parametrize("interned", [True, False])
@pytest.mark.parametrize("order", ORDERS)
def test_names_in_any_order(make_buffer: MakeBuffer, order: str, interned: bool, num_positional: int) -> None:
    fields: dict[str, Any] = {f"field{i}": ((), "int64") for i in range(40)}
    buffer = make_buffer(2, fields)
    names = [sys.intern(name) if interned else "".join(list(name)) for name in fields]
    named = ORDERS[order](list(enumerate(names))[num_positional:])
    for _ in range(2):
        buffer.add(*range(num_positional), **{name: i for i, name in named})
        buffer.extend(*[[i] for i in range(num_positional)], **{name: [i] for i, name in named})
        for one in (buffer[0], buffer[-1]):
            assert [int(one[name]) for name in fields] == list(range(40))


def test_names_that_are_equal_when_they_like() -> None:
    """Two names of one call that mean the same field leave another one without a value."""

    class Moody(str):
        __slots__ = ()
        moods: ClassVar[list[bool]] = []

        def __eq__(self, other: object) -> bool:
            return self.moods.pop(0) if self.moods else True

        __hash__ = str.__hash__

    buffer = NativeBuffer(4, {"a": (), "b": ()}, output="numpy")
    for names in (("a", Moody("a")), (Moody("a"), "a"), ("b", Moody("b")), (Moody("b"), "b")):
        Moody.moods[:] = [False] * 2
        with pytest.raises(TypeError):
            buffer.add(**dict.fromkeys(names, 1.0))
    assert len(buffer) == 0


def test_the_last_row_of_a_long_extend_is_checked(make_buffer: MakeBuffer) -> None:
    buffer = fill(make_buffer(10), 13)
    rows: dict[str, Any] = {**transitions(13, 5000), "pixels": np.zeros((5000, 2, 3), "i4")}
    rows["pixels"][-1, -1, -1] = 256
    with unchanged(buffer), pytest.raises(ValueError, match=r"pixels.*256"):
        buffer.extend(**rows)
    rows["pixels"][-1, -1, -1] = 0
    rows["pixels"][0, 0, 0] = -1  # not even among the rows that would remain
    with unchanged(buffer), pytest.raises(ValueError, match=r"pixels.*-1"):
        buffer.extend(**rows)


def test_a_value_that_inserts_while_it_is_converted(make_buffer: MakeBuffer) -> None:
    """Conversion comes before the ticket: the inner transition is first, and neither is mixed."""
    buffer = make_buffer(10)
    inner = {name: rows[0] for name, rows in transitions(0, 1).items()}
    outer = {name: rows[0] for name, rows in transitions(1, 1).items()}

    class Inserting:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            buffer.add(**inner)
            return np.asarray(outer["reward"])

    buffer.add(**{**outer, "reward": Inserting()})
    assert_holds(buffer[:], [0, 1])
