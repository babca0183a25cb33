# SPDX-License-Identifier: MIT
"""A minibatch's tensors together with what they are like as made, by which `out=` and the pools know them."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from fastreplay.batch.tensors import FieldTensors

__all__ = ["PlainTensors", "as_made"]


def as_made(tensors: tuple[torch.Tensor, ...]) -> FieldTensors | PlainTensors:
    """Return fresh tensors, the tickets last, together with what they are like now."""
    from fastreplay.batch.tensor_offsets import tensor_offsets
    from fastreplay.batch.tensors import FieldTensors
    from fastreplay.support.torch_abi import torch_abi

    if (abi := torch_abi()) is not None and (offsets := tensor_offsets()) is not None:
        with suppress(ValueError):  # tensors of many dimensions
            return FieldTensors(tensors, abi, offsets)
    return PlainTensors(tensors)


class PlainTensors:
    """`FieldTensors` where not all of them is known: not to be handed out again, and Python is asked."""

    __slots__ = ("_made", "_tensors")

    def __init__(self, tensors: tuple[torch.Tensor, ...]) -> None:
        self._tensors = tensors
        self._made = list(map(_form, tensors))

    @property
    def ticket(self) -> torch.Tensor:
        """The last tensor."""
        return self._tensors[-1]

    def is_pristine(self) -> bool:
        """Return False: it is not known."""
        return False

    def is_held(self) -> bool:
        """Tell whether anybody refers to one of the tensor objects."""
        return max(map(sys.getrefcount, self._tensors)) > _BARE_REFERENCES

    def hand_out(self) -> tuple[torch.Tensor, ...]:
        """Return all but the last."""
        return self._tensors[:-1]

    def first_changed(self) -> int:
        """Return the position of the first tensor that is no longer where and as it was made, -1 where all are.

        One that autograd derives from others is none either: what it would tell of them is of the old rows.
        """
        now = map(_form, self._tensors)
        return next((i for i, (form, made) in enumerate(zip(now, self._made, strict=True)) if form != made), -1)

    def count_up_versions(self) -> None:
        """Let autograd know that the tensors' memory has changed."""
        import torch

        for tensor in self._tensors:
            torch.autograd.graph.increment_version(tensor)


_BARE_REFERENCES = max(map(sys.getrefcount, (object(),)))  # of an object that only a tuple has


def _form(tensor: torch.Tensor) -> tuple[object, ...]:
    place = tensor._cdata, tensor.data_ptr()
    return *place, tensor.shape, tensor.stride(), tensor.dtype, tensor.is_neg(), tensor.is_conj(), tensor.grad_fn
