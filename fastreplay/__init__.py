# SPDX-License-Identifier: MIT
"""Replay buffers for deep reinforcement learning: a native ring, torch and NumPy minibatches."""

from __future__ import annotations

try:
    from fastreplay import _core as _core
    from fastreplay import _fastpath as _fastpath
except ImportError as error:
    raise ImportError(
        f"{error}. The native modules of fastreplay are missing or do not fit this Python: build them with "
        "`pip install .` (or `make`) from the source tree, and do not import the bare source folder."
    ) from error

from fastreplay._backend import BackendInfo, backend_info
from fastreplay.buffer import ReplayBuffer, RngState, Stats
from fastreplay.minibatch import Minibatch
from fastreplay.schema import Field, Schema

__all__ = ["BackendInfo", "Field", "Minibatch", "ReplayBuffer", "RngState", "Schema", "Stats", "backend_info"]
__version__ = "0.1.0"
