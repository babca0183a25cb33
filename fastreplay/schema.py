# SPDX-License-Identifier: MIT
"""What a transition is made of: named fields with a dtype and a shape. Knows no storage."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fastreplay import _core
from fastreplay._fastpath import MAX_FIELDS
from fastreplay._names import RESERVED_NAMES

if TYPE_CHECKING:
    import gymnasium as gym
    from numpy.typing import DTypeLike

__all__ = ["Field", "FieldLike", "Schema"]

_MAX_DIMENSIONS = 30
_FLOAT32: np.dtype[np.generic] = np.dtype(np.float32)


@dataclass(frozen=True)
class Field:
    """One named part of a transition.

    Args:
        shape: Shape of one row, without a batch axis; `()` for a number.
        dtype: A NumPy numeric dtype or bool, in native byte order.

    Raises:
        TypeError: The dtype is neither numeric nor bool, or the shape is no tuple of integers.
        ValueError: The byte order is not native, or the shape has a zero or negative length.
    """

    shape: tuple[int, ...] = ()
    dtype: np.dtype[np.generic] = _FLOAT32

    def __init__(self, shape: tuple[int, ...] = (), dtype: DTypeLike = np.float32) -> None:
        object.__setattr__(self, "shape", _checked_shape(shape))
        object.__setattr__(self, "dtype", _checked_dtype(dtype))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __repr__(self) -> str:
        return f"Field({self.shape}, {self.dtype.name!r})"


FieldLike: TypeAlias = "Field | tuple[tuple[int, ...], DTypeLike] | tuple[int, ...]"


def _checked_shape(shape: object) -> tuple[int, ...]:
    if not isinstance(shape, (tuple, list)) or not all(
        isinstance(length, (int, np.integer)) and not isinstance(length, bool) for length in shape
    ):
        raise TypeError(f"shape: expected a tuple of integers, got {shape!r}")
    if any(length <= 0 for length in shape):
        raise ValueError(f"shape: expected positive lengths, got {tuple(shape)}")
    if len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"shape: expected at most {_MAX_DIMENSIONS} dimensions, got {len(shape)}")
    return tuple(int(length) for length in shape)


def _checked_dtype(dtype: DTypeLike) -> np.dtype[np.generic]:
    try:
        checked = np.dtype(dtype)
    except TypeError as error:
        raise TypeError(f"dtype: expected a NumPy dtype, got {dtype!r}") from error
    if checked.kind not in "biufc" or checked.shape:
        raise TypeError(f"dtype: expected a numeric dtype or bool, got {checked}")
    if not checked.isnative:
        raise ValueError(f"dtype: expected native byte order, got {checked.str!r}")
    return checked


def _as_field(name: str, spec: FieldLike) -> Field:
    try:
        if isinstance(spec, Field):
            return spec
        if isinstance(spec, tuple):
            if len(spec) == 2 and isinstance(spec[0], (tuple, list)):
                return Field(*spec)
            return Field(spec)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None
    raise TypeError(f"{name}: expected a Field, (shape, dtype) or a shape tuple, got {spec!r}")


class Schema(Mapping[str, Field]):
    """The ordered, immutable set of fields that make a transition.

    Args:
        fields: Name to `Field`, `(shape, dtype)`, or a bare shape tuple (float32). A `/` in a name
            nests it: `observation/position`.

    Raises:
        TypeError: A name is no string, or a field is malformed.
        ValueError: No fields, too many, a name that a minibatch needs for itself, or two names of
            which one is the parent of the other.

    Example:
        >>> import fastreplay as fr
        >>> schema = fr.Schema({"observation": (3,), "action": fr.Field((), "int64")})
        >>> schema.record_bytes
        32
    """

    __slots__ = ("_fields", "_positions", "_record_bytes")

    def __init__(self, fields: Mapping[str, FieldLike]) -> None:
        if not isinstance(fields, Mapping):
            raise TypeError(f"fields: expected a mapping of name to field, got {type(fields).__name__}")
        if not fields:
            raise ValueError("fields: expected at least one field, got none")
        if len(fields) > MAX_FIELDS:
            raise ValueError(f"fields: expected at most {MAX_FIELDS}, got {len(fields)}")
        for name in fields:
            _check_name(name)
        for name in fields:
            parents = name.split("/")[:-1]
            for depth in range(1, len(parents) + 1):
                if (parent := "/".join(parents[:depth])) in fields:
                    raise ValueError(f"{name}: duplicate name, {parent!r} is a field already")
        self._fields = {name: _as_field(name, spec) for name, spec in fields.items()}
        self._positions = {name: i for i, name in enumerate(fields)}
        self._record_bytes = _core.record_bytes(self.sizes)

    @property
    def names(self) -> tuple[str, ...]:
        """Field names in schema order."""
        return tuple(self._fields)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(bytes of a row, alignment) of each field: what the core needs to know."""
        return [(field.row_bytes, field.dtype.alignment) for field in self._fields.values()]

    @property
    def record_bytes(self) -> int:
        """Bytes from one packed record to the next in the ring."""
        return self._record_bytes

    def nbytes(self, capacity: int) -> int:
        """Return the bytes that a buffer of `capacity` transitions takes."""
        return capacity * (self._record_bytes + _LAP_WORD_BYTES)

    def position(self, name: str) -> int:
        """Return the field's place in schema order.

        Raises:
            KeyError: There is no such field.
        """
        return self._positions[name]

    @classmethod
    def from_spaces(
        cls,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        *,
        dtype: DTypeLike | None = None,
        extra: Mapping[str, FieldLike] | None = None,
    ) -> Schema:
        """Make the schema of a Gymnasium environment's transitions.

        The fields are observation, action, reward (float32), next_observation, terminated and
        truncated (bool). Dict and Tuple spaces give one field a leaf: `observation/position`,
        `action/0`.

        Args:
            observation_space: Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple.
            action_space: The same.
            dtype: Stores floating-point observations and actions in this dtype, for example
                float32 where an environment gives float64.
            extra: Further fields, appended.

        Raises:
            TypeError: A space is of another kind.
        """
        from fastreplay._spaces import fields_of_space

        fields: dict[str, FieldLike] = {
            **fields_of_space("observation", observation_space, dtype),
            **fields_of_space("action", action_space, dtype),
            "reward": Field((), np.float32),
            **fields_of_space("next_observation", observation_space, dtype),
            "terminated": Field((), np.bool_),
            "truncated": Field((), np.bool_),
        }
        for name, spec in (extra or {}).items():
            if name in fields:
                raise ValueError(f"{name}: duplicate name, the spaces give this field already")
            fields[name] = spec
        return cls(fields)

    def __getitem__(self, name: str) -> Field:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schema):
            return NotImplemented
        return list(self.items()) == list(other.items())

    def __hash__(self) -> int:
        return hash(tuple(self._fields.items()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name!r}: {field!r}" for name, field in self._fields.items())
        return f"Schema({{{fields}}})"

    def __reduce__(self) -> tuple[type[Schema], tuple[dict[str, Field]]]:
        return Schema, (self._fields,)


_LAP_WORD_BYTES = 4


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"fields: expected names to be strings, got {name!r}")
    if not name or name.startswith("/") or name.endswith("/") or "//" in name:
        raise ValueError(f"fields: expected a name, or names joined by '/', got {name!r}")
    if name.split("/")[0] in RESERVED_NAMES or name.startswith("_"):
        raise ValueError(f"{name}: this name is reserved, a minibatch needs it for itself")
