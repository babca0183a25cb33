# SPDX-License-Identifier: MIT
"""Answer the questions in experiments/: measure, print the tables, write them as Markdown and JSON.

python bench/run.py                            all that need no GPU, into bench/results (make bench; 20 minutes, 10 GB)
python bench/run.py --quick                    the same, small and short: does all of it run? Printed only
python bench/run.py buffers --only cheetah     experiments whose key contains "cheetah", printed only
python bench/run.py buffers --compare FILE     beside an earlier run's JSON, by what each was measured with
python bench/run.py gpu_soft_update --out OUT  on a GPU, with the torch and the fastreplay that this Python has
"""

from __future__ import annotations

import argparse
import gc
import importlib
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import elsewhere
from experiment import Question, Result, measure
from machine import Disturbance, describe_machine
from render import aligned
from report import Report

FOLDER = Path(__file__).resolve().parent
QUESTIONS = sorted(path.stem for path in (FOLDER / "experiments").glob("[a-z]*.py"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 1 where a question failed, 2 where something that is needed is missing."""
    options = _parse(arguments)
    if len(options.questions) == 1:
        return answer(options.questions[0], options)
    # A process each: one that fails does not stop the others, and none has another's memory and threads.
    failed = [name for name in options.questions if subprocess.run(_command(name, options), check=False).returncode]
    for name in failed:
        sys.stderr.write(f"{name} failed\n")
    return 1 if failed else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("questions", nargs="*", metavar="question", help=f"of {', '.join(QUESTIONS)}")
    parser.add_argument("--quick", action="store_true", help="small and short; no files, unless --out")
    parser.add_argument("--only", action="append", default=[], help="part of a key; no files, unless --out")
    parser.add_argument("--rounds", type=int, help="rounds a contestant")
    parser.add_argument("--round-ms", type=float, help="length of a round")
    parser.add_argument("--commit", help="named in the report where git cannot tell")
    parser.add_argument("--compare", type=Path, metavar="JSON", help="an earlier run's file, or a folder of such")
    parser.add_argument("--out", type=Path, help="where the files go (bench/results)")
    options = parser.parse_args(arguments)
    if unknown := set(options.questions) - set(QUESTIONS):
        parser.error(f"question: expected {', '.join(QUESTIONS)}, got {', '.join(sorted(unknown))}")
    options.questions = options.questions or [name for name in QUESTIONS if not name.startswith("gpu_")]
    if options.out is None and not options.quick and not options.only:
        options.out = FOLDER / "results"
    return options


def _command(name: str, options: argparse.Namespace) -> list[str]:
    names = ("rounds", "round_ms", "commit", "compare", "out")
    given = {name.replace("_", "-"): getattr(options, name) for name in names}
    return [
        *(sys.executable, str(FOLDER / "run.py"), name),
        *(["--quick"] if options.quick else []),
        *(f"--only={part}" for part in options.only),
        *(f"--{key}={value}" for key, value in given.items() if value is not None),
    ]


def answer(name: str, options: argparse.Namespace) -> int:
    """Measure one question's experiments and report; what is written after each outlives a time-out."""
    question: Question = importlib.import_module(f"experiments.{name}").QUESTION
    if missing := question.missing():
        sys.stderr.write(f"{name}: {missing}\n")
        return 2
    every = question.experiments(options.quick)
    chosen = [one for one in every if not options.only or any(part in one.key for part in options.only)]
    if not chosen:
        sys.stderr.write(f"{name}: nothing matches; there are {', '.join(one.key for one in every)}\n")
        return 1
    rounds, round_s = question.quick_rounds if options.quick else question.rounds
    rounds = options.rounds or rounds
    round_s = options.round_ms * 1e-3 if options.round_ms else round_s
    each = f" of {round_s * 1e3:g} ms each" if round_s else ""
    header = _header(question, options, f"{rounds} rounds{each}, by turns")
    disturbance, results = Disturbance(), list[Result]()
    report = Report(name, question, header, options.out, options.compare)
    for experiment in chosen:
        sys.stderr.write(f"{name}: {experiment.key}\n")
        results.append(measure(experiment, rounds=rounds, round_s=round_s))
        gc.collect()  # gigabytes, before the next experiment's are made
        header["disturbance"] = str(disturbance)
        report.write(results)
        if options.quick:
            gc.freeze()  # the rivals' modules, which later collections would go through: more than what is measured
    elsewhere.dismiss()
    header["disturbance"] = str(disturbance)  # now that those processes' time counts as ours
    report.draw(results)
    sys.stdout.write(aligned(report.write(results)))
    return 0


def _header(question: Question, options: argparse.Namespace, rounds: str) -> dict[str, str]:
    """Return what a report begins with; sets torch and the C library up for measuring."""
    import torch
    from timing import keep_heap

    torch.set_num_threads(question.num_threads())
    heap = "heap kept" if keep_heap() else "heap as it is"
    header = {
        "date": date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        **question.describe(),
        **describe_machine(question.distributions),
        "method": f"{rounds}; {heap}; {question.method}; results checked before and after",
    }
    return {**header, "commit": options.commit} if options.commit else header


if __name__ == "__main__":
    sys.exit(main())
