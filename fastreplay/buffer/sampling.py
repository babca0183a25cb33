# SPDX-License-Identifier: MIT
"""What draws minibatches, as a caller sees it: at a call, ahead of it, and the generator that they follow from."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Generic, TypeVar

from fastreplay.batch.state import checked_rng_state
from fastreplay.support.checks import checked_batch_size, checked_depth, checked_steps
from fastreplay.support.keys import key_below

if TYPE_CHECKING:
    from fastreplay.batch.loader import Loader
    from fastreplay.batch.minibatch import Minibatch
    from fastreplay.batch.ring_sampler import RingSampler
    from fastreplay.batch.state import RngState
    from fastreplay.buffer.follow import Follow
    from fastreplay.buffer.followers import Followers
    from fastreplay.gpu.mirror import Mirror

__all__ = ["Sampling"]

ArrayT = TypeVar("ArrayT")  # torch.Tensor or numpy.ndarray


class Sampling(Generic[ArrayT]):
    """Base of the replay buffer and its samplers: their minibatches."""

    _sampler: RingSampler
    _followers: Followers
    _mirror: Mirror | None

    def _following(self, rule: Follow) -> RingSampler:
        """Return what draws with a rule about what surrounds rows."""
        raise NotImplementedError

    @property
    def rng_state(self) -> RngState:
        """The generator's state, to be saved and set again.

        Setting it repeats the minibatches from that point on, given the same contents.

        Raises:
            ValueError: What is set is no such state.
        """
        return self._sampler.state

    @rng_state.setter
    def rng_state(self, state: RngState) -> None:
        self._sampler.restart(*checked_rng_state(state))

    def _rekey(self, place: tuple[int, ...]) -> None:
        """Draw under the key of a worker process, if this process can draw."""
        if self._mirror is None or not self._mirror.is_inherited:
            self._sampler.restart(key_below(self._sampler.key, place), 0, self._sampler.first_epoch)

    def sample(
        self,
        batch_size: int,
        *,
        out: Minibatch[ArrayT] | None = None,
        beta: float | None = None,
        follow: Follow | None = None,
    ) -> Minibatch[ArrayT]:
        """Draw a minibatch of the stored transitions: uniformly, by priority, or as the sampler's rule says.

        Args:
            batch_size: Number of transitions, at least 1.
            beta: Exponent of the weights, in place of the buffer's own. That of a capture is that of all its replays.
            out: A minibatch of this batch size and device from this buffer or one of the same schema. It is
                overwritten and returned, and no object is made. With storage="cuda", it is one of this buffer or its
                faces. On a GPU, work that was queued before sees
                the old rows, later work the new; the host waits if the last copy into it is still under way.
            follow: What of its trajectory to give with each row (`NStep`, `Sequence`, `Window`), in place of the
                sampler's own; needs a buffer with lanes. Captured in a graph, rows that are to be complete
                (`incomplete="redraw"`) are given with the steps that are there, where none is: counted by
                `stats()["incomplete"]`.

        Returns:
            A minibatch that is the caller's to keep.

        Raises:
            ValueError: There is nothing to draw from (the message says why), batch_size is below 1, `out` does not fit,
                there are no weights for `beta`, or the buffer has no lanes to follow.
            TypeError: batch_size is no integer, `out` no minibatch, or `follow` no such rule.
            MemoryError: There is no memory for a minibatch of this size.
            RuntimeError: The device refuses; or a graph is being captured, and there is no `out`.

        Thread safety:
            May be called from any thread, while others insert and sample; each needs its own `out`.
        """
        if type(batch_size) is not int or not 0 < batch_size <= sys.maxsize:
            batch_size = checked_batch_size(batch_size)
        if follow is not None:
            return self._following(follow).sample(batch_size, out, beta)
        return self._sampler.sample(batch_size, out, beta)

    def loader(
        self, batch_size: int, *, depth: int = 2, steps: int | None = None, follow: Follow | None = None
    ) -> Loader[ArrayT]:
        """Iterate over minibatches that a native thread draws ahead.

        Args:
            batch_size: Number of transitions of each, at least 1.
            depth: How many minibatches are gathered (and on a GPU copied) ahead of the consumer.
            steps: How many minibatches there are in all; None for no end.
            follow: As in `sample`.

        Returns:
            An iterator that is also a context manager; see `Loader` for what it draws and when it ends. It goes on
            with the generator that the buffer has now, also if `rng_state` is set. With storage="cuda" there is no
            thread: the draws ahead wait in the device's queue, and follow `rng_state`.

        Raises:
            TypeError: An argument is no integer.
            ValueError: batch_size or depth is below 1, or steps below 0.
            MemoryError: There is no memory for minibatches of this size.
            RuntimeError: The minibatches are for a GPU, and this build of fastreplay has no CUDA part.

        Thread safety:
            May be called from any thread.
        """
        sizes = checked_batch_size(batch_size), checked_depth(depth), checked_steps(steps)
        sampler = self._sampler if follow is None else self._following(follow)
        return sampler.loader(*sizes)
