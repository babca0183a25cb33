# SPDX-License-Identifier: MIT
"""TableSteps of a table become transitions of a buffer: the one way in for data that others collected."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import numpy as np

from fastreplay import _core
from fastreplay.buffer.contents import Contents
from fastreplay.buffer.given import HeldRows
from fastreplay.buffer.lanes import begin_holding
from fastreplay.datasets.plan import checked_names, plan
from fastreplay.datasets.steps import read_steps
from fastreplay.support.checks import checked_flag, checked_index
from fastreplay.support.progress import progress_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from fastreplay.buffer.filled import Filled
    from fastreplay.datasets.plan import FieldPlan
    from fastreplay.datasets.steps import TableSteps
    from fastreplay.datasets.table import OpenTable
    from fastreplay.support.progress import Progress

    Array = NDArray[Any]

    class LoadOptions(TypedDict, total=False):
        """What every way in takes beside what it reads, as `load_arrays` says."""

        names: Mapping[str, str | None] | None
        lane: int | None
        overwrite: bool
        progress: Progress


__all__ = ["LoadedData", "load"]


class LoadedData(NamedTuple):
    """What became of a dataset.

    Attributes:
        transitions: Inserted.
        trajectories: That have some of them.
        left_out: Rows that became no transition: the last of trajectories whose next observation is not in the data.
        overwritten: Transitions that they took the place of, those loaded before among them. What others insert
            meanwhile takes room, too, and is not counted.
    """

    transitions: int
    trajectories: int
    left_out: int
    overwritten: int


def load(
    buffer: Filled[Any],
    open_table: Callable[[], OpenTable],
    *,
    names: object = None,
    lane: object = None,
    overwrite: object = False,
    progress: object = True,
) -> LoadedData:
    """Insert the steps of a table.

    Raises:
        OSError, TypeError, ValueError, RuntimeError: As `load_arrays`.
    """
    named = checked_names(names, buffer.schema)
    into_lane = _checked_lane(lane, buffer.lanes)
    may_overwrite = checked_flag("overwrite", overwrite)
    tell = progress_of(progress, "loading")
    with closing(open_table()) as table:
        ends = (
            buffer.ends if buffer.ends is not None else [n for n in ("terminated", "truncated") if n in buffer.schema]
        )
        made = table.ask(lambda there: plan(there, buffer.schema, named, ends, buffer._next_fields()))
        room = buffer.capacity - min(np.diff(buffer._ring.window())[0], buffer.capacity)
        if not may_overwrite:
            _check_room(table, made, int(room))
        into = _Filling(buffer, into_lane, ends, int(room))
        end = into.end
        try:
            into.begin()
            for steps in read_steps(table, made, buffer.schema):
                into.insert(steps)
                tell(steps.first + len(steps.ends), made.num_rows)
        except (TypeError, ValueError) as error:
            count = into.loaded.transitions
            where = "" if table.path in str(error) else f"{table.path}: "
            raise _again(error, f"{where}{error}; {count} transitions were inserted before") from error
        finally:
            end()  # a call of C comes before any handler of signals: nothing interrupts it
        return into.loaded


def _check_room(table: OpenTable, made: FieldPlan, room: int) -> None:
    """Refuse more transitions than there is room for; which rows become some, a look at the flags tells.

    Raises:
        OSError, TypeError, ValueError: As `load_arrays`.
    """
    count = made.num_rows
    if made.shifted and count > room:
        flags = made._replace(columns={}, absent=())
        count = sum(int(steps.kept.sum()) for steps in read_steps(table, flags, {}))
        table.ask(lambda there: there.rewind())
    if count > room:
        raise ValueError(
            f"{table.path}: expected at most {room} transitions, for which there is room, got {count}; "
            "overwrite=True keeps the newest"
        )


def _again(error: Exception, message: str) -> Exception:
    """Return an error of the same kind that says more."""
    return TypeError(message) if isinstance(error, TypeError) else ValueError(message)


def _checked_lane(lane: object, num_lanes: int | None) -> int | None:
    """Return which lane trajectories go into; None for all, or where there are none."""
    if lane is None:
        return 0 if num_lanes == 1 else None
    if num_lanes is None:
        raise ValueError("lane: expected None, as the buffer was made without lanes")
    checked = checked_index("lane", lane)
    if not 0 <= checked < num_lanes:
        raise ValueError(f"lane: expected a lane in [0, {num_lanes}), got {checked}")
    return checked


class _Filling:
    """TableSteps on their way into a buffer.

    Args:
        buffer: It.
        lane: Of the trajectories; None for all lanes in turn, or where there are none.
        ends: The fields at which the buffer ends a trajectory by itself.
        room: How many transitions there is room for.
    """

    def __init__(self, buffer: Filled[Any], lane: int | None, ends: Any, room: int) -> None:
        self._buffer, self._lane, self._room = buffer, lane, room
        names = list(buffer.schema)
        self._ends = [names.index(name) for name in ends]
        lanes = buffer._lanes
        self._num_lanes = 0 if lanes is None else lanes.core.num_lanes
        # Such a buffer takes what comes after an end for a reset, unless it was told that its trajectory is over.
        self._is_told = lanes is not None and not lanes.core.skips_resets
        self._num_inserted = self._num_left_out = self._num_trajectories = 0
        self._at = 0  # the number of the trajectory
        self._counted = -1  # the last that counts
        self._held = None if lanes is None else _core.HeldLanes(lanes.core)
        # Lets the lanes go, and cuts them: a function of C, where there is something to do.
        self.end: Callable[[], object] = dict if self._held is None else self._held.end

    @property
    def loaded(self) -> LoadedData:
        """What was done so far."""
        num_over = max(0, self._num_inserted - self._room)
        return LoadedData(self._num_inserted, self._num_trajectories, self._num_left_out, num_over)

    def begin(self) -> None:
        """Take the lanes, for as long as it lasts, and cut what was open in them.

        Raises:
            RuntimeError: One is another's.
        """
        if self._held is not None:
            begin_holding(self._held, range(self._num_lanes) if self._lane is None else [self._lane])

    def insert(self, steps: TableSteps) -> None:
        """Insert steps, and cut trajectories of which the buffer does not see the end."""
        trajectories = self._at + np.cumsum(steps.ends) - steps.ends
        begin = 0
        for stop, is_kept, is_over in self._stops(steps):
            self._insert(steps, trajectories, slice(begin, stop + is_kept))
            if is_over and self._held is not None:
                self._held.cut(int(trajectories[stop]) % self._num_lanes if self._lane is None else 0)
            begin = stop + 1
        self._insert(steps, trajectories, slice(begin, len(steps.ends)))
        self._at += int(steps.ends.sum())
        self._num_left_out += len(steps.kept) - int(steps.kept.sum())

    def _stops(self, steps: TableSteps) -> Iterator[tuple[int, bool, bool]]:
        """Yield the steps after which an insert cannot go on: whether they are in it, and whether they are an end."""
        unseen = steps.ends.copy()
        if self._is_told:
            for position in self._ends:
                unseen &= ~steps.columns[position].reshape(len(unseen), -1).any(axis=1)
        if not self._num_lanes:
            unseen[:] = False
        for stop in np.flatnonzero(unseen | ~steps.kept):
            yield int(stop), bool(steps.kept[stop]), bool(steps.ends[stop])

    def _insert(self, steps: TableSteps, trajectories: Array, rows: slice) -> None:
        count = rows.stop - rows.start
        if count <= 0:
            return
        beside: dict[str, Any] = {}
        if self._held is not None:
            lanes = trajectories[rows] % self._num_lanes if self._lane is None else self._lane
            beside["lanes"] = HeldRows(self._held, lanes)
        try:
            Contents.extend(self._buffer, *[column[rows] for column in steps.columns], **beside)
        except (TypeError, ValueError) as error:
            first = steps.first + rows.start
            raise _again(error, f"rows [{first}, {first + count}): {error}") from error
        self._num_inserted += count
        first, last = int(trajectories[rows.start]), int(trajectories[rows.stop - 1])
        self._num_trajectories += last - max(first - 1, self._counted)
        self._counted = last
