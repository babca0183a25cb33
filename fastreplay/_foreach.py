# SPDX-License-Identifier: MIT
"""The target update in torch's own operations: for what has no kernel, and where torch traces. Checks nothing."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastreplay._pairing import Pair

__all__ = ["Foreach"]

_COMPUTE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


class Foreach:
    """Pairs of any kind that torch can lerp: every device, layout and tensor subclass."""

    def __init__(self, pairs: Iterable[Pair]) -> None:
        pairs = list(pairs)
        self.copied = [(pair.target, pair.online) for pair in pairs if pair.is_copied]
        self.moved = [(pair.target, pair.online) for pair in pairs if not pair.is_copied]
        self.masters = [(pair.master, pair.online) for pair in pairs if pair.master is not None]
        # One list call for tensors of one kind: torch leaves its fast path as soon as two differ.
        same: defaultdict[object, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
        self.mixed: list[tuple[Tensor, Tensor, Tensor | None]] = []
        for pair in pairs:
            if pair.is_copied:
                continue
            if pair.master is None and pair.target.dtype == pair.online.dtype:
                targets, onlines = same[type(pair.target.data), pair.target.dtype, pair.target.device]
                targets.append(pair.target)
                onlines.append(pair.online)
            else:
                self.mixed.append((pair.target, pair.online, pair.master))
        self.same = list(same.values())

    def __len__(self) -> int:
        return len(self.copied) + len(self.moved)

    def update(self, tau: float | Tensor) -> None:
        """Move the targets by `tau`, a number or a tensor () on their device."""
        with torch.no_grad():
            for target, online in self.copied:
                target.copy_(online)
            if not isinstance(tau, Tensor) and tau == 1.0:
                for target, online in (*self.masters, *self.moved):
                    target.copy_(online)
                return
            for targets, onlines in self.same:
                _lerp_(targets, onlines, tau)
            for target, online, master in self.mixed:
                dtype = _COMPUTE.get(target.dtype, target.dtype)
                moved = target.to(dtype) if master is None else master
                _lerp_([moved], [online.to(dtype)], tau)
                if moved is not target:
                    target.copy_(moved)


def _lerp_(targets: list[Tensor], onlines: list[Tensor], tau: float | Tensor) -> None:
    weight = [tau.to(target.dtype) for target in targets] if isinstance(tau, Tensor) else tau
    torch._foreach_lerp_(targets, onlines, weight)
