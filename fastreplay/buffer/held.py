# SPDX-License-Identifier: MIT
"""Where a buffer's transitions lie, and how long: in memory or in a file, until it is closed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

from fastreplay import _core
from fastreplay.buffer.forks import living
from fastreplay.buffer.lanes import checked_ends
from fastreplay.buffer.pickled import Pickled

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

    from fastreplay.buffer.on_disk import OnDisk
    from fastreplay.buffer.priorities import Priorities
    from fastreplay.support.checks import Seed

__all__ = ["Held", "checked_path"]

ArrayT = TypeVar("ArrayT")  # torch.Tensor or numpy.ndarray


class Held(Pickled[ArrayT]):
    """Base of the replay buffer: what holds its transitions."""

    _disk: OnDisk | None

    def flush(self) -> None:
        """Have what was inserted up to now where it is to be: on the disk, or on the device.

        With `path`, wait until the disk has it. After a loss of power the buffer then has at least this, but for what
        later inserts were overwriting; the generator and the counters go on from here, too. Rows that were changed
        through `view` since they were first confirmed are not known again, and take what is older with them.

        With storage="cuda", queue that the device gets it. `sample` does so itself, but for one that was captured in a
        CUDA graph, with `out`: each replay draws a new minibatch from what was flushed before, on the stream of the
        replays. What the graph refers to lives as long as this buffer and `out`. Else do nothing.

        Raises:
            OSError: The disk has it not. It is not asked again, as what it could not write may pass for written.
            RuntimeError: With `path`, a signal's handler calls it in the midst of another by the same thread, for which
                it would have to wait.

        Thread safety:
            May be called from any thread.
        """
        if self._disk is not None:
            self._disk.confirm()
        if self._mirror is not None:
            self._mirror.flush()

    def close(self) -> None:
        """Let go of the buffer; with `path`, have on the disk what was inserted, and let others open the file.

        From then on every call of it raises, and so do its faces and samplers; its loaders end. Minibatches are the
        caller's, and stay what they are. A call that another thread is in the midst of ends as if it had come before,
        or raises; of an insert's rows each is in the file or is not. At the end of a `with` block, too. Whoever closes
        again does nothing.

        Raises:
            OSError: The disk has not got all. The buffer is open as before, and can be closed once more, without.
            RuntimeError: With `path`, arrays that `view` gave are in use, which lie in the file; or another thread's
                insert has stopped half-way. The buffer is open as before.

        Thread safety:
            May be called from any thread.
        """
        from fastreplay.buffer.closed import closing

        everyone: Any = living
        mine = [one for one in everyone if getattr(one, "_buffer", one)._ring is self._ring]
        with closing(mine):
            if self._disk is not None:
                self._disk.close()
        for one in mine:
            for loader in one._sampler._loaders:
                loader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()

    def _shown(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        if self._disk is not None:
            self._disk.show(array)
        return array

    def _new_disk(
        self,
        path: object,
        capacity: int,
        lanes: int | None,
        ends: Sequence[str] | None,
        priorities: Priorities | None,
    ) -> OnDisk:
        where = checked_path(path)
        if self._storage == "cuda":
            raise ValueError("path: expected None with storage='cuda', which keeps the ring on the device")
        from fastreplay.buffer.on_disk import OnDisk, form_of

        names = None if lanes is None else checked_ends(ends, self._schema)
        share_next, groups, num_spare = self._frames
        form = form_of(capacity, self._schema, lanes, names, priorities, share_next=share_next)
        num_slots, sizes = capacity + num_spare, self._schema.sizes
        num_bytes = num_slots * _core.record_bytes(sizes, groups)
        return OnDisk(where, form, num_bytes, num_slots * _core.beside_bytes(sizes, groups))

    def _go_on_from(self, disk: OnDisk, seed: Seed) -> None:
        """Take up what lies in the file, and let it count."""
        left = disk.begin(self._ring, self._lanes, self._masses)
        if left is not None and seed is None:
            self._sampler.restart(left.key, left.calls, None)
            self._num_spawned = _core.Counter(left.num_spawned)
        if left is not None:
            self._sampler.count_on_from(left.counters)
        disk.finish(self._sampler, self._num_spawned)
        self._disk = disk

    def _leave_disk(self) -> None:
        """In the child after a fork: begin anew, in memory; tickets that the parent gave are none of this ring."""
        assert self._disk is not None
        self._disk.leave()
        self._lineage.begin_anew()
        self._origin += 1


def checked_path(path: object) -> str:
    """Return a path as the system takes it, whatever folder this process works in later.

    Raises:
        TypeError: It is none.
    """
    try:
        decoded = os.fsdecode(os.fspath(path))  # type: ignore[call-overload]
    except TypeError:
        raise TypeError(f"path: expected a path, got {path!r}") from None
    return os.path.abspath(decoded) if decoded else decoded  # noqa: PTH100 - it takes no import of pathlib
