# SPDX-License-Identifier: MIT
"""Several buffers drawn from as one: each gives its share of every minibatch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from fastreplay.batch.minibatch import Minibatch
from fastreplay.batch.mixed_form import SOURCE, MixedForm
from fastreplay.batch.mixed_sampler import MixedSampler
from fastreplay.batch.shares import Shares
from fastreplay.batch.state import checked_mixture_state
from fastreplay.batch.waits import Waits
from fastreplay.buffer.priorities import PriorityUpdate, check_finite, numbers, reduced
from fastreplay.buffer.replay_buffer import ReplayBuffer
from fastreplay.buffer.sampler import Sampler
from fastreplay.support.checks import checked_batch_size, checked_depth, checked_flag, checked_steps, key_of
from fastreplay.support.keys import key_below, keyed

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from fastreplay.batch.loader import Loader
    from fastreplay.batch.state import RngState
    from fastreplay.support.checks import Seed

__all__ = ["Mixture"]

ArrayT = TypeVar("ArrayT")  # torch.Tensor or numpy.ndarray


class Mixture(Generic[ArrayT]):
    """Draws each minibatch from several buffers, a share from each: online and offline (RLPD, Ball et al. 2023), tasks.

    A minibatch has its members' rows one member after the other, in their order, as if what each drew had been put
    together: each draws by its own rule, with its own generator, and follows as it does. They gather into one block, so
    that nothing is copied for it. `batch.source`, (batch_size,) int64, says whose each row is: `members[source]`;
    `batch.ticket` is its number there.

    Where a member draws by priority there is `batch.weight`: that member's own weights, normalized among its own rows
    of the minibatch, as what it draws alone has them; 1 for the rows of others. `batch.probability`, within its own
    buffer, is there where all members draw by priority.

    Args:
        members: Buffers and samplers (`ReplayBuffer.sampler`), and their shares: numbers of which only the proportions
            count. Their minibatches are alike: fields, dtypes, what follows, output and device.
        exact: Whether each has its share of all rows so far to the nearest row (of more than two members, to within
            two), and so of every minibatch where that is possible. Else each row falls to a member by itself, by the
            mixture's own generator: the shares are the expected ones.
        seed: As in `ReplayBuffer`; for `exact=False`.

    Raises:
        TypeError: `members` is no mapping of buffers or samplers to numbers, `exact` no bool, or `seed` no seed.
        ValueError: There is none, their minibatches are not alike (the message names the field and both sides), a share
            is negative, or all are 0. Or a buffer has storage="cuda": its device draws whole minibatches.
        RuntimeError: `__init__` was called before.

    Thread safety:
        Every method may be called from any thread, while others insert and sample. Threads that are to have the same
        minibatches again draw from mixtures of their own, of samplers of their own.

    Example:
        >>> import fastreplay as fr
        >>> online, offline = (fr.ReplayBuffer(100, {"reward": ()}, seed=i, output="numpy") for i in range(2))
        >>> online.extend(reward=[1.0] * 10)
        >>> offline.extend(reward=[2.0] * 50)
        >>> batch = fr.Mixture({online: 0.5, offline: 0.5}).sample(6)
        >>> batch.reward, batch.source
        (array([1., 1., 1., 2., 2., 2.], dtype=float32), array([0, 0, 0, 1, 1, 1]))
    """

    def __init__(
        self,
        members: Mapping[ReplayBuffer[ArrayT] | Sampler[ArrayT], float],
        *,
        exact: bool = True,
        seed: Seed = None,
    ) -> None:
        if hasattr(self, "_sampler"):
            raise RuntimeError("Mixture: __init__ was called before; make another")
        if not isinstance(members, Mapping):
            raise TypeError(f"members: expected a mapping of buffers and samplers to shares, got {members!r}")
        self._members = tuple(members)
        self._buffers = tuple(map(_buffer_of, self._members))
        _check_places(self._buffers)
        self._exact = checked_flag("exact", exact)
        shares = Shares(members.values(), len(self._members))
        drawing = [member._sampler for member in self._members]
        form = MixedForm([each.form for each in drawing])
        self._origin = int.from_bytes(os.urandom(7), sys.byteorder) + 1
        self._waits = Waits()
        delivery = self._buffers[0]._delivery_like_its_own(form.whole, self._origin, self._waits)
        self._sampler = MixedSampler(drawing, form, delivery, key_of(seed), self._waits, shares, self._exact)
        keyed.add(self)

    @property
    def members(self) -> tuple[ReplayBuffer[ArrayT] | Sampler[ArrayT], ...]:
        """What it draws from, in the order of `batch.source`."""
        return self._members

    @property
    def shares(self) -> tuple[float, ...]:
        """Each member's share, 1 in all. Set to others, in proportion to any numbers, it holds from the next draw on.

        Raises:
            TypeError: What is set are no numbers.
            ValueError: They are not as many as the members, one is negative or not finite, or all are 0.
        """
        return self._sampler.shares.values

    @shares.setter
    def shares(self, values: Iterable[float]) -> None:
        self._sampler.shares = Shares(values, len(self._members))

    @property
    def exact(self) -> bool:
        """Whether the shares are exact, not only expected."""
        return self._exact

    @property
    def rng_state(self) -> RngState:
        """The state that the next minibatches follow from: the mixture's own and its members', which set them, too.

        Raises:
            ValueError: What is set is no such state.
        """
        return self._sampler.state

    @rng_state.setter
    def rng_state(self, state: RngState) -> None:
        key, rows, members = checked_mixture_state(state, len(self._members))
        for member, its_state in zip(self._members, members, strict=True):
            member.rng_state = its_state
        self._sampler.restart(key, rows)

    def _rekey(self, place: tuple[int, ...]) -> None:
        """Draw shares under the key of a worker process; the members have theirs."""
        self._sampler.restart(key_below(self._sampler.key, place), 0)

    def sample(
        self,
        batch_size: int,
        *,
        out: Minibatch[ArrayT] | None = None,
        beta: float | None = None,
        shares: Iterable[float] | None = None,
    ) -> Minibatch[ArrayT]:
        """Draw a minibatch.

        Args:
            batch_size: Number of transitions, at least 1.
            out: A minibatch of this batch size that this mixture, or one of the same form, made. It is overwritten
                and returned.
            beta: Exponent of the weights, in place of the members' own.
            shares: In place of the mixture's, for this minibatch.

        Returns:
            A minibatch that is the caller's to keep.

        Raises:
            ValueError: A member with a share has nothing to draw from (the message says which, and why), batch_size is
                below 1, `out` does not fit, there are no weights for `beta`, or there are no such shares.
            TypeError: batch_size is no integer, `out` no minibatch, or `shares` no numbers.
            MemoryError: There is no memory for a minibatch of this size.
            RuntimeError: The device refuses.

        Thread safety:
            May be called from any thread, while others insert and sample; each needs its own `out`. Where it raises,
            the mixture and `out` are as they were, and the members' generators, too, unless a member was emptied, or
            none of its windows was complete, or Ctrl-C came, when others had drawn: these are then a call ahead.
        """
        given = None if shares is None else Shares(shares, len(self._members))
        return self._sampler.sample(checked_batch_size(batch_size), out, beta, given)

    def loader(self, batch_size: int, *, depth: int = 2, steps: int | None = None) -> Loader[ArrayT]:
        """Iterate over minibatches that a native thread draws ahead.

        Args:
            batch_size: Number of transitions of each, at least 1.
            depth: How many minibatches are gathered ahead of the consumer.
            steps: How many minibatches there are in all; None for no end.

        Returns:
            An iterator that is also a context manager, as `ReplayBuffer.loader` returns it. It goes on with the
            generators that the members have now; `rng_state` is the mixture's before its next minibatch. Shares
            that are set later hold for minibatches that get their turns later.

        Raises:
            TypeError: An argument is no integer.
            ValueError: batch_size or depth is below 1, or steps below 0.
            MemoryError: There is no memory for minibatches of this size.
            RuntimeError: The minibatches are for a GPU, and this build of fastreplay has no CUDA part.

        Thread safety:
            May be called from any thread.
        """
        return self._sampler.loader(checked_batch_size(batch_size), checked_depth(depth), checked_steps(steps))

    def update_priorities(self, batch: Minibatch[Any], priorities: ArrayLike, *, eta: float = 0.9) -> PriorityUpdate:
        """Give each row's transition another priority in its own buffer.

        Rows of buffers without priorities are passed over.

        Args:
            batch: A minibatch of this mixture.
            priorities: As `ReplayBuffer.update_priorities` takes them, for all rows.
            eta: As there.

        Returns:
            How many took effect, and how many are of transitions that were overwritten or cleared, of all buffers.

        Raises:
            TypeError: It is no minibatch, or the priorities are no numbers.
            ValueError: The minibatch is another's, the numbers are not as many, one is not finite, or no transition
                ever had a row's ticket; nothing has changed. Or no buffer has priorities.
            RuntimeError: A row's buffer was closed; nothing has changed.

        Thread safety:
            May be called from any thread, and waits for nobody but, where the minibatch is on a device, for that.
        """
        if not isinstance(batch, Minibatch):
            raise TypeError(f"batch: expected a minibatch of this mixture, got {type(batch).__name__}")
        if batch._beside.origin != self._origin:
            raise ValueError("batch: expected a minibatch of this mixture, got another's")
        if all(buffer._masses is None for buffer in self._buffers):
            raise ValueError("update_priorities: the members' buffers were made without priorities")
        if np.ndim(priorities) == 2:
            priorities = reduced(batch, priorities, eta)
        values = numbers("priorities", priorities)
        sources, tickets = _on_host(batch[SOURCE]), _on_host(batch.ticket)
        if values.shape != sources.shape:
            raise ValueError(f"priorities: expected shape {sources.shape}, got {values.shape}")
        check_finite("priorities", values)
        updates = []
        for i, buffer in enumerate(self._buffers):
            rows = np.flatnonzero(sources == i)
            if buffer._masses is not None and len(rows):
                its_tickets, head = tickets[rows], buffer._ring.num_reserved
                if ((its_tickets < 0) | (its_tickets >= head)).any():
                    raise ValueError(f"batch: expected tickets below {head} of member {i}, got {its_tickets.max()}")
                buffer.update_priorities(its_tickets[:0], values[:0])  # raises where it was closed
                updates.append((buffer, its_tickets, values[rows]))
        done = [buffer.update_priorities(its_tickets, its_values) for buffer, its_tickets, its_values in updates]
        return PriorityUpdate(sum(each.applied for each in done), sum(each.stale for each in done))

    def __repr__(self) -> str:
        members = ", ".join(
            f"{share:.3g} of {member!r}" for member, share in zip(self._members, self.shares, strict=True)
        )
        return f"{type(self).__name__}({members})"

    def __reduce__(self) -> tuple[object, ...]:
        state = self._sampler.state
        return _rebuild, (
            type(self),
            self._members,
            self._sampler.shares.given,
            self._exact,
            state["key"],
            state["calls"],
        )


def _rebuild(  # noqa: PLR0917 - as pickles have them
    cls: type[Mixture[Any]],
    members: tuple[Any, ...],
    shares: tuple[float, ...],
    exact: bool,
    key: list[int],
    rows: int,
) -> Mixture[Any]:
    mixture = cls(dict(zip(members, shares, strict=True)), exact=exact)
    mixture._sampler.restart(*checked_mixture_state({"key": key, "calls": rows, "members": []}, 0)[:2])
    return mixture


def _buffer_of(member: object) -> ReplayBuffer[Any]:
    if isinstance(member, Sampler):
        return member.buffer
    if isinstance(member, ReplayBuffer):
        return member
    raise TypeError(f"members: expected buffers and samplers, got {member!r}")


def _check_places(buffers: tuple[ReplayBuffer[Any], ...]) -> None:
    """Refuse buffers whose minibatches do not lie in the same memory."""
    if not buffers:
        raise ValueError("members: expected at least one, got none")
    first = buffers[0]
    for i, buffer in enumerate(buffers):
        if buffer._mirror is not None:
            raise ValueError(
                f"members: expected storage='host', got 'cuda' of member {i}, whose device draws whole minibatches"
            )
        for name, one, other in (("device", first._device, buffer._device), ("output", first._output, buffer._output)):
            if one != other:
                raise ValueError(f"{name}: expected {str(one)!r} of member {i}, as of member 0, got {str(other)!r}")


def _on_host(values: Any) -> NDArray[np.int64]:
    array: NDArray[np.int64] = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    return array
