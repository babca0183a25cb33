# SPDX-License-Identifier: MIT
"""How much is measured, and the processes that share the work."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from figures import Row
from tqdm import tqdm

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Effort:
    """How long to measure; every figure takes its counts from here."""

    seeds: int
    steps: int  # of one training run
    evaluations: int  # of one training run, evenly spaced
    checkpoint: int  # steps before networks are held fixed and measured
    gradients: int  # whose spread is the variance of the estimate
    budget_s: float  # CPU seconds of a run with fixed time
    repeats: int  # of each timing
    walk: int  # states of the longest cliffwalk


FULL = Effort(seeds=10, steps=3_000, evaluations=15, checkpoint=1_000, gradients=256, budget_s=2.5, repeats=10, walk=16)
# Two of each, without which there is no interval, and a checkpoint within the second episode (of 200 steps).
QUICK = Effort(seeds=2, steps=68, evaluations=2, checkpoint=210, gradients=2, budget_s=0.02, repeats=2, walk=4)


class Workers:
    """Processes of one thread each, which take jobs by turns."""

    def __init__(self, processes: int = 2) -> None:
        context = multiprocessing.get_context("spawn")  # torch does not survive a fork once it has run
        self.pool = ProcessPoolExecutor(processes, context, torch.set_num_threads, (1,))

    def map(self, function: Callable[[Job], Result], jobs: Sequence[Job], label: str) -> list[Result]:
        """Call the function on each job; results in the order of jobs."""
        return list(tqdm(self.pool.map(function, jobs), total=len(jobs), desc=label, unit="run"))

    def rows(self, function: Callable[[Job], list[Row]], jobs: Sequence[tuple[Row, Job]], label: str) -> list[Row]:
        """Call the function on each job, and return all rows, each with what names its job before it."""
        results = self.map(function, [job for _, job in jobs], label)
        return [{**name, **row} for (name, _), found in zip(jobs, results, strict=True) for row in found]
