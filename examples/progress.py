# SPDX-License-Identifier: MIT
"""What a run has seen so far: its clock and its learning curve, which the next run of it goes on with."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from environments import Array
from figures import GREY, ORANGE, SKY_BLUE, Row, new_figure

PARTS = ("environment", "sampling", "gradient", "target update", "validation")  # of a run's time


class Point(NamedTuple):
    """One point of a learning curve."""

    step: int
    seconds: float  # of training until then
    value: float


class Clock:
    """Where the time goes: `clock("sampling")` says that from now on it goes to sampling.

    A GPU works on while Python goes ahead; there the shares are those of the launching thread.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.part: str | None = None
        self.since = 0.0

    def __call__(self, part: str | None) -> None:
        """Stop the part that runs, and start this one; None only stops."""
        now = time.perf_counter()
        if self.part is not None:
            self.seconds[self.part] += now - self.since
        self.part, self.since = part, now

    def total(self) -> float:
        """Return the seconds counted so far."""
        return sum(self.seconds.values())

    def shares(self) -> dict[str, float]:
        """Return each part's share of the time, in [0, 1]."""
        total = self.total() or 1.0
        return {part: seconds / total for part, seconds in self.seconds.items()}

    def __str__(self) -> str:
        return ", ".join(f"{part} {share:.1%}" for part, share in self.shares().items())


@dataclass
class Progress:
    """How far a run has come, and what it has seen; saved with it."""

    totals: Array  # (num_envs,) rewards of the episodes that run
    step: int = 0
    episodes: list[Point] = field(default_factory=list)  # returns in training, with exploration
    validations: list[Point] = field(default_factory=list)  # mean returns without it
    clock: Clock = field(default_factory=Clock)

    def note(self, points: list[Point], value: float) -> None:
        """Add a point to one of the two series."""
        points.append(Point(self.step, self.clock.total(), value))

    def rows(self) -> list[Row]:
        """Return the curve as the rows of a CSV file."""
        named = [("episodes", point) for point in self.episodes] + [
            ("validations", point) for point in self.validations
        ]
        return [
            {"series": series, "step": step, "seconds": f"{seconds:.2f}", "return": f"{value:.3f}"}
            for series, (step, seconds, value) in named
        ]

    def draw(self, title: str, random: float, path: Path) -> None:
        """Draw the curve beside the mean return of a random policy."""
        episodes, validations = (
            np.reshape([(point.step, point.value) for point in points], (-1, 2)).T
            for points in (self.episodes, self.validations)
        )
        figure, axes = new_figure(1, 1, (7, 3.5))
        axes.plot(*episodes, ".", color=SKY_BLUE, markersize=4, label="training episode, with exploration")
        axes.plot(*validations, "o-", color=ORANGE, markersize=4, label="validation, mean of 20 episodes")
        axes.axhline(random, color=GREY, linestyle="--", label="random policy, mean of 20 episodes")
        axes.set(title=title, xlabel="environment steps", ylabel="return (sum of rewards)")
        axes.legend()
        figure.savefig(path)
