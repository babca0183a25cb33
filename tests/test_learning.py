# SPDX-License-Identifier: MIT
"""The tables of examples/learning.py: made from runs, merged with what stands there, and that of the page."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import run_as_script

ROOT = Path(__file__).parents[1]
DOCS, PAGE = ROOT / "docs" / "learning", ROOT / "docs" / "learning.md"
sys.path.append(str(ROOT / "examples"))

import learning  # noqa: E402


def rows(path: Path) -> list[dict[str, Any]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def run_here(command: list[str], *, check: bool) -> subprocess.CompletedProcess[str]:
    """Run a Python script as a process of its own would, but where torch is imported already."""
    executable, *arguments = command
    assert executable == sys.executable
    assert not check
    status = run_as_script(Path(arguments[0]), *arguments[1:])
    assert status is None or isinstance(status, int), status
    return subprocess.CompletedProcess(command, status or 0)


def test_runs_become_table_curves_and_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of 20 steps learns nothing: it must be said to have missed its goal."""
    task = learning.TASKS["ddpg"]._replace(seeds=(1,))
    monkeypatch.setitem(learning.TASKS, "ddpg", task)
    monkeypatch.setattr(learning, "subprocess", SimpleNamespace(run=run_here))
    for file in ("results.csv", "curves.csv"):  # rows of others that stay, and rows of its own that go
        (tmp_path / file).write_text((DOCS / file).read_text())
    page = tmp_path.with_suffix(".md")
    page.write_text(PAGE.read_text())
    status = learning.main(["ddpg", "--steps", "20", "--out", str(tmp_path), "--runs", str(tmp_path / "runs")])
    assert status == 1
    assert "ddpg, seed 1: expected at least -250, got -" in capsys.readouterr().err
    for file in ("results.csv", "curves.csv"):
        before, after = rows(DOCS / file), rows(tmp_path / file)
        assert [row for row in after if row["task"] != "ddpg"] == [row for row in before if row["task"] != "ddpg"]
        (mine,) = (row for row in after if row["task"] == "ddpg")
        assert mine["seed"] == "1"
        assert {mine.get("steps"), mine.get("step")} == {"20", None}
    assert "| DDPG | Pendulum-v1 | 20 |" in page.read_text()
    around = re.compile(f"{learning.MARKS[0]}.*{learning.MARKS[1]}", re.DOTALL)
    assert around.sub("", page.read_text()) == around.sub("", PAGE.read_text())
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_fails_ends_it_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the place of ddpg.py, one that fails at once: what that says of its arguments, tests/test_examples.py asks."""
    failing = "import json, sys; print(json.dumps(sys.argv[1:]), file=sys.stderr); sys.exit(2)"
    (tmp_path / "ddpg.py").write_text(failing)
    monkeypatch.setattr(learning, "HERE", tmp_path)
    runs = tmp_path / "runs"
    with pytest.raises(SystemExit) as left:
        learning.main(["ddpg", "--steps", "-5", "--out", str(tmp_path / "out"), "--runs", str(runs)])
    assert left.value.code == 2
    assert [json.loads(line) for line in capfd.readouterr().err.splitlines()] == [
        ["--seed", "1", "--steps", "-5", "--save", str(runs / "ddpg-seed1")]
    ]
    assert not (tmp_path / "out").exists()


def test_ctrl_c_ends_it_all_without_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupted)
    with pytest.raises(SystemExit) as left:
        learning.main(["sac", "--out", str(tmp_path / "out"), "--runs", str(tmp_path)])
    assert left.value.code == 130
    assert not (tmp_path / "out").exists()


def test_unknown_tasks_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        learning.main(["ppo"])
    refusal = capsys.readouterr().err
    assert f"task: expected one of {', '.join(learning.TASKS)}, got 'ppo'" in refusal
    assert "dqn-soft, dqn-hard, dqn-prioritized, ddpg, td3, sac, recurrent, memoryless, sac-cheetah" in refusal


def test_the_page_shows_the_tables_of_the_data() -> None:
    _, shown, _ = re.split("|".join(map(re.escape, learning.MARKS)), PAGE.read_text())
    assert shown.strip() == learning.tables(rows(DOCS / "results.csv")).strip()


@pytest.mark.parametrize("name", ["dqn-soft", "dqn-hard", "dqn-prioritized"])
def test_what_dqn_learned_stays_learned(name: str) -> None:
    """The last policy, which nothing chose, on at least nine seeds of ten."""
    last = [float(row["last_return"]) for row in rows(DOCS / "results.csv") if row["task"] == name]
    assert len(last) == 10
    assert sum(value >= learning.TASKS[name].goal for value in last) >= 9, last


def test_what_is_tried_in_vain_is_to_stay_below_its_goal() -> None:
    goal = learning.TASKS["memoryless"].goal
    assert [learning.TASKS["memoryless"].missed(value) for value in (goal - 1, goal)] == [False, True]
    goal = learning.TASKS["recurrent"].goal
    assert [learning.TASKS["recurrent"].missed(value) for value in (goal - 1, goal)] == [True, False]


@pytest.mark.parametrize("name", learning.TASKS)
def test_every_recorded_run_reached_its_goal(name: str) -> None:
    task = learning.TASKS[name]
    mine = [row for row in rows(DOCS / "results.csv") if row["task"] == name]
    assert tuple(int(row["seed"]) for row in mine) == tuple(task.seeds)
    for row in mine:
        assert not task.missed(float(row["best_return"]))
        assert task.goal > float(row["random_return"])
        assert (row["task"], row["env"]) == (name, task.env)
    curves = [row for row in rows(DOCS / "curves.csv") if row["task"] == name]
    assert tuple(dict.fromkeys(int(row["seed"]) for row in curves)) == tuple(task.seeds)
    for seed in task.seeds:
        steps = [int(row["step"]) for row in curves if int(row["seed"]) == seed]
        assert steps == sorted(steps)
        assert {str(steps[-1])} == {row["steps"] for row in mine}
