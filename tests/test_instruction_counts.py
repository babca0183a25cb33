# SPDX-License-Identifier: MIT
"""How instructions are counted and compared (tests/counts): what callgrind wrote, what differs, what is accepted."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from counts import compare
from counts.compare import KEPT, Count, count_of, differences, keep, read_kept

if TYPE_CHECKING:
    from pathlib import Path

# Of callgrind 3.19: a program whose insert() takes six instructions, calls publish(), which takes four, and the C
# library three times.
DUMP = """\
# callgrind format
version: 1
part: 2

desc: Trigger: Client Request: add
positions: line
events: Ir
summary: 1018

ob=(8) /build/hot_paths
fl=(1) ???
fn=(1) insert()
0 6
cob=(3) /lib/libc.so.6
cfi=(9) memmove.S
cfn=(2) memcpy
calls=2 264
0 1000
cfn=(3) publish()
calls=1 0
0 4
cob=(3)
cfn=(4) free
calls=1 10
0 8

fn=(3)
0 3
+1 1

ob=(3)
fl=(9)
fn=(2)
264 990
* 10
fn=(4)
10 8

ob=(8)
fl=(1)
fn=(5) main
cfn=(1)
calls=2 0
0 1018

totals: 1018
"""


def test_the_programs_own_instructions_are_counted_and_calls_of_libraries() -> None:
    assert count_of(DUMP, "/build/hot_paths", 1) == Count(10, 3)
    assert count_of(DUMP, "/build/hot_paths", 4) == Count(2.5, 0.75)


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (Count(102, 2), None),
        (Count(98, 2), None),
        (Count(102.1, 2), r"100 instructions a row became 102.1 \(\+2.1 %\)"),
        (Count(97.9, 2), r"100 instructions a row became 97.9 \(-2.1 %\)"),
        (Count(101, 2.03), None),
        (Count(100, 3), "2 calls of libraries a row became 3"),
        (Count(100, 1), "2 calls of libraries a row became 1"),
        (Count(50, 0), r"\(-50.0 %\); 2 calls of libraries a row became 0"),
    ],
)
def test_more_than_two_percent_is_told(now: Count, says: str | None) -> None:
    told = differences({"add": Count(100, 2), "same": Count(5, 0)}, {"same": Count(5, 0), "add": now})
    assert set(told) == (set() if says is None else {"add"})
    if says is not None:
        assert re.search(says, told["add"])


def test_a_call_now_and_then_is_told_where_there_was_none() -> None:
    assert differences({"add": Count(100, 0)}, {"add": Count(100, 0.02)}) == {}
    assert differences({"add": Count(100, 0)}, {"add": Count(100, 0.03)}).keys() == {"add"}


def test_paths_that_came_or_went_are_told() -> None:
    told = differences({"old": Count(1, 0)}, {"new": Count(2, 0)})
    assert told == {"new": "is not kept; 2 instructions a row", "old": "is kept, and no longer counted"}


def test_what_is_accepted_is_kept_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    path.write_text("{}")
    first = {"sample": Count(3, 0.5), "add": Count(1.25, 0), "gone": Count(1, 1)}
    keep("gcc-1", first, ["all"], path)
    keep("gcc-2", first, ["add"], path)
    assert read_kept("gcc-1", path) == first
    assert read_kept("gcc-2", path) == {"add": first["add"]}
    assert read_kept("gcc-3", path) == {}
    assert list(read_kept("gcc-1", path)) == ["add", "gone", "sample"]
    now = {"sample": Count(4, 0), "add": Count(2, 0)}
    keep("gcc-1", now, ["add", "gone"], path)
    assert read_kept("gcc-1", path) == {"sample": Count(3, 0.5), "add": Count(2, 0)}
    keep("gcc-1", now, ["all"], path)
    assert read_kept("gcc-1", path) == now
    assert read_kept("gcc-2", path) == {"add": first["add"]}
    assert '    "add": [2, 0],\n' in path.read_text()  # a path a line


def test_every_path_is_kept_for_the_compiler_of_ci() -> None:
    source = KEPT.with_name("hot_paths.cpp").read_text()
    names = re.findall(r'^ +\{"([\w-]+)", ', source, re.MULTILINE)
    kept = json.loads(KEPT.read_text())
    assert "gcc-12 x86-64 avx2" in kept
    for of_conditions in kept.values():
        assert sorted(of_conditions) == sorted(names)


def test_nothing_counted_is_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compare, "counted", lambda _: ("gcc-12", {"add": Count(3, 0), "sample": Count(0, 0)}))
    monkeypatch.setattr("sys.argv", ["compare.py", str(tmp_path), "--accept", "all"])
    with pytest.raises(SystemExit, match="no instructions of sample were counted"):
        compare.main()
