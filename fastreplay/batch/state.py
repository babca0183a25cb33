# SPDX-License-Identifier: MIT
"""The state of a generator: what its next minibatches follow from, to be saved and set again."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, TypedDict, cast

if TYPE_CHECKING:
    from typing_extensions import NotRequired

    EpochState = tuple[int, int, int, int]  # epoch, its first ticket, its size, how many had their turn

__all__ = [
    "Counters",
    "EpochState",
    "RngState",
    "checked_counters",
    "checked_mixture_state",
    "checked_rng_state",
]


class RngState(TypedDict):
    """The generator's whole state: its key and the number of sample calls made; in epochs, how far they have got.

    Of a mixture, the number of all its rows in place of the calls, and its members' states.
    """

    key: list[int]
    calls: int
    epoch: NotRequired[EpochState]
    members: NotRequired[list[RngState]]


def checked_mixture_state(state: object, count: int) -> tuple[tuple[int, int], int, list[RngState]]:
    """Return the key, the number of rows, and the states of so many members.

    Raises:
        ValueError: It is no state of such a mixture.
    """
    try:
        values = cast("RngState", state)
        members = list(values["members"])
        key, rows, _ = checked_rng_state({"key": values["key"], "calls": values["calls"]})
        if len(members) != count:
            raise ValueError("other members")
    except (LookupError, TypeError, ValueError) as error:
        form = f"{{'key': [int, int], 'calls': int, 'members': [...]}} of {count} members"
        raise ValueError(f"rng_state: expected {form}, got {state!r}") from error
    for member in members:
        checked_rng_state(member)
    return key, rows, members


class Counters(TypedDict):
    """What a generator has counted."""

    sampled: int
    redraws: int
    without_mass: int


def checked_counters(counters: object) -> Counters:
    """Return counters.

    Raises:
        ValueError: They are none.
    """
    names = Counters.__required_keys__
    if (
        not isinstance(counters, dict)
        or counters.keys() != names
        or not all(type(counters[name]) is int and 0 <= counters[name] < 2**63 for name in names)
    ):
        raise ValueError(f"counters: expected counts of {', '.join(sorted(names))}, got {counters!r}")
    return cast("Counters", counters)


def checked_rng_state(state: object) -> tuple[tuple[int, int], int, EpochState | None]:
    """Return the key, the number of calls, and how far the epochs have got.

    Raises:
        ValueError: It is no state of a generator.
    """
    try:
        values = cast("RngState", state)
        first, second = map(operator.index, values["key"])
        calls = operator.index(values["calls"])
        epoch: Any = None if "epoch" not in values else tuple(map(operator.index, values["epoch"]))
        if not all(0 <= number < 2**64 for number in (first, second, calls, *(epoch or ()))):
            raise ValueError("not 64-bit numbers")
        if epoch is not None and (len(epoch) != 4 or epoch[3] > epoch[2] or epoch[1] + epoch[2] >= 2**63):
            raise ValueError("no epoch")
        if "members" in values:
            raise ValueError("a mixture's")
    except (LookupError, TypeError, ValueError) as error:
        form = "{'key': [int, int], 'calls': int}, in epochs with 'epoch': (epoch, first ticket, size, position)"
        raise ValueError(f"rng_state: expected {form}, got {state!r}") from error
    return (first, second), calls, epoch
