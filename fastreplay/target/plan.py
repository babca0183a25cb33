# SPDX-License-Identifier: MIT
"""Which path moves which pair on this machine: native tables, and torch's operations for the rest."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastreplay.gpu.library import cuda_error, cuda_update
from fastreplay.gpu.streams import current_handle
from fastreplay.support.torch_abi import holds_handle, torch_abi, torch_is_fused
from fastreplay.target import watched
from fastreplay.target.device_masters import device_masters
from fastreplay.target.foreach import Foreach
from fastreplay.target.masters import with_masters
from fastreplay.target.members import containers_of
from fastreplay.target.pair import HALVES
from fastreplay.target.pairing import pairs_of
from fastreplay.target.tensor_memory import has_memory, is_dense, long_dims

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fastreplay.target.members import Containers, Tensors
    from fastreplay.target.pair import Pair
    from fastreplay.target.pairing import Buffers

__all__ = ["CHANGING", "Plan", "plan_of"]

CHANGING = "the tensors changed while they were paired: does another thread change the modules?"

_DTYPE_NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.complex64: "complex64",
    torch.complex128: "complex128",
}


class Plan:
    """An update of given pairs, made once: what moves them, and notices when they are no longer what they were.

    Attributes:
        pairs: What is moved.
        containers_are_same: Looks at all that holds the tensors, of which `move` looks at some.
        traceable: The same update in torch's operations alone, for code that torch traces.
    """

    def __init__(self, pairs: list[Pair], containers: Containers) -> None:
        groups: defaultdict[torch.device, list[Pair]] = defaultdict(list)
        rest: list[Pair] = []
        for pair in pairs:
            (groups[pair.target.device] if _has_kernel(pair) else rest).append(pair)
        self.pairs = pairs
        self.traceable = Foreach(pairs)
        self.by_torch = Foreach(rest)
        # Without any native pair, an empty table still looks at the containers.
        self.tables = [_table_of(device, group, containers) for device, group in groups.items()] or [
            _empty_table(containers)
        ]
        for pair in rest:
            _watch(self.tables[0], pair)
        self.devices = list(groups)
        self._masters = device_masters(pairs)
        self.in_writing_order = sorted(zip(groups, self.tables, strict=False), key=lambda entry: entry[0].type == "cpu")
        self.tau_device = _common_device(pairs)
        # Those never have a kernel; whether torch lets them be written is another question at every step.
        self.made_in_inference = next((pair.name for pair in rest if pair.target.is_inference()), None)
        self.containers_are_same = self.tables[0].containers_are_same

    @property
    def move(self) -> Callable[[float | Tensor], bool]:
        """`move(tau) -> bool`: one update. False: something changed, nothing was moved, and a new plan is needed.

        Not an attribute, in which a plan would keep itself, and so the tensors, until the collector comes.
        """
        if len(self.by_torch) or len(self.devices) > 1 or self._masters:
            return self._move_all
        [table] = self.tables  # which sees to everything by itself
        on_cuda = [device for device in self.devices if device.type == "cuda"]
        return partial(_launch, table, on_cuda[0]) if on_cuda else table.step

    def is_unchanged(self) -> bool:
        """Tell whether every tensor and every container is what it was."""
        return all(table.is_unchanged() for table in self.tables)

    def describe(self) -> str:
        """Say which tensors are moved how."""
        ways = []
        for device, table in zip(self.devices, self.tables, strict=False):
            kernel = f"{watched.cpu_level()} kernel" if device.type == "cpu" else "CUDA kernel"
            ways.append(f"{table.num_tensors} by the {kernel} on {device}")
        if len(self.by_torch):
            ways.append(f"{len(self.by_torch)} by torch")
        return ", ".join(ways) or "nothing to move"

    def check_writable(self) -> None:
        """Refuse to write targets that torch would not let be written now.

        Raises:
            RuntimeError: A target was made in inference mode, and this is outside of it.
        """
        if self.made_in_inference is not None and not torch.is_inference_mode_enabled():
            raise RuntimeError(
                f"{self.made_in_inference}: target was made in inference mode, and can be written only there"
            )

    def join_masters(self) -> None:
        """Let what the current streams are given next be ordered with what was done to the masters."""
        for masters in self._masters:
            masters.join()

    def _move_all(self, tau: float | Tensor) -> bool:
        # Nothing may be moved before all of it is known to be current; one table sees to that itself.
        is_one = len(self.devices) == 1 and not len(self.by_torch)
        if not is_one and not self.is_unchanged():
            return False
        self.check_writable()
        if isinstance(tau, Tensor) and tau.device != self.tau_device:
            tau = float(tau)  # waits for its device, once
        self.join_masters()
        # The last to be written are those whose writing cannot fail.
        if len(self.by_torch):
            self.by_torch.update(tau)
        for device, table in self.in_writing_order:
            if not (table.step(float(tau)) if device.type == "cpu" else _launch(table, device, tau)):
                return False
        return True


def plan_of(target: Tensors, online: Tensors, buffers: Buffers, masters: Mapping[str, Tensor] | None) -> Plan:
    """Pair tensors, and plan how they are moved; with masters, of which `masters` are those so far, unless it is None.

    Raises:
        TypeError, ValueError: As `pairs_of`.
    """
    pairs = pairs_of(target, online, buffers)
    if masters is not None:
        pairs = with_masters(pairs, masters)
    return Plan(pairs, containers_of(target) + containers_of(online))


def _common_device(pairs: Sequence[Pair]) -> torch.device | None:
    devices = {pair.target.device for pair in pairs}
    return devices.pop() if len(devices) == 1 else None


def _watch(table: watched.Table, pair: Pair) -> None:
    for tensor in (pair.target, pair.online):
        if _is_watchable(tensor):
            table.watch(tensor, tensor.detach())


def _is_watchable(tensor: Tensor) -> bool:
    abi = torch_abi()
    return has_memory(tensor) and (abi is None or holds_handle(abi, tensor))


def _launch(table: watched.Table, device: torch.device, tau: float | Tensor) -> bool:
    """Update on the device's current stream: no allocation, no synchronization, fit for a CUDA graph."""
    stream = current_handle(device)
    if isinstance(tau, Tensor) and tau.device == device:
        return table.step_on_device(0.0, stream, tau.data_ptr(), tau.dtype == torch.float64)
    return table.step_on_device(float(tau), stream, 0, False)


def _is_aligned(tensor: Tensor) -> bool:
    """Tell whether the elements lie where the language wants them; `torch.frombuffer` puts them anywhere."""
    return tensor.data_ptr() % (tensor.element_size() // (2 if tensor.is_complex() else 1)) == 0


def _has_kernel(pair: Pair) -> bool:
    target, online = pair.target, pair.online
    if target.device.type == "cuda":
        if target.is_complex() or not cuda_update(target.device.index)[0]:
            return False
    elif target.device.type != "cpu":
        return False
    for tensor in (target, online):
        if not _is_watchable(tensor) or tensor.is_inference() or tensor.is_conj() or tensor.is_neg():
            return False
        if not _is_aligned(tensor):
            return False
    if target.dtype == online.dtype:
        known = pair.is_copied or target.dtype in _DTYPE_NAMES
    else:
        known = {target.dtype, online.dtype} - HALVES == {torch.float32}
    others = [online] if pair.master is None else [online, pair.master]
    return known and is_dense(target) and all(long_dims(other) == long_dims(target) for other in others)


def _empty_table(containers: Containers) -> watched.Table:
    return watched.Table(containers, torch_abi(), torch_is_fused(), torch.autograd.graph.increment_version)


def _table_of(device: torch.device, pairs: Sequence[Pair], containers: Containers) -> watched.Table:
    table = _empty_table(containers)
    for pair in pairs:
        target, online, count = pair.target, pair.online, pair.target.numel()
        names = _DTYPE_NAMES.get(target.dtype, "bytes"), _DTYPE_NAMES.get(online.dtype, "bytes")
        if pair.is_copied and target.dtype == online.dtype:
            names, count = ("bytes", "bytes"), count * target.element_size()
        _watch(table, pair)
        table.add(target, online, pair.master, *names, count, pair.is_copied)
    table.finish()
    if device.type == "cuda":
        launch, _ = cuda_update(device.index)
        table.set_device(launch, device.index, cuda_error)
    return table
