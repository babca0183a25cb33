# SPDX-License-Identifier: MIT
"""Minibatch memory on the host that comes back to be used again when its last owner is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastreplay import _core
from fastreplay.batch.layout import Layout
from fastreplay.batch.native_minibatch import NativePool
from fastreplay.batch.tensors import Generations
from fastreplay.support.latest import Latest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fastreplay.batch.block import HostBlock
    from fastreplay.batch.form import Form

__all__ = ["SIZES", "Pool", "most_blocks"]

# What a pool keeps: some batch sizes, and of each as many blocks as these bytes hold, within limits.
SIZES = 4
_BYTES_PER_SIZE = 8 << 20
_FEWEST_BLOCKS, _MOST_BLOCKS = 4, 64


def most_blocks(num_bytes: int) -> int:
    """Return how many blocks of a size are kept."""
    return min(max(_BYTES_PER_SIZE // max(num_bytes, 1), _FEWEST_BLOCKS), _MOST_BLOCKS)


class Pool(NativePool):
    """Blocks of one layout on the host, by batch size.

    Args:
        form: What a minibatch is made of.

    Thread safety:
        Any thread may take and keep.
    """

    __slots__ = ("_form",)

    def __init__(self, form: Form) -> None:
        self._form = form
        super().__init__(Latest(SIZES))

    def replace(self, block: HostBlock, ring: _core.Ring, slots: NDArray[np.int64]) -> None:
        """Replace a minibatch by the transitions in these slots: all of it, or nothing has changed."""
        size = block.layout.batch_size
        blocks = self._by_size.get(size) or self._new(size)
        block.refill(ring.replace, blocks.memory, slots)

    def _new(self, batch_size: int) -> Generations:
        try:
            native = _core.Block(self._form.parts, batch_size)  # the first, so that one that cannot be had is told here
            layout = Layout(self._form, batch_size, native.offsets, native.num_bytes)
        except (MemoryError, ValueError):
            raise MemoryError(f"batch_size: {batch_size} transitions are more than memory can hold") from None
        most = most_blocks(layout.num_bytes) // 2  # with their tensors, and as many without
        blocks = Generations(most, _core.BlockPool(self._form.parts, batch_size, most), layout)
        self._by_size.put(batch_size, blocks)
        return blocks
