# SPDX-License-Identifier: MIT
"""A buffer of another capacity, and one that takes another's transitions in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fastreplay import _core
from fastreplay.buffer.contents import Contents
from fastreplay.buffer.filled import Filled
from fastreplay.buffer.given import HeldRows, checked_lanes
from fastreplay.buffer.lanes import begin_holding
from fastreplay.buffer.pickled import own_attributes, rebuilt
from fastreplay.buffer.snapshot import Run
from fastreplay.checkpoint.stored import Stored
from fastreplay.support.checks import checked_count
from fastreplay.support.saving import run_length

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray
    from typing_extensions import Self

    from fastreplay.buffer.lanes import Lanes

__all__ = ["Grown"]

ArrayT = TypeVar("ArrayT")  # torch.Tensor or numpy.ndarray

# What came before a transition and after, as the core says it (csrc/core/lanes/lanes.hpp, SavedLink).
_BEFORE, _BEGINS, _CONTINUES = 3, 0, 1
_AFTER, _CUT, _ANOTHER = 12, 8, 12
# Where a lane stands that others' transitions go into: at a beginning, in a trajectory, after one that ended by itself,
# in one of which what came last is not known, in one that went on, or in one that was cut.
_FRESH, _MIDWAY, _ENDED, _BROKEN, _GOING_ON, _TO_CUT = range(6)


class Grown(Filled[ArrayT]):
    """Base of the replay buffer: how its contents go into another."""

    def resized(self, capacity: int) -> Self:
        """Make a buffer of another capacity that goes on where this one is.

        It has the same options, the newest `capacity` transitions with their tickets, priorities and lanes, and the
        generator: as `save` and `load(capacity=)` give it, without a folder. Uniform draws follow from what there is,
        and so are those of this buffer where the new one holds as much; by priority they are where the capacity is the
        same. A minibatch of this buffer is none of the new one's: `update_priorities` takes its tickets.

        Args:
            capacity: Transitions that it holds at most.

        Returns:
            A buffer of the same class, in memory; this one is as it was. Both are there meanwhile, and beside them 9
            bytes a transition.

        Raises:
            TypeError, ValueError: `capacity` is no integer, or below 1.
            MemoryError: It would not fit into this machine's memory.
            RuntimeError: Writers were so fast that nothing could be copied.

        Thread safety:
            May be called from any thread, while others insert, and waits for none: the new buffer has what was there
            at one moment, but for the oldest that they overwrote before these were copied.
        """
        from fastreplay.checkpoint.laying import copied
        from fastreplay.checkpoint.retreat import Retreat

        wanted = Retreat(self._ring, checked_count("capacity", capacity))
        source = Stored(self._ring, self._schema)
        resized: Self = rebuilt(type(self), capacity, self._schema, self._described(wanted.end).options)
        while True:
            oldest = self._ring.window()[0]
            said = self._described(wanted.end)
            begin = wanted.first
            state = self._read_state(begin, wanted.end - begin)
            wanted.first = min(max(begin, source.oldest_whole()), wanted.end)
            is_any_left = wanted.first < wanted.end or wanted.oldest == wanted.newest
            if is_any_left and copied(source, Stored(resized._ring, self._schema), wanted):
                break
            if not wanted.go():
                raise RuntimeError(
                    f"resized: writers overwrote all of {wanted.newest - wanted.oldest} transitions before they were "
                    "copied"
                )
        first = wanted.first
        resized._take_over(said, first, [(first, [each[first - begin :] for each in state])], "resized")
        resized._ring.count(said.inserted, min(said.inserted, said.overwritten + max(0, first - oldest)))
        resized._lineage.ancestors = {**self._lineage.ancestors, self._lineage.name: wanted.end}
        own = own_attributes(self)
        resized.__dict__.update({name: value for name, value in self.__dict__.items() if name not in own})
        return resized

    def _extend_by(self, other: Grown[Any], beside: Mapping[str, Any]) -> None:
        """Insert all that another buffer holds at this moment, the oldest first."""
        if unknown := beside.keys() - {"lanes"}:
            raise TypeError(f"extend: with another buffer, expected lanes= alone, got {min(unknown)!r}")
        if other._ring is self._ring:
            raise ValueError("extend: expected another buffer, got this one, whose transitions are in it already")
        self._check_fields(other)
        joining = _Joining.of(self, other, beside.get("lanes"))
        at, end = other._ring.window()
        try:
            if joining is not None:
                joining.begin()
            self._copy(other, joining, at, end)
            if joining is not None:
                joining.leave()
        finally:
            if joining is not None:
                joining.held.end()

    def _copy(self, other: Grown[Any], joining: _Joining | None, at: int, end: int) -> None:
        count = run_length(sum(field.row_bytes for field in other.schema.values()))
        num_inserted = 0
        is_any = at < end
        while at < end:
            run = Run(other._ring, other.schema, min(count, end - at))
            num_rows = len(run.columns[0])
            links = None if joining is None else joining.read(at, num_rows)
            lost = min(max(other._ring.read_run(at, run.native) - at, 0), num_rows)
            columns = dict(zip(other.schema, [column[lost:] for column in run.columns], strict=True))
            if joining is None or links is None:
                Contents.extend(self, **columns)
            else:
                joining.insert(columns, links[0][lost:], links[1][lost:], is_torn=lost > 0)
            at += num_rows
            num_inserted += num_rows - lost
        if is_any and num_inserted == 0:
            raise RuntimeError("extend: the other buffer's writers overwrote all of it before any was copied")

    def _check_fields(self, other: Grown[Any]) -> None:
        for name in (*self._schema, *other.schema):
            sides = [
                f"{of[name].shape} {of[name].dtype}" if name in of else "none" for of in (self._schema, other.schema)
            ]
            if sides[0] != sides[1]:
                raise ValueError(f"{name}: expected {sides[0]}, got {sides[1]} in the other buffer")


class _Joining:
    """Transitions of another buffer's lanes on their way into lanes of a buffer, where they stay trajectories.

    Args:
        buffer: Where to.
        lanes: Its lanes.
        source: The other's.
        into: The lane of the buffer for each of them.
    """

    def __init__(self, buffer: Grown[Any], lanes: Lanes, source: Lanes, into: NDArray[np.int64]) -> None:
        self._buffer = buffer
        self._lanes = lanes
        self._source = source
        self._into = into
        self._states = np.full(len(into), _FRESH)  # of the other's lanes, each where it goes to
        self.held = _core.HeldLanes(lanes.core)

    @classmethod
    def of(cls, buffer: Grown[Any], other: Grown[Any], lanes: Any) -> _Joining | None:
        """Return what takes another buffer's lanes in; None for a buffer without.

        Raises:
            TypeError, ValueError: `lanes` are not lanes of the buffer, one for each of the other's; or it has none.
        """
        own, source = buffer._lanes, other._lanes
        if own is None:
            if lanes is not None:
                raise ValueError("lanes: expected None, as the buffer was made without")
            return None
        if source is None:
            raise ValueError("extend: expected a buffer with lanes, as this one has some: which comes after which?")
        count, num_lanes = source.core.num_lanes, own.core.num_lanes
        if lanes is None and count != num_lanes:
            raise ValueError(f"lanes: expected one of the {num_lanes} for each of the other buffer's {count}, got None")
        into = np.arange(count) if lanes is None else checked_lanes("lanes", lanes, num_lanes)
        if len(into) != count or len({*into.tolist()}) != count or not ((into >= 0) & (into < num_lanes)).all():
            expected = f"another in [0, {num_lanes}) for each of the other buffer's {count}"
            raise ValueError(f"lanes: expected {expected}, got {into.tolist()}")
        return cls(buffer, own, source, into)

    def begin(self) -> None:
        """Take the lanes, as `begin_holding`."""
        begin_holding(self.held, self._into.tolist())

    def read(self, first: int, count: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the lanes and links of so many tickets, some of which may be overwritten by now."""
        lanes, links, _ = self._source.core.save(first, count)
        return np.minimum(lanes, len(self._into) - 1), links

    def insert(
        self, columns: dict[str, NDArray[Any]], lanes: NDArray[Any], links: NDArray[Any], *, is_torn: bool
    ) -> None:
        """Insert what follows; after a tear nobody knows what comes before it."""
        if is_torn:
            self.leave()
            for lane in np.flatnonzero(self._states == _MIDWAY).tolist():
                self._lose_track(lane)
            for lane in np.flatnonzero((self._states == _ENDED) | (self._states == _TO_CUT)).tolist():
                self._cut(lane)
        after = links & _AFTER
        left = np.select([after == _ANOTHER, after == _CUT], [_GOING_ON, _TO_CUT], _MIDWAY)
        left[self._end(columns, len(lanes))] = _ENDED
        begin = 0
        for row, turns in self._turns(lanes, links & _BEFORE, left):
            self._extend(columns, lanes, begin, row)
            begin = row
            for turn in turns:
                turn(int(lanes[row]))
        self._extend(columns, lanes, begin, len(lanes))
        self._states[lanes] = left  # of a lane's rows the last

    def leave(self) -> None:
        """Lose track of the trajectories that went on, where what came after is none that is inserted."""
        for lane in np.flatnonzero(self._states == _GOING_ON).tolist():
            self._lose_track(lane)

    def _turns(
        self, lanes: NDArray[Any], before: NDArray[Any], left: NDArray[Any]
    ) -> list[tuple[int, list[Callable[[int], None]]]]:
        """Return the rows before which a lane would not go on as the other's did, and what to do with it there."""
        order = np.argsort(lanes, kind="stable")
        of_lane, links = lanes[order], before[order]
        is_first = np.diff(of_lane.astype(np.int64), prepend=-1) != 0
        stands = np.where(is_first, self._states[of_lane], np.roll(left[order], 1))  # as the row before left it
        begins, continues, is_known = links == _BEGINS, links == _CONTINUES, links <= _CONTINUES
        goes_astray = begins & (stands == _GOING_ON)  # what came after was left out
        is_cut = (stands == _TO_CUT) | (begins & ((stands == _MIDWAY) | (stands == _BROKEN) | goes_astray))
        is_cut |= (stands == _ENDED) & (self._lanes.core.skips_resets | ~is_known)
        is_lost = (continues & (stands == _FRESH)) | (~is_known & (stands != _BROKEN))
        turns = ((goes_astray, self._lose_track), (is_cut, self._cut), (is_lost, self._lose_track))
        return sorted(
            (int(order[k]), [turn for is_taken, turn in turns if is_taken[k]]) for k in np.flatnonzero(is_cut | is_lost)
        )

    def _end(self, columns: dict[str, NDArray[Any]], num_rows: int) -> NDArray[np.bool_]:
        """Return which rows end a trajectory of the buffer, (n,)."""
        ends = np.zeros(num_rows, np.bool_)
        for name in self._lanes.ends:
            ends |= (columns[name] != 0).any(axis=tuple(range(1, columns[name].ndim)))
        return ends

    def _extend(self, columns: dict[str, NDArray[Any]], lanes: NDArray[Any], begin: int, end: int) -> None:
        if begin < end:
            rows: Any = {name: column[begin:end] for name, column in columns.items()}
            self._insert(rows, self._into[lanes[begin:end]])

    def _insert(self, rows: dict[str, Any], lanes: NDArray[Any], **beside: Any) -> None:
        held: Any = HeldRows(self.held, lanes)
        Contents.extend(self._buffer, **rows, lanes=held, **beside)

    def _cut(self, lane: int) -> None:
        self.held.cut(lane)
        self._states[lane] = _FRESH

    def _lose_track(self, lane: int) -> None:
        """Say that what came last in a lane is not known, which a row that ends nothing does where it is left out."""
        row: Any = {name: np.zeros((1, *field.shape), field.dtype) for name, field in self._buffer.schema.items()}
        self._insert(row, self._into[[lane]], mask=[False])
        self._states[lane] = _BROKEN
