# SPDX-License-Identifier: MIT
"""Replay buffers for deep reinforcement learning: a native ring, torch and NumPy minibatches."""

from __future__ import annotations

try:
    from fastreplay import _core as _core
    from fastreplay.buffer import insert as insert
except ImportError as error:
    raise ImportError(
        f"{error}. The native modules of fastreplay are missing or do not fit this Python: build them with "
        "`pip install .` (or `make`) from the source tree, and do not import the bare source folder."
    ) from error

from typing import TYPE_CHECKING, Any

from fastreplay.batch.loader import Loader
from fastreplay.batch.minibatch import Minibatch
from fastreplay.batch.state import RngState
from fastreplay.buffer.draw import Epochs, Prioritized, Uniform
from fastreplay.buffer.n_step import NStep
from fastreplay.buffer.priorities import Priorities, PriorityUpdate
from fastreplay.buffer.replay_buffer import ReplayBuffer
from fastreplay.buffer.sampler import Sampler
from fastreplay.buffer.state import SamplerStats, Stats, TrajectoryStats
from fastreplay.buffer.windows import Sequence, Window
from fastreplay.buffer.workers import worker_init_fn
from fastreplay.info import BackendInfo, backend_info
from fastreplay.schema.schema import Field, Schema
from fastreplay.support.threads import get_num_threads, set_num_threads

if TYPE_CHECKING:
    from fastreplay.buffer.filling import LoadedData
    from fastreplay.buffer.from_arrays import from_arrays
    from fastreplay.buffer.mixture import Mixture
    from fastreplay.buffer.verify import Checkpoint, describe, verify
    from fastreplay.buffer.written import WrittenData
    from fastreplay.checkpoint.save import SavedRange
    from fastreplay.checkpoint.save_handle import SaveHandle
    from fastreplay.target.functional import hard_update_, soft_update_
    from fastreplay.target.soft_update import SoftUpdate

__all__ = [
    "BackendInfo",
    "Checkpoint",
    "Epochs",
    "Field",
    "LoadedData",
    "Loader",
    "Minibatch",
    "Mixture",
    "NStep",
    "Priorities",
    "Prioritized",
    "PriorityUpdate",
    "ReplayBuffer",
    "RngState",
    "Sampler",
    "SamplerStats",
    "SaveHandle",
    "SavedRange",
    "Schema",
    "Sequence",
    "SoftUpdate",
    "Stats",
    "TrajectoryStats",
    "Uniform",
    "Window",
    "WrittenData",
    "backend_info",
    "describe",
    "from_arrays",
    "get_num_threads",
    "hard_update_",
    "set_num_threads",
    "soft_update_",
    "verify",
    "worker_init_fn",
]
__version__ = "0.1.0"

# What is imported when it is first asked for: what needs torch, which buffers of NumPy arrays do without, files, and
# what draws from several buffers.
_LATE = {
    "Checkpoint": "buffer.verify",
    "LoadedData": "buffer.filling",
    "Mixture": "buffer.mixture",
    "SaveHandle": "checkpoint.save_handle",
    "SavedRange": "checkpoint.save",
    "SoftUpdate": "target.soft_update",
    "WrittenData": "buffer.written",
    "describe": "buffer.verify",
    "from_arrays": "buffer.from_arrays",
    "hard_update_": "target.functional",
    "soft_update_": "target.functional",
    "verify": "buffer.verify",
}


def __getattr__(name: str) -> Any:
    """Import what is wanted now."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"fastreplay.{_LATE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})
