# SPDX-License-Identifier: MIT
"""What the constructor and the small members of a buffer refuse, and what they report."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import pytest
from support import FIELDS, MakeBuffer, NativeBuffer, assert_holds, fill, unchanged

import fastreplay as fr

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("capacity", [0, -1, -(2**40)])
def test_capacity_must_be_positive(make_buffer: MakeBuffer, capacity: int) -> None:
    with pytest.raises(ValueError, match=f"capacity.*{capacity}"):
        make_buffer(capacity)


@pytest.mark.parametrize("capacity", [2.0, "10", None, [3]])
def test_capacity_must_be_an_integer(make_buffer: MakeBuffer, capacity: Any) -> None:
    with pytest.raises(TypeError):
        make_buffer(capacity)


@pytest.mark.parametrize("capacity", [2**45, 2**62, 10**30])
def test_absurd_capacity_tells_bytes_needed_and_available(make_buffer: MakeBuffer, capacity: int) -> None:
    with pytest.raises(MemoryError) as caught:
        make_buffer(capacity)
    assert len(re.findall(r"\d+", str(caught.value))) >= 2
    assert "available" in str(caught.value)


def test_numpy_integers_are_integers(make_buffer: MakeBuffer) -> None:
    buffer = make_buffer(np.int32(5), seed=np.int64(3))
    assert buffer.capacity == 5
    assert buffer.rng_state == make_buffer(5, seed=3).rng_state
    fill(buffer, 8)
    assert len(buffer.sample(np.uint8(4))) == 4
    assert_holds(buffer[np.int16(-1)], 7)


def test_a_dtype_that_torch_lacks_needs_numpy_output() -> None:
    for dtype in ("longdouble", "clongdouble"):
        with pytest.raises(TypeError, match=r"x: .*longdouble|x: .*float128|x: .*complex256"):
            NativeBuffer(3, {"x": ((), dtype)})
        NativeBuffer(3, {"x": ((), dtype)}, output="numpy")


def test_options_are_checked_and_keyword_only() -> None:
    with pytest.raises(ValueError, match=r"output.*jax"):
        NativeBuffer(3, FIELDS, output="jax")
    with pytest.raises((ValueError, RuntimeError), match="nonsense"):
        NativeBuffer(3, FIELDS, device="nonsense")
    with pytest.raises(TypeError):
        NativeBuffer(3, FIELDS, 0)
    with pytest.raises(TypeError):
        NativeBuffer(3, ["observation"])


def test_a_new_buffer_is_empty(make_buffer: MakeBuffer) -> None:
    buffer = make_buffer(10)
    assert len(buffer) == 0
    stats = dict(buffer.stats())
    assert stats.pop("bytes") > 0
    counters = ("inserted", "overwritten", "sampled", "redraws", "without_mass", "refused", "incomplete", "lost")
    assert stats == dict.fromkeys((*counters, "pinned_bytes", "blocks_in_flight", "waits", "wait_s"), 0)
    assert len(buffer[:]) == 0


def test_stats_count_what_happened(make_buffer: MakeBuffer) -> None:
    buffer = fill(make_buffer(10), 13)

    def counts() -> tuple[int, ...]:
        return tuple(buffer.stats()[k] for k in ("inserted", "overwritten", "sampled", "redraws"))

    assert counts() == (13, 3, 0, 0)
    batch = buffer.sample(32)
    buffer.sample(32, out=batch)
    buffer.gather([1, 2])
    assert counts() == (13, 3, 64, 0)
    buffer.clear()
    assert counts() == (13, 3, 64, 0)
    fill(buffer, 4)
    assert counts() == (17, 3, 64, 0)
    fill(buffer, 35, chunk=35)
    assert counts() == (52, 3 + 4 + 25, 64, 0)


def test_bytes_are_those_of_the_schema() -> None:
    buffer = NativeBuffer(1000, FIELDS)
    assert buffer.stats()["bytes"] == buffer.nbytes == buffer.schema.nbytes(1000)


def test_clear_forgets_transitions_but_not_tickets(make_buffer: MakeBuffer) -> None:
    buffer = fill(make_buffer(10), 23)
    buffer.clear()
    assert len(buffer) == 0
    with pytest.raises(IndexError):
        buffer[0]
    with pytest.raises(IndexError):
        buffer.gather([3])
    fill(buffer, 4)
    assert_holds(buffer[:], range(23, 27))
    assert_holds(buffer.gather([3, 6]), [23, 26])
    with pytest.raises(IndexError):
        buffer.gather([2])
    buffer.clear()
    buffer.clear()
    fill(buffer, 30)
    assert_holds(buffer[:], range(47, 57))


def test_repr_tells_what_the_buffer_holds() -> None:
    text = repr(fill(NativeBuffer(1234, FIELDS), 56))
    for part in ("ReplayBuffer", "1234", "56", *FIELDS):
        assert part in text


def test_a_refused_clear_or_view_changes_nothing(make_buffer: MakeBuffer) -> None:
    buffer = fill(make_buffer(10), 4)
    with unchanged(buffer), pytest.raises(TypeError):
        buffer.clear(3)
    with unchanged(buffer), pytest.raises(KeyError, match="rewrd"):
        buffer.view("rewrd")


@pytest.mark.parametrize(
    ("timeout", "error", "message"),
    [
        (-1, ValueError, "timeout: expected a non-negative number of seconds, got -1"),
        (-1e-9, ValueError, "timeout: expected a non-negative number of seconds, got -1e-09"),
        (-math.inf, ValueError, "timeout: expected a non-negative number of seconds, got -inf"),
        (math.nan, ValueError, "timeout: expected a non-negative number of seconds, got nan"),
        ("1", TypeError, "timeout: expected seconds or None, got '1'"),
        (True, TypeError, "timeout: expected seconds or None, got True"),
        ([1], TypeError, r"timeout: expected seconds or None, got \[1\]"),
        (1j, TypeError, "timeout: expected seconds or None, got 1j"),
    ],
)
def test_refused_timeouts(timeout: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        NativeBuffer(3, FIELDS, timeout=timeout)
    with pytest.raises(TypeError):
        NativeBuffer(3, FIELDS, 1.0)


@pytest.mark.parametrize("timeout", [None, 0, 0.0, 1, 2.5, 1e-300, 1e300, math.inf, np.float64(0.5)])
def test_timeouts(timeout: Any) -> None:
    buffer = fill(NativeBuffer(3, FIELDS, timeout=timeout), 10)
    assert_holds(buffer[:], [7, 8, 9])


@pytest.mark.parametrize(
    ("lanes", "error", "message"),
    [
        (1.0, TypeError, "lanes: expected an integer, got float 1.0"),
        ("2", TypeError, "lanes: expected an integer, got str '2'"),
        ([2], TypeError, r"lanes: expected an integer, got list \[2\]"),
        (True, TypeError, "lanes: expected an integer, got True"),
        (0, ValueError, "lanes: expected at least 1, got 0"),
        (-3, ValueError, "lanes: expected at least 1, got -3"),
    ],
)
def test_refused_lanes(lanes: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    """Whatever else is told of them: frames that lanes have in common, a file."""
    fields: dict[str, Any] = {"x": (2,), "next_x": (2,), "terminated": ()}
    options: list[dict[str, Any]] = [{}, {"share_next": True}, {"path": tmp_path / "ring"}]
    for each in options:
        with pytest.raises(error, match=f"^{message}$"):
            NativeBuffer(3, fields, lanes=lanes, **each)
    assert not (tmp_path / "ring").exists()
    if not isinstance(lanes, bool):
        with pytest.raises(error, match=f"^{message}$"):
            NativeBuffer.from_env(gym.make("CartPole-v1"), 10, lanes=lanes)


class Mute:
    """An array to NumPy, and to be compared with nothing."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.zeros(3, "datetime64[s]")

    def __eq__(self, other: object) -> bool:
        raise AssertionError

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (np.array(["a", "b", "c"]), r"\(3,\) of <U1"),
        (np.array([None, "a", [1]], object), r"\(3,\) of object"),
        (np.zeros(3, "datetime64[s]"), r"\(3,\) of datetime64\[s\]"),
        (np.zeros((), [("a", "f4"), ("b", "f4")]), r"\(\) of \[\('a', '<f4'\), \('b', '<f4'\)\]"),
        (np.zeros((), "V8"), r"\(\) of \|V8"),
        (Mute(), r"\(3,\) of Mute"),
        ("abc", r"\(\) of str"),
        ({1, 2}, r"\(\) of set"),
        (np.zeros(3), r"\(3,\)"),
    ],
)
def test_a_wrong_shape_of_no_numbers_is_told(value: Any, got: str) -> None:
    buffer = NativeBuffer(3, {"x": (), "y": (2,)})
    with pytest.raises(ValueError, match=rf"^y: expected shape \(2,\), got {got}$"):
        buffer.add(1.0, value)
    with pytest.raises(ValueError, match=rf"^y: expected shape \(2, 2\), got {got}$"):
        buffer.extend(np.zeros(2), value)
    assert buffer.stats()["inserted"] == 0


def test_from_env_takes_a_timeout() -> None:
    gym = pytest.importorskip("gymnasium")
    env = gym.make("CartPole-v1")
    assert NativeBuffer.from_env(env, 10, timeout=0.5)._timeout == 0.5
    with pytest.raises(ValueError, match="timeout"):
        NativeBuffer.from_env(env, 10, timeout=-2)


@pytest.mark.parametrize("size", [2**40, 2**50, 2**58, 2**60, 2**62, 2**63, 2**64, 2**70])
def test_sizes_that_cannot_be_had_are_told_in_our_own_words(
    size: int, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = NativeBuffer(10, {"x": (300,)}, output=output)
    buffer.add(np.zeros(300, np.float32))
    for call in (buffer.sample, buffer.loader):
        with pytest.raises(MemoryError, match=f"batch_size: {size} transitions are more than memory can hold"):
            call(size)
    with pytest.raises(MemoryError, match=f"depth: {size} minibatches are more than memory can hold"):
        buffer.loader(2, depth=size)
    for limit in (None, 2**200):  # where it cannot be told how much there is, and where it is believed to be enough
        monkeypatch.setattr("fastreplay.support.memory_limit.memory_limit", lambda limit=limit: limit)
        with pytest.raises(MemoryError, match=f"capacity: {size} transitions would take [0-9,]+ bytes"):
            NativeBuffer(size, {"x": (300,)}, output=output)
        if size >= 2**58:  # fewer would be tried, one after another
            with pytest.raises(MemoryError, match=f"n: {size} faces would take [0-9,]+ bytes"):
                buffer.spawn(size)


@pytest.mark.parametrize("shape", [(2**58,), (2**61,), (2**40, 2**40), (2**200,)])
def test_fields_too_large_are_named(shape: tuple[int, ...]) -> None:
    for make in (fr.Schema, partial(NativeBuffer, 3)):
        with pytest.raises(ValueError, match=r"^big: expected at most [0-9,]+ bytes, got [0-9,]+ of Field"):
            make({"small": (3,), "big": ((*shape,), "float64")})
    many: Any = {f"f{i}": ((2**56,), "float64") for i in range(3)}
    with pytest.raises(ValueError, match=r"^fields: expected at most [0-9,]+ bytes together, got [0-9,]+$"):
        fr.Schema(many)
    space = gym.spaces.MultiBinary([*shape, 8])
    with pytest.raises(ValueError, match=r"^observation/x: expected at most [0-9,]+ bytes"):
        fr.Schema.from_spaces(gym.spaces.Dict(x=space), space)


def test_bytes_of_any_capacity() -> None:
    schema = fr.Schema({"x": ()})
    assert schema.nbytes(0) == 0
    assert schema.nbytes(2**100) == 2**100 * (schema.record_bytes + 4)
    for bad, error in ((-1, ValueError), (2.5, TypeError), ("3", TypeError), (None, TypeError)):
        with pytest.raises(error, match="capacity: expected"):
            schema.nbytes(bad)  # type: ignore[arg-type]
