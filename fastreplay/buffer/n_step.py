# SPDX-License-Identifier: MIT
"""n steps of a trajectory as one transition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from fastreplay.buffer.follow import MOST_STEPS, Follow, Followed, Making, names_given
from fastreplay.schema.schema import Field
from fastreplay.schema.structure import fields_within
from fastreplay.support.checks import check_choice, checked_count, checked_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastreplay.batch.form import Form
    from fastreplay.buffer.lanes import Lanes
    from fastreplay.schema import Schema

__all__ = ["NStep"]

_DISCOUNT = "discount"


@dataclass(frozen=True)
class NStep(Follow):
    """The next steps of each row's trajectory, as one transition (Watkins 1989; Sutton & Barto 2018, chapter 7).

    Of the m steps that are there, at most n: the reward is the sum of gamma^k times that of step k; what is the next
    of something, as its name `next_X` or `X_next` tells, or `share_next`, what ends a trajectory, and what is in
    `last`, is the last step's; all else the first one's. Beside them, `batch.discount` is gamma^m, (B,) float32. With
    y = reward + discount * (1 - terminated) * value(next_observation) as the target, a truncated trajectory bootstraps
    and a terminated one does not.

    m is less than n where the trajectory ends before, or was cut, or where the next transition has not been inserted.

    Args:
        n: Steps at most.
        gamma: Discount factor of a step.
        reward: Names of the fields to sum, float32 or float64; each number of theirs by itself.
        discount: Name of a field (), float32 or float64, of what else each step discounts, as dm_env's: reward k is
            weighed with gamma^k and the first k of them, `batch.discount` is gamma^m times all m.
        incomplete: What becomes of rows whose next transition has not been inserted: "shorten", or "redraw": another
            row is drawn in their place.
        last: Names of other fields, or parts, that are to be the last step's.

    Raises:
        TypeError, ValueError: An argument is none of these; the message names it.

    Sums are made in float64, k ascending, the weight of step k + 1 being that of step k times gamma, then times the
    stored discount; then they are rounded to the field's dtype.
    """

    n: int
    gamma: float
    reward: str | Sequence[str] = "reward"
    discount: str | None = None
    incomplete: Literal["shorten", "redraw"] = "shorten"
    last: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", checked_count("n", self.n))
        if self.n > MOST_STEPS:
            raise ValueError(f"n: expected at most {MOST_STEPS}, got {self.n}")
        object.__setattr__(self, "gamma", float(checked_number("gamma", self.gamma, 0)))
        names = names_given("reward", self.reward)
        for i, name in enumerate(names):
            if name in (*names[:i], self.discount):
                raise ValueError(f"reward: expected each field once, and none that is the discount, got {name!r}")
        object.__setattr__(self, "reward", names)
        object.__setattr__(self, "last", names_given("last", self.last))
        if self.discount is not None and not isinstance(self.discount, str):
            raise TypeError(f"discount: expected the name of a field or None, got {self.discount!r}")
        check_choice("incomplete", self.incomplete, ("shorten", "redraw"))

    @property
    def _redraws(self) -> bool:
        """Whether rows are drawn again whose next transition is not there."""
        return self.incomplete == "redraw"

    def _followed(self, schema: Schema, lanes: Lanes, form: Form) -> Followed:
        rewards = [self._floats("reward", name, schema) for name in self.reward]
        stored = [] if self.discount is None else [self._floats("discount", self.discount, schema)]
        if self.discount is not None and schema[self.discount].shape:
            raise ValueError(f"discount: expected a field (), and {self.discount!r} is {schema[self.discount].shape}")
        if self.discount != _DISCOUNT and _DISCOUNT in schema:
            raise ValueError("discount: expected 'discount', as a field of this name is stored")
        making = Making(schema, lanes, form)
        of_last = self._fields_of_last(schema)
        for name in schema:
            if name not in self.reward and (name in lanes.next_ones or name in lanes.ends or name in of_last):
                making.take_last(name)
        sums = [(numbers, making.make_field(name)) for numbers, name in zip(rewards, self.reward, strict=True)]
        if _DISCOUNT in schema:
            part, is_double = making.make_field(_DISCOUNT), schema[_DISCOUNT].dtype == np.float64
        else:
            part, is_double = making.make_beside(_DISCOUNT, Field((), np.float32)), False
        return making.made(
            redraws=self._redraws, most_after=self.n - 1, sums=(self.gamma, sums, stored, part, is_double)
        )

    def _fields_of_last(self, schema: Schema) -> set[str]:
        """Return the fields that `last` names, or that are below what it names."""
        fields = {name for part in self.last for name in fields_within("last", part, schema)}
        for name in (*self.reward, self.discount):
            if name in fields:
                raise ValueError(f"last: expected fields that are neither summed nor a discount, got {name!r}")
        return fields

    @staticmethod
    def _floats(argument: str, name: str, schema: Schema) -> tuple[int, bool]:
        """Return the position of a field of floats, and whether they are doubles."""
        if name not in schema:
            raise ValueError(f"{argument}: expected names of fields, got {name!r}; the fields are {', '.join(schema)}")
        dtype = schema[name].dtype
        if dtype not in (np.float32, np.float64):
            stored = "" if schema[name].out is None else "to be stored as "
            raise ValueError(f"{argument}: expected {stored}float32 or float64, and {name!r} is {dtype}")
        if schema[name].shift:
            raise ValueError(f"{argument}: expected no shift of a field that is summed, and {name!r} is {schema[name]}")
        return schema.position(name), dtype == np.float64
