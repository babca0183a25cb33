# SPDX-License-Identifier: MIT
"""The checks that the state of a pickled buffer goes through. Each message names the entry."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastreplay.batch.state import Counters, checked_counters, checked_rng_state
from fastreplay.buffer.links import SavedLinks, checked_links
from fastreplay.buffer.priorities import check_masses
from fastreplay.buffer.snapshot import ReceivedTransitions, Transitions
from fastreplay.checkpoint.pieces import checked_ticket
from fastreplay.support.checks import checked_number

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from numpy.typing import NDArray

    from fastreplay.schema import Schema

    Array = NDArray[np.generic]

__all__ = ["PickledState", "checked_state"]

_KEYS = ("first", "columns", "rng_state", "num_spawned", "extra")
_OPTIONAL_KEYS = ("masses", "links", "counters")


class Masses(NamedTuple):
    """What transitions weigh, from one ticket on."""

    first: int
    values: NDArray[np.float32]
    largest: float


class PickledState(NamedTuple):
    """What a pickle holds, checked but for the columns."""

    first: int
    columns: Any
    key: tuple[int, int]
    calls: int
    num_spawned: int
    extra: dict[str, Any]  # attributes of subclasses
    masses: Masses | None
    links: SavedLinks | None
    counters: Counters | None

    def contents(self, schema: Schema, capacity: int) -> tuple[int, tuple[Array, ...]]:
        """Return the ticket of the first transition, and columns that fit a buffer.

        Raises:
            ValueError: They are of other fields, too long, or no columns.
        """
        first, columns = self.first, self.columns
        if isinstance(columns, Transitions):
            if columns.buffer.schema != schema:
                raise ValueError(f"columns: expected those of {schema}, got {columns.buffer.schema}")
            ticket, columns = columns.columns()
            first = max(first, ticket)  # some may have been overwritten meanwhile
        arrays = _checked_columns(columns, schema, capacity)
        checked_ticket("first", first + len(arrays[0]))
        return first, arrays


def checked_state(state: object, native: AbstractSet[str]) -> PickledState:
    """Return what a pickle holds.

    Args:
        state: A dict.
        native: Attributes that no pickle sets.

    Raises:
        ValueError: It is none, a key is missing or unknown, or a value is malformed.
    """
    values = _checked_keys(state)
    first, columns, extra = checked_ticket("first", values["first"]), values["columns"], values["extra"]
    key, calls, _ = checked_rng_state(values["rng_state"])
    num_spawned = values["num_spawned"]
    if type(num_spawned) is not int or not 0 <= num_spawned <= sys.maxsize:
        raise ValueError(f"num_spawned: expected a count, got {num_spawned!r}")
    if not isinstance(extra, dict) or not all(isinstance(name, str) for name in extra):
        raise ValueError(f"extra: expected attributes by name, got {extra!r}")
    if names := native & extra.keys():
        raise ValueError(f"extra: {min(names)!r} is not to be set")
    if isinstance(columns, ReceivedTransitions) and (not columns.is_complete or columns.first < first):
        raise ValueError(f"columns: expected whole transitions from {first} on")
    links = None if values.get("links") is None else checked_links(values["links"])
    masses = _checked_masses(values.get("masses"))
    counters = None if values.get("counters") is None else checked_counters(values["counters"])
    return PickledState(first, columns, key, calls, num_spawned, extra, masses, links, counters)


def _checked_masses(masses: object) -> Masses | None:
    if masses is None:
        return None
    if not isinstance(masses, dict) or masses.keys() != {"first", "values", "largest"}:
        raise ValueError(f"masses: expected a dict of first, values, largest, got {type(masses).__name__}")
    first, values = checked_ticket("masses", masses["first"]), masses["values"]
    if not isinstance(values, np.ndarray) or values.dtype != np.float32 or values.ndim != 1:
        raise ValueError("masses: expected an array (n,) of float32")
    check_masses(values)
    return Masses(first, values, checked_number("masses", masses["largest"], 0))


def _checked_keys(state: object) -> Mapping[str, Any]:
    if not isinstance(state, Mapping):
        raise ValueError(f"state: expected a dict of {', '.join(_KEYS)}, got {type(state).__name__}")
    for key in _KEYS:
        if key not in state:
            raise ValueError(f"state: {key!r} is missing")
    for key in state:
        if key not in (*_KEYS, *_OPTIONAL_KEYS):
            raise ValueError(f"state: {key!r} is unknown; expected {', '.join(_KEYS)}")
    return state


def _checked_columns(columns: object, schema: Schema, capacity: int) -> tuple[Array, ...]:
    """Return columns that fit a buffer.

    Raises:
        ValueError: They are of other fields, dtypes, shapes or lengths, or too long.
    """
    if not isinstance(columns, Sequence) or isinstance(columns, (str, bytes)):
        raise ValueError(f"columns: expected a sequence of arrays, got {type(columns).__name__}")
    arrays = tuple(columns)
    if len(arrays) != len(schema):
        raise ValueError(f"columns: expected {len(schema)} ({', '.join(schema)}), got {len(arrays)}")
    for (name, field), array in zip(schema.items(), arrays, strict=True):
        if not isinstance(array, np.ndarray) or array.dtype != field.dtype:
            given = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(f"{name}: expected an array of {field.dtype}, got {given}")
        if array.ndim == 0 or array.shape[1:] != field.shape or len(array) != len(arrays[0]):
            expected = (len(arrays[0]) if arrays[0].ndim else "n", *field.shape)
            raise ValueError(f"{name}: expected shape {expected}, got {array.shape}")
    if len(arrays[0]) > capacity:
        raise ValueError(f"columns: expected at most {capacity} transitions, got {len(arrays[0])}")
    return arrays
