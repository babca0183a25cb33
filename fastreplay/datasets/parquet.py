# SPDX-License-Identifier: MIT
"""Parquet files: columns of numbers, and of lists of them, some rows at a time."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from fastreplay.datasets.table import ALIASES, ColumnForm, Pieces, check_file, needed, reading

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["ParquetTable", "parquet_paths"]

_INSTALL = "fastreplay[parquet]"
_BUFFER_BYTES = 1 << 20  # of a column of a file, and of the rows of all that are decoded at once
_SUFFIX = ".parquet"


def parquet_paths(path: str) -> list[str]:
    """Return the file of a path, or those in the folder, in the order of their names.

    Raises:
        FileNotFoundError: There is none.
    """
    if not os.path.isdir(path):  # noqa: PTH112 - it takes no import of pathlib
        return [path]
    found = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]  # noqa: PTH118
    paths = sorted(each for each in found if each.endswith(_SUFFIX))
    if not paths:
        raise FileNotFoundError(f"{path}: expected {_SUFFIX} files in the folder, and there are none")
    return paths


class ParquetTable:
    """A table of one or several files, which have the same columns.

    Args:
        path: What messages call it.
        paths: The files, one after another.
        what: The method that reads it.

    Raises:
        ImportError: pyarrow is not there.
        OSError: A file cannot be read.
        ValueError: It is no Parquet file, or has other columns than the first.
    """

    aliases: Mapping[str, tuple[str, ...]] = ALIASES
    tells_beginnings = False
    block_rows = 1
    _beside: Sequence[str] = ()  # columns that are read, whoever wants them

    def __init__(self, path: str, paths: Sequence[str], what: str = "load_parquet") -> None:
        self.path = path
        self._arrow = needed("pyarrow", what, _INSTALL)
        self._parquet = needed("pyarrow.parquet", what, _INSTALL)
        self._paths = paths
        self._lengths: list[int] = []
        self._schema: Any = None
        self._columns: dict[str, Any] = {}
        self._parts: dict[str, list[str]] = {}  # of each column's name, as structures have them
        for each in paths:
            with self._opened(each) as file, self._reading(each):
                schema = file.schema_arrow
                self._lengths.append(file.metadata.num_rows)
                if self._schema is None:
                    self._schema, self._columns = schema, self._checked(each, schema)
            if not schema.equals(self._schema):
                raise ValueError(f"{each}: expected the columns of {paths[0]}, {self._schema}, got {schema}")
        self._pieces: Pieces | None = None

    def _opened(self, path: str) -> Any:
        check_file(path)
        with self._reading(path):
            return self._parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)

    def _reading(self, path: str) -> AbstractContextManager[None]:
        return reading(path, self._arrow.ArrowException)

    def _checked(self, path: str, schema: Any) -> dict[str, Any]:
        columns: dict[str, Any] = {}
        for parts, kind in self._columns_of([], schema):
            name = "/".join(parts)
            if name in columns:
                raise ValueError(f"{path}: {name}: expected each column once, got two of this name")
            columns[name], self._parts[name] = kind, parts
        return columns

    def _columns_of(self, parents: list[str], fields: Any) -> Iterator[tuple[list[str], Any]]:
        """Yield the parts of names, and types, those of structures by their parts."""
        for field in fields:
            parts = [*parents, field.name]
            if self._arrow.types.is_struct(field.type):
                yield from self._columns_of(parts, field.type)
            else:
                yield parts, field.type

    def names(self) -> list[str]:
        """Do as `Table.names`."""
        return list(self._columns)

    def form(self, name: str) -> ColumnForm | None:
        """Do as `Table.form`."""
        kind = self._columns.get(name)
        if kind is None:
            return None
        types, said, shape = self._arrow.types, str(kind), []
        is_fixed = True
        while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            is_fixed = is_fixed and types.is_fixed_size_list(kind)
            shape.append(kind.list_size if types.is_fixed_size_list(kind) else -1)
            kind = kind.value_type
        if not (types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind)):
            return ColumnForm(sum(self._lengths), None, None, said)
        return ColumnForm(sum(self._lengths), tuple(shape) if is_fixed else None, np.dtype(kind.to_pandas_dtype()))

    def read(self, out: Mapping[str, Array], begins: Array) -> None:
        """Do as `Table.read`."""
        if self._pieces is None:
            shapes = {name: array.shape[1:] for name, array in out.items()}
            row_bytes = sum(array[:1].nbytes for array in out.values())
            batches = self._batches(shapes, max(1, _BUFFER_BYTES // max(1, row_bytes)))
            self._pieces = Pieces(batches, sum(self._lengths))
        self._pieces.read(out, begins)

    def _batches(
        self, shapes: Mapping[str, tuple[int, ...]], num_rows: int
    ) -> Iterator[tuple[Mapping[str, Array], Array]]:
        """Yield columns of up to so many rows, and which of these begin a trajectory."""
        shapes = {**dict.fromkeys(self._beside, ()), **shapes}
        wanted = [".".join(self._parts.get(name, [name.replace("/", ".")])) for name in shapes]
        for path in self._paths:
            first = 0
            with self._opened(path) as file:
                batches = file.iter_batches(num_rows, columns=wanted, use_threads=False)
                while (batch := self._next(path, batches)) is not None:
                    where = f"{path}: rows [{first}, {first + len(batch)})"
                    columns = {name: self._rows(where, name, batch, shape) for name, shape in shapes.items()}
                    first += len(batch)
                    yield columns, self._begins(columns, len(batch))

    def _next(self, path: str, batches: Iterator[Any]) -> Any:
        """Return the next rows; None where there are no more."""
        with self._reading(path):
            return next(batches, None)

    def _begins(self, columns: Mapping[str, Array], count: int) -> Array:  # noqa: ARG002 - where columns tell it
        """Return which rows begin a trajectory, whatever flags say."""
        return np.zeros(count, bool)

    def _array(self, where: str, batch: Any, name: str) -> Any:
        """Return a column, which may be a part of structures."""
        head, *rest = self._parts[name]
        array = batch.column(head)
        for each in rest:
            _check_whole(where, array)
            array = array.field(each)
        return array

    def _rows(self, where: str, name: str, batch: Any, shape: tuple[int, ...]) -> Array:
        """Return a column as an array (n, *shape)."""
        where = f"{where}: {name}"
        array, is_fixed = self._array(where, batch, name), self._arrow.types.is_fixed_size_list
        _check_whole(where, array)
        depth = 0
        while not self._arrow.types.is_primitive(array.type):
            lengths = {array.type.list_size} if is_fixed(array.type) else {*array.value_lengths().to_numpy().tolist()}
            expected = shape[depth] if depth < len(shape) else 1
            for length in lengths - {expected}:
                raise ValueError(f"{where}: expected rows {shape}, got a list of {length}")
            array = array.flatten()
            _check_whole(where, array)
            depth += 1
        values: Array = array.to_numpy(zero_copy_only=False)
        return values.reshape(len(batch), *shape)

    def rewind(self) -> None:
        """Do as `Table.rewind`."""
        self._pieces = None

    def close(self) -> None:
        """Do as `Table.close`."""


def _check_whole(where: str, array: Any) -> None:
    if array.null_count:
        raise ValueError(f"{where}: expected a value in every row, got null")
