# SPDX-License-Identifier: MIT
"""What a ring's transitions weigh, in the memory of a CUDA device: what csrc/cuda/masses.h asks for."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastreplay.gpu import memory
from fastreplay.gpu.library import cuda_masses

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from fastreplay.gpu.ring import DeviceRing, Stage

__all__ = ["MASS_BYTES", "DeviceMasses", "MassRule", "Weighing"]

MASS_BYTES = 4
_FIRST_MASS = 64  # FASTREPLAY_CUDA_FIRST_MASS
_STATE_BYTES = 16  # struct fastreplay_cuda_mass_state


class MassRule(NamedTuple):
    """mass = max(|p| + eps, floor)^alpha."""

    alpha: float
    eps: float
    floor: float


class _Masses(ctypes.Structure):
    """Struct fastreplay_cuda_masses of csrc/cuda/masses.h."""

    _fields_ = (
        ("memory", ctypes.c_void_p),
        ("capacity", ctypes.c_uint64),
        ("alpha", ctypes.c_double),
        ("eps", ctypes.c_double),
        ("floor", ctypes.c_double),
    )


class Weighing(ctypes.Structure):
    """Struct fastreplay_cuda_weighing of csrc/cuda/masses.h: how a minibatch is drawn by priority."""

    _fields_ = (
        ("masses", _Masses),
        ("is_stratified", ctypes.c_uint64),
        ("normalize", ctypes.c_uint64),
        ("uniform_mix", ctypes.c_double),
        ("beta", ctypes.c_double),
        ("weights_offset", ctypes.c_uint64),
        ("probabilities_offset", ctypes.c_uint64),
    )


class _Settling(ctypes.Structure):
    """Struct fastreplay_cuda_settling of csrc/cuda/masses.h."""

    _fields_ = (
        ("masses", _Masses),
        ("first_lost", ctypes.c_uint64),
        ("num_lost", ctypes.c_uint64),
        ("first_new", ctypes.c_uint64),
        ("num_new", ctypes.c_uint64),
    )


class _Update(ctypes.Structure):
    """Struct fastreplay_cuda_update of csrc/cuda/masses.h."""

    _fields_ = (
        ("masses", _Masses),
        ("window", ctypes.c_void_p),
        ("tickets", ctypes.c_void_p),
        ("priorities", ctypes.c_void_p),
        ("is_double", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
        ("result", ctypes.c_void_p),
    )


class DeviceMasses:
    """A mass for each slot of a ring on a device, and their sums over there. Calls take turns, as those of the ring.

    Args:
        ring: The one on the device.
        rule: What priorities weigh.

    Raises:
        RuntimeError: There is no CUDA part, or memory cannot be had.
    """

    def __init__(self, ring: DeviceRing, rule: MassRule) -> None:
        functions, reason = cuda_masses(ring.device.index)
        if functions is None:
            raise RuntimeError(f"priorities: on {ring.device} they need the CUDA part of fastreplay: {reason}")
        self._functions = functions
        self._ring = ring
        self._memory = ring.allocate(functions.num_bytes(ring.capacity))
        ring.free_after_use(self)
        self._masses = _Masses(self._memory.data_ptr(), ring.capacity, *rule)
        ring.begin()
        ring.launch(functions.begin, ctypes.addressof(self._masses))
        ring.end()

    def weighing(self, options: tuple[bool, int, float], weights_offset: int, probabilities_offset: int) -> Weighing:
        """Return how a minibatch is drawn: with the options of the core's sampler, into a block."""
        return Weighing(self._masses, *options, 0.0, weights_offset, probabilities_offset)

    def send(self, stage: Stage, masses: NDArray[np.float32], slot: int) -> None:
        """Queue a copy of masses of slots from one on, through a stage; do not wait. `settle` comes after it."""
        stage.beside[: masses.nbytes] = masses.view(np.uint8)
        first = _FIRST_MASS + slot * MASS_BYTES
        self._ring.send_beside(stage, 0, masses.nbytes, self._memory[first : first + masses.nbytes])

    def settle(self, lost: range, arrived: range) -> None:
        """Queue that tickets which are gone weigh nothing, and that others do whose masses were sent.

        As often as you like: where it was done for some of them, nothing changes.
        """
        capacity = self._ring.capacity
        slots = lost.start % capacity, len(lost), arrived.start % capacity, len(arrived)
        settling = _Settling(self._masses, *slots)
        self._ring.launch(self._functions.settle, ctypes.addressof(settling))

    def update(self, tickets: torch.Tensor, priorities: torch.Tensor, result: torch.Tensor, stream: int) -> None:
        """Queue an update on a stream.

        Args:
            tickets: (B,) int64 on the device, contiguous, as the others.
            priorities: (B,) float32 or float64.
            result: (2,) int64; gets how many took effect, and how many did not.
            stream: Its handle.
        """
        addresses = tickets.data_ptr(), priorities.data_ptr(), priorities.itemsize == 8, tickets.numel()
        update = _Update(self._masses, self._ring.window, *addresses, result.data_ptr())
        self._ring.check(self._functions.update(self._ring.device.index, stream, ctypes.addressof(update)))

    def read(self) -> NDArray[np.float32]:
        """Return the mass of each slot; wait for what is queued."""
        self._ring.begin()
        end = _FIRST_MASS + self._ring.capacity * MASS_BYTES
        return memory.bytes_of(self._memory[_FIRST_MASS:end]).view(np.float32)

    def read_state(self) -> tuple[float, int]:
        """Return the largest |p| + eps of an update, and how many priorities were no finite numbers; wait."""
        self._ring.begin()
        state = memory.bytes_of(self._memory[:_STATE_BYTES])
        return float(state[:8].view(np.float64)[0]), int(state[8:].view(np.uint64)[0])

    def forget_largest(self) -> None:
        """Queue that no update was so far."""
        self._ring.begin()
        self._ring.upload(self._memory[:8], np.zeros(1))
        self._ring.end()
