# SPDX-License-Identifier: MIT
"""What native code is given by Python: objects that were never initialized, or twice; counts and shapes that lie."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from support import FIELDS, MeddlingKey, NativeBuffer, arrays, assert_holds, fill, transitions
from test_fork import in_child

import fastreplay as fr
import fastreplay.cleanrl
import fastreplay.sb3
from fastreplay import _core
from fastreplay.adapters import native_step_table, step_table
from fastreplay.adapters.sb3 import polyak_native
from fastreplay.adapters.step_table import StepField, StepTable
from fastreplay.batch import native_minibatch, tensors
from fastreplay.buffer import insert
from fastreplay.target import watched

if TYPE_CHECKING:
    from collections.abc import Callable

MODULES = (_core, insert, native_step_table, polyak_native, watched, tensors, native_minibatch)


def in_process(work: Callable[[], Any]) -> None:
    """Do what may crash; it must come to its end."""
    if hasattr(os, "fork"):
        in_child(work, timeout_s=300)
    else:
        work()


def test_there_are_classes_to_be_walked() -> None:
    names = {name for module in MODULES for name, value in vars(module).items() if isinstance(value, type)}
    assert {"Ring", "Block", "Sampler", "Prefetcher", "Inserter", "NativeStepTable", "Table", "FieldTensors"} <= names


def fresh(kind: Any) -> Any:
    return kind.__new__(kind)


ARGUMENTS: dict[str, Callable[[type[Any]], Any]] = {
    "None": lambda _: None,
    "0": lambda _: 0,
    "a string": lambda _: "x",
    "a tuple": lambda _: (),
    "a list": lambda _: [],
    "a dict": lambda _: {},
    "an object": lambda _: object(),
    "an array": lambda _: np.zeros(3),
    "one of its own": fresh,
}
# Addresses of functions are taken for what they are.
BY_ADDRESS = {"set_device"}
REFUSALS = (Exception, pytest.skip.Exception)  # the second by what stands for a package that is not installed


def call_everything(argument: Callable[[type[Any]], Any]) -> None:
    """Call every method of every class on objects that were never initialized, and every function."""
    kinds = [
        value
        for module in (*MODULES, step_table, fr, fr.sb3, fr.cleanrl)
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__.startswith("fastreplay")
    ]
    num_calls = 0
    for kind in dict.fromkeys(kinds):
        for name in sorted({*dir(kind)} - {"__class__", "__init_subclass__", "__subclasshook__", "__new__"}):
            for count in range(1 if name in BY_ADDRESS else 9):
                print(kind.__name__, name, count, file=sys.stderr, flush=True)  # for who looks for a crash
                with suppress(*REFUSALS):
                    value = getattr(fresh(kind), name)
                    if callable(value):
                        num_calls += 1
                        value(*[argument(kind)] * count)
    for module in MODULES:
        for name, value in vars(module).items():
            if callable(value) and not isinstance(value, type):
                for count in range(7):
                    print(module.__name__, name, count, file=sys.stderr, flush=True)
                    with suppress(*REFUSALS):
                        value(*[argument(_core.Ring)] * count)
    assert num_calls > 1000


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_objects_that_were_never_initialized_are_refused(argument: str) -> None:
    """Every method and attribute of every native class, and of every public class above one, with any argument."""
    in_process(partial(call_everything, ARGUMENTS[argument]))


def sb3_buffer() -> Any:
    box = spaces.Box(-1, 1, (3,), np.float32)
    return fr.sb3.ReplayBuffer(8, box, box, device="cpu")


SECOND: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "ReplayBuffer": (lambda: fill(NativeBuffer(10, FIELDS), 5), lambda b: b.__init__(10, FIELDS)),
    "ReplayBuffer of another schema": (lambda: fill(NativeBuffer(10, FIELDS), 5), lambda b: b.__init__(1, {"x": ()})),
    "face": (lambda: fill(NativeBuffer(10, FIELDS), 5).spawn(1)[0], lambda b: b.__init__(10, FIELDS)),
    "Schema": (lambda: fr.Schema({"x": ()}), lambda s: s.__init__({"y": (5,)})),
    "Loader": (
        lambda: fill(NativeBuffer(10, FIELDS), 5).loader(2),
        lambda loader: loader.__init__(None, None, None, batch_size=1, depth=1),
    ),
    "StepTable": (
        lambda: StepTable(4, 1, StepField((2,), np.dtype("f4")), StepField((1,), np.dtype("f4"))),
        lambda ring: ring.__init__(400, 3, StepField((5,), np.dtype("f4")), StepField((1,), np.dtype("f4"))),
    ),
    "Inserter": (
        lambda: fill(NativeBuffer(10, FIELDS), 5),
        lambda b: insert.Inserter.__init__(b, b._ring, b.schema, 1),
    ),
    "NativeStepTable": (
        lambda: sb3_buffer()._table,
        lambda ring: native_step_table.NativeStepTable.__init__(ring, ring._records, [], 1, 1, None),
    ),
    "Table": (lambda: watched.Table([], None, True, print), lambda table: table.__init__([], None, True, print)),
}


@pytest.mark.parametrize("name", SECOND)
def test_a_second_init_is_refused_and_changes_nothing(name: str) -> None:
    make, init_again = SECOND[name]
    it = make()
    before = repr(it) if name != "StepTable" else it.schema
    with pytest.raises(RuntimeError, match="__init__ was called before"):
        init_again(it)
    assert (repr(it) if name != "StepTable" else it.schema) == before
    if isinstance(it, fr.ReplayBuffer):
        assert_holds(it[:], range(5))
        it.extend(**transitions(5, 2))
        assert_holds(it[:], range(7))
    if isinstance(it, fr.Loader):
        it.close()


def test_init_again_beside_threads_that_use_the_object() -> None:
    """No thread sees half a buffer: on a buffer it is refused, on an adapter the old ring lives while it is used."""
    buffer = NativeBuffer(64, {"x": (4096,), "y": ()}, output="numpy")
    rows = np.ones((64, 4096), np.float32), np.ones(64, np.float32)
    adapter = sb3_buffer()
    box = spaces.Box(-1, 1, (3,), np.float32)
    one = np.ones((1, 3), np.float32)
    stop = False
    failures: list[BaseException] = []

    def use() -> None:
        try:
            while not stop:
                buffer.extend(*rows)
                assert (buffer.sample(8).x == 1).all()
                adapter.add(one, one, one, np.ones(1, np.float32), np.zeros(1, np.float32), [{}])
        except BaseException as error:  # noqa: BLE001, looked at below
            failures.append(error)

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        with pytest.raises(RuntimeError):
            buffer.__init__(7, {"x": ()})
        adapter.__init__(8, box, box, device="cpu")
    stop = True
    for thread in threads:
        thread.join()
    assert not failures


def test_a_failed_init_may_be_tried_again() -> None:
    buffer: Any = NativeBuffer.__new__(NativeBuffer)
    with pytest.raises(ValueError, match="capacity"):
        buffer.__init__(0, FIELDS)
    with pytest.raises(RuntimeError, match="not initialized"):
        buffer.add(**{name: value[0] for name, value in transitions(0, 1).items()})
    buffer.__init__(10, FIELDS, output="numpy")
    fill(buffer, 3)
    assert_holds(buffer[:], range(3))


def lies(**methods: Any) -> type[fr.Schema]:
    """Make a class of schemas that say something else about themselves."""
    return type("Lies", (fr.Schema,), {"__slots__": (), **methods})


MANY = {f"f{i}": ((3,), "float64") for i in range(200)}
LIES: dict[str, dict[str, Any]] = {
    "fewer": {"__len__": lambda _: 1},
    "more": {"__len__": lambda _: 10_000},
    "the first name": {"__iter__": lambda schema: iter(list(schema._fields)[:1])},
    "names twice": {"__iter__": lambda schema: iter([*schema._fields, *schema._fields])},
    "another order": {"__iter__": lambda schema: iter(reversed(schema._fields)), "position": lambda *_: 199},
    "smaller fields": {"__getitem__": lambda *_: fr.Field((1,), "uint8")},
    "larger fields": {"__getitem__": lambda *_: fr.Field((1 << 20,), "float64")},
    "no values": {"values": lambda _: iter([])},
    "no items": {"items": lambda _: iter([])},
    "one of the names": {"names": property(lambda _: ("f0",))},
    "one size": {"sizes": property(lambda _: [(1, 1)])},
    "small sizes": {"sizes": property(lambda _: [(1, 1)] * 200)},
    "a far position": {"position": lambda *_: 10_000},
    "a position before the first": {"position": lambda *_: -5},
    "no parts": {"parts": property(lambda _: {}), "parts_by_name": property(lambda _: {})},
}


def use_a_lying_schema(name: str) -> None:
    """Make buffers of it, and use them in every way; what is refused is refused."""
    row = {field: np.full(3, i, float) for i, field in enumerate(MANY)}
    refusals = (ValueError, TypeError, RuntimeError, IndexError, KeyError, MemoryError, AttributeError, AssertionError)
    try:
        buffer = NativeBuffer(16, lies(**LIES[name])(MANY), output="numpy")
    except refusals:
        return
    for call in (
        lambda: buffer.add(**row),
        lambda: buffer.add(*row.values()),
        lambda: buffer.add(row),
        lambda: buffer.add(**{field: value.tolist() for field, value in row.items()}),
        lambda: buffer.extend(**{field: np.stack([value] * 5) for field, value in row.items()}),
        lambda: buffer.extend(**{field: [value] * 5 for field, value in row.items()}),
        lambda: buffer.sample(64),
        lambda: buffer.view("f7").sum(),
        lambda: buffer[:],
        lambda: buffer.gather([1]),
        lambda: repr(buffer),
        lambda: next(buffer.loader(4)),
    ):
        for _ in range(20):
            with suppress(*refusals):
                call()


@pytest.mark.parametrize("name", LIES)
def test_schemas_that_lie_are_refused_or_do_no_harm(name: str) -> None:
    in_process(partial(use_a_lying_schema, name))


def test_a_count_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="schema: expected the ring's 200 fields"):
        NativeBuffer(4, lies(**LIES["fewer"])(MANY))


def test_a_schema_that_changes_later_is_refused_by_what_was_made_of_it() -> None:
    buffer = NativeBuffer(4, {"x": (3,), "y": ()}, output="numpy")
    schema = buffer.schema
    schema._fields["x"] = fr.Field((300,), "float64")
    for value in (np.ones(300), [1.0] * 300):
        with pytest.raises(ValueError, match="x: the schema says another shape or dtype"):
            buffer.add(x=value, y=1.0)
    schema._fields["x"] = fr.Field((3,))
    buffer.add(x=[1, 2, 3], y=1.0)
    assert buffer[0].x.tolist() == [1, 2, 3]


# Blocks and rings of different layouts.


def native(fields: dict[str, Any], capacity: int = 10) -> Any:
    buffer = NativeBuffer(capacity, fields, output="numpy")
    buffer.extend(**{name: np.zeros((5, *shape), np.float32) for name, shape in fields.items()})
    return buffer._ring


SMALL, LARGE = {"x": (1,)}, {"x": (1000,), "y": (1000,)}


@pytest.mark.parametrize(("ring", "block"), [(LARGE, SMALL), (SMALL, LARGE)])
def test_blocks_of_another_layout_are_refused(ring: dict[str, Any], block: dict[str, Any]) -> None:
    ours, theirs = native(ring), native(block)
    target = _core.Block(theirs, 4)
    for fill_block in (
        lambda: _core.Sampler((1, 2)).sample(ours, 0.0, target),
        lambda: ours.read(False, np.arange(4), target),
        lambda: ours.read_run(0, target),
    ):
        with pytest.raises(ValueError, match="another layout"):
            fill_block()
    prefetcher = _core.Prefetcher(ours, _core.Sampler((1, 2)), 1, None, _core.Waits())
    with pytest.raises(ValueError, match="another layout"):
        prefetcher.start([("minibatch", target, 0, 0.0)])
    prefetcher.stop()


def test_only_rings_and_rules_are_drawn_from() -> None:
    ours = native(SMALL)
    sources: list[Any] = [None, "ring", ours.records, object()]
    for source in sources:
        with pytest.raises(TypeError):
            _core.Sampler((1, 2)).sample(source, 0.5, _core.Block(ours, 4))


def test_trajectories_of_another_ring_are_refused() -> None:
    ours, theirs = native(SMALL), native(SMALL)
    sampler = _core.Sampler((1, 2), 0, _core.Lanes(theirs, 1, []))
    target = _core.Block(ours, 4)
    with pytest.raises(ValueError, match="another ring's"):
        sampler.sample(ours, 0.0, target)
    prefetcher = _core.Prefetcher(ours, sampler, 1, None, _core.Waits())
    with pytest.raises(ValueError, match="another ring's"):
        prefetcher.start([("minibatch", target, 0, 0.0)])
    prefetcher.stop()


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("O", [1]), ("f8", [1]), ("f4", [-1]), ("f4", [0]), ("f4", [1 << 62, 4]), ("V4", [1]), ("U1", [1])],
)
def test_columns_of_another_form_are_refused(dtype: str, shape: list[int]) -> None:
    with pytest.raises((ValueError, TypeError)):
        native(SMALL).records.column(0, np.dtype(dtype), shape)


def test_rows_of_objects_are_not_copied_as_bytes() -> None:
    with pytest.raises(TypeError):
        _core.take_rows(np.array([object()] * 4), np.arange(2))


# Steps of vector environments.


def table_of_steps(keys: tuple[str, ...] | None = None) -> StepTable:
    part = StepField((3,), np.dtype("f4"))
    return StepTable(4, 1, part if keys is None else dict.fromkeys(keys, part), StepField((1,), np.dtype("f4")))


def test_blocks_that_are_none_are_refused() -> None:
    ring = table_of_steps()
    rows = np.zeros(2, np.int64)
    block = ring.gather(rows, rows)
    assert ring.gather_into(block.native, rows, rows)
    of_transitions = native({"x": (3,), "y": (1,)})
    wrong: list[Any] = [
        None,
        block,
        block.native.flat,
        block.native.capsule(),
        _core.Block(of_transitions, 2),
        _core.Block(ring.parts, 3),
        _core.Block([*ring.parts[1:], ring.parts[0]], 2),
    ]
    for given in wrong:
        with pytest.raises((ValueError, TypeError)):
            ring.gather_into(given, rows, rows)


def test_parts_that_are_none_are_refused() -> None:
    as_stored = _core.AS_STORED
    slots = (2, 8, 0, as_stored)
    unknown = max(_core.CONVERTED_FROM.values()) + 1
    none: list[Any] = [
        [],
        [(0, 4, 0, as_stored)],
        *([(*part, as_stored), slots] for part in ((6, 4, 0), (0, 0, 0), (0, 1 << 62, 0), (0, -1, 0))),
        *([(0, 4, 0, how), slots] for how in ((unknown, *as_stored[1:]), (0, 3, *as_stored[2:]), (*as_stored[:6], -1))),
    ]
    for parts in none:
        with pytest.raises((ValueError, TypeError)):
            _core.Block(parts, 4)
    with pytest.raises(ValueError, match="another layout"):
        native(SMALL).read(False, np.arange(4), _core.Block([(0, 4, 1, as_stored), slots], 4))
    # Conversions that make as many bytes of other fields, or of images that are not there.
    for how, row_bytes in (((2, 1, 1.0, 0, 0, 0, 0), 4), ((0, 0, 0.0, 1, 4, 2, 2), 8), ((0, 0, 0.0, 1, 0, 2, 2), 8)):
        with pytest.raises(ValueError, match="another layout"):
            native(SMALL).read(False, np.arange(4), _core.Block([(0, row_bytes, 0, how), slots], 4))


def test_keys_that_free_what_was_looked_at() -> None:
    """The parts of a dict and the infos are asked for first; where the arrays lie, afterwards."""
    for _ in range(20):
        ring = table_of_steps(("a", "b"))
        first = np.ones((1, 3), np.float32)
        obs: dict[Any, Any] = {"a": first}

        def meddle(first: Any = first, obs: Any = obs) -> None:
            obs.pop("a", None)
            first.resize(0, refcheck=False)
            np.full(12, 0xAB, np.uint8)

        key = MeddlingKey("b")
        key.meddle = meddle
        obs[key] = np.ones((1, 3), np.float32)
        infos: list[Any] = [{}]
        info_key = MeddlingKey("TimeLimit.truncated")
        info_key.meddle = infos.clear
        one = np.ones((1, 1), np.float32)
        assert not ring.write(0, obs, {"a": one, "b": one}, one, one[0], one[0], None)  # it changed: the general way
        infos.append({info_key: True})
        good = {"a": np.ones((1, 3), np.float32), "b": np.ones((1, 3), np.float32)}
        assert not ring.write(0, good, good, one, one[0], one[0], infos)


def test_steps_of_the_ring_itself() -> None:
    """Observations that are views of the ring, the next for this one: what was given is stored."""
    for row in range(4):
        ring = table_of_steps()
        numbers = np.arange(12, dtype=np.float32).reshape(4, 1, 3)
        ring.observations[...] = numbers  # type: ignore[index]
        ring.next_observations[...] = numbers + 100  # type: ignore[index]
        one = np.ones((1, 1), np.float32)
        obs, next_obs = ring.next_observations[row], ring.observations[row]  # type: ignore[index]
        expected = obs.copy(), next_obs.copy()
        assert ring.write(row, obs, next_obs, one, one[0], one[0], None)
        assert (ring.observations[row] == expected[0]).all()  # type: ignore[index]
        assert (ring.next_observations[row] == expected[1]).all()  # type: ignore[index]


def test_columns_that_change_places() -> None:
    ring = table_of_steps(("a", "b"))
    ring.observations["a"][...] = 1
    ring.observations["b"][...] = 2
    ring.next_observations["a"][...] = 3  # type: ignore[index]
    observations: Any = ring.observations
    observations.update({"a": observations["b"], "b": observations["a"]})
    assert (observations["a"] == 2).all()
    assert (observations["b"] == 1).all()
    with pytest.raises(KeyError):
        observations.update({"a": observations["b"], "c": observations["a"]})
    assert (observations["a"] == 2).all()
    columns = ring.columns()
    columns["observations"], columns["next_observations"] = columns["next_observations"], columns["observations"]
    ring.overwrite(columns)
    assert (observations["a"] == 3).all()
    assert (ring.next_observations["a"] == 2).all()  # type: ignore[index]


def test_adapters_add_their_own_rows() -> None:
    for n_envs in (1, 2):
        box = spaces.Box(-1, 1, (3,), np.float32)
        buffer = fr.sb3.ReplayBuffer(8, box, box, device="cpu", n_envs=n_envs, handle_timeout_termination=False)
        one = np.ones((n_envs, 3), np.float32)
        for i in range(buffer.buffer_size):
            buffer.add(one * i, one * i + 0.5, one, np.ones(n_envs), np.zeros(n_envs), [{}] * n_envs)
        obs, next_obs = buffer.next_observations[0], buffer.observations[0]
        expected = obs.copy(), next_obs.copy()
        buffer.add(obs, next_obs, one, np.ones(n_envs), np.zeros(n_envs), [{}] * n_envs)
        assert (buffer.observations[0] == expected[0]).all()
        assert (buffer.next_observations[0] == expected[1]).all()


def test_a_tensor_of_a_view_is_the_buffers_own() -> None:
    buffer = NativeBuffer(4, {"x": (8,), "y": (8,)}, output="numpy")
    buffer.extend(x=np.arange(32.0).reshape(4, 8), y=-np.arange(32.0).reshape(4, 8))
    before = arrays(buffer[0])
    buffer.add(x=torch.from_numpy(buffer.view("y")[0]), y=buffer.view("x")[0])
    got = arrays(buffer[-1])
    assert (got["x"] == before["y"]).all()
    assert (got["y"] == before["x"]).all()


class Sampling:
    """Samples from a buffer that is empty when it goes, as the attribute of somebody's tensor."""

    def __init__(self, buffer: fr.ReplayBuffer[torch.Tensor], batch_size: int) -> None:
        self.buffer = buffer
        self.batch_size = batch_size

    def __del__(self) -> None:
        with suppress(ValueError):
            self.buffer.sample(self.batch_size)


@pytest.mark.parametrize("num_held", [2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_what_is_kept_of_minibatches_may_go_while_it_is_looked_at(num_held: int, batch_size: int) -> None:
    buffer = fr.ReplayBuffer(20, {"value": ()}, seed=0)

    def sample_in_finalizers() -> None:
        for _ in range(20):
            buffer.extend(value=np.arange(10))
            held: list[Any] = [buffer.sample(batch_size) for _ in range(num_held)]
            for batch in held:
                batch.value.mine = Sampling(buffer, batch_size)
            buffer.clear()
            del held, batch
            with pytest.raises(ValueError, match="empty"):
                buffer.sample(batch_size)

    in_process(sample_in_finalizers)
