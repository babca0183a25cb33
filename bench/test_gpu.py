# SPDX-License-Identifier: MIT
"""All that is measured on a GPU, measured on a stand-in: what it asks of sources, updates and learners."""

from __future__ import annotations

import gc
import importlib.util
import weakref
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import device
import pytest
import run
import torch
from device import CUDA, Device
from experiment import measure
from experiments import gpu_pipeline, gpu_soft_update
from nets import NETS
from sac import SacLearner
from sources import SOURCES, Setting, Source, check
from timing import Call
from workloads import WORKLOADS


def timed(call: Call, loops: int) -> float:
    start = perf_counter()
    for _ in range(loops):
        call()
    return perf_counter() - start


def repeated(call: Call, times: int) -> Call:
    def run() -> None:
        for _ in range(times):
            call()

    return run


CPU = Device("cpu", timed, timed, repeated)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_updates_are_measured_on_a_stand_in(dtype: str) -> None:
    experiment = gpu_soft_update.experiment(NETS[0], dtype, CPU)
    result = measure(experiment, rounds=3, round_s=1e-4)
    graphs = {"foreach-graph", "fastreplay-graph"}
    eager = {"foreach", "fastreplay"} | ({"lerp", "flat"} if dtype == "float32" else set())
    assert result.readings.keys() == result.is_exact.keys() == eager | graphs
    assert {name for name in result.readings if result.series(name, "host")} == eager
    assert all(result.is_exact.values())
    assert all(len(result.series(name, "device") or ()) == 3 for name in eager | graphs)
    assert experiment.facts["bytes_per_update"] == 4481 * (12 if dtype == "float32" else 10)


def test_what_a_graph_writes_to_lives_as_long_as_its_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = SimpleNamespace(wait_stream=lambda _: None)
    graph = SimpleNamespace(replay=lambda: None)
    cuda = SimpleNamespace(
        Stream=lambda: stream,
        current_stream=lambda: stream,
        stream=lambda _: nullcontext(),
        synchronize=lambda: None,
        CUDAGraph=lambda: graph,
        graph=lambda _: nullcontext(),
    )
    monkeypatch.setattr(device, "torch", SimpleNamespace(cuda=cuda))
    out = torch.zeros(3)
    is_alive = weakref.ref(out)
    replay = CUDA.capture(partial(out.add_, 1), 2)
    del out
    gc.collect()
    replay()
    assert is_alive() is not None
    del replay
    gc.collect()
    assert is_alive() is None


def test_the_report_bears_the_devices_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    question = replace(
        gpu_soft_update.QUESTION,
        experiments=lambda is_quick: [gpu_soft_update.experiment(NETS[0], "float32", CPU)] if is_quick else [],
        missing=lambda: "",
        describe=lambda: {"GPU": "NVIDIA H100, 132 SMs"},
    )
    monkeypatch.setattr(gpu_soft_update, "QUESTION", question)
    assert run.main(["gpu_soft_update", "--quick", "--out", str(tmp_path)]) == 0
    (report,) = tmp_path.glob("*-nvidia-h100-gpu-soft-update.md")
    assert "- GPU: NVIDIA H100, 132 SMs\n" in report.read_text()
    assert report.with_suffix(".json").exists()


def test_a_copy_moves_as_many_bytes() -> None:
    copied = gpu_soft_update.copy_of(1200, CPU)()
    assert copied.nbytes == 600  # read, and written
    assert bool((copied == 1).all())


def setting_of(name: str, batch_size: int) -> Setting:
    return Setting(WORKLOADS[name], batch_size, 300, "cpu")


def expected_sources() -> set[str]:
    peers = {"sb3": "stable_baselines3", "torchrl": "torchrl", "torchrl-device": "torchrl"}
    absent = {name for name, module in peers.items() if importlib.util.find_spec(module) is None}
    return set(SOURCES) - absent - {"storage"}


@pytest.mark.parametrize(("name", "batch_size"), [("cheetah", 16), ("atari", 4)])
def test_minibatches_are_measured_on_a_stand_in(name: str, batch_size: int) -> None:
    experiment = gpu_pipeline.minibatches(setting_of(name, batch_size), CPU)
    result = measure(experiment, rounds=2, round_s=1e-4)
    assert {name for name in result.readings if result.series(name, "ready")} == expected_sources()
    assert result.readings.keys() == expected_sources() | {"link"}
    assert experiment.facts["bytes"] == WORKLOADS[name].row_bytes * batch_size
    assert result.absent.keys() == set(SOURCES) - expected_sources()
    rates = [result.series(name, "rate") or [] for name in result.readings]
    assert all(len(rounds) == 2 and min(rounds) > 0 for rounds in rates)


def test_draws_by_priority_are_measured_on_a_stand_in() -> None:
    result = measure(gpu_pipeline.priorities(setting_of("cheetah", 16), CPU), rounds=2, round_s=1e-4)
    assert result.readings.keys() >= {"sample"}
    assert "storage" in result.absent
    (table,) = [table for table in gpu_pipeline.QUESTION.tables([result]) if "priority" in table.title]
    assert table.rows["`sample`"] == "sample"


def test_learner_steps_are_measured_on_a_stand_in() -> None:
    result = measure(gpu_pipeline.learner_steps(setting_of("cheetah", 16), CPU), rounds=2, round_s=1e-4)
    assert result.readings.keys() == expected_sources() | {"ceiling"}
    assert {"captured", "storage"} <= result.absent.keys()


def learner_of(batch: dict[str, torch.Tensor]) -> SacLearner:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SacLearner(batch)


def test_a_learner_reads_what_was_loaded() -> None:
    setting = setting_of("cheetah", 16)
    learner = learner_of(dict(setting.buffer.sample(16)))
    batch = setting.buffer.sample(16)
    learner.load({**batch, "reward": batch.reward[:, None]})  # as SB3 has it
    assert all(torch.equal(learner.batch[name], batch[name]) for name in learner.batch)


@pytest.mark.parametrize("seed", range(3))
def test_a_learner_moves_all_that_it_learns(seed: int) -> None:
    # Values of an environment's size: those of the workloads name their row, and saturate the networks.
    random = torch.Generator().manual_seed(seed)
    batch = {
        name: torch.randn(16, *shape, generator=random)
        for name, shape in {"observation": (17,), "action": (6,), "next_observation": (17,), "reward": ()}.items()
    }
    learner = learner_of({**batch, "terminated": torch.zeros(16)})
    before = [parameter.clone() for parameter in (*learner.actor.parameters(), *learner.targets.parameters())]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the noise of the actions
        learner.update()
    after = (*learner.actor.parameters(), *learner.targets.parameters())
    assert not any(map(torch.equal, before, after))
    assert all(bool(parameter.isfinite().all()) for parameter in after)


def test_a_source_that_errs_is_noticed() -> None:
    setting = setting_of("cheetah", 16)
    right = SOURCES["sample"](setting)

    def torn() -> Any:
        batch = right.call()
        batch.next_observation[3, 5] += 1
        return batch

    check(right, setting, lambda: None)
    with pytest.raises(AssertionError, match="next_observation is none that was stored"):
        check(replace(right, call=torn), setting, lambda: None)
    once = right.call()
    with pytest.raises(AssertionError, match="always the same"):
        check(Source(lambda: once, right.fields), setting, lambda: None)
