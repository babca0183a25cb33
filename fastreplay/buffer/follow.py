# SPDX-License-Identifier: MIT
"""What surrounds each row of a minibatch, within its trajectory: what the rules have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastreplay import _core
from fastreplay.batch.form import Around, Form, Steps, Surroundings
from fastreplay.schema.schema import Field, Schema

if TYPE_CHECKING:
    from fastreplay.buffer.lanes import Lanes

__all__ = ["MOST_STEPS", "Follow", "Followed", "Making", "Steps", "names_given"]

MOST_STEPS = 2**31
_BOOL = np.dtype(np.bool_)
_KEPT = 8  # steps whose places are kept, where only sums are made of them


def names_given(argument: str, given: object) -> tuple[str, ...]:
    """Return the names of fields that were given: one, or several.

    Raises:
        TypeError: They are none.
    """
    names: Any = (given,) if isinstance(given, str) else given
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{argument}: expected names of fields, got {given!r}")
    return tuple(names)


class Followed(NamedTuple):
    """What a minibatch is made of that follows a rule, and what makes it."""

    form: Form
    native: Surroundings


class Follow(ABC):
    """A rule about what to give with each row, of what comes before and after it in its trajectory."""

    @property
    @abstractmethod
    def _redraws(self) -> bool:
        """Whether rows are drawn again of whose surroundings a part is missing."""

    @abstractmethod
    def _followed(self, schema: Schema, lanes: Lanes, form: Form) -> Followed:
        """Return what a minibatch is made of, which without this rule is of that form.

        Raises:
            ValueError: The fields do not allow it; the message says which.
        """


class Making:
    """A rule in the making: what becomes of each field, and what is made beside them.

    Args:
        schema: The fields of a transition.
        lanes: Of the ring.
        form: What a minibatch is made of without the rule.
        time_major: Whether steps come before rows, in what is given of steps.
    """

    def __init__(self, schema: Schema, lanes: Lanes, form: Form, *, time_major: bool = False) -> None:
        self._lanes = lanes
        self._schema = schema
        self._fields = dict(schema)
        self._beside = dict(form.beside)
        self._parts = list(form.parts)
        self._taken: dict[tuple[Steps, bool, bool], list[str]] = {}
        self._said: list[tuple[Steps, int, int]] = []
        self._reach = [0, 0]
        self._is_time_major = time_major
        self._time_major: set[str] = set()

    def name_beside(self, name: str) -> str:
        """Return the name of what is to be made beside the fields.

        Raises:
            ValueError: A field has it.
        """
        if name in self._schema or name in self._schema.parts:
            raise ValueError(f"follow: a field named {name!r} is stored, and the minibatch has one of its own")
        return name

    def take(self, name: str, steps: Steps, *, zeros: bool = False, is_first_only: bool = False) -> None:
        """Give a field of some steps, (length, *shape), or only of the first of them that is there, as it is."""
        position = self._schema.position(name)
        field = self._schema[name]
        if not is_first_only:
            try:
                self._fields[name] = field._of_steps(steps.length)
            except ValueError as error:  # one axis too many
                raise ValueError(f"{name}: {error}, with that of steps") from error
            self._note_steps(name)
        self._parts[position] = (_core.PART_MADE, self._fields[name].out_bytes, 0, field.conversion)
        self._taken.setdefault((steps, zeros, is_first_only), []).append(name)
        self._reach_to(steps)

    def take_last(self, name: str) -> None:
        """Give a field of the last step that is there."""
        position = self._schema.position(name)
        self._parts[position] = (_core.PART_OF_END, *self._parts[position][1:])

    def make_field(self, name: str) -> int:
        """Leave a field to be made; return its part."""
        position = self._schema.position(name)
        self._parts[position] = (_core.PART_MADE, *self._parts[position][1:])
        return position

    def make_beside(self, name: str, field: Field) -> int:
        """Have something made beside the fields; return its part."""
        part = len(self._fields) + len(self._beside)
        self._beside[self.name_beside(name)] = field
        self._parts.insert(part, (_core.PART_MADE, field.row_bytes, 0, _core.AS_STORED))
        return part

    def say(self, name: str, steps: Steps, what: int) -> None:
        """Say something of some steps, (length,) bool."""
        self._said.append((steps, what, self.make_beside(name, Field((steps.length,), _BOOL))))
        self._note_steps(name)
        self._reach_to(steps)

    def made(
        self,
        *,
        redraws: bool,
        most_after: int = 0,
        sums: tuple[float, list[tuple[tuple[int, bool], int]], list[tuple[int, bool]], int, bool] | None = None,
    ) -> Followed:
        """Return the rule."""
        before, after = -self._reach[0], max(self._reach[1], most_after)
        num_kept = before + (1 + after if self._taken else _KEPT)
        self._parts.append((_core.PART_MADE, _core.bytes_of_way(num_kept), 0, _core.AS_STORED))
        taken = []
        for (steps, zeros, is_first_only), names in self._taken.items():
            positions = [self._schema.position(name) for name in names]
            taken.append((steps, zeros, is_first_only, positions, positions))
        around = Around(before, after, redraws, self._is_time_major, len(self._parts) - 1, taken, self._said, sums)
        native = Surroundings(self._lanes.core, around)
        schema = self._schema._with_fields(self._fields)
        return Followed(Form(schema, self._parts, self._beside, frozenset(self._time_major)), native)

    def _note_steps(self, name: str) -> None:
        if self._is_time_major:
            self._time_major.add(name)

    def _reach_to(self, steps: Steps) -> None:
        self._reach = [min(self._reach[0], steps.first), max(self._reach[1], steps.last)]
