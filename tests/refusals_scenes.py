# SPDX-License-Identifier: MIT
"""The buffers that calls are refused on, and what is done with them afterwards."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
from refusals import PlantedError, Scene, attempt
from stall import StalledInsert
from support import FIELDS, NativeBuffer, fill, transitions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

CAPACITY = 12


def stored(
    count: int = 17, capacity: int = CAPACITY, output: str = "torch", device: str = "cpu", storage: str = "host"
) -> Scene:
    """Make a buffer with `count` self-describing transitions, and minibatches of it that the caller holds."""
    options = {"output": output, "device": device, "storage": storage}
    b, stranger = NativeBuffer(capacity, FIELDS, seed=3, **options), NativeBuffer(4, {"x": (2,)}, seed=1, output=output)
    other = fill(NativeBuffer(capacity, FIELDS, seed=9, **options), 15)
    stranger.extend(x=np.ones((3, 2)))
    full = fill(b, 5) if storage == "cuda" else other  # what lies over there fits its own ring only
    scene = Scene(b=b, out=full.sample(4), read=other.gather([3, 5, 6, 9]), others=stranger.sample(4))
    if storage == "cuda":
        b.clear()
    fill(b, count)
    return scene


def on(output: str, count: int = 17) -> Callable[[], Scene]:
    """Give what makes a buffer of this output."""
    return partial(stored, count, output=output)


def run_on(scene: Scene) -> Iterator[Any]:
    """Do ten things with a buffer, and tell what comes of each."""
    b = scene.b
    yield attempt(lambda: b.sample(5))
    yield attempt(lambda: b.sample(4, out=scene.out))
    first = b.stats()["inserted"]
    rows = transitions(first, 4)
    yield b.add(**{name: values[0] for name, values in rows.items()})
    yield b.extend(**{name: values[1:] for name, values in rows.items()})
    yield attempt(lambda: b.gather([first % b.capacity, (first + 3) % b.capacity, 0, first % b.capacity]))
    yield attempt(lambda: b.gather([first % b.capacity] * 4, out=scene.read))
    yield [b[-1], b[0], b[:]]
    yield [attempt(partial(face.sample, 3)) for face in b.spawn(2)]
    yield [attempt(lambda: list(b.loader(3, steps=2)))]
    yield [b, attempt(lambda: b.sample(6)), scene]


class Array:
    """Something with an `__array__` that raises, after it has changed nothing."""

    def __init__(self, error: type[BaseException] = PlantedError) -> None:
        self.error = error

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise self.error("in __array__")


class Number:
    """Something that claims to be a number, and raises when it is asked."""

    def __init__(self, error: type[BaseException] = PlantedError) -> None:
        self.error = error

    def _raise(self) -> Any:
        raise self.error("in a number")

    __index__ = __float__ = __int__ = _raise


def crowded(output: str = "torch") -> Scene:
    """Make a buffer in which another thread stands still in an insert a whole lap behind."""
    fields = {"id": ((), "int64"), "x": (8192,)}  # one row is long enough to be copied without the GIL
    b = NativeBuffer(16, fields, seed=3, output=output, timeout=0)
    b.extend(**_wide(0, 2))
    insert = StalledInsert(b, _wide(2, 1), "x", 0)
    for first in range(3, 18):
        b.extend(**_wide(first, 1))
    return Scene(b=b, insert=insert, out=b.sample(3))


def begun(output: str = "torch") -> Scene:
    """Make a buffer of which the first insert is under way: nothing is stored yet, something is to be."""
    scene = crowded(output)
    fields = dict(scene.b.schema)
    scene.insert.close()
    scene.b = NativeBuffer(16, fields, seed=3, output=output, timeout=0)
    scene.insert = StalledInsert(scene.b, _wide(0, 1), "x", 0)
    return scene


def _wide(first: int, count: int) -> dict[str, Any]:
    ids = np.arange(first, first + count)
    return {"id": ids, "x": np.repeat(ids[:, None].astype(np.float32), 8192, axis=1)}


def wide_row(number: int) -> dict[str, Any]:
    """Give one row for `crowded` buffers."""
    return {name: values[0] for name, values in _wide(number, 1).items()}


def go_on_crowded(scene: Scene) -> Iterator[Any]:
    """Let the other thread finish, and go on."""
    scene.insert.close()
    yield [scene.b.rng_state, scene.b.stats()["inserted"]]
    scene.b.extend(**_wide(18, 3))
    yield [scene.b.sample(4), scene.b.sample(3, out=scene.out), scene.b[:], scene.b]


def leave(*scenes: Scene) -> None:
    """End the threads of scenes."""
    for scene in scenes:
        if hasattr(scene, "insert") and scene.insert.thread.is_alive():
            scene.insert.close()
        if hasattr(scene, "loader"):
            scene.loader.close()


class without:  # noqa: N801 - used as a function
    """A call on a machine that lacks a library, or has another in its place."""

    def __init__(self, name: str, module: ModuleType | None, call: Callable[[], object]) -> None:
        self.name, self.module, self.call = name, module, call

    def __call__(self) -> object:
        with patch.dict(sys.modules, {self.name: self.module}):
            return self.call()
