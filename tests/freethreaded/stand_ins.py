# SPDX-License-Identifier: MIT
"""A pytest plugin for interpreters that not every package of the tests exists for: what needs one is skipped.

No list says which tests these are. While test files are imported, a stand-in takes the place of each module that they
name and that is not installed; a test that comes to use one is skipped, and so is one in which fastreplay itself asks
for such a module, and a file that cannot be imported so. With `--parallel-threads`, files about the process as a whole
are left out besides.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import re
import sys
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

TESTS = Path(__file__).parents[1]
# Threads of a test's own, signals, forks and counts of memory tell nothing while other tests run.
ABOUT_THE_PROCESS = {"ctypes", "gc", "multiprocessing", "signal", "subprocess", "threading", "tracemalloc"}

_running = False  # a test, and not the import of its file
_was_skipped = pytest.StashKey[bool]()


def named_in(path: Path) -> set[str]:
    """Return the top-level modules that a file imports anywhere."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def needed_by(path: Path) -> set[str]:
    """Return the modules that are not installed and that a test file imports, or one of tests/ that it imports."""
    named, seen = named_in(path), {path}
    while more := {TESTS / f"{name}.py" for name in named} - seen:
        seen |= more
        named |= set[str]().union(*(named_in(other) for other in more if other.exists()))
    return named & MISSING


def is_installed(name: str) -> bool:
    """Tell whether there is such a module; a folder that happens to have its name is none."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


def missing() -> set[str]:
    """Return the modules that the tests name and that are not installed."""
    sources = [path for folder in ("tests", "examples", "fastreplay") for path in (TESTS.parent / folder).rglob("*.py")]
    local = {path.stem for path in sources} | {path.parent.name for path in sources}
    named = set[str]().union(*map(named_in, sources)) - local
    return {name for name in named if not is_installed(name)}


MISSING = missing()


def _needs(name: str) -> None:
    if _running:
        pytest.skip(f"needs {name.partition('.')[0]}")


class StandIn(ModuleType):
    """Something of a module that is not there: takes what test files do with it when they are imported."""

    __path__ = []  # noqa: RUF012 - it has modules within

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._used(name)

    def _used(self, name: object = "") -> StandIn:
        _needs(self.__name__)
        return StandIn(f"{self.__name__}.{name}")

    __getitem__ = __or__ = __ror__ = __add__ = __mul__ = __neg__ = _used

    def __call__(self, *args: Any, **_: Any) -> Any:
        if len(args) == 1 and isinstance(args[0], FunctionType):  # a decorator: the test has none of its arguments
            return lambda: _needs(self.__name__)
        return self._used()

    def __bool__(self) -> bool:
        _needs(self.__name__)
        return False

    def __eq__(self, other: object) -> bool:
        _needs(self.__name__)
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __instancecheck__(self, instance: object) -> bool:
        return False  # nothing is


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in MISSING:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Leave it empty."""


_finder = _Finder()


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Give stand-ins from now on: pytest's other plugins have been imported."""
    sys.meta_path.append(_finder)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish() -> None:
    """Have imports fail from now on, as they do for users."""
    sys.meta_path.remove(_finder)
    for name in [name for name, module in sys.modules.items() if isinstance(module, StandIn)]:
        del sys.modules[name]


def _stand_in_among(values: Iterable[object]) -> StandIn | None:
    for value in values:
        if isinstance(value, StandIn):
            return value
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
        if (found := _stand_in_among(inner)) is not None:
            return found
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests that get a stand-in; with several threads a test, leave out files about the whole process."""
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if (given := _stand_in_among(parameters.values())) is not None:
            item.add_marker(pytest.mark.skip(reason=f"needs {given.__name__.partition('.')[0]}"))
    if getattr(config.option, "parallel_threads", 1) in {1, "1"}:
        return
    paths = {item.path for item in items}
    process_wide = {path for path in paths if named_in(path) & ABOUT_THE_PROCESS}
    config.hook.pytest_deselected(items=[item for item in items if item.path in process_wide])
    items[:] = [item for item in items if item.path not in process_wide]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Skip a file that does more with a stand-in than that takes."""
    report = yield
    if report.failed and collector.path.suffix == ".py" and (needed := needed_by(collector.path)):
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, f"Skipped: needs {', '.join(sorted(needed))}")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Skip a test that failed for lack of a module, maybe in another process, or was skipped half-way."""
    report = yield
    if report.failed and report.when == "teardown" and item.stash.get(_was_skipped, False):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), 0, "Skipped: it was skipped half-way")
    if report.failed:
        stderr = getattr(call.excinfo and call.excinfo.value, "stderr", "")
        told = f"{report.longreprtext} {report.capstdout} {report.capstderr} {stderr}"
        named = re.findall(r"No module named '?(\w+)", told)
        if needed := [name for name in named if not is_installed(name)]:
            report.outcome = "skipped"
            report.longrepr = (str(item.path), 0, f"Skipped: needs {needed[0]}")
    if report.when == "call":
        item.stash[_was_skipped] = report.skipped
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    """Tell stand-ins that a test runs."""
    global _running  # noqa: PLW0603 - pytest runs one test at a time
    _running = True
    return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_teardown() -> Generator[None, object, object]:
    """Tell stand-ins that it is over."""
    global _running  # noqa: PLW0603 - as above
    try:
        return (yield)
    finally:
        _running = False
