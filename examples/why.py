# SPDX-License-Identifier: MIT
"""Measure why replay buffers draw minibatches, and why target networks follow slowly: five figures with tables.

    python examples/why.py            # a few minutes on two cores; writes docs/why
    python examples/why.py cost       # one of them
    python examples/why.py --quick    # seconds: the same figures from runs too short to show anything

Each figure is one file in examples/evidence; docs/why.md walks through what they show. Everything that
learns for a number of steps does so from fixed seeds; what is timed differs by machine. Intervals are
95 % Student-t intervals of the mean, over seeds for what is learned, over repeats for what is timed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from evidence import correlation, cost, minibatch, priorities, targets
from evidence.claims import table
from evidence.effort import FULL, QUICK, Workers
from figures import write_csv

DOCS = Path(__file__).parents[1] / "docs" / "why"
FIGURES: dict[str, Any] = {
    "minibatch": minibatch,
    "correlation": correlation,
    "targets": targets,
    "cost": cost,
    "priorities": priorities,
}


def main() -> None:
    """Make the figures one after the other; write and print the table of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", nargs="*", metavar="figure", help=f"which to make: {', '.join(FIGURES)} (all)")
    parser.add_argument("--quick", action="store_true", help="run everything briefly, to see that it works")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the figures and CSV files")
    args = parser.parse_args()
    for name in args.figures:
        if name not in FIGURES:
            parser.error(f"figure: expected one of {', '.join(FIGURES)}, got {name!r}")
    effort = QUICK if args.quick else FULL
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # as in the workers: what is timed does not compete with itself
    start, workers = time.perf_counter(), Workers()
    for name in args.figures or FIGURES:
        measured = FIGURES[name].measure(effort, workers)
        for file, rows in measured.items():
            write_csv(args.out / f"{file}.csv", rows)
        FIGURES[name].draw(*measured.values()).savefig(args.out / f"{name}.png")
        text = table(FIGURES[name].claims(*measured.values()))
        (args.out / f"{name}.md").write_text(text)
        print(f"\n{name}\n\n{text}")
    print(f"{args.out}: figures, tables and their data, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
