# SPDX-License-Identifier: MIT
"""Random schemas and random operations, the native buffer beside the oracle, bit by bit."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from reference import KINDS, ReferenceBuffer
from stall import Thread
from support import FIELDS, IS_LONG_FORM, Array, NativeBuffer, arrays, assert_same, assert_same_bits, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable

TORCH_DTYPES = [*"?bBhHiIlLefdFD"]
NUMPY_DTYPES = [*TORCH_DTYPES, *"gGqQ"]  # long doubles, which torch lacks, and C's long long
SPECIAL = [np.nan, np.inf, -np.inf, -0.0, 1.5, 1e-8, 70000.0, 1e300]

shapes = st.lists(st.integers(1, 4), max_size=4).map(tuple)
seeds = st.integers(0, 2**32)  # of the values: quicker to draw, and to shrink, than the values
names = st.sampled_from(["a", "b", "group/x", "group/y", "group/in/z", "log prob", "r"])


@st.composite
def schemas(draw: st.DrawFn, dtypes: list[str]) -> dict[str, Any]:
    fields = draw(st.dictionaries(names, st.tuples(shapes, st.sampled_from(dtypes)), min_size=1, max_size=6))
    return {name: fields[name] for name in draw(st.permutations(list(fields)))}


def raw(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """Any bits that the dtype can hold, signalling NaNs and subnormals too."""
    if dtype.kind == "b":
        return rng.integers(2, size=shape).astype(bool)
    if dtype.char in "gG":  # not every pattern of bits is a long double
        parts = rng.choice([*SPECIAL, *rng.normal(size=8)], size=(*shape, 1 + (dtype.char == "G")))
        return (parts.astype("g") / 3).view(dtype)[..., 0]
    count = int(np.prod(shape, dtype=int))
    return np.frombuffer(rng.bytes(count * dtype.itemsize), dtype).reshape(shape).copy()


def castable(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """Values of another dtype that the field must take."""
    others = [np.dtype(name) for name in NUMPY_DTYPES]
    others = [other for other in others if KINDS[other.kind] <= KINDS[dtype.kind]]
    other = others[rng.integers(len(others))]
    if other.kind in "fc":
        with np.errstate(over="ignore"):
            return rng.choice(np.array(SPECIAL), size=shape).astype(other)
    low = 0 if "u" in (other.kind, dtype.kind) or other.kind == "b" else -128
    return rng.integers(low, 2 if other.kind == "b" else 128, size=shape).astype(other)


def strided(rng: np.random.Generator, value: Array) -> Any:
    """The same values, elsewhere in memory."""
    way = rng.integers(5)
    if way == 0 and value.ndim:
        return np.repeat(value, 2, axis=-1)[..., ::2]
    if way == 1 and value.ndim:
        return np.ascontiguousarray(value[::-1])[::-1]
    if way == 2:
        return value.copy(order="F")
    if way == 3:
        moved = np.empty(value.nbytes + 1, "u1")[1:].view(value.dtype).reshape(value.shape)
        moved[...] = value
        return moved
    return value


def as_passed(rng: np.random.Generator, value: Array) -> Any:
    """An array as an array, a tensor, a scalar or a list."""
    way = rng.integers(6)
    if way == 0 and value.dtype.char not in "gGQqP" and value.dtype.isnative:
        return torch.from_numpy(value)
    if way == 1 and value.ndim == 0 and value.dtype.kind in "biu":
        return value.item()
    if way == 2 and value.dtype.kind in "bi" and value.size:
        return value.tolist()
    if way == 3 and value.ndim == 0:
        return value[()]
    return strided(rng, value)


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """Turn {"a/b": 1} into {"a": {"b": 1}}."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        level = nested
        for parent in parents:
            level = level.setdefault(parent, {})
        level[leaf] = value
    return nested


class BufferMachine(RuleBasedStateMachine):
    """Do the same to both; whatever comes back must be the same, and so must the rest."""

    output = "torch"
    dtypes = TORCH_DTYPES

    @initialize(data=st.data(), capacity=st.integers(1, 50), seed=seeds)
    def make(self, data: st.DataObject, capacity: int, seed: int) -> None:
        fields = data.draw(schemas(self.dtypes), label="fields")
        self.native: Any = NativeBuffer(capacity, fields, seed=seed, output=self.output)
        self.oracle = ReferenceBuffer(capacity, fields, seed=seed)
        self.capacity = capacity
        self.saved = self.oracle.rng_state
        self.held: list[tuple[Any, dict[str, Array]]] = []  # minibatches and what they showed
        self.lost_stats = {"inserted": 0, "overwritten": 0, "sampled": 0}  # by pickling

    def values(self, rng: np.random.Generator, lead: tuple[int, ...]) -> dict[str, Any]:
        make = [raw, castable][int(rng.random() < 0.4)]
        return {
            name: as_passed(rng, make(rng, (*lead, *field.shape), field.dtype))
            for name, field in self.oracle.fields.items()
        }

    def insert(self, call: str, rng: np.random.Generator, values: dict[str, Any]) -> None:
        way = rng.integers(3)
        for buffer in (self.native, self.oracle):
            if way == 0:
                getattr(buffer, call)(*values.values())
            elif way == 1:
                getattr(buffer, call)(**dict(reversed(values.items())))
            else:
                getattr(buffer, call)(**nest(values))

    def compare(self, read: Callable[[Any], Any]) -> None:
        batch = read(self.native)
        assert_same(batch, read(self.oracle))
        self.held = [*self.held[-3:], (batch, arrays(batch))]

    @rule(seed=seeds)
    def add(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.insert("add", rng, self.values(rng, ()))

    @rule(seed=seeds, count=st.integers(0, 120))
    def extend(self, seed: int, count: int) -> None:
        rng = np.random.default_rng(seed)
        self.insert("extend", rng, self.values(rng, (count,)))

    @rule(seed=seeds, call=st.sampled_from(["add", "extend"]), data=st.data())
    def refuse(self, seed: int, call: str, data: st.DataObject) -> None:
        rng = np.random.default_rng(seed)
        lead = () if call == "add" else (int(rng.integers(1, 60)),)
        values = self.values(rng, lead)
        name = data.draw(st.sampled_from(list(values)), label="field")
        field = self.oracle.fields[name]
        bad = ["shape", "missing", "unknown", "string"]
        if field.dtype.kind != "c":
            bad.append("kind")
        if field.dtype.kind in "iu":
            bad.append("range")
        match data.draw(st.sampled_from(bad), label="bad"):
            case "shape":
                values[name] = np.zeros((*lead, *field.shape, 1), field.dtype)
            case "missing":
                del values[name]
            case "unknown":
                values["stranger"] = 1
            case "string":
                values[name] = np.full((*lead, *field.shape), "1")
            case "kind":
                values[name] = np.zeros((*lead, *field.shape), "complex64")
            case "range":
                values[name] = np.zeros((*lead, *field.shape), "uint64")
                values[name][(-1,) * values[name].ndim] = 2**64 - 1
                if field.dtype.itemsize == 8 and field.dtype.kind == "u":
                    values[name] = np.full((*lead, *field.shape), -1)
        raised = []
        for buffer in (self.native, self.oracle):
            with pytest.raises((TypeError, ValueError)) as caught:
                getattr(buffer, call)(**values)
            raised.append(caught.type)
        assert raised[0] is raised[1]

    @precondition(lambda self: len(self.oracle) > 0)
    @rule(batch_size=st.integers(1, 70))
    def sample(self, batch_size: int) -> None:
        self.compare(lambda b: b.sample(batch_size))

    @precondition(lambda self: len(self.oracle) > 0 and self.held)
    @rule()
    def sample_into(self) -> None:
        out, _ = self.held[-1]
        if out.ticket.ndim == 1 and len(out) > 0:
            expected = self.oracle.sample(len(out))
            assert self.native.sample(len(out), out=out) is out
            assert_same(out, expected)
            self.held[-1] = (out, arrays(out))

    @precondition(lambda self: len(self.oracle) == 0)
    @rule(batch_size=st.integers(1, 70))
    def sample_nothing(self, batch_size: int) -> None:
        for buffer in (self.native, self.oracle):
            with pytest.raises(ValueError, match=r"empty|no transition"):
                buffer.sample(batch_size)

    @precondition(lambda self: len(self.oracle) > 0)
    @rule(seed=seeds, count=st.integers(0, 60))
    def gather(self, seed: int, count: int) -> None:
        last = int(arrays(self.oracle[-1])["ticket"])
        ages = np.random.default_rng(seed).integers(len(self.oracle), size=count)
        self.compare(lambda b: b.gather((last - ages) % self.capacity))

    @precondition(lambda self: len(self.oracle) > 0)
    @rule(seed=seeds, count=st.integers(0, 60))
    def read_by_index(self, seed: int, count: int) -> None:
        size = len(self.oracle)
        index = np.random.default_rng(seed).integers(-size, size, size=count)
        self.compare(lambda b: b[index])
        if count:
            self.compare(lambda b: b[int(index[0])])

    @rule(data=st.data())
    def read_by_slice(self, data: st.DataObject) -> None:
        index = data.draw(st.slices(max(len(self.oracle), 1)), label="slice")
        self.compare(lambda b: b[index])

    @precondition(lambda self: len(self.oracle) > 0)
    @rule(seed=seeds)
    def write_into_a_view(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        name = rng.choice(list(self.oracle.fields))
        slot = int(arrays(self.oracle[-1])["ticket"]) % self.capacity
        field = self.oracle.fields[name]
        value = raw(rng, field.shape, field.dtype)
        for buffer in (self.native, self.oracle):
            buffer.view(name)[slot] = value

    @rule()
    def clear(self) -> None:
        self.native.clear()
        self.oracle.clear()

    @rule(protocol=st.sampled_from([None, 2, 3, 4, 5]))
    def replace_by_a_copy(self, protocol: int | None) -> None:
        old = self.native
        if protocol is None:
            self.native = copy.deepcopy(old)
        else:
            self.native = pickle.loads(pickle.dumps(old, protocol))
        for key in self.lost_stats:
            self.lost_stats[key] += old.stats()[key] - self.native.stats()[key]

    @rule()
    def save_rng_state(self) -> None:
        self.saved = self.native.rng_state

    @rule()
    def restore_rng_state(self) -> None:
        self.native.rng_state = self.saved
        self.oracle.rng_state = self.saved

    @rule()
    def drop_minibatches(self) -> None:
        self.held = []

    @invariant()
    def same_state(self) -> None:
        self.oracle.check_valid()
        assert len(self.native) == len(self.oracle)
        assert self.native.rng_state == self.oracle.rng_state
        got, expected = self.native.stats(), self.oracle.stats()
        for key, lost in self.lost_stats.items():
            assert got[key] + lost == expected[key], key
        assert got["redraws"] == 0
        assert_same(self.native[:], self.oracle[:])

    @invariant()
    def minibatches_stay(self) -> None:
        for batch, seen in self.held:
            assert_same(batch, seen)

    def teardown(self) -> None:
        if not hasattr(self, "native"):
            return
        slots = arrays(self.oracle[:])["ticket"] % self.capacity
        for name in self.oracle.fields:
            assert_same_bits(self.native.view(name)[slots], self.oracle.view(name)[slots])


class NumpyMachine(BufferMachine):
    output = "numpy"
    dtypes = NUMPY_DTYPES


@pytest.mark.parametrize("machine", [BufferMachine, NumpyMachine])
def test_native_is_the_oracle(machine: type[BufferMachine]) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=100 if IS_LONG_FORM else 50, stateful_step_count=30)
    )


OURS, THEIRS = 0, 1_000_000  # ids of the rows that the machine inserts, and of those of the writer beside it


class SharedMachine(RuleBasedStateMachine):
    """Another thread inserts through a face all the time: not equality, but what always holds."""

    output = "torch"

    @initialize(capacity=st.integers(8, 200), most=st.integers(1, 1500), pause=st.sampled_from([0.0, 0.0002]))
    def make(self, capacity: int, most: int, pause: float) -> None:
        self.fields = {**FIELDS, "padding": ((40,), "int64")}
        self.native: Any = NativeBuffer(capacity, self.fields, seed=capacity, output=self.output)
        self.capacity = capacity
        self.num_ours = 0
        self.id_of: dict[int, int] = {}
        self.held: list[tuple[Any, dict[str, Array]]] = []
        self.insert_ours("extend", 1)
        self.stop = threading.Event()
        self.interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-4)
        self.writer = Thread(self.write, self.native.spawn(1)[0], most, pause)

    def rows(self, first: int, count: int) -> dict[str, Array]:
        ids = np.arange(first, first + count)
        return {**rows_of(ids), "padding": np.repeat(ids[:, None], 40, axis=1)}

    def write(self, face: Any, most: int, pause: float) -> int:
        """From 91 rows of 360 bytes on without the GIL."""
        rng = np.random.default_rng(most)
        written = 0
        while not self.stop.wait(pause):
            count = int(rng.integers(1, most + 1))
            if rng.random() < 0.3:
                count = 1
                face.add(**{name: value[0] for name, value in self.rows(THEIRS + written, 1).items()})
            else:
                face.extend(**self.rows(THEIRS + written, count))
            written += count
        return written

    def insert_ours(self, call: str, count: int) -> None:
        rows = self.rows(OURS + self.num_ours, count)
        if call == "add":
            self.native.add(**{name: value[0] for name, value in rows.items()})
        else:
            self.native.extend(**rows)
        self.num_ours += count

    def check(self, batch: Any, *, hold: bool = True) -> Array:
        """Whole rows; a ticket has one row; a row has one ticket."""
        seen = arrays(batch)
        ids, tickets = seen["action"][..., 0], seen["ticket"]
        rows = {**rows_of(np.atleast_1d(ids)), "padding": np.repeat(np.atleast_1d(ids)[:, None], 40, axis=1)}
        if ids.ndim == 0:
            rows = {name: value[0, ...] for name, value in rows.items()}
        assert_same(seen, {**rows, "ticket": tickets})
        for ticket, row in zip(np.atleast_1d(tickets).tolist(), np.atleast_1d(ids).tolist(), strict=True):
            assert self.id_of.setdefault(ticket, row) == row
        if hold:
            self.held = [*self.held[-3:], (batch, seen)]
        return np.atleast_1d(tickets)

    def check_within(self, tickets: Array, oldest: int) -> None:
        """Rows come from the window of a moment between then (its oldest ticket) and now."""
        if len(tickets):
            assert tickets.min() >= oldest
            assert tickets.max() < self.native.stats()["inserted"]

    def oldest(self) -> int:
        return max(0, int(self.native.stats()["inserted"]) - self.capacity)

    @rule()
    def add(self) -> None:
        self.insert_ours("add", 1)

    @rule(count=st.integers(0, 400))
    def extend(self, count: int) -> None:
        self.insert_ours("extend", count)

    @rule(batch_size=st.sampled_from([1, 20, 64, 700]))
    def sample(self, batch_size: int) -> None:
        oldest = self.oldest()
        try:
            batch = self.native.sample(batch_size)
        except ValueError:  # cleared
            assert self.cleared
            return
        assert len(batch) == batch_size
        self.check_within(self.check(batch), oldest)

    @rule(batch_size=st.sampled_from([20, 700]))
    def sample_into(self, batch_size: int) -> None:
        out = next((batch for batch, _ in self.held if batch.ticket.ndim and len(batch) == batch_size), None)
        if out is None or self.cleared:
            return
        self.held = [(batch, seen) for batch, seen in self.held if batch is not out]
        oldest = self.oldest()
        assert self.native.sample(batch_size, out=out) is out
        self.check_within(self.check(out), oldest)

    @rule(seed=seeds)
    def gather(self, seed: int) -> None:
        slots = np.random.default_rng(seed).integers(self.capacity, size=3)
        try:
            tickets = self.check(self.native.gather(slots))
        except IndexError:  # a slot that is being written, or was cleared
            return
        assert np.array_equal(tickets % self.capacity, slots)

    @rule(seed=seeds)
    def read_by_index(self, seed: int) -> None:
        index = int(np.random.default_rng(seed).integers(self.capacity))
        try:
            self.check(self.native[index])
            self.check(self.native[[-1]])
        except IndexError:
            return

    @rule()
    def read_neighbours(self) -> None:
        try:
            tickets = self.check(self.native[-3:])
        except IndexError:
            return
        assert (np.diff(tickets) == 1).all()

    @rule(protocol=st.sampled_from([None, 4, 5]))
    def copy_it(self, protocol: int | None) -> None:
        before = self.oldest()
        other = copy.deepcopy(self.native) if protocol is None else pickle.loads(pickle.dumps(self.native, protocol))
        tickets = self.check(other[:], hold=False)
        assert (np.diff(tickets) == 1).all()
        assert len(tickets) == len(other) <= self.capacity
        self.check_within(tickets, before)
        assert other.rng_state == self.native.rng_state

    @rule()
    def clear(self) -> None:
        before = self.native.stats()["inserted"]
        self.native.clear()
        self.cleared = True
        if len(batch := self.native[:0]) == 0 and len(self.native):
            try:
                batch = self.native[[0]]
            except IndexError:
                return
            assert arrays(batch)["ticket"][0] >= before

    cleared = False

    @rule()
    def a_seed_gives_the_same_number_of_calls(self) -> None:
        calls = self.native.rng_state["calls"]
        face = self.native.spawn(1)[0]
        assert face.rng_state["calls"] == 0
        assert self.native.rng_state["calls"] == calls

    @invariant()
    def counts_are_sane(self) -> None:
        before = self.native.stats()
        length = len(self.native)
        after = self.native.stats()
        assert 0 <= length <= self.capacity
        assert before["inserted"] <= after["inserted"]
        assert before["overwritten"] <= after["overwritten"] <= after["inserted"]
        if not self.cleared:
            assert after["overwritten"] <= max(0, self.native.stats()["inserted"] - self.capacity)

    @invariant()
    def minibatches_stay(self) -> None:
        for batch, seen in self.held:
            assert_same(batch, seen)

    def teardown(self) -> None:
        if not hasattr(self, "writer"):
            return
        self.stop.set()
        try:
            num_theirs = self.writer.finish()
        finally:
            sys.setswitchinterval(self.interval)
        total = self.num_ours + num_theirs
        assert self.native.stats()["inserted"] == total
        tickets = self.check(self.native[:])
        assert np.array_equal(tickets, np.arange(total - len(tickets), total))
        assert self.cleared or len(tickets) == min(total, self.capacity)
        ids = np.array([row for _, row in sorted(self.id_of.items())])
        for mine in (ids[ids < THEIRS], ids[ids >= THEIRS]):
            assert (np.diff(mine) > 0).all()


class SharedNumpyMachine(SharedMachine):
    output = "numpy"


@pytest.mark.parametrize("machine", [SharedMachine, SharedNumpyMachine])
def test_what_always_holds_beside_another_writer(machine: type[SharedMachine]) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=40, stateful_step_count=30))
