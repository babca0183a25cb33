# SPDX-License-Identifier: MIT
"""How long do minibatches take to a GPU, and how much of a learner's steps do they cost there?"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from operator import itemgetter
from typing import Any

import torch
from device import CUDA, Device, describe_card, device_round, missing, ready_round
from experiment import Contestant, Contestants, Experiment, Question, Result
from render import NONE, Columns, Table, by_title, medians, number, percent, ratio
from sac import SacLearner
from sources import LABELS, PRIORITIZED, RIVALS, SOURCES, Setting, Source, check
from timing import SECONDS, Call, Round
from workloads import WORKLOADS

# What is to be reached comes first, for a run that does not end.
_SHAPES = (("cheetah", 256), ("atari", 256), ("cheetah", 4096), ("humanoid", 256), ("atari", 32))
_QUICK_CAPACITY, _QUICK_BYTES = 5000, 128 << 20  # each buffer is filled anew: most of the time of a quick run
_LABELS = {
    **LABELS,
    "link": "pinned copy of as many bytes",
    "ceiling": "no buffer",
    "captured": '`storage="cuda"`, captured',
}


def _setting(name: str, batch_size: int, is_quick: bool) -> Setting:
    workload = WORKLOADS[name]
    quick = min(_QUICK_CAPACITY, _QUICK_BYTES // workload.row_bytes)
    capacity = min(workload.capacity, quick) if is_quick else workload.capacity
    return Setting(workload, batch_size, capacity, "cuda")


def minibatches(setting: Setting, device: Device = CUDA) -> Experiment:
    """Return the experiment of minibatches on their way to the device, one by one and many."""
    title = f"{setting.workload.name} {setting.batch_size}"
    num_bytes = setting.workload.row_bytes * setting.batch_size

    def contestants() -> Contestants:
        clock, fresh = partial(_clock, device), replace(setting)  # without the rings that a measurement before filled
        makers: dict[str, Callable[[], Contestant]] = {
            name: partial(_source, name, fresh, device, clock) for name in SOURCES
        }
        return {**makers, "link": lambda: Contestant(_link(num_bytes, device), clock=partial(_rate_clock, device))}

    key = f"minibatches-{title.replace(' ', '-')}"
    return Experiment(key, title, contestants, RIVALS, "s a minibatch", {"bytes": num_bytes})


def priorities(setting: Setting, device: Device = CUDA) -> Experiment:
    """Return the experiment of minibatches by priority on the device, and of their errors on the way back."""
    clock, fresh = partial(_clock, device), replace(setting)
    makers = {name: partial(_source, name, fresh, device, clock, PRIORITIZED) for name in PRIORITIZED}
    title = f"{setting.workload.name} {setting.batch_size}"
    return Experiment("priorities", title, lambda: makers, RIVALS, "s a minibatch and its update")


def _source(
    name: str,
    setting: Setting,
    device: Device,
    clock: Callable[[Contestant, float], Round],
    sources: Mapping[str, Callable[[Setting], Source]] = SOURCES,
) -> Contestant:
    source = sources[name](setting)
    return Contestant(
        source.call, check=partial(check, source, setting, device.finish), clock=clock, close=source.close
    )


def _clock(device: Device, contestant: Contestant, round_s: float) -> Round:
    """Return a round of the time until one minibatch is there, and of the time of each of many."""
    ready = ready_round(device, contestant.call, round_s=round_s)
    rate = _rate_clock(device, contestant, round_s)
    return lambda: {"ready": ready(), **rate()}


def _rate_clock(device: Device, contestant: Contestant, round_s: float) -> Round:
    rate = device_round(device, _holding(contestant.call), round_s=round_s)
    return lambda: {"rate": rate()}


def _holding(call: Call) -> Call:
    """Return a call whose last result is held until the next is there, as a training loop does."""
    held: list[Any] = [None]

    def run() -> None:
        held[0] = call()

    return run


def _link(num_bytes: int, device: Device) -> Call:
    """Return a copy of so many page-locked bytes to the device."""
    source = torch.ones(num_bytes, dtype=torch.uint8, pin_memory=device.name.startswith("cuda"))
    target = torch.empty(num_bytes, dtype=torch.uint8, device=device.name)
    return lambda: target.copy_(source, non_blocking=True)


def learner_steps(setting: Setting, device: Device = CUDA) -> Experiment:
    """Return the experiment of steps of a captured SAC update, each on a minibatch of its own."""
    title = f"a captured SAC update, {setting.workload.name} {setting.batch_size}"
    return Experiment("learner", title, lambda: _learners(replace(setting), device), RIVALS, "s a step")


def _learners(setting: Setting, device: Device) -> Contestants:

    @cache
    def captured_step() -> tuple[Any, SacLearner, Call]:
        out = setting.buffer.sample(setting.batch_size)
        learner = SacLearner(dict(out))
        return out, learner, device.capture(learner.update, 1)

    def clock(contestant: Contestant, round_s: float) -> Round:
        seconds = device_round(device, contestant.call, round_s=round_s)
        return lambda: {SECONDS: seconds()}

    def ceiling() -> Contestant:
        return Contestant(captured_step()[2], clock=clock)

    def captured() -> Contestant:
        return Contestant(_captured_whole(setting, device), clock=clock)

    def loading(name: str) -> Contestant:
        _, learner, step = captured_step()
        source = SOURCES[name](setting)
        is_right = partial(check, source, setting, device.finish)
        return Contestant(_turn(source, learner, step), check=is_right, clock=clock, close=source.close)

    def filling() -> Contestant:
        out, _, step = captured_step()
        return Contestant(_filling(setting, out, step), clock=clock)

    # The captures first: a loader's thread might disturb them.
    return {
        "ceiling": ceiling,
        "captured": captured,
        **{name: partial(loading, name) for name in SOURCES},
        "out": filling,
    }


def _turn(source: Source, learner: SacLearner, step: Call) -> Call:
    call, fields = source.call, source.fields

    def run() -> None:
        learner.load(fields(call()))
        step()

    return run


def _filling(setting: Setting, out: Any, step: Call) -> Call:
    """Return a turn that samples into the minibatch which the update reads."""
    buffer, batch_size = setting.buffer, setting.batch_size

    def run() -> None:
        buffer.sample(batch_size, out=out)
        step()

    return run


def _captured_whole(setting: Setting, device: Device) -> Call:
    """Return the replay of a graph that draws its own minibatch."""
    buffer, batch_size = setting.resident, setting.batch_size
    out = buffer.sample(batch_size)
    learner = SacLearner(dict(out))

    def draw_and_update() -> None:
        buffer.sample(batch_size, out=out)
        learner.update()

    return device.capture(draw_and_update, 1)


def _experiments(is_quick: bool) -> list[Experiment]:
    moved = [minibatches(_setting(name, batch_size, is_quick)) for name, batch_size in _SHAPES]
    cheetah = _setting("cheetah", 256, is_quick)
    return [learner_steps(cheetah), *moved, priorities(cheetah)]


def _tables(results: Sequence[Result]) -> list[Table]:
    moved = [result for result in results if "bytes" in result.experiment.facts]

    def bandwidth(result: Result, seconds: float) -> str:
        return number(result.experiment.facts["bytes"] / seconds * 1e-9)

    titled: dict[str, Columns] = {
        "One minibatch, until it is there (µs of the wall)": medians(moved, _LABELS, "ready"),
        "Many, one after another (µs each, between CUDA events)": medians(moved, _LABELS, "rate"),
        "The same in GB/s of the fields": medians(moved, _LABELS, "rate", bandwidth),
    }
    tables = [Table(title, "", "minibatch", by_title(moved), columns) for title, columns in titled.items()]
    learners = [_learner_table(result) for result in results if result.experiment.key == "learner"]
    drawn = [_priorities_table(result) for result in results if result.experiment.key == "priorities"]
    return [_goals(results), *learners, *tables, *drawn]


def _priorities_table(result: Result) -> Table:
    def micros(measure: str) -> Callable[[str], str]:
        return lambda name: NONE if (value := result.median(name, measure)) is None else number(value * 1e6)

    columns: Columns = {"until it is there, µs of the wall": micros("ready"), "many, µs each": micros("rate")}
    rows = {label: name for name, label in _LABELS.items() if name in result.readings}
    title = f"By priority, each with the update of what was drawn: {result.experiment.title}"
    return Table(title, "", "minibatches from", rows, columns)


def _goals(results: Sequence[Result]) -> Table:
    """Return what issue and report are about: what is to be reached, and what was."""
    by_key = {result.experiment.key: result for result in results}

    def found(key: str, form: Callable[[float | None], str], against: str, ours: str, measure: str = SECONDS) -> str:
        return form(by_key[key].speedup(against, ours, measure)) if key in by_key else NONE

    learner, cheetah, atari = "learner", "minibatches-cheetah-256", "minibatches-atari-256"
    rows = {
        "`loader`, cheetah 256: learner steps, of those without any buffer": (
            percent(0.95),
            found(learner, percent, "ceiling", "loader"),
        ),
        "`sample` until a minibatch is there, cheetah 256, over SB3": (
            ratio(4),
            found(cheetah, ratio, "sb3", "sample", "ready"),
        ),
        "`loader`, atari 256, of the link's page-locked bandwidth": (
            percent(0.8),
            found(atari, percent, "link", "loader", "rate"),
        ),
    }
    columns: Columns = {"at least": itemgetter(0), "measured": itemgetter(1)}
    return Table("What it must reach", "", "minibatches", rows, columns)


def _learner_table(result: Result) -> Table:
    def cell(name: str, form: Callable[[float, float], str]) -> str:
        seconds, ceiling = result.median(name), result.median("ceiling")
        return NONE if seconds is None or ceiling is None else form(seconds, ceiling)

    columns: Columns = {
        "µs a step": partial(cell, form=lambda seconds, _: number(seconds * 1e6)),
        "steps a second": partial(cell, form=lambda seconds, _: f"{1 / seconds:,.0f}"),
        "of the ceiling": partial(cell, form=lambda seconds, ceiling: percent(ceiling / seconds)),
    }
    rows = {label: name for name, label in _LABELS.items() if name in result.readings}
    return Table(f"Learner steps a second: {result.experiment.title}", "", "minibatches from", rows, columns)


QUESTION = Question(
    "Minibatches on a GPU",
    _experiments,
    _tables,
    _LABELS,
    distributions=("fastreplay", "torch", "numpy", "stable-baselines3", "torchrl"),
    rounds=(51, 20e-3),
    quick_rounds=(5, 2e-3),
    method="torch on all cores, fastreplay on at most 8 of them, with minibatches of half a megabyte or more",
    num_threads=lambda: len(os.sched_getaffinity(0)),
    missing=missing,
    describe=describe_card,
)
