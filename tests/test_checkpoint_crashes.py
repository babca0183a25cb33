# SPDX-License-Identifier: MIT
"""A save that is killed, meets an error at any system call, or loses its power leaves the old checkpoint or the new."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import sys
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from disk_model import FULL, Calls, Dead, Disk, lay
from support import IS_LONG_FORM

import fastreplay as fr
from fastreplay.checkpoint import save as _saving
from fastreplay.checkpoint.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from disk_model import Call
    from typing_extensions import Self

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="asks for what Linux's folders do"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
saving: Any = _saving
EXTRA = 20 if IS_LONG_FORM else 1
BAD = (errno.EIO, errno.ENOSPC)
LANES = 2
CAPACITY = 60


class Eager:
    """Threads for the disk, of which each piece of work is done when it is given."""

    is_late = False

    def __init__(self, *_: object) -> None:
        self._left: list[tuple[Future[Any], Callable[..., Any], Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.do_all()

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Any = Future()
        self._left.append((future, work, arguments))
        if not self.is_late:
            self.do_all()
        result = future.result

        def waited_for() -> Any:
            self.do_all()
            return result()

        future.result = waited_for
        return future  # type: ignore[no-any-return]

    def do_all(self) -> None:
        while self._left:
            future, work, arguments = self._left.pop(0)
            try:
                future.set_result(work(*arguments))
            except BaseException as error:  # noqa: BLE001 - whoever asks gets it
                future.set_exception(error)


class Late(Eager):
    """Of which all is done when somebody waits for it."""

    is_late = True


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let calls come in one order, and make small segments."""
    monkeypatch.setattr(saving, "_SEGMENT_BYTES", 700)
    monkeypatch.setattr(saving, "DiskThreads", Eager)


def make(kind: str = "plain", capacity: int = CAPACITY, **more: Any) -> Any:
    if kind == "frames":
        stacks = {name: fr.Field((2,), "uint8", stack=3) for name in ("observation", "next_observation")}
        fields: Any = stacks | {"step": ((), "int64"), "terminated": ((), "bool")}
        return fr.ReplayBuffer(capacity, fields, output="numpy", seed=1, lanes=LANES, share_next=True, **more)
    options: Any = more if kind in {"plain", "pages"} else more | {"lanes": LANES, "priorities": fr.Priorities()}
    fields = {"step": ((), "int64"), "x": (1100 if kind == "pages" else 3,), "terminated": ((), "bool")}
    return fr.ReplayBuffer(capacity, fields, output="numpy", seed=1, **options)


def insert(buffer: Any, num_steps: int) -> None:
    for step in range(num := buffer.stats()["inserted"] // LANES, num + num_steps):
        row: Any = {"step": np.arange(LANES) + LANES * step, "terminated": np.full(LANES, step % 7 == 6)}
        if "x" in buffer.schema:
            row["x"] = np.random.default_rng(step).random((LANES, *buffer.schema["x"].shape))
        else:
            frames = (np.arange(step, step + 4) * 3 % 251).astype(np.uint8)[None, :, None] + np.zeros((2, 4, 2), "u1")
            row |= {"observation": frames[:, :3], "next_observation": frames[:, 1:]}
        buffer.extend(**row)


def state_of(buffer: Any) -> Any:
    """Return all that a checkpoint keeps, as it can be compared."""
    batch = buffer[:] if len(buffer) else None
    said: Any = buffer.__reduce__()[2]
    contents = [] if batch is None else [batch.ticket.tobytes(), *(batch[name].tobytes() for name in buffer.schema)]
    masses = said["masses"]["values"].tobytes() if "masses" in said else b""
    links = [np.asarray(part).tobytes() for part in said["links"].read()] if "links" in said else []
    numbers = said["rng_state"], said["num_spawned"], said["counters"], buffer.stats()["inserted"]
    return contents, numbers, masses, links, buffer.attached


class Scene:
    """A folder with a checkpoint or without, and a buffer that is about to be saved into it."""

    def __init__(self, name: str, root: Path) -> None:
        self.name, self.root = name, root
        self.path = root / "deep" / "checkpoint"
        self.buffer = make({"first": "plain", "second": "all", "full": "all"}.get(name, name))
        self.options: Any = {"full": name in {"full", "pages"}}
        self.old: Any = None
        root.mkdir()
        if name != "first":
            insert(self.buffer, 2 if name == "pages" else 25)
            with Calls(root):
                self.buffer.save(self.path, attached={"learner": b"old", "more": b""})
            self.old = loaded(self.path)
        insert(self.buffer, {"first": 9, "second": 20, "full": 3, "frames": 12, "pages": 1}[name])
        self.state = state_of(self.buffer)
        if name == "second":
            self.options |= {"attached": {"learner": b"new" * 9}}
        self.buffer.save(root / "new", **self.options)
        self.new = loaded(root / "new")
        shutil.rmtree(root / "new")
        assert self.new[:2] == self.state[:2]
        self.prepared = root.with_name(f"{root.name}-prepared")
        shutil.copytree(root, self.prepared)

    def restore(self) -> None:
        """Let the folder be as it was."""
        shutil.rmtree(self.root)
        shutil.copytree(self.prepared, self.root, copy_function=shutil.copyfile)

    def save(self) -> None:
        self.buffer.save(self.path, **self.options)

    def calls(self) -> list[Call]:
        with Calls(self.root) as calls:
            self.save()
        return calls.done

    def check_next(self) -> None:
        """Assert that the buffer is as it was, and that the next save leaves its own files and no others."""
        assert state_of(self.buffer) == self.state
        with Calls(self.root):
            self.buffer.save(self.path, attached=self.options.get("attached"))
        assert loaded(self.path) == self.new
        assert_tidy(self.path)


def loaded(path: Path) -> Any:
    """Return the state of a checkpoint; None where there is none."""
    try:
        return state_of(fr.ReplayBuffer.load(path))
    except FileNotFoundError:
        return None


def assert_tidy(path: Path) -> None:
    said = json.loads((path / "manifest.json").read_bytes())["checkpoint"]
    named = {each["file"] for each in [*said["records"], *said["state"], *said.get("attached", {}).values()]}
    assert {each.name for each in path.iterdir()} == named | {"manifest.json", "lock"}


SCENES = ("first", "second", "full", "frames", "pages")  # the last writes whole pages past the cache, and then the rest


@pytest.fixture(params=SCENES)
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    return Scene(request.param, tmp_path / "root")


def some(cases: list[Any], count: int) -> list[Any]:
    """Return all cases in the long form, else so many, the same each time."""
    return cases if IS_LONG_FORM or len(cases) <= count else random.Random(len(cases)).sample(cases, count)


def errors_of(trace: list[Call]) -> list[tuple[int, Any]]:
    """Return what may go wrong: the number of a call, and how."""
    cases: list[tuple[int, Any]] = [(at, errno.EIO) for at in range(len(trace))]
    cases += [(at, errno.ENOSPC) for at, call in enumerate(trace) if call.name in FULL]
    cases += [(at, "short") for at, call in enumerate(trace) if call.name == "writev"]
    return cases + [(at, "late") for at, call in enumerate(trace) if call.name in {"rename", "fsync"}]


def check_error(scene: Scene, trace: list[Call], at: int, kind: Any) -> None:
    call, error = trace[at], None
    scene.restore()
    with Calls(scene.root, at, kind) as calls:
        try:
            scene.save()
        except OSError as raised:
            error = raised
    where = (at, call[:3], kind)
    assert calls.came, where
    assert not calls.fails_twice(), where
    found = loaded(scene.path)
    assert found == scene.new or (error is not None and found == scene.old), where
    last_sync = max(i for i, each in enumerate(trace) if each.name == "fsync" and not each.file)
    assert error is None or found == scene.old or at == last_sync or kind == "late", where
    assert error is not None or kind == "short" or call.name in {"close", "unlink", "flock", "listdir"}, where
    scene.check_next()


def test_an_error_at_any_call(scene: Scene) -> None:
    trace = scene.calls()
    assert {call.name for call in trace} >= {"open", "writev", "fsync", "rename", "close", "flock"}
    cases = errors_of(trace)
    always = [case for case in cases if case[1] == errno.EIO and trace[case[0]].name in {"fsync", "rename"}]
    for at, kind in [*always, *some([case for case in cases if case not in always], 6)]:
        check_error(scene, trace, at, kind)


def test_an_error_of_a_disk_that_is_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what another thread waits for, while the next file is written."""
    monkeypatch.setattr(saving, "DiskThreads", Late)
    scene = Scene("full", tmp_path / "root")
    trace = scene.calls()
    waits = [(at, kind) for at, call in enumerate(trace) for kind in BAD if call.name in {"fsync", "close"}]
    for at, kind in some(waits, 5):
        check_error(scene, trace, at, kind)


def test_the_end_of_the_process_before_any_call(scene: Scene) -> None:
    """As the folder sees it: no call after it is made."""
    for at, call in some([*enumerate(scene.calls())], 8):
        scene.restore()
        with Calls(scene.root, at, Dead) as calls, pytest.raises(Dead):
            scene.save()
        assert calls.came
        assert loaded(scene.path) in (scene.old, scene.new), (at, call[:3])
        scene.check_next()


@pytest.mark.parametrize("name", SCENES)
def test_a_kill_before_a_call(name: str, tmp_path: Path) -> None:
    """Of a real process, the lock with it."""
    scene = Scene(name, tmp_path / "root")
    trace = scene.calls()
    for at in some([*range(len(trace))], 2):
        scene.restore()
        if (child := os.fork()) == 0:
            try:
                with Calls(scene.root, at, Dead):
                    scene.save()
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        assert loaded(scene.path) in (scene.old, scene.new), (at, trace[at][:3])
        scene.check_next()


class Loss:
    """Loads what a loss of power may leave, each state that a reader could tell from others once."""

    def __init__(self, scene: Scene, folder: Path) -> None:
        self.scene, self.folder = scene, folder
        self.num_states = 0
        self.known: dict[Any, Any] = {}
        self.rng = random.Random(0)
        self.found: list[tuple[Any, Any]] = []  # what is neither old nor new

    def at_any_moment(self, trace: list[Call], durable_from: int, most: int = 25 * EXTRA) -> Loss:
        """Lose power before each call of a trace, and after the last, until something else than old or new is there."""
        disk = Disk(self.scene.prepared)
        for at, call in enumerate([*trace, None]):
            if at > 0:
                moved = trace[at - 1]
                folder = str(self.scene.prepared) + moved.folder.removeprefix(str(self.scene.root))
                disk.do(moved._replace(folder=folder))
            allowed = [self.scene.new] if at > durable_from else [self.scene.old, self.scene.new]
            for state in disk.states(self.rng, most):
                self.num_states += 1
                result = self._load(state)
                if not any(result == each for each in allowed):
                    self.found.append(((at, None if call is None else call[:3]), result))
                    return self
        return self

    def _load(self, state: dict[tuple[str, str], bytes | None]) -> Any:
        path = self.scene.prepared / self.scene.path.relative_to(self.scene.root)
        is_there = all((str(each.parent), each.name) in state for each in (path, path.parent))
        here = {name: content for (folder, name), content in state.items() if folder == str(path) and is_there}
        key: Any = here.get("manifest.json")
        if key is not None:
            try:
                said = json.loads(key)["checkpoint"]
                entries = [*said["records"], *said["state"], *said.get("attached", {}).values()]
                key = (key, *(here.get(each["file"]) for each in entries))
            except (ValueError, KeyError):
                pass
        if key not in self.known:
            lay(state, self.scene.prepared, self.folder)
            try:
                self.known[key] = loaded(self.folder / self.scene.path.relative_to(self.scene.root))
            except (ValueError, OSError) as error:
                self.known[key] = error
            shutil.rmtree(self.folder)
        return self.known[key]


def durable_from(trace: list[Call]) -> int:
    """Return the call after which a save is not to be lost: the wait for the folder after its rename."""
    renamed = max(
        i for i, call in enumerate(trace) if "manifest.json" in {call.new, call.file} and call.name != "close"
    )
    return next((i for i in range(renamed, len(trace)) if trace[i].name == "fsync" and not trace[i].file), renamed)


@pytest.mark.parametrize("executor", [Eager, Late])
def test_a_loss_of_power_at_any_moment(
    scene: Scene, executor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "DiskThreads", executor)
    trace = scene.calls()
    loss = Loss(scene, tmp_path / "after").at_any_moment(trace, durable_from(trace))
    assert not loss.found
    assert loss.num_states > 200


def test_a_loss_of_power_while_what_failed_is_saved_again(scene: Scene, tmp_path: Path) -> None:
    """After a kill before any call, or an error at any wait: the next save begins with what no disk may have."""
    trace = scene.calls()
    cases: list[tuple[int, Any]] = [(at, Dead) for at in range(len(trace))]
    cases += [(at, errno.EIO) for at, call in enumerate(trace) if call.name == "fsync"]
    renamed = next(at for at, call in enumerate(trace) if call.name == "rename")
    first_wait = next(at for at, call in enumerate(trace) if call.name == "fsync")
    always = [(renamed + 1, Dead), (renamed + 1, errno.EIO), (first_wait, Dead)]
    num_states = 0
    for at, kind in [*always, *some([case for case in cases if case not in always], 4)]:
        scene.restore()
        with Calls(scene.root, at, kind) as failing, pytest.raises((Dead, OSError)):
            scene.save()
        again = scene.calls()
        both = [*failing.done, *again]
        loss = Loss(scene, tmp_path / "after")
        loss.at_any_moment(both, len(failing.done) + durable_from(again), most=3 * EXTRA)
        assert not loss.found, (at, kind, loss.found[0])
        num_states += loss.num_states
    assert num_states > 500


def _without_fsync(folder: Folder, fd: int) -> None:
    os.close(fd)


def _renamed_first(folder: Any, name: str, data: bytes) -> None:
    fd = folder.write(f"{name}.new", [data])
    os.rename(f"{name}.new", name, src_dir_fd=folder._fd, dst_dir_fd=folder._fd)
    folder.finish(fd)
    folder.sync()


def _in_place(folder: Any, name: str, data: bytes) -> None:
    folder.remove(name)
    folder.finish(folder.write(name, [data]))
    folder.sync()


def _sync_but(number: int) -> Callable[[Folder], None]:
    """Wait for a folder, but for the `number`-th time of one that is open."""

    def sync(folder: Any) -> None:
        folder.num_syncs = getattr(folder, "num_syncs", -1) + 1
        if folder.num_syncs != number:
            os.fsync(folder._fd)

    return sync


WORSE: dict[str, tuple[str, Any]] = {
    "segments are not waited for": ("finish", _without_fsync),
    "the rename comes before the wait": ("replace", _renamed_first),
    "the manifest is written in place": ("replace", _in_place),
    "no wait for the names of segments": ("sync", _sync_but(1)),
    "no wait for the rename": ("sync", _sync_but(2)),
    "no wait for an earlier rename": ("sync", _sync_but(0)),
}


@pytest.mark.parametrize("case", WORSE.values(), ids=WORSE)
def test_the_model_finds_what_is_left_out(
    case: tuple[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene("full", tmp_path / "root")
    monkeypatch.setattr(Folder, *case)
    trace = scene.calls()
    loss = Loss(scene, tmp_path / "after").at_any_moment(trace, durable_from(trace))
    if not loss.found:
        killed = next(i for i, call in enumerate(trace) if call.name == "rename") + 1
        scene.restore()
        with Calls(scene.root, killed, Dead) as first, pytest.raises(Dead):
            scene.save()
        again = scene.calls()
        loss.at_any_moment([*first.done, *again], len(first.done) + durable_from(again))
    assert loss.found
