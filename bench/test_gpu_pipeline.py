# SPDX-License-Identifier: MIT
# ruff: noqa: RUF001  the signs of the printed table
"""What of bench/gpu_pipeline.py works without a GPU: what it asks for, its tables, its measuring with a stand-in."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu_pipeline_measure
import pytest
import torch
from gpu_pipeline_report import LearnerResult, PipelineResult, to_json, to_markdown
from gpu_sac import SacLearner
from gpu_sources import SOURCES, Setting, Source, check
from test_target_gpu import CPU
from workloads import WORKLOADS

SCRIPT = Path(__file__).parent / "gpu_pipeline.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
@pytest.mark.parametrize("script", ["gpu_pipeline.py", "gpu_pipeline_measure.py"])
def test_without_a_device_one_line_says_so(script: str) -> None:
    done = subprocess.run((sys.executable, SCRIPT.with_name(script)), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert not done.stdout
    (line,) = done.stderr.splitlines()
    assert "needs" in line
    assert "NVIDIA GPU" in line


def setting_of(name: str, batch_size: int) -> Setting:
    return Setting(WORKLOADS[name], batch_size, 300, "cpu")


def expected_sources() -> set[str]:
    peers = {"sb3": "stable_baselines3", "torchrl": "torchrl"}
    absent = {name for name, module in peers.items() if importlib.util.find_spec(module) is None}
    return set(SOURCES) - absent - {"storage"}


@pytest.mark.parametrize(("name", "batch_size"), [("cheetah", 16), ("atari", 4)])
def test_all_is_measured_on_a_stand_in(name: str, batch_size: int) -> None:
    result = gpu_pipeline_measure.measure(setting_of(name, batch_size), CPU, num_rounds=2, round_s=1e-4)
    assert result.ready.keys() == expected_sources()
    assert result.rate.keys() == expected_sources() | {"link"}
    assert result.num_bytes == WORKLOADS[name].row_bytes * batch_size
    assert result.absent.keys() == set(SOURCES) - expected_sources()
    assert all(len(rounds) == 2 and min(rounds) > 0 for rounds in (*result.ready.values(), *result.rate.values()))


def test_learner_steps_are_measured_on_a_stand_in() -> None:
    result = gpu_pipeline_measure.measure_learner(setting_of("cheetah", 16), CPU, num_rounds=2, round_s=1e-4)
    assert result.seconds.keys() == expected_sources() | {"ceiling"}


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


def test_the_tables_hold_what_was_measured() -> None:
    results = [
        PipelineResult(
            "atari 256",
            14_500_000,
            {"sb3": [8e-3], "sample": [1e-3]},
            {"sb3": [7e-3], "loader": [4e-4], "link": [3e-4]},
            {"torchrl": "torchrl is not installed"},
        ),
        PipelineResult("cheetah 256", 42_240, {"sb3": [1e-4], "sample": [5e-5]}, {"storage": [1e-5]}),
    ]
    learner = LearnerResult("a step", {"ceiling": [1e-4], "loader": [1.04e-4], "sb3": [2e-4]})
    text = to_markdown(results, learner, {"GPU": "none"})
    assert "| atari 256 | `sample` | SB3 | at least 4× | 8.00× | met |" in text
    assert "| atari 256 | `loader`, depth 2 | pinned copy of as many bytes | at least 0.8× | 0.75× | not met |" in text
    assert "| cheetah 256 | `sample` | SB3 | at least 4× | 2.00× | not met |" in text
    assert "| learner | `loader`, depth 2 | no buffer | at most 1.05× | 1.04× | met |" in text
    assert "| SB3 | 200 | 5,000 | 50.0% |" in text
    assert "Not measured: TorchRL, pinned, prefetch 2: torchrl is not installed." in text
    assert "| atari 256 | 2.07 | 36.2 | – | 48.3 |" in text
    content = json.loads(json.dumps(to_json(results, learner, {})))
    assert [target["met"] for target in content["minibatches"][0]["targets"]] == [True, False]
