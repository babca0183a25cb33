# SPDX-License-Identifier: MIT
"""Shows that the concurrency tests can fail: builds each mutant of the core and demands that its test notices.

    python tests/mutants/run.py [--build FOLDER] [--compiler CXX] [--share N] [NAME ...]

NAME picks the mutants whose name contains it; --share takes every N-th of them where FASTREPLAY_TURN is set, beginning
elsewhere with each turn, so that N turns have them all. A mutant counts as caught only when the test program itself
says what is wrong; a crash, a hang or an error of the compiler does not count. The core as it is must pass
in the same setting.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mutants.catalogue import MUTANTS, Mutant
from shares import share

ROOT = Path(__file__).parents[2]
CORE = ROOT / "csrc" / "core"
SOURCES = (
    "batch/block.cpp",
    "batch/convert.cpp",
    "batch/discounted_sums.cpp",
    "batch/draw.cpp",
    "batch/epochs.cpp",
    "batch/helpers.cpp",
    "batch/layout.cpp",
    "batch/priority_draw.cpp",
    "batch/read.cpp",
    "batch/sample.cpp",
    "batch/trajectory_draw.cpp",
    "batch/windows.cpp",
    "lanes/checksums.cpp",
    "lanes/frame_steps.cpp",
    "lanes/frames.cpp",
    "lanes/lanes.cpp",
    "priority/mass.cpp",
    "priority/power.cpp",
    "priority/priorities.cpp",
    "priority/sums.cpp",
    "ring/ring.cpp",
    "steps/step_table.cpp",
    "storage/mapped_file.cpp",
    "storage/paging.cpp",
    "storage/record_layout.cpp",
    "storage/records.cpp",
    "storage/region.cpp",
)
# The source that a header of the core is compiled with.
COMPILED_BY = {
    "batch/walks.hpp": "batch/windows.cpp",
    "lanes/gaps.hpp": "batch/windows.cpp",
    "lanes/links.hpp": "lanes/lanes.cpp",
    "priority/leaf.hpp": "priority/priorities.cpp",
    "priority/leaves.hpp": "priority/priorities.cpp",
    "priority/marks.hpp": "priority/priorities.cpp",
    "priority/node.hpp": "priority/sums.cpp",
    "ring/protocol.hpp": "ring/ring.cpp",
    "ring/unshared.hpp": "ring/ring.cpp",
}
FLAGS = (
    *("-std=c++20", "-O1", "-DNDEBUG", "-DFASTREPLAY_STOP_POINTS", "-pthread"),
    *(f"-I{CORE}", f"-I{ROOT / 'tests/cpp'}"),
)
STANDARD = ROOT / "tests" / "cpp" / "standard.hpp"
# A case of the stress test takes some 10 ms with so many rows in all. A mutant's writer that is refused for
# three seconds is stuck; the core as it is has the test's own patience.
STRESS_ROWS = "2000000"
LANE_WINDOWS = "500000"
FRAME_ROWS = "200000"
IMPATIENT = {
    "stress": ("1000", "3"),
    "batch_layout": (),
    "history": (),
    "frames": (),
    "frame_steps": (),
    "lanes": (),
    "priorities": (),
    "ring_file": (),
    "uniform": (),
}
# What a test program prints when it notices.
NOTICED = {
    "batch_layout": re.compile(r"(test_batch_layout\.cpp:\d+): failed: (.*)$", re.MULTILINE),
    "stress": re.compile(r"^(capacity .*): wrong rows: (.*)$", re.MULTILINE),
    "history": re.compile(r"^(capacity .*): (.*)$", re.MULTILINE),
    "frame_steps": re.compile(r"(test_frame_steps\.cpp:\d+): failed: (.*)$", re.MULTILINE),
    "frames": re.compile(r"(test_frames\.cpp:\d+): failed: (.*)$", re.MULTILINE),
    "lanes": re.compile(r"(test_lanes\.cpp:\d+): failed: (.*)$", re.MULTILINE),
    "priorities": re.compile(r"(test_priorities\.cpp:\d+): failed: (.*)$", re.MULTILINE),
    "ring_file": re.compile(r"(test_ring_file\.cpp:\d+): failed: (.*)$", re.MULTILINE),
    "uniform": re.compile(r"^(.*) has p (.*)$", re.MULTILINE),
}
# A mutant may also come to a stop: that shows nothing, and it is tried again.
LIMIT_SECONDS = 30
TRIES = 3
NO_END = "no end"


@dataclass(frozen=True)
class Outcome:
    """What a test program said about one build of the core."""

    passed: bool
    noticed: str  # what it found, or empty
    trouble: str  # why it says nothing, or empty
    seconds: float


class Builder:
    """Compiles sources of the core, patched or not, and links them with a test program."""

    def __init__(self, compiler: str, folder: Path) -> None:
        self.compiler = compiler
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        # GCC and Clang read the .gch in place of the header beside it.
        self.standard = folder / STANDARD.name
        shutil.copyfile(STANDARD, self.standard)
        self.call("-x", "c++-header", str(self.standard), "-o", f"{self.standard}.gch")

    def compile(self, source: Path, name: str, *first: str) -> Path:
        target = self.folder / f"{name}.o"
        self.call(*first, "-include", str(self.standard), "-c", str(source), "-o", str(target))
        return target

    def link(self, objects: list[Path], name: str) -> Path:
        target = self.folder / name
        self.call(*map(str, objects), "-o", str(target))
        return target

    def call(self, *arguments: str) -> None:
        done = subprocess.run([self.compiler, *arguments, *FLAGS], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(arguments)}\n{done.stderr}")


def patched(mutant: Mutant) -> str:
    """The text of the mutant's file with its mistake in it."""
    text = (CORE / mutant.file).read_text()
    found = text.count(mutant.old)
    if found != 1:
        raise SystemExit(f"{mutant.name}: its text stands {found} times in {mutant.file}, not once:\n{mutant.old}")
    return text.replace(mutant.old, mutant.new)


def identifier(name: str) -> str:
    return re.sub(r"\W+", "_", name)


def run(program: Path, test: str, *arguments: str) -> Outcome:
    for _ in range(TRIES):
        outcome = run_once(program, test, *arguments)
        if not outcome.trouble.startswith(NO_END):
            break
    return outcome


def run_once(program: Path, test: str, *arguments: str) -> Outcome:
    begin = time.monotonic()
    environment = {
        **os.environ,
        "FASTREPLAY_STRESS_ROWS": STRESS_ROWS,
        "FASTREPLAY_LANE_WINDOWS": LANE_WINDOWS,
        "FASTREPLAY_FRAME_ROWS": FRAME_ROWS,
    }
    try:
        done = subprocess.run(
            [str(program), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=LIMIT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return Outcome(False, "", f"{NO_END} within {LIMIT_SECONDS} s", time.monotonic() - begin)
    seconds = time.monotonic() - begin
    found = NOTICED[test].search(done.stderr)
    if done.returncode == 0:
        return Outcome(True, "", "passed", seconds)
    if done.returncode != 1 or found is None:
        return Outcome(False, "", f"ended with {done.returncode}: {done.stderr[-300:]}", seconds)
    return Outcome(False, summary(test, found), "", seconds)


def summary(test: str, found: re.Match[str]) -> str:
    """What was wrong, without the counts that are zero, and where."""
    where, what = str(found[1]), str(found[2])
    if test == "uniform":
        return f"p = {what} ({where})"
    wrong = [part for part in re.split(r"[,;] ", what) if not part.startswith("0 ")]
    return f"{', '.join(wrong)} ({where})"


def main() -> int:
    parser = argparse.ArgumentParser(description="Demand that the tests catch every mutant of the core.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only mutants whose name contains it")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "mutants", help="folder for what is built")
    parser.add_argument("--compiler", default=os.environ.get("CXX", "c++"))
    parser.add_argument("--share", type=int, default=1, metavar="N", help="every N-th alone, others with each turn")
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if not arguments.names or any(n in mutant.name for n in arguments.names)]
    texts = share([patched(mutant) for mutant in chosen], arguments.share)  # all of the list first: it costs nothing
    chosen = share(chosen, arguments.share)
    if not chosen:
        parser.error(f"no mutant has one of {arguments.names} in its name")
    builder = Builder(arguments.compiler, arguments.build)
    tests = sorted({mutant.test for mutant in chosen})

    begin = time.monotonic()
    failures: list[str] = []
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        core = {source: pool.submit(builder.compile, CORE / source, Path(source).stem) for source in SOURCES}
        mains = {
            test: pool.submit(builder.compile, ROOT / "tests/cpp" / f"test_{test}.cpp", f"test_{test}")
            for test in tests
        }

        def build(mutant: Mutant, text: str) -> Path:
            name = identifier(mutant.name)
            core_of_its_own = builder.folder / "broken" / name  # comes before the core
            shutil.rmtree(core_of_its_own, ignore_errors=True)  # an older one may have broken another file
            broken = core_of_its_own / mutant.file
            broken.parent.mkdir(parents=True, exist_ok=True)
            broken.write_text(text)
            source = COMPILED_BY.get(mutant.file, mutant.file)
            at = broken if source == mutant.file else CORE / source
            objects = [builder.compile(at, name, f"-I{core_of_its_own}")]
            objects += [core[other].result() for other in SOURCES if other != source]
            return builder.link([mains[mutant.test].result(), *objects], name)

        programs = [pool.submit(build, mutant, text) for mutant, text in zip(chosen, texts, strict=True)]
        for test in tests:
            objects = [mains[test].result(), *(core[source].result() for source in SOURCES)]
            outcome = run(builder.link(objects, f"unchanged_{test}"), test)
            print(
                f"{outcome.seconds:5.1f} s  the core as it is: {outcome.noticed or outcome.trouble} ({test})",
                flush=True,
            )
            if not outcome.passed:
                failures.append(f"the core as it is fails test_{test}")
        for mutant, program in zip(chosen, programs, strict=True):
            outcome = run(program.result(), mutant.test, *IMPATIENT[mutant.test])
            said = outcome.noticed or f"NOT CAUGHT: {outcome.trouble}"
            print(f"{outcome.seconds:5.1f} s  {mutant.name}: {said}", flush=True)
            if not outcome.noticed:
                failures.append(f"{mutant.name}: {outcome.trouble}")
    caught = len(chosen) - sum(not failure.startswith("the core") for failure in failures)
    print(f"{caught} of {len(chosen)} mutants caught in {time.monotonic() - begin:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
