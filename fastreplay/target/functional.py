# SPDX-License-Identifier: MIT
"""soft_update_ and hard_update_: one update of a target, whose plan stays in it for the next call."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastreplay.target.arguments import checked_tau
from fastreplay.target.foreach import Foreach
from fastreplay.target.masters import warn_of_halves
from fastreplay.target.members import materialized
from fastreplay.target.pairing import pairs_of
from fastreplay.target.plan import CHANGING, plan_of

if TYPE_CHECKING:
    from fastreplay.target.members import Tensors
    from fastreplay.target.pair import Pair
    from fastreplay.target.plan import Plan

__all__ = ["hard_update_", "soft_update_"]

is_dynamo_compiling = torch.compiler.is_dynamo_compiling


def soft_update_(target: Tensors, online: Tensors, tau: float | Tensor) -> None:
    """Update `target` once, in place: `target <- tau * online + (1 - tau) * target`.

    Modules are paired at the first call, and anew when they have changed; what was paired is kept in the
    target, as long as both live (an online module that its own parts refer to: as long as the target).
    Iterables and state dicts are paired at every call: `SoftUpdate` pairs them once.

    Args:
        target: What moves: a module, a state dict, or an iterable of tensors.
        online: What it follows, in the same form. Floating buffers of modules are copied.
        tau: Share of the online value, in [0, 1]; a number, or a tensor () of float32 or float64.

    Raises:
        TypeError, ValueError, RuntimeError: As `SoftUpdate` and its `step`.

    Warns:
        UserWarning: As `SoftUpdate`, when tensors are paired.

    Thread safety:
        Two threads may move different targets.

    Example:
        >>> import torch, fastreplay as fr
        >>> online, target = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> fr.soft_update_(target, online, tau=0.005)
    """
    if tau.__class__ is not float or not 0.0 <= tau <= 1.0:
        tau = checked_tau(tau)
    if is_dynamo_compiling():
        Foreach(_traced_pairs(target, online)).update(tau)
        return
    kept = _kept_plan(target, online)
    if kept is None or not kept.move(target, online, tau):  # type: ignore[arg-type]
        _plan_and_move(target, online, tau)


def hard_update_(target: Tensors, online: Tensors) -> None:
    """Copy `online` into `target`, in place: `soft_update_` with `tau = 1`.

    Mnih et al. 2015, https://doi.org/10.1038/nature14236.

    Args:
        target: What is written: a module, a state dict, or an iterable of tensors.
        online: What it becomes, in the same form; buffers too.

    Raises:
        TypeError, ValueError, RuntimeError: As `SoftUpdate` and its `step`.

    Thread safety:
        Two threads may write different targets.
    """
    soft_update_(target, online, 1.0)


class _KeptPlans(dict[int, "_KeptPlan"]):
    """The plans of one target module, by the identity of the online one.

    They live in the target's `__dict__`, so that they go when it goes, whatever refers to what. No copy
    or pickle of the module takes them along.
    """

    def __deepcopy__(self, _: object) -> _KeptPlans:
        return _KeptPlans()

    def __reduce__(self) -> tuple[object, ...]:
        return dict, ()


class _KeptPlan:
    """The plan of two modules, which it does not keep alive."""

    def __init__(self, target: nn.Module, online: nn.Module, plan: Plan) -> None:
        plans, key = target.__dict__[_PLANS], id(online)

        def forget(_: object) -> None:
            if plans.get(key) is self:
                del plans[key]

        self.target, self.online = weakref.ref(target), weakref.ref(online, forget)
        self.plan = plan
        self.move_pairs = plan.move

    def move(self, target: nn.Module, online: object, tau: float | Tensor) -> bool:
        """Move them if they are the two, and what they were."""
        if self.target() is not target or self.online() is not online or not self.plan.containers_are_same():
            return False
        return self.move_pairs(tau)


_PLANS = "_fastreplay_plans"


def _kept_plan(target: object, online: object) -> _KeptPlan | None:
    plans = target.__dict__.get(_PLANS) if isinstance(target, nn.Module) else None
    return None if plans is None else plans.get(id(online))


def _plan_and_move(target: Tensors, online: Tensors, tau: float | Tensor) -> None:
    target, online = materialized(target, "target"), materialized(online, "online")
    plan = plan_of(target, online, "copy", None)
    if isinstance(tau, Tensor) or tau != 1.0:
        warn_of_halves(plan.pairs, stacklevel=4)
    if not plan.move(tau):
        raise RuntimeError(CHANGING)
    if isinstance(target, nn.Module) and isinstance(online, nn.Module):
        if type(target.__dict__.get(_PLANS)) is not _KeptPlans:
            target.__dict__[_PLANS] = _KeptPlans()
        target.__dict__[_PLANS][id(online)] = _KeptPlan(target, online, plan)


def _traced_pairs(target: Tensors, online: Tensors) -> list[Pair]:
    """Pair without looking at memory, which torch cannot trace."""
    return pairs_of(materialized(target, "target"), materialized(online, "online"), "copy", check_memory=False)
