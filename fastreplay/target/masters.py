# SPDX-License-Identifier: MIT
"""Masters: float32 copies of 16-bit targets, which move in their place, so that small steps add up."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from warnings import warn

import torch
from torch import Tensor

from fastreplay.gpu.streams import current_handle, is_captured
from fastreplay.target.pair import HALVES
from fastreplay.target.tensor_memory import is_plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastreplay.target.pair import Pair

__all__ = ["check_masters", "masters_of", "warn_of_halves", "with_masters", "write_masters"]


def with_masters(pairs: Sequence[Pair], known: Mapping[str, Tensor]) -> list[Pair]:
    """Give each pair of a 16-bit parameter a master.

    Args:
        pairs: Pairs without masters.
        known: Masters so far, by name. They stay where the target still is their image, and are read from the
            target elsewhere; in their own memory where that serves, for graphs that captured a step.

    Raises:
        RuntimeError: A graph is being captured.
    """
    return [_with_master(pair, known.get(pair.name)) for pair in pairs]


def _with_master(pair: Pair, known: Tensor | None) -> Pair:
    target = pair.target
    if pair.is_copied or target.dtype not in HALVES:
        return pair
    if target.is_cuda and is_captured(target.device, current_handle(target.device)):
        raise RuntimeError(f"{pair.name}: in the capture of a graph, its master would be made anew by each replay")
    with torch.inference_mode(False), torch.no_grad():  # a master must serve outside of it too
        fresh = target.detach().to(torch.float32)
        if known is not None and known.shape == fresh.shape:
            there = known.to(target.device)
            fresh = torch.where(there.to(target.dtype) == target.detach(), there, fresh)
            if _is_like(known, fresh):
                fresh = known.copy_(fresh)
    return replace(pair, master=fresh)


def _is_like(known: Tensor, fresh: Tensor) -> bool:
    same = (known.device, known.dtype, known.stride()) == (fresh.device, fresh.dtype, fresh.stride())
    return same and not known.is_inference()


def masters_of(pairs: Sequence[Pair]) -> dict[str, Tensor]:
    """Return the masters of those pairs that have one, by name."""
    return {pair.name: pair.master for pair in pairs if pair.master is not None}


def write_masters(pairs: Sequence[Pair], masters: Mapping[str, Tensor]) -> None:
    """Write masters, by name, and from them the targets."""
    with torch.no_grad():
        # Of their own: `masters` may hold the live ones, under other names.
        fresh = {name: masters[name].to(master.device, copy=True) for name, master in masters_of(pairs).items()}
        for pair in pairs:
            if pair.master is not None:
                pair.master.copy_(fresh[pair.name])
                pair.target.copy_(pair.master)


def check_masters(masters: Mapping[str, object], live: Mapping[str, Tensor]) -> None:
    """Refuse masters of a state that could not be copied to the live ones."""
    if set(masters) != set(live):
        expected, got = (sorted(map(str, names)) for names in (live, masters))
        raise ValueError(f"state: masters: expected {expected}, got {got}")
    for name, like in live.items():
        _check_master(name, masters[name], like)


def _check_master(name: str, master: object, like: Tensor) -> None:
    if not isinstance(master, Tensor):
        raise TypeError(f"state: masters: {name}: expected a tensor, got {type(master).__name__}")
    if type(master) is not type(like) and not (is_plain(master) and is_plain(like)):
        raise TypeError(f"state: masters: {name}: expected {type(like).__name__}, got {type(master).__name__}")
    if master.layout is not torch.strided or master.is_nested:
        raise TypeError(f"state: masters: {name}: expected layout torch.strided, got {master.layout}")
    if master.dtype != torch.float32:
        raise TypeError(f"state: masters: {name}: expected torch.float32, got {master.dtype}")
    if master.shape != like.shape:
        raise ValueError(f"state: masters: {name}: expected shape {tuple(like.shape)}, got {tuple(master.shape)}")
    if master.device.type == "meta":
        raise ValueError(f"state: masters: {name}: is on meta, and has no values")


def warn_of_halves(pairs: Sequence[Pair], *, stacklevel: int) -> None:
    """Warn of the first 16-bit target without a master."""
    for pair in pairs:
        if pair.target.dtype in HALVES and not pair.is_copied and pair.master is None:
            warn(
                f"{pair.name}: a {str(pair.target.dtype).removeprefix('torch.')} target stands still where "
                "tau * |online - target| is under half a unit in its last place; keep the target in float32, or "
                "use SoftUpdate(..., master=True)",
                stacklevel=stacklevel,
            )
            return
