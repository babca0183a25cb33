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
from checks import check_sample
from experiment import Contestant, Contestants, Experiment, Question, Result, itself
from peers import PRIORITIZED, PrioritizedPeer
from peers.ours import empty_buffer, fill
from render import NONE, Columns, Table, by_title, medians, ratio
from timing import SECONDS, Call
from workloads import WORKLOADS, Workload, decode, steps, transitions

import fastreplay as fr

Kind = Literal["sample", "update", "pair"]

_WORKLOAD, _BATCH = WORKLOADS["cheetah"], 256
_UNIFORM, _PLAIN, _LOADER = "uniform", "plain", "loader"
_LABELS = {
    **{name: peer.label for name, peer in PRIORITIZED.items()},
    _UNIFORM: "our uniform `sample`",
    _PLAIN: "without priorities",
    _LOADER: "with replacement",
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
    return [*drawing, *inserting, epochs]


def _drawing(kind: Kind, workload: Workload, capacity: int) -> Contestants:
    def prioritized(name: str) -> Contestant:
        peer = PRIORITIZED[name](workload, capacity)
        peer.fill()
        return _contestant(kind, peer, workload, capacity)

    def uniform() -> Contestant:
        buffer = empty_buffer(workload, capacity)
        fill(buffer, workload)
        return Contestant(lambda: tuple(buffer.sample(_BATCH)))

    return {**{name: partial(prioritized, name) for name in PRIORITIZED}, _UNIFORM: uniform}


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
    columns: Columns = {
        **medians(results, _LABELS),
        "over the fastest rival": _over_fastest,
        "time of ours over our plain one": _over_plain,
    }
    return [Table("Draws by priority, and epochs", note, "work", by_title(results), columns)]


def _over_fastest(result: Result) -> str:
    best = result.fastest_rival()
    faster = result.speedup(best)
    return NONE if best is None or faster is None else f"{ratio(faster)} ({_LABELS[best]})"


def _over_plain(result: Result) -> str:
    plain = next((name for name in (_UNIFORM, _PLAIN, _LOADER) if name in result.readings), None)
    slower = result.speedup("fastreplay", ours=plain) if plain else None
    return NONE if slower is None else ratio(slower)


QUESTION = Question(
    "Draws by priority",
    lambda is_quick: at_scale(50) if is_quick else at_scale(),
    _tables,
    _LABELS,
    distributions=("fastreplay", "numpy", "torch", "cpprb", "rlox", "torchrl"),
    rounds=(101, 5e-3),
    quick_rounds=(2, 5e-5),
)
