# SPDX-License-Identifier: MIT
"""Lets libFuzzer choose which changed checkpoints are changed further, by what of the readers' Python they reach.

    python tests/fuzz_guided.py manifests|cases FOLDER... [options of libFuzzer]

What it chose is kept in the first folder. The changes are those of fuzz_checkpoints.py, which runs this; libFuzzer's
own (`atheris.Mutate`) come in between. It sees which branches of Python were taken, none of the core's, which no clang
has compiled: what the core makes of hostile files is looked at by AddressSanitizer instead (tests/run_asan.sh).
"""

from __future__ import annotations

import gc
import random
import sys
from types import FunctionType
from typing import TYPE_CHECKING

import atheris
import fuzz_checkpoints as fuzz
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

_OWN = 0.1  # of libFuzzer's changes of a text


def read_manifest(data: bytes) -> None:
    """Read what a manifest says, under a checksum that fits."""
    fuzz.parse(fuzz.manifest_of(data))


def change_manifest(data: bytes, most: int, seed: int) -> bytes:
    """Change it."""
    rng = random.Random(seed)
    if rng.random() < _OWN or not data:
        return bytes(atheris.Mutate(data, most))
    return fuzz.changed_text(data, fuzz.spans_of(data), rng)[:most]


def read_case(data: bytes) -> None:
    """Read a case, and use what it gives."""
    if data:  # libFuzzer begins with nothing
        fuzz.read(fuzz.unpacked(data))


def change_case(data: bytes, most: int, seed: int) -> bytes:
    """Change one, but for what would become too long."""
    files = fuzz.unpacked(data) if data else fuzz.seeds()[0]
    made = fuzz.packed(fuzz.case_of(files, np.random.default_rng(seed)))
    return made if len(made) <= most else data


WAYS: dict[str, tuple[Callable[[bytes], None], Callable[[bytes, int, int], bytes]]] = {
    "manifests": (read_manifest, change_manifest),
    "cases": (read_case, change_case),
}


def show_branches() -> None:
    """Let libFuzzer see all functions of the package, which are there once every kind of checkpoint was read."""
    for files in fuzz.seeds():
        fuzz.read(files)
    for each in gc.get_objects():
        if type(each) is FunctionType and str(each.__module__).startswith("fastreplay."):
            atheris.instrument_func(each)


def main() -> None:
    """Run libFuzzer; it ends the process."""
    read, change = WAYS[sys.argv[1]]
    show_branches()
    again = f"{sys.executable} {sys.argv[0]} {sys.argv[1]}"  # as which libFuzzer begins others, by a shell
    atheris.Setup([again, *sys.argv[2:]], read, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
