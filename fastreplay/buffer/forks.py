# SPDX-License-Identifier: MIT
"""Which buffers and samplers are alive, and what becomes of them in the child after a fork."""

from __future__ import annotations

import os
from typing import Protocol

from fastreplay.support.living import Living

__all__ = ["living"]


class _Inherited(Protocol):
    """A buffer or a sampler."""

    def _begin_in_child(self) -> None:
        """Make good what other threads had begun, none of which is there to finish it."""


living: Living[_Inherited] = Living()


def _begin_in_child() -> None:
    for one in living:
        one._begin_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)
