# SPDX-License-Identifier: MIT
"""What `make test` tries a share of, others with each commit; wherever FASTREPLAY_TURN is not set, everything runs."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:  # mutants are tried before pytest is installed
    import pytest

T = TypeVar("T")


def turn() -> int | None:
    """Return the number that says which shares are due, that of commits; None where all are."""
    given = os.environ.get("FASTREPLAY_TURN", "")
    return int(given) if given else None


def share(items: list[T], count: int) -> list[T]:
    """Return every so many of the items, beginning elsewhere with each turn; all of them without turns."""
    at = turn()
    return items if at is None else items[at % count :: count]


def by_turns(due: int, count: int) -> pytest.MarkDecorator:
    """Return the mark of a test that runs with one turn of so many."""
    import pytest

    at = turn()
    return pytest.mark.skipif(at is not None and at % count != due, reason=f"with {count} commits once")


def apart(items: list[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Part the tests, of those marked `share(N)` every N-th case, from what others with later commits."""
    at, met = turn(), Counter[str]()
    due: list[pytest.Item] = []
    later: list[pytest.Item] = []
    for item in items:
        mark = item.get_closest_marker("share")
        if mark is None or at is None:
            due.append(item)
            continue
        name = item.nodeid.partition("[")[0]
        (due if (met[name] + at) % mark.args[0] == 0 else later).append(item)
        met[name] += 1
    return due, later
