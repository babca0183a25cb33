# SPDX-License-Identifier: MIT
"""The examples run, reproduce themselves, survive Ctrl-C, and refuse what they cannot do."""

from __future__ import annotations

import csv
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
DDPG = ROOT / "examples" / "ddpg.py"
SHORT = ["--steps", "260", "--warmup", "100", "--validate-every", "130", "--batch-size", "16"]


def ddpg(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, DDPG, *map(str, arguments)], check=False, capture_output=True, text=True, timeout=300
    )


def curve(folder: Path) -> list[dict[str, str]]:
    with (folder / "curve.csv").open() as file:
        return list(csv.DictReader(file))


def test_ddpg_trains_and_reproduces_itself(tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        done = ddpg(*SHORT, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert "random policy" in done.stdout
        assert "best checkpoint" in done.stdout
        folder = tmp_path / name / "Pendulum-v1-ddpg-seed0"
        assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
        runs.append((curve(folder), torch.load(folder / "best.pt", weights_only=True)))
    assert runs[0][0] == runs[1][0]
    assert [row["step"] for row in runs[0][0] if row["series"] == "validation"] == ["130", "260"]
    for name, value in runs[0][1]["actor"].items():
        assert torch.equal(value, runs[1][1]["actor"][name])


def test_ddpg_other_seed_other_run(tmp_path: Path) -> None:
    for seed in ("0", "1"):
        assert ddpg(*SHORT, "--seed", seed, "--out", tmp_path).returncode == 0
    assert curve(tmp_path / "Pendulum-v1-ddpg-seed0") != curve(tmp_path / "Pendulum-v1-ddpg-seed1")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ddpg_learns(tmp_path: Path, seed: int) -> None:
    done = ddpg("--seed", str(seed), "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    returns = {
        name: float(value) for name, value in re.findall(r"(best checkpoint|random policy) +(-?[\d.]+)", done.stdout)
    }
    assert returns["random policy"] < -900
    assert returns["best checkpoint"] >= -250


def test_ctrl_c_keeps_what_was_learned(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, DDPG, "--steps", "1000000", "--out", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "random policy" in process.stdout.readline()  # training begins now
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped by Ctrl-C" in output
    assert "Traceback" not in errors
    folder = tmp_path / "Pendulum-v1-ddpg-seed0"
    assert "actor" in torch.load(folder / "best.pt", weights_only=True)
    assert (folder / "curve.png").exists()


@pytest.mark.parametrize("env", ["CartPole-v1", "NoSuchEnvironment-v0"])
def test_ddpg_refuses_in_one_line(tmp_path: Path, env: str) -> None:
    done = ddpg("--env", env, "--out", tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("ddpg.py: ")
