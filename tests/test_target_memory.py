# SPDX-License-Identifier: MIT
"""Whether tensors share elements, decided from their strides, against the places themselves; and at any size."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from target_support import SoftUpdate, unchanged

from fastreplay.target import tensor_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.uint8)
NUM_BYTES = 4096


def addresses(tensor: Tensor) -> list[int]:
    """Give the address of each element, one after the other."""
    size = tensor.element_size()
    steps = [range(0, n * stride * size, stride * size) if stride else [0] * n for n, stride in dims_of(tensor)]
    return [tensor.data_ptr() + sum(offsets) for offsets in product(*steps)]


def dims_of(tensor: Tensor) -> list[tuple[int, int]]:
    return list(zip(tensor.shape, tensor.stride(), strict=True))


def bytes_of(tensor: Tensor) -> set[int]:
    return {place + i for place in addresses(tensor) for i in range(tensor.element_size())}


@st.composite
def views(draw: st.DrawFn, memory: Tensor) -> Tensor:
    """Give a view of some bytes: any dtype, any strides, steps and expanded dimensions among them."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(1, 5), max_size=3))
    strides = draw(st.lists(st.integers(0, 9), min_size=len(shape), max_size=len(shape)))
    offset = draw(st.integers(0, 24))
    return memory.view(dtype).as_strided(shape, strides, offset)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_shared_elements_are_those_of_the_places(data: st.DataObject) -> None:
    memory = torch.zeros(NUM_BYTES, dtype=torch.uint8)
    a, b = data.draw(views(memory)), data.draw(views(memory))
    expected = not bytes_of(a).isdisjoint(bytes_of(b))
    assert tensor_memory.share_an_element(a, b) is expected
    assert tensor_memory.share_an_element(b, a) is expected


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_an_overlap_with_itself_is_a_place_twice(data: st.DataObject) -> None:
    tensor = data.draw(views(torch.zeros(NUM_BYTES, dtype=torch.uint8)))
    found = addresses(tensor)
    assert tensor_memory.overlaps_itself(tensor) is (len(set(found)) < len(found))


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_what_is_refused_is_what_would_be_written_twice_or_read_late(data: st.DataObject) -> None:
    """Two pairs out of one memory, through the public face."""
    memory = torch.zeros(512)
    shape = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))

    def view() -> Tensor:
        strides = data.draw(st.lists(st.integers(0, 5), min_size=len(shape), max_size=len(shape)))
        return memory.as_strided(shape, strides, data.draw(st.integers(0, 40)))

    targets, onlines = [view(), view()], [view(), view()]
    is_tied = tensor_memory.elements_key(targets[0]) == tensor_memory.elements_key(targets[1])
    if is_tied:
        onlines[1] = onlines[0]
    count = 1 if is_tied else 2
    written = [place for target in targets[:count] for place in addresses(target)]
    read = {place for online in onlines[:count] for place in addresses(online)}
    if len(set(written)) == len(written) and read.isdisjoint(written):
        assert SoftUpdate(targets, onlines, 0.5).step()
    else:
        with unchanged(memory), pytest.raises(ValueError, match=r"share|overlaps"):
            SoftUpdate(targets, onlines, 0.5)


def sizes(tensor: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    return [tensor], [torch.zeros(()).expand(tensor.shape)]


ANY_SIZE: dict[str, tuple[Callable[[], Any], str | None]] = {
    "a slice of a large tensor": (lambda: sizes(torch.empty(20_100, 20_100)[:20_000, 50:20_050]), None),
    "every other element": (lambda: ([torch.empty(20_000_000)[::2]], [torch.zeros(()).expand(10_000_000)]), None),
    "a transposed slice": (lambda: sizes(torch.empty(6000, 5000).t()[:4000, 1:]), None),
    "two halves, interleaved": (lambda: ([(m := torch.empty(20_000_000))[::2]], [m[1::2]]), None),
    "columns of one": (lambda: ([(m := torch.empty(3000, 3000))[:, :1500]], [m[:, 1500:]]), None),
    "expanded": (lambda: sizes(torch.zeros(1).expand(10_000_000)), "several elements of target share one place"),
    "a sliding window": (lambda: sizes(torch.empty(9_000_000).unfold(0, 1000, 1)), "several elements of target"),
    "columns that meet": (lambda: ([(m := torch.empty(3000, 3000))[:, :1501]], [m[:, 1499:]]), "share memory"),
}


@pytest.mark.parametrize(("make", "message"), ANY_SIZE.values(), ids=list(ANY_SIZE))
def test_tensors_of_any_size_are_decided_without_their_addresses(make: Callable[[], Any], message: str | None) -> None:
    """The largest has 400 M elements, none of which is touched: a set of their addresses would show in the memory."""
    import tracemalloc

    pairs = make()
    tracemalloc.start()
    try:
        if message is None:
            SoftUpdate(*pairs)
        else:
            with pytest.raises(ValueError, match=message):
                SoftUpdate(*pairs)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_strides_that_take_too_long_are_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy gives up after so many steps, and so does the update: it does not guess."""
    monkeypatch.setattr(tensor_memory, "_MAX_WORK", 1)
    base = torch.zeros(4000)
    shape = (3, 4, 3, 2)
    target = base.as_strided(shape, (101, 67, 43, 31), 0)
    online = base.as_strided(shape, (97, 61, 37, 29), 1)
    with unchanged(base), pytest.raises(ValueError, match=r"^\[0\]: cannot tell within reasonable time whether"):
        SoftUpdate([target], [online])


def test_devices_have_memories_of_their_own() -> None:
    class Elsewhere(torch.Tensor):
        device = torch.device("cuda")

    tensor = torch.zeros(3)
    assert tensor_memory.share_an_element(tensor, tensor)
    assert not tensor_memory.share_an_element(tensor, tensor.as_subclass(Elsewhere))


def test_memory_that_is_gone_is_refused() -> None:
    for resize, message in ((0, "target has no memory"), (8, "the storage of target ends before its last element")):
        target = torch.zeros(10)
        target.untyped_storage().resize_(resize)
        with pytest.raises(ValueError, match=rf"^\[1\]: {message}"):
            SoftUpdate([torch.zeros(2), target], [torch.ones(2), torch.zeros(10)])
        online = torch.zeros(10)
        online.untyped_storage().resize_(resize)
        with pytest.raises(ValueError, match=r"^\[0\]: .*online"):
            SoftUpdate([torch.zeros(10)], [online])


def test_a_zero_without_memory_can_be_followed() -> None:
    target = torch.ones(3)
    SoftUpdate([target], [torch._efficientzerotensor((3,))], 0.25).step()
    np.testing.assert_array_equal(target, np.full(3, 0.75))
