# SPDX-License-Identifier: MIT
"""The CUDA path of target updates: its table and its launch on any machine, the kernel where there is a device."""

from __future__ import annotations

import copy
import ctypes
import gc
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from fake_cuda import cuda_device, needs_cuda
from torch import nn

import fastreplay as fr
from fastreplay.gpu import library
from fastreplay.support.torch_abi import torch_abi
from fastreplay.target import device_masters, plan, watched

if TYPE_CHECKING:
    from collections.abc import Callable


class Pair(ctypes.Structure):
    """Pair of csrc/core/target/chunks.hpp, with its Chunk, as a launch is given it."""

    _fields_ = [
        ("target", ctypes.c_void_p),
        ("online", ctypes.c_void_p),
        ("master", ctypes.c_void_p),
        ("unused", ctypes.c_uint32),
        ("target_dtype", ctypes.c_uint8),
        ("online_dtype", ctypes.c_uint8),
        ("is_copied", ctypes.c_bool),
        ("num_elements", ctypes.c_size_t),
    ]


Launch = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_double,
    ctypes.c_void_p,
    ctypes.c_int,
)


class Device:
    """Stands for the CUDA library: does what a launch asks for, float32 only, and keeps what it was given."""

    def __init__(self, error: int = 0) -> None:
        self.error = error
        self.calls: list[dict[str, Any]] = []
        self.graph: list[Callable[[], None]] | None = None  # what launches are captured in
        self._launch = Launch(self.launch)  # kept: C holds its address only
        self.address = ctypes.cast(self._launch, ctypes.c_void_p).value

    def launch(
        self, device: int, stream: int, pairs: int, count: int, tau: float, tau_at: int | None, is_double: int
    ) -> int:
        self.calls.append({"device": device, "stream": stream, "count": count, "tau": tau, "tau_at": tau_at})
        copied = (Pair * count).from_buffer_copy(ctypes.string_at(pairs, count * ctypes.sizeof(Pair)))
        self.dtypes = [pair.target_dtype for pair in copied]
        if self.error:
            return self.error
        if self.graph is None:
            self.run(copied, tau, tau_at, is_double)
        else:
            self.graph.append(partial(self.run, copied, tau, tau_at, is_double))
        return 0

    def run(self, pairs: Any, tau: float, tau_at: int | None, is_double: int) -> None:
        if tau_at:
            tau = (ctypes.c_double if is_double else ctypes.c_float).from_address(tau_at).value
        for pair in pairs:
            assert (pair.target_dtype, pair.online_dtype, pair.is_copied) == (0, 0, False)
            target, online = (
                torch.frombuffer((ctypes.c_float * pair.num_elements).from_address(at), dtype=torch.float32)
                for at in (pair.target, pair.online)
            )
            target.lerp_(online, tau)


def table_of(targets: list[torch.Tensor], onlines: list[torch.Tensor], device: Device) -> watched.Table:
    table = watched.Table([], torch_abi(), True, torch.autograd.graph.increment_version)
    for target, online in zip(targets, onlines, strict=True):
        table.watch(target, target.detach())
        table.watch(online, online.detach())
        table.add(target, online, None, "float32", "float32", target.numel(), False)
    table.finish()
    table.set_device(device.address or 0, 3, lambda error: f"fake error {error}")
    return table


def tensors(seed: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=random) for size in (1, 5, 4096, 4097, 10_000)]


def test_one_call_moves_every_tensor() -> None:
    device, targets, onlines = Device(), tensors(1), tensors(2)
    expected = [target.lerp(online, 0.25) for target, online in zip(targets, onlines, strict=True)]
    table = table_of(targets, onlines, device)
    versions = [target._version for target in targets]
    assert table.step_on_device(0.25, 77, 0, False)
    assert device.calls == [{"device": 3, "stream": 77, "count": 5, "tau": 0.25, "tau_at": None}]
    assert all(map(torch.equal, targets, expected))
    assert [target._version for target in targets] == [version + 1 for version in versions]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tau_is_read_on_the_device_at_each_launch(dtype: torch.dtype) -> None:
    device, targets, onlines = Device(), tensors(1), tensors(2)
    table, tau = table_of(targets, onlines, device), torch.tensor(0.25, dtype=dtype)
    for value in (0.25, 0.75):
        tau.fill_(value)
        expected = [target.lerp(online, value) for target, online in zip(targets, onlines, strict=True)]
        table.step_on_device(0.0, 0, tau.data_ptr(), dtype == torch.float64)
        assert all(map(torch.equal, targets, expected))


def test_a_captured_launch_outlives_its_table() -> None:
    """A graph has a copy of the addresses: nothing of the table is read by a replay."""
    device, targets, onlines = Device(), tensors(1), tensors(2)
    expected = [target.lerp(online, 0.25) for target, online in zip(targets, onlines, strict=True)]
    table, device.graph = table_of(targets, onlines, device), []
    table.step_on_device(0.25, 0, 0, False)
    del table
    trash = [table_of(onlines, targets, Device()) for _ in range(50)]  # where it was
    for replay in device.graph:
        replay()
    assert trash
    assert all(map(torch.equal, targets, expected))


def test_what_a_launch_moves_together_lies_together() -> None:
    device, dtypes = Device(error=1), ["float32", "bytes", "bfloat16", "float32", "bytes", "bfloat16"]
    table = watched.Table([], torch_abi(), True, torch.autograd.graph.increment_version)
    kept = [torch.zeros(8) for _ in dtypes]
    for tensor, dtype in zip(kept, dtypes, strict=True):
        table.add(tensor, tensor, None, dtype, dtype, 4, False)
    table.finish()
    table.set_device(device.address or 0, 0, str)
    with pytest.raises(RuntimeError):
        table.step_on_device(0.25, 0, 0, False)
    assert device.dtypes == [0, 0, 3, 3, 6, 6]


def test_masters_stay_where_they_are() -> None:
    """A graph that captured a step writes to them."""
    online, target = nn.Linear(3, 5).bfloat16(), nn.Linear(3, 5).bfloat16()
    update = fr.SoftUpdate(target, online, 0.3, master=True)
    update.step()
    before = {name: master.clone() for name, master in update.state_dict()["masters"].items()}
    addresses = {name: master.data_ptr() for name, master in update.state_dict()["masters"].items()}
    target.weight.data = target.weight.data.clone()
    target.bias.data[0] = 7.0
    update.refresh()
    masters = update.state_dict()["masters"]
    assert {name: master.data_ptr() for name, master in masters.items()} == addresses
    assert torch.equal(masters["weight"], before["weight"])
    assert torch.equal(masters["bias"][1:], before["bias"][1:])
    assert float(masters["bias"][0]) == 7.0


class FakeStream:
    def __init__(self, handle: int) -> None:
        self.cuda_stream = handle
        self.waits: list[object] = []

    def wait_event(self, event: object) -> None:
        self.waits.append(event)


def test_masters_are_made_before_another_stream_moves_them(monkeypatch: pytest.MonkeyPatch) -> None:
    current, captured = [FakeStream(1)], False
    recorded: list[FakeStream] = []
    event = SimpleNamespace(record=recorded.append)
    cuda = SimpleNamespace(Event=lambda: event, current_stream=lambda _: current[0])
    monkeypatch.setattr(device_masters, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(device_masters, "current_handle", lambda _: current[0].cuda_stream)
    monkeypatch.setattr(device_masters, "is_captured", lambda *_: captured)
    kept: list[FakeStream] = []
    masters = device_masters.DeviceMasters(torch.device("cuda:0"), [SimpleNamespace(record_stream=kept.append)])  # type: ignore[list-item]
    masters.join()
    assert (recorded, current[0].waits, kept) == ([current[0]], [], [])
    current[0], captured = FakeStream(2), True
    masters.join()
    assert (current[0].waits, kept) == ([], [current[0]])
    current[0], captured = FakeStream(3), False
    masters.join()
    masters.join()
    assert (current[0].waits, kept[1:]) == ([event], [current[0]])


def test_nothing_is_launched_over_memory_that_moved() -> None:
    device, targets, onlines = Device(), tensors(1), tensors(2)
    table = table_of(targets, onlines, device)
    targets[2].data = torch.zeros(4096)
    assert not table.step_on_device(0.25, 0, 0, False)
    assert not device.calls


def test_a_failed_launch_says_so_and_counts_no_version() -> None:
    device, targets, onlines = Device(error=700), tensors(1), tensors(2)
    table = table_of(targets, onlines, device)
    with pytest.raises(RuntimeError, match="the launch on cuda:3 failed: fake error 700"):
        table.step_on_device(0.25, 0, 0, False)
    assert [target._version for target in targets] == [0] * len(targets)


def test_backend_info_says_which_path_and_why() -> None:
    info = fr.backend_info()
    assert info["target_update_cpu"].startswith((watched.cpu_level(), "one thread"))
    if info["cuda_devices"] == 0:
        assert library.cuda_update(0)[0] == 0
        assert info["target_update_cuda"] == f"torch._foreach_lerp_ ({info['cuda_status']})"
    else:
        assert info["target_update_cuda"] == "CUDA kernel"


def test_without_the_kernel_torch_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a device without a kernel gets, tried on the CPU: the same values from torch's operations."""
    monkeypatch.setattr(plan, "_has_kernel", lambda _: False)
    online = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    target = copy.deepcopy(online)
    for parameter in online.parameters():
        parameter.data.normal_()
    expected = [to.lerp(source, 0.3) for to, source in zip(target.parameters(), online.parameters(), strict=True)]
    update = fr.SoftUpdate(target, online, 0.3)
    assert update.step()
    assert update.describe() == "7 by torch"
    assert all(map(torch.equal, target.parameters(), expected))


def networks() -> tuple[nn.Sequential, nn.Sequential]:
    online = nn.Sequential(nn.Linear(23, 256), nn.ReLU(), nn.Linear(256, 256), nn.BatchNorm1d(256)).cuda()
    target = copy.deepcopy(online)
    for parameter in online.parameters():
        parameter.data.normal_()
    return target, online


@pytest.mark.parametrize("tau", [0.0, 0.005, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.filterwarnings("ignore:.*stands still:UserWarning")
class TestOnADevice:
    pytestmark = cuda_device

    def test_the_kernel_does_what_lerp_does(self, dtype: torch.dtype, tau: float) -> None:
        target, online = (module.to(dtype) for module in networks())
        expected = [to.lerp(source, tau) for to, source in zip(target.parameters(), online.parameters(), strict=True)]
        update = fr.SoftUpdate(target, online, tau)
        update.step()
        assert "CUDA kernel" in update.describe()
        assert all(map(torch.equal, target.parameters(), expected))

    def test_a_captured_graph_follows_tau(self, dtype: torch.dtype, tau: float) -> None:
        target, online = (module.to(dtype) for module in networks())
        weight = torch.tensor(0.25, device="cuda")
        update = fr.SoftUpdate(target, online, weight)
        update.step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            update.step()
        weight.fill_(tau)
        expected = [
            to.lerp(source, float(weight)) for to, source in zip(target.parameters(), online.parameters(), strict=True)
        ]
        graph.replay()
        torch.cuda.synchronize()
        assert all(map(torch.equal, target.parameters(), expected))


@needs_cuda
@pytest.mark.cuda
def test_the_update_follows_the_current_stream() -> None:
    target, online = networks()
    update, stream = fr.SoftUpdate(target, online, 1.0), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    update.step()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # type: ignore[no-untyped-call]  # work that another stream would not wait for
        for parameter in online.parameters():
            parameter.data.fill_(3.0)
        update.step()
    stream.synchronize()
    assert all(bool((parameter == 3.0).all()) for parameter in target.parameters())


@needs_cuda
@pytest.mark.cuda
def test_a_float32_target_follows_bfloat16_in_one_launch() -> None:
    target, online = networks()
    low = copy.deepcopy(online).bfloat16()
    expected = [t.lerp(s.float(), 0.1) for t, s in zip(target.parameters(), low.parameters(), strict=True)]
    update = fr.SoftUpdate(target, low, 0.1)
    update.step()
    assert all(map(torch.equal, target.parameters(), expected))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=cuda_device)])
def place(request: pytest.FixtureRequest) -> str:
    """Name a device: what the kernel does there, the CPU's does here."""
    name: str = request.param
    return name


def lists(place: str, sizes: list[int], skipped: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Give tensors that begin so many elements after where their memory does."""
    random = torch.Generator().manual_seed(len(sizes))
    return tuple(  # type: ignore[return-value]
        [torch.randn(size + skipped, generator=random).to(place)[skipped:] for size in sizes] for _ in range(2)
    )


def assert_lerped(targets: list[torch.Tensor], onlines: list[torch.Tensor], tau: float) -> None:
    expected = [target.clone().lerp_(online, tau) for target, online in zip(targets, onlines, strict=True)]
    assert fr.SoftUpdate(targets, onlines, tau).step()
    assert all(map(torch.equal, targets, expected))


@pytest.mark.parametrize("skipped", [0, 1, 2, 3])
def test_views_that_begin_anywhere(place: str, skipped: int) -> None:
    targets, onlines = lists(place, [1, 7, 255, 4096, 5000, 100_003], skipped)
    assert_lerped(targets, onlines, 0.3)
    assert_lerped([target[1:] for target in targets[1:]], [online[:-1] for online in onlines[1:]], 0.3)


def test_eight_hundred_tensors(place: str) -> None:
    assert_lerped(*lists(place, [1 + i % 97 for i in range(800)]), 0.3)


@pytest.mark.parametrize(
    "tau", [0.5, float(np.nextafter(np.float32(0.5), np.float32(0))), np.nextafter(0.5, 0), 0.500001]
)
def test_tau_at_one_half(place: str, tau: float) -> None:
    assert_lerped(*lists(place, [1000, 5000]), float(tau))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_masters_add_up_what_halves_cannot_show(place: str, dtype: torch.dtype) -> None:
    targets, onlines = ([tensor.to(dtype) for tensor in each] for each in lists(place, [3, 5000, 9]))
    masters = [target.float() for target in targets]
    update = fr.SoftUpdate(targets, onlines, 0.005, master=True)
    for _ in range(10):
        update.step()
        for master, online in zip(masters, onlines, strict=True):
            master.lerp_(online.float(), 0.005)
    assert all(torch.equal(target, master.to(dtype)) for target, master in zip(targets, masters, strict=True))


@needs_cuda
@pytest.mark.cuda
@pytest.mark.parametrize("end", ["del", "refresh", "other tensors"])
@pytest.mark.filterwarnings("ignore:.*stands still:UserWarning")
def test_a_captured_update_reads_nothing_that_may_be_freed(end: str) -> None:
    target, online = networks()
    update = fr.SoftUpdate(target, online, 0.25)
    update.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update.step()
    moved = list(target.parameters())
    expected = [to.lerp(source, 0.25) for to, source in zip(moved, online.parameters(), strict=True)]
    if end == "refresh":
        update.refresh()
    elif end == "other tensors":
        target.append(nn.Linear(2, 2).cuda())
        online.append(nn.Linear(2, 2).cuda())
        update.refresh()
    del update
    gc.collect()
    trash = [
        torch.full((size,), 255, dtype=torch.uint8, device="cuda") for size in (512, 4096, 1 << 20) for _ in range(20)
    ]
    graph.replay()
    torch.cuda.synchronize()
    assert trash
    assert all(map(torch.equal, moved, expected))


@needs_cuda
@pytest.mark.cuda
def test_masters_are_moved_on_another_stream() -> None:
    targets, onlines = ([tensor.bfloat16() for tensor in each] for each in lists("cuda", [5000, 9]))
    torch.cuda._sleep(50_000_000)  # type: ignore[no-untyped-call]  # before the masters are made
    masters = [target.float().lerp_(online.float(), 0.25) for target, online in zip(targets, onlines, strict=True)]
    update = fr.SoftUpdate(targets, onlines, 0.25, master=True)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        update.step()
        del update
    trash = [torch.full((size,), 7.0, device="cuda") for size in (5000, 9) for _ in range(4)]
    torch.cuda.synchronize()
    assert trash
    assert all(torch.equal(target, master.bfloat16()) for target, master in zip(targets, masters, strict=True))
