# SPDX-License-Identifier: MIT
"""One step of a run: a command that has a time limit, and what came of it. Knows nothing of what it does."""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_MOST_KEPT = 1 << 20  # bytes of a step's output that go into its file
_GRACE_S = 2.0  # from asking a command to end until it is made to


@dataclass(frozen=True)
class Step:
    """What is run.

    Attributes:
        name: What the summary calls it.
        command: With its arguments.
        limit_s: Seconds that it is given; those that earlier steps left over come on top.
        log: The file of the output folder that what it says goes into, at the end.
        environment: Beside the one of the run.
        says: A pattern that a success has said. What it matched last stands in the summary.
        needs: A program without which it is passed over: what it would tell is not missed then.
    """

    name: str
    command: Sequence[str]
    limit_s: float
    log: str
    environment: Mapping[str, str] = field(default_factory=dict)
    says: str = ""
    needs: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of a step.

    Attributes:
        step: The step.
        is_good: Whether it ended by itself, well, and said what it should, or was passed over.
        took_s: Seconds.
        note: What it said, or why it is not good.
    """

    step: Step
    is_good: bool
    took_s: float
    note: str
    is_passed_over: bool = False


def run_step(
    step: Step, folder: Path, limit_s: float, show: Callable[[str], object], is_stopped: Callable[[], bool]
) -> Outcome:
    """Run a step to its end, or to the end of its time, or until the run is stopped; all that it started ends with it.

    Args:
        step: The step.
        folder: Where its log goes.
        limit_s: Its time.
        show: Takes what it says, too.
        is_stopped: Is asked a few times a second.
    """
    start = time.monotonic()
    said = f"== {step.name}\n"
    show(said)
    environment = {**os.environ, **step.environment}
    if step.needs and shutil.which(step.needs) is None:
        note = f"no {step.needs} here"
        show(f"{note}\n")
        return Outcome(step, True, 0.0, note, is_passed_over=True)
    log = _appending(folder / step.log)
    log(said)
    try:
        process = subprocess.Popen(
            step.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=environment, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        for sink in (show, log):
            sink(f"{error}\n")
        return Outcome(step, False, time.monotonic() - start, str(error))
    try:
        output = _follow(process, start + limit_s, is_stopped, show, log)
    finally:
        is_late = _end(process)
    took_s = time.monotonic() - start
    if is_late:
        why = "stopped" if is_stopped() else f"no end within {limit_s:.0f} s"
        return Outcome(step, False, took_s, f"{why}; last: {_last_line(output)}")
    if process.returncode:
        return Outcome(step, False, took_s, f"status {process.returncode}; last: {_last_line(output)}")
    found = [match.group() for match in re.finditer(step.says, output, re.MULTILINE)] if step.says else [""]
    if not found:
        return Outcome(step, False, took_s, f"did not say {step.says}; last: {_last_line(output)}")
    return Outcome(step, True, took_s, found[-1])


def _appending(path: Path) -> Callable[[str], object]:
    """Return what writes to the end of a file, as far as the disk has room: the steps that are left are worth more."""

    def write(text: str) -> None:
        with suppress(OSError), path.open("a", encoding="utf-8", errors="replace") as file:
            file.write(text)

    return write


def _follow(
    process: subprocess.Popen[bytes], until: float, is_stopped: Callable[[], bool], *sinks: Callable[[str], object]
) -> str:
    """Hand on what a process says until it ends or its time does; return the last of it."""
    assert process.stdout is not None
    kept, written = "", 0
    os.set_blocking(process.stdout.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while time.monotonic() < until and not is_stopped():
            # What it left running may hold the pipe open for ever.
            has_ended = process.poll() is not None
            ready = selector.select(0 if has_ended else max(0.0, min(0.2, until - time.monotonic())))
            block = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
            if (ready and not block) or (has_ended and not ready):
                break
            text = block.decode(errors="replace")
            kept, written = (kept + text)[-_MOST_KEPT:], written + len(block)
            if written <= _MOST_KEPT:
                for sink in sinks:
                    sink(text)
    return kept


def _end(process: subprocess.Popen[bytes]) -> bool:
    """End a process and all of its session that is left; return whether it had to be ended."""
    try:
        process.wait(0.5)  # one that has closed its output is about to end
        is_late = False
    except subprocess.TimeoutExpired:
        is_late = True
        _signal(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    _signal(process, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
    return is_late


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][-200:] if lines else "nothing"
