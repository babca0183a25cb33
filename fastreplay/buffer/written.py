# SPDX-License-Identifier: MIT
"""Whole trajectories of a buffer, on their way out into another library's dataset."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastreplay.datasets.minari import box_of, minari_of, write_minari
from fastreplay.support.bfloat16 import BFLOAT16

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from fastreplay.buffer.filled import Filled

    Array = NDArray[Any]

__all__ = ["WrittenData", "to_minari"]

# What comes before a transition and after it, as `_core.Lanes.save` tells.
_BEFORE, _BEGINS, _CONTINUES = 3, 0, 1
_AFTER, _END, _CUT = 12, 4, 8
_NAME = re.compile(r"(?:\w[\w-]*\w/)*\w[\w-]*-v\d+")


class WrittenData(NamedTuple):
    """What was written.

    Attributes:
        dataset: The library's own object.
        transitions: In it.
        trajectories: Of these.
        left_out: Transitions of trajectories of which the beginning has left the buffer, or the end is yet to come.
    """

    dataset: Any
    transitions: int
    trajectories: int
    left_out: int


def whole_trajectories(buffer: Filled[Any]) -> list[Array]:
    """Return the tickets of each trajectory that is whole, lane after lane."""
    lanes = buffer._lanes
    if lanes is None:
        return []
    first, end = buffer._ring.window()
    of, links, oldest = lanes.core.save(first, end - first)
    tickets = np.arange(max(first, oldest), end)
    of, links = of[len(of) - len(tickets) :], links[len(links) - len(tickets) :]
    order = np.argsort(of, kind="stable")
    tickets, links, of = tickets[order], links[order], of[order]
    starts = np.flatnonzero(((links & _BEFORE) != _CONTINUES) | (np.diff(of, prepend=of[:1]) != 0))
    found = []
    for start, stop in zip(starts, np.append(starts, len(links))[1:], strict=True):
        after = links[stop - 1] & _AFTER
        if links[start] & _BEFORE == _BEGINS and after in (_END, _CUT):
            found.append(tickets[start:stop])
    return found


def to_minari(
    buffer: Filled[Any], dataset_id: str, spaces: Mapping[str, Any], about: Mapping[str, object] | None
) -> WrittenData:
    """Do as `Filled.to_minari`."""
    if not _NAME.fullmatch(str(dataset_id)):  # Minari makes the folder first
        raise ValueError(f"dataset_id: expected a name like 'walker/mine-v0', got {dataset_id!r}")
    if buffer._lanes is None:
        raise ValueError("to_minari: the buffer was made without lanes, and knows no trajectories")
    parts = buffer.schema.parts
    for name in ("observation", "action", "reward", "next_observation", "terminated"):
        if name not in parts:
            raise ValueError(f"to_minari: expected a field {name!r}; the fields are {', '.join(buffer.schema)}")
    told: dict[str, Any] = {**(about or {}), **spaces}
    if told.get("env") is None:
        for part in ("observation", "action"):
            if told.get(f"{part}_space") is None:
                told[f"{part}_space"] = box_of(parts[part], buffer.schema)
    minari_of("to_minari")
    tickets = whole_trajectories(buffer)
    if not tickets:
        raise ValueError("to_minari: expected a whole trajectory, from its beginning to an end or a cut; there is none")
    out = _Reading(buffer, tickets)
    dataset = write_minari(dataset_id, told, out)
    num_left_out = len(buffer) - out.num_transitions
    return WrittenData(dataset, out.num_transitions, out.num_trajectories, max(0, num_left_out))


class _Reading:
    """Trajectories as Minari has them, read one by one."""

    def __init__(self, buffer: Filled[Any], tickets: list[Array]) -> None:
        self._buffer, self._tickets = buffer, tickets
        self.num_transitions = self.num_trajectories = 0

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for tickets in self._tickets:
            fields = self._fields(tickets)
            if fields is not None:
                self.num_transitions += len(tickets)
                self.num_trajectories += 1
                yield self._parts(fields, int(tickets[0]))

    def _fields(self, tickets: Array) -> tuple[Array, ...] | None:
        """Return the fields of a trajectory; None where others overwrote some of it meanwhile."""
        try:
            batch = self._buffer.gather(tickets % self._buffer._ring.capacity).numpy()
        except IndexError:
            return None
        if not np.array_equal(batch.ticket, tickets):
            return None
        return tuple(_as_hdf5_has_it(batch[name]) for name in self._buffer.schema)

    def _parts(self, fields: tuple[Array, ...], ticket: int) -> Mapping[str, Any]:
        schema = self._buffer.schema
        values = dict(zip(schema, fields, strict=True))
        joined = dict(values)
        for name, array in values.items():
            if name.split("/")[0] == "observation":
                following = values[f"next_{name}"]
                if array[1:].tobytes() != following[:-1].tobytes():
                    raise ValueError(
                        f"next_{name}: expected each to be the observation of the transition after it, as Minari "
                        f"stores one for both, and the trajectory of ticket {ticket} has others"
                    )
                joined[name] = np.concatenate([array, following[-1:]])
        nodes = {name: node.fold(tuple(joined.values())) for name, node in schema.parts.items()}
        terminated = values["terminated"] != 0
        truncated = values["truncated"] != 0 if "truncated" in values else np.zeros(len(terminated), bool)
        if not (terminated[-1] or truncated[-1]):  # it was cut there
            truncated[-1] = True
        given = ("observation", "action", "reward", "next_observation", "terminated", "truncated")
        rest = {name: _after_reset(array) for name, array in values.items() if name.split("/")[0] not in given}
        return {
            "observations": nodes["observation"],
            "actions": nodes["action"],
            "rewards": values["reward"],
            "terminations": terminated,
            "truncations": truncated,
            "infos": rest or None,
        }


def _as_hdf5_has_it(array: Array) -> Array:
    """Return bfloat16 as float32, which has all its numbers."""
    return array.astype(np.float32) if array.dtype.name == BFLOAT16 else array


def _after_reset(array: Array) -> Any:
    """Return rows of steps as infos: one of the reset stands before them. Numbers as a list, as Minari wants them."""
    rows = np.concatenate([np.zeros_like(array[:1]), array])
    return rows if rows.ndim > 1 else list(rows)
