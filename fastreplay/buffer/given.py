# SPDX-License-Identifier: MIT
"""What an insert takes beside the fields of its rows: their priorities, their lanes, and which of them to leave out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from fastreplay.buffer.priorities import PRIORITY, checked_priorities
from fastreplay.support.checks import checked_addresses, checked_index, is_masked, num_axes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from fastreplay import _core

__all__ = ["LANE_NAMES", "Given", "HeldRows", "checked_lanes", "one_each"]

_LANE, _LANES, _MASK = LANE_NAMES = ("lane", "lanes", "mask")


class HeldRows(NamedTuple):
    """Rows of lanes that the caller holds: the lane of each, or of all."""

    held: _core.HeldLanes
    lanes: int | NDArray[Any]


class Given:
    """What was given with the rows of one insert, checked; memory that nobody else has.

    Args:
        given: By name.
        lanes: The ring's lanes, if it has any.
        is_one: Whether the rows are one.

    Attributes:
        priority: () or (n,) float64, NaN for rows that are not to be drawn yet; None for new transitions.
        lanes: () or (n,) int64; None where rows go into the lanes in order.
        owner: The number of whoever has these lanes for longer than the insert; 0 of nobody.

    Raises:
        TypeError, ValueError: Something is not what it should be; the message names it.
    """

    __slots__ = ("_mask", "lanes", "owner", "priority")

    def __init__(self, given: Mapping[str, Any], lanes: _core.Lanes | None, is_one: bool) -> None:
        for name in (_LANES, _MASK) if is_one else (_LANE,):
            if name in given:
                raise TypeError(f"unknown field {name!r}; {'add' if is_one else 'extend'} takes no {name}=")
        self.priority = checked_priorities(given[PRIORITY]) if PRIORITY in given else None
        self.lanes: NDArray[np.int64] | None = None
        self.owner = 0
        for name in (_LANE, _LANES):
            value = given.get(name)
            if isinstance(value, HeldRows):
                self.owner, value = value.held.owner, value.lanes
            if value is not None:
                self.lanes = _checked_lanes(name, value, cast("_core.Lanes", lanes).num_lanes, is_one)
        self._mask = None if given.get(_MASK) is None else _checked_mask(given[_MASK])

    @staticmethod
    def names(has_priorities: bool, has_lanes: bool) -> tuple[str, ...] | None:
        """Return what an insert takes beside fields; None for nothing."""
        names = (PRIORITY,) * has_priorities + LANE_NAMES * has_lanes
        return names or None

    @staticmethod
    def lanes_of_rows(beside: Given | None, lanes: _core.Lanes, num_rows: int) -> NDArray[np.int64]:
        """Return the lane of each row, (n,), of rows that are no step of all lanes in order.

        Raises:
            ValueError: They are not as many as the rows, or nobody says which they are.
        """
        if beside is not None and beside.lanes is not None:
            return one_each("lanes", beside.lanes, num_rows)
        if lanes.num_lanes == 1:
            return np.zeros(num_rows, np.int64)
        if num_rows == 1:
            raise ValueError(f"lane: expected which of the {lanes.num_lanes} lanes the transition is of")
        raise ValueError(f"lanes: expected a row for each of {lanes.num_lanes}, or lanes=, got {num_rows} rows")

    def mask_of_rows(self, num_rows: int) -> NDArray[np.bool_] | None:
        """Return which rows are kept, (n,); None for all.

        Raises:
            ValueError: They are not as many.
        """
        if self._mask is not None and len(self._mask) != num_rows:
            raise ValueError(f"mask: expected one for each of {num_rows} rows, got {len(self._mask)}")
        return self._mask


def one_each(name: str, values: NDArray[Any], num_rows: int) -> NDArray[Any]:
    """Return a value for each row, of checked ones: (n,) of as many rows, or () for all.

    Raises:
        ValueError: They are not as many.
    """
    if values.ndim == 0:
        return values.reshape(1) if num_rows == 1 else np.full(num_rows, values)
    if len(values) != num_rows:
        raise ValueError(f"{name}: expected one for each of {num_rows} rows, got {len(values)}")
    return values


def _checked_lanes(name: str, value: Any, num_lanes: int, is_one: bool) -> NDArray[np.int64]:
    if type(value) is int and 0 <= value < num_lanes:
        return np.array(value, np.int64)
    axes = num_axes(value)
    if axes == 0:
        lane = checked_index(name, value)
        if not 0 <= lane < num_lanes:
            raise ValueError(f"{name}: expected a lane in [0, {num_lanes}), got {lane}")
        return np.array(lane, np.int64)
    if is_one:
        got = repr(value) if axes < 0 else f"shape {np.shape(value)}"
        raise ValueError(f"{name}: expected an integer, got {got}")
    lanes = checked_lanes(name, value, num_lanes).astype(np.int64)  # a copy
    if lanes.view(np.uint64).max(initial=0) >= num_lanes:
        i = int(np.flatnonzero((lanes < 0) | (lanes >= num_lanes))[0])
        raise ValueError(f"{name}[{i}]: expected a lane in [0, {num_lanes}), got {lanes[i]}")
    return lanes


def checked_lanes(name: str, value: object, num_lanes: int) -> NDArray[np.int64]:
    """Return lanes as (n,) int64, of which 64 bits hold each.

    Raises:
        TypeError, ValueError: They are no such integers.
    """
    try:
        return checked_addresses(name, value)
    except IndexError:
        raise ValueError(f"{name}: expected lanes in [0, {num_lanes}), got {value!r}") from None


def _checked_mask(value: Any) -> NDArray[np.bool_]:
    if is_masked(value):
        raise ValueError(f"mask: expected every entry, got masked ones in {value!r}")
    try:
        mask = np.array(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
    except (TypeError, ValueError, RuntimeError) as error:  # rows of several lengths; a tensor that NumPy cannot hold
        raise TypeError(f"mask: expected (n,) bools, True for a row that is inserted, got {value!r}") from error
    if mask.shape == (0,) and isinstance(value, (list, tuple)):
        return mask.astype(np.bool_)
    if mask.dtype != np.bool_ or mask.ndim != 1:
        raise TypeError(f"mask: expected (n,) bools, True for a row that is inserted, got {mask.dtype} {mask.shape}")
    return mask
