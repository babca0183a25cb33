# SPDX-License-Identifier: MIT
"""What a buffer's transitions weigh in its draws: the rule, and priorities that a caller gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from fastreplay import _core
from fastreplay.support.checks import checked_number, is_masked

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fastreplay.batch.minibatch import Minibatch

    Beta = float | Callable[[int], float]

__all__ = [
    "PRIORITY",
    "Priorities",
    "PriorityUpdate",
    "axis_of_steps",
    "check_finite",
    "check_masses",
    "check_rule",
    "checked_priorities",
    "given_numbers",
    "new_masses",
    "numbers",
    "reduced",
    "trained_in",
]

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
_DRAWS = ("stratified", "independent")
_NORMALIZE = (None, "batch", "buffer")  # at the core's number

# Names that an insert or a minibatch has beside its fields.
PRIORITY = "priority"
_RESERVED = (PRIORITY, "weight", "probability")


class PriorityUpdate(NamedTuple):
    """How many priorities of an update took effect.

    With storage="cuda" the numbers are the device's, () int64 tensors: to read one waits for the device.
    """

    applied: int
    stale: int  # of transitions that were overwritten or cleared


@dataclass(frozen=True)
class Priorities:
    """The rule of a buffer that draws by priority (Schaul et al. 2016, "Prioritized Experience Replay").

    A transition of priority p has the mass max(|p| + eps, floor)^alpha, and is drawn with a probability P
    proportional to it. Its weight in a loss, (N P)^-beta with N the number of transitions that can be drawn,
    takes the bias out of the expectation.

    Args:
        alpha: Exponent of the masses; 0 makes all equal.
        beta: Exponent of the weights: a number, or a function of the number of minibatches drawn before.
        eps: Added to |p|, so that a transition without error can be drawn again; with 0 it cannot.
        draws: "stratified": row i of B falls into the i-th of B equal shares of all mass; "independent": each row
            anywhere.
        normalize: What weights are divided by: the largest of the "batch", the largest that any transition of the
            "buffer" would have, or nothing (None).
        initial: Priority of new transitions: "max" for the largest |p| + eps so far (1 at first), or a number.
        uniform_mix: Share of rows that are drawn uniformly, each row by itself; P is the mixture's.
        floor: Least |p| + eps.

    Raises:
        TypeError, ValueError: An argument is none of these; the message names it.
    """

    alpha: float = 0.6
    beta: Beta = 0.4
    eps: float = 1e-6
    draws: Literal["stratified", "independent"] = "stratified"
    normalize: Literal["batch", "buffer"] | None = "batch"
    initial: Literal["max"] | float = "max"
    uniform_mix: float = 0.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        for name in ("alpha", "eps", "floor", "uniform_mix", "beta", "initial"):
            value: Any = getattr(self, name)
            is_word = name == "initial" and isinstance(value, str) and value == "max"
            if not (is_word or (name == "beta" and callable(value))):  # a number, as files can say it
                most = 1 if name == "uniform_mix" else math.inf
                object.__setattr__(self, name, checked_number(name, value, 0, most))
        draws: Any = self.draws  # an array of words is not to be compared with one
        normalize: Any = self.normalize
        if not isinstance(draws, str) or draws not in _DRAWS:
            raise ValueError(f"draws: expected 'stratified' or 'independent', got {self.draws!r}")
        if not (normalize is None or isinstance(normalize, str)) or normalize not in _NORMALIZE:
            raise ValueError(f"normalize: expected 'batch', 'buffer' or None, got {self.normalize!r}")

    @classmethod
    def lap(cls) -> Priorities:
        """Return loss-adjusted prioritization: mass max(|p|, 1)^0.4, and no weights (Fujimoto et al. 2020).

        It goes with a Huber loss: see "An Equivalence between Loss Functions and Non-Uniform Sampling".
        """
        return cls(alpha=0.4, beta=0.0, eps=0.0, draws="independent", normalize=None, floor=1.0)

    def beta_after(self, calls: int) -> float:
        """Return the weights' exponent once so many minibatches were drawn."""
        return checked_number("beta", self.beta(calls), 0) if callable(self.beta) else float(self.beta)

    @property
    def mass_rule(self) -> tuple[float, float, float]:
        """What masses follow: alpha, eps, floor."""
        return float(self.alpha), float(self.eps), float(self.floor)

    @property
    def draw_options(self) -> tuple[bool, int, float]:
        """What the core's sampler takes."""
        return self.draws == "stratified", _NORMALIZE.index(self.normalize), self.uniform_mix


def check_rule(priorities: object) -> None:
    """Refuse what is no rule to draw by.

    Raises:
        TypeError: So it is.
    """
    if priorities is not None and type(priorities) is not Priorities:
        raise TypeError(f"priorities: expected fastreplay.Priorities or None, got {type(priorities).__name__}")


def new_masses(
    priorities: Priorities | None,
    ring: _core.Ring,
    names: tuple[str, ...],
    storage: str,
    file: _core.MappedFile | None = None,
) -> _core.Priorities | None:
    """Make what a ring's transitions weigh; None where they are drawn uniformly.

    Raises:
        TypeError: It is no rule.
        ValueError: A field has the name of something else.
    """
    check_rule(priorities)
    if priorities is None:
        return None
    for name in names:
        if name in _RESERVED:
            raise ValueError(f"{name}: the name is taken in a buffer with priorities; give the field another")
    initial = -1.0 if priorities.initial == "max" else float(priorities.initial)
    is_kept_elsewhere = storage == "cuda"
    keeps_smallest = priorities.normalize == "buffer" and not is_kept_elsewhere
    return _core.Priorities(ring, *priorities.mass_rule, initial, keeps_smallest, is_kept_elsewhere, file)


def checked_priorities(value: Any) -> NDArray[np.float64]:
    """Return priorities of rows to be inserted as an array () or (n,) of nobody else's; NaN for None.

    Raises:
        TypeError, ValueError: They are no finite numbers, or have more dimensions.
    """
    if value is None:
        return np.array(np.nan)
    given = numbers(PRIORITY, value)
    if given.ndim > 1:
        raise ValueError(f"priority: expected a number for each row, got shape {given.shape}")
    check_finite(PRIORITY, given)
    return given.copy()


def check_finite(name: str, values: NDArray[np.float64]) -> None:
    """Refuse NaN and infinities.

    Raises:
        ValueError: There is one; the message names its position.
    """
    if not np.isfinite(values).all():
        at = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(f"{name}[{at}]: expected a finite number, got {values.reshape(-1)[at]}")


def check_masses(values: NDArray[np.float32]) -> None:
    """Refuse masses that were saved and are none.

    Raises:
        ValueError: One is negative, or not finite.
    """
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError("masses: expected finite numbers of at least 0")


def reduced(batch: Minibatch[Any], errors: Any, eta: float) -> NDArray[np.float64]:
    """Return what the errors of sequences, of the shape of `trained`, say of their rows, (B,).

    Raises:
        TypeError: They are no numbers.
        ValueError: The minibatch has no sequences, or they are not of all its steps; or eta is no share.
    """
    eta = checked_number("eta", eta, 0, 1)
    array = np.abs(numbers("priorities", errors))
    trained = trained_in(batch, array.shape)
    there = np.asarray(trained.cpu() if hasattr(trained, "cpu") else trained)
    array = np.where(there, array, 0)
    axis = axis_of_steps(batch)
    reduced: NDArray[np.float64] = eta * array.max(axis) + (1 - eta) * array.sum(axis) / there.sum(axis)
    return reduced


def trained_in(batch: Minibatch[Any], shape: tuple[int, ...]) -> Any:
    """Return which steps of a minibatch of sequences are trained, (B, L), for errors of a shape.

    Raises:
        ValueError: It has no sequences, or the errors are not of all its steps.
    """
    trained: Any = batch._beside.get("trained")
    if trained is None or tuple(shape) != tuple(trained.shape):
        expected = f"({len(batch)},)" if trained is None else f"({len(batch)},) or {tuple(trained.shape)}"
        raise ValueError(f"priorities: expected {expected}, got {tuple(shape)}")
    return trained


def axis_of_steps(batch: Minibatch[Any]) -> int:
    """Return the axis of the steps of a minibatch of sequences."""
    return 0 if "trained" in batch._beside.time_major else 1


def numbers(name: str, value: Any) -> NDArray[np.float64]:
    """Return numbers as float64: arrays, tensors of any device, detached from graphs, lists.

    Raises:
        TypeError: They are none.
    """
    array = given_numbers(name, value)
    return np.ascontiguousarray(array, np.float64) if array.ndim else array.astype(np.float64)


def given_numbers(name: str, value: Any) -> NDArray[np.float32] | NDArray[np.float64]:
    """Return the same, without a copy where they are float32 or float64, C-contiguous, in the host's memory.

    Raises:
        TypeError: They are none.
    """
    if _lies_ready(value):  # first: what follows takes as long as the update of some hundred priorities
        return value  # type: ignore[no-any-return]
    if type(value) is not np.ndarray and hasattr(value, "detach"):
        try:
            value = value.numpy()
        except (RuntimeError, TypeError):  # of a graph, of a device, of a dtype that NumPy lacks
            value = _of_tensor(name, value.detach())
    elif is_masked(value):
        raise ValueError(f"{name}: expected numbers, got masked entries")
    if _lies_ready(value):
        return value  # type: ignore[no-any-return]
    try:
        array = np.asarray(value)
    except Exception as error:
        raise TypeError(f"{name}: expected numbers, got {type(value).__name__}") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected numbers, got {array.dtype}")
    return np.ascontiguousarray(array, np.float64) if array.ndim else array.astype(np.float64)


def _lies_ready(value: Any) -> bool:
    return type(value) is np.ndarray and (value.dtype is _FLOAT32 or value.dtype is _FLOAT64) and value.flags.carray


def _of_tensor(name: str, tensor: Any) -> Any:
    try:
        return tensor if tensor.is_complex() else tensor.cpu().double().numpy()
    except Exception as error:  # of a device without memory, or not dense
        raise TypeError(f"{name}: expected numbers, got a tensor on {tensor.device}, {tensor.layout}") from error
