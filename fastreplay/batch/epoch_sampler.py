# SPDX-License-Identifier: MIT
"""Minibatches of a ring in epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastreplay.batch.ring_sampler import RingSampler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastreplay import _core
    from fastreplay.batch.delivery import Delivery
    from fastreplay.batch.minibatch import Minibatch
    from fastreplay.batch.state import EpochState, RngState
    from fastreplay.batch.waits import Waits

__all__ = ["EpochSampler"]


class EpochSampler(RingSampler):
    """Draws minibatches from a ring without replacement: every transition of a moment once, then those of the next.

    Args:
        ring: Where the transitions lie.
        delivery: Where the minibatches are to lie.
        key: Of the order.
        waits: Counts for what the host waits.
        shuffle: Whether the order is random; else the oldest comes first.
        drop_last: Whether an epoch's last rows are left, where they are fewer than a minibatch.

    Thread safety:
        Any thread may sample; each row goes to one of them.
    """

    first_epoch: EpochState = (0, 0, 0, 0)

    def __init__(
        self,
        ring: _core.Ring,
        delivery: Delivery,
        key: tuple[int, int],
        waits: Waits,
        *,
        shuffle: bool,
        drop_last: bool,
    ) -> None:
        self._drop_last = drop_last
        super().__init__(ring, delivery, key, waits, (shuffle, drop_last, self.first_epoch))

    def sample(self, batch_size: int, out: Minibatch[Any] | None, beta: float | None = None) -> Minibatch[Any]:
        """Draw the next minibatch, at an epoch's end perhaps a smaller one; into `out`, if it is one.

        Raises:
            ValueError: There is nothing to draw from, `out` does not fit, or there are no weights for `beta`.
        """
        if out is not None and not self._drop_last:
            raise ValueError("out: expected None, as an epoch's last minibatch may be smaller (see drop_last)")
        return super().sample(batch_size, out, beta)

    def least(self, num_rows: int) -> int:
        """Return how many transitions there have to be, for so many rows."""
        return num_rows if self._drop_last else 1

    def restart(self, key: tuple[int, int], calls: int, epoch: EpochState | None) -> None:
        """Go on under another key, in the midst of an epoch.

        Raises:
            ValueError: `epoch` is missing, or of more transitions than the ring could hold.
        """
        if epoch is None:
            raise ValueError("rng_state: 'epoch' is missing, which draws in epochs have")
        if epoch[2] > self._ring.capacity:  # of which each would be looked for
            raise ValueError(
                f"rng_state: expected an epoch of at most {self._ring.capacity} transitions, the buffer's capacity, "
                f"got {epoch[2]}"
            )
        rule = (*self._rule[:-1], epoch)
        self._shared[0] = self._delivery.generator(key, calls, self._generator, rule)

    @property
    def state(self) -> RngState:
        """How far the epochs have got, before the next minibatch."""
        return self._state_before(self.calls, self._generator.epoch_state)

    def _state_before(self, calls: int, epoch: Sequence[int]) -> RngState:
        first, second, third, fourth = epoch
        return {"key": list(self.key), "calls": calls, "epoch": (first, second, third, fourth)}

    def describe_nothing(self, batch_size: int) -> str:
        """Say why there is nothing to draw from."""
        if self._drop_last and len(self._ring):
            return f"sample: {len(self._ring)} transitions are fewer than {batch_size}, and drop_last leaves them out"
        return super().describe_nothing(batch_size)

    def begin_in_child(self) -> None:
        """In the child after a fork, make good what other threads had begun."""
        self._generator.begin_in_child()

    @property
    def num_left_out(self) -> int:
        """Rows whose turn in an epoch came when they were overwritten or cleared."""
        return self._generator.num_left_out  # type: ignore[no-any-return]
