# SPDX-License-Identifier: MIT
"""Refused calls of samplers, and of the rules that they draw by."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from functools import partial
from typing import TYPE_CHECKING, Any

from refusals import Call, Case, PlantedError, Scene, attempt, cases
from refusals_reading import NO_CUDA, RESIDENT, go_on_device, on_device, settle
from refusals_scenes import CAPACITY, Number, on, run_on
from support import FIELDS, NativeBuffer, transitions

import fastreplay as fr

if TYPE_CHECKING:
    from collections.abc import Iterator

Native: Any = fr  # untyped: what is refused here is what its types refuse


def sampled(count: int, draw: Any) -> Scene:
    """Make a buffer, and a sampler over it."""
    b = NativeBuffer(CAPACITY, FIELDS, seed=3, output="numpy")
    b.extend(**transitions(0, count)) if count else None
    return Scene(b=b, sampler=b.sampler(draw=draw, seed=5))


def sampled_there(storage: str) -> Scene:
    """The same with minibatches on a device, the sampler in the buffer's place."""
    scene = on_device(storage)
    scene.b = scene.b.sampler(seed=5)
    return scene


def go_on_there(scene: Scene) -> Iterator[Any]:
    """Draw some minibatches."""
    for _ in range(3):
        batch = attempt(partial(scene.b.sample, 4))
        settle()
        yield [batch, scene.b]


def go_on(scene: Scene) -> Iterator[Any]:
    """Do some things with the sampler and its buffer, and tell what comes of each."""
    sampler = scene.sampler
    yield attempt(lambda: sampler.sample(4))
    scene.b.extend(**transitions(scene.b.stats()["inserted"], 7))
    yield attempt(lambda: sampler.sample(5))
    with sampler.loader(3, steps=4) as loader:
        yield list(loader)
    yield [sampler, scene.b]


RULES: dict[str, Any] = {
    "fr.Uniform.__init__": {
        "of none": (ValueError, lambda s: Call(Native.Uniform, newest_of=0)),
        "over: nothing": (ValueError, lambda s: Call(Native.Uniform, over="episodes")),
        "over: trajectories of the newest": (ValueError, lambda s: Call(Native.Uniform, 5, over="trajectories")),
        "over: trajectories and the newest": (
            ValueError,
            lambda s: Call(Native.Uniform, newest=1, over="trajectories"),
        ),
        "of half a one": (TypeError, lambda s: Call(Native.Uniform, newest_of=0.5)),
        "of a bool": (TypeError, lambda s: Call(Native.Uniform, newest_of=True)),
        "fewer than none": (ValueError, lambda s: Call(Native.Uniform, newest=-1)),
        "text": (TypeError, lambda s: Call(Native.Uniform, newest="1")),
        "none": (TypeError, lambda s: Call(Native.Uniform, newest=None)),
        "their number": (PlantedError, lambda s: Call(Native.Uniform, newest=Number())),
    },
    "fr.Epochs.__init__": {
        "an integer": (TypeError, lambda s: Call(Native.Epochs, shuffle=1)),
        "none": (TypeError, lambda s: Call(Native.Epochs, drop_last=None)),
    },
    "fr.ReplayBuffer.sampler": {
        "a name": (TypeError, lambda s: Call(s.b.sampler, draw="uniform")),
        "a class": (TypeError, lambda s: Call(s.b.sampler, draw=fr.Epochs)),
        "without priorities": (ValueError, lambda s: Call(s.b.sampler, draw=fr.Prioritized())),
        "a seed of text": (TypeError, lambda s: Call(s.b.sampler, seed="1")),
        "a negative seed": (ValueError, lambda s: Call(s.b.sampler, seed=-1)),
    },
    "fr.ReplayBuffer.loader": {
        "replacement: no bool": (TypeError, lambda s: Call(s.b.loader, 4, replacement=0)),
        "an order, with replacement": (ValueError, lambda s: Call(s.b.loader, 4, shuffle=False)),
        "a last one, with replacement": (ValueError, lambda s: Call(s.b.loader, 4, drop_last=True)),
        "shuffle: no bool": (TypeError, lambda s: Call(s.b.loader, 4, replacement=False, shuffle=None)),
    },
}
FROZEN: dict[str, Any] = {
    f"fr.{type(rule).__name__}.{name}": {"a change": (FrozenInstanceError, lambda s, call=call: Call(*call))}
    for rule in (fr.Uniform(), fr.Prioritized(), fr.Epochs())
    for name, call in (("__setattr__", (setattr, rule, "newest", 2)), ("__delattr__", (delattr, rule, "newest")))
}
STATES: dict[str, Any] = {
    "no mapping": 3,
    "no epoch": {"key": [1, 2], "calls": 0},
    "three numbers": {"key": [1, 2], "calls": 0, "epoch": (0, 0, 0)},
    "a place beyond the end": {"key": [1, 2], "calls": 0, "epoch": (0, 0, 5, 6)},
    "a negative ticket": {"key": [1, 2], "calls": 0, "epoch": (0, -1, 5, 3)},
    "too many tickets": {"key": [1, 2], "calls": 0, "epoch": (0, 2**63, 2**63, 0)},
    "more than the buffer could hold": {"key": [1, 2], "calls": 0, "epoch": (0, 0, 2**40, 0)},
    "halves": {"key": [1, 2], "calls": 0, "epoch": (0, 0.5, 1, 0)},
}
RNG_STATE: dict[str, Any] = {
    kind: (ValueError, lambda s, state=state: Call(setattr, s.sampler, "rng_state", state))
    for kind, state in STATES.items()
}
FOREIGN: dict[str, Any] = {
    "an epoch's": (
        ValueError,
        lambda s: Call(setattr, s.sampler, "rng_state", {"key": [1, 2], "calls": 0, "epoch": (0, 0, 0, 0)}),
    )
}
SAMPLE: dict[str, Any] = {
    "a float": (TypeError, lambda s: Call(s.sampler.sample, 4.0)),
    "none": (ValueError, lambda s: Call(s.sampler.sample, 0)),
    "more than memory": (MemoryError, lambda s: Call(s.sampler.sample, 2**62)),
    "a beta": (ValueError, lambda s: Call(s.sampler.sample, 4, beta=0.5)),
}
OUT: dict[str, Any] = {
    "out, where the last is smaller": (ValueError, lambda s: Call(s.sampler.sample, 4, out=s.b.gather([0, 1, 2, 3]))),
}
NO_MINIBATCH: dict[str, Any] = {
    "out of another kind": (TypeError, lambda s: Call(s.sampler.sample, 4, out=4)),
    "out of another size": (ValueError, lambda s: Call(s.sampler.sample, 4, out=s.b.gather([0, 1, 2]))),
    "too few to drop the last": (ValueError, lambda s: Call(s.sampler.sample, 40)),
}
LOADER: dict[str, Any] = {
    "a float": (TypeError, lambda s: Call(s.sampler.loader, 4.0)),
    "a depth of 0": (ValueError, lambda s: Call(s.sampler.loader, 4, depth=0)),
    "more than memory": (MemoryError, lambda s: Call(s.sampler.loader, 2**62)),
}
THERE: dict[str, Any] = {
    "of the newest, on a device": (ValueError, lambda s: Call(s.b.sampler, draw=fr.Uniform(newest_of=5))),
    "the newest first, on a device": (ValueError, lambda s: Call(s.b.sampler, draw=fr.Uniform(newest=1))),
    "over trajectories, without lanes, on a device": (
        ValueError,
        lambda s: Call(s.b.sampler, draw=fr.Uniform(over="trajectories")),
    ),
    "in epochs, on a device": (ValueError, lambda s: Call(s.b.sampler, draw=fr.Epochs())),
}
EMPTY: dict[str, Any] = {"empty": (ValueError, lambda s: Call(s.sampler.sample, 4))}
AGAIN: dict[str, Any] = {"again": (RuntimeError, lambda s: Call(s.sampler.__init__, None, s.b, fr.Uniform()))}

EPOCHS = partial(sampled, 17, fr.Epochs())
DROPPING = partial(sampled, 17, fr.Epochs(drop_last=True))
LATEST = partial(sampled, 17, fr.Uniform(newest_of=5))

SAMPLERS: list[Case] = [
    *(case for name, kinds in RULES.items() for case in cases(name, on("numpy"), run_on, kinds)),
    *(case for name, kinds in FROZEN.items() for case in cases(name, on("numpy"), run_on, kinds)),
    *cases("fr.Sampler.__init__", EPOCHS, go_on, AGAIN),
    *cases("fr.Sampler.rng_state", EPOCHS, go_on, RNG_STATE),
    *cases("fr.Sampler.rng_state", LATEST, go_on, FOREIGN),
    *cases("fr.Sampler.sample", EPOCHS, go_on, {**SAMPLE, **OUT}),
    *cases("fr.Sampler.sample", DROPPING, go_on, NO_MINIBATCH),
    *cases("fr.Sampler.sample", partial(sampled, 0, fr.Epochs()), go_on, EMPTY),
    *cases(
        "fr.Sampler.sample", partial(sampled, 0, fr.Uniform(newest=3)), go_on, {"empty, of the newest": EMPTY["empty"]}
    ),
    *cases("fr.Sampler.sample", partial(sampled_there, "cuda"), go_on_there, RESIDENT, is_on_device=True),
    *cases("fr.ReplayBuffer.sampler", partial(on_device, "cuda"), go_on_device, THERE, is_on_device=True),
    *cases("fr.Sampler.loader", EPOCHS, go_on, LOADER),
    *cases("fr.Sampler.loader", partial(sampled_there, "host"), go_on_there, NO_CUDA, is_on_device=True),
]
