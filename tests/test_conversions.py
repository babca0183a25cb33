# SPDX-License-Identifier: MIT
"""Minibatches as torch's functions take them: `to` with devices and dtypes, and nodes of its trees."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from support import FIELDS, NativeBuffer, arrays, assert_same, fill
from torch.utils import _pytree as pytree

import fastreplay as fr

MIXED = {**FIELDS, "wide": ((2,), "float64"), "half": ((), "float16"), "z": ((), "complex64")}
FLOATS = ("observation", "reward", "wide", "half")


def batch_of(output: str, kind: str = "sample") -> Any:
    buffer = NativeBuffer(20, MIXED, seed=0, output=output)
    rng = np.random.default_rng(0)
    buffer.extend(*((rng.random((20, *field.shape)) * 9).astype(field.dtype) for field in buffer.schema.values()))
    return {"sample": buffer.sample(5), "gather": buffer.gather([1, 2]), "one": buffer[3]}[kind]


@pytest.mark.parametrize("kind", ["sample", "gather", "one"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_a_dtype_casts_the_floating_point_fields(output: str, kind: str, dtype: torch.dtype) -> None:
    batch = batch_of(output, kind)
    before = arrays(batch)
    expected = {name: torch.from_numpy(np.asarray(value)) for name, value in batch.numpy().items()}
    for name, value in expected.items():
        if name in FLOATS or (name == "z" and dtype.is_complex):
            expected[name] = value.to(dtype)
    forms: list[Any] = [
        lambda b: b.to(dtype),
        lambda b: b.to(dtype=dtype),
        lambda b: b.to("cpu", dtype),
        lambda b: b.to(torch.device("cpu"), dtype, True),
        lambda b: b.to(device="cpu", dtype=dtype, non_blocking=True, copy=True),
        lambda b: b.to(dtype, False, True),
        lambda b: b.to(torch.zeros(3, dtype=dtype)),
        lambda b: b.to(other=torch.zeros(3, dtype=dtype), copy=True),
        lambda b: b.to(None, dtype),
    ]
    for form in forms:
        moved = form(batch)
        assert isinstance(moved, fr.Minibatch)
        assert (moved.schema, moved.batch_size) == (batch.schema, batch.batch_size)
        assert torch.equal(torch.as_tensor(moved.ticket), torch.as_tensor(batch.ticket))
        for name, value in expected.items():
            assert moved[name].dtype == value.dtype
            assert torch.equal(moved[name], value)
    assert_same(batch, before)


def test_nothing_is_copied_that_need_not_be() -> None:
    batch = batch_of("torch")
    for same in (
        batch.to(),
        batch.to("cpu"),
        batch.to(device=None),
        batch.to(None),
        batch.to("cpu", non_blocking=True),
    ):
        assert same is batch
    narrow = NativeBuffer(3, {"x": (2,), "i": ((), "int64")}, seed=0)
    narrow.add([1, 2], 3)
    narrow = narrow.sample(4)
    assert narrow.to(torch.float32) is narrow
    assert narrow.to(torch.zeros(1)) is narrow
    wide = narrow.to(torch.float64)
    assert wide.i.data_ptr() == narrow.i.data_ptr()
    copied = narrow.to(copy=True)
    for name in ("x", "i", "ticket"):
        assert torch.equal(getattr(copied, name), getattr(narrow, name))
        assert getattr(copied, name).data_ptr() != getattr(narrow, name).data_ptr()
    copied.x.zero_()
    assert narrow.x.any()
    shared = batch_of("numpy")
    assert shared.to().reward.data_ptr() == shared.reward.ctypes.data
    assert shared.to("meta", torch.float16).wide.dtype == torch.float16
    assert shared.to("meta").wide.device.type == "meta"


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((torch.int64,), {}, TypeError, "dtype: expected a floating-point dtype, got torch.int64"),
        ((torch.bool,), {}, TypeError, "dtype: expected a floating-point dtype, got torch.bool"),
        (
            (torch.zeros(2, dtype=torch.int32),),
            {},
            TypeError,
            "dtype: expected a floating-point dtype, got torch.int32",
        ),
        ((), {"dtype": np.float16}, TypeError, r"dtype: expected a torch\.dtype, got <class 'numpy\.float16'>"),
        (("cpu", "float16"), {}, TypeError, r"dtype: expected a torch\.dtype, got 'float16'"),
        ((3.5,), {}, TypeError, "device: expected a device, dtype or tensor, got 3.5"),
        ((True,), {}, TypeError, "device: expected a device, dtype or tensor, got True"),
        (("nonsense",), {}, RuntimeError, "device: 'nonsense' cannot be had"),
        (("cuda:99",), {}, RuntimeError, "device: 'cuda:99' cannot be had"),
        (("cuda:99", torch.float32), {}, RuntimeError, "device: 'cuda:99' cannot be had"),
        (("cpu",), {"device": "cpu"}, TypeError, "to: 'device' was given twice"),
        ((torch.float16,), {"dtype": torch.float16}, TypeError, "to: 'dtype' was given twice"),
        ((torch.zeros(1),), {"device": "cpu"}, TypeError, "to: 'device' was given twice, the tensor has one"),
        ((), {"other": 3}, TypeError, "other: expected a tensor, got int"),
        ((), {"memory_format": torch.preserve_format}, TypeError, "to: 'memory_format' is unknown"),
        (("cpu", torch.float16, False, False, 1), {}, TypeError, "to: expected at most 4 arguments"),
        ((torch.float16, False, False, 1), {}, TypeError, "to: expected at most 3 arguments"),
    ],
    ids=str,
)
def test_what_to_refuses(args: Any, kwargs: Any, error: type[Exception], message: str, output: str) -> None:
    with pytest.raises(error, match=message):
        batch_of(output).to(*args, **kwargs)


def test_what_numpy_has_no_dtype_for_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of("torch").to(torch.bfloat16)
    assert batch.numpy().observation.dtype.name == "bfloat16"
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(TypeError, match=r"observation: .*torch\.bfloat16"):
        batch.numpy()
    for again in (*(pickle.loads(pickle.dumps(batch, protocol)) for protocol in range(2, 6)), copy.deepcopy(batch)):
        for name, value in batch.items():
            assert again[name].dtype == value.dtype
            assert torch.equal(again[name], value)
        assert torch.equal(again.ticket, batch.ticket)


@pytest.mark.parametrize("kind", ["sample", "gather", "one"])
def test_trees(output: str, kind: str) -> None:
    batch = batch_of(output, kind)
    leaves, spec = pytree.tree_flatten({"batch": batch, "more": [1]})
    assert len(leaves) == len(MIXED) + 1
    assert all(leaf is value for leaf, value in zip(leaves, batch, strict=False))
    again = pytree.tree_unflatten(leaves, spec)["batch"]
    assert type(again) is fr.Minibatch
    assert_same(again, arrays(batch))
    assert again.batch_size == batch.batch_size
    doubled = pytree.tree_map(lambda value: value + value, batch)
    for name, value in batch.items():
        np.testing.assert_array_equal(doubled[name], np.asarray(value + value))
    np.testing.assert_array_equal(doubled.ticket, batch.ticket)
    kinds = pytree.tree_map(type, batch)
    assert set(kinds.values()) <= {torch.Tensor, np.ndarray}
    assert "Minibatch" in repr(kinds)
    paths = pytree.tree_flatten_with_path(batch)[0]
    keys: list[Any] = [path[0] for path, _ in paths]
    assert [key.key for key in keys] == list(batch.keys())


def test_trees_of_two_minibatches_and_of_part_of_one(output: str) -> None:
    buffer = fill(NativeBuffer(20, FIELDS, seed=0, output=output), 30)
    first, second = buffer.sample(6), buffer.sample(6)
    pairs = pytree.tree_map(lambda a, b: (a, b), first, second)
    assert pairs.reward[1] is second.reward
    sums = pytree.tree_map(lambda a, b: a + b, first, second)
    np.testing.assert_array_equal(sums.reward, np.asarray(first.reward) + np.asarray(second.reward))
    with pytest.raises(ValueError, match="context"):
        pytree.tree_map(lambda a, b: (a, b), first, buffer.sample(7))
    half = pytree.tree_map(lambda value: value[:3], first)
    assert (len(half), half.batch_size) == (3, 3)
    with pytest.raises(AttributeError, match="no field 'ticket'"):
        half.ticket  # noqa: B018
    assert len(half.numpy()) == 3
    assert len(half.to("cpu")) == 3
    assert len(pickle.loads(pickle.dumps(half))) == 3
    one = pytree.tree_map(lambda value: value[0], first)
    assert one.batch_size is None


def test_vmap_sees_single_transitions() -> None:
    batch = fill(NativeBuffer(20, FIELDS, seed=0), 30).sample(6)

    def value(one: Any) -> torch.Tensor:
        assert one.batch_size is None
        total: torch.Tensor = (one.observation * one.reward).sum()
        return total

    expected = (batch.observation * batch.reward[:, None]).sum(1)
    torch.testing.assert_close(torch.vmap(value)(batch), expected)


@pytest.mark.share(2)
@pytest.mark.parametrize("order", ["torch, fastreplay", "fastreplay, torch"])
def test_torch_knows_whichever_is_imported_first(order: str) -> None:
    code = (
        f"import {order}\nimport fastreplay as fr\n"
        "for output in ('numpy', 'torch'):\n"
        "  b = fr.ReplayBuffer(3, {'x': (2,), 'y': ()}, output=output); b.add([1, 2], 3)\n"
        "  import torch.utils._pytree as p\n"
        "  print(len(p.tree_leaves(b.sample(2))), len(p.tree_leaves(b[0])))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["2", "2"] * 2


def test_a_torch_that_is_forbidden_is_not_imported() -> None:
    code = (
        "import sys\nsys.modules['torch'] = None\nimport fastreplay as fr\n"
        "b = fr.ReplayBuffer(3, {'x': (2,)}, output='numpy'); b.add([1, 2])\nprint(len(b.sample(2)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["2"]
