# SPDX-License-Identifier: MIT
"""What `make test` tries a share of, others with each commit, so that some commits have it all."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")


def share(items: list[T], count: int) -> list[T]:
    """Return every so many of the items, beginning elsewhere with each commit; all of them with FASTREPLAY_LONG."""
    return items if "FASTREPLAY_LONG" in os.environ else items[num_commits() % count :: count]


def by_turns(turn: int, count: int) -> pytest.MarkDecorator:
    """Return the mark of a test that runs with every so many commits only; always with FASTREPLAY_LONG."""
    is_due = "FASTREPLAY_LONG" in os.environ or num_commits() % count == turn
    return pytest.mark.skipif(not is_due, reason=f"with {count} commits once; FASTREPLAY_LONG=1 runs it")


@cache
def num_commits() -> int:
    """Return how many commits there are up to this one; 0 where that is not known."""
    call = ("git", "-C", str(Path(__file__).parent), "rev-list", "--count", "HEAD")
    try:
        return int(subprocess.run(call, capture_output=True, text=True, check=True).stdout)
    except (OSError, subprocess.CalledProcessError):
        return 0
