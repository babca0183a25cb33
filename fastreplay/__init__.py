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
from fastreplay.buffer.verify import Checkpoint, describe, verify
from fastreplay.buffer.windows import Sequence, Window
from fastreplay.buffer.workers import worker_init_fn
from fastreplay.checkpoint.save import Saved
from fastreplay.checkpoint.save_handle import SaveHandle
from fastreplay.info import BackendInfo, backend_info
from fastreplay.schema.schema import Field, Schema
from fastreplay.support.threads import get_num_threads, set_num_threads

if TYPE_CHECKING:
    from fastreplay.target.functional import hard_update_, soft_update_
    from fastreplay.target.soft_update import SoftUpdate

__all__ = [
    "BackendInfo",
    "Checkpoint",
    "Epochs",
    "Field",
    "Loader",
    "Minibatch",
    "NStep",
    "Priorities",
    "Prioritized",
    "PriorityUpdate",
    "ReplayBuffer",
    "RngState",
    "Sampler",
    "SamplerStats",
    "SaveHandle",
    "Saved",
    "Schema",
    "Sequence",
    "SoftUpdate",
    "Stats",
    "TrajectoryStats",
    "Uniform",
    "Window",
    "backend_info",
    "describe",
    "get_num_threads",
    "hard_update_",
    "set_num_threads",
    "soft_update_",
    "verify",
    "worker_init_fn",
]
__version__ = "0.1.0"

_NEED_TORCH = {"SoftUpdate": "soft_update", "hard_update_": "functional", "soft_update_": "functional"}


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for: buffers of NumPy arrays do without."""
    if name not in _NEED_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"fastreplay.target.{_NEED_TORCH[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_NEED_TORCH})
