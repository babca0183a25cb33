# SPDX-License-Identifier: MIT
"""Build what is needed and measure soft updates on a machine with one NVIDIA GPU.

python bench/gpu_soft_update.py            into bench/results/, about 5 minutes
python bench/gpu_soft_update.py --quick    few rounds, printed only

Needs a driver, nvcc 12.0 or later, a C++20 compiler, and a network for pip where something is missing.
Everything is installed below build/gpu; the interpreter that runs this stays as it is. What it does not
know itself it hands on to gpu_measure.py: --rounds, --round-ms, --commit, --out. Exit status 2:
something that is needed is missing; a line says what.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from gpu_prepare import run

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rebuild", action="store_true", help="build even where this interpreter has a CUDA build")
    options, rest = parser.parse_known_args(arguments)
    return run("gpu_measure.py", {}, rest, rebuild=options.rebuild)


if __name__ == "__main__":
    sys.exit(main())
