# SPDX-License-Identifier: MIT
"""bfloat16, for which NumPy has no dtype of its own: that of the package ml_dtypes. Loaded when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

__all__ = ["BFLOAT16", "array_of_bfloat16", "bfloat16", "dtype_named", "kind_of", "tensor_of"]

BFLOAT16 = "bfloat16"  # to NumPy and to torch


def bfloat16() -> np.dtype[np.generic]:
    """Return the dtype.

    Raises:
        ImportError: ml_dtypes is not there.
    """
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError(f"bfloat16 needs ml_dtypes: pip install 'fastreplay[bfloat16]' ({error})") from error
    dtype: np.dtype[np.generic] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def dtype_named(name: Any) -> np.dtype[np.generic]:
    """Return what `numpy.dtype` makes of a name, or of anything else.

    Raises:
        TypeError: It is no dtype.
        ImportError: It is bfloat16, and ml_dtypes is not there.
    """
    return bfloat16() if isinstance(name, str) and name == BFLOAT16 else np.dtype(name)


def kind_of(dtype: np.dtype[Any]) -> str:
    """Return a dtype's kind, "f" for bfloat16, which says that it is of void."""
    return "f" if dtype.kind == "V" and dtype.name == BFLOAT16 else dtype.kind


def array_of_bfloat16(tensor: torch.Tensor) -> NDArray[np.generic]:
    """Return a torch.bfloat16 tensor on the CPU as an array, which shares its memory.

    Raises:
        ImportError: ml_dtypes is not there.
        TypeError, RuntimeError: NumPy cannot hold it.
    """
    import torch

    array: NDArray[np.generic] = tensor.view(torch.int16).numpy().view(bfloat16())
    return array


def tensor_of(array: NDArray[Any]) -> torch.Tensor:
    """Return an array as a tensor, which shares its memory.

    Raises:
        TypeError: torch has no such dtype.
    """
    import torch

    if array.dtype.kind == "V" and array.dtype.name == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
