# SPDX-License-Identifier: MIT
"""What make gpu does of its steps, on a machine that is made up: they fail, hang, flood, leave something."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pack
import pytest
import try_gpu
from card import Card, find_card
from pack import MOST_BYTES, ROOT, Pack
from step import Step, run_step
from steps import Plan, files_of_cuda_tests

PLAN = Plan("python3", Path("/wheels"), Path("/work"), Path("/out"), Card("NVIDIA H100", 90, 13000), "abc")
PACK = Pack("0f", "abc", 90, "cp312", "fastreplay.whl", ("cython_cmake.whl",))


def shell(name: str, script: str, limit_s: float = 20, **options: Any) -> Step:
    return Step(name, ["sh", "-c", script], limit_s, "steps.txt", **options)


def go_on() -> bool:
    return False


def ignore(_: str) -> None:
    pass


def test_all_steps_are_tried_and_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "2026-01-01-nvidia-h100-gpu-soft-update.md"
    report.write_text("of a run before")
    steps = [
        shell("says", "echo 3 passed; echo 4 passed, $WORD", says=r"\d passed.*", environment={"WORD": "so"}),
        shell("fails", "echo 'what | why' >&2; exit 3"),
        shell("is silent", "echo 0 passed", says=r"[1-9] passed"),
        Step("is no program", ["/nowhere/program"], 1, "steps.txt"),
        shell("reports", f"echo '# Soft updates' > {report}; cat {tmp_path}/summary.md >&2"),
    ]
    assert try_gpu.run(steps, tmp_path, {"card": "a card"}, 60, sys.stdout.write) == 1
    summary = (tmp_path / "summary.md").read_text()
    rows = [line for line in summary.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| step", "| s"], ["| says", "ok"], ["| fails", "**failed**"], ["| is silent", "**failed**"],
        ["| is no program", "**failed**"], ["| reports", "ok"],
    ]  # fmt: skip
    assert rows[1].endswith("| 20 | 4 passed, so |")
    assert rows[2].endswith(r"| status 3; last: what \| why |")
    assert rows[3].endswith("| did not say [1-9] passed; last: 0 passed |")
    assert "No such file" in rows[4]
    assert summary.startswith("# make gpu\n\n- card: a card\n\n| step | | s | of | said |\n")
    assert summary.endswith("# Soft updates\n")
    said = (tmp_path / "steps.txt").read_text()
    assert said in capfd.readouterr().out
    assert "| reports | not run | | 20 | |" in said  # what the summary held while the step ran
    assert sorted(path.name for path in tmp_path.iterdir()) == [report.name, "steps.txt", "summary.md"]


def test_no_failure_is_status_0(tmp_path: Path) -> None:
    assert try_gpu.run([shell("works", "true")], tmp_path, {}, 60, ignore) == 0


def test_a_tool_that_is_not_there_is_no_failure(tmp_path: Path) -> None:
    steps = [shell("checks", "exit 1", needs="no-such-sanitizer"), shell("works", "true", needs="sh")]
    assert try_gpu.run(steps, tmp_path, {}, 60, ignore) == 0
    summary = (tmp_path / "summary.md").read_text()
    assert "| checks | not run | 0.0 | 20 | no no-such-sanitizer here |" in summary
    assert "| works | ok |" in summary


def test_of_all_steps_those_pass_that_a_toolkit_may_lack() -> None:
    needs = {step.name: step.needs for step in PLAN.steps(PACK, build=True) if step.needs}
    tools = dict.fromkeys(("memcheck", "initcheck", "synccheck"), "compute-sanitizer")
    assert needs == {"kernels": "cuobjdump", **tools}


def test_a_step_has_its_own_time_and_what_others_left(tmp_path: Path) -> None:
    steps = [
        shell("is quick", "true", 1),
        shell("hangs, deaf", "trap '' TERM; echo begun; while :; do sleep 30; done", 0.5),
        shell("is next", "echo on", 20, says="on"),
    ]
    start = time.monotonic()
    assert try_gpu.run(steps, tmp_path, {}, 60, ignore) == 1
    assert time.monotonic() - start < 20
    rows = [line for line in (tmp_path / "summary.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert "no end within 1 s; last: begun" in rows[1]
    assert rows[2].startswith("| is next | ok |")


def is_running(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_nothing_outlives_its_step(tmp_path: Path) -> None:
    """Neither what a step that hangs has started, nor what one leaves running that holds its output open."""
    for script, limit_s in (("sleep 300 & echo $!; wait", 0.5), ("sleep 300 & echo $!", 10)):
        start = time.monotonic()
        run_step(shell("leaves", script), tmp_path, limit_s, ignore, go_on)
        assert time.monotonic() - start < 60
        left = int((tmp_path / "steps.txt").read_text().split()[-1])
        deadline = time.monotonic() + 5
        while is_running(left) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not is_running(left)


def test_a_flood_does_not_fill_the_disk(tmp_path: Path) -> None:
    step = shell("floods", "head -c 5000000 /dev/zero; echo; echo end", says="^end")
    outcome = run_step(step, tmp_path, 20, ignore, go_on)
    assert outcome.is_good
    assert (tmp_path / "steps.txt").stat().st_size < 2 << 20


STOPPED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import try_gpu
from card import Card
from step import Step
out = Path(sys.argv[2])
script = f"echo $$ > {out}/id; exec sleep 300"
try_gpu.find_card = lambda: Card("", 90, 13000)
try_gpu.Plan.steps = lambda *_, **__: [
    Step("a", ["true"], 9, "a.txt"), Step("b", ["sh", "-c", script], 300, "a.txt"), Step("c", ["true"], 9, "a.txt"),
]
sys.exit(try_gpu.main([f"--out={out}", f"--work={out}/work"]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_run_that_is_stopped_has_said_what_it_knew(number: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", STOPPED, str(Path(try_gpu.__file__).parent), str(tmp_path)])
    while not (tmp_path / "id").exists() or not (tmp_path / "id").read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(10) == 1
    assert not is_running(int((tmp_path / "id").read_text()))
    summary = (tmp_path / "summary.md").read_text()
    assert "| a | ok |" in summary
    assert "| b | **failed** |" in summary
    assert "| 300 | stopped; last: nothing |" in summary
    assert "| c | not run |" in summary


class Driver:
    """CUDA's driver, as far as it is asked."""

    def __init__(self, count: int, error: int = 0) -> None:
        self.count = count
        self.cuInit = lambda _: error
        self.cuDeviceGet = lambda _, number: number

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802  as CUDA has it
        count._obj.value = self.count
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 13000
        return 0

    def cuDeviceGetName(self, name: Any, _: int, __: ctypes.c_int) -> int:  # noqa: N802
        name.value = b"NVIDIA H100 80GB HBM3"
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, _: ctypes.c_int) -> int:  # noqa: N802
        value._obj.value = {75: 9, 76: 0}[attribute]
        return 0


def test_the_card_is_the_drivers_first() -> None:
    assert find_card(lambda _: Driver(2)) == Card("NVIDIA H100 80GB HBM3", 90, 13000)
    assert find_card(lambda _: Driver(0)) is None
    assert find_card(lambda _: Driver(1, error=100)) is None

    def without_driver(name: str) -> Any:
        raise OSError(name)

    assert find_card(without_driver) is None


def test_without_a_card_one_line_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(try_gpu, "find_card", lambda: None)
    assert try_gpu.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture
def steps_of_main(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Any]]:
    """What main() would run on a card for which the wheel of this tree was packed, and how it calls it."""
    found: list[Any] = []
    monkeypatch.setattr(try_gpu, "find_card", lambda: PLAN.card)
    monkeypatch.setattr(try_gpu, "digest_of_sources", lambda: "0f")
    monkeypatch.setattr(try_gpu, "python_tag", lambda _: "cp312")
    monkeypatch.setattr(try_gpu, "read_pack", lambda folder: PACK if folder.name == "full" else None)
    monkeypatch.setattr(try_gpu, "run", lambda *given: found.extend(given))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    monkeypatch.setenv("PATH", os.environ["PATH"])
    yield found
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("wheels", "options", "is_built", "wheel"),
    [
        ("full", [], False, "of the pack"),
        ("full", ["--build"], True, "built here, as asked"),
        ("empty", [], True, "built here: no pack in"),
    ],
)
def test_the_packed_wheel_is_taken_where_it_fits(
    steps_of_main: list[Any], tmp_path: Path, wheels: str, options: list[str], is_built: bool, wheel: str
) -> None:
    folders = {"wheels": tmp_path / wheels, "work": tmp_path / "work", "out": tmp_path / "out"}
    try_gpu.main([*(f"--{name}={path}" for name, path in folders.items()), *options])
    steps, out, header, *_ = steps_of_main
    assert out == folders["out"]
    assert ("build" in {step.name for step in steps}) == is_built
    assert header["wheel"].startswith(wheel)
    assert header["card"] == "NVIDIA H100, compute capability 9.0, driver for CUDA 13"


def test_a_pack_says_what_does_not_fit() -> None:
    assert not PACK.misfit("0f", 90, "cp312")
    assert PACK.misfit("1e", 90, "cp312") == "sources: packed 0f, here 1e"
    assert PACK.misfit("0f", 100, "cp313") == "architecture: packed 90, here 100; python: packed cp312, here cp313"


def test_a_run_has_an_end_whatever_its_steps_are_given(tmp_path: Path) -> None:
    start = time.monotonic()
    steps = [shell(f"hangs {i}", "exec sleep 300", 100) for i in range(2)]
    assert try_gpu.run(steps, tmp_path, {}, 1, ignore) == 1
    assert time.monotonic() - start < 60


@pytest.mark.parametrize(("build", "most_s"), [(False, try_gpu.MOST_S), (True, try_gpu.MOST_WITH_BUILD_S)])
def test_every_step_has_time(build: bool, most_s: float) -> None:
    """Also where those that all others need, and that read much, take all of theirs."""
    needed, rest = {"machine", "site", "import", "build"}, PLAN.steps(PACK, build=build)
    assert sum(step.limit_s for step in rest if step.name in needed) + 180 < most_s
    assert sum(step.limit_s for step in rest if step.name not in needed) < 250
    assert most_s <= (480 if build else 300)


def test_what_comes_back_is_little() -> None:
    """At most 8 files: the summary, the logs, and Markdown and JSON of two questions."""
    steps = PLAN.steps(PACK, build=True)
    assert len({step.log for step in steps}) + 1 + 2 * 2 <= 8
    assert MOST_BYTES == 64 * 2**20


def test_the_plan_names_what_exists() -> None:
    assert {"test_target_cuda", "test_mirror", "test_pinned"} <= {path.stem for path in files_of_cuda_tests()}
    for step in PLAN.steps(PACK, build=True):
        for word in step.command:
            if word.startswith(f"{ROOT}/"):
                assert Path(word).exists(), word
        assert step.environment["PYTHONPATH"] == "/work/site"
    site, build = (step for step in PLAN.steps(PACK, build=True) if step.name in {"site", "build"})
    assert {"--no-index", "--no-deps"} <= set(site.command) & set(build.command)  # there is no network
    assert "--no-build-isolation" in build.command
    assert build.environment["FASTREPLAY_CUDA_ARCHITECTURES"] == "90-real"


def test_a_full_disk_ends_no_run(tmp_path: Path) -> None:
    """Nothing finds room in /dev/full."""
    (tmp_path / "steps.txt").symlink_to("/dev/full")
    outcome = run_step(shell("goes on", "echo on", says="on"), tmp_path, 20, ignore, go_on)
    assert (outcome.is_good, outcome.note) == (True, "on")
    (tmp_path / "summary.new").symlink_to("/dev/full")
    (tmp_path / "summary.md").write_text("of before")
    said: list[str] = []
    assert try_gpu.run([shell("goes on", "echo on")], tmp_path, {}, 60, said.append) == 0
    assert "| goes on | ok |" in said[-1]
    assert "summary.md is not up to date: [Errno 28] No space left" in said[-1]
    assert (tmp_path / "summary.md").read_text() == "of before"


@pytest.mark.parametrize("way", ["a file", "another run"])
def test_where_nothing_can_be_tried_one_line_says_so(
    way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(try_gpu, "find_card", lambda: PLAN.card)
    if way == "a file":
        (tmp_path / "out").touch()
        assert try_gpu.main([f"--work={tmp_path}", f"--out={tmp_path}/out"]) == 2
    else:
        with try_gpu._take_turn(tmp_path, tmp_path / "out"):
            assert try_gpu.main([f"--work={tmp_path}", f"--out={tmp_path}/other"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert {"a file": "File exists", "another run": f"another run is at work in {tmp_path}"}[way] in said


def test_who_looks_away_ends_no_run(tmp_path: Path) -> None:
    """As in make gpu | head."""
    script = "import try_gpu; [try_gpu._show('x' * 100_000) for _ in range(3)]; try_gpu.Path('end').touch()"
    command = f'{sys.executable} -c "{script}" | head -c 1; test -e end'
    environment = {**os.environ, "PYTHONPATH": str(Path(try_gpu.__file__).parent)}
    done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"x", b"")


def test_a_pack_replaces_another_when_it_is_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pack, "ROOT", tmp_path)

    def fill(folder: Path, python: str) -> Pack:
        (folder / "new.whl").touch()
        if python == "none":
            raise FileNotFoundError(python)
        return PACK

    monkeypatch.setattr(pack, "fill", fill)
    folder = tmp_path / "a pack"
    assert pack.renew(folder, "python") == PACK
    (folder / "old.whl").touch()
    assert pack.main([str(folder), "none"]) == 1
    assert {path.name for path in folder.iterdir()} == {"new.whl", "old.whl"}
    pack.renew(folder, "python")
    assert {path.name for path in folder.iterdir()} == {"new.whl"}
    (folder / "thesis.txt").touch()
    with pytest.raises(ValueError, match=r"is to hold a pack, and holds thesis.txt"):
        pack.renew(folder, "python")
    assert (folder / "thesis.txt").exists()
