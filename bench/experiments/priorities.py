# SPDX-License-Identifier: MIT
# ruff: noqa: RUF001  the signs of the printed table
"""What does it take to draw by priority, and in epochs: beside uniform draws, and beside others that do?"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter_ns
from typing import Any, Literal

import numpy as np
from absence import require
from checks import check_sample
from experiment import Contestant, Contestants, Experiment, Question, Result, itself
from peers import PRIORITIZED, PrioritizedPeer
from peers.cleanrl import BATCH as RAINBOW_BATCH
from peers.cleanrl import Rainbow
from peers.ours import empty_buffer, fill
from render import NONE, Columns, Table, by_title, medians, number, ratio
from timing import SECONDS, Call
from workloads import WORKLOADS, Workload, decode, steps, transitions

import fastreplay as fr

Kind = Literal["sample", "update", "pair"]

_WORKLOAD, _BATCH = WORKLOADS["cheetah"], 256
_UNIFORM, _PLAIN, _LOADER, _SMALLER = "uniform", "plain", "loader", "smaller"
BYTES = "bytes"
_LABELS = {
    **{name: peer.label for name, peer in PRIORITIZED.items() if peer.is_rival},
    "cleanrl": "CleanRL",
    "fastreplay": "fastreplay",
    _UNIFORM: "our uniform `sample`",
    _PLAIN: "without priorities",
    _LOADER: "with replacement",
    _SMALLER: "of a tenth",
}
_TITLES = {
    "sample": f"`sample({_BATCH})`",
    "update": f"`update_priorities({_BATCH})`",
    "pair": "the two, one after the other",
}


def at_scale(shrink: int = 1) -> list[Experiment]:
    """Return the experiments with their capacities divided by `shrink`."""
    workload, capacity = _WORKLOAD, _WORKLOAD.capacity // shrink
    kinds: tuple[Kind, ...] = ("sample", "update", "pair")
    rivals = [name for name, peer in PRIORITIZED.items() if peer.is_rival]
    drawing = [
        Experiment(f"priorities-{kind}", _TITLES[kind], partial(_drawing, kind, workload, capacity), rivals)
        for kind in kinds
    ]
    inserting = [
        Experiment(f"priorities-{name}", title, partial(_inserting, name, workload, capacity))
        for name, title in (("add", "`add`"), ("extend", "`extend` ×64"))
    ]
    epochs = Experiment("epochs", f"`loader({_BATCH}, replacement=False)`", partial(_epochs, workload, capacity))
    return [*drawing, *_trees(workload, capacity), *inserting, *_rainbows(shrink), epochs, _memory(workload, capacity)]


def _trees(workload: Workload, capacity: int) -> list[Experiment]:
    def contestants(size: int, plain: str, make_plain: Callable[[], Contestant]) -> Contestants:
        return {"fastreplay": partial(_tree, size), plain: make_plain}

    return [
        Experiment(
            "priorities-tree",
            f"the tree's draw alone, {_BATCH} of {capacity:,}",
            partial(contestants, capacity, _UNIFORM, partial(_uniform, workload, capacity)),
        ),
        Experiment(
            "priorities-tree-of-more",
            f"the same of {10 * capacity:,}",
            partial(contestants, 10 * capacity, _SMALLER, partial(_tree, capacity)),
        ),
    ]


def _tree(capacity: int) -> Contestant:
    """Return searches of a tree of so many masses, without window, rows and weights."""
    timer: Any = require("_tree_timer")
    buffer = fr.ReplayBuffer(capacity, {"reward": ()}, seed=0, priorities=fr.Priorities(alpha=1.0, eps=0.0))
    masses = np.random.default_rng(0).exponential(size=capacity).astype(np.float32) + np.float32(0.01)
    for first in range(0, capacity, 100_000):
        some = masses[first : first + 100_000]
        buffer.extend(np.zeros(len(some), np.float32), priority=some)
    seeds, num_draws = itertools.count(), 32

    def call() -> dict[str, float]:
        _, seconds = timer.draw(buffer._masses, _BATCH, num_draws, next(seeds))
        return {SECONDS: seconds / num_draws}

    def check() -> None:
        drawn = masses[timer.draw(buffer._masses, _BATCH, 100, next(seeds))[0]]
        expected = float(np.square(masses, dtype=np.float64).sum() / masses.sum(dtype=np.float64))
        assert abs(float(drawn.mean()) / expected - 1) < 0.03, "the draws do not follow the masses"

    return Contestant(call, check=check, clock=itself)


def _rainbows(shrink: int) -> list[Experiment]:
    def contestants(capacity: int, obs_shape: tuple[int, ...]) -> Contestants:
        def made(maker: Literal["cleanrl", "fastreplay"]) -> Contestant:
            rainbow = Rainbow(maker, max(1000, capacity // shrink), obs_shape)
            return Contestant(rainbow.step, check=rainbow.check)

        return {"cleanrl": partial(made, "cleanrl"), "fastreplay": partial(made, "fastreplay")}

    title = f"CleanRL's `rainbow_atari.py`, {RAINBOW_BATCH} drawn and updated"
    return [
        Experiment("rainbow", f"{title}: without frames", partial(contestants, 1_000_000, (1,)), ["cleanrl"]),
        Experiment("rainbow-frames", f"{title}: with them", partial(contestants, 10_000, (4, 84, 84)), ["cleanrl"]),
    ]


def _memory(workload: Workload, capacity: int) -> Experiment:
    def made(**options: Any) -> Contestant:
        buffer = empty_buffer(workload, capacity, **options)
        return Contestant(lambda: {BYTES: buffer.stats()["bytes"] / capacity}, clock=itself)

    contestants: Contestants = {"fastreplay": partial(made, priorities=fr.Priorities()), _PLAIN: made}
    return Experiment("priorities-memory", "memory", lambda: contestants, unit="bytes a transition", rounds=1)


def _drawing(kind: Kind, workload: Workload, capacity: int) -> Contestants:
    def prioritized(name: str) -> Contestant:
        peer = PRIORITIZED[name](workload, capacity)
        peer.fill()
        return _contestant(kind, peer, workload, capacity)

    return {
        **{name: partial(prioritized, name) for name in PRIORITIZED},
        _UNIFORM: partial(_uniform, workload, capacity),
    }


def _uniform(workload: Workload, capacity: int) -> Contestant:
    buffer = empty_buffer(workload, capacity)
    fill(buffer, workload)
    return Contestant(lambda: tuple(buffer.sample(_BATCH)))


def _contestant(kind: Kind, peer: PrioritizedPeer, workload: Workload, capacity: int) -> Contestant:
    draw, errors = peer.drawer(_BATCH), itertools.cycle(_errors())

    def pair() -> Any:
        drawn = draw()
        peer.update(drawn, next(errors))
        return drawn

    def update_s() -> dict[str, float]:
        """Time the updates alone, of minibatches drawn just before, as a learner has them."""
        spent = 0
        for _ in range(8):
            drawn, given = draw(), next(errors)
            begin = perf_counter_ns()
            peer.update(drawn, given)
            spent += perf_counter_ns() - begin
        return {SECONDS: spent * 1e-9 / 8}

    def check() -> None:
        check_sample(peer, workload, _BATCH, range(capacity))
        check_priorities(peer, workload)

    if kind == "update":
        return Contestant(update_s, check=check, clock=itself)
    return Contestant(draw if kind == "sample" else pair, check=check)


def _errors() -> list[Any]:
    generator = np.random.default_rng(1)
    return [generator.exponential(size=_BATCH).astype(np.float32) + np.float32(0.01) for _ in range(64)]


def check_priorities(peer: PrioritizedPeer, workload: Workload) -> None:
    """Check that what an update made large is drawn more often, and what it made small less.

    Raises:
        AssertionError: It is not so.
    """
    small = type(peer)(workload, 2000)
    small.fill_with(np.ones(2000, np.float32))
    for _ in range(60):  # over all transitions: errors by their numbers
        drawn = small.drawer(_BATCH)()
        numbers = _numbers(small, drawn)
        small.update(drawn, np.where(numbers % 4 == 0, 16.0, 0.25).astype(np.float32))
    seen = np.concatenate([_numbers(small, small.drawer(_BATCH)()) for _ in range(60)])
    often, rare = float(np.mean(seen % 4 == 0)), 0.25 * 16**0.6 / (0.25 * 16**0.6 + 0.75 * 0.25**0.6)
    assert abs(often - rare) < 0.05, f"{peer.label}: {often:.3f} of the rows are the large ones, expected {rare:.3f}"


def _numbers(peer: PrioritizedPeer, drawn: Any) -> Any:
    return decode({name: value.numpy() for name, value in peer.fields(drawn).items()})


def _inserting(name: str, workload: Workload, capacity: int) -> Contestants:
    def made(**options: Any) -> Contestant:
        buffer = empty_buffer(workload, capacity, **options)
        fill(buffer, workload)
        if name == "add":
            rows = transitions(workload, np.arange(256))
            return Contestant(partial(_each, buffer.add, rows), len(rows))
        blocks = [tuple(steps(workload, numbers).values()) for numbers in np.arange(16 * 64).reshape(16, 64)]
        return Contestant(partial(_each, buffer.extend, blocks), len(blocks))

    return {"fastreplay": partial(made, priorities=fr.Priorities()), _PLAIN: made}


def _each(store: Callable[..., object], rows: Sequence[Any]) -> None:
    for row in rows:
        store(*row)


def _epochs(workload: Workload, capacity: int) -> Contestants:
    def made(**options: Any) -> Contestant:
        buffer = empty_buffer(workload, capacity)
        fill(buffer, workload)
        loader = buffer.loader(_BATCH, **options)
        call: Call = loader.__next__
        check = partial(check_epoch, buffer, options) if options else lambda: None
        return Contestant(call, check=check, close=loader.close)

    return {"fastreplay": partial(made, replacement=False, drop_last=True), _LOADER: made}


def check_epoch(buffer: Any, options: dict[str, Any]) -> None:
    """Check that an epoch has every transition once, but for the last ones.

    Raises:
        AssertionError: One came twice.
    """
    num_batches = len(buffer) // _BATCH
    with buffer.loader(_BATCH, steps=num_batches, **options) as loader:
        tickets = np.concatenate([batch.ticket.numpy() for batch in loader])
    assert len(np.unique(tickets)) == num_batches * _BATCH, "fastreplay: a transition came twice in an epoch"


def _tables(results: Sequence[Result]) -> list[Table]:
    note = "µs per call, medians over rounds; ratios are medians of the rounds' ratios."
    memory = [result for result in results if result.experiment.key == "priorities-memory"]
    timed = [result for result in results if result not in memory]
    columns: Columns = {
        **medians(timed, _LABELS),
        "over the fastest rival": _over_fastest,
        "time of ours over our plain one": lambda result: ratio(result.slowdown((_UNIFORM, _PLAIN, _LOADER, _SMALLER))),
    }
    of_memory: Columns = {
        **medians(memory, _LABELS, BYTES, lambda _, value: number(value)),
        "for priorities": lambda result: number(beyond(result)),
    }
    return [
        Table("Draws by priority, and epochs", note, "work", by_title(timed), columns),
        Table("", "Bytes a transition.", "", by_title(memory), of_memory),
    ]


def beyond(result: Result) -> float:
    """Return the bytes a transition that priorities take."""
    ours, plain = result.median("fastreplay", BYTES), result.median(_PLAIN, BYTES)
    return float("nan") if ours is None or plain is None else ours - plain


def _over_fastest(result: Result) -> str:
    best = result.fastest_rival()
    faster = result.speedup(best)
    return NONE if best is None or faster is None else f"{ratio(faster)} ({_LABELS[best]})"


QUESTION = Question(
    "Draws by priority",
    lambda is_quick: at_scale(50) if is_quick else at_scale(),
    _tables,
    _LABELS,
    distributions=("fastreplay", "numpy", "torch", "cpprb", "rlox", "torchrl"),
    rounds=(61, 5e-3),
    quick_rounds=(2, 5e-5),
)
