# SPDX-License-Identifier: MIT
"""Eight threads call every public method on the same objects; rows say what they must be.

The public names are walked, so that a new one without an action here fails. FASTREPLAY_THREADS_S seconds of stress.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import os
import pickle
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from stall import Thread
from support import NativeBuffer
from test_threads import WRITER, assert_whole, certified, switching

import fastreplay as fr
from fastreplay import _core
from fastreplay.adapters.step_table import StepField, StepTable
from fastreplay.buffer.insert import Inserter

if TYPE_CHECKING:
    from collections.abc import Callable

    Action = Callable[["Actor"], None]

STRESS_S = float(os.environ.get("FASTREPLAY_THREADS_S", "4"))
THREADS = 8
os.environ.setdefault("MINARI_DATASETS_PATH", f"{tempfile.gettempdir()}/fastreplay-minari")
CAPACITY = 500
MOST_TICKETS = 1 << 24
FIELDS: dict[str, Any] = {
    "id": ((), "int64"),
    "pose/position": ((3,), "float64"),
    "pose/grid": ((2, 3), "uint8"),
    "check": ((), "int64"),
    "flag": ((), "bool"),
}
NAMES = list(FIELDS)
STEPS: dict[str, Any] = {
    "number": ((), "float64"),
    "ones": ((), "float64"),
    "lane_number": ((), "int64"),
    "next_number": ((), "float64"),
}

# What a class statement makes of itself, or Cython of one, and what only tells types.
MADE_BY_PYTHON = {
    *("__module__", "__doc__", "__dict__", "__weakref__", "__slots__", "__annotations__", "__annotate_func__"),
    *("__orig_bases__", "__parameters__", "__abstractmethods__", "__firstlineno__", "__static_attributes__"),
    *("__annotations_cache__", "__classdictcell__", "__new__", "__pyx_vtable__"),
}


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def public_names(cls: type) -> set[str]:
    """Names without an underscore, inherited ones too, and the special methods that its Python files define."""
    bases = [base for base in cls.__mro__ if base.__module__.startswith("fastreplay.") and base is not Inserter]
    special = {name for base in bases for name in vars(base) if name.startswith("__") and name.endswith("__")}
    return {name for name in dir(cls) if not name.startswith("_")} | (special - MADE_BY_PYTHON)


class World:
    """What the threads share, and what they learnt together."""

    def __init__(self) -> None:
        self.schema = fr.Schema(FIELDS)
        self.buffer = NativeBuffer(CAPACITY, self.schema, seed=0, output="numpy")
        self.buffer.extend(**certified(FIELDS, [1]))
        self.weighed = NativeBuffer(CAPACITY, self.schema, seed=0, output="numpy", priorities=fr.Priorities())
        self.weighed.extend(**certified(FIELDS, [1]))
        self.streams = NativeBuffer(CAPACITY, STEPS, seed=0, lanes=2 * THREADS, ends=(), output="numpy")
        self.batch = self.buffer.sample(8)
        self.loader = self.buffer.loader(16, depth=3)
        self.epochs = self.buffer.sampler(draw=fr.Epochs())
        self.mixture: Any = fr.Mixture({self.buffer: 1, self.buffer.sampler(): 2})
        self.mixed_priorities: Any = fr.Mixture({self.weighed: 1, self.weighed.sampler(draw=fr.Uniform()): 1})
        self.id_of = np.zeros(MOST_TICKETS, dtype=np.int64)  # by ticket; 0: not seen
        self.keys: list[tuple[int, ...]] = []  # of the faces

    def check(self, batch: Any) -> int:
        """Check every row; a ticket has one row for all."""
        tickets, ids = assert_whole(FIELDS, batch)
        known = self.id_of[tickets]
        assert ((known == 0) | (known == ids)).all(), "a ticket had two rows"
        self.id_of[tickets] = ids
        return len(ids)


class Actor:
    """One thread's own things."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.buffer: Any = world.buffer
        self.number = number
        self.rng = np.random.default_rng(number)
        self.out = world.buffer.sample(32)
        self.gathered = world.buffer.gather([0] * 3)
        self.held: list[tuple[Any, bytes]] = []
        self.done: Counter[str] = Counter()
        self.inserted = self.read = 0

    def rows(self, count: int) -> dict[str, Any]:
        """Give this thread's next rows."""
        first = self.number * WRITER + 1 + self.inserted
        self.inserted += count
        return certified(FIELDS, np.arange(first, first + count))

    def check(self, batch: Any) -> None:
        """Check a minibatch's rows."""
        self.read += self.world.check(batch)

    def hold(self, batch: Any) -> None:
        """Keep a minibatch for a while, in which it must not change."""
        self.held.append((batch, b"".join(value.tobytes() for value in batch)))
        if len(self.held) > 6:
            old, content = self.held.pop(int(self.rng.integers(6)))
            assert b"".join(value.tobytes() for value in old) == content, "a held minibatch changed"

    def sample(self, size: int) -> Any:
        """Sample from the shared buffer, which another thread may have emptied."""
        while True:
            with contextlib.suppress(ValueError):
                return self.buffer.sample(size)
            self.buffer.extend(**self.rows(1))

    def do(self, name: str, action: Action) -> None:
        """Do it; what another thread may make impossible at the moment is no fault."""
        try:
            action(self)
        except (IndexError, ValueError, RuntimeError) as error:
            nothing = ("is empty", "can be drawn yet", "holds no transition", "were overwritten at each")
            if not any(text in str(error) for text in nothing):
                raise
        self.done[name] += 1


def add(actor: Actor) -> None:
    row = {name: value[0] for name, value in actor.rows(1).items()}
    way = int(actor.rng.integers(5))
    if way == 0:
        actor.buffer.add(*row.values())
    elif way == 1:  # in an order of its own
        actor.buffer.add(**{NAMES[i]: row[NAMES[i]] for i in actor.rng.permutation(len(NAMES))})
    elif way == 2:
        values = list(row.values())
        actor.buffer.add(*values[:2], **dict(reversed(list(row.items())[2:])))
    elif way == 3:  # nested, by names that are no literals
        pose = {"".join(["posi", "tion"]): row["pose/position"], "grid": row["pose/grid"]}
        actor.buffer.add(pose=pose, id=row["id"], check=int(row["check"]), flag=bool(row["flag"]))
    else:
        actor.buffer.add(**row)


def extend(actor: Actor) -> None:
    rows = actor.rows(int(actor.rng.integers(1, 40)))
    if actor.rng.integers(4) == 0:
        other = NativeBuffer(40, FIELDS)
        other.extend(**rows)
        actor.buffer.extend(other)
    elif actor.rng.integers(2):
        actor.buffer.extend(*rows.values())
    else:
        actor.buffer.extend(**{NAMES[i]: rows[NAMES[i]] for i in actor.rng.permutation(len(NAMES))})


def sample(actor: Actor) -> None:
    batch = actor.buffer.sample(int(actor.rng.choice([1, 3, 8, 16, 32, 64, 200])))
    actor.check(batch)
    actor.hold(batch)
    actor.check(actor.buffer.sample(32, out=actor.out))
    if actor.rng.integers(4) == 0:
        actor.world.batch = batch


def gather(actor: Actor) -> None:
    slots = actor.rng.integers(CAPACITY, size=3)
    actor.check(actor.buffer.gather(slots))
    actor.check(actor.buffer.gather(slots, out=actor.gathered))


def get_item(actor: Actor) -> None:
    actor.check(_Single(actor.buffer[-1]))
    actor.check(actor.buffer[[0, -1]])
    actor.check(actor.buffer[2:40:3])


class _Single:
    """A single transition as a minibatch of one."""

    def __init__(self, one: Any) -> None:
        self._one = one
        self.ticket = one.ticket[None]

    def numpy(self) -> _Single:
        return self

    def __getitem__(self, name: str) -> Any:
        return self._one[name][None]


def length(actor: Actor) -> None:
    assert 0 <= len(actor.buffer) <= CAPACITY


def spawn(actor: Actor) -> None:
    faces = actor.buffer.spawn(2)
    actor.world.keys.extend(tuple(face.rng_state["key"]) for face in faces)
    actor.check(faces[0].sample(5))
    faces[1].rng_state = faces[0].rng_state
    faces[1].add(**{name: value[0] for name, value in actor.rows(1).items()})


def rng_state(actor: Actor) -> None:
    state = actor.buffer.rng_state
    actor.buffer.rng_state = state
    assert actor.buffer.rng_state["key"] == state["key"]


def view(actor: Actor) -> None:
    column = actor.buffer.view("pose/grid")
    assert column.shape == (CAPACITY, 2, 3)
    int(column[:, 0, 0].sum())


def stats(actor: Actor) -> None:
    before, after = actor.buffer.stats(), actor.buffer.stats()
    assert after["inserted"] >= before["inserted"] > 0
    assert 0 <= before["overwritten"] <= before["inserted"]


def trajectory_stats(actor: Actor) -> None:
    told = actor.world.streams.trajectory_stats(fr.NStep(4, 1.0, reward=("number", "ones")))
    assert told["transitions"] >= told["complete"]
    assert told["transitions"] >= told["trajectories"] >= told["without_beginning"]
    assert told["longest"] <= told["transitions"]


def update_priorities(actor: Actor) -> None:
    weighed = actor.world.weighed
    ids = actor.rng.integers(1, WRITER, size=int(actor.rng.integers(1, 9)))
    weighed.extend(**certified(FIELDS, ids), priority=ids % 7)
    batch = weighed.sample(32)
    _, seen = assert_whole(FIELDS, batch)
    assert (batch.probability > 0).all()
    assert (batch.weight > 0).all()
    assert batch.weight.max() == 1
    updated = weighed.update_priorities(batch, seen % 11)
    assert updated.applied + updated.stale == 32


def max_priority(actor: Actor) -> None:
    assert actor.world.weighed.max_priority >= 1
    actor.world.weighed.max_priority = 10


def save(actor: Actor) -> None:
    with tempfile.TemporaryDirectory() as folder:
        saved = (
            actor.buffer.save_async(folder, full=True).wait() if actor.rng.integers(2) else actor.buffer.save(folder)
        )
        loaded: Any = fr.ReplayBuffer.load(folder)
    assert len(loaded) == saved.end - saved.first
    if len(loaded):
        actor.check(loaded[:])


def load_data(actor: Actor) -> None:
    """Rows of arrays, and of a file of each kind that there is a library for."""
    actor.buffer.load_arrays(actor.rows(5), overwrite=True, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/rows.npz", **actor.rows(20))
        actor.buffer.load_npz(f"{folder}/rows.npz", overwrite=True, progress=False)


def load_hdf5(actor: Actor) -> None:
    if not is_installed("h5py"):
        return
    import h5py

    with tempfile.TemporaryDirectory() as folder:
        with h5py.File(f"{folder}/rows.hdf5", "w") as file:
            for name, column in actor.rows(20).items():
                file[name] = column
        actor.buffer.load_hdf5(f"{folder}/rows.hdf5", overwrite=True, progress=False)


def load_parquet(actor: Actor) -> None:
    """A column alone, into a buffer of this thread's: a folder of LeRobot's is one of Parquet's."""
    if not is_installed("pyarrow"):
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as folder:
        for name in ("data", "meta"):
            (Path(folder) / name).mkdir()
        info = '{"features": {}, "total_frames": 9, "codebase_version": "v3.0"}'
        (Path(folder) / "meta" / "info.json").write_text(info)
        table = pa.table({"number": np.arange(9.0), "episode_index": [actor.number] * 9})
        pq.write_table(table, f"{folder}/data/rows.parquet")
        own: Any = NativeBuffer(9, {"number": ((), "float64")}, output="numpy")
        own.load_parquet(f"{folder}/data", progress=False)
        _equal(own[:].number.tolist(), list(range(9)))
        own.load_lerobot(folder, overwrite=True, progress=False)
        _equal(own[:].number.tolist(), list(range(9)))


def load_minari(actor: Actor) -> None:
    """Minari keeps its datasets in one place, and reads the name of it from the environment."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        actor.world.streams.load_minari("fastreplay/none-v0")
    with contextlib.suppress(ImportError, ValueError):
        actor.world.streams.to_minari("fastreplay/none-v0")


def clear(actor: Actor) -> None:
    actor.buffer.clear()


def loader(actor: Actor) -> None:
    with actor.buffer.loader(8, depth=2, steps=3) as batches:
        for batch in batches:
            actor.check(batch)
            actor.hold(batch)


def sampler(actor: Actor) -> None:
    for draw in (None, fr.Uniform(newest_of=7, newest=2), fr.Epochs()):
        actor.check(actor.buffer.sampler(draw=draw).sample(9))


def sample_epochs(actor: Actor) -> None:
    batch = actor.world.epochs.sample(int(actor.rng.integers(1, 50)))
    actor.check(batch)
    actor.hold(batch)


def load_epochs(actor: Actor) -> None:
    with actor.world.epochs.loader(8, steps=3) as batches:
        for batch in batches:
            actor.check(batch)
        assert batches.num_left_out >= 0


def epoch_state(actor: Actor) -> None:
    state = actor.world.epochs.rng_state
    epoch, first, size, position = state["epoch"]
    assert min(epoch, first) >= 0
    assert position <= size <= CAPACITY
    if actor.rng.integers(4) == 0:
        actor.world.epochs.rng_state = state


def reduce_sampler(actor: Actor) -> None:
    actor.check(pickle.loads(pickle.dumps(actor.world.epochs)).sample(5))


def reduce_buffer(actor: Actor) -> None:
    for copied in (pickle.loads(pickle.dumps(actor.buffer)), copy.deepcopy(actor.buffer)):
        actor.check(copied[:])


def mix(actor: Actor) -> None:
    batch = actor.world.mixture.sample(9)
    actor.check(batch)
    actor.check(actor.world.mixture.sample(9, out=batch, shares=(1, 1)))
    actor.hold(batch)


def load_mixture(actor: Actor) -> None:
    with actor.world.mixture.loader(8, steps=3) as batches:
        for batch in batches:
            actor.check(batch)
            actor.hold(batch)


def mixture_state(actor: Actor) -> None:
    mixture = actor.world.mixture
    mixture.rng_state = mixture.rng_state


def shares(actor: Actor) -> None:
    actor.world.mixture.shares = (1, int(actor.rng.integers(3)))
    assert sum(actor.world.mixture.shares) == pytest.approx(1)


def reduce_mixture(actor: Actor) -> None:
    actor.check(pickle.loads(pickle.dumps(actor.world.mixture)).sample(5))


def update_mixed_priorities(actor: Actor) -> None:
    batch = actor.world.mixed_priorities.sample(10)
    updated = actor.world.mixed_priorities.update_priorities(batch, np.arange(10))
    assert updated.applied + updated.stale == 10


def resized(actor: Actor) -> None:
    other = actor.buffer.resized(int(actor.rng.integers(1, 2 * CAPACITY)))
    if len(other):
        actor.check(other[:])


def from_env(actor: Actor) -> None:
    if not is_installed("gymnasium"):
        return
    import gymnasium as gym

    class Env:
        observation_space = gym.spaces.Box(-1, 1, (3,))
        action_space = gym.spaces.Discrete(2)

    buffer: Any = fr.ReplayBuffer.from_env(Env(), 5, output="numpy")  # type: ignore[call-overload]
    buffer.add(np.ones(3), 1, 0.5, np.ones(3), False, False)
    assert buffer.sample(2).action.tolist() == [1, 1]


def initialize(actor: Actor) -> None:
    buffer = NativeBuffer(3, FIELDS, seed=actor.number, output="numpy")
    buffer.extend(**certified(FIELDS, [7, 8, 9, 10]))
    assert set(assert_whole(FIELDS, buffer.sample(9))[1]) <= {8, 9, 10}


def close_buffer(actor: Actor) -> None:
    with NativeBuffer(3, FIELDS, seed=actor.number, output="numpy") as buffer:
        buffer.extend(**certified(FIELDS, [7, 8]))
        face = buffer.spawn(1)[0]
    with pytest.raises(RuntimeError, match="sample: the ReplayBuffer was closed"):
        face.sample(2)
    buffer.close()


def cut(actor: Actor) -> None:
    """Each in a lane of its own, a trajectory of numbers that go on by one: no window may come to another."""
    streams, count = actor.world.streams, int(actor.rng.integers(1, 30))
    first = int(actor.rng.integers(1 << 20)) * 1000
    numbers = np.arange(first, first + count, dtype=float)
    streams.extend(
        number=numbers,
        ones=np.ones(count),
        lane_number=np.full(count, actor.number),
        next_number=numbers + 1,
        lanes=actor.number,
    )
    streams.cut(actor.number)
    drawn = streams.sample(32, follow=fr.NStep(4, 1.0, reward=("number", "ones")))
    begins = (drawn.number - drawn.ones * (drawn.ones - 1) / 2) / drawn.ones
    np.testing.assert_array_equal(drawn.next_number, begins + drawn.ones)


BUFFER: dict[str, Action] = {
    "add": add,
    "extend": extend,
    "sample": sample,
    "gather": gather,
    "loader": loader,
    "spawn": spawn,
    "sampler": sampler,
    "rng_state": rng_state,
    "view": view,
    "stats": stats,
    "trajectory_stats": trajectory_stats,
    "resized": resized,
    "save": save,
    "save_async": save,
    "load": save,
    "load_arrays": load_data,
    "load_npz": load_data,
    "load_hdf5": load_hdf5,
    "load_parquet": load_parquet,
    "load_lerobot": load_parquet,
    "load_minari": load_minari,
    "to_minari": load_minari,
    "clear": clear,
    "cut": cut,
    "lanes": lambda actor: _equal((actor.world.streams.lanes, actor.buffer.lanes), (2 * THREADS, None)),
    "ends": lambda actor: _equal((actor.world.streams.ends, actor.buffer.ends), ((), None)),
    "flush": lambda actor: actor.buffer.flush(),
    "update_priorities": update_priorities,
    "max_priority": max_priority,
    "from_env": from_env,
    "capacity": lambda actor: _equal(actor.buffer.capacity, CAPACITY),
    "nbytes": lambda actor: _equal(actor.buffer.nbytes, actor.world.schema.nbytes(CAPACITY)),
    "schema": lambda actor: _equal(actor.buffer.schema, actor.world.schema),
    "__init__": initialize,
    "close": close_buffer,
    "__enter__": close_buffer,
    "__exit__": close_buffer,
    "__len__": length,
    "__getitem__": get_item,
    "__repr__": lambda actor: _contains(repr(actor.buffer), f"of {CAPACITY} transitions"),
    "__reduce__": reduce_buffer,
    "__setstate__": reduce_buffer,
}


def _equal(got: object, expected: object) -> None:
    assert got == expected


def _contains(text: str, part: str) -> None:
    assert part in text


def schema_from_spaces(actor: Actor) -> None:
    if not is_installed("gymnasium"):
        return
    import gymnasium as gym

    schema = fr.Schema.from_spaces(gym.spaces.Box(-1, 1, (3,)), gym.spaces.Discrete(2))
    assert schema["observation"].shape == (3,)


SCHEMA: dict[str, Action] = {
    "names": lambda actor: _equal(list(actor.world.schema.names), NAMES),
    "sizes": lambda actor: _equal(len(actor.world.schema.sizes), len(NAMES)),
    "record_bytes": lambda actor: _equal(actor.world.schema.record_bytes, fr.Schema(FIELDS).record_bytes),
    "nbytes": lambda actor: _equal(actor.world.schema.nbytes(7), 7 * (actor.world.schema.record_bytes + 4)),
    "position": lambda actor: _equal([actor.world.schema.position(name) for name in NAMES], list(range(len(NAMES)))),
    "parts": lambda actor: _equal(list(actor.world.schema.parts), list(fr.Schema(FIELDS).parts)),
    "parts_by_name": lambda actor: _equal("pose/grid" in actor.world.schema.parts_by_name, True),
    "from_spaces": schema_from_spaces,
    "keys": lambda actor: _equal(list(actor.world.schema.keys()), NAMES),
    "values": lambda actor: _equal(len(list(actor.world.schema.values())), len(NAMES)),
    "items": lambda actor: _equal([name for name, _ in actor.world.schema.items()], NAMES),
    "get": lambda actor: _equal(actor.world.schema.get("pose"), None),
    "__init__": lambda actor: _equal(fr.Schema(FIELDS), actor.world.schema),
    "__getitem__": lambda actor: _equal(actor.world.schema["pose/grid"].shape, (2, 3)),
    "__iter__": lambda actor: _equal(list(actor.world.schema), NAMES),
    "__len__": lambda actor: _equal(len(actor.world.schema), len(NAMES)),
    "__eq__": lambda actor: _equal(actor.world.schema == fr.Schema({"id": ()}), False),
    "__hash__": lambda actor: _equal(hash(actor.world.schema), hash(fr.Schema(FIELDS))),
    "__repr__": lambda actor: _contains(repr(actor.world.schema), "pose/grid"),
    "__reduce__": lambda actor: _equal(pickle.loads(pickle.dumps(actor.world.schema)), actor.world.schema),
}


def to(actor: Actor) -> None:
    batch = actor.world.batch
    if is_installed("torch"):
        assert batch.to("cpu")["id"].tolist() == batch["id"].tolist()


def reduce_batch(actor: Actor) -> None:
    actor.check(pickle.loads(pickle.dumps(actor.world.batch)))


def with_batch(check: Callable[[Any], object]) -> Action:
    """Check something of the minibatch that all threads share, which nobody writes into."""

    def action(actor: Actor) -> None:
        batch = actor.world.batch
        actor.check(batch)
        assert check(batch)

    return action


MINIBATCH: dict[str, Action] = {
    "schema": with_batch(lambda batch: batch.schema == fr.Schema(FIELDS)),
    "batch_size": with_batch(lambda batch: batch.batch_size == len(batch["id"])),
    "has_tickets": with_batch(lambda batch: batch.has_tickets),
    "ticket": with_batch(lambda batch: batch.ticket.tolist() == batch.ticket.tolist()),
    "keys": with_batch(lambda batch: list(batch.keys()) == NAMES),
    "values": with_batch(lambda batch: batch.values()[0] is batch["id"]),
    "items": with_batch(lambda batch: dict(batch.items())["id"] is batch["id"]),
    "get": with_batch(lambda batch: batch.get("id") is batch["id"] and batch.get("none") is None),
    "numpy": with_batch(lambda batch: batch.numpy()["id"].tolist() == batch["id"].tolist()),
    "to": to,
    "__init__": sample,
    "__len__": with_batch(lambda batch: len(batch) == len(batch["id"])),
    "__bool__": with_batch(bool),
    "__iter__": with_batch(lambda batch: next(iter(batch)) is batch["id"]),
    "__getitem__": with_batch(lambda batch: batch["pose"]["grid"] is batch["pose/grid"]),
    "__getattribute__": with_batch(lambda batch: batch.check is batch["check"]),
    "__contains__": with_batch(lambda batch: "id" in batch and "none" not in batch),
    "__dir__": with_batch(lambda batch: "id" in dir(batch)),
    "__repr__": with_batch(lambda batch: "pose/grid" in repr(batch)),
    "__reduce_ex__": reduce_batch,
}


def take_next(actor: Actor) -> None:
    try:
        batch = next(actor.world.loader)
    except StopIteration:  # closed by another
        renew(actor)
        return
    actor.check(batch)
    actor.hold(batch)


def renew(actor: Actor) -> None:
    actor.world.loader = actor.buffer.loader(int(actor.rng.integers(1, 40)), depth=int(actor.rng.integers(1, 5)))


def close(actor: Actor) -> None:
    actor.world.loader.close()
    renew(actor)


def use_in_a_block(actor: Actor) -> None:
    with actor.world.loader as batches:
        assert iter(batches) is batches
    renew(actor)


def copy_loader(actor: Actor) -> None:
    with pytest.raises(TypeError, match="cannot be copied"):
        copy.copy(actor.world.loader)


LOADER: dict[str, Action] = {
    "batch_size": lambda actor: _equal(actor.world.loader.batch_size in range(1, 40), True),
    "depth": lambda actor: _equal(actor.world.loader.depth in range(1, 5), True),
    "rng_state": lambda actor: _equal(len(actor.world.loader.rng_state["key"]), 2),
    "num_left_out": lambda actor: _equal(actor.world.loader.num_left_out, 0),
    "num_ahead": lambda actor: _equal(actor.world.loader.num_ahead in range(5), True),
    "close": close,
    "__init__": renew,
    "__iter__": take_next,
    "__next__": take_next,
    "__enter__": use_in_a_block,
    "__exit__": use_in_a_block,
    "__reduce__": copy_loader,
    "__repr__": lambda actor: _contains(repr(actor.world.loader), "Loader(batch_size="),
}

SAMPLER: dict[str, Action] = {
    "buffer": lambda actor: _equal(actor.world.epochs.buffer is actor.world.buffer, True),
    "draw": lambda actor: _equal(actor.world.epochs.draw, fr.Epochs()),
    "follow": lambda actor: _equal(actor.world.epochs.follow, None),
    "sample": sample_epochs,
    "loader": load_epochs,
    "rng_state": epoch_state,
    "stats": lambda actor: _equal(min(actor.world.epochs.stats().values()) >= 0, True),
    "__init__": sampler,
    "__repr__": lambda actor: _equal("Epochs" in repr(actor.world.epochs), True),
    "__reduce__": reduce_sampler,
}
MIXTURE: dict[str, Action] = {
    "members": lambda actor: _equal(actor.world.mixture.members[0] is actor.world.buffer, True),
    "exact": lambda actor: _equal(actor.world.mixture.exact, True),
    "shares": shares,
    "rng_state": mixture_state,
    "sample": mix,
    "loader": load_mixture,
    "update_priorities": update_mixed_priorities,
    "__init__": lambda actor: _equal(len(fr.Mixture({actor.buffer: 1}).members), 1),
    "__repr__": lambda actor: _contains(repr(actor.world.mixture), "Mixture("),
    "__reduce__": reduce_mixture,
}
ACTIONS: dict[type, dict[str, Action]] = {
    fr.ReplayBuffer: BUFFER,
    fr.Schema: SCHEMA,
    fr.Minibatch: MINIBATCH,
    fr.Loader: LOADER,
    fr.Sampler: SAMPLER,
    fr.Mixture: MIXTURE,
}


@pytest.mark.parametrize("cls", ACTIONS, ids=lambda cls: cls.__name__)
def test_every_public_name_has_an_action(cls: type) -> None:
    assert public_names(cls) == set(ACTIONS[cls])


def run(work: Callable[[Actor], None], seconds: float) -> World:
    """Have eight threads work on one world; check what they learnt together."""
    world = World()
    actors = [Actor(world, number) for number in range(1, THREADS + 1)]
    with switching(5e-4):
        threads = [Thread(work, actor) for actor in actors]
        for thread in threads:
            thread.finish(120 + 10 * seconds)
    for actor in actors:
        for batch, content in actor.held:
            assert b"".join(value.tobytes() for value in batch) == content
    world.loader.close()
    inserted = 1 + sum(actor.inserted for actor in actors)
    assert world.buffer.stats()["inserted"] == inserted
    world.buffer.extend(**certified(FIELDS, [2]))
    world.check(world.buffer[:])
    assert len(set(world.keys)) == len(world.keys), "two faces have one generator"
    done = sum((actor.done for actor in actors), Counter())
    print(f"{inserted} rows inserted, {sum(actor.read for actor in actors)} read and checked, {done.total()} calls")
    return world


@pytest.mark.parametrize(
    ("cls", "name"),
    [(cls, name) for cls, actions in ACTIONS.items() for name in actions],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_eight_threads_call_one_method_at_once(cls: type, name: str) -> None:
    action = ACTIONS[cls][name]
    together = threading.Barrier(THREADS)

    def work(actor: Actor) -> None:
        together.wait()
        for _ in range(12):
            actor.do(name, action)

    run(work, 0)


def test_eight_threads_call_every_method_at_once() -> None:
    actions = [(f"{cls.__name__}.{name}", action) for cls, named in ACTIONS.items() for name, action in named.items()]
    often = [(name, action) for name, action in actions if action in {add, extend, sample, gather, get_item, take_next}]
    deadline = time.monotonic() + STRESS_S

    def work(actor: Actor) -> None:
        everything = iter(actor.rng.permutation(len(actions)).tolist())
        while True:
            for name, action in [often[i] for i in actor.rng.integers(len(often), size=4)]:
                actor.do(name, action)
            if (i := next(everything, None)) is not None:
                actor.do(*actions[i])
            elif time.monotonic() >= deadline:
                break
            else:
                everything = iter(actor.rng.permutation(len(actions)).tolist())
        assert len(actor.done) == len(actions)

    run(work, STRESS_S)


# What is for one thread at a time holds no promise of values beside others, but stays in its memory.


def test_draws_of_threads_are_those_of_one() -> None:
    draws = _core.UniformIntegers((1, 2))
    expected = {tuple(_core.UniformIntegers((1, 2), call).below(1 << 40, 3).tolist()) for call in range(THREADS * 200)}
    together = threading.Barrier(THREADS)

    def work() -> list[tuple[int, ...]]:
        together.wait()
        return [tuple(draws.below(1 << 40, 3).tolist()) for _ in range(200)]

    threads = [Thread(work) for _ in range(THREADS)]
    drawn = [values for thread in threads for values in thread.finish(60)]
    assert set(drawn) == expected
    assert draws.calls == THREADS * 200


def test_an_index_set_used_by_threads_stays_whole() -> None:
    members = _core.IndexSet(5000)
    members.fill(0, 1000, 1, True)
    together = threading.Barrier(THREADS)

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        together.wait()
        for _ in range(300):
            first = 1000 + 500 * number
            members.fill(first, 500, 1, bool(rng.integers(2)))
            with contextlib.suppress(IndexError):  # a rank that was one before another thread's fill
                chosen = members.select(rng.integers(len(members), size=50))
                assert ((chosen >= 0) & (chosen < 5000)).all()
        members.fill(1000 + 500 * number, 500, 1, False)

    for thread in [Thread(work, number) for number in range(THREADS)]:
        thread.finish(60)
    assert len(members) == 1000
    assert members.select(np.arange(1000)).tolist() == list(range(1000))


def test_counts_of_threads_add_up() -> None:
    counter = _core.Counter(5)
    together = threading.Barrier(THREADS)

    def work() -> list[int]:
        together.wait()
        return [counter.add(3) for _ in range(500)]

    threads = [Thread(work) for _ in range(THREADS)]
    before = sorted(value for thread in threads for value in thread.finish(60))
    assert before == list(range(5, 5 + 3 * 500 * THREADS, 3))
    assert counter.value == 5 + 3 * 500 * THREADS


def test_a_ring_of_steps_stays_in_its_memory() -> None:
    parts = {"a": StepField((3,), np.dtype(np.float32)), "b": StepField((2,), np.dtype(np.float32))}
    ring = StepTable(50, 2, parts, StepField((1,), np.dtype(np.float32), is_reshaped=True))
    infos: list[Any] = [{"TimeLimit.truncated": True}, {}]
    shared = {"a": np.ones((2, 3)), "b": np.ones((2, 2))}
    together = threading.Barrier(THREADS)

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        together.wait()
        for i in range(300):
            # Others replace what this one has just looked at.
            value = float(number)
            shared["a"], shared["b"] = np.full((2, 3), value), np.full((2, 2), value)
            infos[i % 2] = {"TimeLimit.truncated": bool(i % 3)}
            flags = np.array([False, True])
            assert ring.write(int(rng.integers(50)), shared, shared, np.full((2, 1), value), np.ones(2), flags, infos)
            block = ring.gather(rng.integers(50, size=20), rng.integers(2, size=20))
            for part in block.arrays():
                assert np.isin(part, np.arange(THREADS + 1)).all()

    for thread in [Thread(work, number) for number in range(THREADS)]:
        thread.finish(60)


MODULES = (
    *("", "._core", ".adapters.native_step_table", ".adapters.sb3.polyak_native", ".adapters.step_table"),
    *(".batch.tensors", ".buffer.insert", ".target.watched"),
)


@pytest.mark.skipif(not hasattr(sys, "_is_gil_enabled"), reason="this Python has no build without the GIL")
@pytest.mark.parametrize("module", MODULES)
def test_an_import_leaves_the_gil_off(module: str) -> None:
    import subprocess
    import sysconfig

    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("this Python has the GIL")
    code = f"import sys, fastreplay{module}; sys.exit(sys._is_gil_enabled())"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON_GIL"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
