# SPDX-License-Identifier: MIT
"""Steps around each row: in a row, for recurrent networks; or other ones for each field."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fastreplay import _core
from fastreplay.buffer.follow import MOST_STEPS, Follow, Followed, Making, Steps, names_given
from fastreplay.schema.structure import fields_within, is_within
from fastreplay.support.checks import check_choice, checked_count, checked_flag, checked_index

if TYPE_CHECKING:
    from fastreplay.batch.form import Form
    from fastreplay.buffer.lanes import Lanes
    from fastreplay.schema import Schema

__all__ = ["Sequence", "Window"]


@dataclass(frozen=True)
class Sequence(Follow):
    """Steps of each row's trajectory in their order, with what came before to warm up on (Kapturowski et al. 2019).

    Of L = burn_in + length steps, step `burn_in` is the drawn row, the first to be trained. Every field is
    (B, L, *shape), and beside them are

    - `batch.mask`, (B, L) bool: whether the step is there. Steps before the trajectory's beginning and after its end
      (or its cut) are not; neither is what has left the buffer, or is not in it yet.
    - `batch.trained`, (B, L) bool: whether it is there and comes after the burn-in.
    - `batch.is_first`, (B, L) bool: whether it is the first of its trajectory.

    `update_priorities(batch, errors)` takes (B, L) errors, and gives each row what they say of it.

    With `time_major=True` steps come first: fields are (L, B, *shape), and all that is (B, L) here is (L, B), errors
    too, as `torch.nn.LSTM` takes them unless it is made with `batch_first=True`. Nothing is transposed: rows are
    gathered to where they belong, and every array is contiguous.

    Args:
        length: Trained steps, at most.
        burn_in: Steps before them, at most.
        stride: Transitions from one step to the next.
        incomplete: What becomes of rows of which steps have left the buffer, or are not in it yet: "pad", or "redraw":
            another row is drawn in their place. What the trajectory itself does not have is padded in either case.
        pad: What is given for a step that is not there: the nearest transition of the trajectory that is, also
            between two steps of a stride ("edge"); or zeros ("zero").
        first_only: Names of fields, or dicts of fields, of which only the first step that is there is given, (B,
            *shape): a recurrent network's state, say.
        time_major: Whether steps come before rows.

    Raises:
        TypeError, ValueError: An argument is none of these; the message names it.
    """

    length: int
    burn_in: int = 0
    stride: int = 1
    incomplete: Literal["pad", "redraw"] = "pad"
    pad: Literal["edge", "zero"] = "edge"
    first_only: str | SequenceOf[str] = ()
    time_major: bool = False

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
        object.__setattr__(self, "first_only", names_given("first_only", self.first_only))
        object.__setattr__(self, "time_major", checked_flag("time_major", self.time_major))

    @property
    def _redraws(self) -> bool:
        """Whether rows are drawn again of which steps are not in the buffer."""
        return self.incomplete == "redraw"

    def _followed(self, schema: Schema, lanes: Lanes, form: Form) -> Followed:
        for name in self.first_only:
            if name not in schema.parts_by_name:
                raise ValueError(
                    f"first_only: expected names of fields, got {name!r}; the fields are {', '.join(schema)}"
                )
        making = Making(schema, lanes, form, time_major=self.time_major)
        steps = Steps(-self.burn_in * self.stride, self.burn_in + self.length, self.stride)
        for name in schema:
            is_first_only = any(is_within(name, part) for part in self.first_only)
            making.take(name, steps, zeros=self.pad == "zero" and not is_first_only, is_first_only=is_first_only)
        making.say("mask", steps, _core.STEPS_THERE)
        making.say("trained", steps, _core.STEPS_TRAINED)
        making.say("is_first", steps, _core.STEPS_FIRST)
        return making.made(redraws=self._redraws)


@dataclass(frozen=True)
class Window(Follow):
    """Steps around each row, given by their distance from it: observations before it, actions from it on.

    A field that is named is (B, number of steps, *shape), with what is missing padded, and has a mask beside it, (B,
    number of steps) bool, that tells which steps are there: `batch.observation_mask` of `observation`. All others are
    the drawn row's. (Diffusion policies, Chi et al. 2023; action chunks, Zhao et al. 2023; LeRobot's
    `delta_timestamps`, in steps.)

    Args:
        steps: A mapping of the name of a field, or of a dict of fields, to its steps in ascending order, equally far
            apart: `range(-3, 1)`.
        incomplete: As in `Sequence`.
        pad: As in `Sequence`.
        time_major: Whether steps come before rows in what has steps: (number of steps, B, *shape).

    Raises:
        TypeError, ValueError: An argument is none of these; the message names it.

    Example:
        >>> import fastreplay as fr
        >>> buffer = fr.ReplayBuffer(100, {"observation": (3,), "action": ()}, lanes=1, ends=(), output="numpy")
        >>> buffer.extend(observation=[[i, i, i] for i in range(50)], action=range(50))
        >>> batch = buffer.sample(8, follow=fr.Window({"observation": range(-3, 1), "action": range(0, 16)}))
        >>> batch.observation.shape, batch.action.shape, batch.action_mask.shape
        ((8, 4, 3), (8, 16), (8, 16))
    """

    steps: Mapping[str, SequenceOf[int]] | tuple[tuple[str, SequenceOf[int]], ...]
    incomplete: Literal["pad", "redraw"] = "pad"
    pad: Literal["edge", "zero"] = "edge"
    time_major: bool = False

    def __post_init__(self) -> None:
        steps: Any = dict(self.steps) if isinstance(self.steps, tuple) else self.steps
        if not isinstance(steps, Mapping) or not all(isinstance(name, str) for name in steps):
            raise TypeError(f"steps: expected a mapping of names of fields to their steps, got {self.steps!r}")
        if not steps:
            raise ValueError("steps: expected the steps of at least one field, got none")
        object.__setattr__(self, "steps", tuple([(name, _steps_of(name, each)) for name, each in steps.items()]))
        check_choice("incomplete", self.incomplete, ("pad", "redraw"))
        check_choice("pad", self.pad, ("edge", "zero"))
        object.__setattr__(self, "time_major", checked_flag("time_major", self.time_major))

    @property
    def _redraws(self) -> bool:
        """Whether rows are drawn again of which steps are not in the buffer."""
        return self.incomplete == "redraw"

    def _followed(self, schema: Schema, lanes: Lanes, form: Form) -> Followed:
        making = Making(schema, lanes, form, time_major=self.time_major)
        taken: dict[str, str] = {}
        zeros = self.pad == "zero"
        for part, each in dict(self.steps).items():
            steps = Steps(each[0], len(each), each[1] - each[0] if len(each) > 1 else 1)
            for name in fields_within("steps", part, schema):
                if name in taken:
                    raise ValueError(f"steps: {name!r} is in both {taken[name]!r} and {part!r}; expected it once")
                taken[name] = part
                making.take(name, steps, zeros=zeros)
            making.say(f"{part}_mask", steps, _core.STEPS_THERE)
        return making.made(redraws=self._redraws)


def _steps_of(name: str, given: object) -> range:
    """Return steps as a range.

    Raises:
        TypeError, ValueError: They are none in ascending order and equally far apart.
    """
    if isinstance(given, np.ndarray):
        given = given.tolist()
    if isinstance(given, (str, bytes)) or not isinstance(given, SequenceOf):
        raise TypeError(f"steps[{name!r}]: expected a range or integers, got {given!r}")
    steps = (
        given if isinstance(given, range) else _range_of([checked_index(f"steps[{name!r}]", step) for step in given])
    )
    if len(steps) == 0 or steps.step < 0:
        raise ValueError(
            f"steps[{name!r}]: expected at least one step, in ascending order, equally far apart, got {given}"
        )
    if max(-steps[0], steps[-1]) >= MOST_STEPS:
        raise ValueError(f"steps[{name!r}]: expected less than {MOST_STEPS} from the row, got {steps}")
    return steps


def _range_of(numbers: list[int]) -> range:
    """Return numbers as a range, an empty one where they are none."""
    stride = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    steps = range(numbers[0], numbers[-1] + 1, stride) if numbers and stride > 0 else range(0)
    return steps if [*steps] == numbers else range(0)
