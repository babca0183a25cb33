# SPDX-License-Identifier: MIT
"""Where the fields and the tickets of a minibatch lie in its block, and how they become arrays and tensors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fastreplay import _core

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from fastreplay.batch.form import Form

__all__ = ["Layout"]


class Layout:
    """Where the fields and the tickets of a minibatch lie in its block.

    Args:
        form: What the minibatch is made of.
        batch_size: Rows.
        offsets: Bytes from the block's start to each part.
        num_bytes: Bytes of the block.
    """

    __slots__ = ("_native", "_parts", "batch_size", "form", "num_bytes", "offsets")

    def __init__(self, form: Form, batch_size: int, offsets: Sequence[int], num_bytes: int) -> None:
        self.form = form
        self.batch_size = batch_size
        self.offsets = tuple(offsets)
        self.num_bytes = num_bytes
        self._parts = [
            (offset, dtype, shape)
            for offset, (dtype, shape) in zip(self.offsets, form.arrays(batch_size), strict=False)  # of what is given
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
