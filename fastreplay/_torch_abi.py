# SPDX-License-Identifier: MIT
"""torch's own C functions, looked up in the libraries that are loaded already, and tried before they are trusted.

fastreplay links no torch, so that one build serves every version. Asking Python for a tensor's data
pointer costs 80 ns, asking these functions 4 ns, which is what makes it affordable to ask at every
step. Three of them belong to the C interface that torch keeps stable for compiled models and for
extensions (aoti_torch_*, torch_*); the fourth, which counts up a tensor's version, is C++ by name. Where
anything is missing or answers wrongly, Python is asked.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import NamedTuple

import torch

__all__ = ["TorchAbi", "torch_abi"]

_BUMP_VERSION = (
    "_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE",
    "_ZN5torch8autograd4impl12bump_versionERKN2at10TensorBaseE",
)


class TorchAbi(NamedTuple):
    """Addresses of functions, and where a Python tensor object holds its tensor."""

    get_data_ptr: int
    get_numel: int
    bump_version: int
    parallel_for: int  # 0 before torch 2.10: one thread
    handle_offset: int  # bytes


@cache
def torch_abi() -> TorchAbi | None:
    """Return torch's functions, None where they cannot be had or do not do as they should."""
    try:
        library = ctypes.CDLL(torch._C.__file__)  # and, for names, all it was linked with
    except OSError:
        return None
    bump_version = next(filter(None, (_address(library, name) for name in _BUMP_VERSION)), 0)
    offset = _handle_offset(torch.ones(3))
    found = TorchAbi(
        _address(library, "aoti_torch_get_data_ptr"),
        _address(library, "aoti_torch_get_numel"),
        bump_version,
        _address(library, "torch_parallel_for"),
        offset or 0,
    )
    if not (found.get_data_ptr and found.get_numel and found.bump_version and found.handle_offset):
        return None
    return found if _works(found) else None


def holds_handle(abi: TorchAbi, tensor: torch.Tensor) -> bool:
    """Tell whether a tensor object holds its tensor where `abi` says."""
    return ctypes.c_size_t.from_address(id(tensor) + abi.handle_offset).value == tensor._cdata


def _address(library: ctypes.CDLL, name: str) -> int:
    try:
        return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
    except AttributeError:
        return 0


def _handle_offset(tensor: torch.Tensor) -> int | None:
    """Find the tensor's address within the Python object, in which nothing else can equal it."""
    header_bytes, word_bytes = object.__basicsize__, ctypes.sizeof(ctypes.c_void_p)
    for offset in range(header_bytes, torch._C.TensorBase.__basicsize__ - word_bytes + 1, word_bytes):
        if ctypes.c_size_t.from_address(id(tensor) + offset).value == tensor._cdata:
            return offset
    return None


def _works(abi: TorchAbi) -> bool:
    tensor, parameter = torch.zeros(2, 3), torch.nn.Parameter(torch.zeros(5))
    data, numel = ctypes.c_void_p(), ctypes.c_int64()
    get_data_ptr = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(abi.get_data_ptr)
    get_numel = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(abi.get_numel)
    bump_version = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(abi.bump_version)
    for probe in (tensor, parameter, tensor[1]):
        if not holds_handle(abi, probe):
            return False
        handle, version = id(probe) + abi.handle_offset, probe._version
        if get_data_ptr(handle, ctypes.byref(data)) or get_numel(handle, ctypes.byref(numel)):
            return False
        bump_version(handle)
        if (data.value, numel.value, probe._version) != (probe.data_ptr(), probe.numel(), version + 1):
            return False
    return True
