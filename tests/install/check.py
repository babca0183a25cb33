# SPDX-License-Identifier: MIT
"""Installs fastreplay as others will: with build isolation, from the tree and from an sdist, on machines unlike ours.

    python tests/install/check.py [NAME ...]

NAME picks cases whose name contains it. What a machine lacks is taken from the PATH; what is broken there is a
script that is found first. Each case has an environment of its own, installs, and runs a smoke test in it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMOKE_TEST = """
import numpy as np
import fastreplay as fr
buffer = fr.ReplayBuffer(1000, {"x": (2,), "flag": ((), "bool")}, seed=0, output="numpy")
for i in range(1500):
    buffer.add(x=[i, -i], flag=bool(i % 2))
batch = buffer.sample(256)
assert (batch.x[:, 0] == -batch.x[:, 1]).all() and (batch.flag == batch.x[:, 0] % 2).all()
assert batch.x[:, 0].min() >= 500
with buffer.loader(32, steps=3) as loader:
    assert sum(len(batch.x) for batch in loader) == 96
print(fr.backend_info()["cuda_status"])
"""
# A compiler's programs, and those of the shell that run it; neither CMake, Ninja, Make nor nvcc.
COMPILER = (
    "gcc",
    "g++",
    "cc",
    "c++",
    "as",
    "ld",
    "ld.bfd",
    "ar",
    "ranlib",
    "nm",
    "strip",
    "objdump",
    "objcopy",
    "sh",
    "env",
)


@dataclass(frozen=True)
class Case:
    """One installation."""

    name: str
    from_sdist: bool = False
    python: str = sys.executable
    bare: bool = False  # Python and a compiler on the PATH, nothing else
    nvcc: str = ""  # script that stands before the machine's own
    status: str = ""  # what backend_info() must say of CUDA
    environment: dict[str, str] = field(default_factory=dict)
    fails: str = ""  # what pip must say where the installation must fail


def cases() -> list[Case]:
    broken = "#!/bin/sh\necho 'nvcc fatal: broken'; exit 1\n"
    half = (
        "#!/bin/sh\ncase \"$*\" in\n*--version*) echo 'Cuda compilation tools, release 13.0, V13.0.88' ;;\n"
        "*--list-gpu-arch*) echo compute_90 ;;\n*) echo 'collect2: error: ld returned 1 exit status'; exit 1 ;;\nesac\n"
    )
    without = "built without CUDA: no nvcc was found"
    wanted = {"FASTREPLAY_CUDA": "ON"}
    return [
        Case("as it is, from the tree", status="run-time " if shutil.which("nvcc") else without),
        Case("only a compiler, from the sdist", from_sdist=True, bare=True, status=without),
        Case("only a compiler, from the tree", bare=True, status=without),
        Case("nvcc exits", from_sdist=True, nvcc=broken, status="nvcc failed (1): nvcc fatal: broken"),
        Case("nvcc does not link", nvcc=half, status="nvcc failed (1): collect2: error: ld returned 1 exit status"),
        Case("nvcc exits, CUDA wanted", nvcc=broken, environment=wanted, fails="FASTREPLAY_CUDA=ON, but"),
        *(
            Case(f"Python {path.parent.parent.name}", python=str(path), bare=True, status="built without CUDA")
            for path in other_pythons()
        ),
    ]


def other_pythons() -> list[Path]:
    """Return the interpreters of pyenv that the package is for."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [path / "bin" / "python" for path in sorted(versions.glob("3.*")) if int(path.name.split(".")[1]) >= 10]
    return [path for path in found if path.parent.parent.name != ".".join(map(str, sys.version_info[:3]))]


def search_path(case: Case, folder: Path) -> str:
    """Return the PATH of a case."""
    programs = folder / "programs"
    programs.mkdir()
    if case.nvcc:
        (programs / "nvcc").write_text(case.nvcc)
        (programs / "nvcc").chmod(0o755)
    if not case.bare:
        # The tools of the environment that runs this are not the machine's.
        rest = [part for part in os.environ["PATH"].split(":") if part != str(Path(sys.executable).parent)]
        return ":".join([str(programs), *rest])
    for name in COMPILER:
        if path := shutil.which(name):
            (programs / name).symlink_to(path)
    return str(programs)


def check(case: Case, sdist: Path, folder: Path) -> str:
    """Install and try one case; return what went wrong, or nothing."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CUDA", "FASTREPLAY"))}
    environment |= {"PATH": search_path(case, folder), **case.environment}

    def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(map(str, command)), check=False, capture_output=True, text=True, env=environment, cwd=folder
        )

    run(case.python, "-m", "venv", folder / "env").check_returncode()
    python = folder / "env" / "bin" / "python"
    source = sdist if case.from_sdist else shutil.copytree(ROOT, folder / "tree", ignore=ignored)
    done = run(python, "-m", "pip", "install", source)
    if case.fails:
        said = done.stdout + done.stderr
        return "" if done.returncode and case.fails in said else f"did not fail as it should:\n{said[-2000:]}"
    if done.returncode:
        return f"pip failed:\n{done.stdout[-3000:]}\n{done.stderr[-2000:]}"
    done = run(python, "-c", SMOKE_TEST)
    if done.returncode:
        return f"the smoke test failed:\n{done.stderr}"
    print(f"    {done.stdout.strip()}")
    return "" if case.status in done.stdout else f"backend_info() says {done.stdout.strip()!r}, not {case.status!r}"


def ignored(folder: str, names: list[str]) -> set[str]:
    """Leave out of a copy of the tree what git does not know."""
    return {".venv", "build", ".git", "__pycache__", "runs", "dist"} & set(names) if folder == str(ROOT) else set()


def main() -> int:
    parser = argparse.ArgumentParser(description="Install fastreplay as others will, and try it.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only cases whose name contains it")
    names = parser.parse_args().names
    num_failed = 0
    with tempfile.TemporaryDirectory(prefix="fastreplay-install-") as name:
        out = Path(name)
        command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", name, str(ROOT)]
        subprocess.run(command, check=True, capture_output=True)
        (sdist,) = out.glob("*.tar.gz")
        for i, case in enumerate(case for case in cases() if not names or any(name in case.name for name in names)):
            print(f"{case.name}", flush=True)
            begin = time.monotonic()
            (out / str(i)).mkdir()
            trouble = check(case, sdist, out / str(i))
            print(f"    {'FAILED: ' + trouble if trouble else 'passed'} ({time.monotonic() - begin:.0f} s)", flush=True)
            num_failed += bool(trouble)
            shutil.rmtree(out / str(i))
    print(f"{num_failed} failed" if num_failed else "all installed")
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
