# SPDX-License-Identifier: MIT
"""From the rows of a table to steps of trajectories, block by block, in memory that is used again."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastreplay.support.bfloat16 import kind_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from fastreplay.datasets.plan import FieldPlan
    from fastreplay.datasets.table import OpenTable
    from fastreplay.schema import Field

    Array = NDArray[Any]

__all__ = ["TableSteps", "read_steps"]

# Bytes of a block, of which there are two: it stays in the cache between being read and being inserted, and takes much
# longer than the calls that read it. Blocks grow beyond it to take whole what a file compressed together, up to the
# larger number.
_BLOCK_BYTES, _MOST_BLOCK_BYTES = 8 << 20, 16 << 20


class TableSteps(NamedTuple):
    """Some successive steps.

    Attributes:
        first: The row of the first.
        columns: Of every field in schema order, (n, *shape), valid until the next steps are asked for.
        ends: (n,) bools: the last of its trajectory.
        kept: (n,) bools: not so where a next observation is wanted, and there is none.
    """

    first: int
    columns: list[Array]
    ends: Array
    kept: Array


def read_steps(table: OpenTable, plan: FieldPlan, schema: Mapping[str, Field]) -> Iterator[TableSteps]:
    """Yield the steps of a table; meanwhile the next are read, where the table does that beside.

    One row is held back, as the row after it tells what comes next.

    Raises:
        OSError, TypeError, ValueError: As `Table.read`; or a flag is neither 0 nor 1.
    """
    now, later = _BlockRows(table, plan, schema), _BlockRows(table, plan, schema)
    begin, total = 0, min(now.most, plan.num_rows)
    if total:
        now.start(slice(0, total))
    while total:
        now.finish()
        end = begin + total
        count = min(now.most, plan.num_rows - end)
        if count:
            later.start(slice(1, 1 + count))
        num_steps = total - 1 if count else total
        if num_steps:
            yield now.steps(begin, num_steps, is_last=not count)
        later.hold(now, total - 1)
        begin, total = end - 1, 1 + count if count else 0
        now, later = later, now


class _BlockRows:
    """The memory of a block."""

    def __init__(self, table: OpenTable, plan: FieldPlan, schema: Mapping[str, Field]) -> None:
        self._table, self._plan, self._schema = table, plan, schema
        field_of = {column: schema[field] for field, column in plan.columns.items()}
        shapes, dtypes = {}, {}
        for name in plan.read:
            form = plan.forms[name]
            shapes[name] = form.shape if form.shape is not None else field_of[name].shape if name in field_of else ()
            dtypes[name] = form.dtype
        row_bytes = sum(math.prod(shapes[name]) * np.dtype(dtypes[name]).itemsize for name in shapes)
        self.most = _block_rows(row_bytes, plan.block_rows, plan.num_rows)
        # One row is held back, one is laid behind the last.
        self._arrays: dict[str, Array] = {n: np.empty((self.most + 2, *shapes[n]), dtypes[n]) for n in shapes}
        self._begins = np.zeros(self.most + 2, bool)
        self._absent = {
            name: np.zeros((self.most + 1, *schema[name].shape), schema[name].dtype) for name in plan.absent
        }

    def start(self, where: slice) -> None:
        """Begin to read the next rows."""
        self._begins[where] = False
        self._where = where
        self._wait = self._table.start({name: each[where] for name, each in self._arrays.items()}, self._begins[where])

    def finish(self) -> None:
        """Wait until they are read."""
        self._wait()
        for array in self._arrays.values():
            if array.dtype.kind == "b":  # whatever byte stands for True
                flags = array[self._where].view(np.uint8)
                np.minimum(flags, 1, out=flags)

    def hold(self, before: _BlockRows, row: int) -> None:
        """Lay a row of the block before first."""
        for name, array in self._arrays.items():
            array[0] = before._arrays[name][row]
        self._begins[0] = before._begins[row]

    def steps(self, first: int, count: int, is_last: bool) -> TableSteps:
        """Return the first rows as steps."""
        terminal, ends = np.zeros(count, bool), np.zeros(count, bool)
        for flag in self._plan.flags:
            rows = self._arrays[flag.column][:count]
            is_set = _is_set(flag.column, _as_flags(flag.column, rows, first) if flag.is_beside else rows, first)
            ends |= is_set
            if flag.is_terminal:
                terminal |= is_set
        ends[: count - 1] |= self._begins[1:count]
        ends[-1] |= is_last or self._begins[count]
        if is_last:  # nothing comes after it
            for array in self._arrays.values():
                array[count] = array[count - 1]
        over = ends & terminal
        columns = [self._column(name, first, count, over) for name in self._schema]
        kept = ~ends | terminal if self._plan.shifted else np.ones(count, bool)
        return TableSteps(first, columns, ends, kept)

    def _column(self, name: str, first: int, count: int, over: Array) -> Array:
        """Return a field of the first rows, of which some are over: nothing comes after them."""
        if name in self._absent:
            return self._absent[name][:count]
        field, now = self._schema[name], self._plan.shifted.get(name)
        column = self._plan.columns[name if now is None else now]
        array = self._arrays[column]
        if now is None:
            rows = array[:count]
            if field.dtype.kind == "b":
                rows = _as_flags(column, rows, first)
        else:
            rows = array[1 : count + 1]
            if over.any():  # the row after is another trajectory's: the last observation stands for what follows
                rows = rows.copy()
                rows[over] = array[:count][over]
        return rows.reshape(count, *field.shape)


def _block_rows(row_bytes: int, multiple: int, num_rows: int) -> int:
    """Return how many rows to read at once."""
    rows = max(1, _BLOCK_BYTES // max(1, row_bytes))
    whole = -(-rows // multiple) * multiple
    if whole * row_bytes > _MOST_BLOCK_BYTES:  # then some of it is unpacked for several blocks
        whole = max(rows, _MOST_BLOCK_BYTES // max(1, row_bytes))
    return max(1, min(whole, num_rows))


def _is_set(column: str, rows: Array, first: int) -> Array:
    """Return which rows say that a trajectory ends, (n,) bools."""
    if kind_of(rows.dtype) in "fc":
        for index in np.argwhere(np.isnan(rows))[:1]:
            raise ValueError(f"{column}[{first + index[0]}]: expected 0 or 1, got nan")
    flags: Array = rows.reshape(len(rows), -1)
    if flags.shape[1] > 1:
        flags = np.asarray(flags.any(axis=1, keepdims=True))
    return flags[:, 0].astype(bool, copy=False)


def _as_flags(column: str, rows: Array, first: int) -> Array:
    """Return numbers that are 0 or 1 as bools."""
    if rows.dtype.kind == "b":
        return rows
    is_set: Array = rows.astype(bool)
    for index in np.argwhere(is_set & (rows != 1))[:1]:
        raise ValueError(f"{column}[{first + index[0]}]: expected 0 or 1, got {rows[tuple(index)]}")
    return is_set
