# SPDX-License-Identifier: MIT
"""What this build can do on this machine, for bug reports and for choosing a path."""

from __future__ import annotations

from typing import TypedDict

from fastreplay.gpu.library import cuda_facts, cuda_update

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

    compiled, devices, status = cuda_facts()
    return {
        "version": __version__,
        "cuda_compiled": compiled,
        "cuda_devices": devices,
        "cuda_status": status,
        "target_update_cpu": _cpu_update(),
        "target_update_cuda": _cuda_path(),
    }


def _cuda_path() -> str:
    address, reason = cuda_update(0)
    return "CUDA kernel" if address else f"torch._foreach_lerp_ ({reason})"


def _cpu_update() -> str:
    try:
        from fastreplay.support.torch_abi import torch_abi
    except ImportError:
        return "none: torch is not installed"
    from fastreplay.target import watched

    abi = torch_abi()
    threads = "torch's threads" if abi is not None and abi.parallel_for else "one thread"
    return f"{watched.cpu_level()} kernel, {threads}, tensors watched {'natively' if abi is not None else 'in Python'}"
