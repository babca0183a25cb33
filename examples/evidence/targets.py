# SPDX-License-Identifier: MIT
"""Figure 3: hard and soft target updates of equal lag, and how each depends on its own parameter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from evidence.claims import Claim, difference, intervals, plot_interval, ratio
from evidence.effort import Effort, Workers
from evidence.estimates import hard_lag, matched_tau, mean_interval
from evidence.learner import Settings, learning_curve, td_targets, trained
from figures import BLUE, GREY, ORANGE, Row, column, new_figure, where
from matplotlib.figure import Figure

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
    rows: list[Row] = []
    for step in range(1, 2 * MATCHED + 1):
        learner.step()
        after = td_targets(learner.target, probes.reward, probes.next_observation)
        change = float(((after - before) ** 2).mean().sqrt())
        rows.append({"step": step, "change": change})
        before = after
    return rows


def measure(effort: Effort, workers: Workers) -> dict[str, list[Row]]:
    """Return the rows of each CSV file, in the order that `draw` and `claims` take them.

    Step by step only what is drawn so: the changes of one seed, the curves of the variants that are compared.
    """
    watched: list[tuple[Row, tuple[Variant, int, Effort]]] = [
        ({"kind": kind, "seed": seed}, (COMPARED[kind], seed, effort))
        for kind in ("hard", "soft")
        for seed in range(effort.seeds)
    ]
    changes = workers.rows(target_steps, watched, "steps of the targets")
    ways = []
    for run, _ in watched:
        steps = column(where(changes, **run), "change")
        ways.append({**run, "largest": max(steps), "sum": sum(steps)})
    runs = []
    for variant in VARIANTS:
        evaluations = effort.evaluations if variant in COMPARED.values() else 1
        for settings in map(variant.settings, range(effort.seeds)):
            run = {"kind": variant.kind, "every": settings.every, "tau": settings.tau}
            run |= {"lag": hard_lag(variant.every), "seed": settings.seed}
            runs.append((run, (settings, effort.steps, evaluations)))
    curves = workers.rows(learning_curve, runs, "hard and soft targets")
    return {"targets-change": where(changes, seed=0), "targets-way": ways, "targets-return": curves}


def draw(changes: list[Row], _ways: list[Row], curves: list[Row]) -> Figure:
    """Draw the four panels."""
    picture, ((change, value), (learning, sensitivity)) = new_figure(2, 2, (8, 5.6))
    for kind in ("hard", "soft"):
        one = where(changes, kind=kind)
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
    return picture


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
    return where(curves, step=max(column(curves, "step")))


def claims(_changes: list[Row], ways: list[Row], curves: list[Row]) -> list[Claim]:
    """Say in numbers what the panels show."""
    seeds = f"{len(set(column(curves, 'seed')))} seeds"
    last = final(curves)
    found = []
    for text, key in (("largest step", "largest"), ("sum of 200 steps", "sum")):
        hard, soft = (column(where(ways, kind=kind), key) for kind in ("hard", "soft"))
        found.append(Claim(f"{text} of the TD targets, hard over soft at equal lag", ratio(hard, soft), "x", seeds))
    for variant in VARIANTS:
        returns = column(where(last, kind=variant.kind, lag=hard_lag(variant.every)), "return")
        spread = f"{seeds}, standard deviation {np.std(returns, ddof=1):.3g}"
        found.append(Claim(f"final return, {variant.name}", mean_interval(returns), "", spread))
    for every in PERIODS:
        soft, hard = (column(where(last, kind=kind, lag=hard_lag(every)), "return") for kind in ("soft", "hard"))
        found.append(
            Claim(f"final return, soft less hard at the lag of C = {every}", difference(soft, hard), "", seeds)
        )
    return found
