# SPDX-License-Identifier: MIT
"""Drop-in replay buffer for CleanRL's scripts: one import changed, the same minibatches."""

from __future__ import annotations

from fastreplay.adapters.cleanrl import Autoreset, ReplayBuffer, ReplayBufferSamples

__all__ = ["Autoreset", "ReplayBuffer", "ReplayBufferSamples"]
