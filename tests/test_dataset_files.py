# SPDX-License-Identifier: MIT
"""Files and datasets of other libraries, made by these libraries, become what the same columns in memory become."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import threading
import time
import types
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from test_datasets import FIELDS, d4rl_of, new_buffer, told

import fastreplay as fr
from fastreplay.buffer.written import whole_trajectories

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ENDS = "..t.o.....t" * 4 + "..."
ROWS = len(ENDS)


def needs(*modules: str) -> pytest.MarkDecorator:
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(absent), reason=f"{', '.join(absent)} is not installed")


def assert_same(one: Any, other: Any) -> None:
    assert len(one) == len(other) > 0
    for mine, yours in zip(one[:], other[:], strict=True):
        assert np.array_equal(mine, yours)
    if one.lanes:
        assert [each.tolist() for each in whole_trajectories(one)] == [e.tolist() for e in whole_trajectories(other)]


@pytest.mark.parametrize("module", ["h5py", "pyarrow", "minari"])
def test_what_is_missing_is_named_with_the_line_that_installs_it(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text('{"features": {}, "total_frames": 0, "codebase_version": "v3.0"}')
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file.parquet").write_bytes(b"")
    buffer = new_buffer(lanes=1)
    calls: dict[str, list[tuple[str, str, Callable[[], object]]]] = {
        "h5py": [("load_hdf5", "hdf5", lambda: buffer.load_hdf5(tmp_path / "data.hdf5"))],
        "pyarrow": [
            ("load_parquet", "parquet", lambda: buffer.load_parquet(tmp_path)),
            ("load_lerobot", "parquet", lambda: buffer.load_lerobot(tmp_path)),
        ],
        "minari": [
            ("load_minari", "minari", lambda: buffer.load_minari("ab/cd-v0")),
            ("to_minari", "minari", lambda: buffer.to_minari("ab/cd-v0")),
        ],
    }
    for what, extra, call in calls[module]:
        with pytest.raises(ImportError, match=rf"^{what} needs {module}: pip install 'fastreplay\[{extra}\]'"):
            call()


# ---- HDF5 ----


def write_hdf5(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    import h5py

    with h5py.File(path, "w") as file:
        for name, column in columns.items():
            file.create_dataset(name, data=column, **options)
    return path


LAYOUTS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "compressed": {"compression": "gzip"},
    "shuffled": {"compression": "lzf", "shuffle": True, "chunks": True},
}


@needs("h5py")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("with_next", [False, True])
def test_a_file_of_d4rl_is_what_its_columns_are(tmp_path: Path, layout: str, with_next: bool) -> None:
    import h5py

    columns = d4rl_of(ENDS, with_next=with_next)
    columns["rewards"] = columns["rewards"].astype(">f8")
    columns["terminals"] = columns["terminals"].astype(np.uint8)
    path = write_hdf5(tmp_path / "data.hdf5", columns | {"infos/qpos": np.arange(ROWS)}, **LAYOUTS[layout])
    with h5py.File(path, "a") as file:
        file["metadata/algorithm"] = "SAC"
        file.attrs["seed"] = 2
    fields = FIELDS | {"qpos": ((), "float32")}
    one, other = new_buffer(fields=fields, lanes=2), new_buffer(fields=fields, lanes=2)
    loaded = one.load_hdf5(path)
    assert loaded == other.load_arrays(columns | {"infos": {"qpos": np.arange(ROWS)}})
    assert loaded.left_out == (0 if with_next else 5)
    assert_same(one, other)


@needs("h5py")
def test_what_a_file_compressed_together_is_read_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import h5py

    from fastreplay.datasets import steps
    from fastreplay.datasets.hdf5 import hdf5_table
    from fastreplay.datasets.plan import plan
    from fastreplay.datasets.steps import read_steps

    monkeypatch.setattr(steps, "_BLOCK_BYTES", 1 << 20)
    columns = d4rl_of("." * 60_000)
    path = tmp_path / "data.hdf5"
    with h5py.File(path, "w") as file:
        for name, column in columns.items():
            chunks = (50_000, 3) if name == "observations" else True
            file.create_dataset(name, data=column, compression="gzip", compression_opts=1, chunks=chunks)
    table, schema = hdf5_table(str(path), None), fr.Schema(FIELDS)
    made = table.ask(lambda there: plan(there, schema, {}, [], {}))
    blocks = [len(each.ends) for each in read_steps(table, made, schema)]
    table.close()
    assert blocks == [49_999, 10_001]


@needs("h5py")
def test_the_next_rows_are_read_while_the_last_are_inserted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row goes in when the one after the next, which tells what comes next, is under way."""
    from fastreplay.buffer.contents import Contents
    from fastreplay.datasets import steps
    from fastreplay.datasets.hdf5 import _FlatTable

    monkeypatch.setattr(steps, "_BLOCK_BYTES", 1)  # of a row
    read, extend, turn = _FlatTable.read, Contents.extend, threading.Condition()
    counts = {"read": 0, "inserted": 0}

    def reading(self: Any, out: Any, begins: Any) -> None:
        with turn:
            counts["read"] += 1
            turn.notify()
        read(self, out, begins)

    def inserting(self: Any, *columns: Any, **beside: Any) -> None:
        with turn:
            counts["inserted"] += 1
            assert turn.wait_for(lambda: counts["read"] >= min(counts["inserted"] + 2, ROWS), timeout=10)
        extend(self, *columns, **beside)

    columns = d4rl_of(ENDS, with_next=True)
    buffer, other = new_buffer(lanes=2), new_buffer(lanes=2)
    other.load_arrays(columns)
    monkeypatch.setattr(_FlatTable, "read", reading)
    monkeypatch.setattr(Contents, "extend", inserting)
    assert buffer.load_hdf5(write_hdf5(tmp_path / "data.hdf5", columns)).transitions == ROWS
    monkeypatch.undo()
    assert counts == {"read": ROWS, "inserted": ROWS - 1}  # the last two together
    assert_same(buffer, other)


def write_robomimic(path: Path, lengths: list[int], *, with_next: bool = True, dones: bool = True) -> Path:
    import h5py

    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(lengths)
        for number in reversed(range(len(lengths))):  # they need not lie in order
            n = lengths[number]
            rows = sum(lengths[:number]) + np.arange(n)
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = n
            demo["actions"] = rows
            demo["rewards"] = rows / 2
            demo["dones"] = (np.arange(n) == n - 1).astype(np.int64) * dones
            demo["states"] = rows[:, None] * np.ones(5)
            for below, values in (("obs", rows), ("next_obs", rows + 1))[: 1 + with_next]:
                demo[f"{below}/pos"] = values[:, None] * np.ones(3)
                demo[f"{below}/eye"] = (values[:, None, None] * np.ones((2, 2))).astype(np.uint8)
        file["mask/valid"] = np.array([b"demo_10", b"demo_2"])
    return path


ROBOT: dict[str, Any] = {
    "observation/pos": ((3,), "float64"),
    "observation/eye": ((2, 2), "uint8"),
    "action": ((), "int64"),
    "reward": (),
    "next_observation/pos": ((3,), "float64"),
    "next_observation/eye": ((2, 2), "uint8"),
    "terminated": ((), "bool"),
    "truncated": ((), "bool"),
}


@needs("h5py")
@pytest.mark.parametrize("with_next", [False, True])
@pytest.mark.parametrize("dones", [False, True])
def test_a_file_of_robomimic(tmp_path: Path, with_next: bool, dones: bool) -> None:
    lengths = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    path = write_robomimic(tmp_path / "demo.hdf5", lengths, with_next=with_next, dones=dones)
    buffer = new_buffer(fields=ROBOT, lanes=1)
    is_stopped = not with_next and not dones
    kept = [n - is_stopped for n in lengths if n > is_stopped]
    assert buffer.load_hdf5(path) == (sum(kept), len(kept), sum(lengths) - sum(kept), 0)
    rows = buffer[:]
    after = np.where(rows.terminated & (not with_next), rows.action, rows.action + 1)
    for part, numbers in (("observation", rows.action), ("next_observation", after)):
        assert (rows[part]["pos"] == numbers[:, None]).all()
        assert (rows[part]["eye"] == numbers[:, None, None]).all()
    assert rows.terminated.sum() == len(lengths) * dones
    assert not rows.truncated.any()
    assert [len(each) for each in whole_trajectories(buffer)] == kept


@needs("h5py")
def test_some_trajectories_of_robomimic(tmp_path: Path) -> None:
    import h5py

    path = write_robomimic(tmp_path / "demo.hdf5", list(range(1, 12)))
    buffer = new_buffer(fields=ROBOT, lanes=1)
    assert buffer.load_hdf5(path, mask="valid") == (14, 2, 0, 0)
    assert buffer[:].action.tolist() == [3, 4, 5, *range(55, 66)]
    states = new_buffer(fields={"observation": ((5,), "float64"), "action": ((), "int64")})
    assert states.load_hdf5(path, names={"observation": "states"}).transitions == 66
    assert (states[:].observation == states[:].action[:, None]).all()
    for mask, message in (("valid2", "mask/valid2: there is no such mask; there are valid"), (5, "mask: expected")):
        with pytest.raises((TypeError, ValueError), match=message):
            buffer.load_hdf5(path, mask=mask)
    masks: dict[str, Any] = {"numbers": [0, 1], "one": b"demo_0", "table": [[b"demo_0"]], "twice": [b"demo_0"] * 2}
    with h5py.File(path, "a") as file:
        for name, value in masks.items():
            file[f"mask/{name}"] = value
    for name in masks:
        with pytest.raises(ValueError, match=rf"^{path}: mask/{name}: expected (names of traj|each traj)"):
            buffer.load_hdf5(path, mask=name)
    assert buffer.stats()["inserted"] == 14


@needs("h5py")
def test_files_that_are_refused(tmp_path: Path) -> None:
    import h5py

    buffer = new_buffer(lanes=1)
    path = tmp_path / "data.hdf5"
    with pytest.raises(FileNotFoundError):
        buffer.load_hdf5(path)
    path.write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match=rf"^{path}: expected an HDF5 file"):
        buffer.load_hdf5(path)
    columns = d4rl_of(ENDS)
    for change, error, message in (
        ({"rewards": columns["rewards"][:-1]}, ValueError, "rewards: expected 47 rows, as observations has, got 46"),
        ({"actions": np.zeros(47)}, TypeError, "actions: expected int64 for the field 'action', got float64"),
        ({"rewards": np.array(["a"] * 47, object)}, TypeError, "rewards: expected numbers .*, got text"),
        ({"terminals": np.full(47, np.nan)}, ValueError, r"terminals\[0\]: expected 0 or 1, got nan"),
        ({"rewards": np.float64(1)}, ValueError, "reward: there is no such column .* there are actions, observations"),
    ):
        with pytest.raises(error, match=rf"^{path}: {message}"):
            buffer.load_hdf5(write_hdf5(path, columns | change))
    with pytest.raises(ValueError, match="mask: expected None but for robomimic's layout"):
        buffer.load_hdf5(write_hdf5(path, columns), mask="train")
    with h5py.File(path, "w") as file:
        file["episode_0/actions"] = [1]
    with pytest.raises(ValueError, match="got Minari's: load_minari reads its folder"):
        buffer.load_hdf5(path)
    write_robomimic(path, [2, 3])
    with h5py.File(path, "a") as file:
        del file["data/demo_1/obs/pos"]
        file["data/demo_1/obs/pos"] = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"/data/demo_1/obs/pos: expected \(3, 3\) float64, got \(2, 3\) float64"):
        new_buffer(fields=ROBOT).load_hdf5(path)
    assert len(buffer) == 0


# ---- Parquet ----


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays: dict[str, Any] = {}
    for name, column in columns.items():
        if isinstance(column, np.ndarray):
            arrays[name] = pa.array(np.ascontiguousarray(column).reshape(-1))
            for length in column.shape[:0:-1]:
                arrays[name] = pa.FixedSizeListArray.from_arrays(arrays[name], length)
        else:
            arrays[name] = column
    pq.write_table(pa.table(arrays), path, **options)
    return path


@needs("pyarrow")
def test_a_parquet_file_is_what_its_columns_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa

    from fastreplay.datasets import parquet

    monkeypatch.setattr(parquet, "_BUFFER_BYTES", 200)
    columns, rows = d4rl_of(ENDS), np.arange(ROWS)
    pose = np.arange(ROWS * 6, dtype=np.float32).reshape(-1, 2, 3)
    fields = FIELDS | {"pose": (2, 3), "nested/deep/x": ((), "int64"), "one": (1,)}
    one, other = new_buffer(fields=fields, lanes=2), new_buffer(fields=fields, lanes=2)
    other.load_arrays(columns | {"pose": pose, "nested": {"deep": {"x": rows}}, "one": rows[:, None]})
    struct = pa.StructArray.from_arrays([pa.StructArray.from_arrays([pa.array(rows)], ["x"])], ["deep"])
    lists = pa.array(columns["observations"].tolist(), pa.list_(pa.float32()))
    written = columns | {"observations": lists, "pose": pose, "nested": struct, "one": rows, "note": ["x"] * ROWS}
    assert one.load_parquet(write_parquet(tmp_path / "whole.parquet", written, row_group_size=10)).left_out == 5
    assert_same(one, other)


@needs("pyarrow")
def test_names_of_parquet_with_every_sign_in_them(tmp_path: Path) -> None:
    import pyarrow as pa

    columns = {"a": pa.array([{"b/c": 1.0, "d.e": 2.0}] * 2), "a.b": [3.0, 3.0], "f/g": [4.0, 4.0]}
    path = write_parquet(tmp_path / "names.parquet", columns)
    buffer = new_buffer(fields={"a/b/c": (), "a/d.e": (), "a.b": (), "f/g": ()})
    assert buffer.load_parquet(path).transitions == 2
    assert [float(each[0]) for each in (buffer[:][name] for name in buffer.schema)] == [1, 2, 3, 4]
    columns["a"] = pa.array([{"b/c": 1.0, "d.e": 2.0}, None])
    with pytest.raises(ValueError, match=r"rows \[0, 2\): a/b/c: expected a value in every row, got null"):
        new_buffer(fields={"a/b/c": ()}).load_parquet(write_parquet(path, columns))


@needs("pyarrow")
def test_a_folder_of_parquet_files(tmp_path: Path) -> None:
    columns = d4rl_of(ENDS)
    for number, part in enumerate(np.array_split(np.arange(ROWS), 3)):
        write_parquet(tmp_path / f"{number}.parquet", {name: column[part] for name, column in columns.items()})
    one, other = new_buffer(), new_buffer()
    assert one.load_parquet(tmp_path) == other.load_arrays(columns)
    assert_same(one, other)


@needs("pyarrow")
def test_parquet_files_that_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    buffer = new_buffer(lanes=1)
    path = tmp_path / "data.parquet"
    with pytest.raises(FileNotFoundError):
        buffer.load_parquet(path)
    with pytest.raises(FileNotFoundError, match=r"expected \.parquet files in the folder"):
        buffer.load_parquet(tmp_path)
    path.write_bytes(b"no Parquet")
    with pytest.raises(ValueError, match=rf"^{path}: the file is damaged: .*Parquet"):
        buffer.load_parquet(path)
    columns = d4rl_of("..t.o.")
    for change, error, message in (
        ({"rewards": ["x"] * 6}, TypeError, "rewards: expected numbers for the field 'reward', got string"),
        (
            {"rewards": [1.0, None] * 3},
            ValueError,
            r".*rows \[0, 6\): rewards: expected a value in every row, got null",
        ),
        ({"observations": pa.array([[1.0]] * 6)}, ValueError, r".*: expected rows \(3,\), got a list of 1"),
        ({"observations": np.zeros((6, 2))}, ValueError, r"observations: expected rows \(3,\) .*, got \(2,\)"),
    ):
        with pytest.raises(error, match=rf"^{path}: {message}"):
            buffer.load_parquet(write_parquet(path, columns | change))
    for twice in (
        pa.Table.from_arrays([pa.array([0.0])] * 2, names=["rewards", "rewards"]),
        pa.table({"a": pa.array([{"b": 1}]), "a/b": [1]}),
    ):
        pa.parquet.write_table(twice, path)
        with pytest.raises(ValueError, match=rf"^{path}: (rewards|a/b): expected each column once"):
            buffer.load_parquet(path)
    write_parquet(path, columns)
    write_parquet(tmp_path / "more.parquet", {"rewards": np.zeros(3)})
    with pytest.raises(ValueError, match=r"more.parquet: expected the columns of"):
        buffer.load_parquet(tmp_path)
    assert len(buffer) == 0


DAMAGED: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "d4rl": (lambda path: write_hdf5(path, d4rl_of(ENDS), compression="gzip"), "load_hdf5", FIELDS),
    "robomimic": (lambda path: write_robomimic(path, [3, 1, 4]), "load_hdf5", ROBOT),
    "parquet": (lambda path: write_parquet(path, d4rl_of(ENDS)), "load_parquet", FIELDS),
}


@needs("h5py", "pyarrow")
@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_raise_what_is_documented(kind: str, tmp_path: Path) -> None:
    make, method, fields = DAMAGED[kind]
    path = make(tmp_path / "data")
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(int(os.environ.get("FASTREPLAY_HOSTILE", "40"))):
        damaged = whole.copy()
        first = rng.integers(len(whole))
        damaged[first : first + rng.integers(1, 16)] = rng.integers(256)
        path.write_bytes(damaged.tobytes()[: rng.integers(len(whole) // 2, 3 * len(whole))])
        try:
            getattr(new_buffer(fields=fields, lanes=1), method)(path)
        except (OSError, TypeError, ValueError) as error:
            assert str(path) in str(error)  # noqa: PT017 - some are whole


# ---- What all files have in common ----


def of_seven_rows(kind: str, folder: Path) -> Callable[[Any], Any]:
    """Return what loads nine rows of which seven become transitions."""
    columns, path = d4rl_of("..o...o.t"), folder / "data"
    if kind == "npz":
        np.savez(folder / "data.npz", **columns)
        return lambda buffer: buffer.load_npz(folder / "data.npz")
    if kind == "hdf5":
        write_hdf5(path, columns, compression="gzip", chunks=True)
    elif kind == "parquet":
        write_parquet(path, columns)
    return lambda buffer: getattr(buffer, f"load_{kind}")(path)


@needs("h5py", "pyarrow")
@pytest.mark.parametrize("kind", ["npz", "hdf5", "parquet"])
def test_a_file_of_which_the_flags_are_read_first_is_opened_once(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, opened = of_seven_rows(kind, tmp_path), []
    own = fr.ReplayBuffer._load

    def counting(self: Any, open_table: Any, **options: Any) -> Any:
        def opening() -> Any:
            opened.append(kind)
            return open_table()

        return own(self, opening, **options)

    monkeypatch.setattr(fr.ReplayBuffer, "_load", counting)
    with pytest.raises(ValueError, match="expected at most 6 transitions, for which there is room, got 7"):
        load(new_buffer(6))
    for lanes in ({}, {"lanes": 2}):
        buffer, other = new_buffer(7, **lanes), new_buffer(7, **lanes)
        assert load(buffer) == other.load_arrays(d4rl_of("..o...o.t")) == (7, 3, 2, 0)
        assert_same(buffer, other)
    assert len(opened) == 3 + 2


@needs("h5py", "pyarrow")
@pytest.mark.parametrize("kind", ["npz", "hdf5", "parquet", "lerobot"])
def test_a_pipe_in_the_place_of_a_file_of_data_is_refused(kind: str, tmp_path: Path) -> None:
    """Who opens it would wait for who writes into it."""
    path = tmp_path / ("meta/info.json" if kind == "lerobot" else "data")
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    with pytest.raises(ValueError, match=rf"^{path}: expected a file, got a pipe, a socket or a device"):
        getattr(new_buffer(), f"load_{kind}")(tmp_path if kind == "lerobot" else path)
    if kind == "parquet":
        path.rename(tmp_path / "data.parquet")
        with pytest.raises(ValueError, match=r"data\.parquet: expected a file, got a pipe"):
            new_buffer().load_parquet(tmp_path)


# ---- LeRobot ----


def write_lerobot(root: Path, lengths: list[int], layout: str, **changes: Any) -> Path:
    """Write what LeRobot's formats 2.1 and 3.0 have: a file a trajectory, or several in one."""
    rows = np.arange(sum(lengths))
    number = np.repeat(np.arange(len(lengths)), lengths)
    frame = np.concatenate([np.arange(n) for n in lengths])
    columns: dict[str, Any] = {
        "observation.state": rows[:, None] * np.ones(3, np.float32),
        "observation.effort": rows.astype(np.float32),
        "action": rows,
        "next.reward": (rows / 2).astype(np.float32),
        "next.done": frame == np.repeat(lengths, lengths) - 1,
        "timestamp": frame / 10,
        "frame_index": frame,
        "episode_index": number,
        "index": rows,
    } | changes
    columns = {name: column for name, column in columns.items() if column is not None}
    features: dict[str, Any] = {n: {"dtype": str(c.dtype), "shape": c.shape[1:] or [1]} for n, c in columns.items()}
    features["observation.images.top"] = {"dtype": "video", "shape": [480, 640, 3]}
    info = {"codebase_version": layout, "total_frames": len(rows), "features": features}
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(info))
    (root / "data" / "chunk-000").mkdir(parents=True)
    for i in range(len(lengths) if layout == "v2.1" else 2):
        part = number == i if layout == "v2.1" else (number < 2) == (i == 0)
        name = f"episode_{i:06d}.parquet" if layout == "v2.1" else f"file-{i:03d}.parquet"
        write_parquet(root / "data" / "chunk-000" / name, {name: column[part] for name, column in columns.items()})
    return root


@needs("pyarrow")
@pytest.mark.parametrize("layout", ["v2.1", "v3.0"])
def test_a_dataset_of_lerobot(tmp_path: Path, layout: str) -> None:
    root = write_lerobot(tmp_path / "whole", [3, 5, 1, 3], layout)
    one, other = new_buffer(lanes=2), new_buffer(lanes=2)
    assert one.load_lerobot(root) == other.load_arrays(d4rl_of("..t....tt..t")) == (12, 4, 0, 0)
    assert_same(one, other)
    fields = {"observation/state": (3,), "observation/effort": (), "action": (), "next_observation/effort": ()}
    nested = new_buffer(fields=fields | {"terminated": ((), "bool")}, lanes=1)
    assert nested.load_lerobot(root).transitions == 12
    assert nested[:]["next_observation"]["effort"].tolist() == [1, 2, 2, 4, 5, 6, 7, 7, 8, 10, 11, 11]


@needs("pyarrow")
def test_a_dataset_of_lerobot_that_does_not_say_what_is_done(tmp_path: Path) -> None:
    root = write_lerobot(tmp_path / "undone", [3, 5, 1, 3], "v3.0", **{"next.done": None})
    buffer = new_buffer(8, lanes=1)  # for which the flags are read first
    with pytest.raises(ValueError, match="terminated: there is no such column"):
        buffer.load_lerobot(root)
    assert buffer.load_lerobot(root, names={"terminated": None}) == (8, 3, 4, 0)
    assert told(buffer) == [[(0, 1), (1, 2)], [(3, 4), (4, 5), (5, 6), (6, 7)], [(9, 10), (10, 11)]]


@needs("pyarrow")
def test_datasets_of_lerobot_that_are_refused(tmp_path: Path) -> None:
    root = write_lerobot(tmp_path / "it", [3, 5, 1, 3], "v2.1")
    buffer = new_buffer(fields={"observation/images/top": ((480, 640, 3), "uint8"), "action": ()}, capacity=12)
    with pytest.raises(TypeError, match=r"observation/images/top: expected numbers .*, got a video, which lies"):
        buffer.load_lerobot(root)
    with pytest.raises(FileNotFoundError):
        buffer.load_lerobot(tmp_path / "nothing")
    (root / "data" / "chunk-000" / "episode_000001.parquet").unlink()
    with pytest.raises(ValueError, match=r"expected 12 frames, as meta/info.json says, got 7: files are missing"):
        buffer.load_lerobot(root)
    info = root / "meta" / "info.json"
    for text, message in (
        ("{", "expected what LeRobot says of a dataset"),
        ("[]", "expected what LeRobot says of a dataset"),
        (info.read_text().replace("v2.1", "v1.6"), "expected format v2 or v3, got v1.6"),
        (info.read_text().replace(": 12", ": 1e999"), "expected what LeRobot says of a dataset: OverflowError"),
    ):
        info.write_text(text)
        with pytest.raises(ValueError, match=message):
            buffer.load_lerobot(root)
    for number, kind in ((np.array(["0", "1", "1"]), "string"), (np.array([0, np.nan, np.nan]), "double")):
        other = write_lerobot(tmp_path / kind, [1, 2], "v3.0", episode_index=number)
        with pytest.raises(TypeError, match=f"episode_index: expected integers, got {kind}"):
            new_buffer().load_lerobot(other)


# ---- Minari ----


@pytest.fixture
def minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Minari's own library, with a folder of its own. What its collector wants of JAX, torch has, too."""
    for name in ("minari", "h5py", "PIL", "pyarrow"):
        pytest.importorskip(name)
    import minari
    from torch.utils import _pytree

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    jax, tree_util = types.ModuleType("jax"), types.ModuleType("jax.tree_util")
    jax.tree_util, tree_util.tree_map = tree_util, _pytree.tree_map  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "jax", jax)
    monkeypatch.setitem(sys.modules, "jax.tree_util", tree_util)
    return minari


def new_like(buffer: Any) -> Any:
    return fr.ReplayBuffer(buffer.capacity, buffer.schema, output="numpy", lanes=1, seed=0)


@pytest.mark.filterwarnings("ignore")  # Minari's own, of what it was not told
def test_what_minaris_collector_collected(minari: Any) -> None:
    import gymnasium as gym

    plain = gym.make("CartPole-v1", max_episode_steps=12)
    env = minari.DataCollector(gym.make("CartPole-v1", max_episode_steps=12))
    one, other = (fr.ReplayBuffer.from_env(plain, 500, lanes=True, seed=0, output="numpy") for _ in range(2))
    for seed in range(12):
        observation, _ = env.reset(seed=seed)
        is_over, count = False, 0
        while not is_over:
            action = int(np.random.default_rng([seed, count]).integers(2))
            after, reward, terminated, truncated, _ = env.step(action)
            count += 1
            is_given_up = seed == 5 and count == 4  # which the collector sees at the reset, and calls truncated
            other.add(observation, action, float(reward), after, terminated, truncated or is_given_up)
            observation, is_over = after, terminated or truncated or is_given_up
    dataset = env.create_dataset("cartpole/mine-v0", algorithm_name="random")
    env.close()
    assert one.load_minari("cartpole/mine-v0") == (len(other), 12, 0, 0)
    assert other[:].terminated.any()
    assert other[:].truncated.any()
    assert_same(one, other)
    some = new_like(one)
    filtered = dataset.filter_episodes(lambda each: bool(each.terminations[-1]))
    assert some.load_minari(filtered).trajectories == int(other[:].terminated.sum())


def nested_buffer(lengths: list[int]) -> Any:
    """Make trajectories in three lanes by turns: one that terminates, one that is truncated, one that is cut, ..."""
    from gymnasium import spaces

    picture = spaces.Box(0, 255, (32, 32, 3), np.uint8)
    seen = spaces.Dict({"eye": picture, "arm": spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.Discrete(5)])})
    schema = fr.Schema.from_spaces(seen, spaces.Discrete(3), extra={"log_prob": ()})
    buffer: Any = fr.ReplayBuffer(200, schema, lanes=3, seed=0, output="numpy")
    rng = np.random.default_rng(0)

    def look() -> Any:
        return {"eye": rng.integers(0, 256, (32, 32, 3), np.uint8), "arm": (rng.random(2, np.float32), rng.integers(5))}

    for number, length in enumerate(lengths):
        observation = look()
        for step in range(length):
            after, is_last, lane = look(), step == length - 1, number % 3
            flags = {"terminated": is_last and lane == 0, "truncated": is_last and lane == 1}
            buffer.add(observation, step % 3, float(step), after, **flags, log_prob=-float(rng.random()), lane=lane)
            observation = after
        if number < len(lengths) - 1:
            buffer.cut(number % 3)
    return buffer


@pytest.mark.filterwarnings("ignore")
def test_minari_has_bfloat16_as_float32(minari: Any) -> None:
    half = pytest.importorskip("ml_dtypes") and fr.Field((3,), "bfloat16", out="float32")
    fields: dict[str, Any] = {"observation": half, "action": half, "reward": ((), "bfloat16"), "next_observation": half}
    buffer, again = (fr.ReplayBuffer[Any](20, fields | {"terminated": ((), "bool")}, lanes=1, seed=0) for _ in range(2))
    values = np.random.default_rng(0).standard_normal((21, 3))
    buffer.extend(values[:20], values[:20], values[:20, 0], values[1:], [False] * 19 + [True])
    written = buffer.to_minari("halves-v0").dataset
    assert written.observation_space.dtype == np.float32
    again.load_minari(written)
    for name, rows in buffer[:].numpy().items():
        assert rows.tobytes() == again[:].numpy()[name].tobytes()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("data_format", ["hdf5", "parquet"])
def test_nested_spaces_go_out_and_come_back(minari: Any, data_format: str) -> None:
    buffer = nested_buffer([4, 1, 6, 3, 5, 2])
    written = buffer.to_minari("nested/mine-v3", about={"data_format": data_format, "author": "me"})
    assert written[1:] == (19, 5, 2)  # the last has no end yet
    assert written.dataset.total_steps == 19
    again = new_like(buffer)
    assert again.load_minari(minari.load_dataset("nested/mine-v3")) == (19, 5, 0, 0)
    tickets = whole_trajectories(buffer)
    other = buffer.gather(np.concatenate(tickets) % len(buffer.view("reward")))
    for name in buffer.schema:
        rows = other[name].copy()
        if name == "truncated":  # so are cuts
            rows[np.cumsum([len(each) for each in tickets]) - 1] = True
            rows &= ~other.terminated
        assert np.array_equal(again[:][name], rows), name
    with pytest.raises(ValueError, match="already exists"):
        buffer.to_minari("nested/mine-v3")
    assert minari.load_dataset("nested/mine-v3").total_steps == 19


@pytest.mark.filterwarnings("ignore")
def test_what_others_wrote_for_minari_may_end_without_a_flag(minari: Any) -> None:
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    def steps_of(first: int, count: int) -> Any:
        rows = np.arange(first, first + count + 1)
        flags = {name: np.zeros(count, bool) for name in ("terminations", "truncations")}
        return EpisodeBuffer(
            observations=rows[:, None] * np.ones(3, np.float32), actions=rows[:-1], rewards=rows[:-1] / 2, **flags
        )

    box = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    minari.create_dataset_from_buffers(
        "it-v0", [steps_of(0, 3), steps_of(10, 2)], observation_space=box, action_space=spaces.Discrete(20)
    )
    buffer = new_buffer(lanes=1)
    assert buffer.load_minari("it-v0") == (5, 2, 0, 0)
    assert told(buffer) == [[(0, 1), (1, 2), (2, 3)], [(10, 11), (11, 12)]]


def test_a_trajectory_without_its_beginning_is_not_whole() -> None:
    buffer = new_buffer(6, lanes=2)
    row: dict[str, Any] = {"observation": [0] * 3, "reward": 0, "next_observation": [0] * 3, "truncated": False}
    for number, lane in enumerate([1, 1, 0, 0, 1, 1, 1, 1]):  # of which the first two give way to the last
        buffer.add(**row, action=number, terminated=number in (3, 7), lane=lane)
    assert [each.tolist() for each in whole_trajectories(buffer)] == [[2, 3]]


@pytest.mark.filterwarnings("ignore")
def test_what_minari_cannot_hold_is_refused_and_nothing_is_left(minari: Any, tmp_path: Path) -> None:
    buffer = new_buffer(lanes=1)
    with pytest.raises(ValueError, match="expected a whole trajectory"):
        buffer.to_minari("it-v0")
    with pytest.raises(ValueError, match="made without lanes"):
        new_buffer().to_minari("it-v0")
    with pytest.raises(ValueError, match="expected a field 'action'"):
        new_buffer(fields={"observation": (3,)}, lanes=1, ends=()).to_minari("it-v0")
    buffer.load_arrays(d4rl_of("..t..t", with_next=True))
    with pytest.raises(ValueError, match=r"next_observation: expected each to be the observation"):
        buffer.to_minari("it-v0")
    assert minari.list_local_datasets() == {}
    for about in ({"data_format": "another"}, {"nothing": 5}):  # which Minari refuses, with a folder made
        with pytest.raises((TypeError, ValueError)):
            buffer.to_minari("it-v0", about=about)
    assert not [*tmp_path.rglob("it-v0")]
    with pytest.raises(FileNotFoundError):
        buffer.load_minari("nobody/nothing-v0")
    with pytest.raises(TypeError, match="dataset: expected a MinariDataset or its name, got int"):
        buffer.load_minari(5)
    again = new_buffer(lanes=1)
    again.load_arrays(d4rl_of("..t..t"))
    assert again.to_minari("it-v0")[1:] == (6, 2, 0)
    narrow = new_buffer(fields=FIELDS | {"observation": (2,), "next_observation": (2,)})
    with pytest.raises(ValueError, match=r"it-v0: observations: expected rows \(2,\) .*, got \(3,\)"):
        narrow.load_minari("it-v0")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("where", ["in the library's finalizer", "between trajectories"])
def test_ctrl_c_while_a_dataset_of_minari_is_written(minari: Any, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """It is raised also where Python would print and forget it, no later trajectory is read, and nothing is left."""
    from fastreplay.buffer import written

    buffer, count = new_buffer(lanes=1), 0
    buffer.load_arrays(d4rl_of("..t" * 20))
    own, before = written._Reading._fields, {*threading.enumerate()}

    class Finalized:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)  # here Python would look for signals, and forget what a handler raises

    def fields(self: Any, tickets: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3 and where.startswith("in"):
            Finalized()
        elif count == 3:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        return own(self, tickets)

    with monkeypatch.context() as patch:
        patch.setattr(written._Reading, "_fields", fields)
        with pytest.raises(KeyboardInterrupt):
            buffer.to_minari("walk/cut-v0")
    assert count < 15
    assert {*threading.enumerate()} <= before
    assert buffer.to_minari("walk/cut-v0").trajectories == 20  # there is none of this name


@pytest.mark.filterwarnings("ignore")
def test_values_that_are_not_of_the_given_space_are_refused(minari: Any) -> None:
    from gymnasium import spaces

    buffer = nested_buffer([4, 1, 6])
    eye, arm = spaces.Box(0, 255, (32, 32, 3), np.uint8), spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.Discrete(5)])
    seen, three = spaces.Dict({"eye": eye, "arm": arm}), spaces.Discrete(3)
    for observation, action, message in (
        (spaces.Dict({"eye": eye}), three, "observation: expected eye, as the space has, got arm, eye|eye, arm"),
        (eye, three, r"observation: expected rows \(32, 32, 3\) uint8, as the space has, got several parts"),
        (seen, spaces.Dict({"a": three}), "action: expected a, as the space has, got an array"),
        (seen, spaces.Discrete(2), r"action: expected values of Discrete\(2\), got 2 in row 2 of its trajectory"),
        (seen, spaces.MultiBinary(3), r"action: expected rows \(3,\) int8, as the space has, got \(\) int64"),
        (
            spaces.Dict({"eye": eye, "arm": spaces.Tuple([spaces.Box(-1, 0, (2,)), spaces.Discrete(5)])}),
            three,
            r"observation/arm/0: expected values of Box\(-1",
        ),
        (
            spaces.Dict({"eye": eye, "arm": spaces.Tuple([spaces.Box(0, 1, (2,), np.uint8), spaces.Discrete(5)])}),
            three,
            r"observation/arm/0: expected rows \(2,\) uint8, as the space has, got \(2,\) float32",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            buffer.to_minari("it-v0", observation_space=observation, action_space=action)
        assert minari.list_local_datasets() == {}
    with pytest.raises(ValueError, match="observation: expected rows"):
        buffer.to_minari("it-v0", env="CartPole-v1")
    assert buffer.to_minari("it-v0", observation_space=seen, action_space=three).trajectories == 2
