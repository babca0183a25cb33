# SPDX-License-Identifier: MIT
"""A new buffer of columns."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

from fastreplay.buffer.held import checked_path
from fastreplay.buffer.replay_buffer import ReplayBuffer
from fastreplay.datasets.arrays import flattened, schema_of
from fastreplay.support.checks import checked_count

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from fastreplay.buffer.options import Options

__all__ = ["from_arrays"]


@overload
def from_arrays(
    columns: Mapping[str, object],
    capacity: int | None = None,
    *,
    names: Mapping[str, str] | None = None,
    output: Literal["torch"] = "torch",
    **options: Unpack[Options],
) -> ReplayBuffer[torch.Tensor]: ...
@overload
def from_arrays(
    columns: Mapping[str, object],
    capacity: int | None = None,
    *,
    names: Mapping[str, str] | None = None,
    output: Literal["numpy"],
    **options: Unpack[Options],
) -> ReplayBuffer[NDArray[np.generic]]: ...
def from_arrays(
    columns: Mapping[str, object],
    capacity: int | None = None,
    *,
    names: Mapping[str, str] | None = None,
    output: Literal["torch", "numpy"] = "torch",
    **options: Any,
) -> ReplayBuffer[Any]:
    """Make a buffer of columns: a field each, of its dtype and the shape of its rows.

    With lanes, trajectories follow one after another: each ends where a field of `ends` says so, and goes into the
    next lane.

    Args:
        columns: Arrays (n, *shape) by name, nested or not ("/" joins names).
        capacity: Of the buffer, at least n; None for n.
        names: Which column a field is, where it is to have another name.
        output: As in `ReplayBuffer`.
        **options: As there.

    Returns:
        A buffer of n transitions.

    Raises:
        TypeError: It is no mapping, a column is of no numbers, or an option of the wrong type.
        ValueError: There is no column, or no row; columns are of different lengths, or longer than `capacity`; a name
            is none, or one that a buffer needs for itself; the file of `path` is there already; or as `ReplayBuffer`.
        RuntimeError, MemoryError: As `ReplayBuffer`.

    Example:
        >>> import fastreplay as fr
        >>> buffer = fr.from_arrays({"observation": [[0.0, 1.0], [2.0, 3.0]], "reward": [0.0, 1.0]}, seed=0)
        >>> len(buffer), buffer.schema["observation"]
        (2, Field((2,), 'float64'))
    """
    arrays = flattened("columns", columns)
    if names is not None and not isinstance(names, Mapping):
        raise TypeError(f"names: expected a mapping of fields to columns, got {type(names).__name__}")
    named = {} if names is None else dict(names)
    schema = schema_of("columns", arrays, named)
    num_rows = max(map(len, arrays.values()))
    if not num_rows:
        raise ValueError("columns: expected at least one row, got none")
    if capacity is None:
        capacity = num_rows
    if checked_count("capacity", capacity) < num_rows:
        raise ValueError(f"capacity: expected at least {num_rows}, as there are so many rows, got {capacity}")
    path = options.get("path")
    if path is not None and os.path.exists(checked_path(path)):  # noqa: PTH110 - it takes no import of pathlib
        raise ValueError(f"path: expected the file of a new ring, got {str(path)!r}, which is there already")
    buffer: ReplayBuffer[Any] = ReplayBuffer(capacity, schema, output=output, **options)
    columns_of = {column: field for field, column in named.items()}
    by_field: dict[str, object] = {columns_of.get(column, column): array for column, array in arrays.items()}
    try:
        buffer.load_arrays(by_field, progress=False)
    except BaseException:
        if buffer._disk is not None:
            buffer._disk.discard()
        raise
    return buffer
