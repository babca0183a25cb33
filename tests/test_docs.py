# SPDX-License-Identifier: MIT
"""Every block of Python in the README and the docs, run page by page; the pages' links; and the map of the house."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from shares import by_turns

ROOT = Path(__file__).parents[1]
PAGES = [*(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "bench/README.md"))]
PAGES += sorted((ROOT / "docs").rglob("*.md"))


def blocks_of(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], check=False, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


GUIDE = ROOT / "docs" / "guide.md"
WITH_CODE = [page for page in PAGES if blocks_of(page) and page != GUIDE]


# Each page by itself, in one process for all: each import of torch costs seconds.
RUN_PAGES = """
import runpy, sys

for page in sys.argv[1:]:
    print("of", page, file=sys.stderr)
    runpy.run_path(page, run_name="__main__")
"""


@by_turns(0, 2)
def test_the_python_of_the_pages_runs(tmp_path: Path) -> None:
    names = []
    for page in WITH_CODE:
        names.append(page.relative_to(ROOT).as_posix().replace("/", "-") + ".py")
        (tmp_path / names[-1]).write_text("\n".join(blocks_of(page)))
    (tmp_path / "run_pages.py").write_text(RUN_PAGES)
    assert len(names) > 3
    run(tmp_path, "run_pages.py", *names)


# Workers that are not forked import the blocks anew. They need no learner, whose optimiser imports as much as torch.
GUARD = """
import multiprocessing

if multiprocessing.current_process().name == "MainProcess":
"""

# What follows the blocks, in one process for all ways: each import of torch costs seconds.
CHECK = """
import torch
import guide

if __name__ == "__main__":
    assert len(guide.buffer) == 1000
    assert guide.target.shape == (256,)
    assert torch.equal(guide.target[guide.term], guide.rew[guide.term])
    loader = guide.loader
    for method, num_epochs in (("fork", 2), ("spawn", 1)):
        loader.multiprocessing_context = method
        epochs = []
        for _ in range(num_epochs):
            torch.manual_seed(3)
            batches = iter(loader)
            epochs.append([next(batches).ticket.tolist() for _ in range(4)])
        del batches
        assert len(set(map(tuple, epochs[0]))) == 4, f"{method}: two workers drew the same"
        assert epochs[0] == epochs[-1], f"{method}: the draws do not follow the seeds"
        print(method)
"""


@by_turns(1, 2)
def test_the_python_of_the_guide_runs_and_its_workers_draw_their_own(tmp_path: Path) -> None:
    first, *learner, last = blocks_of(GUIDE)
    assert learner
    guarded = GUARD + textwrap.indent("\n".join(learner), "    ")
    (tmp_path / "guide.py").write_text("\n".join((first, guarded, last)))
    (tmp_path / "check.py").write_text(CHECK)
    assert run(tmp_path, "check.py").split() == ["fork", "spawn"]


def test_no_code_is_of_another_kind() -> None:
    for page in PAGES:
        assert set(re.findall(r"^```(\w*)\n", page.read_text(), re.MULTILINE)) <= {"python", ""}, page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("http"):
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page}: {link}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, link


def test_the_files_that_pages_name_exist() -> None:
    folders = ("csrc", "fastreplay", "tests", "bench", "examples")
    known = {path.as_posix() for folder in folders for path in (ROOT / folder).rglob("*.*")}
    for page in PAGES:
        for name in re.findall(r"`([\w/]+\.(?:pyx?|pxd|pyi|hpp|cpp|h|cu|sh))`", page.read_text()):
            assert any(path.endswith("/" + name) for path in known), f"{page}: {name}"


def test_the_map_names_files_that_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"`((?:fastreplay|csrc|bench|tests|docs)/[\w./]+)`", text))
    assert len(named) > 25
    for name in named:
        assert (ROOT / name).exists(), name
    for room, files in re.findall(r"^\| `([\w/]+)`(?:, `[\w/]+`)? \| [^|]* \| ([^|]*) \|$", text, re.MULTILINE):
        for file in re.findall(r"`([\w./]+)`", files):
            assert (ROOT / room / file).exists() or (ROOT / file).exists(), (room, file)
    rooms = {path.name for path in (ROOT / "fastreplay").iterdir() if (path / "__init__.py").exists()}
    assert rooms == set(re.findall(r"^\| `fastreplay/(\w+)` \|", text, re.MULTILINE))
    assert (
        len(re.findall(r"^\|", text.split("## Which file for which change")[1].split("## Words")[0], re.MULTILINE))
        >= 12
    )


def test_the_readme_is_read_in_a_minute() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100
