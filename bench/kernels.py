# SPDX-License-Identifier: MIT
"""What the compiler made of each CUDA kernel: a table of what decides how long it waits for memory.

    python bench/kernels.py [libfastreplay_cuda.so]        needs cuobjdump, and no GPU

Without an argument, of the fastreplay that this Python has. "In flight" are the global loads, and their bytes, that
are issued one after the other before the first of them is used or anything is stored: the most at any place.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from render import Columns, Table

_RESOURCES = re.compile(r"^ Function (\w+):\n +REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", re.MULTILINE)
_ARCHITECTURE = re.compile(r"code for (sm_\w+)")
_FUNCTION = re.compile(r"^\s*Function : (\w+)$")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+) )?\s*([A-Z][\w.]*)\s*(.*?);")
_WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}  # bytes; else 4
_LOADS, _STORES = ("LDG", "LD"), ("STG", "ST", "STL", "STS", "RED", "ATOM", "ATOMG")
_ENDS = ("BRA", "EXIT", "RET", "BRX", "JMP")


@dataclass
class Kernel:
    """One kernel's machine code for one architecture."""

    name: str
    architecture: str
    registers: int = 0
    stack_bytes: int = 0
    local_bytes: int = 0
    instructions: int = 0
    spills: int = 0
    calls: int = 0  # a 64-bit division is one
    generic_loads: int = 0  # whose kind of memory is found out on the way
    loads_in_flight: int = 0
    bytes_in_flight: int = 0


def read_kernels(resources: str, code: str) -> list[Kernel]:
    """Return the kernels of `cuobjdump -res-usage` and of `cuobjdump -sass`, in the order of the code."""
    used = {name: tuple(map(int, numbers)) for name, *numbers in _RESOURCES.findall(resources)}
    kernels = []
    for architecture, name, body in _functions(code):
        kernel = Kernel(name, architecture, *used.get(name, (0, 0, 0)))
        _read_body(kernel, body)
        kernels.append(kernel)
    return kernels


def _functions(code: str) -> Iterator[tuple[str, str, list[tuple[str, str, str]]]]:
    """Yield architecture, name, and instructions, each as (predicate, operation, operands)."""
    architecture, name, body = "", "", list[tuple[str, str, str]]()
    for line in code.splitlines():
        if found := _ARCHITECTURE.search(line):
            architecture = found[1]
        elif found := _FUNCTION.match(line):
            name, body = found[1], []
        elif name and line.strip().startswith(".........."):
            yield architecture, name, body
            name = ""
        elif found := _INSTRUCTION.match(line):
            body.append((found[1] or "", found[2], found[3]))


def _read_body(kernel: Kernel, body: Iterable[tuple[str, str, str]]) -> None:
    waiting: set[int] = set()  # registers that loads will write
    loads = num_bytes = 0
    for predicate, whole, operands in body:
        operation, *suffixes = whole.split(".")
        if operation == "NOP":
            continue
        kernel.instructions += 1
        kernel.spills += operation in {"STL", "LDL"}
        kernel.calls += operation == "CALL"
        kernel.generic_loads += operation == "LD"
        named = {int(number) for number in re.findall(r"\bR(\d+)\b", operands)}
        ends = operation in _STORES or (operation in _ENDS and not predicate)
        if ends or named & waiting:
            waiting, loads, num_bytes = set(), 0, 0
        if operation in _LOADS:
            width = next((_WIDTHS[suffix] for suffix in suffixes if suffix in _WIDTHS), 4)
            if (target := re.match(r"(?:P\w+, )?R(\d+)", operands)) is not None:
                first = int(target[1])
                waiting |= set(range(first, first + max(1, width // 4)))
            loads, num_bytes = loads + 1, num_bytes + width
            kernel.loads_in_flight = max(kernel.loads_in_flight, loads)
            kernel.bytes_in_flight = max(kernel.bytes_in_flight, num_bytes)


def to_table(kernels: Iterable[Kernel]) -> Table:
    rows = {f"{_readable(kernel.name)}, {kernel.architecture}": kernel for kernel in kernels}
    columns: Columns = {
        "registers": lambda kernel: str(kernel.registers),
        "stack B": lambda kernel: str(kernel.stack_bytes + kernel.local_bytes),
        "spills": lambda kernel: str(kernel.spills),
        "instructions": lambda kernel: f"{kernel.instructions:,}",
        "calls": lambda kernel: str(kernel.calls),
        "generic loads": lambda kernel: str(kernel.generic_loads),
        "loads in flight": lambda kernel: str(kernel.loads_in_flight),
        "their bytes": lambda kernel: str(kernel.bytes_in_flight),
    }
    return Table("", "", "kernel", rows, columns)


def _readable(name: str) -> str:
    if (program := shutil.which("c++filt")) is None:
        return name
    said = subprocess.run([program, name], capture_output=True, text=True, check=True).stdout.strip()
    said = said.replace("(anonymous namespace)::", "").replace("fastreplay::", "")
    return re.sub(r"^void |\((?!.*>\().*$", "", said)


def main(arguments: list[str]) -> int:
    if arguments:
        library = Path(arguments[0])
    else:
        import fastreplay as fr

        library = Path(fr.__file__).parent / "libfastreplay_cuda.so"
    program = shutil.which("cuobjdump")
    if program is None or not library.is_file():
        sys.stderr.write(f"kernels: needs cuobjdump and {library}\n")
        return 2
    said = [
        subprocess.run([program, option, str(library)], capture_output=True, text=True, check=True).stdout
        for option in ("-res-usage", "-sass")
    ]
    kernels = read_kernels(*said)
    sys.stdout.write(f"{to_table(kernels)}\n")
    return 0 if kernels else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
