# SPDX-License-Identifier: MIT
"""Updating a target network on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from absence import AbsentError
from conftest import timed
from nets import NETS, Net, flattened
from updates import UPDATERS, check_exact

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture


@pytest.mark.parametrize("name", UPDATERS)
@pytest.mark.parametrize("net", NETS, ids=lambda net: net.key)
def bench_target(net: Net, name: str, benchmark: BenchmarkFixture) -> None:
    updater = UPDATERS[name]
    target, online = net.pair()
    if updater.is_flat:
        target, online = flattened(target), flattened(online)
    try:
        call = updater.prepare(target, online)
    except AbsentError as reason:
        pytest.skip(str(reason))
    check_exact(updater, call, target, online)
    median_s = timed(benchmark, call, f"target-{net.key}")
    if median_s is not None:
        num_elements = sum(parameter.numel() for parameter in target.parameters())
        benchmark.extra_info["us_per_call"] = median_s * 1e6
        benchmark.extra_info["elements_per_s"] = num_elements / median_s
    check_exact(updater, call, target, online)
