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
import sys
from functools import cache
from typing import NamedTuple

import torch

__all__ = ["FormAbi", "TorchAbi", "form_abi", "holds_handle", "shows_owners", "torch_abi"]

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


class FormAbi(NamedTuple):
    """Addresses of functions that tell what a tensor is, and what they tell of those there are kernels for."""

    get_layout: int
    get_device_type: int
    get_dtype: int
    get_dim: int
    get_sizes: int
    get_strides: int
    strided: int
    cpu: int
    float32: int
    float64: int


@cache
def form_abi() -> FormAbi | None:
    """Return torch's functions about form, None where they cannot be had or `torch_abi` is None."""
    abi = torch_abi()
    if abi is None:
        return None
    library = ctypes.CDLL(torch._C.__file__)
    names = ("layout", "device_type", "dtype", "dim", "sizes", "strides")
    addresses = [_address(library, f"aoti_torch_get_{name}") for name in names]
    if not all(addresses):
        return None
    probes = torch.zeros(2, 3), torch.zeros(3, 2, dtype=torch.float64).t()
    single, double = [[_asked(address, probe, abi) for address in addresses[:4]] for probe in probes]
    lists = [[_asked_list(address, probe, abi) for address in addresses[4:]] for probe in probes]
    if lists != [[list(probe.shape), list(probe.stride())] for probe in probes]:
        return None
    if single[:2] != double[:2] or single[2] == double[2] or (single[3], double[3]) != (2, 2):
        return None
    layout, device_type, float32, _ = single
    get_layout, get_device_type, get_dtype, get_dim, get_sizes, get_strides = addresses
    return FormAbi(
        get_layout, get_device_type, get_dtype, get_dim, get_sizes, get_strides, layout, device_type, float32, double[2]
    )


@cache
def shows_owners() -> bool:
    """Tell whether a tensor that an autograd graph saved has more references in Python than one that none did."""
    with torch.inference_mode(False), torch.enable_grad():
        saved, weight = torch.zeros(1).data, torch.ones(1, requires_grad=True)
        before = sys.getrefcount(saved)
        product = weight * saved
        during = sys.getrefcount(saved)
        del product
        return during > before == sys.getrefcount(saved)


def holds_handle(abi: TorchAbi, tensor: torch.Tensor) -> bool:
    """Tell whether a tensor object holds its tensor where `abi` says."""
    return ctypes.c_size_t.from_address(id(tensor) + abi.handle_offset).value == tensor._cdata


def _address(library: ctypes.CDLL, name: str) -> int:
    try:
        return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
    except AttributeError:
        return 0


def _asked(address: int, tensor: torch.Tensor, abi: TorchAbi) -> int:
    """Ask a function for an integer of at most 64 bits."""
    answer = ctypes.c_int64(0)
    ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(address)(
        id(tensor) + abi.handle_offset, ctypes.byref(answer)
    )
    return answer.value


def _asked_list(address: int, tensor: torch.Tensor, abi: TorchAbi) -> list[int]:
    """Ask a function for one integer a dimension."""
    values = ctypes.cast(_asked(address, tensor, abi), ctypes.POINTER(ctypes.c_int64))
    return values[: tensor.dim()]


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
