# SPDX-License-Identifier: MIT
"""The CUDA path of target updates: its table and its launch on any machine, the kernel where there is a device."""

from __future__ import annotations

import copy
import ctypes
from typing import Any

import pytest
import torch
from fake_cuda import cuda_device, needs_cuda
from torch import nn

import fastreplay as fr
from fastreplay.gpu import library
from fastreplay.support.torch_abi import torch_abi
from fastreplay.target import plan, watched


class Chunk(ctypes.Structure):
    """Chunk of csrc/core/target.hpp, as the device reads it."""

    _fields_ = [
        ("target", ctypes.c_void_p),
        ("online", ctypes.c_void_p),
        ("master", ctypes.c_void_p),
        ("num_elements", ctypes.c_uint32),
        ("target_dtype", ctypes.c_uint8),
        ("online_dtype", ctypes.c_uint8),
        ("is_copied", ctypes.c_bool),
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
        self._launch = Launch(self.launch)  # kept: C holds its address only
        self.address = ctypes.cast(self._launch, ctypes.c_void_p).value

    def launch(
        self, device: int, stream: int, chunks: int, count: int, tau: float, tau_at: int | None, is_double: int
    ) -> int:
        self.calls.append({"device": device, "stream": stream, "count": count, "tau": tau, "tau_at": tau_at})
        if self.error:
            return self.error
        if tau_at:
            tau = (ctypes.c_double if is_double else ctypes.c_float).from_address(tau_at).value
        for chunk in (Chunk * count).from_address(chunks):
            assert (chunk.target_dtype, chunk.online_dtype, chunk.is_copied) == (0, 0, False)
            target, online = (
                torch.frombuffer((ctypes.c_float * chunk.num_elements).from_address(at), dtype=torch.float32)
                for at in (chunk.target, chunk.online)
            )
            target.lerp_(online, tau)
        return 0


def table_of(targets: list[torch.Tensor], onlines: list[torch.Tensor], device: Device) -> watched.Table:
    table = watched.Table([], torch_abi(), True, torch.autograd.graph.increment_version)
    for target, online in zip(targets, onlines, strict=True):
        table.watch(target, target.detach())
        table.watch(online, online.detach())
        table.add(target, online, None, "float32", "float32", target.numel(), False)
    table.finish()
    chunks = torch.frombuffer(bytearray(table.chunk_bytes()), dtype=torch.uint8)
    assert chunks.numel() % ctypes.sizeof(Chunk) == 0
    table.set_device(device.address or 0, 3, chunks)
    return table


def tensors(seed: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=random) for size in (1, 5, 4096, 4097, 10_000)]


def test_one_launch_moves_every_tensor() -> None:
    device, targets, onlines = Device(), tensors(1), tensors(2)
    expected = [target.lerp(online, 0.25) for target, online in zip(targets, onlines, strict=True)]
    table = table_of(targets, onlines, device)
    versions = [target._version for target in targets]
    assert table.step_on_device(0.25, 77, 0, False)
    assert device.calls == [{"device": 3, "stream": 77, "count": 1 + 1 + 1 + 2 + 3, "tau": 0.25, "tau_at": None}]
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


def test_nothing_is_launched_over_memory_that_moved() -> None:
    device, targets, onlines = Device(), tensors(1), tensors(2)
    table = table_of(targets, onlines, device)
    targets[2].data = torch.zeros(4096)
    assert not table.step_on_device(0.25, 0, 0, False)
    assert not device.calls


def test_a_failed_launch_says_so_and_counts_no_version() -> None:
    device, targets, onlines = Device(error=700), tensors(1), tensors(2)
    table = table_of(targets, onlines, device)
    with pytest.raises(RuntimeError, match="CUDA error 700 at the launch on device 3"):
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


def networks() -> tuple[nn.Module, nn.Module]:
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
