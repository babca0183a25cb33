# SPDX-License-Identifier: MIT
"""Refused calls of the adapters that store once what steps have in common."""

from __future__ import annotations

import operator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from refusals import Call, Case, Scene, attempt, cases, numpy_state
from refusals_adapters import CLASSES, COLUMNS, NUM_ENVS, NUM_ROWS, SPACES, adding, arguments, filled, step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAMES = tuple(CLASSES)
COLUMN = "sb3.StepColumn"


def going_on(scene: Scene) -> Iterator[Any]:
    b, name = scene.b, scene.name
    yield [attempt(partial(b.sample, 5)) for _ in range(2)]
    for number in range(20, 29):
        yield b.add(**step(name, number))
    yield [attempt(partial(b.sample, 7)), b]
    yield b.reset()
    yield [b.size(), numpy_state()]


def constructing(name: str) -> dict[str, Any]:
    def make(**changes: Any) -> Callable[[Scene], Call[Any]]:
        args, options = arguments(name, **changes)
        return lambda s: Call(CLASSES[name], *args, **options)

    kinds: dict[str, Any] = {
        "dedupe: text": (TypeError, make(dedupe="next")),
        "dedupe: no frames": (ValueError, make(dedupe=0)),
        "dedupe: too many frames": (ValueError, make(dedupe=65)),
        "dedupe: no stacks": (ValueError, make(dedupe=4)),
    }
    if isinstance(SPACES[name], spaces.Dict):
        kinds["dedupe: an unknown part"] = (ValueError, make(dedupe={"depth": 2}))
        part = next(iter(SPACES[name].spaces))
        kinds["dedupe: frames in words"] = (TypeError, make(dedupe={part: "2"}))
    else:
        shared = {"optimize_memory_usage": True, "handle_timeout_termination": False}
        refusal = NotImplementedError if name == "sb3.PrioritizedReplayBuffer" else ValueError
        kinds["dedupe: shared observations"] = (refusal, make(**shared, dedupe=True))
        kinds["dedupe: names of no parts"] = (ValueError, make(dedupe={"image": 2}))
    return kinds


def elsewhere(name: str) -> Scene:
    """Make a buffer whose cursor was set to where nothing goes on."""
    scene = filled(name, dedupe=True)
    scene.b.pos = 4
    return scene


def with_cursor(scene: Scene) -> Iterator[Any]:
    scene.b.pos = 2
    yield from going_on(scene)


def restoring(name: str) -> dict[str, Any]:
    def restore(**changes: Any) -> Callable[[Scene], Call[Any]]:
        return lambda s: Call(s.b.__setstate__, {**filled(name, 3, dedupe=True).b.__getstate__(), **changes})

    return {
        "dedupe: no cursor": (ValueError, restore(pos=None)),
        "dedupe: fewer rows than columns": (ValueError, restore(buffer_size=4)),
        "dedupe: timeouts of another shape": (ValueError, restore(timeouts=np.zeros(3))),
        "dedupe: observations of another kind": (ValueError, restore(next_observations=3)),
        "dedupe: frames in words": (ValueError, restore(dedupe="4")),
        "dedupe: too many frames": (ValueError, restore(dedupe=65)),
    }


def of_class(name: str) -> list[Case]:
    full, here = partial(filled, name, dedupe=True), partial(cases, go_on=going_on)
    row = step(name, 70)
    made = [
        *here(f"{name}.__init__", full, kinds=constructing(name)),
        *here(f"{name}.add", full, kinds={f"dedupe: {kind}": refused for kind, refused in adding(name).items()}),
        *cases(
            f"{name}.add",
            partial(elsewhere, name),
            with_cursor,
            {"dedupe: a cursor elsewhere": (ValueError, lambda s: Call(s.b.add, **row))},
        ),
        *here(f"{name}.__setstate__", full, kinds=restoring(name)),
    ]
    for column in COLUMNS:
        assign = partial(_assigned, column)
        made += here(f"{name}.{column}", full, kinds={"dedupe: any": (ValueError, assign)})
    return made


def _assigned(column: str, scene: Scene) -> Call[Any]:
    view = getattr(scene.b, column)
    value = {key: np.array(part) for key, part in view.items()} if isinstance(view, dict) else np.array(view)
    return Call(setattr, scene.b, column, value)


def a_column() -> Scene:
    scene = filled("sb3.ReplayBuffer", 4, dedupe=True)
    scene.column = scene.b.rewards
    scene.observations = scene.b.observations
    return scene


COLUMN_CASES: dict[str, Any] = {
    "__getitem__": {
        "a row out of range": (IndexError, lambda s: Call(operator.getitem, s.column, NUM_ROWS)),
        "an environment out of range": (IndexError, lambda s: Call(operator.getitem, s.column, (0, NUM_ENVS))),
        "new axes": (IndexError, lambda s: Call(operator.getitem, s.column, None)),
        "numbers of later axes": (IndexError, lambda s: Call(operator.getitem, s.observations, (0, 0, 1))),
    },
    "__setitem__": {
        "observations": (ValueError, lambda s: Call(operator.setitem, s.observations, 0, 1.0)),
        "a row without a step": (IndexError, lambda s: Call(operator.setitem, s.column, slice(2, 6), 1.0)),
        "a row out of range": (IndexError, lambda s: Call(operator.setitem, s.column, NUM_ROWS, 1.0)),
        "another shape": (ValueError, lambda s: Call(operator.setitem, s.column, slice(2), np.zeros(3))),
    },
    "__array__": {"without a copy": (ValueError, lambda s: Call(s.column.__array__, copy=False))},
}

DEDUPED: list[Case] = [
    *(case for name in NAMES for case in of_class(name)),
    *(case for name, kinds in COLUMN_CASES.items() for case in cases(f"{COLUMN}.{name}", a_column, going_on, kinds)),
]
