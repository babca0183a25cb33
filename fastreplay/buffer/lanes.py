# SPDX-License-Identifier: MIT
"""The lanes of a buffer: how many streams of transitions there are, and which fields end a trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastreplay import _core
from fastreplay.buffer.frames import next_ones
from fastreplay.buffer.given import LANE_NAMES
from fastreplay.support.bfloat16 import kind_of
from fastreplay.support.memory_limit import check_memory

if TYPE_CHECKING:
    from fastreplay.buffer.frames import Frames
    from fastreplay.schema import Schema

__all__ = ["Lanes", "begin_holding", "checked_ends", "lanes_of_env", "new_lanes", "somebodys"]

_ENDS = ("terminated", "truncated")
_BYTES_OF_LINK, _BYTES_OF_LANE = 16, 72
_MOST_TRANSITIONS = 0xFFFF0000
_LARGEST_ELEMENT = 8  # bytes


@dataclass(frozen=True)
class Lanes:
    """The lanes of a ring.

    Attributes:
        core: Where they are kept.
        ends: Names of the fields that end a trajectory.
        next_ones: Names of the fields that are the next of others: by their names, or as `share_next` says.
    """

    core: _core.Lanes
    ends: tuple[str, ...]
    next_ones: frozenset[str]


def new_lanes(
    lanes: int | None,
    ends: Sequence[str] | None,
    ring: _core.Ring,
    schema: Schema,
    *,
    frames: Frames,
    file: _core.MappedFile | None = None,
) -> Lanes | None:
    """Make the lanes of a ring; None where its transitions are no streams.

    Raises:
        TypeError: `ends` are no names.
        ValueError: There are too many transitions for lanes, a field cannot end a trajectory, or none does.
        MemoryError: They would not fit into this machine's memory.
    """
    if lanes is None:
        if ends is not None:
            raise ValueError("ends: expected None without lanes, whose trajectories they end")
        return None
    for name in schema.names:
        if name in LANE_NAMES:
            raise ValueError(f"{name}: the name is taken in a buffer with lanes; give the field another")
    if ring.capacity > _MOST_TRANSITIONS:
        raise ValueError(f"capacity: expected at most {_MOST_TRANSITIONS} with lanes, got {ring.capacity}")
    num_bytes_of_links = 0 if file is not None or ring.records.has_links else _BYTES_OF_LINK * ring.capacity
    check_memory("lanes", f"{lanes} lanes", num_bytes_of_links + _BYTES_OF_LANE * lanes)
    names = checked_ends(ends, schema)
    fields = [(schema.position(name), schema[name].dtype) for name in names]
    elements = [(position, dtype.itemsize, kind_of(dtype) == "f") for position, dtype in fields]
    return Lanes(_core.Lanes(ring, lanes, elements, file), names, next_ones(schema, frames))


def checked_ends(ends: Sequence[str] | None, schema: Schema) -> tuple[str, ...]:
    """Return the fields that end a trajectory.

    Raises:
        TypeError: They are no names.
        ValueError: There is none, or one cannot.
    """
    if isinstance(ends, str) or not (ends is None or isinstance(ends, Sequence)):
        raise TypeError(f"ends: expected names of fields, got {ends!r}")
    names = tuple(name for name in _ENDS if name in schema) if ends is None else tuple(ends)
    if ends is None and not names:
        raise ValueError(
            "ends: expected the fields that end a trajectory, as there is neither 'terminated' nor 'truncated'; "
            "() for streams without end"
        )
    for name in names:
        if name not in schema:
            raise ValueError(f"ends: expected names of fields, got {name!r}; the fields are {', '.join(schema)}")
        dtype = schema[name].dtype
        if kind_of(dtype) not in "biuf" or dtype.itemsize > _LARGEST_ELEMENT:
            raise ValueError(f"ends: expected bools, integers or floats of up to 8 bytes, and {name!r} is {dtype}")
    return names


def lanes_of_env(env: Any, lanes: int | bool | None, ends: Sequence[str] | None) -> tuple[int | None, bool]:
    """Return how many lanes there are for an environment, and whether its next step after an end only resets it.

    Args:
        env: An environment or a vector environment of Gymnasium.
        lanes: True for those of the environment, or as the buffer takes them.
        ends: As the buffer takes them.

    Raises:
        ValueError: They are fewer than the environments, or an end at which these reset is none of the buffer's.
    """
    num_envs = getattr(env, "num_envs", None)
    count = (num_envs or 1 if lanes else None) if isinstance(lanes, bool) else lanes
    if count is None or not isinstance(count, int):
        return count, False
    if num_envs is not None and count < num_envs:
        raise ValueError(f"lanes: expected True, or one for each of {num_envs} environments, got {count}")
    skips_resets = _resets_in_next_step(env, is_vector=num_envs is not None)
    if skips_resets and ends is not None and not {*_ENDS} <= {*ends}:
        raise ValueError(
            f"ends: expected {' and '.join(map(repr, _ENDS))} among them, as the environments reset after either, "
            f"got {ends!r}"
        )
    return count, skips_resets


def _resets_in_next_step(env: Any, *, is_vector: bool) -> bool:
    """Tell whether an environment's next step after an end only resets it: by its mode, or a wrapper of it."""
    if is_vector:
        mode = (getattr(env, "metadata", None) or {}).get("autoreset_mode")
        return mode is None or getattr(mode, "name", mode) == "NEXT_STEP"
    while env is not None:
        if any((kind.__name__, kind.__module__[:10]) == ("Autoreset", "gymnasium.") for kind in type(env).__mro__):
            return True
        env = vars(env).get("env") if hasattr(env, "__dict__") else None
    return False


def begin_holding(held: _core.HeldLanes, lanes: Sequence[int]) -> None:
    """Take lanes, for as long as they are held, and cut what was open in them.

    Raises:
        RuntimeError: One is another's.
    """
    busy = held.take(lanes)
    if busy >= 0:
        raise somebodys(busy)
    held.cut_all()


def somebodys(lane: int) -> RuntimeError:
    """Return the error that a lane is another's."""
    return RuntimeError(f"lane {lane}: another thread is inserting into it; a lane has one owner at a time")
