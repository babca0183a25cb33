# SPDX-License-Identifier: MIT
"""Where the fields and the tickets of a minibatch lie in its block, and how they become arrays and tensors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastreplay import _core

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray

    from fastreplay.schema import Schema

    Parts = list[tuple[int, int, int]]

__all__ = ["Layout", "Parts"]


class Layout:
    """Where the fields and the tickets of a minibatch lie in its block.

    Args:
        schema: The fields.
        batch_size: Rows.
        offsets: Bytes from the block's start to each field, to what is beside them, and to the tickets.
        num_bytes: Bytes of the block.
        parts: Where they come from: (source, bytes of a row, field of the record) each.
        beside: What the rows have beside fields, float32 each.
    """

    __slots__ = ("_native", "_parts", "batch_size", "beside", "num_bytes", "offsets", "parts", "schema")

    def __init__(
        self,
        schema: Schema,
        batch_size: int,
        offsets: Sequence[int],
        num_bytes: int,
        beside: tuple[str, ...] = (),
        *,
        parts: Parts,
    ) -> None:
        self.schema = schema
        self.parts = parts
        self.beside = beside
        self.batch_size = batch_size
        self.offsets = tuple(offsets)
        self.num_bytes = num_bytes
        rows = [(field.dtype, field.shape) for field in schema.values()]
        rows += [(np.dtype(np.float32), ()) for _ in beside]
        rows.append((np.dtype(np.int64), ()))
        self._parts = [
            (offset, dtype, (self.batch_size, *shape))
            for offset, (dtype, shape) in zip(self.offsets, rows, strict=True)
        ]
        self._native = _core.Fields(self._parts)

    def arrays(self, native: _core.Block) -> tuple[NDArray[Any], ...]:
        """Return fresh arrays (B, *shape) of all but the tickets; each owns the block through its base."""
        return self._native.arrays(native)

    def tickets(self, native: _core.Block) -> NDArray[np.int64]:
        """Return a fresh array (B,) of the tickets, as those of the fields."""
        return self._native.tickets(native)

    def tensors(self, native: _core.Block) -> tuple[torch.Tensor, ...]:
        """Return fresh CPU tensors of everything, the tickets last; each has a storage that owns the block."""
        return _imported(self._native.capsules(native))

    def tensors_in(self, flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return everything that lies in a block's bytes (num_bytes,), the tickets last, as views of them."""
        import torch

        views = []
        for offset, dtype, shape in self._parts:
            num_bytes = math.prod(shape) * dtype.itemsize
            views.append(flat[offset : offset + num_bytes].view(getattr(torch, dtype.name)).view(shape))
        return tuple(views)

    def first_changed(self, native: _core.Block, arrays: tuple[NDArray[Any], ...], tickets: object) -> int:
        """Return the position of the first array, or the tickets', that is not as it is made here, -1 where all are."""
        return self._native.first_changed(native, arrays, tickets)


def _imported(capsules: tuple[object, ...]) -> tuple[torch.Tensor, ...]:
    """Return what DLPack capsules hold, as tensors that autograd may save."""
    import torch

    if torch.is_inference_mode_enabled():  # tensors made in it could not be saved for a backward pass later
        with torch.inference_mode(False):
            return tuple(map(torch._C._from_dlpack, capsules))
    return tuple(map(torch._C._from_dlpack, capsules))
