# SPDX-License-Identifier: MIT
"""Refused updates of target networks."""

from __future__ import annotations

import copy
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from refusals import Call, Case, PlantedError, Scene, attempt, cases
from target_support import SoftUpdate, hard_update_, network, random_tensor, scrambled, soft_update_
from torch import nn

import fastreplay.sb3

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

polyak_update: Any = fastreplay.sb3.polyak_update


def nets(**options: Any) -> Scene:
    """Make two networks and an updater of them that has moved already."""
    target, online = network(1), network(2)
    update = SoftUpdate(target, online, 0.3, **options)
    update.step()
    return Scene(target=target, online=online, update=update, more=random_tensor((3,), torch.float32, 5))


def halves() -> Scene:
    """Make two networks of bfloat16 and an updater with masters."""
    target, online = (scrambled(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), i).bfloat16() for i in (1, 2))
    update = SoftUpdate(target, online, 0.3, master=True)
    update.step()
    return Scene(target=target, online=online, update=update)


def of_schedule(error: type[BaseException], at: int) -> Callable[[], Scene]:
    """Give what makes an updater whose tau is a function that raises at one step."""

    def tau(count: int) -> float:
        if count == at:
            raise error("in a schedule")
        return 0.5 / count

    def make() -> Scene:
        target, online = network(1), network(2)
        update = SoftUpdate(target, online, tau)
        for _ in range(at - 1):
            update.step()
        return Scene(target=target, online=online, update=update)

    return make


class _Late:
    """A schedule that returns something else at its second step."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, count: int) -> Any:
        return self.value if count == 2 else 0.5

    def __repr__(self) -> str:
        return f"late {self.value}"


def of_late_value(value: Any) -> Callable[[], Scene]:
    """Give what makes an updater whose tau is a function that returns something at its second step."""

    def make() -> Scene:
        target, online = network(1), network(2)
        update = SoftUpdate(target, online, _Late(value))
        update.step()
        return Scene(target=target, online=online, update=update)

    return make


def misfits() -> Scene:
    """Make an updater whose last tensors no longer fit each other."""
    scene = nets()
    scene.online[3].weight.data = torch.ones(2, 5)
    return scene


def misfits_with_masters() -> Scene:
    scene = halves()
    scene.online[1].bias = None
    return scene


def inferred() -> Scene:
    """Make an updater whose last target was made in inference mode, outside of which it cannot be written."""
    target, online = network(1), network(2)
    with torch.inference_mode():
        target.register_buffer("late", torch.zeros(3))
    online.register_buffer("late", torch.ones(3))
    return Scene(target=target, online=online, update=SoftUpdate(target, online, 0.3))


def inferred_halves() -> Scene:
    """Make an updater with masters, the last of whose targets was made in inference mode."""
    scene = halves()
    with torch.inference_mode():
        scene.target[1].bias = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    scene.update = SoftUpdate(scene.target, scene.online, 0.3, master=True)
    return scene


def go_on_within(scene: Scene) -> Iterator[Any]:
    """Go on in inference mode."""
    with torch.inference_mode():
        yield [attempt(partial(scene.update.step, 0.5)), scene.update.count]
        yield [attempt(partial(hard_update_, scene.target, scene.online))]
    yield {name: tensor.clone() for name, tensor in scene.target.state_dict().items()}


def lists() -> Scene:
    """Make lists of tensors, to be moved without an updater."""
    shapes: list[tuple[int, ...]] = [(3, 4), (5,), ()]
    target, online = (
        [random_tensor(shape, torch.float32, 10 * i + seed) for i, shape in enumerate(shapes)] for seed in (1, 2)
    )
    return Scene(target=target, online=online)


def go_on(scene: Scene) -> Iterator[Any]:
    """Mend what was made to misfit, and move on."""
    online: Any = scene.online
    if isinstance(online, nn.Module):
        last: Any = list(online.children())[-1]
        like: Any = list(scene.target.children())[-1]
        # In the parameters themselves, which every step looks at.
        last.weight.data = torch.full_like(like.weight, 0.5)
        if last.bias is None:
            last.bias = nn.Parameter(torch.full_like(like.bias, 0.25))
    if hasattr(scene, "update"):
        for tau in (None, 0.5, 1.0, None):
            yield [attempt(partial(scene.update.step, tau)), scene]
        yield [attempt(scene.update.refresh), attempt(scene.update.state_dict), repr(scene.update)]
        kept = copy.deepcopy(scene.update.state_dict())
        yield [attempt(partial(scene.update.load_state_dict, kept)), scene]
    for move in (partial(soft_update_, tau=0.25), hard_update_):
        yield [attempt(partial(move, scene.target, scene.online)), scene]
    if isinstance(scene.online, list):
        yield [attempt(partial(polyak_update, scene.online, scene.target, 0.125)), scene]


def _cut(tensors: list[Any], last: Any) -> list[Any]:
    return [*tensors[:-1], last]


def raising(tensors: list[Any], error: type[BaseException] = PlantedError) -> Iterator[Any]:
    """Give an iterator of some tensors that raises at its end."""
    yield from tensors
    raise error("in an iterator")


# What cannot be paired, the fault in the last tensor: for the constructor and both functions alike.
MISMATCHES: dict[str, Any] = {
    "a shape, last": (ValueError, lambda s: (s.target, _cut(s.online, torch.ones(2)))),
    "a dtype, last": (TypeError, lambda s: (s.target, _cut(s.online, torch.ones((), dtype=torch.int64)))),
    "a device, last": (ValueError, lambda s: (s.target, _cut(s.online, torch.ones((), device="meta")))),
    "complex, last": (TypeError, lambda s: (s.target, _cut(s.online, torch.ones((), dtype=torch.complex64)))),
    "sparse, last": (TypeError, lambda s: (_cut(s.target, torch.ones(2).to_sparse()), _cut(s.online, torch.ones(2)))),
    "one less": (ValueError, lambda s: (s.target, s.online[:-1])),
    "one more": (ValueError, lambda s: (s.target, [*s.online, torch.ones(2)])),
    "shared, last": (ValueError, lambda s: (s.target, _cut(s.online, s.target[-1]))),
    "overlapping targets": (ValueError, lambda s: ([*s.target, s.target[0][0]], [*s.online, torch.ones(4)])),
    "no tensor, last": (TypeError, lambda s: (s.target, _cut(s.online, 3.0))),
    "no tensors": (TypeError, lambda s: (s.target, 3)),
    "two forms": (TypeError, lambda s: (network(1), s.online)),
    "another module": (ValueError, lambda s: (network(1), network(2, width=9))),
    "names": (ValueError, lambda s: (dict(enumerate(s.target)), {str(i): t for i, t in enumerate(s.online)})),
}
# An iterator is used up by the first call, so that the second is another.
THEIRS: dict[str, Any] = {
    "their iterator": (PlantedError, lambda s: (s.target, raising(s.online))),
    "Ctrl-C in their iterator": (KeyboardInterrupt, lambda s: (raising(s.target, KeyboardInterrupt), s.online)),
}
TAUS: dict[str, Any] = {
    "above 1": (ValueError, 1.5),
    "below 0": (ValueError, -0.1),
    "NaN": (ValueError, float("nan")),
    "infinite": (ValueError, float("inf")),
    "beyond every float": (ValueError, 10**400),
    "a fraction beyond every float": (ValueError, Fraction(10**400, 3)),
    "text": (TypeError, "0.5"),
    "a bool": (TypeError, True),
    "a list": (TypeError, [0.5]),
    "a vector": (TypeError, torch.tensor([0.5, 0.5])),
    "a half": (TypeError, torch.tensor(0.5, dtype=torch.float16)),
    "a tensor above 1": (ValueError, torch.tensor(1.5)),
}


def moving(move: Any, mismatches: dict[str, Any]) -> dict[str, Any]:
    """Make calls of what cannot be paired."""
    return {
        kind: (error, lambda s, tensors=tensors: Call(move, *tensors(s)))
        for kind, (error, tensors) in mismatches.items()
    }


INIT: dict[str, Any] = {
    "no such buffers": (ValueError, lambda s: Call(SoftUpdate, s.target, s.online, buffers="move")),
    "every 0th": (ValueError, lambda s: Call(SoftUpdate, s.target, s.online, every=0)),
    "every half": (TypeError, lambda s: Call(SoftUpdate, s.target, s.online, every=0.5)),
    "every True": (TypeError, lambda s: Call(SoftUpdate, s.target, s.online, every=True)),
}
INIT |= {
    f"tau {kind}": (error, lambda s, tau=tau: Call(SoftUpdate, s.target, s.online, tau))
    for kind, (error, tau) in TAUS.items()
}
SOFT: dict[str, Any] = {
    f"tau {kind}": (error, lambda s, tau=tau: Call(soft_update_, s.target, s.online, tau))
    for kind, (error, tau) in TAUS.items()
}
STEP: dict[str, Any] = {
    f"tau {kind}": (error, lambda s, tau=tau: Call(s.update.step, tau)) for kind, (error, tau) in TAUS.items()
}
MISFIT: dict[str, Any] = {"tensors that no longer fit": (ValueError, lambda s: Call(s.update.step))}
REFRESH: dict[str, Any] = {
    "a shape": (ValueError, lambda s: Call(s.update.refresh)),
}
LAST: dict[str, Any] = {"one less": (ValueError, lambda s: Call(s.update.refresh))}


def of_types() -> Scene:
    """Make an updater whose last tensors have types that cannot follow each other."""
    scene = nets()
    scene.online[3].weight.data = torch.ones(2, 8, dtype=torch.complex64)
    return scene


REFRESH_TYPES: dict[str, Any] = {"a dtype": (TypeError, lambda s: Call(s.update.refresh))}


def state_of(scene: Scene, **changes: Any) -> dict[str, Any]:
    """Give an updater's state, some of it changed."""
    return {**copy.deepcopy(scene.update.state_dict()), "count": 7, **changes}


def masters_of(scene: Scene, last: Any) -> dict[str, Any]:
    """Give an updater's state with all masters other, and the last something else."""
    masters = {name: torch.full_like(master, 9.0) for name, master in scene.update.state_dict()["masters"].items()}
    return state_of(scene, masters={**masters, list(masters)[-1]: last})


LOAD: dict[str, Any] = {
    "no count": (ValueError, lambda s: Call(s.update.load_state_dict, {"masters": {}})),
    "more": (ValueError, lambda s: Call(s.update.load_state_dict, state_of(s, more=1))),
    "a negative count": (ValueError, lambda s: Call(s.update.load_state_dict, state_of(s, count=-1))),
    "a count that is a float": (ValueError, lambda s: Call(s.update.load_state_dict, state_of(s, count=1.0))),
    "no masters": (ValueError, lambda s: Call(s.update.load_state_dict, state_of(s, masters={}))),
    "no state": (TypeError, lambda s: Call(s.update.load_state_dict, 3)),
    "masters that are none": (TypeError, lambda s: Call(s.update.load_state_dict, state_of(s, masters=3))),
    "a last master on meta": (
        ValueError,
        lambda s: Call(s.update.load_state_dict, masters_of(s, torch.ones(2, device="meta"))),
    ),
    "a last master that is sparse": (
        TypeError,
        lambda s: Call(s.update.load_state_dict, masters_of(s, torch.ones(2).to_sparse())),
    ),
    "a last master that is an array": (
        TypeError,
        lambda s: Call(s.update.load_state_dict, masters_of(s, np.ones(2, np.float32))),
    ),
    "a last master of another shape": (
        ValueError,
        lambda s: Call(s.update.load_state_dict, masters_of(s, torch.ones(3))),
    ),
}

TARGETS: list[Case] = [
    *cases("fr.SoftUpdate.__init__", lists, go_on, moving(SoftUpdate, MISMATCHES) | INIT),
    *cases("fr.SoftUpdate.__init__", lists, go_on, moving(SoftUpdate, THEIRS), is_repeatable=False),
    *cases("fr.soft_update_", lists, go_on, moving(partial(soft_update_, tau=0.3), MISMATCHES) | SOFT),
    *cases("fr.soft_update_", lists, go_on, moving(partial(soft_update_, tau=0.3), THEIRS), is_repeatable=False),
    *cases("fr.hard_update_", lists, go_on, moving(hard_update_, MISMATCHES)),
    *cases("fr.hard_update_", lists, go_on, moving(hard_update_, THEIRS), is_repeatable=False),
    *cases("fr.SoftUpdate.step", nets, go_on, STEP),
    *cases("fr.SoftUpdate.step", misfits, go_on, MISFIT),
    *cases(
        "fr.SoftUpdate.step",
        of_schedule(PlantedError, 3),
        go_on,
        {"their schedule": (PlantedError, lambda s: Call(s.update.step))},
    ),
    *cases(
        "fr.SoftUpdate.step",
        of_schedule(KeyboardInterrupt, 2),
        go_on,
        {"Ctrl-C in their schedule": (KeyboardInterrupt, lambda s: Call(s.update.step))},
    ),
    *cases(
        "fr.SoftUpdate.step",
        of_late_value(1.5),
        go_on,
        {"a schedule above 1": (ValueError, lambda s: Call(s.update.step))},
    ),
    *cases(
        "fr.SoftUpdate.step",
        of_late_value(None),
        go_on,
        {"a schedule that returns nothing": (TypeError, lambda s: Call(s.update.step))},
    ),
    *cases(
        "fr.SoftUpdate.step",
        inferred,
        go_on_within,
        {"a target of inference mode": (RuntimeError, lambda s: Call(s.update.step))},
    ),
    *cases(
        "fr.soft_update_",
        inferred,
        go_on_within,
        {"a target of inference mode": (RuntimeError, lambda s: Call(soft_update_, s.target, s.online, 0.3))},
    ),
    *cases(
        "fr.hard_update_",
        inferred,
        go_on_within,
        {"a target of inference mode": (RuntimeError, lambda s: Call(hard_update_, s.target, s.online))},
    ),
    *cases("fr.SoftUpdate.refresh", misfits, go_on, REFRESH),
    *cases("fr.SoftUpdate.refresh", misfits_with_masters, go_on, LAST),
    *cases("fr.SoftUpdate.refresh", of_types, go_on, REFRESH_TYPES),
    *cases("fr.SoftUpdate.load_state_dict", halves, go_on, LOAD),
    *cases(
        "fr.SoftUpdate.load_state_dict",
        inferred_halves,
        go_on_within,
        {
            "a last target of inference mode": (
                RuntimeError,
                lambda s: Call(s.update.load_state_dict, masters_of(s, torch.ones(2))),
            ),
        },
    ),
    *cases(
        "fr.SoftUpdate.state_dict",
        misfits,
        go_on,
        {"tensors that no longer fit": (ValueError, lambda s: Call(s.update.state_dict))},
    ),
    *cases(
        "fr.SoftUpdate.describe",
        misfits,
        go_on,
        {"tensors that no longer fit": (ValueError, lambda s: Call(s.update.describe))},
    ),
    *cases(
        "fr.SoftUpdate.__repr__",
        misfits,
        go_on,
        {"tensors that no longer fit": (ValueError, lambda s: Call(repr, s.update))},
    ),
    *cases(
        "fr.SoftUpdate.__setstate__",
        nets,
        go_on,
        {
            "no state": (TypeError, lambda s: Call(s.update.__setstate__, 3)),
            "half a state": (ValueError, lambda s: Call(s.update.__setstate__, {"count": 9})),
        },
    ),
]
