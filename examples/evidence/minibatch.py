# SPDX-License-Identifier: MIT
"""Figure 1: what the size of a minibatch buys, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from evidence.claims import Claim, intervals, plot_interval, ratio
from evidence.effort import Effort, Workers
from evidence.estimates import mean_interval, trace_of_covariance
from evidence.learner import Batch, Learner, Settings, gradient, mean_loss, trained
from figures import BLUE, GREEN, GREY, ORANGE, Row, column, new_figure, where
from matplotlib.figure import Figure
from torch import Tensor

SIZES = (1, 4, 16, 64, 256, 1024, 4096)
CHUNK = 512  # transitions whose gradients are held at once
MIN_TIMED_S = 0.02  # of one timing


def population_gradient(learner: Learner, batch: Batch) -> tuple[float, float]:
    """Return the squared length of the batch's mean gradient, and the variance of one transition's around it.

    Both are exact sums over the transitions of the batch, each with a gradient of its own, and so
    independent of the minibatches whose spread they predict.
    """
    parameters = {name: value.detach() for name, value in learner.online.named_parameters()}

    def one_loss(values: dict[str, Tensor], *fields: Tensor) -> Tensor:
        def online(observation: Tensor) -> Tensor:
            found: Tensor = torch.func.functional_call(learner.online, values, (observation,))
            return found

        return mean_loss(online, learner.target, *(field[None] for field in fields))

    each = torch.func.vmap(torch.func.grad(one_loss), in_dims=(None, 0, 0, 0, 0))
    total = torch.zeros(sum(value.numel() for value in parameters.values()), dtype=torch.float64)
    squares = 0.0
    for start in range(0, len(batch), CHUNK):
        parts = each(parameters, *(field[start : start + CHUNK] for field in batch))
        gradients = torch.cat([part.flatten(1) for part in parts.values()], dim=1).double()
        total += gradients.sum(dim=0)
        squares += float((gradients**2).sum())
    signal = float(((total / len(batch)) ** 2).sum())
    return signal, squares / len(batch) - signal


def gradient_variance(job: tuple[int, Effort]) -> list[Row]:
    """Measure, on one seed's networks and buffer, the spread of minibatch gradients at each size."""
    seed, effort = job
    learner = trained(Settings(seed), effort.checkpoint)
    signal, variance = population_gradient(learner, learner.buffer[:])
    rows: list[Row] = []
    for size in SIZES:
        draws = np.stack([gradient(learner, learner.buffer.sample(size)) for _ in range(effort.gradients)])
        measured, law = trace_of_covariance(draws), variance / size
        over_signal = {"noise_over_signal": measured / signal, "law_over_signal": law / signal}
        rows.append({"batch_size": size, "variance_over_law": measured / law, **over_signal})
    return rows


def cost_per_sample(effort: Effort) -> list[Row]:
    """Time sampling and one whole gradient step at each size, in CPU time of one thread."""
    learner = trained(Settings(seed=0), effort.checkpoint)
    rows: list[Row] = []
    for repeat in range(effort.repeats):
        for size in SIZES:
            batch = learner.buffer.sample(size)
            sampling = 1e6 / size * seconds_per_call(partial(learner.buffer.sample, size))
            learning = 1e6 / size * seconds_per_call(partial(learner.learn, batch))
            times = {"sampling_us": sampling, "learning_us": learning, "total_us": sampling + learning}
            rows.append({"repeat": repeat, "batch_size": size, **times})
    return rows


def seconds_per_call(function: Callable[[], object]) -> float:
    """Return the CPU seconds of one call, from as many as fill MIN_TIMED_S."""
    calls, start = 0, time.process_time()
    while (spent := time.process_time() - start) < MIN_TIMED_S:
        function()
        calls += 1
    return spent / calls


def return_after_budget(job: tuple[int, int, Effort]) -> list[Row]:
    """Train (seed, batch size) until the CPU time is spent, acting included, and evaluate what was learned."""
    seed, size, effort = job
    learner = Learner(Settings(seed, batch_size=size))
    start = time.process_time()
    while time.process_time() - start < effort.budget_s:
        learner.step()
    return [{"budget_s": effort.budget_s, "steps": learner.steps, "return": learner.evaluate()["return"]}]


def measure(effort: Effort, workers: Workers) -> dict[str, list[Row]]:
    """Return the rows of each CSV file, in the order that `draw` and `claims` take them."""
    cost = cost_per_sample(effort)
    seeds = [({"seed": seed}, (seed, effort)) for seed in range(effort.seeds)]
    sizes = [
        ({"seed": seed, "batch_size": size}, (seed, size, effort)) for seed in range(effort.seeds) for size in SIZES
    ]
    return {
        "minibatch-variance": workers.rows(gradient_variance, seeds, "gradient variance"),
        "minibatch-cost": cost,
        "minibatch-return": workers.rows(return_after_budget, sizes, "return after equal time"),
    }


def draw(variance: list[Row], cost: list[Row], budget: list[Row]) -> Figure:
    """Draw the three panels."""
    picture, (left, middle, right) = new_figure(1, 3, (8, 3.1))
    plot_interval(left, variance, "batch_size", "noise_over_signal", BLUE, "measured")
    places, law = intervals(variance, "batch_size", "law_over_signal")
    left.plot(places, [each.mean for each in law], "--", color=ORANGE, label="1/B law", zorder=3)
    left.axhline(1, color=GREY, linewidth=0.8)
    left.set(yscale="log", ylabel="variance / squared mean", title="Noise of the gradient")
    plot_interval(middle, cost, "batch_size", "learning_us", BLUE, "gradient and target")
    plot_interval(middle, cost, "batch_size", "sampling_us", GREEN, "sampling")
    middle.set(yscale="log", ylabel="µs of CPU per transition", title="Cost of a transition")
    plot_interval(right, budget, "batch_size", "return", BLUE, "mean")
    right.plot(column(budget, "batch_size"), column(budget, "return"), ".", color=BLUE, alpha=0.35, markersize=4)
    right.set(ylabel="return", title=f"After {budget[0]['budget_s']:g} s of CPU time")
    for axes in (left, middle, right):
        axes.set(xscale="log", xlabel="minibatch size B", xticks=SIZES[::2], xticklabels=SIZES[::2])
        axes.minorticks_off()
    left.legend()
    middle.legend()
    return picture


def claims(variance: list[Row], cost: list[Row], budget: list[Row]) -> list[Claim]:
    """Say in numbers what the panels show."""
    numbers = sorted(set(column(variance, "seed")))
    seeds = f"{len(numbers)} seeds"
    law = mean_interval([np.mean(column(where(variance, seed=seed), "variance_over_law")) for seed in numbers])
    one, many = (column(where(cost, batch_size=size), "total_us") for size in (1, 256))
    found = [
        Claim("variance of the gradient, times B, over that of one transition (1/B law: 1)", law, "", seeds),
        Claim("cost of a transition at B = 1 over that at B = 256", ratio(one, many), "x", f"{len(one)} repeats"),
    ]
    for size in (1, 64, 4096):
        value = mean_interval(column(where(budget, batch_size=size), "return"))
        found.append(Claim(f"return after equal CPU time, B = {size}", value, "", seeds))
    return found
