# SPDX-License-Identifier: MIT
"""Masters on a CUDA device, and the streams that move them: torch knows only of the one that they were made on."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch

from fastreplay.gpu.streams import current_handle, is_captured

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from fastreplay.target.pair import Pair

__all__ = ["DeviceMasters", "device_masters"]


def device_masters(pairs: Iterable[Pair]) -> list[DeviceMasters]:
    """Return those masters of pairs that are on CUDA devices, by device."""
    groups: defaultdict[torch.device, list[Tensor]] = defaultdict(list)
    for pair in pairs:
        if pair.master is not None and pair.master.is_cuda:
            groups[pair.master.device].append(pair.master)
    return [DeviceMasters(device, masters) for device, masters in groups.items()]


class DeviceMasters:
    """Masters on one device, made on the stream that is current now, and moved on any."""

    def __init__(self, device: torch.device, masters: list[Tensor]) -> None:
        self._device = device
        self._masters = masters
        self._made = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._made.record(torch.cuda.current_stream(device))
        self._joined = {current_handle(device)}

    def join(self) -> None:
        """Let what the calling thread's current stream is given next come after the masters were made.

        And let their memory not be given to others before that is done.
        """
        handle = current_handle(self._device)
        if handle in self._joined:
            return
        stream = torch.cuda.current_stream(self._device)
        for master in self._masters:
            master.record_stream(stream)
        # A graph cannot wait for what is outside of it; torch begins a capture once all before it is done.
        if not is_captured(self._device, handle):
            stream.wait_event(self._made)
            self._joined.add(handle)
