# SPDX-License-Identifier: MIT
"""How often the host waited for a device or a thread, and how long."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from fastreplay import _core

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Waits"]


class Waits(_core.Waits):
    """How often the host waited, and how long in all. Has no lock, so that a finalizer may add to it."""

    def during(self, finish: Callable[[], None]) -> None:
        """Call what waits, and note how long."""
        start = perf_counter()
        finish()
        self.add(perf_counter() - start)
