# SPDX-License-Identifier: MIT
"""polyak_update against Stable-Baselines3's, bit for bit: every dtype, length, tau, layout and kind of iterable."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
from stable_baselines3.common import utils
from support import level_params
from torch import Tensor, nn

from fastreplay.sb3 import polyak
from fastreplay.sb3.polyak import polyak_update

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
    values = torch.tensor([0.0, -0.0, 1.0, math.inf, -math.inf, tiny, -tiny / 8, torch.finfo(dtype).max], dtype=dtype)
    online, target = (grid.reshape(-1) for grid in torch.meshgrid(values, values, indexing="ij"))
    expected = target.clone()
    their_update([online], [expected], tau)
    polyak_update([online], [target], tau)
    assert torch.equal(target.isnan(), expected.isnan())
    real = ~expected.isnan()
    assert bits([target[real]]) == bits([expected[real]])


def test_a_nan_of_the_target_stays(only_native: None) -> None:
    target = torch.tensor([math.nan])
    polyak_update([torch.ones(1)], [target], 1.0)
    assert target.isnan()


@pytest.mark.parametrize("capability", level_params("default", "avx2", "avx512"))
def test_every_level_of_instructions(capability: str) -> None:
    """In a process of its own each, since torch decides once."""
    tests = ["test_every_length", "test_special_values", "test_general_dtypes", "test_threads_of_torch"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", " or ".join(tests)],
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout


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


def overlapping() -> tuple[list[Tensor], list[Tensor]]:
    memory = torch.arange(20.0)
    return [torch.ones(12), torch.ones(12)], [memory[:12], memory[8:]]


def one_after_the_other() -> tuple[list[Tensor], list[Tensor]]:
    first, second = torch.zeros(3), torch.zeros(3)
    return [torch.ones(3), first], [first, second]


GENERAL: dict[str, Callable[[], tuple[list[Tensor], list[Tensor]]]] = {
    "strided": lambda: ([torch.ones(6)[::2]], [torch.zeros(3)]),
    "transposed": lambda: ([torch.rand(3, 4).t()], [torch.rand(4, 3)]),
    "broadcast": lambda: ([torch.rand(1, 4)], [torch.rand(3, 4)]),
    "as-many-elements": lambda: ([torch.rand(1, 6)], [torch.rand(6)[None]]),
    "two-dtypes": lambda: ([torch.rand(3)], [torch.rand(3).double()]),
    "negated": lambda: ([torch.rand(1, dtype=torch.complex64).conj().imag], [torch.rand(1)]),
    "subclass": lambda: ([torch.rand(3).as_subclass(type("Mine", (Tensor,), {}))], [torch.rand(3)]),
    "the-same-target-twice": lambda: ([torch.rand(3), torch.rand(3)], [torch.ones(3)] * 2),
}


@pytest.mark.parametrize("case", GENERAL)
def test_what_has_no_kernel(num_general: list[int], case: str) -> None:
    onlines, targets = GENERAL[case]()
    expected = [target.clone() for target in targets]
    if case == "the-same-target-twice":
        expected = [expected[0]] * 2
    their_update(onlines, expected, 0.3)
    polyak_update(onlines, targets, 0.3)
    assert bits(targets) == bits(expected)
    assert len(num_general) == (0 if case == "as-many-elements" else 1)


@pytest.mark.parametrize("make", [overlapping, one_after_the_other])
def test_shared_memory_in_order(num_general: list[int], make: Callable[[], Any]) -> None:
    (onlines, targets), (their_onlines, their_targets) = make(), make()
    their_update(their_onlines, their_targets, 0.3)
    polyak_update(onlines, targets, 0.3)
    assert bits(targets) == bits(their_targets)
    assert len(num_general) == 1


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


def test_those_before_the_end_are_moved_as_in_sb3() -> None:
    targets = [torch.zeros(2)]
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        polyak_update([torch.ones(2), torch.ones(2)], targets, 0.5)
    assert targets[0].tolist() == [0.5, 0.5]


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
    fresh = online.parameters()
    assert [id(tensor) for tensor in polyak._listed(fresh)] == [id(tensor) for tensor in online.parameters()]
    assert list(fresh) == []  # used up
    their_update(online.parameters(), expected.parameters(), 0.3)
    polyak_update(online.parameters(), target.parameters(), 0.3)
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


def test_one_iterator_twice() -> None:
    theirs, ours = ([torch.ones(2), torch.zeros(2)] for _ in range(2))
    for function, tensors in ((their_update, theirs), (polyak_update, ours)):
        iterator = iter(tensors)
        function(iterator, iterator, 0.5)
    assert bits(ours) == bits(theirs) != bits([torch.ones(2), torch.zeros(2)])


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
