# SPDX-License-Identifier: MIT
"""Soft and hard updates of target networks, in place."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from fastreplay.target.arguments import (
    Tau,
    check_count,
    check_master,
    check_options,
    checked_state,
    checked_tau,
    is_schedule,
    warn_of_halves,
)
from fastreplay.target.foreach import Foreach
from fastreplay.target.mover import Mover
from fastreplay.target.pairing import HALVES, Buffers, Pair, Tensors, containers, materialized, pair
from fastreplay.target.watched import is_native

__all__ = ["SoftUpdate", "SoftUpdateState", "Tau", "hard_update_", "soft_update_"]

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
            write the target from it: steps smaller than half a unit in the last place add up.

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
    was left is kept until then, and so never written after it was freed.

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
    _pairs: list[Pair]
    _mover: Mover | None
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
        pairs, mover = _mover(target, online, buffers, {} if master else None)
        if not master and constant != 1.0:
            warn_of_halves(pairs, stacklevel=3)
        # Whatever can be refused has been: a second call that is refused leaves the updater as it was.
        self._tau: Tau = tau
        self._constant = constant
        self._target, self._online = target, online
        self._buffers, self._every, self._has_masters = buffers, every, bool(master)
        self._take(pairs, mover)
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
        self._take(*_mover(self._target, self._online, self._buffers, self._masters if self._has_masters else None))

    def state_dict(self) -> SoftUpdateState:
        """Return the count and the masters, for torch.save; the tensors are the live ones."""
        self._paired()
        return {"count": self.count, "masters": dict(self._masters)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the count and the masters that `state_dict` returned; the target is written from the masters.

        Raises:
            TypeError: A master is no plain tensor of float32, or `state` or its masters are no mappings.
            ValueError: Other keys, names or shapes than `state_dict` gives here, or a master on "meta".
            RuntimeError: As `step`.
        """
        count, masters = checked_state(state)
        mover = self._paired()
        if set(masters) != set(self._masters):
            expected, got = (sorted(map(str, names)) for names in (self._masters, masters))
            raise ValueError(f"state: masters: expected {expected}, got {got}")
        for name, master in self._masters.items():
            check_master(name, masters[name], master)
        mover.check_writable()
        with torch.no_grad():
            # Of their own: `masters` may hold the live ones, under other names.
            fresh = {name: masters[name].to(master.device, copy=True) for name, master in self._masters.items()}
            for this in self._pairs:
                if this.master is not None:
                    this.master.copy_(fresh[this.name])
                    this.target.copy_(this.master)
        self.count = count

    def __repr__(self) -> str:
        self._paired()
        elements = sum(pair.target.numel() for pair in self._pairs)
        every = f", every={self._every}" if self._every != 1 else ""
        tau = f"{self._tau:g}" if isinstance(self._tau, float) else repr(self._tau)
        return f"SoftUpdate({len(self._pairs)} tensors, {elements:,} elements, tau={tau}{every}, count={self.count})"

    def describe(self) -> str:
        """Say in words which path moves the tensors, and how many.

        Example:
            >>> import torch, fastreplay as fr
            >>> fr.SoftUpdate(torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)).describe()  # doctest: +ELLIPSIS
            '2 by the ... kernel on cpu'
        """
        return self._paired().describe()

    def __getstate__(self) -> dict[str, Any]:
        # Addresses mean nothing elsewhere: tensors are paired anew at the first step.
        state = {name: self.__dict__[name] for name in _STATE}
        for role in ("_target", "_online"):  # views of dictionaries, for one, can be neither copied nor pickled
            if not isinstance(state[role], nn.Module) and not is_native(state[role]):
                state[role] = dict(state[role]) if isinstance(state[role], Mapping) else list(state[role])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if set(state) != _STATE:
            raise ValueError(f"state: expected {sorted(_STATE)}, got {sorted(map(str, state))}")
        check_options(state["_buffers"], state["_every"])
        check_count(state["count"])
        self.__dict__.update(state)
        # A module that holds its own updater is not whole yet.
        self._pairs, self._mover, self._move = [], None, _cannot_move

    def _take(self, pairs: list[Pair], mover: Mover) -> None:
        self._pairs, self._mover, self._move = pairs, mover, mover.move
        self._masters: dict[str, Tensor] = {pair.name: pair.master for pair in pairs if pair.master is not None}

    def _paired(self) -> Mover:
        if self._mover is None or not self._mover.is_same():
            self.refresh()
        assert self._mover is not None
        return self._mover

    def _update_traced(self, tau: float | Tensor) -> None:
        if self._mover is None:
            raise RuntimeError("call refresh() before compiling a step of an updater that was unpickled or copied")
        self._mover.everything.update(tau)

    def _refresh_and_move(self, tau: float | Tensor) -> None:
        self._move = _cannot_move  # until they fit each other again, not only in the steps that look there
        self.refresh()
        if not self._move(tau):
            raise RuntimeError(_CHANGING)


_STATE = frozenset(
    ["_tau", "_constant", "_target", "_online", "_buffers", "_every", "_has_masters", "_masters", "count"]
)


def _mover(
    target: Tensors, online: Tensors, buffers: Buffers, masters: Mapping[str, Tensor] | None
) -> tuple[list[Pair], Mover]:
    """Pair tensors, and make what moves them; with masters, of which `masters` are those so far, unless it is None."""
    pairs = pair(target, online, buffers)
    if masters is not None:
        pairs = [_with_master(pair, masters.get(pair.name)) for pair in pairs]
    return pairs, Mover(pairs, containers(target) + containers(online))


def _with_master(this: Pair, kept: Tensor | None) -> Pair:
    target = this.target
    if this.is_copied or target.dtype not in HALVES:
        return this
    with torch.inference_mode(False):  # a master must serve outside of it too
        fresh = target.detach().to(torch.float32)
        if kept is not None and kept.shape == fresh.shape:
            kept = kept.to(target.device)
            fresh = torch.where(kept.to(target.dtype) == target.detach(), kept, fresh)
    return replace(this, master=fresh)


def _cannot_move(_: float | Tensor) -> bool:
    """Stand for the mover of an updater that was unpickled or copied."""
    return False


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
    known = _pairing(target, online)
    if known is None or not known.move(target, online, tau):  # type: ignore[arg-type]
        _pair_and_move(target, online, tau)


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


class _Pairings(dict[int, "_Pairing"]):
    """The pairings of one target module, by the identity of the online one.

    They live in the target's `__dict__`, so that they go when it goes, whatever refers to what. No copy
    or pickle of the module takes them along.
    """

    def __deepcopy__(self, _: object) -> _Pairings:
        return _Pairings()

    def __reduce__(self) -> tuple[object, ...]:
        return dict, ()


class _Pairing:
    """A mover of two modules, which it does not keep alive."""

    def __init__(self, target: nn.Module, online: nn.Module, mover: Mover) -> None:
        pairings, key = target.__dict__[_PAIRINGS], id(online)

        def forget(_: object) -> None:
            if pairings.get(key) is self:
                del pairings[key]

        self.target, self.online = weakref.ref(target), weakref.ref(online, forget)
        self.mover = mover
        self.move_pairs = mover.move

    def move(self, target: nn.Module, online: object, tau: float | Tensor) -> bool:
        """Move them if they are the two, and what they were."""
        if self.target() is not target or self.online() is not online or not self.mover.modules_are_same():
            return False
        return self.move_pairs(tau)


_PAIRINGS = "_fastreplay_pairings"


def _pairing(target: object, online: object) -> _Pairing | None:
    pairings = target.__dict__.get(_PAIRINGS) if isinstance(target, nn.Module) else None
    return None if pairings is None else pairings.get(id(online))


def _pair_and_move(target: Tensors, online: Tensors, tau: float | Tensor) -> None:
    target, online = materialized(target, "target"), materialized(online, "online")
    pairs, mover = _mover(target, online, "copy", None)
    if isinstance(tau, Tensor) or tau != 1.0:
        warn_of_halves(pairs, stacklevel=4)
    if not mover.move(tau):
        raise RuntimeError(_CHANGING)
    if isinstance(target, nn.Module) and isinstance(online, nn.Module):
        if type(target.__dict__.get(_PAIRINGS)) is not _Pairings:
            target.__dict__[_PAIRINGS] = _Pairings()
        target.__dict__[_PAIRINGS][id(online)] = _Pairing(target, online, mover)


def _traced_pairs(target: Tensors, online: Tensors) -> list[Pair]:
    """Pair without looking at memory, which torch cannot trace."""
    return pair(materialized(target, "target"), materialized(online, "online"), "copy", check_memory=False)


_CHANGING = "the tensors changed while they were paired: does another thread change the modules?"
