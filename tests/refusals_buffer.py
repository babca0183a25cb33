# SPDX-License-Identifier: MIT
"""Refused calls that make buffers and schemas, insert, and set their state."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from refusals import Call, Case, PlantedError, Scene, cases
from refusals_scenes import CAPACITY, Array, Number, crowded, go_on_crowded, on, run_on, wide_row, without
from support import FIELDS, NativeBuffer, transitions

import fastreplay as fr

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Native: Any = fr  # untyped: what is refused here is what its types refuse


def rows(count: int = 3, **other: Any) -> dict[str, Any]:
    """Give transitions, some fields of which are something else."""
    return {**transitions(100, count), **other}


def row(**other: Any) -> dict[str, Any]:
    return {**{name: values[0] for name, values in transitions(100, 1).items()}, **other}


def less(given: dict[str, Any], name: str) -> dict[str, Any]:
    return {each: value for each, value in given.items() if each != name}


# ---- add and extend: each kind in the first field and in the last, where all others were already taken ----

ADD: dict[str, Any] = {
    "an unknown field": (TypeError, lambda s: Call(s.b.add, **row(more=1))),
    "a missing field": (TypeError, lambda s: Call(s.b.add, **less(row(), "terminated"))),
    "a surplus field": (TypeError, lambda s: Call(s.b.add, *row().values(), 1)),
    "a field given twice": (TypeError, lambda s: Call(s.b.add, np.zeros(3), **row())),
    "nothing": (TypeError, lambda s: Call(s.b.add)),
    "a shape, first": (ValueError, lambda s: Call(s.b.add, **row(observation=np.zeros(4)))),
    "a shape, last": (ValueError, lambda s: Call(s.b.add, **row(terminated=np.zeros(1, bool)))),
    "a dtype, last": (TypeError, lambda s: Call(s.b.add, **row(terminated=1.5))),
    "a string": (TypeError, lambda s: Call(s.b.add, **row(reward="much"))),
    "None": (TypeError, lambda s: Call(s.b.add, **row(reward=None))),
    "a ragged list": (ValueError, lambda s: Call(s.b.add, **row(pixels=[[1, 2, 3], [4]]))),
    "an integer that does not fit": (ValueError, lambda s: Call(s.b.add, **row(pixels=[[1, 2, 3], [4, 5, 256]]))),
    "a huge integer": (ValueError, lambda s: Call(s.b.add, **row(action=[1, 2**64]))),
    "NaN in an integer field": (TypeError, lambda s: Call(s.b.add, **row(action=[1.0, np.nan]))),
    "a tensor elsewhere": (TypeError, lambda s: Call(s.b.add, **row(reward=torch.zeros((), device="meta")))),
    "a tensor that NumPy lacks": (
        TypeError,
        lambda s: Call(s.b.add, **row(reward=torch.ones((), dtype=torch.bfloat16))),
    ),
    "a tensor that needs a gradient, of a wrong shape": (
        ValueError,
        lambda s: Call(s.b.add, **row(observation=torch.ones(4, requires_grad=True))),
    ),
    "their __array__": (PlantedError, lambda s: Call(s.b.add, **row(terminated=Array()))),
    "Ctrl-C in their __array__": (
        KeyboardInterrupt,
        lambda s: Call(s.b.add, **row(terminated=Array(KeyboardInterrupt))),
    ),
}
EXTEND: dict[str, Any] = {
    "an unknown field": (TypeError, lambda s: Call(s.b.extend, **rows(more=[1, 2, 3]))),
    "a missing field": (TypeError, lambda s: Call(s.b.extend, **less(rows(), "observation"))),
    "a surplus field": (TypeError, lambda s: Call(s.b.extend, *rows().values(), [1, 2, 3])),
    "a shape, last": (ValueError, lambda s: Call(s.b.extend, **rows(terminated=np.zeros((3, 1), bool)))),
    "fewer rows, last": (ValueError, lambda s: Call(s.b.extend, **rows(terminated=[True, False]))),
    "more rows than fit, and one field short": (
        ValueError,
        lambda s: Call(s.b.extend, **rows(3 * CAPACITY, terminated=np.ones(3 * CAPACITY - 1, bool))),
    ),
    "no axis of rows": (ValueError, lambda s: Call(s.b.extend, **rows(reward=1.0))),
    "a dtype, last": (TypeError, lambda s: Call(s.b.extend, **rows(terminated=[0.5, 1.0, 0.0]))),
    "an integer that does not fit, last row": (
        ValueError,
        lambda s: Call(s.b.extend, **rows(pixels=np.full((3, 2, 3), [0, 0, -1]))),
    ),
    "objects": (TypeError, lambda s: Call(s.b.extend, **rows(reward=np.array([1, None, 2], object)))),
    "dates": (TypeError, lambda s: Call(s.b.extend, **rows(action=np.zeros((3, 2), "datetime64[s]")))),
    "their __array__": (PlantedError, lambda s: Call(s.b.extend, **rows(terminated=Array()))),
    "Ctrl-C in their __array__": (
        KeyboardInterrupt,
        lambda s: Call(s.b.extend, **rows(pixels=Array(KeyboardInterrupt))),
    ),
}


WAITING: dict[str, Any] = {
    "another thread's insert": (TimeoutError, lambda s: Call(s.b.add, **wide_row(18))),
}
WAITING_LONG: dict[str, Any] = {
    "another thread's insert": (TimeoutError, lambda s: Call(s.b.extend, id=[18], x=wide_row(18)["x"][None])),
}


# ---- The generator's state, clear, spawn, faces ----

STATES = {
    "no mapping": 3,
    "an array": np.array([1, 2, 3]),
    "a list": [1, 2, 3],
    "no calls": {"key": [1, 2]},
    "a key of one number": {"key": [1], "calls": 0},
    "a key of three": {"key": [1, 2, 3], "calls": 0},
    "a negative number": {"key": [1, -2], "calls": 0},
    "too large a number": {"key": [1, 2], "calls": 2**64},
    "a float": {"key": [1, 2], "calls": 1.0},
    "None": None,
}
RNG_STATE: dict[str, Any] = {
    kind: (ValueError, lambda s, state=state: Call(setattr, s.b, "rng_state", state)) for kind, state in STATES.items()
}
RNG_STATE["their number"] = (
    PlantedError,
    lambda s: Call(setattr, s.b, "rng_state", {"key": [1, 2], "calls": Number()}),
)

SPAWN: dict[str, Any] = {
    "a float": (TypeError, lambda s: Call(s.b.spawn, 2.0)),
    "a bool": (TypeError, lambda s: Call(s.b.spawn, True)),
    "negative": (ValueError, lambda s: Call(s.b.spawn, -1)),
    "more than memory": (MemoryError, lambda s: Call(s.b.spawn, 2**70)),
    "as many as there are bytes": (MemoryError, lambda s: Call(s.b.spawn, 10**12)),
    "their number": (PlantedError, lambda s: Call(s.b.spawn, Number())),
}

VIEW: dict[str, Any] = {
    "unknown": (KeyError, lambda s: Call(s.b.view, "rewrd")),
    "a parent": (KeyError, lambda s: Call(s.b.view, "")),
}


def state(**changes: Any) -> dict[str, Any]:
    """Give a saved state, some of it changed."""
    saved = {"first": 40, "columns": tuple(transitions(40, 5).values()), "rng_state": {"key": [1, 2], "calls": 3}}
    return {**saved, "extra": {"more": 1}, **changes}


def columns(count: int = 5, **changes: Any) -> tuple[Any, ...]:
    return tuple({**transitions(40, count), **changes}.values())


def restoring(saved: Any) -> tuple[type[BaseException], Callable[[Scene], Call[Any]]]:
    return ValueError, lambda s: Call(s.b.__setstate__, saved)


SETSTATE: dict[str, Any] = {
    "no state": restoring(3),
    "no rng_state": restoring(less(state(), "rng_state")),
    "a negative ticket": restoring(state(first=-1)),
    "a ticket that is a float": restoring(state(first=4.0)),
    "a ticket too large": restoring(state(first=2**64 - 2)),
    "no columns": restoring(state(columns=3)),
    "a column less": restoring(state(columns=columns()[:-1])),
    "a shape, last": restoring(state(columns=columns(terminated=np.zeros((5, 1), bool)))),
    "a dtype, last": restoring(state(columns=columns(terminated=np.zeros(5)))),
    "fewer rows, last": restoring(state(columns=columns(terminated=np.zeros(4, bool)))),
    "more than fit": restoring(state(columns=columns(CAPACITY + 1))),
    "a malformed generator": restoring(state(rng_state={"key": [1], "calls": 0})),
    "attributes that are none": restoring(state(extra=[1])),
    "attributes of the buffer's own": restoring(state(extra={"_ring": None})),
}


# ---- Constructors ----


def seeds() -> Scene:
    """Give what a constructor takes; nothing of it is to be used up."""
    return Scene(
        generator=np.random.default_rng(5),
        sequence=np.random.SeedSequence(6),
        fields=dict(FIELDS),
        env=_Env(),
        box=spaces.Box(-1, 1, (3,), np.float32),
    )


class _Env(gym.Env[Any, Any]):
    observation_space = spaces.Box(-1, 1, (3,), np.float64)
    action_space = spaces.Discrete(2)


def count_threads(scene: Scene) -> Iterator[Any]:
    """Tell how many there are."""
    yield fr.get_num_threads()
    yield scene


def build_with(scene: Scene) -> Iterator[Any]:
    """Make buffers of the same arguments."""
    for seed in (scene.sequence, scene.generator, scene.generator):
        b = NativeBuffer(6, scene.fields, seed=seed)
        b.extend(**transitions(0, 8))
        yield [b.rng_state, b.sample(5), b]
    yield scene


def making(*args: Any, **options: Any) -> Callable[[Scene], Call[Any]]:
    return lambda s: Call(NativeBuffer, *(args or (5, s.fields)), **{"seed": s.generator, **options})


INIT: dict[str, Any] = {
    "capacity 0": (ValueError, making(0, FIELDS)),
    "capacity below 0": (ValueError, making(-3, FIELDS)),
    "a float": (TypeError, making(5.0, FIELDS)),
    "a bool": (TypeError, making(True, FIELDS)),
    "too large": (MemoryError, making(2**50, FIELDS)),
    "no fields": (ValueError, making(5, {})),
    "fields that are no mapping": (TypeError, making(5, ["observation"])),
    "a malformed field, last": (TypeError, making(5, {**FIELDS, "last": ((), "U3")})),
    "an unknown output": (ValueError, making(output="jax")),
    "a device without torch": (ValueError, making(device="meta", output="numpy")),
    "a dtype that torch lacks": (TypeError, making(5, {**FIELDS, "last": ((), np.longdouble)})),
    "no such device": (RuntimeError, making(device="nonsense")),
    "no such storage": (ValueError, making(storage="disk")),
    "storage elsewhere": (ValueError, making(storage="cuda")),
    "a negative timeout": (ValueError, making(timeout=-1)),
    "a timeout that is NaN": (ValueError, making(timeout=np.nan)),
    "a timeout in words": (TypeError, making(timeout="1")),
    "a negative seed": (ValueError, making(seed=-1)),
    "a seed that is a float": (TypeError, making(seed=0.5)),
    "a seed that is text": (TypeError, making(seed="0")),
    "their number": (PlantedError, lambda s: Call(NativeBuffer, Number(), s.fields, seed=s.generator)),
}
FROM_ENV: dict[str, Any] = {
    "a space without a shape": (
        TypeError,
        lambda s: Call(_from_env, _with(s.env, spaces.Text(3)), 5, seed=s.generator),
    ),
    "capacity 0": (ValueError, lambda s: Call(_from_env, s.env, 0, seed=s.generator)),
    "a field twice": (ValueError, lambda s: Call(_from_env, s.env, 5, extra={"reward": ()}, seed=s.generator)),
    "too large": (MemoryError, lambda s: Call(_from_env, s.env, 2**50, seed=s.generator)),
    "no such device": (RuntimeError, lambda s: Call(_from_env, s.env, 5, device="nonsense", seed=s.generator)),
    "their environment": (PlantedError, lambda s: Call(_from_env, _Broken(), 5, seed=s.generator)),
    "an unknown option": (TypeError, lambda s: Call(_from_env, s.env, 5, colour="red", seed=s.generator)),
    "images: there is none": (
        ValueError,
        lambda s: Call(_from_env, s.env, 5, images={"shift": 1}, seed=s.generator),
    ),
}
_from_env: Any = fr.ReplayBuffer.from_env


def _with(env: gym.Env[Any, Any], space: spaces.Space[Any]) -> gym.Env[Any, Any]:
    env.observation_space = space
    return env


class _Broken:
    """An environment that cannot tell its spaces."""

    observation_space = None

    @property
    def single_observation_space(self) -> Any:
        raise PlantedError("in a property")


FIELD: dict[str, Any] = {
    "no tuple": (TypeError, lambda s: Call(Native.Field, 3)),
    "floats": (TypeError, lambda s: Call(Native.Field, (3.0,))),
    "no length": (ValueError, lambda s: Call(Native.Field, (3, 0))),
    "a negative length": (ValueError, lambda s: Call(Native.Field, (-1,))),
    "too many dimensions": (ValueError, lambda s: Call(Native.Field, (1,) * 31)),
    "text": (TypeError, lambda s: Call(Native.Field, (), "U3")),
    "no dtype": (TypeError, lambda s: Call(Native.Field, (), "nonsense")),
    "stack: none": (ValueError, lambda s: Call(Native.Field, (3,), stack=0)),
    "stack: too many": (ValueError, lambda s: Call(Native.Field, (3,), stack=65)),
    "stack: a bool": (TypeError, lambda s: Call(Native.Field, (3,), stack=True)),
    "stack: half a frame": (TypeError, lambda s: Call(Native.Field, (3,), stack=2.5)),
    "stack: one dimension too many": (ValueError, lambda s: Call(Native.Field, (1,) * 30, stack=2)),
    "out: no dtype": (TypeError, lambda s: Call(Native.Field, (), "uint8", out="nonsense")),
    "out: another float": (ValueError, lambda s: Call(Native.Field, (), "uint8", out="float16")),
    "out: a half of another": (ValueError, lambda s: Call(Native.Field, (), "float16", out="bfloat16")),
    "bfloat16: not there": (
        ImportError,
        lambda s: Call(without("ml_dtypes", None, lambda: Native.Field((), "bfloat16"))),
    ),
    "out: of more bits": (ValueError, lambda s: Call(Native.Field, (), "int64", out="float32")),
    "divide: without out": (ValueError, lambda s: Call(Native.Field, (), "uint8", divide=255)),
    "divide: zero": (ValueError, lambda s: Call(Native.Field, (), "uint8", out="float32", divide=0)),
    "divide: beyond floats": (ValueError, lambda s: Call(Native.Field, (), "uint8", out="float32", divide=10**400)),
    "divide: an array": (TypeError, lambda s: Call(Native.Field, (), "uint8", out="float32", divide=np.array([2, 3]))),
    "divide: text": (TypeError, lambda s: Call(Native.Field, (), "uint8", out="float32", divide="255")),
    "scale: and divide": (ValueError, lambda s: Call(Native.Field, (), "uint8", out="float32", divide=2, scale=2)),
    "scale: infinite": (ValueError, lambda s: Call(Native.Field, (), "uint8", out="float32", scale=float("inf"))),
    "shift: too far": (ValueError, lambda s: Call(Native.Field, (4, 9), "uint8", shift=4)),
    "shift: no image": (ValueError, lambda s: Call(Native.Field, (9,), "uint8", shift=1)),
    "shift: half a pixel": (TypeError, lambda s: Call(Native.Field, (9, 9), "uint8", shift=0.5)),
    "another byte order": (ValueError, lambda s: Call(Native.Field, (), ">f4" if np.little_endian else "<f4")),
}
SCHEMA: dict[str, Any] = {
    "no mapping": (TypeError, lambda s: Call(Native.Schema, ["a"])),
    "none": (ValueError, lambda s: Call(Native.Schema, {})),
    "too many": (ValueError, lambda s: Call(Native.Schema, {f"f{i}": () for i in range(300)})),
    "a name that is no string": (TypeError, lambda s: Call(Native.Schema, {**s.fields, 3: ()})),
    "an empty name": (ValueError, lambda s: Call(Native.Schema, {**s.fields, "": ()})),
    "a reserved name": (ValueError, lambda s: Call(Native.Schema, {**s.fields, "ticket": ()})),
    "a parent": (ValueError, lambda s: Call(Native.Schema, {**s.fields, "reward/extra": ()})),
    "a malformed field": (TypeError, lambda s: Call(Native.Schema, {**s.fields, "more": "float32"})),
    "a malformed shape": (ValueError, lambda s: Call(Native.Schema, {**s.fields, "more": (0,)})),
}
SPACES: dict[str, Any] = {
    "no shape": (TypeError, lambda s: Call(Native.Schema.from_spaces, spaces.Text(3), s.box)),
    "no space": (TypeError, lambda s: Call(Native.Schema.from_spaces, s.box, 3)),
    "an empty Dict": (TypeError, lambda s: Call(Native.Schema.from_spaces, spaces.Dict({}), s.box)),
    "a field twice": (ValueError, lambda s: Call(Native.Schema.from_spaces, s.box, s.box, extra={"reward": ()})),
    "stack: another length": (ValueError, lambda s: Call(Native.Schema.from_spaces, s.box, s.box, stack=2)),
    "stack: no integer": (TypeError, lambda s: Call(Native.Schema.from_spaces, s.box, s.box, stack="4")),
    "images: there is none": (
        ValueError,
        lambda s: Call(Native.Schema.from_spaces, s.box, s.box, images={"out": "float32"}),
    ),
    "images: something else": (TypeError, lambda s: Call(Native.Schema.from_spaces, s.box, s.box, images={"zoom": 2})),
    "images: no dict": (TypeError, lambda s: Call(Native.Schema.from_spaces, s.box, s.box, images=255)),
    "images: shifted too far": (
        ValueError,
        lambda s: Call(Native.Schema.from_spaces, spaces.Box(0, 255, (4, 9), np.uint8), s.box, images={"shift": 4}),
    ),
    "a malformed field": (TypeError, lambda s: Call(Native.Schema.from_spaces, s.box, s.box, extra={"more": "x"})),
}
ITEMS: dict[str, Any] = {
    "unknown": (KeyError, lambda s: Call(operator.getitem, Native.Schema(s.fields), "rewrd")),
    "no name": (KeyError, lambda s: Call(operator.getitem, Native.Schema(s.fields), 3)),
}
POSITION: dict[str, Any] = {"unknown": (KeyError, lambda s: Call(Native.Schema(s.fields).position, "rewrd"))}
NBYTES: dict[str, Any] = {
    "half a transition": (TypeError, lambda s: Call(Native.Schema(s.fields).nbytes, 0.5)),
    "negative": (ValueError, lambda s: Call(Native.Schema(s.fields).nbytes, -1)),
}
WORKER: dict[str, Any] = {
    "a float": (TypeError, lambda _: Call(Native.worker_init_fn, 1.0)),
    "a bool": (TypeError, lambda _: Call(Native.worker_init_fn, True)),
    "negative": (ValueError, lambda _: Call(Native.worker_init_fn, -1)),
    "their number": (PlantedError, lambda _: Call(Native.worker_init_fn, Number())),
}
THREADS: dict[str, Any] = {
    "a float": (TypeError, lambda _: Call(Native.set_num_threads, 2.0)),
    "a bool": (TypeError, lambda _: Call(Native.set_num_threads, True)),
    "none": (ValueError, lambda _: Call(Native.set_num_threads, 0)),
    "too many": (ValueError, lambda _: Call(Native.set_num_threads, 1025)),
    "their number": (PlantedError, lambda _: Call(Native.set_num_threads, Number())),
}
FROZEN: dict[str, Any] = {
    "its shape": (AttributeError, lambda s: Call(setattr, Native.Field((3,)), "shape", (4,))),
    "anything": (AttributeError, lambda s: Call(setattr, Native.Field((3,)), "more", 1)),
}
THAWED: dict[str, Any] = {"its shape": (AttributeError, lambda s: Call(delattr, Native.Field((3,)), "shape"))}

BUFFERS: list[Case] = [
    *cases("fr.ReplayBuffer.add", on("torch"), run_on, ADD),
    *cases("fr.ReplayBuffer.extend", on("torch"), run_on, EXTEND),
    *cases("fr.ReplayBuffer.add", crowded, go_on_crowded, WAITING),
    *cases("fr.ReplayBuffer.extend", crowded, go_on_crowded, WAITING_LONG),
    *cases("fr.ReplayBuffer.rng_state", on("torch"), run_on, RNG_STATE),
    *cases("fr.ReplayBuffer.spawn", on("numpy"), run_on, SPAWN),
    *cases("fr.set_num_threads", Scene, count_threads, THREADS),
    *cases("fr.worker_init_fn", on("numpy"), run_on, WORKER),
    *cases("fr.ReplayBuffer.__setstate__", on("torch"), run_on, SETSTATE),
    *cases("fr.ReplayBuffer.view", on("numpy"), run_on, VIEW),
    *cases("fr.ReplayBuffer.__init__", seeds, build_with, INIT),
    *cases("fr.ReplayBuffer.from_env", seeds, build_with, FROM_ENV),
    *cases("fr.Field.__init__", seeds, build_with, FIELD),
    *cases("fr.Field.__setattr__", seeds, build_with, FROZEN),
    *cases("fr.Field.__delattr__", seeds, build_with, THAWED),
    *cases("fr.Schema.__init__", seeds, build_with, SCHEMA),
    *cases("fr.Schema.from_spaces", seeds, build_with, SPACES),
    *cases("fr.Schema.__getitem__", seeds, build_with, ITEMS),
    *cases("fr.Schema.nbytes", seeds, build_with, NBYTES),
    *cases("fr.Schema.position", seeds, build_with, POSITION),
]
