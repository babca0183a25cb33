# SPDX-License-Identifier: MIT
"""Refused calls that draw and read: minibatches, `out`, loaders, and the same on a device."""

from __future__ import annotations

import copy
import operator
import pickle
import time
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import torch
from refusals import Call, Case, PlantedError, Scene, attempt, cases
from refusals_scenes import Array, Number, begun, crowded, go_on_crowded, on, run_on, stored
from support import fill

from fastreplay.gpu import device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SAMPLE: dict[str, Any] = {
    "a float": (TypeError, lambda s: Call(s.b.sample, 4.0, out=s.out)),
    "a bool": (TypeError, lambda s: Call(s.b.sample, True, out=s.out)),
    "none": (ValueError, lambda s: Call(s.b.sample, 0, out=s.out)),
    "fewer than none": (ValueError, lambda s: Call(s.b.sample, -4, out=s.out)),
    "more than memory": (MemoryError, lambda s: Call(s.b.sample, 2**70)),
    "an out of another size": (ValueError, lambda s: Call(s.b.sample, 5, out=s.out)),
    "an out of other fields": (ValueError, lambda s: Call(s.b.sample, 4, out=s.others)),
    "an out that is none": (TypeError, lambda s: Call(s.b.sample, 4, out=tuple(s.out))),
    "a single transition for out": (ValueError, lambda s: Call(s.b.sample, 1, out=s.b[3])),
    "their number": (PlantedError, lambda s: Call(s.b.sample, Number(), out=s.out)),
}
EMPTY: dict[str, Any] = {
    "empty": (ValueError, lambda s: Call(s.b.sample, 4)),
    "empty, with out": (ValueError, lambda s: Call(s.b.sample, 4, out=s.out)),
}
GATHER: dict[str, Any] = {
    "a slot too large, last": (IndexError, lambda s: Call(s.b.gather, [9, 8, 7, 5000], out=s.read)),
    "a slot below 0, last": (IndexError, lambda s: Call(s.b.gather, [9, 8, 7, -1], out=s.read)),
    "a slot too large": (IndexError, lambda s: Call(s.b.gather, [1, 12])),
    "a slot beyond every integer": (IndexError, lambda s: Call(s.b.gather, [0, 1, 2, 2**70], out=s.read)),
    "a slot beyond int64": (IndexError, lambda s: Call(s.b.gather, np.array([0, 1, 2, 2**63], np.uint64), out=s.read)),
    "floats": (TypeError, lambda s: Call(s.b.gather, [0.0, 1.0, 2.0, 3.0], out=s.read)),
    "flags": (TypeError, lambda s: Call(s.b.gather, np.ones(4, bool), out=s.read)),
    "None": (TypeError, lambda s: Call(s.b.gather, None, out=s.read)),
    "rows of several lengths": (TypeError, lambda s: Call(s.b.gather, [[0, 1], [2], 3, 4], out=s.read)),
    "flags among objects": (TypeError, lambda s: Call(s.b.gather, np.array([0, 1, True, 3], object), out=s.read)),
    "a tensor with a gradient": (TypeError, lambda s: Call(s.b.gather, torch.ones(4, requires_grad=True), out=s.read)),
    "an object beyond int64": (IndexError, lambda s: Call(s.b.gather, np.array([0, 1, 2, 2**63], object), out=s.read)),
    "two dimensions": (ValueError, lambda s: Call(s.b.gather, [[0, 1], [2, 3]], out=s.read)),
    "one slot": (ValueError, lambda s: Call(s.b.gather, 3)),
    "an out of another size": (ValueError, lambda s: Call(s.b.gather, [0, 1, 2], out=s.read)),
    "an out of other fields": (ValueError, lambda s: Call(s.b.gather, [0, 1, 2, 3], out=s.others)),
    "an out that is none": (TypeError, lambda s: Call(s.b.gather, [0, 1, 2, 3], out=list(s.read))),
    "their __array__": (PlantedError, lambda s: Call(s.b.gather, Array(), out=s.read)),
}
NONE_STORED: dict[str, Any] = {
    "none stored": (IndexError, lambda s: Call(s.b.gather, [0, 1, 2, 3], out=s.read)),
    "none stored, fresh": (IndexError, lambda s: Call(s.b.gather, [0])),
}
UNFINISHED: dict[str, Any] = {
    "being written, last": (IndexError, lambda s: Call(s.b.gather, [0, 1, 2], out=s.out)),
}
GETITEM: dict[str, Any] = {
    "too old": (IndexError, lambda s: Call(operator.getitem, s.b, -13)),
    "too new": (IndexError, lambda s: Call(operator.getitem, s.b, 12)),
    "too new, last": (IndexError, lambda s: Call(operator.getitem, s.b, [0, 1, 12])),
    "huge": (IndexError, lambda s: Call(operator.getitem, s.b, 2**80)),
    "a float": (TypeError, lambda s: Call(operator.getitem, s.b, 1.0)),
    "a name": (TypeError, lambda s: Call(operator.getitem, s.b, "reward")),
    "flags": (TypeError, lambda s: Call(operator.getitem, s.b, [True, False])),
    "a slice of text": (TypeError, lambda s: Call(operator.getitem, s.b, slice("a", None))),
    "a step of 0": (ValueError, lambda s: Call(operator.getitem, s.b, slice(None, None, 0))),
    "two dimensions": (ValueError, lambda s: Call(operator.getitem, s.b, np.zeros((2, 2), np.int64))),
    "their __array__": (PlantedError, lambda s: Call(operator.getitem, s.b, Array())),
}
LOADER: dict[str, Any] = {
    "a float": (TypeError, lambda s: Call(s.b.loader, 4.0)),
    "none": (ValueError, lambda s: Call(s.b.loader, 0)),
    "more than memory": (MemoryError, lambda s: Call(s.b.loader, 2**70)),
    "more ahead than memory": (MemoryError, lambda s: Call(s.b.loader, 2**12, depth=2**30)),
    "more ahead than memory, of few": (MemoryError, lambda s: Call(s.b.loader, 4, depth=2**32)),
    "a depth of 0": (ValueError, lambda s: Call(s.b.loader, 4, depth=0)),
    "a depth of text": (TypeError, lambda s: Call(s.b.loader, 4, depth="2")),
    "fewer steps than none": (ValueError, lambda s: Call(s.b.loader, 4, steps=-1)),
    "half a step": (TypeError, lambda s: Call(s.b.loader, 4, steps=0.5)),
    "their number, last": (PlantedError, lambda s: Call(s.b.loader, 4, depth=3, steps=Number())),
}


# ---- Loaders ----


def with_loader(count: int, steps: int | None = None) -> Scene:
    """Make a buffer and a loader of it that was begun."""
    scene = stored(count)
    scene.loader = scene.b.loader(3, steps=steps)
    if steps is not None:
        list(scene.loader)
    return scene


def let_draw(scene: Scene) -> None:
    """Wait until the loader's thread has drawn all that got their turns, of 3 rows each."""
    while scene.b.stats()["sampled"] < 3 * scene.b.rng_state["calls"]:
        time.sleep(0)


def with_drawn_loader() -> Scene:
    scene = with_loader(17)
    next(scene.loader)
    let_draw(scene)
    return scene


def with_closed_loader() -> Scene:
    scene = with_drawn_loader()
    scene.loader.close()
    return scene


def iterate(scene: Scene) -> Iterator[Any]:
    """Go on with the loader, once there is something in the buffer."""
    fill(scene.b, 14)
    yield [attempt(lambda: next(scene.loader)) for _ in range(4)]
    let_draw(scene)
    scene.loader.close()
    yield from run_on(scene)


NEXT: dict[str, Any] = {"empty": (ValueError, lambda s: Call(next, s.loader))}
COPIED: dict[str, Any] = {
    "pickled": (TypeError, lambda s: Call(pickle.dumps, s.loader)),
    "copied": (TypeError, lambda s: Call(copy.copy, s.loader)),
    "copied deeply": (TypeError, lambda s: Call(copy.deepcopy, s.loader)),
}
OVER: dict[str, Any] = {"over": (StopIteration, lambda s: Call(next, s.loader))}
CLOSED: dict[str, Any] = {"closed": (StopIteration, lambda s: Call(next, s.loader))}


# ---- Minibatches ----


def looking(scene: Scene) -> Iterator[Any]:
    yield [scene.out.numpy(), scene.out.to("cpu"), list(scene.out), dict(scene.out.items()), len(scene.out)]
    yield from run_on(scene)


def one_transition() -> Scene:
    scene = stored()
    scene.one = scene.b[2]
    return scene


def on_meta() -> Scene:
    scene = stored()
    scene.far = scene.out.to("meta")
    return scene


ITEM: dict[str, Any] = {
    "unknown": (KeyError, lambda s: Call(operator.getitem, s.out, "rewrd")),
    "a part of a name": (KeyError, lambda s: Call(operator.getitem, s.out, "rew")),
}
ATTRIBUTE: dict[str, Any] = {
    "unknown": (AttributeError, lambda s: Call(getattr, s.out, "rewrd")),
    "private": (AttributeError, lambda s: Call(getattr, s.out, "_reward")),
}
UNHASHABLE: dict[str, Any] = {"no name": (TypeError, lambda s: Call(s.out.get, ["reward"]))}
CONTAINS: dict[str, Any] = {"no name": (TypeError, lambda s: Call(operator.contains, s.out, ["reward"]))}
LENGTH: dict[str, Any] = {"a single transition": (TypeError, lambda s: Call(len, s.one))}
NUMPY: dict[str, Any] = {"out of reach": (TypeError, lambda s: Call(s.far.numpy))}
TO: dict[str, Any] = {
    "no such device": (RuntimeError, lambda s: Call(s.out.to, "nonsense")),
    "integers": (TypeError, lambda s: Call(s.out.to, torch.int64)),
    "too many": (TypeError, lambda s: Call(s.out.to, "cpu", torch.float32, False, False, 1)),
    "unknown": (TypeError, lambda s: Call(s.out.to, "cpu", more=True)),
}
PICKLE: dict[str, Any] = {
    "out of reach": (TypeError, lambda s: Call(pickle.dumps, s.far)),
    "out of reach, copied": (TypeError, lambda s: Call(s.far.__reduce_ex__, 4)),
}


# ---- A device: tests/fake_cuda.py stands for it ----


def on_device(storage: str, count: int = 17) -> Scene:
    scene = stored(count, device="cuda", storage=storage)
    settle()
    return scene


def settle() -> Any:
    """Run what the device has in its queues, so that its memory can be compared."""
    cuda = device.torch.cuda.current_stream(None).cuda  # type: ignore[attr-defined]
    cuda.run_all()
    return cuda


def go_on_device(scene: Scene) -> Iterator[Any]:
    for _ in range(3):
        batch = attempt(partial(scene.b.sample, 4))
        settle()
        yield [batch, scene.b.rng_state]
    batch = attempt(partial(scene.b.sample, 4, out=scene.out))
    settle()
    yield [batch, scene.b.rng_state, scene.b[:].to("cpu")]


def gather_on_device(scene: Scene) -> Iterator[Any]:
    for batch in (scene.b.gather([0, 5, 0]), scene.b.gather([1, 2, 3, 4], out=scene.read)):
        settle()
        yield batch


def _failing_launch(scene: Scene) -> Any:
    """Sample where the device refuses to be launched."""
    cuda = settle()
    cuda.launch_error = 700
    try:
        return scene.b.sample(4)
    finally:
        cuda.launch_error = 0


def _captured(scene: Scene) -> Any:
    with settle().capture():
        return scene.b.sample(4)


def _failing_copy(scene: Scene) -> Any:
    cuda = settle()
    cuda.send_error = 700
    try:
        with scene.b.loader(4) as loader:
            return next(loader)
    finally:
        cuda.send_error = 0


HOST_ONLY: dict[str, Any] = {
    "an out on the host": (ValueError, lambda s: Call(s.b.sample, 4, out=stored().out)),
    "an out of another size, on a device": (ValueError, lambda s: Call(s.b.sample, 5, out=s.out)),
    "an out of other fields, elsewhere": (ValueError, lambda s: Call(s.b.sample, 4, out=s.others)),
}
DEVICE_EMPTY: dict[str, Any] = {f"{kind}, on a device": case for kind, case in EMPTY.items()}
DEVICE_GATHER: dict[str, Any] = {
    "a slot too large, last, on a device": (IndexError, lambda s: Call(s.b.gather, [9, 8, 7, 5000], out=s.read)),
    "none stored, on a device": (IndexError, lambda s: Call(s.b.gather, [9, 8, 7, -1])),
}
RESIDENT: dict[str, Any] = {
    "an out of gather": (ValueError, lambda s: Call(s.b.sample, 4, out=s.read)),
    "in the capture of a graph": (RuntimeError, lambda s: Call(_captured, s)),
    "a device that fails": (RuntimeError, lambda s: Call(_failing_launch, s)),
}
RESIDENT_GATHER: dict[str, Any] = {
    "an out of sample, on a device": (ValueError, lambda s: Call(s.b.gather, [0, 1, 2, 3], out=s.out)),
}
# The loader is closed then, as its docstring says; the draws that it made are gone, as after `close`.
LOST: dict[str, Any] = {"a device that fails": (RuntimeError, lambda s: Call(lambda: _failing_copy(s)))}


class _Overtaken:
    """A ring whose writers overwrite what is read at every try; everything else is as ever."""

    def __init__(self, ring: Any) -> None:
        self._ring = ring

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ring, name)

    def read(self, _: bool, addresses: Any, block: Any) -> None:
        self._ring.read(False, np.full(len(addresses), -1), block)
        raise RuntimeError("the transitions were overwritten at each try to read them together")


def _overtaken(scene: Scene, read: Callable[[], Any]) -> Any:
    with patch.object(scene.b._reader, "_ring", _Overtaken(scene.b._ring)):
        return read()


def _without_cuda(scene: Scene) -> Any:
    """Make a loader where nothing sends blocks from native threads."""
    with patch.object(device, "cuda_sender", lambda: (0, "built without a CUDA compiler")):
        return scene.b.loader(4)


# The host's own `out` is replaced in the core, whose test of it is in tests/cpp/test_minibatch.cpp.
DEVICE_OVERTAKEN: dict[str, Any] = {
    "overwritten at every try, with out": (
        RuntimeError,
        lambda s: Call(_overtaken, s, partial(s.b.gather, [3, 1, 2, 0], out=s.read)),
    ),
}
OVERTAKEN: dict[str, Any] = {
    "overwritten at every try": (RuntimeError, lambda s: Call(_overtaken, s, partial(s.b.gather, [3]))),
}
OVERTAKEN_ITEM: dict[str, Any] = {
    "overwritten at every try": (RuntimeError, lambda s: Call(_overtaken, s, partial(operator.getitem, s.b, 3))),
}
NO_CUDA: dict[str, Any] = {"no CUDA part": (RuntimeError, lambda s: Call(_without_cuda, s))}

_SAMPLE, _GATHER = "fr.ReplayBuffer.sample", "fr.ReplayBuffer.gather"
READING: list[Case] = [
    *cases(_SAMPLE, on("torch"), run_on, SAMPLE),
    *cases(_SAMPLE, on("torch", 0), run_on, EMPTY),
    *cases(_SAMPLE, on("numpy", 0), run_on, {f"{kind}, numpy": case for kind, case in EMPTY.items()}),
    *cases(_SAMPLE, begun, go_on_crowded, {"nothing finished": (ValueError, lambda s: Call(s.b.sample, 3, out=s.out))}),
    *cases(_GATHER, on("torch"), run_on, GATHER),
    *cases(_GATHER, on("numpy"), run_on, {f"{kind}, numpy": case for kind, case in GATHER.items()}),
    *cases(_GATHER, on("torch", 0), run_on, NONE_STORED),
    *cases(_GATHER, crowded, go_on_crowded, UNFINISHED),
    *cases(_GATHER, on("torch"), run_on, OVERTAKEN),
    *cases(_GATHER, on("numpy"), run_on, {f"{kind}, numpy": case for kind, case in OVERTAKEN.items()}),
    *cases("fr.ReplayBuffer.__getitem__", on("torch"), run_on, GETITEM | OVERTAKEN_ITEM),
    *cases("fr.ReplayBuffer.loader", on("torch"), run_on, LOADER),
    *cases("fr.ReplayBuffer.loader", partial(on_device, "host"), go_on_device, NO_CUDA, is_on_device=True),
    *cases("fr.Loader.__next__", partial(with_loader, 0), iterate, NEXT),
    *cases("fr.Loader.__next__", partial(with_loader, 17, 2), iterate, OVER),
    *cases("fr.Loader.__reduce__", with_drawn_loader, iterate, COPIED),
    *cases("fr.Loader.__next__", with_closed_loader, iterate, CLOSED),
    *cases("fr.Minibatch.__getitem__", stored, looking, ITEM),
    *cases("fr.Minibatch.__getattribute__", stored, looking, ATTRIBUTE),
    *cases("fr.Minibatch.get", stored, looking, UNHASHABLE),
    *cases("fr.Minibatch.__contains__", stored, looking, CONTAINS),
    *cases("fr.Minibatch.__len__", one_transition, looking, LENGTH),
    *cases("fr.Minibatch.numpy", on_meta, looking, NUMPY),
    *cases("fr.Minibatch.__reduce_ex__", on_meta, looking, PICKLE),
    *cases("fr.Minibatch.to", stored, looking, TO),
    *cases(_SAMPLE, partial(on_device, "host"), go_on_device, HOST_ONLY, is_on_device=True),
    *cases(_SAMPLE, partial(on_device, "host", 0), go_on_device, DEVICE_EMPTY, is_on_device=True),
    *cases(_GATHER, partial(on_device, "host"), go_on_device, DEVICE_GATHER | DEVICE_OVERTAKEN, is_on_device=True),
    *cases(
        _SAMPLE,
        partial(on_device, "cuda", 0),
        go_on_device,
        {f"{kind}, over there": case for kind, case in EMPTY.items()},
        is_on_device=True,
    ),
    *cases(_SAMPLE, partial(on_device, "cuda"), go_on_device, RESIDENT, is_on_device=True),
    *cases(_GATHER, partial(on_device, "cuda"), go_on_device, RESIDENT_GATHER, is_on_device=True),
    *cases("fr.Loader.__next__", partial(on_device, "host"), gather_on_device, LOST, is_on_device=True, ignored=("b",)),
]
