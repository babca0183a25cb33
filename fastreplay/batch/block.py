# SPDX-License-Identifier: MIT
"""One minibatch's memory: what a minibatch asks of it, and the one on the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from fastreplay.batch.field_tensors import as_made
from fastreplay.batch.tensors import NativeBlock

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from numpy.typing import NDArray

    from fastreplay import _core
    from fastreplay.batch.layout import Layout

__all__ = ["Block", "HostBlock"]

ResultT = TypeVar("ResultT")


class Block(Protocol):
    """Memory of one minibatch, on the host or a device."""

    @property
    def layout(self) -> Layout:
        """Where its parts lie."""

    @property
    def device(self) -> torch.device | str:
        """Where the memory is."""

    @property
    def place(self) -> object:
        """What blocks have in common that one delivery can fill."""

    @property
    def native(self) -> Any:
        """What a generator fills."""

    @property
    def context(self) -> int:
        """What a device's sender takes."""

    def ticket(self) -> Any:
        """Return the tickets (B,), in the form in which the fields were handed out."""

    def host_rows(self) -> _core.Block | None:
        """Return what has the tickets (B,), where the host holds them as long as the minibatch."""

    def flat_tensor(self) -> torch.Tensor:
        """Return the block's bytes (num_bytes,) as a tensor."""

    def first_changed(self, values: tuple[Any, ...], tickets: object, /) -> int:
        """Return the position of the first of a minibatch's fields and tickets that is not as it was made here, or -1.

        Tickets are None where they were not asked for.
        """

    def refill(self, fill: Callable[..., ResultT], *arguments: object) -> ResultT:
        """Replace what the block's holder sees. Where `fill` raises or returns 0, nothing has changed.

        It is called with the arguments, and `native` as the last.
        """


class HostBlock(NativeBlock):
    """One minibatch's memory on the host, and the tensors that were made of it.

    It is one of the owners of its memory; each tensor's storage is another, and each array, through its base. When the
    last owner is gone, on whatever thread, the memory goes back to the pool that it came from
    (csrc/core/batch/pool.hpp), and by no other way.
    """

    __slots__ = ("__weakref__",)

    context = 0  # for what sends blocks to a device, which the CPU has none of
    device = "cpu"
    place = "host"

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """Return fresh arrays (B, *shape) of the fields."""
        return self.layout.arrays(self.native)

    def hand_out_tensors(self) -> tuple[torch.Tensor, ...]:
        """Return the tensors (B, *shape) of the fields, the same ones at each call."""
        if self.tensors is None:
            self.tensors = as_made(self.layout.tensors(self.native))
        return self.tensors.hand_out()

    def ticket(self) -> NDArray[np.int64] | torch.Tensor:
        """Return the tickets (B,), in the form in which the fields were handed out."""
        return self.layout.tickets(self.native) if self.tensors is None else self.tensors.ticket

    def host_rows(self) -> _core.Block:
        """Return what has the tickets (B,)."""
        return self.native

    def flat_tensor(self) -> torch.Tensor:
        """Return the block's bytes (num_bytes,) as a tensor."""
        import torch

        return torch.from_numpy(self.native.flat)

    def first_changed(self, values: tuple[Any, ...], tickets: object) -> int:
        """Return the position of the first of a minibatch's fields and tickets that is not as it was made here, or -1.

        Tickets are None where they were not asked for.
        """
        if self.tensors is not None and type(values[0]) is not np.ndarray:
            return self.tensors.first_changed()
        return self.layout.first_changed(self.native, values, tickets)

    def refill(self, fill: Callable[..., ResultT], *arguments: object) -> ResultT:
        """Replace what the block's holder sees. Where `fill` raises or returns 0, nothing has changed.

        It is called with the arguments, and the native block as the last.
        """
        result = fill(*arguments, self.native)
        if result != 0 and self.tensors is not None:
            self.tensors.count_up_versions()
        return result
