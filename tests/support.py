# SPDX-License-Identifier: MIT
"""What the tests share: schemas, self-describing transitions, comparisons bit by bit."""

from __future__ import annotations

import os
import re
import runpy
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from numpy.typing import NDArray

import fastreplay as fr

Array = NDArray[Any]
# What torch's levels of instructions ask of the CPU, by Linux's names; it dies of a level that is not there.
LEVELS: dict[str, set[str]] = {
    "default": set(),
    "avx2": {"avx2", "fma"},
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"},
}
# What `make stress` runs, and `make test` leaves out: more of the same.
IS_LONG_FORM = "FASTREPLAY_LONG" in os.environ
HAS_GIL: bool = getattr(sys, "_is_gil_enabled", lambda: True)()
IN_LONG_FORM = pytest.mark.skipif(not IS_LONG_FORM, reason="in the long form (make stress)")

NativeBuffer: Any = fr.ReplayBuffer  # untyped: tests also pass what its types refuse

FIELDS: dict[str, Any] = {
    "observation": (3,),
    "action": ((2,), "int64"),
    "reward": (),
    "pixels": ((2, 3), "uint8"),
    "terminated": ((), "bool"),
}


def cpu_flags() -> set[str]:
    """Name the instructions that the CPU has, as Linux does on x86-64; empty elsewhere."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return set(found[1].split()) if found else set()


def level_params(*levels: str) -> list[Any]:
    """Return ATEN_CPU_CAPABILITY's levels as parameters of a test, those that the CPU lacks to be skipped."""
    lacks = {level: sorted(LEVELS[level] - cpu_flags()) for level in levels}
    return [
        pytest.param(
            level, marks=pytest.mark.skipif(bool(lacks[level]), reason=f"the CPU has no {', '.join(lacks[level])}")
        )
        for level in levels
    ]


class MakeBuffer(Protocol):
    """Make a buffer of the implementation under test."""

    def __call__(self, capacity: Any, fields: Any = ..., *, seed: Any = ...) -> Any: ...


def transitions(first: int, count: int) -> dict[str, Array]:
    """Give `count` rows of FIELDS, for the tickets from `first` on."""
    return rows_of(np.arange(first, first + count))


def rows_of(t: NDArray[np.int64]) -> dict[str, Array]:
    """Give the self-describing rows of these tickets, (n, *shape) each."""
    return {
        "observation": (t[:, None] + [0.0, 0.25, 0.5]).astype(np.float32),
        "action": np.stack([t, -t], axis=1),
        "reward": t.astype(np.float32) * 2,
        "pixels": ((t[:, None] * 6 + np.arange(6)) % 256).astype(np.uint8).reshape(-1, 2, 3),
        "terminated": t % 3 == 0,
    }


def fill(buffer: Any, count: int, chunk: int = 7) -> Any:
    """Extend a buffer of FIELDS by `count` self-describing transitions; return the buffer."""
    rows = transitions(buffer.stats()["inserted"], count)
    for start in range(0, count, chunk):
        buffer.extend(**{name: values[start : start + chunk] for name, values in rows.items()})
    return buffer


def arrays(batch: Any) -> dict[str, Array]:
    """Copy a minibatch of either implementation: its fields in schema order, then its tickets."""
    batch = batch.numpy()
    return {**{name: a.copy() for name, a in batch.items()}, "ticket": batch.ticket.copy()}


def assert_same_bits(got: Array, expected: Array) -> None:
    """Compare dtype, shape and every bit (long doubles hold padding: value, sign, NaN instead)."""
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    if got.dtype.char in "gG":
        parts = "g" * (2 if got.dtype.char == "G" else 1)
        got, expected = (np.ascontiguousarray(a).reshape(-1).view(parts[0]) for a in (got, expected))
        np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(np.signbit(got), np.signbit(expected))
    else:
        assert got.tobytes() == expected.tobytes(), f"{got} != {expected}"


def assert_same(got: Any, expected: Any) -> None:
    """Compare two minibatches, or the dictionaries that `arrays` made of them, bit by bit."""
    got, expected = (b if isinstance(b, Mapping) else arrays(b) for b in (got, expected))
    assert list(got) == list(expected)
    for name in expected:
        assert_same_bits(got[name], expected[name])


def assert_holds(batch: Any, tickets: Any) -> None:
    """Assert that a minibatch of FIELDS is the rows of `transitions` with these tickets."""
    tickets = np.asarray(tickets, dtype=np.int64)
    expected = rows_of(np.atleast_1d(tickets))
    if tickets.ndim == 0:
        expected = {name: row[0, ...] for name, row in expected.items()}
    assert_same(batch, {**expected, "ticket": tickets})


@contextmanager
def unchanged(buffer: Any) -> Iterator[None]:
    """Assert that a refused call leaves length, contents, next ticket and generator alone."""

    def state() -> tuple[Any, ...]:
        columns = {name: buffer.view(name).copy() for name in FIELDS}
        return len(buffer), buffer.stats(), buffer.rng_state, columns, arrays(buffer[:])

    before = state()
    yield
    after = state()
    assert after[:3] == before[:3]
    assert_same(after[3], before[3])
    assert_same(after[4], before[4])
    ticket = before[1]["inserted"]
    buffer.extend(**transitions(ticket, 1))
    assert_holds(buffer[-1], ticket)


class MeddlingKey(str):
    """A key that does something when it is compared."""

    __slots__ = ("meddle",)
    meddle: Any

    def __hash__(self) -> int:
        return hash(str(self))

    def __eq__(self, other: object) -> bool:
        self.meddle()
        return str(self) == other


@contextmanager
def handling(number: int, handler: Any) -> Iterator[None]:
    """Handle a signal so, also where the process was started with it ignored, as what shells run beside them."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def run_as_script(path: Path, *arguments: str) -> int | str | None:
    """Run a file as the command line does, but where torch is imported already; return what it exits with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), *arguments])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(path), run_name="__main__")
    return left.value.code
