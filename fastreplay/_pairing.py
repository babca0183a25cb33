# SPDX-License-Identifier: MIT
"""Which target tensor follows which online tensor, and what is refused. Moves nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

__all__ = ["HALVES", "Buffers", "Pair", "Tensors", "dictionaries", "materialized", "pair"]

Tensors: TypeAlias = nn.Module | Mapping[str, Tensor] | Iterable[Tensor]
Buffers: TypeAlias = Literal["copy", "lerp", "skip"]

HALVES = frozenset([torch.float16, torch.bfloat16])


@dataclass(frozen=True)
class Pair:
    """One target tensor and what it follows."""

    name: str
    target: Tensor
    online: Tensor
    is_copied: bool  # whatever tau is
    master: Tensor | None = None  # float32, of which a 16-bit target is the rounded image


@dataclass(frozen=True)
class _Named:
    tensor: Tensor
    is_buffer: bool


def materialized(tensors: Tensors, role: str) -> Tensors:
    """Return what `pair` may go through more than once: generators become lists.

    Raises:
        TypeError: `tensors` is none of the three forms.
    """
    if isinstance(tensors, Tensor) or not isinstance(tensors, (nn.Module, Mapping, Iterable)):
        raise TypeError(
            f"{role}: expected a module, a state dict or an iterable of tensors, got {type(tensors).__name__}"
        )
    values = tensors if isinstance(tensors, (nn.Module, Mapping)) else list(tensors)
    for name, value in values.items() if isinstance(values, Mapping) else enumerate(_listed(values)):
        if not isinstance(value, Tensor):
            hint = " (wrap modules in torch.nn.ModuleList)" if isinstance(value, nn.Module) else ""
            raise TypeError(f"{role}[{name!r}]: expected a tensor, got {type(value).__name__}{hint}")
    return values


def _listed(values: Any) -> list[Any]:
    return values if isinstance(values, list) else []


def pair(target: Tensors, online: Tensors, buffers: Buffers, *, check_memory: bool = True) -> list[Pair]:
    """Pair tensors by name, or by position where they have none.

    Args:
        target: What moves; as `materialized` returns it.
        online: What it follows, in the same form.
        buffers: What is done with floating buffers of modules.
        check_memory: Whether to look for shared memory.

    Returns:
        One pair for each piece of target memory, in the target's order; no empty tensors.

    Raises:
        TypeError: The forms differ, or dtypes that cannot follow each other.
        ValueError: Names, counts, shapes, devices or memory do not fit; the message names the first
            tensor of which that is so.
    """
    if _form(target) != _form(online):
        raise TypeError(f"target is {_form(target)}, online is {_form(online)}: expected the same form")
    targets, onlines = dict(_named(target)), dict(_named(online))
    _check_names(targets, onlines, is_listed=isinstance(target, list))
    pairs = []
    for name, to in targets.items():
        source = onlines[name]
        _check_pair(name, to, source)
        is_floating = to.tensor.is_floating_point() or to.tensor.is_complex()
        if is_floating and to.is_buffer and buffers == "skip":
            continue
        is_copied = not is_floating or (to.is_buffer and buffers == "copy")
        pairs.append(Pair(name, to.tensor, source.tensor, is_copied))
    pairs = [pair for pair in pairs if pair.target.numel() > 0]
    return _check_memory(pairs) if check_memory else pairs


def dictionaries(tensors: Tensors) -> list[tuple[dict[str, Any], str]]:
    """Return where a module and those below it keep their tensors and children: (`__dict__`, name) each."""
    if not isinstance(tensors, nn.Module):
        return []
    names = ("_modules", "_parameters", "_buffers")
    return [(module.__dict__, name) for module in _modules(tensors) for name in names]


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module within DataParallel, DistributedDataParallel and torch.compile's wrapper."""
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        elif "_orig_mod" in module._modules and type(module).__module__ == "torch._dynamo.eval_frame":
            module = module._modules["_orig_mod"]  # type: ignore[assignment]
        else:
            return module


def _modules(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a module and all below it, the wrappers included."""
    yield module
    for child in module._modules.values():
        if child is not None:
            yield from _modules(child)


def _form(tensors: Tensors) -> str:
    if isinstance(tensors, nn.Module):
        return "a module"
    return "a state dict" if isinstance(tensors, Mapping) else "an iterable of tensors"


def _named(tensors: Tensors) -> Iterator[tuple[str, _Named]]:
    if isinstance(tensors, nn.Module):
        yield from _named_of_module(unwrapped(tensors), "")
        return
    items = tensors.items() if isinstance(tensors, Mapping) else enumerate(tensors)
    for name, tensor in items:
        yield name if isinstance(name, str) else f"[{name}]", _Named(tensor, is_buffer=False)


def _named_of_module(module: nn.Module, prefix: str) -> Iterator[tuple[str, _Named]]:
    """As named_parameters and named_buffers, with tied ones under each of their names."""
    for is_buffer, tensors in ((False, module._parameters), (True, module._buffers)):
        for name, tensor in tensors.items():
            if tensor is not None:
                yield prefix + name, _Named(tensor, is_buffer)
    for name, child in module._modules.items():
        if child is not None:
            yield from _named_of_module(unwrapped(child), f"{prefix}{name}.")


def _check_names(targets: Mapping[str, _Named], onlines: Mapping[str, _Named], *, is_listed: bool) -> None:
    if is_listed and len(targets) != len(onlines):
        raise ValueError(f"target has {len(targets)} tensors, online has {len(onlines)}")
    for name in targets:
        if name not in onlines:
            raise ValueError(f"{name}: is in target, but not in online")
    for name in onlines:
        if name not in targets:
            raise ValueError(f"{name}: is in online, but not in target")


def _check_pair(name: str, target: _Named, online: _Named) -> None:
    for role, named in (("target", target), ("online", online)):
        if isinstance(named.tensor, _UNINITIALIZED):
            raise ValueError(f"{name}: {role} is not initialized yet; call the module once before")
        if named.tensor.layout is not torch.strided:
            raise TypeError(f"{name}: {role} has layout {named.tensor.layout}, expected torch.strided")
    to, source = target.tensor, online.tensor
    if target.is_buffer != online.is_buffer:
        kinds = ("a parameter", "a buffer")
        raise ValueError(f"{name}: target is {kinds[target.is_buffer]}, online is {kinds[online.is_buffer]}")
    if to.shape != source.shape:
        raise ValueError(f"{name}: target has shape {tuple(to.shape)}, online has {tuple(source.shape)}")
    if to.device != source.device:
        raise ValueError(f"{name}: target is on {to.device}, online is on {source.device}")
    if to.dtype == source.dtype:
        if (to.is_floating_point() or to.is_complex()) and to.dtype not in _LERPED:
            raise TypeError(f"{name}: torch has no lerp for {to.dtype}")
    elif not (to.dtype in _LERPED and source.dtype in _LERPED and to.is_complex() == source.is_complex()):
        raise TypeError(f"{name}: target is {to.dtype}, online is {source.dtype}")


_UNINITIALIZED = (nn.UninitializedParameter, nn.UninitializedBuffer)
_LERPED = frozenset([torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128])


def _check_memory(pairs: list[Pair]) -> list[Pair]:
    """Drop the second names of tied tensors; refuse every other overlap that involves a target.

    Raises:
        ValueError: Some element would be written twice, or read after it was written.
    """
    kept: list[Pair] = []
    first_of: dict[tuple[object, ...], Pair] = {}
    for this in pairs:
        tied = first_of.setdefault(_place(this.target), this)
        if tied is this:
            kept.append(this)
        elif _place(tied.online) != _place(this.online):
            raise ValueError(f"{this.name}: shares memory with {tied.name} in target, but not in online")
    spans: list[tuple[int, int, int, bool]] = []  # first byte, byte after the last, place in `kept`, is it the target?
    for i, this in enumerate(kept):
        if this.target is this.online:
            raise ValueError(f"{this.name}: target and online share memory")
        if has_memory(this.target) and not is_dense(this.target) and len(_addresses(this.target)) < this.target.numel():
            raise ValueError(f"{this.name}: several elements of target share one place in memory")
        roles = ((this.target, True), (this.online, False))
        spans += [(*_span(tensor), i, is_target) for tensor, is_target in roles if has_memory(tensor)]
    if offenders := sorted(_overlaps(kept, sorted(spans))):
        raise ValueError(offenders[0][1])
    return kept


def _overlaps(pairs: list[Pair], spans: list[tuple[int, int, int, bool]]) -> Iterator[tuple[int, str]]:
    """Yield the place and the fault of each pair whose target overlaps an online tensor or an earlier target."""
    for at, (_, end, i, i_is_target) in enumerate(spans):
        for start, _, j, j_is_target in spans[at + 1 :]:
            if start >= end:
                break
            tensors = [
                pairs[k].target if is_target else pairs[k].online
                for k, is_target in ((i, i_is_target), (j, j_is_target))
            ]
            if not (i_is_target or j_is_target) or not _overlap(*tensors):
                continue
            if i_is_target and j_is_target:
                yield max(i, j), f"{pairs[max(i, j)].name}: overlaps {pairs[min(i, j)].name} in target"
            else:
                target = i if i_is_target else j
                yield target, f"{pairs[target].name}: target and online share memory"


def has_memory(tensor: Tensor) -> bool:
    """Tell whether a tensor is no subclass (DTensor, FakeTensor) and has elements at an address."""
    if type(tensor) not in _PLAIN or tensor.device.type == "meta":
        return False
    try:
        return tensor.data_ptr() != 0
    except RuntimeError:  # within a function transform
        return False


_PLAIN = frozenset([Tensor, nn.Parameter])


def is_dense(tensor: Tensor) -> bool:
    """Tell whether the elements fill one piece of memory, in whatever order."""
    expected = 1
    for size, stride in sorted(long_dims(tensor), key=lambda dim: dim[1]):
        if stride != expected:
            return False
        expected *= size
    return True


def long_dims(tensor: Tensor) -> list[tuple[int, int]]:
    """Return (size, stride) of the dimensions of more than one element; the others' strides mean nothing."""
    return [(size, stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


def _place(tensor: Tensor) -> tuple[object, ...]:
    if not has_memory(tensor):
        return (id(tensor),)
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tuple(long_dims(tensor)))


def _span(tensor: Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in long_dims(tensor))
    start: int = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size()


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors whose spans overlap share an element."""
    if a.device != b.device:
        return False
    if is_dense(a) and is_dense(b):
        return True
    width = min(a.element_size(), b.element_size())
    return not _addresses(a, width).isdisjoint(_addresses(b, width))


def _addresses(tensor: Tensor, width: int | None = None) -> set[int]:
    """Return the addresses of all elements, in pieces of `width` bytes."""
    size = tensor.element_size()
    steps = [[i * stride * size for i in range(count)] for count, stride in long_dims(tensor)]
    pieces = range(0, size, width or size)
    start = tensor.data_ptr()
    return {start + sum(offsets) + piece for offsets in product(*steps) for piece in pieces}
