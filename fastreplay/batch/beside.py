# SPDX-License-Identifier: MIT
"""What the rows of a minibatch have beside their fields, and which ring they are of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["NOTHING", "Beside"]


class Beside(dict[str, Any]):
    """What the rows of a minibatch have that is no field, by name, and which ring they are of.

    Args:
        values: By name.
        origins: The ring's number, alone in a list that all have whose rows lie in the same memory; none where it is
            not known.
        time_major: Names of those, and of fields, whose steps come first, and then the rows.
    """

    __slots__ = ("origins", "time_major")

    def __init__(
        self,
        values: Iterable[tuple[str, Any]] = (),
        origins: Sequence[int] = (),
        time_major: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(values)
        self.origins = origins
        self.time_major = time_major

    @property
    def origin(self) -> int:
        """The ring's number; 0 where it is not known."""
        return self.origins[0] if self.origins else 0

    def of(self, values: Iterable[Any]) -> Beside:
        """Return other values of the same names and rows, in the same memory."""
        return Beside(zip(self, values, strict=True), self.origins, self.time_major)

    def copied(self, values: Iterable[Any]) -> Beside:
        """Return other values of the same names and rows, in memory of their own."""
        return Beside(zip(self, values, strict=True), [*self.origins], self.time_major)


NOTHING = Beside()
