# SPDX-License-Identifier: MIT
"""The tensors of a block in a device's memory, and how it is known that nobody uses them any more."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from fastreplay.batch.field_tensors import as_made

if TYPE_CHECKING:
    import torch

    from fastreplay.batch.field_tensors import PlainTensors
    from fastreplay.batch.layout import Layout
    from fastreplay.batch.tensors import FieldTensors


class DeviceTensors:
    """A device block's fields and tickets as tensors, views of its one storage.

    The views here are never handed out, and nobody else's can take part of the storage's count of owners with it; so
    what that count is above theirs are tensors that others have.
    """

    __slots__ = ("_address", "_bare_references", "_bare_uses", "_handle", "_made", "_storage", "_templates", "flat")

    def __init__(self, flat: torch.Tensor, layout: Layout) -> None:
        import torch

        # Tensors of inference mode could not be saved for a backward pass later.
        with torch.inference_mode(False):
            self.flat = flat
            self._templates = layout.tensors_in(flat)
        # torch keeps one Python object a storage, and counts it as one use however many refer to it.
        self._storage = flat.untyped_storage()
        self._address = flat.data_ptr()
        self._handle = self._storage._cdata
        self._bare_uses = torch._C._storage_Use_Count(self._handle)
        self._bare_references = sys.getrefcount(self._storage)
        self._made: FieldTensors | PlainTensors | None = None

    def hand_out(self) -> tuple[torch.Tensor, ...]:
        """Return the fields' tensors, those of the last time where nobody has them and nothing was done to them."""
        import torch

        if self._made is None:
            with torch.inference_mode(False):
                self._made = as_made(tuple([template.data for template in self._templates]))
        return self._made.hand_out()

    @property
    def ticket(self) -> torch.Tensor:
        """The tickets (B,) int64, once the fields were handed out."""
        assert self._made is not None
        return self._made.ticket

    def first_changed(self) -> int:
        """Return the position of the first tensor handed out that is not where and as it was made, -1 where all are."""
        return 0 if self._made is None else self._made.first_changed()

    def count_up_versions(self) -> None:
        """Let autograd know that the tensors' memory has changed."""
        if self._made is not None:
            self._made.count_up_versions()

    def is_free(self) -> bool:
        """Tell whether nobody else uses the storage, and it still is the block's memory."""
        if self._made is not None:
            if self._made.is_held():
                return False
            if not self._made.is_pristine():
                self._made = None  # from here on the count tells
        import torch

        return self.flat.data_ptr() == self._address and (
            self._made is not None
            or (
                torch._C._storage_Use_Count(self._handle) <= self._bare_uses
                and sys.getrefcount(self._storage) <= self._bare_references
            )
        )
