# SPDX-License-Identifier: MIT
"""Pack what a GPU machine without a network lacks: fastreplay's wheel for one card, and the wheels of others.

    python tests/cuda/pack.py FOLDER PYTHON

PYTHON is of the version that the machine has. FOLDER/pack.json says what was packed. Another pack in FOLDER is replaced
once the new one is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 64 << 20
ARCHITECTURE = 90  # H100, H200
BUILD_TOOLS = ("scikit-build-core", "pybind11", "cython", "cython-cmake", "numpy", "cmake", "ninja")
# Found on no such machine: what building needs, and whom the minibatches are measured beside. What these need in
# turn and is not here (torch, NumPy, pandas, matplotlib, zipp) lies on the machine.
OTHERS = (
    *("cython-cmake", "torchrl", "tensordict", "stable-baselines3", "gymnasium"),
    *("cloudpickle", "farama-notifications", "importlib-metadata", "orjson", "pyvers"),
)
_TAG = "import sys; print('cp{}{}'.format(*sys.version_info))"


@dataclass(frozen=True)
class Pack:
    """What was packed.

    Attributes:
        sources: digest_of_sources() of what the wheel was built from.
        commit: The commit, for people: a machine may have the files without git.
        architecture: The compute capability that the wheel was built for, 90 for 9.0.
        python: The wheel's Python, as in its name.
        wheel: fastreplay's wheel.
        others: The other wheels.
    """

    sources: str
    commit: str
    architecture: int
    python: str
    wheel: str
    others: tuple[str, ...]

    def misfit(self, sources: str, architecture: int, python: str) -> str:
        """Say why the wheel is not for this tree, card and Python, "" where it is."""
        wanted: Mapping[str, object] = {"sources": sources, "architecture": architecture, "python": python}
        wrong = [name for name, value in wanted.items() if asdict(self)[name] != value]
        return "; ".join(f"{name}: packed {asdict(self)[name]}, here {wanted[name]}" for name in wrong)


def read_pack(folder: Path) -> Pack | None:
    """Return what a folder holds, None where nothing whole was packed."""
    try:
        said = json.loads((folder / "pack.json").read_text())
        pack = Pack(**{**said, "others": tuple(said["others"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return pack if all((folder / name).is_file() for name in (pack.wheel, *pack.others)) else None


def digest_of_sources(root: Path = ROOT) -> str:
    """Return a digest of all that goes into a wheel."""
    paths = [root / "CMakeLists.txt", root / "pyproject.toml"]
    for folder, endings in (("csrc", "cpp hpp h cu txt cmake"), ("fastreplay", "py pyi pyx pxd typed")):
        paths += [path for ending in endings.split() for path in (root / folder).rglob(f"*.{ending}")]
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(root)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def commit_of(root: Path = ROOT) -> str:
    """Return the commit, "none" where git knows none."""
    command = ("git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*")
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "none"


def python_tag(python: str) -> str:
    return subprocess.run([python, "-c", _TAG], capture_output=True, text=True, check=True).stdout.strip()


def renew(folder: Path, python: str) -> Pack:
    """Put a new pack in the place of one that may be there.

    Raises:
        OSError, subprocess.CalledProcessError: A wheel cannot be built or fetched.
        ValueError: The folder holds something else, the pack is too large to travel, or the tree was changed meanwhile.
    """
    if folder.exists() and (others := sorted({path.name for path in folder.iterdir() if not _is_packed(path)})):
        message = f"{folder} is to hold a pack, and holds {others[0]}"
        raise ValueError(message)
    new = ROOT / "build" / "pack-new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    pack = fill(new, python)
    if folder.exists():
        shutil.rmtree(folder)
    shutil.move(new, folder)
    return pack


def _is_packed(path: Path) -> bool:
    return path.name == "pack.json" or path.suffix == ".whl"


def fill(folder: Path, python: str) -> Pack:
    """Build the wheel of this tree, fetch the others, and say so in pack.json.

    Raises:
        OSError, subprocess.CalledProcessError: A wheel cannot be built or fetched.
        ValueError: It is too large to travel, or the tree was changed meanwhile.
    """
    sources = digest_of_sources()
    pins = ("--constraint", str(ROOT / "constraints.txt"))
    tools = ROOT / "build" / f"pack-{python_tag(python)}"  # kept, and so is what was compiled with them
    subprocess.run([python, "-m", "venv", tools], check=True)
    pip = (f"{tools}/bin/python", "-m", "pip", "--disable-pip-version-check", "-q")
    subprocess.run([*pip, "install", *pins, *BUILD_TOOLS], check=True)
    environment = {
        **os.environ,
        "PATH": f"{tools}/bin:{os.environ['PATH']}:/usr/local/cuda/bin",
        "FASTREPLAY_CUDA": "ON",
        "FASTREPLAY_CUDA_ARCHITECTURES": f"{ARCHITECTURE}-real",
    }
    command = (*pip, "wheel", "--no-build-isolation", "--no-deps", f"-Cbuild-dir={tools / 'tree'}", "-w", folder)
    subprocess.run([*command, str(ROOT)], check=True, env=environment)
    subprocess.run([*pip, "download", *pins, "--no-deps", "--only-binary=:all:", "-d", folder, *OTHERS], check=True)
    if digest_of_sources() != sources:
        message = f"{ROOT} was changed while its wheel was built"
        raise ValueError(message)
    return seal(folder, python_tag(python), OTHERS)


def seal(folder: Path, python: str, others: Sequence[str]) -> Pack:
    """Say in pack.json what lies in a folder.

    Args:
        folder: Holds wheels.
        python: The tag of the Python that fastreplay's was built by.
        others: What must be there beside it.

    Raises:
        ValueError: It is not there, or too large to travel.
    """
    wheels = sorted(path.name for path in folder.glob("*.whl"))
    names = {name: name.split("-", 1)[0].replace("_", "-").lower() for name in wheels}
    if missing := {"fastreplay", *others} - set(names.values()):
        message = f"{folder} lacks {', '.join(sorted(missing))}"
        raise ValueError(message)
    (ours,) = (name for name in wheels if names[name] == "fastreplay")
    rest = tuple(name for name in wheels if name != ours)
    pack = Pack(digest_of_sources(), commit_of(), ARCHITECTURE, python, ours, rest)
    (folder / "pack.json").write_text(json.dumps(asdict(pack), indent=1) + "\n")
    if size_of(folder) > MOST_BYTES:
        message = f"{folder} has {size_of(folder) >> 20} MiB, of which only {MOST_BYTES >> 20} travel"
        raise ValueError(message)
    return pack


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def main(arguments: list[str]) -> int:
    folder, python = Path(arguments[0]).absolute(), arguments[1]
    try:
        pack = renew(folder, python)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"make gpu-pack: {error}\n")
        return 1
    sys.stdout.write(
        f"{folder}: {pack.wheel} of {pack.commit} for sm_{pack.architecture}, "
        f"{len(pack.others)} other wheels, {size_of(folder) / 2**20:.1f} MiB\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
