# SPDX-License-Identifier: MIT
"""How a buffer's transitions follow each other, on its way through pickle and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastreplay.checkpoint.pieces import checked_ticket

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastreplay import _core
    from fastreplay.buffer.lanes import Lanes

__all__ = ["Links", "SavedLinks", "checked_links", "put_links"]

_MOST_STATE = 4


class SavedLinks(NamedTuple):
    """Lanes and links of transitions, from one ticket on; those of others are not known."""

    first: int
    lanes: NDArray[np.uint32]
    links: NDArray[np.uint8]  # what came before and after, as the core says it
    skips_resets: bool
    states: NDArray[np.uint8]  # where each lane stands
    ends: NDArray[np.uint64]  # one past its newest ticket then

    def check(self, lanes: Lanes) -> None:
        """Refuse what is of more lanes than there are.

        Raises:
            ValueError: It is.
        """
        _check_lanes(self.lanes, lanes)
        if len(self.states) != lanes.core.num_lanes:
            raise ValueError(f"links: expected the states of {lanes.core.num_lanes} lanes, got {len(self.states)}")

    def lanes_from(self, first: int, columns: tuple[NDArray[Any], ...]) -> NDArray[np.int64]:
        """Return the lanes of the transitions in columns, from another ticket on; 0 for those that are not known."""
        lanes = np.zeros(len(columns[0]), np.int64)
        known = self.lanes[max(0, first - self.first) :]
        begin = max(0, self.first - first)
        known = known[: max(0, len(lanes) - begin)]
        lanes[begin : begin + len(known)] = known
        return lanes

    def restore(self, lanes: Lanes) -> None:
        """Link the transitions of a ring that nobody else uses."""
        put_links(lanes, self.first, self.lanes, self.links)
        lanes.core.skips_resets = self.skips_resets
        lanes.core.link_restored(self.first, self.first + len(self.lanes))
        lanes.core.restore_states(self.states, self.ends)


class Links:
    """The links of a buffer, read when they are pickled: after its transitions, so that none is too new to have one.

    Distances are not saved: they follow from the order of a lane's transitions.

    Args:
        ring: Where the transitions lie.
        lanes: Its lanes.
    """

    def __init__(self, ring: _core.Ring, lanes: Lanes) -> None:
        self._ring = ring
        self._lanes = lanes

    def read(self) -> SavedLinks:
        """Return the links of the moment."""
        core = self._lanes.core
        first, end = self._ring.window()
        lanes, links, oldest = core.save(first, end - first)
        num_lost = min(max(oldest - first, 0), end - first)
        return SavedLinks(
            first + num_lost, lanes[num_lost:].copy(), links[num_lost:].copy(), core.skips_resets, *core.save_states()
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return SavedLinks, tuple(self.read())


def put_links(lanes: Lanes, first: int, numbers: NDArray[np.uint32], links: NDArray[np.uint8]) -> None:
    """Lay down how transitions from a ticket on were linked, in a ring that nobody else uses; `link_restored` follows.

    Raises:
        ValueError: A lane is none; nothing was changed.
    """
    _check_lanes(numbers, lanes)
    lanes.core.restore(first, numbers, links)


def _check_lanes(numbers: NDArray[np.uint32], lanes: Lanes) -> None:
    if len(numbers) and int(numbers.max()) >= lanes.core.num_lanes:
        raise ValueError(f"links: expected lanes in [0, {lanes.core.num_lanes}), got {int(numbers.max())}")


def checked_links(links: object) -> SavedLinks:
    """Return what a pickle says of links.

    Raises:
        ValueError: It is malformed.
    """
    if isinstance(links, Links):  # of a copy, which is made without pickling
        return links.read()
    if not isinstance(links, SavedLinks):
        raise ValueError(f"links: expected SavedLinks, got {type(links).__name__}")
    arrays: tuple[tuple[str, Any, Any], ...] = (
        ("lanes", links.lanes, np.uint32),
        ("links", links.links, np.uint8),
        ("states", links.states, np.uint8),
        ("ends", links.ends, np.uint64),
    )
    for name, values, dtype in arrays:
        if not isinstance(values, np.ndarray) or values.dtype != dtype or values.ndim != 1:
            raise ValueError(f"links: expected {name} as an array (n,) of {np.dtype(dtype)}")
    if len(links.lanes) != len(links.links):
        raise ValueError(f"links: expected as many lanes as links, got {len(links.lanes)} and {len(links.links)}")
    if len(links.states) != len(links.ends) or (links.states > _MOST_STATE).any():
        raise ValueError(f"links: expected states up to {_MOST_STATE}, and as many tickets, got {links.states}")
    if not isinstance(links.skips_resets, bool):
        raise ValueError(f"links: expected a bool of skips_resets, got {links.skips_resets!r}")
    checked_ticket("links", links.first)
    return links
