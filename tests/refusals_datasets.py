# SPDX-License-Identifier: MIT
"""Refused calls that load data of others, and write it."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from refusals import Call, Case, Scene, attempt, cases
from refusals_lanes import busy, go_on_busy
from refusals_scenes import crowded, go_on_crowded, wide_row, without
from support import NativeBuffer

import fastreplay as fr

if TYPE_CHECKING:
    from collections.abc import Iterator

with suppress(ImportError):
    import pyarrow.parquet  # noqa: F401 - it starts a thread of its own when it is imported

Native: Any = fr  # untyped: what is refused here is what its types refuse

FOLDER = Path(tempfile.mkdtemp())
FILE, NOTHING, ROBOT = FOLDER / "file", FOLDER / "nothing", FOLDER / "robot"
PIPES = {each: FOLDER / "pipes" / each for each in ("npz", "hdf5", "parquet")}
PIPES["lerobot"] = FOLDER / "pipes"  # whose meta/info.json is one
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)

FIELDS: dict[str, Any] = {
    "observation": (2,),
    "action": ((), "int64"),
    "reward": (),
    "next_observation": (2,),
    "terminated": ((), "bool"),
}
COLUMNS: dict[str, Any] = {
    "observations": np.arange(8.0).reshape(4, 2),
    "actions": np.arange(4),
    "rewards": np.arange(4.0),
    "terminals": np.array([0, 1, 0, 0], bool),
    "timeouts": np.zeros(4, bool),
}
WIDE = {name: np.asarray(value)[None] for name, value in wide_row(18).items()}


def streams() -> Scene:
    """Make buffers with lanes and without, with what came of columns in them."""
    FILE.write_text("1")
    for pipe in (*list(PIPES.values())[:3], PIPES["lerobot"] / "meta" / "info.json"):
        pipe.parent.mkdir(parents=True, exist_ok=True)
        if not pipe.exists():
            os.mkfifo(pipe)
    (ROBOT / "meta").mkdir(parents=True, exist_ok=True)
    (ROBOT / "meta" / "info.json").write_text('{"features": {}, "total_frames": 0, "codebase_version": "v3.0"}')
    b, alone = (NativeBuffer(12, FIELDS, seed=3, output="numpy", **options) for options in ({"lanes": 2}, {}))
    flags = NativeBuffer(12, FIELDS | {"action": ((), "bool")}, seed=3, output="numpy", lanes=1)
    for each in (b, alone):
        each.load_arrays(COLUMNS)
    flags.load_arrays(COLUMNS | {"actions": COLUMNS["terminals"]})
    return Scene(b=b, alone=alone, flags=flags)


def go_on(scene: Scene) -> Iterator[Any]:
    """Load and draw, and tell what comes of it."""
    for each in (scene.b, scene.alone):
        yield attempt(partial(each.load_arrays, COLUMNS, overwrite=True))
        yield [each.sample(6), each[:]]
    yield scene.b.sample(8, follow=fr.NStep(3, 0.5))


def _minari(error: type[Exception]) -> ModuleType:
    module = ModuleType("minari")

    def load_dataset(_name: str) -> None:
        raise error("there is none")

    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    return module


ARRAYS: dict[str, Any] = {
    "no mapping": (TypeError, lambda s: Call(s.b.load_arrays, [1, 2])),
    "another kind": (TypeError, lambda s: Call(s.b.load_arrays, COLUMNS | {"actions": np.zeros(4)})),
    "objects": (TypeError, lambda s: Call(s.alone.load_arrays, COLUMNS | {"rewards": [None] * 4})),
    "names: a list": (TypeError, lambda s: Call(s.b.load_arrays, COLUMNS, names=["reward"])),
    "lane: a float": (TypeError, lambda s: Call(s.b.load_arrays, COLUMNS, lane=1.0)),
    "overwrite: a number": (TypeError, lambda s: Call(s.b.load_arrays, COLUMNS, overwrite=1)),
    "progress: text": (TypeError, lambda s: Call(s.b.load_arrays, COLUMNS, progress="yes")),
    "a column is missing": (ValueError, lambda s: Call(s.b.load_arrays, {"rewards": [1.0]})),
    "another shape": (ValueError, lambda s: Call(s.b.load_arrays, COLUMNS | {"observations": np.zeros((4, 3))})),
    "another length": (ValueError, lambda s: Call(s.b.load_arrays, COLUMNS | {"rewards": np.zeros(3)})),
    "names: of no field": (ValueError, lambda s: Call(s.b.load_arrays, COLUMNS, names={"obs": "o"})),
    "lane: of nobody": (ValueError, lambda s: Call(s.b.load_arrays, COLUMNS, lane=2)),
    "lane: without lanes": (ValueError, lambda s: Call(s.alone.load_arrays, COLUMNS, lane=0)),
    "no room": (
        ValueError,
        lambda s: Call(s.b.load_arrays, {name: np.repeat(column, 3, 0) for name, column in COLUMNS.items()}),
    ),
}
BUSY: dict[str, Any] = {
    "a lane of another thread": (RuntimeError, lambda s: Call(s.b.load_arrays, {"id": [1], "x": np.zeros((1, 8192))})),
}
CROWDED: dict[str, Any] = {
    "another thread's insert": (TimeoutError, lambda s: Call(s.b.load_arrays, WIDE, overwrite=True)),
}
FILES: dict[str, dict[str, Any]] = {
    f"load_{kind}": {
        "names: a list": (TypeError, lambda s, kind=kind: Call(getattr(s.b, f"load_{kind}"), FILE, names=[])),
        "no path": (TypeError, lambda s, kind=kind: Call(getattr(s.b, f"load_{kind}"), 5)),
        "lane: of nobody": (ValueError, lambda s, kind=kind: Call(getattr(s.b, f"load_{kind}"), FILE, lane=7)),
        "nothing there": (
            FileNotFoundError,
            lambda s, kind=kind: Call(getattr(s.b, f"load_{kind}"), NOTHING),
        ),
        "a pipe": (ValueError, lambda s, kind=kind: Call(getattr(s.b, f"load_{kind}"), PIPES[kind])),
    }
    for kind in ("npz", "hdf5", "parquet", "lerobot")
}
FILES["load_npz"]["something else"] = (ValueError, lambda s: Call(s.b.load_npz, FILE))
FILES["load_hdf5"]["mask: a number"] = (TypeError, lambda s: Call(s.b.load_hdf5, FILE, mask=1))
LACKING: dict[str, Any] = {
    "load_minari": (ImportError, lambda s: Call(without("minari", None, lambda: s.b.load_minari("a-v0")))),
    "to_minari": (ImportError, lambda s: Call(without("minari", None, lambda: s.b.to_minari("a-v0")))),
}
for _name, _module, _path in (
    ("load_hdf5", "h5py", FILE),
    ("load_parquet", "pyarrow", FILE),
    ("load_lerobot", "pyarrow", ROBOT),
):
    LACKING[_name] = (
        ImportError,
        lambda s, name=_name, module=_module, path=_path: Call(without(module, None, lambda: getattr(s.b, name)(path))),
    )
MINARI: dict[str, Any] = {
    "names: a list": (TypeError, lambda s: Call(s.b.load_minari, "a-v0", names=[])),
    "lane: of nobody": (ValueError, lambda s: Call(s.b.load_minari, "a-v0", lane=7)),
    "nothing there": (
        FileNotFoundError,
        lambda s: Call(without("minari", _minari(FileNotFoundError), lambda: s.b.load_minari("a-v0"))),
    ),
}
TO_MINARI: dict[str, Any] = {
    "without lanes": (ValueError, lambda s: Call(s.alone.to_minari, "a-v0")),
    "no space for bools": (TypeError, lambda s: Call(s.flags.to_minari, "a-v0")),
}
FROM_ARRAYS: dict[str, Any] = {
    "no mapping": (TypeError, lambda _: Call(Native.from_arrays, 5)),
    "text": (TypeError, lambda _: Call(Native.from_arrays, {"a": ["x"]})),
    "nothing": (ValueError, lambda _: Call(Native.from_arrays, {})),
    "other lengths": (ValueError, lambda _: Call(Native.from_arrays, {"a": [1], "b": [1, 2]})),
    "names: of no column": (ValueError, lambda _: Call(Native.from_arrays, {"a": [1]}, names={"b": "c"})),
    "capacity: too small": (ValueError, lambda _: Call(Native.from_arrays, {"a": [1, 2]}, 1)),
    "capacity: no number": (TypeError, lambda _: Call(Native.from_arrays, {"a": [1, 2]}, "2")),
    "path: a file": (ValueError, lambda _: Call(Native.from_arrays, {"a": [1, 2]}, path=FILE)),
    "capacity: more than memory": (MemoryError, lambda _: Call(Native.from_arrays, {"a": [1, 2]}, 2**50)),
    "device: of nobody": (RuntimeError, lambda _: Call(Native.from_arrays, {"a": [1]}, device="nobody")),
}

DATASETS: list[Case] = [
    *cases("fr.ReplayBuffer.load_arrays", streams, go_on, ARRAYS),
    *cases("fr.ReplayBuffer.load_arrays", busy, go_on_busy, BUSY),
    *cases("fr.ReplayBuffer.load_arrays", crowded, go_on_crowded, CROWDED),
    *(case for name, kinds in FILES.items() for case in cases(f"fr.ReplayBuffer.{name}", streams, go_on, kinds)),
    *cases("fr.ReplayBuffer.load_minari", streams, go_on, MINARI),
    *cases("fr.ReplayBuffer.to_minari", streams, go_on, TO_MINARI),
    *(
        case
        for name, kind in LACKING.items()  # again and again, Python looks for what is not there
        for case in cases(f"fr.ReplayBuffer.{name}", streams, go_on, {"without its library": kind}, is_repeatable=False)
    ),
    *cases("fr.from_arrays", streams, go_on, FROM_ARRAYS),
]
