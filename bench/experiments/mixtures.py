# SPDX-License-Identifier: MIT
"""What does one minibatch of two buffers take, half of each, beside two minibatches that are put together?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from experiment import Contestant, Contestants, Experiment, Question, Result
from peers.ours import empty_buffer, fill
from render import Columns, Table, by_title, medians, ratio
from workloads import WORKLOADS

import fastreplay as fr

_BATCH = 256
_APART, _TOGETHER, _ONE = "apart", "together", "one"
_LABELS = {
    "fastreplay": "`fr.Mixture`",
    _TOGETHER: "two `sample`s, and `cat` of each field",
    _APART: "two `sample`s alone",
    _ONE: "`sample` of one buffer",
}


def at_scale(shrink: int = 1) -> list[Experiment]:
    """Return the experiments with their capacities divided by `shrink`."""
    return [
        Experiment(
            f"mixtures-{name}-{output}",
            f"{name}, {_BATCH} rows, {output}",
            partial(_contestants, name, output, WORKLOADS[name].capacity // shrink // 2),
        )
        for name in ("pendulum", "cheetah", "humanoid")
        for output in ("torch", "numpy")
    ]


def _contestants(name: str, output: str, capacity: int) -> Contestants:
    def buffers() -> list[Any]:
        return [_filled(name, output, capacity) for _ in range(2)]

    def mixed() -> Contestant:
        members = buffers()
        mixture = fr.Mixture(dict.fromkeys(members, 0.5))
        return Contestant(partial(mixture.sample, _BATCH), check=partial(_check, mixture))

    def together() -> Contestant:
        return Contestant(partial(_together, buffers(), _concatenation(output)))

    def apart() -> Contestant:
        first, second = buffers()
        return Contestant(lambda: (first.sample(_BATCH // 2), second.sample(_BATCH // 2)))

    def one() -> Contestant:
        return Contestant(partial(_filled(name, output, 2 * capacity).sample, _BATCH))

    return {"fastreplay": mixed, _TOGETHER: together, _APART: apart, _ONE: one}


def _filled(name: str, output: str, capacity: int) -> Any:
    buffer = empty_buffer(WORKLOADS[name], capacity, output=output)
    fill(buffer, WORKLOADS[name])
    return buffer


def _concatenation(output: str) -> Any:
    if output == "numpy":
        return np.concatenate
    import torch

    return torch.cat


def _together(buffers: Sequence[Any], concatenate: Any) -> tuple[Any, ...]:
    one, other = [buffer.sample(_BATCH // 2) for buffer in buffers]
    return tuple([concatenate(pair) for pair in zip(one, other, strict=True)])


def _check(mixture: Any) -> None:
    """Check whose rows they are, and that they are what each buffer has.

    Raises:
        AssertionError: One is wrong.
    """
    batch = mixture.sample(_BATCH).numpy()
    assert (batch.source == np.repeat([0, 1], _BATCH // 2)).all(), "fastreplay: a row is of another buffer"
    for i, member in enumerate(mixture.members):
        tickets = batch.ticket[batch.source == i]
        rewards = member.gather(tickets).numpy().reward
        assert (batch.reward[batch.source == i] == rewards).all(), "fastreplay: a row is wrong"


def _tables(results: Sequence[Result]) -> list[Table]:
    note = (
        "µs per call, medians over rounds; ratios are medians of the rounds' ratios. Two buffers of half the "
        "workload's capacity each, uniform draws."
    )
    columns: Columns = {
        **medians(results, _LABELS),
        "over what is put together": lambda result: ratio(result.speedup(_TOGETHER)),
        "time over the two alone": lambda result: ratio(result.slowdown((_APART,))),
    }
    return [Table("Mixtures", note, "work", by_title(results), columns)]


QUESTION = Question(
    "mixtures",
    lambda is_quick: at_scale(50) if is_quick else at_scale(),
    _tables,
    _LABELS,
    distributions=("fastreplay", "numpy", "torch"),
    rounds=(31, 5e-3),
    quick_rounds=(2, 5e-5),
)
