# SPDX-License-Identifier: MIT
"""Minibatches of which several samplers each draw a share: one block, into which each gathers its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastreplay import _core
from fastreplay.batch.loader import Loader
from fastreplay.batch.pool import Pool
from fastreplay.support.checks import checked_number
from fastreplay.support.threads import follow_torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fastreplay.batch.delivery import Delivery
    from fastreplay.batch.minibatch import Minibatch
    from fastreplay.batch.mixed_form import MixedForm
    from fastreplay.batch.ring_sampler import RingSampler
    from fastreplay.batch.shares import Shares
    from fastreplay.batch.state import RngState
    from fastreplay.batch.waits import Waits

__all__ = ["MixedSampler"]

_ROUND = 2**64  # what counters go up to


class _Pieces(tuple[Any, ...]):
    """Each member's share of one block and its beta, as a prefetcher takes them."""

    rows_before: int


class MixedSampler:
    """Draws minibatches of which each member draws a share, in the order of the members.

    Args:
        members: What each draws by, with its own generator.
        form: What the minibatches are made of, and each share of them.
        delivery: Where they are to lie.
        key: Of the generator that shares are drawn by.
        waits: Counts for what the host waits.
        shares: The members'.
        is_exact: Whether they are exact, not only on average.

    Thread safety:
        Any thread may sample.
    """

    def __init__(  # noqa: PLR0917
        self,
        members: Sequence[RingSampler],
        form: MixedForm,
        delivery: Delivery,
        key: tuple[int, int],
        waits: Waits,
        shares: Shares,
        is_exact: bool,
    ) -> None:
        self.shares = shares
        self._members = members
        self._form = form
        self._delivery = delivery
        self._key = key
        self._waits = waits
        self._is_exact = is_exact
        self._rows = _core.Counter()  # of all minibatches so far
        self._unseen = Pool(form.whole)
        self._is_weighted = any("weight" in member.form.beside for member in members)
        follow_torch()

    def sample(
        self, batch_size: int, out: Minibatch[Any] | None, beta: float | None, shares: Shares | None
    ) -> Minibatch[Any]:
        """Draw a minibatch; into `out`, if it is one.

        Raises:
            ValueError: A member has nothing to draw from, `out` does not fit, or there are no weights for `beta`.
        """
        if beta is not None:
            if not self._is_weighted:
                raise ValueError(f"beta: expected None, as no member draws by priority, got {beta}")
            beta = checked_number("beta", beta, 0)
        delivery = self._delivery
        given: Any = None if out is None else delivery.block_of(out, batch_size)
        rows_before = self._rows.add(batch_size)
        draw = (rows_before, batch_size, self.shares if shares is None else shares)
        try:
            if out is not None:
                given.refill(self._fill_at_once, batch_size, self._counts(*draw), beta)
                return delivery.given_again(out)
            block = delivery.take(batch_size)  # first: there may be no memory for so many
            try:
                self._fill(self._counts(*draw), beta, block.native)
            except BaseException:
                delivery.cancel(block)
                raise
            return delivery.give(block)
        except BaseException:
            self._rows.add(_ROUND - batch_size)
            raise

    def _counts(self, rows_before: int, batch_size: int, shares: Shares) -> list[int]:
        if self._is_exact:
            return shares.exact(rows_before, batch_size)
        return shares.expected(self._key, rows_before, batch_size)

    def _fill(self, counts: Sequence[int], beta: float | None, native: _core.Block) -> None:
        """Let each member draw its share.

        Who may have too little comes first, so that nobody else has drawn where it is refused.
        """
        draws: list[Any] = []
        num_doubtful = 0
        for i, first, count in _ranges(counts):
            member = self._members[i]
            exponent = member.beta(0) if beta is None else beta
            draw = (i, member._from, member._shared[0], self._form.shares[i], first, count, exponent)
            if len(member._ring) >= member.least(count):
                draws.append(draw)
            else:
                draws.insert(num_doubtful, draw)
                num_doubtful += 1
        empty = _core.sample_shares(native, draws, self._form.source_part, self._form.weight_part)
        if empty >= 0:
            raise ValueError(self._describe(empty, counts[empty]))

    def _fill_at_once(self, batch_size: int, counts: Sequence[int], beta: float | None, native: _core.Block) -> int:
        """Fill a block that somebody sees, once all is drawn."""
        unseen = self._unseen.take(batch_size).native
        self._fill(counts, beta, unseen)
        native.flat[:] = unseen.flat
        return batch_size

    def _describe(self, i: int, count: int) -> str:
        return self._members[i].describe_nothing(count).replace("sample: ", f"sample: member {i}: ", 1)

    def loader(self, batch_size: int, depth: int, steps: int | None) -> Loader[Any]:
        """Iterate over minibatches that are drawn ahead."""
        follow_torch()
        drawing = [(member._from, member._generator) for member in self._members]
        prefetcher = self._delivery.prefetcher(drawing, depth, steps, self._waits)
        loader: Loader[Any] = Loader(prefetcher, self, self._delivery, batch_size=batch_size, depth=depth)
        try:
            return loader._begin()
        except BaseException:  # whose traceback would keep the loader, and that its thread
            loader.close()
            raise

    def entry(self, minibatch: Minibatch[Any], num_ahead: int) -> tuple[Minibatch[Any], _Pieces, int, float]:
        """Return what a prefetcher takes of a minibatch that is to be filled, after so many others."""
        block: Any = minibatch._block
        native, batch_size = block.native, block.layout.batch_size
        rows_before = self._rows.add(batch_size)
        try:
            counts = self._counts(rows_before, batch_size, self.shares)
            shares: list[Any] = [None] * len(counts)
            marks = []
            for i, first, count in _ranges(counts):
                shares[i] = self._form.shares[i].of(native, first, count)
                marks.append((i, first, count, "weight" in self._members[i].form.beside))
            _core.mark_shares(native, marks, self._form.source_part, self._form.weight_part)
            pieces = _Pieces(
                (share, member.beta(num_ahead)) for share, member in zip(shares, self._members, strict=True)
            )
        except BaseException:
            self._rows.add(_ROUND - batch_size)
            raise
        pieces.rows_before = rows_before
        return minibatch, pieces, block.context, 0.0

    def withdraw(self, entry: tuple[Minibatch[Any], Any, int, float]) -> None:
        """Forget an entry that no prefetcher has taken."""
        self._rows.add(_ROUND - len(entry[0]))

    def describe_nothing(self, batch_size: int) -> str:
        """Say which member has nothing to draw from, and why."""
        shares = [i for i, share in enumerate(self.shares.values) if share > 0]
        empty = [i for i in shares if len(self._members[i]._ring) < self._members[i].least(batch_size)]
        following = [i for i in shares if isinstance(self._members[i]._from, _core.Follow)]
        incomplete = [i for i in following if self._members[i].count()[-1] == 0]
        return self._describe([*empty, *incomplete, *shares][0], batch_size)

    @property
    def num_left_out(self) -> int:
        """Rows whose turn in an epoch of a member came when they were overwritten or cleared."""
        return sum(member.num_left_out for member in self._members)

    @property
    def key(self) -> tuple[int, int]:
        """That of the generator that shares are drawn by."""
        return self._key

    @property
    def state(self) -> RngState:
        """The state before the next minibatch."""
        return {
            "key": [*self._key],
            "calls": self._rows.value,
            "members": [member.state for member in self._members],
        }

    def state_ahead(self, prefetcher: _core.Prefetcher) -> RngState:
        """Return the state before the next minibatch that a prefetcher hands out."""
        state, oldest = self.state, prefetcher.oldest_block
        if oldest is None:
            return state
        calls = [prefetcher.oldest_call_of(i) for i in range(len(self._members))]
        members = [
            member.state if call is None else member._state_before(*call)
            for member, call in zip(self._members, calls, strict=True)
        ]
        return {"key": state["key"], "calls": oldest.rows_before, "members": members}

    def restart(self, key: tuple[int, int], rows: int) -> None:
        """Draw shares under another key from now on, after so many rows."""
        self._key, self._rows = key, _core.Counter(rows)


def _ranges(counts: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield the member, first row and number of rows of each share that has any."""
    first = 0
    for i, count in enumerate(counts):
        if count:
            yield i, first, count
        first += count
