# SPDX-License-Identifier: MIT
"""How `pytest bench` measures: one full buffer in memory at a time, torch on one thread."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch
from absence import AbsentError
from checks import check_insert, check_sample
from peers import PEERS, Call, Peer
from timing import keep_heap, loops_for
from works import WORKS, Kind, Work

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_benchmark.fixture import BenchmarkFixture

# Divides every capacity, for a quick look: FASTREPLAY_BENCH_SHRINK=100 pytest bench
_SHRINK = int(os.environ.get("FASTREPLAY_BENCH_SHRINK", "1"))
_ROUND_S = 5e-3
_NUM_ROUNDS = 60


@dataclass(frozen=True)
class Case:
    """One work done by one peer."""

    work: Work
    peer_name: str

    def __str__(self) -> str:
        return f"{self.work.key}-{self.peer_name}"

    @property
    def num_envs(self) -> int:
        return self.work.num_rows if self.work.kind == "extend" else 1


def cases(*kinds: Kind) -> list[Case]:
    """Return every peer with every work of these kinds that it takes part in."""
    return [
        Case(work, name)
        for work in WORKS
        if work.kind in kinds
        for name, peer in PEERS.items()
        if work.kind in peer.kinds
    ]


@dataclass(frozen=True)
class Bench:
    """A full buffer, checked, and the clock."""

    case: Case
    peer: Peer
    benchmark: BenchmarkFixture

    def measure(self, call: Call, *, calls_each: int = 1) -> None:
        """Time `call`, which makes `calls_each` of the peer's calls."""
        work = self.case.work
        median_s = timed(self.benchmark, call, f"{work.key}, {calls_each} a call")
        if median_s is None:
            return
        call_s = median_s / calls_each
        self.benchmark.extra_info["us_per_call"] = call_s * 1e6
        self.benchmark.extra_info["rows_per_s"] = work.num_rows / call_s
        self.benchmark.extra_info["bytes_per_s"] = work.call_bytes / call_s


def timed(benchmark: BenchmarkFixture, call: Call, group: str) -> float | None:
    """Time `call` in rounds; return the median in seconds, None with --benchmark-disable."""
    benchmark.group = group
    benchmark.pedantic(  # type: ignore[no-untyped-call]
        call, rounds=_NUM_ROUNDS, iterations=loops_for(call, _ROUND_S), warmup_rounds=1
    )
    stats = benchmark.stats
    return None if stats is None else float(stats.stats.median)


def pytest_configure(config: pytest.Config) -> None:
    config.option.benchmark_disable_gc = True
    config.option.benchmark_columns = ["median", "iqr", "min", "rounds", "iterations"]
    config.option.benchmark_sort = "median"
    # Peers and what they import may warn about each other; that is not ours to fail on.
    config.addinivalue_line("filterwarnings", "default")
    torch.set_num_threads(1)
    keep_heap()


@pytest.fixture(scope="module")
def filled(request: pytest.FixtureRequest) -> Iterator[tuple[Case, Peer]]:
    """Make the case's buffer, check it and fill it; gone before the next case's is made."""
    case: Case = request.param
    work, peer_type = case.work, PEERS[case.peer_name]
    capacity = work.workload.capacity // _SHRINK
    try:
        if work.kind != "sample":
            check_insert(peer_type, work.workload, num_envs=case.num_envs)
        peer = peer_type(work.workload, capacity, num_envs=case.num_envs)
    except AbsentError as reason:
        pytest.skip(str(reason))
    peer.fill()
    if work.kind == "sample":
        check_sample(peer, work.workload, work.num_rows, range(capacity))
    yield case, peer
    del peer
    gc.collect()


@pytest.fixture
def bench(filled: tuple[Case, Peer], benchmark: BenchmarkFixture) -> Bench:
    return Bench(*filled, benchmark)
