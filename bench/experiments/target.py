# SPDX-License-Identifier: MIT
"""How long does a target update take on the CPU, with one thread of torch's and with two?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial

import torch
from experiment import Contestant, Contestants, Experiment, Question, Result, wall
from nets import NETS, Net, flattened
from render import Columns, Table, by_title, fact, medians, number, ratio, speedups
from timing import Call, Round
from torch import nn
from updaters import UPDATERS, check_exact

_BYTES_PER_ELEMENT = 12  # float32: two are read, one is written
_THREADS = 2
_THREADED_NETS, _THREADED = ("nature-cnn", "mlp-17m"), ("foreach", "flat", "fastreplay")
_QUICK_WIDTH = 256  # of the layers of a net that is larger than what RL trains
_LABELS = {name: updater.label for name, updater in UPDATERS.items()}


def _with_threads(name: str) -> str:
    return f"{name}-{_THREADS}-threads"


def experiment(net: Net) -> Experiment:
    sizes = [parameter.numel() for parameter in net.meta().parameters()]
    rivals = [name for name, updater in UPDATERS.items() if updater.is_rival]
    return Experiment(
        f"target-{net.key}",
        net.title,
        partial(_contestants, net),
        rivals=[*rivals, *map(_with_threads, rivals)],
        unit="s an update",
        facts={"tensors": len(sizes), "elements": sum(sizes)},
    )


def _contestants(net: Net) -> Contestants:
    """Return all updaters of one pair of networks, so that none has the better place in memory.

    The flat one has a pair of its own, of one tensor each. The number of torch's threads is as before afterwards.
    """
    num_threads = torch.get_num_threads()
    networks = cache(net.pair)

    @cache
    def prepared(name: str) -> tuple[Call, nn.Module, nn.Module]:
        updater = UPDATERS[name]
        target, online = networks()
        pair = (flattened(target), flattened(online)) if updater.is_flat else (target, online)
        return updater.prepare(*pair), *pair

    def make(name: str, threads: int) -> Contestant:
        call, target, online = prepared(name)

        def check() -> None:
            torch.set_num_threads(threads)
            check_exact(UPDATERS[name], call, target, online)

        clock = partial(_on_threads, threads)
        return Contestant(call, check=check, clock=clock, close=partial(torch.set_num_threads, num_threads))

    makers = {name: partial(make, name, 1) for name in UPDATERS}
    if net.key in _THREADED_NETS:
        makers |= {_with_threads(name): partial(make, name, _THREADS) for name in _THREADED}
    return makers


def _on_threads(count: int, contestant: Contestant, round_s: float) -> Round:
    torch.set_num_threads(count)
    timed = wall(contestant, round_s)

    def run() -> dict[str, float]:
        torch.set_num_threads(count)  # the round's first, untimed calls start them
        return dict(timed())

    return run


def _quick(net: Net) -> Net:
    """Return a net of as many tensors, of far fewer numbers where it is larger than what RL trains."""
    if net.is_rl_sized:
        return net
    layers = sum(isinstance(module, nn.Linear) for module in net.meta().modules())
    return replace(net, make=lambda: nn.Sequential(*(nn.Linear(_QUICK_WIDTH, _QUICK_WIDTH) for _ in range(layers))))


def _tables(results: Sequence[Result]) -> list[Table]:
    rows = by_title(results)
    times: Columns = {
        "tensors": fact("tensors"),
        "elements": fact("elements"),
        **medians(results, _LABELS),
        f"over {_LABELS['foreach']}": speedups("foreach"),
    }
    rates = medians(results, _LABELS, form=lambda result, s: f"{_num_bytes(result) / s * 1e-9:.3g}")
    threaded = [result for result in results if result.experiment.key.removeprefix("target-") in _THREADED_NETS]
    return [
        Table(
            "Times",
            "µs per update of float32 parameters on one thread, medians over rounds; ratios are medians of the "
            "rounds' ratios.",
            "net",
            rows,
            times,
        ),
        Table(
            f"{_THREADS} threads",
            "µs on one thread → on two (speed-up).",
            "net",
            by_title(threaded),
            {_LABELS[name]: partial(_by_threads, name=name) for name in _THREADED},
        ),
        Table(
            "Throughput",
            f"GB/s, of {_BYTES_PER_ELEMENT} bytes an element: target and online are read, target is written.",
            "net",
            rows,
            rates,
        ),
    ]


def _num_bytes(result: Result) -> int:
    return int(result.experiment.facts["elements"]) * _BYTES_PER_ELEMENT


def _by_threads(result: Result, name: str) -> str:
    one, more = (result.median(each) for each in (name, _with_threads(name)))
    cells = (number(None if s is None else s * 1e6) for s in (one, more))
    return f"{' → '.join(cells)} ({ratio(result.speedup(name, _with_threads(name)))})"


QUESTION = Question(
    "Target updates",
    lambda is_quick: [experiment(_quick(net) if is_quick else net) for net in NETS],
    _tables,
    {**_LABELS, **{_with_threads(name): f"{_LABELS[name]} on {_THREADS} threads" for name in _THREADED}},
    distributions=("fastreplay", "torch", "numpy", "stable-baselines3"),
    rounds=(41, 5e-3),
    quick_rounds=(2, 5e-5),
    method="one thread, where not said otherwise",
)
