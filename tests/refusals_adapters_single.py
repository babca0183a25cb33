# SPDX-License-Identifier: MIT
"""Refused calls that one adapter has alone, and of what goes with Stable-Baselines3's classes."""

from __future__ import annotations

import operator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from refusals import Call, Case, PlantedError, Scene, attempt, cases, numpy_state
from refusals_adapters import NUM_ENVS, Envs, filled, going_on, step

import fastreplay.sb3

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def without_steps() -> Scene:
    """Make an n-step buffer whose number of steps was set to what Stable-Baselines3 raises at, half-way."""
    scene = filled("sb3.NStepReplayBuffer")
    scene.b.n_steps = 0
    return scene


def with_steps(scene: Scene) -> Iterator[Any]:
    scene.b.n_steps = 3
    yield from going_on(scene)


NO_STEPS: dict[str, Any] = {"no steps": (ValueError, lambda s: Call(s.b.sample, 4))}

HER = "sb3.HerReplayBuffer"
HER_CASES: list[Case] = [
    *cases(
        f"{HER}.sample",
        partial(filled, HER, env=Envs(PlantedError)),
        going_on,
        {"their compute_reward": (PlantedError, lambda s: Call(s.b.sample, 4))},
        ignored=("np.random",),
    ),
    *cases(
        f"{HER}.ep_start",
        partial(filled, HER),
        going_on,
        {"another shape": (ValueError, lambda s: Call(setattr, s.b, "ep_start", np.ones((3, 3), np.int64)))},
    ),
    *cases(
        f"{HER}.ep_length",
        partial(filled, HER),
        going_on,
        {
            "another shape": (ValueError, lambda s: Call(setattr, s.b, "ep_length", np.ones((3, 3), np.int64))),
            "text": (ValueError, lambda s: Call(setattr, s.b, "ep_length", "long")),
        },
    ),
    *cases(
        f"{HER}.set_env",
        partial(filled, HER),
        going_on,
        {"a second one": (ValueError, lambda s: Call(s.b.set_env, Envs()))},
    ),
]


# ---- CleanRL's ----

CLEANRL = "cleanrl.ReplayBuffer"


def ended(autoreset: str, count: int = 6) -> Scene:
    """Make CleanRL's buffer, in which both environments ended with the last step."""
    name = "cleanrl.ReplayBuffer"
    scene = filled(name, 0, autoreset=autoreset)
    for number in range(count):
        scene.b.add(**step(name, number, done=np.zeros(NUM_ENVS, bool), infos={}))
    scene.last = step(name, 40, done=np.ones(NUM_ENVS, bool))
    scene.b.add(**scene.last)
    return scene


def half_ended() -> Scene:
    """Make CleanRL's buffer, in which the first environment ended with the last step, and is to reset."""
    scene = filled(CLEANRL, 0, autoreset="next_step")
    scene.last = step(CLEANRL, 40, done=np.array([True, False]), infos={})
    scene.b.add(**scene.last)
    return scene


def after_end(scene: Scene, **changes: Any) -> Call[Any]:
    """Call add with the step in which the first environment resets, something in it being refused."""
    return Call(scene.b.add, **step(CLEANRL, 41, obs=scene.last["next_obs"], infos={}, **changes))


HALF_ENDED: dict[str, Any] = {
    "a reward's shape after an end": (ValueError, lambda s: after_end(s, reward=np.zeros(NUM_ENVS + 1))),
    "an action's shape after an end": (ValueError, lambda s: after_end(s, action=np.zeros((NUM_ENVS, 3)))),
}


def resetting(scene: Scene) -> Iterator[Any]:
    """Go on as environments do that reset in the next step."""
    obs = scene.last["next_obs"]
    for number in range(20, 29):
        values = step(scene.name, number, obs=obs, done=np.array([number % 2 == 0, number % 3 == 0]))
        obs = values["next_obs"]
        yield scene.b.add(**values)
    yield [attempt(partial(scene.b.sample, 9)), scene.b, numpy_state()]


def all_resets() -> Scene:
    """Make a buffer that stores nothing but resets."""
    name = "cleanrl.ReplayBuffer"
    scene = filled(name, 0, optimize_memory_usage=True, handle_timeout_termination=False)
    scene.b.add(**step(name, 40, done=np.ones(NUM_ENVS, bool)))
    scene.last = step(name, 41, obs=step(name, 40)["next_obs"])
    scene.b.add(**scene.last)
    scene.b._is_reset[0] = True  # as though the end before it had been overwritten
    return scene


CLEANRL_CASES: list[Case] = [
    *cases(
        f"{CLEANRL}.add",
        partial(ended, "next_step"),
        resetting,
        {
            "no reset in the next step": (ValueError, lambda s: Call(s.b.add, **step(CLEANRL, 41))),
            "infos that tell of a reset": (
                ValueError,
                lambda s: Call(s.b.add, **step(CLEANRL, 41, obs=s.last["next_obs"], infos={"final_obs": 1})),
            ),
            "truncations of another shape": (
                ValueError,
                lambda s: Call(
                    s.b.add, **step(CLEANRL, 41, obs=s.last["next_obs"]), truncations=np.ones(NUM_ENVS + 1, bool)
                ),
            ),
        },
    ),
    *cases(f"{CLEANRL}.add", half_ended, resetting, HALF_ENDED),
    *cases(f"{CLEANRL}.sample", all_resets, resetting, {"only resets": (ValueError, lambda s: Call(s.b.sample, 3))}),
]


# ---- What goes with SB3's classes ----


def two_lists() -> Scene:
    def make(seed: int) -> list[torch.Tensor]:
        return [torch.full(shape, float(seed)) for shape in ((3, 4), (5,), ())]

    return Scene(online=make(1), target=make(2))


def moving_on(scene: Scene) -> Iterator[Any]:
    fastreplay.sb3.polyak_update(scene.online, scene.target, 0.25)
    yield scene


def wrong_form(target: Any) -> Callable[[Scene], Call[Any]]:
    polyak: Any = fastreplay.sb3.polyak_update
    return lambda s: Call(polyak, s.online, target(s), 0.5)


def parts() -> Scene:
    scene = filled("sb3.DictReplayBuffer")
    scene.parts = scene.b.observations
    return scene


COLUMN_CASES: dict[str, Any] = {
    "__setitem__": {
        "unknown": (KeyError, lambda s: Call(operator.setitem, s.parts, "more", np.zeros(3))),
        "another shape": (ValueError, lambda s: Call(operator.setitem, s.parts, "vector", np.ones(3))),
    },
    "__delitem__": {"any": (TypeError, lambda s: Call(operator.delitem, s.parts, "vector"))},
    "clear": {"always": (TypeError, lambda s: Call(s.parts.clear))},
    "pop": {"any": (TypeError, lambda s: Call(s.parts.pop, "vector"))},
    "popitem": {"any": (TypeError, lambda s: Call(s.parts.popitem))},
    "setdefault": {"any": (TypeError, lambda s: Call(s.parts.setdefault, "more", np.zeros(3)))},
    "update": {
        "another shape, last": (
            ValueError,
            lambda s: Call(s.parts.update, {"vector": s.parts["vector"] + 1, "room": np.zeros(3)}),
        ),
        "unknown, last": (KeyError, lambda s: Call(s.parts.update, vector=s.parts["vector"] + 1, more=np.zeros(3))),
    },
}

SINGLE: list[Case] = [
    *HER_CASES,
    *cases("sb3.NStepReplayBuffer.sample", without_steps, with_steps, NO_STEPS, ignored=("np.random",)),
    *CLEANRL_CASES,
    *(case for name, kinds in COLUMN_CASES.items() for case in cases(f"sb3.Columns.{name}", parts, going_on, kinds)),
    *cases(
        "sb3.polyak_update",
        two_lists,
        moving_on,
        {
            "fewer targets": (ValueError, wrong_form(lambda s: [])),
            "no targets": (TypeError, wrong_form(lambda _: 3)),
        },
    ),
]
