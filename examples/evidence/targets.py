# SPDX-License-Identifier: MIT
"""Figure 3: hard and soft target updates of equal lag, and how each depends on its own parameter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from evidence.estimates import Interval, hard_lag, matched_tau, mean_interval
from evidence.learner import Settings, learning_curve, td_targets, trained
from evidence.output import (
    BLUE,
    GREY,
    ORANGE,
    Claim,
    Row,
    column,
    intervals,
    new_figure,
    plot_interval,
    where,
    write_csv,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from evidence.effort import Effort, Workers

PERIODS = (10, 32, 100, 316, 1000)  # C of the hard updates, two decades; each tau is that of equal lag
MATCHED = 100  # the C at which the two are looked at closely
PROBES = 256  # transitions whose TD targets are watched
KINDS = {"hard": ORANGE, "soft": BLUE, "none": GREY}


@dataclass(frozen=True)
class Variant:
    """One way to move the target network: hard every C, soft with the tau of equal lag, or at once."""

    kind: str
    every: int

    def settings(self, seed: int) -> Settings:
        """Return the settings of a run."""
        if self.kind == "soft":
            return Settings(seed, tau=matched_tau(self.every), every=1)
        return Settings(seed, tau=1.0, every=self.every)

    @property
    def name(self) -> str:
        """What figures and tables call it."""
        names = {"hard": f"hard, C = {self.every}", "soft": f"soft, τ = {matched_tau(self.every):.2g}"}
        return names.get(self.kind, "no target network")


NO_TARGET_NETWORK = Variant("none", 1)
COMPARED = {"hard": Variant("hard", MATCHED), "soft": Variant("soft", MATCHED), "none": NO_TARGET_NETWORK}
VARIANTS = [Variant(kind, every) for kind in ("hard", "soft") for every in PERIODS] + [NO_TARGET_NETWORK]


def target_steps(job: tuple[Variant, int, Effort]) -> list[Row]:
    """Watch the TD targets of fixed transitions over two periods: root mean square change at each step.

    All variants go on from one and the same state of a soft run.
    """
    variant, seed, effort = job
    learner = trained(Settings(seed), effort.checkpoint)
    probes = learner.buffer.sample(PROBES)
    learner.follow(variant.settings(seed))
    before = td_targets(learner.target, probes.reward, probes.next_observation)
    rows = []
    for step in range(1, 2 * MATCHED + 1):
        learner.step()
        after = td_targets(learner.target, probes.reward, probes.next_observation)
        change = float(((after - before) ** 2).mean().sqrt())
        rows.append({"kind": variant.kind, "seed": seed, "step": step, "change": change})
        before = after
    return rows


def learning_curves(effort: Effort, workers: Workers) -> list[Row]:
    """Train every variant on every seed."""
    runs = [(variant, seed) for variant in VARIANTS for seed in range(effort.seeds)]
    jobs = [(variant.settings(seed), effort.steps, effort.evaluations) for variant, seed in runs]
    results = workers.map(learning_curve, jobs, "hard and soft targets")
    return [
        {
            "kind": variant.kind,
            "every": settings.every,
            "tau": settings.tau,
            "lag": hard_lag(variant.every),
            **row,
        }
        for (variant, _), (settings, _, _), rows in zip(runs, jobs, results, strict=True)
        for row in rows
    ]


def figure(effort: Effort, workers: Workers, folder: Path) -> list[Claim]:
    """Measure, write targets.png and its two CSV files, and return what the table says of them."""
    jobs = [(COMPARED[kind], seed, effort) for kind in ("hard", "soft") for seed in range(effort.seeds)]
    changes = [row for rows in workers.map(target_steps, jobs, "steps of the targets") for row in rows]
    curves = learning_curves(effort, workers)
    write_csv(folder / "targets-change.csv", changes)
    write_csv(folder / "targets-return.csv", curves)
    draw(changes, curves, folder / "targets.png")
    return claims(changes, curves)


def draw(changes: list[Row], curves: list[Row], path: Path) -> None:
    """Draw the four panels."""
    picture, ((change, value), (learning, sensitivity)) = new_figure(2, 2, 5.6)
    for kind in ("hard", "soft"):
        one = where(changes, kind=kind, seed=0)
        change.plot(column(one, "step"), column(one, "change"), color=KINDS[kind], label=COMPARED[kind].name)
    change.set(xlabel="gradient steps", ylabel="RMS change of the TD targets", title="Step of the targets (one seed)")
    for kind, variant in COMPARED.items():
        rows = where(curves, kind=kind, lag=hard_lag(variant.every))
        plot_interval(value, rows, "step", "value", KINDS[kind], COMPARED[kind].name)
        steps, earned = intervals(rows, "step", "discounted_return")
        value.plot(steps, [each.mean for each in earned], ":", color=KINDS[kind])
        plot_interval(learning, rows, "step", "return", KINDS[kind], COMPARED[kind].name)
    value.set(
        xlabel="gradient steps", ylabel="value, and return earned (dotted)", title="Value estimates at the starts"
    )
    learning.set(xlabel="gradient steps", ylabel="return", title="Learning")
    draw_sensitivity(sensitivity, final(curves))
    for axes, lowest in ((value, -85), (learning, -2_100), (sensitivity, -1_800)):  # room for the legends
        axes.set_ylim(bottom=lowest)
    for axes in (change, value, learning):
        axes.legend(loc="upper left" if axes is change else "lower right")
    sensitivity.legend(loc="lower center", ncols=3, columnspacing=1, handlelength=1.5)
    picture.savefig(path)


def draw_sensitivity(axes: Any, last: list[Row]) -> None:
    """Draw the final return of every run against the lag of its target."""
    for kind, shift in (("hard", 0.95), ("soft", 1.05)):
        rows = where(last, kind=kind)
        plot_interval(axes, rows, "lag", "return", KINDS[kind], kind)
        axes.plot(
            [shift * lag for lag in column(rows, "lag")], column(rows, "return"), ".", color=KINDS[kind], alpha=0.4
        )
    none = mean_interval(column(where(last, kind="none"), "return"))
    axes.axhline(none.mean, color=GREY, linestyle="--", label="no target network")
    axes.axhspan(none.low, none.high, color=GREY, alpha=0.15, linewidth=0)
    axes.set(xscale="log", xlabel="mean lag of the target (steps): C / 2 or 1 / τ", ylabel="final return")
    axes.set(title="Sensitivity to C and τ", xticks=[5, 16, 50, 158, 500], xticklabels=[5, 16, 50, 158, 500])
    axes.minorticks_off()


def final(curves: list[Row]) -> list[Row]:
    """Return the last evaluation of every run."""
    return where(curves, step=max(row["step"] for row in curves))


def claims(changes: list[Row], curves: list[Row]) -> list[Claim]:
    """Say in numbers what the panels show."""
    seeds = f"{len({row['seed'] for row in curves})} seeds"
    last = final(curves)
    found = []
    for text, measure in (("largest step", max), ("sum of 200 steps", sum)):
        ratio = ratio_of_changes(changes, measure)
        found.append(Claim(f"{text} of the TD targets, hard over soft at equal lag", ratio, "x", seeds))
    for variant in VARIANTS:
        returns = column(where(last, kind=variant.kind, lag=hard_lag(variant.every)), "return")
        spread = f"{seeds}, standard deviation {np.std(returns, ddof=1):.3g}"
        found.append(Claim(f"final return, {variant.name}", mean_interval(returns), "", spread))
    for every in PERIODS:
        soft, hard = (column(where(last, kind=kind, lag=hard_lag(every)), "return") for kind in ("soft", "hard"))
        gain = mean_interval([a - b for a, b in zip(soft, hard, strict=True)])
        found.append(Claim(f"final return, soft less hard at the lag of C = {every}", gain, "", seeds))
    return found


def ratio_of_changes(changes: list[Row], measure: Callable[[list[float]], float]) -> Interval:
    """Return the interval, over seeds, of a measure of the hard updates' changes over that of the soft ones'."""
    ratios = []
    for seed in sorted({row["seed"] for row in changes}):
        hard, soft = (column(where(changes, kind=kind, seed=seed), "change") for kind in ("hard", "soft"))
        ratios.append(measure(hard) / measure(soft))
    return mean_interval(ratios)
