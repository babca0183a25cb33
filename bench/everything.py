# SPDX-License-Identifier: MIT
"""Run every measurement that needs no GPU, one after another; one that fails does not stop the others.

python bench/everything.py                  all of it, into bench/results/ (about 20 minutes, 10 GB)
python bench/everything.py --quick          small and short: does all of it run? Printed only
python bench/everything.py --quick --out X  the same, and the files into folder X
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPTS = ("table.py", "threads.py", "sb3.py", "loader.py", "end_to_end.py")


def main() -> int:
    folder = Path(__file__).parent
    commands: dict[str, list[str | Path]] = {
        script: [sys.executable, folder / script, *sys.argv[1:]] for script in SCRIPTS
    }
    failed = [script for script, command in commands.items() if subprocess.run(command, check=False).returncode]
    for script in failed:
        sys.stderr.write(f"bench/{script} failed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
