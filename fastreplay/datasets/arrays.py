# SPDX-License-Identifier: MIT
"""Columns that are in memory already: arrays by name, nested or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastreplay.datasets.table import ALIASES, ColumnForm
from fastreplay.schema import Field, Schema
from fastreplay.support.bfloat16 import array_of_bfloat16, kind_of
from fastreplay.support.checks import is_masked

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["ArrayTable", "flattened", "schema_of"]


class ArrayTable:
    """A table of arrays.

    Args:
        path: What messages call it.
        arrays: (n, *shape) each, by name.
    """

    aliases = ALIASES
    tells_beginnings = False
    block_rows = 1

    def __init__(self, path: str, arrays: Mapping[str, Array]) -> None:
        self.path = path
        self._arrays = arrays
        self._at = 0

    def names(self) -> list[str]:
        """Do as `Table.names`."""
        return list(self._arrays)

    def form(self, name: str) -> ColumnForm | None:
        """Do as `Table.form`."""
        array = self._arrays.get(name)
        return None if array is None else form_of(array)

    def read(self, out: Mapping[str, Array], begins: Array) -> None:
        """Do as `Table.read`."""
        end = self._at + len(begins)
        for name, array in out.items():
            array[:] = self._arrays[name][self._at : end]
        self._at = end

    def rewind(self) -> None:
        """Do as `Table.rewind`."""
        self._at = 0

    def close(self) -> None:
        """Do as `Table.close`."""


def form_of(array: Array) -> ColumnForm:
    """Return what is known of an array (n, *shape)."""
    if kind_of(array.dtype) not in "biufc" or array.dtype.shape:
        return ColumnForm(len(array), array.shape[1:], None, str(array.dtype))
    return ColumnForm(len(array), array.shape[1:], array.dtype.newbyteorder("="))


def flattened(path: str, columns: object) -> dict[str, Array]:
    """Return arrays by name, "/" between the names of nested ones.

    Raises:
        TypeError: It is no mapping of names to arrays.
        ValueError: A column has no rows of its own, or two have one name.
    """
    if not isinstance(columns, Mapping):
        raise TypeError(f"{path}: expected a mapping of names to arrays, got {type(columns).__name__}")
    arrays: dict[str, Array] = {}
    _flatten(path, "", columns, arrays)
    return arrays


def _flatten(path: str, parent: str, value: Any, arrays: dict[str, Array]) -> None:
    if isinstance(value, (Mapping, tuple)):
        below = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, child in below:
            _flatten(path, f"{parent}/{key}" if parent else str(key), child, arrays)
        return
    if is_masked(value):
        raise ValueError(f"{path}: {parent}: expected every entry, got masked ones")
    try:
        array = np.asarray(_in_numpy(value.detach().cpu()) if hasattr(value, "detach") else value)
    except (TypeError, ValueError, RuntimeError) as error:  # of a tensor without numbers, too
        raise ValueError(f"{path}: {parent}: expected an array (n, ...): {error}") from None
    if array.ndim == 0:
        raise ValueError(f"{path}: {parent}: expected an array (n, ...), got {value!r}")
    if parent in arrays:
        raise ValueError(f"{path}: {parent}: expected each column once, got two of this name")
    arrays[parent] = array


def _in_numpy(tensor: Any) -> Any:
    if hasattr(tensor, "resolve_neg"):  # of what is kept as conjugate or negative, NumPy knows nothing
        tensor = tensor.resolve_conj().resolve_neg()
    return array_of_bfloat16(tensor) if str(tensor.dtype) == "torch.bfloat16" else tensor


def schema_of(path: str, arrays: Mapping[str, Array], names: Mapping[str, str]) -> Schema:
    """Return the schema whose fields are columns.

    Args:
        path: What messages call them.
        arrays: By name.
        names: Which column a field is, where it is called otherwise.

    Raises:
        TypeError: A column is of no numbers.
        ValueError: `names` names no column, or one twice.
    """
    field_of = {column: field for field, column in names.items()}
    if len(field_of) < len(names):
        raise ValueError(f"{path}: names: expected each column once, got {names}")
    for column in field_of:
        if column not in arrays:
            raise ValueError(f"{path}: {column}: there is no such column; there are {', '.join(arrays)}")
    fields: dict[str, Field] = {}
    for column, array in arrays.items():
        form = form_of(array)
        if form.dtype is None:
            raise TypeError(f"{path}: {column}: expected numbers, got {form.said}")
        name = field_of.get(column, column)
        if name in fields:
            raise ValueError(f"{path}: {column}: expected each field once, got {name!r} twice")
        try:
            fields[name] = Field(array.shape[1:], form.dtype)
        except ValueError as error:
            raise ValueError(f"{path}: {column}: {error}") from None
    return Schema(fields)
