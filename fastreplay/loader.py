# SPDX-License-Identifier: MIT
"""An iterator over minibatches that a native thread draws ahead of the consumer."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

    from fastreplay._blocks import Prefetcher, Supply, Waits
    from fastreplay.minibatch import Minibatch

__all__ = ["Loader"]

ArrayT = TypeVar("ArrayT")  # torch.Tensor or numpy.ndarray


class Loader(Generic[ArrayT]):
    """Minibatches of a buffer, `depth` of them ahead of who takes them; made by `ReplayBuffer.loader`.

    A native thread gathers them, and on a GPU starts their copies, while the consumer works. From construction on,
    and after each `next`, exactly `depth` minibatches are drawn beyond those handed out (fewer towards the end of
    `steps`). Each is the consumer's to keep, as those of `sample`.

    What a minibatch holds is what `sample` would have drawn when its turn was given out, which is `depth` minibatches
    before it is handed out: with nothing inserted meanwhile, the loader yields what `sample` in a loop would. Turns
    are given out by the threads that iterate and sample, in their order; the thread's pace plays no part. So loaders
    that share a buffer's generator repeat themselves under a seed as long as one thread uses them; for several
    threads, let each make its loader on a face of its own (`buffer.spawn`). Transitions inserted after a minibatch was
    gathered are not in it.

    The thread ends with `close()`, at the end of a `with` block, when the loader is garbage, and at the interpreter's
    exit. Minibatches that were drawn and not handed out are lost with it: the generator stays ahead.

    Thread safety:
        Any thread may iterate and close; each minibatch goes to one of them. Inserts and `clear` may go on meanwhile.
        A child after a fork has no thread: it gets a RuntimeError, and makes a loader of its own.

    Example:
        >>> import fastreplay as fr
        >>> buffer = fr.ReplayBuffer(100, {"observation": (3,)}, seed=0)
        >>> buffer.extend(observation=[[i, i, i] for i in range(50)])
        >>> with buffer.loader(32, steps=3) as loader:
        ...     [tuple(batch.observation.shape) for batch in loader]
        [(32, 3), (32, 3), (32, 3)]
    """

    def __init__(
        self,
        prefetcher: Prefetcher[Any],
        supply: Supply[Any],
        give: Callable[[Any], Minibatch[ArrayT]],
        waits: Waits,
        *,
        batch_size: int,
        depth: int,
        steps: int | None,
    ) -> None:
        self._supply = supply
        self._give = give
        self._batch_size = batch_size
        self._depth = depth
        self._num_undrawn = steps  # None for no end
        self._lock = threading.RLock()  # close() is called within it, too
        self._pid = os.getpid()
        self._prefetcher = prefetcher
        self._end = weakref.finalize(self, _end, prefetcher, self._pid, self._lock, supply, waits)
        self._draw_ahead()

    @property
    def batch_size(self) -> int:
        """Transitions of each minibatch."""
        return self._batch_size

    @property
    def depth(self) -> int:
        """Minibatches ahead of the consumer."""
        return self._depth

    @property
    def num_ahead(self) -> int:
        """Minibatches drawn, or about to be, and not handed out."""
        return self._prefetcher.num_pushed

    @property
    def waits(self) -> tuple[int, float]:
        """How often `next` waited for the thread while it ran, and the seconds in all."""
        return (self._prefetcher.num_waits, self._prefetcher.waited_s) if self._end.alive else (0, 0.0)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Minibatch[ArrayT]:
        """Return the next minibatch; wait for it, without the GIL, where the thread has not got so far.

        Raises:
            StopIteration: `steps` are over, or the loader is closed.
            ValueError: The buffer is empty. The loader goes on once it no longer is.
            RuntimeError: This is a child after a fork, or a copy to the device could not be started.
        """
        if os.getpid() != self._pid:
            raise RuntimeError("loader: its thread is in the process that made it; make another after the fork")
        with self._lock:
            if not self._prefetcher.num_pushed:
                self.close()
                raise StopIteration
            batch = self._give(self._filled())
            self._draw_ahead()
        return batch

    def close(self) -> None:
        """End the thread; the loader then yields nothing more.

        Thread safety:
            May be called from any thread, any number of times.
        """
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"{self.num_ahead} ahead" if self._end.alive else "closed"
        return f"{type(self).__name__}(batch_size={self._batch_size}, depth={self._depth}: {state})"

    def _draw_ahead(self) -> None:
        while self._prefetcher.num_pushed < self._depth and self._num_undrawn != 0:
            block = self._supply.take(self._batch_size)
            self._prefetcher.push(block, block.native, block.context)
            if self._num_undrawn is not None:
                self._num_undrawn -= 1

    def _filled(self) -> Any:
        block = self._prefetcher.take()
        if block is None and not self._prefetcher.error:
            self._prefetcher.retry()  # the buffer was empty when the thread looked, which may be long ago
            block = self._prefetcher.take()
        if block is not None:
            self._supply.note_filled(block)
            return block
        if error := self._prefetcher.error:
            self.close()
            raise RuntimeError(f"loader: the copy to the device could not be started: {self._supply.describe(error)}")
        raise ValueError("sample: the buffer is empty")


def _end(prefetcher: Prefetcher[Any], pid: int, lock: threading.RLock, supply: Supply[Any], waits: Waits) -> None:
    if os.getpid() != pid:
        prefetcher.abandon()
        return
    prefetcher.stop()
    with lock:  # who was in the middle of taking a minibatch has it now, or never will
        for block in prefetcher.drain():
            supply.cancel(block)
    waits.add(prefetcher.num_waits, prefetcher.waited_s)
