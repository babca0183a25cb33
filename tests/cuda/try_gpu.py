# SPDX-License-Identifier: MIT
"""Try all of the GPU half on this machine's card: make gpu. Needs Python's standard library, and no network.

    python tests/cuda/try_gpu.py [--wheels .gpu] [--out build/gpu/out] [--build]

Goes on after a step that fails or does not end, on a disk that is full, and where nobody looks any more. What is said
goes to the screen and into --out, where summary.md is written anew after every step. The status is 0 where all went
well, 1 where something did not, 2 where nothing was tried: without a card, beside another run, with nowhere to write.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

from card import Card, find_card
from pack import ROOT, commit_of, digest_of_sources, python_tag, read_pack
from step import Outcome, Step, run_step
from steps import Plan

MOST_S, MOST_WITH_BUILD_S = 300.0, 480.0  # of a whole run
_CUDA = "/usr/local/cuda/bin"  # where the tools lie that no PATH names


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    card = find_card()
    if card is None:
        sys.stderr.write("make gpu: needs an NVIDIA GPU and its driver, and this machine has none\n")
        return 2
    work: Path = options.work
    try:
        turn = _take_turn(work, options.out)
    except OSError as error:
        sys.stderr.write(f"make gpu: {error}\n")
        return 2
    with turn:
        return _try(options, card)


def _take_turn(work: Path, out: Path) -> IO[bytes]:
    """Make the folders of a run, with nothing of a run before; return what keeps others out of them until it is closed.

    Raises:
        OSError: They cannot be had, or another run is at work there.
    """
    for folder in (work, out):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            message = f"{folder} cannot be written to"
            raise PermissionError(message)
    turn = (work / "turn").open("wb")
    try:
        fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        turn.close()
        message = f"another run is at work in {work}"
        raise OSError(message) from None
    if (work / "site").exists():
        shutil.rmtree(work / "site")
    (work / "driver").unlink(missing_ok=True)
    return turn


def _try(options: argparse.Namespace, card: Card) -> int:
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stopped.set())
    os.environ["PATH"] += f":{_CUDA}"
    pack, sources = read_pack(options.wheels), digest_of_sources()
    if pack is None:
        misfit = f"no pack in {options.wheels} (make gpu-pack, where there is a network)"
    else:
        misfit = pack.misfit(sources, card.architecture, python_tag(sys.executable))
    commit = pack.commit if pack is not None and pack.sources == sources else commit_of()
    work: Path = options.work
    plan = Plan(sys.executable, options.wheels, work, options.out, card, commit)
    origin = f"built here: {misfit}" if misfit else "built here, as asked" if options.build else "of the pack"
    header = {
        "card": str(card),
        "commit": f"{commit}, sources {sources}",
        "wheel": origin,
        "began": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
    }
    is_built = options.build or bool(misfit)
    most_s = MOST_WITH_BUILD_S if is_built else MOST_S
    return run(plan.steps(pack, build=is_built), options.out, header, most_s, _show, stopped.is_set)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--wheels", type=Path, default=ROOT / ".gpu", help="what make gpu-pack filled")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu", help="what is installed and built here")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu" / "out", help="what is said")
    parser.add_argument("--build", action="store_true", help="build here, and use no packed wheel")
    options = parser.parse_args(arguments)
    for name in ("wheels", "work", "out"):
        setattr(options, name, getattr(options, name).absolute())
    return options


def _show(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError:  # the pipe or the terminal is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(
    steps: Sequence[Step],
    out: Path,
    header: dict[str, str],
    most_s: float,
    show: Callable[[str], object],
    is_stopped: Callable[[], bool] = lambda: False,
) -> int:
    """Run the steps one after the other, each to the end of its own time and what earlier ones left over.

    Args:
        steps: The steps.
        out: Where the summary and the steps' logs go.
        header: What the summary begins with.
        most_s: Seconds of the whole run, which the steps' own may exceed together.
        show: Takes what is said.
        is_stopped: Is asked a few times a second.

    Returns:
        1 where any failed or was not run, else 0.
    """
    for old in [*(out / step.log for step in steps), *out.glob("*-gpu-*.md"), *out.glob("*-gpu-*.json")]:
        old.unlink(missing_ok=True)
    outcomes: list[Outcome] = []
    ends_by = time.monotonic()
    end = ends_by + most_s
    for step in steps:
        if is_stopped():
            break
        ends_by += step.limit_s
        _write_summary(out, header, outcomes, steps)
        outcomes.append(run_step(step, out, max(1.0, min(ends_by, end) - time.monotonic()), show, is_stopped))
    show("\n" + _write_summary(out, header, outcomes, steps))
    return 0 if len(outcomes) == len(steps) and all(outcome.is_good for outcome in outcomes) else 1


def _write_summary(out: Path, header: dict[str, str], outcomes: Sequence[Outcome], steps: Sequence[Step]) -> str:
    """Write summary.md: the table of steps, and the benchmarks' reports so far. Return the table."""
    lines = [*(f"- {name}: {value}" for name, value in header.items()), ""]
    lines += ["| step | | s | of | said |", "|---|---|---:|---:|---|"]
    for outcome in outcomes:
        note = outcome.note.replace("|", "\\|").strip()
        word = "not run" if outcome.is_passed_over else "ok" if outcome.is_good else "**failed**"
        lines.append(f"| {outcome.step.name} | {word} | {outcome.took_s:.1f} | {outcome.step.limit_s:.0f} | {note} |")
    lines += [f"| {step.name} | not run | | {step.limit_s:.0f} | |" for step in steps[len(outcomes) :]]
    table = "\n".join(lines) + "\n"
    reports = [path.read_text(encoding="utf-8") for path in sorted(out.glob("*-gpu-*.md"))]
    new = out / "summary.new"  # in the other's place once it is whole
    try:
        new.write_text("\n".join(["# make gpu\n", table, *reports]), encoding="utf-8")
        new.replace(out / "summary.md")
    except OSError as error:
        return f"{table}\nsummary.md is not up to date: {error}\n"
    return table


if __name__ == "__main__":
    sys.exit(main())
