# SPDX-License-Identifier: MIT
"""The sdist builds in a clean environment, and the wheel holds what it should and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULE_SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)), check=False, capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Build the sdist, and the wheel from it, each in an environment of its own."""
    out = tmp_path_factory.mktemp("dist")
    # Without CUDA: its absence must never be an error, and compiling it takes most of the time.
    run(sys.executable, "-m", "build", "--outdir", out, ROOT, FASTREPLAY_CUDA="OFF")
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def test_sdist_contents(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert names >= {
        "pyproject.toml", "CMakeLists.txt", "LICENSE", "README.md", "csrc/core/ring.cpp",
        "csrc/bindings/module.cpp", "csrc/cuda/CMakeLists.txt", "fastreplay/_fastpath.pyx", "fastreplay/py.typed",
    }  # fmt: skip
    strangers = {name.split("/")[0] for name in names} - {
        "pyproject.toml", "CMakeLists.txt", "LICENSE", "README.md", "CHANGELOG.md", "ARCHITECTURE.md",
        "CONTRIBUTING.md", "PKG-INFO", "csrc", "fastreplay", "tests", "bench",
    }  # fmt: skip
    assert not strangers


MODULES = ("_core", "_fastpath", "_step_ring", "_target", "_tensors")


def test_wheel_contents(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = [*(ROOT / "fastreplay").glob("*.py*"), *(ROOT / "fastreplay" / "sb3").glob("*.py")]
    expected = {path.relative_to(ROOT).as_posix() for path in sources if path.suffix != ".pyx"}
    expected |= {f"fastreplay/{module}{MODULE_SUFFIX}" for module in MODULES}
    expected.add("fastreplay/py.typed")
    assert names == expected


def test_wheel_works_by_itself(built: tuple[Path, Path], tmp_path: Path) -> None:
    """In a new environment that has NumPy alone."""
    run(sys.executable, "-m", "venv", tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", built[1])
    code = (
        "import fastreplay as fr\n"
        "b = fr.ReplayBuffer(8, {'x': (2,)}, seed=0, output='numpy')\n"
        "b.extend(x=[[1, 2], [3, 4]])\n"
        "print(sorted(map(tuple, b[:].x.tolist())), b.sample(3).x.shape, fr.backend_info()['cuda_status'])"
    )
    assert (
        run(python, "-c", code, cwd=tmp_path).strip() == "[(1.0, 2.0), (3.0, 4.0)] (3, 2) built without a CUDA compiler"
    )
