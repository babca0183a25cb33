# SPDX-License-Identifier: MIT
"""Stable-Baselines3's SAC on fastreplay's buffer and target update, beside SB3's own.

    python examples/sb3_dropin.py                        # Pendulum-v1, under a minute
    python examples/sb3_dropin.py --steps 5000 --seed 1

Trains twice from the same seed, once as SB3 does and once with the line marked below, and compares every
parameter of the two policies. Exits with 1 if any bit differs.

Sources:
    Haarnoja et al. 2018, Soft actor-critic. https://arxiv.org/abs/1801.01290
    Raffin et al. 2021, Stable-Baselines3: reliable reinforcement learning implementations, JMLR 22 (268).
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.sac import sac
from tqdm import tqdm

import fastreplay.sb3


class Progress(BaseCallback):
    """A progress bar, one step at a time."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.bar: tqdm[Any] = tqdm(desc=name, unit="step", disable=not sys.stderr.isatty())

    def _on_training_start(self) -> None:
        self.bar.reset(total=self.locals["total_timesteps"])

    def _on_step(self) -> bool:
        self.bar.update(self.training_env.num_envs)
        return True

    def _on_training_end(self) -> None:
        self.bar.close()


def timed(owner: Any, method: str, spent: list[float]) -> Any:
    """Return a patch of a method that notes the seconds of each call."""
    function = getattr(owner, method)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent.append(time.perf_counter() - start)

    return patch.object(owner, method, wrapper)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train SB3's SAC with its own buffer and with fastreplay's.")
    parser.add_argument("--env", default="Pendulum-v1", help="Gymnasium environment (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1500, help="environment steps of each run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of both runs (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.steps < 1:
        parser.error(f"--steps: expected at least 1, got {arguments.steps}")
    return arguments


def train(name: str, env: str, steps: int, seed: int, acceleration: AbstractContextManager[Any]) -> SAC:
    """Train one agent, and print where the time went."""
    # The one changed line of a script would be:  fastreplay.sb3.accelerate()
    # Or, for the buffer alone:                   SAC(..., replay_buffer_class=fastreplay.sb3.ReplayBuffer)
    buffer: list[float] = []
    update: list[float] = []
    with acceleration, ExitStack() as patches:
        model = SAC("MlpPolicy", env, seed=seed, device="cpu")
        for owner, method, spent in (
            (model.replay_buffer, "add", buffer),
            (model.replay_buffer, "sample", buffer),
            (sac, "polyak_update", update),
        ):
            patches.enter_context(timed(owner, method, spent))
        start = time.perf_counter()
        model.learn(steps, callback=Progress(name))
        seconds = time.perf_counter() - start
    print(f"{name:>10}: {seconds:6.2f} s, of which buffer {sum(buffer):5.2f} s, target update {sum(update):5.2f} s")
    return model


def main() -> None:
    """Train twice, and compare."""
    arguments = parse_args()
    torch.set_num_threads(1)  # so that nothing but the buffer and the update differs
    settings = arguments.env, arguments.steps, arguments.seed
    theirs = train("SB3", *settings, nullcontext())
    ours = train("fastreplay", *settings, fastreplay.sb3.accelerate())
    first, second = theirs.policy.state_dict(), ours.policy.state_dict()
    # Bytes, since that also tells -0.0 from 0.0 and compares NaN.
    differing = [name for name in first if first[name].numpy().tobytes() != second[name].numpy().tobytes()]
    if differing:
        sys.exit(f"{len(differing)} of {len(first)} parameter tensors differ, the first: {differing[0]}")
    print(f"Both runs end in the same {sum(tensor.numel() for tensor in first.values()):,} parameters, bit for bit.")


if __name__ == "__main__":
    main()
