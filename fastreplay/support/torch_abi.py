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
import sysconfig
import weakref
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FormAbi", "TensorOffsets", "TorchAbi", "form_abi", "holds_handle", "tensor_offsets", "torch_abi"]

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


class TensorOffsets(NamedTuple):
    """Where the parts of a tensor lie in each other, in bytes; `weak_references` may lie before the object."""

    storage: int  # in torch's tensor
    counter: int  # in torch's tensor, of its versions
    shell_bytes: int  # of the Python object
    compare_from: int  # in the Python object, behind its count of references
    weak_references: int  # in the Python object


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
_NUM_TENSOR_WORDS = 22


def _keys_offset() -> int | None:
    """Find the dispatch keys within a tensor: the one word that is what torch says of every kind of tensor."""
    probes = _probes_of_keys()
    found = [
        i
        for i in range(_NUM_TENSOR_WORDS)
        if all(ctypes.c_uint64.from_address(probe._cdata + 8 * i).value == _keys(probe) for probe in probes)
    ]
    return 8 * found[0] if len(found) == 1 else None


@cache
def tensor_offsets() -> TensorOffsets | None:
    """Return where tensors' parts lie, None where it cannot be known or what is done to a tensor does not show."""
    abi = torch_abi()
    if abi is None or sysconfig.get_config_var("Py_GIL_DISABLED") or not hasattr(_LIBC, "malloc_usable_size"):
        return None
    with torch.inference_mode(False):
        found = _found_offsets()
        return found if found is not None and _everything_shows(abi, found) else None


def _found_offsets() -> TensorOffsets | None:
    tensor = torch.zeros(3)
    alias, other = tensor.detach(), tensor.data
    # An allocator may give more bytes than there are, to one more than to the other: what lies there says nothing.
    words, shared, own = (_words(each._cdata)[:_NUM_TENSOR_WORDS] for each in (tensor, alias, other))
    # The storage is where its address is; the counter is what an alias shares, and `data` does not.
    storages = [i for i, word in enumerate(words) if word == tensor.untyped_storage()._cdata]
    counters = [
        i
        for i, (word, same, another) in enumerate(zip(words, shared, own, strict=True))
        if word == same != another and word > _LOWEST_ADDRESS
    ]
    if len(storages) != 1 or len(counters) != 1 or not 0 < _usable_size(words[counters[0]]) <= _MOST_BYTES:
        return None
    before = _words(words[counters[0]])
    tensor.add_(1)
    if _words(words[counters[0]]) == before:
        return None
    weak_references, word_bytes = torch.Tensor.__weakrefoffset__, ctypes.sizeof(ctypes.c_void_p)
    reference = weakref.ref(tensor)
    if ctypes.c_size_t.from_address(id(tensor) + weak_references).value != id(reference):
        return None
    return TensorOffsets(
        storages[0] * word_bytes, counters[0] * word_bytes, torch.Tensor.__basicsize__, word_bytes, weak_references
    )


# What may be done to a tensor, one of each way to leave a trace on it or to hold what it is made of.
_TRACES: tuple[Callable[[torch.Tensor], object], ...] = (
    lambda tensor: tensor.requires_grad_(),
    lambda tensor: tensor.requires_grad_().requires_grad_(False),
    lambda tensor: setattr(tensor, "grad", torch.zeros_like(tensor)),
    lambda tensor: setattr(tensor, "note", 1),
    lambda tensor: setattr(tensor, "_backward_hooks", {}),
    lambda tensor: tensor.add_(1),
    lambda tensor: tensor.untyped_storage(),
    lambda tensor: tensor.__dict__,
    weakref.ref,
    lambda tensor: tensor.detach(),
    lambda tensor: tensor.data,
    lambda tensor: tensor[1:],
    lambda tensor: tensor.numpy(),
    lambda tensor: tensor * torch.ones(2, 3, requires_grad=True),
    lambda tensor: tensor,
)


# The same, where the tensor's elements are others then, or made of others.
_CHANGES: tuple[Callable[[torch.Tensor], object], ...] = (
    lambda tensor: setattr(tensor, "data", torch.zeros_like(tensor)),
    lambda tensor: setattr(tensor, "data", tensor.view(torch.int32)),
    lambda tensor: setattr(tensor, "data", tensor[:1]),
    lambda tensor: setattr(tensor, "data", torch._neg_view(tensor)),
    lambda tensor: tensor.set_(torch.zeros_like(tensor).untyped_storage()),
    lambda tensor: tensor.resize_(1, 3),
    lambda tensor: tensor.unsqueeze_(0),
    lambda tensor: tensor.t_(),
    lambda tensor: tensor.mul_(torch.ones(2, 3, requires_grad=True)),
)


def _everything_shows(abi: TorchAbi, offsets: TensorOffsets) -> bool:
    """Try the ways to leave a trace on a tensor: each must show, and none where nothing was done."""
    from fastreplay.batch.tensors import FieldTensors

    with torch.enable_grad():
        for trace in (*_TRACES, *_CHANGES):
            tensors = FieldTensors((torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)), abi, offsets)
            if not tensors.is_pristine():
                return False
            left = trace(tensors.hand_out()[0])
            if tensors.is_pristine():
                return False
            if (tensors.first_changed() == 0) is not (trace in _CHANGES):
                return False
            del left
    return True


_LIBC = ctypes.CDLL(None)
_LOWEST_ADDRESS = 1 << 16
_MOST_BYTES = 64  # of a version counter


def _usable_size(address: int) -> int:
    """Return the bytes that the allocator gave an object."""
    usable_size = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p)(("malloc_usable_size", _LIBC))
    return int(usable_size(address))


def _words(address: int) -> list[int]:
    """Return an object's bytes, as words of a pointer's size."""
    count = _usable_size(address) // ctypes.sizeof(ctypes.c_void_p)
    return list((ctypes.c_size_t * count).from_address(address))


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
