# SPDX-License-Identifier: MIT
"""Every way to update a target, measured by turns on the CPU; what ours must reach. table.py runs it."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, NoReturn

import torch
from absence import excused
from judging import Target
from nets import NETS, flattened
from report_target import THREADED, THREADS, ThreadsTarget, UpdateResult, UpdateWork, with_threads
from timing import Round, take_turns, timed_round
from updates import UPDATERS, check_exact

if TYPE_CHECKING:
    from collections.abc import Callable

    from peers import Call
    from torch import nn
    from tqdm import tqdm
    from updates import Updater

_TARGETS: dict[str, tuple[Target, ...]] = {
    "2x64": (Target(5, "foreach"),),
    "twin-critic": (Target(1.5, "foreach"), Target(8, "sb3"), Target(1.1, "flat", is_ceiling=True)),
    "ten-critics": (Target(1.4, "foreach"), Target(8, "sb3")),
    "small-tensors": (Target(6, "foreach"), Target(80, "sb3")),
    "mlp-17m": (Target(1, "foreach", tolerance=0.03), ThreadsTarget(0.95, "flat")),
}
_THREADED_NETS = ("nature-cnn", "mlp-17m")

UPDATE_WORKS: tuple[UpdateWork, ...] = tuple(
    UpdateWork(net, _TARGETS.get(net.key, ()), is_threaded=net.key in _THREADED_NETS) for net in NETS
)


def measure(work: UpdateWork, *, num_rounds: int, round_s: float, bar: tqdm[NoReturn]) -> UpdateResult:
    """Check every updater, time them by turns, and check them again.

    All move one pair of networks, so that none has the better place in memory; the flat one has a pair
    of its own, of one tensor each. The number of torch's threads is as before afterwards.
    """
    bar.set_description(work.key)
    networks = work.net.pair()
    flat = (flattened(networks[0]), flattened(networks[1]))
    tensors = list(networks[0].parameters())
    result = UpdateResult(work, len(tensors), sum(tensor.numel() for tensor in tensors))
    ready: list[tuple[Updater, Call, tuple[nn.Module, nn.Module]]] = []
    for updater in UPDATERS.values():
        pair = flat if updater.is_flat else networks
        with excused(updater.name, result.absent):
            ready.append((updater, updater.prepare(*pair), pair))
    num_threads = torch.get_num_threads()
    try:
        rounds: dict[str, Round] = {}
        for updater, call, pair in ready:
            for threads in (1, THREADS) if work.is_threaded and updater.name in THREADED else (1,):
                name = updater.name if threads == 1 else with_threads(updater.name)
                with excused(name, result.absent):
                    torch.set_num_threads(threads)
                    check_exact(updater, call, *pair)
                    rounds[name] = _on_threads(threads, timed_round(call, round_s=round_s))
        seconds = take_turns(rounds, num_rounds, bar.update, result.absent)
    finally:
        torch.set_num_threads(num_threads)
    for updater, call, pair in ready:
        if updater.name in seconds:
            with excused(updater.name, result.absent):
                check_exact(updater, call, *pair)
    result.seconds = {name: taken for name, taken in seconds.items() if name not in result.absent}
    gc.collect()  # hundreds of megabytes, before the next net is made
    return result


def _on_threads(count: int, timed: Callable[[], float]) -> Round:
    def run() -> float:
        torch.set_num_threads(count)  # the round's first, untimed calls start them
        return timed()

    return run
