# SPDX-License-Identifier: MIT
"""Pieces of work on a full ring, done by every peer that can: what is timed, and what stands for the machine."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import elsewhere
import numpy as np
from checks import check_contents, check_insert, check_sample
from experiment import Contestant, Contestants, Experiment, itself
from floor import cold_copy, cold_write, gathers_s, nothing
from peers import PEERS, Fastreplay, Peer
from peers.ours import by_name
from timing import SECONDS, Call
from workloads import TICKET_PERIOD, Columns, Transition, Workload, steps, transitions

Kind = Literal["add", "extend", "sample"]

OUT, THREADS = "fastreplay-out", "fastreplay-2-threads"
FLOOR, HALVES, KERNEL, COPY, EMPTY = "floor", "floor-halves", "kernel", "copy", "empty-call"
LABELS = {
    **{name: peer.label for name, peer in PEERS.items()},
    FLOOR: "bare gather",
    HALVES: "bare gather, two threads",
    KERNEL: "our gather alone",
    COPY: "cold memcpy",
    EMPTY: "empty call",
}
_ADD_ROWS = 256  # transitions that one timed call of `add` goes through
_EXTEND_BLOCKS = 16  # blocks that one timed call of `extend` goes through
_LONG_BYTES = 8 << 20  # from here on a call takes milliseconds
_LONG_ROUNDS = 15
_STREAMED_BYTES = 512  # smaller rows are parts of lines, which stores past the caches write many times
_CALL_BYTES = 64 << 10  # below, a NumPy copy is mostly its call


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
    def num_bytes(self) -> int:
        return self.num_rows * self.workload.row_bytes

    @property
    def title(self) -> str:
        verb = {"add": "`add`", "extend": f"`extend` ×{self.num_rows}"}  # noqa: RUF001  the sign of the printed table
        return f"{verb.get(self.kind, f'`sample({self.num_rows})`')} {self.workload.name}"

    @property
    def key(self) -> str:
        return "-".join((self.kind, self.workload.name, *([] if self.kind == "add" else [str(self.num_rows)])))

    @property
    def roofline(self) -> tuple[str, ...]:
        if self.kind == "sample":
            return FLOOR, KERNEL
        return (COPY,) if self.num_bytes >= _CALL_BYTES else ()

    def rows(self) -> list[Transition]:
        """Return the transitions that a timed `add` goes through."""
        return add_rows(self.workload)[:: self.every]

    def blocks(self) -> list[Columns]:
        """Return the blocks of transitions that a timed `extend` goes through."""
        numbers = np.arange(_EXTEND_BLOCKS * self.num_rows).reshape(_EXTEND_BLOCKS, self.num_rows)
        return [steps(self.workload, block) for block in numbers[:: self.every]]

    @property
    def peers(self) -> list[str]:
        """Who does it."""
        return [
            name
            for name, peer in PEERS.items()
            if self.kind in peer.kinds and (self.kind != "sample" or self.num_bytes >= peer.least_bytes)
        ]

    def experiment(self, **facts: Any) -> Experiment:
        """Return the work as all peers that can do it, and what bounds them."""
        numbers = {"capacity": self.capacity, "rows_per_call": self.num_rows, "bytes_per_call": self.num_bytes}
        return Experiment(
            self.key,
            self.title,
            partial(contestants, self),
            rivals=[name for name in self.peers if PEERS[name].is_rival],
            facts={**numbers, **facts},
            rounds=_LONG_ROUNDS if self.num_bytes >= _LONG_BYTES else None,
            roofline=self.roofline,
        )


def add_rows(workload: Workload) -> list[Transition]:
    return transitions(workload, np.arange(_ADD_ROWS))


def contestants(work: Work) -> Contestants:
    """Return how each is made: the peers, here or in an environment of their own, and the machine's bounds."""
    makers: dict[str, Callable[[], Contestant]] = {}
    for name in work.peers:
        make, environment = partial(ready, name, work), PEERS[name].environment
        makers[name] = partial(elsewhere.contestant, environment, make) if environment else make
    return {**makers, **_bounds(work)}


def ready(name: str, work: Work) -> Contestant:
    """Return a peer, ready to be timed in this process."""
    return contestant(filled(PEERS[name], work), work)


def _bounds(work: Work) -> Mapping[str, Callable[[], Contestant]]:
    def gather(*how: str) -> Contestant:
        ours = RINGS.of(PEERS["fastreplay"], work)
        assert isinstance(ours, Fastreplay)

        def call() -> dict[str, float]:
            taken = gathers_s(ours, work.num_rows, how)
            return {SECONDS: min(taken.values()), **taken}

        return Contestant(call, clock=itself)

    if work.kind == "add":
        return {EMPTY: partial(_empty_calls, work)}
    if work.kind == "extend":
        return {COPY: lambda: Contestant(cold_write(work.num_bytes))}
    stores = ("plain", "streamed") if work.workload.row_bytes >= _STREAMED_BYTES else ("plain",)
    return {
        FLOOR: partial(gather, *(f"{store}_gather" for store in stores)),
        HALVES: partial(gather, *(f"{store}_halves" for store in stores)),
        KERNEL: partial(gather, "gather"),
        COPY: lambda: Contestant(cold_copy(work.num_bytes)),
    }


def _empty_calls(work: Work) -> Contestant:
    """Return calls of a native function that does nothing, with the arguments that ours are made with."""
    rows = work.rows()
    return Contestant(by_name(nothing(), rows), len(rows))


class _Rings:
    """The full rings of one workload and capacity, kept until those of another are asked for: filling takes longest."""

    def __init__(self) -> None:
        self._of: object = None
        self._made: dict[type[Peer], Peer] = {}

    def of(self, peer_type: type[Peer], work: Work) -> Peer:
        """Return a full ring in its first lap; what is inserted by work comes into it when nobody samples any more."""
        if self._of != (work.workload, work.capacity):
            self.clear()
            self._of = work.workload, work.capacity
        owner = peer_type.ring_of or peer_type
        made = self._made.get(owner)
        if made is None or made.num_envs != work.num_envs:
            made = owner(work.workload, work.capacity, num_envs=work.num_envs)
            made.fill()
        if work.kind == "sample":
            self._made[owner] = made
        else:  # not in its first lap for long
            self._made.pop(owner, None)
        return made if owner is peer_type else peer_type.over(made)

    def clear(self) -> None:
        self._made.clear()
        gc.collect()


RINGS = _Rings()


def filled(peer_type: type[Peer], work: Work) -> Peer:
    """Return a full ring of a peer whose inserts were checked on a small one."""
    if work.kind != "sample":
        check_insert(peer_type, work.workload, num_envs=work.num_envs)
    return RINGS.of(peer_type, work)


def contestant(peer: Peer, work: Work) -> Contestant:
    """Return what is timed, and what checks the ring's contents."""
    window = range(min(work.capacity, TICKET_PERIOD))
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
    checked_rows = max(work.num_rows, 32) if work.kind == "sample" else 32
    return Contestant(call, calls_each, partial(check, peer, work.workload, checked_rows, window))
