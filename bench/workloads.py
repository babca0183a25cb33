# SPDX-License-Identifier: MIT
"""The shapes that are measured, and their self-describing contents.

Every value of a transition encodes its number t, so that a row which comes out of a buffer tells
by itself which transition it is and whether any of its bytes is wrong. Knows no buffer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Columns = dict[str, Array]  # field name -> (n, *shape)
Transition = tuple[Array, Array, Array, float, bool]  # in the order of FIELD_NAMES

FIELD_NAMES = ("observation", "action", "next_observation", "reward", "terminated")

# float32 counts exactly up to 2**24: 20 bits for the transition's number, 4 for the place in it.
TICKET_PERIOD = 1 << 20
PLACE_PERIOD = 1 << 4


@dataclass(frozen=True)
class Spec:
    """One field of a workload."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Workload:
    """A named transition shape with the capacity and the batch size it is measured at."""

    name: str
    observation: Spec
    action: Spec
    capacity: int
    batch_size: int

    @property
    def fields(self) -> Mapping[str, Spec]:
        """The fields in the order of FIELD_NAMES."""
        scalar = Spec((), "float32")
        specs = (self.observation, self.action, self.observation, scalar, scalar)
        return dict(zip(FIELD_NAMES, specs, strict=True))

    @property
    def row_bytes(self) -> int:
        """Bytes of one transition, without padding."""
        return sum(spec.nbytes for spec in self.fields.values())


def vector(size: int) -> Spec:
    """Return the field of `size` float32 numbers."""
    return Spec((size,), "float32")


WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload("pendulum", vector(3), vector(1), capacity=1_000_000, batch_size=64),
        Workload("cheetah", vector(17), vector(6), capacity=1_000_000, batch_size=256),
        # 0.7 and 1.1 GB a ring, so that all peers fit into memory side by side.
        Workload("humanoid", vector(348), vector(17), capacity=250_000, batch_size=256),
        Workload("atari", Spec((4, 84, 84), "uint8"), Spec((), "int64"), capacity=20_000, batch_size=32),
    )
}


def contents(workload: Workload, tickets: npt.NDArray[np.int64]) -> Columns:
    """Return the transitions with the given numbers, one array (n, *shape) a field."""
    columns = {
        name: _encode(spec, tickets % TICKET_PERIOD, place=7 * index)
        for index, (name, spec) in enumerate(workload.fields.items())
    }
    columns["terminated"] = (tickets & 1).astype(np.float32)  # some peers keep one bit
    return columns


def chunks(workload: Workload, capacity: int, *, rows: int = 4096) -> Iterator[tuple[int, Columns]]:
    """Yield (first number, transitions) over the numbers 0 to capacity - 1."""
    for start in range(0, capacity, rows):
        yield start, contents(workload, np.arange(start, min(start + rows, capacity)))


def steps(workload: Workload, tickets: npt.NDArray[np.int64]) -> Columns:
    """Return the same transitions as a vector environment's step hands them out."""
    columns = contents(workload, tickets)
    return {**columns, "terminated": columns["terminated"].astype(bool)}


def transitions(workload: Workload, tickets: npt.NDArray[np.int64]) -> list[Transition]:
    """Return the same transitions one by one, as an environment's step hands them out."""
    columns = contents(workload, tickets)
    return [
        (
            columns["observation"][i],
            columns["action"][i],
            columns["next_observation"][i],
            float(columns["reward"][i]),
            bool(columns["terminated"][i]),
        )
        for i in range(len(tickets))
    ]


def decode(columns: Mapping[str, Array]) -> npt.NDArray[np.int64]:
    """Return the transition number that each row's reward claims."""
    return columns["reward"].reshape(-1).astype(np.int64) // PLACE_PERIOD


def _encode(spec: Spec, tickets: npt.NDArray[np.int64], *, place: int) -> Array:
    if spec.dtype == "uint8":
        return _encode_bytes(spec, tickets, place=place)
    places = (place + np.arange(int(np.prod(spec.shape, dtype=np.int64)))) % PLACE_PERIOD
    firsts = (tickets * PLACE_PERIOD).astype(spec.dtype)  # what is added to them is exact, too
    values: Array = firsts[:, None] + places.astype(spec.dtype)
    return values.reshape(len(tickets), *spec.shape)


def _encode_bytes(spec: Spec, tickets: npt.NDArray[np.int64], *, place: int) -> Array:
    """Put the number's four bytes into every four pixels, shifted by the pixels' place."""
    words = tickets.astype("<u4").view(np.uint8).reshape(-1, 1, 4)
    places = (place + np.arange(spec.nbytes)).astype(np.uint8).reshape(1, -1, 4)
    return (words + places).reshape(len(tickets), *spec.shape)
