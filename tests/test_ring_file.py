# SPDX-License-Identifier: MIT
"""Rings in files: as those in memory, and found again: after a kill all, after a loss of power what was confirmed.

tests/cpp/test_ring_file.cpp has kills after every instruction of an insert and of the taking up.
"""

from __future__ import annotations

import errno
import gc
import os
import pickle
import re
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from linecache import getline
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import stall
from support import HAS_GIL, IS_LONG_FORM

import fastreplay as fr
from fastreplay import _core
from fastreplay.buffer import on_disk
from fastreplay.checkpoint import ring_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Buffer = fr.ReplayBuffer[Any]

pytestmark = pytest.mark.skipif(not _core.MAPS_FILES, reason="rings in files need Linux")

# Each row says which it is in every field.
FIELDS = {
    "observation": ((5,), "int64"),
    "pixels": ((3, 7), "uint8"),
    "reward": ((), "float64"),
    "terminated": ((), "bool"),
}
# What goes on along a lane, is stored once, and breaks off at an end.
SHARED = {
    **FIELDS,
    "state": ((2,), "int64"),
    "next_state": ((2,), "int64"),
    "frames": fr.Field((3,), "int64", stack=3),
    "next_frames": fr.Field((3,), "int64", stack=3),
}
STACKED = {**FIELDS, "frames": fr.Field((70,), "int64", stack=3)}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "weighed": {"priorities": fr.Priorities(alpha=1.0, eps=0.0)},
    "lanes": {"lanes": 3},
    "all": {"lanes": 3, "priorities": fr.Priorities(alpha=1.0, eps=0.0)},
    "shared": {"lanes": 3, "share_next": True, "priorities": fr.Priorities(alpha=1.0, eps=0.0)},
    "stacked": {"lanes": 3},
}
CAPACITY = 200
WRITE = ring_file._write


def columns(ids: Any, wide: int = 3) -> dict[str, Any]:
    """Return what these rows are in every field; frames are so wide."""
    ends = ids % 17 == 16
    since = np.select([ids % 17 == 2, ids % 17 == 5], [0, 1], 2)  # steps of the lane since its last end
    frames = ids[:, None] - 3 * np.minimum(since[:, None], [2, 1, 0])
    newest = ids + 3 + 1_000_000 * ends
    states, next_states = ids[:, None] * [1, -1], newest[:, None] * [1, -1]
    next_frames = np.concatenate([frames[:, 1:], newest[:, None]], axis=1)
    of_frame = np.arange(wide)
    return {
        "observation": ids[:, None] * 5 + np.arange(5),
        "pixels": np.repeat(ids % 251, 21).reshape(len(ids), 3, 7).astype(np.uint8),
        "reward": ids * 0.5,
        "terminated": ends,
        "state": states,
        "next_state": next_states,
        "frames": frames[:, :, None] * 7 + of_frame,
        "next_frames": next_frames[:, :, None] * 7 + of_frame,
    }


def rows(schema: fr.Schema, first: int, count: int) -> dict[str, Any]:
    ids = np.arange(first, first + count)
    wide = schema["frames"].shape[1:] if "frames" in schema else ()
    return {name: value for name, value in columns(ids, *wide).items() if name in schema}


def ids_of(batch: Any) -> Any:
    """Return which rows these are, all of which are whole."""
    ids = batch.observation[:, 0] // 5
    wide = batch.frames.shape[2:] if hasattr(batch, "frames") else ()
    for name, value in columns(ids, *wide).items():
        if hasattr(batch, name):
            assert (getattr(batch, name) == value).all(), (name, ids)
    return ids


def fields_of(kind: str) -> Any:
    return {"shared": SHARED, "stacked": STACKED}.get(kind, FIELDS)


def made(path: Path | None, kind: str = "plain", capacity: int = CAPACITY, **options: Any) -> Buffer:
    options = {"output": "numpy", **KINDS[kind], **({} if path is None else {"path": path}), **options}
    return fr.ReplayBuffer(capacity, fields_of(kind), **options)


def insert(buffer: Buffer, first: int, count: int) -> None:
    lanes = {} if buffer._lanes is None else {"lanes": np.arange(first, first + count) % 3}
    for at in range(0, count, 20):
        part = slice(at, min(at + 20, count))
        given = {name: value[part] for name, value in rows(buffer.schema, first, count).items()}
        buffer.extend(**given, **{name: value[part] for name, value in lanes.items()})


def no_wait(_fd: int) -> None:
    """Stand for fsync, where nothing comes of the power being lost."""


def contents(buffer: Buffer) -> Any:
    return ids_of(buffer[:])


def closed(buffer: list[Buffer]) -> None:
    buffer.clear()
    gc.collect()


@pytest.mark.parametrize("kind", KINDS)
def test_as_in_memory(tmp_path: Path, kind: str) -> None:
    there, here = made(tmp_path / "ring", kind, seed=4), made(None, kind, seed=4)
    follow: dict[str, Any] = {"follow": fr.NStep(3, 0.9)} if "lanes" in KINDS[kind] else {}
    for first in range(0, 700, 70):
        for buffer in (there, here):
            insert(buffer, first, 70)
        a, b = there.sample(32, **follow), here.sample(32, **follow)
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
        if there._masses is not None:
            for buffer, batch in ((there, a), (here, b)):
                buffer.update_priorities(batch, np.arange(1, 33))
    assert (contents(there) == contents(here)).all()
    assert there.stats() | {"bytes": 0} == here.stats() | {"bytes": 0}
    there.clear()
    assert len(there) == 0
    insert(there, 0, 20)
    assert (contents(there) == np.arange(20)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_from_what_is_there(tmp_path: Path, kind: str) -> None:
    here = made(None, kind, seed=4)
    there = [made(tmp_path / "ring", kind, seed=4)]
    for first in range(0, 600, 100):
        for buffer in (*there, here):
            insert(buffer, first, 100)
            batch = buffer.sample(16)
            if buffer._masses is not None:
                buffer.update_priorities(batch, np.arange(16) + first + 1)
        before = there[0].stats()
        closed(there)
        there = [made(tmp_path / "ring", kind)]
        after = there[0].stats()
        for name in ("inserted", "overwritten", "sampled", "redraws", "without_mass"):
            assert after[name] == before[name]
        a, b = there[0].sample(64), here.sample(64)
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
        if there[0]._masses is not None:
            assert there[0].max_priority == here.max_priority
        assert (contents(there[0]) == contents(here)).all()


def test_lanes_that_go_on_begin_anew(tmp_path: Path) -> None:
    """Nobody knows what an environment did meanwhile: no window crosses the gap; a cut lets a trajectory begin."""
    there = [made(tmp_path / "ring", "lanes")]
    insert(there[0], 0, 10)
    closed(there)
    (there,) = ([made(tmp_path / "ring", "lanes")],)
    there[0].cut(1)
    insert(there[0], 10, 6)
    found: dict[int, set[int]] = {}
    for _ in range(30):
        batch = there[0].sample(64, follow=fr.Sequence(6))
        for row, mask in zip(batch.observation, batch.mask, strict=True):
            steps = (row[mask][:, 0] // 5).tolist()
            assert all(b - a == 3 for a, b in pairwise(steps)), steps
            assert not {9, 12} <= {*steps}
            assert not {7, 10} <= {*steps}
            found.setdefault(steps[0], set()).add(len(steps))
    assert max(found[10]) == 2  # 10, 13
    assert there[0].trajectory_stats()["without_beginning"] == 2  # those of lanes 0 and 2 after the gap


# ---- kills


_CHILD = """
import sys, threading, os
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_ring_file as t
buffer = t.made(Path({path!r}), {kind!r}, capacity=t.CAPACITY)
first, count = {first}, {count}
done = [first + i for i in range(3)]
def work(lane):
    i = first + lane
    while True:
        row = {{name: value[0] for name, value in t.rows(buffer.schema, i, 1).items()}}
        buffer.add(**row, **({{}} if buffer._lanes is None else {{"lane": lane}}))
        os.write(1, b"%d\\n" % i)
        i += 3
def update():
    import numpy as np
    while buffer._masses is not None:
        if len(buffer):
            batch = buffer.sample(8)
            buffer.update_priorities(batch, np.ones(8))
threads = [threading.Thread(target=work, args=(lane,), daemon=True) for lane in range(3)]
threads += [threading.Thread(target=update, daemon=True)]
print("begun", flush=True)
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def killed_while_it_inserts(path: Path, kind: str, first: int, most: int) -> set[int]:
    """Return what a process had inserted when it was killed, about so many rows."""
    text = _CHILD.format(tests=str(Path(__file__).parent), path=str(path), kind=kind, first=first, count=0)
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        said = "".join(child.stdout.readline() for _ in range(most))
        child.kill()
        said += child.stdout.read()
        assert child.wait() == -signal.SIGKILL
    return {int(line) for line in said[: said.rfind("\n") + 1].split()}


@pytest.mark.parametrize("kind", KINDS if IS_LONG_FORM else [*KINDS][:-1])
def test_after_a_kill_everything_is_there(tmp_path: Path, kind: str) -> None:
    first, expected = 0, -1
    for turn in range(20 if IS_LONG_FORM else 2):
        inserted = killed_while_it_inserts(tmp_path / "ring", kind, first, 10 + 170 * (turn % 5))
        there = [made(tmp_path / "ring", kind)]
        buffer = there[0]
        found = contents(buffer).tolist()
        assert len({*found}) == len(found)
        ordered = sorted(inserted)
        for lane in range(3):  # each thread's own are in its order
            mine = [each for each in found if (each - first) % 3 == lane and each >= first]
            assert mine == sorted(mine)
            assert all(b - a == 3 for a, b in pairwise(mine))
        # What was said to be inserted is there, unless later ones took its slot: at most as many as there are threads
        # had reserved one.
        newest = buffer.stats()["inserted"]
        gone = {each for each in ordered if each not in found}
        assert len(inserted) - len(gone) >= min(len(inserted), CAPACITY - 3)
        assert newest >= len(inserted)
        if buffer._masses is not None:
            assert np.isfinite(buffer.sample(64).weight).all()
        if buffer._lanes is not None:
            steps = buffer.sample(64, follow=fr.Sequence(4))
            for row, mask in zip(steps.observation, steps.mask, strict=True):
                ids = (row[mask][:, 0] // 5).tolist()
                assert all(b - a == 3 for a, b in pairwise(ids)), ids
        expected = max([expected, *found])
        first = expected + 100 - (expected % 3)
        insert_at_rest(buffer, first)
        first += 3
        del buffer
        closed(there)


def insert_at_rest(buffer: Buffer, first: int) -> None:
    before = len(buffer)
    insert(buffer, first, 3)
    assert len(buffer) >= min(before, CAPACITY)
    assert ids_of(buffer[-3:]).tolist() == [first, first + 1, first + 2]


def test_killed_while_it_is_made(tmp_path: Path) -> None:
    for call in ("posix_fallocate", "link", "pwrite", "fsync") if IS_LONG_FORM else ("link", "fsync"):
        text = (
            f"import os, sys, fastreplay as fr; os.{call} = lambda *a: os.kill(os.getpid(), 9);"
            f"fr.ReplayBuffer(100, {{'observation': (3,)}}, path={str(tmp_path / 'ring')!r})"
        )
        assert subprocess.run([sys.executable, "-c", text], check=False).returncode == -signal.SIGKILL
        assert not (tmp_path / "ring").exists()
        assert len([*tmp_path.iterdir()]) == 1
    buffer = fr.ReplayBuffer(100, {"observation": (3,)}, path=tmp_path / "ring")
    assert [each.name for each in tmp_path.iterdir()] == ["ring"]
    buffer.add(np.ones(3))


# ---- losses of power


class Power:
    """What the disk may have of a file: of each sector, what it was at the last wait, or at any moment since."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.images: list[bytes] = []
        fsync = os.fsync

        def waited(fd: int) -> None:
            fsync(fd)
            if stat.S_ISREG(os.fstat(fd).st_mode):
                self.images = [self.now(fd)]

        monkeypatch.setattr(os, "fsync", waited)

    def now(self, fd: int | None = None) -> bytes:
        if fd is None:
            return self.path.read_bytes()
        return os.pread(fd, os.fstat(fd).st_size, 0)

    def note(self) -> None:
        """Remember the moment."""
        self.images.append(self.now())

    def lost(self, path: Path, rng: np.random.Generator) -> None:
        """Write what one loss of power leaves."""
        sectors = [np.frombuffer(image, np.uint8).reshape(-1, 512) for image in self.images]
        kind = rng.integers(3)
        if kind == 0:  # each by itself
            which = rng.integers(len(sectors), size=len(sectors[0]))
        elif kind == 1:  # runs of them
            which = np.repeat(rng.integers(len(sectors), size=len(sectors[0]) // 8 + 1), 8)[: len(sectors[0])]
        else:  # about nothing, or about all
            are_others = rng.random(len(sectors[0])) < 0.05
            which = np.where(are_others, rng.integers(len(sectors)), rng.choice([0, len(sectors) - 1]))
        left = np.stack(sectors)[which, np.arange(len(which))]
        path.write_bytes(left.tobytes())


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_loss_of_power_what_was_confirmed_is_there(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(5)
    path, lost = tmp_path / "ring", tmp_path / "lost"
    with monkeypatch.context() as patch:
        power = Power(path, patch)
        buffer = made(path, kind)
        confirmed = 0
        for turn in range(60 if IS_LONG_FORM else 8):
            count = int(rng.integers(1, 120))
            for part in np.array_split(np.arange(count), 3):
                insert(buffer, buffer.stats()["inserted"], len(part))
                if buffer._masses is not None:
                    batch = buffer.sample(8)
                    buffer.update_priorities(batch, rng.random(8) + 0.5)
                if buffer._lanes is not None and turn % 3 == 0:
                    buffer.cut(int(rng.integers(3)))
                power.note()
            inserted = buffer.stats()["inserted"]
            for _ in range(30 if IS_LONG_FORM else 4):
                lose_and_check(power, lost, rng, kind, (confirmed, inserted))
            if turn % 3:
                cut_short(buffer, power, patch, partial(lose_and_check, power, lost, rng, kind, (confirmed, inserted)))
                confirmed = inserted
                buffer.flush()
            lose_and_check(power, lost, rng, kind, (confirmed, inserted))


def cut_short(buffer: Buffer, power: Power, patch: pytest.MonkeyPatch, check: Callable[[], object]) -> None:
    """Lose the power in the midst of a flush, too."""

    def writing(fd: int, data: bytes, offset: int) -> None:
        for end in (0, 7, len(data) // 2, len(data)):
            WRITE(fd, data[:end], offset)
            power.note()
            check()

    with patch.context() as inner:
        inner.setattr(ring_file, "_write", writing)
        buffer.flush()


def lose_and_check(power: Power, path: Path, rng: np.random.Generator, kind: str, ends: tuple[int, int]) -> None:
    """Lose the power once; `ends` are what was confirmed, and what was inserted."""
    confirmed, inserted = ends
    power.lost(path, rng)
    with pytest.MonkeyPatch.context() as inner:
        inner.setattr(ring_file, "_boot", lambda: "another")
        inner.setattr(ring_file, "_write", WRITE)
        inner.setattr(os, "fsync", no_wait)
        there = [made(path, kind)]
        buffer = there[0]
        if len(buffer) > 0:
            found = contents(buffer)
            end = int(found[-1]) + 1
            assert (np.diff(found) == 1).all()
        else:
            end = buffer.stats()["inserted"]
        assert end in {confirmed, inserted}  # the second where the flush was all but done
        assert buffer.stats()["inserted"] == end
        # Nothing is missing but what later inserts were overwriting.
        assert len(buffer) >= min(end, CAPACITY) - (inserted - end)
        if buffer._masses is not None and len(buffer):
            batch = buffer.sample(32)
            assert np.isfinite(batch.weight).all()
            assert (batch.weight > 0).all()
        if buffer._lanes is not None and len(buffer):
            steps = buffer.sample(32, follow=fr.Sequence(4))
            for row, mask in zip(steps.observation, steps.mask, strict=True):
                ids = (row[mask][:, 0] // 5).tolist()
                assert all(b - a == 3 and a % 17 != 16 for a, b in pairwise(ids)), ids
        insert(buffer, 10_000, 9)
        assert contents(buffer)[-9:].tolist() == [*range(10_000, 10_009)]
        del buffer
        closed(there)


def test_an_old_start_of_the_machine_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not confirmed is dropped where it is not known that all of it reached the disk."""
    for boot, expected in (("another", 20), (ring_file._boot(), 50)):
        path = tmp_path / f"ring {boot}"
        there = [made(path)]
        insert(there[0], 0, 20)
        there[0].flush()
        insert(there[0], 20, 30)
        left = path.read_bytes()
        closed(there)
        path.write_bytes(left)
        copy = tmp_path / f"copy {boot}"
        copy.write_bytes(left)
        assert len(made(copy)) == 20  # which may have been made in the midst of writes
        with monkeypatch.context() as patch:
            patch.setattr(ring_file, "_boot", lambda boot=boot: boot)
            buffer = made(path)
            assert len(buffer) == expected
            assert buffer.stats()["lost"] == 50 - expected


def test_a_disk_that_fails_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = made(tmp_path / "ring")
    insert(buffer, 0, 20)
    calls = []

    def counted(fd: int) -> None:
        calls.append(fd)
        fails(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", counted)
        with pytest.raises(OSError, match="the disk is broken"):
            buffer.flush()
    with pytest.raises(OSError, match="the disk failed before"):
        buffer.flush()
    assert len(calls) == 1
    insert(buffer, 20, 20)
    assert (contents(buffer) == np.arange(40)).all()
    buffer.save(tmp_path / "kept")
    assert len(Buffer.load(tmp_path / "kept")) == 40


def test_opening_waits_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a new file before it has its name; for another before its places are written to."""
    steps: list[str] = []

    def noted(name: str, real: Callable[..., Any], *given: Any) -> Any:
        steps.append(name)
        return real(*given)

    monkeypatch.setattr(os, "fsync", partial(noted, "fsync", os.fsync))
    monkeypatch.setattr(os, "link", partial(noted, "link", os.link))
    monkeypatch.setattr(ring_file, "_write", partial(noted, "write", WRITE))
    there = [made(tmp_path / "ring")]
    assert steps == ["write", "write", "fsync", "link", "fsync"]  # the head, a place; and the folder
    insert(there[0], 0, 20)
    steps.clear()
    closed(there)
    assert steps == ["fsync", "write", "fsync"]
    steps.clear()
    made(tmp_path / "ring")
    assert steps[:2] == ["fsync", "write"]
    assert len(steps) == 2 + 3  # as it is closed


def test_a_copy_in_the_place_of_the_file_is_known_by_more_than_its_number(tmp_path: Path) -> None:
    """File systems give a new file the number of one that was removed just before."""
    path = tmp_path / "ring"
    buffer = made(path)
    insert(buffer, 0, 20)
    buffer.flush()
    insert(buffer, 20, 10)
    copied, number = path.read_bytes(), path.stat().st_ino  # in the midst of writes, it may be
    buffer.close()
    path.unlink()
    path.write_bytes(copied)
    with path.open("rb") as file:
        if path.stat().st_ino != number or not ring_file._generation(file.fileno()):
            pytest.skip("this file system gives no number twice")
    assert (contents(made(path)) == np.arange(20)).all()


def test_power_is_lost_after_a_kill_within_a_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a file does not write over the one place that the disk is known to have."""
    monkeypatch.setattr(ring_file.RingFile, "_life", lambda _: "the same")
    path, left, rng = tmp_path / "ring", tmp_path / "left", np.random.default_rng(2)
    with monkeypatch.context() as patch:
        power = Power(path, patch)
        buffer = made(path)
        insert(buffer, 0, 20)
        buffer.flush()
        insert(buffer, 20, 20)
        waits = iter([os.fsync, no_wait])  # it is killed while it waits for the second time
        patch.setattr(os, "fsync", lambda fd: next(waits)(fd))  # noqa: PLW0108 - another each time
        buffer.flush()
        power.note()
        left.write_bytes(path.read_bytes())
    with monkeypatch.context() as patch:
        after = Power(left, patch)
        after.images = power.images

        def writing(fd: int, data: bytes, offset: int) -> None:
            WRITE(fd, data, offset)
            after.note()

        patch.setattr(ring_file, "_write", writing)
        there = [made(left)]
        for turn in range(100):
            lost = tmp_path / f"lost {turn % 2}"
            after.lost(lost, rng)
            with monkeypatch.context() as inner:
                inner.setattr(ring_file.RingFile, "_life", lambda _: "another")
                inner.setattr(ring_file, "_write", WRITE)
                inner.setattr(os, "fsync", no_wait)
                assert (contents(made(lost)) == np.arange(40)).all()
        del there


def test_an_interrupted_flush_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = made(tmp_path / "ring")
    insert(buffer, 0, 20)

    def interrupts(fd: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupts)
        with pytest.raises(KeyboardInterrupt):
            buffer.flush()
    buffer.flush()
    assert buffer._disk is not None
    assert buffer._disk._file.confirmed.end == 20


# ---- who has it


def test_one_at_a_time(tmp_path: Path) -> None:
    there = [made(tmp_path / "ring")]
    insert(there[0], 0, 20)
    with pytest.raises(RuntimeError, match=r"ring is open in another process, or as another buffer of this one"):
        made(tmp_path / "ring")
    text = f"import fastreplay as fr; fr.ReplayBuffer(100, {{'a': (3,)}}, path={str(tmp_path / 'ring')!r})"
    out = subprocess.run([sys.executable, "-c", text], check=False, capture_output=True, text=True)
    assert "RuntimeError: path: " in out.stderr
    view = there[0].view("reward")
    face = there[0].spawn(1)
    closed(there)
    with pytest.raises(RuntimeError, match="is open"):
        made(tmp_path / "ring")  # a face is left
    del face
    gc.collect()
    with pytest.raises(RuntimeError, match="is open"):
        made(tmp_path / "ring")  # and a view
    assert view[3] == 1.5
    del view
    assert len(made(tmp_path / "ring")) == 20


def test_a_child_has_an_empty_buffer_of_its_own(tmp_path: Path) -> None:
    buffer = made(tmp_path / "ring", "all")
    insert(buffer, 0, 50)
    batch = buffer.sample(4)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            assert len(buffer) == 0
            with pytest.raises(ValueError, match="tickets"):
                buffer.update_priorities(batch.ticket, np.ones(4))
            insert(buffer, 1000, 20)
            assert contents(buffer).tolist() == [*range(1000, 1020)]
            buffer.sample(16, follow=fr.NStep(3, 0.9))
            buffer.flush()
            buffer.save(tmp_path / "kept")
            os.write(write, b"well")
            signal.pause()
        finally:
            os._exit(1)
    assert os.read(read, 4) == b"well"
    assert (contents(buffer) == np.arange(50)).all()
    insert(buffer, 50, 20)
    there = [buffer]
    del buffer
    closed(there)
    again = made(tmp_path / "ring", "all")  # though the child is alive
    assert (contents(again) == np.arange(70)).all()
    assert contents(fr.ReplayBuffer.load(tmp_path / "kept")).tolist() == [*range(1000, 1020)]
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_copies_lie_in_memory(tmp_path: Path) -> None:
    buffer = made(tmp_path / "ring", "all", seed=3)
    insert(buffer, 0, 50)
    again = pickle.loads(pickle.dumps(buffer))
    assert (contents(again) == np.arange(50)).all()
    assert (again.sample(32).ticket == buffer.sample(32).ticket).all()
    insert(again, 50, 20)
    assert len(buffer) == 50


def test_a_seed_begins_anew(tmp_path: Path) -> None:
    there = [made(tmp_path / "ring", seed=3)]
    insert(there[0], 0, 50)
    first = there[0].sample(32).ticket
    second = there[0].sample(32).ticket
    closed(there)
    there = [made(tmp_path / "ring", seed=3)]
    assert (there[0].sample(32).ticket == first).all()
    closed(there)
    assert (made(tmp_path / "ring").sample(32).ticket == second).all()


def test_from_env_and_threads(tmp_path: Path) -> None:
    import gymnasium as gym

    buffer = fr.ReplayBuffer.from_env(gym.make("CartPole-v1"), 500, path=tmp_path / "ring", output="numpy")
    several = made(tmp_path / "several", "all")
    threads = [threading.Thread(target=insert, args=(several, 3 * lane, 300)) for lane in range(2)]
    stop = threading.Event()

    def confirm() -> None:
        while not stop.is_set():
            several.flush()

    threads.append(threading.Thread(target=confirm))
    with pytest.raises(IndexError):
        buffer[0]
    for thread in threads:
        thread.start()
    for thread in threads[:2]:
        thread.join()
    stop.set()
    threads[2].join()
    assert len(contents(several)) == CAPACITY


def test_samplers_are_others_after_it_was_opened_again(tmp_path: Path) -> None:
    there = [made(tmp_path / "ring", seed=0)]
    insert(there[0], 0, 100)
    first = [there[0].spawn(1)[0].sample(32).ticket for _ in range(2)]
    closed(there)
    there = [made(tmp_path / "ring")]
    for ticket in first:
        assert (there[0].spawn(1)[0].sample(32).ticket != ticket).any()


def test_a_flush_in_the_handler_of_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot wait for the one that it interrupts; whoever exits by it has everything on the disk nevertheless."""
    buffer = made(tmp_path / "ring")
    insert(buffer, 0, 20)
    fsync, said = os.fsync, []

    def interrupted(fd: int) -> None:
        with pytest.raises(RuntimeError, match="in the midst of another by the same thread"):
            buffer.flush()
        said.append(1)
        fsync(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        buffer.flush()
    assert len(said) == 2
    buffer.flush()


def test_several_make_one(tmp_path: Path) -> None:
    for turn in range(20):
        barrier, got, refused = threading.Barrier(3), list[Any](), list[str]()

        def make(path: Path, barrier: threading.Barrier = barrier, got: Any = got, refused: Any = refused) -> None:
            barrier.wait()
            try:
                got.append(made(path))
            except RuntimeError as error:
                refused.append(str(error))

        threads = [threading.Thread(target=make, args=(tmp_path / f"ring {turn}",)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1
        assert all("is open in another process, or as another buffer of this one" in each for each in refused)
        insert(got[0], 0, 20)
        closed(got)
        assert len(made(tmp_path / f"ring {turn}")) == 20
    assert len([*tmp_path.iterdir()]) == 20


def test_what_others_called_alike_stays(tmp_path: Path) -> None:
    others = [".ring.backup.new", ".ring.x.0123456789abcdef.new", ".ring.0123456789abcdef.old", "ring.new"]
    for name in others:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".ring.0123456789abcdef.new").write_text("left by who was killed")
    made(tmp_path / "ring")
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([*others, "ring"])


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    there = [made(tmp_path / "link")]
    insert(there[0], 0, 20)
    closed(there)
    assert len(made(tmp_path / "target")) == 20
    monkeypatch.chdir(tmp_path)
    there = [made(Path("relative"))]
    closed(there)
    assert (tmp_path / "relative").exists()
    with pytest.raises(ValueError, match="path: expected the path of a file"):
        made("a\0b")  # type: ignore[arg-type]
    removed = made(tmp_path / "removed")
    (tmp_path / "removed").unlink()
    with pytest.raises(OSError, match=r"removed: the file was removed"):
        removed.flush()
    with pytest.raises(ValueError, match=r"^seed"):
        made(tmp_path / "seeded", seed=-1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of /proc, left open by an interrupt
def test_an_interrupt_at_any_line_of_the_constructor(tmp_path: Path) -> None:
    """Others can open the file, at once, and no descriptor is left."""
    path = tmp_path / "ring"
    there = [made(path, "all")]
    insert(there[0], 0, 50)
    closed(there)
    step = 1 if IS_LONG_FORM else 5
    for is_new in (False, True):
        done, line = False, 1
        while not done:
            where = tmp_path / f"ring {line}" if is_new else path
            try:
                with interrupting(line):
                    there = [made(where, "all")]
                done = True
            except KeyboardInterrupt:
                again = made(where, "all")  # while the traceback holds what there was
                assert len(again) == (0 if is_new else 50)
                del again
            closed(there)
            gc.collect()
            assert held_in(tmp_path) == [], line
            line += step
        assert line > 50
    assert not [each for each in tmp_path.iterdir() if each.name.endswith(".new")]


def held_in(folder: Path) -> list[str]:
    """Return which files of a folder, removed ones too, this process holds open."""
    links = [str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    return [each for each in links if each.startswith(f"{folder}/")]


MAKING_AND_CLOSING = ("/replay_buffer.py", "/held.py", "/on_disk.py", "/ring_file.py", "/closed.py")


@contextmanager
def interrupting(number: int) -> Iterator[None]:
    """Raise KeyboardInterrupt at so many lines of where a buffer and its file are made."""
    left = number

    def trace(frame: Any, event: str, _argument: object) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith(
            ("/replay_buffer.py", "/held.py", "/on_disk.py", "/ring_file.py", "/closed.py")
        ):
            return None
        # Not between the end of a `with` and its release, where no signal is looked for, but where tracers are.
        if event == "line" and not getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with "):
            left -= 1
            if left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


# ---- closed


@pytest.mark.parametrize("kind", ["plain", "shared"])
def test_closed(tmp_path: Path, kind: str) -> None:
    """Every call raises, of faces and samplers, too; minibatches stay; others can open the file."""
    with made(tmp_path / "ring", kind, seed=1) as buffer:
        insert(buffer, 0, 50)
        face, sampler, add = buffer.spawn(1)[0], buffer.sampler(), buffer.add
        loader = sampler.loader(8)
        batch, ahead = buffer.sample(16), next(loader)
    for one in (buffer, face, sampler):
        for name in ("sample", "stats", "loader", "rng_state", "save", "add", "view", "flush", "cut", "schema"):
            if hasattr(fr.ReplayBuffer if one is not sampler else fr.Sampler, name):
                with pytest.raises(RuntimeError, match=f"^{name}: the (ReplayBuffer|Sampler) was closed"):
                    getattr(one, name)(8)
        with pytest.raises(RuntimeError, match="was closed"):
            pickle.dumps(one)
        assert repr(one) == f"{type(one).__name__}(closed)"
    for refused in (lambda: len(buffer), lambda: buffer[0], buffer.__enter__):
        with pytest.raises(RuntimeError, match="the ReplayBuffer was closed"):
            refused()
    with pytest.raises(RuntimeError, match="closed meanwhile; 0 of 1 rows"):  # as who was about to call it
        add(
            **{name: value[0] for name, value in columns(np.array([50])).items() if name in fields_of(kind)},
            **({} if kind == "plain" else {"lane": 0}),
        )
    assert [*loader] == []
    buffer.close()
    assert held_in(tmp_path) == []
    assert isinstance(buffer, fr.ReplayBuffer)
    again = made(tmp_path / "ring", kind)
    assert (contents(again) == np.arange(50)).all()
    assert {*ids_of(batch)} | {*ids_of(ahead)} <= {*range(50)}
    if os.fork() == 0:
        os._exit(0)
    assert os.wait()[1] == 0


def test_closed_in_memory() -> None:
    with made(None) as buffer:
        insert(buffer, 0, 20)
        view = buffer.view("reward")
    with pytest.raises(RuntimeError, match="sample: the ReplayBuffer was closed"):
        buffer.sample(4)
    with pytest.raises(RuntimeError, match="rng_state: the ReplayBuffer was closed"):
        buffer.rng_state = {"key": [1, 2], "calls": 3}
    assert view[3] == 1.5


def test_what_keeps_it_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has changed where it cannot be closed."""
    buffer = made(tmp_path / "ring")
    insert(buffer, 0, 20)
    views = [buffer.view("reward"), buffer.view("observation")[3:5]]
    with pytest.raises(RuntimeError, match=r"close: 2 arrays that view\(\) gave lie in .*ring"):
        buffer.close()
    views.pop()
    with pytest.raises(RuntimeError, match="close: 1 arrays"):
        buffer.close()
    views.clear()
    insert(buffer, 20, 20)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(OSError, match="the disk is broken"):
            buffer.close()
    assert (contents(buffer) == np.arange(40)).all()
    with pytest.raises(RuntimeError, match="is open"):
        made(tmp_path / "ring")
    buffer.close()
    assert len(made(tmp_path / "ring")) == 40


def fails(_fd: int) -> None:
    """Stand for fsync, of a disk that cannot."""
    raise OSError(errno.EIO, "the disk is broken")


def test_an_insert_that_has_stopped_keeps_it_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_disk, "_PATIENCE_S", 0.02)
    buffer = made(tmp_path / "ring", capacity=8192)
    with stall.stalled_insert(buffer, rows(buffer.schema, 0, 600), "observation", at=300):
        with pytest.raises(RuntimeError, match="close: another thread is in the midst of an insert"):
            buffer.close()
        assert len(buffer) == 0
    insert(buffer, 600, 20)
    assert (contents(buffer) == np.arange(620)).all()
    buffer.close()
    assert (contents(made(tmp_path / "ring", capacity=8192)) == np.arange(620)).all()


@pytest.mark.parametrize("kind", ["all", "shared"])
def test_closed_while_others_are_in_the_midst(tmp_path: Path, kind: str) -> None:
    """Each call comes before or raises; what had returned is there."""
    for turn in range(100 if IS_LONG_FORM else 4):
        buffer = made(tmp_path / f"ring {turn}", kind)
        insert(buffer, 0, 60)
        done, wrong = [57, 58, 59], list[BaseException]()

        # As who was about to call it, whom nobody stops.
        def add(lane: int, call: Any = buffer.add, done: Any = done, schema: Any = buffer.schema) -> None:
            call(**{name: value[0] for name, value in rows(schema, done[lane] + 3, 1).items()}, lane=lane)
            done[lane] += 3

        def sample(sample: Any = buffer.sample, read: Any = buffer.__getitem__) -> None:
            ids_of(sample(64))
            ids_of(read(slice(-20, None)))

        def until_it_is_closed(call: Callable[[], object], wrong: Any = wrong) -> None:
            end = time.monotonic() + 20
            try:
                while time.monotonic() < end:
                    call()
                wrong.append(AssertionError("it is open"))
            except RuntimeError as error:
                if "closed" not in str(error):
                    wrong.append(error)
            except BaseException as error:  # noqa: BLE001 - looked at below
                wrong.append(error)

        calls = [*(partial(add, lane) for lane in range(3)), sample, partial(buffer.save, tmp_path / f"kept {turn}")]
        threads = [threading.Thread(target=until_it_is_closed, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()
        time.sleep(0.002 * (turn + 1))
        buffer.close()
        for thread in threads:
            thread.join()
        assert wrong == []
        again = made(tmp_path / f"ring {turn}", kind)
        found = contents(again)
        for lane in range(3):
            mine = found[found % 3 == lane]
            assert (np.diff(mine) == 3).all()
            assert mine[-1] - done[lane] in {0, 3} if len(mine) else len(found) == CAPACITY  # all of others since
        if (tmp_path / f"kept {turn}" / "manifest.json").exists():
            kept = contents(fr.ReplayBuffer.load(tmp_path / f"kept {turn}"))
            assert len(kept) >= 60 or not HAS_GIL  # without, writers may overwrite more while it is kept


def test_an_interrupt_at_any_line_of_close(tmp_path: Path) -> None:
    done, line = False, 1
    while not done:
        buffer = made(tmp_path / f"ring {line}", "all")
        insert(buffer, 0, 20)
        try:
            with interrupting(line):
                buffer.close()
            done = True
        except KeyboardInterrupt:
            buffer.close()
        assert held_in(tmp_path) == [], line
        assert len(made(tmp_path / f"ring {line}", "all")) == 20
        line += 1 if IS_LONG_FORM else 7
    assert line > 30


# ---- what is refused


@pytest.mark.parametrize(
    ("capacity", "kind", "options", "message"),
    [
        (201, "plain", {}, r"ring: capacity: expected 200, as the file has it, got 201"),
        (200, "lanes", {}, r"lanes: expected None, as the file has it, got 3"),
        (200, "weighed", {}, r"priorities: expected None, as the file has it, got \{"),
        (200, "shared", {}, r"fields: expected \["),
    ],
)
def test_a_file_of_another_buffer(
    tmp_path: Path, capacity: int, kind: str, options: dict[str, Any], message: str
) -> None:
    there = [made(tmp_path / "ring")]
    insert(there[0], 0, 20)
    closed(there)
    before = (tmp_path / "ring").read_bytes()
    with pytest.raises(ValueError, match=message):
        made(tmp_path / "ring", kind, capacity, **options)
    with pytest.raises(ValueError, match="fields: expected"):
        fr.ReplayBuffer(200, {"observation": (5,)}, path=tmp_path / "ring")
    assert (tmp_path / "ring").read_bytes() == before
    assert len(made(tmp_path / "ring")) == 20


def test_what_is_no_file_of_a_ring(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("my notes")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("text", "empty"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(ValueError, match=r"(text|empty): expected a file of a ring"):
            made(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises((ValueError, OSError)):
        made(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError):
        made(tmp_path)
    with pytest.raises(FileNotFoundError):
        made(tmp_path / "none" / "ring")
    with pytest.raises(TypeError, match="path: expected a path, got 3"):
        made(3)  # type: ignore[arg-type]
    with pytest.raises(OSError, match=r"the ring would take [\d,]+ bytes, and [\d,]+ are free"):
        made(tmp_path / "large", capacity=10**12)
    assert not (tmp_path / "large").exists()


def test_a_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = ring_file._network(str(tmp_path))
    assert kind is None
    monkeypatch.setattr(ring_file, "_NETWORKS", {"ext4", "tmpfs", "overlay", "xfs", "btrfs"})
    with pytest.raises(OSError, match=r"lies on .*, whose files other machines may change"):
        made(tmp_path / "ring")


def test_a_link_to_a_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is where the file lies, and of several mounts at one place the last."""
    far, near = tmp_path / "far away", tmp_path / "near"
    near.mkdir()
    far.mkdir()
    (near / "ring").symlink_to(far / "ring")
    mounts = tmp_path / "mountinfo"
    point = str(far).replace(" ", "\\040")
    mounts.write_text(
        "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        f"22 21 0:5 / {point} rw shared:1 - autofs auto rw\n"
        f"23 22 0:6 / {point} rw - nfs4 host:/home rw\n"
    )
    monkeypatch.setattr(ring_file, "_MOUNTS", str(mounts))
    for path in (near / "ring", far / "ring"):
        with pytest.raises(OSError, match=r"path: .*/far away/ring lies on nfs4, whose files"):
            made(path)
    assert [*far.iterdir()] == []
    made(near / "other")
    made(tmp_path / "far away too")


def test_no_room_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            made(tmp_path / "ring", capacity=20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    gc.collect()
    assert [*tmp_path.iterdir()] == []
    assert held_in(tmp_path) == []


@pytest.mark.parametrize("kind", ["all", "plain", "shared"])
@pytest.mark.parametrize("boot", [None, "another"])
def test_damage_is_refused_or_harmless(
    tmp_path: Path, kind: str, boot: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is in a file, nothing is touched beyond it, and where power was lost, no row is another.

    What is saved of it is loaded, or refused where it is saved.
    """
    path = tmp_path / "ring"
    there = [made(path, kind)]
    insert(there[0], 0, 350)
    closed(there)
    sound = path.read_bytes()
    rng = np.random.default_rng(3)
    refused = unsaved = 0
    monkeypatch.setattr(os, "fsync", no_wait)
    if boot is not None:
        monkeypatch.setattr(ring_file, "_boot", lambda: boot)
    for _ in range(2000 if IS_LONG_FORM else int(os.environ.get("FASTREPLAY_HOSTILE", "60"))):
        data = bytearray(sound)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(len(data))) if rng.random() < 0.5 else int(rng.integers(3 * 4096, 3 * 4096 + 700))
            data[at : at + 4] = rng.bytes(4) if rng.random() < 0.7 else b"\xff\xff\xff\xff"
        if rng.random() < 0.2:
            data = data[: rng.integers(len(data))] if rng.random() < 0.5 else data + bytes(int(rng.integers(1, 9000)))
        path.write_bytes(data)
        try:
            there = [made(path, kind)]
        except (ValueError, OSError) as error:
            assert str(path) in str(error) or "ring" in str(error)  # noqa: PT017
            refused += 1
            continue
        buffer = there[0]
        if len(buffer):
            follow: dict[str, Any] = {"follow": fr.NStep(3, 0.9)} if kind != "plain" else {}
            buffer.sample(32, **follow)
            if boot is not None:
                contents(buffer)
        insert(buffer, 1000, 6)
        try:
            buffer.save(tmp_path / "kept")
        except ValueError as error:
            assert re.fullmatch(r"ticket \d+: expected places of its frames: .*", str(error))  # noqa: PT017
            unsaved += 1
        else:
            assert len(fr.ReplayBuffer.load(tmp_path / "kept")) == len(buffer)
        del buffer
        closed(there)
    assert refused > 5
    assert (unsaved > 0) == (kind == "shared" and boot is None)


# ---- more than memory


def test_rows_are_asked_for_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a ring larger than memory, all rows of a minibatch are asked for before the first is copied."""
    capacity = 30_000
    there = [made(tmp_path / "ring", capacity=capacity)]
    for first in range(0, capacity, 3000):
        there[0].extend(**rows(there[0].schema, first, 3000))
    closed(there)
    monkeypatch.setattr(on_disk, "memory_limit", lambda: 1 << 20)

    def begun_cold() -> Buffer:
        with (tmp_path / "ring").open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return made(tmp_path / "ring", capacity=capacity)

    buffer = begun_cold()
    waits = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_majflt
        ids_of(buffer.sample(256))
        waits.append(resource.getrusage(resource.RUSAGE_THREAD).ru_majflt - before)
    if waits[0] < 20:
        pytest.skip("the files of tests are in memory")
    assert max(waits[1:]) < waits[0] / 4, waits
    for _ in range(200):  # until all is there, and nobody asks any more
        buffer.sample(256)
    assert sum(waits) < 4 * 256
    began = time.perf_counter()
    insert(buffer, 0, 20)
    assert time.perf_counter() - began < 60
