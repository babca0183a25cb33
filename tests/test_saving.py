# SPDX-License-Identifier: MIT
"""Pickles of anything large: in little memory, of no module of NumPy's own, and refused whole where malformed."""

from __future__ import annotations

import copy
import io
import pickle
import pickletools
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from shares import by_turns
from support import FIELDS, NativeBuffer, arrays, assert_holds, assert_same, fill, transitions, unchanged

import fastreplay as fr
import fastreplay.cleanrl
import fastreplay.sb3 as fsb3

if TYPE_CHECKING:
    from collections.abc import Callable

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

# Reads and resets the highest number of bytes that this process had in memory.
PEAK = """
import copy, io, os, pickle, sys, tempfile
import numpy as np
MIB = 1 << 20

def in_memory(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

def assert_takes(limit, function, *what):
    # The machine may add pages of its own (of files, of huge pages) to what is counted, but not each time.
    peaks = []
    while not peaks or (peaks[-1] >= limit and len(peaks) < 3):
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        before = in_memory("VmRSS")
        function()
        peaks.append(in_memory("VmHWM") - before)
    assert peaks[-1] < limit, (*what, limit / MIB, [peak / MIB for peak in peaks])

def dump(buffer, protocol):
    with open(path, "wb") as file:
        pickle.dump(buffer, file, protocol)

def load():
    with open(path, "rb") as file:
        return pickle.load(file)

path = tempfile.mkstemp()[1]
rng = np.random.default_rng(0)
"""
MAKE = """
import fastreplay as fr, fastreplay.cleanrl as cleanrl, fastreplay.sb3 as fsb3
from gymnasium import spaces
box = spaces.Box(-1, 1, (12,), np.float32)
goals = spaces.Dict({"observation": box, "achieved_goal": box, "desired_goal": box})
options = {"observation_space": box, "action_space": box, "device": "cpu"}
goal_options = {**options, "observation_space": goals}
MAKERS = {
    "native": lambda: fr.ReplayBuffer(150_000, {"o": (17,), "n": (17,), "r": ()}, output="numpy"),
    "ReplayBuffer": lambda: fsb3.ReplayBuffer(150_000, **options),
    "NStepReplayBuffer": lambda: fsb3.NStepReplayBuffer(150_000, **options),
    "DictReplayBuffer": lambda: fsb3.DictReplayBuffer(80_000, **goal_options),
    "HerReplayBuffer": lambda: fsb3.HerReplayBuffer(80_000, env=None, **goal_options),
    "cleanrl": lambda: cleanrl.ReplayBuffer(150_000, **options),
}

def fill(buffer):
    if isinstance(buffer, fr.ReplayBuffer):
        for start in range(0, 150_000, 3000):
            buffer.extend(*(rng.random((3000, *shape), np.float32) for shape in ((17,), (17,), ())))
        return buffer.nbytes
    views = buffer._table.columns().values()
    views = [part for view in views for part in (view.values() if isinstance(view, dict) else [view])]
    for view in views:
        for start in range(0, len(view), 4000):
            view[start : start + 4000] = rng.random(view[start : start + 4000].shape)
    buffer.full = True
    return sum(view.nbytes for view in views)
"""
MEASURE = """
def measure(kind):
    buffer = MAKERS[kind]()
    nbytes = fill(buffer)
    assert nbytes > 15 * MIB
    whole = 1.3 * nbytes + 6 * MIB
    for protocol in (4, 5) if kind == "native" else (5,):
        assert_takes(6 * MIB, lambda: dump(buffer, protocol), kind, protocol)
        assert os.path.getsize(path) > nbytes * 0.7
        assert_takes(whole, load, kind, "load", protocol)
    assert_takes(os.path.getsize(path) + 6 * MIB, lambda: pickle.dumps(buffer), kind, "dumps")
    assert_takes(whole, lambda: copy.deepcopy(buffer), kind, "deepcopy")

for kind in MAKERS:  # each in a process of its own: what one leaves on the heap is another's peak
    if not (child := os.fork()):
        measure(kind)
        sys.exit()
    assert os.waitpid(child, 0)[1] == 0, kind
    print(kind)
os.remove(path)
"""


@by_turns(1, 4)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self")
def test_pickling_takes_little_memory_whatever_the_size() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK + MAKE + MEASURE], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["native", *ADAPTERS]


BOX = spaces.Box(-1, 1, (5,), np.float32)
GOALS = spaces.Dict(dict.fromkeys(("observation", "achieved_goal", "desired_goal"), BOX))


def adapter(kind: str, rows: int = 40) -> Any:
    """Make a buffer that stands for another library's, with random contents."""
    space = GOALS if kind in ("HerReplayBuffer", "DictReplayBuffer") else BOX
    options: dict[str, Any] = {"env": None} if kind == "HerReplayBuffer" else {}
    cls: Any = fastreplay.cleanrl.ReplayBuffer if kind == "cleanrl" else getattr(fsb3, kind)
    buffer = cls(rows * 2, space, BOX, device="cpu", n_envs=2, **options)
    rng = np.random.default_rng(0)
    for view in parts(buffer):
        view[...] = rng.random(view.shape) * 8
    buffer.pos, buffer.full = 3, True
    if kind == "HerReplayBuffer":
        buffer.ep_start = rng.integers(rows, size=buffer.ep_start.shape)
        buffer.ep_length = rng.integers(4, size=buffer.ep_length.shape)
    return buffer


def parts(buffer: Any) -> list[Any]:
    views = buffer._table.columns().values()
    return [part for view in views for part in (view.values() if isinstance(view, dict) else [view])]


ADAPTERS = ["ReplayBuffer", "NStepReplayBuffer", "DictReplayBuffer", "HerReplayBuffer", "cleanrl"]


def names_in(data: bytes) -> set[str]:
    """Return the modules that a pickle names."""
    named: set[str] = set()
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "GLOBAL":
            named.add(str(argument).split()[0])
        elif opcode.name == "STACK_GLOBAL":
            named.update(strings)
        if isinstance(argument, str):
            strings.append(argument)
    return named


def test_the_names_in_a_pickle_are_found() -> None:
    for protocol in PROTOCOLS:
        assert any("multiarray" in name or "numeric" in name for name in names_in(pickle.dumps(np.zeros(2), protocol)))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pickles_name_no_module_that_numpy_moves(protocol: int, output: str) -> None:
    """What NumPy 2 wrote is read under NumPy 1.26, which lacks its numpy._core.numeric."""
    buffer = fill(NativeBuffer(30, FIELDS, seed=0, output=output), 40)
    batch = buffer.sample(5)
    nested = fr.Schema.from_spaces(GOALS, BOX)
    wide = NativeBuffer(3, {"x": ((), "complex128"), "y": ((2,), "longdouble")}, output="numpy")
    for value in (buffer, batch, batch.numpy(), buffer[3], buffer.schema, nested, wide, buffer.spawn(1)[0]):
        data = pickle.dumps(value, protocol)
        assert not [name for name in names_in(data) if name.startswith("numpy.")]
        pickle.loads(data)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapters_contents_name_none_either(kind: str) -> None:
    """Its spaces are Gymnasium's, and hold arrays; the contents are not NumPy's to pickle."""
    buffer = adapter(kind)
    for protocol in PROTOCOLS:
        state = {name: value for name, value in buffer.__getstate__().items() if not name.endswith("_space")}
        saved = buffer._table.save()
        assert not [name for name in names_in(pickle.dumps(saved, protocol)) if name.startswith("numpy.")]
        assert state.keys() >= {"rewards", "pos"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("rows", [40, 20_000])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_keep_every_bit(kind: str, rows: int, protocol: int) -> None:
    if rows > 100 and protocol not in (2, 4, 5):
        pytest.skip("one of the other tests' protocols will do")
    buffer = adapter(kind, rows)
    for again in (pickle.loads(pickle.dumps(buffer, protocol)), copy.deepcopy(buffer), copy.copy(buffer)):
        assert type(again) is type(buffer)
        assert (again.pos, again.full, again.n_envs) == (3, True, 2)
        for got, expected in zip(parts(again), parts(buffer), strict=True):
            assert not np.shares_memory(got, expected)
            np.testing.assert_array_equal(got, expected, strict=True)
        if kind == "HerReplayBuffer":
            np.testing.assert_array_equal(again.ep_start, buffer.ep_start)
            np.testing.assert_array_equal(again.ep_length, buffer.ep_length)
            assert len(again._valid) == len(buffer._valid)


@pytest.mark.share(3)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pure_python_picklers(protocol: int, output: str) -> None:
    """They take a thousand pieces at once."""
    buffer = NativeBuffer(30_000, {"x": (40,), "i": ((), "int64")}, seed=0, output=output)
    buffer.extend(np.random.default_rng(0).random((30_000, 40), np.float32), np.arange(30_000))
    for value in (buffer, buffer.sample(9), adapter("ReplayBuffer", 4000)):
        file = io.BytesIO()
        pickle._Pickler(file, protocol).dump(value)
        file.seek(0)
        again = pickle._Unpickler(file).load()
        if isinstance(value, fr.ReplayBuffer):
            assert_same(again[:], value[:])
            assert_same(again.sample(50), value.sample(50))
        elif isinstance(value, fr.Minibatch):
            assert_same(again, value)
        else:
            np.testing.assert_array_equal(again.observations, value.observations)


@pytest.mark.parametrize("freeze", [bytes, bytearray])
def test_out_of_band_buffers(output: str, freeze: Callable[[Any], Any]) -> None:
    buffer = fill(NativeBuffer(30, FIELDS, seed=0, output=output), 40)
    for value in (buffer, buffer.sample(9), buffer[0]):
        taken: list[Any] = []
        data = pickle.dumps(value, 5, buffer_callback=taken.append)
        again = pickle.loads(data, buffers=[freeze(each.raw()) for each in taken])
        assert_same(again[:] if value is buffer else again, value[:] if value is buffer else value)
        if value is not buffer:
            assert len(taken) == len(FIELDS) + 1
            again.numpy()["reward"][...] = 3  # its own memory, and writable


class Disturbing(io.RawIOBase):
    """A file whose every write calls something first."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.data = bytearray()
        self.call = call

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.call()
        self.data += memoryview(data).cast("B")
        return memoryview(data).nbytes


@pytest.mark.parametrize(("at", "count"), [(0, 700), (3, 700), (40, 5000), (40, 19_000), (70, 20_000), (0, 60_000)])
def test_writers_go_on_while_a_buffer_is_pickled(at: int, count: int) -> None:
    """What they overwrite before it is read is left out; what is saved is whole, and the newest of a moment."""
    fields = {"t": ((), "int64"), "x": ((60,), "int64")}
    buffer = NativeBuffer(20_000, fields, seed=0, output="numpy")

    def insert(count: int) -> None:
        t = np.arange(inserted := buffer.stats()["inserted"], inserted + count)
        buffer.extend(t, np.repeat(t[:, None], 60, axis=1) * 3)

    insert(30_000)
    num_writes = 0

    def disturb() -> None:
        nonlocal num_writes
        if num_writes == at:
            insert(count)
        num_writes += 1

    file = Disturbing(disturb)
    pickle.dump(buffer, file, 4)
    again = pickle.loads(file.data)
    batch = again[:]
    assert np.array_equal(batch.t, batch.ticket)
    assert np.array_equal(batch.x, np.repeat(batch.t[:, None] * 3, 60, axis=1))
    assert num_writes > at
    assert len(again) >= (20_000 - count if count <= 5000 else 5000)
    newest = batch.t[-1]
    assert newest == 29_999 or (count > 5000 and newest == 29_999 + count)
    again.add(0, np.zeros(60, np.int64))
    assert again[-1].ticket == newest + 1  # tickets go on where the pickled ones end


LARGEST = 2**62


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda state: {name: value for name, value in state.items() if name != key}


def state_of(buffer: Any) -> dict[str, Any]:
    state: dict[str, Any] = buffer.__reduce__()[2]
    return {**state, "columns": tuple(state["columns"])}


BAD_STATES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "near 2^64": lambda s: {**s, "first": 2**64 - 3},
    "2^64": lambda s: {**s, "first": 2**64},
    "2^63": lambda s: {**s, "first": 2**63 - 3},
    "too large with its rows": lambda s: {**s, "first": LARGEST - 2},
    "negative": lambda s: {**s, "first": -1},
    "a float": lambda s: {**s, "first": 3.0},
    "a flag": lambda s: {**s, "first": True},
    "a string": lambda s: {**s, "first": "3"},
    "none": lambda s: {**s, "first": None},
    "no state": lambda _: None,
    "a list": lambda s: list(s.items()),
    "empty": lambda _: {},
    **{f"no {key}": without(key) for key in ("first", "columns", "rng_state", "num_spawned", "extra")},
    "a negative count of faces": lambda s: {**s, "num_spawned": -1},
    "no count of faces": lambda s: {**s, "num_spawned": None},
    "a key more": lambda s: {**s, "more": 1},
    "no columns at all": lambda s: {**s, "columns": None},
    "a string for columns": lambda s: {**s, "columns": "abcde"},
    "a column too few": lambda s: {**s, "columns": s["columns"][:-1]},
    "a column too many": lambda s: {**s, "columns": (*s["columns"], s["columns"][0])},
    "the first shorter": lambda s: {**s, "columns": (s["columns"][0][:-1], *s["columns"][1:])},
    "the last shorter": lambda s: {**s, "columns": (*s["columns"][:-1], s["columns"][-1][:-1])},
    "another dtype": lambda s: {**s, "columns": (s["columns"][0].astype("f8"), *s["columns"][1:])},
    "another shape": lambda s: {**s, "columns": (s["columns"][0][:, :2], *s["columns"][1:])},
    "a number for a column": lambda s: {**s, "columns": (np.float32(1), *s["columns"][1:])},
    "no dimension": lambda s: {**s, "columns": (*s["columns"][:2], np.array(1, "f4"), *s["columns"][3:])},
    "lists": lambda s: {**s, "columns": tuple(column.tolist() for column in s["columns"])},
    "more than fit": lambda s: {**s, "columns": tuple(np.concatenate([c, c]) for c in s["columns"])},
    "no generator": lambda s: {**s, "rng_state": None},
    "half a key": lambda s: {**s, "rng_state": {"key": [1], "calls": 0}},
    "a negative key": lambda s: {**s, "rng_state": {"key": [1, -1], "calls": 0}},
    "a large call": lambda s: {**s, "rng_state": {"key": [1, 1], "calls": 2**64}},
    "a list of attributes": lambda s: {**s, "extra": [1]},
    "numbered attributes": lambda s: {**s, "extra": {3: 1}},
    "a native attribute": lambda s: {**s, "extra": {"_ring": None}},
    "transitions of another schema": lambda s: {**s, "columns": NativeBuffer(9, {"x": ()}).__reduce__()[2]["columns"]},
    "more transitions than fit": lambda s: {
        **s, "columns": fill(NativeBuffer(50, FIELDS), 60).__reduce__()[2]["columns"]
    },
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_STATES.values(), ids=BAD_STATES)
def test_a_malformed_state_leaves_a_live_buffer_as_it_was(case: Callable[[dict[str, Any]], Any], output: str) -> None:
    saved = fill(NativeBuffer(10, FIELDS, seed=1), 27)
    live = fill(NativeBuffer(10, FIELDS, seed=0, output=output), 13)
    live.sample(3)
    live.own = 3
    state = case(state_of(saved))
    attributes = dict(vars(live))
    with unchanged(live), pytest.raises(ValueError, match=r"expected|missing|unknown|is not to be set"):
        live.__setstate__(state)
    assert vars(live) == attributes
    with pytest.raises(ValueError, match=r"expected|missing|unknown|is not to be set"):
        pickle.loads(pickle.dumps(Forged(saved, state)))


class Forged:
    """Pickled as a buffer with another state."""

    def __init__(self, buffer: Any, state: Any) -> None:
        self.buffer, self.state = buffer, state

    def __reduce__(self) -> Any:
        function, arguments, _ = self.buffer.__reduce__()
        # None would say that there is no state.
        return (_set_state, (function(*arguments), self.state)) if self.state is None else (
            function, arguments, self.state)  # fmt: skip


def _set_state(buffer: Any, state: Any) -> Any:
    buffer.__setstate__(state)
    return buffer


def test_a_state_in_each_of_its_forms_is_taken(output: str) -> None:
    """By a live buffer, too: columns as arrays, as a pickle has them, or as `__reduce__` gives them."""
    saved = fill(NativeBuffer(10, FIELDS, seed=1, output=output), 27)
    saved.sample(4)
    lazy = saved.__reduce__()[2]
    for state in (state_of(saved), lazy, copy.deepcopy(lazy), pickle.loads(pickle.dumps(lazy)), {**lazy, "first": 0}):
        live = fill(NativeBuffer(10, FIELDS, seed=0, output=output), 13)
        live.__setstate__(state)
        assert_same(live[:], saved[:])
        assert live.rng_state == saved.rng_state
        live.extend(**transitions(27, 2))
        assert_holds(live[:], np.arange(19, 29))
    moved = {**state_of(saved), "first": LARGEST - 10}
    live.__setstate__(moved)
    assert live[0].ticket == LARGEST - 10
    saved.__setstate__(saved.__reduce__()[2])
    assert_holds(saved[:], np.arange(17, 27))


def forged_pieces(buffer: Any, change: Callable[[list[Any]], list[Any]]) -> bytes:
    """Pickle a buffer whose pieces are changed."""
    state = buffer.__reduce__()[2]
    function, arguments, _, numbers = state["columns"].__reduce_ex__(4)
    numbers = change(list(numbers))

    class Columns:
        def __reduce__(self) -> Any:
            return function, (whole, *arguments[1:]), None, iter(numbers)

    class Whole:
        def __reduce__(self) -> Any:
            return (*buffer.__reduce__()[:2], {**state, "columns": Columns()})

    whole = Whole()
    return pickle.dumps(whole)


BAD_PIECES: dict[str, Callable[[list[Any]], list[Any]]] = {
    "nothing": lambda _: [],
    "the last missing": lambda n: n[:-1],
    "one missing": lambda n: n[:10] + n[11:],
    "one more": lambda n: [*n, 3],
    "one too large": lambda n: [*n[:9], 2**40000, *n[10:]],
    "a negative one": lambda n: [*n[:9], -1, *n[10:]],
    "a float": lambda n: [*n[:9], 0.5, *n[10:]],
    "a flag": lambda n: [*n[:9], True, *n[10:]],
    "bytes": lambda n: [*n[:9], b"abc", *n[10:]],
    "a ticket near 2^64": lambda n: [*n[:6], 2**64 - 3, *n[7:]],
    "a ticket near 2^63": lambda n: [*n[:6], 2**63 - 3, *n[7:]],
    "older than the first": lambda n: [*n[:6], 3, *n[7:]],
    "many rows": lambda n: [*n[:7], 10**12, *n[8:]],
    "rows more than fit": lambda n: [*n[:7], 11, *n[8:]],
    "what is kept begins elsewhere": lambda n: [*n[:3], 3, *n[4:]],
    "nothing begins": lambda n: [*n[:3], *n[6:]],
    "a flag of seven": lambda n: [*n[:-1], 7],
}


@pytest.mark.parametrize("case", BAD_PIECES.values(), ids=BAD_PIECES)
def test_malformed_pieces_are_refused(case: Callable[[list[Any]], list[Any]]) -> None:
    saved = fill(NativeBuffer(10, FIELDS, seed=1), 27)
    assert_holds(pickle.loads(forged_pieces(saved, list))[:], np.arange(17, 27))
    with pytest.raises(ValueError, match=r"expected|longer"):
        pickle.loads(forged_pieces(saved, case))


def test_a_pickle_that_was_cut_is_refused() -> None:
    data = pickle.dumps(fill(NativeBuffer(10, FIELDS, seed=1), 27))
    for length in range(len(data)):
        with pytest.raises((EOFError, pickle.UnpicklingError, ValueError)):
            pickle.loads(data[:length])


BAD_ADAPTER_STATES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no state": lambda _: None,
    "empty": lambda _: {},
    **{f"no {key}": without(key)
       for key in ("rewards", "observations", "next_observations", "pos", "full", "n_envs", "buffer_size", "action_dim",
                   "obs_shape", "action_space", "observation_space")},
    "shorter": lambda s: {**s, "rewards": s["rewards"][:-1]},
    "another dtype": lambda s: {**s, "actions": s["actions"].astype("f8")},
    "none": lambda s: {**s, "timeouts": None},
    "a cursor behind the end": lambda s: {**s, "pos": 41},
    "a negative cursor": lambda s: {**s, "pos": -1},
    "a cursor of another type": lambda s: {**s, "pos": "3"},
    "no rows": lambda s: {**s, "buffer_size": 0},
    "more rows": lambda s: {**s, "buffer_size": 41},
    "fewer environments": lambda s: {**s, "n_envs": 1},
    "negative environments": lambda s: {**s, "n_envs": -2},
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ADAPTER_STATES.values(), ids=BAD_ADAPTER_STATES)
@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_malformed_state_leaves_a_live_adapter_as_it_was(kind: str, case: Callable[[dict[str, Any]], Any]) -> None:
    state, live = dict(adapter(kind).__getstate__()), adapter(kind, 7)
    before = [array.copy() for array in parts(live)]
    attributes = dict(vars(live))
    with pytest.raises(ValueError, match=r"expected|missing|state"):
        live.__setstate__(case(state))
    assert vars(live).keys() == attributes.keys()
    assert all(vars(live)[name] is value for name, value in attributes.items())
    for got, expected in zip(parts(live), before, strict=True):
        np.testing.assert_array_equal(got, expected)
    live.__setstate__(state)
    assert live.rewards.shape == (40, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"ep_start": None},
        {"ep_length": np.zeros((40, 1), np.int64)},
        {"ep_length": np.full((40, 2), 41)},
        {"ep_start": np.full((40, 2), -1)},
        {"ep_start": np.zeros((40, 2))},
        {"_current_ep_start": np.full(2, 40)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_malformed_episodes_are_refused(change: dict[str, Any]) -> None:
    state, live = dict(adapter("HerReplayBuffer").__getstate__()), adapter("HerReplayBuffer", 7)
    starts, num_valid = live.ep_start.copy(), len(live._valid)
    with pytest.raises(ValueError, match=f"{next(iter(change))}: expected"):
        live.__setstate__({**state, **change})
    np.testing.assert_array_equal(live.ep_start, starts)
    assert (len(live._valid), live.buffer_size) == (num_valid, 7)


class Trimming(fsb3.ReplayBuffer):
    """Has a state of its own, of which it looks at the arrays."""

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state["num_rewards"] = len(state["rewards"])
        state["rewards"] = state["rewards"] * 2
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        assert state.pop("num_rewards") == len(state["rewards"]) == len(state["observations"])
        super().__setstate__(state)


def test_subclasses_see_the_arrays_in_their_states() -> None:
    buffer = Trimming(40, BOX, BOX, device="cpu", n_envs=2)
    buffer.rewards[...] = 4
    buffer.observations[...] = 3
    for again in (pickle.loads(pickle.dumps(buffer)), copy.deepcopy(buffer), copy.copy(buffer)):
        assert (again.rewards == 8).all()
        assert (again.observations == 3).all()
        again.observations[...] = 5
        assert (buffer.observations == 3).all()


class Renamed(NativeBuffer):  # type: ignore[misc]
    """Overrides what restoring must not call."""

    def extend(self, *_: Any, **__: Any) -> None:
        raise AssertionError

    def add(self, *_: Any, **__: Any) -> None:
        raise AssertionError


def test_subclasses_of_a_native_buffer(output: str) -> None:
    buffer: Any = Renamed(10, FIELDS, seed=0, output=output)
    NativeBuffer.extend(buffer, **transitions(0, 13))
    buffer.tag = {"a": [1]}
    for again in (pickle.loads(pickle.dumps(buffer)), copy.deepcopy(buffer), copy.copy(buffer)):
        assert type(again) is Renamed
        assert again.tag == {"a": [1]}
        assert_holds(again[:], np.arange(3, 13))
        assert isinstance(again[0].reward, torch.Tensor if output == "torch" else np.ndarray)


def test_what_arrays_gave_before_is_taken(output: str) -> None:
    """The form of a minibatch's pickle that has arrays."""
    from fastreplay.batch.minibatch import _restore

    batch = fill(NativeBuffer(10, FIELDS, seed=0, output=output), 13).sample(4)
    numpy = batch.numpy()
    assert_same(_restore(batch.schema, numpy.values(), numpy.ticket, 4, output == "numpy"), arrays(batch))
