# SPDX-License-Identifier: MIT
"""Where the elements of a tensor lie in memory, and whether two share a place. Reads no element."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

__all__ = [
    "elements_key",
    "has_memory",
    "is_dense",
    "is_plain",
    "long_dims",
    "overlaps_itself",
    "share_an_element",
    "span",
]

_PLAIN = frozenset([Tensor, nn.Parameter])

# Steps of NumPy's search: a few milliseconds. Slices and transpositions of one tensor, at any size and dtype, take a
# dozen; only strides that were made up by hand, without a common divisor, take more.
_MAX_WORK = 100_000


def is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor is no subclass (DTensor, FakeTensor), which may do anything in its own way."""
    return type(tensor) in _PLAIN


def has_memory(tensor: Tensor) -> bool:
    """Tell whether a tensor is no subclass and has elements at an address."""
    if not is_plain(tensor) or tensor.device.type == "meta":
        return False
    try:
        return tensor.data_ptr() != 0
    except RuntimeError:  # within a function transform
        return False


def long_dims(tensor: Tensor) -> list[tuple[int, int]]:
    """Return (size, stride) of the dimensions of more than one element; the others' strides mean nothing."""
    return [(size, stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


def is_dense(tensor: Tensor) -> bool:
    """Tell whether the elements fill one piece of memory, in whatever order."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for size, stride in sorted(long_dims(tensor), key=lambda dim: dim[1]):
        if stride != expected:
            return False
        expected *= size
    return True


def elements_key(tensor: Tensor) -> Hashable:
    """Return what two tensors have in common only if they are the same elements in the same order."""
    if not has_memory(tensor):
        return id(tensor)
    strides = None if tensor.is_contiguous() else tuple(long_dims(tensor))  # the shape says them
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, strides)


def span(tensor: Tensor) -> tuple[int, int]:
    """Return the address of the first byte, and that after the last."""
    start: int = tensor.data_ptr()
    if tensor.is_contiguous():
        return start, start + tensor.nbytes
    last = sum((size - 1) * stride for size, stride in long_dims(tensor))
    return start, start + (last + 1) * tensor.element_size()


def overlaps_itself(tensor: Tensor) -> bool | None:
    """Tell whether two elements lie in one place; None where that would take too long to find out."""
    if tensor.is_contiguous():
        return False
    dims = sorted(long_dims(tensor), key=lambda dim: dim[1])
    if any(stride == 0 for _, stride in dims):
        return True
    last = 0  # of the dimensions so far
    for size, stride in dims:
        if stride <= last:
            break
        last += (size - 1) * stride
    else:
        return False
    # Of two indices of one place, take the last dimension in which they differ, and shift both to where the
    # lesser begins: one lies in the dimensions before, the other a stride or more further on.
    answers = [
        _shares_memory(_bytes(0, dims[:k], 1), _bytes(stride, [*dims[:k], (size - 1, stride)], 1))
        for k, (size, stride) in enumerate(dims)
    ]
    return True if True in answers else None if None in answers else False


def share_an_element(a: Tensor, b: Tensor) -> bool | None:
    """Tell whether some byte belongs to elements of both; None where that would take too long to find out."""
    if a.device != b.device:
        return False
    if is_dense(a) and is_dense(b):
        (start_a, end_a), (start_b, end_b) = span(a), span(b)
        return start_a < end_b and start_b < end_a
    start = min(a.data_ptr(), b.data_ptr())
    return _shares_memory(*(_bytes(t.data_ptr() - start, long_dims(t), t.element_size()) for t in (a, b)))


class _Bytes:
    """Bytes at an address, for NumPy's array interface."""

    def __init__(self, interface: dict[str, object]) -> None:
        self.__array_interface__ = interface


def _bytes(start: int, dims: Sequence[tuple[int, int]], width: int) -> np.ndarray:
    """Make an array of these places, (size, stride in elements of `width` bytes) each, whose memory nobody looks at."""
    dims = [(size, stride) for size, stride in dims if size > 1 and stride > 0]  # an expanded one adds no place
    interface = {
        "version": 3,
        "data": (_ORIGIN + start, True),
        "shape": tuple(size for size, _ in dims),
        "strides": tuple(stride * width for _, stride in dims),
        "typestr": f"|V{width}",
    }
    return np.asarray(_Bytes(interface))


_ORIGIN = 4096  # any address but null, which would be for NumPy to allocate


def _shares_memory(a: np.ndarray, b: np.ndarray) -> bool | None:
    """Let NumPy solve it: where it gives up, so do we."""
    try:
        return bool(np.shares_memory(a, b, max_work=_MAX_WORK))  # type: ignore[arg-type]
    except (np.exceptions.TooHardError, OverflowError):
        return None
