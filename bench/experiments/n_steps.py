# SPDX-License-Identifier: MIT
"""What does it take to follow three steps from each row, beside a plain minibatch, and beside another that does?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from absence import require
from experiment import Contestant, Contestants, Experiment, Question, Result, itself
from floor import lines_s
from peers.ours import empty_buffer
from render import Columns, Table, by_title, medians, ratio
from timing import SECONDS
from workloads import PLACE_PERIOD, TICKET_PERIOD, WORKLOADS, Workload, chunks, transitions

import fastreplay as fr

_WORKLOAD, _BATCH, _STEPS, _GAMMA, _EPISODE = WORKLOADS["cheetah"], 256, 3, 0.99, 1000
_PLAIN, _SB3, _WITHOUT, _LINES, _PLAIN_LINES = "plain", "sb3", "without", "lines", "plain lines"
_LABELS = {
    "fastreplay": "fastreplay",
    _PLAIN: "our plain `sample`",
    _SB3: "SB3 `NStepReplayBuffer`",
    _WITHOUT: "without lanes",
    _LINES: "their cache lines, copied bare",
    _PLAIN_LINES: "those of plain rows",
}


def at_scale(shrink: int = 1) -> list[Experiment]:
    """Return the experiments with their capacities divided by `shrink`."""
    capacity = _WORKLOAD.capacity // shrink
    drawing = [
        Experiment(
            f"n-steps-{lanes}",
            f"`sample({_BATCH}, follow=NStep({_STEPS}, …))`, {lanes} lane{'s' * (lanes > 1)}",
            partial(_drawing, _WORKLOAD, capacity, lanes),
            [_SB3, _LINES, _PLAIN_LINES],
        )
        for lanes in (1, 16)
    ]
    return [*drawing, Experiment("n-steps-add", "`add`, one lane", partial(_adding, _WORKLOAD, capacity))]


def _drawing(workload: Workload, capacity: int, lanes: int) -> Contestants:
    def followed() -> Contestant:
        buffer = _filled(workload, capacity, lanes)
        draw = partial(buffer.sample, _BATCH, follow=fr.NStep(_STEPS, _GAMMA))
        return Contestant(draw, check=partial(_check, draw, capacity, lanes))

    def plain() -> Contestant:
        return Contestant(partial(_filled(workload, capacity, lanes).sample, _BATCH))

    def sb3() -> Contestant:
        return Contestant(partial(_sb3(workload, capacity, lanes).sample, _BATCH))

    def bare(pieces: Sequence[tuple[int, tuple[str, ...]]]) -> Contestant:
        buffer = _filled(workload, capacity, lanes)
        return Contestant(lambda: {SECONDS: lines_s(buffer, _BATCH, pieces)}, clock=itself)

    first, last = ("observation", "action"), ("next_observation", "terminated")
    steps = [(0, first), *[(k * lanes, ("reward",)) for k in range(_STEPS)], ((_STEPS - 1) * lanes, last)]
    rows = [(0, (*first, *last, "reward"))]
    floors = {_LINES: partial(bare, steps), _PLAIN_LINES: partial(bare, rows)}
    return {"fastreplay": followed, _PLAIN: plain, _SB3: sb3, **floors}


def _rows(workload: Workload, capacity: int, lanes: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield transitions whose episodes have 1,000 steps each; row i is of lane i % lanes."""
    for start, columns in chunks(workload, capacity):
        step = np.arange(start, start + len(columns["reward"])) // lanes
        yield start, {**columns, "terminated": (step % _EPISODE == _EPISODE - 1).astype(np.float32)}


def _filled(workload: Workload, capacity: int, lanes: int) -> Any:
    buffer = empty_buffer(workload, capacity, lanes=lanes)
    for start, columns in _rows(workload, capacity, lanes):
        buffer.extend(**columns, lanes=np.arange(start, start + len(columns["reward"])) % lanes)
    return buffer


def _sb3(workload: Workload, capacity: int, lanes: int) -> Any:
    buffers, spaces = require("stable_baselines3.common.buffers"), require("gymnasium.spaces")
    box = spaces.Box(-np.inf, np.inf, workload.observation.shape)
    buffer = buffers.NStepReplayBuffer(
        capacity, box, spaces.Box(-1.0, 1.0, workload.action.shape), n_envs=lanes, n_steps=_STEPS, gamma=_GAMMA
    )
    names = {"observations": "observation", "actions": "action", "next_observations": "next_observation"}
    for theirs, ours in {**names, "rewards": "reward", "dones": "terminated"}.items():
        flat = getattr(buffer, theirs).reshape(buffer.buffer_size * lanes, -1)
        for start, columns in _rows(workload, len(flat), lanes):
            flat[start : start + len(columns[ours])] = columns[ours].reshape(len(columns[ours]), -1)
    buffer.pos, buffer.full = 0, True
    return buffer


def _check(draw: Any, capacity: int, lanes: int) -> None:
    """Check each row's steps by the numbers that its fields tell.

    Raises:
        AssertionError: One is wrong.
    """
    batch = draw().numpy()
    number = np.asarray(batch.ticket) % TICKET_PERIOD
    steps = np.minimum(_STEPS, _EPISODE - (batch.ticket // lanes) % _EPISODE)
    steps = np.minimum(steps, (capacity - 1 - batch.ticket) // lanes + 1)  # the newest have fewer
    sums = np.zeros(len(batch))
    for k in range(_STEPS):
        rewards = ((number + k * lanes) % TICKET_PERIOD) * PLACE_PERIOD + _reward_place()
        sums += np.where(k < steps, rewards * _GAMMA**k, 0)
    assert np.allclose(batch.reward, sums, rtol=1e-6), "fastreplay: a sum is wrong"
    assert np.allclose(batch.discount, _GAMMA**steps), "fastreplay: a discount is wrong"


def _reward_place() -> int:
    return int(transitions(_WORKLOAD, np.zeros(1, np.int64))[0][3])


def _adding(workload: Workload, capacity: int) -> Contestants:
    def made(lanes: int | None) -> Contestant:
        buffer = empty_buffer(workload, capacity, lanes=lanes)
        rows = transitions(workload, np.arange(256))

        def add_all() -> None:
            for row in rows:
                buffer.add(*row)

        return Contestant(add_all, len(rows))

    return {"fastreplay": partial(made, 1), _WITHOUT: partial(made, None)}


def _tables(results: Sequence[Result]) -> list[Table]:
    note = "µs per call, medians over rounds; ratios are medians of the rounds' ratios."
    columns: Columns = {
        **medians(results, _LABELS),
        "over SB3": lambda result: ratio(result.speedup(_SB3)),
        "time of ours over our plain one": lambda result: ratio(result.slowdown((_PLAIN, _WITHOUT))),
        "of bare lines over those of plain rows": lambda result: ratio(result.speedup(_LINES, ours=_PLAIN_LINES)),
    }
    return [Table("n steps", note, "work", by_title(results), columns)]


QUESTION = Question(
    "n steps",
    lambda is_quick: at_scale(50) if is_quick else at_scale(),
    _tables,
    _LABELS,
    distributions=("fastreplay", "numpy", "torch", "stable-baselines3"),
    rounds=(61, 5e-3),
    quick_rounds=(2, 5e-5),
)
