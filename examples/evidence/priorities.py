# SPDX-License-Identifier: MIT
"""Figure 5: a task where draws by priority need far fewer updates, and one where they do not help."""

from __future__ import annotations

import numpy as np
from evidence.claims import Claim, difference, plot_interval, ratio
from evidence.cliffwalk import HALF_WEIGHTED, PRIORITIZED, UNIFORM, VARIANTS, WEIGHTED, Variant, updates_to_learn
from evidence.effort import Effort, Workers
from evidence.estimates import mean_interval
from evidence.learner import Settings, learning_curve
from figures import BLUE, GREEN, GREY, ORANGE, Row, column, new_figure, where
from matplotlib.figure import Figure

import fastreplay as fr

LENGTHS = range(2, 17, 2)
STYLES = {
    UNIFORM.name: (GREY, "uniform"),
    PRIORITIZED.name: (ORANGE, "by priority, no weights"),
    HALF_WEIGHTED.name: (GREEN, "by priority, weights with β = 0.5"),
    WEIGHTED.name: (BLUE, "by priority, weights with β = 1"),
}
ANNEALING = 3_000  # minibatches over which beta goes from 0.4 to 1


def annealed(calls: int) -> float:
    """Return the weights' exponent after so many minibatches."""
    return min(1.0, 0.4 + 0.6 * calls / ANNEALING)


DRAWS = {"uniform": None, "priority": fr.Priorities(alpha=0.6, beta=annealed)}


def measure(effort: Effort, workers: Workers) -> dict[str, list[Row]]:
    """Return the rows of each CSV file, in the order that `draw` and `claims` take them."""
    walks: list[tuple[Row, tuple[int, Variant, int]]] = [
        ({"draw": variant.name, "length": length, "seed": seed}, (length, variant, seed))
        for variant in VARIANTS
        for length in LENGTHS
        if length <= min(effort.walk, variant.longest)
        for seed in range(effort.seeds)
    ]
    runs: list[tuple[Row, tuple[Settings, int, int]]] = [
        ({"draw": draw, "seed": seed}, (Settings(seed, priorities=rule), effort.steps, effort.evaluations))
        for draw, rule in DRAWS.items()
        for seed in range(effort.seeds)
    ]
    return {
        "priorities-walk": workers.rows(updates_to_learn, walks, "cliffwalks"),
        "priorities-return": workers.rows(learning_curve, runs, "uniform and prioritized"),
    }


def draw(walks: list[Row], curves: list[Row]) -> Figure:
    """Draw the two panels."""
    picture, (walk, learning) = new_figure(1, 2, (8, 3))
    for name, (colour, label) in STYLES.items():
        plot_interval(walk, where(walks, draw=name), "length", "updates", colour, label)
    for name, colour in (("uniform", GREY), ("priority", ORANGE)):
        label = "uniform" if name == "uniform" else "by priority, β from 0.4 to 1"
        plot_interval(learning, where(curves, draw=name), "step", "return", colour, label)
    walk.set(yscale="log", xlabel="states n", ylabel="updates", title="Blind Cliffwalk: updates to learn it")
    walk.set_ylim(bottom=5)  # room for the legend
    learning.set(xlabel="gradient steps", ylabel="return", title="Pendulum: learning")
    walk.legend(loc="lower right")
    learning.legend(loc="lower right")
    return picture


def claims(walks: list[Row], curves: list[Row]) -> list[Claim]:
    """Say in numbers what the panels show."""
    seeds = f"{len(set(column(curves, 'seed')))} seeds"
    found = []
    for variant in (PRIORITIZED, HALF_WEIGHTED, WEIGHTED):
        longest = max(column(where(walks, draw=variant.name), "length"))
        for length in sorted({min(8, longest), longest}):
            ours, uniform = (
                column(where(walks, draw=name, length=length), "updates") for name in (variant.name, UNIFORM.name)
            )
            text = f"updates to learn {length} states, uniform over {STYLES[variant.name][1]}"
            found.append(Claim(text, ratio(uniform, ours), "x", seeds))
    last = where(curves, step=max(column(curves, "step")))
    uniform, ours = (column(where(last, draw=name), "return") for name in ("uniform", "priority"))
    for text, returns in (("uniform", uniform), ("by priority", ours)):
        spread = f"{seeds}, standard deviation {np.std(returns, ddof=1):.3g}"
        found.append(Claim(f"final return on the pendulum, {text}", mean_interval(returns), "", spread))
    found.append(Claim("return gained on the pendulum by priorities", difference(ours, uniform), "", seeds))
    return found
