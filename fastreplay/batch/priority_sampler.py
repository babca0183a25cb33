# SPDX-License-Identifier: MIT
"""Minibatches of a ring by priority, with their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastreplay.batch.ring_sampler import RingSampler
from fastreplay.support.checks import checked_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastreplay import _core
    from fastreplay.batch.delivery import Delivery
    from fastreplay.batch.minibatch import Minibatch
    from fastreplay.batch.waits import Waits

__all__ = ["PrioritySampler"]


class PrioritySampler(RingSampler):
    """Draws minibatches from a ring in proportion to masses (Schaul et al. 2016).

    Args:
        ring: Where the transitions lie.
        delivery: Where the minibatches are to lie; with weights.
        key: Of the generator.
        waits: Counts for what the host waits.
        rule: The ring's priorities, and how they are drawn from: what the core's sampler takes.
        beta: The weights' exponent, or what gives it once so many minibatches were drawn.

    Thread safety:
        Any thread may sample.
    """

    def __init__(
        self,
        ring: _core.Ring,
        delivery: Delivery,
        key: tuple[int, int],
        waits: Waits,
        *,
        rule: tuple[_core.Priorities, bool, int, float],
        beta: float | Callable[[int], float],
    ) -> None:
        super().__init__(ring, delivery, key, waits, rule)
        self._beta = beta

    def sample(self, batch_size: int, out: Minibatch[Any] | None, beta: float | None = None) -> Minibatch[Any]:
        """Draw a minibatch; into `out`, if it is one.

        Raises:
            ValueError: The ring is empty, or `out` does not fit.
        """
        return self._drawn(batch_size, out, self.beta(0) if beta is None else checked_number("beta", beta, 0))

    def beta(self, num_ahead: int) -> float:
        """Return the exponent of the weights of a loader's next minibatch but so many."""
        rule = self._beta
        return rule(self._delivery.num_calls(self._generator) + num_ahead) if callable(rule) else rule

    @property
    def num_without_mass(self) -> int:
        """Minibatches drawn uniformly because no transition had a mass."""
        return self._generator.num_without_mass  # type: ignore[no-any-return]
