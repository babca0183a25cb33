# SPDX-License-Identifier: MIT
"""A minibatch is the caller's: what is done to a part of it shows in no other part, and in no later minibatch."""

from __future__ import annotations

import gc
import io
import pickle
import threading
import weakref
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.multiprocessing  # registers how tensors are sent
import torch.utils.dlpack
from support import FIELDS, NativeBuffer, arrays, assert_holds, fill, rows_of
from torch.autograd import forward_ad as typed_forward_ad

forward_ad: Any = typed_forward_ad

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH_SIZE = 8
# Forward AD does so when it is first used.
SCRIPTS_ITS_FORMULAS = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@pytest.fixture(params=["as torch tells", "without torch's functions"])
def buffer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param != "as torch tells":
        monkeypatch.setattr("fastreplay.support.torch_abi.torch_abi", lambda: None)
    return fill(NativeBuffer(200, FIELDS, seed=0), 300)


def packed_away(tensor: torch.Tensor) -> None:
    torch.nn.utils.vector_to_parameters(torch.zeros(tensor.numel()), [tensor])


def swapped(tensor: torch.Tensor) -> None:
    swap_tensors: Any = torch.utils.swap_tensors
    swap_tensors(tensor, torch.zeros_like(tensor))


# Ways in which a tensor leaves the memory that it was made in.
MOVES: dict[str, Callable[[Any], Any]] = {
    "data": lambda tensor: setattr(tensor, "data", tensor * 0.5),
    "data of another shape": lambda tensor: setattr(tensor, "data", torch.zeros(2)),
    "set_": lambda tensor: tensor.set_(torch.ones_like(tensor)),
    "set_ to nothing": lambda tensor: tensor.set_(),
    "vector_to_parameters": packed_away,
    "swap_tensors": swapped,
    "share_memory_": lambda tensor: tensor.share_memory_(),
    "sent": ForkingPickler.dumps,
}
# Ways in which a tensor stays there, and its elements are others.
CHANGES: dict[str, Callable[[Any], Any]] = {
    "unsqueeze_": lambda tensor: tensor.unsqueeze_(0),
    "transposed": lambda tensor: tensor.unsqueeze_(0).transpose_(0, 1),
    "resize_": lambda tensor: tensor.resize_(tensor.shape[0] // 2, *tensor.shape[1:]),
    "as_strided_": lambda tensor: tensor.as_strided_(tensor.shape, [0] * tensor.ndim),
    "data of a part": lambda tensor: setattr(tensor, "data", tensor[:3]),
    "data of another dtype": lambda tensor: setattr(tensor, "data", tensor.view(torch.int8)),
    "data of each second": lambda tensor: setattr(tensor, "data", tensor[::2]),
}
ARRAY_CHANGES: dict[str, Callable[[Any], Any]] = {
    "shape": lambda array: setattr(array, "shape", (1, *array.shape)),
    "dtype": lambda array: setattr(array, "dtype", np.int8 if array.itemsize == 1 else f"i{array.itemsize // 2}"),
    "byte order": lambda array: setattr(array, "dtype", array.dtype.newbyteorder()),
    "strides": lambda array: setattr(array, "strides", [0] * array.ndim),
    "read-only": lambda array: array.setflags(write=False),
}
# Ways to keep another field.
HOLDS: dict[str, Callable[[Any], Any]] = {
    "tensor": lambda tensor: tensor,
    "numpy": lambda tensor: tensor.numpy(),
    "detach": lambda tensor: tensor.detach(),
    "data": lambda tensor: tensor.data,
    "parameter": torch.nn.Parameter,
    "view": lambda tensor: tensor[:],
    "numpy of a view": lambda tensor: tensor[:].numpy(),
    "dlpack": torch.utils.dlpack.from_dlpack,
    "memoryview": lambda tensor: memoryview(tensor.numpy()),
}


@pytest.mark.share(3)
@pytest.mark.parametrize("hold", HOLDS.values(), ids=HOLDS.keys())
@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES.keys())
@pytest.mark.parametrize("after", ["dropped before", "dropped after"])
def test_a_field_that_moves_leaves_the_others_alone(
    buffer: Any, move: Callable[[Any], Any], hold: Callable[[Any], Any], after: str
) -> None:
    for _ in range(3):
        batch = buffer.sample(BATCH_SIZE)
        held = hold(batch.observation)
        before = np.array(_readable(held), copy=True)
        if after == "dropped before":
            reward = batch.reward
            del batch
            move(reward)
            del reward
        else:
            move(batch.reward)
            del batch
        for _ in range(15):  # more than there can be blocks that wait for use
            assert_is_new(buffer.sample(BATCH_SIZE))
        np.testing.assert_array_equal(_readable(held), before)


def _readable(held: Any) -> Any:
    return held.detach().numpy() if isinstance(held, torch.Tensor) else np.asarray(held)


def assert_is_new(batch: Any) -> None:
    """Assert that a minibatch of FIELDS holds its tickets' rows, in tensors as fresh ones are."""
    assert_holds(batch, batch.ticket.numpy())
    parts: list[tuple[str, Any]] = [*batch.items(), ("ticket", batch.ticket)]
    for name, value in parts:
        assert type(value) is torch.Tensor, name
        tensor: Any = value
        assert tensor.is_leaf, name
        assert not tensor.requires_grad, name
        assert tensor.grad is None, name
        assert tensor.grad_fn is None, name
        assert tensor._backward_hooks is None, name
        assert not tensor.__dict__, name
        assert tensor._version == 0, name
        assert tensor.is_contiguous(), name
        assert tensor.storage_offset() == 0, name
        assert not tensor.is_inference(), name
        assert not tensor.is_shared(), name
        assert weakref.getweakrefcount(tensor) == 0, name
        assert not tensor.untyped_storage().resizable(), name
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size(), name


def forward_derivative(tensor: torch.Tensor) -> None:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(tensor.requires_grad_(), torch.ones_like(tensor))
        assert dual.sum() is not None
        tensor.requires_grad_(False)


def tangent_in_place(tensor: torch.Tensor) -> None:
    level = forward_ad.enter_dual_level()
    try:
        tensor.copy_(forward_ad.make_dual(tensor.clone(), torch.ones_like(tensor)))
    finally:
        forward_ad.exit_dual_level(level=level)


def retained(tensor: torch.Tensor) -> None:
    tensor.requires_grad_().retain_grad()
    tensor.requires_grad_(False)


def own_dictionary(tensor: torch.Tensor) -> dict[str, Any]:
    return tensor.__dict__


LEFT: dict[str, Callable[[Any], Any]] = {
    "a version": lambda tensor: tensor.add_(1),
    "a version through a view": lambda tensor: tensor[:1].zero_(),
    "a version through detach": lambda tensor: tensor.detach().zero_(),
    "a version without change": torch.autograd.graph.increment_version,
    "a dual number": forward_derivative,
    "a tangent": tangent_in_place,
    "retain_grad": retained,
    "grad_dtype": lambda tensor: setattr(tensor, "grad_dtype", torch.float64),
    "the dictionary": own_dictionary,
    "another dictionary": lambda tensor: setattr(tensor, "__dict__", {}),
    "a weak reference": weakref.ref,
    "its storage": lambda tensor: tensor.untyped_storage(),
    "a negative": lambda tensor: torch._C._set_neg(tensor, True) if hasattr(torch._C, "_set_neg") else tensor.neg_(),
    "in-place transposition": lambda tensor: tensor.unsqueeze_(0),
    "a smaller size": lambda tensor: tensor.resize_(2),
    "other strides": lambda tensor: tensor.as_strided_((2,), (2,)),
}


@SCRIPTS_ITS_FORMULAS
@pytest.mark.parametrize("leave", LEFT.values(), ids=LEFT.keys())
def test_a_trace_ends_with_its_minibatch(buffer: Any, leave: Callable[[Any], Any]) -> None:
    for name in ("reward", "observation"):
        for _ in range(5):
            batch = buffer.sample(BATCH_SIZE)
            left = leave(batch[name])
            del batch
            assert_is_new(buffer.sample(BATCH_SIZE))
            if isinstance(left, dict):
                left["late"] = 1
            for _ in range(20):
                assert_is_new(buffer.sample(BATCH_SIZE))
            del left


def test_a_weak_reference_never_shows_other_rows(buffer: Any) -> None:
    ends: list[int] = []
    for turn in range(20):
        batch = buffer.sample(BATCH_SIZE)
        reference, seen = weakref.ref(batch.reward), batch.reward.clone()
        weakref.finalize(batch.observation, ends.append, turn)
        del batch
        for _ in range(5):
            buffer.sample(BATCH_SIZE)
            alive = reference()
            assert alive is None or torch.equal(alive, seen)
            del alive
    del buffer
    gc.collect()
    assert sorted(ends) == list(range(20))


@SCRIPTS_ITS_FORMULAS
def test_loader_minibatches_are_as_those_of_sample(buffer: Any) -> None:
    with buffer.loader(BATCH_SIZE, depth=3) as loader:
        held = []
        for turn in range(60):
            batch = next(loader)
            assert_is_new(batch)
            held.append((batch.reward, batch.reward.clone()))
            list(MOVES.values())[turn % len(MOVES)](batch.observation)
            list(LEFT.values())[turn % len(LEFT)](batch.reward[:] if turn % 3 else batch.ticket.float())
            held[-1] = (batch.reward, batch.reward.clone())
            del batch
            held = held[-7:]
            assert all(torch.equal(reward, copy) for reward, copy in held)


# out=


@pytest.mark.parametrize("move", [*MOVES.values(), *CHANGES.values()], ids=[*MOVES, *CHANGES])
@pytest.mark.parametrize("name", [*FIELDS, "ticket"])
@pytest.mark.parametrize("call", ["sample", "gather"])
def test_out_is_refused_where_a_field_is_not_as_it_was_made(
    buffer: Any, move: Callable[[Any], Any], name: str, call: str
) -> None:
    batch = buffer.sample(BATCH_SIZE)
    tensor = batch.ticket if name == "ticket" else batch[name]
    if tensor.dtype == torch.bool and move is MOVES["data"]:
        tensor.data = ~tensor
    else:
        move(tensor)
    before = [value.clone() for value in (*batch.values(), batch.ticket)]
    versions = [value._version for value in batch.values()]
    state = buffer.rng_state
    with pytest.raises(ValueError, match=f"out: expected the minibatch as it was made, got '{name}'"):
        buffer.sample(BATCH_SIZE, out=batch) if call == "sample" else buffer.gather(range(BATCH_SIZE), out=batch)
    assert all(torch.equal(now, then) for now, then in zip((*batch.values(), batch.ticket), before, strict=True))
    assert [value._version for value in batch.values()] == versions
    assert buffer.rng_state == state


# A backward pass from the new rows would give derivatives at the old ones.
DERIVATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "mul_": lambda tensor, weight: tensor.mul_(weight),
    "in a view": lambda tensor, weight: tensor[1:].mul_(weight),
    "copy_": lambda tensor, weight: tensor.copy_(tensor * weight),
    "of a leaf": lambda tensor, _: tensor.requires_grad_().detach_().add_(torch.ones((), requires_grad=True)),
    "custom": torch.ops.aten.mul_.Tensor,
}


@pytest.mark.parametrize("derive", DERIVATIONS.values(), ids=DERIVATIONS.keys())
@pytest.mark.parametrize("name", ["observation", "reward"])
@pytest.mark.parametrize("call", ["sample", "gather"])
def test_out_is_refused_where_autograd_made_a_field_of_others(
    buffer: Any, derive: Callable[[Any, Any], Any], name: str, call: str
) -> None:
    batch = buffer.sample(BATCH_SIZE)
    weight = torch.tensor(2.0, dtype=batch[name].dtype, requires_grad=True)
    derive(batch[name], weight)
    before, state = [value.detach().clone() for value in batch.values()], buffer.rng_state
    with pytest.raises(ValueError, match=f"out: expected the minibatch as it was made, got '{name}' .* from others"):
        buffer.sample(BATCH_SIZE, out=batch) if call == "sample" else buffer.gather(range(BATCH_SIZE), out=batch)
    assert all(torch.equal(now, then) for now, then in zip(batch.values(), before, strict=True))
    assert buffer.rng_state == state


def test_out_may_be_of_leaves(buffer: Any) -> None:
    batch = buffer.sample(BATCH_SIZE)
    for turn in range(3):
        batch.reward.requires_grad_()
        batch.reward.grad = torch.ones_like(batch.reward)
        assert buffer.sample(BATCH_SIZE, out=batch) is batch
        assert batch.reward._version == turn + 1
        (batch.reward * 3).sum().backward()
        assert torch.equal(batch.reward.grad, torch.full_like(batch.reward, 4))


@pytest.mark.parametrize("change", ARRAY_CHANGES.values(), ids=ARRAY_CHANGES.keys())
@pytest.mark.parametrize("name", [*FIELDS, "ticket"])
@pytest.mark.parametrize("call", ["sample", "gather"])
@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
def test_out_is_refused_where_an_array_is_not_as_it_was_made(
    change: Callable[[Any], Any], name: str, call: str, output: Any
) -> None:
    buffer = fill(NativeBuffer(200, FIELDS, seed=0, output=output), 300)
    batch = buffer.sample(BATCH_SIZE).numpy()
    array = batch.ticket if name == "ticket" else batch[name]
    if change is ARRAY_CHANGES["byte order"] and array.itemsize == 1:
        pytest.skip("one byte has no order")
    change(array)
    before, state = [value.copy() for value in (*batch.values(), batch.ticket)], buffer.rng_state
    with pytest.raises(ValueError, match=f"out: expected the minibatch as it was made, got '{name}'"):
        buffer.sample(BATCH_SIZE, out=batch) if call == "sample" else buffer.gather(range(BATCH_SIZE), out=batch)
    assert all(map(np.array_equal, (*batch.values(), batch.ticket), before))
    assert buffer.rng_state == state


def test_a_field_of_other_elements_is_moved_as_it_is(buffer: Any) -> None:
    batch = buffer.sample(BATCH_SIZE)
    batch.observation.unsqueeze_(0)
    assert batch.to("meta").observation.shape == batch.observation.shape


def test_out_through_arrays_is_refused_where_one_lies_elsewhere() -> None:
    buffer = fill(NativeBuffer(200, FIELDS, seed=0, output="numpy"), 300)
    batch = buffer.sample(BATCH_SIZE)
    batch.reward.__setstate__(np.zeros(3, np.float32).__reduce__()[2])
    with pytest.raises(ValueError, match="got 'reward'"):
        buffer.sample(BATCH_SIZE, out=batch)


def test_out_of_a_minibatch_as_arrays_shows_in_its_tensors(buffer: Any) -> None:
    batch = buffer.sample(BATCH_SIZE)
    same = batch.numpy()
    assert buffer.sample(BATCH_SIZE, out=same) is same
    assert_holds(same, same.ticket)
    assert_holds(batch, same.ticket)
    assert batch.reward._version == 1


@pytest.mark.parametrize("name", ["observation", "reward"])
@pytest.mark.parametrize("call", ["sample", "gather"])
def test_out_tells_autograd(buffer: Any, name: str, call: str) -> None:
    batch = buffer.sample(BATCH_SIZE)
    weight = torch.ones_like(batch[name], requires_grad=True)
    loss = (batch[name] * weight).sum()
    assert batch[name]._version == 0
    buffer.sample(BATCH_SIZE, out=batch) if call == "sample" else buffer.gather(range(BATCH_SIZE), out=batch)
    assert [tensor._version for tensor in (*batch.values(), batch.ticket)] == [1] * (len(FIELDS) + 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(loss)


def test_out_that_is_refused_tells_autograd_nothing(buffer: Any) -> None:
    batch = buffer.sample(BATCH_SIZE)
    weight = torch.ones_like(batch.reward, requires_grad=True)
    loss = (batch.reward * weight).sum()
    buffer.clear()
    with pytest.raises(ValueError, match="empty"):
        buffer.sample(BATCH_SIZE, out=batch)
    torch.autograd.backward(loss)
    assert weight.grad is not None
    assert torch.equal(weight.grad, batch.reward)


# Each field has its own storage.


def test_saving_a_field_saves_that_field(buffer: Any) -> None:
    batch = buffer.sample(1000)
    with io.BytesIO() as file:
        torch.save(batch.reward, file)
        assert file.tell() < batch.reward.nbytes + 4096
        file.seek(0)
        assert torch.equal(torch.load(file), batch.reward)


def test_fields_count_versions_by_themselves(buffer: Any) -> None:
    batch = buffer.sample(BATCH_SIZE)
    batch.reward.add_(1)
    assert [tensor._version for tensor in batch.values()] == [int(name == "reward") for name in FIELDS]


def test_a_moved_field_moves_alone(buffer: Any) -> None:
    batch = buffer.sample(BATCH_SIZE)
    places = {name: tensor.data_ptr() for name, tensor in batch.items()}
    batch.reward.share_memory_()
    assert [name for name, tensor in batch.items() if tensor.data_ptr() != places[name]] == ["reward"]
    assert [name for name, tensor in batch.items() if tensor.is_shared()] == ["reward"]


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES.keys())
def test_a_minibatch_is_converted_from_where_its_fields_are_now(buffer: Any, move: Callable[[Any], Any]) -> None:
    batch = buffer.sample(BATCH_SIZE)
    move(batch.reward)
    for made in (batch.to("cpu"), batch.numpy(), pickle.loads(pickle.dumps(batch))):
        assert np.array_equal(np.asarray(made.reward), batch.reward.numpy())
        assert np.array_equal(np.asarray(made.observation), batch.observation.numpy())
    meta = batch.to("meta")
    assert meta.reward.shape == batch.reward.shape


def _send_back(inbox: Any, outbox: Any) -> None:
    while (tensors := inbox.get()) is not None:
        outbox.put([tensor.clone() for tensor in tensors])


def test_fields_sent_to_another_process() -> None:
    context = torch.multiprocessing.get_context("spawn")
    inbox, outbox = context.Queue(), context.Queue()
    process: Any = context.Process(target=_send_back, args=(inbox, outbox), daemon=True)
    process.start()
    buffer = fill(NativeBuffer(200, FIELDS, seed=0), 300)
    for _ in range(5):
        batch = buffer.sample(BATCH_SIZE)
        expected = arrays(batch)
        inbox.put([batch.reward, batch.pixels])
        reward, pixels = outbox.get(timeout=120)
        assert np.array_equal(reward.numpy(), expected["reward"])
        assert np.array_equal(pixels.numpy(), expected["pixels"])
        with pytest.raises(ValueError, match="got 'reward'"):
            buffer.sample(BATCH_SIZE, out=batch)
        del batch, reward, pixels
        assert_is_new(buffer.sample(BATCH_SIZE))
    inbox.put(None)
    process.join(120)
    assert process.exitcode == 0


# Memory goes when the last owner goes, and not before.


@pytest.mark.parametrize("output", ["torch", "numpy"])
@pytest.mark.parametrize("use", ["sample", "loader", "spawn", "slice", "pickle"])
def test_a_buffer_goes_at_once(output: str, use: str) -> None:
    gc.collect()
    gc.disable()
    try:
        buffer = fill(NativeBuffer(200, FIELDS, seed=0, output=output), 300)
        if use == "sample":
            buffer.sample(BATCH_SIZE).to("cpu")
        elif use == "loader":
            with buffer.loader(BATCH_SIZE) as loader:
                next(loader)
            del loader
        elif use == "spawn":
            buffer.spawn(2)[0].sample(BATCH_SIZE)
        elif use == "slice":
            assert len(buffer[:5]) == 5
            assert buffer[0] is not None
        else:
            pickle.dumps(buffer)
        gone = weakref.ref(buffer)
        # The ring's memory hangs on the ring, which a view's base refers to.
        ring_gone = weakref.ref(buffer.view("reward").base)
        del buffer
        assert gone() is None
        assert ring_gone() is None
    finally:
        gc.enable()


def test_a_minibatch_of_a_dropped_buffer_stays(output: str) -> None:
    batches = [fill(NativeBuffer(200, FIELDS, seed=i, output=output), 300).sample(BATCH_SIZE) for i in range(5)]
    for _ in range(5):
        fill(NativeBuffer(200, FIELDS, seed=0, output=output), 300).sample(BATCH_SIZE)
    for batch in batches:
        assert_holds(batch, np.asarray(batch.ticket))


def test_the_last_owner_may_go_on_any_thread(output: str) -> None:
    buffer = fill(NativeBuffer(200, FIELDS, seed=0, output=output), 300)
    box = [[buffer.sample(BATCH_SIZE) for _ in range(50)]]
    threads = [threading.Thread(target=box[0].pop) for _ in range(50)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        batch = buffer.sample(BATCH_SIZE)
        assert_holds(batch, np.asarray(batch.ticket))
    for thread in threads:
        thread.join()


def test_a_finalizer_samples_while_a_minibatch_is_made(output: str) -> None:
    """The collector may run anything in the middle of `sample`; what it samples is another minibatch."""
    buffer = fill(NativeBuffer(200, FIELDS, seed=0, output=output), 300)
    seen = []

    class Cycle:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            batch = buffer.sample(BATCH_SIZE)
            seen.append((batch, arrays(batch)))

    thresholds = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(300):
            Cycle()
            batch = buffer.sample(BATCH_SIZE)
            expected = rows_of(np.asarray(batch.ticket))
            assert np.array_equal(np.asarray(batch.reward), expected["reward"])
    finally:
        gc.set_threshold(*thresholds)
    gc.collect()
    assert len(seen) > 100
    for batch, copy in seen:
        assert_holds(batch, copy["ticket"])
