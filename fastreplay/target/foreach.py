# SPDX-License-Identifier: MIT
"""The target update in torch's own operations: for what has no kernel, and where torch traces. Checks nothing."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastreplay.target.pair import Pair

__all__ = ["Foreach"]

is_dynamo_compiling = torch.compiler.is_dynamo_compiling

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
        self.lazy: list[tuple[Tensor, Tensor]] = []  # views whose conjugate or negative torch has not taken yet
        self.mixed: list[tuple[Tensor, Tensor, Tensor | None]] = []
        for pair in pairs:
            target, online = pair.target, pair.online
            if pair.is_copied:
                continue
            if pair.master is not None or target.dtype != online.dtype:
                self.mixed.append((target, online, pair.master))
            elif not is_dynamo_compiling() and any(t.is_conj() or t.is_neg() for t in (target, online)):
                self.lazy.append((target, online))
            else:
                targets, onlines = same[type(target.data), target.dtype, target.device]
                targets.append(target)
                onlines.append(online)
        self.same = list(same.values())

    def __len__(self) -> int:
        return len(self.copied) + len(self.moved)

    def update(self, tau: float | Tensor) -> None:
        """Move the targets by `tau`, a number or a tensor () on their device.

        What needs memory of its own is computed before the first target is written: memory may run out.
        """
        with torch.no_grad():
            if not isinstance(tau, Tensor) and tau == 1.0:
                for target, online in (*self.copied, *self.masters, *self.moved):
                    target.copy_(online)
                return
            computed = self._computed(tau)
            for target, online in self.copied:
                target.copy_(online)
            if not isinstance(tau, Tensor):
                for targets, onlines in self.same:
                    torch._foreach_lerp_(targets, onlines, tau)
                for target, online in self.lazy:
                    target.lerp_(online, tau)
            for target, values in computed:
                target.copy_(values)

    def _computed(self, tau: float | Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the tensors that do not move in place, and what becomes of them."""
        computed = []
        for target, online, master in self.mixed:
            values = _lerped(target if master is None else master, online, tau)
            if master is not None:
                computed.append((master, values))
            computed.append((target, values))
        if isinstance(tau, Tensor):
            pairs = [pair for targets, onlines in self.same for pair in zip(targets, onlines, strict=True)]
            computed += [(target, _lerped(target, online, tau)) for target, online in (*pairs, *self.lazy)]
        return computed


def _lerped(target: Tensor, online: Tensor, tau: float | Tensor) -> Tensor:
    dtype = _COMPUTE.get(target.dtype, target.dtype)
    if isinstance(tau, Tensor):  # torch wants the weight in the tensors' dtype, which would round it
        return target.to(dtype).lerp(online.to(dtype), tau.to(dtype))
    values = target.to(dtype, copy=True)
    torch._foreach_lerp_([values], [online.to(dtype)], tau)
    return values
