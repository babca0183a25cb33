# SPDX-License-Identifier: MIT
"""Refused calls of the adapters that draw by priority."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from refusals import Call, Case, Scene, attempt, cases, numpy_state
from refusals_adapters import filled, going_on

from fastreplay.cleanrl import PrioritizedReplayBuffer
from fastreplay.sb3 import DQN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# ---- CleanRL's ----

SHAPE = (2, 3)
RAINBOW = "cleanrl.PrioritizedReplayBuffer"


def frames_step(number: int, **changes: Any) -> dict[str, Any]:
    """Give a step of an environment of frames, some of it changed."""
    rng = np.random.default_rng(number)
    obs, next_obs = rng.integers(0, 256, (2, 1, *SHAPE), dtype=np.uint8)
    values = {"obs": obs, "action": np.array([number % 4]), "reward": rng.normal(size=1), "next_obs": next_obs}
    return {**values, "done": np.array([number % 4 == 3]), **changes}


def rainbow(count: int = 18) -> Scene:
    """Make CleanRL's prioritized buffer, full once over where `count` says so, with a transition half made."""
    np.random.seed(11)
    b = PrioritizedReplayBuffer(7, SHAPE, "cpu", 3, 0.9)
    for number in range(count):
        b.add(**frames_step(number))
    return Scene(b=b)


def rainbow_goes_on(scene: Scene) -> Iterator[Any]:
    b = scene.b
    yield [attempt(partial(b.sample, 5)), b.pos, b.size, b.max_priority]
    yield attempt(partial(b.update_priorities, [0, 1], [3.0, 0.1]))
    for number in range(20, 26):
        yield b.add(**frames_step(number))
    b.beta = 1.0
    yield [attempt(partial(b.sample, 5)), b, numpy_state()]


def making(**changes: Any) -> Callable[[Scene], Call[Any]]:
    options = {"capacity": 7, "obs_shape": SHAPE, "device": "cpu", "n_step": 3, "gamma": 0.9, **changes}
    cls: Any = PrioritizedReplayBuffer
    return lambda _: Call(cls, **options)


def adding(**changes: Any) -> Callable[[Scene], Call[Any]]:
    return lambda s: Call(s.b.add, **frames_step(50, **changes))


def updating(indices: Any, priorities: Any) -> Callable[[Scene], Call[Any]]:
    return lambda s: Call(s.b.update_priorities, indices, priorities)


def with_beta(beta: Any) -> Callable[[], Scene]:
    def make() -> Scene:
        scene = rainbow()
        scene.b.beta = beta
        return scene

    return make


RAINBOW_KINDS: dict[str, dict[str, Any]] = {
    "__init__": {
        "no capacity": (ValueError, making(capacity=0)),
        "too large a capacity": (MemoryError, making(capacity=10**14)),
        "no steps": (ValueError, making(n_step=0)),
        "steps in words": (TypeError, making(n_step="3")),
        "a negative discount": (ValueError, making(gamma=-1)),
        "a negative alpha": (ValueError, making(alpha=-1)),
        "a beta in words": (TypeError, making(beta="0.4")),
        "an eps that is NaN": (ValueError, making(eps=np.nan)),
        "a shape that is none": (TypeError, making(obs_shape=3)),
    },
    "add": {
        "floats for frames": (TypeError, adding(obs=np.zeros(SHAPE))),
        "frames of another shape": (ValueError, adding(next_obs=np.zeros((2, *SHAPE), np.uint8))),
        "two rewards": (ValueError, adding(reward=np.zeros(2))),
        "a reward in words": (TypeError, adding(reward="much")),
        "half an action": (TypeError, adding(action=0.5)),
        "an action beyond 64 bits": (TypeError, adding(action=2**80)),
        "two ends": (ValueError, adding(done=[True, False])),
    },
    "sample": {
        "a negative number": (ValueError, lambda s: Call(s.b.sample, -1)),
        "text": (TypeError, lambda s: Call(s.b.sample, "4")),
    },
    "update_priorities": {
        "a row beyond": (IndexError, updating([1, 7], [1.0, 2.0])),
        "a negative row": (IndexError, updating([1, -1], [1.0, 2.0])),
        "half a row": (TypeError, updating([0.5], [1.0])),
        "too few": (ValueError, updating([1, 2], [1.0])),
        "NaN, last": (ValueError, updating([1, 2], [1.0, np.nan])),
        "words": (TypeError, updating([1], ["much"])),
    },
    "max_priority": {
        "negative": (ValueError, lambda s: Call(setattr, s.b, "max_priority", -1)),
        "text": (TypeError, lambda s: Call(setattr, s.b, "max_priority", "1")),
    },
}
RAINBOW_CASES: list[Case] = [
    *(
        case
        for name, kinds in RAINBOW_KINDS.items()
        for case in cases(f"{RAINBOW}.{name}", rainbow, rainbow_goes_on, kinds)
    ),
    *cases(
        f"{RAINBOW}.sample",
        partial(rainbow, 2),
        rainbow_goes_on,
        {"empty": (ValueError, lambda s: Call(s.b.sample, 4))},
    ),
    *cases(
        f"{RAINBOW}.sample",
        with_beta(-1),
        rainbow_goes_on,
        {"a negative beta": (ValueError, lambda s: Call(s.b.sample, 4))},
    ),
    *cases(
        f"{RAINBOW}.sample", with_beta("1"), rainbow_goes_on, {"no beta": (TypeError, lambda s: Call(s.b.sample, 4))}
    ),
]

# ---- Stable-Baselines3's ----

SB3 = "sb3.PrioritizedReplayBuffer"


def sb3_with_beta(beta: Any) -> Callable[[], Scene]:
    def make() -> Scene:
        scene = filled(SB3)
        scene.b.beta = beta
        return scene

    return make


def model_of(buffer: str) -> Scene:
    """Make a model whose replay buffer is of some class."""
    model = DQN("MlpPolicy", "CartPole-v1", buffer_size=10, policy_kwargs={"net_arch": [4]}, seed=1, device="cpu")
    model.replay_buffer = filled(buffer).b
    return Scene(model=model, buffer=model.replay_buffer, q_net=model.q_net)


UPDATES: dict[str, Any] = {
    "too few": (ValueError, updating([4, 5], [1.0])),
    "NaN, last": (ValueError, updating([4, 5], [1.0, np.nan])),
    "a ticket of nobody": (ValueError, updating([4, 16], [1.0, 2.0])),
    "half a ticket": (TypeError, updating([0.5], [1.0])),
    "words": (TypeError, updating([4], ["much"])),
}
SB3_CASES: list[Case] = [
    *cases(f"{SB3}.update_priorities", partial(filled, SB3), going_on, UPDATES),
    *cases(
        f"{SB3}.sample",
        partial(filled, SB3),
        going_on,
        {
            "a negative beta": (ValueError, lambda s: Call(s.b.sample, 4, beta=-1)),
            "a beta in words": (TypeError, lambda s: Call(s.b.sample, 4, beta="1")),
        },
    ),
    *cases(
        f"{SB3}.beta_at",
        sb3_with_beta(-1),
        going_on,
        {"a negative number": (ValueError, lambda s: Call(s.b.beta_at, 1.0))},
    ),
    *cases(f"{SB3}.beta_at", sb3_with_beta("1"), going_on, {"text": (TypeError, lambda s: Call(s.b.beta_at, 1.0))}),
    *cases(
        "sb3.DQN.train",
        partial(model_of, "sb3.ReplayBuffer"),
        lambda scene: [attempt(partial(scene.model.train, 1))],
        {"a buffer without priorities": (TypeError, lambda s: Call(s.model.train, 1))},
    ),
]

PRIORITIZED: list[Case] = [*RAINBOW_CASES, *SB3_CASES]
