# SPDX-License-Identifier: MIT
"""Build what a measurement on a machine with one NVIDIA GPU needs: torch, the peers, fastreplay with its CUDA part.

Everything is installed below build/gpu; the interpreter that runs this stays as it is.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
_BUILD = ROOT / "build" / "gpu"
_SITE = _BUILD / "site"

_SEES_DEVICE = "import sys, numpy, torch{}; sys.exit(not torch.cuda.is_available())"
_HAS_KERNEL = (
    "import sys, torch, fastreplay as fr; "
    "sys.exit(not torch.cuda.is_available() or fr.backend_info()['target_update_cuda'] != 'CUDA kernel')"
)


class MissingError(Exception):
    """Says what is needed and missing."""


@dataclass(frozen=True)
class Interpreter:
    """A Python and where it looks for modules first."""

    executable: str
    python_path: tuple[str, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        if not self.python_path:
            return dict(os.environ)
        inherited = os.environ.get("PYTHONPATH")
        path = (*self.python_path, *([inherited] if inherited else []))
        return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}

    def succeeds(self, code: str) -> bool:
        command = (self.executable, "-c", code)
        # Not in the root, whose fastreplay/ has no native modules.
        return subprocess.run(command, env=self.environment, cwd="/", capture_output=True, check=False).returncode == 0


def run(script: str, packages: Mapping[str, str], arguments: Sequence[str], *, rebuild: bool) -> int:
    """Run a script that measures, once all that it needs is there.

    Returns:
        The exit status, 2 where something is missing; a line then says what.
    """
    try:
        require_device()
        interpreter = prepare(packages, rebuild=rebuild)
    except MissingError as missing:
        sys.stderr.write(f"{script.removesuffix('.py')}: {missing}\n")
        return 2
    _say("Measuring")
    command = (interpreter.executable, str(ROOT / "bench" / script), *arguments)
    return subprocess.run(command, env=interpreter.environment, check=False).returncode


def require_device(load: Callable[[str], ctypes.CDLL] = ctypes.CDLL) -> None:
    """Ask the driver for a device.

    Raises:
        MissingError: There is no driver, or it has none.
    """
    needs = "needs an NVIDIA GPU and its driver"
    try:
        driver = load("libcuda.so.1")
    except OSError as error:
        reason = f"{needs}; libcuda.so.1 was not found"
        raise MissingError(reason) from error
    count = ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status or not count.value:
        reason = f"{needs}; the driver answers {f'error {status}' if status else 'that there is no device'}"
        raise MissingError(reason)


def prepare(packages: Mapping[str, str], *, rebuild: bool) -> Interpreter:
    """Return an interpreter with torch and with fastreplay's CUDA part, built where there is none.

    Args:
        packages: What must be importable besides, and the names by which pip knows it.
        rebuild: Build even where this interpreter has a CUDA part.

    Raises:
        MissingError: Something cannot be had.
    """
    current = Interpreter(sys.executable)
    sees_device = _SEES_DEVICE.format("".join(f", {module}" for module in packages))
    if not rebuild and current.succeeds(_HAS_KERNEL) and current.succeeds(sees_device):
        _say(f"Using fastreplay as {sys.executable} has it, with its CUDA part (--rebuild: build it anew)")
        return current
    base = _with_torch(current, sees_device, packages.values())
    nvcc = find_nvcc(os.environ)
    _say(f"Building fastreplay with {nvcc} into {_SITE}")
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    command = (base.executable, *pip, "--no-deps", "--upgrade", "--target", str(_SITE), str(ROOT))
    settings = {"FASTREPLAY_CUDA": "ON", "CUDACXX": nvcc, "SKBUILD_BUILD_DIR": str(_BUILD / "python")}
    _run("building fastreplay", *command, **settings)
    # Without the virtual environment around it: an editable fastreplay there would come first.
    built = Interpreter(_base_executable(base), (str(_SITE), _packages(base)))
    if not built.succeeds(_HAS_KERNEL):
        reason = f"needs a CUDA part that runs here; the one built into {_SITE} does not (see fr.backend_info())"
        raise MissingError(reason)
    return built


def find_nvcc(environment: Mapping[str, str]) -> str:
    """Return the CUDA compiler: CUDACXX, else of the PATH, else of /usr/local.

    Raises:
        MissingError: There is none.
    """
    usual = [Path("/usr/local/cuda/bin/nvcc"), *sorted(Path("/usr/local").glob("cuda-*/bin/nvcc"), reverse=True)]
    found = environment.get("CUDACXX") or shutil.which("nvcc", path=environment.get("PATH"))
    found = found or next((str(path) for path in usual if path.exists()), None)
    if not found:
        reason = "needs nvcc 12.0 or later, in the PATH or named by CUDACXX"
        raise MissingError(reason)
    return found


def _with_torch(current: Interpreter, sees_device: str, packages: Iterable[str]) -> Interpreter:
    """Return this interpreter if its torch sees the device and it lacks nothing, else a virtual environment's."""
    if current.succeeds(sees_device):
        _say(f"Using torch as {current.executable} has it")
        return current
    environment = _BUILD / "venv"
    made = Interpreter(str(environment / "bin" / "python"))
    if not made.succeeds(sees_device):
        _say(f"Making {environment}")
        _run("making a virtual environment", current.executable, "-m", "venv", "--clear", str(environment))
        names = ("torch", "numpy", *packages)
        _say(f"Installing {', '.join(names)} into it (some GB)")
        _run("installing torch", made.executable, "-m", "pip", "install", "--quiet", *names)
    if not made.succeeds(sees_device):
        reason = f"needs a torch that sees the GPU; the one in {environment} does not: is the driver too old for it?"
        raise MissingError(reason)
    _say(f"Using torch as {made.executable} has it")
    return made


def _base_executable(interpreter: Interpreter) -> str:
    return _ask(interpreter, "import sys; print(sys._base_executable)")


def _packages(interpreter: Interpreter) -> str:
    return _ask(interpreter, "import sysconfig; print(sysconfig.get_path('purelib'))")


def _ask(interpreter: Interpreter, code: str) -> str:
    command = (interpreter.executable, "-c", code)
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _run(what: str, *command: str, **variables: str) -> None:
    environment = {**os.environ, **variables}
    if subprocess.run(command, env=environment, check=False).returncode:
        reason = f"{what} failed; the lines above say why"
        raise MissingError(reason)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
