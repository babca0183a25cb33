# SPDX-License-Identifier: MIT
"""What else happens to a folder while it is saved into, and to the buffer: processes, forks, threads, interrupts."""

from __future__ import annotations

import _thread
import concurrent.futures.thread
import errno
import fcntl
import gc
import linecache
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from stall import RELEASE_BYTES, stalled_insert
from support import HAS_GIL, IS_LONG_FORM
from test_checkpoint_crashes import CAPACITY, LANES, assert_tidy, insert, loaded, make, state_of
from test_fork import in_child

import fastreplay as fr
from fastreplay.checkpoint import folder as _folder
from fastreplay.checkpoint import save as _saving

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="asks for what Linux's folders do"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
saving: Any = _saving


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody wait for the machine's disk: no power is lost here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


SAVES = """
import sys
import numpy as np
import fastreplay as fr
path = sys.argv[1]
buffer = fr.ReplayBuffer.load(path)
buffer.extend(np.arange(6) + buffer.stats()["inserted"])
try:
    buffer.save(path)
except OSError as error:
    print(error.errno)
    buffer.save(path)
"""


# A thread's calls are counted by themselves: the main one waits for the folder, its names, the manifest, its rename.
INJECTED = [("fsync:error=EIO:when=2", 0), ("/^rename:signal=KILL:when=1", 9), ("fsync:error=EIO:when=4", 0)]
if IS_LONG_FORM:
    INJECTED += [(f"fsync:error={error}:when={when}", 0) for error in ("EIO", "ENOSPC") for when in (2, 3, 4)]
    INJECTED += [(f"fsync:signal=KILL:when={when}", 9) for when in (1, 2, 3, 4)]


@pytest.mark.parametrize(("inject", "ends"), INJECTED)
def test_what_the_system_says(inject: str, ends: int, tmp_path: Path) -> None:
    """Below Python: the system calls themselves fail, or are the last that the process makes."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    path = tmp_path / "checkpoint"
    buffer: Any = fr.ReplayBuffer(20, {"n": ((), "int64")}, output="numpy", seed=0)
    buffer.extend(np.arange(30))
    buffer.save(path)
    options = [
        "-f",
        "-qq",
        *([] if ends else ["--seccomp-bpf"]),
        "-o",
        str(tmp_path / "trace"),
        "-e",
        "trace=fsync,/^rename",
    ]
    command = [strace, *options, "-e", f"inject={inject}", sys.executable, "-c", SAVES, str(path)]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.splitlines()[0]}")
    assert done.returncode == -ends, done.stderr
    numbers = np.asarray(fr.ReplayBuffer.load(path)[:].n).tolist()
    assert numbers == [*range(16, 36)] or (ends and numbers == [*range(10, 30)])
    if not ends:
        assert done.stdout.strip() == str(getattr(errno, inject.split("=")[1].split(":", maxsplit=1)[0]))
        assert_tidy(path)
    buffer.save(path)
    assert_tidy(path)


BESIDE = """
import os, sys, threading
import numpy as np
import fastreplay as fr
buffer = fr.ReplayBuffer(100_000, {"x": (50,)}, output="numpy", seed=0)
buffer.extend(np.zeros((100_000, 50), np.float32))
is_saved, began = False, threading.Event()
def insert():
    print(threading.get_native_id())
    buffer.add([1.0] * 50)  # what is initialized once is
    buffer.sample(8)
    began.set()
    os.getppid()  # where the trace begins, and ends
    while not is_saved:
        buffer.add([1.0] * 50)
        buffer.sample(8)
    os.getppid()
thread = threading.Thread(target=insert)
thread.start()
began.wait()
buffer.save(sys.argv[1])
is_saved = True
thread.join()
before = ""
for line in open("/proc/self/maps"):
    place, *_, name = line.split()
    if name == "0":  # without a name: what is zero of the file before it
        name = before
    before = name
    if os.path.realpath(sys.executable) == name or "libpython" in name or "/libc" in name:
        print(place)
"""


@pytest.mark.skipif(not HAS_GIL, reason="an interpreter without GIL has locks of its own")
def test_who_inserts_and_samples_waits_for_no_save(tmp_path: Path) -> None:
    """Its thread meets no lock but the interpreter's (the GIL) and the allocator's, and asks the disk for nothing."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    trace = tmp_path / "trace"
    options = ["-f", "-qq", "-o", str(trace), "-e", "trace=futex,flock,fsync,fdatasync,openat,writev,getppid"]
    command = [strace, *options, sys.executable, "-c", BESIDE, str(tmp_path / "checkpoint")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    thread, *places = done.stdout.split()
    ranges = [range(*(int(each, 16) for each in place.split("-"))) for place in places]
    of_thread = [line.split(maxsplit=1)[1] for line in trace.read_text().splitlines() if line.startswith(thread)]
    first, last = (i for i, call in enumerate(of_thread) if call.startswith("getppid"))
    assert sum("writev(" in line for line in trace.read_text().splitlines()) > 1
    for call in of_thread[first + 1 : last]:
        if call.startswith(("<... futex resumed>", "<... getppid resumed>", "+++", "---")):
            continue
        assert call.startswith("futex("), call
        address = int(call.removeprefix("futex(").split(",")[0], 16)
        assert any(address in place for place in ranges), call


def saving_again_and_again(kind: str, path: Path) -> int:
    """Fork a child that saves a buffer of its own as often as it can; return its id."""
    if (child := os.fork()) == 0:
        try:
            buffer = make(kind)
            while True:
                insert(buffer, 3)
                buffer.save(path)
        finally:
            os._exit(1)
    return child


def test_one_of_two_processes_is_killed_while_a_third_loads(tmp_path: Path) -> None:
    """Savers take turns, the lock of the dead is free, and who loads finds a whole checkpoint of either."""
    path = tmp_path / "checkpoint"
    make().save(path)
    children = [saving_again_and_again(kind, path) for kind in ("all", "frames")]
    num_loaded = {"all": 0, "frames": 0}
    try:
        for child in children:
            end = time.monotonic() + (5 if IS_LONG_FORM else 0.4)
            while time.monotonic() < end:
                buffer: Any = fr.ReplayBuffer.load(path)
                fr.verify(path)
                num_loaded["all" if "x" in buffer.schema else "frames"] += 1
                steps = np.asarray(buffer[:].step) if len(buffer) else np.empty(0)
                assert (np.diff(steps) == 1).all()
            os.kill(child, signal.SIGKILL)
            assert os.waitpid(child, 0)[1] == signal.SIGKILL
    finally:
        for child in children:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
    assert sum(num_loaded.values()) > 5
    make().save(path)
    assert_tidy(path)


def test_nobody_holds_the_turn_of_a_dead_parent(tmp_path: Path) -> None:
    """A child that was forked while its parent saved lives on; others save without waiting for its end."""
    path, told = tmp_path / "checkpoint", tmp_path / "told"
    parent = os.fork()
    if parent == 0:
        buffer = make()
        insert(buffer, 3)
        write = saving.Scratch.laid

        def forking(*arguments: Any) -> Any:
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            told.write_text(str(child))
            os.kill(os.getpid(), signal.SIGKILL)
            return write(*arguments)

        saving.Scratch.laid = forking
        buffer.save(path)
    os.waitpid(parent, 0)
    try:
        fd = os.open(path / "lock", os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(fd)
    finally:
        os.kill(int(told.read_text()), signal.SIGKILL)
    make().save(path)
    assert_tidy(path)


def test_a_folder_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    buffer = make()
    for name, text in {"results.csv": "mine", "manifest.json": "{}", "lock.txt": ""}.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(text)
        before = folder.stat().st_mtime_ns
        with pytest.raises(ValueError, match=name):
            buffer.save(folder)
        assert [each.name for each in folder.iterdir()] == [name]
        assert folder.stat().st_mtime_ns == before
        assert (folder / name).read_text() == text


def test_a_folder_that_may_only_be_read() -> None:
    """Is loaded from, and not saved into; root, who may do all, becomes somebody else first."""
    root = Path(tempfile.mkdtemp())
    try:
        buffer = make()
        insert(buffer, 5)
        buffer.save(root / "checkpoint")
        root.chmod(0o755)
        (root / "checkpoint").chmod(0o555)

        def other() -> bool:
            if os.geteuid() == 0:
                os.setuid(65534)
            with pytest.raises(PermissionError):
                buffer.save(root / "checkpoint")
            with pytest.raises(PermissionError):
                buffer.save(root / "another")
            return bool(loaded(root / "checkpoint") is not None and fr.verify(root / "checkpoint"))

        assert in_child(other)
        assert not (root / "another").exists()
    finally:
        (root / "checkpoint").chmod(0o755)
        shutil.rmtree(root)


def test_links(tmp_path: Path) -> None:
    """A link to a folder is that folder; one to nothing is an error, and stays."""
    buffer = make()
    insert(buffer, 5)
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    buffer.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert loaded(tmp_path / "there") == loaded(tmp_path / "link") == state_of(buffer)
    (tmp_path / "nowhere").symlink_to("nothing")
    with pytest.raises(FileNotFoundError):
        buffer.save(tmp_path / "nowhere")
    assert (tmp_path / "nowhere").is_symlink()


def before_write(call: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let something happen before the first segment of the next save is written."""
    write, left = saving.Scratch.laid, [call]

    def meddling(*arguments: Any) -> Any:
        if left:
            left.pop()()
        return write(*arguments)

    monkeypatch.setattr(saving.Scratch, "laid", meddling)


def test_a_folder_may_be_called_otherwise_while_it_is_saved_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = make()
    insert(buffer, 5)
    buffer.save(tmp_path / "one")
    insert(buffer, 3)
    before_write(lambda: (tmp_path / "one").rename(tmp_path / "other"), monkeypatch)
    buffer.save(tmp_path / "one")
    assert loaded(tmp_path / "other") == state_of(buffer)
    assert_tidy(tmp_path / "other")
    assert not (tmp_path / "one").exists()
    insert(buffer, 1)
    before_write(lambda: shutil.rmtree(tmp_path / "other"), monkeypatch)
    with pytest.raises(FileNotFoundError):
        buffer.save(tmp_path / "other")


def test_a_path_is_that_of_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that saves may begin when the process works elsewhere."""
    monkeypatch.chdir(tmp_path)
    buffer, go_on = make(), threading.Event()
    source = buffer._kept_source
    monkeypatch.setattr(type(buffer), "_kept_source", lambda _: (go_on.wait(10), source())[1])
    handle = buffer.save_async("here")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    go_on.set()
    handle.wait()
    assert loaded(tmp_path / "here") is not None


def test_errors_of_the_system_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = make()
    insert(buffer, 5)
    (tmp_path / "manifest.json").mkdir()
    open_before = len([*Path("/proc/self/fd").iterdir()])
    for call in (buffer.save, fr.ReplayBuffer.load, fr.verify):
        with pytest.raises(IsADirectoryError) as error:
            call(tmp_path)
        assert error.value.filename == str(tmp_path / "manifest.json")
    assert len([*Path("/proc/self/fd").iterdir()]) == open_before
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links") as refused:
        buffer.save(linked)
    assert refused.value.filename == str(linked / "lock")
    assert not (tmp_path / "elsewhere").exists()

    def full(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "writev", full)
    monkeypatch.setattr(_folder, "write_past_cache", lambda *_: 0)
    with pytest.raises(OSError, match="No space left") as no_room:
        buffer.save(tmp_path / "new")
    assert no_room.value.filename == str(tmp_path / "new")


@pytest.mark.parametrize("kind", ["plain", "all"])
def test_writers_of_a_full_ring_cost_what_they_overwrite(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is saved whose masses and links were overwritten before they were read."""
    buffer: Any = make(kind)
    insert(buffer, CAPACITY)
    read, state, left = type(_stored(buffer)).read, type(buffer)._read_state, [3]

    def late(stored: Any, *arguments: Any) -> Any:
        result = read(stored, *arguments)
        insert(buffer, len(left[:1]) * 2)  # before it is known whether the copy is whole
        left.clear()
        return (stored.oldest_whole(), *result[1:])

    monkeypatch.setattr(type(_stored(buffer)), "read", late)
    saved = buffer.save(tmp_path)
    assert saved.lost == 4 + 2 * 4  # and what the next try might have come too late for
    again: Any = fr.ReplayBuffer.load(tmp_path)
    assert np.asarray(again[:].step).tolist() == [*range(saved.first, saved.end)]
    assert again.stats()["inserted"] == saved.end

    def late_state(_: Any, *arguments: Any) -> Any:
        insert(buffer, 1)
        return state(buffer, *arguments)

    monkeypatch.setattr(type(buffer), "_read_state", late_state)
    saved = buffer.save(tmp_path)
    again = fr.ReplayBuffer.load(tmp_path)
    assert again[0].ticket == saved.first
    assert kind == "plain" or (saved.lost == LANES and (again.__reduce__()[2]["masses"]["values"] > 0).all())


def _stored(buffer: Any) -> Any:
    return buffer._kept_source().stored


def test_counters_are_of_what_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is inserted after it is not counted, and no more as overwritten than as inserted."""
    buffer = make(capacity=40)
    insert(buffer, 18)
    streams = buffer._streams

    def late() -> Any:
        insert(buffer, 2)
        return streams()

    monkeypatch.setattr(buffer, "_streams", late)
    saved = buffer.save(tmp_path / "checkpoint")
    again: Any = fr.ReplayBuffer.load(tmp_path / "checkpoint")
    assert again.stats()["inserted"] == saved.end
    assert saved.end == 18 * LANES
    assert again.stats()["overwritten"] <= saved.end


@pytest.mark.parametrize("capacity", [1, 2, 3])
@pytest.mark.parametrize("kind", ["plain", "all", "frames"])
def test_little_buffers(kind: str, capacity: int, tmp_path: Path) -> None:
    """Empty ones, of one transition, cleared ones, each saved over the one before."""
    buffer: Any = make(kind, capacity)
    for num_steps, is_cleared in ((0, False), (1, False), (2, False), (0, True), (3, False), (0, True), (1, False)):
        if is_cleared:
            buffer.clear()
        insert(buffer, num_steps)
        saved = buffer.save(tmp_path / "checkpoint")
        again: Any = fr.ReplayBuffer.load(tmp_path / "checkpoint")
        assert len(again) == len(buffer) == saved.end - saved.first
        assert state_of(again)[0] == state_of(buffer)[0]
        assert_tidy(tmp_path / "checkpoint")
        again.save(tmp_path / "checkpoint")
        insert(again, 2)
        again.save(tmp_path / "checkpoint")
        assert loaded(tmp_path / "checkpoint")[0] == state_of(again)[0]


def test_other_transitions_under_the_same_tickets_are_saved(tmp_path: Path) -> None:
    buffer, other = make(), make()
    insert(buffer, 5)
    buffer.save(tmp_path)
    other.extend(step=np.arange(10) + 100, x=np.ones((10, 3)), terminated=np.zeros(10, bool))
    buffer.__setstate__(other.__reduce__()[2] | {"columns": tuple(other.__reduce__()[2]["columns"])})
    buffer.save(tmp_path)
    assert loaded(tmp_path)[0] == state_of(buffer)[0] == state_of(other)[0]


def test_a_child_knows_which_tickets_are_not_its_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an insert was unfinished at the fork, later transitions have other tickets in the child."""
    monkeypatch.setattr(saving, "_SEGMENT_BYTES", 5 * 2048)
    rows = RELEASE_BYTES // 2048 + 1
    buffer: Any = fr.ReplayBuffer(9 * rows, {"x": (512,)}, output="numpy", seed=0)
    first = np.arange(10 * 512, dtype=np.float32).reshape(10, 512)
    buffer.extend(x=first)
    with stalled_insert(buffer, {"x": np.full((rows, 512), 1, np.float32)}, "x", at=rows // 2):
        buffer.extend(x=first + 100)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(read, 1)  # until the parent has saved
            try:
                expected = np.asarray(buffer[:].x)
                buffer.save(tmp_path)
                again: Any = fr.ReplayBuffer.load(tmp_path)
                os._exit(0 if np.array_equal(again[:].x, expected) else 3)
            finally:
                os._exit(4)
    assert buffer.save(tmp_path).end == 20 + rows
    os.write(write, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_handle_in_a_child_says_whose_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer, go_on = make(), threading.Event()
    insert(buffer, 5)
    reached = threading.Event()

    def stop() -> None:
        reached.set()
        go_on.wait(30)

    before_write(stop, monkeypatch)
    handle = buffer.save_async(tmp_path / "one")
    assert reached.wait(30)

    def child() -> str:
        with pytest.raises(RuntimeError, match="goes on in the parent") as error:
            handle.wait()
        buffer.save(tmp_path / "two")
        return str(error.value)

    try:
        assert in_child(child)
    finally:
        go_on.set()
    handle.wait()
    assert loaded(tmp_path / "one") == loaded(tmp_path / "two")


class Interrupt(BaseException):
    """What a signal handler raises."""


def moments_of(call: Callable[[], object], at: int) -> int:
    """Call, and raise at one line of our own after so many; return how many there were."""
    passed = 0

    def trace(frame: Any, event: str, _: object) -> Any:
        nonlocal passed
        if "fastreplay/checkpoint" not in frame.f_code.co_filename:
            return None
        # What lets go follows without a chance for a signal; only a debugger could come between.
        if event == "line" and "let_go" not in linecache.getline(frame.f_code.co_filename, frame.f_lineno):
            passed += 1
            if passed == at:
                raise Interrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return passed


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_line(tmp_path: Path) -> None:
    """Leaves the old checkpoint or the new one; nobody waits for its lock, nor do inserts that it held."""
    path = tmp_path / "checkpoint"
    buffer = make("all", timeout=5)
    insert(buffer, CAPACITY)
    buffer.save(path)
    num_lines = moments_of(lambda: buffer.save(tmp_path / "other", hold=True), 0)
    step = 1 if IS_LONG_FORM else max(1, num_lines // 25)
    for at in range(1, num_lines, step):
        old = loaded(path)
        insert(buffer, 1)
        with suppress(Interrupt):
            moments_of(lambda: buffer.save(path, hold=True), at)
        buffer.save(tmp_path / "new")
        assert loaded(path) in (old, loaded(tmp_path / "new")), at
        buffer.save(path)
        assert_tidy(path)
        assert loaded(path) == loaded(tmp_path / "new")
        if at % 3 == 0:
            insert(buffer, CAPACITY)


class Finalized:
    """Calls something when it is gone: as a finalizer does, in the midst of whatever its thread does."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call

    def __del__(self) -> None:
        self.call()


def watched() -> threading.Event:
    """Let the process be ended, by a way that tells where it was, unless this is set in time."""
    done = threading.Event()

    def watch() -> None:
        if not done.wait(20):
            os.kill(os.getpid(), signal.SIGABRT)

    threading.Thread(target=watch, daemon=True).start()
    return done


WAYS = ("signal", "finalizer", "collector", "trace")


def in_the_midst(way: str, call: Callable[[], object]) -> None:
    """Let a thread be interrupted by a call, in one of the ways there are."""
    if way == "signal":
        before = signal.signal(signal.SIGUSR1, lambda *_: call())
        signal.raise_signal(signal.SIGUSR1)
        signal.signal(signal.SIGUSR1, before)
    elif way == "finalizer":
        Finalized(call)
    elif way == "collector":
        circle: Any = Finalized(call)
        circle.itself = circle
        del circle
        gc.collect()
    else:
        call()


@pytest.mark.parametrize("way", WAYS)
def test_a_save_within_a_save_does_not_wait(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the folder that the same thread saves into, nor for one of somebody else; into a free one it saves."""
    buffer, said = make("all"), []
    insert(buffer, 9)
    buffer.save(tmp_path / "one")
    (tmp_path / "busy").mkdir()
    busy = os.open(tmp_path / "busy", os.O_RDONLY)
    fcntl.flock(busy, fcntl.LOCK_EX)

    def within() -> None:
        for name in ("one", "busy"):
            for save in (buffer.save, lambda path: buffer.save_async(path).wait()):
                with pytest.raises(RuntimeError) as error:
                    save(tmp_path / name)
                said.append(str(error.value))
        if not (tmp_path / "free").exists():
            buffer.save(tmp_path / "free")

    insert(buffer, 3)
    before_write(lambda: in_the_midst(way, within), monkeypatch)
    done = watched()
    buffer.save(tmp_path / "one")
    os.close(busy)
    done.set()
    assert len(said) == 4
    assert f"save: {tmp_path / 'one'} is being saved into, and a call in the midst of another save" in said[0]
    assert "wait: a call in the midst of a save" in said[1]
    assert loaded(tmp_path / "one") == loaded(tmp_path / "free") == state_of(buffer)
    buffer.save(tmp_path / "one")  # and nothing is left of it


@pytest.mark.parametrize("way", ["signal", "finalizer"])
def test_a_save_within_anything_comes_to_an_end(way: str, tmp_path: Path) -> None:
    """Also where the interrupted thread held the locks of the standard library's threads."""
    buffer = make("all")
    insert(buffer, 9)
    threads: Any = threading
    locks = [threads._active_limbo_lock, concurrent.futures.thread._global_shutdown_lock]
    if hasattr(threads, "_shutdown_locks_lock"):
        locks.append(threads._shutdown_locks_lock)
    done = watched()
    with ExitStack() as held:
        for lock in locks:
            held.enter_context(lock)
        in_the_midst(way, lambda: buffer.save(tmp_path))
    done.set()
    assert loaded(tmp_path) == state_of(buffer)


def test_the_lock_may_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is saving keeps others out nevertheless."""
    path, order = tmp_path / "checkpoint", []
    first, second = make(), make("all")
    insert(first, 9)
    insert(second, 4)
    first.save(path)
    write = saving.Scratch.laid
    others: list[threading.Thread] = []

    def removing(folder: Any, form: Any, entry: Any, arrays: Any) -> Any:
        order.append(entry.origin)
        if not others:
            (path / "lock").unlink()
            others.append(threading.Thread(target=second.save, args=(path,)))
            others[0].start()
            others[0].join(0.2)
            assert others[0].is_alive()
        return write(folder, form, entry, arrays)

    monkeypatch.setattr(saving.Scratch, "laid", removing)
    first.save(path, full=True)
    others[0].join()
    assert order == sorted(order, key=[first._lineage.name, second._lineage.name].index)
    assert loaded(path) == state_of(second)
    assert_tidy(path)


def test_no_thread_can_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was for one is done by the caller."""
    closed: list[int] = []
    finish = saving.Folder.finish

    def never(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    def told(folder: Any, fd: int) -> None:
        closed.append(fd)
        finish(folder, fd)

    monkeypatch.setattr(saving, "_SEGMENT_BYTES", 300)
    monkeypatch.setattr(_thread, "start_new_thread", never)
    monkeypatch.setattr(saving.Folder, "finish", told)
    buffer = make()
    insert(buffer, 20)
    buffer.save(tmp_path)
    assert len(closed) == len([each for each in tmp_path.iterdir() if each.name != "lock"])
    assert loaded(tmp_path) == state_of(buffer)


def test_two_that_were_loaded_from_one_save_there_in_turn(tmp_path: Path) -> None:
    """Each writes anew what the other has of its own; what they have in common stays."""
    buffer = make("all")
    insert(buffer, 20)
    buffer.save(tmp_path)
    both: list[Any] = [fr.ReplayBuffer.load(tmp_path) for _ in range(2)]
    for step in range(1, 7):
        for number, each in enumerate(both):
            insert(each, step)
            each.update_priorities(each[:].ticket, np.full(len(each), 1.0 + number + step))
            each.save(tmp_path, full=step == 3)
            assert loaded(tmp_path)[:3] == state_of(each)[:3]
            assert_tidy(tmp_path)


def test_priorities_and_lanes_change_while_they_are_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is loaded goes on, and each of its transitions is whole and has a mass."""
    monkeypatch.setattr(saving, "_SEGMENT_BYTES", 4000)
    buffer = make("all", 400)
    insert(buffer, 150)
    stop, failures = threading.Event(), []

    def work(call: Callable[[], object]) -> None:
        try:
            while not stop.is_set():
                call()
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)

    def update() -> None:
        batch = buffer.sample(16)
        buffer.update_priorities(batch, np.asarray(batch.step) + 1.0)

    threads = [threading.Thread(target=work, args=(call,)) for call in (lambda: insert(buffer, 1), update)]
    for thread in threads:
        thread.start()
    try:
        for number in range(30 if IS_LONG_FORM else 6):
            saved = buffer.save(tmp_path, full=number % 3 == 2)
            again: Any = fr.ReplayBuffer.load(tmp_path)
            assert np.asarray(again[:].step).tolist() == [*range(saved.first, saved.end)]
            assert (again.__reduce__()[2]["masses"]["values"] > 0).all()
            assert again.stats()["inserted"] == saved.end
            insert(again, 2)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures


def test_what_a_device_keeps_is_saved(cuda: Any, tmp_path: Path) -> None:
    """Of a stand-in for one: its priorities, also those that are on their way; loaded with it or without."""
    fields: Any = {"step": ((), "int64"), "x": (3,)}
    buffer: Any = fr.ReplayBuffer(40, fields, seed=1, device="cuda", storage="cuda", priorities=fr.Priorities())
    for begin in (0, 30):
        buffer.extend(step=np.arange(begin, begin + 30), x=np.ones((30, 3)))
        tickets = np.arange(max(0, begin - 10), begin + 30)
        buffer.update_priorities(tickets, 1.0 + tickets)
        saved = buffer.save(tmp_path)
        options: Any = {"storage": "host", "device": "cpu", "output": "numpy"}
        both: Any = (fr.ReplayBuffer.load(tmp_path), fr.ReplayBuffer.load(tmp_path, **options))
        for again in both:
            assert (len(again), again.max_priority) == (saved.end - saved.first, buffer.max_priority)
            state = again.__reduce__()[2]
            np.testing.assert_array_equal(state["masses"]["values"], buffer.__reduce__()[2]["masses"]["values"])
