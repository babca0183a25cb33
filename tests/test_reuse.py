# SPDX-License-Identifier: MIT
"""Tensor objects that come back with a later minibatch bear no trace of their former holders."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import fastreplay as fr
from fastreplay.batch import tensor_offsets as offsets
from fastreplay.batch.tensor_offsets import tensor_offsets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BATCH_SIZE = 5


@pytest.fixture
def buffer() -> fr.ReplayBuffer[torch.Tensor]:
    buffer = fr.ReplayBuffer(100, {"value": (3,), "wide": ((2, 4), "float64")}, seed=0)
    rows = np.arange(100)
    buffer.extend(
        value=np.tile(rows[:, None], 3).astype(np.float32), wide=np.tile(rows[:, None, None], (2, 4)).astype(np.float64)
    )
    return buffer


def is_whole(batch: Any) -> bool:
    rows = batch.value[:, 0]
    return bool((batch.value == rows[:, None]).all() and (batch.wide == rows[:, None, None]).all())


class Tagged(torch.Tensor):
    pass


def changed_class(tensor: torch.Tensor) -> None:
    tensor.__class__ = Tagged


def other_data(tensor: torch.Tensor) -> None:
    tensor.data = torch.full((2, 2), -1.0)


def rows_in_another_order(tensor: torch.Tensor) -> None:
    tensor.data = tensor.data.flip(0)


def gradient(tensor: torch.Tensor) -> None:
    torch.autograd.backward(tensor.requires_grad_().sum())


def gradient_alone(tensor: torch.Tensor) -> None:
    tensor.grad = torch.ones_like(tensor)


def hook(tensor: Any) -> None:
    tensor.requires_grad_().register_hook(lambda grad: grad * 2)
    tensor.requires_grad_(False)


def hook_after_accumulating(tensor: Any) -> None:
    tensor.requires_grad_().register_post_accumulate_grad_hook(lambda _: None)
    tensor.requires_grad_(False)


def result_of_a_graph(tensor: torch.Tensor) -> None:
    tensor.mul_(torch.ones(1, requires_grad=True))


TRACES: list[Callable[[Any], Any]] = [
    lambda tensor: setattr(tensor, "note", "mine"),
    changed_class,
    other_data,
    rows_in_another_order,
    gradient,
    gradient_alone,
    hook,
    hook_after_accumulating,
    result_of_a_graph,
    lambda tensor: tensor.requires_grad_(),
    lambda tensor: tensor.t_(),
    lambda tensor: tensor.unsqueeze_(0),
    lambda tensor: tensor.resize_(2, 2),
    lambda tensor: tensor.set_(torch.zeros(4)),
    lambda tensor: tensor.as_strided_((3, 5), (1, 3)),
    lambda tensor: tensor.fill_(-1),
    lambda tensor: tensor.share_memory_(),
]


@pytest.mark.parametrize("leave", TRACES)
def test_nothing_that_was_done_to_a_tensor_shows_later(
    leave: Callable[[torch.Tensor], Any], buffer: fr.ReplayBuffer[torch.Tensor]
) -> None:
    for _ in range(10):
        batch: Any = buffer.sample(BATCH_SIZE)
        assert is_whole(batch)
        leave(batch.value)
        del batch
        fresh = buffer.sample(BATCH_SIZE)
        assert is_whole(fresh)
        tensor = fresh.value
        assert type(tensor) is torch.Tensor
        assert tensor.shape == (BATCH_SIZE, 3)
        assert tensor.stride() == (3, 1)
        assert tensor.grad is None
        assert not tensor.requires_grad
        assert tensor.is_leaf
        assert not tensor.__dict__
        torch.autograd.backward(tensor.requires_grad_().sum())
        assert tensor.grad is not None
        assert (tensor.grad == 1).all()
        del fresh, tensor


def test_a_weak_reference_ends_with_its_minibatch(buffer: fr.ReplayBuffer[torch.Tensor]) -> None:
    reference = weakref.ref(buffer.sample(BATCH_SIZE).value)
    held = [buffer.sample(BATCH_SIZE) for _ in range(3)]
    assert all(reference() is not batch.value for batch in held)


def test_what_an_autograd_graph_saved_stays_as_it_was(buffer: fr.ReplayBuffer[torch.Tensor]) -> None:
    weight = torch.ones(3, requires_grad=True)
    losses, expected = [], []
    for _ in range(100):
        value = buffer.sample(BATCH_SIZE).value
        expected.append(value.sum(0).clone())
        losses.append((weight * value).sum())
        del value
    for loss, total in zip(losses, expected, strict=True):
        weight.grad = None
        torch.autograd.backward(loss)
        assert weight.grad is not None
        assert torch.equal(weight.grad, total)


def test_a_tensor_held_alone_keeps_its_block(buffer: fr.ReplayBuffer[torch.Tensor]) -> None:
    kept = [buffer.sample(BATCH_SIZE).value for _ in range(100)]
    copies = [tensor.clone() for tensor in kept]
    for _ in range(100):
        buffer.sample(BATCH_SIZE)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(kept, copies, strict=True))
    assert len({id(tensor) for tensor in kept}) == len(kept)


def test_tensors_of_inference_mode_can_be_saved_for_backward_later(buffer: fr.ReplayBuffer[torch.Tensor]) -> None:
    with torch.inference_mode():
        for _ in range(3):
            buffer.sample(BATCH_SIZE)
            buffer.sample(BATCH_SIZE).value.t_()
    for _ in range(6):
        value = buffer.sample(BATCH_SIZE).value
        torch.autograd.backward((torch.ones(3, requires_grad=True) * value).sum())
        value.add_(1)


def test_objects_are_reused_where_torch_tells_who_has_them(buffer: fr.ReplayBuffer[torch.Tensor]) -> None:
    buffer.sample(BATCH_SIZE)
    gc.collect()
    seen = {id(tensor) for _ in range(50) for tensor in buffer.sample(BATCH_SIZE)}
    if tensor_offsets() is None:
        pytest.skip("torch's functions were not found, or do not tell who has a tensor")
    assert len(seen) <= 4  # of two blocks: one is held by the loop while the other is filled


def test_without_torchs_functions_tensors_are_fresh(
    buffer: fr.ReplayBuffer[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastreplay.support.torch_abi.torch_abi", lambda: None)
    held: Any = buffer.sample(BATCH_SIZE + 1)
    held.value.share_memory_()
    copy = held.value.clone()
    for _ in range(20):
        assert is_whole(buffer.sample(BATCH_SIZE + 1))
    assert torch.equal(held.value, copy)


def test_what_an_allocator_gives_beyond_an_object_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """To one tensor more than to the other, say: torch's own is then found where it always is."""
    expected = offsets._found_offsets()
    if expected is None:
        pytest.skip("there are no offsets to be found here")
    usable_size = offsets._usable_size
    for fewer in ((0, 8, 8), (8, 0, 8), (8, 8, 0)):
        less = iter(fewer)
        monkeypatch.setattr(offsets, "_usable_size", lambda address, less=less: usable_size(address) - next(less, 0))
        assert offsets._found_offsets() == expected


def test_what_was_there_before_is_not_taken_for_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a tensor's parts lies what its memory held: in one of them, say, it looks like a counter of versions."""
    expected = offsets._found_offsets()
    if expected is None:
        pytest.skip("there are no offsets to be found here")
    words = offsets._words
    for at in set(range(12)) - {expected.storage // 8, expected.counter // 8}:
        like_a_counter = iter((1 << 20, 1 << 20, 1 << 21))

        def with_remains(address: int, at: int = at, left: Iterator[int] = like_a_counter) -> list[int]:
            found = words(address)
            if at < len(found):  # of a tensor
                found[at] = next(left, found[at])
            return found

        monkeypatch.setattr(offsets, "_words", with_remains)
        assert offsets._found_offsets() == expected
