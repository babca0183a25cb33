# SPDX-License-Identifier: MIT
"""The ways to update a target that are measured, each called the way its own users call it.

Each prepares once what it can, and hands out a closure: what runs inside is what is timed. Knows no
clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from absence import require
from nets import randomize
from timing import Call
from torch import Tensor, nn

import fastreplay as fr

TAU = 0.005


@dataclass(frozen=True)
class Updater:
    """One way to update a target by TAU.

    Attributes:
        prepare: From (target, online) to the call that is timed.
        is_lerp: Whether it claims the results of `torch.lerp_`, bit for bit; else they are close.
        is_flat: Whether it takes networks of one tensor (`nets.flattened`).
        is_rival: Whether it is not ours.
    """

    name: str
    label: str
    prepare: Callable[[nn.Module, nn.Module], Call]
    is_lerp: bool = True
    is_flat: bool = False
    is_rival: bool = True


def _cleanrl(target: nn.Module, online: nn.Module) -> Call:
    def run() -> None:
        for param, target_param in zip(online.parameters(), target.parameters()):  # noqa: B905  as CleanRL has it
            target_param.data.copy_(TAU * param.data + (1 - TAU) * target_param.data)

    return run


def _sb3(target: nn.Module, online: nn.Module) -> Call:
    polyak_update = require("stable_baselines3.common.utils").polyak_update

    def run() -> None:
        polyak_update(online.parameters(), target.parameters(), TAU)

    return run


# Detached tensors need no torch.no_grad() around the call, which would cost another 2 µs.
def _lerp(target: nn.Module, online: nn.Module) -> Call:
    pairs = list(zip(detached(target), detached(online), strict=True))

    def run() -> None:
        for to, source in pairs:
            to.lerp_(source, TAU)

    return run


def _foreach(target: nn.Module, online: nn.Module) -> Call:
    return partial(torch._foreach_lerp_, detached(target), detached(online), TAU)


def _flat(target: nn.Module, online: nn.Module) -> Call:
    (to,), (source,) = detached(target), detached(online)
    return partial(to.lerp_, source, TAU)


def _soft_update(target: nn.Module, online: nn.Module) -> Call:
    return partial(fr.soft_update_, target, online, TAU)


def _stepper(target: nn.Module, online: nn.Module) -> Call:
    return fr.SoftUpdate(target, online, TAU).step


UPDATERS: dict[str, Updater] = {
    updater.name: updater
    for updater in (
        Updater("cleanrl", "CleanRL", _cleanrl, is_lerp=False),
        Updater("sb3", "SB3", _sb3, is_lerp=False),
        Updater("lerp", "`lerp_` per tensor", _lerp),
        Updater("foreach", "`_foreach_lerp_`", _foreach),
        Updater("flat", "one flat `lerp_`", _flat, is_flat=True),
        Updater("soft_update_", "`fr.soft_update_`", _soft_update, is_rival=False),
        Updater("fastreplay", "`fr.SoftUpdate`", _stepper, is_rival=False),
    )
}


def detached(module: nn.Module) -> list[Tensor]:
    return [parameter.detach() for parameter in module.parameters()]


def check(updater: Updater, call: Call, target: nn.Module, online: nn.Module) -> bool:
    """Give the target fresh values, update it once, and compare with `torch.lerp`.

    Returns:
        Whether all elements are equal, bit for bit.

    Raises:
        AssertionError: If they are not close, or if the online network changed.
    """
    randomize(target, seed=3)
    before = [tensor.clone() for tensor in detached(online)]
    expected = [torch.lerp(to, source.to(to.dtype), TAU) for to, source in zip(detached(target), before, strict=True)]
    call()
    got = detached(target)
    if not all(map(torch.equal, got, expected)):
        for value, right in zip(got, expected, strict=True):
            torch.testing.assert_close(value, right, msg=lambda text: f"{updater.name}: {text}")
    assert all(map(torch.equal, detached(online), before)), f"{updater.name}: the online network changed"
    return all(
        torch.equal(value.view(torch.int32), right.view(torch.int32))
        for value, right in zip(got, expected, strict=True)
    )


def check_exact(updater: Updater, call: Call, target: nn.Module, online: nn.Module) -> None:
    """Check as above, and that results which claim to be those of `torch.lerp` are."""
    is_equal = check(updater, call, target, online)
    assert is_equal or not updater.is_lerp, f"{updater.name}: not what torch.lerp gives"
