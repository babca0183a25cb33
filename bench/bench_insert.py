# SPDX-License-Identifier: MIT
"""Inserting, one transition or one vector environment's step at a time, into a full ring."""

from __future__ import annotations

import pytest
from conftest import Bench, cases
from works import ADD_ROWS, EXTEND_BLOCKS, add_rows, extend_blocks


@pytest.mark.parametrize("filled", cases("add"), indirect=True, ids=str)
def bench_add(bench: Bench) -> None:
    work = bench.case.work
    bench.measure(bench.peer.adder(add_rows(work.workload)), calls_each=ADD_ROWS)


@pytest.mark.parametrize("filled", cases("extend"), indirect=True, ids=str)
def bench_extend(bench: Bench) -> None:
    work = bench.case.work
    blocks = extend_blocks(work.workload, work.num_rows)
    bench.measure(bench.peer.extender(blocks), calls_each=EXTEND_BLOCKS)
