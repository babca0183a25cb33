# SPDX-License-Identifier: MIT
# ruff: noqa: RUF001  the signs of the printed table
"""What is measured, and what it must reach. Knows no buffer and no clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from judging import Target
from workloads import WORKLOADS, Columns, Transition, Workload, steps, transitions

Kind = Literal["add", "extend", "sample"]

ADD_ROWS = 256  # transitions that one timed call of `add` goes through
EXTEND_BLOCKS = 16  # blocks that one timed call of `extend` goes through


@dataclass(frozen=True)
class Work:
    """One row of the table.

    Attributes:
        num_rows: Transitions of one call.
    """

    kind: Kind
    workload: Workload
    num_rows: int
    targets: tuple[Target, ...]

    @property
    def key(self) -> str:
        return f"{self.kind}-{self.workload.name}"

    @property
    def title(self) -> str:
        verb = {"add": "`add`", "extend": f"`extend` ×{self.num_rows}"}
        return f"{verb.get(self.kind, f'`sample({self.num_rows})`')} {self.workload.name}"

    @property
    def call_bytes(self) -> int:
        """Bytes of transitions that one call moves."""
        return self.num_rows * self.workload.row_bytes


_OUT = "fastreplay-out"
_ADD = (Target(6, "numpy"), Target(15, "sb3"), Target(3, "rlox"))

WORKS: tuple[Work, ...] = (
    Work("add", WORKLOADS["pendulum"], 1, _ADD),
    Work(
        "sample",
        WORKLOADS["pendulum"],
        64,
        (Target(4, "numpy"), Target(4, "cpprb"), Target(2, "rlox")),
    ),
    Work("add", WORKLOADS["cheetah"], 1, _ADD),
    Work("extend", WORKLOADS["cheetah"], 64, (Target(4, "best"),)),
    Work(
        "sample",
        WORKLOADS["cheetah"],
        256,
        (
            Target(5, "numpy"),
            Target(5, "cpprb"),
            Target(2.2, "rlox"),
            Target(6, "numpy", _OUT),
            Target(6, "cpprb", _OUT),
            Target(2.7, "rlox", _OUT),
            # The bare C++ gather, and our own gather alone: ours may take so many times as long.
            Target(1.35, "floor", is_ceiling=True),
            Target(1.15, "floor", _OUT, is_ceiling=True),
            Target(1.35, "kernel", is_ceiling=True),
            Target(1.15, "kernel", _OUT, is_ceiling=True),
        ),
    ),
    Work("sample", WORKLOADS["humanoid"], 256, (Target(1.6, "best"),)),
    Work("sample", WORKLOADS["atari"], 32, (Target(1.4, "best"),)),
)


def add_rows(workload: Workload) -> list[Transition]:
    """Return the transitions that a timed `add` goes through."""
    return transitions(workload, np.arange(ADD_ROWS))


def extend_blocks(workload: Workload, num_rows: int) -> list[Columns]:
    """Return the blocks of transitions that a timed `extend` goes through."""
    numbers = np.arange(EXTEND_BLOCKS * num_rows).reshape(EXTEND_BLOCKS, num_rows)
    return [steps(workload, block) for block in numbers]
