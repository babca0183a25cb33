# SPDX-License-Identifier: MIT
"""Figure 4: the share of a training step that sampling and the target update take, two ways."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from environments import Array
from evidence.claims import Claim
from evidence.effort import Effort, Workers
from evidence.estimates import mean_interval
from evidence.learner import mean_loss
from figures import BLUE, ORANGE, Row, column, new_figure, where
from matplotlib.figure import Figure
from networks import mlp
from torch import Tensor, nn

import fastreplay as fr

TAU = 0.005
NUM_ACTIONS = 6
PARTS = {"sampling": BLUE, "gradient": "#dddddd", "target update": ORANGE}
FASTREPLAY, USUAL = "fastreplay", "NumPy ring, per-tensor loop"


@dataclass(frozen=True)
class Workload:
    """A network, what it observes, and the minibatch it learns from."""

    name: str
    network: Callable[[], nn.Module]
    observation_shape: tuple[int, ...]
    dtype: str
    batch_size: int
    capacity: int
    steps: int  # of one timing


class Pixels(nn.Module):
    """Turns bytes into numbers in [0, 1]."""

    def forward(self, image: Tensor) -> Tensor:
        """Scale (B, 4, 84, 84) uint8."""
        return image.float() / 255


def nature_cnn() -> nn.Module:
    """Make the network of Mnih et al. 2015, (B, 4, 84, 84) uint8 -> (B, NUM_ACTIONS)."""
    first, second, third = nn.Conv2d(4, 32, 8, 4), nn.Conv2d(32, 64, 4, 2), nn.Conv2d(64, 64, 3)
    convolutions = (first, nn.ReLU(), second, nn.ReLU(), third, nn.ReLU())
    return nn.Sequential(
        Pixels(), *convolutions, nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, NUM_ACTIONS)
    )


WORKLOADS = (
    Workload("2x64, 4 inputs, B = 64", lambda: mlp(4, 64, NUM_ACTIONS), (4,), "float32", 64, 100_000, 200),
    Workload("2x256, 17 inputs, B = 256", lambda: mlp(17, 256, NUM_ACTIONS), (17,), "float32", 256, 100_000, 60),
    Workload("CNN, 4x84x84 bytes, B = 32", nature_cnn, (4, 84, 84), "uint8", 32, 2_000, 6),
)


class NumpyRing:
    """The usual buffer: one preallocated array a field, drawn from by fancy indexing."""

    def __init__(self, columns: Mapping[str, Array], seed: int) -> None:
        self.columns = columns
        self.rng = np.random.default_rng(seed)

    def sample(self, batch_size: int) -> list[Tensor]:
        """Draw a minibatch uniformly, with replacement."""
        rows = self.rng.integers(0, len(self.columns["reward"]), batch_size)
        return [torch.from_numpy(values[rows]) for values in self.columns.values()]


def per_tensor_loop(target: nn.Module, online: nn.Module) -> None:
    """Move a target network the usual way: one expression a tensor."""
    with torch.no_grad():
        for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
            slow.copy_(TAU * fast + (1 - TAU) * slow)


class Loop:
    """A training step in three parts, with either library underneath."""

    def __init__(self, workload: Workload, kind: str) -> None:
        torch.manual_seed(0)
        self.batch_size = workload.batch_size
        self.online = workload.network()
        self.target = copy.deepcopy(self.online).requires_grad_(requires_grad=False)
        self.optimiser = torch.optim.Adam(self.online.parameters(), 1e-4, fused=True)
        columns = transitions(workload)
        self.sample: Callable[[int], Any] = NumpyRing(columns, seed=0).sample
        self.follow: Callable[[], Any] = lambda: per_tensor_loop(self.target, self.online)
        if kind == FASTREPLAY:
            fields = {name: (values.shape[1:], values.dtype) for name, values in columns.items()}
            buffer = fr.ReplayBuffer(workload.capacity, fields, seed=0)
            buffer.extend(**columns)
            self.sample = buffer.sample
            self.follow = fr.SoftUpdate(self.target, self.online, TAU).step

    def timed_step(self) -> tuple[int, int, int]:
        """Take one training step; return the nanoseconds of sampling, gradient step and target update."""
        start = time.perf_counter_ns()
        batch = self.sample(self.batch_size)
        sampled = time.perf_counter_ns()
        loss = mean_loss(self.online, self.target, *batch)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        learned = time.perf_counter_ns()
        self.follow()
        return sampled - start, learned - sampled, time.perf_counter_ns() - learned


def transitions(workload: Workload) -> dict[str, Array]:
    """Make random columns that fill a buffer."""
    rng = np.random.default_rng(0)
    shape = (workload.capacity, *workload.observation_shape)
    observations = [rng.integers(0, 256, shape, dtype=np.uint8).astype(workload.dtype) for _ in range(2)]
    return {
        "observation": observations[0],
        "action": rng.integers(0, NUM_ACTIONS, workload.capacity),
        "reward": rng.standard_normal(workload.capacity).astype(np.float32),
        "next_observation": observations[1],
    }


def timings(workload: Workload, repeats: int) -> list[Row]:
    """Time both loops by turns: the median of each part over the steps of a repeat, once warm."""
    loops = {kind: Loop(workload, kind) for kind in (USUAL, FASTREPLAY)}
    rows: list[Row] = []
    for loop in loops.values():
        for _ in range(3):
            loop.timed_step()
    for repeat in range(repeats):
        for kind, loop in loops.items():
            parts = np.median([loop.timed_step() for _ in range(workload.steps)], axis=0) / 1e3
            for part, spent in zip(PARTS, parts, strict=True):
                share = 100 * spent / parts.sum()
                rows.append(
                    {"workload": workload.name, "kind": kind, "repeat": repeat, "part": part}
                    | {"time_us": float(spent), "share_percent": float(share)}
                )
    return rows


def measure(effort: Effort, _workers: Workers) -> dict[str, list[Row]]:
    """Return the rows of the CSV file, those that `draw` and `claims` take."""
    return {"cost": [row for workload in WORKLOADS for row in timings(workload, effort.repeats)]}


def draw(rows: list[Row]) -> Figure:
    """Draw a bar for each workload and library, cut into shares."""
    picture, axes = new_figure(1, 1, (8, 3.4))
    places: list[int] = []
    labels = []
    for group, workload in enumerate(WORKLOADS):
        for offset, kind in enumerate((USUAL, FASTREPLAY)):
            place, left, notes = -3 * group - offset, 0.0, []
            for part, colour in PARTS.items():
                own = where(rows, workload=workload.name, kind=kind, part=part)
                share, spent = np.mean(column(own, "share_percent")), np.mean(column(own, "time_us"))
                axes.barh(place, share, left=left, color=colour, label=part if not places else None, height=0.85)
                left += share
                notes.append(f"{part} {share:.1f} % ({spent:,.{0 if spent > 10 else 1}f} µs)")
            axes.text(47, place, ",  ".join(notes), ha="center", va="center", fontsize=7)
            places.append(place)
            labels.append(f"{workload.name}\n{kind}")
    axes.set(yticks=places, xlim=(0, 100), xlabel="share of a training step (%)")
    axes.set_yticklabels(labels, fontsize=8)
    axes.grid(visible=False)
    picture.legend(loc="outside upper center", ncols=3)
    return picture


def claims(rows: list[Row]) -> list[Claim]:
    """Say in numbers what the bars show."""
    found = []
    for workload in WORKLOADS:
        own = where(rows, workload=workload.name)
        for kind in (USUAL, FASTREPLAY):
            shares = [
                column(where(own, kind=kind, part=part), "share_percent") for part in ("sampling", "target update")
            ]
            both = mean_interval([a + b for a, b in zip(*shares, strict=True)])
            text = f"sampling and target update of a step, {workload.name}: {kind}"
            found.append(Claim(text, both, " %", f"{len(shares[0])} repeats"))
    return found
