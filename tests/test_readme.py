# SPDX-License-Identifier: MIT
"""The README's Python, run in order, and its recipe for worker processes under every way to start them."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)

# Workers that are not forked import the blocks anew. They need no learner, whose optimiser imports as much as torch.
GUARD = """
import multiprocessing

if multiprocessing.current_process().name == "MainProcess":
"""

# What follows the blocks, in one process for all ways: each import of torch costs seconds.
CHECK = """
import torch
import readme

if __name__ == "__main__":
    assert len(readme.buffer) == 1000
    assert readme.target.shape == (256,)
    assert torch.equal(readme.target[readme.term], readme.rew[readme.term])
    loader = readme.loader
    for method, num_epochs in (("fork", 2), ("spawn", 1)):
        loader.multiprocessing_context = method
        epochs = []
        for _ in range(num_epochs):
            torch.manual_seed(3)
            batches = iter(loader)
            epochs.append([next(batches).ticket.tolist() for _ in range(4)])
        del batches
        assert len(set(map(tuple, epochs[0]))) == 4, f"{method}: two workers drew the same"
        assert epochs[0] == epochs[-1], f"{method}: the draws do not follow the seeds"
        print(method)
"""


def test_the_readmes_python_runs(tmp_path: Path) -> None:
    first, *learner, last = BLOCKS
    assert learner
    guarded = GUARD + textwrap.indent("\n".join(learner), "    ")
    (tmp_path / "readme.py").write_text("\n".join((first, guarded, last)))
    (tmp_path / "check.py").write_text(CHECK)
    done = subprocess.run([sys.executable, "check.py"], check=False, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["fork", "spawn"]
