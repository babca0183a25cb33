# SPDX-License-Identifier: MIT
"""The tensors of a module, a state dict or an iterable, by name, and what holds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fastreplay.target.watched import is_builtin

__all__ = ["Containers", "Member", "Tensors", "containers_of", "form_of", "materialized", "members_of", "picklable"]

Tensors: TypeAlias = nn.Module | Mapping[str, Tensor] | Iterable[Tensor]
Containers: TypeAlias = list[tuple[dict[str, Any] | None, Any]]  # see `containers_of`


@dataclass(frozen=True)
class Member:
    """A tensor, and whether a module has it as a buffer."""

    tensor: Tensor
    is_buffer: bool


def materialized(tensors: Tensors, role: str) -> Tensors:
    """Return what `members_of` may go through more than once: iterators become lists, all else stays what it is.

    Raises:
        TypeError: `tensors` is none of the three forms.
    """
    if isinstance(tensors, Tensor) or not isinstance(tensors, (nn.Module, Mapping, Iterable)):
        raise TypeError(
            f"{role}: expected a module, a state dict or an iterable of tensors, got {type(tensors).__name__}"
        )
    return list(tensors) if isinstance(tensors, Iterator) else tensors


def picklable(tensors: Tensors) -> Tensors:
    """Return the same tensors in a form that can be copied and pickled: views of dictionaries, for one, cannot."""
    if isinstance(tensors, nn.Module) or is_builtin(tensors):
        return tensors
    return dict(tensors) if isinstance(tensors, Mapping) else list(tensors)


def containers_of(tensors: Tensors) -> Containers:
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


def _unwrapped(module: nn.Module) -> nn.Module:
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


def form_of(tensors: Tensors) -> str:
    """Say in words which of the three forms tensors come in."""
    if isinstance(tensors, nn.Module):
        return "a module"
    return "a state dict" if isinstance(tensors, Mapping) else "an iterable of tensors"


def members_of(tensors: Tensors, role: str) -> dict[str, Member]:
    """Return tensors by name, those of iterables by position: `[0]`.

    Raises:
        TypeError: Something else is among them, or a module keeps weights out of its parameters and buffers.
    """
    return dict(_members(tensors, role))


def _members(tensors: Tensors, role: str) -> Iterator[tuple[str, Member]]:
    if isinstance(tensors, nn.Module):
        yield from _members_of_module(_unwrapped(tensors), "", role)
        return
    items = tensors.items() if isinstance(tensors, Mapping) else enumerate(tensors)
    for name, tensor in items:
        if not isinstance(tensor, Tensor):
            hint = " (wrap modules in torch.nn.ModuleList)" if isinstance(tensor, nn.Module) else ""
            raise TypeError(f"{role}[{name!r}]: expected a tensor, got {type(tensor).__name__}{hint}")
        yield name if isinstance(name, str) else f"[{name}]", Member(tensor, is_buffer=False)


def _members_of_module(module: nn.Module, prefix: str, role: str) -> Iterator[tuple[str, Member]]:
    """As named_parameters and named_buffers, with tied ones under each of their names."""
    for is_buffer, tensors in ((False, module._parameters), (True, module._buffers)):
        for name, tensor in tensors.items():
            if tensor is not None:
                yield prefix + name, Member(tensor, is_buffer)
    if type(module)._save_to_state_dict is not nn.Module._save_to_state_dict:
        _refuse_packed(module, prefix, role)
    for name, child in module._modules.items():
        if child is not None:
            yield from _members_of_module(_unwrapped(child), f"{prefix}{name}.", role)


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
