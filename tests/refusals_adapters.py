# SPDX-License-Identifier: MIT
"""Refused calls that all the buffers have that stand in for Stable-Baselines3's and CleanRL's."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from refusals import Call, Case, PlantedError, Scene, attempt, cases, numpy_state
from sb3_support import BOX, DICT
from stable_baselines3.common import buffers as sb3_buffers

import fastreplay.cleanrl
import fastreplay.sb3

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ACTION = spaces.Box(-1, 1, (2,), np.float32)
GOALS = spaces.Dict({"observation": BOX, "achieved_goal": BOX, "desired_goal": BOX})
SPACES: dict[str, Any] = {
    "sb3.ReplayBuffer": BOX,
    "sb3.DictReplayBuffer": DICT,
    "sb3.NStepReplayBuffer": BOX,
    "sb3.HerReplayBuffer": GOALS,
    "sb3.PrioritizedReplayBuffer": BOX,
    "cleanrl.ReplayBuffer": BOX,
}
CLASSES: dict[str, Any] = {
    **{name: getattr(fastreplay.sb3, name.split(".")[1]) for name in SPACES if name.startswith("sb3.")},
    "cleanrl.ReplayBuffer": fastreplay.cleanrl.ReplayBuffer,
}
NUM_ENVS, NUM_ROWS = 2, 6


class Envs:
    """Environments that compute rewards, and normalizers, as far as buffers ask for them."""

    def __init__(self, error: type[BaseException] | None = None) -> None:
        self.error = error

    def env_method(self, _: str, achieved: Any, desired: Any, infos: Any, **__: Any) -> list[Any]:
        if self.error is not None:
            raise self.error("in compute_reward")
        assert len(infos) == len(achieved)
        return [-np.abs(achieved - desired).sum(axis=1)]

    def normalize_obs(self, observations: Any) -> Any:
        raise PlantedError("in normalize_obs")

    def normalize_reward(self, rewards: Any) -> Any:
        raise PlantedError("in normalize_reward")


def arguments(name: str, **changes: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give a constructor's arguments, some of them changed."""
    options: dict[str, Any] = {"device": "cpu", "n_envs": NUM_ENVS, **changes}
    observation = options.pop("observation", SPACES[name])
    if name == "sb3.HerReplayBuffer":
        options.setdefault("env", Envs())
        options.setdefault("copy_info_dict", True)
    return (NUM_ROWS * NUM_ENVS, observation, options.pop("action", ACTION)), options


def step(name: str, number: int, **changes: Any) -> dict[str, Any]:
    """Give a step of both environments, some of it changed."""
    rng = np.random.default_rng(number)
    ends = number % 3 == 2
    values = {
        "obs": _observation(SPACES[name], rng),
        "next_obs": _observation(SPACES[name], rng),
        "action": rng.uniform(-1, 1, (NUM_ENVS, 2)).astype(np.float32),
        "reward": rng.normal(size=NUM_ENVS).astype(np.float32),
        "done": np.array([ends, ends and number % 2 == 0]),
        "infos": [{"TimeLimit.truncated": ends and number % 2 == 1, "number": number} for _ in range(NUM_ENVS)],
    }
    return {**values, **changes}


def _observation(space: spaces.Space[Any], rng: np.random.Generator) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _observation(part, rng) for key, part in space.spaces.items()}
    shape = (NUM_ENVS, *(space.shape or ()))
    high = 5 if np.dtype(space.dtype).kind in "iu" else 1
    return rng.uniform(0, high, shape).astype(space.dtype)


def filled(name: str, count: int = 8, **options: Any) -> Scene:
    """Make a buffer that is full once over."""
    np.random.seed(11)
    args, keywords = arguments(name, **options)
    b = CLASSES[name](*args, **keywords)
    for number in range(count):
        b.add(**step(name, number))
    np.random.seed(12)
    return Scene(b=b, name=name, space=SPACES[name])


def going_on(scene: Scene) -> Iterator[Any]:
    """Do ten things with a buffer."""
    b, name = scene.b, scene.name
    yield [attempt(partial(b.sample, 5)) for _ in range(2)]
    for number in range(20, 24):
        yield b.add(**step(name, number))
    yield [attempt(partial(b.sample, 4)), b.pos, b.full, b.size()]
    yield b.extend(*zip(*(step(name, number).values() for number in (30, 31)), strict=True))
    b.rewards[1] = 5
    yield [attempt(partial(b.sample, 7)), b]
    yield b.reset()
    yield [b.size(), numpy_state()]


class Info(dict[str, Any]):
    """An info that raises when it is asked."""

    def get(self, *_: Any) -> Any:
        raise PlantedError("in an info")


class Later:
    """An array that raises when it is converted."""

    shape = (NUM_ENVS,)

    def reshape(self, *_: Any) -> Any:
        return self

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise PlantedError("in __array__")


def adding(name: str) -> dict[str, Any]:
    """Give steps of which one part is refused: the later, the more was taken before."""

    def add(**changes: Any) -> Callable[[Scene], Call[Any]]:
        return lambda s: Call(s.b.add, **step(name, 50, **changes))

    other = _observation(SPACES[name], np.random.default_rng(3))
    last = other
    if isinstance(other, dict):
        last = {**other, list(other)[-1]: np.zeros((NUM_ENVS, 99), np.float32)}
        missing: Any = (KeyError, add(next_obs={key: other[key] for key in list(other)[:-1]}))
    else:
        last, missing = np.zeros((NUM_ENVS, 99), np.float32), (Exception, add(next_obs=None))
    kinds = {
        "an observation's shape": (ValueError, add(obs=last)),
        "a next observation's shape": (ValueError, add(next_obs=last)),
        "an action's shape": (ValueError, add(action=np.zeros((NUM_ENVS, 3), np.float32))),
        "an action that is none": (AttributeError, add(action=None)),
        "a reward's shape": (ValueError, add(reward=np.zeros(NUM_ENVS + 1, np.float32))),
        "a reward in words": (ValueError, add(reward=np.array(["a", "b"]))),
        "a done's shape": (ValueError, add(done=np.zeros(NUM_ENVS + 1, bool))),
        "infos that are none": (TypeError, add(infos=None)),
        "infos that are numbers": (TypeError if name == "cleanrl.ReplayBuffer" else AttributeError, add(infos=[3, 4])),
        "too many infos": (ValueError, add(infos=[{}] * (NUM_ENVS + 1))),
        "an info": (PlantedError, add(infos=[{}, Info()])),
        "their reward": (PlantedError, add(reward=Later())),
        "their done": (PlantedError, add(done=Later())),
    }
    if isinstance(other, dict):
        kinds["a part that is missing, last"] = missing
    return kinds


def constructing(name: str) -> dict[str, Any]:
    cls = CLASSES[name]

    def make(**changes: Any) -> Callable[[Scene], Call[Any]]:
        args, options = arguments(name, **changes)
        return lambda s: Call(cls, *args, **options)

    side = spaces.Box(-1, 1, (0,), np.float32)
    kinds: dict[str, Any] = {}
    if name == "sb3.PrioritizedReplayBuffer":
        kinds["a negative alpha"] = (ValueError, make(alpha=-1))
        kinds["a beta in words"] = (TypeError, make(beta="0.4"))
        kinds["an eps that is infinite"] = (ValueError, make(eps=np.inf))
        kinds["no steps"] = (ValueError, make(n_steps=0))
        half = np.dtype(np.longdouble)
        kinds["a dtype that torch lacks"] = (TypeError, make(observation=spaces.Box(-1, 1, (5,), half)))
    else:
        kinds["an unknown rng"] = (ValueError, make(rng="torch"))
    if name == "cleanrl.ReplayBuffer":
        kinds["both options"] = (ValueError, make(optimize_memory_usage=True))
        kinds["an unknown autoreset"] = (ValueError, make(autoreset="never"))
        kinds["a Dict space"] = (NotImplementedError, make(observation=DICT))
        kinds["text for actions"] = (NotImplementedError, make(action=spaces.Text(3)))
        kinds["a side of length 0"] = (ValueError, make(observation=side))
    if name == "sb3.ReplayBuffer":
        kinds["both options"] = (ValueError, make(optimize_memory_usage=True))
    if name in ("sb3.ReplayBuffer", "sb3.NStepReplayBuffer", "sb3.PrioritizedReplayBuffer"):
        kinds["a Dict space"] = (TypeError, make(observation=DICT))
        kinds["a side of length 0"] = (ValueError, make(observation=side))
    if name in ("sb3.NStepReplayBuffer", "sb3.PrioritizedReplayBuffer"):
        kinds["shared observations"] = (
            NotImplementedError,
            make(optimize_memory_usage=True, handle_timeout_termination=False),
        )
    if name in ("sb3.DictReplayBuffer", "sb3.HerReplayBuffer"):
        kinds["shared observations"] = (AssertionError, make(optimize_memory_usage=True))
        kinds["no Dict space"] = (AssertionError, make(observation=BOX))
        kinds["a side of length 0"] = (ValueError, make(observation=spaces.Dict({"a": BOX, "b": side})))
        kinds["a Dict in a Dict"] = (TypeError, make(observation=spaces.Dict({"a": BOX, "b": spaces.Dict({"c": BOX})})))
    if name == "sb3.HerReplayBuffer":
        kinds["an unknown strategy"] = (KeyError, make(goal_selection_strategy="past"))
        kinds["no strategy"] = (AssertionError, make(goal_selection_strategy=3))
    return kinds


def assigning(name: str, column: str) -> dict[str, Any]:
    """Give arrays that are no column."""

    def assign(value: Callable[[Any], Any]) -> Callable[[Scene], Call[Any]]:
        return lambda s: Call(setattr, s.b, column, value(getattr(s.b, column)))

    if column.endswith("observations") and isinstance(SPACES[name], spaces.Dict):
        return {
            "another shape, last part": (
                ValueError,
                assign(lambda views: {**{key: view + 1 for key, view in views.items()}, list(views)[-1]: np.zeros(3)}),
            ),
            "a part that is unknown, last": (
                KeyError,
                assign(lambda views: {**{key: view + 1 for key, view in views.items()}, "more": np.zeros(3)}),
            ),
        }
    return {
        "another shape": (ValueError, assign(lambda view: view[1:] + 1)),
        "another dtype": (ValueError, assign(lambda view: view.astype(np.complex128))),
        "their array": (PlantedError, assign(lambda _: Later())),
    }


def restoring(name: str) -> dict[str, Any]:
    """Give states that are malformed, most of them at their end."""

    def restore(change: Callable[[dict[str, Any]], Any]) -> Callable[[Scene], Call[Any]]:
        def make(scene: Scene) -> Call[Any]:
            other = filled(name, 3).b
            other.dones[0] = 7
            return Call(scene.b.__setstate__, change(dict(other.__getstate__())))

        return make

    kinds = {
        "no state": (ValueError, restore(lambda _: 3)),
        "no cursor": (ValueError, restore(lambda state: {**state, "pos": None})),
        "a cursor beyond the rows": (ValueError, restore(lambda state: {**state, "pos": 99})),
        "fewer rows than arrays": (ValueError, restore(lambda state: {**state, "buffer_size": 4})),
        "no dones": (ValueError, restore(lambda state: {k: v for k, v in state.items() if k != "dones"})),
        "timeouts of another shape": (ValueError, restore(lambda state: {**state, "timeouts": np.zeros(3)})),
        "timeouts of another dtype": (
            ValueError,
            restore(lambda state: {**state, "timeouts": np.zeros((NUM_ROWS, NUM_ENVS), np.int64)}),
        ),
    }
    if name == "sb3.HerReplayBuffer":
        kinds["lengths of another shape"] = (ValueError, restore(lambda state: {**state, "ep_length": np.zeros(3)}))
        kinds["no starts"] = (ValueError, restore(lambda state: {k: v for k, v in state.items() if k != "ep_start"}))
    return kinds


COLUMNS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def of_class(name: str) -> list[Case]:
    """Give the cases that all the classes have."""
    full, empty, here = partial(filled, name), partial(filled, name, 0), partial(cases, go_on=going_on)
    none_stored = RuntimeError if name == "sb3.HerReplayBuffer" else ValueError
    sampling = {
        "a negative number": (ValueError, lambda s: Call(s.b.sample, -1)),
        "text": (TypeError, lambda s: Call(s.b.sample, "4")),
    }
    made = [
        *here(f"{name}.__init__", full, kinds=constructing(name)),
        *here(f"{name}.add", full, kinds=adding(name)),
        *here(f"{name}.__setstate__", full, kinds=restoring(name)),
        *here(f"{name}.extend", full, kinds={"a first step": (ValueError, lambda s: Call(s.b.extend, *_wrong(name)))}),
        *here(f"{name}.sample", empty, kinds={"empty": (none_stored, lambda s: Call(s.b.sample, 4))}),
        *here(f"{name}.sample", full, kinds=sampling),
        *here(f"{name}.to_torch", full, kinds={"text": (TypeError, lambda s: Call(s.b.to_torch, np.array(["a"])))}),
    ]
    for column in COLUMNS:
        made += here(f"{name}.{column}", full, kinds=assigning(name, column))
    if name.startswith("sb3."):
        theirs = {"their normalizer": (PlantedError, lambda s: Call(s.b.sample, 4, env=Envs()))}
        made += here(f"{name}.sample", full, kinds=theirs, ignored=("np.random",))
        wrong = {
            "no buffer": (TypeError, lambda s: Call(CLASSES[name].from_sb3, 3)),
            "another class": (
                TypeError,
                lambda s: Call(CLASSES[name].from_sb3, sb3_buffers.RolloutBuffer(3, BOX, ACTION)),
            ),
        }
        made += here(f"{name}.from_sb3", full, kinds=wrong)
    return made


def _wrong(name: str) -> list[Any]:
    steps = [step(name, 60, reward=np.zeros(NUM_ENVS + 1)), step(name, 61)]
    return [list(values) for values in zip(*(each.values() for each in steps), strict=True)]


ADAPTERS: list[Case] = [case for name in CLASSES for case in of_class(name)]
