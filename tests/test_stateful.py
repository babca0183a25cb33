# SPDX-License-Identifier: MIT
"""Random schemas and random operations, the native buffer beside the oracle, bit by bit."""

from __future__ import annotations

import copy
import pickle
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
from support import Array, NativeBuffer, arrays, assert_same, assert_same_bits

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
    run_state_machine_as_test(machine, settings=settings(max_examples=400, stateful_step_count=30))
