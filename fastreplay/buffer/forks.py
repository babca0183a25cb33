# SPDX-License-Identifier: MIT
"""Which buffers are alive, and what becomes of them in the child after a fork."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from fastreplay.support.living import Living

if TYPE_CHECKING:
    from fastreplay.buffer.replay_buffer import ReplayBuffer

__all__ = ["living"]

living: Living[ReplayBuffer[Any]] = Living()


def _discard_unfinished() -> None:
    """In the child after a fork, where no other thread is left to finish its insert."""
    for buffer in living:
        buffer._ring.discard_unfinished()
        if buffer._masses is not None:
            buffer._masses.begin_in_child()
        if buffer._mirror is not None:
            buffer._mirror.begin_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_discard_unfinished)
