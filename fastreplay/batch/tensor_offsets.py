# SPDX-License-Identifier: MIT
"""Where the parts of a torch tensor lie in memory, found by looking and tried before it is trusted.

`FieldTensors` tells by these words whether a tensor that was handed out is whole and nobody's.
"""

from __future__ import annotations

import ctypes
import sysconfig
import weakref
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch

from fastreplay.batch.tensors import FieldTensors
from fastreplay.support.torch_abi import NUM_TENSOR_WORDS, torch_abi

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastreplay.support.torch_abi import TorchAbi

__all__ = ["TensorOffsets", "tensor_offsets"]

_LIBC = ctypes.CDLL(None)
_LOWEST_ADDRESS = 1 << 16
_MOST_BYTES = 64  # of a version counter
_NUM_TENSORS = 8


class TensorOffsets(NamedTuple):
    """Where the parts of a tensor lie in each other, in bytes; `weak_references` may lie before the object."""

    storage: int  # in torch's tensor
    counter: int  # in torch's tensor, of its versions
    shell_bytes: int  # of the Python object
    compare_from: int  # in the Python object, behind its count of references
    weak_references: int  # in the Python object


@cache
def tensor_offsets() -> TensorOffsets | None:
    """Return where tensors' parts lie, None where it cannot be known or what is done to a tensor does not show."""
    abi = torch_abi()
    if abi is None or sysconfig.get_config_var("Py_GIL_DISABLED") or not hasattr(_LIBC, "malloc_usable_size"):
        return None
    with torch.inference_mode(False):
        found = _found_offsets()
        return found if found is not None and _everything_shows(abi, found) else None


def _found_offsets() -> TensorOffsets | None:
    """Look for the parts of a tensor among its words, None where one is not found or found twice."""
    # Between the parts lies what was there before, which may look like one of them in a tensor, but not in each.
    tensors = [torch.zeros(3) for _ in range(_NUM_TENSORS)]
    found = [_candidates(tensor) for tensor in tensors]
    storages, counters = (sorted(set.intersection(*each)) for each in zip(*found, strict=True))
    if len(storages) != 1 or len(counters) != 1:
        return None
    tensor = tensors[0]
    words = _words(tensor._cdata)
    if not 0 < _usable_size(words[counters[0]]) <= _MOST_BYTES:
        return None
    before = _words(words[counters[0]])
    tensor.add_(1)
    if _words(words[counters[0]]) == before:
        return None
    weak_references, word_bytes = torch.Tensor.__weakrefoffset__, ctypes.sizeof(ctypes.c_void_p)
    reference = weakref.ref(tensor)
    if ctypes.c_size_t.from_address(id(tensor) + weak_references).value != id(reference):
        return None
    return TensorOffsets(
        storages[0] * word_bytes, counters[0] * word_bytes, torch.Tensor.__basicsize__, word_bytes, weak_references
    )


def _candidates(tensor: torch.Tensor) -> tuple[set[int], set[int]]:
    """Return which of a tensor's words may be its storage, and which its counter of versions."""
    alias, other = tensor.detach(), tensor.data
    # An allocator may give more bytes than there are, to one more than to the other: what lies there says nothing.
    words, shared, own = (_words(each._cdata)[:NUM_TENSOR_WORDS] for each in (tensor, alias, other))
    # The storage is where its address is; the counter is what an alias shares, and `data` does not.
    storages = {i for i, word in enumerate(words) if word == tensor.untyped_storage()._cdata}
    counters = {
        i
        for i, (word, same, another) in enumerate(zip(words, shared, own, strict=True))
        if word == same != another and word > _LOWEST_ADDRESS
    }
    return storages, counters


# What may be done to a tensor, one of each way to leave a trace on it or to hold what it is made of.
_TRACES: tuple[Callable[[torch.Tensor], object], ...] = (
    lambda tensor: tensor.requires_grad_(),
    lambda tensor: tensor.requires_grad_().requires_grad_(False),
    lambda tensor: setattr(tensor, "grad", torch.zeros_like(tensor)),
    lambda tensor: setattr(tensor, "note", 1),
    lambda tensor: setattr(tensor, "_backward_hooks", {}),
    lambda tensor: tensor.add_(1),
    lambda tensor: tensor.untyped_storage(),
    lambda tensor: tensor.__dict__,
    weakref.ref,
    lambda tensor: tensor.detach(),
    lambda tensor: tensor.data,
    lambda tensor: tensor[1:],
    lambda tensor: tensor.numpy(),
    lambda tensor: tensor * torch.ones(2, 3, requires_grad=True),
    lambda tensor: tensor,
)


# The same, where the tensor's elements are others then, or made of others.
_CHANGES: tuple[Callable[[torch.Tensor], object], ...] = (
    lambda tensor: setattr(tensor, "data", torch.zeros_like(tensor)),
    lambda tensor: setattr(tensor, "data", tensor.view(torch.int32)),
    lambda tensor: setattr(tensor, "data", tensor[:1]),
    lambda tensor: setattr(tensor, "data", torch._neg_view(tensor)),
    lambda tensor: tensor.set_(torch.zeros_like(tensor).untyped_storage()),
    lambda tensor: tensor.resize_(1, 3),
    lambda tensor: tensor.unsqueeze_(0),
    lambda tensor: tensor.t_(),
    lambda tensor: tensor.mul_(torch.ones(2, 3, requires_grad=True)),
)


def _everything_shows(abi: TorchAbi, offsets: TensorOffsets) -> bool:
    """Try the ways to leave a trace on a tensor: each must show, and none where nothing was done."""
    with torch.enable_grad():
        for trace in (*_TRACES, *_CHANGES):
            tensors = FieldTensors((torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)), abi, offsets)
            if not tensors.is_pristine():
                return False
            left = trace(tensors.hand_out()[0])
            if tensors.is_pristine():
                return False
            if (tensors.first_changed() == 0) is not (trace in _CHANGES):
                return False
            del left
    return True


def _usable_size(address: int) -> int:
    """Return the bytes that the allocator gave an object."""
    usable_size = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p)(("malloc_usable_size", _LIBC))
    return int(usable_size(address))


def _words(address: int) -> list[int]:
    """Return an object's bytes, as words of a pointer's size."""
    count = _usable_size(address) // ctypes.sizeof(ctypes.c_void_p)
    return list((ctypes.c_size_t * count).from_address(address))
