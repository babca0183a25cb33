# SPDX-License-Identifier: MIT
"""Fields that are stored as bfloat16, which NumPy knows by ml_dtypes. torch is the oracle of what is rounded."""

from __future__ import annotations

import pickle
import sys
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
import torch
from support import NativeBuffer
from torch.utils._pytree import tree_map

import fastreplay as fr
from fastreplay.buffer.insert import Inserter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fake_cuda import FakeCuda

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
EVERY = np.arange(2**16, dtype=np.uint16).view(BFLOAT16)


def bits_of(values: Any) -> Any:
    """Give the bits of bfloat16, of an array or a tensor; NaN, which differ in what they say, all the same."""
    bits = values.view(torch.int16).numpy() if isinstance(values, torch.Tensor) else values
    bits = np.ascontiguousarray(bits).view(np.uint16)
    return np.where((bits & 0x7FFF) > 0x7F80, 0x7FC0, bits)


def floats(count: int) -> Any:
    """Give float32 of all bits, and those that lie half-way between two of bfloat16, or beside that."""
    rng = np.random.default_rng(0)
    between = np.arange(2**16, dtype=np.uint32) << 16
    near = [between | low for low in (0x7FFF, 0x8000, 0x8001)]
    bits = np.concatenate([rng.integers(0, 2**32, 4096, np.uint32), *near])
    return rng.permutation(bits)[:count].view(np.float32)


def doubles() -> Any:
    some = np.random.default_rng(1).integers(0, 2**64, 3000, np.uint64).view(np.float64)
    with np.errstate(invalid="ignore"):
        return np.concatenate([some, floats(3000).astype(np.float64), [1e300, -1e39, 1.00390625 + 1e-9]])


SOURCES: dict[str, Any] = {
    "float32": floats(200_704),
    "float64": doubles(),
    "float16": np.arange(2**16, dtype=np.uint16).view(np.float16),
    "int32": np.array([0, 1, -1, 257, 2**24 + 1, -(2**31), 2**31 - 1], np.int32),
    "bool": np.array([True, False]),
    "strided": floats(4000)[::2],
}
TENSORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "float32": lambda tensor: tensor,
    "bfloat16": lambda tensor: tensor.bfloat16(),
    "strided": lambda tensor: tensor.bfloat16().repeat_interleave(2)[::2],
    "to be trained": lambda tensor: tensor.bfloat16().requires_grad_(),
}


@pytest.mark.parametrize("source", SOURCES)
def test_what_goes_in_is_rounded_as_by_torch(source: str) -> None:
    values = SOURCES[source]
    expected = bits_of(torch.from_numpy(values.copy()).to(torch.bfloat16))
    buffer = NativeBuffer(3, {"x": fr.Field(values.shape, "bfloat16")}, output="numpy", seed=0)
    buffer.add(x=values)
    buffer.extend(x=values[None])
    buffer.add(x=values.tolist())  # as doubles
    for row in buffer[:].x:
        assert np.array_equal(bits_of(row), expected)


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_go_in(kind: str) -> None:
    values = torch.from_numpy(floats(3000))
    tensor = TENSORS[kind](values)
    buffer = NativeBuffer(4, {"x": fr.Field(values.shape, "bfloat16", out="float32")}, seed=0)
    buffer.add(x=tensor)
    buffer.extend(x=[tensor, tensor])
    buffer.extend(buffer[:1])
    assert buffer[:].x.dtype == torch.bfloat16
    for row in buffer[:].x:
        assert np.array_equal(bits_of(row), bits_of(values.bfloat16()))
    batch = buffer.sample(2)
    assert torch.equal(batch.x.nan_to_num(), values.bfloat16().float().expand(2, -1).nan_to_num())


@pytest.mark.parametrize(
    "value",
    [
        *(0.1, 1, True, -0.0, 1e300, 2**70, float("nan"), torch.tensor(0.1), torch.tensor(0.1, dtype=torch.bfloat16)),
        *(
            np.float32(0.1),
            np.float64(0.1),
            np.uint8(3),
            np.longdouble(0.1),
            BFLOAT16.type(0.3),
            np.array(0.3, BFLOAT16),
        ),
    ],
    ids=lambda value: f"{type(value).__name__} {value}",
)
def test_scalars_go_in(value: Any) -> None:
    buffer = NativeBuffer(2, {"x": fr.Field((), "bfloat16")}, output="numpy", seed=0)
    buffer.add(x=value)
    buffer.extend(x=[value])
    expected = bits_of(torch.tensor([float(value)] * 2, dtype=torch.float64).to(torch.bfloat16))
    assert np.array_equal(bits_of(buffer.view("x")), expected)


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        ("bfloat16", 1j, "x: expected bfloat16, got complex128, a cast that would lose its kind"),
        ("bfloat16", "1", "x: expected bfloat16, got "),
        ("int32", np.ones((), BFLOAT16), "x: expected int32, got bfloat16, a cast that would lose its kind"),
        ("float32", torch.ones((), dtype=torch.bfloat16), r"x: expected float32, got a torch\.bfloat16"),
        (
            "bfloat16",
            torch.ones((), device="meta", dtype=torch.bfloat16),
            "x: expected bfloat16, got a tensor on device",
        ),
        ("bfloat16", np.zeros((), "V2"), r"x: expected bfloat16, got \|V2"),
    ],
)
def test_what_does_not_fit_is_refused(dtype: str, value: Any, message: str) -> None:
    buffer = NativeBuffer(2, {"x": fr.Field((), dtype)})
    with pytest.raises(TypeError, match=message):
        buffer.add(x=value)
    assert len(buffer) == 0


@pytest.mark.parametrize("dtype", ["V2", np.dtype([("bfloat16", "u2")]), np.dtype((np.void, 2)), ml_dtypes.float8_e5m2])
def test_no_other_dtype_is_taken_for_it(dtype: Any) -> None:
    with pytest.raises(TypeError, match="dtype: expected a numeric dtype or bool, got"):
        fr.Field((), dtype)
    buffer: Any = NativeBuffer(3, {"x": fr.Field((2,), "bfloat16")})
    ring: Any = buffer._ring
    with pytest.raises((TypeError, ValueError)):
        ring.records.column(0, np.dtype(dtype), [2])
    field = fr.Field((2 * 2 // np.dtype(dtype).itemsize,), "uint8")
    object.__setattr__(field, "dtype", np.dtype(dtype))
    schema = fr.Schema._of({"x": field}, buffer.schema.parts)
    with pytest.raises(ValueError, match="schema: expected a number"):
        Inserter(ring, schema, 1.0)
    assert ring.records.column(0, BFLOAT16, [2]).dtype == BFLOAT16


def test_wider_floats_take_it() -> None:
    for dtype in ("float32", "float64", "complex64"):
        buffer = NativeBuffer(1, {"x": fr.Field(EVERY.shape, dtype)}, output="numpy")
        buffer.add(x=EVERY)
        with np.errstate(invalid="ignore"):
            assert np.array_equal(buffer[0].x, EVERY.astype(dtype), equal_nan=True)


@pytest.mark.parametrize("output", ["torch", "numpy"])
def test_minibatches_have_it(output: Any) -> None:
    buffer: Any = NativeBuffer(1, {"x": fr.Field(EVERY.shape, "bfloat16")}, output=output, seed=0)
    buffer.add(x=EVERY)
    batch = buffer.sample(2)
    assert buffer.sample(2, out=batch) is batch
    with buffer.loader(2, steps=1) as loader:
        loaded = next(loader)
    again = [pickle.loads(pickle.dumps(batch, protocol)) for protocol in (2, 5)]
    arrays = [batch.numpy(), loaded.numpy(), batch.to("cpu").numpy(), *(each.numpy() for each in again)]
    for each in (batch, loaded, *again, *arrays):
        assert str(each.x.dtype).removeprefix("torch.") == "bfloat16"
        assert all(np.array_equal(bits_of(row), bits_of(EVERY)) for row in each.x)
    assert arrays[0].x.dtype == BFLOAT16
    assert torch.equal(batch.to(torch.float32).x[0].nan_to_num(), torch.tensor(EVERY.astype("f4")).nan_to_num())


def test_buffers_come_back(tmp_path: Path) -> None:
    import safetensors.torch

    fields: dict[str, Any] = {"x": fr.Field((3,), "bfloat16", out="float32", scale=2), "y": ((), "bfloat16")}
    values = EVERY[:60].reshape(20, 3)
    buffer = NativeBuffer(25, fields, seed=0, path=tmp_path / "ring.fr")
    buffer.extend(x=values, y=values[:, 0])
    buffer.save(tmp_path / "kept")
    (segment,) = (tmp_path / "kept").glob("*.safetensors")
    assert safetensors.torch.load_file(segment)["y"].dtype == torch.bfloat16
    pickled, loaded = pickle.loads(pickle.dumps(buffer)), fr.ReplayBuffer[Any].load(tmp_path / "kept")
    buffer.close()
    found = NativeBuffer(25, fields, path=tmp_path / "ring.fr")
    for twin in (pickled, loaded, found, pickled.resized(30)):
        assert twin.schema == fr.Schema(fields)
        assert np.array_equal(bits_of(twin[:].x), bits_of(values))
        assert twin.sample(2).x.dtype == torch.float32
    found.close()
    assert eval(repr(fields["x"]), {"Field": fr.Field}) == fields["x"]


def test_data_goes_in(tmp_path: Path) -> None:
    values = floats(60).reshape(20, 3)
    rounded = torch.from_numpy(values.copy()).bfloat16()
    np.savez(tmp_path / "data.npz", x=values)
    buffer = NativeBuffer(40, {"x": fr.Field((3,), "bfloat16")}, seed=0)
    buffer.load_npz(tmp_path / "data.npz")
    buffer.load_arrays({"x": rounded})
    made = fr.from_arrays({"x": rounded})
    assert made.schema["x"].dtype == BFLOAT16
    for rows in (buffer[:20].x, buffer[20:].x, made[:].x):
        assert np.array_equal(bits_of(rows), bits_of(rounded))


@pytest.mark.parametrize(("value", "is_end"), [(1, True), (1e-40, True), (np.nan, True), (0, False), (-0.0, False)])
def test_every_number_but_zero_ends(value: float, is_end: bool) -> None:
    buffer = NativeBuffer(10, {"reward": (), "done": fr.Field((2,), "bfloat16")}, lanes=1, ends=["done"], seed=0)
    buffer.add(1.0, [0, value])
    buffer.add(1.0, [0, 0])
    drawn = buffer.sampler(draw=fr.Epochs(shuffle=False), follow=fr.NStep(2, 1.0)).sample(2)
    assert drawn.reward.tolist() == [1 if is_end else 2, 1]


def test_a_device_has_it(cuda: FakeCuda) -> None:
    fields: dict[str, Any] = {
        "x": fr.Field((5,), "bfloat16"),
        "frames": fr.Field((3,), "bfloat16", stack=2, out="float32"),
    }
    here, there = (
        NativeBuffer(9, fields, seed=0, lanes=1, ends=(), **place)
        for place in ({}, {"device": "cuda:0", "storage": "cuda"})
    )
    for buffer in (here, there):
        buffer.extend(x=EVERY[:45].reshape(9, 5), frames=EVERY[300:354].reshape(9, 2, 3))
    expected, batch = here.sample(7), there.sample(7)
    cuda.run_all()
    assert batch.x.dtype == torch.bfloat16
    assert np.array_equal(bits_of(batch.x), bits_of(expected.x))
    assert torch.equal(batch.frames, expected.frames)


def test_where_ml_dtypes_is_not_there_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    buffer = NativeBuffer(3, {"x": fr.Field((2,), "bfloat16")}, seed=0)
    buffer.extend(x=np.ones((3, 2)))
    buffer.save(tmp_path / "kept")
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    calls: list[Callable[[], object]] = [
        lambda: fr.Field((2,), "bfloat16"),
        lambda: fr.ReplayBuffer.load(tmp_path / "kept"),
    ]
    for call in calls:
        with pytest.raises(ImportError, match=r"^bfloat16 needs ml_dtypes: pip install 'fastreplay\[bfloat16\]'"):
            call()


def test_a_sparse_tensor_cannot_be_pickled() -> None:
    buffer = NativeBuffer(10, {"x": fr.Field((2,), "bfloat16")}, seed=0)
    buffer.add(x=np.ones(2))
    sparse: Any = tree_map(lambda value: value.to_sparse(), buffer.sample(2))
    with pytest.raises(TypeError, match=r"x: expected a tensor that NumPy can hold, got a torch.bfloat16 torch.sparse"):
        pickle.dumps(sparse)
