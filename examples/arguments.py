# SPDX-License-Identifier: MIT
"""The command line that all algorithms share, and how its numbers are read."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch


def number(low: float, high: float = math.inf) -> Callable[[str], float]:
    """Return what reads a number in [low, high], an int where low is one, and refuses others."""
    kind = type(low)

    def read(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            wanted = f"at least {low}" if high == math.inf else f"a number in [{low}, {high}]"
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text}")
        return value

    read.__name__ = kind.__name__  # argparse names it when the text is no number
    return read


def torch_device(text: str) -> str:
    """Return the name of a device that torch can use, and refuse others."""
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"expected one that torch can use, got {text!r}") from error
    return text


def new_parser(description: str, **defaults: str | float) -> argparse.ArgumentParser:
    """Make a parser with the arguments that all algorithms share, and this algorithm's defaults."""
    parser = argparse.ArgumentParser(
        description=description, usage="%(prog)s [arguments]", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--env", default="Pendulum-v1", help="Gymnasium id")
    add("--steps", type=number(1), default=8_000, help="environment steps to train for, over all environments")
    add("--seed", type=number(0), default=0, help="of the networks, the exploration, the environments, the replay")
    add("--num-envs", type=number(1), default=1, help="environments that step together")
    add("--updates", type=number(1), default=1, help="gradient steps for each step of all environments")
    add("--capacity", type=number(1), default=100_000, help="transitions that the replay buffer holds")
    add("--batch-size", type=number(1), default=128, help="transitions per minibatch")
    add("--hidden", type=number(1), default=64, help="units in each of the two hidden layers")
    add("--learning-rate", type=number(0.0), default=1e-3, help="Adam's step size")
    add("--gamma", type=number(0.0, 1.0), default=0.99, help="discount per step")
    add("--tau", type=number(0.0, 1.0), default=0.01, help="share of the online networks in a soft update")
    add("--warmup", type=number(0), default=1_000, help="steps with random actions before the first update")
    add("--validate-every", type=number(1), default=500, help="steps between validations")
    add("--device", type=torch_device, default="cpu", help="torch device of the networks and minibatches")
    add("--save", type=Path, metavar="FOLDER", help="where the run's files go (default: a folder in runs/)")
    add("--resume", action="store_true", help="go on with the run that was saved there")
    parser.set_defaults(**defaults)
    return parser
