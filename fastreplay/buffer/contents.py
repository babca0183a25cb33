# SPDX-License-Identifier: MIT
"""Transitions in a ring: inserted, read by age or slot, and seen as columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, SupportsFloat, TypeVar, overload

import numpy as np

from fastreplay.buffer import insert
from fastreplay.buffer.lanes import somebodys
from fastreplay.support.checks import checked_addresses, checked_index, readable_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Literal

    import torch
    from numpy.typing import ArrayLike, NDArray

    from fastreplay import _core
    from fastreplay.batch.minibatch import Minibatch
    from fastreplay.batch.reader import Reader
    from fastreplay.buffer.frames import Frames
    from fastreplay.buffer.lanes import Lanes
    from fastreplay.schema import Schema

    # Arrays, torch CPU tensors, numbers, nested lists; dicts and tuples for nested names.
    TransitionValue = ArrayLike | torch.Tensor | SupportsFloat | Mapping[str, object]

__all__ = ["Contents"]

ArrayT = TypeVar("ArrayT")  # torch.Tensor or numpy.ndarray


class Contents(insert.Inserter, Generic[ArrayT]):
    """Base of the replay buffer: the transitions that it holds. `ReplayBuffer` makes what is needed."""

    _schema: Schema
    _output: str
    _device: torch.device | Literal["cpu"]
    _ring: _core.Ring
    _reader: Reader
    _lanes: Lanes | None
    _frames: Frames

    if TYPE_CHECKING:
        # What type checkers and editors see; the docstrings stand in insert.pyx.
        def add(self, *values: TransitionValue, **fields: TransitionValue) -> None:
            """Insert one transition, given by field name or in schema order."""

        @overload
        def extend(self, rows: Minibatch[Any] | Contents[Any], /, **beside: TransitionValue) -> None: ...
        @overload
        def extend(self, /, *values: TransitionValue, **fields: TransitionValue) -> None: ...
        def extend(self, /, *values: Any, **fields: Any) -> None:
            """Insert n transitions, whose number is the leading axis of every field."""
    else:
        add = insert.ADD
        extend = insert.EXTEND

    @property
    def schema(self) -> Schema:
        """The fields of a transition."""
        return self._schema

    @property
    def capacity(self) -> int:
        """Transitions that the buffer holds at most."""
        return self._ring.capacity - self._ring.num_spare

    @property
    def lanes(self) -> int | None:
        """How many streams of transitions the buffer keeps apart; None where it keeps none."""
        return None if self._lanes is None else self._lanes.core.num_lanes

    @property
    def ends(self) -> tuple[str, ...] | None:
        """Names of the fields that end a trajectory; None without lanes."""
        return None if self._lanes is None else self._lanes.ends

    @property
    def nbytes(self) -> int:
        """Bytes of the ring; `Schema.nbytes(capacity)` tells them beforehand, without lanes and shared fields."""
        return self._ring.num_bytes

    def __len__(self) -> int:
        """Number of transitions up to the oldest unfinished insert; `sample` draws from later ones too."""
        return len(self._ring)

    def gather(
        self, slots: Sequence[int] | NDArray[np.integer], *, out: Minibatch[ArrayT] | None = None
    ) -> Minibatch[ArrayT]:
        """Read transitions by ring slot (`ticket % capacity`).

        Where transitions have frames in common, there are some slots more than `capacity`: as many as any `view` has
        rows, and it is `ticket % len(view)`.

        Args:
            slots: (B,) integers in [0, capacity), or below that number of slots.
            out: A minibatch of batch size B to write into; it is changed as a whole, once all was read, or not at all.

        Returns:
            The transitions in the order of `slots`.

        Raises:
            IndexError: A slot holds no transition, or one that another thread has not finished.
            RuntimeError: Other threads overwrote the transitions at each of many tries.
            TypeError: The slots are no integers.
            ValueError: They have more than one dimension, or `out` does not fit.

        Thread safety:
            May be called from any thread.
        """
        return self._reader.by_slot(checked_addresses("slots", slots), out)

    def __getitem__(self, index: int | slice | Sequence[int] | NDArray[np.integer]) -> Minibatch[ArrayT]:
        """Read transitions by age: 0 is the oldest, -1 the newest.

        Args:
            index: An integer gives one transition, its fields without a batch axis; a slice or (B,)
                integers give a minibatch.

        Raises:
            IndexError: Out of range.
            RuntimeError: Other threads overwrote the transitions at each of many tries.
            TypeError: No integer, slice or integers.
            ValueError: The integers have more than one dimension, or the slice's step is 0.

        Thread safety:
            May be called from any thread; the transitions read are of one moment.
        """
        if isinstance(index, slice):
            return self._reader.by_slice(index)
        if isinstance(index, (int, np.integer)) and not isinstance(index, bool):
            return self._reader.one(checked_addresses("index", [index]))
        return self._reader.by_position(checked_addresses("index", index))

    def view(self, name: str) -> NDArray[np.generic]:
        """Return a live, writable, strided (capacity, *shape) array of one field, without a copy.

        Row `ticket % capacity` is the field of that ticket; where transitions have frames in common, there are some
        rows more, and it is row `ticket % len(view)`. Unchecked: while other threads insert, rows may change as they
        are read.

        Raises:
            KeyError: There is no such field, or it is put together from frames.
        """
        if name not in self._schema:
            raise KeyError(f"{name!r}; the fields are {', '.join(self._schema)}")
        field, position = self._schema[name], self._schema.position(name)
        if self._frames.has(position):
            raise KeyError(
                f"{name!r} is put together from frames that transitions have in common: read it by buffer[:]"
            )
        return self._shown(self._ring.records.column(position, field.dtype, list(field.shape)))

    def _shown(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return an array that lies in the ring, of which account may have to be kept."""
        return array

    def cut(self, lane: int | None = None) -> None:
        """End the trajectory of a lane where it is, as when you reset its environment yourself.

        What is inserted next begins another, and is taken for a transition also after an end. The newest transition
        keeps its `terminated` and `truncated`.

        Args:
            lane: Which; None for all.

        Raises:
            TypeError: `lane` is no integer.
            ValueError: There is no such lane; or the buffer was made without lanes.
            RuntimeError: Another thread is inserting into the lane.

        Thread safety:
            May be called from any thread.
        """
        if self._lanes is None:
            raise ValueError("cut: the buffer was made without lanes")
        if lane is not None:
            count, lane = self._lanes.core.num_lanes, checked_index("lane", lane)
            if not 0 <= lane < count:
                raise ValueError(f"lane: expected a lane in [0, {count}), got {lane}")
        busy = self._lanes.core.cut(lane)
        if busy >= 0:
            raise somebodys(busy)

    def clear(self) -> None:
        """Forget every transition. Tickets and the generator go on.

        Thread safety:
            May be called from any thread; transitions whose insert is under way are forgotten too.
        """
        self._ring.clear()

    def __repr__(self) -> str:
        fields = ", ".join(f"{name} {field.shape} {field.dtype.name}" for name, field in self._schema.items())
        return (
            f"{type(self).__name__}({len(self)} of {self.capacity} transitions, {readable_bytes(self.nbytes)}: "
            f"{fields}; {self._output}, {self._device})"
        )
