# SPDX-License-Identifier: MIT
"""Minibatch memory on the host that comes back to be used again when its last owner is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fastreplay import _core
from fastreplay.batch.block import HostBlock
from fastreplay.batch.layout import Layout
from fastreplay.batch.tensors import Generations
from fastreplay.support.latest import Latest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fastreplay.batch.form import Form

__all__ = ["SIZES", "Pool", "most_blocks"]

# What a pool keeps: some batch sizes, and of each as many blocks as these bytes hold, within limits.
SIZES = 4
_BYTES_PER_SIZE = 8 << 20
_FEWEST_BLOCKS, _MOST_BLOCKS = 4, 64


def most_blocks(num_bytes: int) -> int:
    """Return how many blocks of a size are kept."""
    return min(max(_BYTES_PER_SIZE // max(num_bytes, 1), _FEWEST_BLOCKS), _MOST_BLOCKS)


class _Pools(NamedTuple):
    """What there is for one batch size."""

    memory: _core.BlockPool
    layout: Layout
    generations: Generations[HostBlock]  # with their tensors


class Pool:
    """Blocks of one layout on the host, by batch size.

    Args:
        form: What a minibatch is made of.

    Thread safety:
        Any thread may take and keep.
    """

    __slots__ = ("_by_size", "_form")

    def __init__(self, form: Form) -> None:
        self._form = form
        self._by_size: Latest[int, _Pools] = Latest(SIZES)

    def take(self, batch_size: int) -> HostBlock:
        """Return a block that nobody else has, with the tensors that it had if they are as they were made."""
        pools = self._by_size.get(batch_size) or self._new(batch_size)
        block = pools.generations.take()
        return HostBlock(pools.memory.take(), pools.layout) if block is None else block

    def replace(self, block: HostBlock, ring: _core.Ring, slots: NDArray[np.int64]) -> None:
        """Replace a minibatch by the transitions in these slots: all of it, or nothing has changed."""
        pools = self._by_size.get(block.layout.batch_size) or self._new(block.layout.batch_size)
        block.refill(ring.replace, pools.memory, slots)

    def keep(self, block: HostBlock) -> None:
        """Let a block with tensors be taken again once nobody has them."""
        pools = self._by_size.get(block.layout.batch_size)
        if pools is not None and pools.layout is block.layout:
            pools.generations.keep(block)

    def _new(self, batch_size: int) -> _Pools:
        try:
            native = _core.Block(self._form.parts, batch_size)  # the first, so that one that cannot be had is told here
            layout = Layout(self._form, batch_size, native.offsets, native.num_bytes)
        except (MemoryError, ValueError):
            raise MemoryError(f"batch_size: {batch_size} transitions are more than memory can hold") from None
        most = most_blocks(layout.num_bytes) // 2  # with their tensors, and as many without
        generations: Generations[HostBlock] = Generations(most)
        pools = _Pools(_core.BlockPool(self._form.parts, batch_size, most), layout, generations)
        self._by_size.put(batch_size, pools)
        return pools
