# SPDX-License-Identifier: MIT
"""Minibatches of a ring by draws: a generator and counters of its own, and a delivery."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastreplay.batch.loader import Loader
from fastreplay.support.living import Living

if TYPE_CHECKING:
    from fastreplay import _core
    from fastreplay.batch.delivery import Delivery
    from fastreplay.batch.minibatch import Minibatch
    from fastreplay.batch.waits import Waits

__all__ = ["EMPTY", "Sampler"]

EMPTY = "sample: the buffer is empty"


class Sampler:
    """Draws minibatches from a ring, uniformly and each row by itself.

    Args:
        ring: Where the transitions lie.
        delivery: Where the minibatches are to lie.
        key: Of the generator.
        waits: Counts for what the host waits.

    Thread safety:
        Any thread may sample.
    """

    def __init__(self, ring: _core.Ring, delivery: Delivery, key: tuple[int, int], waits: Waits) -> None:
        self._ring = ring
        self._delivery = delivery
        self._generator = delivery.generator(key)
        self._waits = waits
        self._loaders: Living[Loader[Any]] = Living()

    def sample(self, batch_size: int, out: Minibatch[Any] | None, beta: float | None = None) -> Minibatch[Any]:
        """Draw a minibatch; into `out`, if it is one.

        Raises:
            ValueError: The ring is empty, `out` does not fit, or there are no weights for `beta`.
        """
        if beta is not None:
            raise ValueError(f"beta: expected None, as the buffer has no priorities, got {beta}")
        delivery = self._delivery
        if out is not None:
            if not delivery.block_of(out, batch_size).refill(self._generator.sample, self._ring):
                raise ValueError(EMPTY)
            return out
        block = delivery.take(batch_size)
        try:
            if not self._generator.sample(self._ring, block.native):
                raise ValueError(EMPTY)
        except BaseException:
            delivery.cancel(block)
            raise
        return delivery.give(block)

    def loader(self, batch_size: int, depth: int, steps: int | None) -> Loader[Any]:
        """Iterate over minibatches that are drawn ahead."""
        prefetcher = self._delivery.prefetcher(self._ring, self._generator, depth, steps, self._waits)
        loader: Loader[Any] = Loader(prefetcher, self._delivery, self._beta, batch_size=batch_size, depth=depth)
        self._loaders.add(loader)
        return loader._begin()

    def restart(self, key: tuple[int, int], calls: int) -> None:
        """Draw under another key from now on; the counters go on."""
        self._generator = self._delivery.generator(key, calls, self._generator)

    def _beta(self, _num_ahead: int) -> float:
        """Return the exponent of the weights of a loader's next minibatch but so many: it has none."""
        return 0.0

    @property
    def key(self) -> list[int]:
        """The generator's key."""
        return self._generator.key  # type: ignore[no-any-return]

    @property
    def calls(self) -> int:
        """Minibatches drawn under this key."""
        return self._generator.calls  # type: ignore[no-any-return]

    @property
    def num_sampled(self) -> int:
        """Rows drawn."""
        return self._generator.num_sampled  # type: ignore[no-any-return]

    @property
    def num_redraws(self) -> int:
        """Rows drawn again because a writer overwrote them while they were copied."""
        return self._generator.num_redraws  # type: ignore[no-any-return]

    @property
    def num_without_mass(self) -> int:
        """Minibatches drawn uniformly because no transition had a mass."""
        return 0

    @property
    def num_ahead(self) -> int:
        """Minibatches that loaders have drawn, or are about to, and not handed out."""
        return sum(loader.num_ahead for loader in self._loaders)
