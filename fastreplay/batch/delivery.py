# SPDX-License-Identifier: MIT
"""Where minibatches live, from taken to given back: what all deliveries do, and the one of the host.

Those to a CUDA device are in fastreplay/gpu.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal

from fastreplay import _core
from fastreplay.batch.beside import Beside
from fastreplay.batch.minibatch import Minibatch
from fastreplay.batch.native_minibatch import NativeDelivery
from fastreplay.batch.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from fastreplay.batch.block import HostBlock
    from fastreplay.batch.form import Form
    from fastreplay.batch.waits import Waits

__all__ = ["Delivery", "HostDelivery"]


class Delivery(ABC):
    """Memory of minibatches: a block is taken, filled and given to a caller as a minibatch; or taken and cancelled.

    What a loader fills ahead is given before it is filled, and then made ready, or cancelled where nobody is to have
    it.

    Args:
        form: What a minibatch is made of.
        device: Where its tensors are.
        origin: The number of the ring that its rows are of; 0 where nobody asks.

    Attributes:
        form: What a minibatch is made of.
        place: What the blocks have in common that can be filled from here.
        pinned_bytes: Bytes of page-locked memory.
    """

    place: object
    pinned_bytes: int

    def __init__(self, form: Form, device: torch.device | Literal["cpu"], origin: int = 0) -> None:
        self.form = form
        self.schema = form.schema
        self.device = device
        self._beside = tuple(form.beside)
        self._origin = origin

    @abstractmethod
    def take(self, batch_size: int) -> Any:
        """Return a block that nobody uses, to be filled."""

    @abstractmethod
    def give(self, block: Any) -> Minibatch[Any]:
        """Return a filled block as a minibatch; it is taken again when everything made of that is gone."""

    @abstractmethod
    def cancel(self, block: Any) -> None:
        """Take a block back that was not filled, or that nobody wants."""

    @abstractmethod
    def give_ahead(self, block: Any) -> Minibatch[Any]:
        """Return a minibatch of a block that a prefetcher is to fill."""

    def draw(self, generator: Any, source: _core.Ring | _core.Follow, beta: float, batch_size: int) -> Any:
        """Return a minibatch of rows that a generator draws; None where there is nothing to draw from."""
        block = self.take(batch_size)
        try:
            num_rows = generator.sample(source, beta, block.native)
        except BaseException:
            self.cancel(block)
            raise
        if not num_rows:
            self.cancel(block)
            return None
        return self.give(block)._first_rows(num_rows)

    def draw_into(
        self, out: Any, generator: Any, source: _core.Ring | _core.Follow, beta: float, batch_size: int
    ) -> Any:
        """Fill a caller's minibatch, and return it; None where there is nothing to draw from, and nothing has changed.

        Raises:
            TypeError, ValueError: As `block_of`.
        """
        if not self.block_of(out, batch_size).refill(generator.sample, source, beta):
            return None
        return self.given_again(out)

    def make_ready(self, batch: Minibatch[Any]) -> Minibatch[Any]:
        """Return a minibatch that was filled ahead, as the caller is to have it.

        As often, and from as many threads, as you like.
        """
        return batch

    def cancel_ahead(self, block: Any) -> None:  # noqa: B027 - most have nothing to finish
        """Finish what a prefetcher, stopped by now, did with a block that nobody is to have; as often as you like."""

    def replace(self, block: Any, ring: _core.Ring, slots: NDArray[np.int64]) -> None:
        """Replace what a block's holder sees by the transitions in these slots: all of it, or nothing has changed."""
        block.refill(ring.read, True, slots)

    def block_of(self, out: object, batch_size: int) -> Any:
        """Return the block of a caller's `out`.

        Raises:
            TypeError: It is no minibatch.
            ValueError: It was not made here, or is of another size, or was changed.
        """
        if not isinstance(out, Minibatch):
            raise TypeError(f"out: expected a Minibatch, got {type(out).__name__}")
        block: Any = out._block
        if block is None:
            raise ValueError(f"out: expected a minibatch that sample() or gather() made on {self.device}")
        if block.device is not self.device and block.device != self.device:
            raise ValueError(f"out: expected a minibatch on {self.device}, got one on {block.device}")
        layout = block.layout
        self.form.check(layout.form)
        if layout.batch_size != batch_size:
            raise ValueError(f"out: expected batch size {batch_size}, got {layout.batch_size}")
        values = (*out._values, *out._beside.values()) if out._beside else out._values
        changed = block.first_changed(values, out._ticket)
        if changed >= 0:
            name = (*self.schema, *self._beside, "ticket")[changed]
            done = "moved, reshaped, locked or computed from others"
            raise ValueError(f"out: expected the minibatch as it was made, got {name!r} {done}")
        if block.place is not self.place:
            raise ValueError("out: with storage='cuda', sample() takes what sample() of this ring made, gather() other")
        return block

    def given_again(self, out: Minibatch[Any]) -> Minibatch[Any]:
        """Return a caller's minibatch that was filled again: its rows are this ring's now."""
        if out._beside.origin != self._origin:
            out._belong_to(self._origin)
        return out

    def _minibatch(self, values: tuple[Any, ...], block: Any) -> Minibatch[Any]:
        """Make a minibatch of all that a block has but its tickets."""
        batch_size = block.layout.batch_size
        if not self._origin and not self._beside:
            return Minibatch(self.schema, values, block, batch_size)
        num_fields = len(self.schema)
        beside = Beside.__new__(Beside)  # one by one, which takes a third of the time
        beside.origins = [self._origin] if self._origin else ()
        beside.time_major = self.form.time_major
        for i, name in enumerate(self._beside, num_fields):
            beside[name] = values[i]
        return Minibatch(self.schema, values[:num_fields], block, batch_size, None, beside)

    def unseen(self, source: _core.Follow) -> _core.Follow:
        """Return what fills blocks that somebody sees as `source` does others: as a whole, or not at all."""
        return source.staged()

    def generator(self, key: tuple[int, int], calls: int = 0, before: Any = None, rule: tuple[Any, ...] = ()) -> Any:
        """Make what draws rows into the blocks, uniformly or by a rule; its counters go on from those `before`."""
        made = _core.Sampler(key, calls, *rule)
        if before is not None:
            made.count_on_from(before)
        return made

    def num_calls(self, generator: Any) -> int:
        """Return how many minibatches a generator has drawn."""
        return generator.calls  # type: ignore[no-any-return]

    def num_incomplete(self, generator: Any) -> int:  # noqa: ARG002 - the host draws on, or refuses
        """Return how many rows were given as they are, though they were to be complete."""
        return 0

    def prefetcher(
        self,
        members: Sequence[tuple[_core.Ring | _core.Follow, Any]],
        depth: int,
        steps: int | None,
        waits: Waits,
    ) -> _core.Prefetcher:
        """Make what fills `depth` blocks ahead, `steps` in all.

        `members` are what is drawn from, a ring or what surrounds its rows, and by whom; several fill a share each.
        """
        return _core.Prefetcher(members, depth, steps, waits)

    def describe(self, error: int) -> str:
        """Return a prefetcher's error in words."""
        return str(error)

    def num_in_flight(self, num_ahead: int) -> int:
        """Return how many blocks are being filled or sent, of which loaders say that `num_ahead` are theirs."""
        return num_ahead


class HostDelivery(NativeDelivery, Delivery):
    """Minibatches where they were gathered, as tensors or arrays; or as tensors that torch moves elsewhere.

    Args:
        form: What a minibatch is made of.
        device: Where its tensors are to be.
        output: "torch" or "numpy".
        origin: The number of the ring that its rows are of; 0 where nobody asks.
    """

    place = "host"
    pinned_bytes = 0
    _draw_into = Delivery.draw_into

    def __init__(self, form: Form, device: torch.device | Literal["cpu"], output: str, origin: int = 0) -> None:
        Delivery.__init__(self, form, device, origin)
        self._pool = Pool(form)
        is_plain = not origin and not form.beside
        super().__init__(self._pool, Minibatch, form.schema, output == "numpy", is_plain, device == "cpu")

    def make_ready(self, batch: Minibatch[Any]) -> Minibatch[Any]:
        """Return a filled minibatch on the device."""
        return batch if self.device == "cpu" else batch.to(self.device)

    def replace(self, block: HostBlock, ring: _core.Ring, slots: NDArray[np.int64]) -> None:
        """Replace what a block's holder sees, by way of a block that nobody sees."""
        self._pool.replace(block, ring, slots)
