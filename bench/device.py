# SPDX-License-Identifier: MIT
"""What measuring on a device needs: its clock, the host's, a way to record calls, and what the device is."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns

import torch
from machine import read
from timing import Call

import fastreplay as fr


@dataclass(frozen=True)
class Device:
    """One device, or what stands for it in a test.

    Attributes:
        name: As torch knows it.
        seconds: Seconds that so many calls take there, from the first one's start to the last one's end.
        host_seconds: Seconds until the host has issued so many calls, with the device idle before.
        capture: From a call to one that replays so many of it from a graph.
        finish: Wait until all that was issued is done.
    """

    name: str
    seconds: Callable[[Call, int], float]
    host_seconds: Callable[[Call, int], float]
    capture: Callable[[Call, int], Call]
    finish: Callable[[], object] = lambda: None


def device_round(device: Device, call: Call, *, round_s: float, calls_each: int = 1) -> Callable[[], float]:
    """Return what measures seconds a call on the device, of which each makes `calls_each` updates; warms it up."""
    loops = 1
    while (taken := min(device.seconds(call, loops) for _ in range(3))) < round_s / 4:
        loops *= 2
    loops = max(1, round(loops * round_s / taken))
    return lambda: device.seconds(call, loops) / (loops * calls_each)


def host_round(device: Device, call: Call, *, num_launches: int) -> Callable[[], float]:
    """Return what measures the host's seconds a call.

    Args:
        device: Where the calls run.
        call: What is timed.
        num_launches: At most so many kernels a call. A round stays below the 1024 that a stream queues,
            beyond which the host would wait for the device.
    """
    loops = min(200, max(1, 500 // num_launches))
    return lambda: device.host_seconds(call, loops) / loops


def ready_round(device: Device, call: Call, *, round_s: float) -> Callable[[], float]:
    """Return what measures the seconds until one call's result is there, the device idle before."""

    def seconds(loops: int) -> float:
        result = None
        start = perf_counter_ns()
        for _ in range(loops):
            result = call()  # noqa: F841  held as a training loop holds its minibatch
            device.finish()
        return (perf_counter_ns() - start) * 1e-9

    loops = max(1, round(round_s / min(seconds(1) for _ in range(5))))
    return lambda: seconds(loops) / loops


def _seconds(call: Call, loops: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    for _ in range(loops // 16 + 1):  # the clock starts with the device at work, as within a training loop
        call()
    start.record()
    for _ in range(loops):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e-3


def _host_seconds(call: Call, loops: int) -> float:
    call()
    torch.cuda.synchronize()
    start = perf_counter_ns()
    for _ in range(loops):
        call()
    taken = perf_counter_ns() - start
    torch.cuda.synchronize()
    return taken * 1e-9


def _captured(call: Call, num_calls: int) -> Call:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(num_calls):
            call()

    def replay(_call: Call = call) -> None:  # what the graph reads and writes lives as long as this
        graph.replay()

    return replay


CUDA = Device("cuda", _seconds, _host_seconds, _captured, torch.cuda.synchronize)


def missing() -> str:
    """Say what is needed and missing, "" where nothing is."""
    if not torch.cuda.is_available():
        return f"needs a torch that sees an NVIDIA GPU; torch {torch.__version__} sees none"
    path = fr.backend_info()["target_update_cuda"]
    if path != "CUDA kernel":
        return f"needs fastreplay with its CUDA part (FASTREPLAY_CUDA=ON); this one has {path}"
    return ""


def describe_card() -> dict[str, str]:
    """Return the card and the software for it, in the order of printing."""
    card = torch.cuda.get_device_properties(0)
    return {
        "GPU": f"{card.name}, {card.multi_processor_count} SMs, {card.total_memory / 2**30:.0f} GiB, "
        f"compute capability {card.major}.{card.minor}",
        "driver": _driver_version(),
        "fastreplay from": str(Path(fr.__file__).parent),
        "CUDA": f"{torch.version.cuda} (torch); {fr.backend_info()['cuda_status']} (fastreplay)",
    }


def _driver_version() -> str:
    command = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        found = re.search(r"\d+\.\d+(\.\d+)?", read("/proc/driver/nvidia/version"))
        return found.group() if found else "unknown"
