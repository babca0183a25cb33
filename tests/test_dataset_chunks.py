# SPDX-License-Identifier: MIT
"""Chunks of HDF5 files are unpacked to the bytes that h5py reads, or are an error."""

from __future__ import annotations

import io
import itertools
import os
import signal
import threading
import time
import tracemalloc
import zlib
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_datasets import d4rl_of, new_buffer

from fastreplay.datasets import apart, chunks, steps
from fastreplay.datasets.apart import Helpers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

h5py = pytest.importorskip("h5py")

DEFLATE, SHUFFLE = 1, 2
DTYPES = ["?", "u1", "<i2", ">i8", "<f2", "<f4", ">f4", "<f8", ">f8", "<c8", ">c16"]
INFLATES = [chunks._inflate_by_zlib, *([] if chunks._inflate is chunks._inflate_by_zlib else [chunks._inflate])]


@st.composite
def made_datasets(draw: Any) -> dict[str, Any]:
    """Say how a dataset is made, and in which blocks it is read."""
    shape = tuple(draw(st.lists(st.integers(1, 4), max_size=2)))
    num_rows = draw(st.integers(1, 40))
    sides = [draw(st.integers(1, 12)), *(draw(st.integers(1, n + 1)) for n in shape)]
    dtype = draw(st.sampled_from(DTYPES))
    options: dict[str, Any] = {"shape": (num_rows, *shape), "dtype": dtype, "chunks": tuple(sides)}
    options["maxshape"] = (None,) * (1 + len(shape))
    options["shuffle"] = draw(st.booleans())
    packing = draw(st.sampled_from(["gzip", "gzip", "gzip", "lzf", "scaleoffset", None]))
    if packing == "scaleoffset" and dtype in {"u1", "<i2"}:
        options["scaleoffset"] = 0
    elif packing in {"gzip", "lzf"}:
        options["compression"] = packing
        options["compression_opts"] = draw(st.sampled_from([0, 4])) if packing == "gzip" else None
    options["fletcher32"] = draw(st.booleans()) and draw(st.booleans()) and "scaleoffset" not in options
    options["fillvalue"] = np.dtype(dtype).type(draw(st.sampled_from([0, 1])))
    return {
        "options": options,
        "written": draw(st.lists(st.tuples(st.integers(0, num_rows), st.integers(1, 20)), max_size=3)),
        "seed": draw(st.integers(0, 9)),
        "by_hand": draw(st.booleans()),
        "mask": draw(st.integers(0, 3)),
        "damage": draw(st.none() | st.integers(0, 500)),
        "blocks": draw(st.lists(st.integers(1, 25), min_size=1, max_size=6)),
        "most_kept": draw(st.sampled_from([0, 1 << 20])),
    }


def random_rows(shape: tuple[int, ...], dtype: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    count = int(np.prod(shape, dtype=int))
    few = np.frombuffer(rng.bytes(np.dtype(dtype).itemsize * (count % 7 + 1)), dtype)  # any bits, NaN too
    return rng.choice(few, shape)


def read_in_blocks(dataset: Any, blocks: list[int], helpers: Helpers) -> Any:
    rows = chunks.DatasetRows(h5py, "file: name", dataset, helpers)
    out = np.empty(dataset.shape, dataset.dtype.newbyteorder("="))
    begin, lengths = 0, itertools.cycle(blocks)
    while begin < len(out):
        part = out[begin : begin + next(lengths)]
        whole = part if dataset.dtype.isnative else np.empty(part.shape, part.dtype)
        rows.start(whole)
        helpers.wait()
        rows.finish()
        part[:] = whole
        begin += len(part)
    return out


def write(stored: Any, made: dict[str, Any]) -> None:
    """Write some of the rows, and one chunk by hand: filters left out, or damaged."""
    options = made["options"]
    with h5py.File(stored, "w") as file:
        dataset = file.create_dataset("x", **options)
        rows = random_rows(options["shape"], options["dtype"], made["seed"])
        for first, count in made["written"]:
            dataset[first : first + count] = rows[first : first + count]
        properties = dataset.id.get_create_plist()
        codes = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
        if made["by_hand"] and set(codes) <= {SHUFFLE, DEFLATE}:
            values = random_rows(options["chunks"], options["dtype"], made["seed"] + 1)
            data = bytearray(values.tobytes())
            for position, code in enumerate(codes):
                if not made["mask"] >> position & 1:
                    planes = np.frombuffer(data, np.uint8).reshape(-1, values.itemsize)
                    data = bytearray(planes.T.tobytes() if code == SHUFFLE else zlib.compress(data))
            if made["damage"] is not None:
                data[made["damage"] % len(data)] ^= 1
            dataset.id.write_direct_chunk((0,) * values.ndim, bytes(data), filter_mask=made["mask"])


@pytest.fixture(scope="module")
def helpers() -> Iterator[Helpers]:
    with closing(Helpers(2)) as made:
        yield made


@pytest.mark.parametrize("inflate", INFLATES)
@settings(max_examples=int(os.environ.get("FASTREPLAY_HOSTILE", "60")), deadline=None)
@given(made_datasets())
def test_what_is_unpacked_has_the_bytes_that_h5py_reads(inflate: Any, helpers: Helpers, made: dict[str, Any]) -> None:
    before = chunks._inflate, chunks._MOST_KEPT_BYTES
    chunks._inflate, chunks._MOST_KEPT_BYTES = inflate, made["most_kept"]
    stored = io.BytesIO()
    write(stored, made)
    try:
        with h5py.File(stored) as file:
            dataset = file["x"]
            try:
                expected = dataset[...]
            except OSError:
                with pytest.raises(ValueError, match=r"file: name\[.*the file is damaged"):
                    read_in_blocks(dataset, made["blocks"], helpers)
            else:
                got = read_in_blocks(dataset, made["blocks"], helpers)
                assert got.tobytes() == expected.astype(got.dtype).tobytes()
    finally:
        chunks._inflate, chunks._MOST_KEPT_BYTES = before


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A file whose columns were compressed in chunks of other lengths."""
    path, columns = tmp_path / "data.hdf5", d4rl_of("..t.o....." * 10)
    with h5py.File(path, "w") as file:
        for name, rows in zip(columns, (7, 9, 16, 100, 33), strict=True):
            shape = (rows, *columns[name].shape[1:])
            file.create_dataset(name, data=columns[name], compression="gzip", chunks=shape, shuffle=rows == 9)
    return path


@pytest.mark.parametrize("inflate", INFLATES)
def test_chunks_are_unpacked_once_and_not_by_hdf5(inflate: Any, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked: list[int] = []

    def counted(data: memoryview, num_bytes: int) -> Any:
        unpacked.append(num_bytes)
        return inflate(data, num_bytes)

    monkeypatch.setattr(steps, "_BLOCK_BYTES", 500)
    monkeypatch.setattr(steps, "_MOST_BLOCK_BYTES", 500)
    monkeypatch.setattr(chunks, "_inflate", counted)
    monkeypatch.delattr(chunks.DatasetRows, "_read")
    one, other = new_buffer(lanes=2), new_buffer(lanes=2)
    assert one.load_hdf5(packed) == other.load_arrays(d4rl_of("..t.o....." * 10))
    assert len(unpacked) == sum(-(-100 // rows) for rows in (7, 9, 16, 100, 33))
    for mine, yours in zip(one[:], other[:], strict=True):
        assert np.array_equal(mine, yours)


def test_other_layouts_are_left_to_hdf5(tmp_path: Path, helpers: Helpers) -> None:
    rows = np.arange(24, dtype=np.float32).reshape(12, 2)
    path = tmp_path / "data.hdf5"
    with h5py.File(path, "w") as file:
        packed = file.create_dataset("packed", data=rows, compression="gzip")
        layout = h5py.VirtualLayout((12, 2), np.float32)
        layout[:6], layout[6:] = h5py.VirtualSource(packed)[6:], h5py.VirtualSource(packed)[:6]
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("beside", data=rows, external=[(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)])
        kind = h5py.h5t.STD_I16LE.copy()
        kind.set_precision(12)  # which NumPy has no type for
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((5, 2))
        properties.set_deflate(4)
        space = h5py.h5s.create_simple((12, 2))
        odd = h5py.h5d.create(file.id, b"odd", kind, space, properties)
        odd.write(h5py.h5s.ALL, h5py.h5s.ALL, rows.astype(np.int16))
    with h5py.File(path) as file:
        for name in ("virtual", "beside", "odd"):
            dataset = file[name]
            assert np.array_equal(read_in_blocks(dataset, [5], helpers), dataset[...])


@pytest.mark.parametrize("inflate", INFLATES)
def test_what_would_unpack_to_more_than_a_chunk_takes_no_memory(
    inflate: Any, helpers: Helpers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "_inflate", inflate)
    stored = io.BytesIO()
    with h5py.File(stored, "w") as file:
        dataset = file.create_dataset("x", (64_000,), "u1", chunks=(64_000,), compression="gzip")
        dataset.id.write_direct_chunk((0,), zlib.compress(bytes(8 << 20)))
    with h5py.File(stored) as file:
        rows, out = chunks.DatasetRows(h5py, "file", file["x"], helpers), np.empty(64_000, np.uint8)
        tracemalloc.start()
        try:
            rows.start(out)
            helpers.wait()
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()
        assert len(rows._left) == 1  # which is HDF5's to read


def test_helpers_are_handed_no_more_than_a_little_ahead(helpers: Helpers) -> None:
    is_free, done = threading.Event(), []

    def work() -> None:
        assert is_free.wait(60)
        done.append(1)

    half = apart._MOST_WAITING_BYTES // 2
    for _ in range(2):
        helpers.hand(half, work)
    threading.Timer(0.05, is_free.set).start()
    helpers.hand(1, work)  # waits for the first
    assert is_free.is_set()
    helpers.wait()
    assert len(done) == 3


def test_ctrl_c_inside_a_finalizer_of_the_library_is_raised(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = chunks.DatasetRows.start
    made: list[Any] = []

    class Finalized:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)  # here Python would look for signals, and forget what a handler raises

    def interrupted(self: Any, out: Any) -> None:
        if not made:
            made.append(Finalized())
            made[0] = None
        start(self, out)

    monkeypatch.setattr(chunks.DatasetRows, "start", interrupted)
    buffer, before = new_buffer(lanes=2), {*threading.enumerate()}
    with pytest.raises(KeyboardInterrupt):
        buffer.load_hdf5(packed)
    assert {*threading.enumerate()} <= before
    buffer.clear()
    monkeypatch.undo()
    assert buffer.load_hdf5(packed).transitions == 89
