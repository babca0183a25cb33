# SPDX-License-Identifier: MIT
"""An iterator over minibatches that a native thread draws ahead of the consumer."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from fastreplay import _core
from fastreplay.support.memory_limit import check_memory

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from fastreplay.batch.delivery import Delivery
    from fastreplay.batch.minibatch import Minibatch
    from fastreplay.batch.mixed_sampler import MixedSampler
    from fastreplay.batch.ring_sampler import RingSampler
    from fastreplay.batch.state import RngState

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
        So may signal handlers and finalizers that interrupt a `next`. An exception that they raise within it loses no
        minibatch: the next `next` gives the one that this would have. One that comes once `next` is over, before its
        value is assigned, loses that value, as with any function; in a `for` loop the interpreter does not look for
        signals there. A child after a fork has no thread: it gets a RuntimeError, and makes a loader of its own.

    In epochs (`replacement=False`) the last minibatch of an epoch may be smaller than the others.

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
        prefetcher: _core.Prefetcher,
        sampler: RingSampler | MixedSampler,
        delivery: Delivery,
        *,
        batch_size: int,
        depth: int,
    ) -> None:
        if hasattr(self, "_prefetcher"):
            raise RuntimeError("Loader: __init__ was called before; make another")
        self._delivery = delivery
        self._sampler = sampler
        self._batch_size = batch_size
        self._depth = depth
        weakref.finalize(self, _end, prefetcher, delivery)
        self._prefetcher = prefetcher

    def _begin(self) -> Self:
        """Give the first minibatches their turns, all at once, as the last of construction."""
        num_first = self._prefetcher.num_first
        first: list[tuple[Minibatch[ArrayT], Any, int, float]] = []
        try:
            for i in range(num_first):
                minibatch = self._new()
                if not first:
                    block: Any = minibatch._block
                    num_bytes = num_first * block.layout.num_bytes
                    check_memory("depth", f"{num_first} minibatches", num_bytes)
                first.append(self._sampler.entry(minibatch, i))
            self._prefetcher.start(first)
        except BaseException:
            for entry in first:
                self._sampler.withdraw(entry)
            raise
        return self

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
        return self._prefetcher.num_ahead

    @property
    def _num_rows_ahead(self) -> int:
        """Transitions of those that are drawn."""
        return self._prefetcher.num_rows_ahead

    @property
    def rng_state(self) -> RngState:
        """The state from which the next minibatch follows, to be set on the buffer or sampler that goes on from here.

        Raises:
            RuntimeError: This is a child after a fork.
        """
        return self._sampler.state_ahead(self._prefetcher)

    @property
    def num_left_out(self) -> int:
        """In epochs: rows whose turn came when they were overwritten or cleared."""
        return self._sampler.num_left_out

    def __iter__(self) -> Self:
        return self

    if TYPE_CHECKING:

        def __next__(self) -> Minibatch[ArrayT]:
            """Return the next minibatch; wait for it, without the GIL, where the thread has not got so far.

            Raises:
                StopIteration: `steps` are over, or the loader is closed.
                ValueError: The buffer is empty. The loader goes on once it no longer is.
                RuntimeError: This is a child after a fork, or a copy to the device could not be started.
            """
    else:
        # Calls _prepare, then hands out what that made ready in a step that nothing can interrupt.
        __next__ = _core.hand_out

    def close(self) -> None:
        """End the thread; the loader then yields nothing more.

        Thread safety:
            May be called from any thread, any number of times.
        """
        _end(self._prefetcher, self._delivery)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._prefetcher.is_stopped else f"{self.num_ahead} ahead"
        return f"{type(self).__name__}(batch_size={self._batch_size}, depth={self._depth}: {state})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("Loader: a thread and its minibatches cannot be copied; make another with buffer.loader()")

    def _new(self) -> Minibatch[ArrayT]:
        """Make a minibatch that is to be filled."""
        return self._delivery.give_ahead(self._delivery.take(self._batch_size))

    def _prepare(self) -> tuple[_core.Prefetcher, int, Minibatch[ArrayT]]:
        """Make the oldest minibatch ready to be handed out, and another to take its place.

        Leaves everything as it was but for the place of the other, and may so be interrupted and called again
        at any moment, from anywhere.
        """
        prefetcher = self._prefetcher
        if prefetcher.wants_spare:
            entry = self._sampler.entry(self._new(), 0)
            if not prefetcher.put(*entry):
                self._sampler.withdraw(entry)
        try:
            oldest = prefetcher.oldest()
            if oldest is None and not prefetcher.error:
                prefetcher.retry()  # the buffer was empty when the thread looked, which may be long ago
                oldest = prefetcher.oldest()
        except StopIteration:
            self.close()
            raise
        if oldest is not None:
            number, minibatch, num_rows = oldest
            return prefetcher, number, self._delivery.make_ready(minibatch)._first_rows(num_rows)
        if error := prefetcher.error:
            self.close()
            raise RuntimeError(f"loader: the copy to the device could not be started: {self._delivery.describe(error)}")
        raise ValueError(self._sampler.describe_nothing(self._batch_size))


def _end(prefetcher: _core.Prefetcher, delivery: Delivery) -> None:
    """End the thread, and give back what was not handed out. If it is interrupted, it may be called again."""
    prefetcher.stop()
    for minibatch in prefetcher.minibatches:
        delivery.cancel_ahead(minibatch._block)
    prefetcher.drop()
