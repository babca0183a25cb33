# SPDX-License-Identifier: MIT
"""The executable specification of `fastreplay.ReplayBuffer`: a NumPy ring, slow and obvious.

It must not know the native library: NumPy and the standard library are all it may import.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

RESERVED = frozenset(["get", "items", "keys", "numpy", "schema", "ticket", "to", "values"])
KINDS = {"b": 0, "i": 1, "u": 1, "f": 2, "c": 3}  # a cast may go up in this order, never down
WORD = 2**64


@dataclass(frozen=True)
class ReferenceMinibatch:
    """Copies of B transitions; an integer index gives rows without the leading axis."""

    columns: dict[str, Array]  # (B, *shape) each, in schema order
    ticket: Array  # (B,) int64

    def __getitem__(self, name: str) -> Array:
        return self.columns[name]

    def __len__(self) -> int:
        return len(self.ticket)

    def numpy(self) -> ReferenceMinibatch:
        return self

    def items(self) -> Iterator[tuple[str, Array]]:
        return iter(self.columns.items())


@dataclass(frozen=True)
class ReferenceField:
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def as_field(name: str, spec: Any) -> ReferenceField:
    """Read a Field, a (shape, dtype) pair or a bare shape."""
    if not isinstance(name, str):
        raise TypeError(f"expected a field name of type str, got {name!r}")
    if not name or name.split("/", maxsplit=1)[0] in RESERVED:
        raise ValueError(f"{name}: expected a field name that is not empty or reserved")
    if hasattr(spec, "dtype"):
        shape, dtype = spec.shape, np.dtype(spec.dtype)
    elif len(spec) == 2 and isinstance(spec[0], tuple):
        shape, dtype = spec[0], np.dtype(spec[1])
    else:
        shape, dtype = spec, np.dtype("float32")
    if dtype.kind not in KINDS:
        raise TypeError(f"{name}: expected a numeric or bool dtype, got {dtype}")
    if not dtype.isnative:
        raise ValueError(f"{name}: expected native byte order, got {dtype.str}")
    shape = tuple(operator.index(size) for size in shape)
    if any(size <= 0 for size in shape):
        raise ValueError(f"{name}: expected a shape of positive sizes, got {shape}")
    return ReferenceField(shape, dtype)


def seed_key(seed: Any) -> list[int]:
    """Turn an int, a SeedSequence, a Generator or None into the two words of the Philox key."""
    if isinstance(seed, np.random.Generator):
        seed = int(seed.integers(2**63))
    if not isinstance(seed, np.random.SeedSequence):
        seed = np.random.SeedSequence(None if seed is None else operator.index(seed))
    return [int(word) for word in seed.generate_state(2, np.uint64)]


def draw(key: list[int], call: int, size: int, count: int) -> list[int]:
    """Draw `count` integers below `size` (Lemire 2019, arXiv:1805.10941) from Philox(key, call)."""
    words = philox(key, 0, call, 0, count)
    indices: list[int] = []
    for row in range(count):
        product, attempt = words[row] * size, 0
        while product % WORD < (WORD - size) % size:  # a word of the row's own then
            attempt += 1
            product = philox(key, row, call, attempt, 1)[0] * size
        indices.append(product // WORD)
    return indices


def philox(key: list[int], first: int, call: int, attempt: int, count: int) -> list[int]:
    """Return the words of counters (first + 1, call, attempt, 0), (first + 2, ...), ... of a key."""
    counter = np.array([first, call, attempt, 0], dtype=np.uint64)
    words = np.random.Philox(key=np.array(key, dtype=np.uint64), counter=counter).random_raw(count)
    return [int(word) for word in words]


class ReferenceBuffer:
    def __init__(self, capacity: int, fields: Mapping[str, Any], *, seed: Any = None) -> None:
        self.capacity = operator.index(capacity)
        if self.capacity <= 0:
            raise ValueError(f"capacity: expected a positive number, got {capacity}")
        if not isinstance(fields, Mapping):
            raise TypeError(f"fields: expected a mapping, got {type(fields).__name__}")
        if not fields:
            raise ValueError("schema: expected at least one field, got none")
        self.fields = {name: as_field(name, spec) for name, spec in fields.items()}
        for name in self.fields:
            if any(other.startswith(f"{name}/") for other in self.fields):
                raise ValueError(f"{name}: expected a field or a group of fields, got both")
        record_bytes = sum(int(np.prod(f.shape)) * f.dtype.itemsize for f in self.fields.values())
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if self.capacity * record_bytes > available:
            needed = self.capacity * record_bytes
            raise MemoryError(f"capacity: {needed} bytes needed, {available} bytes available")
        self._columns = {name: np.zeros((self.capacity, *f.shape), f.dtype) for name, f in self.fields.items()}
        self._tickets = np.full(self.capacity, -1)  # the ticket in each slot; -1: empty
        self._head = 0  # the next ticket
        self._size = 0  # stored transitions: tickets [head - size, head)
        self._overwritten = self._cleared = self._sampled = 0
        self._key = seed_key(seed)
        self._calls = 0

    def __len__(self) -> int:
        return self._size

    def check_valid(self) -> None:
        """Assert what holds between any two calls."""
        window = np.arange(self._head - self._size, self._head)
        assert 0 <= self._size <= self.capacity
        assert self._head == self._size + self._overwritten + self._cleared
        assert np.array_equal(self._tickets[window % self.capacity], window)
        assert np.count_nonzero(self._tickets >= 0) == self._size
        for name, field in self.fields.items():
            assert self._columns[name].shape == (self.capacity, *field.shape)
            assert self._columns[name].dtype == field.dtype

    def stats(self) -> dict[str, float]:
        return {
            "inserted": self._head,
            "overwritten": self._overwritten,
            "lost": 0,
            "sampled": self._sampled,
            "redraws": 0,
            "without_mass": 0,
            "refused": 0,
            "incomplete": 0,
            "bytes": sum(column.nbytes for column in self._columns.values()),
            "pinned_bytes": 0,
            "blocks_in_flight": 0,
            "waits": 0,
            "wait_s": 0.0,
        }

    def view(self, name: str) -> Array:
        return self._columns[name]

    def clear(self) -> None:
        self._cleared += self._size
        self._size = 0
        self._tickets[:] = -1

    @property
    def rng_state(self) -> dict[str, Any]:
        return {"key": list(self._key), "calls": self._calls}

    @rng_state.setter
    def rng_state(self, state: Mapping[str, Any]) -> None:
        if not {"key", "calls"} <= set(state) or len(state["key"]) != 2:
            raise ValueError(f"rng_state: expected two words of key and calls, got {state}")
        words = [operator.index(word) for word in (*state["key"], state["calls"])]
        if not all(0 <= word < WORD for word in words):
            raise ValueError(f"rng_state: expected unsigned 64-bit words, got {words}")
        self._key, self._calls = words[:2], words[2]

    def add(self, *values: Any, **fields: Any) -> None:
        rows = {name: self._cast(name, v) for name, v in self._bind(values, fields).items()}
        for name, row in rows.items():
            self._check_shape(name, row, self.fields[name].shape)
        self._insert({name: row[np.newaxis] for name, row in rows.items()}, 1)

    def extend(self, *values: Any, **fields: Any) -> None:
        rows = {name: self._cast(name, v) for name, v in self._bind(values, fields).items()}
        count: Any = "n"  # unknown until a field tells it
        for name, row in rows.items():
            if count == "n" and row.ndim > 0:
                count = len(row)
            self._check_shape(name, row, (count, *self.fields[name].shape))
        self._insert(rows, count)

    def _insert(self, rows: dict[str, Array], count: int) -> None:
        for i in range(count):
            slot = self._head % self.capacity
            for name, column in self._columns.items():
                column[slot] = rows[name][i]
            self._tickets[slot] = self._head
            self._overwritten += self._size == self.capacity
            self._size = min(self._size + 1, self.capacity)
            self._head += 1

    def _bind(self, values: tuple[Any, ...], fields: Mapping[str, Any]) -> dict[str, Any]:
        """Give every field of the schema, in its order, the value that was passed for it."""
        if len(values) == 1 and hasattr(values[0], "items"):  # a mapping of all, or a minibatch
            given = dict(values[0].items())
            if twice := given.keys() & fields.keys():
                raise TypeError(f"expected one value, got two for {', '.join(map(repr, sorted(twice)))}")
            values, fields = (), {**given, **fields}
        if len(values) > len(self.fields):
            raise TypeError(f"expected {len(self.fields)} values, got {len(values)}")
        bound = dict(zip(self.fields, values, strict=False))
        for name, value in self._flatten(fields.items()):
            if name not in self.fields:
                raise TypeError(f"unknown field {name!r}; expected {', '.join(self.fields)}")
            if name in bound:
                raise TypeError(f"{name}: expected one value, got two")
            bound[name] = value
        for name in self.fields:
            if name not in bound:
                raise TypeError(f"missing field {name!r}")
        return {name: bound[name] for name in self.fields}

    def _flatten(self, items: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in items:
            name = f"{prefix}{key}"
            if name not in self.fields and isinstance(value, Mapping):
                yield from self._flatten(value.items(), f"{name}/")
            elif name not in self.fields and isinstance(value, tuple):
                yield from self._flatten(enumerate(value), f"{name}/")
            else:
                yield name, value

    def _cast(self, name: str, value: Any) -> Array:
        """Convert to the field's dtype; a cast may round, but loses neither kind nor an integer."""
        dtype = self.fields[name].dtype
        try:
            array = np.asarray(self._plain(name, value))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: expected {dtype}, got {error}") from error
        kind = array.dtype.kind
        if kind == "O" and array.size and all(isinstance(v, int) for v in array.flat):
            kind = "i"  # Python integers beyond 64 bits come as objects
        if kind not in KINDS or KINDS[kind] > KINDS[dtype.kind]:
            raise TypeError(f"{name}: expected {dtype}, got {array.dtype}")
        if kind in "iu" and dtype.kind in "iu" and array.size:
            info = np.iinfo(dtype)
            for extreme in (int(array.min()), int(array.max())):
                if not info.min <= extreme <= info.max:
                    raise ValueError(f"{name}: expected a value that fits {dtype}, got {extreme}")
        with np.errstate(all="ignore"):
            return array.astype(dtype)

    def _plain(self, name: str, value: Any) -> Any:
        """Give tensors as arrays, also within lists; refuse masked entries."""
        if isinstance(value, (list, tuple)):
            return [self._plain(name, item) for item in value]
        if np.ma.is_masked(value):
            raise ValueError(f"{name}: expected no masked entries")
        return value.detach().resolve_conj().numpy() if hasattr(value, "detach") else value

    @staticmethod
    def _check_shape(name: str, row: Array, shape: tuple[Any, ...]) -> None:
        if row.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {row.shape}".replace("'", ""))

    def sample(self, batch_size: int, *, out: Any = None) -> ReferenceMinibatch:
        count = operator.index(batch_size)
        if count <= 0:
            raise ValueError(f"batch_size: expected a positive number, got {batch_size}")
        if self._size == 0:
            raise ValueError("sample: expected a buffer that is not empty, got an empty one")
        self._check_out(out, count)
        indices = np.array(draw(self._key, self._calls, self._size, count), dtype=np.int64)
        self._calls += 1
        self._sampled += count
        return self._gather(self._head - self._size + indices, out)

    def __getitem__(self, index: Any) -> ReferenceMinibatch:
        first = self._head - self._size
        if isinstance(index, slice):
            indices = np.arange(self._size)[index]
        elif hasattr(index, "__index__") and np.ndim(index) == 0:
            self._check_range([operator.index(index)], -self._size, self._size)
            indices = np.asarray(index, dtype=np.int64)
        else:
            indices = self._indices(index, -self._size, self._size)
        return self._gather(first + indices % max(self._size, 1), None)

    def gather(self, slots: Any, *, out: Any = None) -> ReferenceMinibatch:
        indices = self._indices(slots, 0, self.capacity)
        if np.any(self._tickets[indices] < 0):
            raise IndexError(f"gather: expected slots that hold a transition, got {slots}")
        self._check_out(out, len(indices))
        return self._gather(self._tickets[indices], out)

    def _indices(self, values: Any, low: int, high: int) -> NDArray[np.int64]:
        array = np.asarray(values)
        if array.size == 0 and not isinstance(values, np.ndarray):
            array = array.astype(np.int64)  # an empty list has no dtype of its own
        if array.dtype == object and all(type(value) is int for value in array.flat):
            self._check_range(array.tolist(), low, high)
            array = array.astype(np.int64)
        if array.dtype.kind not in "iu":
            raise TypeError(f"expected integers, got {array.dtype}")
        if array.ndim != 1:
            raise ValueError(f"expected one axis of integers, got shape {array.shape}")
        self._check_range(array.tolist(), low, high)
        return array.astype(np.int64)

    @staticmethod
    def _check_range(indices: list[int], low: int, high: int) -> None:
        for index in indices:
            if not low <= index < high:
                raise IndexError(f"expected an index in [{low}, {high}), got {index}")

    def _check_out(self, out: Any, count: int) -> None:
        if out is None:
            return
        if not isinstance(out, ReferenceMinibatch):
            raise TypeError(f"out: expected a ReferenceMinibatch, got {type(out).__name__}")
        got = {name: (array.shape, array.dtype) for name, array in out.items()}
        expected = {name: ((count, *f.shape), f.dtype) for name, f in self.fields.items()}
        if list(got.items()) != list(expected.items()):
            raise ValueError(f"out: expected {expected}, got {got}")

    def _gather(self, tickets: Array, out: ReferenceMinibatch | None) -> ReferenceMinibatch:
        rows = {name: column[tickets % self.capacity] for name, column in self._columns.items()}
        if out is None:
            return ReferenceMinibatch({name: np.asarray(row) for name, row in rows.items()}, np.asarray(tickets))
        for name, row in rows.items():
            out[name][...] = row
        out.ticket[...] = tickets
        return out
