# SPDX-License-Identifier: MIT
"""Refused calls of buffers with lanes, and of the rules about what surrounds a row."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from refusals import Call, Case, Scene, attempt, cases
from refusals_scenes import CAPACITY, on, run_on
from stall import StalledInsert
from support import FIELDS, NativeBuffer, transitions

import fastreplay as fr

if TYPE_CHECKING:
    from collections.abc import Iterator

Native: Any = fr  # untyped: what is refused here is what its types refuse
MASKED: Any = np.ma.masked_array([0, 1], [False, True])
STEP = {name: value[0] for name, value in transitions(100, 1).items()}


def streams(output: str = "numpy") -> Scene:
    """Make a buffer of two lanes, and some in which a rule cannot be followed."""
    b = NativeBuffer(CAPACITY, FIELDS, seed=3, output=output, lanes=2)
    for t in range(0, 16, 2):
        b.extend(**transitions(t, 2))
    alone = NativeBuffer(CAPACITY, FIELDS, seed=3, output=output)
    integers = {"reward": ((), "int64"), "discount": (2,)}
    stored = NativeBuffer(CAPACITY, integers, seed=3, lanes=1, ends=(), output=output)
    return Scene(b=b, alone=alone, stored=stored, out=b.sample(4, follow=fr.NStep(2, 0.9)), plain=b.sample(4))


def busy() -> Scene:
    """Make a buffer of three lanes, of which another thread is in the first."""
    fields = {"id": ((), "int64"), "x": (8192,)}
    b = NativeBuffer(16, fields, seed=3, output="numpy", lanes=3, ends=())
    rows: dict[str, Any] = {"id": np.arange(3), "x": np.zeros((3, 8192), np.float32)}
    b.extend(**rows)
    return Scene(
        b=b, rows=rows, insert=StalledInsert(b, {name: value[:1] for name, value in rows.items()}, "x", 0, lanes=0)
    )


def go_on(scene: Scene) -> Iterator[Any]:
    """Insert and draw, and tell what comes of it."""
    b = scene.b
    b.extend(**transitions(b.stats()["inserted"], 2))
    yield attempt(lambda: b.sample(8, follow=fr.NStep(1, 0.5)))
    yield attempt(lambda: b.sample(8, follow=fr.NStep(3, 0.5)))
    b.cut(1)
    b.add(**STEP, lane=1)
    yield [b.sampler(draw=fr.Epochs(shuffle=False), follow=fr.NStep(9, 1.0)).sample(CAPACITY), b]


def go_on_busy(scene: Scene) -> Iterator[Any]:
    """Let the other thread finish, and go on."""
    scene.insert.close()
    scene.b.extend(**scene.rows)
    scene.b.cut(0)
    yield [scene.b[:], scene.b]


def sampled(follow: Any) -> Any:
    return lambda s: Call(s.b.sample, 4, follow=follow)


EXTEND: dict[str, Any] = {
    "lanes: of nobody": (ValueError, lambda s: Call(s.b.extend, **transitions(100, 2), lanes=[0, 2])),
    "lanes: a negative one": (ValueError, lambda s: Call(s.b.extend, **transitions(100, 2), lanes=[-1, 0])),
    "lanes: too few": (ValueError, lambda s: Call(s.b.extend, **transitions(100, 3), lanes=[1, 0])),
    "lanes: not said": (ValueError, lambda s: Call(s.b.extend, **transitions(100, 3))),
    "lanes: no integers": (TypeError, lambda s: Call(s.b.extend, **transitions(100, 2), lanes=[0.0, 1.0])),
    "lanes: masked": (ValueError, lambda s: Call(s.b.extend, **transitions(100, 2), lanes=MASKED)),
    "lanes: two dimensions": (ValueError, lambda s: Call(s.b.extend, **transitions(100, 2), lanes=[[0, 1]])),
    "lane: of add alone": (TypeError, lambda s: Call(s.b.extend, **transitions(100, 2), lane=0)),
    "mask: too short": (ValueError, lambda s: Call(s.b.extend, **transitions(100, 2), mask=[True])),
    "mask: no bools": (TypeError, lambda s: Call(s.b.extend, **transitions(100, 2), mask=[0, 1])),
    "mask: a missing field": (TypeError, lambda s: Call(s.b.extend, reward=[1, 2], mask=[True, False])),
}

ADD: dict[str, Any] = {
    "lane: not said": (ValueError, lambda s: Call(s.b.add, **STEP)),
    "lane: of nobody": (ValueError, lambda s: Call(s.b.add, **STEP, lane=2)),
    "lane: several": (ValueError, lambda s: Call(s.b.add, **STEP, lane=[0])),
    "lane: a fraction": (TypeError, lambda s: Call(s.b.add, **STEP, lane=0.5)),
    "lanes: of extend alone": (TypeError, lambda s: Call(s.b.add, **STEP, lanes=[0])),
}

CUT: dict[str, Any] = {
    "a lane of nobody": (ValueError, lambda s: Call(s.b.cut, 2)),
    "a negative lane": (ValueError, lambda s: Call(s.b.cut, -1)),
    "no integer": (TypeError, lambda s: Call(s.b.cut, "0")),
    "no lanes": (ValueError, lambda s: Call(s.alone.cut)),
}

INSIDE: dict[str, dict[str, Any]] = {
    "fr.ReplayBuffer.extend": {"a lane of another thread": (RuntimeError, lambda s: Call(s.b.extend, **s.rows))},
    "fr.ReplayBuffer.add": {
        "a lane of another thread": (
            RuntimeError,
            lambda s: Call(s.b.add, *(value[0] for value in s.rows.values()), lane=0),
        )
    },
    "fr.ReplayBuffer.cut": {
        "a lane of another thread": (RuntimeError, lambda s: Call(s.b.cut, 0)),
        "all, one of them another thread's": (RuntimeError, lambda s: Call(s.b.cut)),
    },
}

FOLLOW: dict[str, dict[str, Any]] = {
    "fr.ReplayBuffer.trajectory_stats": {
        "follow: no rule": (TypeError, lambda s: Call(s.b.trajectory_stats, 3)),
        "follow: no such field": (ValueError, lambda s: Call(s.b.trajectory_stats, fr.Window({"state": range(2)}))),
        "no lanes": (ValueError, lambda s: Call(s.alone.trajectory_stats)),
        "follow: no lanes": (ValueError, lambda s: Call(s.alone.trajectory_stats, fr.Sequence(2))),
    },
    "fr.ReplayBuffer.sample": {
        "follow: no rule": (TypeError, sampled(3)),
        "follow: no such field": (ValueError, sampled(fr.NStep(2, 0.9, reward="return"))),
        "follow: no floats": (ValueError, sampled(fr.NStep(2, 0.9, reward="action"))),
        "follow: no such discount": (ValueError, sampled(fr.NStep(2, 0.9, discount="discount"))),
        "follow: a discount of a shape": (ValueError, sampled(fr.NStep(2, 0.9, discount="observation"))),
        "follow: the last of no such field": (ValueError, sampled(fr.NStep(2, 0.9, last="state"))),
        "follow: the last of what is summed": (ValueError, sampled(fr.NStep(2, 0.9, last=["action", "reward"]))),
        "follow: no lanes": (ValueError, lambda s: Call(s.alone.sample, 4, follow=fr.NStep(2, 0.9))),
        "follow: a sequence of no such field": (ValueError, sampled(fr.Sequence(2, first_only="state"))),
        "follow: a window of no such field": (ValueError, sampled(fr.Window({"state": range(2)}))),
        "follow: out of transitions": (ValueError, lambda s: Call(s.b.sample, 4, out=s.plain, follow=fr.Sequence(2))),
        "follow: integers": (ValueError, lambda s: Call(s.stored.sample, 4, follow=fr.NStep(2, 0.9))),
        "follow: a discount that is stored": (
            ValueError,
            lambda s: Call(s.stored.sample, 4, follow=fr.NStep(2, 0.9, reward=())),
        ),
        "follow: out without": (ValueError, lambda s: Call(s.b.sample, 4, out=s.plain, follow=fr.NStep(2, 0.9))),
        "follow: out with": (ValueError, lambda s: Call(s.b.sample, 4, out=s.out)),
        "follow: out of another rule": (
            ValueError,
            lambda s: Call(s.b.sample, 4, out=s.out, follow=fr.NStep(2, 0.9, reward=())),
        ),
    },
    "fr.ReplayBuffer.sampler": {
        "follow: no rule": (TypeError, lambda s: Call(s.b.sampler, follow="n")),
        "draw: no lanes": (ValueError, lambda s: Call(s.alone.sampler, draw=fr.Uniform(over="trajectories"))),
        "follow: no lanes": (ValueError, lambda s: Call(s.alone.sampler, follow=fr.NStep(2, 0.9))),
    },
    "fr.ReplayBuffer.loader": {
        "follow: no rule": (TypeError, lambda s: Call(s.b.loader, 4, follow=0)),
        "follow: draws again in epochs": (
            ValueError,
            lambda s: Call(s.b.loader, 4, replacement=False, follow=fr.NStep(2, 0.9, incomplete="redraw")),
        ),
        "follow: no lanes": (ValueError, lambda s: Call(s.alone.loader, 4, follow=fr.NStep(2, 0.9))),
    },
}


def shared(fields: dict[str, Any], **options: Any) -> Any:
    """Make a buffer whose next fields are shared."""
    options = {"lanes": 1, "ends": (), "share_next": True, **options}
    return lambda s: Call(Native.ReplayBuffer, 400, fields, **options)


MADE: dict[str, dict[str, Any]] = {
    "fr.ReplayBuffer.__init__": {
        "lanes: none": (ValueError, lambda s: Call(Native.ReplayBuffer, 4, FIELDS, lanes=0)),
        "lanes: a bool": (TypeError, lambda s: Call(Native.ReplayBuffer, 4, FIELDS, lanes=True)),
        "lanes: beyond memory": (MemoryError, lambda s: Call(Native.ReplayBuffer, 4, FIELDS, lanes=2**50)),
        "lanes: no end": (ValueError, lambda s: Call(Native.ReplayBuffer, 4, {"reward": ()}, lanes=1)),
        "lanes: a name that is taken": (
            ValueError,
            lambda s: Call(Native.ReplayBuffer, 4, {"mask": ()}, lanes=1, ends=()),
        ),
        "ends: without lanes": (ValueError, lambda s: Call(Native.ReplayBuffer, 4, FIELDS, ends=())),
        "ends: one string": (TypeError, lambda s: Call(Native.ReplayBuffer, 4, FIELDS, lanes=1, ends="terminated")),
        "ends: no names": (TypeError, lambda s: Call(Native.ReplayBuffer, 4, FIELDS, lanes=1, ends=1)),
        "ends: no such field": (ValueError, lambda s: Call(Native.ReplayBuffer, 4, FIELDS, lanes=1, ends=["done"])),
        "share_next: without lanes": (ValueError, shared({"x": (), "next_x": ()}, lanes=None)),
        "share_next: no pair": (ValueError, shared({"x": ()})),
        "share_next: another shape": (ValueError, shared({"x": (2,), "next_x": (3,)})),
        "share_next: another dtype": (ValueError, shared({"x": (2,), "next_x": ((2,), "int32")})),
        "share_next: another stack": (ValueError, shared({"x": Native.Field((), stack=2), "next_x": (2,)})),
        "share_next: other leaves": (ValueError, shared({"x/a": (), "next_x/b": ()})),
        "share_next: no such fields": (ValueError, shared({"x": (), "y": ()}, share_next={"y": "z"})),
        "share_next: a field twice": (ValueError, shared({"x": (), "y": (), "z": ()}, share_next={"y": "x", "z": "x"})),
        "share_next: an empty mapping": (ValueError, shared({"x": (), "y": ()}, share_next={})),
        "share_next: no names": (TypeError, shared({"x": (), "y": ()}, share_next={"y": 1})),
        "share_next: a string": (TypeError, shared({"x": (), "next_x": ()}, share_next="x")),
        "stack: without lanes": (
            ValueError,
            lambda s: Call(Native.ReplayBuffer, 4, {"x": Native.Field((2,), stack=4)}),
        ),
        "share_next: beyond memory": (MemoryError, shared({"x": (2**30,), "next_x": (2**30,)})),
        "ends: complex numbers": (
            ValueError,
            lambda s: Call(Native.ReplayBuffer, 4, {"z": ((), "complex64")}, lanes=1, ends=["z"]),
        ),
    },
    "fr.NStep.__init__": {
        "no steps": (ValueError, lambda s: Call(Native.NStep, 0, 0.9)),
        "steps beyond all": (ValueError, lambda s: Call(Native.NStep, 2**40, 0.9)),
        "half a step": (TypeError, lambda s: Call(Native.NStep, 1.5, 0.9)),
        "a negative gamma": (ValueError, lambda s: Call(Native.NStep, 2, -0.1)),
        "NaN": (ValueError, lambda s: Call(Native.NStep, 2, np.nan)),
        "a gamma in words": (TypeError, lambda s: Call(Native.NStep, 2, "0.9")),
        "a reward by position": (TypeError, lambda s: Call(Native.NStep, 2, 0.9, reward=2)),
        "rewards by position": (TypeError, lambda s: Call(Native.NStep, 2, 0.9, reward=[2])),
        "a reward twice": (ValueError, lambda s: Call(Native.NStep, 2, 0.9, reward=["r", "r"])),
        "a reward that is the discount": (ValueError, lambda s: Call(Native.NStep, 2, 0.9, reward="r", discount="r")),
        "a discount by position": (TypeError, lambda s: Call(Native.NStep, 2, 0.9, discount=4)),
        "another way with what is missing": (ValueError, lambda s: Call(Native.NStep, 2, 0.9, incomplete="pad")),
        "the last by position": (TypeError, lambda s: Call(Native.NStep, 2, 0.9, last=3)),
    },
    "fr.Sequence.__init__": {
        "no steps": (ValueError, lambda s: Call(Native.Sequence, 0)),
        "half a step": (TypeError, lambda s: Call(Native.Sequence, 1.5)),
        "steps beyond all": (ValueError, lambda s: Call(Native.Sequence, 2**20, 0, 2**20)),
        "a negative burn-in": (ValueError, lambda s: Call(Native.Sequence, 4, -1)),
        "no stride": (ValueError, lambda s: Call(Native.Sequence, 4, 0, 0)),
        "another way with what is missing": (ValueError, lambda s: Call(Native.Sequence, 4, incomplete="shorten")),
        "padding by a number": (TypeError, lambda s: Call(Native.Sequence, 4, pad=0)),
        "another padding": (ValueError, lambda s: Call(Native.Sequence, 4, pad="zeros")),
        "fields by position": (TypeError, lambda s: Call(Native.Sequence, 4, first_only=[1])),
        "steps first by a number": (TypeError, lambda s: Call(Native.Sequence, 4, time_major=1)),
    },
    "fr.Window.__init__": {
        "no mapping": (TypeError, lambda s: Call(Native.Window, range(3))),
        "no fields": (ValueError, lambda s: Call(Native.Window, {})),
        "fields by position": (TypeError, lambda s: Call(Native.Window, {0: range(3)})),
        "no steps": (ValueError, lambda s: Call(Native.Window, {"observation": []})),
        "one step by itself": (TypeError, lambda s: Call(Native.Window, {"observation": 3})),
        "half a step": (TypeError, lambda s: Call(Native.Window, {"observation": [0, 0.5]})),
        "steps that are not equally far apart": (ValueError, lambda s: Call(Native.Window, {"observation": [0, 1, 3]})),
        "steps backwards": (ValueError, lambda s: Call(Native.Window, {"observation": range(3, 0, -1)})),
        "a step twice": (ValueError, lambda s: Call(Native.Window, {"observation": [1, 1]})),
        "steps beyond all": (ValueError, lambda s: Call(Native.Window, {"observation": [2**40]})),
        "another padding": (ValueError, lambda s: Call(Native.Window, {"observation": [0]}, pad="mean")),
        "steps first by text": (TypeError, lambda s: Call(Native.Window, {"observation": [0]}, time_major="yes")),
    },
    "fr.Sequence.__setattr__": {
        "a change": (FrozenInstanceError, lambda s: Call(setattr, fr.Sequence(2), "length", 3))
    },
    "fr.Sequence.__delattr__": {"a change": (FrozenInstanceError, lambda s: Call(delattr, fr.Sequence(2), "length"))},
    "fr.Window.__setattr__": {
        "a change": (FrozenInstanceError, lambda s: Call(setattr, fr.Window({"a": [0]}), "pad", 3))
    },
    "fr.Window.__delattr__": {"a change": (FrozenInstanceError, lambda s: Call(delattr, fr.Window({"a": [0]}), "pad"))},
    "fr.NStep.__setattr__": {"a change": (FrozenInstanceError, lambda s: Call(setattr, fr.NStep(2, 0.9), "n", 3))},
    "fr.NStep.__delattr__": {"a change": (FrozenInstanceError, lambda s: Call(delattr, fr.NStep(2, 0.9), "n"))},
}

LANES: list[Case] = [
    *cases("fr.ReplayBuffer.extend", streams, go_on, EXTEND),
    *cases("fr.ReplayBuffer.add", streams, go_on, ADD),
    *cases("fr.ReplayBuffer.cut", streams, go_on, CUT),
    *(case for name, kinds in FOLLOW.items() for case in cases(name, partial(streams, "torch"), go_on, kinds)),
    *(case for name, kinds in INSIDE.items() for case in cases(name, busy, go_on_busy, kinds)),
    *(case for name, kinds in MADE.items() for case in cases(name, on("numpy"), run_on, kinds)),
]
