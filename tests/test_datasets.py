# SPDX-License-Identifier: MIT
"""Data in: arrays and files become transitions, beside a loop over rows that says what each must be."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastreplay as fr
from fastreplay.buffer.written import whole_trajectories
from fastreplay.datasets import steps
from fastreplay.datasets.table import Pieces
from fastreplay.support.progress import progress_of

if TYPE_CHECKING:
    from collections.abc import Callable

Array = Any
FIELDS: dict[str, Any] = {
    "observation": (3,),
    "action": ((), "int64"),
    "reward": (),
    "next_observation": (3,),
    "terminated": ((), "bool"),
    "truncated": ((), "bool"),
}


def d4rl_of(ends: str, *, with_next: bool = False) -> dict[str, Array]:
    """Make columns as D4RL has them, a row a letter: "." goes on, "t" terminates, "o" is timed out, "b" is both."""
    n = len(ends)
    letters = np.array(list(ends), "U1")
    observations = np.arange(n)[:, None] * np.ones(3, np.float32)
    columns: dict[str, Array] = {
        "observations": observations.astype(np.float32),
        "actions": np.arange(n),
        "rewards": np.arange(n) / 2,
        "terminals": np.isin(letters, ["t", "b"]),
        "timeouts": np.isin(letters, ["o", "b"]),
    }
    if with_next:
        columns["next_observations"] = columns["observations"] + 0.5
    return columns


def expected(ends: str, *, with_next: bool = False) -> tuple[list[list[tuple[int, float]]], int]:
    """Say what comes of such columns: trajectories of (row, its next observation), and how many rows are left out."""
    trajectories: list[list[tuple[int, float]]] = [[]]
    left_out = 0
    for row, letter in enumerate(ends):
        is_last = letter != "." or row == len(ends) - 1
        if with_next:
            trajectories[-1].append((row, row + 0.5))
        elif not is_last:
            trajectories[-1].append((row, row + 1))
        elif letter in "tb":
            trajectories[-1].append((row, row))
        else:
            left_out += 1
        if is_last:
            trajectories.append([])
    return trajectories, left_out


def new_buffer(capacity: int = 100, **options: Any) -> Any:
    return fr.ReplayBuffer(capacity, options.pop("fields", FIELDS), seed=0, output="numpy", **options)


def told(buffer: Any) -> list[list[tuple[int, float]]]:
    """Return the trajectories of a buffer with lanes, by what links say, lane after lane."""
    slots = [tickets % buffer._ring.capacity for tickets in whole_trajectories(buffer)]
    batches = [buffer.gather(each) for each in slots]
    return [list(zip(b.action.tolist(), b.next_observation[:, 0].tolist(), strict=True)) for b in batches]


def check_rows(buffer: Any, rows: list[tuple[int, float]]) -> None:
    everything = buffer[:]
    numbers = np.array([row for row, _ in rows], np.int64)
    assert everything.action.tolist() == numbers.tolist()
    assert (everything.observation == numbers[:, None]).all()
    assert (everything.next_observation == np.array([after for _, after in rows])[:, None]).all()
    assert (everything.reward == (numbers / 2).astype(np.float32)).all()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let few rows be read at once, so that a handful of them has many borders."""
    monkeypatch.setattr(steps, "_BLOCK_BYTES", 128)


ENDS = ["", ".", "t", "o", "..t..o...", "tttooo", "....", "b.b", "..o", "o..t.....t.o.b....", "ototot....o"]


@pytest.mark.parametrize("with_next", [False, True])
@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("options", [{}, {"lanes": 1}, {"lanes": 3}, {"lanes": 2, "share_next": True}], ids=str)
def test_every_row_becomes_what_a_loop_says(
    small_blocks: None, ends: str, with_next: bool, options: dict[str, Any]
) -> None:
    buffer = new_buffer(**options)
    trajectories, left_out = expected(ends, with_next=with_next)
    whole = [each for each in trajectories if each]
    loaded = buffer.load_arrays(d4rl_of(ends, with_next=with_next))
    assert loaded == (sum(map(len, whole)), len(whole), left_out, 0)
    if whole:
        check_rows(buffer, [row for each in whole for row in each])
    lanes = options.get("lanes", 0)
    if lanes:
        by_lane = [each for lane in range(lanes) for each in trajectories[lane::lanes] if each]
        assert told(buffer) == by_lane


@settings(max_examples=30, deadline=None)
@given(
    st.text(st.sampled_from("....to"), max_size=40),
    st.booleans(),
    st.sampled_from([0, 1, 2]),
    st.sampled_from([1, 40, 128, 400]),
)
def test_rows_do_not_depend_on_blocks(ends: str, with_next: bool, lanes: int, block_bytes: int) -> None:
    before, steps._BLOCK_BYTES = steps._BLOCK_BYTES, block_bytes
    try:
        buffer = new_buffer(lanes=lanes or None)
        loaded = buffer.load_arrays(d4rl_of(ends, with_next=with_next))
    finally:
        steps._BLOCK_BYTES = before
    trajectories, left_out = expected(ends, with_next=with_next)
    assert loaded.left_out == left_out
    if loaded.transitions:
        check_rows(buffer, [row for each in trajectories for row in each])
    if lanes:
        assert told(buffer) == [each for lane in range(lanes) for each in trajectories[lane::lanes] if each]


def test_a_buffer_without_next_observations_takes_every_row() -> None:
    fields = {name: field for name, field in FIELDS.items() if name != "next_observation"}
    buffer = new_buffer(lanes=1, fields=fields)
    assert buffer.load_arrays(d4rl_of("..o.t...")) == (8, 3, 0, 0)
    assert [len(each) for each in whole_trajectories(buffer)] == [3, 2, 3]


def test_what_was_there_before_and_comes_after_is_of_other_trajectories() -> None:
    buffer = new_buffer(lanes=2)
    row: dict[str, Any] = {"observation": [0] * 3, "action": -1, "reward": 0, "next_observation": [1] * 3}
    flags = {"terminated": False, "truncated": False}
    buffer.add(**row, **flags, lane=1)
    buffer.load_arrays(d4rl_of("...."), lane=1)
    buffer.add(**row, **flags, lane=1)
    buffer.cut()
    assert [[row for row, _ in each] for each in told(buffer)] == [[-1], [0, 1, 2], [-1]]


def test_a_buffer_that_leaves_out_resets_takes_what_comes_after_ends() -> None:
    gym = pytest.importorskip("gymnasium")
    envs = gym.make_vec("CartPole-v1", 2, vectorization_mode="sync")
    buffer: Any = fr.ReplayBuffer.from_env(envs, 100, lanes=True, seed=0, output="numpy", dtype="float32")
    columns = d4rl_of("..t.t..o", with_next=True)
    for name in ("observations", "next_observations"):
        columns[name] = np.repeat(columns[name][:, :1], 4, axis=1)
    assert buffer.load_arrays(columns) == (8, 3, 0, 0)
    assert buffer[:].action.tolist() == list(range(8))
    assert [len(each) for each in whole_trajectories(buffer)] == [3, 3, 2]
    assert buffer._lanes.core.skips_resets


def test_fields_are_found_by_names_of_their_own_by_others_and_by_the_callers() -> None:
    columns = d4rl_of("..t.o.")
    renamed = {"o": columns["observations"], "a": columns["actions"], "infos": {"reward": columns["rewards"]}}
    renamed |= {"done": columns["terminals"].astype(np.float32), "limit": columns["timeouts"].astype(np.uint8)}
    names = {"observation": "o", "action": "a", "terminated": "done", "truncated": "limit"}
    one, other = new_buffer(), new_buffer()
    assert one.load_arrays(columns) == other.load_arrays(renamed, names=names)
    for mine, yours in zip(one[:], other[:], strict=True):
        assert np.array_equal(mine, yours)
    with pytest.raises(ValueError, match=r"^columns: done\[1\]: expected 0 or 1, got 0.5; 0 transitions were inserted"):
        new_buffer().load_arrays(renamed | {"done": np.array([0, 0.5, 0, 1, 0, 0])}, names=names)


def test_nested_observations() -> None:
    fields: dict[str, Any] = {"observation/image": ((2, 2), "uint8"), "observation/pose/0": ((), "float32")}
    fields |= {f"next_{name}": field for name, field in fields.items()} | {"terminated": ((), "bool")}
    image, pose = np.arange(20, dtype=np.uint8).reshape(5, 2, 2), np.arange(5, dtype=np.float32)
    columns = {
        "observations": {"image": image, "pose": (pose,)},
        "terminals": np.array([0, 0, 1, 0, 0], bool),
        "timeouts": np.zeros(5, bool),
    }
    buffer = new_buffer(fields=fields, lanes=1, ends=["terminated"], share_next=True)
    assert buffer.load_arrays(columns) == (4, 2, 1, 0)
    assert buffer[:]["next_observation"]["pose"][0].tolist() == [1, 2, 2, 4]
    assert (buffer[:]["observation"]["image"] == image[:4]).all()
    names = {"observation": "seen/by", "observation/image": "eye"}
    flags = {name: columns[name] for name in ("terminals", "timeouts")}
    columns = {"seen": {"by": {"pose": {"0": pose}}}, "eye": image, **flags}
    again = new_buffer(fields=fields)
    assert again.load_arrays(columns, names=names) == (4, 2, 1, 0)
    assert (again[:]["observation"]["image"] == image[:4]).all()


def test_next_fields_of_other_names() -> None:
    fields: dict[str, Any] = {"before": (3,), "after": (3,), "done": ()}
    buffer = new_buffer(fields=fields, lanes=1, ends=["done"], share_next={"after": "before"})
    columns = d4rl_of("..t..o.")
    given = {"before": columns["observations"], "done": columns["terminals"]}
    with pytest.raises(ValueError, match=r"columns: truncated: .*names=\{'truncated': None\}"):
        buffer.load_arrays(given)
    assert buffer.load_arrays(given | {"timeouts": columns["timeouts"]}) == (5, 2, 2, 0)
    assert buffer[:].after[:, 0].tolist() == [1, 2, 2, 4, 5]
    named = new_buffer(fields={"obs": (3,), "obs_next": (3,), "terminated": (), "truncated": ()}, lanes=1)
    assert named.load_arrays(columns, names={"obs": "observations"}) == (5, 2, 2, 0)
    assert named[:].obs_next[:, 0].tolist() == [1, 2, 2, 4, 5]


REFUSED: dict[str, tuple[type[Exception], str, Callable[[dict[str, Array]], object]]] = {
    "no mapping": (TypeError, "columns: expected a mapping", lambda _: [1, 2]),
    "no rows": (ValueError, r"rewards: expected an array \(n, ...\), got 1.0", lambda c: c | {"rewards": 1.0}),
    "ragged": (ValueError, r"rewards: expected an array", lambda c: c | {"rewards": [[1], [1, 2]]}),
    "missing": (
        ValueError,
        r"columns: reward: there is no such column for the field 'reward'; there are .*names=",
        lambda c: {name: column for name, column in c.items() if name != "rewards"},
    ),
    "shape": (
        ValueError,
        r"observations: expected rows \(3,\) for the field 'observation', got \(2,\)",
        lambda c: c | {"observations": c["observations"][:, :2]},
    ),
    "length": (
        ValueError,
        "rewards: expected 6 rows, as observations has, got 5",
        lambda c: c | {"rewards": [0.0] * 5},
    ),
    "kind": (
        TypeError,
        "actions: expected int64 for the field 'action', got float64, a cast that would lose its kind",
        lambda c: c | {"actions": c["actions"] / 2},
    ),
    "objects": (
        TypeError,
        "rewards: expected numbers for the field 'reward', got object",
        lambda c: c | {"rewards": np.array([None] * 6)},
    ),
    "text": (TypeError, "rewards: expected numbers .*, got <U1", lambda c: c | {"rewards": np.array(list("abcdef"))}),
    "nan": (
        ValueError,
        r"terminals\[4\]: expected 0 or 1, got nan",
        lambda c: c | {"terminals": np.array([0, 0, 1, 0, np.nan, 0])},
    ),
    "two flags": (ValueError, "terminals: expected rows", lambda c: c | {"terminals": np.zeros((6, 2), bool)}),
    "no ends": (
        ValueError,
        r"truncated: .*names=\{'truncated': None\} says that there are no such ends",
        lambda c: {name: column for name, column in c.items() if name != "timeouts"},
    ),
    "masked": (
        ValueError,
        "rewards: expected every entry, got masked ones",
        lambda c: c | {"rewards": np.ma.masked_equal(np.arange(6.0), 3)},
    ),
    "twice": (ValueError, "a/b: expected each column once", lambda c: c | {"a": {"b": [1] * 6}, "a/b": [1] * 6}),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_beforehand_is_named(kind: str) -> None:
    error, message, change = REFUSED[kind]
    buffer = new_buffer(lanes=2)
    with pytest.raises(error, match=message):
        buffer.load_arrays(change(d4rl_of("..t.o.")))
    assert len(buffer) == 0


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (TypeError, "names: expected a mapping", {"names": ["observation"]}),
        (ValueError, "names: expected fields for keys, got 'obs'", {"names": {"obs": "o"}}),
        (TypeError, "names: expected the name of a column for 'reward', got 3", {"names": {"reward": 3}}),
        (ValueError, "names: expected a column for 'reward'; None is for flags", {"names": {"reward": None}}),
        (ValueError, "columns: r: there is no such column for the field 'reward'", {"names": {"reward": "r"}}),
        (ValueError, r"lane: expected a lane in \[0, 2\), got 2", {"lane": 2}),
        (TypeError, "lane: expected an integer", {"lane": "0"}),
        (TypeError, "overwrite: expected a bool", {"overwrite": 1}),
        (TypeError, "progress: expected a bool or a function", {"progress": 1}),
    ],
)
def test_arguments_are_checked(error: type[Exception], message: str, options: dict[str, Any]) -> None:
    buffer = new_buffer(lanes=2)
    with pytest.raises(error, match=message):
        buffer.load_arrays(d4rl_of("..t.o."), **options)
    assert len(buffer) == 0
    if "lane" in options:
        with pytest.raises(ValueError, match="lane: expected None, as the buffer was made without lanes"):
            new_buffer().load_arrays(d4rl_of("..t.o."), lane=0)


def test_casts_are_those_of_extend_and_say_which_rows_do_not_fit(small_blocks: None) -> None:
    columns = d4rl_of("......t." * 3)
    columns["actions"] = np.arange(24) * 20
    fields = FIELDS | {"action": ((), "uint8")}
    buffer = new_buffer(fields=fields, lanes=1)
    with pytest.raises(
        ValueError, match=r"^columns: rows \[\d+, \d+\): action: expected a value that fits uint8"
    ) as info:
        buffer.load_arrays(columns)
    assert f"; {len(buffer)} transitions were inserted before" in str(info.value)
    assert 0 < len(buffer) <= 13
    assert sum(map(len, whole_trajectories(buffer))) == len(buffer)  # the last one was cut


def test_flags_of_floats_are_numbers_too() -> None:
    columns = d4rl_of("..t.o.")
    buffer = new_buffer(fields=FIELDS | {"terminated": ()})
    with pytest.raises(ValueError, match=r"terminals\[3\]: expected 0 or 1, got nan"):
        buffer.load_arrays(columns | {"terminals": np.array([0, 0, 1, np.nan, 0, 0])})
    buffer.load_arrays(columns | {"terminals": columns["terminals"] * 1.0})
    assert buffer[:].terminated.tolist() == [0, 0, 1, 0]


def test_big_endian_and_strided_columns() -> None:
    columns = {name: np.repeat(array, 2, axis=0)[::2] for name, array in d4rl_of("..t.o.").items()}
    columns["rewards"] = columns["rewards"].astype(">f8")
    buffer = new_buffer()
    buffer.load_arrays(columns)
    check_rows(buffer, expected("..t.o.")[0][0] + expected("..t.o.")[0][1])


def test_nothing_is_overwritten_unasked() -> None:
    buffer = new_buffer(6, lanes=1)
    assert buffer.load_arrays(d4rl_of("..t")) == (3, 1, 0, 0)
    with pytest.raises(
        ValueError, match="columns: expected at most 3 transitions, for which there is room, got 8; overwrite="
    ):
        buffer.load_arrays(d4rl_of("..t....t"))
    assert len(buffer) == 3
    assert buffer.load_arrays(d4rl_of("..t....t"), overwrite=True) == (8, 2, 0, 5)
    assert buffer[:].action.tolist() == [2, 3, 4, 5, 6, 7]


def test_progress_is_told_and_may_stop_it(small_blocks: None) -> None:
    seen: list[tuple[int, int]] = []
    buffer = new_buffer(lanes=1)
    buffer.load_arrays(d4rl_of("." * 20 + "t"), progress=lambda done, total: seen.append((done, total)))
    assert len(seen) > 3
    assert seen == sorted(seen)
    assert seen[-1] == (21, 21)

    def stop(done: int, total: int) -> None:
        if done > 8:
            raise KeyboardInterrupt

    stopped = new_buffer(lanes=1)
    with pytest.raises(KeyboardInterrupt):
        stopped.load_arrays(d4rl_of("." * 20 + "t"), progress=stop)
    assert 8 < len(stopped) < 20
    check_rows(stopped, [(row, row + 1) for row in range(len(stopped))])
    assert [len(each) for each in whole_trajectories(stopped)] == [len(stopped)]  # it was cut


def test_a_signal_in_the_middle_leaves_whole_rows_and_a_cut_trajectory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "_BLOCK_BYTES", 1 << 18)
    columns = d4rl_of("." * 200_000, with_next=True)
    buffer = new_buffer(200_000, lanes=1)
    for delay_s in np.linspace(0.0005, 0.01, 12):
        timer = threading.Timer(delay_s, os.kill, [os.getpid(), signal.SIGINT])

        def tell(done: int, total: int) -> None:
            if timer.ident is None:  # noqa: B023 - called before the next is made
                timer.start()  # noqa: B023

        def load() -> None:
            while True:
                buffer.load_arrays(columns, progress=tell, overwrite=True)
                buffer.clear()

        with pytest.raises(KeyboardInterrupt):
            load()
        timer.join()
        everything = buffer[:]
        assert (everything.observation == everything.action[:, None]).all()
        assert (everything.next_observation == everything.action[:, None] + 0.5).all()
        assert (np.diff(everything.action) == 1).all()
        assert [len(each) for each in whole_trajectories(buffer)] == [len(buffer)] * bool(len(buffer))
        buffer.clear()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_drawn_of_long_work_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("fastreplay.support.progress.time.monotonic", lambda: now)
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        now = 0.0
        tell = progress_of(True, "loading")
        for done in range(0, 101, 10):
            tell(done, 100)
            now += 0.3
        drawn = stream.getvalue()
        assert bool(drawn) == stream.isatty()
        if drawn:
            assert drawn.startswith("\rloading [############..................]  40% 40 of 100, 33/s")
            assert drawn.endswith("100 of 100, 33/s\n")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    short = progress_of(True, "loading")
    short(50, 100)
    now += 0.5
    short(100, 100)
    assert not stream.getvalue()


# ---- A new buffer of columns ----


def test_a_buffer_of_columns_has_their_dtypes_and_shapes() -> None:
    columns = d4rl_of("..t.o.", with_next=True)
    buffer = fr.from_arrays(columns, output="numpy", seed=0)
    assert buffer.capacity == len(buffer) == 6
    assert {name: (field.shape, field.dtype) for name, field in buffer.schema.items()} == {
        name: (array.shape[1:], array.dtype) for name, array in columns.items()
    }
    for name, array in columns.items():
        assert np.array_equal(buffer[:][name], array)


def test_a_buffer_of_columns_with_lanes_and_names() -> None:
    names = {"observation": "observations", "terminated": "terminals", "truncated": "timeouts", "action": "actions"}
    buffer: Any = fr.from_arrays(d4rl_of("..t.o...t."), 20, names=names, lanes=2, output="numpy")
    assert buffer.capacity == 20
    assert list(buffer.schema) == ["observation", "action", "rewards", "terminated", "truncated"]
    assert [buffer.gather(each).action.tolist() for each in whole_trajectories(buffer)] == [
        [0, 1, 2],
        [5, 6, 7, 8],
        [3, 4],
        [9],
    ]


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "columns: expected a mapping", ([1, 2],)),
        (ValueError, "fields: expected at least one field", ({},)),
        (ValueError, "columns: expected at least one row", ({"a": []},)),
        (ValueError, r"columns: b: expected 2 rows, as a has, got 3", ({"a": [1, 2], "b": [1, 2, 3]}, 9)),
        (ValueError, "capacity: expected at least 2", ({"a": [1, 2]}, 1)),
        (TypeError, "columns: a: expected numbers, got <U1", ({"a": ["x"]},)),
        (ValueError, r"columns: a: shape: expected positive lengths", ({"a": np.zeros((2, 0))},)),
        (ValueError, "keys: this name is reserved", ({"keys": [1]},)),
    ],
)
def test_columns_that_make_no_buffer(error: type[Exception], message: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(error, match=message):
        fr.from_arrays(*arguments, output="numpy")


def test_names_that_make_no_buffer() -> None:
    columns = {"a": [1, 2], "b": [3, 4]}
    make: Any = fr.from_arrays
    with pytest.raises(ValueError, match="columns: c: there is no such column; there are a, b"):
        make(columns, names={"x": "c"})
    with pytest.raises(ValueError, match="names: expected each column once"):
        make(columns, names={"x": "a", "y": "a"})
    with pytest.raises(ValueError, match="columns: b: expected each field once, got 'b' twice"):
        make(columns, names={"b": "a"})
    with pytest.raises(TypeError, match="names: expected a mapping"):
        make(columns, names="a")


# ---- Archives of NumPy ----


def archive(folder: Path, columns: dict[str, Array], *, compressed: bool = False) -> Path:
    path = folder / "data.npz"
    (np.savez_compressed if compressed else np.savez)(path, **columns)
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_an_archive_is_what_its_arrays_are(tmp_path: Path, small_blocks: None, compressed: bool) -> None:
    columns = d4rl_of("..t.o....." * 3)
    columns["observations"] = np.asfortranarray(columns["observations"])
    columns["rewards"] = columns["rewards"].astype(">f4")
    columns["infos/goal"] = np.arange(30)
    fields = FIELDS | {"goal": ((), "int64")}
    one, other = new_buffer(fields=fields), new_buffer(fields=fields)
    assert one.load_npz(archive(tmp_path, columns, compressed=compressed)) == other.load_arrays(columns)
    for mine, yours in zip(one[:], other[:], strict=True):
        assert np.array_equal(mine, yours)


def test_an_archive_takes_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    monkeypatch.setattr(steps, "_BLOCK_BYTES", 1 << 20)
    n = 200_000
    path = archive(tmp_path, d4rl_of("." * n, with_next=True))
    buffer = new_buffer(n)
    buffer.load_npz(archive(tmp_path, d4rl_of("....", with_next=True)).rename(path.with_name("few.npz")))
    buffer.clear()
    archive(tmp_path, d4rl_of("." * n, with_next=True))
    tracemalloc.start()
    try:
        buffer.load_npz(path, overwrite=True)
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("rows", [5, 7])
def test_an_archive_of_more_rows_or_fewer_than_it_says(tmp_path: Path, rows: int) -> None:
    path = tmp_path / "data.npz"
    columns = d4rl_of("..t.o.")
    np.savez(path, **{name: column for name, column in columns.items() if name != "rewards"})
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (6,)})
    with zipfile.ZipFile(path, "a") as added:
        added.writestr("rewards.npy", header.getvalue() + bytes(8 * rows))
    with pytest.raises(ValueError, match=rf"^{path}: rewards: the file is damaged: (it ends too early|there is more)"):
        new_buffer().load_npz(path)


def test_rows_in_pieces_are_as_many_as_was_said() -> None:
    def pieces(*lengths: int) -> Any:
        return iter([({"a": np.arange(n)}, np.zeros(n, bool)) for n in lengths])

    for lengths, message in (
        ((2, 0, 3), ""),
        ((2, 0, 2), "expected 1 rows more"),
        ((5, 0, 1), "expected no more rows"),
    ):
        table, out = Pieces(pieces(*lengths), 5), np.zeros(5, int)
        with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
            for first, end in ((0, 3), (3, 5)):
                table.read({"a": out[first:end]}, np.zeros(end - first, bool))
        assert message or out.tolist() == [0, 1, 0, 1, 2]


def test_archives_that_are_refused(tmp_path: Path) -> None:
    columns = d4rl_of("..t.o.")
    buffer = new_buffer()
    with pytest.raises(FileNotFoundError):
        buffer.load_npz(tmp_path / "nothing.npz")
    with pytest.raises(TypeError, match="path: expected a path, got 5"):
        buffer.load_npz(5)
    path = archive(tmp_path, columns)
    whole = path.read_bytes()
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=rf"^{path}: expected a .npz file"):
        buffer.load_npz(path)
    with pytest.raises(ValueError, match=rf"^{path}: reward: there is no such column"):
        buffer.load_npz(archive(tmp_path, {name: column for name, column in columns.items() if name != "rewards"}))
    with pytest.raises(TypeError, match=rf"^{path}: rewards: expected numbers for the field 'reward', got object"):
        buffer.load_npz(archive(tmp_path, columns | {"rewards": np.array([None] * 6)}))
    path.write_bytes(whole)
    with zipfile.ZipFile(path, "a") as added:
        added.writestr("infos.npy", b"no array")
    with pytest.raises(ValueError, match=rf"^{path}: infos: .*magic"):
        buffer.load_npz(path, names={"reward": "infos"})
    with zipfile.ZipFile(path, "a") as added:  # a header that Python's own tokenizer stumbles over
        added.writestr("deep.npy", b"\x93NUMPY\x01\x00\x36\x00" + b"(" * 53 + b"\n")
    with pytest.raises(ValueError, match=rf"^{path}: deep: the file is damaged"):
        buffer.load_npz(path, names={"reward": "deep"})
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as added:
        added.writestr("rewards.npy", b"another")
    with pytest.raises(ValueError, match=rf"^{path}: rewards: expected each column once, got two of this name"):
        buffer.load_npz(path)
    assert len(buffer) == 0
    damaged = bytearray(whole)
    damaged[whole.index(b"rewards.npy") + 160] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=rf"^{path}: rewards: the file is damaged: Bad CRC-32"):
        buffer.load_npz(path)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux's list of open files")
def test_an_archive_is_closed_while_its_error_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("observations.npy", b"no array at all")
    with pytest.raises(ValueError, match="observations") as kept:
        new_buffer(20).load_npz(path)
    assert path not in {each.readlink() for each in Path("/proc/self/fd").iterdir() if each.is_symlink()}
    del kept


@pytest.mark.parametrize("seed", range(2))
def test_damaged_archives_raise_what_is_documented(tmp_path: Path, seed: int) -> None:
    path = archive(tmp_path, d4rl_of("..t.o....."), compressed=bool(seed % 2))
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(seed)
    for _ in range(60):
        damaged = whole.copy()
        damaged[rng.integers(len(whole), size=rng.integers(1, 4))] = rng.integers(256)
        path.write_bytes(damaged.tobytes()[: rng.integers(len(whole) // 2, 2 * len(whole))])
        buffer = new_buffer(20)
        try:
            buffer.load_npz(path)
        except (OSError, TypeError, ValueError) as error:
            assert str(path) in str(error)  # noqa: PT017 - some are whole
        assert len(buffer) <= 20


@pytest.mark.parametrize(
    "name", ["walker/mine", "x/mine-v0", "a b/mine-v0", "/there/mine-v0", "../up/mine-v0", "", None]
)
def test_a_name_that_minari_would_trip_over(name: Any) -> None:
    buffer: Any = fr.from_arrays({"observation": [[1.0]], "terminated": [True]}, lanes=1)
    with pytest.raises(ValueError, match="dataset_id: expected a name like 'walker/mine-v0'"):
        buffer.to_minari(name)


def test_no_rows_make_no_buffer() -> None:
    for capacity in (None, 10):
        with pytest.raises(ValueError, match="columns: expected at least one row"):
            fr.from_arrays({"observation": np.empty((0, 3))}, capacity)


# ---- Whose lanes they are ----


@pytest.mark.parametrize("lane", [None, 1])
def test_lanes_belong_to_the_load_while_it_lasts(small_blocks: None, lane: int | None) -> None:
    buffer = new_buffer(lanes=2)
    row: dict[str, Any] = {"observation": [0] * 3, "action": -1, "reward": 0, "next_observation": [1] * 3}
    row |= {"terminated": False, "truncated": False}
    refused: list[str] = []

    def meddle() -> None:
        for call in (
            lambda: buffer.add(**row, lane=1),
            lambda: buffer.extend(**{name: [value] for name, value in row.items()}, lanes=[1]),
            lambda: buffer.cut(1),
            buffer.cut,
            lambda: buffer.load_arrays(d4rl_of("..t"), lane=1),
            lambda: buffer.extend(other),
        ):
            with pytest.raises(RuntimeError, match=r"^lane [01]: another thread is inserting into it"):
                call()
            refused.append("")
        if lane == 1:
            buffer.add(**row, lane=0)

    def tell(_done: int, _total: int) -> None:
        for each in (meddle, threading.Thread(target=meddle)):
            if isinstance(each, threading.Thread):
                each.start()
                each.join()
            else:
                each()

    other = new_buffer(lanes=2)
    other.load_arrays(d4rl_of("..t.o"))
    buffer.load_arrays(d4rl_of("..t.o...t"), lane=lane, progress=tell)
    assert refused
    rows = [[row for row, _ in each] for each in told(buffer) if each[0][0] >= 0]
    assert sorted(rows) == [[0, 1, 2], [3], [5, 6, 7, 8]]
    buffer.add(**row, lane=1)  # it is nobody's again
    buffer.cut()


def test_lanes_of_a_load_that_fails_are_nobodys(small_blocks: None) -> None:
    buffer = new_buffer(lanes=2)

    def stop(done: int, _total: int) -> None:
        if done > 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as kept:  # and what it went through, which has the lanes' owner
        buffer.load_arrays(d4rl_of("." * 20), progress=stop)
    buffer.cut()
    assert kept.value is not None
    held = fr._core.HeldLanes(buffer._lanes.core)
    assert held.take([1]) == -1
    before = len(buffer)
    with pytest.raises(RuntimeError, match=r"^lane 1: another thread"):
        buffer.load_arrays(d4rl_of("..t"))
    with pytest.raises(RuntimeError, match=r"^lane 1: another thread"):
        buffer.extend(new_buffer(lanes=2))
    assert len(buffer) == before
    del held
    assert buffer.load_arrays(d4rl_of("..t"), lane=1).transitions == 3


# ---- Room ----


def test_room_is_what_transitions_take(small_blocks: None) -> None:
    ends = "..o...o.t"  # nine rows, of which seven become transitions
    for capacity in (7, 6):
        for options in ({}, {"lanes": 2}):
            buffer = new_buffer(capacity, **options)
            if capacity == 7:
                assert buffer.load_arrays(d4rl_of(ends)) == (7, 3, 2, 0)
                continue
            with pytest.raises(ValueError, match="expected at most 6 transitions, for which there is room, got 7"):
                buffer.load_arrays(d4rl_of(ends))
            assert len(buffer) == 0
            assert buffer.load_arrays(d4rl_of(ends), overwrite=True) == (7, 3, 2, 1)


def test_a_load_that_does_not_fit_cuts_nothing() -> None:
    buffer = new_buffer(4, lanes=1)
    row: dict[str, Any] = {"observation": [0] * 3, "action": 7, "reward": 0, "next_observation": [1] * 3}
    flags = {"terminated": False, "truncated": False}
    buffer.add(**row, **flags)
    with pytest.raises(ValueError, match="expected at most 3 transitions"):
        buffer.load_arrays(d4rl_of("....t"))
    buffer.add(**row, **flags)
    buffer.cut()
    assert [len(each) for each in whole_trajectories(buffer)] == [2]


def test_a_new_buffer_of_columns_is_new(tmp_path: Path) -> None:
    make: Any = fr.from_arrays
    with pytest.raises(ValueError, match="capacity: expected at least 3, as there are so many rows, got 2"):
        make({"a": [1, 2, 3]}, 2)
    path = tmp_path / "ring.fr"
    assert len(make({"a": [1, 2, 3]}, 5, path=path)) == 3
    with pytest.raises(ValueError, match=r"path: expected the file of a new ring, got '.*ring\.fr', which is there"):
        make({"a": [1, 2]}, 5, path=path)
    again: Any = fr.ReplayBuffer(5, {"a": ((), "int64")}, path=path, output="numpy")
    assert again[:].a.tolist() == [1, 2, 3]
    for columns in ({"a": [1, 2], "b": [1]}, {"a": [1, 2], "terminated": [0, np.nan]}):
        with pytest.raises(ValueError, match=r"b: expected 2 rows|expected 0 or 1, got nan"):
            make(columns, path=tmp_path / "refused.fr")
        assert [each.name for each in tmp_path.iterdir()] == ["ring.fr"]


def test_what_no_field_takes_is_a_flag_or_refused() -> None:
    fields: Any = {"observation": (), "next_observation": (), "terminated": ()}
    columns = {"observation": np.arange(4.0), "terminated": [0, 0, 0.5, 0], "timeouts": [0.0, 1, 0, 0]}
    buffer = fr.ReplayBuffer(9, fields, output="numpy")
    assert buffer.load_arrays(columns).left_out == 2  # at a field whatever is not 0 is an end
    for value in (2, 0.5, -1, np.nan):
        with pytest.raises(ValueError, match=rf"timeouts\[3\]: expected 0 or 1, got {value}"):
            buffer.load_arrays(columns | {"timeouts": [0, 1, 0, value]})
    assert len(buffer) == 2


def test_tensors_of_every_make_are_columns() -> None:
    torch = pytest.importorskip("torch")
    buffer: Any = fr.ReplayBuffer(9, {"reward": ()}, output="numpy")
    buffer.load_arrays({"reward": torch.tensor([1 + 2j, 3 - 4j]).conj().imag})
    assert buffer[:].reward.tolist() == [-2, 4]
    for tensor in (torch.ones(2, device="meta"), torch.ones(2).to_sparse()):
        with pytest.raises(ValueError, match=r"columns: reward: expected an array \(n, ...\)"):
            buffer.load_arrays({"reward": tensor})
