# SPDX-License-Identifier: MIT
"""Stable-Baselines3's `polyak_update` in one native call."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch as th
from stable_baselines3.common import utils as sb3
from torch import Tensor, nn

from fastreplay.adapters.sb3.polyak_native import ParameterLists, PolyakUpdate
from fastreplay.support.torch_abi import form_abi, torch_abi, torch_is_fused

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["polyak_update"]

_sb3_update = sb3.polyak_update
_lists_of_both = ParameterLists(nn.Module).of_both
_is_dynamo_compiling = th.compiler.is_dynamo_compiling
_num_dispatch_modes = th._C._len_torch_dispatch_stack
_num_function_modes = th._C._len_torch_function_stack
_LARGEST_TAU = 1e30


def polyak_update(params: Iterable[Tensor], target_params: Iterable[Tensor], tau: float) -> None:
    """Set each target to `(1 - tau) * target + tau * online`, in place, as SB3's function of this name.

    The results are those of SB3's two operations bit for bit, but for the payload of a NaN: the target is scaled and
    rounded first, and `tau = 1` keeps a NaN that the target holds. Pairs of contiguous float32 or float64 tensors of
    equal shape on the CPU are moved natively; where any pair is of another kind, or shares memory, and where torch
    traces or intercepts operations, all goes through SB3's own function, errors included. Nothing is kept between
    calls: tensors are looked at where they are at each. Lists, tuples and a fresh `module.parameters()` take the native
    way; any other iterable may depend on what was moved before, and SB3's function goes through it. A fresh
    `module.parameters()` is not run; its module is walked natively, which takes a fifth of the time.

    Lillicrap et al. 2015, https://arxiv.org/abs/1509.02971.

    Args:
        params: What the targets follow.
        target_params: What moves, as many, in the same order.
        tau: Share of the online value.

    Raises:
        ValueError: There are not as many of one as of the other. As in SB3, those before the end have been moved.
        TypeError: One is no iterable.

    Thread safety:
        Two threads may move different targets.

    Example:
        >>> import torch
        >>> from fastreplay.sb3 import polyak_update
        >>> online, target = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> polyak_update(online.parameters(), target.parameters(), tau=0.005)
    """
    # Not one iterator twice, of which SB3 takes turns; not where torch hands its operations to somebody else; not a
    # share that torch may find too large for a float32.
    if (
        _is_dynamo_compiling()
        or tau.__class__ is not float
        or not -_LARGEST_TAU <= tau <= _LARGEST_TAU
        or params is target_params
        or _num_dispatch_modes()
        or _num_function_modes()
    ):
        _sb3_update(params, target_params, tau)
        return
    update, lists = _native_update(), _lists_of_both(params, target_params)
    if lists is not None:
        params, target_params = lists
        if update is not None and update.update(params, target_params, tau):
            return
    _sb3_update(params, target_params, tau)


@cache
def _native_update() -> PolyakUpdate | None:
    """Return the native update, tried before it is trusted; None where it differs from SB3's."""
    abi, form = torch_abi(), form_abi()
    if abi is None or form is None:
        return None
    native = PolyakUpdate(abi, form, torch_is_fused(), Tensor, nn.Parameter)
    return native if all(_agrees(native, dtype) for dtype in (th.float32, th.float64)) else None


def _agrees(native: PolyakUpdate, dtype: th.dtype) -> bool:
    generator = th.Generator().manual_seed(0)
    for count in (3, 37, 1000):  # a scalar loop, one with vectors and a rest
        online = th.randn(count, dtype=dtype, generator=generator, device="cpu")
        start = th.randn(count, dtype=dtype, generator=generator, device="cpu")
        target, expected = start.clone(), start.clone()
        _sb3_update([online], [expected], 0.005)
        if not native.update([online], [target], 0.005) or not th.equal(target, expected):
            return False
    return True
