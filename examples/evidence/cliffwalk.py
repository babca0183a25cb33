# SPDX-License-Identifier: MIT
"""The Blind Cliffwalk: n states in a row, where one of two actions goes on and the other falls; the last step pays 1.

Schaul et al. 2016, Prioritized Experience Replay, https://arxiv.org/abs/1511.05952, section 3.1 and appendix B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from environments import Array
from figures import Row

import fastreplay as fr

LEARNING_RATE = 0.25
BATCH_SIZE = 32
TOLERANCE = 1e-3  # mean squared error of the values at which they count as learned
NOTHING_FOLLOWS = -1


@dataclass(frozen=True)
class Variant:
    """A way to draw: uniformly, or by priority with weights of some exponent."""

    name: str
    alpha: float
    beta: float
    longest: int = 16  # walk that is tried


UNIFORM = Variant("uniform", 0.0, 0.0)
PRIORITIZED = Variant("prioritized", 0.6, 0.0)
HALF_WEIGHTED = Variant("half weighted", 0.6, 0.5)
WEIGHTED = Variant("weighted", 0.6, 1.0, longest=12)  # five times as long as uniformly
VARIANTS = (UNIFORM, PRIORITIZED, HALF_WEIGHTED, WEIGHTED)


def transitions(length: int) -> dict[str, Array]:
    """Return what all 2^length sequences of actions store, 2^(length + 1) - 2 transitions, each until it falls.

    State k is reached by 2^(length - k) of them, of which half go on. A cell is a state and an action, 2 k + a.
    """
    cells, followers, rewards = [], [], []
    for state in range(length):
        is_last = state == length - 1
        num_each = 2 ** (length - 1 - state)
        for action in (0, 1):  # 1 goes on
            goes_on = action == 1 and not is_last
            cells.append(np.full(num_each, 2 * state + action))
            followers.append(np.full(num_each, 2 * (state + 1) if goes_on else NOTHING_FOLLOWS))
            rewards.append(np.full(num_each, float(action == 1 and is_last)))
    parts = {"cell": cells, "follower": followers, "reward": rewards}
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def true_values(length: int) -> Array:
    """Return the value of each cell, (2 * length,): that of going on to the end, or 0."""
    values = np.zeros(2 * length)
    values[1::2] = discount(length) ** np.arange(length - 1, -1, -1)
    return values


def discount(length: int) -> float:
    """Return a discount whose horizon is the walk."""
    return 1 - 1 / length


def updates_to_learn(job: tuple[int, Variant, int]) -> list[Row]:
    """Learn the values from (length, variant, seed); count the updates, of one transition each.

    Q-learning in a table, from minibatches whose transitions are taken one after the other.
    """
    length, variant, seed = job
    rng = np.random.default_rng(seed)
    stored = transitions(length)
    order = rng.permutation(len(stored["cell"]))
    rule = fr.Priorities(alpha=variant.alpha, beta=variant.beta)
    fields: dict[str, fr.Field] = {name: fr.Field((), "int64") for name in ("cell", "follower")}
    fields["reward"] = fr.Field((), "float64")
    buffer = fr.ReplayBuffer(len(order), fields, seed=seed, output="numpy", priorities=rule)
    buffer.extend(**{name: values[order] for name, values in stored.items()})
    values, truth = rng.normal(0, 0.1, 2 * length).tolist(), true_values(length)
    updates = next_look = 0
    while updates < next_look or np.mean((np.array(values) - truth) ** 2) >= TOLERANCE:
        batch = buffer.sample(BATCH_SIZE)
        buffer.update_priorities(batch, learn(values, batch, discount(length)))
        if updates >= next_look:
            next_look = updates + updates // 100  # to a hundredth of what it takes
        updates += BATCH_SIZE
    return [{"updates": updates}]


def learn(values: list[float], batch: Any, gamma: float) -> list[float]:
    """Update the table by each transition of a minibatch in turn; return the errors that were found."""
    errors = []
    columns = (batch.cell.tolist(), batch.follower.tolist(), batch.reward.tolist(), batch.weight.tolist())
    for cell, follower, reward, weight in zip(*columns, strict=True):
        target = reward
        if follower != NOTHING_FOLLOWS:
            target += gamma * max(values[follower], values[follower + 1])
        error = target - values[cell]
        values[cell] += LEARNING_RATE * weight * error
        errors.append(error)
    return errors
