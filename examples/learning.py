# SPDX-License-Identifier: MIT
"""Train every loop of this folder on three or ten seeds, and write the tables and curves of docs/learning.md.

    python examples/learning.py                # all but the last, about two hours on one core
    python examples/learning.py td3 sac        # only these; the rows of the others stay
    python examples/learning.py sac-cheetah    # needs gymnasium[mujoco]; about 8 minutes

Each run is `python examples/<algorithm>.py` with the defaults of that file and a seed, in a process of its
own, one after the other: the seconds and shares are those of one busy core. Exits with 1 where a run
misses its goal.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import NamedTuple

from figures import BLUE, GREEN, GREY, ORANGE, Row, column, markdown, new_figure, read_csv, where, write_csv
from matplotlib.axes import Axes
from progress import PARTS

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs" / "learning"
SEEDS = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"))  # colours and marks
MARKS = ("<!-- tables, written by make learn -->", "<!-- end of the tables -->")


class Task(NamedTuple):
    """One row of the table: what is trained, and what it should reach."""

    title: str
    file: str
    env: str
    goal: int  # mean return of the best checkpoint
    seeds: Sequence[int] = (1, 2, 3)
    arguments: str = ""  # beside --seed, where the file's defaults do not serve
    in_vain: bool = False  # it is to stay below its goal, and shows what another row needs

    def missed(self, value: float) -> bool:
        """Return whether a best checkpoint's mean return is not what it should be."""
        return (value >= self.goal) == self.in_vain


CHEETAH = "--env HalfCheetah-v5 --steps 70000 --warmup 5000 --hidden 128 --validate-every 5000"
TEN = range(1, 11)  # where the last policy counts too, and three seeds would say little of it
TASKS = {
    "dqn-soft": Task("DQN, soft updates", "dqn.py", "CartPole-v1", 475, TEN),
    "dqn-hard": Task("DQN, hard updates", "dqn.py", "CartPole-v1", 475, TEN, "--target hard"),
    "dqn-prioritized": Task("DQN, by priority", "dqn.py", "CartPole-v1", 475, TEN, "--prioritized"),
    "ddpg": Task("DDPG", "ddpg.py", "Pendulum-v1", -250),
    "td3": Task("TD3", "td3.py", "Pendulum-v1", -250),
    "sac": Task("SAC", "sac.py", "Pendulum-v1", -250),
    "recurrent": Task("Recurrent DQN", "recurrent_dqn.py", "CartPolePositions-v1", 400),
    "memoryless": Task(
        "... memoryless", "recurrent_dqn.py", "CartPolePositions-v1", 100, arguments="--memoryless", in_vain=True
    ),
    "sac-cheetah": Task("SAC", "sac.py", "HalfCheetah-v5", 1_000, seeds=(1,), arguments=CHEETAH),
}
LONG = {"sac-cheetah"}  # trained when asked for


def train(name: str, seed: int, extra: Sequence[str], folder: Path) -> None:
    """Train one task on one seed, showing its progress; leave with its status where that is an error."""
    task = TASKS[name]
    command = [sys.executable, str(HERE / task.file), "--seed", str(seed), *task.arguments.split(), *extra]
    try:
        status = subprocess.run([*command, "--save", str(folder)], check=False).returncode
    except KeyboardInterrupt:
        status = 130
    if status:
        sys.exit(status)


def read_run(name: str, folder: Path) -> tuple[Row, list[Row]]:
    """Return what a run says of itself, and the validations of its curve."""
    result = {"task": name, **json.loads((folder / "result.json").read_text())}
    validations = where(read_csv(folder / "curve.csv"), series="validations")
    key = {"task": name, "seed": result["seed"]}
    return result, [{**key, "step": row["step"], "return": row["return"]} for row in validations]


def merged(old: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """Return the rows in the tasks' order, where the new rows of a task take the place of the old ones."""
    new = list(new)
    replaced = {row["task"] for row in new}
    rows = [row for row in old if row["task"] not in replaced] + new
    return sorted(rows, key=lambda row: list(TASKS).index(row["task"]))


def tables(results: Sequence[Row]) -> str:
    """Return what was learned, and where the time went, as two Markdown tables of a row a task."""
    learned: list[tuple[str, ...]] = [
        ("loop", "environment", "goal", "best checkpoint, by seed", "last policy, by seed", "random policy")
    ]
    spent: list[tuple[str, ...]] = [("loop", "environment", "steps", "seconds", *PARTS)]
    for name, task in TASKS.items():
        rows = where(results, task=name)
        if not rows:
            continue
        best, last = (", ".join(f"{float(row[key]):,.0f}" for row in rows) for key in ("best_return", "last_return"))
        random = f"{column_mean(rows, 'random_return'):,.0f}"
        learned.append((task.title, task.env, f"{'<' if task.in_vain else '≥'} {task.goal:,}", best, last, random))
        shares = [f"{column_mean(rows, 'share_' + part.replace(' ', '_')):.1%}" for part in PARTS]
        steps, seconds = (f"{column_mean(rows, key):,.0f}" for key in ("steps", "seconds"))
        spent.append((task.title, task.env, steps, seconds, *shares))
    return markdown(learned, "llrrrr") + "\n" + markdown(spent, "llrrrrrrr")


def column_mean(rows: Sequence[Row], key: str) -> float:
    """Return the mean of one column."""
    return sum(map(float, column(rows, key))) / len(rows)


def put_into(page: Path, text: str) -> None:
    """Write the text between the marks of a page."""
    before, rest = page.read_text().split(MARKS[0])
    _, after = rest.split(MARKS[1])
    page.write_text(f"{before}{MARKS[0]}\n\n{text}\n{MARKS[1]}{after}")


def draw(curves: Sequence[Row], results: Sequence[Row], path: Path) -> None:
    """Draw each task's curves, one line a seed, beside its goal and a random policy."""
    names = [name for name in TASKS if any(row["task"] == name for row in curves)]
    height = (len(names) + 2) // 3  # panels
    figure, _ = new_figure(height, 3, (9, 0.4 + 2.7 * height))
    panels = figure.axes
    for axes, name in zip(panels, names, strict=False):
        random = column_mean(where(results, task=name), "random_return")
        draw_task(axes, TASKS[name], where(curves, task=name), random)
    for axes in panels[len(names) :]:
        axes.remove()
    figure.legend(handles=panels[0].lines[:3], loc="outside upper right", ncols=3)
    figure.supylabel("return, mean of 20 validation episodes", fontsize=10)
    figure.savefig(path)


def draw_task(axes: Axes, task: Task, curves: Sequence[Row], random: float) -> None:
    """Draw the curves of one task."""
    for seed, (colour, marker) in zip(task.seeds, chain(SEEDS, repeat((GREY, None))), strict=False):
        points = [(int(row["step"]) / 1000, float(row["return"])) for row in curves if int(row["seed"]) == seed]
        # Three seeds are told apart; the others are grey, and below them.
        (line,) = axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=3, label=f"seed {seed}")
        line.set(zorder=2.1 if marker else 1.9, linewidth=1.5 if marker else 0.8)
    # Named where no curve passes: those of a policy begin low on the left and end high on the right.
    at = axes.get_yaxis_transform()
    axes.axhline(task.goal, color="black", linewidth=1)
    axes.text(
        0.02, task.goal, f"{'limit' if task.in_vain else 'goal'}, {task.goal:,}", va="top", transform=at, fontsize=8
    )
    axes.axhline(random, color=GREY, linewidth=1, linestyle=":")
    axes.text(0.99, random, f"random policy, {random:,.0f}", ha="right", va="bottom", transform=at, fontsize=8)
    axes.set(title=f"{task.title}: {task.env}", xlabel="thousand environment steps")
    axes.tick_params(labelsize=8)


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], usage="%(prog)s [arguments] [task ...]")
    parser.add_argument("tasks", nargs="*", metavar="task", help=f"which to train: {', '.join(TASKS)}")
    parser.add_argument("--steps", type=int, help="train for so many steps only, to see that it works")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the curves; the page has its name, with .md")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "learning", help="folder of the runs' own files")
    args = parser.parse_args(arguments)
    for name in args.tasks:
        if name not in TASKS:
            parser.error(f"task: expected one of {', '.join(TASKS)}, got {name!r}")
    args.tasks = args.tasks or [name for name in TASKS if name not in LONG]
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what was asked for, then write the tables, the curves and their data."""
    args = parse_args(arguments)
    extra = ["--steps", str(args.steps)] if args.steps else []
    runs = [(name, seed, args.runs / f"{name}-seed{seed}") for name in args.tasks for seed in TASKS[name].seeds]
    for number, (name, seed, folder) in enumerate(runs, 1):
        print(f"\nrun {number} of {len(runs)}: {TASKS[name].title} on {TASKS[name].env}, seed {seed}", flush=True)
        train(name, seed, extra, folder)

    new_results, new_curves = zip(*(read_run(name, folder) for name, _, folder in runs), strict=True)
    args.out.mkdir(parents=True, exist_ok=True)
    results = merged(read_csv(args.out / "results.csv"), new_results)
    curves = merged(read_csv(args.out / "curves.csv"), (row for curve in new_curves for row in curve))
    write_csv(args.out / "results.csv", results)
    write_csv(args.out / "curves.csv", curves)
    draw(curves, results, args.out / "curves.png")
    page = args.out.with_suffix(".md")
    if page.exists():
        put_into(page, tables(results))
    print(f"\n{tables(results)}\n{page}, {args.out}/: tables, curves and their data")
    missed = [row for row in new_results if TASKS[row["task"]].missed(row["best_return"])]
    for row in missed:
        task = TASKS[row["task"]]
        wanted = f"{'less than' if task.in_vain else 'at least'} {task.goal}"
        print(f"{row['task']}, seed {row['seed']}: expected {wanted}, got {row['best_return']}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
