# SPDX-License-Identifier: MIT
"""What this build can do on this machine, for bug reports and for choosing a path."""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from typing import TypedDict

__all__ = ["BackendInfo", "backend_info"]


class BackendInfo(TypedDict):
    """Facts of a build on a machine."""

    version: str
    cuda_compiled: bool  # whether this build has the CUDA part
    cuda_devices: int
    cuda_status: str  # why there is no CUDA, or the versions of what there is


def backend_info() -> BackendInfo:
    """Return what this build of fastreplay can use here.

    Example:
        >>> import fastreplay as fr
        >>> sorted(fr.backend_info())
        ['cuda_compiled', 'cuda_devices', 'cuda_status', 'version']

    Thread safety:
        May be called from any thread.
    """
    from fastreplay import __version__

    library = _cuda_library()
    if library is None:
        return _info(__version__, False, 0, "built without a CUDA compiler")
    count = library.fastreplay_cuda_device_count()
    runtime, driver = library.fastreplay_cuda_runtime_version(), library.fastreplay_cuda_driver_version()
    versions = f"run-time {_readable(runtime)}, driver {_readable(driver) if driver else 'not found'}"
    if count < 0:
        reason = library.fastreplay_cuda_error_string(-count).decode()
        return _info(__version__, True, 0, f"{reason} ({versions})")
    return _info(__version__, True, count, versions)


def _info(version: str, compiled: bool, devices: int, status: str) -> BackendInfo:
    return {"version": version, "cuda_compiled": compiled, "cuda_devices": devices, "cuda_status": status}


def _readable(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


@cache
def _cuda_library() -> ctypes.CDLL | None:
    """Load the CUDA part, which lies beside the native modules; None where it was not built."""
    spec = importlib.util.find_spec("fastreplay._core")
    if spec is None or spec.origin is None:
        return None
    path = spec.origin.rpartition("/")[0] + "/libfastreplay_cuda.so"
    try:
        library = ctypes.CDLL(path)
    except OSError:
        return None
    library.fastreplay_cuda_error_string.restype = ctypes.c_char_p
    return library
