# SPDX-License-Identifier: MIT
"""What draws under a key, and is given another in every worker process. Knows no buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from fastreplay.support.checks import key_of
from fastreplay.support.living import Living

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Keyed", "key_below", "keyed"]


class Keyed(Protocol):
    """A buffer, or a generator that is no buffer's."""

    def _rekey(self, place: tuple[int, ...]) -> None:
        """Begin again under a key that follows from the one so far and from a place."""


keyed: Living[Keyed] = Living()


def key_below(key: Sequence[int], place: tuple[int, ...]) -> tuple[int, int]:
    """Return the key that follows from another and a place, as `SeedSequence` spawns."""
    return key_of(np.random.SeedSequence(tuple(key), spawn_key=place))
