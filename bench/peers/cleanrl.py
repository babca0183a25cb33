# SPDX-License-Identifier: MIT
"""CleanRL's prioritized buffer of n-step transitions, and ours in its place.

It is part of a script, which no package has: `CLEANRL_RAINBOW` names a copy of its `rainbow_atari.py`. Of that only the
buffer is run, as the script imports environments and more.
"""

from __future__ import annotations

import ast
import collections
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from absence import AbsentError

import fastreplay.cleanrl

BATCH = 32
ALPHA = 0.5  # these three as the script has them
BETA = 0.4
N_STEP = 3
_NAMES = ("PrioritizedBatch", "SumSegmentTree", "MinSegmentTree", "PrioritizedReplayBuffer")


class Rainbow:
    """A buffer of `rainbow_atari.py`, full, as the script uses it.

    Args:
        maker: "cleanrl" or "fastreplay".
        capacity: Transitions.
        obs_shape: Of the observations. Their first byte is the transition's number, modulo 251.

    Raises:
        AbsentError: There is no copy of CleanRL's script.
    """

    def __init__(self, maker: Literal["cleanrl", "fastreplay"], capacity: int, obs_shape: tuple[int, ...]) -> None:
        made_by: Any = fastreplay.cleanrl.PrioritizedReplayBuffer if maker == "fastreplay" else _theirs()
        self.capacity = capacity
        self.buffer = made_by(capacity, obs_shape, "cpu", N_STEP, 0.99, ALPHA, BETA)
        frames = np.zeros((capacity + N_STEP, 1, *obs_shape), np.uint8)
        frames.reshape(len(frames), -1)[:, 0] = np.arange(len(frames)) % 251
        for step in range(capacity + N_STEP - 1):
            # The script has arrays of one in place of numbers, which NumPy 2.5 no longer stores where CleanRL does.
            self.buffer.add(frames[step], 1, 1.0, frames[step + 1], False)
        self._errors = np.random.default_rng(1).exponential(size=(64, BATCH)).astype(np.float32) + np.float32(0.01)
        self._turn = 0

    def step(self) -> Any:
        """Draw a minibatch, and give its transitions other priorities."""
        drawn = self.buffer.sample(BATCH)
        self._turn = (self._turn + 1) % 64
        self.buffer.update_priorities(drawn.indices, self._errors[self._turn])
        return drawn

    def check(self) -> None:
        """Check rows and weights, and that a draw follows the priorities.

        Raises:
            AssertionError: They are others.
        """
        drawn = self.buffer.sample(BATCH)
        indices = np.array(drawn.indices)
        assert drawn.observations.shape[0] == BATCH
        seen = drawn.observations.reshape(BATCH, -1)[:, 0].numpy()
        assert (seen == indices % 251).all(), "the observations are other transitions'"
        assert float(drawn.weights.max()) == 1, "the largest weight is not 1"
        assert torch.isfinite(drawn.weights).all()
        self.buffer.update_priorities(drawn.indices, np.full(BATCH, 1e12, np.float32))
        share = float(np.isin(self.buffer.sample(BATCH).indices, indices).mean())
        self.buffer.update_priorities(drawn.indices, np.ones(BATCH, np.float32))
        assert share > 0.8, "what has a large error is drawn as before"


def _theirs() -> Any:
    """Run the part of CleanRL's script that has the buffer, and return its class."""
    path = os.environ.get("CLEANRL_RAINBOW", "")
    if not path:
        reason = "no package has CleanRL's script, and CLEANRL_RAINBOW does not name a copy of its rainbow_atari.py"
        raise AbsentError(reason)
    script = ast.parse(Path(path).read_text())
    kept = [node for node in script.body if _name_of(node) in _NAMES]
    names: dict[str, Any] = {"np": np, "torch": torch, "collections": collections, "deque": collections.deque}
    exec(compile(ast.Module(kept, []), path, "exec"), names)
    return names["PrioritizedReplayBuffer"]


def _name_of(node: ast.stmt) -> str:
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return node.name if isinstance(node, ast.ClassDef) else ""
