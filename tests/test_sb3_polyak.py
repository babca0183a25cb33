# SPDX-License-Identifier: MIT
"""polyak_update against Stable-Baselines3's, bit for bit: every dtype, length, tau, layout and kind of iterable."""

from __future__ import annotations

import copy
import math
import threading
from collections import OrderedDict
from itertools import chain, cycle, repeat
from typing import TYPE_CHECKING, Any

import pytest
import torch
from stable_baselines3.common import utils
from torch import Tensor, nn

from fastreplay.adapters.sb3 import polyak
from fastreplay.adapters.sb3.polyak import polyak_update

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

their_update = utils.polyak_update
TAUS = (0.0, 1e-8, 0.005, 0.3, 0.5, 0.7, 1 - 1e-12, 1.0, -0.5, 2.5)
LENGTHS = (1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 1000, 4095, 4096, 4097, 40_003)


@pytest.fixture
def only_native(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("went through SB3's own function")

    assert polyak._native_update() is not None
    monkeypatch.setattr(polyak, "_sb3_update", refuse)


@pytest.fixture
def num_general(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the calls that go through SB3's own function."""
    calls: list[int] = []

    def count(*arguments: Any) -> None:
        calls.append(1)
        their_update(*arguments)

    assert polyak._native_update() is not None
    monkeypatch.setattr(polyak, "_sb3_update", count)
    return calls


def bits(tensors: list[Tensor]) -> list[bytes]:
    return [tensor.detach().contiguous().view(torch.uint8).numpy().tobytes() for tensor in tensors]


def compare(onlines: list[Tensor], targets: list[Tensor], tau: float = 0.005) -> None:
    expected = [target.detach().clone() for target in targets]
    their_update(onlines, expected, tau)
    versions = [target._version for target in targets]
    before = bits(onlines)
    polyak_update(onlines, targets, tau)
    assert bits(targets) == bits(expected)
    assert bits(onlines) == before
    assert [target._version for target in targets] == versions  # SB3 writes through .data, too


def random(count: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.exp2(torch.randint(-30, 30, (count,), generator=generator).double())
    return (torch.randn(count, dtype=torch.float64, generator=generator) * scale).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tau", TAUS)
def test_every_length(only_native: None, dtype: torch.dtype, tau: float) -> None:
    onlines = [random(n, dtype, 2 * n) for n in LENGTHS]
    targets = [random(n, dtype, 2 * n + 1) for n in LENGTHS]
    compare(onlines, targets, tau)
    compare([tensor[1:] for tensor in onlines[3:]], [tensor[1:] for tensor in targets[3:]], tau)  # unaligned


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tau", [0.005, 1.0])
def test_special_values(only_native: None, dtype: torch.dtype, tau: float) -> None:
    tiny = torch.finfo(dtype).smallest_normal
    largest = torch.finfo(dtype).max
    values = [0.0, -0.0, 1.0, math.nan, math.inf, -math.inf, tiny, -tiny / 8, largest]
    online, target = (
        grid.reshape(-1) for grid in torch.meshgrid(2 * [torch.tensor(values, dtype=dtype)], indexing="ij")
    )
    expected = target.clone()
    their_update([online], [expected], tau)
    polyak_update([online], [target], tau)
    assert torch.equal(target.isnan(), expected.isnan())
    real = ~expected.isnan()
    assert bits([target[real]]) == bits([expected[real]])


@pytest.mark.parametrize("num_threads", [1, 2])
def test_threads_of_torch(only_native: None, num_threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        compare([random(700_001, torch.float32, 0)], [random(700_001, torch.float32, 1)])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64])
def test_general_dtypes(num_general: list[int], dtype: torch.dtype) -> None:
    for count in (5, 64, 1003):
        compare([random(count, dtype, 0)], [random(count, dtype, 1)])
    assert len(num_general) == 3


def test_strides_of_single_elements_mean_nothing(only_native: None) -> None:
    compare([torch.rand(1, 6)], [torch.rand(6, 1).t()])


def values(*shape: int, seed: int = 1) -> Tensor:
    return random(math.prod(shape), torch.float32, seed).view(shape)


def negated(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Give a view whose sign torch has not turned yet."""
    return torch._neg_view(random(count, dtype, 5))


def imaginary() -> Tensor:
    """Give a dense one of more than one element."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, dtype=torch.complex64, generator=generator).conj().imag.as_strided((4,), (1,))


def overlapping() -> tuple[list[Tensor], list[Tensor]]:
    memory = torch.arange(20.0)
    return [torch.ones(12), torch.ones(12)], [memory[:12], memory[8:]]


def one_after_the_other() -> tuple[list[Tensor], list[Tensor]]:
    first, second = torch.zeros(3), torch.zeros(3)
    return [torch.ones(3), first], [first, second]


GENERAL: dict[str, Callable[[], tuple[list[Tensor], list[Tensor]]]] = {
    "strided": lambda: ([values(6)[::2]], [values(3)]),
    "transposed": lambda: ([values(3, 4).t()], [values(4, 3, seed=2)]),
    "broadcast": lambda: ([values(1, 4)], [values(3, 4, seed=2)]),
    "two dtypes": lambda: ([values(3)], [values(3, seed=2).double()]),
    "subclass": lambda: ([values(3).as_subclass(type("Mine", (Tensor,), {}))], [values(3, seed=2)]),
    "negated online": lambda: ([negated(9)], [values(9)]),
    "negated target": lambda: ([values(9)], [negated(9)]),
    "both negated": lambda: ([negated(9)], [negated(9)]),
    "negated float64": lambda: ([negated(9, torch.float64)], [random(9, torch.float64, 1)]),
    "one negated element": lambda: ([negated(1)], [values(1)]),
    "imaginary part": lambda: ([imaginary()], [values(4)]),
    "a later one negated": lambda: ([values(9, seed=2), negated(5)], [values(9), negated(5)]),
    "zero without memory": lambda: ([torch._efficientzerotensor((4,))], [values(4)]),
    "the same target twice": lambda: ([values(3), values(3, seed=2)], [torch.ones(3)] * 2),
    "overlapping": overlapping,
    "one after the other": one_after_the_other,
}


@pytest.mark.parametrize("case", GENERAL)
@pytest.mark.parametrize("tau", [0.005, 0.3, 1.0])
def test_what_has_no_kernel_or_an_order(num_general: list[int], case: str, tau: float) -> None:
    (onlines, targets), (their_onlines, their_targets) = GENERAL[case](), GENERAL[case]()
    their_update(their_onlines, their_targets, tau)
    polyak_update(onlines, targets, tau)
    assert [t.is_neg() for t in targets] == [t.is_neg() for t in their_targets]
    assert bits([t.resolve_neg() for t in targets]) == bits([t.resolve_neg() for t in their_targets])
    assert len(num_general) == 1


def test_tensors_made_in_inference_mode(only_native: None) -> None:
    """SB3 writes them through `.data`, which torch lets it do anywhere."""
    with torch.inference_mode():
        target, online = random(9, torch.float32, 1), random(9, torch.float32, 2)
        expected = target.clone()
    their_update([online], [expected], 0.3)
    polyak_update([online], [target], 0.3)
    assert bits([target]) == bits([expected])


def test_a_freed_target_is_left_to_sb3(num_general: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(polyak, "_sb3_update", lambda *arguments: seen.append(arguments))
    target = torch.zeros(10)
    target.untyped_storage().resize_(0)
    polyak_update([torch.ones(10)], [target], 0.5)
    assert len(seen) == 1


def test_errors_are_sb3s() -> None:
    tensors = [torch.ones(2), torch.ones(2)]
    for arguments in (
        (tensors, tensors[:1], 0.5),
        (tensors[:1], tensors, 0.5),
        ([], tensors, 0.5),
        ([torch.ones(3)], [torch.ones(2)], 0.5),
        ([1.0], [torch.ones(2)], 0.5),
        ([torch.ones(2, dtype=torch.int64)], [torch.ones(2, dtype=torch.int64)], 0.5),
        (3, tensors, 0.5),
        (tensors, tensors[:1], "0.5"),
    ):
        raised = []
        for function in (their_update, polyak_update):
            with pytest.raises(Exception) as caught:  # noqa: PT011 - compared below
                function(*copy.deepcopy(arguments))
            raised.append((type(caught.value), str(caught.value)))
        assert raised[0] == raised[1]


class Shared(nn.Module):
    """Tied parameters, a module twice, None in both places, nothing in one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.again = self.first
        self.second = nn.Linear(3, 4, bias=False)
        self.second.weight = self.first.weight
        self.nothing = nn.Identity()
        self.absent = None
        self.register_parameter("no", None)
        self.register_module("none", None)
        self.own = nn.Parameter(torch.rand(2, 2))
        self.listed = nn.ParameterList([torch.rand(3), torch.rand(1)])


class Backwards(nn.Sequential):
    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        return iter(list(super().named_modules(*args, **kwargs))[::-1])


def networks() -> dict[str, nn.Module]:
    return {
        "mlp": nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 1)),
        "shared": Shared(),
        "own-order": nn.Sequential(Backwards(nn.Linear(2, 3), nn.Linear(3, 2)), nn.Linear(2, 2)),
        "large": nn.Sequential(*(nn.Linear(1, 1) for _ in range(600))),
        "empty": nn.Sequential(),
        "batch-norm": nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)),
    }


@pytest.mark.parametrize("name", networks())
def test_generators_of_modules(only_native: None, name: str) -> None:
    online = networks()[name]
    target, expected = copy.deepcopy(online), copy.deepcopy(online)
    with torch.no_grad():
        for parameter in online.parameters():
            parameter.add_(1)
    onlines, targets = online.parameters(), target.parameters()
    polyak_update(onlines, list(target.parameters()), 0.3)  # a list on the other side tells the order
    polyak_update(list(online.parameters()), targets, 0.3)
    assert list(onlines) == list(targets) == []  # used up
    polyak_update(online.parameters(), target.parameters(), 0.3)
    for _ in range(3):
        their_update(online.parameters(), expected.parameters(), 0.3)
    assert bits(list(target.parameters())) == bits(list(expected.parameters()))


def test_generators_that_are_not_fresh_or_not_whole() -> None:
    online, target = networks()["mlp"], networks()["mlp"]
    for make in (
        lambda module: module.parameters(recurse=False),
        lambda module: (tensor for tensor in module.parameters()),
        lambda module: iter(list(module.parameters())),
        lambda module: tuple(module.parameters()),
        advanced,
    ):
        expected = copy.deepcopy(target)
        their_update(make(online), make(expected), 0.3)
        polyak_update(make(online), make(target), 0.3)
        assert bits(list(target.parameters())) == bits(list(expected.parameters()))


def advanced(module: nn.Module) -> Iterator[Tensor]:
    parameters = module.parameters()
    next(parameters)
    return parameters


OWN_WAYS: dict[str, Callable[[Any], None]] = {}


def own_way(change: Callable[[Any], None]) -> Callable[[Any], None]:
    OWN_WAYS[change.__name__] = change
    return change


@own_way
def named_parameters_of_the_root(net: Any) -> None:
    net.named_parameters = lambda *_, **__: iter([("only", net[2].bias)])


@own_way
def parameters_of_the_root(net: Any) -> None:
    net.parameters = lambda *_, **__: iter([net[2].bias])


@own_way
def named_members_of_the_root(net: Any) -> None:
    net._named_members = lambda *_, **__: iter([("only", net[2].bias)])


@own_way
def named_modules_of_the_root(net: Any) -> None:
    net.named_modules = lambda *_, **__: iter([("only", net[2])])


@own_way
def named_modules_of_a_child(net: Any) -> None:
    net[0].named_modules = lambda *_, **__: iter(())


@own_way
def named_parameters_of_a_child(net: Any) -> None:
    net[0].named_parameters = lambda *_, **__: iter(())  # which torch does not ask for


@own_way
def class_of_the_root(net: Any) -> None:
    class Reversed(nn.Sequential):
        def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
            return iter(list(super().named_parameters(*args, **kwargs))[::-1])

    net.__class__ = Reversed


@own_way
def class_of_a_child(net: Any) -> None:
    class Silent(nn.Linear):
        def named_modules(self, *_: Any, **__: Any) -> Iterator[Any]:
            return iter(())

    net[0].__class__ = Silent


@own_way
def equal_modules(net: Any) -> None:
    class Equal(nn.Linear):
        def __eq__(self, _: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 1

    for child in (net[0], net[2]):
        child.__class__ = Equal


@own_way
def order_of_a_dictionary(net: Any) -> None:
    net._modules = OrderedDict(net._modules)
    net._modules.move_to_end("0")


@own_way
def dictionary_of_its_own(net: Any) -> None:
    class Backwards(dict[str, Any]):
        def items(self) -> Any:
            return list(super().items())[::-1]

    net[0]._parameters = Backwards(net[0]._parameters)


def of_one_shape(seed: int) -> Any:
    """Make two layers whose parameters all have one shape, so that any of them can follow any other."""
    layers = [nn.Linear(3, 3), nn.Linear(3, 3)]
    for i, layer in enumerate(layers):
        layer.weight, layer.bias = (nn.Parameter(random(3, torch.float32, 10 * seed + 2 * i + j)) for j in (0, 1))
    return nn.Sequential(layers[0], nn.ReLU(), layers[1])


@pytest.mark.parametrize("change", OWN_WAYS)
@pytest.mark.parametrize("side", ["target", "online", "both"])
@pytest.mark.parametrize("used_before", [True, False])
def test_modules_that_walk_in_their_own_way(change: str, side: str, used_before: bool) -> None:
    found = []
    for function in (their_update, polyak_update):
        online, target = of_one_shape(1), of_one_shape(2)
        tensors = [tensor for layer in (target[0], target[2]) for tensor in (layer.weight, layer.bias)]
        if used_before:
            function(online.parameters(), target.parameters(), 0.3)
        for net in {"target": [target], "online": [online], "both": [target, online]}[side]:
            OWN_WAYS[change](net)
        raised = None
        try:
            function(online.parameters(), target.parameters(), 0.3)
        except ValueError as error:
            raised = str(error)
        found.append((bits(tensors), raised))
    assert found[0] == found[1]


class Late(nn.Linear):
    """A class that is changed while it is in use."""


@pytest.mark.parametrize("name", ["named_parameters", "_named_members", "named_modules", "parameters"])
@pytest.mark.parametrize("where", [Late, nn.Linear, nn.Module])
def test_classes_that_are_changed_later(name: str, where: type, monkeypatch: pytest.MonkeyPatch) -> None:
    online, target, expected = (Late(3, 3) for _ in range(3))
    expected.load_state_dict(target.state_dict())
    for function, net in ((their_update, expected), (polyak_update, target)):
        for _ in range(2):
            function(online.parameters(), net.parameters(), 0.3)

    def changed(self: Any, *_: Any, **__: Any) -> Iterator[Any]:
        if name == "parameters":
            return iter([self.bias])
        return iter([("", self)] if name == "named_modules" else [("bias", self.bias)])

    with monkeypatch.context() as patch:
        patch.setattr(where, name, changed)
        for function, net in ((their_update, expected), (polyak_update, target)):
            function(online.parameters(), net.parameters(), 0.3)
    assert bits([target.weight, target.bias]) == bits([expected.weight, expected.bias])
    for function, net in ((their_update, expected), (polyak_update, target)):
        function(online.parameters(), net.parameters(), 0.3)
    assert bits([target.weight, target.bias]) == bits([expected.weight, expected.bias])


def fails_on_the_way(tensors: list[Tensor]) -> Iterator[Tensor]:
    yield tensors[0]
    raise KeyError("on the way")


class Reiterable:
    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.tensors)


# What is made of an online and a target list.
ITERABLES: dict[str, Callable[[list[Tensor], list[Tensor]], tuple[Any, Any]]] = {
    "tuples": lambda o, t: (tuple(o), tuple(t)),
    "iterators": lambda o, t: (iter(o), iter(t)),
    "values": lambda o, t: (dict(enumerate(o)).values(), dict(enumerate(t)).values()),
    "parameter lists": lambda o, t: (nn.ParameterList(o), nn.ParameterList(t)),
    "own iterables": lambda o, t: (Reiterable(o), Reiterable(t)),
    "chains": lambda o, t: (chain(o[:1], o[1:]), chain(t[:1], t[1:])),
    "endless online": lambda o, t: (cycle(o), t),
    "endless target": lambda o, t: (o, repeat(t[0])),
    "one from the other": lambda o, t: ((x * 2 for x in t), t),
    "one from those before": lambda _, t: ((t[max(i - 1, 0)].clone() for i in range(3)), t),
    "takes of one iterator": lambda o, t: takes_of(iter([o[0], t[0], o[1], t[1]])),
    "an iterator and what it is taken from": lambda o, t: (i := iter([o[0], t[0], o[1], t[1]]), (x for x in i)),
    "fresh parameters and what is taken from them": lambda o, t: (
        p := nn.ParameterList([o[0], t[0]]).parameters(),
        (x for x in p),
    ),
    "failing online": lambda o, t: (fails_on_the_way(o), t),
    "failing target": lambda o, t: (o, fails_on_the_way(t)),
    "exhausted": lambda o, t: (iter(o[:0]), iter(t[:0])),
    "one more online": lambda o, t: (o, iter(t[:2])),
    "one more target": lambda o, t: (iter(o[:2]), t),
    "a longer list": lambda o, t: (o, t[:2]),
    "one iterator": lambda o, t: (i := iter([o[0], t[0], o[1], t[1]]), i),
}


def takes_of(iterator: Any) -> tuple[Any, Any]:
    return (x for x in iterator), (x for x in iterator)


@pytest.mark.parametrize("case", ITERABLES)
def test_every_kind_of_iterable(case: str) -> None:
    found = []
    for function in (their_update, polyak_update):
        onlines = [random(5, torch.float32, seed) for seed in (1, 2, 3)]
        targets = [random(5, torch.float32, seed) for seed in (4, 5, 6)]
        raised = None
        try:
            function(*ITERABLES[case](onlines, targets), 0.3)
        except (ValueError, KeyError) as error:
            raised = type(error), str(error)
        found.append((bits(targets), bits(onlines), raised))
    assert found[0] == found[1]


@pytest.mark.parametrize("tau", [1e30, -1e30, 3e38, 1e39, -1e39, 1e300, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shares_that_are_too_large_or_none(tau: float, dtype: torch.dtype) -> None:
    found = []
    for function in (their_update, polyak_update):
        target, raised = torch.tensor([1.0, 2.0, -3.0], dtype=dtype), None
        try:
            function([torch.ones(3, dtype=dtype)], [target], tau)
        except RuntimeError as error:
            raised = str(error)
        found.append((str(target.tolist()), raised))
    assert found[0] == found[1]


def test_reallocation_is_seen(only_native: None) -> None:
    online, target = networks()["mlp"], networks()["mlp"]
    for change in (
        lambda: setattr(target[0].weight, "data", torch.rand(7, 5)),  # type: ignore[index]
        lambda: (target.double(), online.double()),
        lambda: target.__setitem__(2, nn.Linear(7, 1).double()),  # type: ignore[operator]
        lambda: online.load_state_dict({k: v + 1 for k, v in online.state_dict().items()}, assign=True),
        lambda: setattr(online[0], "bias", nn.Parameter(torch.rand(7).double())),  # type: ignore[index]
    ):
        polyak_update(online.parameters(), target.parameters(), 0.3)
        change()
        expected = copy.deepcopy(target)
        their_update(online.parameters(), expected.parameters(), 0.3)
        polyak_update(online.parameters(), target.parameters(), 0.3)
        assert bits(list(target.parameters())) == bits(list(expected.parameters()))


def test_nothing_is_kept_alive() -> None:
    import gc
    import weakref

    online, target = networks()["mlp"], networks()["mlp"]
    polyak_update(online.parameters(), target.parameters(), 0.3)
    references: list[Any] = [weakref.ref(module) for module in (online, target)]
    references += [weakref.ref(tensor) for module in (online, target) for tensor in module.parameters()]
    del online, target
    gc.collect()
    assert [reference() for reference in references] == [None] * len(references)


def test_without_grad_and_in_inference_mode(only_native: None) -> None:
    online, target = nn.Linear(3, 3), nn.Linear(3, 3)
    loss = target(torch.ones(3)).sum()
    polyak_update(online.parameters(), target.parameters(), 0.5)
    loss.backward()
    assert all(parameter.grad_fn is None and parameter.requires_grad for parameter in target.parameters())
    with torch.inference_mode():
        polyak_update([torch.rand(5)], [torch.rand(5)], 0.3)


@pytest.mark.parametrize("tau", [torch.tensor(0.3), 1, True, "x"])
def test_tau_of_other_types_is_sb3s(num_general: list[int], tau: Any) -> None:
    raised = []
    for function in (their_update, polyak_update):
        target = torch.ones(3)
        try:
            function([torch.full((3,), 5.0)], [target], tau)
            raised.append(target.tolist())
        except (TypeError, RuntimeError) as error:
            raised.append([str(error)])
    assert raised[0] == raised[1]
    assert len(num_general) == 1


def test_modes_of_torch_see_the_operations() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(function)
            return function(*args, **(kwargs or {}))

    with Watch():  # type: ignore[no-untyped-call]
        polyak_update([torch.ones(3)], [torch.zeros(3)], 0.5)
    assert len([function for function in seen if "mul_" in str(function)]) == 1


def test_torchs_functions_missing(monkeypatch: pytest.MonkeyPatch, num_general: list[int]) -> None:
    monkeypatch.setattr(polyak, "_native_update", lambda: None)
    compare([torch.rand(5)], [torch.rand(5)])
    assert len(num_general) == 1


def test_large_updates_in_threads() -> None:
    """Beyond the size from which other threads run meanwhile."""
    onlines = [random(1_000_000, torch.float32, i) for i in range(3)]
    targets = [random(1_000_000, torch.float32, 10 + i) for i in range(3)]
    expected = [target.clone() for target in targets]
    for online, target in zip(onlines, expected, strict=True):
        for _ in range(5):
            their_update([online], [target], 0.3)

    def work(i: int) -> None:
        for _ in range(5):
            polyak_update([onlines[i]], [targets[i]], 0.3)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bits(targets) == bits(expected)
