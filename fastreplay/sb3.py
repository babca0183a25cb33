# SPDX-License-Identifier: MIT
"""Drop-in replay buffers and target updates for Stable-Baselines3, and a DQN that draws by priority."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastreplay.adapters.sb3.accelerate import accelerate
    from fastreplay.adapters.sb3.buffers import DictReplayBuffer, ReplayBuffer
    from fastreplay.adapters.sb3.dqn import DQN
    from fastreplay.adapters.sb3.her import HerReplayBuffer
    from fastreplay.adapters.sb3.n_step import NStepReplayBuffer
    from fastreplay.adapters.sb3.polyak import polyak_update
    from fastreplay.adapters.sb3.prioritized import PrioritizedReplayBuffer, PrioritizedReplayBufferSamples

_MODULES = {
    "DQN": "dqn",
    "DictReplayBuffer": "buffers",
    "HerReplayBuffer": "her",
    "NStepReplayBuffer": "n_step",
    "PrioritizedReplayBuffer": "prioritized",
    "PrioritizedReplayBufferSamples": "prioritized",
    "ReplayBuffer": "buffers",
    "accelerate": "accelerate",
    "polyak_update": "polyak",
}

__all__ = [
    "DQN",
    "DictReplayBuffer",
    "HerReplayBuffer",
    "NStepReplayBuffer",
    "PrioritizedReplayBuffer",
    "PrioritizedReplayBufferSamples",
    "ReplayBuffer",
    "accelerate",
    "polyak_update",
]


def __getattr__(name: str) -> Any:
    """Import Stable-Baselines3 when something of this package is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import stable_baselines3  # noqa: F401
    except ImportError as error:
        found = "" if error.name in {None, "stable_baselines3"} else f" (it is there, and lacks {error.name})"
        raise ImportError(f"fastreplay.sb3 needs Stable-Baselines3: pip install stable-baselines3{found}") from error
    value = getattr(import_module(f"fastreplay.adapters.sb3.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
