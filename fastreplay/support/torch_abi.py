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

__all__ = ["NUM_TENSOR_WORDS", "FormAbi", "TorchAbi", "form_abi", "holds_handle", "torch_abi", "torch_is_fused"]

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
    """Addresses of functions that tell what a tensor is, and what they tell of those there are kernels for.

    The set of dispatch keys, one word of the tensor, tells more than any of torch's functions: an ordinary tensor
    on the CPU has the keys of all such. One of another layout or device, a view whose sign torch has not turned
    yet, a zero without memory or one within a function transform has others; one made in inference mode too.
    """

    get_dtype: int
    get_dim: int
    get_sizes: int
    get_strides: int
    float32: int
    float64: int
    keys_offset: int  # bytes from the start of the tensor, at the address that its handle holds
    keys: int
    inference_keys: int  # of a tensor made in inference mode


@cache
def form_abi() -> FormAbi | None:
    """Return torch's functions about form, None where they cannot be had or `torch_abi` is None."""
    abi = torch_abi()
    if abi is None:
        return None
    library = ctypes.CDLL(torch._C.__file__)
    addresses = [_address(library, f"aoti_torch_get_{name}") for name in ("dtype", "dim", "sizes", "strides")]
    keys_offset = _keys_offset()
    if not all(addresses) or keys_offset is None:
        return None
    probes = torch.zeros(2, 3), torch.zeros(3, 2, dtype=torch.float64).t()
    float32, float64 = (_asked(addresses[0], probe, abi) for probe in probes)
    lists = [[_asked_list(address, probe, abi) for address in addresses[2:]] for probe in probes]
    if lists != [[list(probe.shape), list(probe.stride())] for probe in probes]:
        return None
    if float32 == float64 or [_asked(addresses[1], probe, abi) for probe in probes] != [2, 2]:
        return None
    plain, inference = _probes_of_keys()[:2]
    get_dtype, get_dim, get_sizes, get_strides = addresses
    return FormAbi(
        get_dtype, get_dim, get_sizes, get_strides, float32, float64, keys_offset, _keys(plain), _keys(inference)
    )


def _probes_of_keys() -> list[torch.Tensor]:
    """Return a plain tensor, one made in inference mode, and some more of other keys."""
    with torch.inference_mode(False):
        plain, weight = torch.zeros(3, device="cpu"), torch.nn.Parameter(torch.zeros(2, 2, device="cpu"))
        others = [weight, torch._neg_view(plain), torch.zeros(3, device="meta"), torch._efficientzerotensor((3,))]
    with torch.inference_mode():
        inference = torch.zeros(3, device="cpu")
    return [plain, inference, *others]


def _keys(tensor: torch.Tensor) -> int:
    keys: int = torch._C._dispatch_keys(tensor).raw_repr()
    return keys


# Words of a tensor that are looked at in search of its keys; fewer than the smallest that torch 2 has.
NUM_TENSOR_WORDS = 22


def _keys_offset() -> int | None:
    """Find the dispatch keys within a tensor: the one word that is what torch says of every kind of tensor."""
    probes = _probes_of_keys()
    found = [
        i
        for i in range(NUM_TENSOR_WORDS)
        if all(ctypes.c_uint64.from_address(probe._cdata + 8 * i).value == _keys(probe) for probe in probes)
    ]
    return 8 * found[0] if len(found) == 1 else None


@cache
def torch_is_fused() -> bool:
    """Tell whether torch's CPU kernels multiply and add in one instruction here."""
    return torch.backends.cpu.get_cpu_capability() != "DEFAULT"


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
