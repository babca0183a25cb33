# SPDX-License-Identifier: MIT
"""The CUDA part: the library of csrc/cuda beside the native modules, its functions, and why there are none."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from fastreplay import _core

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = [
    "CudaFollowing",
    "CudaMasses",
    "CudaSampling",
    "CudaStreams",
    "cuda_error",
    "cuda_facts",
    "cuda_following",
    "cuda_masses",
    "cuda_sampling",
    "cuda_sender",
    "cuda_streams",
    "cuda_update",
]


@cache
def cuda_update(device: int) -> tuple[int, str]:
    """Return the address of the target update for a CUDA device, or 0, and the reason."""
    library, status = _prepared("updates", device)
    if library is None:
        return 0, status
    return ctypes.cast(library.fastreplay_cuda_update_targets, ctypes.c_void_p).value or 0, status


def cuda_sender() -> tuple[int, str]:
    """Return the address of fastreplay_cuda_send (csrc/cuda/transfer.h), or 0, and the reason."""
    _, num_devices, status = cuda_facts()
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
    library, status = _prepared("sampling", device)
    if library is None:
        return None, status
    number, pointer = ctypes.c_int, ctypes.c_void_p
    library.fastreplay_cuda_set_window.argtypes = (number, pointer, pointer, pointer)
    library.fastreplay_cuda_sample.argtypes = (number, pointer, pointer)
    return CudaSampling(library.fastreplay_cuda_set_window, library.fastreplay_cuda_sample), status


class CudaMasses(NamedTuple):
    """Functions of csrc/cuda/masses.h."""

    num_bytes: Callable[[int], int]
    begin: Callable[..., int]
    settle: Callable[..., int]
    update: Callable[..., int]


@cache
def cuda_masses(device: int) -> tuple[CudaMasses | None, str]:
    """Return what keeps masses on a CUDA device, or None, and the reason."""
    library, status = _prepared("masses", device)
    if library is None:
        return None, status
    num_bytes = library.fastreplay_cuda_masses_bytes
    num_bytes.argtypes, num_bytes.restype = (ctypes.c_uint64,), ctypes.c_uint64
    queued = (
        library.fastreplay_cuda_begin_masses,
        library.fastreplay_cuda_settle_masses,
        library.fastreplay_cuda_update_masses,
    )
    for function in queued:
        function.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    return CudaMasses(num_bytes, *queued), status


class CudaFollowing(NamedTuple):
    """Functions of csrc/cuda/following.h."""

    complete_links: Callable[..., int]


@cache
def cuda_following(device: int) -> tuple[CudaFollowing | None, str]:
    """Return what keeps links on a CUDA device, or None, and the reason."""
    library, status = _prepared("following", device)
    if library is None:
        return None, status
    complete = library.fastreplay_cuda_complete_links
    complete.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    return CudaFollowing(complete), status


class CudaStreams(NamedTuple):
    """Functions of csrc/cuda/stream.h."""

    is_done: Callable[..., int]
    wait_for: Callable[..., int]
    is_captured: Callable[..., int]


@cache
def cuda_streams(device: int) -> CudaStreams | None:
    """Return what asks streams and events of a CUDA device, or None without the CUDA part."""
    library = _cuda_library()
    if library is None or device >= cuda_facts()[1]:
        return None
    functions = CudaStreams(
        library.fastreplay_cuda_is_done, library.fastreplay_cuda_wait_for, library.fastreplay_cuda_is_captured
    )
    for function in functions:
        function.argtypes = (ctypes.c_int, ctypes.c_void_p)  # type: ignore[attr-defined]
    return functions


def cuda_error(error: int) -> str:
    """Return the CUDA run-time's words for an error number."""
    library = _cuda_library()
    return f"CUDA error {error}" if library is None else library.fastreplay_cuda_error_string(error).decode()


@cache
def cuda_facts() -> tuple[bool, int, str]:
    """Return whether there is a CUDA part, how many devices it can use, and the versions or the reason."""
    library, reason = _load_cuda(_folder())
    if library is None:
        return False, 0, reason
    count = library.fastreplay_cuda_device_count()
    runtime, driver = library.fastreplay_cuda_runtime_version(), library.fastreplay_cuda_driver_version()
    versions = f"run-time {_readable(runtime)}, driver {_readable(driver) if driver else 'not found'}"
    if count < 0:
        reason = library.fastreplay_cuda_error_string(-count).decode()
        return True, 0, f"{reason} ({versions})"
    return True, count, versions


def _readable(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _prepared(kernels: str, device: int) -> tuple[ctypes.CDLL | None, str]:
    """Return the CUDA part with such kernels loaded onto a device, or None, and the versions or the reason."""
    _, num_devices, status = cuda_facts()
    library = _cuda_library()
    if library is None or device >= num_devices:
        return None, status
    if error := getattr(library, f"fastreplay_cuda_prepare_{kernels}")(device):
        return None, f"{cuda_error(error)} ({status})"
    return library, status


def _folder() -> Path:
    from pathlib import Path  # late: it takes milliseconds, and importing fastreplay no other

    return Path(_core.__file__).parent


def _cuda_library() -> ctypes.CDLL | None:
    return _load_cuda(_folder())[0]


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
