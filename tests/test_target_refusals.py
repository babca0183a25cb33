# SPDX-License-Identifier: MIT
"""What target updates refuse: the exception, the tensor it names, and that nothing was changed."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from target_support import (
    SoftUpdate,
    assert_moves,
    hard_update_,
    network,
    networks,
    random_tensor,
    scrambled,
    soft_update_,
    unchanged,
    warnings_of_halves,
)
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable


def tensors_of(*forms: Any) -> list[Tensor]:
    """Give the tensors whose bits can be compared."""
    found: list[Any] = []
    for form in forms:
        if isinstance(form, nn.Module):
            found += [*form.parameters(), *form.buffers()]
        elif isinstance(form, dict):
            found += form.values()
        elif isinstance(form, (list, tuple)):
            found += [t for part in form for t in (tensors_of(part) if isinstance(part, nn.Module) else [part])]
        else:
            found.append(form)
    kinds = (nn.UninitializedParameter, nn.UninitializedBuffer)
    plain = [t for t in found if isinstance(t, Tensor) and not isinstance(t, kinds)]
    return [
        t for t in plain if t.device.type == "cpu" and t.layout is torch.strided and not (t.is_quantized or t.is_nested)
    ]


Pair = tuple[Any, Any]
Case = tuple["Callable[[], Pair]", type[Exception], str]


def linear(inputs: int, outputs: int, seed: int = 1) -> Any:
    return scrambled(nn.Linear(inputs, outputs), seed)


def same_module() -> Pair:
    net = network(1)
    return net, net


def one_shared_parameter() -> Pair:
    target, online = networks()
    target[3].bias = online[3].bias
    return target, online


def one_shared_buffer() -> Pair:
    target, online = networks()
    target[1].running_var = online[1].running_var
    return target, online


def state_of_one_module() -> Pair:
    net = network(1)
    return net.state_dict(), net.state_dict()


def same_memory() -> Pair:
    base = torch.arange(20.0)
    return [torch.zeros(2), base[:10]], [torch.ones(2), base[:10].view(10)]


def overlapping_views() -> Pair:
    base = torch.arange(20.0)
    return [torch.zeros(2), base[:10]], [torch.ones(2), base[9:19]]


def target_overlaps_another_online() -> Pair:
    base = torch.arange(20.0)
    return [base[:10], torch.zeros(4)], [torch.ones(10), base[9:13]]


def interleaved_with_one_shared_element() -> Pair:
    base = torch.arange(24.0)
    return [base[0:12:2]], [base[4:20:3]]


def other_dtype_of_the_same_bytes() -> Pair:
    base = torch.zeros(16)
    return [base[:4]], [base.view(torch.bfloat16)[6:10]]


def targets_overlap() -> Pair:
    base = torch.arange(20.0)
    return [base[:10], base[5:15]], [torch.zeros(10), torch.zeros(10)]


def targets_interleave_and_share() -> Pair:
    base = torch.arange(24.0)
    return [base[0:12:2], base[4:20:3]], [torch.zeros(6), torch.zeros(6)]


def tied_in_target_only() -> Pair:
    target, online = (nn.ModuleList([linear(3, 3, seed=s), linear(3, 3, seed=s + 5)]) for s in (1, 2))
    target[1].weight = target[0].weight
    return target, online


def with_other_parameter(online_too: bool) -> Pair:
    target, online = networks()
    (online if online_too else target).register_parameter("extra", nn.Parameter(torch.zeros(2)))
    return target, online


def buffer_for_a_parameter() -> Pair:
    target, online = networks()
    target.register_buffer("extra", torch.zeros(2))
    online.register_parameter("extra", nn.Parameter(torch.zeros(2)))
    return target, online


def in_state_dict(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[], Pair]:
    def make() -> Pair:
        target, online = ({name: tensor.clone() for name, tensor in net.state_dict().items()} for net in networks())
        change(online)
        return target, online

    return make


def lists(target: Any, online: Any) -> Callable[[], Pair]:
    """Put an ordinary tensor before the one that matters."""
    return lambda: ([torch.zeros(3), target()], [torch.ones(3), online()])


def of_dtypes(target: torch.dtype, online: torch.dtype) -> Callable[[], Pair]:
    return lists(lambda: torch.ones(3, dtype=target), lambda: torch.zeros(3, dtype=online))


def lazy() -> Pair:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3)), nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3))


def lazy_online() -> Pair:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3)), lazy()[1]


def used(seed: int) -> Any:
    """Give an iterator that somebody went through."""
    parameters = network(seed).parameters()
    list(parameters)
    return parameters


def quantized(layer: str) -> Any:
    """Make a module whose weights torch packed away, all or some of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = {
            "all": lambda: nn.Sequential(nn.Linear(2, 2)),
            "some": lambda: nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 2)),
            "recurrent": lambda: nn.Sequential(nn.LayerNorm(2), nn.LSTM(2, 2)),
        }[layer]()
        return torch.ao.quantization.quantize_dynamic(made, {nn.Linear, nn.LSTM})  # type: ignore[no-untyped-call]


def frozen() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Linear(2, 2)).eval()))


class Hiding(nn.Module):
    """Keeps its layers where torch does not find them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(2, 2)]


def integer_quantized() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(3), 0.5, 0, torch.quint8)


def channels_quantized() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_channel(torch.ones(3), torch.ones(3), torch.zeros(3), 0, torch.qint8)


def nested() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(1)])


def jagged() -> Tensor:
    return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(1)], layout=torch.jagged)


SPARSE = torch.zeros(3).to_sparse()
CASES: dict[str, Case] = {
    "same module": (same_module, ValueError, "0.weight: target and online share memory"),
    "one shared parameter": (one_shared_parameter, ValueError, "3.bias: target and online share memory"),
    "one shared buffer": (one_shared_buffer, ValueError, "1.running_var: target and online share memory"),
    "state dicts of one module": (state_of_one_module, ValueError, "0.weight: target and online share memory"),
    "same memory": (same_memory, ValueError, "[1]: target and online share memory"),
    "overlapping views": (overlapping_views, ValueError, "[1]: target and online share memory"),
    "target over another online": (target_overlaps_another_online, ValueError, "[0]: target and online share memory"),
    "interleaved, sharing": (interleaved_with_one_shared_element, ValueError, "[0]: target and online share memory"),
    "bytes of another dtype": (other_dtype_of_the_same_bytes, ValueError, "[0]: target and online share memory"),
    "targets overlap": (targets_overlap, ValueError, "[1]: overlaps [0] in target"),
    "interleaved targets, sharing": (targets_interleave_and_share, ValueError, "[1]: overlaps [0] in target"),
    "expanded target": (
        lists(lambda: torch.zeros(1).expand(5), lambda: torch.ones(5)),
        ValueError,
        "[1]: several elements of target share one place in memory",
    ),
    "target over itself": (
        lists(lambda: torch.zeros(9).as_strided((3, 3), (2, 1)), lambda: torch.ones(3, 3)),
        ValueError,
        "[1]: several elements of target share one place in memory",
    ),
    "tied in target only": (
        tied_in_target_only,
        ValueError,
        "1.weight: shares memory with 0.weight in target, but not in online",
    ),
    "one parameter more in target": (
        lambda: with_other_parameter(online_too=False),
        ValueError,
        "extra: is in target, but not in online",
    ),
    "one parameter more in online": (
        lambda: with_other_parameter(online_too=True),
        ValueError,
        "extra: is in online, but not in target",
    ),
    "a buffer for a parameter": (
        buffer_for_a_parameter,
        ValueError,
        "extra: target is a buffer, online is a parameter",
    ),
    "a name less in a state dict": (
        in_state_dict(lambda state: state.pop("3.weight")),
        ValueError,
        "3.weight: is in target, but not in online",
    ),
    "a name more in a state dict": (
        in_state_dict(lambda state: state.update(more=torch.zeros(2))),
        ValueError,
        "more: is in online, but not in target",
    ),
    "another shape in a state dict": (
        in_state_dict(lambda state: state.update({"3.bias": torch.zeros(3)})),
        ValueError,
        "3.bias: target has shape (2,), online has (3,)",
    ),
    "shapes of modules": (
        lambda: (nn.Sequential(linear(3, 4), linear(4, 2)), nn.Sequential(linear(3, 4), linear(4, 3))),
        ValueError,
        "1.weight: target has shape (2, 4), online has (3, 4)",
    ),
    "shape that torch would spread": (
        lists(lambda: torch.ones(4), lambda: torch.ones(())),
        ValueError,
        "[1]: target has shape (4,), online has ()",
    ),
    "empty against full": (
        lists(lambda: torch.ones(0), lambda: torch.ones(2)),
        ValueError,
        "[1]: target has shape (0,), online has (2,)",
    ),
    "counts": (lambda: ([torch.ones(2)] * 1, [torch.zeros(2)] * 3), ValueError, "target has 1 tensors, online has 3"),
    "none against one": (lambda: ([], [torch.zeros(2)]), ValueError, "target has 0 tensors, online has 1"),
    "online on meta": (
        lists(lambda: torch.ones(3), lambda: torch.zeros(3, device="meta")),
        ValueError,
        "[1]: target is on cpu, online is on meta",
    ),
    "target on meta": (
        lambda: (nn.Linear(2, 2, device="meta"), linear(2, 2)),
        ValueError,
        "weight: target is on meta, online is on cpu",
    ),
    "float from complex": (
        of_dtypes(torch.float32, torch.complex64),
        TypeError,
        "[1]: target is torch.float32, online is torch.complex64",
    ),
    "complex from float": (
        of_dtypes(torch.complex64, torch.float32),
        TypeError,
        "[1]: target is torch.complex64, online is torch.float32",
    ),
    "int from float": (
        of_dtypes(torch.int64, torch.float32),
        TypeError,
        "[1]: target is torch.int64, online is torch.float32",
    ),
    "float from int": (
        of_dtypes(torch.float32, torch.int64),
        TypeError,
        "[1]: target is torch.float32, online is torch.int64",
    ),
    "int32 from int64": (
        of_dtypes(torch.int32, torch.int64),
        TypeError,
        "[1]: target is torch.int32, online is torch.int64",
    ),
    "bool from uint8": (
        of_dtypes(torch.bool, torch.uint8),
        TypeError,
        "[1]: target is torch.bool, online is torch.uint8",
    ),
    "float8": (
        of_dtypes(torch.float8_e4m3fn, torch.float8_e4m3fn),
        TypeError,
        "[1]: torch has no lerp for torch.float8_e4m3fn",
    ),
    "sparse target": (
        lists(SPARSE.clone, lambda: torch.zeros(3)),
        TypeError,
        "[1]: target has layout torch.sparse_coo, expected torch.strided",
    ),
    "sparse online": (
        lists(lambda: torch.zeros(3), SPARSE.clone),
        TypeError,
        "[1]: online has layout torch.sparse_coo, expected torch.strided",
    ),
    "iterators used before": (lambda: (used(1), used(2)), ValueError, "nothing to update: target is an iterable"),
    "one iterator used before": (lambda: (used(1), list(network(2).parameters())), ValueError, "target has 0 tensors"),
    "empty lists": (lambda: ([], []), ValueError, "nothing to update: target is an iterable of tensors, without any"),
    "empty dicts": (lambda: ({}, {}), ValueError, "nothing to update: target is a state dict, without any"),
    "empty modules": (lambda: (nn.ReLU(), nn.Tanh()), ValueError, "nothing to update: target, of ReLU, has neither"),
    "layers in a list": (lambda: (Hiding(), Hiding()), ValueError, "nothing to update: target, of Hiding, has neither"),
    "frozen scripts": (lambda: (frozen(), frozen()), ValueError, "nothing to update: target, of RecursiveScriptModule"),
    "all weights packed": (
        lambda: (quantized("all"), quantized("all")),
        TypeError,
        "0._packed_params._packed_params: target keeps weights out of its parameters",
    ),
    "some weights packed": (
        lambda: (quantized("some"), quantized("some")),
        TypeError,
        "1._packed_params._packed_params: target keeps weights out of its parameters",
    ),
    "recurrent weights packed": (
        lambda: (quantized("recurrent"), quantized("recurrent")),
        TypeError,
        "1._all_weight_values.0.param: target keeps weights out of its parameters",
    ),
    "quantized": (lists(integer_quantized, integer_quantized), TypeError, "[1]: target is quantized, to torch.quint8"),
    "by channel": (
        lists(channels_quantized, channels_quantized),
        TypeError,
        "[1]: target is quantized, to torch.qint8",
    ),
    "quantized online": (lists(lambda: torch.ones(3), integer_quantized), TypeError, "[1]: online is quantized"),
    "nested": (lists(nested, nested), TypeError, "[1]: target is a nested tensor"),
    "nested online": (lists(lambda: torch.ones(3), nested), TypeError, "[1]: online is a nested tensor"),
    "jagged": (lists(jagged, jagged), TypeError, "[1]: target has layout torch.jagged"),
    "lazy modules": (lazy, ValueError, "1.weight: target is not initialized yet"),
    "lazy online": (lazy_online, ValueError, "1.weight: online is not initialized yet"),
    "module and list": (
        lambda: (network(1), list(network(2).parameters())),
        TypeError,
        "target is a module, online is an iterable of tensors",
    ),
    "state dict and module": (
        lambda: (network(1).state_dict(), network(2)),
        TypeError,
        "target is a state dict, online is a module",
    ),
    "list of modules": (
        lambda: ([linear(2, 2)], [linear(2, 2)]),
        TypeError,
        "target[0]: expected a tensor, got Linear (wrap modules in torch.nn.ModuleList)",
    ),
    "list of modules as online": (
        lambda: ([torch.zeros(2)], [linear(2, 2)]),
        TypeError,
        "online[0]: expected a tensor, got Linear (wrap modules in torch.nn.ModuleList)",
    ),
    "a tensor": (lambda: (torch.zeros(3), torch.ones(3)), TypeError, "target: expected a module, a state dict or"),
    "none": (lambda: (network(1), None), TypeError, "online: expected a module, a state dict or"),
    "a number": (lambda: (3.0, network(1)), TypeError, "target: expected a module, a state dict or"),
    "list of arrays": (
        lambda: ([torch.zeros(3)], [np.zeros(3)]),
        TypeError,
        "online[0]: expected a tensor, got ndarray",
    ),
    "dict of numbers": (lambda: ({"a": 1.0}, {"a": 2.0}), TypeError, "target['a']: expected a tensor, got float"),
}


WAYS = {"updater": SoftUpdate, "soft": lambda t, o: soft_update_(t, o, 0.3), "hard": hard_update_}


@pytest.mark.parametrize("refuse", WAYS.values(), ids=list(WAYS))
@pytest.mark.parametrize(("make", "error", "message"), CASES.values(), ids=list(CASES))
def test_refused(
    make: Callable[[], Pair], error: type[Exception], message: str, refuse: Callable[[Any, Any], Any]
) -> None:
    target, online = make()
    for _ in range(2):
        with unchanged(*tensors_of(target, online)), pytest.raises(error) as caught:
            refuse(target, online)
        assert type(caught.value) is error
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize("buffers", ["copy", "lerp", "skip"])
def test_buffers_alone(buffers: str) -> None:
    """Those that are to be left alone leave nothing to update."""
    target, online = (scrambled(nn.BatchNorm1d(3, affine=False), seed) for seed in (1, 2))
    for net in (target, online):
        del net.num_batches_tracked  # an integer, which is copied in any case
    if buffers != "skip":
        assert SoftUpdate(target, online, 1.0, buffers=buffers).step()
        assert torch.equal(target.running_mean, online.running_mean)
        return
    with pytest.raises(ValueError, match=r"^nothing to update: target has only buffers, and buffers='skip'"):
        SoftUpdate(target, online, buffers=buffers)


def parametrized(seed: int) -> Any:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(linear(3, 3, seed)))


def old_weight_norm(seed: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.utils.weight_norm(linear(3, 3, seed)))


def pruned(seed: int) -> Any:
    from torch.nn.utils import prune

    return nn.Sequential(prune.l1_unstructured(linear(3, 3, seed), "weight", amount=0.5))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("make", [parametrized, old_weight_norm, pruned])
def test_weights_that_are_made_of_others(make: Callable[[int], Any]) -> None:
    """Their parameters move and their masks are copied; what is made of them follows at the next call."""
    target, online = make(1), make(2)
    assert_moves(SoftUpdate(target, online, 0.3).step, target, online)
    hard_update_(target, online)
    x = torch.ones(2, 3)
    assert torch.equal(target(x), online(x))
    with pytest.raises(ValueError, match="is in target, but not in online"):
        SoftUpdate(target, nn.Sequential(linear(3, 3)))


def test_refused_through_every_form() -> None:
    """A generator is looked at as a list is."""
    target, online = torch.zeros(2), torch.zeros(3)
    with pytest.raises(ValueError, match=re.escape("[0]: target has shape (2,), online has (3,)")):
        SoftUpdate((t for t in [target]), (t for t in [online]))
    with pytest.raises(ValueError, match=r"^target has 1 tensors, online has 0"):
        soft_update_(iter([target]), iter([]), 0.3)


def columns_of_one() -> Pair:
    base = random_tensor((6, 10), torch.float32, 1)
    return [base[:, :5]], [base[:, 5:]]


def every_other() -> Pair:
    base = random_tensor((40,), torch.float32, 1)
    return [base[0::2]], [base[1::2]]


def neighbours() -> Pair:
    base = random_tensor((40,), torch.float32, 1)
    return [base[:10], base[10:20]], [base[20:30], base[30:]]


def interleaved_targets() -> Pair:
    base = random_tensor((40,), torch.float32, 1)
    return [base[0::2], base[1::2]], [torch.zeros(20), torch.ones(20)]


def one_online_for_two() -> Pair:
    source = torch.ones(4)
    return [torch.zeros(4), torch.full((4,), 2.0)], [source, source]


def tied_in_online_only() -> Pair:
    target, online = tied_in_target_only()
    return list(online.parameters()), [target[0].weight, target[0].bias, target[1].weight, target[1].bias]


def expanded_online() -> Pair:
    return [torch.zeros(4, 3)], [torch.ones(3).expand(4, 3)]


def other_halves() -> Pair:
    base = torch.zeros(16)
    return [base[:4]], [base.view(torch.bfloat16)[8:12]]


@pytest.mark.parametrize(
    "make",
    [
        columns_of_one,
        every_other,
        neighbours,
        interleaved_targets,
        one_online_for_two,
        tied_in_online_only,
        expanded_online,
        other_halves,
    ],
)
def test_memory_that_only_looks_shared_is_accepted(make: Callable[[], Pair]) -> None:
    target, online = make()
    expected = [t.detach().lerp(s.detach().to(t.dtype), 0.3) for t, s in zip(target, online, strict=True)]
    SoftUpdate(target, online, 0.3).step()
    assert all(map(torch.equal, target, expected))


TAUS: dict[str, tuple[Any, type[Exception], str]] = {
    "below": (-1e-9, ValueError, "tau: expected a number in [0, 1], got -1e-09"),
    "above": (1.0000001, ValueError, "tau: expected a number in [0, 1], got 1.0000001"),
    "nan": (float("nan"), ValueError, "tau: expected a number in [0, 1], got nan"),
    "infinite": (float("inf"), ValueError, "tau: expected a number in [0, 1], got inf"),
    "integer": (2, ValueError, "tau: expected a number in [0, 1], got 2"),
    "string": ("0.5", TypeError, "tau: expected a number, got '0.5'"),
    "bool": (True, TypeError, "tau: expected a number, got True"),
    "complex": (0.5j, TypeError, "tau: expected a number, got 0.5j"),
    "list": ([0.5], TypeError, "tau: expected a number, got [0.5]"),
    "tensor of one element": (torch.tensor([0.5]), TypeError, "tau: expected shape () of float32 or float64, got (1,)"),
    "integer tensor": (
        torch.tensor(1),
        TypeError,
        "tau: expected shape () of float32 or float64, got () of torch.int64",
    ),
    "bool tensor": (
        torch.tensor(True),
        TypeError,
        "tau: expected shape () of float32 or float64, got () of torch.bool",
    ),
    "half tensor": (torch.tensor(0.5).half(), TypeError, "tau: expected shape () of float32 or float64"),
    "tensor above": (torch.tensor(1.5), ValueError, "tau: expected a number in [0, 1], got 1.5"),
    "nan tensor": (torch.tensor(torch.nan), ValueError, "tau: expected a number in [0, 1], got nan"),
}


@pytest.mark.parametrize(("tau", "error", "message"), TAUS.values(), ids=list(TAUS))
@pytest.mark.parametrize("form", ["modules", "lists"])
def test_tau_is_refused(tau: Any, error: type[Exception], message: str, form: str) -> None:
    nets = networks()
    target, online = nets if form == "modules" else [list(net.parameters()) for net in nets]
    update = SoftUpdate(target, online, 0.3, every=2)
    scheduled = SoftUpdate(target, online, lambda _: tau)
    soft_update_(target, online, 0.3)
    ways: list[Callable[[], Any]] = [
        lambda: SoftUpdate(target, online, tau),
        lambda: soft_update_(target, online, tau),
        lambda: update.step(tau),
        lambda: update.step(tau=tau),
        scheduled.step,
    ]
    with unchanged(*tensors_of(*nets)):
        for refuse in ways:
            with pytest.raises(error) as caught:
                refuse()
            assert type(caught.value) is error
            assert str(caught.value).startswith(message)
    assert (update.count, scheduled.count) == (0, 0)
    assert (update.step(), update.step()) == (False, True)


@pytest.mark.parametrize("value", [1.5, -0.5, float("nan")])
@pytest.mark.parametrize("layout", ["by the kernel", "by torch"])
def test_a_tensor_that_left_the_range_is_refused(value: float, layout: str) -> None:
    """It is read at every step, and checked then."""
    weight = torch.tensor(0.5)
    online = torch.ones(4, dtype=torch.float32 if layout == "by the kernel" else torch.float64)
    target = torch.zeros(4)
    update = SoftUpdate([target], [online], weight)
    update.step()
    weight.fill_(value)
    with unchanged(target), pytest.raises(ValueError, match=r"^tau: expected a number in \[0, 1\], got"):
        update.step()
    assert update.count == 1


def test_tau_is_no_none() -> None:
    with pytest.raises(TypeError, match=r"^tau: expected a number, got None"):
        SoftUpdate(*networks(), None)
    with pytest.raises(TypeError, match=r"^tau: expected a number, got None"):
        soft_update_(*networks(), None)


def test_an_error_of_a_schedule_comes_through() -> None:
    def schedule(step: int) -> float:
        if step == 2:
            raise KeyError("mine")
        return 0.5

    target, online = networks()
    update = SoftUpdate(target, online, schedule)
    update.step()
    with unchanged(*tensors_of(target, online)), pytest.raises(KeyError, match="mine"):
        update.step()
    assert update.count == 1


OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"every": 0}, ValueError, "every: expected at least 1, got 0"),
    ({"every": -3}, ValueError, "every: expected at least 1, got -3"),
    ({"every": True}, TypeError, "every: expected an integer, got True"),
    ({"every": 1.5}, TypeError, "every: expected an integer, got 1.5"),
    ({"every": "2"}, TypeError, "every: expected an integer, got '2'"),
    ({"every": None}, TypeError, "every: expected an integer, got None"),
    ({"buffers": "x"}, ValueError, "buffers: expected 'copy', 'lerp' or 'skip', got 'x'"),
    ({"buffers": True}, ValueError, "buffers: expected 'copy', 'lerp' or 'skip', got True"),
    ({"buffers": None}, ValueError, "buffers: expected 'copy', 'lerp' or 'skip', got None"),
]


@pytest.mark.parametrize(("options", "error", "message"), OPTIONS, ids=str)
def test_options_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    target, online = networks()
    with unchanged(*tensors_of(target, online)), pytest.raises(error, match=f"^{re.escape(message)}$"):
        SoftUpdate(target, online, 0.3, **options)


def test_options_are_named() -> None:
    with pytest.raises(TypeError, match="positional"):
        SoftUpdate(*networks(), 0.3, "copy")


def changed(state: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return {**state, **parts}


STATES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "empty": (lambda _: {}, "state: expected count and masters, got []"),
    "no masters": (lambda s: {"count": s["count"]}, "state: expected count and masters, got ['count']"),
    "one key more": (
        lambda s: changed(s, tau=0.5),
        "state: expected count and masters, got ['count', 'masters', 'tau']",
    ),
    "negative count": (lambda s: changed(s, count=-1), "state: count: expected a non-negative integer, got -1"),
    "fraction": (lambda s: changed(s, count=1.5), "state: count: expected a non-negative integer, got 1.5"),
    "bool count": (lambda s: changed(s, count=True), "state: count: expected a non-negative integer, got True"),
    "no count": (lambda s: changed(s, count=None), "state: count: expected a non-negative integer, got None"),
    "no tensors": (lambda s: changed(s, masters={}), "state: masters: expected ['bias', 'weight'], got []"),
    "another name": (
        lambda s: changed(s, masters={"weight": s["masters"]["weight"], "other": s["masters"]["bias"]}),
        "state: masters: expected ['bias', 'weight'], got ['other', 'weight']",
    ),
    "another shape": (
        lambda s: changed(s, masters=changed(s["masters"], bias=torch.zeros(5))),
        "state: masters: bias: expected shape (3,), got (5,)",
    ),
    "shape that torch would spread": (
        lambda s: changed(s, masters=changed(s["masters"], bias=torch.zeros(()))),
        "state: masters: bias: expected shape (3,), got ()",
    ),
}


@pytest.mark.parametrize(("change", "message"), STATES.values(), ids=list(STATES))
def test_states_are_refused(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    target, online = (linear(3, 3, seed=seed).bfloat16() for seed in (1, 2))
    update = SoftUpdate(target, online, 0.3, master=True)
    update.step()
    masters = update.state_dict()["masters"]
    state = changed(update.state_dict(), count=9)
    with unchanged(*tensors_of(target, online), *masters.values()):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            update.load_state_dict(change(state))
        assert update.count == 1


def test_masters_for_an_updater_without() -> None:
    target, online = networks()
    update = SoftUpdate(target, online, 0.3)
    with pytest.raises(ValueError, match=r"^state: masters: expected \[\], got \['0.weight'\]"):
        update.load_state_dict({"count": 3, "masters": {"0.weight": torch.zeros(8, 4)}})
    assert update.count == 0
    assert_moves(update.step, target, online)


def test_a_refused_refresh_leaves_the_updater_as_it_was() -> None:
    target, online = (linear(3, 3, seed=seed).bfloat16() for seed in (1, 2))
    update = SoftUpdate(target, online, 0.3, master=True)
    update.step()
    before = dict(update.state_dict()["masters"])
    bias = online.bias
    online.bias = None
    with unchanged(*before.values()), pytest.raises(ValueError, match=r"^bias: is in target, but not in online"):
        update.refresh()
    online.bias = bias
    after = update.state_dict()["masters"]
    assert {name: id(master) for name, master in after.items()} == {name: id(m) for name, m in before.items()}
    assert update.step()


def test_a_refused_construction_warns_of_nothing() -> None:
    """Warnings are errors here: the refusal comes first."""
    target = [torch.zeros(3, dtype=torch.bfloat16)]
    with pytest.raises(ValueError, match=r"^\[0\]: target has shape"):
        SoftUpdate(target, [torch.zeros(4)])
    with warnings_of_halves():
        SoftUpdate(target, [torch.zeros(3)]).step()
