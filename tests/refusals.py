# SPDX-License-Identifier: MIT
"""Refused calls: a catalogue of them, the walk over the public names that it must cover, and snapshots bit by bit."""

from __future__ import annotations

import builtins
import copy
import ctypes
import dataclasses
import inspect
import random
import re
import sys
import typing
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

import fastreplay as fr
import fastreplay.cleanrl
import fastreplay.sb3
from fastreplay.adapters.base import Adapter
from fastreplay.adapters.columns import Columns
from fastreplay.adapters.prioritized_slots import PrioritizedSlots
from fastreplay.adapters.sb3.accelerate import Acceleration
from fastreplay.adapters.step_columns import StepColumn, StepColumns

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

Scene = SimpleNamespace  # what a call touches, by name
Call = partial  # a call, with the arguments that it touches

# The public face: modules, and the classes of what public functions return.
MODULES: dict[str, ModuleType] = {"fr": fr, "sb3": fastreplay.sb3, "cleanrl": fastreplay.cleanrl}
RETURNED: dict[str, type] = {"sb3.Acceleration": Acceleration, "sb3.Columns": Columns, "sb3.StepColumn": StepColumn}

# Whose methods a class has that are looked at.
_PACKAGES = ("fastreplay", "stable_baselines3")

# What Python, typing and dataclasses put into every class.
_MADE_BY_PYTHON = frozenset(
    f"__{name}__"
    for name in (
        *("module", "doc", "slots", "dict", "weakref", "new", "hash", "abstractmethods", "pyx_vtable", "replace"),
        *("annotations", "annotate", "annotate_func", "annotations_cache", "orig_bases", "parameters", "match_args"),
        *("dataclass_params", "dataclass_fields", "firstlineno", "static_attributes"),
    )
)
# Counters of what is under way and of memory that waits to be used again.
_PASSING = ("waits", "wait_s", "pinned_bytes")


class PlantedError(Exception):
    """What a user's own code raises within a call."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One refused call.

    Attributes:
        name: The public name that refuses it.
        kind: What is wrong with it.
        raises: The exception.
        make: Makes what it touches; the same, bit for bit, at each call.
        refused: Makes the call.
        go_on: What is done afterwards, and what comes of it.
        is_repeatable: Whether it can be refused again and again: not where an argument is used up.
        is_on_device: Whether it needs the CUDA device of tests/fake_cuda.py.
        ignored: What the docstring says may change: of the scene, or `np.random`.
    """

    name: str
    kind: str
    raises: type[BaseException]
    make: Callable[[], Scene]
    refused: Callable[[Scene], Call[Any]]
    go_on: Callable[[Scene], Iterable[Any]]
    is_repeatable: bool = True
    is_on_device: bool = False
    ignored: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}: {self.kind}"

    @property
    def is_theirs(self) -> bool:
        """Tell whether the exception is one of the user's own code."""
        return issubclass(self.raises, (PlantedError, KeyboardInterrupt))


Kinds = Mapping[str, "tuple[type[BaseException], Callable[[Scene], Call[Any]]]"]


def cases(
    name: str, make: Callable[[], Scene], go_on: Callable[[Scene], Iterable[Any]], kinds: Kinds, **options: Any
) -> list[Case]:
    """Make the cases of one name in one scene, by kind."""
    return [Case(name, kind, raises, make, refused, go_on, **options) for kind, (raises, refused) in kinds.items()]


def public_names() -> dict[str, Any]:
    """Find what a user can call or set: functions, and the classes' methods, setters and special methods."""
    names: dict[str, Any] = {}
    for label, module in MODULES.items():
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing):
                # What an algorithm inherits is SB3's own: it calls ours.
                names.update(
                    _members(f"{label}.{name}", thing, _PACKAGES[: 1 + (not issubclass(thing, BaseAlgorithm))])
                )
            elif typing.get_origin(thing) is None:
                names[f"{label}.{name}"] = thing
    for name, cls in RETURNED.items():
        names.update(_members(name, cls, _PACKAGES))
    return names


def _members(label: str, cls: type, packages: Collection[str]) -> Iterator[tuple[str, Any]]:
    if typing.is_typeddict(cls) or issubclass(cls, tuple):
        return  # plain data
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if base.__module__.split(".")[0] in packages:
            for name, value in vars(base).items():
                found.setdefault(name, value)
    for name, value in found.items():
        is_special = name.startswith("__") and name.endswith("__")
        if name in _MADE_BY_PYTHON or (name.startswith("_") and not is_special) or not _can_be_used(value):
            continue
        yield f"{label}.{name}", cls if name == "__init__" else value


def _can_be_used(value: Any) -> bool:
    if isinstance(value, property):
        return value.fset is not None
    is_slot = inspect.ismemberdescriptor(value) or inspect.isgetsetdescriptor(value)
    return (
        callable(value) or isinstance(value, (classmethod, staticmethod)) or (hasattr(value, "__set__") and not is_slot)
    )


def documented(thing: Any) -> list[type[BaseException]]:
    """Return the exceptions of a docstring's `Raises`; of a class, those of its constructor."""
    doc = inspect.getdoc(thing) or ""
    section = re.search(r"^Raises:\n((?:[ ]{4}.*\n|\n)+)", doc + "\n", re.MULTILINE)
    lines = section[1].splitlines() if section else []
    entries = [entry[1] for line in lines if (entry := re.match(r"    ([A-Z]\w*(?:, [A-Z]\w*)*):", line))]
    return [getattr(builtins, name) for entry in entries for name in entry.split(", ")]


def attempt(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or the exception in words."""
    try:
        return call()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - whatever it is, it is part of what comes
        return "raised", type(error).__name__, str(error)


# ---- Snapshots: nested plain values that compare equal where every bit is the same ----


def snapshot(thing: Any, *, with_places: bool = True, _above: tuple[int, ...] = ()) -> Any:
    """Take down all that can be seen of a thing.

    Args:
        thing: A scene, or anything in one.
        with_places: Whether identities and addresses count, too: before and after, not for twins.
    """
    if id(thing) in _above:
        return "itself"
    of = partial(snapshot, with_places=with_places, _above=(*_above, id(thing)))
    for kind, describe in _DESCRIBED:
        if isinstance(thing, kind):
            return type(thing).__name__, id(thing) if with_places else 0, describe(thing, of)
    if type(thing) in (dict, list, tuple, SimpleNamespace, Columns, StepColumns):
        return _of_container(thing, of)
    return _of_other(thing, with_places)


def _of_container(thing: Any, of: Callable[[Any], Any]) -> Any:
    if isinstance(thing, (dict, SimpleNamespace)):
        items = thing.items() if isinstance(thing, dict) else vars(thing).items()
        return {f"{key}": of(value) for key, value in items}
    return type(thing).__name__, [of(value) for value in thing]


def _of_other(thing: Any, with_places: bool) -> Any:
    if thing is None or isinstance(thing, (bool, int, float, complex, str, bytes, np.generic, np.dtype, type)):
        return repr(thing)
    return type(thing).__name__, id(thing) if with_places else 0


def _of_array(array: np.ndarray[Any, Any], of: Callable[[Any], Any]) -> Any:
    if array.dtype == object:
        return array.shape, [of(value) for value in array.flat]
    return str(array.dtype), array.shape, array.strides, array.flags.writeable, array.tobytes()


def _of_tensor(tensor: torch.Tensor, of: Callable[[Any], Any]) -> Any:
    facts = (str(tensor.dtype), tuple(tensor.shape), str(tensor.device), tensor.requires_grad, of(tensor.grad))
    version = "inference" if tensor.is_inference() else tensor._version
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        return (*facts, version, str(tensor.layout))
    plain = tensor.detach().resolve_conj().resolve_neg()
    if plain.is_quantized:
        plain = plain.int_repr()
    return (*facts, version, tensor.stride(), plain.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _of_buffer(buffer: Any, of: Callable[[Any], Any]) -> Any:
    if repr(buffer).endswith("(closed)"):
        return repr(buffer)
    stats = {name: count for name, count in buffer.stats().items() if name not in _PASSING}
    columns = {name: of(buffer.view(name).copy())[2] for name in buffer.schema}
    return len(buffer), buffer.capacity, buffer.nbytes, stats, buffer.rng_state, repr(buffer), columns


def _of_module(module: nn.Module, of: Callable[[Any], Any]) -> Any:
    parts = {name: of(tensor) for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
    return parts, [sorted(vars(part)) for part in module.modules()], module.training


def _of_updater(updater: Any, of: Callable[[Any], Any]) -> Any:
    state = attempt(updater.state_dict)
    return updater.count, of(updater.tau), updater.every, of(state), attempt(updater.describe)


def _of_adapter(buffer: Adapter, _: Callable[[Any], Any]) -> Any:
    state = {name: value for name, value in buffer.__getstate__().items() if name != "_integers"}
    views = {name: id(value) for name, value in vars(buffer).items() if isinstance(value, np.ndarray)}
    draw = buffer._integers.__reduce__() if hasattr(buffer._integers, "_draws") else ()
    # The views are made anew each time.
    return snapshot(dict(state), with_places=False), sorted(views), repr(draw[1:])


def _of_slots(slots: PrioritizedSlots, of: Callable[[Any], Any]) -> Any:
    parts = {name: value for name, value in vars(slots).items() if name != "_ring"}
    ring: Any = slots._ring
    weights = copy.deepcopy(ring).sample(64).weight.tobytes() if len(ring) else b""
    return of(parts), len(ring), ring.rng_state, ring.max_priority, weights


def _of_rainbow(buffer: Any, of: Callable[[Any], Any]) -> Any:
    state = {name: value for name, value in vars(buffer).items() if name != "_steps"}
    return of(state), [of(tuple(step)) for step in buffer._steps]


# In this order: the first that fits.
_DESCRIBED: list[tuple[Any, Callable[[Any, Callable[[Any], Any]], Any]]] = [
    (np.ndarray, _of_array),
    (StepColumn, lambda column, of: (repr(column), of(np.array(column))[2])),
    (torch.Tensor, _of_tensor),
    (nn.Module, _of_module),
    (fr.ReplayBuffer, _of_buffer),
    (fr.Sampler, lambda sampler, _: (sampler.stats(), sampler.rng_state, repr(sampler))),
    (fr.Mixture, lambda mixture, of: (mixture.shares, mixture.rng_state, of(list(mixture.members)))),
    (fr.SoftUpdate, _of_updater),
    (Adapter, _of_adapter),
    (PrioritizedSlots, _of_slots),
    (fastreplay.cleanrl.PrioritizedReplayBuffer, _of_rainbow),
    (fr.Minibatch, lambda batch, of: (batch.batch_size, of(list(batch.items())), of(batch.ticket))),
    (fr.Loader, lambda loader, _: (loader.num_ahead, loader.batch_size, loader.depth, repr(loader))),
    (fr.Schema, lambda schema, _: (repr(schema), schema.record_bytes, schema.names)),
    (fr.Field, lambda field, _: repr(field)),
    (Acceleration, lambda acceleration, _: repr(acceleration)),
    (np.random.Generator, lambda generator, _: repr(generator.bit_generator.state)),
    (np.random.SeedSequence, lambda seed, _: repr((seed.state, seed.n_children_spawned))),
]


def numpy_state() -> tuple[Any, ...]:
    """Return the state of NumPy's global generator in a form that is cheap to compare."""
    name, key, *others = cast("tuple[Any, ...]", np.random.get_state())
    return (name, key.tobytes(), *others)


def world() -> dict[str, Any]:
    """Take down what a call may not touch, wherever it comes from: generators, modes, threads."""
    return {
        "np.random": numpy_state(),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "random": hash(random.getstate()),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()),
        "switches": (sys.getswitchinterval(), repr(np.geterr())),
    }


def num_threads() -> int:
    """Count the process's threads, native ones too."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else 0


class _Mallinfo(ctypes.Structure):
    """The struct mallinfo2 of malloc.h."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


# Looked up once: it leaves garbage of its own.
_mallinfo: Any = getattr(ctypes.CDLL(None), "mallinfo2", None)
if _mallinfo is not None:
    _mallinfo.restype = _Mallinfo


def num_native_bytes() -> int:
    """Count the bytes that native code holds; 0 where the C library does not tell."""
    if _mallinfo is None:
        return 0
    info = _mallinfo()
    return int(info.uordblks + info.hblkhd)


def difference(before: Any, after: Any, path: str = "") -> str:
    """Say where two snapshots differ first; an empty string where they do not."""
    if isinstance(before, dict) and isinstance(after, dict):
        if list(before) != list(after):
            return f"{path}: {list(before)} became {list(after)}"
        pairs: Iterable[tuple[str, Any, Any]] = ((f".{key}", before[key], after[key]) for key in before)
    elif isinstance(before, (list, tuple)) and isinstance(after, (list, tuple)) and len(before) == len(after):
        pairs = ((f"[{i}]", mine, yours) for i, (mine, yours) in enumerate(zip(before, after, strict=True)))
    else:
        return "" if before == after else f"{path}: {before!r} became {after!r}"
    return next((found for part, mine, yours in pairs if (found := difference(mine, yours, path + part))), "")
