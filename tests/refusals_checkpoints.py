# SPDX-License-Identifier: MIT
"""Refused calls that save buffers into folders, and load them."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusals import Call, Case, Scene, attempt, cases
from refusals_scenes import CAPACITY
from support import FIELDS, NativeBuffer, transitions

import fastreplay as fr

if TYPE_CHECKING:
    from collections.abc import Iterator

Native: Any = fr  # untyped: what is refused here is what its types refuse

FOLDER = Path(tempfile.mkdtemp())
KEPT, DAMAGED, CURVED, OF_OTHERS, FILE = (FOLDER / name for name in ("kept", "damaged", "curved", "others", "file"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


def kept() -> Scene:
    """Make a buffer, and folders with a checkpoint, a damaged one, one of a function, and something else."""
    b = NativeBuffer(CAPACITY, FIELDS, seed=3, output="numpy")
    b.extend(**transitions(0, 17))
    if not KEPT.exists():
        for path in (KEPT, DAMAGED):
            b.save(path)
        (DAMAGED / "manifest.json").write_text("{}")
        curved = NativeBuffer(5, FIELDS, output="numpy", priorities=fr.Priorities(beta=lambda _: 1.0))
        curved.save(CURVED)
        OF_OTHERS.mkdir()
        (OF_OTHERS / "results.csv").write_text("1")
        FILE.write_text("1")
    return Scene(b=b)


def held() -> Scene:
    """Do the same, a save of the buffer holding inserts."""
    scene = kept()
    scene.b._holding.acquire()
    return scene


def go_on(scene: Scene) -> Iterator[Any]:
    """Do some things with the buffer, and tell what comes of each; what was kept is as it was."""
    scene.b._holding.locked() and scene.b._holding.release()
    yield attempt(lambda: scene.b.sample(4))
    scene.b.extend(**transitions(17, 3))
    yield [scene.b, fr.verify(KEPT).end, (OF_OTHERS / "results.csv").read_text()]


SAVE: dict[str, Any] = {
    "no path": (TypeError, lambda s: Call(s.b.save, 5)),
    "full: a number": (TypeError, lambda s: Call(s.b.save, KEPT, full=1)),
    "hold: a number": (TypeError, lambda s: Call(s.b.save, KEPT, hold=0)),
    "attached: a list": (TypeError, lambda s: Call(s.b.save, KEPT, attached=[b"x"])),
    "attached: text": (TypeError, lambda s: Call(s.b.save, KEPT, attached={"learner": "x"})),
    "a file": (OSError, lambda s: Call(s.b.save, FILE)),
    "below a file": (OSError, lambda s: Call(s.b.save, FILE / "kept")),
    "something else's": (ValueError, lambda s: Call(s.b.save, OF_OTHERS)),
    "a damaged one": (ValueError, lambda s: Call(s.b.save, DAMAGED)),
}
HOLD: dict[str, Any] = {"held": (RuntimeError, lambda s: Call(s.b.save, KEPT, hold=True))}
SAVE_ASYNC: dict[str, Any] = {
    "no path": (TypeError, lambda s: Call(s.b.save_async, None)),
    "full: text": (TypeError, lambda s: Call(s.b.save_async, KEPT, full="yes")),
    "attached: a number": (TypeError, lambda s: Call(s.b.save_async, KEPT, attached={"learner": 5})),
}
WAIT: dict[str, Any] = {
    "a file": (OSError, lambda s: Call(s.b.save_async(FILE).wait)),
    "something else's": (ValueError, lambda s: Call(s.b.save_async(OF_OTHERS).wait)),
    "held": (RuntimeError, lambda s: Call(held().b.save_async(KEPT, hold=True).wait)),
    "timeout: text": (TypeError, lambda _: Call(Native.SaveHandle(tuple).wait, "1")),
    "timeout: nan": (ValueError, lambda _: Call(Native.SaveHandle(tuple).wait, float("nan"))),
}
TOO_EARLY: dict[str, Any] = {
    "too early": (TimeoutError, lambda _: Call(Native.SaveHandle(partial(time.sleep, 0.3)).wait, 0.0))
}
LOAD: dict[str, Any] = {
    "no path": (TypeError, lambda _: Call(Native.ReplayBuffer.load, 5)),
    "nothing": (FileNotFoundError, lambda _: Call(Native.ReplayBuffer.load, FOLDER / "nothing")),
    "something else's": (FileNotFoundError, lambda _: Call(Native.ReplayBuffer.load, OF_OTHERS)),
    "a file": (NotADirectoryError, lambda _: Call(Native.ReplayBuffer.load, FILE)),
    "a damaged one": (ValueError, lambda _: Call(Native.ReplayBuffer.load, DAMAGED)),
    "a function's": (ValueError, lambda _: Call(Native.ReplayBuffer.load, CURVED)),
    "priorities that are none": (TypeError, lambda _: Call(Native.ReplayBuffer.load, CURVED, priorities=0.6)),
    "priorities of a buffer without": (
        ValueError,
        lambda _: Call(Native.ReplayBuffer.load, KEPT, priorities=fr.Priorities()),
    ),
    "another rule": (
        ValueError,
        lambda _: Call(Native.ReplayBuffer.load, CURVED, priorities=fr.Priorities(alpha=0.1)),
    ),
    "capacity: a float": (TypeError, lambda _: Call(Native.ReplayBuffer.load, KEPT, capacity=5.0)),
    "capacity: none": (ValueError, lambda _: Call(Native.ReplayBuffer.load, KEPT, capacity=0)),
    "capacity: more than memory": (MemoryError, lambda _: Call(Native.ReplayBuffer.load, KEPT, capacity=2**50)),
    "output: something": (ValueError, lambda _: Call(Native.ReplayBuffer.load, KEPT, output="jax")),
    "device: of nobody": (
        RuntimeError,
        lambda _: Call(Native.ReplayBuffer.load, KEPT, output="torch", device="nobody"),
    ),
    "storage: without a device": (ValueError, lambda _: Call(Native.ReplayBuffer.load, KEPT, storage="cuda")),
}
READ: dict[str, Any] = {
    f"{name}: {kind}": (error, lambda _, name=name, path=path: Call(getattr(Native, name), path))
    for name in ("verify", "describe")
    for kind, error, path in (
        ("no path", TypeError, 5),
        ("nothing", FileNotFoundError, FOLDER / "nothing"),
        ("a file", NotADirectoryError, FILE),
        ("a damaged one", ValueError, DAMAGED),
    )
}

CHECKPOINTS: list[Case] = [
    *cases("fr.ReplayBuffer.save", kept, go_on, SAVE),
    *cases("fr.ReplayBuffer.save", held, go_on, HOLD),
    *cases("fr.ReplayBuffer.save_async", kept, go_on, SAVE_ASYNC),
    *cases("fr.SaveHandle.wait", kept, go_on, WAIT),
    *cases("fr.SaveHandle.wait", kept, go_on, TOO_EARLY, is_repeatable=False),
    *cases("fr.ReplayBuffer.load", kept, go_on, LOAD),
    *(
        case
        for kind, one in READ.items()
        for case in cases(f"fr.{kind.split(':')[0]}", partial(kept), go_on, {kind.split(": ")[1]: one})
    ),
]
