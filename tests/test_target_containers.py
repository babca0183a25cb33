# SPDX-License-Identifier: MIT
"""Tensors in dictionaries, lists and whatever holds them: another one in their place is noticed, at the next step."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict, UserDict, UserList, deque
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
import torch
from target_support import (
    SoftUpdate,
    assert_same_bits,
    lerped,
    linears,
    random_tensor,
    soft_update_,
    unchanged,
)
from torch import Tensor, nn

from fastreplay.target import plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAMES = ("a", "b", "c")


@pytest.fixture(params=["native", "python"], autouse=True)
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at tensors by torch's native functions, or by Python."""
    if request.param == "python":
        monkeypatch.setattr(plan, "torch_abi", lambda: None)


def tensor(seed: int) -> Tensor:
    return random_tensor((5,), torch.float32, seed)


class Own:
    """An iterable that is no sequence."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.tensors)


class Doubled(dict[str, Tensor]):
    """A dictionary that gives others than it holds, as long as it is told to."""

    other: dict[str, Tensor] | None = None

    def items(self) -> Any:
        return super().items() if self.other is None else self.other.items()


# What is made of a dictionary or a list, which is then changed.
FORMS: dict[str, tuple[type, Callable[[Any], Any]]] = {
    "dict": (dict, lambda held: held),
    "OrderedDict": (OrderedDict, lambda held: held),
    "class of dict": (type("Mine", (dict,), {}), lambda held: held),
    "UserDict": (UserDict, lambda held: held),
    "proxy": (dict, MappingProxyType),
    "values": (dict, lambda held: held.values()),
    "list": (list, lambda held: held),
    "class of list": (type("Mine", (list,), {}), lambda held: held),
    "UserList": (UserList, lambda held: held),
    "deque": (deque, lambda held: held),
    "own iterable": (list, Own),
    "ParameterList": (nn.ParameterList, lambda held: held),
    "ParameterDict": (nn.ParameterDict, lambda held: held),
}


def holder(kind: Any, seed: int) -> Any:
    if kind is nn.ParameterDict or issubclass(kind, (dict, UserDict)):
        return kind({name: tensor(10 * seed + i) for i, name in enumerate(NAMES)})
    return kind([tensor(10 * seed + i) for i in range(3)])


def held_by(held: Any) -> list[Tensor]:
    keys = NAMES if hasattr(held, "values") else range(3)
    return [held[key] for key in keys]


def replaced(held: Any, i: int, by: Tensor) -> None:
    held[NAMES[i] if hasattr(held, "values") else i] = by


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("side", ["target", "online"])
@pytest.mark.parametrize("i", [0, 2])
def test_another_tensor_is_noticed_at_once(form: str, side: str, i: int) -> None:
    kind, make = FORMS[form]
    target, online = holder(kind, 1), holder(kind, 2)
    update = SoftUpdate(make(target), make(online), 0.3, buffers="lerp")
    for seed in range(3, 6):
        update.step()
        old = [t.detach() for t in (*held_by(target), *held_by(online))]
        replaced(target if side == "target" else online, i, tensor(10 * seed))
        left = old[i if side == "target" else 3 + i]
        expected = [lerped(to, source, 0.3) for to, source in zip(held_by(target), held_by(online), strict=True)]
        with unchanged(left, versions=False):
            assert update.step()
        for to, want in zip(held_by(target), expected, strict=True):
            assert_same_bits(to, want)


@pytest.mark.parametrize("form", ["dict", "OrderedDict", "UserDict", "list", "deque", "values", "own iterable"])
def test_more_and_fewer_tensors_are_noticed_or_refused(form: str) -> None:
    kind, make = FORMS[form]
    target, online = holder(kind, 1), holder(kind, 2)
    update = SoftUpdate(make(target), make(online), 0.3)
    update.step()
    has_names = hasattr(target, "values")

    def add(held: Any, value: Tensor) -> None:
        if has_names:
            held["d"] = value
        else:
            held.append(value)

    more = torch.zeros(2)
    add(target, more)
    with unchanged(more, *held_by(target)):
        for _ in range(2):
            with pytest.raises(ValueError, match=r"in target, but not in online|target has 4 tensors, online has 3"):
                update.step()
    assert update.count == 1
    add(online, torch.ones(2))
    update.step()
    assert_same_bits(more, torch.zeros(2).lerp(torch.ones(2), 0.3))
    for held in (target, online):
        held.clear()
    with pytest.raises(ValueError, match=r"^nothing to update"):
        update.step()
    assert update.count == 2


@pytest.mark.parametrize(
    "value", [None, 1.0, nn.Linear(1, 1), [torch.zeros(5)]], ids=lambda value: type(value).__name__
)
@pytest.mark.parametrize("kind", [dict, list, UserDict, deque])
def test_what_is_no_tensor_is_refused_by_name(kind: type, value: Any) -> None:
    target, online = holder(kind, 1), holder(kind, 2)
    update = SoftUpdate(target, online, 0.3)
    replaced(online, 1, value)
    name = "'b'" if hasattr(online, "values") else "1"
    with unchanged(*held_by(target)), pytest.raises(TypeError, match=rf"^online\[{name}\]: expected a tensor, got"):
        update.step()
    assert update.count == 0


def test_a_dictionary_in_another_order_is_the_same() -> None:
    online = OrderedDict((name, torch.full((2,), float(i))) for i, name in enumerate(NAMES))
    target = {name: torch.zeros(2) for name in NAMES}
    update = SoftUpdate(target, online, 1.0)
    online.move_to_end("a")
    update.step()
    online["b"] = online.pop("b")
    update.step()
    assert [value[0].item() for value in target.values()] == [0.0, 1.0, 2.0]


def test_a_class_of_dictionaries_is_asked_for_its_items() -> None:
    target, online = {"a": torch.zeros(2)}, Doubled(a=torch.ones(2))
    update = SoftUpdate(target, online, 1.0)
    update.step()
    online.other = {"a": torch.full((2,), 4.0)}
    update.step()
    assert target["a"].tolist() == [4.0, 4.0]


def test_tensors_that_are_made_when_they_are_asked_for_are_those_of_the_first_time() -> None:
    class Rows:
        def __init__(self, whole: Tensor) -> None:
            self.whole = whole

        def __iter__(self) -> Iterator[Tensor]:
            return iter(self.whole.unbind(0))

    target, online = torch.zeros(3, 4), torch.ones(3, 4)
    update = SoftUpdate(Rows(target), Rows(online), 0.5)
    for share in (0.5, 0.75):
        update.step()
        assert torch.equal(target, torch.full((3, 4), share))


def test_iterators_are_gone_through_once() -> None:
    nets = linears()
    update = SoftUpdate(*(net.parameters() for net in nets), 0.5)
    old = [tensor.detach() for tensor in nets[0].parameters()]
    expected = [lerped(to, source, 0.5) for to, source in zip(*(net.parameters() for net in nets), strict=True)]
    nets[0].weight = nn.Parameter(torch.zeros(3, 3))
    with unchanged(nets[0].weight):
        update.step()
    for to, want in zip(old, expected, strict=True):
        assert_same_bits(to, want)


def test_state_dicts_follow_what_is_put_into_them() -> None:
    target, online = (net.state_dict() for net in linears())
    update = SoftUpdate(target, online, 0.5)
    update.step()
    online.update({name: torch.ones_like(value) for name, value in online.items()})
    expected = [lerped(target[name], online[name], 0.5) for name in target]
    update.step()
    for to, want in zip(target.values(), expected, strict=True):
        assert_same_bits(to, want)


@pytest.mark.parametrize("carry", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
@pytest.mark.parametrize("form", FORMS)
def test_updaters_of_every_form_are_copied(form: str, carry: Callable[[Any], Any]) -> None:
    kind, make = FORMS[form]
    if carry is not copy.deepcopy and kind.__name__ == "Mine":
        kind = list if issubclass(kind, list) else dict  # a class that pickle cannot find
    target, online = holder(kind, 1), holder(kind, 2)
    if form == "own iterable":
        make = list
    update = SoftUpdate(make(target), make(online), 0.3, buffers="lerp")
    other = carry(update)
    with unchanged(*held_by(target), *held_by(online)):
        assert other.step()
    expected = [lerped(to, source, 0.3) for to, source in zip(held_by(target), held_by(online), strict=True)]
    moved = other._target
    found = list(moved.values()) if hasattr(moved, "values") else list(moved)
    for to, want in zip(found, expected, strict=True):
        assert_same_bits(to, want)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")
def test_scripted_modules() -> None:
    nets = [torch.jit.script(net) for net in linears()]
    update = SoftUpdate(*nets, 0.3)
    for net in (None, *nets):
        if net is not None:
            net.weight = nn.Parameter(tensor(9)[:3] * torch.ones(3, 3))
        expected = lerped(nets[0].weight, nets[1].weight, 0.3)
        update.step()
        assert_same_bits(nets[0].weight, expected)
        expected = lerped(nets[0].weight, nets[1].weight, 0.3)
        soft_update_(*nets, 0.3)
        assert_same_bits(nets[0].weight, expected)


def test_nested_lists_are_refused() -> None:
    with pytest.raises(TypeError, match=r"^target\[0\]: expected a tensor, got list"):
        SoftUpdate([[torch.zeros(2)]], [[torch.ones(2)]])
