# SPDX-License-Identifier: MIT
"""How long do Stable-Baselines3's buffers and its target update take, beside fastreplay.sb3's?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, TypeAlias

import numpy as np
import torch
from absence import AbsentError
from experiment import Contestant, Contestants, Experiment, Question, Result
from gymnasium import spaces
from nets import NETS
from render import Table, by_title, medians, speedups
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common import buffers as sb3_buffers
from stable_baselines3.common.utils import polyak_update
from timing import Call

import fastreplay.sb3
from fastreplay.adapters.random_integers import integers_of

Make: TypeAlias = Callable[[int], Contestants]  # from by how much to shrink what is filled

_QUICK_SHRINK = 50
_ADD_STEPS = 64  # steps that one timed call of `add` goes through
_EPISODE_STEPS = 50
_LABELS = {
    "sb3": "SB3",
    "fastreplay": "fastreplay",
    "native": '`rng="native"`',
    "ceiling": "rewards and tensors alone",
}

BOX = spaces.Box(-1, 1, (17,), np.float32)
ACTION = spaces.Box(-1, 1, (6,), np.float32)
IMAGE = spaces.Box(0, 255, (4, 84, 84), np.uint8)
GOALS = spaces.Dict(
    {
        "observation": spaces.Box(-1, 1, (10,), np.float64),
        "achieved_goal": spaces.Box(-1, 1, (3,), np.float64),
        "desired_goal": spaces.Box(-1, 1, (3,), np.float64),
    }
)


def assert_same(theirs: Any, ours: Any) -> None:
    """Compare minibatches bit for bit."""
    if isinstance(theirs, dict):
        assert theirs.keys() == ours.keys()
        for key in theirs:
            assert_same(theirs[key], ours[key])
    elif isinstance(theirs, tuple):
        for mine, yours in zip(theirs, ours, strict=True):
            assert_same(mine, yours)
    elif theirs is None:
        assert ours is None
    else:
        theirs, ours = np.asarray(theirs), np.asarray(ours)
        assert (theirs.dtype, theirs.shape) == (ours.dtype, ours.shape)
        assert theirs.tobytes() == ours.tobytes()


# Inserting


def steps(num_envs: int) -> list[tuple[Any, ...]]:
    """Return steps as SB3's vector environments hand them out, with infos."""
    rng = np.random.default_rng(0)
    return [
        (
            rng.normal(size=(num_envs, 17)).astype(np.float32),
            rng.normal(size=(num_envs, 17)).astype(np.float32),
            rng.uniform(-1, 1, size=(num_envs, 6)).astype(np.float32),
            rng.normal(size=num_envs).astype(np.float32),
            rng.random(num_envs) < 0.01,
            [{"TimeLimit.truncated": bool(rng.random() < 0.01)} for _ in range(num_envs)],
        )
        for _ in range(_ADD_STEPS)
    ]


def adding(num_envs: int) -> Make:
    # Not of a whole number of calls, so that rows change their contents from lap to lap.
    return lambda shrink: {
        name: partial(_adder, name, num_envs, num_envs * (1_000_000 // num_envs // shrink + 7))
        for name in ("sb3", "fastreplay")
    }


def _adder(name: str, num_envs: int, size: int) -> Contestant:
    kinds = {"sb3": sb3_buffers.ReplayBuffer, "fastreplay": fastreplay.sb3.ReplayBuffer}
    rows = steps(num_envs)

    def adding_to(buffer: Any) -> Call:
        def call() -> None:
            for row in rows:
                buffer.add(*row)

        return call

    def small(name: str) -> Any:
        buffer = kinds[name](50 * num_envs, BOX, ACTION, "cpu", num_envs)
        adding_to(buffer)()
        return buffer

    def check() -> None:
        theirs = _reference(partial(small, "sb3"))
        ours = small(name)
        for array in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts", "pos"):
            assert_same(getattr(theirs, array), getattr(ours, array))

    buffer: Any = kinds[name](size, BOX, ACTION, "cpu", num_envs)
    buffer.observations[...] = buffer.next_observations[...] = 1  # every page is there
    for array in ("actions", "rewards", "dones", "timeouts"):
        getattr(buffer, array)[...] = 0
    return Contestant(adding_to(buffer), _ADD_STEPS, check)


# Sampling


def filled(buffer: Any) -> Any:
    """Fill SB3's buffer to the brim, through its arrays."""
    rng = np.random.default_rng(0)
    for name in ("observations", "next_observations", "actions"):
        arrays = getattr(buffer, name, ())
        for array in arrays.values() if isinstance(arrays, dict) else [arrays]:
            for part in array if isinstance(array, tuple) else np.array_split(array, 64):
                part[...] = rng.integers(0, 200, size=part.shape, dtype=np.uint8)
    buffer.rewards[...] = rng.normal(size=buffer.rewards.shape)
    buffer.dones[...] = rng.random(buffer.dones.shape) < 0.001
    buffer.timeouts[...] = buffer.dones * (rng.random(buffer.dones.shape) < 0.5)
    buffer.full, buffer.pos = True, 7
    return buffer


def sampling(
    name: str, space: Any, action: Any, capacity: int, batch_size: int, *, native: bool = False, **options: Any
) -> Make:
    def make(shrink: int) -> Contestants:
        def theirs() -> Any:
            return filled(getattr(sb3_buffers, name)(capacity // shrink, space, action, "cpu", **options))

        return _samplers(theirs, getattr(fastreplay.sb3, name).from_sb3, batch_size, native=native)

    return make


def _reference(theirs: Callable[[], Any]) -> Any:
    """Return what SB3's side gives, for ours to be compared with: no fault of ours where that fails."""
    try:
        return theirs()
    except Exception as error:
        reason = f"SB3 fails: {type(error).__name__}: {error}"
        raise AbsentError(reason) from error


def _samplers(
    make: Callable[[], Any], converted: Callable[[Any], Any], batch_size: int, *, native: bool = False
) -> Contestants:
    @cache
    def theirs() -> Any:
        buffer = make()
        buffer.sample(batch_size)
        return buffer

    @cache
    def ours() -> Any:
        return converted(_reference(theirs))

    def own_draws() -> Any:
        buffer = converted(_reference(theirs))
        buffer._integers = integers_of("native")
        return buffer

    def check() -> None:
        for seed in range(8):
            samples = []
            for buffer in (theirs(), ours()):
                np.random.seed(seed)
                samples.append((tuple(buffer.sample(batch_size)), np.random.randint(2**31)))
            assert_same(*samples)

    def sampler(made: Callable[[], Any], check: Callable[[], None] = lambda: None) -> Contestant:
        return Contestant(partial(made().sample, batch_size), check=check)

    makers = {"sb3": partial(sampler, theirs), "fastreplay": partial(sampler, ours, check)}
    return {**makers, "native": partial(sampler, own_draws)} if native else makers


class Goals:
    """What a hindsight buffer asks of a vector environment: the rewards of exchanged goals."""

    num_envs = 1

    def env_method(self, name: str, achieved: Any, desired: Any, infos: Any, indices: Any) -> list[Any]:  # noqa: ARG002
        assert name == "compute_reward"
        return [-(np.linalg.norm(achieved - desired, axis=-1) > 0.05).astype(np.float32)]


def hindsight(shrink: int) -> Contestants:
    batch_size = 256
    capacity = 1_000_000 // shrink

    def theirs() -> Any:
        buffer: Any = filled(HerReplayBuffer(capacity, GOALS, ACTION, env=Goals(), device="cpu"))  # type: ignore[arg-type]
        starts = np.arange(capacity) // _EPISODE_STEPS * _EPISODE_STEPS
        buffer.ep_start[...] = starts[:, None]
        buffer.ep_length[...] = np.minimum(_EPISODE_STEPS, capacity - starts)[:, None]
        buffer.pos = 0
        return buffer

    def ceiling() -> Contestant:
        """Only what the environment and torch do of a call: no buffer can save it."""
        buffer: Any = fastreplay.sb3.HerReplayBuffer.from_sb3(_reference(theirs))
        goals = np.zeros((int(buffer.her_ratio * batch_size), 3))

        def call() -> Any:
            infos: list[dict[str, Any]] = [{} for _ in goals]
            rewards = buffer.env.env_method("compute_reward", goals, goals, infos, indices=[0])
            return rewards, buffer._fresh_tensors(buffer._table.pool.take(batch_size))

        return Contestant(call)

    return {**_samplers(theirs, fastreplay.sb3.HerReplayBuffer.from_sb3, batch_size, native=True), "ceiling": ceiling}


# Target updates


def target_update(_: int) -> Contestants:
    net = next(net for net in NETS if net.key == "twin-critic")
    theirs, ours = net.pair(), net.pair()  # equal, as always

    def update(function: Callable[..., None], target: torch.nn.Module, online: torch.nn.Module) -> None:
        function(online.parameters(), target.parameters(), 0.005)

    their_call, our_call = partial(update, polyak_update, *theirs), partial(update, fastreplay.sb3.polyak_update, *ours)

    def check() -> None:
        for mine, yours in zip(ours[0].parameters(), theirs[0].parameters(), strict=True):
            mine.data.copy_(yours.data)  # which moved more often, or less
        for _ in range(3):
            their_call()
            our_call()
        for mine, yours in zip(ours[0].parameters(), theirs[0].parameters(), strict=True):
            assert_same(yours.detach(), mine.detach())

    return {"sb3": partial(Contestant, their_call), "fastreplay": partial(Contestant, our_call, check=check)}


WORKS: tuple[tuple[str, str, Make], ...] = (
    ("add-1", "`add` cheetah, 1 env, with infos", adding(1)),
    ("add-16", "`add` cheetah, 16 envs, with infos", adding(16)),
    ("sample-cheetah", "`sample(256)` cheetah", sampling("ReplayBuffer", BOX, ACTION, 1_000_000, 256, native=True)),
    ("sample-dict", "`sample(256)` Dict of three parts", sampling("DictReplayBuffer", GOALS, ACTION, 1_000_000, 256)),
    (
        "sample-atari",
        "`sample(32)` atari, 4 stacked frames",
        sampling("ReplayBuffer", IMAGE, spaces.Discrete(6), 20_000, 32),
    ),
    (
        "sample-atari-shared",
        "the same, `optimize_memory_usage`",
        sampling(
            *("ReplayBuffer", IMAGE, spaces.Discrete(6), 20_000, 32),
            optimize_memory_usage=True,
            handle_timeout_termination=False,
        ),
    ),
    (
        "n-step",
        "n-step (3) `sample(256)` cheetah",
        sampling("NStepReplayBuffer", BOX, ACTION, 1_000_000, 256, n_steps=3),
    ),
    ("her", "HER `sample(256)`, capacity 10⁶, full", hindsight),
    ("polyak", "`polyak_update` of SAC's twin critic", target_update),
)


def at_scale(shrink: int = 1) -> list[Experiment]:
    """Return the experiments with their capacities divided by `shrink`."""
    return [Experiment(f"sb3-{key}", title, partial(make, shrink), rivals=["sb3"]) for key, title, make in WORKS]


def _tables(results: Sequence[Result]) -> list[Table]:
    note = "µs per call, medians over rounds; ratios are medians of the rounds' ratios."
    ours = [name for name in _LABELS if name != "sb3" and any(result.series(name) for result in results)]
    columns = {**medians(results, _LABELS), **{f"SB3 / {_LABELS[name]}": speedups("sb3", name) for name in ours}}
    return [Table("", note, "work", by_title(results), columns)]


QUESTION = Question(
    "fastreplay.sb3 against Stable-Baselines3",
    lambda is_quick: at_scale(_QUICK_SHRINK if is_quick else 1),
    _tables,
    _LABELS,
    distributions=("fastreplay", "stable-baselines3", "gymnasium", "numpy", "torch"),
    rounds=(31, 5e-3),
    quick_rounds=(2, 5e-5),
    method="one thread; results equal bit for bit",
)
