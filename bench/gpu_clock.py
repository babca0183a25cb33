# SPDX-License-Identifier: MIT
"""What measuring on a device needs: its clock, the host's, and a way to record calls. Knows no updater."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter_ns
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from peers import Call
    from timing import Round


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


def device_round(device: Device, call: Call, *, round_s: float, calls_each: int = 1) -> Round:
    """Return a round over `call`, of which each makes `calls_each` updates; warms it up."""
    loops = 1
    while (taken := min(device.seconds(call, loops) for _ in range(3))) < round_s / 4:
        loops *= 2
    loops = max(1, round(loops * round_s / taken))
    return lambda: device.seconds(call, loops) / (loops * calls_each)


def host_round(device: Device, call: Call, *, num_launches: int) -> Round:
    """Return a round of the host's time a call.

    Args:
        device: Where the calls run.
        call: What is timed.
        num_launches: At most so many kernels a call. A round stays below the 1024 that a stream queues,
            beyond which the host would wait for the device.
    """
    loops = min(200, max(1, 500 // num_launches))
    return lambda: device.host_seconds(call, loops) / loops


def ready_round(device: Device, call: Call, *, round_s: float) -> Round:
    """Return a round of the time until one call's result is there, the device idle before."""

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
    return graph.replay


CUDA = Device("cuda", _seconds, _host_seconds, _captured, torch.cuda.synchronize)
