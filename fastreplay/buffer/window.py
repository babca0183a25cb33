# SPDX-License-Identifier: MIT
"""Steps around each row, other ones for each field."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fastreplay import _core
from fastreplay.buffer.follow import MOST_STEPS, Follow, Followed, Making, Steps
from fastreplay.support.checks import check_choice, checked_index

if TYPE_CHECKING:
    from fastreplay.batch.form import Form
    from fastreplay.buffer.lanes import Lanes
    from fastreplay.schema import Schema

__all__ = ["Window"]


@dataclass(frozen=True)
class Window(Follow):
    """Steps around each row, given by their distance from it: observations before it, actions from it on.

    A field that is named is (B, number of steps, *shape), with what is missing padded, and has a mask beside it, (B,
    number of steps) bool, that tells which steps are there: `batch.observation_mask` of `observation`. All others are
    the drawn row's. (Diffusion policies, Chi et al. 2023; action chunks, Zhao et al. 2023; LeRobot's
    `delta_timestamps`, in steps.)

    Args:
        steps: Field, or a dict of fields, to its steps in ascending order, equally far apart: `range(-3, 1)`.
        incomplete: As in `Sequence`.
        pad: As in `Sequence`.

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

    def __post_init__(self) -> None:
        steps: Any = dict(self.steps) if isinstance(self.steps, tuple) else self.steps
        if not isinstance(steps, Mapping) or not all(isinstance(name, str) for name in steps):
            raise TypeError(f"steps: expected a mapping of names of fields to their steps, got {self.steps!r}")
        if not steps:
            raise ValueError("steps: expected the steps of at least one field, got none")
        object.__setattr__(self, "steps", tuple([(name, _steps_of(name, each)) for name, each in steps.items()]))
        check_choice("incomplete", self.incomplete, ("pad", "redraw"))
        check_choice("pad", self.pad, ("edge", "zero"))

    @property
    def redraws(self) -> bool:
        """Whether rows are drawn again of which steps are not in the buffer."""
        return self.incomplete == "redraw"

    def _followed(self, schema: Schema, lanes: Lanes, form: Form) -> Followed:
        making = Making(schema, lanes, form)
        taken: dict[str, str] = {}
        zeros = self.pad == "zero"
        for part, each in dict(self.steps).items():
            steps = Steps(each[0], len(each), each[1] - each[0] if len(each) > 1 else 1)
            names = [name for name in schema if name == part or name.startswith(f"{part}/")]
            if not names:
                raise ValueError(f"steps: expected names of fields, got {part!r}; the fields are {', '.join(schema)}")
            for name in names:
                if name in taken:
                    raise ValueError(f"steps: {name!r} is in both {taken[name]!r} and {part!r}; expected it once")
                taken[name] = part
                making.take(name, steps, zeros=zeros)
            making.say(f"{part}_mask", steps, _core.STEPS_THERE)
        return making.made(redraws=self.redraws)


def _steps_of(name: str, steps: Any) -> range:
    """Return steps as a range.

    Raises:
        TypeError, ValueError: They are none in ascending order and equally far apart.
    """
    if isinstance(steps, (str, bytes)) or not isinstance(steps, SequenceOf):
        raise TypeError(f"steps[{name!r}]: expected a range or integers, got {steps!r}")
    if not isinstance(steps, range):
        numbers = [checked_index(f"steps[{name!r}]", step) for step in steps]
        stride = numbers[1] - numbers[0] if len(numbers) > 1 else 1
        steps = range(numbers[0], numbers[-1] + 1, stride) if numbers and stride > 0 else range(0)
        if [*steps] != numbers:
            steps = range(0)
    if len(steps) == 0 or steps.step < 0:
        raise ValueError(f"steps[{name!r}]: expected at least one step, in ascending order, equally far apart")
    if max(-steps[0], steps[-1]) >= MOST_STEPS:
        raise ValueError(f"steps[{name!r}]: expected less than {MOST_STEPS} from the row, got {steps}")
    return steps
