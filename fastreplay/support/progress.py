# SPDX-License-Identifier: MIT
"""How far long work has come, for whoever waits at a terminal."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Bar", "Progress", "progress_of"]

Progress: TypeAlias = "bool | Callable[[int, int], object]"

# What takes less is over before it is read.
_SILENT_S, _EVERY_S = 1.0, 0.1
_WIDTH = 30


def progress_of(progress: object, what: str) -> Callable[[int, int], object]:
    """Return what is told how many of how many are done.

    Raises:
        TypeError: It is neither a bool nor callable.
    """
    if isinstance(progress, bool):
        return Bar(what) if progress else _nobody
    if not callable(progress):
        raise TypeError(f"progress: expected a bool or a function of (done, total), got {type(progress).__name__}")
    return progress


def _nobody(_done: int, _total: int) -> None:
    """Tell nobody."""


class Bar:
    """A bar on standard error, if that is a terminal, of work that takes longer than a second.

    Args:
        what: Stands before it.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._since = self._drawn = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Draw it, but not too often."""
        now = time.monotonic()
        stream, is_last = sys.stderr, done >= total
        has_begun = self._drawn > self._since
        if now - self._since < _SILENT_S or (now - self._drawn < _EVERY_S and not is_last):
            return
        if (is_last and not has_begun) or stream is None or not stream.isatty():
            return
        self._drawn = now
        share = min(1.0, done / max(1, total))
        filled = round(_WIDTH * share)
        rate = done / (now - self._since)
        bar = "#" * filled + "." * (_WIDTH - filled)
        line = f"\r{self._what} [{bar}] {share:4.0%} {done:,} of {total:,}, {rate:,.0f}/s"
        stream.write(line + ("\n" if is_last else ""))
        stream.flush()
