# SPDX-License-Identifier: MIT
"""What transitions have in common: next observations, and frames of stacks, each of which is stored once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from fastreplay.schema.structure import fields_within, now_of

if TYPE_CHECKING:
    from fastreplay.schema import Schema

__all__ = ["Frames", "ShareNext", "frames_in", "next_ones"]

ShareNext = bool | Mapping[str, str]

_ALONE = 1  # frames of a row that is no stack
# Of the steps of all lanes that a stack goes back: so that one lane may be twice as slow as the others.
_SLACK = 2


class Frames(NamedTuple):
    """Fields that have frames in common.

    Attributes:
        share_next: Which fields are the next of which, as the caller said it.
        groups: The positions of each group's fields in the order of time, and the frames of a row.
        num_spare: How many transitions longer than the buffer holds them frames are kept.
    """

    share_next: ShareNext
    groups: list[tuple[list[int], int]]
    num_spare: int

    def has(self, position: int) -> bool:
        """Tell whether a field's rows are put together from frames."""
        return any(position in positions for positions, _ in self.groups)


def frames_in(schema: Schema, share_next: ShareNext, lanes: int | None) -> Frames:
    """Return what a buffer's transitions have in common.

    Raises:
        TypeError: `share_next` is no bool or mapping of names.
        ValueError: Its fields are not there, or not alike; or the buffer has no lanes.
    """
    pairs = _pairs(schema, share_next)
    of_pairs = [[schema.position(now), schema.position(later)] for later, now in pairs.items()]
    paired = {position for pair in of_pairs for position in pair}
    alone = [[i] for i, field in enumerate(schema.values()) if field.stack is not None and i not in paired]
    fields = tuple(schema.values())
    groups = [(group, fields[group[0]].stack or _ALONE) for group in sorted(of_pairs + alone)]
    what = "share_next" if pairs else schema.names[groups[0][0][0]] if groups else ""
    if groups and lanes is None:
        raise ValueError(
            f"{what}: expected lanes=, one for each environment, as their transitions have frames in common"
        )
    longest = max([stack for _, stack in groups], default=0)
    return Frames(share_next if pairs else False, groups, _SLACK * longest * (lanes or 0))


def next_ones(schema: Schema, frames: Frames) -> frozenset[str]:
    """Return the names of the fields that are the next of others: by their names, or as `share_next` said."""
    shared = {schema.names[position] for positions, _ in frames.groups for position in positions[1:]}
    return frozenset(name for name in schema if now_of(name) is not None or name in shared)


def _pairs(schema: Schema, share_next: object) -> dict[str, str]:
    """Return the fields that are the next of others, by name."""
    if isinstance(share_next, bool):
        if not share_next:
            return {}
        given = {later: now for later in schema.parts if (now := now_of(later)) is not None and now in schema.parts}
        if not given:
            raise ValueError(
                "share_next: expected fields of which one is the next of another, as 'next_observation' is of "
                f"'observation'; the fields are {', '.join(schema)}"
            )
    elif isinstance(share_next, Mapping) and all(isinstance(name, str) for pair in share_next.items() for name in pair):
        given = dict(share_next)
        if not given:
            raise ValueError("share_next: expected at least one pair of names, or False, got none")
    else:
        raise TypeError(f"share_next: expected a bool, or a mapping of names to names, got {share_next!r}")
    pairs: dict[str, str] = {}
    for later, now in given.items():
        pairs |= _paired_leaves(schema, later, now)
    names = [*pairs, *pairs.values()]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"share_next: expected each field once, got {name!r} more often")
    return pairs


def _paired_leaves(schema: Schema, later: str, now: str) -> dict[str, str]:
    leaves = {name.removeprefix(now): name for name in fields_within("share_next", now, schema)}
    next_leaves = {name.removeprefix(later): name for name in fields_within("share_next", later, schema)}
    if leaves.keys() != next_leaves.keys():
        raise ValueError(f"share_next: expected {later!r} to have the fields of {now!r}, got {[*next_leaves.values()]}")
    for below, name in leaves.items():
        other = next_leaves[below]
        if schema[name] != schema[other]:
            raise ValueError(f"share_next: expected {other!r} to be as {name!r}, {schema[name]}, got {schema[other]}")
    return {next_leaves[below]: name for below, name in leaves.items()}
