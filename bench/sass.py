# SPDX-License-Identifier: MIT
"""What the compiler made of the CUDA kernels: `python bench/sass.py [sm_90]`, with nvcc and cuobjdump, without a GPU.

For each kernel: instructions, loads from global memory (LDG) and through generic addresses (LD), the most loads that
are begun before something is written, registers, bytes of stack, spills (LDL, STL), and calls, of which a 64-bit
division is one.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

CSRC = Path(__file__).parents[1] / "csrc"
_FLAGS = ("-cubin", "-std=c++20", "-O3", "-DNDEBUG", "--expt-relaxed-constexpr", "--fmad=false", f"-I{CSRC / 'core'}")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")


def most_in_flight(instructions: list[str]) -> int:
    """Return the longest row of loads without a store between them."""
    most = current = 0
    for instruction in instructions:
        if re.match(r"LDG?\b", instruction):
            current += 1
            most = max(most, current)
        elif re.match(r"STG?\b", instruction):
            current = 0
    return most


def lines_of(cubin: Path) -> list[str]:
    """Return a line for each kernel of a file of machine code."""
    sass, usage = (
        subprocess.run(["cuobjdump", option, cubin], capture_output=True, text=True, check=True).stdout
        for option in ("-sass", "-res-usage")
    )
    registers = dict(re.findall(r"Function (\S+):\n\s*(REG:\d+ STACK:\d+)", usage))
    lines = []
    for part in sass.split("Function : ")[1:]:
        name, found = part.split()[0], _INSTRUCTION.findall(part)
        counts = [
            f"{kind} {sum(bool(re.match(pattern, each)) for each in found)}"
            for kind, pattern in (("LDG", r"LDG"), ("LD", r"LD\b"), ("spills", r"LDL|STL"), ("calls", r"CALL"))
        ]
        in_flight = most_in_flight(found)
        lines.append(
            f"{len(found):5} instructions, {', '.join(counts)}, in flight {in_flight}, {registers.get(name)}: {name}"
        )
    return lines


def main(architecture: str = "sm_90") -> None:
    """Compile each file of kernels, and print what came of it."""
    for source in sorted((CSRC / "cuda").glob("*.cu")):
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder) / "kernels.cubin"
            subprocess.run(["nvcc", *_FLAGS, f"-arch={architecture}", source, "-o", cubin], check=True)
            print(source.name, *lines_of(cubin), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
