# SPDX-License-Identifier: MIT
"""Which target tensor follows which online tensor, and what is refused. Moves nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from fastreplay.target.foreach import Foreach
from fastreplay.target.places import has_memory, is_plain, overlaps_itself, place, share_an_element, span

__all__ = ["HALVES", "Buffers", "Pair", "Places", "Tensors", "containers", "materialized", "pair"]

Tensors: TypeAlias = nn.Module | Mapping[str, Tensor] | Iterable[Tensor]
Buffers: TypeAlias = Literal["copy", "lerp", "skip"]
Places: TypeAlias = list[tuple[dict[str, Any] | None, Any]]  # see `containers`

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
    """Return what `pair` may go through more than once: iterators become lists, all else stays what it is.

    Raises:
        TypeError: `tensors` is none of the three forms.
    """
    if isinstance(tensors, Tensor) or not isinstance(tensors, (nn.Module, Mapping, Iterable)):
        raise TypeError(
            f"{role}: expected a module, a state dict or an iterable of tensors, got {type(tensors).__name__}"
        )
    return list(tensors) if isinstance(tensors, Iterator) else tensors


def pair(target: Tensors, online: Tensors, buffers: Buffers, *, check_memory: bool = True) -> list[Pair]:
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
    targets, onlines = dict(_named(target, "target")), dict(_named(online, "online"))
    if _form(target) != _form(online):
        raise TypeError(f"target is {_form(target)}, online is {_form(online)}: expected the same form")
    _check_names(targets, onlines, has_names=isinstance(target, (nn.Module, Mapping)))
    pairs = []
    for name, to in targets.items():
        source = onlines[name]
        _check_pair(name, to, source)
        is_floating = to.tensor.is_floating_point() or to.tensor.is_complex()
        if is_floating and to.is_buffer and buffers == "skip":
            continue
        is_copied = not is_floating or (to.is_buffer and buffers == "copy")
        pairs.append(Pair(name, to.tensor, source.tensor, is_copied))
    if not pairs:
        raise ValueError(f"nothing to update: {_why_nothing(target, has_tensors=bool(targets))}")
    pairs = [pair for pair in pairs if pair.target.numel() > 0]
    return _check_memory(pairs) if check_memory else pairs


def containers(tensors: Tensors) -> Places:
    """Return what holds the tensors, and would hold others if they were replaced.

    Returns:
        (owner, container) each. The owner is the `__dict__` of the module of which the container is `_modules`:
        torch puts another one there. Elsewhere it is None.
    """
    if not isinstance(tensors, nn.Module):
        return [(None, tensors)]
    return [
        (module.__dict__ if name == "_modules" else None, module.__dict__[name])
        for module in _modules(tensors)
        for name in ("_modules", "_parameters", "_buffers")
    ]


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


def _named(tensors: Tensors, role: str) -> Iterator[tuple[str, _Named]]:
    if isinstance(tensors, nn.Module):
        yield from _named_of_module(unwrapped(tensors), "", role)
        return
    items = tensors.items() if isinstance(tensors, Mapping) else enumerate(tensors)
    for name, tensor in items:
        if not isinstance(tensor, Tensor):
            hint = " (wrap modules in torch.nn.ModuleList)" if isinstance(tensor, nn.Module) else ""
            raise TypeError(f"{role}[{name!r}]: expected a tensor, got {type(tensor).__name__}{hint}")
        yield name if isinstance(name, str) else f"[{name}]", _Named(tensor, is_buffer=False)


def _named_of_module(module: nn.Module, prefix: str, role: str) -> Iterator[tuple[str, _Named]]:
    """As named_parameters and named_buffers, with tied ones under each of their names."""
    for is_buffer, tensors in ((False, module._parameters), (True, module._buffers)):
        for name, tensor in tensors.items():
            if tensor is not None:
                yield prefix + name, _Named(tensor, is_buffer)
    if type(module)._save_to_state_dict is not nn.Module._save_to_state_dict:
        _refuse_packed(module, prefix, role)
    for name, child in module._modules.items():
        if child is not None:
            yield from _named_of_module(unwrapped(child), f"{prefix}{name}.", role)


def _refuse_packed(module: nn.Module, prefix: str, role: str) -> None:
    """Refuse a module that saves weights which are neither parameters nor buffers, as quantized ones do."""
    state: dict[str, Any] = {}
    module._save_to_state_dict(state, prefix, True)
    for name, value in state.items():
        local = name.removeprefix(prefix)
        if local not in module._parameters and local not in module._buffers and _is_weight(value):
            raise TypeError(
                f"{name}: {role} keeps weights out of its parameters and buffers, in {type(module).__name__}; "
                "update what it was made from"
            )


def _is_weight(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.is_quantized or (value.dim() > 0 and (value.is_floating_point() or value.is_complex()))
    if isinstance(value, (tuple, list)):
        return any(map(_is_weight, value))
    return isinstance(value, torch.ScriptObject)


def _why_nothing(target: Tensors, *, has_tensors: bool) -> str:
    if has_tensors:
        return "target has only buffers, and buffers='skip' leaves them alone"
    if isinstance(target, nn.Module):
        return f"target, of {type(target).__name__}, has neither parameters nor buffers"
    return f"target is {_form(target)}, without any (was an iterator gone through before?)"


def _check_names(targets: Mapping[str, _Named], onlines: Mapping[str, _Named], *, has_names: bool) -> None:
    if not has_names and len(targets) != len(onlines):
        raise ValueError(f"target has {len(targets)} tensors, online has {len(onlines)}")
    for name in targets:
        if name not in onlines:
            raise ValueError(f"{name}: is in target, but not in online")
    for name in onlines:
        if name not in targets:
            raise ValueError(f"{name}: is in online, but not in target")


def _check_pair(name: str, target: _Named, online: _Named) -> None:
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
        if (to.is_floating_point() or to.is_complex()) and to.dtype not in _LERPED:
            raise TypeError(f"{name}: torch has no lerp for {to.dtype}")
    elif not (to.dtype in _LERPED and source.dtype in _LERPED and to.is_complex() == source.is_complex()):
        raise TypeError(f"{name}: target is {to.dtype}, online is {source.dtype}")


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


def _check_memory(pairs: list[Pair]) -> list[Pair]:
    """Drop the second names of tied tensors; refuse every other overlap that involves a target.

    Raises:
        TypeError: A subclass of tensors that cannot do what an update does.
        ValueError: Some element would be written twice, or read after it was written, or lies nowhere.
    """
    kept: list[Pair] = []
    first_of: dict[object, Pair] = {}
    for this in pairs:
        tied = first_of.setdefault(place(this.target), this)
        if tied is this:
            kept.append(this)
        elif place(tied.online) != place(this.online):
            raise ValueError(f"{this.name}: shares memory with {tied.name} in target, but not in online")
    spans: list[tuple[int, int, int, bool]] = []  # first byte, byte after the last, place in `kept`, is it the target?
    for i, this in enumerate(kept):
        if this.target is this.online:
            raise ValueError(f"{this.name}: target and online share memory")
        for tensor, role in ((this.target, "target"), (this.online, "online")):
            if has_memory(tensor):
                start, end = span(tensor)
                spans.append((start, end, i, role == "target"))
                _check_storage(this.name, role, tensor, end)
                if role == "target":
                    fault = overlaps_itself(tensor)
                    _refuse(fault, this.name, "several elements of target share one place in memory")
            elif is_plain(tensor):
                _check_absent(this.name, role, tensor)
        if not (is_plain(this.target) and is_plain(this.online)):
            _try(this)
    _refuse_overlaps(kept, sorted(spans))
    return kept


def _check_storage(name: str, role: str, tensor: Tensor, end: int) -> None:
    storage = tensor.untyped_storage()
    if end > storage.data_ptr() + storage.nbytes():
        raise ValueError(f"{name}: the storage of {role} ends before its last element; was it resized?")


def _check_absent(name: str, role: str, tensor: Tensor) -> None:
    """Look at a plain tensor that has elements but no address."""
    is_lazy_zero = role == "online" and tensor._is_zerotensor()
    if tensor.device.type == "cpu" and not torch._C._functorch.is_functorch_wrapped_tensor(tensor) and not is_lazy_zero:
        raise ValueError(f"{name}: {role} has no memory; was its storage freed?")


def _try(this: Pair) -> None:
    """Do to a copy what an update does: a subclass that cannot is found before anything was moved."""
    try:
        trial = Foreach([replace(this, target=this.target.detach().clone())])
        trial.update(0.5)
        trial.update(1.0)
    except Exception as error:
        kinds = f"{type(this.target).__name__} from {type(this.online).__name__}"
        raise TypeError(f"{this.name}: torch cannot update {kinds}: {error}") from error


def _refuse(fault: bool | None, name: str, what: str) -> None:
    if fault:
        raise ValueError(f"{name}: {what}")
    if fault is None:
        raise ValueError(f"{name}: cannot tell within reasonable time whether {what}: copy to plainer strides")


def _refuse_overlaps(pairs: list[Pair], spans: list[tuple[int, int, int, bool]]) -> None:
    """Refuse the first pair whose target overlaps an online tensor or an earlier target."""
    if offenders := sorted(_overlaps(pairs, spans), key=lambda offender: (offender[0], offender[2])):
        i, fault, what = offenders[0]
        _refuse(fault, pairs[i].name, what)


def _overlaps(pairs: list[Pair], spans: list[tuple[int, int, int, bool]]) -> Iterator[tuple[int, bool | None, str]]:
    """Yield the place in `pairs` of each fault, whether it is known to be one, and what it is."""
    for at, (_, end, i, i_is_target) in enumerate(spans):
        for start, _, j, j_is_target in spans[at + 1 :]:
            if start >= end:
                break
            if not (i_is_target or j_is_target):
                continue
            a, b = (
                pairs[k].target if is_target else pairs[k].online
                for k, is_target in ((i, i_is_target), (j, j_is_target))
            )
            fault = share_an_element(a, b)
            if fault is False:
                continue
            if i_is_target and j_is_target:
                yield max(i, j), fault, f"overlaps {pairs[min(i, j)].name} in target"
            else:
                yield i if i_is_target else j, fault, "target and online share memory"
