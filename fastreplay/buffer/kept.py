# SPDX-License-Identifier: MIT
"""A buffer's way into a folder and back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from fastreplay import _core
from fastreplay.buffer.held import Held, checked_path
from fastreplay.buffer.links import put_links
from fastreplay.buffer.pickled import rebuilt
from fastreplay.buffer.priorities import check_masses
from fastreplay.checkpoint.stored import Column, Stored
from fastreplay.support.checks import checked_bytes, checked_count, checked_flag

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping

    import torch
    from numpy.typing import NDArray
    from typing_extensions import Buffer, Self

    from fastreplay.buffer.described import Described
    from fastreplay.buffer.options import Storage
    from fastreplay.buffer.priorities import Priorities
    from fastreplay.checkpoint.folder import Folder
    from fastreplay.checkpoint.manifest import Manifest
    from fastreplay.checkpoint.save import SavedRange, SaveSource
    from fastreplay.checkpoint.save_handle import SaveHandle

__all__ = ["Kept", "state_columns"]

ArrayT = TypeVar("ArrayT")  # torch.Tensor or numpy.ndarray

_MASS = Column("mass", (), np.dtype(np.float32))
_LINKS = [Column("lane", (), np.dtype(np.uint32)), Column("link", (), np.dtype(np.uint8))]


class Kept(Held[ArrayT]):
    """Base of the replay buffer: its checkpoints.

    Attributes:
        attached: What was kept with the checkpoint that this was loaded from, bytes by name; nothing where it was not.
    """

    attached: dict[str, bytes]

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        full: bool = False,
        hold: bool = False,
        attached: Mapping[str, Buffer] | None = None,
    ) -> SavedRange:
        """Save the buffer into a folder, beside whoever inserts and samples: nobody waits.

        What is there of this buffer from an earlier save is not written again. At every moment, the folder holds the
        checkpoint before or the new one, whole: also after a kill or a loss of power.

        Args:
            path: The folder; it is made where there is none. It may hold a checkpoint, of any buffer, which is
                replaced; else it is empty.
            full: Writes all anew: also what was changed in place (`view`) since it was saved.
            hold: Lets inserts wait before they overwrite what was not read yet, instead of losing it: where writers
                are faster than the disk. Inserts of a buffer with a `timeout` may then raise.
            attached: Bytes by name to be kept with it, such as the learner's state: a loaded buffer has them in its
                `attached`. They are replaced together with the buffer; what is not given again is gone.

        Returns:
            SavedRange(first, end, lost): the checkpoint has tickets [first, end), and not the `lost` oldest of those
            there were at the call, which writers overwrote before they were read.

        Raises:
            OSError: It cannot be written; what was saved before stands.
            ValueError: Something else lies in the folder; or somebody wrote into the ring's file what no record is.
            RuntimeError: With `hold`, another save of this buffer holds inserts; without, writers were so fast that
                nothing could be read. Or it was called in the midst of a save by the same thread, as signal handlers
                are, and would have to wait for that. What was saved before stands.
            TypeError: `path` is no path, `full` or `hold` no bool, or `attached` no bytes by name.

        Thread safety:
            May be called from any thread; saves into one folder, of any process, take turns.
        """
        return self._saving(path, full, hold, attached)()

    def save_async(
        self,
        path: str | os.PathLike[str],
        *,
        full: bool = False,
        hold: bool = False,
        attached: Mapping[str, Buffer] | None = None,
    ) -> SaveHandle:
        """Do as `save`, in a thread of its own. What is attached is not to be changed until it is done.

        Returns:
            A handle: `wait()` for what `save` returns or raises, `done`.

        Raises:
            TypeError: As `save`.

        Thread safety:
            May be called from any thread. The interpreter does not exit before the save is done.
        """
        from fastreplay.checkpoint.save_handle import SaveHandle

        return SaveHandle(self._saving(path, full, hold, attached))

    def _saving(self, path: object, full: object, hold: object, attached: object) -> Callable[[], SavedRange]:
        where, is_full, holds = checked_path(path), checked_flag("full", full), checked_flag("hold", hold)
        data = checked_bytes("attached", attached)
        from fastreplay.checkpoint.save import save

        return lambda: save(where, self._kept_source(), data, full=is_full, hold=holds)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        capacity: int | None = None,
        device: torch.device | str | int | None = None,
        storage: Storage | None = None,
        output: Literal["torch", "numpy"] | None = None,
        priorities: Priorities | None = None,
    ) -> Self:
        """Make a buffer of what was saved: its transitions, tickets, generator, priorities, lanes.

        Its next minibatches are those that would have come. Nothing in the folder is run, and every byte of it is
        checked before there is a buffer; checksums find damage, not malice.

        Args:
            path: The folder.
            capacity: Of the buffer, in place of that saved; where it is smaller, the newest transitions are loaded.
            device: As in the constructor, in place of that saved.
            storage: The same.
            output: The same.
            priorities: The rule that the buffer was saved with; needed where its `beta` is a function.

        Raises:
            FileNotFoundError: There is no checkpoint.
            OSError: It cannot be read.
            ValueError: It is damaged (the message names the file and the place), or an option does not fit.
            TypeError, RuntimeError, MemoryError: As the constructor.
        """
        wanted = {"device": device, "storage": storage, "output": output}
        options = {name: value for name, value in wanted.items() if value is not None}
        most = None if capacity is None else checked_count("capacity", capacity)
        from fastreplay.checkpoint.load import load

        return load(checked_path(path), lambda folder, kept: cls._loaded(folder, kept, most, options, priorities))

    @classmethod
    def _loaded(
        cls,
        folder: Folder,
        manifest: Manifest,
        capacity: int | None,
        options: dict[str, Any],
        priorities: Priorities | None,
    ) -> Self:
        from fastreplay.buffer.described import Described, rule_of
        from fastreplay.checkpoint.load import read_attached, read_columns, read_records
        from fastreplay.checkpoint.manifest import MANIFEST

        said = Described.of(manifest.buffer, folder.file(MANIFEST))
        options = options | {"priorities": rule_of(said.options["priorities"], priorities)}
        capacity = said.capacity if capacity is None else capacity
        if manifest.end - manifest.first > said.capacity:
            raise ValueError(
                f"{folder.file(MANIFEST)}: expected at most {said.capacity} transitions, "
                f"got {manifest.end - manifest.first}"
            )
        buffer: Self = rebuilt(cls, capacity, said.schema, said.options | options)
        first = max(manifest.first, manifest.end - capacity)
        read_records(folder, manifest, Stored(buffer._ring, said.schema), first)
        state = read_columns(folder, manifest.state, buffer._state_columns(), first)
        buffer._take_over(said, first, state, folder.path)
        buffer._ring.count(said.inserted, said.overwritten + first - manifest.first)
        buffer._lineage.ancestors = manifest.ancestors | {manifest.origin: manifest.end}
        buffer.attached = {name: data.tobytes() for name, data in read_attached(folder, manifest).items()}
        return buffer

    def _loaded_alike(self, folder: Folder, manifest: Manifest) -> Self:
        """Return a buffer with what a checkpoint holds, in which this one's place can be taken by it.

        Raises:
            OSError, ValueError: It is damaged, or of another form.
        """
        options = {"device": self._device, "storage": self._storage, "output": self._output}
        made = self._loaded(folder, manifest, self.capacity, options, self._priorities)
        for name, mine, its in (
            ("schema", self._schema, made._schema),
            ("priorities", self._priorities, made._priorities),
            ("lanes", self._streams(), made._streams()),
        ):
            if mine != its:
                raise ValueError(f"{name}: expected that of this buffer, {mine}, got {its}")
        return made

    def _take_over(
        self, said: Described, first: int, state: Iterable[tuple[int, list[NDArray[Any]]]], path: str
    ) -> None:
        """Become what a buffer said of itself, its transitions from a ticket on being in the ring.

        Args:
            said: It.
            first: The ticket.
            state: What was kept beside them: the ticket of the first of each run, its columns.
            path: What a message calls all this.

        Raises:
            ValueError: Something is not what it can be.
        """
        from fastreplay.checkpoint.load import naming

        end = first
        for ticket, columns in state:
            with naming(path):
                if self._masses is not None:
                    masses = columns.pop(0)
                    check_masses(masses)
                    self._masses.restore(ticket, masses)
                if self._lanes is not None:
                    put_links(self._lanes, ticket, *columns)
                    end = ticket + len(columns[0])
        if said.largest is not None:
            self._kept("load").largest = said.largest
        if self._lanes is not None:
            states, ends = said.lanes
            self._lanes.core.skips_resets = said.skips_resets
            self._lanes.core.link_restored(first, end)
            self._lanes.core.restore_states(np.array(states, np.uint8), np.array(ends, np.uint64))
        self._num_spawned = _core.Counter(said.num_spawned)
        self._sampler.restart(tuple(said.rng_state["key"]), said.rng_state["calls"], None)
        if said.counters is not None:
            self._sampler.count_on_from(said.counters)

    def _kept_source(self) -> SaveSource:
        from fastreplay.checkpoint.save import SaveSource

        columns, stored = self._state_columns(), Stored(self._ring, self._schema)
        return SaveSource(
            stored,
            self._lineage,
            lambda end: self._described(end).json(),
            columns,
            self._read_state,
            self._holding,
        )

    def _state_columns(self) -> list[Column]:
        return state_columns(has_masses=self._masses is not None, has_lanes=self._lanes is not None)

    def _read_state(self, first: int, count: int) -> list[NDArray[Any]]:
        """Return what is kept beside so many transitions, which may be overwritten meanwhile."""
        arrays: list[NDArray[Any]] = []
        if self._masses is not None:
            arrays.append(self._kept("save").read(first, count))
        if self._lanes is not None:
            lanes, links, oldest = self._lanes.core.save(first, count)
            num_lost = min(max(oldest - first, 0), count)
            lanes[:num_lost] = 0
            links[:num_lost] = _core.LINK_UNKNOWN
            arrays += [lanes, links]
        return arrays

    def _described(self, end: int) -> Described:
        """Return what the buffer says of itself now, but for its transitions from a ticket on."""
        from fastreplay.buffer.described import Described

        states, ends = ((), ()) if self._lanes is None else self._lanes.core.save_states()
        own = self._sampler.state_not_handed_out()
        inserted = self._num_inserted_before(end)
        return Described(
            capacity=self.capacity,
            schema=self._schema,
            options={
                "device": str(self._device),
                "storage": self._storage,
                "output": self._output,
                "timeout": None if math.isinf(self._timeout) else self._timeout,
                "priorities": self._priorities,
                **self._streams(),
            },
            rng_state={"key": [*own["key"]], "calls": own["calls"]},
            num_spawned=self._num_spawned.value,
            inserted=inserted,
            overwritten=min(self._ring.num_overwritten, inserted),  # which others may be overwriting
            largest=None if self._masses is None else self._kept("save").largest,
            skips_resets=self._lanes is not None and self._lanes.core.skips_resets,
            lanes=([int(each) for each in states], [int(each) for each in ends]),
            counters=self._sampler.counters_not_handed_out(),
        )

    def _num_inserted_before(self, end: int) -> int:
        ring = self._ring
        while True:
            reserved = ring.num_reserved
            inserted: int = ring.num_inserted
            if reserved == ring.num_reserved:  # both of one moment
                return inserted - (reserved - end)


def state_columns(*, has_masses: bool, has_lanes: bool) -> list[Column]:
    """Return what is kept beside a buffer's transitions."""
    return [*([_MASS] if has_masses else []), *(_LINKS if has_lanes else [])]
