# SPDX-License-Identifier: MIT
"""What does a minibatch take that is converted or shifted while it is gathered, beside torch doing so afterwards?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from experiment import Contestant, Contestants, Experiment, Question, Result
from render import Columns, Table, by_title, medians, ratio

import fastreplay as fr

_AFTERWARDS, _ALONE = "afterwards", "alone"
_LABELS = {
    "fastreplay": "in the gather",
    _AFTERWARDS: "by torch, afterwards",
    _ALONE: "as it is stored",
}
_IMAGE = (4, 84, 84)
_BYTES: dict[str, Any] = {"dtype": "uint8", "out": "float32", "divide": 255}
_WORK: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "bytes as float32": (_IMAGE, _BYTES),
    "bytes as float32, shifted by 4": (_IMAGE, {**_BYTES, "shift": 4}),
    "bytes shifted by 4": (_IMAGE, {"dtype": "uint8", "shift": 4}),
    "float16 as float32": ((376,), {"dtype": "float16", "out": "float32"}),
    "bfloat16 as float32": ((376,), {"dtype": "bfloat16", "out": "float32"}),
}
_CAPACITY, _SMALLER = 8000, 40  # of images, and by how much smaller rows of 376 numbers are


def at_scale(shrink: int = 1) -> list[Experiment]:
    """Return the experiments with their capacities divided by `shrink`."""
    return [
        Experiment(
            f"given-out-{title.replace(' ', '-').replace(',', '')}-{batch_size}",
            f"{title}, {batch_size} rows",
            partial(_contestants, shape, options, batch_size, _capacity(shape) // shrink),
        )
        for title, (shape, options) in _WORK.items()
        for batch_size in (32, 256)
    ]


def _capacity(shape: tuple[int, ...]) -> int:
    return _CAPACITY if shape == _IMAGE else _CAPACITY * _SMALLER


def _contestants(shape: tuple[int, ...], options: dict[str, Any], batch_size: int, capacity: int) -> Contestants:
    def ours() -> Contestant:
        buffer = _filled(fr.Field(shape, **options), capacity)
        return Contestant(partial(buffer.sample, batch_size), check=partial(_check, buffer, options, batch_size))

    def afterwards() -> Contestant:
        buffer = _filled(fr.Field(shape, options["dtype"]), capacity)
        return Contestant(partial(_converted_afterwards, buffer, options, batch_size))

    def alone() -> Contestant:
        return Contestant(partial(_filled(fr.Field(shape, options["dtype"]), capacity).sample, batch_size))

    return {"fastreplay": ours, _AFTERWARDS: afterwards, _ALONE: alone}


def _filled(field: fr.Field, capacity: int) -> Any:
    buffer: Any = fr.ReplayBuffer(capacity, {"observation": field, "next_observation": field}, seed=0)
    rng = np.random.default_rng(0)
    rows = min(capacity, 100)
    drawn = rng.integers(0, 256, (2, rows, *field.shape)).astype(field.dtype)
    for _ in range(capacity // rows):
        buffer.extend(observation=drawn[0], next_observation=drawn[1])
    return buffer


def _converted_afterwards(buffer: Any, options: dict[str, Any], batch_size: int) -> list[Any]:
    """Sample, and do with torch what is asked for: what training loops do."""
    import torch

    given = []
    for rows in buffer.sample(batch_size):
        made = rows.float() if "out" in options else rows
        if "divide" in options:
            made.div_(options["divide"])
        if shift := options.get("shift"):
            places = torch.randint(0, 2 * shift + 1, (2, batch_size))
            made = _cut(made, shift, places)
        given.append(made)
    return given


def _cut(images: Any, shift: int, places: Any) -> Any:
    """Pad (B, C, H, W) by the edge, and cut out of each row what begins at its place: one copy of views."""
    import torch

    *_, height, width = images.shape
    # Which bytes have no kernel for this mode: they are padded as what has one, of as many bits.
    padded = torch.nn.functional.pad(images.to(torch.float32), (shift,) * 4, mode="replicate").to(images.dtype)
    views = padded.unfold(2, height, 1).unfold(3, width, 1)
    return views[torch.arange(len(images)), :, places[0], places[1]]


def _check(buffer: Any, options: dict[str, Any], batch_size: int) -> bool:
    """Check that all is what torch makes of the rows as they are stored, each shifted by the words of its row.

    Raises:
        AssertionError: Something is not.
    """
    import torch

    state = buffer.rng_state
    batch = buffer.sample(batch_size)
    stored = buffer.gather(batch.ticket.numpy() % buffer.capacity)
    for number, (name, rows) in enumerate(stored.items()):
        made = rows.float() if "out" in options else rows
        if "divide" in options:
            made.div_(options["divide"])
        if shift := options.get("shift"):
            words = [_words(state, row, number) for row in range(batch_size)]
            places = torch.tensor([[word * (2 * shift + 1) >> 64 for word in pair] for pair in words]).T
            made = _cut(made, shift, places)
        assert torch.equal(batch[name], made), f"fastreplay: {name} is not what torch makes of it"
    return True


def _words(state: Any, row: int, field: int) -> list[int]:
    counter = np.array([row, state["calls"], field, 2**32], np.uint64)
    generator = np.random.Philox(key=np.array(state["key"], np.uint64), counter=counter)
    return [int(word) for word in generator.random_raw(2)]


def _tables(results: Sequence[Result]) -> list[Table]:
    note = (
        "µs per call, medians over rounds; ratios are medians of the rounds' ratios. Observation and next observation: "
        f"{_IMAGE} bytes, or 376 numbers; by torch `.float().div_(255)`; `pad(mode='replicate')` and one copy of views."
    )
    columns: Columns = {
        **medians(results, _LABELS),
        "over torch": lambda result: ratio(result.speedup(_AFTERWARDS)),
        "time over as it is stored": lambda result: ratio(result.slowdown((_ALONE,))),
    }
    return [Table("Given out otherwise", note, "work", by_title(results), columns)]


QUESTION = Question(
    "given-out",
    lambda is_quick: at_scale(80) if is_quick else at_scale(),
    _tables,
    _LABELS,
    distributions=("fastreplay", "numpy", "torch"),
    rounds=(31, 5e-3),
    quick_rounds=(2, 5e-5),
)
