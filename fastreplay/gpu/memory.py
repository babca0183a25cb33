# SPDX-License-Identifier: MIT
"""Page-locked memory, and copies between it and a device's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["bytes_of", "copy", "is_on", "page_locked"]


def page_locked(num_bytes: int, device: torch.device) -> torch.Tensor:
    """Return page-locked memory, (num_bytes,) uint8.

    Raises:
        RuntimeError: It cannot be had.
    """
    needed = f"device: {device} needs page-locked memory"
    try:
        memory = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
    except RuntimeError as error:
        raise RuntimeError(f"{needed}, and {num_bytes} bytes of it cannot be had: {error}") from error
    if num_bytes and not memory.is_pinned():
        raise RuntimeError(f"{needed}, and torch gave {num_bytes} bytes that are not")
    return memory


def copy(target: torch.Tensor, source: torch.Tensor, stream: torch.cuda.Stream) -> None:
    """Queue a copy from page-locked memory."""
    with torch.cuda.stream(stream):
        target.copy_(source, non_blocking=True)


def is_on(memory: torch.Tensor, device: torch.device) -> bool:
    """Tell whether memory is a device's."""
    return memory.device == device


def bytes_of(memory: torch.Tensor) -> NDArray[np.uint8]:
    """Return the bytes of memory on a device, after what the current stream has queued."""
    found: NDArray[np.uint8] = memory.cpu().numpy()
    return found
