# SPDX-License-Identifier: MIT
# ruff: noqa: RUF001  the signs of the printed table
"""The rows of draws by priority that are more than a buffer's calls: the tree alone, memory, CleanRL's script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absence import AbsentError
from experiment import Experiment, Result, measure
from experiments import priorities
from peers.cleanrl import Rainbow
from render import to_markdown

# A buffer that always draws the same, in a script that cannot be imported.
SCRIPT = """
import an_environment

class PrioritizedReplayBuffer:
    def __init__(self, capacity, obs_shape, device, n_step, gamma, alpha, beta):
        self.first = 0

    def add(self, *step):
        pass

    def sample(self, batch_size):
        indices = list(range(self.first, self.first + batch_size))
        observations = torch.arange(batch_size, dtype=torch.uint8).reshape(-1, 1)
        return PrioritizedBatch(observations, indices, torch.ones(batch_size, 1))

    def update_priorities(self, indices, priorities):
        pass

PrioritizedBatch = collections.namedtuple("PrioritizedBatch", ["observations", "indices", "weights"])
nothing = an_environment.make()
"""


def experiment(key: str) -> Experiment:
    return next(one for one in priorities.at_scale(50) if one.key == key)


def test_priorities_take_less_than_ten_bytes_a_transition() -> None:
    (memory,) = [one for one in priorities.at_scale() if one.key == "priorities-memory"]
    result = measure(memory, rounds=1, round_s=0)
    assert 8 < priorities.beyond(result) < 10
    assert "for priorities |" in to_markdown(priorities.QUESTION, [result], {})


@pytest.mark.parametrize("key", ["priorities-tree", "priorities-tree-of-more"])
def test_the_tree_is_drawn_from_alone(key: str) -> None:
    pytest.importorskip("_tree_timer", reason="the native timers come with make .venv/.bench")
    result = measure(experiment(key), rounds=2, round_s=1e-4)
    assert len(result.readings) == 2
    assert result.speedup("fastreplay", ours="uniform" if key == "priorities-tree" else "smaller") is not None


@pytest.mark.parametrize("shape", [(1,), (4, 5, 5)])
def test_ours_in_place_of_cleanrls(shape: tuple[int, ...]) -> None:
    rainbow = Rainbow("fastreplay", 1000, shape)
    rainbow.check()
    assert rainbow.step().observations.shape == (32, *shape)
    rainbow.buffer.update_priorities = lambda *_: None
    with pytest.raises(AssertionError, match="as before"):
        rainbow.check()


def test_cleanrls_script_is_run_for_its_buffer_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLEANRL_RAINBOW", raising=False)
    with pytest.raises(AbsentError, match="CLEANRL_RAINBOW does not name a copy"):
        Rainbow("cleanrl", 100, (1,))
    script = tmp_path / "rainbow_atari.py"
    script.write_text(SCRIPT)
    monkeypatch.setenv("CLEANRL_RAINBOW", str(script))
    rainbow = Rainbow("cleanrl", 100, (1,))
    rainbow.check()
    assert rainbow.step().indices == list(range(32))
    rainbow.buffer.first = 32
    with pytest.raises(AssertionError, match="other transitions'"):
        rainbow.check()


def test_the_report() -> None:
    def result(key: str, **readings: Any) -> Result:
        return Result(Experiment(key, key, dict, ["cleanrl"]), {name: [taken] for name, taken in readings.items()})

    text = to_markdown(
        priorities.QUESTION,
        [
            result("tree", fastreplay={"s": 6e-6}, uniform={"s": 12e-6}),
            result("more", fastreplay={"s": 9e-6}, smaller={"s": 6e-6}),
            result("rainbow", fastreplay={"s": 1e-5}, cleanrl={"s": 1e-3}),
            result("priorities-memory", fastreplay={"bytes": 201.5}, plain={"bytes": 192.75}),
        ],
        {},
    )
    lines = {line.split(" | ")[0][2:]: line for line in text.splitlines() if line.startswith("| ")}
    assert lines["tree"].endswith("| 0.50× |")
    assert lines["more"].endswith("| 1.50× |")
    assert "100.00× (CleanRL)" in lines["rainbow"]
    assert lines["priorities-memory"].endswith("| 202 | 193 | 8.75 |")
    assert np.isnan(priorities.beyond(result("priorities-memory")))
