# SPDX-License-Identifier: MIT
"""How long does a target update take on a GPU, called one by one and within a captured graph?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from operator import itemgetter

import torch
from device import CUDA, Device, describe_card, device_round, host_round, missing
from experiment import Contestant, Contestants, Experiment, Question, Result
from nets import LARGE, NETS, Net, flattened
from render import NONE, Columns, Table, by_title, fact, medians, percent, ratio, speedups
from timing import Call, Round
from torch import Tensor, nn
from updaters import TAU, UPDATERS, Updater, check, detached

_GRAPH_STEPS = 16  # updates in one captured graph, so that its own launch is shared by as many
_CAPTURED = ("foreach", "fastreplay")
_COPY = "copy"
_LABELS = {
    "lerp": "`lerp_` per tensor",
    "flat": "one flat `lerp_`",
    "foreach": "`_foreach_lerp_`",
    "foreach-graph": "`_foreach_lerp_`, captured",
    "fastreplay": "`fr.SoftUpdate`",
    "fastreplay-graph": "`fr.SoftUpdate`, captured",
    _COPY: "copy of as many bytes",
}
_KINDS = {
    "float32": "Times, float32 (µs an update)",
    "bfloat16": "Times, bfloat16 online and float32 target (µs an update)",
}


def _mixed_foreach(target: nn.Module, online: nn.Module) -> Call:
    """Take the online values up to the target's dtype, which `torch._foreach_lerp_` insists on."""
    targets, onlines = detached(target), detached(online)
    taken_up = [torch.empty_like(tensor) for tensor in targets]

    def run() -> None:
        torch._foreach_copy_(taken_up, onlines)
        torch._foreach_lerp_(targets, taken_up, TAU)

    return run


_UPDATERS: dict[str, tuple[Updater, ...]] = {
    "float32": tuple(UPDATERS[name] for name in ("lerp", "flat", "foreach", "fastreplay")),
    "bfloat16": (Updater("foreach", "", _mixed_foreach), UPDATERS["fastreplay"]),
}


def experiment(net: Net, online_dtype: str, device: Device = CUDA) -> Experiment:
    sizes = [parameter.numel() for parameter in net.meta().parameters()]
    rivals = [updater.name for updater in _UPDATERS[online_dtype] if updater.is_rival]
    element_bytes = 8 + (4 if online_dtype == "float32" else 2)
    return Experiment(
        f"{net.key}-{online_dtype}",
        net.title if online_dtype == "float32" else f"{net.title}, {online_dtype}",
        partial(_contestants, net, online_dtype, device, sum(sizes) * element_bytes),
        rivals=[*rivals, *(f"{name}-graph" for name in rivals)],
        unit="s an update",
        facts={
            "online": online_dtype,
            "is_large": not net.is_rl_sized,
            "tensors": len(sizes),
            "elements": sum(sizes),
            "bytes_per_update": sum(sizes) * element_bytes,  # read and written
        },
    )


def _contestants(net: Net, online_dtype: str, device: Device, num_bytes: int) -> Contestants:
    """Return all updaters of one pair of networks; the flat one has a pair of its own, of one tensor each."""

    @cache
    def networks() -> tuple[nn.Module, nn.Module]:
        target, online = net.pair(device.name)
        return target, online.to(getattr(torch, online_dtype))

    @cache
    def call_of(updater: Updater) -> tuple[Call, nn.Module, nn.Module]:
        target, online = networks()
        pair = (flattened(target), flattened(online)) if updater.is_flat else (target, online)
        return updater.prepare(*pair), *pair

    def eager(updater: Updater) -> Contestant:
        call, *pair = call_of(updater)
        clock = partial(_clock, device, num_launches=len(list(pair[0].parameters())))
        return Contestant(call, check=partial(check, updater, call, *pair), clock=clock)

    def captured(updater: Updater) -> Contestant:
        call, *pair = call_of(updater)
        is_exact = partial(check, updater, device.capture(call, 1), *pair)
        replay = device.capture(call, _GRAPH_STEPS)
        return Contestant(replay, _GRAPH_STEPS, is_exact, partial(_clock, device))

    makers: dict[str, Callable[[], Contestant]] = {}
    for updater in _UPDATERS[online_dtype]:
        makers[updater.name] = partial(eager, updater)
        if updater.name in _CAPTURED:
            makers[f"{updater.name}-graph"] = partial(captured, updater)
    if net in LARGE and online_dtype == "float32":
        makers[_COPY] = lambda: Contestant(copy_of(num_bytes, device), clock=partial(_clock, device))
    return makers


def _clock(device: Device, contestant: Contestant, round_s: float, num_launches: int | None = None) -> Round:
    """Return a round of the device's time and, where the launches of a call are known, the host's."""
    on_device = device_round(device, contestant.call, round_s=round_s, calls_each=contestant.calls_each)
    if num_launches is None:
        return lambda: {"device": on_device()}
    on_host = host_round(device, contestant.call, num_launches=num_launches)
    return lambda: {"device": on_device(), "host": on_host()}


def copy_of(num_bytes: int, device: Device) -> Call:
    """Return a copy that reads and writes `num_bytes` together."""
    source = torch.ones(num_bytes // 2, dtype=torch.uint8, device=device.name)
    to = torch.empty_like(source)

    def run() -> Tensor:
        return to.copy_(source)

    return run


def _tables(results: Sequence[Result]) -> list[Table]:
    rows = by_title(results)
    tables = []
    for dtype, title in _KINDS.items():
        chosen = [result for result in results if result.experiment.facts["online"] == dtype]
        columns: Columns = {
            "tensors": fact("tensors"),
            "elements": fact("elements"),
            **medians(chosen, _LABELS, "device"),
            "over foreach": speedups("foreach", measure="device"),
            "over foreach, captured": speedups("foreach-graph", "fastreplay-graph", "device"),
        }
        tables.append(Table(title, "", "net", by_title(chosen), columns))
    host = "µs of the host an update, until all of it is issued, with the device idle before."
    rate = (
        "GB/s, of the bytes that are read and written: 12 an element in float32, 10 where the online network is "
        "bfloat16."
    )
    rates: Columns = {**medians(results, _LABELS, "device", _rate), "ours of the copy": _share_of_copy}
    return [
        _goals(results),
        *tables,
        Table("The host", host, "net", rows, medians(results, _LABELS, "host")),
        Table("Bandwidth", rate, "net", rows, rates),
        Table("Results beside `torch.lerp`", "", "net", rows, _exactness(results)),
    ]


def _goals(results: Sequence[Result]) -> Table:
    """Return what issue and report are about: what is to be reached, and what was, at worst."""
    float32 = [result for result in results if result.experiment.facts["online"] == "float32"]
    small = [result for result in float32 if not result.experiment.facts["is_large"]]
    large = [result for result in float32 if result.experiment.facts["is_large"]]

    def worst(chosen: Sequence[Result], against: str, ours: str = "fastreplay") -> float | None:
        return min((found for each in chosen if (found := each.speedup(against, ours, "device"))), default=None)

    rows = {
        "nets of deep RL, over `_foreach_lerp_`": (ratio(1.5), ratio(worst(small, "foreach"))),
        "the same, both captured": (ratio(1.2), ratio(worst(small, "foreach-graph", "fastreplay-graph"))),
        "100 M and 1 G, of the copy's bandwidth": (percent(0.88), percent(worst(large, _COPY))),
    }
    columns: Columns = {"at least": itemgetter(0), "measured, at worst": itemgetter(1)}
    return Table("What it must reach", "", "soft update, float32", rows, columns)


def _rate(result: Result, seconds: float) -> str:
    return f"{result.experiment.facts['bytes_per_update'] / seconds * 1e-9:,.0f}"


def _share_of_copy(result: Result) -> str:
    return percent(result.speedup(_COPY, measure="device"))


def _exactness(results: Sequence[Result]) -> Columns:
    words = {True: "equal", False: "close", None: NONE}

    def cells(name: str) -> Callable[[Result], str]:
        return lambda result: words[result.is_exact.get(name)]

    known = {name for result in results for name in result.is_exact}
    return {label: cells(name) for name, label in _LABELS.items() if name in known}


QUESTION = Question(
    "Soft updates on a GPU",
    lambda _: [experiment(net, dtype) for net in (*NETS, *LARGE) for dtype in _UPDATERS],
    _tables,
    _LABELS,
    distributions=("fastreplay", "torch", "numpy"),
    rounds=(101, 5e-3),
    quick_rounds=(5, 1e-3),
    method=f"between CUDA events; captured: {_GRAPH_STEPS} updates a graph",
    missing=missing,
    describe=describe_card,
)
