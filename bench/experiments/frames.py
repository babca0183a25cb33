# SPDX-License-Identifier: MIT
"""What do stacks and next observations take that are stored once, beside the same stored in full, and beside cpprb?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import torch
from absence import require
from experiment import Contestant, Contestants, Experiment, Question, Result
from render import Columns, Table, by_title, medians, ratio

import fastreplay as fr

_SHAPE, _STACK, _EPISODE, _ROWS = (84, 84), 4, 200, 2000
_FULL, _CPPRB = "full", "cpprb"
_LABELS = {"fastreplay": "stored once", _FULL: "stored in full", _CPPRB: "cpprb, `stack_compress` and `next_of`"}


@dataclass(frozen=True)
class _Work:
    key: str
    title: str
    batch_size: int  # 0 for an insert


_WORK = (
    _Work("frames-sample-32", "`sample(32)`, Atari", 32),
    _Work("frames-sample-256", "`sample(256)`, Atari", 256),
    _Work("frames-add", "`add`, Atari", 0),
)
_CAPACITY = 60_000


def at_scale(shrink: int = 1) -> list[Experiment]:
    """Return the experiments with their capacities divided by `shrink`."""
    return [
        Experiment(work.key, work.title, partial(_contestants, work, _CAPACITY // shrink), [_CPPRB]) for work in _WORK
    ]


def _contestants(work: _Work, capacity: int) -> Contestants:
    return {
        "fastreplay": partial(_ours, work, capacity, shares=True),
        _FULL: partial(_ours, work, capacity, shares=False),
        _CPPRB: partial(_cpprb, work, capacity),
    }


def _episodes() -> Iterator[tuple[Any, float, Any, bool]]:
    """Yield (stack, number, next stack, whether it ends), of the same episodes again and again."""
    frames = np.random.default_rng(0).integers(0, 256, (2 * _ROWS, *_SHAPE), dtype=np.uint8)
    rows = []
    for number in range(_ROWS):
        newest = number + number // _EPISODE  # an episode of so many steps has a frame more
        begin = newest - number % _EPISODE
        ages = [max(begin, newest - age) for age in range(_STACK - 1, -1, -1)]
        later = [*ages[1:], newest + 1]
        rows.append((frames[ages], float(number), frames[later], number % _EPISODE == _EPISODE - 1))
    return cycle(rows)


def _ours(work: _Work, capacity: int, *, shares: bool) -> Contestant:
    field = fr.Field(_SHAPE, "uint8", stack=_STACK) if shares else fr.Field((_STACK, *_SHAPE), "uint8")
    fields: dict[str, Any] = {
        "observation": field,
        "action": ((), "int64"),
        "reward": (),
        "next_observation": field,
        "done": ((), "bool"),
    }
    buffer: Any = fr.ReplayBuffer(capacity, fields, lanes=1, ends=["done"], share_next=shares, seed=0)
    rows = _episodes()

    def add() -> None:
        stack, number, later, is_end = next(rows)
        buffer.add(stack, 0, number, later, is_end)

    for _ in range(capacity):
        add()
    draw = partial(buffer.sample, work.batch_size)
    return Contestant(draw, check=partial(_check, draw)) if work.batch_size else Contestant(add)


def _cpprb(work: _Work, capacity: int) -> Contestant:
    cpprb = require("cpprb")
    stack = {"shape": (*_SHAPE, _STACK), "dtype": np.uint8}  # its stacks are along the last axis
    kinds = {"obs": stack, "act": {"dtype": np.int64}, "rew": {}, "done": {"dtype": np.bool_}}
    buffer = cpprb.ReplayBuffer(capacity, kinds, next_of="obs", stack_compress="obs")
    rows = _episodes()

    def add() -> None:
        now, number, later, is_end = next(rows)
        buffer.add(obs=np.moveaxis(now, 0, -1), act=0, rew=number, next_obs=np.moveaxis(later, 0, -1), done=is_end)
        if is_end:
            buffer.on_episode_end()

    for _ in range(capacity):
        add()

    def draw() -> Any:
        return {name: torch.from_numpy(value) for name, value in buffer.sample(work.batch_size).items()}

    return Contestant(draw if work.batch_size else add)


def _check(draw: Any) -> None:
    """Check every frame of a minibatch by the number of its row.

    Raises:
        AssertionError: One is wrong.
    """
    batch, rows = draw().numpy(), _episodes()
    expected = [next(rows) for _ in range(_ROWS)]
    for i, number in enumerate(batch.reward.astype(int)):
        stack, _, later, _ = expected[number]
        assert (batch.observation[i] == stack).all(), "fastreplay: a frame of an observation is wrong"
        assert (batch.next_observation[i] == later).all(), "fastreplay: a frame of a next observation is wrong"


def _tables(results: Sequence[Result]) -> list[Table]:
    note = (
        f"µs per call, medians over rounds; ratios are medians of the rounds' ratios. Stacks of {_STACK} frames of "
        f"{_SHAPE[0]} by {_SHAPE[1]} bytes and their successors, episodes of {_EPISODE} steps."
    )
    columns: Columns = {
        **medians(results, _LABELS),
        "over cpprb": lambda result: ratio(result.speedup(_CPPRB)),
        "time over that in full": lambda result: ratio(result.slowdown((_FULL,))),
    }
    return [Table("Frames that are stored once", note, "work", by_title(results), columns)]


QUESTION = Question(
    "frames",
    lambda is_quick: at_scale(100) if is_quick else at_scale(),
    _tables,
    _LABELS,
    distributions=("fastreplay", "numpy", "torch", "cpprb"),
    rounds=(31, 5e-3),
    quick_rounds=(2, 5e-5),
)
