# SPDX-License-Identifier: MIT
# ruff: noqa: NPY002  what SB3 draws from
"""Steps per second of whole Stable-Baselines3 training runs, with its own classes and with fastreplay.sb3's.

python bench/end_to_end.py              all of it, into bench/results/ (about 5 minutes)
python bench/end_to_end.py --only sac   runs whose name contains "sac", put beside those in today's file
python bench/end_to_end.py --quick      few steps: does it run at all? Printed only, unless --out
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch
from absence import AbsentError, excused
from gymnasium import spaces
from machine import ROOT, Disturbance, as_file_name, cpu_name, describe_machine
from output import NONE, bullets, number, ratio, table, write
from stable_baselines3.dqn import dqn
from stable_baselines3.sac import sac
from stable_baselines3.td3 import td3
from tqdm import tqdm

import fastreplay.sb3

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_PARTS = ("add", "sample", "target update")
_SIDES = ("SB3", "fastreplay")
_LEARNING_STARTS = 300
_DISTRIBUTIONS = ("fastreplay", "stable-baselines3", "torch", "numpy", "gymnasium", "mujoco")
_NOTE = (
    "Shares are of the whole time. By the parts: SB3's steps per second with the time taken off that was saved in the "
    "three timed parts; what the measured gain differs from that is not of their making (noise, for the most part)."
)


class AtariShaped(gym.Env[Any, Any]):
    """Episodes of 500 steps of random frames in the shape of Atari's, four stacked; costs next to nothing itself."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
        self.action_space = spaces.Discrete(6)
        rng = np.random.Generator(np.random.PCG64(0))
        self._frames = rng.integers(0, 256, (64, 4, 84, 84), np.uint8)
        self._num_steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:  # noqa: ARG002
        super().reset(seed=seed)
        self._num_steps = 0
        return self._frames[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._num_steps += 1
        frame = self._frames[(self._num_steps * 7 + int(action)) % len(self._frames)]
        return frame, float(frame[0, 0, 0] > 127), False, self._num_steps == 500, {}


@dataclass(frozen=True)
class Run:
    """What is trained, with SB3's own settings but for those given here."""

    title: str
    algorithm: str
    make_env: Callable[[], Any]
    module: Any  # where the algorithm finds polyak_update
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Lengths:
    """How long each side trains."""

    turns: int = 60
    turn_steps: int = 40  # few, so that both sides have the machine in the same mood
    warmup_steps: int = _LEARNING_STARTS + 50


_QUICK = Lengths(turns=2, turn_steps=4, warmup_steps=_LEARNING_STARTS + 4)

RUNS = {
    "dqn-atari": Run(
        "DQN, Atari-shaped (4, 84, 84) uint8",
        "DQN",
        AtariShaped,
        dqn,
        {"policy": "CnnPolicy", "buffer_size": 10_000},
    ),
    "sac-cheetah": Run("SAC, HalfCheetah-v5", "SAC", lambda: gym.make("HalfCheetah-v5"), sac),
    "td3-pendulum": Run("TD3, Pendulum-v1", "TD3", lambda: gym.make("Pendulum-v1"), td3),
}


@dataclass
class Turn:
    """One stretch of training."""

    seconds: float
    parts: dict[str, float]  # seconds, by name


class Agent:
    """A model of one side, trained in stretches whose buffer and update calls are timed."""

    def __init__(self, run: Run, side: str) -> None:
        self.run, self.side = run, side
        with ExitStack() as stack:
            if side == "fastreplay":
                stack.enter_context(fastreplay.sb3.accelerate())
            settings = {"policy": "MlpPolicy", "seed": 0, "device": "cpu", **run.settings}
            settings["learning_starts"] = _LEARNING_STARTS
            kind = getattr(stable_baselines3, run.algorithm)
            self.model = kind(env=run.make_env(), **settings)

    def learn(self, steps: int) -> Turn:
        parts = dict.fromkeys(_PARTS, 0.0)
        buffer = self.model.replay_buffer
        with ExitStack() as stack:
            if self.side == "fastreplay":
                stack.enter_context(fastreplay.sb3.accelerate())
            for owner, name, part in (
                (buffer, "add", "add"),
                (buffer, "sample", "sample"),
                (self.run.module, "polyak_update", "target update"),
            ):
                stack.enter_context(patch.object(owner, name, _timed(getattr(owner, name), parts, part)))
            start = time.perf_counter()
            self.model.learn(steps, reset_num_timesteps=False)
            seconds = time.perf_counter() - start
        return Turn(seconds, parts)

    def parameters(self) -> dict[str, bytes]:
        return {name: tensor.numpy().tobytes() for name, tensor in self.model.policy.state_dict().items()}


def _timed(function: Any, parts: dict[str, float], part: str) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = function(*args, **kwargs)
        parts[part] += time.perf_counter() - start
        return result

    return wrapper


def measure(run: Run, lengths: Lengths) -> dict[str, Any]:
    """Train both sides by turns from one seed.

    Returns:
        For each side medians over the rounds: steps per second, time and share of each part; and the gain, the median
        of the rounds' ratios.

    Raises:
        AbsentError: The environment cannot be made, or SB3's side failed.
        AssertionError: The two do not end in the same parameters.
    """
    agents: dict[str, Agent] = {}
    for side in _SIDES:
        with _unless_absent(side):
            agents[side] = Agent(run, side)
    turns: dict[str, list[Turn]] = {side: [] for side in _SIDES}
    for number_of_round in tqdm(range(lengths.turns + 1), desc=run.title, disable=not sys.stderr.isatty()):
        order = _SIDES if number_of_round % 2 == 0 else _SIDES[::-1]
        states = np.random.get_state(), torch.get_rng_state()
        for side in order:
            np.random.set_state(states[0])  # both draw the same
            torch.set_rng_state(states[1])
            with _unless_absent(side):
                turn = agents[side].learn(lengths.turn_steps if number_of_round else lengths.warmup_steps)
                turns[side].append(turn)
    theirs, ours = (agents[side].parameters() for side in _SIDES)
    assert theirs == ours, f"{run.title}: the two do not end in the same parameters"
    turns = {side: taken[1:] for side, taken in turns.items()}
    gain = median(before.seconds / after.seconds for before, after in zip(*turns.values(), strict=True))
    sides = {
        side: {
            "steps_per_s": lengths.turn_steps / median(turn.seconds for turn in turns[side]),
            "us_per_step": {
                part: 1e6 * median(turn.parts[part] for turn in turns[side]) / lengths.turn_steps for part in _PARTS
            },
            "shares": {part: median(turn.parts[part] / turn.seconds for turn in turns[side]) for part in _PARTS},
            "turns": [asdict(turn) for turn in turns[side]],
        }
        for side in _SIDES
    }
    return {"gain": gain, **sides}


@contextmanager
def _unless_absent(side: str) -> Iterator[None]:
    """Turn a failure of SB3's side into the reason why the run is not measured."""
    absent: dict[str, str] = {}
    with excused(side.lower(), absent):
        yield
    if absent:
        raise AbsentError(*absent.values())


def _gain_by_parts(theirs: dict[str, Any], ours: dict[str, Any]) -> float:
    """Return what SB3's runs would gain from the time saved in the timed parts alone."""
    saved = sum(theirs["us_per_step"][part] - ours["us_per_step"][part] for part in _PARTS)
    return float(1 / (1 - saved * 1e-6 * theirs["steps_per_s"]))


def to_table(results: Mapping[str, Any], absent: Mapping[str, str]) -> str:
    columns = (
        "run",
        "steps/s SB3",
        "ours",
        "gain",
        "by the parts",
        *(f"{part}: SB3 → ours" for part in (*_PARTS, "all three")),
    )
    rows = []
    for name, sides in results.items():
        theirs, ours = (sides[side] for side in _SIDES)
        shares = [(theirs["shares"][part], ours["shares"][part]) for part in _PARTS]
        shares.append((sum(share for share, _ in shares), sum(share for _, share in shares)))
        rows.append(
            (
                RUNS[name].title,
                number(theirs["steps_per_s"]),
                number(ours["steps_per_s"]),
                ratio(sides["gain"]),
                ratio(_gain_by_parts(theirs, ours)),
                *(f"{before:.2%} → {after:.2%}" for before, after in shares),
            )
        )
    text = table(columns, rows)
    if absent:
        reasons = "\n".join(f"- {RUNS[name].title}: {reason}" for name, reason in absent.items())
        text += f"\n\n{NONE}: not measured.\n\n{reasons}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", default="", help="runs whose name contains this")
    parser.add_argument("--quick", action="store_true", help="few steps; no files, unless --out")
    parser.add_argument("--out", type=Path, help="where the files go (bench/results)")
    options = parser.parse_args()
    chosen = {name: run for name, run in RUNS.items() if options.only in name}
    if not chosen:
        parser.error(f"--only: expected part of one of {', '.join(RUNS)}, got {options.only!r}")
    if options.out is None and not options.quick:
        options.out = ROOT / "bench" / "results"
    torch.set_num_threads(1)
    lengths = _QUICK if options.quick else Lengths()
    today = date.today().isoformat()
    stem = f"{today}-{as_file_name(cpu_name())}-end-to-end"
    earlier = None if options.out is None else options.out / f"{stem}.json"
    known = json.loads(earlier.read_text())["results"] if earlier is not None and earlier.exists() else {}
    disturbance = Disturbance()
    absent: dict[str, str] = {}
    for name, run in chosen.items():
        known.pop(name, None)
        try:
            known[name] = measure(run, lengths)
        except AbsentError as reason:
            absent[name] = str(reason)
    results = {name: known[name] for name in RUNS if name in known}
    header = {
        "date": today,
        "command": shlex.join(["python", *sys.argv]),
        **describe_machine(_DISTRIBUTIONS),
        "method": f"one thread; {lengths.turns} turns of {lengths.turn_steps} steps a side, "
        f"after {lengths.warmup_steps} steps that are not counted; medians, the gain that of the rounds' ratios; "
        "buffer and update timed around each call; "
        "both sides end in the same parameters, bit for bit",
        "disturbance": str(disturbance),
    }
    sections = "# Whole training runs, measured", bullets(header), to_table(results, absent), _NOTE
    markdown = "\n\n".join(sections) + "\n"
    sys.stdout.write(markdown)
    if options.out is not None:
        write(options.out, stem, markdown, {"header": header, "results": results, "absent": absent})


if __name__ == "__main__":
    main()
