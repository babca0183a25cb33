# SPDX-License-Identifier: MIT
"""Malformed steps: SB3's own error, and nothing is stored; what SB3 takes is stored as by SB3's class."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from sb3_support import ACTIONS, BOX, DICT, OBSERVATIONS, Steps, Twins, assert_same, generators
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv

import fastreplay.cleanrl
import fastreplay.sb3

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = ("obs", "next_obs", "action", "reward", "done", "infos")

# What may become of an argument (n_envs, ...).
CHANGES: dict[str, Callable[[Any], Any]] = {
    "None": lambda _: None,
    "a number": lambda _: 1.5,
    "a flag": lambda _: True,
    "a string": lambda _: "abc",
    "a dict": lambda _: {"a": 1},
    "an object": lambda _: object(),
    "nothing": lambda value: value[:0],
    "one fewer": lambda value: value[:-1],
    "one more": lambda value: np.concatenate([value, value[:1]]) if isinstance(value, np.ndarray) else [*value, {}],
    "the first": lambda value: value[:1],
    "the first's": lambda value: value[0],
    "twice": lambda value: np.concatenate([value, value]) if isinstance(value, np.ndarray) else [*value, *value],
    "an axis before": lambda value: value[None],
    "an axis after": lambda value: value[..., None],
    "flat": lambda value: value.ravel(),
    "turned": lambda value: value.T,
    "a list": lambda value: value.tolist(),
    "a tuple": tuple,
    "objects": lambda value: np.array(value, dtype=object),
    "strings": lambda value: value.astype("U8"),
    "complex": lambda value: value.astype("c8"),
    "float16": lambda value: value.astype("f2"),
    "int64": lambda value: value.astype("i8"),
    "swapped": lambda value: value.astype(value.dtype.newbyteorder()),
    "strided": lambda value: np.repeat(value, 2, axis=0)[::2],
    "NaN": lambda value: np.full(value.shape, np.nan),
    "huge": lambda value: np.full(value.shape, 1e300),
    "masked": lambda value: np.ma.masked_array(value, mask=value > 0),
    "a memoryview": memoryview,
}
INFOS: dict[str, Callable[[Any], Any]] = {
    "timeouts": lambda value: np.ones(len(value), np.float32),
    "a dict of timeouts": lambda value: {"TimeLimit.truncated": np.ones(len(value), bool)},
    "Nones": lambda value: [None] * len(value),
    "strings": lambda value: ["abc"] * len(value),
    "a generator": lambda value: (info for info in value),
    "an array of dicts": lambda value: np.array(value, dtype=object),
    "timeouts that are strings": lambda value: [{"TimeLimit.truncated": "yes"} for _ in value],
    "timeouts that are numbers": lambda value: [{"TimeLimit.truncated": 0.5} for _ in value],
    "timeouts that are arrays": lambda value: [{"TimeLimit.truncated": np.array([1.0])} for _ in value],
    "timeouts that are None": lambda value: [{"TimeLimit.truncated": None} for _ in value],
    "timeouts that are lists": lambda value: [{"TimeLimit.truncated": [1, 2]} for _ in value],
}


def prepared(name: str, space: str, action: str, n_envs: int, **options: Any) -> tuple[Twins, Steps]:
    """Make twins whose rows are all filled, each with some timeout, and are about to be overwritten."""
    observation = DICT if space == "dict" else OBSERVATIONS[space]
    twins = Twins(name, 5 * n_envs, observation, ACTIONS[action], "cpu", n_envs, **options)
    steps = Steps(observation, ACTIONS[action], n_envs)
    for _ in range(7):
        *values, _infos = steps.draw()
        twins.call("add", *values, [{"TimeLimit.truncated": True}] * n_envs)
    return twins, steps


def step_of(steps: Steps, n_envs: int) -> dict[str, Any]:
    reward, done = np.arange(n_envs, dtype=np.float32) + 1, np.ones(n_envs, np.float32)
    infos: list[dict[str, Any]] = [{} for _ in range(n_envs)]
    rows = (steps.rows(steps.observation), steps.rows(steps.observation), steps.rows(steps.action), reward, done, infos)
    return dict(zip(NAMES, rows, strict=True))


@pytest.mark.share(2)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("space", [*OBSERVATIONS, "dict"])
@pytest.mark.parametrize("argument", NAMES)
def test_each_argument_malformed(argument: str, space: str, n_envs: int) -> None:
    name = "DictReplayBuffer" if space == "dict" else "ReplayBuffer"
    for action in ("box", "discrete") if argument == "action" else ("box",):
        twins, steps = prepared(name, space, action, n_envs)
        for change in [*CHANGES.values(), *(INFOS.values() if argument == "infos" else [])]:
            check(twins, steps, n_envs, argument, change)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"handle_timeout_termination": False},
        {"handle_timeout_termination": False, "optimize_memory_usage": True},
    ],
    ids=["no timeouts", "shared observations"],
)
def test_each_argument_malformed_with_options(options: dict[str, Any], n_envs: int) -> None:
    for argument in NAMES:
        twins, steps = prepared("ReplayBuffer", "box", "box", n_envs, **options)
        for change in [*CHANGES.values(), *(INFOS.values() if argument == "infos" else [])]:
            check(twins, steps, n_envs, argument, change)


def check(twins: Twins, steps: Steps, n_envs: int, argument: str, change: Callable[[Any], Any]) -> None:
    """Add a step with one argument changed to both, or with one part of it; error and arrays are compared."""
    step = step_of(steps, n_envs)
    value = step[argument]
    variants = [change]
    if isinstance(value, dict):
        variants = [lambda rows, key=key: {**rows, key: change(rows[key])} for key in value]  # type: ignore[misc]
        variants += [lambda rows, key=key: {k: v for k, v in rows.items() if k != key} for key in value]  # type: ignore[misc]
    for variant in variants:
        try:
            step[argument] = variant(copy.copy(value))
        except (TypeError, ValueError, AttributeError, IndexError):
            continue  # there is no such variant of it
        twins.do(lambda buffer: buffer.add(*copied(step)))
    twins.call("sample", 4)


def copied(step: dict[str, Any]) -> list[Any]:
    """Copy what a call may change; a generator is made anew."""
    return [
        iter([{}] * 3) if hasattr(value, "send") else value if isinstance(value, memoryview) else copy.deepcopy(value)
        for value in step.values()
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["ReplayBuffer", "DictReplayBuffer", "NStepReplayBuffer"])
@pytest.mark.parametrize("n_envs", [1, 2, 3, 4, 0, -1, 7])
def test_another_number_of_environments(name: str, n_envs: int) -> None:
    """Set on a buffer that was made for 3."""
    twins, steps = prepared(name, "dict" if name == "DictReplayBuffer" else "box", "box64", 3)
    twins.do(lambda buffer: setattr(buffer, "n_envs", n_envs))
    for count in (3, n_envs):
        if count < 1:
            continue
        steps.n_envs = count
        twins.call("add", *step_of(steps, count).values())
    twins.call("sample", 5)
    twins.do(lambda buffer: setattr(buffer, "n_envs", 3))
    steps.n_envs = 3
    twins.call("add", *step_of(steps, 3).values())
    twins.call("sample", 5)


@pytest.mark.parametrize("infos", [None, [], [{}], np.zeros(2), {}, "ab"], ids=repr)
def test_no_timeout_of_an_older_row_is_kept(infos: Any) -> None:
    """Either the step is refused as by SB3, or the row's timeouts are those of the infos."""
    twins, steps = prepared("ReplayBuffer", "box", "box", 2)
    assert twins.ours.timeouts.all()
    *values, _ = step_of(steps, 2).values()
    row = twins.ours.pos
    result = twins.call("add", *values, infos)
    if result is None:
        assert not twins.ours.timeouts[row].any()
    else:
        assert twins.ours.pos == row


@pytest.mark.parametrize(
    ("size", "n_envs", "error", "message"),
    [
        *((size, 1, MemoryError, f"buffer_size: {size} transitions would take [0-9,]+ bytes") for size in
          (2**50, 2**61, 2**63, 2**64, 2**70)),
        (10, 2**62, MemoryError, "buffer_size: .* would take"),
        (10, -1, ValueError, "n_envs: expected at least 1, got -1"),
        (10, 0, ValueError, "n_envs: expected at least 1, got 0"),
        (10.0, 1, TypeError, "buffer_size: expected an integer, got float 10.0"),
        (10, 2.0, TypeError, "expected an integer|cannot be interpreted as an integer"),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be_had(size: Any, n_envs: Any, error: type[Exception], message: str) -> None:
    for cls in (fastreplay.sb3.ReplayBuffer, fastreplay.cleanrl.ReplayBuffer):
        with pytest.raises(error, match=message):
            cls(size, BOX, ACTIONS["box"], "cpu", n_envs)


class GoalTwins(Twins):
    """HerReplayBuffers, SB3's and ours, on the same steps."""

    def __init__(self, n_envs: int, **options: Any) -> None:
        env = DummyVecEnv([GoalEnv])
        self._generators = generators()
        args = (5 * n_envs, GoalEnv.observation_space, GoalEnv.action_space, env, "cpu", n_envs)
        self.buffers = [HerReplayBuffer(*args, **options), fastreplay.sb3.HerReplayBuffer(*args, **options)]

    def do(self, action: Callable[[Any], Any]) -> Any:
        before = self.episodes(self.ours)
        cursor = self.ours.pos, self.ours.full

        def act(buffer: Any) -> Any:
            try:
                return action(buffer)
            except Exception:
                if buffer is self.theirs:  # SB3 looks at `done` when the step is stored and the cursor has moved
                    buffer.pos, buffer.full = cursor
                raise

        result = super().do(act)
        if type(result) is tuple and result[:1] == ("raised",):
            assert_same(before, self.episodes(self.ours))
            for name, array in before.items():
                getattr(self.theirs, name)[...] = array
        assert_same(self.episodes(self.theirs), self.episodes(self.ours))
        return result

    @staticmethod
    def episodes(buffer: Any) -> dict[str, Any]:
        return {name: np.array(getattr(buffer, name)) for name in ("ep_start", "ep_length", "_current_ep_start")}


class GoalEnv(gym.Env[Any, Any]):
    """Rewards distance."""

    observation_space = spaces.Dict(dict.fromkeys(("observation", "achieved_goal", "desired_goal"), BOX))
    action_space = ACTIONS["box"]

    def compute_reward(self, achieved: Any, desired: Any, infos: Any) -> Any:
        return -np.linalg.norm(achieved - desired, axis=-1) * len(infos)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("copy_info_dict", [False, True])
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("argument", NAMES)
def test_goals_malformed(argument: str, n_envs: int, copy_info_dict: bool) -> None:
    twins = GoalTwins(n_envs, copy_info_dict=copy_info_dict)
    steps = Steps(GoalEnv.observation_space, GoalEnv.action_space, n_envs)

    def add(*, is_end: bool) -> None:
        values = step_of(steps, n_envs)
        values["done"][...] = is_end
        twins.call("add", *values.values())

    for i in range(7):
        add(is_end=i % 3 == 0)
    for i, change in enumerate([*CHANGES.values(), *(INFOS.values() if argument == "infos" else [])]):
        check(twins, steps, n_envs, argument, change)
        add(is_end=i % 3 == 0)
