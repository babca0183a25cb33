# SPDX-License-Identifier: MIT
"""What becomes of a minibatch's tensors and arrays: the arguments of `to`, NumPy's arrays, bytes in a pickle."""

from __future__ import annotations

from pickle import PickleBuffer
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fastreplay.support.bfloat16 import BFLOAT16, array_of_bfloat16, dtype_named, tensor_of
from fastreplay.support.checks import TORCH_DTYPES, checked_device, imported

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from numpy.typing import NDArray

__all__ = ["conversion", "is_cast", "pack", "to_numpy", "unpack", "unpack_tensor"]


def conversion(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[torch.device | None, torch.dtype | None, bool, bool]:
    """Return device, dtype, non_blocking and copy of the arguments of `torch.Tensor.to`.

    Raises:
        TypeError: An argument is of the wrong type, unknown or given twice, or the dtype is that of integers.
        RuntimeError: The device cannot be had.
    """
    import torch

    names = ["device", "dtype", "non_blocking", "copy"]
    given = dict(kwargs)
    if args and isinstance(args[0], torch.dtype):
        names.remove("device")
    elif args and isinstance(args[0], torch.Tensor):
        names[:2] = ["other"]
    if len(args) > len(names):
        raise TypeError(f"to: expected at most {len(names)} arguments ({', '.join(names)}), got {len(args)}")
    for name, value in zip(names, args, strict=False):
        if name in given:
            raise TypeError(f"to: {name!r} was given twice")
        given[name] = value
    if "other" in given:
        other = given.pop("other")
        if not isinstance(other, torch.Tensor):
            raise TypeError(f"other: expected a tensor, got {type(other).__name__}")
        if twice := {"device", "dtype"} & given.keys():
            raise TypeError(f"to: {min(twice)!r} was given twice, the tensor has one")
        given |= {"device": other.device, "dtype": other.dtype}
    if unknown := given.keys() - {"device", "dtype", "non_blocking", "copy"}:
        raise TypeError(f"to: {min(unknown)!r} is unknown; expected device, dtype, other, non_blocking or copy")
    return (
        _device(given.get("device")),
        _dtype(given.get("dtype")),
        bool(given.get("non_blocking", False)),
        bool(given.get("copy", False)),
    )


def _device(device: object) -> torch.device | None:
    import torch

    if device is None:
        return None
    if not isinstance(device, (torch.device, str, int)) or isinstance(device, bool):
        raise TypeError(f"device: expected a device, dtype or tensor, got {device!r}")
    return torch.device(checked_device(device))


def _dtype(dtype: object) -> torch.dtype | None:
    import torch

    if dtype is None:
        return None
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype: expected a torch.dtype, got {dtype!r}")
    if not dtype.is_floating_point and not dtype.is_complex:
        raise TypeError(f"dtype: expected a floating-point dtype, got {dtype}: only floating-point fields are cast")
    return dtype


def is_cast(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Tell whether a field takes a dtype: floating-point numbers any, complex ones a complex one."""
    return tensor.is_floating_point() or (tensor.is_complex() and dtype.is_complex)


def to_numpy(name: str, tensor: torch.Tensor) -> NDArray[np.generic]:
    """Return a field's array, which shares a CPU tensor's memory.

    Raises:
        TypeError: NumPy has no such dtype, or the tensor lies where NumPy cannot follow.
    """
    try:
        plain = tensor.detach().cpu().resolve_conj().resolve_neg()
        return array_of_bfloat16(plain) if _is_bfloat16(plain) else cast("NDArray[np.generic]", plain.numpy())
    except (TypeError, RuntimeError, NotImplementedError, ImportError):
        kind = f"a {tensor.dtype} {tensor.layout} one on {tensor.device}"
        raise TypeError(f"{name}: expected a tensor that NumPy can hold, got {kind}") from None


def pack(name: str, value: Any, protocol: int) -> Any:
    """Return what stands for a field in a pickle: dtype, shape and bytes, which name nothing of NumPy's."""
    torch = imported("torch")
    dtype = None
    if torch is not None and isinstance(value, torch.Tensor) and str(value.dtype)[len("torch.") :] in TORCH_DTYPES:
        if _is_bfloat16(value) and value.layout == torch.strided:  # which needs no dtype of NumPy's here
            value, dtype = value.detach().resolve_neg().view(torch.int16), BFLOAT16
        value = to_numpy(name, value)
    if not isinstance(value, np.ndarray):
        return value  # torch's to pickle
    array: Any = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    if dtype is None:
        dtype = BFLOAT16 if value.dtype.name == BFLOAT16 else value.dtype.str
    return dtype, value.shape, PickleBuffer(array) if protocol >= 5 else array.tobytes()


def unpack(packed: Any) -> Any:
    """Return the array of what `pack` made."""
    if not isinstance(packed, tuple):
        return packed
    dtype, shape, data = packed
    memory = memoryview(data)
    return np.ndarray(shape, dtype_named(dtype), buffer=bytearray(memory) if memory.readonly else memory)


def unpack_tensor(packed: Any) -> Any:
    """Return the tensor of what `pack` made."""
    if not isinstance(packed, tuple):
        return packed
    dtype, *rest = packed
    if dtype != BFLOAT16:
        return tensor_of(unpack(packed))
    import torch

    return tensor_of(unpack(("<i2", *rest))).view(torch.bfloat16)


def _is_bfloat16(tensor: torch.Tensor) -> bool:
    import torch

    return tensor.dtype is torch.bfloat16
