# SPDX-License-Identifier: MIT
"""All questions in their quick form, and what the command makes of its arguments."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import run
import torch
from render import aligned

FOLDER = Path(__file__).parent
ON_CPU = (
    "buffers",
    "checkpoints",
    "datasets",
    "end-to-end",
    "frames",
    "given-out",
    "growth",
    "loader",
    "mixtures",
    "n-steps",
    "priorities",
    "ring-files",
    "sb3",
    "sequences",
    "target",
    "threads",
)


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
    monkeypatch.setattr(run, "subprocess", SimpleNamespace(run=run_here))
    turn = os.environ.get("FASTREPLAY_TURN")  # make test runs a third, the others with the next commits
    asked = ON_CPU[int(turn) % 3 :: 3] if turn else ON_CPU
    assert run.main(["--quick", "--out", str(tmp_path), *(name.replace("-", "_") for name in asked)]) == 0
    printed = capsys.readouterr().out
    for name in asked:
        (path,) = tmp_path.glob(f"*-{name}.md")
        assert aligned(path.read_text()) in printed
        report = json.loads(path.with_suffix(".json").read_text())
        assert "--quick" in report["header"]["command"]
        assert all(experiment["readings"] or experiment["absent"] for experiment in report["experiments"])
    assert len(list(tmp_path.iterdir())) == 2 * len(asked)


def test_one_question_that_fails_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[str]] = []

    def ask(command: list[str], **_: Any) -> SimpleNamespace:
        asked.append(command[2:])
        return SimpleNamespace(returncode=command[2] == "sb3")

    monkeypatch.setattr(run, "subprocess", SimpleNamespace(run=ask))
    options = ["--quick", "--only=x", "--rounds=3", "--round-ms=0.5", "--commit=c", "--compare=e.json", "--out=o"]
    assert run.main([*options, "sb3", "target"]) == 1
    assert asked == [["sb3", *options], ["target", *options]]
    assert capfd.readouterr().err == "sb3 failed\n"


def test_files_are_written_by_whole_runs_and_where_asked() -> None:
    assert run._parse([]).out == FOLDER / "results"
    assert run._parse(["--quick"]).out is run._parse(["--only", "add"]).out is None
    assert run._parse(["--quick", "--out", "here"]).out == Path("here")


def test_what_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run.main(["buffer"])
    assert "expected buffers, checkpoints, datasets, end_to_end," in capsys.readouterr().err
    assert run.main(["target", "--only", "add-"]) == 1
    assert "there are target-2x64, target-twin-critic" in capsys.readouterr().err


def test_one_experiment_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "target",
        "--quick",
        "--only=2x64",
        "--rounds=3",
        "--round-ms=0.1",
        "--commit=abc",
        "--out",
        str(tmp_path),
    ]
    assert run.main(arguments) == 0
    (path,) = tmp_path.glob("*.json")
    report = json.loads(path.read_text())
    (experiment,) = report["experiments"]
    assert experiment["key"] == "target-2x64"
    assert experiment["readings"]["fastreplay"]["s"]["rounds"] == 3
    assert "3 rounds of 0.1 ms each, by turns" in report["header"]["method"]
    printed = capsys.readouterr().out
    assert "- commit: abc\n" in printed
    assert "Compared" not in printed
    assert run.main([*arguments[:-2], "--compare", str(tmp_path)]) == 0  # by what was the fastest then
    printed = capsys.readouterr().out
    assert run.main([*arguments[:-2], "--compare", str(tmp_path / "missing")]) == 0
    assert f"target: nothing to compare with in {tmp_path / 'missing'}\n" in capsys.readouterr().err
    assert re.search(r"Compared.*commit abc\. \d of 1 slower.*\n2×64, `fr.SoftUpdate`  +\S", printed, re.DOTALL)  # noqa: RUF001


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
@pytest.mark.parametrize("question", ["gpu_soft_update", "gpu_pipeline"])
def test_without_a_device_one_line_says_so(question: str, tmp_path: Path) -> None:
    """On a machine that has NumPy and torch and nothing else of what is measured, or measures, elsewhere."""
    for module in ("gymnasium", "stable_baselines3", "torchrl", "cpprb", "rlox", "tqdm", "pytest"):
        (tmp_path / f"{module}.py").write_text("raise ImportError")
    command = (sys.executable, FOLDER / "run.py", question)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2, done.stderr
    assert not done.stdout
    (line,) = done.stderr.splitlines()
    assert "needs" in line
    assert "NVIDIA GPU" in line
