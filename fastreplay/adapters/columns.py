# SPDX-License-Identifier: MIT
"""Live views of an adapter's storage under the names of the other libraries: what is assigned is copied in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[Any]"
Observation: TypeAlias = "Array | dict[str, Array]"

__all__ = ["Array", "Columns", "Observation", "flat_columns", "overwrite_all"]


class Columns(dict[str, Array]):
    """Live views of an observation's parts by name. Assigning one copies into the storage."""

    def __setitem__(self, key: str, value: Array) -> None:
        self.update({key: value})

    def _refuse(self, *_: object, **__: object) -> Any:
        raise TypeError("the observation's parts are views of the buffer's storage: none can be added or removed")

    __delitem__ = clear = pop = popitem = setdefault = _refuse

    def update(self, *others: Any, **parts: Array) -> None:
        """Overwrite several parts."""
        values = dict(*others, **parts)
        for key in values:
            if key not in self:
                raise KeyError(f"{key!r}: the observation's parts are {', '.join(self)}")
        overwrite_all([(self[key], value, key) for key, value in values.items()])

    def __reduce__(self) -> tuple[type[dict[str, Array]], tuple[dict[str, Array]]]:
        return dict, (dict(self.items()),)


def flat_columns(columns: Mapping[str, Observation]) -> list[Array]:
    """Return views by name, those of an observation's parts among them, as one list."""
    return [part for view in columns.values() for part in (view.values() if isinstance(view, dict) else [view])]


def overwrite_all(assignments: Iterable[tuple[Array, object, str]]) -> None:
    """Copy arrays over columns, (column, array, name) each; all of them or none.

    Raises:
        ValueError: One has another shape or dtype.
    """
    columns, arrays = [], []
    for column, value, name in assignments:
        array = np.asarray(value)
        if array.shape != column.shape or array.dtype != column.dtype:
            raise ValueError(f"{name}: expected {column.dtype} {column.shape}, got {array.dtype} {array.shape}")
        columns.append(column)
        arrays.append(array)
    # What lies in one of the others' columns is copied before that is written.
    apart = [
        array.copy() if any(np.may_share_memory(array, other) for other in columns if other is not column) else array
        for column, array in zip(columns, arrays, strict=True)
    ]
    for column, array in zip(columns, apart, strict=True):
        column[...] = array
