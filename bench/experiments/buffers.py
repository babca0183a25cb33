# SPDX-License-Identifier: MIT
# ruff: noqa: RUF001  the signs of the printed table
"""How long do inserting and sampling take, beside the other replay buffers?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from checks import check_contents, check_insert, check_sample
from experiment import Contestant, Contestants, Experiment, Question, Result, itself
from floor import cold_copy, gather_s
from peers import PEERS, Fastreplay, Peer
from render import NONE, Columns, Table, by_title, fact, medians, ratio, si
from timing import SECONDS, Call
from workloads import WORKLOADS, Transition, Workload, steps, transitions
from workloads import Columns as Blocks

Kind = Literal["add", "extend", "sample"]

_ADD_ROWS = 256  # transitions that one timed call of `add` goes through
_EXTEND_BLOCKS = 16  # blocks that one timed call of `extend` goes through
_QUICK_SHRINK, _QUICK_EVERY = 50, 8
_OUT, _FLOOR, _KERNEL, _COPY = "fastreplay-out", "floor", "kernel", "copy"
LABELS = {
    **{name: peer.label for name, peer in PEERS.items()},
    _FLOOR: "bare C++ gather",
    _KERNEL: "our gather alone",
    _COPY: "cold memcpy",
}


@dataclass(frozen=True)
class Work:
    """What is done to a ring.

    Attributes:
        num_rows: Transitions of one call.
        capacity: Of the ring.
        every: Of the transitions or blocks of a timed call, one in so many is taken.
    """

    kind: Kind
    workload: Workload
    num_rows: int
    capacity: int
    every: int = 1

    @property
    def num_envs(self) -> int:
        return self.num_rows if self.kind == "extend" else 1

    @property
    def title(self) -> str:
        verb = {"add": "`add`", "extend": f"`extend` ×{self.num_rows}"}
        return f"{verb.get(self.kind, f'`sample({self.num_rows})`')} {self.workload.name}"

    def rows(self) -> list[Transition]:
        """Return the transitions that a timed `add` goes through."""
        return add_rows(self.workload)[:: self.every]

    def blocks(self) -> list[Blocks]:
        """Return the blocks of transitions that a timed `extend` goes through."""
        numbers = np.arange(_EXTEND_BLOCKS * self.num_rows).reshape(_EXTEND_BLOCKS, self.num_rows)
        return [steps(self.workload, block) for block in numbers[:: self.every]]

    def experiment(self) -> Experiment:
        names = {name: peer for name, peer in PEERS.items() if self.kind in peer.kinds}
        return Experiment(
            f"{self.kind}-{self.workload.name}",
            self.title,
            partial(_contestants, self),
            rivals=[name for name, peer in names.items() if peer.is_rival],
            facts={
                "capacity": self.capacity,
                "rows_per_call": self.num_rows,
                "bytes_per_call": self.num_rows * self.workload.row_bytes,
            },
        )


def add_rows(workload: Workload) -> list[Transition]:
    return transitions(workload, np.arange(_ADD_ROWS))


def at_scale(shrink: int = 1, every: int = 1) -> list[Experiment]:
    """Return the experiments with their capacities divided by `shrink`."""
    works: tuple[tuple[Kind, str, int], ...] = (
        ("add", "pendulum", 1),
        ("sample", "pendulum", 64),
        ("add", "cheetah", 1),
        ("extend", "cheetah", 64),
        ("sample", "cheetah", 256),
        ("sample", "humanoid", 256),
        ("sample", "atari", 32),
    )
    return [
        Work(kind, WORKLOADS[name], num_rows, WORKLOADS[name].capacity // shrink, every).experiment()
        for kind, name, num_rows in works
    ]


def _contestants(work: Work) -> Contestants:
    made: dict[str, Peer] = {}

    def peer(name: str) -> Contestant:
        made[name] = filled(PEERS[name], work)
        return contestant(made[name], work)

    def copy() -> Contestant:
        return Contestant(cold_copy(work.num_rows * work.workload.row_bytes))

    def gather(how: str) -> Contestant:
        ours = made["fastreplay"]
        assert isinstance(ours, Fastreplay)
        return Contestant(lambda: {SECONDS: gather_s(ours, work.num_rows, how)}, clock=itself)

    makers = {name: partial(peer, name) for name, each in PEERS.items() if work.kind in each.kinds}
    if work.kind != "sample":
        return makers
    return {**makers, _FLOOR: partial(gather, "plain_gather"), _KERNEL: partial(gather, "gather"), _COPY: copy}


def filled(peer_type: type[Peer], work: Work) -> Peer:
    """Return a full ring of a peer whose inserts were checked on a small one."""
    if work.kind != "sample":
        check_insert(peer_type, work.workload, num_envs=work.num_envs)
    peer = peer_type(work.workload, work.capacity, num_envs=work.num_envs)
    peer.fill()
    return peer


def contestant(peer: Peer, work: Work) -> Contestant:
    """Return what is timed, and what checks the ring's contents."""
    window = range(work.capacity)
    check: Callable[..., None] = check_sample if work.kind == "sample" else check_contents
    call: Call
    if work.kind == "add":
        rows = work.rows()
        call, calls_each = peer.adder(rows), len(rows)
    elif work.kind == "extend":
        blocks = work.blocks()
        call, calls_each = peer.extender(blocks), len(blocks)
    else:
        call, calls_each = peer.sampler(work.num_rows), 1
    return Contestant(call, calls_each, partial(check, peer, work.workload, max(work.num_rows, 32), window))


def _tables(results: Sequence[Result]) -> list[Table]:
    note = "µs per call, medians over rounds; ratios are medians of the rounds' ratios."
    tables = []
    for title, kinds in (("Inserting", ("add", "extend")), ("Sampling", ("sample",))):
        group = [result for result in results if result.experiment.key.split("-")[0] in kinds]
        times = medians(group, LABELS)
        columns: Columns = {"capacity": fact("capacity"), **times, "over the fastest rival": _over_fastest}
        tables.append(Table(title, note, "work", by_title(group), columns))
    rates: Columns = {
        "bytes a call": fact("bytes_per_call"),
        **{LABELS[name]: partial(_rate, name=name) for name in ("fastreplay", _OUT)},
        "fastest rival": lambda result: _rate(result, result.fastest_rival()),
        LABELS[_COPY]: partial(_rate, name=_COPY),
    }
    return [*tables, Table("Throughput", "", "work", by_title(results), rates)]


def _over_fastest(result: Result) -> str:
    best = result.fastest_rival()
    faster = result.speedup(best)
    return NONE if best is None or faster is None else f"{ratio(faster)} ({LABELS[best]})"


def _rate(result: Result, name: str | None) -> str:
    seconds, facts = result.median(name), result.experiment.facts
    if seconds is None:
        return NONE
    return ", ".join((si(facts["rows_per_call"] / seconds, "rows/s"), si(facts["bytes_per_call"] / seconds, "B/s")))


QUESTION = Question(
    "Replay buffers",
    lambda is_quick: at_scale(_QUICK_SHRINK, _QUICK_EVERY) if is_quick else at_scale(),
    _tables,
    LABELS,
    distributions=("fastreplay", "numpy", "torch", "stable-baselines3", "cpprb", "rlox", "torchrl"),
    rounds=(201, 5e-3),
    quick_rounds=(2, 5e-5),
)
