# SPDX-License-Identifier: MIT
"""Build what is needed and measure minibatches on their way to a GPU, on a machine with one.

python bench/gpu_pipeline.py            into bench/results/, about 10 minutes
python bench/gpu_pipeline.py --quick    few rounds and small rings, printed only

Needs a driver, nvcc 12.0 or later, a C++20 compiler, 8 GB of memory, and a network for pip where something is
missing (Stable-Baselines3 and TorchRL are measured too). Everything is installed below build/gpu; the interpreter
that runs this stays as it is. What it does not know itself it hands on to gpu_pipeline_measure.py: --rounds,
--round-ms, --commit, --out. Exit status 2: something that is needed is missing; a line says what.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from gpu_prepare import run

if TYPE_CHECKING:
    from collections.abc import Sequence

_PEERS = {"stable_baselines3": "stable-baselines3", "torchrl": "torchrl"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rebuild", action="store_true", help="build even where this interpreter has a CUDA build")
    options, rest = parser.parse_known_args(arguments)
    return run("gpu_pipeline_measure.py", _PEERS, rest, rebuild=options.rebuild)


if __name__ == "__main__":
    sys.exit(main())
