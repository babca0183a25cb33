# SPDX-License-Identifier: MIT
"""Target updates: torch.lerp_ bit for bit, over every kind of tensor and module, as often as they are due."""

from __future__ import annotations

import copy
import io
import pickle
import threading
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed
from hypothesis import given, settings
from hypothesis import strategies as st
from target_support import (
    DTYPES,
    HALVES,
    LAYOUTS,
    SoftUpdate,
    assert_holds,
    assert_moves,
    assert_same_bits,
    assert_same_values,
    expected_of,
    hard_update_,
    laid_out,
    lerped,
    lerped_whole,
    network,
    networks,
    random_tensor,
    scrambled,
    soft_update_,
    special_tensor,
    threads,
    unchanged,
    warnings_of_halves,
)
from torch import Tensor, nn

from fastreplay.support.torch_abi import torch_abi
from fastreplay.target import plan, watched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TAUS = (0.0, 1e-8, 0.005, 0.3, 0.49999, 0.5 - 1e-12, 0.5, 0.50001, 0.7, 0.999)
SIZES = (0, 1, 2, 3, 15, 16, 17, 63, 64, 65, 4095, 4096, 4097)
taus = st.one_of(st.sampled_from(TAUS), st.floats(0.0, 0.999, allow_subnormal=False))
half_targets_pass = pytest.mark.filterwarnings("ignore:.*stands still:UserWarning")


@pytest.fixture(params=["native", "python"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Look at tensors by torch's native functions, or by Python."""
    if request.param == "python":
        monkeypatch.setattr(plan, "torch_abi", lambda: None)
    way: str = request.param
    return way


def test_torch_has_its_native_functions_here() -> None:
    assert torch_abi() is not None


# Values


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, ...]:
    size = draw(st.sampled_from(SIZES))
    kind = draw(st.sampled_from(["0-dim", "1-dim", "2-dim", "4-dim"]))
    if kind == "2-dim":
        return (draw(st.integers(1, 5)), min(size, 300))
    if kind == "4-dim":
        return (2, draw(st.integers(1, 4)), draw(st.integers(1, 5)), min(size, 9))
    return () if kind == "0-dim" else (size,)


@st.composite
def pairs(draw: st.DrawFn, dtype: torch.dtype, *, finite: bool) -> tuple[Tensor, Tensor]:
    """Draw a target and an online tensor, half the time of one layout."""
    shape, seed = draw(shapes()), draw(st.integers(0, 2**20))
    layout = draw(st.sampled_from(LAYOUTS))
    other = draw(st.one_of(st.just(layout), st.sampled_from([*LAYOUTS, "expanded"])))
    make = random_tensor if finite else special_tensor
    target = laid_out(make(shape, dtype, seed), layout)
    if other == "expanded" and shape and shape[0] > 0:
        return target, make((1, *shape[1:]), dtype, seed + 1).expand(shape)
    return target, laid_out(make(shape, dtype, seed + 1), other)


@pytest.mark.share(2)
@pytest.mark.parametrize("finite", [True, False], ids=["finite", "special"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=40)
@given(data=st.data(), tau=taus)
def test_the_bits_are_those_of_lerp(dtype: torch.dtype, finite: bool, data: st.DataObject, tau: float) -> None:
    drawn = data.draw(st.lists(pairs(dtype, finite=finite), min_size=1, max_size=5))
    targets, onlines = [target for target, _ in drawn], [online for _, online in drawn]
    expected = [[lerped(target, online, tau)] for target, online in drawn]
    if dtype.is_complex and not finite:
        for want, (target, online) in zip(expected, drawn, strict=True):
            want.append(lerped_whole(target, online, tau))
    before = [online.clone() for online in onlines]
    with warnings_of_halves():
        assert SoftUpdate(targets, onlines, tau).step()
    for target, online, want, was in zip(targets, onlines, expected, before, strict=True):
        assert_same_values(target, *want)
        assert_same_bits(online, was)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=12)
@given(data=st.data(), weight=st.sampled_from([1.0, 1, torch.tensor(1.0), torch.tensor(1.0, dtype=torch.float64)]))
def test_tau_one_copies_every_bit(dtype: torch.dtype, data: st.DataObject, weight: Any) -> None:
    """-0.0 and NaN payloads included, whatever the target held."""
    drawn = data.draw(st.lists(pairs(dtype, finite=False), min_size=1, max_size=4))
    targets, onlines = [target for target, _ in drawn], [online for _, online in drawn]
    with warnings_of_halves():
        SoftUpdate(targets, onlines, weight).step()
    for target, online in drawn:
        assert_same_bits(target, online)


@pytest.mark.parametrize("layout", ["contiguous", "sliced"])
@pytest.mark.parametrize("weight", [1.0, torch.tensor(1.0)], ids=["number", "tensor"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tau_one_overwrites_nan_and_keeps_signs_of_zeros(dtype: torch.dtype, weight: Any, layout: str) -> None:
    values = torch.tensor([-0.0, 0.0, torch.nan, torch.inf, 1.5, -0.0, 2.0]).to(dtype)
    for start in (torch.nan, torch.inf, 0.0):
        target, online = laid_out(torch.full((7,), start, dtype=dtype), layout), laid_out(values, layout)
        with warnings_of_halves():
            soft_update_([target], [online], weight)
        assert_same_bits(target, online)


@pytest.mark.parametrize("tau", [0.005, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@half_targets_pass
def test_every_16_bit_pattern(dtype: torch.dtype, tau: float) -> None:
    patterns = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    shuffled = patterns[torch.randperm(2**16, generator=torch.Generator().manual_seed(3))]
    target, online = patterns.clone().view(dtype), shuffled.view(dtype)
    expected = lerped(target, online, tau)
    soft_update_([target], [online], tau)
    assert_same_values(target, expected)
    wide = torch.zeros(2**16)
    soft_update_([wide], [online], 1.0)
    assert_same_values(wide, online.float())


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@half_targets_pass
def test_large_tensors_in_one_and_two_threads(dtype: torch.dtype, count: int) -> None:
    sizes = (100_003, 300_001, 7)
    targets = [random_tensor((size,), dtype, i) for i, size in enumerate(sizes)]
    onlines = [random_tensor((size,), dtype, i + 10) for i, size in enumerate(sizes)]
    expected = [lerped(target, online, 0.3) for target, online in zip(targets, onlines, strict=True)]
    with threads(count):
        update = SoftUpdate(targets, onlines, 0.3)
        update.step()
    assert update.describe() == f"3 by the {watched.cpu_level()} kernel on cpu"
    for target, want in zip(targets, expected, strict=True):
        assert_same_bits(target, want)


def test_misaligned_memory() -> None:
    memory = [bytearray(4 * 100 + 1) for _ in range(2)]
    target, online = (torch.frombuffer(bytes_, dtype=torch.float32, offset=1) for bytes_ in memory)
    target.copy_(random_tensor((100,), torch.float32, 1))
    online.copy_(random_tensor((100,), torch.float32, 2))
    expected = lerped(target, online, 0.3)
    update = SoftUpdate([target], [online], 0.3)
    assert update.describe() == "1 by torch"  # to a kernel in C++ such a float is undefined behaviour
    update.step()
    assert_same_bits(target, expected)


@pytest.mark.parametrize("view", [Tensor.conj, lambda tensor: tensor.conj().imag], ids=["conjugate", "negative"])
@pytest.mark.parametrize("of", ["target", "online"])
def test_conjugate_and_negative_views(view: Any, of: str) -> None:
    lazy = view(random_tensor((20,), torch.complex64, 1))
    assert lazy.is_conj() or lazy.is_neg()
    plain = random_tensor((20,), lazy.dtype, 2)
    target, online = (lazy, plain) if of == "target" else (plain, lazy)
    expected = lerped(target, online, 0.3)
    soft_update_([target], [online], 0.3)
    assert_same_bits(target, expected)


@pytest.mark.parametrize(
    ("layout", "other", "way"),
    [
        ("contiguous", "contiguous", "kernel"),
        ("contiguous", "offset", "kernel"),
        ("transposed", "transposed", "kernel"),
        ("channels_last", "channels_last", "kernel"),
        ("channels_last", "contiguous", "torch"),
        ("sliced", "sliced", "torch"),
        ("padded", "contiguous", "torch"),
    ],
)
def test_dense_tensors_of_one_layout_take_the_kernel(layout: str, other: str, way: str) -> None:
    target = laid_out(random_tensor((2, 3, 4, 5), torch.float32, 1), layout)
    online = laid_out(random_tensor((2, 3, 4, 5), torch.float32, 2), other)
    expected = lerped(target, online, 0.3)
    update = SoftUpdate([target], [online], 0.3)
    assert update.describe() == {"kernel": f"1 by the {watched.cpu_level()} kernel on cpu", "torch": "1 by torch"}[way]
    update.step()
    assert_same_bits(target, expected)


def test_what_lies_between_the_elements_is_left_alone() -> None:
    base = torch.full((4, 10), 7.0)
    target, online = base[:, 2:8:2], torch.zeros(4, 3)
    soft_update_([target], [online], 1.0)
    assert bool((target == 0.0).all())
    assert float(base.sum()) == 7.0 * (40 - 12)
    flat = torch.full((8192 + 2,), 7.0)
    soft_update_([flat[1:-1]], [torch.zeros(8192)], 1.0)
    assert [float(flat[0]), float(flat[-1]), float(flat.sum())] == [7.0, 7.0, 14.0]


MIXED = [
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.float16),
    (torch.float16, torch.float64),
    (torch.float64, torch.float32),
    (torch.float32, torch.float64),
    (torch.float64, torch.bfloat16),
    (torch.complex64, torch.complex128),
    (torch.complex128, torch.complex64),
]


@pytest.mark.parametrize("layout", ["contiguous", "sliced"])
@pytest.mark.parametrize("tau", [0.0, 0.005, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize(("to", "source"), MIXED, ids=str)
@half_targets_pass
def test_mixed_dtypes(to: torch.dtype, source: torch.dtype, tau: float, layout: str) -> None:
    """Computed in the target's dtype, 16-bit ones in float32."""
    compute = torch.float32 if to in HALVES else to
    for size in (1, 17, 4099):
        target = laid_out(random_tensor((size,), to, 1), layout)
        online = laid_out(random_tensor((size,), source, 2), layout)
        expected = online.to(to) if tau == 1.0 else lerped(target.to(compute), online.to(compute), tau).to(to)
        update = SoftUpdate([target], [online], tau)
        update.step()
        assert_same_bits(target, expected)
        kernel = {to, source} - set(HALVES) == {torch.float32} and (layout == "contiguous" or size == 1)
        assert ("kernel" in update.describe()) is kernel


@pytest.mark.parametrize("tau", [0.0, 0.005, 0.3, 0.5, 0.7, 1.0])
def test_a_target_that_equals_the_online_stays(tau: float) -> None:
    for dtype in DTYPES:
        target = random_tensor((1000,), dtype, 1)
        online, before = target.clone(), target.clone()
        with warnings_of_halves():
            update = SoftUpdate([target], [online], tau)
        for _ in range(10):
            update.step()
        assert_same_bits(target, before)


def test_drift_over_a_hundred_thousand_steps() -> None:
    """Rounding must not add up beyond what one step's rounding allows.

    A step rounds at most three times: the sum, by u|t|; the difference and tau, by u tau |s - t| each
    (u = 2**-24). What was wrong before shrinks by 1 - tau, so the error stays below the sum of the
    geometric series, u (max|t| / tau + 3 max|s - t|); 1 % more for products of errors.
    """
    tau, unit = 0.005, 2.0**-24
    target, online = (
        nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)),
    )
    scrambled(target, 1)
    sources = [[p.detach() for p in scrambled(copy.deepcopy(online), seed).parameters()] for seed in range(2, 9)]
    flat = [torch.cat([tensor.flatten() for tensor in source]) for source in sources]
    wide = [tensor.double() for tensor in flat]
    reference = torch.cat([p.detach().flatten() for p in target.parameters()]).double()
    onlines: list[Tensor] = list(online.parameters())
    update = SoftUpdate(target, online, tau)
    largest = max(float(tensor.abs().max()) for tensor in (*wide, reference))
    # One online value for a run of steps, so that most of the time goes into steps.
    for i in range(1000):
        with torch.no_grad():
            torch._foreach_copy_(onlines, sources[i % len(sources)])
        source = wide[i % len(sources)]
        for _ in range(100):
            update.step()
            reference.lerp_(source, tau)
    moved = torch.cat([p.detach().flatten() for p in target.parameters()]).double()
    assert update.count == 100_000
    assert float((moved - reference).abs().max()) <= 1.01 * unit * (largest / tau + 3 * 2 * largest)
    assert float((moved - reference).abs().max()) > 0.0  # float32 it was


# Modules


class Model(nn.Module):
    """Has parameters, floating, integer, bool and non-persistent buffers, a frozen and a scalar parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.scale = nn.Parameter(torch.zeros(()))
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.register_buffer("shift", torch.zeros(5))
        self.register_buffer("scratch", torch.zeros(2, 3), persistent=False)
        self.register_buffer("mask", torch.zeros(3, dtype=torch.bool))
        self.register_buffer("nothing", None)
        self.register_parameter("no_parameter", None)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@pytest.mark.parametrize("buffers", ["copy", "lerp", "skip"])
def test_parameters_and_buffers(buffers: str, ways: str) -> None:
    target, online = scrambled(Model(), 1), scrambled(Model(), 2)
    online.mask.logical_not_()
    old = {name: tensor.detach().clone() for name, tensor in tensors_of(target).items()}
    update = SoftUpdate(target, online, 0.3, buffers=buffers)
    update.step()
    names = dict(target.named_parameters())
    for name, tensor in tensors_of(target).items():
        source = tensors_of(online)[name]
        floating = tensor.is_floating_point()
        if name in names or (floating and buffers == "lerp"):
            assert_same_bits(tensor, lerped(old[name], source, 0.3))
        elif floating and buffers == "skip":
            assert_same_bits(tensor, old[name])
        else:
            assert_same_bits(tensor, source)
    assert int(target.norm.num_batches_tracked) == 2
    assert len(list(target.buffers())) == 6


def test_functions_copy_buffers() -> None:
    target, online = scrambled(Model(), 1), scrambled(Model(), 2)
    assert_moves(lambda: soft_update_(target, online, 0.3), target, online)
    assert_same_bits(target.scratch, online.scratch)
    old = target.layer.weight.detach().clone()
    online.layer.weight.data.neg_()
    hard_update_(target, online)
    assert not torch.equal(old, target.layer.weight)
    for name, tensor in tensors_of(target).items():
        assert_same_bits(tensor, tensors_of(online)[name])


def test_integers_follow_at_tau_zero_and_leave_when_the_step_is_not_due() -> None:
    target, online = networks()
    update = SoftUpdate(target, online, 0.0, every=2)
    update.step()
    assert int(target[1].num_batches_tracked) == 1
    update.step()
    assert int(target[1].num_batches_tracked) == 2
    assert_same_bits(target[1].running_mean, online[1].running_mean)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.decode.weight = self.encode.weight
        self.again = self.encode


def test_tied_weights_move_once(ways: str) -> None:
    target, online = scrambled(Tied(), 1), scrambled(Tied(), 2)
    expected = lerped(target.encode.weight, online.encode.weight, 0.3)
    version = target.encode.weight._version
    update = SoftUpdate(target, online, 0.3)
    update.step()
    assert_same_bits(target.decode.weight, expected)
    assert target.encode.weight._version == version + 1
    assert repr(update).startswith("SoftUpdate(1 tensors, 16 elements")


def test_tied_by_memory_only() -> None:
    """Two parameters over one memory, as after `p.data = q.data`, are tied too."""
    target, online = scrambled(Tied(), 1), scrambled(Tied(), 2)
    for net in (target, online):
        net.decode.weight = nn.Parameter(net.encode.weight.detach())
    expected = lerped(target.encode.weight, online.encode.weight, 0.3)
    soft_update_(target, online, 0.3)
    assert_same_bits(target.decode.weight, expected)


def test_views_of_one_storage() -> None:
    """One flat tensor, cut into parameters, moves as separate tensors do."""

    def make(seed: int) -> nn.ParameterList:
        flat = random_tensor((100,), torch.float32, seed)
        return nn.ParameterList([flat[:30].view(5, 6), flat[30:31], flat[31:95].view(8, 8).t(), flat[95:]])

    target, online = make(1), make(2)
    expected = [lerped(to, source, 0.3) for to, source in zip(target, online, strict=True)]
    soft_update_(target, online, 0.3)
    for to, want in zip(target, expected, strict=True):
        assert_same_bits(to, want)


def transformer() -> nn.Module:
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.ModuleList([nn.Conv2d(3, 4, 3), block, nn.Embedding(5, 8), nn.LayerNorm(8)])


def channels_last(net: Any) -> None:
    net[0].to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda: nn.LSTM(3, 5, num_layers=2, bidirectional=True), None),
        (lambda: nn.GRU(3, 5, num_layers=2, bidirectional=True), None),
        (transformer, channels_last),
    ],
    ids=["LSTM", "GRU", "transformer and convolution"],
)
def test_networks_of_torchs_larger_layers(make: Callable[[], nn.Module], change: Callable[[Any], None] | None) -> None:
    target, online = (scrambled(make(), seed) for seed in (1, 2))
    if change is not None:
        change(target)
    update = SoftUpdate(target, online, 0.3)
    for _ in range(3):
        assert_moves(update.step, target, online)


def test_data_parallel_and_compiled_modules_are_looked_through() -> None:
    target, online = networks()
    wrapped = [
        (nn.DataParallel(target), online),
        (target, torch.compile(online, backend="eager")),
        (torch.compile(nn.DataParallel(target), backend="eager"), nn.DataParallel(online)),
    ]
    for to, source in wrapped:
        assert_moves(SoftUpdate(to, source, 0.3).step, target, online)
        assert_moves(lambda to=to, source=source: soft_update_(to, source, 0.3), target, online)  # type: ignore[misc]


def test_wrapped_children_are_looked_through() -> None:
    target, online = nn.ModuleDict({"net": network(1)}), nn.ModuleDict({"net": network(2)})
    inner = online["net"]
    online["net"] = nn.DataParallel(inner)
    expected = expected_of(target["net"], inner, 0.3)
    soft_update_(target, online, 0.3)
    assert_holds(target["net"], expected)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """Be the only process of a group."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")  # torch's own, of gloo and of modules to come
def test_distributed_data_parallel(process_group: None) -> None:
    target, online = networks()
    wrapped = nn.parallel.DistributedDataParallel(online)
    assert_moves(SoftUpdate(target, wrapped, 0.3).step, target, online)
    assert_moves(lambda: soft_update_(target, wrapped, 0.3), target, online)
    wrapped(torch.ones(3, 4)).sum().backward()
    assert_moves(SoftUpdate(target, wrapped, 0.3).step, target, online)


@pytest.mark.filterwarnings("ignore")
def test_dtensors_move_by_torch(process_group: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (1,))

    def make(seed: int) -> Any:
        net = scrambled(nn.Linear(4, 6), seed)
        net.weight = nn.Parameter(distribute_tensor(net.weight.detach(), mesh, [Shard(0)]))
        return net

    target, online = make(1), make(2)
    assert isinstance(target.weight, DTensor)
    expected = lerped(target.weight.to_local(), online.weight.to_local(), 0.3)
    bias = lerped(target.bias, online.bias, 0.3)
    update = SoftUpdate(target, online, 0.3)
    assert update.describe().endswith("kernel on cpu, 1 by torch")
    update.step()
    assert_same_bits(target.weight.to_local(), expected)
    assert_same_bits(target.bias, bias)
    hard_update_(target, online)
    assert_same_bits(target.weight.to_local(), online.weight.to_local())


def test_lists_generators_and_state_dicts() -> None:
    target, online = networks()
    expected = expected_of(target, online, 0.3)
    for form in (list, tuple, iter):
        to, source = copy.deepcopy(target), copy.deepcopy(online)
        update = SoftUpdate(form(to.parameters()), form(source.parameters()), 0.3)
        update.step()
        for name, tensor in to.named_parameters():
            assert_same_bits(tensor, expected[name])
        soft_update_(form(to.parameters()), form(source.parameters()), 1.0)
        assert all(map(torch.equal, to.parameters(), source.parameters()))
    update = SoftUpdate(target.state_dict(), online.state_dict(), 0.3)
    old_mean, mean = target[1].running_mean.clone(), online[1].running_mean
    update.step()
    for name, parameter in target.named_parameters():
        assert_same_bits(parameter, expected[name])
    assert_same_bits(target[1].running_mean, lerped(old_mean, mean, 0.3))  # a dict knows no buffers
    assert int(target[1].num_batches_tracked) == 2
    to, source = torch.zeros(2), torch.ones(2)
    soft_update_({3: to, "a": torch.zeros(1)}, {"a": torch.zeros(1), 3: source}, 0.5)  # by name, in any order
    assert torch.equal(to, torch.full((2,), 0.5))


def test_tensors_without_elements() -> None:
    target, online = [torch.zeros(0, 3)], [torch.zeros(0, 3)]
    update = SoftUpdate(target, online)
    assert update.step()
    assert update.describe() == "nothing to move"
    soft_update_(target, online, 0.5)


def test_repr_and_describe() -> None:
    target, online = networks()
    update = SoftUpdate(target, online, 0.01, every=3)
    update.step()
    assert repr(update) == "SoftUpdate(9 tensors, 91 elements, tau=0.01, every=3, count=1)"
    assert update.describe() == f"9 by the {watched.cpu_level()} kernel on cpu"
    assert (update.tau, update.every) == (0.01, 3)


# Counting, and tau


@pytest.mark.parametrize("every", [1, 2, 7, 100, 3333, 10_000, 10_001])
def test_every_is_counted_exactly(every: int) -> None:
    target, online = torch.zeros(()), torch.ones(())
    update = SoftUpdate([target], [online], 1.0, every=every)
    for step in range(1, 10_001):
        target.zero_()
        if step == 5001:  # continue in a fresh updater
            state = pickle.loads(pickle.dumps(update.state_dict()))
            assert state == {"count": 5000, "masters": {}}
            update = SoftUpdate([target], [online], 1.0, every=every)
            update.load_state_dict(state)
        due = step % every == 0
        assert update.step() is due
        assert target.item() == float(due)
        assert update.count == step
    assert type(update.count) is int


def test_a_schedule_is_given_the_number_of_the_step() -> None:
    asked: list[int] = []

    def schedule(step: int) -> float:
        asked.append(step)
        return 1.0 / step

    target, online = torch.zeros(3), torch.ones(3)
    update = SoftUpdate([target], [online], schedule, every=2)
    for _ in range(6):
        update.step()
    assert asked == [1, 2, 3, 4, 5, 6]
    expected = torch.zeros(3)
    for step in (2, 4, 6):
        expected.lerp_(online, 1.0 / step)
    assert_same_bits(target, expected)
    assert update.tau is schedule


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "sliced"])
@half_targets_pass
def test_a_tensor_is_read_at_every_step(layout: str, dtype: torch.dtype) -> None:
    weight = torch.tensor(0.25, dtype=dtype)
    for kind in DTYPES:
        target, online = (laid_out(random_tensor((33,), kind, seed), layout) for seed in (1, 2))
        update = SoftUpdate([target], [online], weight)
        for value in (0.1, 0.005, 0.7, 0.0):
            weight.fill_(value)
            expected = lerped(target, online, float(weight))
            update.step()
            assert_same_bits(target, expected)


def test_tau_given_to_step_holds_for_that_step() -> None:
    target, online = networks()
    update = SoftUpdate(target, online, 0.01)
    for tau in (0.3, torch.tensor(0.25), 1, 0.0, 1.0):
        assert_moves(lambda tau=tau: update.step(tau), target, online, float(tau))  # type: ignore[misc]
    scrambled(target, 5)
    assert_moves(update.step, target, online, 0.01)
    assert_moves(lambda: update.step(tau=0.3), target, online)
    scheduled = SoftUpdate(target, online, lambda _: 0.125)
    assert_moves(lambda: scheduled.step(0.3), target, online)
    assert_moves(scheduled.step, target, online, 0.125)
    assert scheduled.count == 2


def test_numbers_of_any_kind() -> None:
    import fractions

    import numpy as np

    for tau in (np.float32(0.25), np.float64(0.25), fractions.Fraction(1, 4), torch.tensor(0.25), 0.25):
        target = torch.zeros(3)
        soft_update_([target], [torch.ones(3)], tau)
        SoftUpdate([target], [torch.zeros(3)], tau).step()
        assert torch.equal(target, torch.full((3,), 0.1875))


# Masters


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_16_bit_target_warns_once(dtype: torch.dtype) -> None:
    target, online = (net.to(dtype) for net in networks())
    with pytest.warns(UserWarning, match=r"^0\.weight: a b?float16 target stands still where") as caught:
        update = SoftUpdate(target, online, 0.005)
    assert len(caught) == 1
    assert caught[0].filename == __file__  # it points at who wrote the call
    update.step()
    update.refresh()
    with pytest.warns(UserWarning, match="stands still") as caught:
        soft_update_(target, online, 0.005)
    assert [warning.filename for warning in caught] == [__file__]
    for _ in range(3):
        soft_update_(target, online, 0.005)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_no_warning_where_nothing_can_stand_still(dtype: torch.dtype) -> None:
    """Warnings are errors here."""
    target, online = (net.to(dtype) for net in networks())
    SoftUpdate(target, online, 0.005, master=True).step()
    SoftUpdate(target, online, 1.0).step()
    SoftUpdate(target, online, 1, every=2).step()
    hard_update_(target, online)
    SoftUpdate(network(1), online, 0.005).step()
    only_buffers = nn.BatchNorm1d(3, affine=False).to(dtype)
    SoftUpdate(only_buffers, copy.deepcopy(only_buffers), 0.005).step()


def apart(dtype: torch.dtype, source: torch.dtype) -> tuple[Any, Any]:
    """Make a target and an online net whose distance takes steps of less than half a unit."""
    target, online = nn.Linear(20, 30).to(dtype), nn.Linear(20, 30).to(source)
    scrambled(online, 2)
    with torch.no_grad():
        for to, at in zip(target.parameters(), online.parameters(), strict=True):
            to.copy_(at * 1.05)
    return target, online


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "sliced"])
@pytest.mark.parametrize("online_is_wide", [False, True])
def test_masters_keep_a_16_bit_target_moving(dtype: torch.dtype, layout: str, online_is_wide: bool) -> None:
    target, online = apart(dtype, torch.float32 if online_is_wide else dtype)
    target.weight.data = laid_out(target.weight.data, layout)
    tau, start = 1e-4, [p.detach().clone() for p in target.parameters()]
    stalled = copy.deepcopy(target)
    with warnings_of_halves():
        without = SoftUpdate(stalled, online, tau)
    update = SoftUpdate(target, online, tau, master=True)
    reference = [p.detach().float() for p in target.parameters()]
    for _ in range(3000):
        without.step()
        update.step()
        for to, source in zip(reference, online.parameters(), strict=True):
            to.lerp_(source.detach().float(), tau)
    for to, was in zip(stalled.parameters(), start, strict=True):
        assert_same_bits(to, was)
    for to, want, was, name in zip(target.parameters(), reference, start, ("weight", "bias"), strict=True):
        assert_same_bits(to, want.to(dtype))
        assert_same_bits(update.state_dict()["masters"][name], want)
        assert float((to != was).float().mean()) > 0.9


def test_masters_are_for_16_bit_parameters_only() -> None:
    target, online = networks()
    target[3].bfloat16()
    update = SoftUpdate(target, online, 0.1, master=True)
    assert set(update.state_dict()["masters"]) == {"3.weight", "3.bias"}
    assert all(master.dtype == torch.float32 for master in update.state_dict()["masters"].values())
    target, online = networks()
    for net in (target, online):
        net[1].bfloat16()
    assert set(SoftUpdate(target, online, master=True).state_dict()["masters"]) == {"1.weight", "1.bias"}
    following = SoftUpdate(target, online, master=True, buffers="lerp")
    assert set(following.state_dict()["masters"]) == {"1.weight", "1.bias", "1.running_mean", "1.running_var"}


def test_tau_one_sets_masters() -> None:
    for layout in ("contiguous", "sliced"):
        target = laid_out(random_tensor((9,), torch.bfloat16, 1), layout)
        online = laid_out(random_tensor((9,), torch.float32, 2), layout)
        update = SoftUpdate([target], [online], 1.0, master=True)
        update.step()
        assert_same_bits(target, online.bfloat16())
        assert_same_bits(update.state_dict()["masters"]["[0]"], online)


@pytest.mark.parametrize("carry", ["state_dict", "torch.save", "pickle", "deepcopy", "refresh", "other memory"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_masters_survive(dtype: torch.dtype, carry: str) -> None:
    target, online = apart(dtype, dtype)
    twin_target, twin_online = copy.deepcopy(target), copy.deepcopy(online)
    update, twin = (SoftUpdate(*nets, 1e-3, master=True) for nets in ((target, online), (twin_target, twin_online)))
    for _ in range(7):
        update.step()
        twin.step()
    if carry == "refresh":
        update.refresh()
    elif carry == "other memory":
        target.weight.data = target.weight.data.clone()
        target.bias = nn.Parameter(target.bias.detach().clone())
    elif carry in ("pickle", "deepcopy"):
        update = pickle.loads(pickle.dumps(update)) if carry == "pickle" else copy.deepcopy(update)
        target, online = update._target, update._online
    else:
        state = update.state_dict()
        if carry == "torch.save":
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
        scrambled(target, 9)  # written from the masters
        update = SoftUpdate(target, online, 1e-3, master=True)
        update.load_state_dict(state)
        for to, want in zip(target.parameters(), twin_target.parameters(), strict=True):
            assert_same_bits(to, want)
    for _ in range(7):
        update.step()
        twin.step()
    assert update.count == 14
    for to, want in zip(target.parameters(), twin_target.parameters(), strict=True):
        assert_same_bits(to, want)
    for name, master in update.state_dict()["masters"].items():
        assert_same_bits(master, twin.state_dict()["masters"][name])


def test_refresh_reads_an_overwritten_target_again() -> None:
    target, online = apart(torch.bfloat16, torch.bfloat16)
    update = SoftUpdate(target, online, 1e-3, master=True)
    for _ in range(5):
        update.step()
    kept = update.state_dict()["masters"]["bias"].clone()
    with torch.no_grad():
        target.weight.fill_(1000.0)
    update.refresh()
    masters = update.state_dict()["masters"]
    assert bool((masters["weight"] == 1000.0).all())
    assert_same_bits(masters["bias"], kept)
    assert not torch.equal(kept, kept.bfloat16().float())  # it held more than the target


@pytest.mark.parametrize("outside", ["load_state_dict", "by torch"])
def test_masters_made_in_inference_mode_serve_outside(outside: str) -> None:
    layout = "sliced" if outside == "by torch" else "contiguous"
    target = laid_out(random_tensor((9,), torch.bfloat16, 1), layout)
    online = laid_out(random_tensor((9,), torch.float32, 2), layout)
    with torch.inference_mode():
        update = SoftUpdate([target], [online], 0.3, master=True)
    expected = lerped(target.float(), online, 0.3).bfloat16()
    update.step()
    assert_same_bits(target, expected)
    update.load_state_dict(copy.deepcopy(update.state_dict()))
    assert_same_bits(target, expected)


# Autograd


def test_a_saved_target_that_was_moved_refuses_backward(ways: str) -> None:
    target, online = networks(lambda seed: scrambled(nn.Linear(3, 3), seed))
    for update in (SoftUpdate(target, online, 0.3).step, lambda: soft_update_(target, online, 0.3)):
        x = torch.ones(2, 3, requires_grad=True)
        loss = target(x).sum()
        update()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_versions_of_moved_targets_go_up(ways: str) -> None:
    target, online = scrambled(Model(), 1), scrambled(Model(), 2)
    update = SoftUpdate(target, online, 0.3, every=2, buffers="skip")
    targets, onlines = tensors_of(target), tensors_of(online)
    floating = {name for name, _ in target.named_buffers() if targets[name].is_floating_point()}
    for calls in range(1, 7):
        before = {name: tensor._version for name, tensor in targets.items()}
        with unchanged(*onlines.values()):
            due = update.step()
        assert due is (calls % 2 == 0)
        for name, tensor in targets.items():
            assert (tensor._version > before[name]) is (due and name not in floating), name


@pytest.mark.parametrize("layout", ["contiguous", "sliced"])
def test_versions_go_up_whatever_moves_it(layout: str, ways: str) -> None:
    base = laid_out(random_tensor((40,), torch.float32, 1), layout)
    target, online = base[1:], laid_out(random_tensor((39,), torch.float32, 2), layout)
    version = base._version
    soft_update_([target], [online], 0.3)
    assert base._version == target._version == version + 1


def test_no_gradient_flows_through_an_update() -> None:
    target, online = networks()
    for tau in (0.3, 1.0):
        soft_update_(target, online, tau)
        update = SoftUpdate(target, online, tau)
        update.step()
        for tensor in (*target.parameters(), *online.parameters()):
            assert tensor.requires_grad
            assert tensor.is_leaf
            assert tensor.grad_fn is None
            assert tensor.grad is None
    sliced = [laid_out(random_tensor((9,), torch.float32, seed), "sliced").requires_grad_() for seed in (1, 2)]
    soft_update_(sliced[:1], sliced[1:], 0.3)
    assert sliced[0].is_leaf
    target(torch.ones(3, 4)).sum().backward()  # and the moved target still learns
    assert target[0].weight.grad is not None


def test_an_online_value_of_a_graph() -> None:
    weight = torch.ones(5, requires_grad=True)
    online = weight * 3
    target = torch.zeros(5)
    soft_update_([target], [online], 0.5)
    assert torch.equal(target, torch.full((5,), 1.5))
    assert not target.requires_grad
    online.sum().backward()  # type: ignore[no-untyped-call]


def test_plain_tensors_in_inference_mode(ways: str) -> None:
    target, online = networks()
    with torch.inference_mode():
        update = SoftUpdate(target, online, 0.3)
        assert_moves(update.step, target, online)
        assert_moves(lambda: soft_update_(target, online, 0.3), target, online)
    assert_moves(update.step, target, online)
    assert_moves(lambda: soft_update_(target, online, 0.3), target, online)
    with torch.inference_mode():
        version = target[0].weight._version
        assert_moves(update.step, target, online)
        assert target[0].weight._version > version


def test_inference_tensors() -> None:
    """Those may be followed anywhere, and moved in inference mode only, as torch has it."""
    with torch.inference_mode():
        target, online = (random_tensor((9,), torch.float32, seed) for seed in (1, 2))
        assert target.is_inference()
        expected = lerped(target, online, 0.3)
        update = SoftUpdate([target], [online], 0.3)
        update.step()
        assert_same_bits(target, expected)
    with pytest.raises(RuntimeError, match=r"[Ii]nference"):
        update.step()
    assert update.count == 1
    plain = random_tensor((9,), torch.float32, 3)
    expected = plain.lerp(online, 0.3)
    SoftUpdate([plain], [online], 0.3).step()
    assert_same_bits(plain, expected)


# Pickling and copying


class Agent(nn.Module):
    """Holds a target, an online network and what moves the one after the other."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.online, self.target = network(1), network(2)
        self.update = SoftUpdate(self.target, self.online, 0.3, **options)


def carried(value: Any, carry: str) -> Any:
    if carry == "deepcopy":
        return copy.deepcopy(value)
    if carry == "pickle":
        return pickle.loads(pickle.dumps(value))
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("carry", ["deepcopy", "pickle", "torch.save"])
def test_a_copied_updater_moves_the_copy(carry: str) -> None:
    agent = Agent(every=2)
    agent.update.step()
    other = carried(agent, carry)
    assert other.update._target is other.target
    assert other.update._online is other.online
    assert (other.update.count, other.update.every, other.update.tau) == (1, 2, 0.3)
    scrambled(other.online, 7)
    with unchanged(*agent.target.parameters(), *agent.online.parameters()):
        assert_moves(other.update.step, other.target, other.online)
    with unchanged(*other.target.parameters()):
        assert_moves(agent.update.step, agent.target, agent.online)
    assert (agent.update.count, other.update.count) == (2, 2)


@pytest.mark.parametrize("carry", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("look", [repr, SoftUpdate.describe, SoftUpdate.state_dict, SoftUpdate.refresh])
def test_a_copied_updater_can_be_looked_at_first(carry: str, look: Any) -> None:
    update = carried(SoftUpdate(network(1), network(2), 0.3), carry)
    look(update)
    assert_moves(update.step, update._target, update._online)


@pytest.mark.parametrize("carry", ["deepcopy", "pickle"])
def test_a_target_that_holds_its_own_updater(carry: str) -> None:
    target, online = networks()
    target.update = SoftUpdate(target, online, 0.3)
    other = carried(target, carry)
    assert other.update._target is other
    with unchanged(*target.parameters()):
        assert_moves(other.update.step, other, other.update._online)


def test_an_updater_of_a_list_is_copied() -> None:
    target, online = torch.zeros(5), torch.ones(5)
    weight = torch.tensor(0.5)
    update = SoftUpdate([target], [online], weight)
    other = copy.deepcopy(update)
    other.step()
    assert torch.equal(other._target[0], torch.full((5,), 0.5))
    assert torch.equal(target, torch.zeros(5))
    weight.fill_(1.0)  # the copy has a tau of its own
    other.step()
    assert torch.equal(other._target[0], torch.full((5,), 0.75))


# Threads


@pytest.mark.parametrize("kind", ["updater", "function"])
def test_two_threads_move_two_targets(kind: str) -> None:
    def make(seed: int) -> Any:
        return scrambled(nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 300)), seed)

    online, targets = make(1), [make(2), make(3)]
    expected = copy.deepcopy(targets)
    for _ in range(40):
        for net in expected:
            for to, source in zip(net.parameters(), online.parameters(), strict=True):
                to.data.lerp_(source.data, 0.01)
    updates = [SoftUpdate(target, online, 0.01) for target in targets]
    errors: list[BaseException] = []
    barrier = threading.Barrier(2)

    def work(i: int) -> None:
        try:
            barrier.wait()
            for _ in range(40):
                if kind == "updater":
                    updates[i].step()
                else:
                    soft_update_(targets[i], online, 0.01)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread
            errors.append(error)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors
    for target, want in zip(targets, expected, strict=True):
        assert_holds(target, want.state_dict())


# torch.compile


@pytest.fixture
def dynamo() -> Iterator[None]:
    """Compile from scratch."""
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        yield
    torch._dynamo.reset()


@pytest.mark.share(2)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("every", [1, 3])
def test_a_compiled_step(dynamo: None, backend: str, every: int) -> None:
    target, online = networks()
    plain = copy.deepcopy(target)
    update, reference = SoftUpdate(target, online, 0.3, every=every), SoftUpdate(plain, online, 0.3, every=every)

    @torch.compile(fullgraph=True, backend=backend)
    def step(x: Tensor) -> Tensor:
        update.step()
        return x * 2

    for i in range(12):
        scrambled(online, 20 + i)
        assert torch.equal(step(torch.ones(2)), torch.full((2,), 2.0))
        reference.step()
        assert update.count == i + 1
        assert_holds(target, plain.state_dict())
    assert update.step() is (13 % every == 0)  # and eagerly on from there


@pytest.mark.share(2)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_soft_update(dynamo: None, backend: str) -> None:
    target, online = networks()

    @torch.compile(fullgraph=True, backend=backend)
    def both(x: Tensor, tau: float) -> Tensor:
        soft_update_(target, online, tau)
        return x + 1

    for seed, tau in ((5, 0.3), (6, 0.3), (7, 0.7)):
        scrambled(online, seed)
        assert_moves(lambda tau=tau: both(torch.ones(2), tau), target, online, tau)  # type: ignore[misc]

    @torch.compile(fullgraph=True, backend=backend)
    def copied() -> None:
        hard_update_(target, online)

    scrambled(online, 8)
    assert_moves(copied, target, online, 1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_compiled_step_with_masters_and_other_dtypes(dynamo: None, dtype: torch.dtype) -> None:
    target, online = networks()
    target.bfloat16()
    online.to(dtype)
    plain = copy.deepcopy(target)
    update, reference = (SoftUpdate(net, online, 0.01, master=True) for net in (target, plain))

    @torch.compile(fullgraph=True, backend="eager")
    def step() -> None:
        update.step()

    for _ in range(5):
        step()
        reference.step()
    assert_holds(target, plain.state_dict())
    for name, master in update.state_dict()["masters"].items():
        assert_same_bits(master, reference.state_dict()["masters"][name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64])
def test_the_kernels_bits_are_those_of_lerp(dtype: torch.dtype) -> None:
    """Whichever instructions torch chose: see test_instructions.py."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    for size in (1, 17, 4097, 300_001):
        for tau in (0.005, 0.3, 0.5, 0.7):
            target, online = (torch.randn(size, dtype=wide, generator=generator).to(dtype) for _ in range(2))
            expected = target.clone().lerp_(online, tau)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of halves without a master
                update = SoftUpdate([target], [online], tau)
            update.step()
            assert "kernel" in update.describe()
            assert torch.equal(target.view(torch.uint8), expected.view(torch.uint8)), (size, tau)
