# SPDX-License-Identifier: MIT
"""Checkpoints: what is saved comes back, is not written twice, and is checked before anybody sees it."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from fuzz_checkpoints import Fuzzing, Texts, bodies_of, corpus, read, seeds, unpacked
from gymnasium import spaces
from shares import turn
from support import IS_LONG_FORM
from test_saving import PEAK

import fastreplay as fr
from fastreplay import _core
from fastreplay.checkpoint import save as _saving
from fastreplay.checkpoint.stored import Stored

if TYPE_CHECKING:
    from pathlib import Path

FIELDS: dict[str, Any] = {
    "observation": ((3,), "float32"),
    "action": ((), "int64"),
    "reward": ((), "float64"),
    "terminated": ((), "bool"),
    "half": ((2,), "float16"),
    "deep/complex": ((), "complex128"),
    "deep/long": ((), "longdouble"),
}
STACKS = {name: fr.Field((4, 3), "uint8", stack=3) for name in ("observation", "next_observation")}
LANES = 3
saving: Any = _saving
KINDS = ("plain", "lanes", "priorities", "frames")


def make(kind: str, capacity: int = 200, **options: Any) -> Any:
    """Make an empty buffer of a kind."""
    if kind == "frames":
        fields = STACKS | {"reward": ((), "float32"), "terminated": ((), "bool")}
        return fr.ReplayBuffer(capacity, fields, output="numpy", seed=1, lanes=LANES, share_next=True, **options)
    if kind != "plain":
        options |= {"lanes": LANES}
    if kind == "priorities":
        options |= {"priorities": fr.Priorities()}
    return fr.ReplayBuffer(capacity, FIELDS, output="numpy", seed=1, **options)


class Streams:
    """Inserts steps that follow from their number."""

    def __init__(self, buffer: Any, begin: int = 0) -> None:
        self.buffer = buffer
        self.step = begin
        self.stacks: Any = None

    def insert(self, num_steps: int) -> None:
        for _ in range(num_steps):
            rng = np.random.default_rng(self.step)
            ended = rng.random(LANES) < 0.1
            if "next_observation" in self.buffer.schema:
                self._insert_stacks(rng, ended)
            else:
                rows = np.arange(LANES) + LANES * self.step
                self.buffer.extend(
                    observation=rng.normal(size=(LANES, 3)),
                    action=rows,
                    reward=rows / 7,
                    terminated=ended,
                    half=rng.normal(size=(LANES, 2)),
                    deep={"complex": rows * 1j, "long": rows.astype("longdouble") / 3},
                )
            self.step += 1

    def _insert_stacks(self, rng: np.random.Generator, ended: Any) -> None:
        frames = rng.integers(0, 255, (LANES, 4, 4, 3), dtype=np.uint8)
        if self.stacks is None:
            self.stacks = frames[:, :3].copy()
        later = np.concatenate([self.stacks[:, 1:], frames[:, 3:]], axis=1)
        self.buffer.extend(
            observation=self.stacks, next_observation=later, reward=np.full(LANES, self.step), terminated=ended
        )
        self.stacks = np.where(ended[:, None, None, None], frames[:, :3], later)


def filled(kind: str, num_steps: int = 150, **options: Any) -> tuple[Any, Streams]:
    buffer = make(kind, **options)
    streams = Streams(buffer)
    streams.insert(num_steps)
    if kind == "priorities":
        batch = buffer.sample(64)
        buffer.update_priorities(batch, np.random.default_rng(0).random(64))
    return buffer, streams


def assert_same_contents(one: Any, other: Any) -> None:
    assert len(one) == len(other)
    for name in one.schema:
        np.testing.assert_array_equal(one[:][name], other[:][name], err_msg=name)
    np.testing.assert_array_equal(one[:].ticket, other[:].ticket)


def contents_of(buffer: Any) -> dict[str, Any]:
    return {name: buffer[:][name] for name in buffer.schema}


def assert_kept(path: Path, expected: dict[str, Any]) -> None:
    loaded = contents_of(fr.ReplayBuffer.load(path))
    for name, values in expected.items():
        np.testing.assert_array_equal(loaded[name], values)


def assert_same_draws(one: Any, other: Any, follow: Any = None) -> None:
    for size in (1, 17, 64):
        mine, theirs = one.sample(size, follow=follow), other.sample(size, follow=follow)
        assert list(mine.keys()) == list(theirs.keys())
        for name in mine.keys():  # noqa: SIM118 - no mapping
            np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)
        np.testing.assert_array_equal(mine.ticket, theirs.ticket)
        for name in ("weight", "probability"):
            np.testing.assert_array_equal(getattr(mine, name, None), getattr(theirs, name, None))


def files(path: Path, kind: str = "") -> list[str]:
    return sorted(each.name for each in path.iterdir() if each.name.startswith(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_steps", [0, 1, 40, 150])
def test_the_next_minibatches_are_those_that_would_have_come(kind: str, num_steps: int, tmp_path: Path) -> None:
    buffer, streams = filled(kind, num_steps) if num_steps else (make(kind), Streams(None))
    saved = buffer.save(tmp_path / "a" / "b")
    assert saved == (max(0, LANES * num_steps - 200), LANES * num_steps, 0)
    loaded: Any = fr.ReplayBuffer.load(tmp_path / "a" / "b")
    assert repr(loaded) == repr(buffer)
    assert loaded.rng_state == buffer.rng_state
    assert loaded.stats() == buffer.stats()
    if num_steps:
        assert_same_contents(buffer, loaded)
        assert_same_draws(buffer, loaded)
        follow = fr.NStep(3, 0.9) if kind != "plain" else None
        assert_same_draws(buffer, loaded, follow)
        assert_same_draws(buffer, loaded, follow and fr.Sequence(5, burn_in=2))
        twin = Streams(loaded, num_steps)
        twin.stacks = streams.stacks
        for each in (streams, twin):
            each.insert(7)
        assert_same_contents(buffer, loaded)
        assert_same_draws(buffer, loaded, follow)
    assert fr.verify(tmp_path / "a" / "b").end == saved.end


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_saved_is_not_written_again(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "_SEGMENT_BYTES", 3000)
    buffer, streams = filled(kind, 60)
    buffer.save(tmp_path)
    before = set(files(tmp_path, "records"))
    for num_steps in (0, 1, 5, 30, 0, 200, 3):
        streams.insert(num_steps)
        saved = buffer.save(tmp_path)
        now = set(files(tmp_path, "records"))
        written = sum(int(name.split("-")[2]) - int(name.split("-")[1]) for name in now - before)
        rows = 3000 // sum(column.row_bytes for column in buffer._kept_source().stored.columns)
        # What is new, and segments at the end that are small enough to be written with it.
        assert written <= min(LANES * num_steps, saved.end - saved.first + buffer._ring.num_spare) + rows
        assert num_steps or not now - before
        oldest = min(int(name.split("-")[1]) for name in now)
        assert saved.first - buffer._ring.num_spare - rows < oldest or len(now) == 1  # what was overwritten is gone
        assert_same_contents(fr.ReplayBuffer.load(tmp_path), buffer)
        before = now
    buffer.save(tmp_path, full=True)
    assert not before & set(files(tmp_path, "records"))


def test_small_segments_become_one(tmp_path: Path) -> None:
    buffer, streams = filled("plain", 1, capacity=1000)
    for _ in range(50):
        streams.insert(1)
        buffer.save(tmp_path)
    assert len(files(tmp_path, "records")) == 1
    assert_same_contents(buffer, fr.ReplayBuffer.load(tmp_path))


def test_what_was_changed_in_place_is_saved_in_full(tmp_path: Path) -> None:
    buffer, _ = filled("plain", 20)
    buffer.save(tmp_path)
    buffer.view("reward")[:] = -1
    buffer.save(tmp_path)
    assert (fr.ReplayBuffer.load(tmp_path)[:].reward != -1).all()
    buffer.save(tmp_path, full=True)
    assert (fr.ReplayBuffer.load(tmp_path)[:].reward == -1).all()


def test_two_go_on_from_one_checkpoint(tmp_path: Path) -> None:
    """Neither takes what the other has written for its own."""
    buffer, _ = filled("plain", 20)
    buffer.save(tmp_path)
    first: Any = fr.ReplayBuffer.load(tmp_path)
    second: Any = fr.ReplayBuffer.load(tmp_path)
    for each, begin in ((first, 100), (second, 200), (first, 300)):
        Streams(each, begin).insert(10)
        each.save(tmp_path)
        assert_same_contents(each, fr.ReplayBuffer.load(tmp_path))
    other, _ = filled("plain", 25)
    other.save(tmp_path)
    assert_same_contents(other, fr.ReplayBuffer.load(tmp_path))


def test_a_child_goes_on_by_itself(tmp_path: Path) -> None:
    buffer, streams = filled("lanes", 20)
    buffer.save(tmp_path)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            Streams(buffer, 100).insert(10)
            buffer.save(tmp_path)
            np.testing.assert_array_equal(fr.ReplayBuffer.load(tmp_path)[:].action, buffer[:].action)
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    streams.insert(10)
    buffer.save(tmp_path)
    assert_same_contents(buffer, fr.ReplayBuffer.load(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("capacity", [1, 50, 199, 5000])
def test_another_capacity(kind: str, capacity: int, tmp_path: Path) -> None:
    buffer, streams = filled(kind, 150)
    buffer.save(tmp_path)
    loaded: Any = fr.ReplayBuffer.load(tmp_path, capacity=capacity)
    count = min(capacity, 200)
    assert len(loaded) == count
    for name in buffer.schema:
        np.testing.assert_array_equal(loaded[:][name], buffer[-count:][name])
    assert loaded.stats()["inserted"] == 450
    assert loaded.stats()["overwritten"] == 450 - count
    twin = Streams(loaded, streams.step)
    twin.stacks = streams.stacks
    twin.insert(30)
    streams.insert(30)
    both = min(len(loaded), 90)
    for name in buffer.schema:
        np.testing.assert_array_equal(loaded[-both:][name], buffer[-both:][name])
    loaded.save(tmp_path)
    assert_same_contents(loaded, fr.ReplayBuffer.load(tmp_path))


def test_other_options(tmp_path: Path) -> None:
    fields = {name: FIELDS[name] for name in ("observation", "action")}
    buffer = fr.ReplayBuffer(10, fields, seed=3, timeout=2.5)
    buffer.extend(observation=np.ones((4, 3)), action=range(4))
    buffer.save(tmp_path)
    as_arrays: Any = fr.ReplayBuffer.load(str(tmp_path), output="numpy")
    assert isinstance(as_arrays.sample(2).action, np.ndarray)
    np.testing.assert_array_equal(
        as_arrays.sample(8).action, [*map(int, (buffer.sample(2), buffer.sample(8))[1].action)]
    )

    class Subclass(fr.ReplayBuffer):  # type: ignore[type-arg]
        pass

    assert type(Subclass.load(str(tmp_path))) is Subclass
    with pytest.raises(ValueError, match="storage: expected 'host'"):
        fr.ReplayBuffer.load(tmp_path, storage="cuda")
    with pytest.raises(ValueError, match="priorities: expected None"):
        fr.ReplayBuffer.load(tmp_path, priorities=fr.Priorities())
    with pytest.raises(TypeError, match="path: expected a path, got 3"):
        fr.ReplayBuffer.load(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="full"):
        buffer.save(tmp_path, full=1)  # type: ignore[arg-type]


def test_a_function_is_not_saved(tmp_path: Path) -> None:
    rule = fr.Priorities(beta=lambda calls: min(1.0, 0.4 + calls / 100))
    buffer = fr.ReplayBuffer(50, FIELDS, output="numpy", lanes=LANES, priorities=rule)
    Streams(buffer).insert(10)
    buffer.sample(4)
    buffer.save(tmp_path)
    with pytest.raises(ValueError, match="its beta was a function"):
        fr.ReplayBuffer.load(tmp_path)
    with pytest.raises(ValueError, match="expected the rule that the buffer was saved with"):
        fr.ReplayBuffer.load(tmp_path, priorities=fr.Priorities(alpha=0.1, beta=rule.beta))
    assert_same_draws(buffer, fr.ReplayBuffer.load(tmp_path, priorities=rule))
    assert fr.describe(tmp_path).priorities is not None


def test_a_loader_begins_with_what_was_not_handed_out(tmp_path: Path) -> None:
    buffer, _ = filled("plain", 50)
    with buffer.loader(8, depth=4) as loader:
        for _ in range(5):
            next(loader)
        deadline = time.monotonic() + 10
        while loader.num_ahead < 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        buffer.save(tmp_path)
        expected = [next(loader).ticket for _ in range(3)]
    loaded: Any = fr.ReplayBuffer.load(tmp_path)
    with loaded.loader(8) as again:
        for tickets in expected:
            np.testing.assert_array_equal(next(again).ticket, tickets)


def test_counters_come_back(tmp_path: Path) -> None:
    """Also through a pickle; from a checkpoint of an earlier fastreplay, which has none, they begin anew."""
    buffer, _ = filled("priorities", 20)
    zeros = buffer.sampler(draw=fr.Prioritized(), seed=0)
    buffer.update_priorities(buffer[:].ticket, np.full(len(buffer), -1e-6))
    buffer.sample(5)
    buffer._sampler.count_on_from({"sampled": 99, "redraws": 3, "without_mass": 2})
    buffer.sample(7)
    expected = {"sampled": 106, "redraws": 3, "without_mass": 2}
    buffer.save(tmp_path)
    copies: list[Any] = [fr.ReplayBuffer.load(tmp_path), pickle.loads(pickle.dumps(buffer)), copy.deepcopy(buffer)]
    for again in copies:
        assert {name: again.stats()[name] for name in expected} == expected
        assert again.spawn(1)[0].stats()["sampled"] == 0
    assert zeros.stats()["sampled"] == 0
    rewritten(tmp_path, lambda said: said["buffer"].pop("counters") and None)
    assert fr.ReplayBuffer.load(tmp_path).stats()["sampled"] == 0
    for odd in ({"sampled": 1}, {"sampled": -1, "redraws": 0, "without_mass": 0}, 5, [1]):
        rewritten(tmp_path, lambda said, odd=odd: said["buffer"].update(counters=odd))
        assert "counters: expected counts" in refused(tmp_path)


def test_a_key_is_of_two_numbers(tmp_path: Path) -> None:
    """What changed checkpoints have found: others were a TypeError of the core's."""
    buffer, _ = filled("plain", 5)
    buffer.save(tmp_path)
    for key in ([], [1], [1, 2, 3]):
        rewritten(tmp_path, lambda said, key=key: said["buffer"]["rng_state"].update(key=key))
        assert "rng_state: expected a key of two numbers" in refused(tmp_path)


def test_what_is_attached_comes_back(tmp_path: Path) -> None:
    buffer, streams = filled("lanes", 20)
    given: dict[str, Any] = {
        "learner": b"weights" * 9,
        "": b"",
        "más": bytearray(3 << 20),
        "array": np.arange(12.0).reshape(3, 4),
        "no rows": np.empty((0, 3)),
    }
    buffer.save(tmp_path, attached=given)
    loaded: Any = fr.ReplayBuffer.load(tmp_path)
    assert loaded.attached == {name: memoryview(value).tobytes() for name, value in given.items()}
    assert fr.verify(tmp_path).attached == {name: memoryview(value).nbytes for name, value in given.items()}
    assert "attached learner: 63" in str(fr.describe(tmp_path))
    assert pickle.loads(pickle.dumps(loaded)).attached == {}
    streams.insert(3)
    assert buffer.save_async(tmp_path, attached={"learner": b"later"}).wait().end == 69
    assert fr.ReplayBuffer.load(tmp_path).attached == {"learner": b"later"}
    assert len(files(tmp_path, "attached")) == 1
    [name] = files(tmp_path, "attached")
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:-1] + b"R")
    assert f"{name}: at byte 0: the checksum" in refused(tmp_path)
    with pytest.raises(ValueError, match="checksum"):
        fr.verify(tmp_path)
    buffer.save(tmp_path)
    assert (fr.ReplayBuffer.load(tmp_path).attached, files(tmp_path, "attached")) == ({}, [])
    for odd in (5, [b"x"], {1: b"x"}, {"x": "text"}, {"x": 5}, {"x": np.zeros((4, 4))[::2, ::2]}):
        with pytest.raises(TypeError, match="attached"):
            buffer.save(tmp_path, attached=odd)


def test_spaces_nest_as_they_did(tmp_path: Path) -> None:
    space = spaces.Dict({"a": spaces.Tuple([spaces.Discrete(3), spaces.Box(0, 1, (2,))]), "b/c": spaces.Box(0, 1, ())})
    schema = fr.Schema.from_spaces(space, spaces.Discrete(2))
    buffer = fr.ReplayBuffer(10, schema, output="numpy")
    buffer.save(tmp_path)
    assert fr.ReplayBuffer.load(tmp_path).schema == schema


def test_anybody_can_read_the_segments(tmp_path: Path) -> None:
    """By the letter of the format: a length, a header in JSON, and what it says."""
    buffer, _ = filled("plain", 30)
    buffer.save(tmp_path)
    [name] = files(tmp_path, "records")
    data = (tmp_path / name).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert header.pop("__metadata__") == {
        "first_ticket": "0",
        "dtype of deep/complex": "<c16",
        "dtype of deep/long": "<f16",
    }
    dtypes = {"F32": "<f4", "I64": "<i8", "F64": "<f8", "BOOL": "?", "F16": "<f2", "U8": "u1"}
    ends = [8 + length]
    for key, said in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = (8 + length + offset for offset in said["data_offsets"])
        assert begin == ends[-1]
        ends.append(end)
        array = np.frombuffer(data[begin:end], dtypes[said["dtype"]]).reshape(said["shape"])
        expected = np.asarray(buffer[:][key])
        if said["dtype"] == "U8":
            array = np.ascontiguousarray(array).view(expected.dtype)[..., 0]
        np.testing.assert_array_equal(array, expected)
    assert ends[-1] == len(data)
    safetensors = pytest.importorskip("safetensors.numpy")
    np.testing.assert_array_equal(safetensors.load_file(tmp_path / name)["reward"], buffer[:].reward)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_while_others_insert_and_sample(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that came back are whole, one after another, and follow each other as they did."""
    monkeypatch.setattr(saving, "_SEGMENT_BYTES", 20_000)
    buffer, streams = filled(kind, 400, capacity=900)
    stop = threading.Event()
    failures: list[BaseException] = []

    def work(call: Any) -> None:
        try:
            while not stop.is_set():
                call()
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)

    threads = [
        threading.Thread(target=work, args=(call,)) for call in (lambda: streams.insert(1), lambda: buffer.sample(32))
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in range(int(os.environ.get("FASTREPLAY_SAVES", "3"))):
            try:
                saved = buffer.save(tmp_path)
            except RuntimeError:  # the writer's share of a slow machine was a whole lap
                saved = buffer.save(tmp_path, hold=True)
            loaded: Any = fr.ReplayBuffer.load(tmp_path)
            assert len(loaded) == saved.end - saved.first > 0
            begin = max(0, saved.first // LANES - 60)  # stacks depend on the steps of their trajectory before
            reference = make(kind, 1500)
            Streams(reference, begin).insert(-(-saved.end // LANES) - begin)
            have, expected, at = loaded[:], reference[:], saved.first - begin * LANES
            for name in loaded.schema:
                np.testing.assert_array_equal(have[name], expected[name][at : at + len(loaded)], err_msg=name)
            if kind != "plain":
                batch = loaded.sample(64, follow=fr.Sequence(4))
                steps = batch.reward if kind == "frames" else batch.action // LANES
                both = batch.mask[:, 1:] & batch.mask[:, :-1]
                assert (np.diff(steps, axis=1)[both] == 1).all()
                assert batch.mask.mean() > 0.7 or len(loaded) < 300
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures


@pytest.mark.parametrize("kind", KINDS)
def test_inserts_wait_for_a_save_that_holds(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers a whole lap ahead stand still until what they would overwrite was read."""
    monkeypatch.setattr(saving, "_SEGMENT_BYTES", 4000)
    buffer, streams = filled(kind, 150)
    reached = threading.Event()
    go_on = threading.Event()
    write = saving.Scratch.laid

    def slow(folder: Any, form: Any, entry: Any, arrays: Any) -> Any:
        if entry.file.startswith("records"):
            reached.set()
            go_on.wait(10)
        return write(folder, form, entry, arrays)

    monkeypatch.setattr(saving.Scratch, "laid", slow)
    expected = contents_of(buffer)
    handle = buffer.save_async(tmp_path, hold=True)
    assert reached.wait(10)
    with pytest.raises(RuntimeError, match="another save of this buffer holds inserts"):
        buffer.save(tmp_path / "other", hold=True)
    writer = threading.Thread(target=streams.insert, args=(200,))
    writer.start()
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:
        assert streams.step < 250  # of 350: two laps are not to be had
        time.sleep(0.01)
    go_on.set()
    assert handle.wait() == (250, 450, 0)
    writer.join()
    assert streams.step == 350
    assert_kept(tmp_path, expected)


def test_an_insert_says_what_it_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer, streams = filled("plain", 100, timeout=0.05)
    write = saving.Scratch.laid

    def slow(*arguments: Any) -> Any:
        with pytest.raises(
            TimeoutError, match=r"transition \d+, a whole lap behind, was still being saved after 0.05 s"
        ):
            streams.insert(200)
        return write(*arguments)

    monkeypatch.setattr(saving.Scratch, "laid", slow)
    monkeypatch.setattr(saving, "_SEGMENT_BYTES", 4000)
    assert buffer.save(tmp_path, hold=True).lost == 0
    monkeypatch.undo()
    streams.insert(200)  # let go
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "results").write_text("")
    with pytest.raises(ValueError, match="results"):
        buffer.save(tmp_path / "mine", hold=True)
    streams.insert(200)


def test_writers_that_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was saved before stands, and the error says what to do."""
    buffer, streams = filled("plain", 100)
    buffer.save(tmp_path)
    expected = contents_of(buffer)
    streams.insert(5)
    monkeypatch.setattr(saving._Saving, "_read_records", lambda *_: streams.insert(100))
    with pytest.raises(RuntimeError, match=r"all of 200 transitions before they were read; with hold=True"):
        buffer.save(tmp_path)
    assert_kept(tmp_path, expected)


def test_a_child_does_not_wait_for_a_save_of_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer, streams = filled("plain", 100, timeout=5)
    write = saving.Scratch.laid

    def forking(*arguments: Any) -> Any:
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                streams.insert(200)
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        return write(*arguments)

    monkeypatch.setattr(saving.Scratch, "laid", forking)
    buffer.save(tmp_path, hold=True)
    assert_same_contents(buffer, fr.ReplayBuffer.load(tmp_path))


def test_in_a_thread_of_its_own(tmp_path: Path) -> None:
    buffer, _ = filled("plain", 50)
    handle = buffer.save_async(tmp_path)
    assert handle.wait() == (0, 150, 0)
    assert handle.done
    assert handle.wait(0) == (0, 150, 0)
    (tmp_path / "x").write_text("")
    failed = buffer.save_async(tmp_path / "x")
    with pytest.raises(OSError, match="x"):
        failed.wait()
    with pytest.raises(TypeError, match="path"):
        buffer.save_async(None)


def test_ctrl_c_ends_the_wait_for_a_save_and_not_the_save() -> None:
    def handler(*_arguments: object) -> None:
        raise KeyboardInterrupt

    go_on = threading.Event()
    saved = fr.SavedRange(0, 5, 0)
    handle = fr.SaveHandle(lambda: (go_on.wait(30), saved)[1])
    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            handle.wait()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not handle.done
    with pytest.raises(TimeoutError, match=r"goes on after 0\.01 s"):
        handle.wait(0.01)
    go_on.set()
    assert handle.wait() == saved
    assert handle.done


def test_a_save_at_the_exit_of_the_interpreter(tmp_path: Path) -> None:
    program = """
import atexit, sys, fastreplay as fr
buffer = fr.ReplayBuffer(10, {"x": ()}, output="numpy")
buffer.extend(x=range(7))
atexit.register(buffer.save, sys.argv[1])
buffer.save_async(sys.argv[2])
"""
    paths = [str(tmp_path / name) for name in "ab"]
    subprocess.run([sys.executable, "-c", program, *paths], check=True)
    for path in paths:
        assert len(fr.ReplayBuffer.load(path)) == 7


def test_somebody_elses_folder_stays_as_it_is(tmp_path: Path) -> None:
    buffer, _ = filled("plain", 5)
    (tmp_path / "results.csv").write_text("mine")
    with pytest.raises(ValueError, match=r"a new or empty folder, or a checkpoint, and there is 'results.csv'"):
        buffer.save(tmp_path)
    assert (tmp_path / "results.csv").read_text() == "mine"
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        fr.ReplayBuffer.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing"):
        fr.verify(tmp_path / "nothing")


def rewritten(path: Path, change: Any) -> None:
    """Change what a manifest says, with a checksum that fits."""
    file = path / "manifest.json"
    said = json.loads(file.read_bytes())["checkpoint"]
    said = change(said) or said
    body = json.dumps(said).encode()
    file.write_bytes(b'{"crc32": "%08x", "checkpoint": ' % zlib.crc32(body) + body + b"}\n")


def refused(path: Path) -> str:
    """Return what is said of a damaged checkpoint, by whoever reads it."""
    with pytest.raises(ValueError, match=r".") as error:
        fr.ReplayBuffer.load(path)
    return str(error.value)


@pytest.mark.share(2)
@pytest.mark.parametrize("kind", KINDS)
def test_every_damaged_byte_is_found(kind: str, tmp_path: Path) -> None:
    buffer, _ = filled(kind, 20)
    buffer.save(tmp_path)
    rng = np.random.default_rng(0)
    for name in files(tmp_path):
        file = tmp_path / name
        data = file.read_bytes()
        for at in {0, 7, 8, len(data) - 1, *map(int, rng.integers(0, max(1, len(data)), 40))} if data else ():
            for damaged in (
                data[:at] + bytes([data[at] ^ (1 << rng.integers(8))]) + data[at + 1 :],
                data[:at],
                data + b"x",
            ):
                file.write_bytes(damaged)
                assert name in refused(tmp_path)
                with pytest.raises(ValueError, match=name):
                    fr.verify(tmp_path)
        file.write_bytes(data)
    fr.verify(tmp_path)


def mutated(value: Any, rng: np.random.Generator) -> Any:
    """Change something in what JSON holds."""
    odd: list[Any] = [None, True, -1, 0, 1, 2**31, 2**63, 2**70, 1e308, "", "x", [], {}, [[]], "../x", "records"]
    if isinstance(value, (dict, list)) and value and rng.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[rng.integers(len(keys))]
        copy: Any = value.copy()
        if rng.random() < 0.1:
            del copy[key]
        else:
            copy[key] = mutated(value[key], rng)
        return copy
    if isinstance(value, int) and rng.random() < 0.5:
        return value + int(rng.integers(-3, 4))
    return odd[rng.integers(len(odd))]


@pytest.mark.share(2)
@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_manifest_is_refused_or_right(kind: str, tmp_path: Path) -> None:
    """With checksums that fit: a ValueError, or a buffer that can be used."""
    buffer, _ = filled(kind, 20)
    buffer.save(tmp_path)
    good = (tmp_path / "manifest.json").read_bytes()
    rng = np.random.default_rng(7)
    num_refused = 0
    for _ in range(int(os.environ.get("FASTREPLAY_HOSTILE", "150"))):
        (tmp_path / "manifest.json").write_bytes(good)
        rewritten(tmp_path, lambda said: mutated(said, rng))
        try:
            loaded: Any = fr.ReplayBuffer.load(tmp_path)
        except (ValueError, MemoryError):
            num_refused += 1
        else:
            if len(loaded):
                loaded.sample(8)
            loaded.save(tmp_path / "again")
            shutil.rmtree(tmp_path / "again")
    assert num_refused > 50


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="its files lie in memory")
def test_changed_checkpoints_are_refused_or_right() -> None:
    """As many as some seconds allow, or as is asked for; more of them in `make fuzz`."""
    kept = [unpacked(each) for each in corpus("cases")]
    for files in kept:  # in more ways than chance finds in a second
        read(files)
    fuzzing = Fuzzing(int(os.environ.get("FASTREPLAY_SEED", "5")), [*seeds(), *kept])
    wanted = os.environ.get("FASTREPLAY_CASES")
    fuzzing.read_for(1.5 if wanted is None else math.inf, sys.maxsize if wanted is None else int(wanted))
    assert fuzzing.num_read > 150
    assert len(fuzzing.ways) > 20
    assert fuzzing.ways["loaded"] > 10


def test_changed_manifests_are_refused_or_right() -> None:
    """100,000 of them, with turns a quarter with each commit."""
    at = turn()
    texts = Texts(5 if at is None else at, [*bodies_of(seeds()), *corpus("manifests")])
    texts.read(100_000 if at is None else 25_000)
    assert len(texts.ways) > 200
    assert texts.ways["whole"] > 200


def test_what_a_manifest_says_is_bounded_by_what_is_there(tmp_path: Path) -> None:
    buffer, _ = filled("lanes", 20)
    buffer.save(tmp_path)
    good = (tmp_path / "manifest.json").read_bytes()

    def claim(said: Any) -> None:
        said["records"][0]["end"] = said["state"][0]["end"] = said["end"] = 2**40
        said["buffer"]["capacity"] = 2**41

    rewritten(tmp_path, claim)
    with pytest.raises((ValueError, MemoryError)):
        fr.ReplayBuffer.load(tmp_path)
    with pytest.raises(ValueError, match=r"expected .* bytes, got"):
        fr.verify(tmp_path)
    (tmp_path / "manifest.json").write_bytes(good)
    rewritten(tmp_path, lambda said: said["buffer"].update(timeout=10**400))
    assert "timeout: expected a number from 0 on, got 1000" in refused(tmp_path)
    (tmp_path / "manifest.json").write_bytes(good)
    nodes = [[number, {"name": name, "position": number}] for number, name in enumerate(buffer.schema)]
    rewritten(tmp_path, lambda said: said["buffer"].update(nodes=nodes, share_next=True))
    assert "nodes: expected names of parts, got 0" in refused(tmp_path)
    (tmp_path / "manifest.json").write_bytes(good)
    rewritten(tmp_path, lambda said: said.update(version=2))
    assert "expected version 1, which this fastreplay can read, got 2" in refused(tmp_path)
    with pytest.raises(ValueError, match="version"):  # of a later fastreplay: not to be overwritten
        buffer.save(tmp_path)


def test_checksums_are_those_of_everybody() -> None:
    """Of chunks that parts of any length lie in; so each file of an earlier fastreplay is verified."""
    rng = np.random.default_rng(3)
    for sizes in ([], [0], [1], [300, 0, 7, 5000], [64] * 9, [4096, 1, 4095]):
        parts: list[Any] = [rng.integers(0, 256, size, np.uint8) for size in sizes]
        data = b"".join(parts)
        for chunk in (1, 64, 1000, 1 << 20):
            expected = [zlib.crc32(data[start : start + chunk]) for start in range(0, len(data), chunk)]
            assert _core.crc32_of_chunks(parts, chunk) == expected
    with pytest.raises(ValueError, match="chunks of at least a byte"):
        _core.crc32_of_chunks([], 0)
    wrongs: list[Any] = [np.zeros(3, np.int8), np.zeros((8, 8), np.uint8)[:, ::2], b"bytes"]
    for wrong in wrongs:
        with pytest.raises(TypeError):
            _core.crc32_of_chunks([wrong], 64)


def test_lanes_take_no_memory_of_their_own_when_they_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many transitions there are: a segment at a time."""
    monkeypatch.setattr(saving, "_SEGMENT_BYTES", 1 << 16)
    buffer: Any = fr.ReplayBuffer(400_000, {"n": ((), "uint8")}, lanes=3, ends=(), output="numpy")
    buffer.extend(np.zeros(400_000, np.uint8), lanes=np.arange(400_000) % 3)
    buffer.save(tmp_path)
    fr.ReplayBuffer.load(tmp_path)  # what is imported for it
    tracemalloc.start()
    loaded: Any = fr.ReplayBuffer.load(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000  # 5 bytes a transition are 2 MB
    assert loaded.trajectory_stats() == buffer.trajectory_stats()


def test_what_somebody_wrote_into_the_memory_is_found_when_it_is_saved(tmp_path: Path) -> None:
    """Places that are no frame's are refused, and the checkpoint before stands; any byte that is not 0 is True."""
    buffer, _ = filled("frames", 150)
    buffer.save(tmp_path)
    before = fr.verify(tmp_path)
    stored = Stored(buffer._ring, buffer.schema)
    first = buffer._ring.window()[0]
    for group, _ in stored.form.codes([None] * len(stored.columns)):  # type: ignore[list-item]
        for number, num_frames in group.places:
            places: Any = buffer._ring.records.column(number, np.dtype(np.uint64), [num_frames])
            where = (first + 5) % buffer._ring.capacity, num_frames - 1
            there = int(places[where])
            for place in (there + 1, there - 8, 2**64 - 1, 2**63, int(places.max()) + 2**20):
                places[where] = np.uint64(place % 2**64)
                message = rf"^ticket {first + 5}: expected places of its frames: the ring's memory is damaged"
                with pytest.raises(ValueError, match=message):
                    buffer.save(tmp_path, full=True)
                with pytest.raises(ValueError, match=message):
                    pickle.dumps(buffer)
                with pytest.raises(ValueError, match=message):
                    buffer.resized(200)
            places[where] = np.uint64(there)
    assert fr.verify(tmp_path) == before
    buffer.view("terminated").view(np.uint8)[(first + 5) % buffer._ring.capacity] = 2
    buffer.save(tmp_path, full=True)
    loaded: Any = fr.ReplayBuffer.load(tmp_path)
    assert loaded[:].terminated.tolist() == (buffer[:].terminated.view(np.uint8) > 0).tolist()


def test_a_pipe_in_the_place_of_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of one that is asked for before it is read."""
    monkeypatch.setattr(saving, "_SEGMENT_BYTES", 2000)
    buffer, _ = filled("plain", 20)
    buffer.save(tmp_path)
    assert len(files(tmp_path, "records")) == 2
    for name in ("manifest.json", *files(tmp_path, "records")):
        (tmp_path / name).rename(tmp_path / "aside")
        os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match=name):
            fr.ReplayBuffer.load(tmp_path)
        (tmp_path / "aside").rename(tmp_path / name)
    fr.ReplayBuffer.load(tmp_path)


def test_what_a_loader_had_ahead_is_counted_once(tmp_path: Path) -> None:
    """It is drawn again by who goes on from the checkpoint."""
    buffer, _ = filled("plain", 20)
    buffer.sample(5)
    with buffer.loader(32, depth=4) as loader:
        for _ in range(3):
            next(loader)
        while loader._num_rows_ahead < 4 * 32:
            time.sleep(0.001)
        buffer.save(tmp_path)
        assert buffer.stats()["sampled"] == 5 + 7 * 32
    loaded: Any = fr.ReplayBuffer.load(tmp_path)
    assert loaded.stats()["sampled"] == 5 + 3 * 32


MEMORY = """
import fastreplay as fr
os.fsync = lambda _: None  # which takes no memory
NUM_BYTES, LIMIT = int(sys.argv[1]), 64 * MIB
folder = tempfile.mkdtemp()
capacity = NUM_BYTES // 400
fields = {"observation": (96,), "reward": (), "terminated": ((), "bool")}
buffer = fr.ReplayBuffer(capacity, fields, output="numpy", lanes=4, priorities=fr.Priorities())
rows = np.ones((4000, 96), np.float32)
for start in range(0, capacity, 4000):
    buffer.extend(rows, np.zeros(4000), np.zeros(4000, bool), lanes=np.arange(4000) % 4)
assert buffer._ring.num_bytes > 0.9 * NUM_BYTES
assert_takes(LIMIT, lambda: buffer.save(folder, full=True), "save")
assert_takes(LIMIT, lambda: dump(buffer, 5), "pickle")
assert_takes(buffer._num_bytes() + LIMIT, lambda: fr.ReplayBuffer.load(folder), "load")
assert_takes(buffer._num_bytes() + LIMIT, load, "unpickle")
import shutil
import signal
shutil.rmtree(folder)
os.remove(path)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self")
def test_what_is_kept_takes_little_memory_whatever_the_size() -> None:
    """At the peak at most 64 MB beside the buffer; in the long form of one of a gigabyte."""
    size = str(1 << 30 if IS_LONG_FORM else 160 << 20)
    done = subprocess.run([sys.executable, "-c", PEAK + MEMORY, size], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_command_line(tmp_path: Path) -> None:
    buffer, _ = filled("frames", 20)
    buffer.save(tmp_path)
    call = [sys.executable, "-m", "fastreplay"]
    done = subprocess.run([*call, "verify", tmp_path], capture_output=True, text=True, check=True)
    assert "60 of 200 transitions, tickets [0, 60)" in done.stdout
    assert "whole: every byte" in done.stdout
    assert "observation: Field((4, 3), 'uint8', stack=3)" in done.stdout
    [name] = files(tmp_path, "records")
    with (tmp_path / name).open("r+b") as file:
        file.seek(3000)
        file.write(b"damage")
    done = subprocess.run([*call, "verify", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{name}: at byte 0: the checksum of the next" in done.stderr
    subprocess.run([*call, "describe", tmp_path], capture_output=True, check=True)
