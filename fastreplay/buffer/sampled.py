# SPDX-License-Identifier: MIT
"""The samplers over a buffer: its own, and those that a caller makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np

from fastreplay.batch.delivery import Delivery, HostDelivery
from fastreplay.buffer.draw import Draw, Epochs, Prioritized, Source, Uniform
from fastreplay.buffer.grown import Grown
from fastreplay.buffer.priorities import Priorities
from fastreplay.buffer.sampler import Sampler
from fastreplay.buffer.sampling import Sampling
from fastreplay.support.checks import checked_flag, key_of

if TYPE_CHECKING:
    from fastreplay.batch.form import Form
    from fastreplay.batch.loader import Loader
    from fastreplay.batch.ring_sampler import RingSampler
    from fastreplay.batch.waits import Waits
    from fastreplay.buffer.follow import Follow
    from fastreplay.buffer.replay_buffer import ReplayBuffer
    from fastreplay.buffer.state import TrajectoryStats
    from fastreplay.gpu.device import Device
    from fastreplay.support.checks import Seed
    from fastreplay.support.living import Living

__all__ = ["Sampled"]

ArrayT = TypeVar("ArrayT")  # torch.Tensor or numpy.ndarray


class Sampled(Sampling[ArrayT], Grown[ArrayT]):
    """Base of the replay buffer: what draws from it."""

    _waits: Waits
    _gpu: Device | None
    _deliveries: Living[Delivery]

    def sampler(self, *, draw: Draw | None = None, follow: Follow | None = None, seed: Seed = None) -> Sampler[ArrayT]:
        """Make a sampler: draws over this buffer by a rule, with a generator and counters of their own.

        Args:
            draw: `Uniform`, `Prioritized` or `Epochs`; None for that of the buffer's own `sample`.
            follow: What of its trajectory to give with each row (`NStep`, `Sequence`, `Window`); None for the
                transition alone.
            seed: As in the constructor; but None for a generator that follows from this buffer's key and the number
                of samplers and faces made before, as `spawn` does.

        Raises:
            TypeError: `draw` or `follow` is no such rule, or `seed` no seed.
            ValueError: The buffer cannot be drawn from by these rules.

        Thread safety:
            May be called from any thread; what each call gets depends on their order.
        """
        draw = self._own_draw() if draw is None else draw
        if not isinstance(draw, Draw):
            raise TypeError(f"draw: expected Uniform, Prioritized or Epochs, got {draw!r}")
        draw._check(self._source())
        if seed is None:
            seed = np.random.SeedSequence(self._sampler.key, spawn_key=(self._num_spawned.add(1),))
        return self._new_sampler(draw, follow, key_of(seed))

    def _own_draw(self) -> Draw:
        """Return the rule of the buffer's own `sample`."""
        return Uniform() if self._masses is None else Prioritized()

    def _new_sampler(self, draw: Draw, follow: Follow | None, key: tuple[int, int]) -> Sampler[ArrayT]:
        return Sampler(draw._sampler(self._source(), key), cast("ReplayBuffer[ArrayT]", self), draw, follow)

    def _following(self, rule: Follow) -> RingSampler:
        return self._followers.of(rule, self._new_delivery_of_draws)

    def _new_delivery_of_draws(self, form: Form) -> Delivery:
        """Make a delivery of what is drawn, by whom that is."""
        return self._new_delivery(form) if self._mirror is None else self._new_mirror_delivery(form)

    def loader(
        self,
        batch_size: int,
        *,
        depth: int = 2,
        steps: int | None = None,
        follow: Follow | None = None,
        replacement: bool = True,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> Loader[ArrayT]:
        """Iterate over minibatches that a native thread draws ahead.

        Args:
            batch_size: As in `Sampling.loader`.
            depth: As there.
            steps: As there.
            follow: As in `sample`.
            replacement: Whether transitions are drawn as by `sample`; else in epochs, by a sampler of its own.
            shuffle: As in `Epochs`, for draws without replacement.
            drop_last: As there.

        Returns:
            An iterator that is also a context manager, as there.

        Raises:
            TypeError, ValueError, MemoryError, RuntimeError: As there, and as `sampler`.

        Thread safety:
            May be called from any thread.
        """
        if checked_flag("replacement", replacement):
            if shuffle is not True or drop_last is not False:
                raise ValueError("replacement: expected False with shuffle or drop_last, which are of draws in epochs")
            return super().loader(batch_size, depth=depth, steps=steps, follow=follow)
        sampler = self.sampler(draw=Epochs(shuffle=shuffle, drop_last=drop_last), follow=follow)
        return sampler.loader(batch_size, depth=depth, steps=steps)

    def trajectory_stats(self, follow: Follow | None = None) -> TrajectoryStats:
        """Count what there is of trajectories, and what a rule with `incomplete="redraw"` could draw of them.

        It looks at what lies beside each transition, 16 bytes, once: some milliseconds for a million.

        Args:
            follow: The rule whose windows are counted (`NStep`, `Sequence`, `Window`), whatever its `incomplete`; None
                for single transitions, all of which are complete.

        Returns:
            The counts; `complete` is 0 where `sample` would raise a ValueError, as no window is complete.

        Raises:
            TypeError: `follow` is no such rule.
            ValueError: The buffer has no lanes, or not the fields.

        Thread safety:
            May be called from any thread, while others insert, and waits for none. It counts what was there when it was
            called and is still there when it returns: never more than can be drawn then.
        """
        if follow is not None:
            counts = self._following(follow).count()
        elif self._lanes is not None:
            counts = self._lanes.core.count()
        else:
            raise ValueError("trajectory_stats: the buffer was made without lanes, and knows no trajectories")
        transitions, trajectories, longest, without_beginning, complete = counts
        return {
            "transitions": transitions,
            "trajectories": trajectories,
            "longest": longest,
            "without_beginning": without_beginning,
            "complete": complete,
        }

    def _new_delivery(self, form: Form) -> Delivery:
        """Make a delivery of what the host gathers."""
        delivery = self._delivery_like_its_own(form, 0 if self._masses is None else self._origin, self._waits)
        self._deliveries.add(delivery)
        return delivery

    def _delivery_like_its_own(self, form: Form, origin: int, waits: Waits) -> Delivery:
        """Make a delivery to where this buffer's minibatches are, for rows of whose ring that is the number."""
        if self._gpu is None:
            return HostDelivery(form, self._device, self._output, origin)
        return self._gpu.pinned_delivery(form, waits, origin)

    def _new_mirror_delivery(self, form: Form) -> Delivery:
        """Make a delivery of what the device draws."""
        origin = 0 if self._masses is None else self._origin
        options = Priorities().draw_options if self._priorities is None else self._priorities.draw_options
        delivery: Delivery = self._gpu.mirror_delivery(  # type: ignore[union-attr]
            self._mirror,  # type: ignore[arg-type]
            self._ring,
            form,
            origin=origin,
            options=options,
        )
        self._deliveries.add(delivery)
        return delivery

    def _source(self, delivery: Delivery | None = None) -> Source:
        """Return what draws see of this buffer; those of the host, as they are stored, may share a delivery."""

        def new_delivery(form: Form) -> Delivery:
            is_shared = delivery is not None and not form.beside and form.schema is delivery.schema
            return delivery if is_shared and delivery is not None else self._new_delivery(form)

        return Source(
            self._ring,
            self._schema,
            self._waits,
            new_delivery,
            None if self._mirror is None else self._new_mirror_delivery,
            None if self._priorities is None or self._masses is None else (self._priorities, self._masses),
            None if self._lanes is None else self._lanes.core,
        )
