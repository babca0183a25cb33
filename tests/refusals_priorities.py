# SPDX-License-Identifier: MIT
"""Refused calls that give priorities, or draw by them."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from refusals import Call, Case, Scene, attempt, cases
from refusals_reading import settle
from refusals_scenes import CAPACITY, on, run_on
from support import FIELDS, NativeBuffer, transitions

import fastreplay as fr

if TYPE_CHECKING:
    from collections.abc import Iterator

Native: Any = fr  # untyped: what is refused here is what its types refuse


def weighed(output: str, **options: Any) -> Scene:
    """Make a buffer with priorities, and minibatches that the caller holds."""
    b = NativeBuffer(CAPACITY, FIELDS, seed=3, output=output, priorities=fr.Priorities(), **options)
    other = NativeBuffer(CAPACITY, FIELDS, seed=3, output=output, priorities=fr.Priorities(), **options)
    b.extend(**transitions(0, 17), priority=np.arange(17.0))
    other.extend(**transitions(0, 17))
    return Scene(b=b, out=b.sample(4), other=other.sample(4))


def go_on(scene: Scene) -> Iterator[Any]:
    """Do some things with a buffer with priorities, and tell what comes of each."""
    b = scene.b
    yield attempt(lambda: b.update_priorities(scene.out, [1, 2, 3, 4]))
    yield attempt(lambda: b.sample(5))
    yield attempt(lambda: b.sample(4, out=scene.out, beta=1.0))
    first = b.stats()["inserted"]
    rows = transitions(first, 4)
    yield b.add(**{name: values[0] for name, values in rows.items()}, priority=3)
    yield b.extend(**rows)
    yield b.max_priority
    yield [attempt(lambda: list(b.loader(3, steps=2)))]
    yield [b, scene]


def weighed_there() -> Scene:
    """Make one whose priorities a device keeps."""
    scene = weighed("torch", device="cuda", storage="cuda")
    settle()
    return scene


def go_on_there(scene: Scene) -> Iterator[Any]:
    b = scene.b
    yield attempt(lambda: b.update_priorities(scene.out, [1, 2, 3, 4]))
    for out in (None, scene.out):
        batch = b.sample(4, out=out)
        settle()
        yield [batch, batch.weight, b.rng_state]
    yield [b.max_priority, b.stats()["refused"]]


def _captured(scene: Scene) -> Any:
    with settle().capture():
        return scene.b.update_priorities(scene.out, [1.0, 2.0, 3.0, 4.0])


UPDATE: dict[str, Any] = {
    "too few": (ValueError, lambda s: Call(s.b.update_priorities, s.out, [1.0])),
    "NaN": (ValueError, lambda s: Call(s.b.update_priorities, s.out, [1.0, 2.0, np.nan, 3.0])),
    "infinity": (ValueError, lambda s: Call(s.b.update_priorities, s.out, np.array([1, 2, 3, np.inf], np.float32))),
    "a ticket of nobody": (ValueError, lambda s: Call(s.b.update_priorities, [16, 17], [1.0, 2.0])),
    "a negative ticket": (ValueError, lambda s: Call(s.b.update_priorities, [-1], [1.0])),
    "another buffer's minibatch": (ValueError, lambda s: Call(s.b.update_priorities, s.other, [1.0, 2, 3, 4])),
    "tickets of two dimensions": (ValueError, lambda s: Call(s.b.update_priorities, [[1, 2]], [1.0, 2.0])),
    "tickets that are no integers": (TypeError, lambda s: Call(s.b.update_priorities, [0.5], [1.0])),
    "priorities that are no numbers": (TypeError, lambda s: Call(s.b.update_priorities, [1], ["much"])),
    "complex priorities": (TypeError, lambda s: Call(s.b.update_priorities, [1], torch.ones(1, dtype=torch.complex64))),
    "ragged priorities": (TypeError, lambda s: Call(s.b.update_priorities, [1, 2], [[1.0], [1.0, 2.0]])),
}

UPDATE_THERE: dict[str, Any] = {
    **{f"{kind}, on a device": case for kind, case in UPDATE.items()},
    "the host's numbers in the capture of a graph": (RuntimeError, lambda s: Call(_captured, s)),
}
INSERT: dict[str, Any] = {
    "priority: NaN": (ValueError, lambda s: Call(s.b.extend, **transitions(100, 3), priority=[1, np.nan, 2])),
    "priority: too many": (ValueError, lambda s: Call(s.b.extend, **transitions(100, 3), priority=np.ones(4))),
    "priority: two dimensions": (
        ValueError,
        lambda s: Call(s.b.extend, **transitions(100, 3), priority=np.ones((3, 1))),
    ),
    "priority: no numbers": (TypeError, lambda s: Call(s.b.extend, **transitions(100, 3), priority="high")),
    "priority: a missing field": (
        TypeError,
        lambda s: Call(s.b.extend, observation=np.zeros((3, 3)), priority=np.ones(3)),
    ),
}

SAMPLE: dict[str, Any] = {
    "a negative beta": (ValueError, lambda s: Call(s.b.sample, 4, beta=-1)),
    "a beta that is no number": (TypeError, lambda s: Call(s.b.sample, 4, beta="1")),
    "a minibatch without weights": (ValueError, lambda s: Call(s.b.sample, 4, out=s.b.gather([0, 1, 2, 3]))),
}

WITHOUT: dict[str, Any] = {
    "no priorities": (ValueError, lambda s: Call(s.b.update_priorities, [1], [1.0])),
}

UNWEIGHED: dict[str, Any] = {
    "a beta where there are no weights": (ValueError, lambda s: Call(s.b.sample, 4, beta=1)),
}
NO_LARGEST: dict[str, Any] = {
    "no priorities": (ValueError, lambda s: Call(getattr, s.b, "max_priority")),
}

RULES: dict[str, Any] = {
    "a negative alpha": (ValueError, lambda s: Call(Native.Priorities, alpha=-0.1)),
    "an infinite eps": (ValueError, lambda s: Call(Native.Priorities, eps=np.inf)),
    "a mixture above 1": (ValueError, lambda s: Call(Native.Priorities, uniform_mix=1.5)),
    "other draws": (ValueError, lambda s: Call(Native.Priorities, draws="rank")),
    "another norm": (ValueError, lambda s: Call(Native.Priorities, normalize="sum")),
    "an initial priority below 0": (ValueError, lambda s: Call(Native.Priorities, initial=-1)),
    "a bool": (TypeError, lambda s: Call(Native.Priorities, beta=True)),
    "a string": (TypeError, lambda s: Call(Native.Priorities, initial="min")),
}

BUFFERS: dict[str, Any] = {
    "priorities of another kind": (TypeError, lambda s: Call(Native.ReplayBuffer, 4, {"x": ()}, priorities=0.6)),
    "a field named weight": (
        ValueError,
        lambda s: Call(Native.ReplayBuffer, 4, {"weight": ()}, priorities=fr.Priorities()),
    ),
}


FROZEN: dict[str, Any] = {
    "a change": (FrozenInstanceError, lambda s: Call(setattr, fr.Priorities(), "alpha", 0.5)),
}
CUT: dict[str, Any] = {
    "a change": (FrozenInstanceError, lambda s: Call(delattr, fr.Priorities(), "alpha")),
}
BETA: dict[str, Any] = {
    "less than nothing": (ValueError, lambda s: Call(Native.Priorities(beta=lambda calls: -1.0).beta_after, 3)),
    "no number": (TypeError, lambda s: Call(Native.Priorities(beta=lambda calls: "1").beta_after, 3)),
}

PRIORITIES: list[Case] = [
    *cases("fr.ReplayBuffer.update_priorities", partial(weighed, "torch"), go_on, UPDATE),
    *cases("fr.ReplayBuffer.update_priorities", weighed_there, go_on_there, UPDATE_THERE, is_on_device=True),
    *cases("fr.ReplayBuffer.update_priorities", on("torch"), run_on, WITHOUT),
    *cases("fr.ReplayBuffer.extend", partial(weighed, "numpy"), go_on, INSERT),
    *cases("fr.ReplayBuffer.sample", partial(weighed, "torch"), go_on, SAMPLE),
    *cases(
        "fr.ReplayBuffer.sample",
        on("numpy"),
        run_on,
        UNWEIGHED,
    ),
    *cases(
        "fr.ReplayBuffer.max_priority",
        on("torch"),
        run_on,
        NO_LARGEST,
    ),
    *cases(
        "fr.ReplayBuffer.max_priority",
        partial(weighed, "torch"),
        go_on,
        {
            "NaN": (ValueError, lambda s: Call(setattr, s.b, "max_priority", np.nan)),
            "a string": (TypeError, lambda s: Call(setattr, s.b, "max_priority", "1")),
        },
    ),
    *cases("fr.Priorities.__setattr__", partial(weighed, "torch"), go_on, FROZEN),
    *cases("fr.Priorities.__delattr__", partial(weighed, "torch"), go_on, CUT),
    *cases("fr.Priorities.beta_after", partial(weighed, "torch"), go_on, BETA),
    *cases("fr.Priorities.__init__", partial(weighed, "torch"), go_on, RULES),
    *cases("fr.ReplayBuffer.__init__", partial(weighed, "torch"), go_on, BUFFERS),
]
