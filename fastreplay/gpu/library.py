# SPDX-License-Identifier: MIT
"""What this build can do on this machine, for bug reports and for choosing a path."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from fastreplay import _core

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BackendInfo", "backend_info"]


class BackendInfo(TypedDict):
    """Facts of a build on a machine."""

    version: str
    cuda_compiled: bool  # whether this build has the CUDA part
    cuda_devices: int
    cuda_status: str  # why there is no CUDA, or the versions of what there is
    target_update_cpu: str  # what moves the targets there, and in how many threads
    target_update_cuda: str  # the same, and why


def backend_info() -> BackendInfo:
    """Return what this build of fastreplay can use here.

    Example:
        >>> import fastreplay as fr
        >>> sorted(fr.backend_info())
        ['cuda_compiled', 'cuda_devices', 'cuda_status', 'target_update_cpu', 'target_update_cuda', 'version']

    Thread safety:
        May be called from any thread.
    """
    from fastreplay import __version__

    compiled, devices, status = _cuda_facts()
    return {
        "version": __version__,
        "cuda_compiled": compiled,
        "cuda_devices": devices,
        "cuda_status": status,
        "target_update_cpu": _cpu_update(),
        "target_update_cuda": _cuda_path(),
    }


@cache
def cuda_update(device: int) -> tuple[int, str]:
    """Return the address of the target update for a CUDA device, or 0, and the reason."""
    _, num_devices, status = _cuda_facts()
    library = _cuda_library()
    if library is None or device >= num_devices:
        return 0, status
    if error := library.fastreplay_cuda_prepare_updates(device):
        return 0, f"{library.fastreplay_cuda_error_string(error).decode()} ({status})"
    return ctypes.cast(library.fastreplay_cuda_update_targets, ctypes.c_void_p).value or 0, status


def cuda_sender() -> tuple[int, str]:
    """Return the address of fastreplay_cuda_send (csrc/cuda/transfer.h), or 0, and the reason."""
    _, num_devices, status = _cuda_facts()
    library = _cuda_library()
    if library is None or not num_devices:
        return 0, status
    return ctypes.cast(library.fastreplay_cuda_send, ctypes.c_void_p).value or 0, status


class CudaSampling(NamedTuple):
    """Functions of csrc/cuda/sampling.h."""

    set_window: Callable[..., int]
    sample: Callable[..., int]


@cache
def cuda_sampling(device: int) -> tuple[CudaSampling | None, str]:
    """Return what draws minibatches on a CUDA device, or None, and the reason."""
    _, num_devices, status = _cuda_facts()
    library = _cuda_library()
    if library is None or device >= num_devices:
        return None, status
    if error := library.fastreplay_cuda_prepare_sampling(device):
        return None, f"{cuda_error(error)} ({status})"
    number, pointer, word = ctypes.c_int, ctypes.c_void_p, ctypes.c_uint64
    library.fastreplay_cuda_set_window.argtypes = (number, pointer, pointer, word, word)
    library.fastreplay_cuda_sample.argtypes = (number, pointer, pointer)
    return CudaSampling(library.fastreplay_cuda_set_window, library.fastreplay_cuda_sample), status


def cuda_error(error: int) -> str:
    """Return the CUDA run-time's words for an error number."""
    library = _cuda_library()
    return f"CUDA error {error}" if library is None else library.fastreplay_cuda_error_string(error).decode()


def _cuda_path() -> str:
    address, reason = cuda_update(0)
    return "CUDA kernel" if address else f"torch._foreach_lerp_ ({reason})"


@cache
def _cuda_facts() -> tuple[bool, int, str]:
    """Return whether there is a CUDA part, how many devices it can use, and the versions or the reason."""
    library, reason = _load_cuda(Path(_core.__file__).parent)
    if library is None:
        return False, 0, reason
    count = library.fastreplay_cuda_device_count()
    runtime, driver = library.fastreplay_cuda_runtime_version(), library.fastreplay_cuda_driver_version()
    versions = f"run-time {_readable(runtime)}, driver {_readable(driver) if driver else 'not found'}"
    if count < 0:
        reason = library.fastreplay_cuda_error_string(-count).decode()
        return True, 0, f"{reason} ({versions})"
    return True, count, versions


def _cpu_update() -> str:
    try:
        from fastreplay.support.torch_abi import torch_abi
    except ImportError:
        return "none: torch is not installed"
    from fastreplay.target import watched

    abi = torch_abi()
    threads = "torch's threads" if abi is not None and abi.parallel_for else "one thread"
    return f"{watched.cpu_level()} kernel, {threads}, tensors watched {'natively' if abi is not None else 'in Python'}"


def _readable(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _cuda_library() -> ctypes.CDLL | None:
    return _load_cuda(Path(_core.__file__).parent)[0]


@cache
def _load_cuda(folder: Path) -> tuple[ctypes.CDLL | None, str]:
    """Load the CUDA part from beside the native modules, or return why there is none."""
    try:
        # csrc/cuda/compile.cmake makes the library or this file.
        reason = (folder / "libfastreplay_cuda.txt").read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        reason = ""
    if reason:
        return None, f"built without CUDA: {reason.strip()}"
    try:
        library = ctypes.CDLL(str(folder / "libfastreplay_cuda.so"))
        library.fastreplay_cuda_error_string.restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        return None, f"the CUDA part cannot be loaded: {error}"
    return library, ""
