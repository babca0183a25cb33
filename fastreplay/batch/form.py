# SPDX-License-Identifier: MIT
"""What a minibatch is made of: its fields, what its rows have beside them, and where all of it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from fastreplay import _core
from fastreplay.schema.schema import Field

if TYPE_CHECKING:
    from fastreplay.schema import Schema

__all__ = ["Around", "Form", "Parts", "Steps", "Surroundings", "stored_form", "transition_form", "weighted_form"]

Parts: TypeAlias = "list[tuple[int, int, int, tuple[Any, ...]]]"

_NUMBER = Field((), np.float32)


@dataclass(frozen=True, eq=False)
class Form:
    """What a minibatch is made of.

    Attributes:
        schema: The fields, as they are given out.
        parts: Where the fields, what is beside them, and the tickets come from: (source, bytes of a row, field of the
            record, what becomes of that) each; then what nobody is given.
        beside: What the rows have beside fields, by name.
        time_major: Names of those of both whose steps come first, and then the rows: (L, B, *shape).
    """

    schema: Schema
    parts: Parts
    beside: dict[str, Field]
    time_major: frozenset[str] = frozenset()

    def arrays(self, batch_size: int) -> list[tuple[np.dtype[Any], tuple[int, ...]]]:
        """Return the dtype and shape of each part that is given out, the tickets last."""
        fields = [*self.schema.items(), *self.beside.items(), ("ticket", Field((), np.int64))]
        return [(field.out_dtype, self._shape(name, field.shape, batch_size)) for name, field in fields]

    def _shape(self, name: str, row: tuple[int, ...], batch_size: int) -> tuple[int, ...]:
        return (row[0], batch_size, *row[1:]) if name in self.time_major else (batch_size, *row)

    def check(self, other: Form) -> None:
        """Refuse an `out` of another form.

        Raises:
            ValueError: It is; the message says how.
        """
        if other is self:
            return
        if other.schema != self.schema:
            raise ValueError(f"out: expected a minibatch of {self.schema}, got one of {other.schema}")
        if other.beside != self.beside:
            made = f"with {', '.join(self.beside)}" if self.beside else "of fields alone"
            raise ValueError(f"out: expected a minibatch {made}: of the same method of a buffer of the same kind")
        if other.time_major != self.time_major:
            raise ValueError("out: expected a minibatch whose follow has the same time_major")
        if other.parts != self.parts:
            raise ValueError("out: expected a minibatch whose follow reaches as far and makes the same fields")


class Steps(NamedTuple):
    """Steps first, first + stride, ..., `length` of them; that of the drawn row is 0."""

    first: int
    length: int
    stride: int = 1

    @property
    def last(self) -> int:
        """The last of them."""
        return self.first + (self.length - 1) * self.stride


class Around(NamedTuple):
    """A rule, as the core takes it. Fields are named by their position in the record, parts by that in the form."""

    most_before: int
    most_after: int
    redraws: bool
    is_time_major: bool
    ways_part: int
    taken: list[tuple[Steps, bool, bool, list[int], list[int]]]  # with zeros, the first only, fields, parts
    said: list[tuple[Steps, int, int]]  # what, part
    # gamma, ((field, is it double), part) of each sum, the stored discount, the part of the discount, is it double
    sums: tuple[float, list[tuple[tuple[int, bool], int]], list[tuple[int, bool]], int, bool] | None


class Surroundings(_core.Follow):
    """A rule over a ring.

    Attributes:
        around: The rule.
        oldest_known: The oldest ticket of a row that is complete by it, as far as somebody has looked; -1 before.
    """

    def __init__(self, lanes: _core.Lanes, around: Around) -> None:
        super().__init__(lanes, *around)
        self.around = around
        self.oldest_known = -1

    def has_complete(self, first: int, size: int) -> bool:
        """Tell whether any of `size` tickets from `first` on is complete, by what of them is there."""
        if self.oldest_known < first:
            found = self.newest_complete(first, first + size)
            self.oldest_known = -1 if found is None else found
        return self.oldest_known >= first


def stored_form(schema: Schema) -> Form:
    """Return what is read of a ring: transitions as they are stored."""
    return Form(schema._as_stored(), _core.transition_parts(schema.sizes), {})


def transition_form(schema: Schema) -> Form:
    """Return what is drawn of a ring: transitions."""
    return Form(schema, _converted(schema, _core.transition_parts(schema.sizes)), {})


def weighted_form(schema: Schema) -> Form:
    """Return what is drawn by priority: transitions with weights and probabilities."""
    parts = _converted(schema, _core.weighted_parts(schema.sizes))
    return Form(schema, parts, {"weight": _NUMBER, "probability": _NUMBER})


def _converted(schema: Schema, parts: Parts) -> Parts:
    """Return parts of which the first are the fields, as these are given out."""
    for i, field in enumerate(schema.values()):
        parts[i] = (parts[i][0], field.out_bytes, i, field.conversion)
    return parts
