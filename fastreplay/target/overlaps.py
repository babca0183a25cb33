# SPDX-License-Identifier: MIT
"""Pairs of tensors that share memory with each other or with themselves: tied names are dropped, the rest refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from fastreplay.target.foreach import Foreach
from fastreplay.target.tensor_memory import (
    elements_key,
    has_memory,
    is_plain,
    overlaps_itself,
    share_an_element,
    span,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from fastreplay.target.pair import Pair

__all__ = ["check_memory_of", "without_tied_names"]


def without_tied_names(pairs: list[Pair]) -> list[Pair]:
    """Drop pairs whose two tensors come under other names before.

    Raises:
        ValueError: Tensors are tied in the target, but not in the online network.
    """
    kept: list[Pair] = []
    first_of: dict[object, Pair] = {}
    for pair in pairs:
        first = first_of.setdefault(elements_key(pair.target), pair)
        if first is pair:
            kept.append(pair)
        elif elements_key(first.online) != elements_key(pair.online):
            raise ValueError(f"{pair.name}: shares memory with {first.name} in target, but not in online")
    return kept


class _Span(NamedTuple):
    """The bytes from the first element of a tensor to its last."""

    start: int
    end: int
    pair_index: int
    is_target: bool


def check_memory_of(pairs: list[Pair]) -> None:
    """Refuse pairs of which an element would be written twice, or read after it was written, or lies nowhere.

    Raises:
        TypeError: A subclass of tensors cannot do what an update does.
        ValueError: Any other fault; the message names the first pair that has it.
    """
    spans: list[_Span] = []
    for i, pair in enumerate(pairs):
        if pair.target is pair.online:
            raise ValueError(f"{pair.name}: target and online share memory")
        for tensor, role in ((pair.target, "target"), (pair.online, "online")):
            if has_memory(tensor):
                start, end = span(tensor)
                spans.append(_Span(start, end, i, role == "target"))
                _check_storage(pair.name, role, tensor, end)
                if role == "target":
                    fault = overlaps_itself(tensor)
                    _refuse(fault, pair.name, "several elements of target share one place in memory")
            elif is_plain(tensor):
                _check_absent(pair.name, role, tensor)
        if not (is_plain(pair.target) and is_plain(pair.online)):
            _try_update(pair)
    _refuse_overlaps(pairs, sorted(spans))


def _check_storage(name: str, role: str, tensor: Tensor, end: int) -> None:
    storage = tensor.untyped_storage()
    if end > storage.data_ptr() + storage.nbytes():
        raise ValueError(f"{name}: the storage of {role} ends before its last element; was it resized?")


def _check_absent(name: str, role: str, tensor: Tensor) -> None:
    """Refuse a plain tensor that has elements but no address, where that is no form of laziness."""
    is_lazy_zero = role == "online" and tensor._is_zerotensor()
    if tensor.device.type == "cpu" and not torch._C._functorch.is_functorch_wrapped_tensor(tensor) and not is_lazy_zero:
        raise ValueError(f"{name}: {role} has no memory; was its storage freed?")


def _try_update(pair: Pair) -> None:
    """Update a copy of the target: a subclass that cannot is found before anything was moved."""
    try:
        trial = Foreach([replace(pair, target=pair.target.detach().clone())])
        trial.update(0.5)
        trial.update(1.0)
    except Exception as error:
        kinds = f"{type(pair.target).__name__} from {type(pair.online).__name__}"
        raise TypeError(f"{pair.name}: torch cannot update {kinds}: {error}") from error


def _refuse(fault: bool | None, name: str, what: str) -> None:
    if fault:
        raise ValueError(f"{name}: {what}")
    if fault is None:
        raise ValueError(f"{name}: cannot tell within reasonable time whether {what}: copy to plainer strides")


def _refuse_overlaps(pairs: list[Pair], spans: list[_Span]) -> None:
    """Refuse the first pair whose target overlaps an online tensor or an earlier target."""
    if offenders := sorted(_overlaps(pairs, spans), key=lambda offender: (offender[0], offender[2])):
        index, fault, what = offenders[0]
        _refuse(fault, pairs[index].name, what)


def _overlaps(pairs: list[Pair], spans: list[_Span]) -> Iterator[tuple[int, bool | None, str]]:
    """Yield the index of each pair that has a fault, whether it is known to be one, and what it is."""
    for i, one in enumerate(spans):
        for other in spans[i + 1 :]:
            if other.start >= one.end:
                break
            if not (one.is_target or other.is_target):
                continue
            a, b = (pairs[at.pair_index].target if at.is_target else pairs[at.pair_index].online for at in (one, other))
            fault = share_an_element(a, b)
            if fault is False:
                continue
            if one.is_target and other.is_target:
                first, second = sorted((one.pair_index, other.pair_index))
                yield second, fault, f"overlaps {pairs[first].name} in target"
            else:
                yield one.pair_index if one.is_target else other.pair_index, fault, "target and online share memory"
