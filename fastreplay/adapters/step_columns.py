# SPDX-License-Identifier: MIT
"""Columns that lie nowhere as a whole: indexing puts the rows together that are asked for, as copies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from fastreplay.adapters.columns import Columns

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fastreplay.adapters.columns import Array

    Index = NDArray[np.int64]

__all__ = ["StepColumn", "StepColumns"]


class StepColumn:
    """One column (num_rows, num_envs, *shape) of a table of steps, to be indexed as an array.

    Args:
        name: What it is called.
        shape: Of the column.
        dtype: Of its rows.
        read: Returns the rows (n, *shape) at (n,) int64 rows and environments, those that hold nothing as zeros.
        write: Overwrites rows there by (n, *shape); None where that cannot be.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        read: Callable[[Index, Index], Array],
        write: Callable[[Index, Index, Array], None] | None = None,
    ) -> None:
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self._read = read
        self._write = write

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        """Return a copy of what an array would have there; of a view, one that cannot be written.

        Args:
            index: Of rows and environments, as NumPy takes it; of the axes after them, slices and `...`.

        Raises:
            IndexError: Out of range, or another index.
        """
        rows, envs, rest, is_view = self._placed(index)
        values = self._rows_at(rows, envs)
        values.flags.writeable = not is_view and rows.ndim > 0
        return values[rest]

    def __setitem__(self, index: Any, value: Any) -> None:
        """Overwrite rows that hold a step, all or none.

        Args:
            index: As in `__getitem__`.
            value: What NumPy casts and broadcasts to what lies there.

        Raises:
            ValueError: The column is put together from frames, or the value has another shape.
            IndexError: A row holds no step, or as `__getitem__`.
        """
        if self._write is None:
            refuse_assignment(self.name)
        rows, envs, rest, _ = self._placed(index)
        values = self._rows_at(rows, envs)
        values[rest] = value
        self._write(rows.reshape(-1), envs.reshape(-1), values.reshape(-1, *self.shape[2:]))

    def _placed(self, index: Any) -> tuple[Index, Index, tuple[Any, ...], bool]:
        """Return the rows and environments of an index, that of what lies there, and whether a view is asked for."""
        lead, rest = _split(index if isinstance(index, tuple) else (index,))
        all_rows = np.broadcast_to(np.arange(self.shape[0])[:, None], self.shape[:2])
        all_envs = np.broadcast_to(np.arange(self.shape[1]), self.shape[:2])
        rows, envs = np.asarray(all_rows[lead]), np.asarray(all_envs[lead])
        return rows, envs, (slice(None),) * rows.ndim + rest, np.may_share_memory(rows, all_rows)

    def _rows_at(self, rows: Index, envs: Index) -> Array:
        return self._read(rows.reshape(-1), envs.reshape(-1)).reshape((*rows.shape, *self.shape[2:]))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError(f"{self.name}: with dedupe only copies can be had")
        values: Array = self[:].astype(self.dtype if dtype is None else dtype)
        return values

    def __repr__(self) -> str:
        return f"<{self.name} {self.dtype} {self.shape}, put together where it is read>"


class StepColumns(Columns):
    """Such columns of an observation's parts by name."""

    def update(self, *others: Any, **parts: Any) -> None:  # noqa: ARG002
        """Refuse to overwrite parts."""
        refuse_assignment("the observation's parts")


def refuse_assignment(name: str) -> NoReturn:
    """Refuse to assign to a column.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"{name}: with dedupe it is put together where it is read, and cannot be assigned")


def _split(index: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Split an index into that of rows and environments, and that of the axes after them."""
    num_axes = num_items = 0
    while num_items < len(index) and num_axes < 2 and index[num_items] is not Ellipsis:
        item = index[num_items]
        if item is None:
            raise IndexError("expected no new axes: index what this returns")
        array = item if isinstance(item, slice) else np.asarray(item)
        num_axes += array.ndim if isinstance(array, np.ndarray) and array.dtype == np.bool_ else 1
        num_items += 1
    lead, rest = index[:num_items], index[num_items:]
    if not all(item is Ellipsis or isinstance(item, slice) for item in rest):
        raise IndexError("expected slices of the axes after rows and environments: index what this returns")
    return lead, rest
