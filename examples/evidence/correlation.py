# SPDX-License-Identifier: MIT
"""Figure 2: transitions in a row resemble each other, those of a uniform minibatch do not."""

from __future__ import annotations

import numpy as np
from environments import Array
from evidence.claims import Claim, difference, plot_interval
from evidence.effort import Effort, Workers
from evidence.estimates import autocorrelation, mean_interval, trace_of_covariance
from evidence.learner import NUM_ENVS, Learner, Settings, gradient, learning_curve, most_recent, trained, uniform
from evidence.minibatch import population_gradient
from evidence.pendulum import EPISODE_STEPS
from figures import BLUE, GREY, ORANGE, Row, column, new_figure, where
from matplotlib.figure import Figure

LAGS = (0, 1, *range(2, 61, 2))  # steps of 0.05 s
MINIBATCHES = 64  # of 64 draws, among whose rows correlation is looked for
RUN_LENGTHS = (1, 4, 16, 64)
COLOURS = {"consecutive": ORANGE, "uniform": BLUE}


def episodes(learner: Learner) -> Array:
    """Return the observations of whole episodes in the order of time, (EPISODE_STEPS, episodes, 3)."""
    whole = len(learner.buffer) // (NUM_ENVS * EPISODE_STEPS)
    stored = np.asarray(learner.buffer.view("observation"))[: whole * NUM_ENVS * EPISODE_STEPS]
    by_time = stored.reshape(whole, EPISODE_STEPS, NUM_ENVS, -1).swapaxes(0, 1)
    return by_time.reshape(EPISODE_STEPS, whole * NUM_ENVS, -1)


def autocorrelations(learner: Learner) -> list[Row]:
    """Return the autocorrelation along episodes and along the rows of uniform minibatches."""
    draws = [learner.buffer.sample(max(LAGS) + 4).observation.numpy() for _ in range(MINIBATCHES)]
    series = {"consecutive": episodes(learner), "uniform": np.stack(draws, axis=1)}
    found = {draw: autocorrelation(each, max(LAGS)) for draw, each in series.items()}
    return [{"draw": draw, "lag": lag, "autocorrelation": float(found[draw][lag])} for draw in found for lag in LAGS]


def effective_sizes(learner: Learner, gradients: int) -> list[Row]:
    """Return how many independent transitions a minibatch is worth: variance of one over variance of the mean.

    Consecutive transitions are those of one environment, from a random step on.
    """
    _, variance = population_gradient(learner, learner.buffer[:])
    rng = np.random.default_rng(learner.settings.seed)
    steps = len(learner.buffer) // NUM_ENVS
    rows: list[Row] = []
    for length in RUN_LENGTHS:
        starts = rng.integers(0, steps - length + 1, gradients) * NUM_ENVS + rng.integers(0, NUM_ENVS, gradients)
        runs = [learner.buffer.gather(start + NUM_ENVS * np.arange(length)) for start in starts]
        draws = {"consecutive": runs, "uniform": [learner.buffer.sample(length) for _ in range(gradients)]}
        for draw, batches in draws.items():
            spread = trace_of_covariance(np.stack([gradient(learner, batch) for batch in batches]))
            worth = {"variance_over_law": spread * length / variance, "effective_size": variance / spread}
            rows.append({"draw": draw, "batch_size": length, **worth})
    return rows


def measure_seed(job: tuple[int, Effort]) -> tuple[list[Row], list[Row]]:
    """Measure both on one seed's networks and buffer."""
    seed, effort = job
    learner = trained(Settings(seed), effort.checkpoint)
    found = autocorrelations(learner), effective_sizes(learner, effort.gradients)
    lags, sizes = ([{"seed": seed, **row} for row in rows] for rows in found)
    return lags, sizes


def measure(effort: Effort, workers: Workers) -> dict[str, list[Row]]:
    """Return the rows of each CSV file, in the order that `draw` and `claims` take them."""
    found = workers.map(measure_seed, [(seed, effort) for seed in range(effort.seeds)], "correlation")
    runs = [
        ({"draw": draw.__name__, "seed": seed}, (Settings(seed, draw=draw), effort.steps, effort.evaluations))
        for draw in (uniform, most_recent)
        for seed in range(effort.seeds)
    ]
    curves = workers.rows(learning_curve, runs, "uniform or most recent")
    return {
        "correlation-lags": [row for lags, _ in found for row in lags],
        "correlation-sizes": [row for _, sizes in found for row in sizes],
        "correlation-return": [{key: row[key] for key in ("draw", "seed", "step", "return")} for row in curves],
    }


def draw(lags: list[Row], sizes: list[Row], learning: list[Row]) -> Figure:
    """Draw the three panels."""
    picture, (left, middle, right) = new_figure(1, 3, (8, 3.1))
    for draw, colour in COLOURS.items():
        plot_interval(left, where(lags, draw=draw), "lag", "autocorrelation", colour, draw)
        plot_interval(middle, where(sizes, draw=draw), "batch_size", "effective_size", colour, draw)
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
    return picture


def claims(lags: list[Row], sizes: list[Row], learning: list[Row]) -> list[Claim]:
    """Say in numbers what the panels show."""
    seeds = f"{len(set(column(lags, 'seed')))} seeds"
    found = []
    for draw in COLOURS:
        next_to_it = mean_interval(column(where(lags, draw=draw, lag=1), "autocorrelation"))
        found.append(Claim(f"autocorrelation of observations at lag 1, {draw}", next_to_it, "", seeds))
    for draw in COLOURS:
        excess = mean_interval(column(where(sizes, draw=draw, batch_size=64), "variance_over_law"))
        found.append(Claim(f"variance of the gradient of 64 {draw} transitions over the 1/B law", excess, "x", seeds))
    last = max(column(learning, "step"))
    drawn, recent = (column(where(learning, draw=d, step=last), "return") for d in ("uniform", "most_recent"))
    gain = difference(drawn, recent)
    return [*found, Claim("return gained by a uniform draw over the most recent 64", gain, "", seeds)]
