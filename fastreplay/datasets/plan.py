# SPDX-License-Identifier: MIT
"""Which column fills which field, decided and checked before anything is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fastreplay.schema.structure import is_within, now_of
from fastreplay.support.bfloat16 import kind_of

if TYPE_CHECKING:
    from fastreplay.datasets.table import ColumnForm, Table
    from fastreplay.schema import Field, Schema

__all__ = ["FieldPlan", "Flag", "checked_names", "plan"]

_TERMINATED, _TRUNCATED = _FLAGS = "terminated", "truncated"
# As `extend` has it: a cast may climb this ladder and never descend it.
_KIND_RANK = {"b": 0, "u": 1, "i": 1, "f": 2, "c": 3}


class Flag(NamedTuple):
    """A column that says where trajectories end.

    Attributes:
        column: Its name.
        is_terminal: Whether nothing comes after such an end; else it was stopped, and what came next is not told.
        is_beside: Whether the buffer has no field for it: it is 0 or 1, as nobody says what else may end a trajectory.
    """

    column: str
    is_terminal: bool
    is_beside: bool


class FieldPlan(NamedTuple):
    """How each field of a schema is filled.

    Attributes:
        columns: The column of each field that has one.
        shifted: Of fields that are the next row of another field: that field.
        absent: Fields of flags of which there are none.
        flags: What says where trajectories end.
        forms: Of the columns that are read.
        num_rows: Of every column.
        block_rows: A number of rows of which multiples are read best.
    """

    columns: Mapping[str, str]
    shifted: Mapping[str, str]
    absent: Sequence[str]
    flags: Sequence[Flag]
    forms: Mapping[str, ColumnForm]
    num_rows: int
    block_rows: int

    @property
    def read(self) -> list[str]:
        """The columns that are read."""
        return list(dict.fromkeys([*self.columns.values(), *(flag.column for flag in self.flags)]))


def checked_names(names: object, schema: Schema) -> dict[str, str | None]:
    """Return which column stands for a field, or for all fields below a name.

    Raises:
        TypeError: It is no such mapping.
        ValueError: It names something else than fields.
    """
    if names is None:
        return {}
    if not isinstance(names, Mapping):
        raise TypeError(f"names: expected a mapping of fields to columns, got {type(names).__name__}")
    for name, column in names.items():
        if name not in schema.parts_by_name and name not in _FLAGS:
            raise ValueError(f"names: expected fields for keys, got {name!r}; the fields are {', '.join(schema)}")
        if column is None and name not in _FLAGS:
            raise ValueError(f"names: expected a column for {name!r}; None is for flags that there are not")
        if not (column is None or isinstance(column, str)):
            raise TypeError(f"names: expected the name of a column for {name!r}, got {column!r}")
    return dict(names)


class _Matching:
    """Looks for the columns of one table."""

    def __init__(self, table: Table, names: Mapping[str, str | None]) -> None:
        self._table = table
        self._names = names

    def is_denied(self, field: str) -> bool:
        """Whether the caller says that there is no such column."""
        return self._names.get(field, "") is None

    def column(self, field: str) -> str | None:
        """Return the column of a field; None where there is none.

        Raises:
            ValueError: The caller names one that is not there.
        """
        parts = field.split("/")
        for depth in range(len(parts), 0, -1):
            said = self._names.get("/".join(parts[:depth]))
            if said is not None:
                name = "/".join([said, *parts[depth:]])
                if self._table.form(name) is None:
                    raise self._missing(field, name)
                return name
        for head in (parts[0], *self._table.aliases.get(parts[0], ())):
            name = "/".join([head, *parts[1:]])
            if self._table.form(name) is not None:
                return name
        return f"infos/{field}" if self._table.form(f"infos/{field}") is not None else None

    def _missing(self, field: str, column: str) -> ValueError:
        there = ", ".join(self._table.names()) or "none"
        return ValueError(
            f"{self._table.path}: {column}: there is no such column for the field {field!r}; there are {there}"
        )

    def missing(self, field: str) -> ValueError:
        """Return the error that no column is there for a field."""
        hint = f"; names={{{field!r}: None}} says that there are no such ends" if field in _FLAGS else ""
        return ValueError(f"{self._missing(field, field)}; names={{{field!r}: ...}} names another{hint}")

    def form(self, column: str) -> ColumnForm:
        """Return what is known of a column that was found."""
        form = self._table.form(column)
        assert form is not None
        return form


def plan(
    table: Table,
    schema: Schema,
    names: Mapping[str, str | None],
    ends: Sequence[str],
    pairs: Mapping[str, str],
) -> FieldPlan:
    """Decide how each field is filled.

    Args:
        table: What is read.
        schema: Of what it becomes.
        names: Columns that the caller names, by field.
        ends: The fields that end a trajectory.
        pairs: Fields that are the next of another, where they are not called so.

    Raises:
        TypeError: A column's kind does not fit the field.
        ValueError: A column is missing, or its shape or length is another.
    """
    match = _Matching(table, names)
    columns: dict[str, str] = {}
    shifted: dict[str, str] = {}
    absent: list[str] = []
    for field in schema:
        now = _before(field, schema, pairs)
        column = None if match.is_denied(field) else match.column(field)
        if column is not None:
            columns[field] = column
        elif now is not None:
            shifted[field] = now
        elif match.is_denied(field) or (field == _TRUNCATED and table.tells_beginnings):
            absent.append(field)
        else:
            raise match.missing(field)
    for now in shifted.values():
        if now not in columns:
            raise match.missing(now)
    flags = _flags(match, columns, ends)
    if shifted and not table.tells_beginnings:
        _check_told(match, flags)
    forms = {column: match.form(column) for column in (*columns.values(), *(flag.column for flag in flags))}
    for column, form in forms.items():
        _check(table.path, column, form, [name for name in columns if columns[name] == column], schema)
    num_rows = _common_length(table.path, {column: form.length for column, form in forms.items()})
    return FieldPlan(columns, shifted, absent, flags, forms, num_rows, table.block_rows)


def _before(field: str, schema: Schema, pairs: Mapping[str, str]) -> str | None:
    """Return the field of which a field is the next, if it is of any."""
    for later, now in pairs.items():
        if is_within(field, later):
            return now + field[len(later) :]
    named = now_of(field)
    return named if named in schema else None


def _flags(match: _Matching, columns: Mapping[str, str], ends: Sequence[str]) -> list[Flag]:
    """Return what says where trajectories end: the buffer's fields, and the flags that it has no field for."""
    told = {name: None if match.is_denied(name) else match.column(name) for name in _FLAGS}
    found = dict.fromkeys([columns[name] for name in ends if name in columns] + [c for c in told.values() if c])
    return [Flag(column, column != told[_TRUNCATED], column not in columns.values()) for column in found]


def _check_told(match: _Matching, flags: Sequence[Flag]) -> None:
    """Refuse to make next observations where it is not told which ends there are."""
    if not any(flag.is_terminal for flag in flags) and not match.is_denied(_TERMINATED):
        raise match.missing(_TERMINATED)
    if all(flag.is_terminal for flag in flags) and not match.is_denied(_TRUNCATED):
        raise match.missing(_TRUNCATED)


def _check(path: str, column: str, form: ColumnForm, fields: Sequence[str], schema: Schema) -> None:
    dtype = form.dtype
    if dtype is None:
        raise TypeError(f"{path}: {column}: expected numbers{_of(fields)}, got {form.said}")
    if kind_of(dtype) not in _KIND_RANK:
        raise TypeError(f"{path}: {column}: expected numbers{_of(fields)}, got {dtype}")
    if not fields and form.shape is not None and math.prod(form.shape) != 1:
        raise ValueError(f"{path}: {column}: expected one flag a row, got {form.shape}")
    for name in fields:
        field = schema[name]
        if field.dtype.kind != "b" and _KIND_RANK[kind_of(dtype)] > _KIND_RANK[kind_of(field.dtype)]:
            raise TypeError(
                f"{path}: {column}: expected {field.dtype} for the field {name!r}, got {dtype}, "
                "a cast that would lose its kind"
            )
        if form.shape is not None and not _fits(form.shape, field):
            raise ValueError(f"{path}: {column}: expected rows {field.shape} for the field {name!r}, got {form.shape}")


def _of(fields: Sequence[str]) -> str:
    return f" for the field {fields[0]!r}" if fields else ""


def _fits(shape: tuple[int, ...], field: Field) -> bool:
    """Tell whether rows are those of a field, but for axes of length 1 around a number."""
    return shape == field.shape or (math.prod(shape) == math.prod(field.shape) == 1)


def _common_length(path: str, lengths: Mapping[str, int]) -> int:
    first, num_rows = next(iter(lengths.items()), ("", 0))
    for name, length in lengths.items():
        if length != num_rows:
            raise ValueError(f"{path}: {name}: expected {num_rows} rows, as {first} has, got {length}")
    return num_rows
