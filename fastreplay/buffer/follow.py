# SPDX-License-Identifier: MIT
"""What surrounds each row of a minibatch, within its trajectory: the rules that a caller chooses from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastreplay import _core
from fastreplay.support.checks import checked_count, checked_number

if TYPE_CHECKING:
    from fastreplay.buffer.lanes import Lanes
    from fastreplay.schema import Schema

__all__ = ["Followed", "NStep"]

_DISCOUNT = "discount"
_MOST_STEPS = 2**31


class Followed(NamedTuple):
    """What a minibatch is made of that follows a rule, and what makes it."""

    parts: list[tuple[int, int, int]]
    beside: tuple[str, ...]  # names of what it has beside fields
    native: _core.NSteps


@dataclass(frozen=True)
class NStep:
    """The next steps of each row's trajectory, as one transition (Watkins 1989; Sutton & Barto 2018, chapter 7).

    Of the m steps that are there, at most n: the reward is the sum of gamma^k times that of step k; fields whose names
    begin with `next_`, and those that end a trajectory, are the last step's; all others the first one's. Beside them,
    `batch.discount` is gamma^m, (B,) float32. With y = reward + discount * (1 - terminated) * value(next_observation)
    as the target, a truncated trajectory bootstraps and a terminated one does not.

    m is less than n where the trajectory ends before, or was cut, or where the next transition has not been inserted.

    Args:
        n: Steps at most.
        gamma: Discount factor of a step.
        reward: Names of the fields to sum, float32 or float64; each number of theirs by itself.
        discount: Name of a field (), float32 or float64, of what else each step discounts, as dm_env's: reward k is
            weighed with gamma^k and the first k of them, `batch.discount` is gamma^m times all m.

    Raises:
        TypeError, ValueError: An argument is none of these; the message names it.

    Sums are made in float64, k ascending, the weight of step k + 1 being that of step k times gamma, then times the
    stored discount; then they are rounded to the field's dtype.
    """

    n: int
    gamma: float
    reward: str | Sequence[str] = "reward"
    discount: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", checked_count("n", self.n))
        if self.n > _MOST_STEPS:
            raise ValueError(f"n: expected at most {_MOST_STEPS}, got {self.n}")
        object.__setattr__(self, "gamma", float(checked_number("gamma", self.gamma, 0)))
        names: Any = (self.reward,) if isinstance(self.reward, str) else self.reward
        if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"reward: expected names of fields, got {self.reward!r}")
        for i, name in enumerate(names):
            if name in (*names[:i], self.discount):
                raise ValueError(f"reward: expected each field once, and none that is the discount, got {name!r}")
        object.__setattr__(self, "reward", tuple(names))
        if self.discount is not None and not isinstance(self.discount, str):
            raise TypeError(f"discount: expected the name of a field or None, got {self.discount!r}")

    def _followed(
        self, schema: Schema, lanes: Lanes, parts: list[tuple[int, int, int]], beside: tuple[str, ...]
    ) -> Followed:
        """Return what a minibatch is made of, which without this rule is made of these parts.

        Raises:
            ValueError: The fields do not allow it; the message says which.
        """
        sums = [(self._floats("reward", name, schema), schema.position(name)) for name in self.reward]
        stored = [] if self.discount is None else [self._floats("discount", self.discount, schema)]
        if self.discount is not None and schema[self.discount].shape:
            raise ValueError(f"discount: expected a field (), and {self.discount!r} is {schema[self.discount].shape}")
        if self.discount != _DISCOUNT and _DISCOUNT in schema:
            raise ValueError("discount: expected 'discount', as a field of this name is stored")
        made = list(parts)
        for i, name in enumerate(schema):
            if name in self.reward:
                made[i] = (_core.PART_MADE, *made[i][1:])
            elif name.startswith("next_") or name in lanes.ends:
                made[i] = (_core.PART_OF_END, *made[i][1:])
        if _DISCOUNT in schema:
            place = schema.position(_DISCOUNT)
            made[place] = (_core.PART_MADE, *made[place][1:])
            is_double = schema[_DISCOUNT].dtype == np.float64
        else:
            place, is_double = len(made) - 1, False  # before the tickets
            made.insert(place, (_core.PART_MADE, np.dtype(np.float32).itemsize, 0))
            beside = (*beside, _DISCOUNT)
        return Followed(made, beside, _core.NSteps(lanes.core, self.n, self.gamma, sums, stored, place, is_double))

    @staticmethod
    def _floats(argument: str, name: str, schema: Schema) -> tuple[int, bool]:
        """Return the position of a field of floats, and whether they are doubles."""
        if name not in schema:
            raise ValueError(f"{argument}: expected names of fields, got {name!r}; the fields are {', '.join(schema)}")
        dtype = schema[name].dtype
        if dtype not in (np.float32, np.float64):
            raise ValueError(f"{argument}: expected float32 or float64, and {name!r} is {dtype}")
        return schema.position(name), dtype == np.float64
