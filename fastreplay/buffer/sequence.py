# SPDX-License-Identifier: MIT
"""Steps of a trajectory in a row, for recurrent networks."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fastreplay import _core
from fastreplay.buffer.follow import MOST_STEPS, Follow, Followed, Making, Steps
from fastreplay.support.checks import check_choice, checked_count, checked_index

if TYPE_CHECKING:
    from fastreplay.batch.form import Form
    from fastreplay.buffer.lanes import Lanes
    from fastreplay.schema import Schema

__all__ = ["Sequence"]


@dataclass(frozen=True)
class Sequence(Follow):
    """Steps of each row's trajectory in their order, with what came before to warm up on (Kapturowski et al. 2019).

    Of L = burn_in + length steps, step `burn_in` is the drawn row, the first to be trained. Every field is
    (B, L, *shape), and beside them are

    - `batch.mask`, (B, L) bool: whether the step is there. Steps before the trajectory's beginning and after its end, or
      its cut, are not; neither is what has left the buffer, or is not in it yet.
    - `batch.trained`, (B, L) bool: whether it is there and comes after the burn-in.
    - `batch.is_first`, (B, L) bool: whether it is the first of its trajectory.

    `update_priorities(batch, errors)` takes (B, L) errors, and gives each row what it says of them.

    Args:
        length: Trained steps, at most.
        burn_in: Steps before them, at most.
        stride: Transitions from one step to the next.
        incomplete: What becomes of rows of which steps have left the buffer, or are not in it yet: "pad", or "redraw":
            another row is drawn in their place. What the trajectory itself does not have is padded in either case.
        pad: What is given for a step that is not there: the nearest transition that is ("edge"), or zeros ("zero").
        first_only: Names of fields of which only the first step that is there is given, (B, *shape): a recurrent
            network's state, say.

    Raises:
        TypeError, ValueError: An argument is none of these; the message names it.
    """

    length: int
    burn_in: int = 0
    stride: int = 1
    incomplete: Literal["pad", "redraw"] = "pad"
    pad: Literal["edge", "zero"] = "edge"
    first_only: str | SequenceOf[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", checked_count("length", self.length))
        object.__setattr__(self, "burn_in", checked_index("burn_in", self.burn_in))
        object.__setattr__(self, "stride", checked_count("stride", self.stride))
        if self.burn_in < 0:
            raise ValueError(f"burn_in: expected a non-negative integer, got {self.burn_in}")
        reach = (self.length + self.burn_in) * self.stride
        if reach > MOST_STEPS:
            raise ValueError(f"length: expected at most {MOST_STEPS} transitions with burn_in and stride, got {reach}")
        check_choice("incomplete", self.incomplete, ("pad", "redraw"))
        check_choice("pad", self.pad, ("edge", "zero"))
        names: Any = (self.first_only,) if isinstance(self.first_only, str) else self.first_only
        if not isinstance(names, SequenceOf) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"first_only: expected names of fields, got {self.first_only!r}")
        object.__setattr__(self, "first_only", tuple(names))

    @property
    def redraws(self) -> bool:
        """Whether rows are drawn again of which steps are not in the buffer."""
        return self.incomplete == "redraw"

    def _followed(self, schema: Schema, lanes: Lanes, form: Form) -> Followed:
        for name in self.first_only:
            if name not in schema:
                raise ValueError(f"first_only: expected names of fields, got {name!r}; the fields are {', '.join(schema)}")
        making = Making(schema, lanes, form)
        steps = Steps(-self.burn_in * self.stride, self.burn_in + self.length, self.stride)
        for name in schema:
            if name in self.first_only:
                making.take(name, Steps(steps.first, 1), is_one=True)
            else:
                making.take(name, steps, zeros=self.pad == "zero")
        making.say("mask", steps, _core.STEPS_THERE)
        making.say("trained", steps, _core.STEPS_TRAINED)
        making.say("is_first", steps, _core.STEPS_FIRST)
        return making.made(redraws=self.redraws)
