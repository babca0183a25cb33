# SPDX-License-Identifier: MIT
"""All measurements in their quick form, and rivals that fail in every way: none of them stops the others."""

from __future__ import annotations

import argparse
import itertools
import json
import runpy
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import everything
import pytest
import table
import threads
from absence import AbsentError, excused
from peers import PEERS, Call, Fastreplay, NumpyRing, TorchRL
from report import to_json, to_markdown
from timing import take_turns
from tqdm import tqdm
from works import WORKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from report import Result
    from workloads import Columns, Transition
    from works import Work

FOLDER = Path(__file__).parent
RESULTS = ("", "-target", "-threads", "-sb3", "-loader", "-end-to-end")


def run_here(command: Sequence[str | Path], *, check: bool) -> subprocess.CompletedProcess[str]:
    """Run a Python script as a process of its own would, but where torch and the peers are imported already."""
    executable, *arguments = map(str, command)
    assert executable == sys.executable
    assert not check
    status: object = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        try:
            runpy.run_path(arguments[0], run_name="__main__")
        except SystemExit as left:
            status = left.code or 0
    assert isinstance(status, int), status
    return subprocess.CompletedProcess(arguments, status)


@pytest.mark.filterwarnings("default")  # as without pytest: those of the peers are theirs
def test_everything_runs_in_its_quick_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(everything, "subprocess", SimpleNamespace(run=run_here))
    monkeypatch.setattr(sys, "argv", ["everything.py", "--quick", "--out", str(tmp_path)])
    assert everything.main() == 0
    printed = capsys.readouterr().out
    for suffix in RESULTS:
        reports = [path for path in tmp_path.glob("*.md") if path.stem.endswith(suffix)]
        assert reports, suffix
        for path in reports:
            assert path.read_text() in printed
            assert json.loads(path.with_suffix(".json").read_text())["header"]
    assert len(list(tmp_path.iterdir())) == 2 * len(RESULTS)


def test_one_script_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    scripts = {"bad.py": "raise SystemExit(3)", "good.py": "import sys; print('measured', *sys.argv[1:])"}
    for name, text in scripts.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(everything, "SCRIPTS", [str(tmp_path / name) for name in scripts])
    monkeypatch.setattr(sys, "argv", ["everything.py", "--quick"])
    assert everything.main() == 1
    said = capfd.readouterr()
    assert said.out == "measured --quick\n"
    assert "bad.py failed" in said.err
    assert "good.py failed" not in said.err


class PanicError(BaseException):
    """What Rust's panics are in Python: no Exception."""


def _fail(*_: object) -> None:
    message = "unfit\nfor this"
    raise PanicError(message)


fail: Any = _fail


class FailsToBuild(NumpyRing):
    _build = fail


class FailsToFill(NumpyRing):
    fill = fail


class FailsToAdd(NumpyRing):
    add = extend = fail


class FailsToSample(NumpyRing):
    sample = fail


class FailsLate(NumpyRing):
    """When it is timed: each check calls at most eight times."""

    def _late(self, call: Call) -> Call:
        calls = itertools.count()
        return lambda: fail() if next(calls) >= 10 else call()

    def adder(self, rows: Sequence[Transition]) -> Call:
        return self._late(super().adder(rows))

    def extender(self, blocks: Sequence[Columns]) -> Call:
        return self._late(super().extender(blocks))

    def sampler(self, batch_size: int) -> Call:
        return self._late(super().sampler(batch_size))


class ForgetsRows(NumpyRing):
    """Gives rows that were never stored."""

    def sample(self, batch_size: int) -> Any:
        return (super().sample(batch_size)[0] * 0, *super().sample(batch_size)[1:])


FAILING = (FailsToBuild, FailsToFill, FailsToAdd, FailsToSample, FailsLate, ForgetsRows)


def measure(work: Work) -> Result:
    options = argparse.Namespace(quick=True, rounds=3, round_ms=0.5)
    with tqdm(disable=True) as bar:
        return table._measure(work, options, bar)


@pytest.mark.parametrize("peer", FAILING)
@pytest.mark.parametrize("key", ["add-pendulum", "extend-cheetah", "sample-pendulum"])
def test_a_rival_that_fails_is_left_out_with_its_reason(
    key: str, peer: type[NumpyRing], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "PEERS", {"fastreplay": Fastreplay, "numpy": NumpyRing, "sb3": peer})
    work = next(work for work in WORKS if work.key == key)
    result = measure(work)
    assert result.seconds.keys() - {"floor", "kernel", "copy"} == {"fastreplay", "numpy"}
    expected = "AssertionError: " if peer is ForgetsRows else "PanicError: unfit"
    assert result.absent["sb3"].startswith(expected)
    text = to_markdown([result], {})
    assert f"SB3: {result.absent['sb3']}" in text
    assert to_json([result], {})["works"][0]["absent"] == result.absent


@pytest.mark.parametrize("peer", FAILING)
def test_ours_must_not_fail(peer: type[NumpyRing], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "PEERS", {"fastreplay": peer, "numpy": NumpyRing})
    with pytest.raises((PanicError, AssertionError)):
        measure(WORKS[0])


@pytest.mark.parametrize("peer", FAILING[:4])
def test_a_rival_that_fails_in_a_thread_is_left_out(peer: type[NumpyRing], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "PEERS", {**PEERS, "sb3": peer})
    monkeypatch.setattr(threads, "_PEERS", ("fastreplay", "numpy", "sb3"))
    found = threads._python(1000, 2, 0.05)
    assert found["rows_per_s"].keys() == {"fastreplay", "numpy"}
    assert found["absent"] == {"sb3": "PanicError: unfit"}
    assert f"- {peer.label}: PanicError: unfit" in threads._python_table(found)


def test_a_rival_that_does_not_end_is_left_out() -> None:
    absent: dict[str, str] = {}

    def hang() -> None:
        while True:
            time.sleep(60)

    with excused("rlox", absent, limit_s=0.05):
        hang()
    assert absent == {"rlox": "TimeoutError: no end within 0.05 s"}
    with pytest.raises(TimeoutError), excused("fastreplay-out", absent, limit_s=0.05):
        hang()


def test_what_is_excused() -> None:
    absent: dict[str, str] = {}
    with excused("fastreplay", absent):
        raise AbsentError("it has no such thing")
    with excused("foreach-2-threads", absent):
        raise ValueError
    assert absent == {"fastreplay": "it has no such thing", "foreach-2-threads": "ValueError: "}
    for error in (KeyboardInterrupt, SystemExit):
        with pytest.raises(error), excused("sb3", absent):
            raise error
    for ours in ("soft_update_", "loader", "native", "kernel"):
        with pytest.raises(ValueError, match="ours"), excused(ours, absent):
            raise ValueError("ours")


def test_turns_go_on_without_who_failed() -> None:
    absent: dict[str, str] = {}
    seconds = take_turns({"sb3": fail, "numpy": lambda: 1.0}, 3, lambda: None, absent)
    assert seconds == {"numpy": [1.0, 1.0, 1.0]}
    assert absent == {"sb3": "PanicError: unfit"}


def test_torchrl_takes_flags_as_it_stores_them() -> None:
    """A vector environment's flags are bool, its storage has the dtypes of the first insert."""
    pytest.importorskip("torchrl", reason="TorchRL comes with make .venv/.bench")
    work = next(work for work in WORKS if work.key == "extend-cheetah")
    peer = table._filled(TorchRL, work, 1000)
    call, _ = table._call(peer, work)
    call()
