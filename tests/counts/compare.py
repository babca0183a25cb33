# SPDX-License-Identifier: MIT
"""Counts the instructions of the hot paths, and compares them with those that are kept.

    python tests/counts/compare.py PROGRAM [--accept NAME ...]

PROGRAM is what hot_paths.cpp became, run under callgrind. Of each path are kept, a row, the program's own instructions,
and its calls of libraries: what these do, memcpy above all, is theirs, and another on another processor. Either may
differ by 2 % from what is kept, or a fiftieth of a call; more is to be accepted by name ("all" for all), less as well,
so that what is kept stays true. Where nothing is kept for a compiler and the instructions that it may choose among, it
says so, and compares nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

KEPT = Path(__file__).with_name("kept.json")
TOLERANCE = 0.02


@dataclass(frozen=True)
class Count:
    """What a row takes: instructions of the program itself, and calls of libraries."""

    instructions: float
    calls: float


def count_of(dump: str, program: str, num_rows: int) -> Count:
    """Add up what callgrind wrote down (its manual, "Callgrind Format Specification")."""
    names: dict[str, str] = {}

    def object_of(name: str) -> str:
        number, _, text = name.partition(" ")
        return names.setdefault(number, text)

    instructions = calls = 0
    caller = callee = ""
    is_of_callee = False  # what a call took is its callee's
    for line in dump.splitlines():
        kind, _, rest = line.partition("=")
        if kind == "ob":
            caller = object_of(rest)
        elif kind == "cob":
            callee = object_of(rest)
        elif kind == "cfn":
            callee = callee or caller
        elif kind == "calls":
            calls += int(rest.split()[0]) if caller == program != callee else 0
            callee, is_of_callee = "", True
        elif re.match(r"[+*\d-]", line):
            instructions += int(line.split()[1]) if caller == program and not is_of_callee else 0
            is_of_callee = False
    return Count(round(instructions / num_rows, 2), round(calls / num_rows, 2))


def counted(program: Path) -> tuple[str, dict[str, Count]]:
    """Run the program under callgrind; return what its counts depend on, and the counts by path."""
    with tempfile.TemporaryDirectory() as folder:
        dumps = Path(folder, "dump")
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={dumps}", str(program)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        conditions, *paths = done.stdout.splitlines()
        found = {}
        for i, path in enumerate(paths):
            name, num_rows = path.split()
            dump = Path(f"{dumps}.{i + 1}").read_text()
            assert f"Trigger: Client Request: {name}\n" in dump, path
            found[name] = count_of(dump, str(program), int(num_rows))
    return conditions, found


def differences(kept: dict[str, Count], found: dict[str, Count]) -> dict[str, str]:
    """Tell of each path that is not as it is kept what became of it."""
    told = {}
    for name in sorted(kept.keys() | found.keys()):
        if name not in found:
            told[name] = "is kept, and no longer counted"
        elif name not in kept:
            told[name] = f"is not kept; {found[name].instructions} instructions a row"
        else:
            before, now = kept[name], found[name]
            says = []
            if abs(now.instructions - before.instructions) > TOLERANCE * before.instructions:
                percent = 100 * (now.instructions / before.instructions - 1)
                says.append(f"{before.instructions} instructions a row became {now.instructions} ({percent:+.1f} %)")
            if abs(now.calls - before.calls) > TOLERANCE * max(before.calls, 1):
                says.append(f"{before.calls} calls of libraries a row became {now.calls}")
            if says:
                told[name] = "; ".join(says)
    return told


def read_kept(conditions: str, path: Path = KEPT) -> dict[str, Count]:
    """Return what is kept; nothing where nothing is for these conditions."""
    return {name: Count(*figures) for name, figures in json.loads(path.read_text()).get(conditions, {}).items()}


def keep(conditions: str, found: dict[str, Count], names: list[str], path: Path = KEPT) -> None:
    """Keep what was found, of these paths."""
    everything = json.loads(path.read_text())
    of_conditions = everything.setdefault(conditions, {})
    for name in [*of_conditions, *found] if names == ["all"] else names:
        of_conditions.pop(name, None)
        if name in found:
            of_conditions[name] = [found[name].instructions, found[name].calls]
    everything[conditions] = dict(sorted(of_conditions.items()))
    text = json.dumps(everything, indent=2)
    path.write_text(re.sub(r"\[\s+([\d.]+),\s+([\d.]+)\s+\]", r"[\1, \2]", text) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("program", type=Path)
    parser.add_argument("--accept", nargs="+", default=[], metavar="NAME")
    arguments = parser.parse_args()
    conditions, found = counted(arguments.program.resolve())
    print(f"{conditions}: instructions and calls of libraries, a row")
    for name, count in found.items():
        print(f"  {name:40}{count.instructions:12.2f}{count.calls:8.2f}")
    if empty := [name for name, count in found.items() if count.instructions <= 0]:
        sys.exit(f"no instructions of {', '.join(empty)} were counted")
    if arguments.accept:
        unknown = set(arguments.accept) - {"all", *found, *read_kept(conditions)}
        if unknown:
            sys.exit(f"--accept: no paths of these names: {', '.join(sorted(unknown))}")
        keep(conditions, found, arguments.accept)
    kept = read_kept(conditions)
    if not kept:
        print(f"skipped: nothing is kept for {conditions}; make counts ACCEPT=all would")
        return
    told = differences(kept, found)
    for name, says in told.items():
        print(f"{name}: {says}")
    if told:
        sys.exit(f'To accept them, if this is meant: make counts ACCEPT="{" ".join(told)}"')


if __name__ == "__main__":
    main()
