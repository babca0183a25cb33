# SPDX-License-Identifier: MIT
"""Sampling a minibatch of CPU tensors from a full ring."""

from __future__ import annotations

import pytest
from conftest import Bench, cases


@pytest.mark.parametrize("filled", cases("sample"), indirect=True, ids=str)
def bench_sample(bench: Bench) -> None:
    bench.measure(bench.peer.sampler(bench.case.work.num_rows))
