# SPDX-License-Identifier: MIT
"""A buffer's way through pickle and back: transitions, generator, options, and what subclasses have added."""

from __future__ import annotations

from inspect import get_annotations
from typing import TYPE_CHECKING, Any, TypeVar

from fastreplay import _core
from fastreplay.buffer.contents import Contents
from fastreplay.buffer.links import Links
from fastreplay.buffer.pickled_state import checked_state
from fastreplay.buffer.snapshot import ReceivedTransitions, Transitions
from fastreplay.buffer.weighed import Weighed

if TYPE_CHECKING:
    import threading

    from fastreplay.batch.ring_sampler import RingSampler
    from fastreplay.buffer.options import Storage
    from fastreplay.checkpoint.lineage import Lineage
    from fastreplay.schema import Schema
    from fastreplay.support.saving import Format

__all__ = ["Pickled", "own_attributes", "rebuilt"]

ArrayT = TypeVar("ArrayT")  # torch.Tensor or numpy.ndarray
BufferT = TypeVar("BufferT", bound="Pickled[Any]")


class Pickled(Weighed[ArrayT]):
    """Base of the replay buffer: how it is pickled."""

    _storage: Storage
    _timeout: float
    _sampler: RingSampler
    _num_spawned: _core.Counter
    _lineage: Lineage
    _holding: threading.Lock  # by the save that lets inserts wait

    def _initialize(self, capacity: int, schema: Schema, options: dict[str, Any]) -> None:
        """Initialize the buffer, whatever constructor a subclass has."""
        raise NotImplementedError

    def __reduce__(self) -> tuple[object, ...]:
        native = own_attributes(self)
        state = {
            "first": self._ring.window()[0],
            "columns": Transitions(self),
            "rng_state": self._sampler.state,
            "counters": self._sampler.counters,
            "num_spawned": self._num_spawned.value,
            "extra": {k: v for k, v in self.__dict__.items() if k not in native},
        }
        options = {
            "device": str(self._device),
            "storage": self._storage,
            "output": self._output,
            "timeout": self._timeout,
            "priorities": self._priorities,
            **self._streams(),
        }
        if self._masses is not None:
            first, end = self._ring.window()
            kept = self._kept("pickle")
            masses = kept.read(first, end - first)
            state["masses"] = {"first": first, "values": masses, "largest": kept.largest}
        if self._lanes is not None:
            state["links"] = Links(self._ring, self._lanes)  # read after the transitions: none is too new for it
        return rebuilt, (type(self), self.capacity, self._schema, options), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what a pickle holds; no other thread may use the buffer meanwhile.

        Raises:
            ValueError: The state is malformed, or of another schema; the buffer is as it was.
        """
        saved = checked_state(state, own_attributes(self))
        if self._lanes is not None and saved.links is not None:
            saved.links.check(self._lanes)
        if not (isinstance(saved.columns, ReceivedTransitions) and saved.columns.buffer is self):
            first, columns = saved.contents(self._schema, self.capacity)
            self._lineage.begin_anew()  # others had the tickets, which may have been saved
            self._ring.start_at(first)
            self._extend_anywhere(*columns, lanes=0 if saved.links is None else saved.links.lanes_from(first, columns))
        if self._masses is not None and saved.masses is not None:
            self._masses.restore(saved.masses.first, saved.masses.values)
            self._kept("pickle").largest = saved.masses.largest
        if self._lanes is not None and saved.links is not None:
            saved.links.restore(self._lanes)
        self.__dict__.update(saved.extra)
        self._num_spawned = _core.Counter(saved.num_spawned)
        self._sampler.restart(saved.key, saved.calls, None)
        if saved.counters is not None:
            self._sampler.count_on_from(saved.counters)

    def _receive(self, form: Format) -> ReceivedTransitions:
        """Return what the transitions of a pickle go into: this buffer while it is unused, else one like it."""
        target = self
        if self._ring.num_inserted or self._ring.window() != (0, 0):
            target = rebuilt(type(self), self.capacity, self._schema, {"output": "numpy", **self._streams()})
        return ReceivedTransitions(target, form)

    def _streams(self) -> dict[str, Any]:
        """Return the options that say what transitions have to do with each other."""
        return {
            "lanes": None if self._lanes is None else self._lanes.core.num_lanes,
            "ends": None if self._lanes is None else self._lanes.ends,
            "share_next": self._frames.share_next,
        }

    def _extend_anywhere(self, *columns: Any, lanes: Any = 0) -> None:
        """Insert saved transitions; how they follow each other is restored afterwards."""
        Contents.extend(self, *columns, **({} if self._lanes is None else {"lanes": lanes}))


def own_attributes(buffer: Pickled[Any]) -> set[str]:
    """Return what the constructor makes; the rest of `__dict__` is a subclass's own."""
    own = [base for base in type(buffer).__mro__ if base.__module__.startswith(__package__)]
    return {name for base in own for name in get_annotations(base)}


def rebuilt(cls: type[BufferT], capacity: int, schema: Schema, options: dict[str, Any]) -> BufferT:
    """Return a buffer, whatever constructor its class has."""
    buffer = cls.__new__(cls)
    buffer._initialize(capacity, schema, options)
    return buffer
