# SPDX-License-Identifier: MIT
"""Target updates at every level of instructions that torch may choose on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import level_params

TESTS = {
    "test_target.py": ("test_the_kernels_bits_are_those_of_lerp",),
    "test_sb3_polyak.py": ("test_every_length", "test_special_values", "test_general_dtypes", "test_threads_of_torch"),
}


@pytest.mark.share(3)
@pytest.mark.parametrize("capability", level_params("default", "avx2", "avx512"))
def test_every_level_of_instructions(capability: str) -> None:
    """In a process of its own each, since torch decides once."""
    if capability == torch.backends.cpu.get_cpu_capability().lower():
        pytest.skip("all other tests run at this level")
    chosen = [f"{Path(__file__).with_name(file)}::{name}" for file, names in TESTS.items() for name in names]
    say_level = "import torch; print('level', torch.backends.cpu.get_cpu_capability())"
    run = "import sys, pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *sys.argv[1:]]))"
    done = subprocess.run(
        [sys.executable, "-c", f"{say_level}; {run}", *chosen],
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.split()[1].lower() == capability
