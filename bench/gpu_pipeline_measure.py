# SPDX-License-Identifier: MIT
"""Measure minibatches on the CUDA device, with the torch and the fastreplay that this interpreter has.

bench/gpu_pipeline.py prepares both and runs this. Exit status 2: something that is needed is missing.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from absence import AbsentError, excused
from gpu_clock import CUDA, Device, device_round, ready_round
from gpu_measure import describe_card, missing
from gpu_pipeline_report import LearnerResult, PipelineResult, to_json, to_markdown
from gpu_sac import SacLearner
from gpu_sources import SOURCES, Setting, Source, check
from machine import ROOT, as_file_name, describe_machine
from output import write
from timing import keep_heap, take_turns
from workloads import WORKLOADS

import fastreplay as fr

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from peers import Call
    from timing import Round

_SHAPES = (("cheetah", 256), ("cheetah", 4096), ("humanoid", 256), ("atari", 32), ("atari", 256))
_QUICK_CAPACITY = 5000


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    if reason := missing():
        sys.stderr.write(f"gpu_pipeline_measure: {reason}\n")
        return 2
    keep_heap()
    rounds, round_s = (5, 2e-3) if options.quick else (options.rounds, options.round_ms * 1e-3)
    header = {
        "date": date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        **describe_card(),
        **describe_machine(("fastreplay", "torch", "numpy", "stable-baselines3", "torchrl")),
        "fastreplay from": str(Path(fr.__file__).parent),
        "method": f"medians of {rounds} rounds of {round_s * 1e3:g} ms a source, by turns; contents checked before",
    }
    if options.commit:
        header["commit"] = options.commit
    results = []
    for name, batch_size in _SHAPES:
        sys.stderr.write(f"Measuring {name} {batch_size}\n")
        results.append(measure(_setting(name, batch_size, "cuda", options.quick), CUDA, rounds, round_s))
    sys.stderr.write("Measuring learner steps\n")
    learner = measure_learner(_setting("cheetah", 256, "cuda", options.quick), CUDA, rounds, round_s)
    markdown = to_markdown(results, learner, header)
    sys.stdout.write(markdown)
    if not options.quick:
        stem = f"{header['date']}-{as_file_name(torch.cuda.get_device_name())}-pipeline"
        write(options.out, stem, markdown, to_json(results, learner, header))
        sys.stderr.write(f"Wrote {options.out / stem}.md and .json\n")
    return 0


def measure(setting: Setting, device: Device, num_rounds: int, round_s: float) -> PipelineResult:
    """Check every source, and time them by turns."""
    result = PipelineResult(f"{setting.workload.name} {setting.batch_size}", 0)
    result.num_bytes = setting.workload.row_bytes * setting.batch_size
    sources = _sources(setting, device, result.absent)
    try:
        calls = {name: source.call for name, source in sources.items()}
        ready = {name: ready_round(device, call, round_s=round_s) for name, call in calls.items()}
        result.ready = take_turns(ready, num_rounds, lambda: None, result.absent)
        calls["link"] = _link(result.num_bytes, device)
        rate = {name: device_round(device, _holding(call), round_s=round_s) for name, call in calls.items()}
        result.rate = take_turns(rate, num_rounds, lambda: None, result.absent)
    finally:
        for source in sources.values():
            source.close()
    return result


def measure_learner(setting: Setting, device: Device, num_rounds: int, round_s: float) -> LearnerResult:
    """Time steps of a captured SAC update, each on a minibatch of its own."""
    out = setting.buffer.sample(setting.batch_size)
    learner = SacLearner(dict(out))
    step = device.capture(learner.update, 1)
    turns: dict[str, Call] = {"ceiling": step}
    with suppress(AbsentError):
        turns["captured"] = _captured_whole(setting, device)
    absent: dict[str, str] = {}
    sources = _sources(setting, device, absent)  # after the captures, which a loader's thread might disturb
    for name, source in sources.items():
        turns[name] = _turn(source, learner, step)
    turns["out"] = _filling(setting, out, step)
    try:
        rounds: dict[str, Round] = {name: device_round(device, call, round_s=round_s) for name, call in turns.items()}
        seconds = take_turns(rounds, num_rounds, lambda: None, absent)
    finally:
        for source in sources.values():
            source.close()
    return LearnerResult(f"a captured SAC update, {setting.workload.name} {setting.batch_size}", seconds)


def _setting(name: str, batch_size: int, device: str, is_quick: bool) -> Setting:
    workload = WORKLOADS[name]
    capacity = min(workload.capacity, _QUICK_CAPACITY) if is_quick else workload.capacity
    return Setting(workload, batch_size, capacity, device)


def _sources(setting: Setting, device: Device, absent: dict[str, str]) -> dict[str, Source]:
    sources = {}
    for name, prepare in SOURCES.items():
        with excused(name, absent):
            source = prepare(setting)
            check(source, setting, device.finish)
            sources[name] = source
    return sources


def _holding(call: Call) -> Call:
    """Return a call whose last result is held until the next is there, as a training loop does."""
    held: list[Any] = [None]

    def run() -> None:
        held[0] = call()

    return run


def _turn(source: Source, learner: SacLearner, step: Call) -> Call:
    fields: Callable[[Any], Mapping[str, torch.Tensor]] = source.fields
    call = source.call

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


def _link(num_bytes: int, device: Device) -> Call:
    """Return a copy of so many page-locked bytes to the device."""
    source = torch.ones(num_bytes, dtype=torch.uint8, pin_memory=device.name.startswith("cuda"))
    target = torch.empty(num_bytes, dtype=torch.uint8, device=device.name)
    return lambda: target.copy_(source, non_blocking=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="few and short rounds, small rings; no files")
    parser.add_argument("--rounds", type=int, default=51, help="rounds a source (51)")
    parser.add_argument("--round-ms", type=float, default=20.0, help="length of a round (20)")
    parser.add_argument("--commit", help="named in the result where git cannot tell")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="where the files go")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
