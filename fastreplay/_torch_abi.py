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

__all__ = ["FormAbi", "TorchAbi", "form_abi", "torch_abi"]

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
    """Addresses of the functions that tell a tensor's memory, dtype, shape and strides."""

    get_data_ptr: int
    get_dtype: int
    get_dim: int
    get_sizes: int
    get_strides: int
    handle_offset: int  # bytes


@cache
def form_abi() -> FormAbi | None:
    """Return torch's functions, None where they cannot be had, or a tensor's owners in C++ do not show in Python."""
    abi = torch_abi()
    if abi is None or not _shows_owners():
        return None
    library = ctypes.CDLL(torch._C.__file__)
    found = FormAbi(
        abi.get_data_ptr,
        _address(library, "aoti_torch_get_dtype"),
        _address(library, "aoti_torch_get_dim"),
        _address(library, "aoti_torch_get_sizes"),
        _address(library, "aoti_torch_get_strides"),
        abi.handle_offset,
    )
    return found if all(found) and _tells_form(found) else None


def _shows_owners() -> bool:
    """Tell whether a tensor that an autograd graph saved has more references in Python than one that none did."""
    with torch.inference_mode(False), torch.enable_grad():
        saved, weight = torch.zeros(1).data, torch.ones(1, requires_grad=True)
        before = sys.getrefcount(saved)
        product = weight * saved
        during = sys.getrefcount(saved)
        del product
        return during > before == sys.getrefcount(saved)


def _tells_form(abi: FormAbi) -> bool:
    tensor = torch.zeros(2, 3, 4, dtype=torch.int16)[:, 1:].transpose(0, 2)
    number, pointer = ctypes.c_int64(), ctypes.POINTER(ctypes.c_int64)()
    code, other_code = ctypes.c_int32(), ctypes.c_int32()
    handle = id(tensor) + abi.handle_offset
    get = {
        name: ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(address)
        for name, address in abi._asdict().items()
    }
    if get["get_dim"](handle, ctypes.byref(number)) or number.value != 3:
        return False
    for name, expected in (("get_sizes", [4, 2, 2]), ("get_strides", [1, 4, 12])):
        if get[name](handle, ctypes.byref(pointer)) or pointer[:3] != expected:
            return False
    other = tensor.to(torch.float32)
    if get["get_dtype"](handle, ctypes.byref(code)):
        return False
    if get["get_dtype"](id(other) + abi.handle_offset, ctypes.byref(other_code)):
        return False
    return code.value != other_code.value


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
