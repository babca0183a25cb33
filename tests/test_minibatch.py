# SPDX-License-Identifier: MIT
"""Minibatch: mapping, attributes, tuple, memory layout, dtypes, devices."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from support import FIELDS, NativeBuffer, arrays, assert_same, fill

import fastreplay as fr

DTYPES = [*"bBhHiIlLefdFD?"]
LONG = [*"gG"]  # torch has none
NESTED = {"o/pos": (2,), "o/in/left": (), "o/in/right": ((), "int8"), "pair/0": (), "pair/1": ()}


def batch_of(output: str, batch_size: int = 5, fields: Any = FIELDS) -> Any:
    buffer = NativeBuffer(20, fields, seed=0, output=output)
    if fields is FIELDS:
        return fill(buffer, 30).sample(batch_size)
    rng = np.random.default_rng(0)
    for _ in range(20):
        buffer.add(*((rng.random(f.shape) * 9).astype(f.dtype) for f in buffer.schema.values()))
    return buffer.sample(batch_size)


def is_output(value: Any, output: str) -> bool:
    return isinstance(value, torch.Tensor if output == "torch" else np.ndarray)


def test_it_is_a_mapping(output: str) -> None:
    batch = batch_of(output)
    assert list(batch.keys()) == list(FIELDS) == list(batch.schema.names)
    assert all(batch[name] is value for name, value in batch.items())
    assert all(a is b for a, b in zip(batch.values(), batch, strict=True))
    assert list(dict(batch)) == list(FIELDS)
    assert dict(batch)["action"] is batch["action"]
    assert dict(**batch)["reward"] is batch["reward"]
    assert "reward" in batch
    assert "rewrd" not in batch
    assert "ticket" not in batch
    assert batch.get("reward") is batch["reward"]
    assert batch.get("rewrd") is None
    assert batch.get("rewrd", 3) == 3
    with pytest.raises(KeyError, match="rewrd"):
        batch["rewrd"]


def test_it_has_attributes(output: str) -> None:
    batch = batch_of(output)
    for name in FIELDS:
        assert getattr(batch, name) is batch[name]
    with pytest.raises(AttributeError, match="rewrd"):
        batch.rewrd  # noqa: B018
    assert not hasattr(batch, "__array__")
    assert batch.schema == fr.Schema(FIELDS)


def test_it_unpacks_like_a_tuple(output: str) -> None:
    batch = batch_of(output)
    observation, action, *rest = batch
    assert observation is batch.observation
    assert action is batch.action
    assert len(rest) == 3
    with pytest.raises(ValueError, match="unpack"):
        _, _ = batch


@pytest.mark.parametrize("batch_size", [1, 2, 33])
def test_len_is_the_number_of_transitions(output: str, batch_size: int) -> None:
    batch = batch_of(output, batch_size)
    assert len(batch) == batch_size
    assert batch.ticket.shape == (batch_size,)
    assert is_output(batch.ticket, output)
    assert str(batch.ticket.dtype).removeprefix("torch.") == "int64"


@pytest.mark.parametrize("batch_size", [1, 3, 64, 257])
@pytest.mark.parametrize("dtype", [*DTYPES, *LONG])
def test_dtype_contiguity_alignment_and_one_block(output: str, dtype: str, batch_size: int) -> None:
    if output == "torch" and dtype in LONG:
        output = "numpy"
    fields = {"a": ((), dtype), "pad": ((3,), "uint8"), "b": ((5,), dtype), "c": ((2, 1, 3), dtype)}
    buffer = NativeBuffer(20, fields, seed=0, output=output)
    buffer.extend(*(np.ones((20, *f.shape), f.dtype) for f in buffer.schema.values()))
    out = buffer.sample(batch_size)
    for batch in (out, buffer.sample(batch_size, out=out), buffer.gather(np.arange(7)), buffer[2:9]):
        spans = []
        for name, field in buffer.schema.items():
            assert is_output(batch[name], output)
            assert str(batch[name].dtype).removeprefix("torch.") == field.dtype.name
            array = batch.numpy()[name]
            assert array.shape == (len(batch), *field.shape)
            assert array.dtype == field.dtype
            assert array.flags.c_contiguous
            assert array.flags.writeable
            assert array.ctypes.data % 256 == 0
            assert np.all(array == 1)
            spans.append((array.ctypes.data, array.ctypes.data + array.nbytes))
        spans.sort()
        gaps = [after[0] - before[1] for before, after in itertools.pairwise(spans)]
        assert min(gaps) >= 0
        assert sum(gaps) <= 256 * len(gaps) + 256 + 8 * len(batch)  # the tickets may lie between
        if output == "torch":
            assert batch["a"].is_contiguous()
            storages = {value.untyped_storage().data_ptr() for value in batch.values()}
            assert len(storages) == 1 or min(storages) == spans[0][0]


def test_writing_to_a_minibatch_leaves_the_ring_alone(output: str) -> None:
    buffer = fill(NativeBuffer(20, FIELDS, seed=0, output=output), 30)
    before = arrays(buffer[:])
    for batch in (buffer.sample(20), buffer[:], buffer.gather(range(20)), buffer[3]):
        for value in batch.numpy().values():
            value[...] = 1
    assert_same(buffer[:], before)


def test_numpy_shares_memory_on_the_cpu() -> None:
    batch = batch_of("torch")
    as_numpy = batch.numpy()
    assert isinstance(as_numpy, fr.Minibatch)
    assert as_numpy.schema == batch.schema
    for name, value in as_numpy.items():
        assert isinstance(value, np.ndarray)
        assert value.ctypes.data == batch[name].data_ptr()
    assert isinstance(as_numpy.ticket, np.ndarray)
    assert_same(as_numpy, batch)
    assert_same(as_numpy.numpy(), batch)


def test_to_cpu_gives_tensors(output: str) -> None:
    batch = batch_of(output)
    for device in ("cpu", torch.device("cpu")):
        moved = batch.to(device)
        assert isinstance(moved, fr.Minibatch)
        assert all(isinstance(value, torch.Tensor) for value in (*moved, moved.ticket))
        assert len(moved) == len(batch)
        assert_same(moved, batch)


def test_to_another_device(output: str) -> None:
    batch = batch_of(output, 7)
    moved = batch.to("meta")
    assert isinstance(moved, fr.Minibatch)
    assert moved.schema == batch.schema
    assert len(moved) == 7
    for name, field in batch.schema.items():
        assert moved[name].device.type == "meta"
        assert moved[name].shape == (7, *field.shape)
        assert str(moved[name].dtype) == f"torch.{field.dtype.name}"
    assert moved.ticket.device.type == "meta"
    assert moved.ticket.shape == (7,)
    assert batch.to("cpu")["reward"].device.type == "cpu"


def test_one_transition_to_another_device(output: str) -> None:
    buffer = fill(NativeBuffer(20, FIELDS, output=output), 3)
    assert buffer[1].to("meta").pixels.shape == (2, 3)
    assert_same(buffer[1].to("cpu"), buffer[1])


def test_repr_names_the_fields(output: str) -> None:
    text = repr(batch_of(output, 77))
    for part in ("Minibatch", "77", *FIELDS):
        assert part in text


def test_nested_names(output: str) -> None:
    batch = batch_of(output, 4, NESTED)
    observation = batch["o"]
    assert isinstance(observation, dict)
    assert list(observation) == ["pos", "in"]
    assert list(observation["in"]) == list(batch["o/in"]) == ["left", "right"]
    assert observation["pos"] is batch["o/pos"]
    assert observation["in"]["right"] is batch["o/in/right"] is batch["o/in"]["right"]
    assert batch.o["in"]["left"] is batch["o/in/left"]
    first, second = batch["pair"]  # what a Tuple space gives and takes
    assert first is batch["pair/0"]
    assert second is batch["pair/1"]
    assert list(batch.keys()) == list(NESTED)
    assert [value.shape for value in batch] == [(4, 2), (4,), (4,), (4,), (4,)]
    with pytest.raises(KeyError):
        batch["o/i"]
    with pytest.raises(KeyError):
        batch["o/"]
    again = NativeBuffer(4, NESTED, output="numpy")
    again.extend(o=batch["o"], pair=batch["pair"])
    assert_same(dict(again[:].items()), dict(batch.numpy().items()))


def test_names_that_are_no_identifiers(output: str) -> None:
    batch = batch_of(output, 4, {"log prob": (), "naïve": (2,), "class": ((), "int8")})
    assert batch["log prob"].shape == (4,)
    assert getattr(batch, "naïve").shape == (4, 2)  # noqa: B009
    assert getattr(batch, "class") is batch["class"]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(output: str, protocol: int) -> None:
    for batch in (batch_of(output), batch_of(output, 1), batch_of(output, 3, NESTED)):
        loaded = pickle.loads(pickle.dumps(batch, protocol))
        assert isinstance(loaded, fr.Minibatch)
        assert loaded.schema == batch.schema
        assert all(is_output(value, output) for value in (*loaded, loaded.ticket))
        assert_same(loaded, batch)


def test_copies_are_independent(output: str) -> None:
    batch = batch_of(output)
    before = arrays(batch)
    for other in (copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
        for value in (*other.numpy().values(), other.numpy().ticket):
            value[...] = 1
    assert_same(batch, before)


def test_a_minibatch_trains_a_network() -> None:
    batch = batch_of("torch", 64)
    net = torch.nn.Linear(3, 2)
    loss = (net(batch.observation).gather(1, batch.action % 2).mean(1) - batch.reward).pow(2).mean()
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())
    assert not any(value.requires_grad for value in batch)
    batch.reward.mul_(0.5)


def test_fresh_minibatches_do_not_share_memory(output: str) -> None:
    buffer = fill(NativeBuffer(20, FIELDS, seed=0, output=output), 30)
    first = buffer.sample(16)
    kept = arrays(first)
    second = buffer.sample(16)
    for a in first.numpy().values():
        assert not any(np.shares_memory(a, b) for b in second.numpy().values())
    for value in second.numpy().values():
        value[...] = 0
    assert_same(first, kept)


def test_a_name_is_in_a_minibatch_where_it_gives_something(output: str) -> None:
    """A field, a part of several, and what the rule made beside fields: `if "weight" in batch` is no trap."""
    fields: dict[str, Any] = {"observation/a": (2,), "observation/b": (), "reward": ()}
    buffer = NativeBuffer(10, fields, seed=0, output=output, lanes=1, ends=(), priorities=fr.Priorities())
    buffer.extend(**{"observation/a": np.zeros((5, 2)), "observation/b": np.zeros(5), "reward": np.zeros(5)})
    mixture = fr.Mixture({buffer: 1, buffer.sampler(): 1})
    batches = {
        "discount": buffer.sample(3, follow=fr.NStep(2, 0.9)),
        "mask": buffer.sample(3, follow=fr.Sequence(2)),
        "observation_mask": buffer.sample(3, follow=fr.Window({"observation": range(2)})),
        "source": mixture.sample(4),
        "weight": buffer.sample(3),
        "reward": buffer[0],
    }
    names = [
        *batches,
        "probability",
        "trained",
        "is_first",
        *fields,
        "observation",
        "ticket",
        "observation/c",
        "",
        None,
        3,
    ]
    for made, batch in batches.items():
        assert made in batch
        for name in names:
            assert (name in batch) == (batch.get(name) is not None), (made, name)
        assert batch.keys() == tuple(fields)  # of which the values are


class Noted(fr.Minibatch[Any]):
    """With attributes of its own."""


class Slotted(fr.Minibatch[Any]):
    __slots__ = ("note",)


@pytest.mark.parametrize("kind", [Noted, Slotted])
def test_a_subclass_has_attributes_of_its_own(kind: type[Any], output: str) -> None:
    batch = batch_of(output)
    made = kind(batch.schema, batch.values(), None, 5, batch.ticket)
    with pytest.raises(AttributeError, match="the minibatch has no field 'note'"):
        _ = made.note
    made.note = "mine"
    assert made.note == "mine"
    assert made.reward is batch.reward
    assert made["reward"] is batch.reward
    assert made.ticket is batch.ticket
    if kind is Noted:
        made.reward = "mine, too"  # comes first, as in any object
        assert made.reward == "mine, too"
        assert made["reward"] is batch.reward
        assert vars(made) == {"note": "mine", "reward": "mine, too"}
    del made.note
    with pytest.raises(AttributeError, match="the minibatch has no field 'note'"):
        _ = made.note


ASKED: dict[str, Any] = {
    "by name": lambda batch: batch["reward"] + batch["o/in/left"],
    "a part": lambda batch: batch["o"]["pos"].sum(-1) + batch.o["in"]["left"],
    "by attribute": lambda batch: batch.reward * batch.batch_size,
    "unpacked": lambda batch: sum(value.flatten(1).sum(-1) if value.ndim > 1 else value for value in [*batch]),
    "tickets": lambda batch: batch.ticket + len(batch),
}


@pytest.mark.parametrize("asked", ASKED)
def test_torch_compile_looks_through_it(asked: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(ASKED[asked], backend="eager", fullgraph=True)
    for _ in range(3):
        batch = batch_of("torch", 4, {"o/pos": (2,), "o/in/left": (), "reward": ()})
        assert torch.equal(compiled(batch), ASKED[asked](batch))  # type: ignore[no-untyped-call]
