# SPDX-License-Identifier: MIT
"""SoftUpdate: target tensors follow online tensors, paired once and moved at every step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor

from fastreplay.target.arguments import Tau, check_count, check_options, checked_state, checked_tau, is_schedule
from fastreplay.target.masters import check_masters, masters_of, warn_of_halves, write_masters
from fastreplay.target.members import materialized, picklable
from fastreplay.target.plan import CHANGING, plan_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fastreplay.target.members import Tensors
    from fastreplay.target.pairing import Buffers
    from fastreplay.target.plan import Plan

__all__ = ["SoftUpdate", "SoftUpdateState", "Tau"]

is_dynamo_compiling = torch.compiler.is_dynamo_compiling


class SoftUpdateState(TypedDict):
    """What `SoftUpdate.state_dict` returns."""

    count: int
    masters: dict[str, Tensor]


class SoftUpdate:
    """Makes target tensors follow online tensors: `target <- tau * online + (1 - tau) * target`.

    Tensors are paired once, by name or by position; `step` then moves them all in one native call. On
    the CPU its results are those of `torch.lerp_` bit for bit, except that `tau = 1` copies (`lerp_`
    turns -0.0 into 0.0, and keeps a NaN that the target holds), that a NaN's payload may differ, and the
    sign of a complex zero where a product underflows, in which torch does not agree with itself.

    Lillicrap et al. 2015, https://arxiv.org/abs/1509.02971 (soft, every step); Mnih et al. 2015,
    https://doi.org/10.1038/nature14236 (hard, every C steps: `tau=1.0, every=C`).

    Args:
        target: What moves: a module, a state dict, or an iterable of tensors. Parameters may require
            grad. DataParallel, DistributedDataParallel and torch.compile's wrapper are looked through.
        online: What it follows, in the same form, with the same names, shapes and devices.
        tau: Share of the online value, in [0, 1]: a number; a function of the number of the step (1 at
            the first); or a tensor () of float32 or float64, read at every step. On a CUDA device the
            kernel reads it there, so that a captured graph follows it.
        buffers: Floating buffers of modules (BatchNorm's running mean) are copied, follow as parameters
            do ("lerp"), or are left alone ("skip"). Integer and bool tensors are always copied.
        every: Update at each `every`-th call of `step` only.
        master: Keep a float32 copy of each float16 and bfloat16 parameter of the target, move that, and
            write the target from it: steps smaller than half a unit in the last place add up. What is written
            into such a target in place (by `load_state_dict`, say) the next step overwrites, unless `refresh`
            was called before.

    Attributes:
        count: Calls of `step` so far.

    Raises:
        TypeError: Not tensors, forms or dtypes that cannot follow each other; quantized, nested and sparse
            tensors; modules that keep weights where only they find them (quantized ones); subclasses of
            tensors without `lerp_`.
        ValueError: There is nothing to update (an iterator that was used before, a module without
            parameters); names, shapes, devices or counts differ; memory is shared; or an argument is out
            of range. The message names the first tensor of which that is so.

    Warns:
        UserWarning: A parameter of the target is float16 or bfloat16, and has no master.

    Re-allocation: `.to()`, `p.data = ...`, `load_state_dict(assign=True)`, a new layer, or another tensor in
    a dictionary or a list that was given are noticed, and tensors are paired anew. Every step looks at each
    tensor's data pointer and element count, at a dictionary or a list that was given, and at six of the
    modules' dictionaries, in rotation, to see whether a parameter became another object; `soft_update_`
    looks at all of them. An iterator is gone through once: where its tensors may be replaced later, give
    the module or a list. What changes the strides or the dtype and neither address nor element count
    (`p.t_()`) needs `refresh`; and a step that was compiled looks at nothing, whatever changed. Memory that
    was left is kept until then, and so never written after it was freed. A CUDA graph that captured a step writes
    to the tensors of that time, and to the masters: keep those, and the updater for its masters, as long as the graph;
    steps that find others, and `refresh`, leave masters where they are.

    A step that is refused has moved nothing and is not counted.

    Thread safety:
        Two threads may move different targets. One target, or one updater, belongs to one thread at a time.

    Example:
        >>> import torch, fastreplay as fr
        >>> online, target = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> update = fr.SoftUpdate(target, online, tau=0.005)
        >>> update.step()
        True
        >>> update
        SoftUpdate(2 tensors, 3 elements, tau=0.005, count=1)
    """

    count: int
    _plan: Plan | None
    _move: Callable[[float | Tensor], bool]

    def __init__(
        self,
        target: Tensors,
        online: Tensors,
        tau: Tau = 0.005,
        *,
        buffers: Buffers = "copy",
        every: int = 1,
        master: bool = False,
    ) -> None:
        check_options(buffers, every)
        constant: float | None = None  # tau, where no step can find another
        if not is_schedule(tau):
            checked = checked_tau(tau)
            if not isinstance(tau, Tensor):
                assert isinstance(checked, float)
                tau = constant = checked
        target, online = materialized(target, "target"), materialized(online, "online")
        plan = plan_of(target, online, buffers, {} if master else None)
        if not master and constant != 1.0:
            warn_of_halves(plan.pairs, stacklevel=3)
        # Whatever can be refused has been: a second call that is refused leaves the updater as it was.
        self._tau: Tau = tau
        self._constant = constant
        self._target, self._online = target, online
        self._buffers, self._every, self._has_masters = buffers, every, bool(master)
        self._take_up(plan)
        self.count = 0

    @property
    def tau(self) -> Tau:
        """The share that `step` uses when it is given none."""
        return self._tau

    @property
    def every(self) -> int:
        """The number of calls of `step` from one update to the next."""
        return self._every

    def step(self, tau: float | Tensor | None = None) -> bool:
        """Count one step, and update the target if it is due.

        Args:
            tau: In place of the updater's own, for this call.

        Returns:
            Whether the target was updated.

        Raises:
            TypeError: `tau` is no number, or a tensor of another shape or dtype.
            ValueError: `tau` is not in [0, 1], or the tensors no longer fit each other.
            RuntimeError: A target was made in inference mode, and this is outside of it.
        """
        count = self.count + 1
        if tau is not None:
            tau = checked_tau(tau)
        elif self._constant is not None:
            tau = self._constant
        else:
            tau = checked_tau(self._tau(count) if is_schedule(self._tau) else self._tau)
        due = not count % self._every
        if due:
            if is_dynamo_compiling():
                self._update_traced(tau)
            elif not self._move(tau):
                self._refresh_and_move(tau)
        self.count = count
        return due

    def refresh(self) -> None:
        """Pair the tensors anew, after parameters were re-allocated or modules changed.

        Masters stay where the target still is their image, and are read from the target elsewhere.

        Raises:
            TypeError, ValueError: As at construction; the updater is then as it was before.
        """
        masters = self._masters if self._has_masters else None
        self._take_up(plan_of(self._target, self._online, self._buffers, masters))

    def state_dict(self) -> SoftUpdateState:
        """Return the count and the masters, for torch.save; the tensors are the live ones."""
        self._current_plan()
        return {"count": self.count, "masters": dict(self._masters)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the count and the masters that `state_dict` returned; the target is written from the masters.

        Raises:
            TypeError: A master is no plain tensor of float32, or `state` or its masters are no mappings.
            ValueError: Other keys, names or shapes than `state_dict` gives here, or a master on "meta".
            RuntimeError: As `step`.
        """
        count, masters = checked_state(state)
        plan = self._current_plan()
        check_masters(masters, self._masters)
        plan.check_writable()
        plan.join_masters()
        write_masters(plan.pairs, masters)
        self.count = count

    def __repr__(self) -> str:
        pairs = self._current_plan().pairs
        elements = sum(pair.target.numel() for pair in pairs)
        every = f", every={self._every}" if self._every != 1 else ""
        tau = f"{self._tau:g}" if isinstance(self._tau, float) else repr(self._tau)
        return f"SoftUpdate({len(pairs)} tensors, {elements:,} elements, tau={tau}{every}, count={self.count})"

    def describe(self) -> str:
        """Say in words which path moves the tensors, and how many.

        Example:
            >>> import torch, fastreplay as fr
            >>> fr.SoftUpdate(torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)).describe()  # doctest: +ELLIPSIS
            '2 by the ... kernel on cpu'
        """
        return self._current_plan().describe()

    def __getstate__(self) -> dict[str, Any]:
        # Addresses mean nothing elsewhere: tensors are paired anew at the first step.
        state = {name: self.__dict__[name] for name in _STATE}
        return {**state, "_target": picklable(self._target), "_online": picklable(self._online)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if set(state) != _STATE:
            raise ValueError(f"state: expected {sorted(_STATE)}, got {sorted(map(str, state))}")
        check_options(state["_buffers"], state["_every"])
        check_count(state["count"])
        self.__dict__.update(state)
        # A module that holds its own updater is not whole yet.
        self._plan, self._move = None, _cannot_move

    def _take_up(self, plan: Plan) -> None:
        self._plan, self._move = plan, plan.move
        self._masters = masters_of(plan.pairs)

    def _current_plan(self) -> Plan:
        if self._plan is None or not self._plan.is_unchanged():
            self.refresh()
        assert self._plan is not None
        return self._plan

    def _update_traced(self, tau: float | Tensor) -> None:
        if self._plan is None:
            raise RuntimeError("call refresh() before compiling a step of an updater that was unpickled or copied")
        self._plan.traceable.update(tau)

    def _refresh_and_move(self, tau: float | Tensor) -> None:
        self._move = _cannot_move  # until they fit each other again, not only in the steps that look there
        self.refresh()
        if not self._move(tau):
            raise RuntimeError(CHANGING)


_STATE = frozenset(
    ["_tau", "_constant", "_target", "_online", "_buffers", "_every", "_has_masters", "_masters", "count"]
)


def _cannot_move(_: float | Tensor) -> bool:
    """Stand for the plan of an updater that has none yet, after it was unpickled or copied, or none that fits."""
    return False
