# SPDX-License-Identifier: MIT
"""Drop-in replay buffers for CleanRL's scripts: one import changed."""

from __future__ import annotations

from fastreplay.adapters.cleanrl import Autoreset, ReplayBuffer, ReplayBufferSamples
from fastreplay.adapters.cleanrl_prioritized import PrioritizedBatch, PrioritizedReplayBuffer

__all__ = ["Autoreset", "PrioritizedBatch", "PrioritizedReplayBuffer", "ReplayBuffer", "ReplayBufferSamples"]
