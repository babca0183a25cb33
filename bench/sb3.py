# SPDX-License-Identifier: MIT
"""Measure Stable-Baselines3's buffers and target update against fastreplay.sb3's, by turns in one process.

python bench/sb3.py                     all of it, into bench/results/
python bench/sb3.py --only her          works whose name contains "her", printed only
python bench/sb3.py --quick             small buffers and few rounds: does it run at all? Printed only, unless --out
"""

from __future__ import annotations

import argparse
import gc
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from absence import excused, reason_of
from gymnasium import spaces
from judging import Target, median_us, quartiles_us, speedup
from machine import ROOT, Disturbance, as_file_name, cpu_name, describe_machine
from nets import NETS
from output import NONE, bullets, number, ratio, table, write
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common import buffers as sb3_buffers
from stable_baselines3.common.utils import polyak_update
from timing import keep_heap, take_turns, timed_round
from tqdm import tqdm

import fastreplay.sb3

if TYPE_CHECKING:
    from collections.abc import Sequence

Call = Callable[[], Any]

DISTRIBUTIONS = ("fastreplay", "stable-baselines3", "gymnasium", "numpy", "torch")
_QUICK_SHRINK = 50
_ADD_STEPS = 64  # steps that one timed call of `add` goes through
_EPISODE_STEPS = 50
_LABELS = {"sb3": "SB3", "fastreplay": "fastreplay", "native": '`rng="native"`'}

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


@dataclass(frozen=True)
class Contest:
    """The same work done by each: what is timed, and what compares their results."""

    calls: Mapping[str, Call]
    check: Callable[[], None]
    calls_each: int = 1


@dataclass(frozen=True)
class Work:
    """One row of the table; `make` takes by how much to shrink what it fills."""

    key: str
    title: str
    factor: float | None
    make: Callable[[int], Contest]

    @property
    def targets(self) -> tuple[Target, ...]:
        return () if self.factor is None else (Target(self.factor, "sb3"),)


@dataclass
class Result:
    """One work, measured: seconds a call, one number a round, by contestant; or why not."""

    work: Work
    seconds: dict[str, list[float]] = field(default_factory=dict)
    absent: str | None = None


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


def adding(num_envs: int) -> Callable[[int], Contest]:
    def make(shrink: int) -> Contest:
        # Not of a whole number of calls, so that rows change their contents from lap to lap.
        size = num_envs * (1_000_000 // num_envs // shrink + 7)
        buffers = [kind(size, BOX, ACTION, "cpu", num_envs) for kind in _kinds("ReplayBuffer")]
        rows = steps(num_envs)

        def adder(buffer: Any) -> Call:
            def call() -> None:
                for row in rows:
                    buffer.add(*row)

            return call

        def check() -> None:
            small = [kind(50 * num_envs, BOX, ACTION, "cpu", num_envs) for kind in _kinds("ReplayBuffer")]
            for buffer in small:
                adder(buffer)()
            for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts", "pos"):
                assert_same(getattr(small[0], name), getattr(small[1], name))

        for buffer in buffers:  # every page is there
            buffer.observations[...] = 1
            buffer.next_observations[...] = 1
            for name in ("actions", "rewards", "dones", "timeouts"):
                getattr(buffer, name)[...] = 0
        return Contest(dict(zip(("sb3", "fastreplay"), map(adder, buffers), strict=True)), check, _ADD_STEPS)

    return make


def _kinds(name: str) -> tuple[Any, Any]:
    return getattr(sb3_buffers, name), getattr(fastreplay.sb3, name)


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
) -> Callable[[int], Contest]:
    def make(shrink: int) -> Contest:
        theirs = filled(getattr(sb3_buffers, name)(capacity // shrink, space, action, "cpu", **options))
        ours = getattr(fastreplay.sb3, name).from_sb3(theirs)
        return _contest_of_samples(theirs, ours, batch_size, native=native)

    return make


def _contest_of_samples(theirs: Any, ours: Any, batch_size: int, *, native: bool = False) -> Contest:
    buffers = {"sb3": theirs, "fastreplay": ours}
    if native:
        buffers["native"] = own = type(ours)(
            ours.buffer_size, ours.observation_space, ours.action_space, "cpu", rng="native"
        )
        own._ring.overwrite(ours._ring.columns())
        own.pos, own.full = ours.pos, ours.full

    def check() -> None:
        for seed in range(8):
            samples = []
            for buffer in (theirs, ours):
                np.random.seed(seed)
                samples.append((tuple(buffer.sample(batch_size)), np.random.randint(2**31)))
            assert_same(*samples)

    calls = {name: (lambda buffer=buffer: buffer.sample(batch_size)) for name, buffer in buffers.items()}
    return Contest(calls, check)


class Goals:
    """What a hindsight buffer asks of a vector environment: the rewards of exchanged goals."""

    num_envs = 1

    def env_method(self, name: str, achieved: Any, desired: Any, infos: Any, indices: Any) -> list[Any]:  # noqa: ARG002
        assert name == "compute_reward"
        return [-(np.linalg.norm(achieved - desired, axis=-1) > 0.05).astype(np.float32)]


def hindsight(shrink: int) -> Contest:
    capacity = 1_000_000 // shrink
    theirs = filled(HerReplayBuffer(capacity, GOALS, ACTION, env=Goals(), device="cpu"))  # type: ignore[arg-type]
    starts = np.arange(capacity) // _EPISODE_STEPS * _EPISODE_STEPS
    theirs.ep_start[...] = starts[:, None]
    theirs.ep_length[...] = np.minimum(_EPISODE_STEPS, capacity - starts)[:, None]
    theirs.pos = 0
    ours = fastreplay.sb3.HerReplayBuffer.from_sb3(theirs)
    ours.set_env(theirs.env)
    return _contest_of_samples(theirs, ours, 256)


# Target updates


def _updating(update: Callable[..., None], target: torch.nn.Module, online: torch.nn.Module) -> Call:
    return lambda: update(online.parameters(), target.parameters(), 0.005)


def target_update(_: int) -> Contest:
    net = next(net for net in NETS if net.key == "twin-critic")
    pairs = [net.pair() for _ in range(2)]
    for i in (0, 1):
        pairs[1][i].load_state_dict(pairs[0][i].state_dict())
    updates = (polyak_update, fastreplay.sb3.polyak_update)
    calls = {
        name: _updating(update, *pair) for name, update, pair in zip(("sb3", "fastreplay"), updates, pairs, strict=True)
    }

    def check() -> None:
        for _ in range(3):
            for call in calls.values():
                call()
        for theirs, ours in zip(pairs[0][0].parameters(), pairs[1][0].parameters(), strict=True):
            assert_same(theirs.detach(), ours.detach())

    return Contest(calls, check)


WORKS = (
    Work("add-1", "`add` cheetah, 1 env, with infos", 3, adding(1)),
    Work("add-16", "`add` cheetah, 16 envs, with infos", 3, adding(16)),
    Work(
        "sample-cheetah",
        "`sample(256)` cheetah",
        4,
        sampling("ReplayBuffer", BOX, ACTION, 1_000_000, 256, native=True),
    ),
    Work(
        "sample-dict",
        "`sample(256)` Dict of three parts",
        4,
        sampling("DictReplayBuffer", GOALS, ACTION, 1_000_000, 256),
    ),
    Work(
        "sample-atari",
        "`sample(32)` atari, 4 stacked frames",
        1.8,
        sampling("ReplayBuffer", IMAGE, spaces.Discrete(6), 20_000, 32),
    ),
    Work(
        "sample-atari-shared",
        "the same, `optimize_memory_usage`",
        None,
        sampling(
            "ReplayBuffer",
            IMAGE,
            spaces.Discrete(6),
            20_000,
            32,
            optimize_memory_usage=True,
            handle_timeout_termination=False,
        ),
    ),
    Work(
        "n-step",
        "n-step (3) `sample(256)` cheetah",
        5,
        sampling("NStepReplayBuffer", BOX, ACTION, 1_000_000, 256, n_steps=3),
    ),
    Work("her", "HER `sample(256)`, capacity 10⁶, full", 30, hindsight),
    Work("polyak", "`polyak_update` of SAC's twin critic", 6, target_update),
)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    works = [work for work in WORKS if not options.only or any(part in work.key for part in options.only)]
    if not works:
        sys.exit(f"no work matches; there are {', '.join(work.key for work in WORKS)}")
    torch.set_num_threads(1)
    disturbance = Disturbance()
    heap = "heap kept" if keep_heap() else "heap as it is"
    with tqdm(total=len(works) * options.rounds, unit="round", smoothing=0) as bar:
        results = [_measure(work, options, bar) for work in works]
    method = f"{options.rounds} rounds of {options.round_ms:g} ms each, taken by turns; {heap}; one thread"
    header = {
        "date": date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        **describe_machine(DISTRIBUTIONS),
        "method": f"{method}; results checked equal bit for bit before",
        "disturbance": str(disturbance),
    }
    markdown = to_markdown(results, header)
    sys.stdout.write(markdown)
    if options.out is not None:
        stem = f"{date.today().isoformat()}-{as_file_name(cpu_name())}-sb3"
        write(options.out, stem, markdown, to_json(results, header))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="small buffers, few rounds; no files, unless --out")
    parser.add_argument("--only", action="append", default=[], help="part of a work's name; no files, unless --out")
    parser.add_argument("--rounds", type=int, help="rounds each (101; 2 with --quick)")
    parser.add_argument("--round-ms", type=float, help="length of a round (5; 0.05 with --quick)")
    parser.add_argument("--out", type=Path, help="where the files go (bench/results)")
    options = parser.parse_args(arguments)
    if options.rounds is None:
        options.rounds = 2 if options.quick else 101
    if options.round_ms is None:
        options.round_ms = 0.05 if options.quick else 5.0
    if options.out is None and not options.quick and not options.only:
        options.out = ROOT / "bench" / "results"
    return options


def _measure(work: Work, options: argparse.Namespace, bar: Any) -> Result:
    bar.set_description(work.key)
    result = Result(work)
    try:
        contest = work.make(_QUICK_SHRINK if options.quick else 1)
        contest.check()
    except Exception as error:
        if _is_ours(error):
            raise
        result.absent = reason_of(error)
        return result
    absent: dict[str, str] = {}
    rounds = {}
    for name, call in contest.calls.items():
        with excused(name, absent):
            rounds[name] = timed_round(call, round_s=options.round_ms * 1e-3, calls_each=contest.calls_each)
    result.seconds = take_turns(rounds, options.rounds, bar.update, absent)
    result.absent = absent.get("sb3")
    del contest, rounds
    gc.collect()  # gigabytes, before the next work's buffers are made
    if options.quick:
        gc.freeze()  # SB3's modules, which each later collection would go through: more than what is measured
    return result


def _is_ours(error: Exception) -> bool:
    """Return whether the two did not agree, or the error came through fastreplay."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, AssertionError) or any("fastreplay" in Path(frame.filename).parts for frame in frames)


def to_markdown(results: Sequence[Result], header: Mapping[str, str]) -> str:
    rows = []
    for result in results:
        measured = speedup(result.seconds, "sb3", "fastreplay")
        target = result.work.targets[0] if result.work.targets else None
        rows.append(
            [
                result.work.title,
                *(number(median_us(result.seconds, name)) for name in _LABELS),
                ratio(measured),
                NONE if target is None else target.bound,
                (target and target.verdict(measured)) or NONE,
            ]
        )
    columns = ["work", *_LABELS.values(), "SB3 / fastreplay", "target", ""]
    parts = [
        "# fastreplay.sb3 against Stable-Baselines3, measured",
        bullets(header),
        "µs per call, medians over rounds; ratios are medians of the rounds' ratios.",
        table(columns, rows),
    ]
    parts += [f"- {result.work.title}: not measured, {result.absent}" for result in results if result.absent]
    return "\n\n".join(parts) + "\n"


def to_json(results: Sequence[Result], header: Mapping[str, str]) -> dict[str, Any]:
    works = [
        {
            "work": result.work.key,
            "us_per_call": quartiles_us(result.seconds),
            "ratio": speedup(result.seconds, "sb3", "fastreplay"),
            "bound": result.work.factor,
            "absent": result.absent,
        }
        for result in results
    ]
    return {"header": dict(header), "works": works}


if __name__ == "__main__":
    main()
