# SPDX-License-Identifier: MIT
"""Try of make gpu what needs no card: make gpu-rehearsal, and, of the wheel that is built anyway, make test.

    python tests/cuda/rehearse.py FOLDER --python PYTHON [--libraries DIR] [--wheel WHEEL] [--native]

FOLDER is the pack; with --wheel it becomes one of that wheel alone. PYTHON has torch, NumPy, pytest and Hypothesis, or
finds them in --libraries. Nothing that runs has a network, where the system lets a process be without, and nothing can
import what no GPU machine has. --native compiles the driver too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from card import Card
from pack import digest_of_sources, python_tag, read_pack, seal
from step import Step
from steps import Plan
from try_gpu import run

_ABSENT = ("gymnasium", "stable_baselines3", "torchrl", "tensordict", "tqdm", "tensorboard", "cpprb", "rlox")
_WITHOUT_NETWORK = ("unshare", "--map-root-user", "--net")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", required=True)
    parser.add_argument("--libraries", type=Path)
    parser.add_argument("--wheel", type=Path)
    parser.add_argument("--native", action="store_true")
    options = parser.parse_args(arguments)
    folder = options.folder.absolute()
    if options.wheel:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(options.wheel, folder)
        seal(folder, python_tag(options.python), ())
    pack = read_pack(folder)
    if pack is None:
        sys.stderr.write(f"rehearsal: nothing whole is packed in {folder}\n")
        return 1
    if misfit := pack.misfit(digest_of_sources(), pack.architecture, python_tag(options.python)):
        sys.stderr.write(f"rehearsal: {misfit}\n")
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        plan = Plan(options.python, folder, work, work, Card("none", pack.architecture, 0), pack.commit)
        steps = [
            plan.install([*pack.others, pack.wheel]),
            plan.import_built(says="^cuda_compiled: True" if options.native else "^cuda_compiled: "),
            plan.collect(),
            *(plan.compile_driver() if options.native else []),
            *map(_refusing, plan.benchmarks()),
        ]
        steps = [_as_there(step, plan, options.libraries) for step in steps]
        return run(steps, work, {"commit": pack.commit}, 1800, sys.stdout.write)


def _refusing(step: Step) -> Step:
    """Return a benchmark that is to say that there is no card, and nothing else."""
    command = ["sh", "-c", '"$@"; test $? -eq 2', "sh", *step.command]
    return replace(step, command=command, says="needs a torch that sees an NVIDIA GPU.*")


def _as_there(step: Step, plan: Plan, libraries: Path | None) -> Step:
    """Return a step as on a GPU machine, but for the card: it has time, for here others compute beside."""
    absent = plan.work / "absent"
    absent.mkdir(exist_ok=True)
    for name in _ABSENT:
        (absent / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module named {name}', name='{name}')\n")
    path = os.pathsep.join(map(str, [absent, plan.site, *([libraries] if libraries else [])]))
    allowed = subprocess.run([*_WITHOUT_NETWORK, "true"], capture_output=True, check=False).returncode == 0
    prefix = _WITHOUT_NETWORK if allowed else ()
    return replace(
        step,
        command=[*prefix, *step.command],
        limit_s=10 * step.limit_s,
        environment={**plan.environment, **step.environment, "PYTHONPATH": path},
    )


if __name__ == "__main__":
    sys.exit(main())
