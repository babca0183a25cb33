# SPDX-License-Identifier: MIT
"""Refused calls that lay rings into files."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
from refusals import Call, Case, Scene, attempt, cases
from refusals_scenes import CAPACITY
from support import FIELDS, NativeBuffer, transitions

import fastreplay as fr

if TYPE_CHECKING:
    from collections.abc import Iterator

Native: Any = fr  # untyped: what is refused here is what its types refuse

FOLDER = Path(tempfile.mkdtemp())
OPEN, THERE, TEXT, NEW = (FOLDER / name for name in ("open", "there", "text", "new"))
FRAMES = {"observation": fr.Field((4,), "uint8", stack=2), "terminated": ()}
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


@cache
def held() -> Any:
    """Make the files, and hold one open."""
    TEXT.write_text("notes")
    NativeBuffer(CAPACITY, FIELDS, seed=3, output="numpy", path=THERE).extend(**transitions(0, 17))
    b = NativeBuffer(CAPACITY, FIELDS, seed=3, output="numpy", path=OPEN)
    b.extend(**transitions(0, 17))
    return b


@cache
def of_failed_disk() -> Any:
    """Make a buffer whose disk had failed."""
    b: Any = NativeBuffer(CAPACITY, FIELDS, seed=3, output="numpy", path=FOLDER / "failed")
    b._disk._file.is_failed = True
    return b


@cache
def within_flush() -> Any:
    """Make a buffer that is being flushed, as a signal's handler finds it."""
    b: Any = NativeBuffer(CAPACITY, FIELDS, seed=3, output="numpy", path=FOLDER / "within")
    b._disk._parts._within.acquire()
    atexit.register(b._disk._parts._within.release)
    return b


@cache
def with_view() -> Any:
    """Make a buffer of which an array is in use."""
    b: Any = NativeBuffer(CAPACITY, FIELDS, seed=3, output="numpy", path=FOLDER / "viewed")
    return b, b.view(b.schema.names[0])


@cache
def of_failing_disk() -> Any:
    """Make a buffer whose disk fails when it is asked."""
    b: Any = NativeBuffer(CAPACITY, FIELDS, seed=3, output="numpy", path=FOLDER / "failing")

    def confirm(*_given: object, **_named: object) -> None:
        raise OSError("the disk is broken")

    b._disk._file.confirm = confirm
    atexit.register(delattr, b._disk._file, "confirm")
    return b


@cache
def closed() -> Any:
    """Make a buffer that was closed."""
    b: Any = NativeBuffer(CAPACITY, FIELDS, seed=3, output="numpy")
    b.close()
    return b


def files() -> Scene:
    """Make a buffer in memory, and see to the files."""
    held()
    of_failed_disk()
    within_flush()
    with_view()
    of_failing_disk()
    return Scene(b=NativeBuffer(CAPACITY, FIELDS, seed=3, output="numpy"))


def go_on(scene: Scene) -> Iterator[Any]:
    """Do some things with the buffer, and look at the files: each is as it was, and can be opened."""
    scene.b.extend(**transitions(0, 5))
    yield attempt(lambda: scene.b.sample(4))
    yield [len(held()), TEXT.read_text(), sorted(each.name for each in FOLDER.iterdir())]
    yield len(NativeBuffer(CAPACITY, FIELDS, output="numpy", path=THERE))


def made(capacity: int = CAPACITY, fields: Any = FIELDS, **options: Any) -> Any:
    return Call(Native.ReplayBuffer, capacity, fields, **{"output": "numpy", **options})


INIT: dict[str, Any] = {
    "path: a number": (TypeError, lambda _: made(path=5)),
    "path: nothing": (ValueError, lambda _: made(path="")),
    "path: a folder": (OSError, lambda _: made(path=FOLDER)),
    "path: below a file": (OSError, lambda _: made(path=TEXT / "ring")),
    "path: in no folder": (OSError, lambda _: made(path=FOLDER / "none" / "ring")),
    "path: something else": (ValueError, lambda _: made(path=TEXT)),
    "path: open": (RuntimeError, lambda _: made(path=OPEN)),
    "path: of another capacity": (ValueError, lambda _: made(CAPACITY + 1, path=THERE)),
    "path: of other fields": (ValueError, lambda _: made(fields={"a": (3,)}, path=THERE)),
    "path: of a buffer without lanes": (ValueError, lambda _: made(lanes=2, ends=(), path=THERE)),
    "path: of a buffer without priorities": (ValueError, lambda _: made(priorities=fr.Priorities(), path=THERE)),
    "path: more than the disk": (OSError, lambda _: made(2**45, path=NEW)),
    "path: of a buffer without frames": (ValueError, lambda _: made(fields=FRAMES, lanes=1, path=THERE)),
    "path: with a field that cannot end": (ValueError, lambda _: made(lanes=1, ends=["none"], path=NEW)),
    "path: with a rule that is none": (TypeError, lambda _: made(priorities=0.6, path=NEW)),
}
FROM_ENV: dict[str, Any] = {
    "path: a folder": (
        OSError,
        lambda _: Call(Native.ReplayBuffer.from_env, gym.make("CartPole-v1"), 10, output="numpy", path=FOLDER),
    ),
}
FLUSH: dict[str, Any] = {
    "a disk that had failed": (OSError, lambda _: Call(of_failed_disk().flush)),
    "in the midst of one": (RuntimeError, lambda _: Call(within_flush().flush)),
}
CLOSE: dict[str, Any] = {
    "a disk that fails": (OSError, lambda _: Call(of_failing_disk().close)),
    "an array of view in use": (RuntimeError, lambda _: Call(with_view()[0].close)),
    "in the midst of a flush": (RuntimeError, lambda _: Call(within_flush().close)),
}
EXIT: dict[str, Any] = {
    "an array of view in use": (RuntimeError, lambda _: Call(with_view()[0].__exit__, None, None, None)),
}
ENTER: dict[str, Any] = {"closed": (RuntimeError, lambda _: Call(closed().__enter__))}

RING_FILES: list[Case] = [
    *cases("fr.ReplayBuffer.__init__", files, go_on, INIT),
    *cases("fr.ReplayBuffer.from_env", files, go_on, FROM_ENV),
    *cases("fr.ReplayBuffer.flush", files, go_on, FLUSH),
    *cases("fr.ReplayBuffer.close", files, go_on, CLOSE),
    *cases("fr.ReplayBuffer.__enter__", files, go_on, ENTER),
    *cases("fr.ReplayBuffer.__exit__", files, go_on, EXIT),
]
