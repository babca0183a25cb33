# SPDX-License-Identifier: MIT
# ruff: noqa: NPY002  what SB3 draws from
"""How many steps per second do whole SB3 training runs make, with its own classes and with fastreplay.sb3's?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch
from absence import AbsentError
from experiment import Contestant, Contestants, Experiment, Question, Result, itself
from gymnasium import spaces
from render import NONE, Columns, Table, by_title, number, ratio, speedups
from stable_baselines3.dqn import dqn
from stable_baselines3.sac import sac
from stable_baselines3.td3 import td3
from timing import SECONDS

import fastreplay.sb3

_PARTS = ("add", "sample", "target update")
_SIDES = {"sb3": "SB3", "fastreplay": "ours"}
_LEARNING_STARTS = 300
_TURN_STEPS, _WARMUP_STEPS = 40, _LEARNING_STARTS + 50  # few, so that both sides have the machine in the same mood
_QUICK_TURN_STEPS, _QUICK_WARMUP_STEPS = 4, _LEARNING_STARTS + 4
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


class Agent:
    """A model of one side, trained in stretches whose buffer and update calls are timed."""

    def __init__(self, run: Run, side: str) -> None:
        self.run, self.side = run, side
        self.is_whole = True  # no stretch of training failed
        np.random.seed(0)  # both sides draw the same
        torch.manual_seed(0)
        with ExitStack() as stack:
            self._enter(stack)
            settings = {"policy": "MlpPolicy", "seed": 0, "device": "cpu", **run.settings}
            settings["learning_starts"] = _LEARNING_STARTS
            kind = getattr(stable_baselines3, run.algorithm)
            self.model = kind(env=run.make_env(), **settings)
        self._states = np.random.get_state(), torch.get_rng_state()

    def learn(self, steps: int) -> dict[str, float]:
        """Go on with the training and its random numbers.

        Returns:
            Seconds a step: of everything, and of each part.
        """
        self.is_whole = False
        parts = dict.fromkeys(_PARTS, 0.0)
        buffer = self.model.replay_buffer
        np.random.set_state(self._states[0])
        torch.set_rng_state(self._states[1])
        with ExitStack() as stack:
            self._enter(stack)
            for owner, name, part in (
                (buffer, "add", "add"),
                (buffer, "sample", "sample"),
                (self.run.module, "polyak_update", "target update"),
            ):
                stack.enter_context(patch.object(owner, name, _timed(getattr(owner, name), parts, part)))
            start = time.perf_counter()
            self.model.learn(steps, reset_num_timesteps=False)
            seconds = time.perf_counter() - start
        self._states = np.random.get_state(), torch.get_rng_state()
        self.is_whole = True
        return {measure: taken / steps for measure, taken in ({SECONDS: seconds} | parts).items()}

    def parameters(self) -> dict[str, bytes]:
        return {name: tensor.numpy().tobytes() for name, tensor in self.model.policy.state_dict().items()}

    def _enter(self, stack: ExitStack) -> None:
        if self.side == "fastreplay":
            stack.enter_context(fastreplay.sb3.accelerate())


def _timed(function: Any, parts: dict[str, float], part: str) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = function(*args, **kwargs)
        parts[part] += time.perf_counter() - start
        return result

    return wrapper


def _contestants(run: Run, turn_steps: int, warmup_steps: int) -> Contestants:
    """Return both sides, of one seed: they must end in the same parameters."""
    agents: dict[str, Agent] = {}

    def make(side: str) -> Contestant:
        if side != "sb3" and "sb3" not in agents:
            reason = "there is nothing to compare with"
            raise AbsentError(reason)
        agent = Agent(run, side)
        agent.learn(warmup_steps)
        agents[side] = agent
        check = same_parameters if side == "fastreplay" else lambda: None
        return Contestant(partial(agent.learn, turn_steps), check=check, clock=itself)

    def same_parameters() -> None:
        if agents["sb3"].is_whole:
            theirs, ours = (agents[side].parameters() for side in _SIDES)
            assert theirs == ours, f"{run.title}: the two do not end in the same parameters"

    return {side: partial(make, side) for side in _SIDES}


def _tables(results: Sequence[Result]) -> list[Table]:
    def steps_per_s(result: Result, side: str) -> str:
        seconds = result.median(side)
        return NONE if seconds is None else number(1 / seconds)

    columns: Columns = {
        "steps/s SB3": partial(steps_per_s, side="sb3"),
        "ours": partial(steps_per_s, side="fastreplay"),
        "gain": speedups("sb3"),
        "by the parts": _gain_by_parts,
        **{f"{part}: SB3 → ours": partial(_shares, parts=(part,)) for part in _PARTS},
        "all three: SB3 → ours": partial(_shares, parts=_PARTS),
    }
    return [Table("", _NOTE, "run", by_title(results), columns)]


def _shares(result: Result, parts: Sequence[str]) -> str:
    def share(side: str) -> str:
        turns = result.readings.get(side, ())
        return f"{sum(median(turn[part] / turn[SECONDS] for turn in turns) for part in parts):.2%}" if turns else NONE

    return " → ".join(map(share, _SIDES))


def _gain_by_parts(result: Result) -> str:
    """Return what SB3's runs would gain from the time saved in the timed parts alone."""
    whole = result.median("sb3")
    saved = 0.0
    for part in _PARTS:
        theirs, ours = (result.median(side, part) for side in _SIDES)
        if theirs is None or ours is None or whole is None:
            return NONE
        saved += (theirs - ours) / whole
    return ratio(1 / (1 - saved))


def _experiments(is_quick: bool) -> list[Experiment]:
    steps = (_QUICK_TURN_STEPS, _QUICK_WARMUP_STEPS) if is_quick else (_TURN_STEPS, _WARMUP_STEPS)
    return [
        Experiment(name, run.title, partial(_contestants, run, *steps), rivals=["sb3"], unit="s a step")
        for name, run in RUNS.items()
    ]


QUESTION = Question(
    "Whole training runs",
    _experiments,
    _tables,
    {**_SIDES, "fastreplay": "fastreplay"},
    distributions=("fastreplay", "stable-baselines3", "torch", "numpy", "gymnasium", "mujoco"),
    rounds=(10, 0.0),
    quick_rounds=(2, 0.0),
    method=f"one thread; a round is {_TURN_STEPS} steps ({_QUICK_TURN_STEPS} with --quick), after {_WARMUP_STEPS} that "
    "are not counted; buffer and update timed around each call; both sides end in the same parameters, bit for bit",
)
