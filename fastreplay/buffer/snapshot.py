# SPDX-License-Identifier: MIT
"""A buffer's transitions on their way through pickle and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

from fastreplay import _core
from fastreplay.checkpoint.pieces import ReceivedRecords, pieces_of
from fastreplay.checkpoint.stored import Stored
from fastreplay.support.saving import format_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from fastreplay.buffer.pickled import Pickled
    from fastreplay.schema import Schema
    from fastreplay.support.saving import Format

    Array = NDArray[np.generic]

__all__ = ["ReceivedTransitions", "Run", "Transitions"]


class Run:
    """Memory of some transitions, field by field, contiguous: what the ring is read into."""

    def __init__(self, ring: _core.Ring, schema: Schema, count: int) -> None:
        self.native = _core.Block(ring, count)
        flat, (*offsets, _) = self.native.flat, self.native.offsets
        self.columns = tuple(
            flat[offset : offset + count * field.row_bytes].view(field.dtype).reshape(count, *field.shape)
            for offset, field in zip(offsets, schema.values(), strict=True)
        )


class Transitions(Sequence[Any]):
    """The transitions of a buffer, oldest first: a sequence of columns (n, *shape) in schema order.

    Pickled as they are stored; copied as a whole where somebody asks for the columns.
    """

    def __init__(self, buffer: Pickled[Any]) -> None:
        self.buffer = buffer

    def __len__(self) -> int:
        return len(self.buffer.schema)

    @overload
    def __getitem__(self, index: int) -> Array: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Array]: ...
    def __getitem__(self, index: int | slice) -> Array | Sequence[Array]:
        return self.columns()[1][index]

    def __iter__(self) -> Iterator[Array]:
        return iter(self.columns()[1])

    def columns(self) -> tuple[int, tuple[Array, ...]]:
        """Copy the transitions; return the ticket of the first, and the columns."""
        from fastreplay.checkpoint.retreat import Retreat

        ring = self.buffer._ring
        wanted = Retreat(ring)
        while True:
            first, count = wanted.first, wanted.end - wanted.first
            run = Run(ring, self.buffer.schema, count)
            lost = max(ring.read_run(first, run.native) - first, 0) if count else 0
            if not count or lost < count:
                return first + lost, tuple(column[lost:] for column in run.columns)
            wanted.go()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        form = format_of(protocol)
        return receive, (self.buffer, form), None, pieces_of(Stored(self.buffer._ring, self.buffer.schema), form)


class ReceivedTransitions(ReceivedRecords, Transitions):
    """The transitions of a buffer that is being loaded.

    Args:
        buffer: An empty one.
        form: As they were saved.
    """

    def __init__(self, buffer: Pickled[Any], form: Format) -> None:
        Transitions.__init__(self, buffer)
        ReceivedRecords.__init__(self, Stored(buffer._ring, buffer.schema), form)


def receive(buffer: Pickled[Any], form: Format) -> ReceivedTransitions:
    """Return what takes the transitions of a buffer that is being loaded."""
    return buffer._receive(form)
