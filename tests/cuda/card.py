# SPDX-License-Identifier: MIT
"""The card that is to be tried, as the driver names it. Knows no torch: it is asked before anything is installed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # of enum CUdevice_attribute


@dataclass(frozen=True)
class Card:
    """The first CUDA device.

    Attributes:
        name: As its maker calls it.
        architecture: Its compute capability, 90 for 9.0.
        cuda: The CUDA version that the driver supports, 13000 for 13.0.
    """

    name: str
    architecture: int
    cuda: int

    def __str__(self) -> str:
        major, minor = divmod(self.architecture, 10)
        return f"{self.name}, compute capability {major}.{minor}, driver for CUDA {self.cuda // 1000}"


def find_card(load: Callable[[str], Any] = ctypes.CDLL) -> Card | None:
    """Return the first device, None where there is no driver or it has none."""
    try:
        driver = load("libcuda.so.1")
    except OSError:
        return None
    count, device, version = (ctypes.c_int() for _ in range(3))
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    if driver.cuDeviceGet(ctypes.byref(device), 0) or driver.cuDriverGetVersion(ctypes.byref(version)):
        return None
    name = ctypes.create_string_buffer(256)
    capability = [ctypes.c_int(), ctypes.c_int()]
    failed = driver.cuDeviceGetName(name, len(name), device)
    for value, attribute in zip(capability, (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR), strict=True):
        failed = failed or driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    major, minor = (value.value for value in capability)
    return None if failed else Card(name.value.decode(errors="replace"), 10 * major + minor, version.value)
