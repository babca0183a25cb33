# SPDX-License-Identifier: MIT
"""Fixtures and the Hypothesis profile of the suite."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING, Any

import pytest
from fake_cuda import FakeCuda, RealCuda, cuda_device
from hypothesis import HealthCheck, settings
from reference import ReferenceBuffer
from shares import apart
from support import FIELDS, MakeBuffer, NativeBuffer

if TYPE_CHECKING:
    from pathlib import Path

settings.register_profile(
    "default",
    derandomize=True,  # the same examples on every run; HYPOTHESIS_PROFILE=explore for new ones
    print_blob=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("explore", settings.get_profile("default"), derandomize=False, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


collect_ignore = ["fuzz_guided.py"]  # imports what only make fuzz installs, for doctests that it has none of

LONGEST = ("test_why.py", "test_workers.py", "test_examples.py", "test_interruptions.py", "test_packaging.py")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Under -m cuda, pass over files without such tests: they import what machines with a GPU do not have."""
    if config.getoption("markexpr") != "cuda" or collection_path.suffix != ".py" or not collection_path.is_file():
        return None
    return True if "cuda_device" not in collection_path.read_text() else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the tests that take seconds each, lest one of several processes be left with them in the end."""
    items[:], later = apart(items)
    config.hook.pytest_deselected(items=later)
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish() -> None:
    """Let the collector pass over what is there before the first test: with torch, half a second each time."""
    gc.collect()
    gc.freeze()


def pytest_runtest_logstart(location: tuple[str, int | None, str]) -> None:
    """Do the same before each file of tests, for what those before it have imported."""
    if location[0] != _latest[0]:
        _latest[0] = location[0]
        gc.collect()
        gc.freeze()


_latest = [""]


@pytest.fixture(params=["torch", "numpy", "reference"])
def make_buffer(request: pytest.FixtureRequest) -> MakeBuffer:
    """Make the native buffer with either output, or the reference: one contract for all."""
    kind: str = request.param

    def make(capacity: Any, fields: Any = FIELDS, *, seed: Any = 0) -> Any:
        if kind == "reference":
            return ReferenceBuffer(capacity, fields, seed=seed)
        return NativeBuffer(capacity, fields, seed=seed, output=kind)

    return make


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Stand in for a CUDA device."""
    fake = FakeCuda()
    fake.install(monkeypatch)
    return fake


@pytest.fixture(params=["fake", pytest.param("real", marks=cuda_device)])
def any_cuda(request: pytest.FixtureRequest) -> FakeCuda | RealCuda:
    """Give a device, a fake one and a real one."""
    if request.param == "real":
        return RealCuda()
    fake: FakeCuda = request.getfixturevalue("cuda")
    return fake


@pytest.fixture(params=["torch", "numpy"])
def output(request: pytest.FixtureRequest) -> str:
    """Name the output of a native buffer."""
    kind: str = request.param
    return kind
