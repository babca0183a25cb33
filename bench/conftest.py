# SPDX-License-Identifier: MIT
"""How `pytest bench` measures: the experiments' contestants, one at a time, torch on one thread."""

from __future__ import annotations

import pytest
import torch
from timing import keep_heap


def pytest_configure(config: pytest.Config) -> None:
    config.option.benchmark_disable_gc = True
    config.option.benchmark_columns = ["median", "iqr", "min", "rounds", "iterations"]
    config.option.benchmark_sort = "median"
    # Peers and what they import may warn about each other; that is not ours to fail on.
    config.addinivalue_line("filterwarnings", "default")
    torch.set_num_threads(1)
    keep_heap()
