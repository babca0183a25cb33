# SPDX-License-Identifier: MIT
"""One named part of a transition: how it is stored, and how it is given out. Knows no storage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fastreplay import _core
from fastreplay.support.bfloat16 import BFLOAT16, dtype_named, kind_of
from fastreplay.support.checks import checked_count, checked_index, checked_number

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

__all__ = ["Field", "FieldLike", "checked_dtype", "checked_stack"]

_MAX_DIMENSIONS = 30
_FLOAT32: np.dtype[np.generic] = np.dtype(np.float32)
_OPTIONS = ("stack", "out", "divide", "scale", "shift")


@dataclass(frozen=True)
class Field:
    """One named part of a transition.

    Minibatches that are drawn (by `sample`, samplers, loaders, mixtures) may have it in another way than it is stored:
    that is done while it is copied, in the same pass. What is read as it is (`gather`, `buffer[i]`, views, checkpoints)
    has the stored dtype.

    Args:
        shape: Shape of one row, without a batch axis; `()` for a number. Of one frame, where rows are stacks.
        dtype: A NumPy numeric dtype or bool, in native byte order; or "bfloat16", of the package ml_dtypes
            (`fastreplay[bfloat16]`), to which float32 is rounded as by `x.to(torch.bfloat16)`.
        stack: A row is a stack of so many frames, the oldest first, and a lane's next row goes on by one frame, as
            those of Gymnasium's `FrameStackObservation`: each frame is stored once. None for rows by themselves.
        out: The dtype of minibatches, "float32" for what is stored as bool, uint8, int8, uint16, int16, float16 or
            bfloat16: `x.to(torch.float32)` of it. None for the stored one.
        divide: With `out`, what each number is then divided by, as `.div_(divide)` does on the CPU, to the bit.
        scale: With `out`, what each number is then multiplied by, as `.mul_(scale)` does. At most one of the two.
        shift: Rows are images along their last two axes, and each is given as if its edges were repeated so many times
            on all sides, and as much as it was itself cut out at a random place: `torch.nn.functional.pad` in mode
            "replicate" and a slice, whose place is drawn for each row and field (DrQ, Kostrikov et al. 2020). 0 for
            images as they are.

    Attributes:
        shape: Of one row: with `stack`, (stack, *shape of a frame).

    Raises:
        TypeError: A dtype is neither numeric nor bool, the shape is no tuple of integers, or another argument of the
            wrong type.
        ValueError: The byte order is not native, the shape has a zero or negative length, `stack` is not in [1, 64],
            float32 has not every number of the stored dtype or is not what is asked for, `divide` or `scale` is no
            finite number of float32 or without `out`, `divide` is 0, or `shift` is negative or not below the image's
            sides.
        ImportError: The dtype is bfloat16, and ml_dtypes is not there.
    """

    shape: tuple[int, ...] = ()
    dtype: np.dtype[np.generic] = _FLOAT32
    stack: int | None = None
    out: np.dtype[np.generic] | None = None
    divide: float | None = None
    scale: float | None = None
    shift: int = 0

    def __init__(
        self,
        shape: tuple[int, ...] = (),
        dtype: DTypeLike = np.float32,
        *,
        stack: int | None = None,
        out: DTypeLike | None = None,
        divide: float | None = None,
        scale: float | None = None,
        shift: int = 0,
    ) -> None:
        frames = () if stack is None else (checked_stack(stack),)
        frame = _checked_shape(shape)
        stored = checked_dtype(dtype)
        object.__setattr__(self, "shape", _checked_shape((*frames, *frame)))
        object.__setattr__(self, "dtype", stored)
        object.__setattr__(self, "stack", frames[0] if frames else None)
        object.__setattr__(self, "out", None if out is None else _checked_out(out, stored))
        for name, factor in (("divide", divide), ("scale", scale)):
            object.__setattr__(self, name, None if factor is None else self._checked_factor(name, factor))
        object.__setattr__(self, "shift", _checked_shift(shift, frame))

    def _checked_factor(self, name: str, factor: object) -> float:
        if self.out is None:
            raise ValueError(f"{name}: expected None without out='float32', got {factor!r}")
        if name == "scale" and self.divide is not None:
            raise ValueError(f"scale: expected None with divide={self.divide}, got {factor!r}")
        most = float(np.finfo(np.float32).max)
        number = checked_number(name, factor, -most, most)
        if name == "divide" and np.float32(number) == 0:
            raise ValueError(f"divide: expected a number that is not 0 as float32, got {factor!r}")
        return number

    @property
    def _frame(self) -> tuple[int, ...]:
        """The shape of one frame of a stack, or of a row by itself."""
        return self.shape if self.stack is None else self.shape[1:]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, as it is stored."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def out_dtype(self) -> np.dtype[np.generic]:
        """The dtype that minibatches have."""
        return self.dtype if self.out is None else self.out

    @property
    def out_bytes(self) -> int:
        """Bytes of one row in a minibatch."""
        return math.prod(self.shape) * self.out_dtype.itemsize

    @property
    def conversion(self) -> tuple[Any, ...]:
        """What becomes of it in minibatches, as the core takes it."""
        if self.out is None and not self.shift:
            return _core.AS_STORED
        source = 0 if self.out is None else _core.CONVERTED_FROM[self.dtype.name]
        then, factor = 0, 0.0
        if self.divide is not None:
            then, factor = _core.THEN_DIVIDED, self.divide
        elif self.scale is not None:
            then, factor = _core.THEN_MULTIPLIED, self.scale
        image = (self.dtype.itemsize, *self.shape[-2:]) if self.shift else (0, 0, 0)
        return (source, then, factor, self.shift, *image)

    def _as_stored(self) -> Field:
        """Return the field of rows that are given as they are stored."""
        return self if self.conversion == _core.AS_STORED else self._with(out=None, divide=None, scale=None, shift=0)

    def _of_steps(self, length: int) -> Field:
        """Return the field of so many steps of this one."""
        return Field((length, *self.shape), self.dtype, **self._options() | {"stack": None})

    def _with(self, **options: Any) -> Field:
        return Field(self._frame, self.dtype, **self._options() | options)

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _OPTIONS}

    def __repr__(self) -> str:
        options = {name: value for name, value in self._options().items() if value}
        if self.scale is not None:
            options["scale"] = self.scale
        if self.out is not None:
            options["out"] = self.out.name
        said = "".join(f", {name}={value!r}" for name, value in options.items())
        return f"Field({self._frame}, {self.dtype.name!r}{said})"


FieldLike: TypeAlias = "Field | tuple[tuple[int, ...], DTypeLike] | tuple[int, ...]"


def _checked_shape(shape: object) -> tuple[int, ...]:
    if not isinstance(shape, (tuple, list)) or not all(
        isinstance(length, (int, np.integer)) and not isinstance(length, bool) for length in shape
    ):
        raise TypeError(f"shape: expected a tuple of integers, got {shape!r}")
    if any(length <= 0 for length in shape):
        raise ValueError(f"shape: expected positive lengths, got {tuple(shape)}")
    if len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"shape: expected at most {_MAX_DIMENSIONS} dimensions, got {len(shape)}")
    return tuple(int(length) for length in shape)


def checked_stack(stack: object) -> int:
    """Return how many frames a row is a stack of.

    Raises:
        TypeError, ValueError: It is no such number.
    """
    checked = checked_count("stack", stack)
    if checked > _core.MAX_FRAMES:
        raise ValueError(f"stack: expected at most {_core.MAX_FRAMES} frames, got {checked}")
    return checked


def checked_dtype(dtype: DTypeLike, name: str = "dtype") -> np.dtype[np.generic]:
    """Return a dtype of numbers or bools, in native byte order.

    Raises:
        TypeError, ValueError: It is none.
        ImportError: It is bfloat16, and ml_dtypes is not there.
    """
    try:
        checked = dtype_named(dtype)
    except TypeError as error:
        raise TypeError(f"{name}: expected a NumPy dtype, got {dtype!r}") from error
    is_foreign = checked.isbuiltin == 2 and checked.name != BFLOAT16  # of which the insert path knows nothing
    if kind_of(checked) not in "biufc" or checked.shape or is_foreign:
        raise TypeError(f"{name}: expected a numeric dtype or bool, got {checked}")
    if not checked.isnative:
        raise ValueError(f"{name}: expected native byte order, got {checked.str!r}")
    return checked


def _checked_out(out: DTypeLike, stored: np.dtype[np.generic]) -> np.dtype[np.generic]:
    checked = checked_dtype(out, "out")
    if checked != _FLOAT32:
        raise ValueError(f"out: expected 'float32' or None, got {checked.name!r}")
    if stored.name not in _core.CONVERTED_FROM:
        raise ValueError(f"out: expected None, or a stored {', '.join(_core.CONVERTED_FROM)}, got {stored.name}")
    return checked


def _checked_shift(shift: object, frame: tuple[int, ...]) -> int:
    checked = checked_index("shift", shift)
    most = min(frame[-2:]) - 1 if len(frame) >= 2 else 0
    if not 0 <= checked <= min(most, 2**16 - 1):
        image = "" if len(frame) >= 2 else ", as rows are no images"
        raise ValueError(f"shift: expected an integer in [0, {most}]{image}, got {checked}")
    return checked
