# SPDX-License-Identifier: MIT
"""Which target tensor follows which online tensor, and what is refused. Moves nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor, nn

from fastreplay.target.members import form_of, members_of
from fastreplay.target.overlaps import check_memory_of, without_tied_names
from fastreplay.target.pair import Pair

if TYPE_CHECKING:
    from fastreplay.target.members import Member, Tensors

__all__ = ["Buffers", "pairs_of"]

Buffers: TypeAlias = Literal["copy", "lerp", "skip"]


def pairs_of(target: Tensors, online: Tensors, buffers: Buffers, *, check_memory: bool = True) -> list[Pair]:
    """Pair tensors by name, or by position where they have none.

    Args:
        target: What moves; as `materialized` returns it.
        online: What it follows, in the same form.
        buffers: What is done with floating buffers of modules.
        check_memory: Whether to look for shared memory, and to try what subclasses of tensors can do.

    Returns:
        One pair for each piece of target memory, in the target's order; no empty tensors.

    Raises:
        TypeError: The forms differ, or tensors or dtypes that cannot follow each other.
        ValueError: Names, counts, shapes, devices or memory do not fit, or there is nothing to update; the
            message names the first tensor of which that is so.
    """
    targets, onlines = members_of(target, "target"), members_of(online, "online")
    if form_of(target) != form_of(online):
        raise TypeError(f"target is {form_of(target)}, online is {form_of(online)}: expected the same form")
    _check_names(targets, onlines, has_names=isinstance(target, (nn.Module, Mapping)))
    pairs = []
    for name, to in targets.items():
        source = onlines[name]
        _check_pair(name, to, source)
        is_lerped = _has_fractions(to.tensor)
        if is_lerped and to.is_buffer and buffers == "skip":
            continue
        is_copied = not is_lerped or (to.is_buffer and buffers == "copy")
        pairs.append(Pair(name, to.tensor, source.tensor, is_copied))
    if not pairs:
        raise ValueError(f"nothing to update: {_why_nothing(target, has_tensors=bool(targets))}")
    pairs = [pair for pair in pairs if pair.target.numel() > 0]
    if check_memory:
        pairs = without_tied_names(pairs)
        check_memory_of(pairs)
    return pairs


def _why_nothing(target: Tensors, *, has_tensors: bool) -> str:
    if has_tensors:
        return "target has only buffers, and buffers='skip' leaves them alone"
    if isinstance(target, nn.Module):
        return f"target, of {type(target).__name__}, has neither parameters nor buffers"
    return f"target is {form_of(target)}, without any (was an iterator gone through before?)"


def _check_names(targets: Mapping[str, Member], onlines: Mapping[str, Member], *, has_names: bool) -> None:
    if not has_names and len(targets) != len(onlines):
        raise ValueError(f"target has {len(targets)} tensors, online has {len(onlines)}")
    for name in targets:
        if name not in onlines:
            raise ValueError(f"{name}: is in target, but not in online")
    for name in onlines:
        if name not in targets:
            raise ValueError(f"{name}: is in online, but not in target")


def _check_pair(name: str, target: Member, online: Member) -> None:
    to, source = target.tensor, online.tensor
    _check_kind(name, "target", to)
    _check_kind(name, "online", source)
    if target.is_buffer != online.is_buffer:
        kinds = ("a parameter", "a buffer")
        raise ValueError(f"{name}: target is {kinds[target.is_buffer]}, online is {kinds[online.is_buffer]}")
    if to.shape != source.shape:
        raise ValueError(f"{name}: target has shape {tuple(to.shape)}, online has {tuple(source.shape)}")
    if to.device != source.device:
        raise ValueError(f"{name}: target is on {to.device}, online is on {source.device}")
    if to.dtype == source.dtype:
        if _has_fractions(to) and to.dtype not in _LERPED:
            raise TypeError(f"{name}: torch has no lerp for {to.dtype}")
    elif not (to.dtype in _LERPED and source.dtype in _LERPED and to.is_complex() == source.is_complex()):
        raise TypeError(f"{name}: target is {to.dtype}, online is {source.dtype}")


def _has_fractions(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


_UNINITIALIZED = (nn.UninitializedParameter, nn.UninitializedBuffer)
_LERPED = frozenset([torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128])


def _check_kind(name: str, role: str, tensor: Tensor) -> None:
    if isinstance(tensor, _UNINITIALIZED):
        raise ValueError(f"{name}: {role} is not initialized yet; call the module once before")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name}: {role} has layout {tensor.layout}, expected torch.strided")
    if tensor.is_nested:
        raise TypeError(f"{name}: {role} is a nested tensor; update its parts")
    if tensor.is_quantized:
        raise TypeError(f"{name}: {role} is quantized, to {tensor.dtype}; update what it was made from")
