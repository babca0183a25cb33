# SPDX-License-Identifier: MIT
"""The README's Python, run in order, and its recipe for worker processes under every way to start them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)

# What follows the blocks; workers that are not forked import them anew.
CHECK = """
import sys
import torch
import readme

if __name__ == "__main__":
    assert len(readme.buffer) == 1000
    assert readme.target.shape == (256,)
    assert torch.equal(readme.target[readme.term], readme.rew[readme.term])
    loader = readme.loader
    loader.multiprocessing_context = sys.argv[1]
    epochs = []
    for _ in range(2 if sys.argv[1] == "fork" else 1):
        torch.manual_seed(3)
        batches = iter(loader)
        epochs.append([next(batches).ticket.tolist() for _ in range(4)])
    del batches
    assert len(set(map(tuple, epochs[0]))) == 4, "two workers drew the same"
    assert epochs[0] == epochs[-1], "the draws do not follow the seeds"
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_readmes_python_runs(tmp_path: Path, method: str) -> None:
    assert len(BLOCKS) >= 3
    (tmp_path / "readme.py").write_text("\n".join(BLOCKS))
    (tmp_path / "check.py").write_text(CHECK)
    command = [sys.executable, "check.py", method]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
