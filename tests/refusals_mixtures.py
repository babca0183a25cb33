# SPDX-License-Identifier: MIT
"""Refused calls of mixtures, of buffers of another capacity, and of buffers that take others in."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from refusals import Call, Case, Scene, attempt, cases
from refusals_reading import NO_CUDA, RESIDENT, on_device
from refusals_scenes import on, run_on
from support import FIELDS, NativeBuffer, fill

import fastreplay as fr
from fastreplay.checkpoint import laying

if TYPE_CHECKING:
    from collections.abc import Iterator

Native: Any = fr  # untyped: what is refused here is what its types refuse


def mixed(count: int = 17) -> Scene:
    """Make two buffers, one with priorities, a mixture of both, and minibatches of it and of others."""
    a = fill(NativeBuffer(12, FIELDS, seed=3, output="numpy"), 15)
    b = NativeBuffer(12, FIELDS, seed=4, output="numpy", priorities=fr.Priorities())
    fill(b, 17)
    mixture = Native.Mixture({a: 1, b: 3}, seed=5)
    out = mixture.sample(8)
    b.clear()
    fill(b, count)
    return Scene(a=a, b=b, mixture=mixture, out=out, others=a.sample(8), plain=Native.Mixture({a: 1}, seed=6))


def go_on(scene: Scene) -> Iterator[Any]:
    """Do some things with the mixture and its members, and tell what comes of each."""
    mixture = scene.mixture
    yield attempt(lambda: mixture.sample(8))
    yield attempt(lambda: mixture.sample(8, out=scene.out))
    fill(scene.a, 3)
    fill(scene.b, 4)
    yield attempt(lambda: mixture.update_priorities(scene.out, range(8)))
    with mixture.loader(5, steps=3) as loader:
        yield list(loader)
    yield [mixture, scene.a, scene.b, mixture.sample(7)]


def mixed_with_a_closed_one() -> Scene:
    """Make a mixture of two buffers with priorities, of which the second is closed."""
    b, other = (NativeBuffer(12, FIELDS, seed=i, output="numpy", priorities=fr.Priorities()) for i in (3, 4))
    mixture = Native.Mixture({fill(b, 15): 1, fill(other, 15): 1}, seed=5)
    out = mixture.sample(8)
    other.close()
    return Scene(b=b, mixture=mixture, out=out)


def go_on_without_it(scene: Scene) -> Iterator[Any]:
    """Go on with the first."""
    yield [scene.b, scene.b.max_priority, scene.b.sample(7)]


def there() -> Scene:
    """Make a mixture of minibatches on a device, in the buffer's place."""
    scene = on_device("host")
    scene.b = Native.Mixture({scene.b: 1}, seed=5)
    return scene


def go_on_there(scene: Scene) -> Iterator[Any]:
    """Draw some minibatches."""
    for _ in range(3):
        yield attempt(partial(scene.b.sample, 4))


INIT: dict[str, Any] = {
    "no mapping": (TypeError, lambda s: Call(Native.Mixture, [s.a, s.b])),
    "no buffers": (TypeError, lambda s: Call(Native.Mixture, {"a": 1})),
    "nothing": (ValueError, lambda s: Call(Native.Mixture, {})),
    "no numbers": (TypeError, lambda s: Call(Native.Mixture, {s.a: None})),
    "less than nothing": (ValueError, lambda s: Call(Native.Mixture, {s.a: -1, s.b: 2})),
    "of nobody": (ValueError, lambda s: Call(Native.Mixture, {s.a: 0})),
    "other fields": (
        ValueError,
        lambda s: Call(Native.Mixture, {s.a: 1, NativeBuffer(3, {"x": ()}, output="numpy"): 1}),
    ),
    "another output": (ValueError, lambda s: Call(Native.Mixture, {s.a: 1, NativeBuffer(3, FIELDS): 1})),
    "exact: a number": (TypeError, lambda s: Call(Native.Mixture, {s.a: 1}, exact=1)),
    "a seed of text": (TypeError, lambda s: Call(Native.Mixture, {s.a: 1}, seed="1")),
    "again": (RuntimeError, lambda s: Call(s.mixture.__init__, {s.a: 1})),
}
SAMPLE: dict[str, Any] = {
    "a float": (TypeError, lambda s: Call(s.mixture.sample, 4.0)),
    "none": (ValueError, lambda s: Call(s.mixture.sample, 0)),
    "more than memory": (MemoryError, lambda s: Call(s.mixture.sample, 2**62)),
    "a beta of nobody": (ValueError, lambda s: Call(s.plain.sample, 4, beta=0.5)),
    "a negative beta": (ValueError, lambda s: Call(s.mixture.sample, 4, beta=-1)),
    "out of another size": (ValueError, lambda s: Call(s.mixture.sample, 4, out=s.out)),
    "out of a buffer": (ValueError, lambda s: Call(s.mixture.sample, 8, out=s.others)),
    "out of another kind": (TypeError, lambda s: Call(s.mixture.sample, 8, out=8)),
    "shares of others": (ValueError, lambda s: Call(s.mixture.sample, 8, shares=(1, 1, 1))),
    "shares that are none": (TypeError, lambda s: Call(s.mixture.sample, 8, shares=1)),
}
EMPTY: dict[str, Any] = {
    "an empty member": (ValueError, lambda s: Call(s.mixture.sample, 8)),
    "an empty member, with out": (ValueError, lambda s: Call(s.mixture.sample, 8, out=s.out)),
}
LOADER: dict[str, Any] = {
    "a float": (TypeError, lambda s: Call(s.mixture.loader, 4.0)),
    "a depth of 0": (ValueError, lambda s: Call(s.mixture.loader, 4, depth=0)),
    "more than memory": (MemoryError, lambda s: Call(s.mixture.loader, 2**62)),
}
SHARES: dict[str, Any] = {
    "no numbers": (TypeError, lambda s: Call(setattr, s.mixture, "shares", 1)),
    "too few": (ValueError, lambda s: Call(setattr, s.mixture, "shares", [1])),
}
STATE: dict[str, Any] = {
    "no mapping": (ValueError, lambda s: Call(setattr, s.mixture, "rng_state", 3)),
    "a buffer's": (ValueError, lambda s: Call(setattr, s.mixture, "rng_state", s.a.rng_state)),
    "without a member": (ValueError, lambda s: Call(setattr, s.mixture, "rng_state", s.plain.rng_state)),
    "an epoch's member": (
        ValueError,
        lambda s: Call(
            setattr,
            s.mixture,
            "rng_state",
            {"key": [1, 2], "calls": 0, "members": [s.a.rng_state, {**s.b.rng_state, "epoch": (0, 0, 0, 0)}]},
        ),
    ),
}
UPDATE_CLOSED: dict[str, Any] = {
    "a closed member": (RuntimeError, lambda s: Call(s.mixture.update_priorities, s.out, range(8))),
}
UPDATE: dict[str, Any] = {
    "tickets": (TypeError, lambda s: Call(s.mixture.update_priorities, [1, 2], [1, 2])),
    "a buffer's minibatch": (ValueError, lambda s: Call(s.mixture.update_priorities, s.others, range(8))),
    "too few": (ValueError, lambda s: Call(s.mixture.update_priorities, s.out, [1])),
    "one that is not finite": (ValueError, lambda s: Call(s.mixture.update_priorities, s.out, [float("nan")] * 8)),
    "text": (TypeError, lambda s: Call(s.mixture.update_priorities, s.out, "12345678")),
}


def _overtaken(scene: Scene) -> Any:
    """Ask for a buffer of another capacity where writers overwrite what is read at every try."""
    with patch.object(laying, "copied", lambda *_: False):
        return scene.b.resized(20)


CAPTURED: dict[str, Any] = {"in the capture of a graph": RESIDENT["in the capture of a graph"]}
RESIZED: dict[str, Any] = {
    "overwritten at every try": (RuntimeError, lambda s: Call(_overtaken, s)),
    "a float": (TypeError, lambda s: Call(s.b.resized, 5.0)),
    "none": (ValueError, lambda s: Call(s.b.resized, 0)),
    "more than memory": (MemoryError, lambda s: Call(s.b.resized, 2**50)),
}
EXTEND: dict[str, Any] = {
    "itself": (ValueError, lambda s: Call(s.b.extend, s.b)),
    "other fields in another buffer": (ValueError, lambda s: Call(s.b.extend, NativeBuffer(3, {"x": ()}))),
    "another buffer and priorities": (TypeError, lambda s: Call(s.b.extend, NativeBuffer(3, FIELDS), priority=1)),
}

MIXTURES: list[Case] = [
    *cases("fr.Mixture.__init__", mixed, go_on, INIT),
    *cases("fr.Mixture.sample", mixed, go_on, SAMPLE),
    *cases("fr.Mixture.sample", partial(mixed, 0), go_on, EMPTY),
    *cases("fr.Mixture.loader", mixed, go_on, LOADER),
    *cases("fr.Mixture.sample", there, go_on_there, CAPTURED, is_on_device=True),
    *cases("fr.Mixture.loader", there, go_on_there, NO_CUDA, is_on_device=True),
    *cases("fr.Mixture.shares", mixed, go_on, SHARES),
    *cases("fr.Mixture.rng_state", mixed, go_on, STATE),
    *cases("fr.Mixture.update_priorities", mixed, go_on, UPDATE),
    *cases("fr.Mixture.update_priorities", mixed_with_a_closed_one, go_on_without_it, UPDATE_CLOSED),
    *cases("fr.ReplayBuffer.resized", on("numpy"), run_on, RESIZED),
    *cases("fr.ReplayBuffer.extend", on("numpy"), run_on, EXTEND),
]
