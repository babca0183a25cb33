# SPDX-License-Identifier: MIT
# ruff: noqa: RUF001  the signs of the printed table
"""The target updates' tables over made-up times, and one run of the real thing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import table as bench_table
import torch
from judging import Target
from nets import NETS, flattened
from report_target import ThreadsTarget, UpdateResult, UpdateWork, to_json, to_markdown
from updates import TAU, Updater, check, check_exact, detached

if TYPE_CHECKING:
    from pathlib import Path

    from peers import Call
    from torch import nn

SECONDS = {
    "foreach": [4e-6, 5e-6, 40e-6],
    "flat": [3e-6, 3e-6, 3e-6],
    "flat-2-threads": [2e-6, 2e-6, 2e-6],
    "fastreplay": [1e-6, 1e-6, 10e-6],
    "fastreplay-2-threads": [0.8e-6, 0.8e-6, 8e-6],
}


def test_bounds_are_judged_round_by_round() -> None:
    least, most = Target(4, "foreach"), Target(1.1, "flat", is_ceiling=True)
    assert least.ratio(SECONDS) == pytest.approx(4)
    assert least.verdict(4.0) == "met"
    assert least.verdict(3.9) == "not met"
    assert most.ratio(SECONDS) == pytest.approx(1 / 3)
    assert most.verdict(1.2) == "not met"
    assert Target(1, "foreach", tolerance=0.03).verdict(0.98) == "met"
    assert Target(1, "foreach", tolerance=0.03).verdict(0.96) == "not met"
    assert Target(1, "sb3").ratio(SECONDS) is None


def test_the_gain_by_threads_is_compared_with_anothers() -> None:
    assert ThreadsTarget(0.95, "flat").ratio(SECONDS) == pytest.approx(1.25 / 1.5)
    assert ThreadsTarget(0.95, "foreach").ratio(SECONDS) is None


def test_the_tables_hold_what_was_measured() -> None:
    work = UpdateWork(NETS[0], (Target(5, "foreach"), ThreadsTarget(0.8, "flat")), is_threaded=True)
    result = UpdateResult(work, 6, 4481, SECONDS, {"sb3": "stable_baselines3 is not installed"})
    text = to_markdown([result], {"date": "today"})
    assert "- date: today" in text
    assert "| 2×64 | `_foreach_lerp_` | at least 5× | 4.00× | not met |" in text
    assert "over that of one flat `lerp_` | at least 0.8× | 0.83× | met |" in text
    assert "SB3: stable_baselines3 is not installed" in text
    content = json.loads(json.dumps(to_json([result], {})))
    assert [target["met"] for target in content["works"][0]["targets"]] == [False, True]


def test_one_tensor_holds_all_elements() -> None:
    target, _ = NETS[0].pair()
    assert torch.equal(detached(flattened(target))[0][:192].view(64, 3), detached(target)[0])


def test_wrong_updates_are_found() -> None:
    target, online = NETS[0].pair()

    def convex() -> None:
        for to, source in zip(detached(target), detached(online), strict=True):
            to.mul_(1 - TAU).add_(source, alpha=TAU)

    def writes_online() -> None:
        torch._foreach_lerp_(detached(target), detached(online), TAU)
        detached(online)[0][0] += 1

    def updater(*, is_lerp: bool) -> Updater:
        return Updater("wrong", "", _unused, is_lerp=is_lerp)

    check_exact(updater(is_lerp=False), convex, target, online)
    with pytest.raises(AssertionError, match="not what"):
        check_exact(updater(is_lerp=True), convex, target, online)
    with pytest.raises(AssertionError, match="wrong: Tensor-likes are not close"):
        check(updater(is_lerp=False), lambda: None, target, online)
    with pytest.raises(AssertionError, match="online network changed"):
        check(updater(is_lerp=True), writes_online, target, online)


def _unused(_target: nn.Module, _online: nn.Module) -> Call:
    raise NotImplementedError


def test_the_table_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench_table.main(["--quick", "--only", "target-2x64", "--rounds", "2", "--round-ms", "0.1", "--out", str(tmp_path)])
    (markdown,) = tmp_path.glob("*-target.md")
    assert capsys.readouterr().out == markdown.read_text()
    assert {path.suffix for path in tmp_path.iterdir()} == {".md", ".json"}
