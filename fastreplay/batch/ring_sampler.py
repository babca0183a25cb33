# SPDX-License-Identifier: MIT
"""Minibatches of a ring by draws: a generator and counters of its own, and a delivery."""

from __future__ import annotations

from contextlib import suppress
from copy import copy
from typing import TYPE_CHECKING, Any

from fastreplay import _core
from fastreplay.batch.loader import Loader
from fastreplay.support.living import Living
from fastreplay.support.threads import follow_torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

    from fastreplay.batch.delivery import Delivery
    from fastreplay.batch.form import Form
    from fastreplay.batch.minibatch import Minibatch
    from fastreplay.batch.state import Counters, EpochState, RngState
    from fastreplay.batch.waits import Waits

__all__ = ["RingSampler"]

_TRIES = 100


class RingSampler:
    """Draws minibatches from a ring, uniformly and each row by itself.

    Args:
        ring: Where the transitions lie.
        delivery: Where the minibatches are to lie.
        key: Of the generator.
        waits: Counts for what the host waits.
        rule: What the core's sampler takes beside.

    Attributes:
        first_epoch: How far it has got in epochs before its first minibatch; None for draws with replacement.

    Thread safety:
        Any thread may sample.
    """

    first_epoch: EpochState | None = None

    def __init__(
        self,
        ring: _core.Ring,
        delivery: Delivery,
        key: tuple[int, int],
        waits: Waits,
        rule: tuple[Any, ...] = (),
    ) -> None:
        self._ring = ring
        self._from: _core.Ring | _core.Follow = ring  # or what surrounds the rows drawn from it
        self._from_for_out: _core.Ring | _core.Follow = ring  # the same, for blocks that somebody sees
        self._delivery = delivery
        self._rule = rule
        self._shared = [delivery.generator(key, 0, None, rule)]  # for those that follow it, too
        self._waits = waits
        self._loaders: Living[Loader[Any]] = Living()
        follow_torch()

    def sample(self, batch_size: int, out: Minibatch[Any] | None, beta: float | None = None) -> Minibatch[Any]:
        """Draw a minibatch; into `out`, if it is one.

        Raises:
            ValueError: There is nothing to draw from, `out` does not fit, or there are no weights for `beta`.
        """
        if beta is not None:
            raise ValueError(f"beta: expected None, as the draw is not by priority, got {beta}")
        return self._drawn(batch_size, out, 0.0)

    def _drawn(self, batch_size: int, out: Minibatch[Any] | None, beta: float) -> Minibatch[Any]:
        generator = self._shared[0]
        made: Minibatch[Any] | None
        if out is None:
            made = self._delivery.draw(generator, self._from, beta, batch_size)
        else:
            made = self._delivery.draw_into(out, generator, self._from_for_out, beta, batch_size)
        if made is None:
            raise ValueError(self.describe_nothing(batch_size))
        return made

    def least(self, num_rows: int) -> int:  # noqa: ARG002 - for draws of a whole batch
        """Return how many transitions there have to be, for so many rows."""
        return 1

    def entry(self, minibatch: Minibatch[Any], num_ahead: int) -> tuple[Minibatch[Any], Any, int, float]:
        """Return what a prefetcher takes of a minibatch that is to be filled, after so many others."""
        block: Any = minibatch._block
        return minibatch, block.native, block.context, self.beta(num_ahead)

    def withdraw(self, entry: tuple[Minibatch[Any], Any, int, float]) -> None:
        """Forget an entry that no prefetcher has taken: it had no turn yet."""

    def count(self) -> list[int]:
        """Return what there is of trajectories, and windows that are complete, where something surrounds rows."""
        assert isinstance(self._from, _core.Follow)
        return self._from.count()

    @property
    def form(self) -> Form:
        """What its minibatches are made of."""
        return self._delivery.form

    def following(self, source: _core.Follow, delivery: Delivery) -> Self:
        """Return a sampler of the same draws, with what surrounds their rows, in other minibatches."""
        made = copy(self)
        made._from, made._from_for_out = source, delivery.unseen(source)
        made._delivery = delivery
        return made

    def loader(self, batch_size: int, depth: int, steps: int | None) -> Loader[Any]:
        """Iterate over minibatches that are drawn ahead."""
        follow_torch()
        prefetcher = self._delivery.prefetcher([(self._from, self._generator)], depth, steps, self._waits)
        loader: Loader[Any] = Loader(prefetcher, self, self._delivery, batch_size=batch_size, depth=depth)
        self._loaders.add(loader)
        try:
            return loader._begin()
        except BaseException:  # whose traceback would keep the loader, and that its thread
            loader.close()
            raise

    def restart(self, key: tuple[int, int], calls: int, epoch: EpochState | None) -> None:
        """Draw under another key from now on; the counters go on.

        Raises:
            ValueError: `epoch` is not of draws like these.
        """
        if epoch is not None:
            raise ValueError("rng_state: expected no 'epoch', as the draws are with replacement")
        self._shared[0] = self._delivery.generator(key, calls, self._generator, self._rule)

    def count_on_from(self, counters: Counters) -> None:
        """Let the counters go on from saved ones; nobody has sampled yet."""
        self._generator.count_on_from(counters["sampled"], counters["redraws"], counters["without_mass"])

    @property
    def counters(self) -> Counters:
        """What was counted, as it is saved."""
        generator = self._generator
        return {
            "sampled": generator.num_sampled,
            "redraws": generator.num_redraws,
            "without_mass": generator.num_without_mass,
        }

    def counters_not_handed_out(self) -> Counters:
        """Return the counters without what loaders have drawn and nobody has got, which will be drawn again."""
        for _ in range(_TRIES):
            counters, ahead = self.counters, sum(loader._num_rows_ahead for loader in self._loaders)
            if counters == self.counters:  # both of one moment, unless somebody draws without a pause
                break
        counters["sampled"] = max(0, counters["sampled"] - ahead)
        return counters

    @property
    def _generator(self) -> Any:
        return self._shared[0]

    @property
    def state(self) -> RngState:
        """The generator's state, before the next minibatch."""
        return {"key": list(self.key), "calls": self.calls}

    def state_ahead(self, prefetcher: _core.Prefetcher) -> RngState:
        """Return the state before the next minibatch that a prefetcher hands out."""
        call = prefetcher.oldest_call
        return self.state if call is None else self._state_before(*call)

    def state_not_handed_out(self) -> RngState:
        """Return the state before the first minibatch that nobody has got: loaders have some ahead."""
        states = [self.state]
        for loader in self._loaders:
            with suppress(RuntimeError):  # of the parent of this process, which goes on there
                states.append(loader.rng_state)
        return min((state for state in states if state["key"] == states[0]["key"]), key=lambda state: state["calls"])

    def _state_before(self, calls: int, _epoch: Sequence[int]) -> RngState:
        return {"key": list(self.key), "calls": calls}

    def beta(self, _num_ahead: int) -> float:
        """Return the exponent of the weights of a loader's next minibatch but so many: it has none."""
        return 0.0

    def describe_nothing(self, batch_size: int) -> str:  # noqa: ARG002 - for draws of a whole batch
        """Say why there is nothing to draw from.

        Raises:
            RuntimeError: The buffer was closed meanwhile.
        """
        if self._ring.is_closed:
            raise RuntimeError("sample: the buffer was closed meanwhile")
        if isinstance(self._from, _core.Follow) and len(self._ring):
            count, _, longest, _, num_complete = self._from.count()
            why = (
                f"{num_complete:,} others are, without a priority above 0 or too old for newest_of"
                if num_complete
                else f"of {count:,} transitions the longest trajectory has {longest:,} (trajectory_stats() tells it "
                "beforehand)"
            )
            return f"sample: no window of {self._from.num_steps} steps is complete among what can be drawn; {why}"
        reserved = self._ring.num_reserved  # first, so that none counts that came after the window
        first, end = self._ring.window()
        unfinished = reserved - max(first, end)
        if unfinished <= 0:
            return "sample: the buffer is empty"
        return f"sample: nothing can be drawn yet: the inserts of the {unfinished} transitions there are are unfinished"

    def begin_in_child(self) -> None:
        """In the child after a fork, make good what other threads had begun: nothing."""

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
    def num_incomplete(self) -> int:
        """Rows drawn again that were given as they are, as none was complete: of a device's CUDA graphs."""
        return self._delivery.num_incomplete(self._generator)

    @property
    def num_left_out(self) -> int:
        """Rows whose turn in an epoch came when they were overwritten or cleared."""
        return 0

    @property
    def num_ahead(self) -> int:
        """Minibatches that loaders have drawn, or are about to, and not handed out."""
        return sum(loader.num_ahead for loader in self._loaders)
