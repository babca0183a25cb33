# SPDX-License-Identifier: MIT
"""What a transition is made of: named fields with a dtype and a shape. Knows no storage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastreplay import _core
from fastreplay.schema.field import Field, FieldLike, checked_dtype, checked_stack
from fastreplay.schema.structure import RESERVED_NAMES, Node, nodes_of_names, walk
from fastreplay.support.checks import checked_index

if TYPE_CHECKING:
    import gymnasium as gym
    from numpy.typing import DTypeLike

__all__ = ["Field", "FieldLike", "Schema"]

_GIVEN_OUT = ("out", "divide", "scale", "shift")  # arguments of Field


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

    __slots__ = ("_fields", "_nodes", "_nodes_by_name", "_positions", "_record_bytes")

    def __init__(self, fields: Mapping[str, FieldLike]) -> None:
        if hasattr(self, "_record_bytes"):
            raise RuntimeError(f"{type(self).__name__}: __init__ was called before, and a schema does not change")
        if isinstance(fields, Schema):
            self._set(fields._fields, fields._nodes)
            return
        if not isinstance(fields, Mapping):
            raise TypeError(f"fields: expected a mapping of name to field, got {type(fields).__name__}")
        for name in fields:
            _check_name(name)
        for name in fields:
            parents = name.split("/")[:-1]
            for depth in range(1, len(parents) + 1):
                if (parent := "/".join(parents[:depth])) in fields:
                    raise ValueError(f"{name}: duplicate name, {parent!r} is a field already")
        self._set({name: _as_field(name, spec) for name, spec in fields.items()}, nodes_of_names(fields))

    def _set(self, fields: dict[str, Field], nodes: dict[str, Node]) -> None:
        if not fields:
            raise ValueError("fields: expected at least one field, got none")
        if len(fields) > _core.MAX_FIELDS:
            raise ValueError(f"fields: expected at most {_core.MAX_FIELDS}, got {len(fields)}")
        _check_bytes(fields)
        self._fields = fields
        self._nodes = nodes
        self._nodes_by_name = {node.name: node for node in walk(nodes.values())}
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

    @property
    def parts(self) -> dict[str, Node]:
        """What a transition is made of at the top: fields, and dicts and tuples of nodes."""
        return self._nodes

    @property
    def parts_by_name(self) -> dict[str, Node]:
        """All nodes, at any depth."""
        return self._nodes_by_name

    def nbytes(self, capacity: int) -> int:
        """Return the bytes that a buffer of `capacity` transitions takes which have nothing in common.

        Raises:
            TypeError, ValueError: `capacity` is no integer, or negative.
        """
        capacity = checked_index("capacity", capacity)
        if capacity < 0:
            raise ValueError(f"capacity: expected a non-negative integer, got {capacity}")
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
        stack: int | None = None,
        images: Mapping[str, Any] | None = None,
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
            stack: Observations are stacks of so many frames, along their first axis.
            images: How minibatches have observations that are images: of uint8, of two axes or more, the last two of
                which are height and width. `Field`'s out, divide, scale and shift, by name; None for them as they are.

        Raises:
            TypeError: A space is of another kind, or a further field or `images` malformed.
            ValueError: `extra` names a field that the spaces give, a further field is malformed, observations are
                no such stacks, or none of them is an image that can be given so.
        """
        from fastreplay.schema.spaces import node_of_space

        stored = None if dtype is None else checked_dtype(dtype)
        fields: dict[str, Field] = {}
        nodes: dict[str, Node] = {}

        def append(name: str, field: Field) -> None:
            nodes[name] = Node(name, len(fields))
            fields[name] = field

        nodes["observation"] = node_of_space("observation", observation_space, stored, fields)
        nodes["action"] = node_of_space("action", action_space, stored, fields)
        append("reward", Field((), np.float32))
        nodes["next_observation"] = node_of_space("next_observation", observation_space, stored, fields)
        append("terminated", Field((), np.bool_))
        append("truncated", Field((), np.bool_))
        seen = [name for name in fields if name.split("/")[0] in ("observation", "next_observation")]
        if stack is not None:
            fields |= {name: _stacked(name, fields[name], stack) for name in seen}
        if images is not None:
            fields |= _images({name: fields[name] for name in seen}, images)
        if extra:
            further = Schema(extra)
            for name in further:
                if (node := name.split("/")[0]) in nodes:
                    raise ValueError(f"{name}: duplicate name, the spaces give {node!r} already")
            nodes |= {name: node.moved(len(fields)) for name, node in further.parts.items()}
            fields |= further
        return cls._of(fields, nodes)

    @classmethod
    def _of(cls, fields: dict[str, Field], nodes: dict[str, Node]) -> Schema:
        schema = cls.__new__(cls)
        schema._set(fields, nodes)
        return schema

    @classmethod
    def _restored(cls, fields: dict[str, Field], nodes: dict[str, Node]) -> Schema:
        """Make a schema whose fields nest in another way than their names say.

        Raises:
            ValueError: Some node is of no field, or some field of no node, or a part's name is none.
        """
        for name in nodes:
            if not isinstance(name, str):
                raise ValueError(f"nodes: expected names of parts, got {name!r}")
        leaves = [(node.name, node.position) for node in walk(nodes.values()) if node.is_field]
        if leaves != [(name, position) for position, name in enumerate(fields)]:
            raise ValueError(
                f"nodes: expected those of the fields {', '.join(fields)}, got {', '.join(n for n, _ in leaves)}"
            )
        return cls._of({name: _as_field(name, field) for name, field in fields.items()}, nodes)

    def _as_stored(self) -> Schema:
        """Return the schema of what is given as it is stored: itself, where all is."""
        return self._with_fields({name: field._as_stored() for name, field in self.items()})

    def _with_fields(self, fields: dict[str, Field]) -> Schema:
        """Return a schema of other fields with the same names, which nest in the same way."""
        return self if fields == self._fields else Schema._of(fields, self._nodes)

    def __getitem__(self, name: str) -> Field:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schema):
            return NotImplemented
        return list(self.items()) == list(other.items()) and self._nodes == other._nodes

    def __hash__(self) -> int:
        return hash(tuple(self._fields.items()))

    def __repr__(self) -> str:
        if self._follows_from_names():
            return f"Schema({self._fields})"
        fields = tuple(self._fields.values())
        return f"Schema({ {name: node.fold(fields) for name, node in self._nodes.items()} })"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._follows_from_names():
            return Schema, (self._fields,)
        return _restore, (self._fields, self._nodes)

    def _follows_from_names(self) -> bool:
        try:
            return Schema(self._fields)._nodes == self._nodes
        except ValueError:  # names that only a space gives
            return False


def _restore(fields: dict[str, Field], nodes: dict[str, Node]) -> Schema:  # as pickles name it
    return Schema._restored(fields, nodes)


def _stacked(name: str, field: Field, stack: int) -> Field:
    stack = checked_stack(stack)
    if field.shape[:1] != (stack,):
        raise ValueError(f"stack: expected a first axis of {stack} frames, and {name} is {field.shape}")
    return Field(field.shape[1:], field.dtype, stack=stack)


_LAP_WORD_BYTES = 4
# The core's own limit, which leaves room to align and add in 64 bits.
_MOST_BYTES = 2**60


def _check_bytes(fields: Mapping[str, Field]) -> None:
    total = 0
    for name, field in fields.items():
        total += field.row_bytes
        if field.row_bytes > _MOST_BYTES:
            raise ValueError(f"{name}: expected at most {_MOST_BYTES:,} bytes, got {field.row_bytes:,} of {field}")
    if total > _MOST_BYTES:
        raise ValueError(f"fields: expected at most {_MOST_BYTES:,} bytes together, got {total:,}")


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"fields: expected names to be strings, got {name!r}")
    if not name or name.startswith("/") or name.endswith("/") or "//" in name:
        raise ValueError(f"fields: expected a name, or names joined by '/', got {name!r}")
    if name.split("/")[0] in RESERVED_NAMES or name.startswith("_"):
        raise ValueError(f"{name}: this name is reserved, a minibatch needs it for itself")


def _images(fields: Mapping[str, Field], options: Any) -> dict[str, Field]:
    """Return those of the fields that are images, given out so."""
    if not isinstance(options, Mapping) or not options.keys() <= set(_GIVEN_OUT):
        raise TypeError(f"images: expected a dict of {', '.join(_GIVEN_OUT)}, got {options!r}")
    images = {name: f for name, f in fields.items() if f.dtype == np.uint8 and len(f._frame) >= 2}
    if not images:
        said = ", ".join(f"{name} {field.shape} {field.dtype.name}" for name, field in fields.items())
        raise ValueError(f"images: expected an observation of uint8 with two axes or more, got {said}")
    try:
        return {name: field._with(**options) for name, field in images.items()}
    except (TypeError, ValueError) as error:
        raise type(error)(f"images: {error}") from None
