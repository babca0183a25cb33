# SPDX-License-Identifier: MIT
"""Figure 2: transitions in a row resemble each other, those of a uniform minibatch do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from evidence.estimates import autocorrelation, mean_interval, trace_of_covariance
from evidence.learner import NUM_ENVS, Learner, Settings, gradient, learning_curve, most_recent, trained, uniform
from evidence.minibatch import population_gradient
from evidence.output import BLUE, GREY, ORANGE, Claim, Row, column, new_figure, plot_interval, where, write_csv
from evidence.pendulum import EPISODE_STEPS, Array

if TYPE_CHECKING:
    from pathlib import Path

    from evidence.effort import Effort, Workers

MAX_LAG = 60  # steps of 0.05 s
MINIBATCHES = 64  # of 64 draws, among whose rows correlation is looked for
RUN_LENGTHS = (1, 4, 16, 64)


def episodes(learner: Learner) -> Array:
    """Return the observations of whole episodes in the order of time, (EPISODE_STEPS, episodes, 3)."""
    whole = len(learner.buffer) // (NUM_ENVS * EPISODE_STEPS)
    stored = np.asarray(learner.buffer.view("observation"))[: whole * NUM_ENVS * EPISODE_STEPS]
    by_time = stored.reshape(whole, EPISODE_STEPS, NUM_ENVS, -1).swapaxes(0, 1)
    return by_time.reshape(EPISODE_STEPS, whole * NUM_ENVS, -1)


def autocorrelations(learner: Learner) -> list[Row]:
    """Return the autocorrelation along episodes and along the rows of uniform minibatches."""
    draws = [learner.buffer.sample(MAX_LAG + 4).observation.numpy() for _ in range(MINIBATCHES)]
    found = {
        "consecutive": autocorrelation(episodes(learner), MAX_LAG),
        "uniform": autocorrelation(np.stack(draws, axis=1), MAX_LAG),
    }
    return [
        {"seed": learner.settings.seed, "draw": draw, "lag": lag, "autocorrelation": float(value)}
        for draw, values in found.items()
        for lag, value in enumerate(values)
    ]


def effective_sizes(learner: Learner, gradients: int) -> list[Row]:
    """Return how many independent transitions a minibatch is worth: variance of one over variance of the mean.

    Consecutive transitions are those of one environment, from a random step on.
    """
    _, variance = population_gradient(learner, learner.buffer[:])
    rng = np.random.default_rng(learner.settings.seed)
    steps = len(learner.buffer) // NUM_ENVS
    rows = []
    for length in RUN_LENGTHS:
        starts = rng.integers(0, steps - length + 1, gradients) * NUM_ENVS + rng.integers(0, NUM_ENVS, gradients)
        runs = [learner.buffer.gather(start + NUM_ENVS * np.arange(length)) for start in starts]
        draws = {"consecutive": runs, "uniform": [learner.buffer.sample(length) for _ in range(gradients)]}
        for draw, batches in draws.items():
            spread = trace_of_covariance(np.stack([gradient(learner, batch) for batch in batches]))
            rows.append(
                {
                    "seed": learner.settings.seed,
                    "draw": draw,
                    "batch_size": length,
                    "variance": spread,
                    "variance_over_law": spread * length / variance,
                    "effective_size": variance / spread,
                }
            )
    return rows


def measure(job: tuple[int, Effort]) -> tuple[list[Row], list[Row]]:
    """Measure both on one seed's networks and buffer."""
    seed, effort = job
    learner = trained(Settings(seed), effort.checkpoint)
    return autocorrelations(learner), effective_sizes(learner, effort.gradients)


def curves(effort: Effort, workers: Workers) -> list[Row]:
    """Learn from uniform minibatches and from the newest transitions, on the same seeds."""
    settings = [Settings(seed, draw=draw) for draw in (uniform, most_recent) for seed in range(effort.seeds)]
    jobs = [(each, effort.steps, effort.evaluations) for each in settings]
    results = workers.map(learning_curve, jobs, "uniform or most recent")
    return [{"draw": each.draw.__name__, **row} for each, rows in zip(settings, results, strict=True) for row in rows]


def figure(effort: Effort, workers: Workers, folder: Path) -> list[Claim]:
    """Measure, write correlation.png and its three CSV files, and return what the table says of them."""
    measured = workers.map(measure, [(seed, effort) for seed in range(effort.seeds)], "correlation")
    correlation = [row for rows, _ in measured for row in rows]
    sizes = [row for _, rows in measured for row in rows]
    learning = curves(effort, workers)
    for name, rows in (("lags", correlation), ("sizes", sizes), ("return", learning)):
        write_csv(folder / f"correlation-{name}.csv", rows)
    draw_panels(correlation, sizes, learning, folder / "correlation.png")
    return claims(correlation, sizes, learning)


def draw_panels(correlation: list[Row], sizes: list[Row], learning: list[Row], path: Path) -> None:
    """Draw the three panels."""
    picture, (left, middle, right) = new_figure(1, 3, 3.1)
    named = (("consecutive", ORANGE, "consecutive"), ("uniform", BLUE, "uniform"))
    for draw, colour, label in named:
        plot_interval(left, where(correlation, draw=draw), "lag", "autocorrelation", colour, label)
        plot_interval(middle, where(sizes, draw=draw), "batch_size", "effective_size", colour, label)
    left.set(xlabel="lag (steps, or rows apart)", ylabel="autocorrelation", title="Observations")
    left.axhline(0, color=GREY, linewidth=0.8)
    middle.plot(RUN_LENGTHS, RUN_LENGTHS, "--", color=GREY, label="B")
    middle.set(xscale="log", yscale="log", xlabel="minibatch size B", title="Worth of a minibatch")
    middle.set(ylabel="independent transitions it equals", xticks=RUN_LENGTHS, yticks=RUN_LENGTHS)
    middle.set(xticklabels=RUN_LENGTHS, yticklabels=RUN_LENGTHS)
    middle.minorticks_off()
    for draw, colour, label in (("uniform", BLUE, "uniform draw"), ("most_recent", ORANGE, "most recent 64")):
        plot_interval(right, where(learning, draw=draw), "step", "return", colour, label)
    right.set(xlabel="gradient steps", ylabel="return", title="Learning")
    for axes in (left, middle, right):
        axes.legend()
    picture.savefig(path)


def claims(correlation: list[Row], sizes: list[Row], learning: list[Row]) -> list[Claim]:
    """Say in numbers what the panels show."""
    seeds = f"{len({row['seed'] for row in correlation})} seeds"
    found = []
    for draw in ("consecutive", "uniform"):
        next_to_it = mean_interval(column(where(correlation, draw=draw, lag=1), "autocorrelation"))
        found.append(Claim(f"autocorrelation of observations at lag 1, {draw}", next_to_it, "", seeds))
    for draw in ("consecutive", "uniform"):
        excess = mean_interval(column(where(sizes, draw=draw, batch_size=64), "variance_over_law"))
        found.append(Claim(f"variance of the gradient of 64 {draw} transitions over the 1/B law", excess, "x", seeds))
    last = max(row["step"] for row in learning)
    drawn, recent = (column(where(learning, draw=d, step=last), "return") for d in ("uniform", "most_recent"))
    gain = mean_interval([a - b for a, b in zip(drawn, recent, strict=True)])
    found.append(Claim("return gained by a uniform draw over the most recent 64", gain, "", seeds))
    return found
