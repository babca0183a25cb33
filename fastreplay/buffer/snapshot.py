# SPDX-License-Identifier: MIT
"""A buffer's transitions on their way through pickle and back, and the check of what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from fastreplay import _core
from fastreplay.support.saving import Receiver, format_of, pieces, run_length

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from fastreplay.buffer.pickled import Pickled
    from fastreplay.schema.schema import Schema
    from fastreplay.support.saving import Format, Parser

    Array = NDArray[np.generic]

__all__ = ["ReceivedTransitions", "Transitions", "checked_ticket", "receive"]

# Tickets beyond it are no counts of anything: a billion inserts a second take 146 years to get there.
_MOST_TICKETS = 2**62


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

    Pickled in runs of some hundred kilobytes, which are read from the ring when the pickler asks for them, without
    stopping writers. In ascending order: what they overwrite meanwhile is at the beginning, and is left out.
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
        first = 0
        runs: list[tuple[Array, ...]] = []
        for ticket, columns in self._runs():
            if not runs or ticket != first + sum(len(run[0]) for run in runs):
                runs.clear()
                first = ticket
            runs.append(tuple(column.copy() for column in columns))
        return first, tuple(np.concatenate(parts) for parts in zip(*runs, strict=True))

    def _runs(self) -> Iterator[tuple[int, tuple[Array, ...]]]:
        """Yield runs of whole transitions: the ticket of the first, and their columns, valid until the next.

        Where tickets are left out, only what follows counts. This is where writers came past: the runs go on with
        the newest transitions, half as many each time.
        """
        ring, schema = self.buffer._ring, self.buffer.schema
        first, end = ring.window()
        length = run_length(sum(field.row_bytes for field in schema.values()))
        run = Run(ring, schema, min(length, end - first))
        yield first, tuple(column[:0] for column in run.columns)  # where tickets go on if there is nothing
        start, num_kept = first, end - first
        while start < end:
            count = min(length, end - start)
            if count != len(run.columns[0]):
                run = Run(ring, schema, count)
            lost = min(max(ring.read_run(start, run.native) - start, 0), count)
            if lost == count or (lost and start > first):
                num_kept //= 2
                oldest, end = ring.window()
                first = start = max(oldest, end - num_kept)
                continue
            yield start + lost, tuple(column[lost:] for column in run.columns)
            start += count

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        form = format_of(protocol)
        return receive, (self.buffer, form), None, self._pieces(form)

    def _pieces(self, form: Format) -> Iterator[int]:
        for ticket, columns in self._runs():
            yield ticket
            yield len(columns[0])
            for column in columns:
                yield from pieces(column, form)


class ReceivedTransitions(Receiver, Transitions):
    """The transitions of a buffer that is being loaded: they are inserted as they come.

    Args:
        buffer: An empty one.
        extend: Inserts into it.
        form: As they were saved.
    """

    def __init__(self, buffer: Pickled[Any], extend: Callable[..., None], form: Format) -> None:
        Transitions.__init__(self, buffer)
        self._extend = extend
        self.first = self._next = -1
        Receiver.__init__(self, form)

    def _parse(self) -> Parser:
        ring, schema = self.buffer._ring, self.buffer.schema
        while True:
            ticket = yield
            self.is_complete = False
            count = yield
            if count > ring.capacity:
                raise ValueError(f"columns: expected at most {ring.capacity} transitions, got {count}")
            checked_ticket("columns", ticket + count)
            if ticket != self._next:  # those in between were lost, and what is older is no neighbour of what follows
                self.first = ticket
                ring.start_at(ticket)
            self._next = ticket + count
            if count:
                columns = Run(ring, schema, count).columns
                for column in columns:
                    yield from self._fill(column)
                self._extend(*columns)
            self.is_complete = True


def receive(buffer: Pickled[Any], form: Format) -> ReceivedTransitions:
    """Return what takes the transitions of a buffer that is being loaded."""
    return buffer._receive(form)


def checked_ticket(name: str, ticket: object) -> int:
    """Return a ticket that a ring can start at.

    Raises:
        ValueError: It is no count of inserts.
    """
    if type(ticket) is not int or not 0 <= ticket <= _MOST_TICKETS:
        raise ValueError(f"{name}: expected a ticket, an integer in [0, 2**62], got {ticket!r}")
    return ticket
