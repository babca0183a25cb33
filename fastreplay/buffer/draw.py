# SPDX-License-Identifier: MIT
"""Which rows a sampler draws: the rules that a caller chooses from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from fastreplay.batch.epoch_sampler import EpochSampler
from fastreplay.batch.form import transition_form, weighted_form
from fastreplay.batch.priority_sampler import PrioritySampler
from fastreplay.batch.ring_sampler import RingSampler
from fastreplay.support.checks import check_choice, checked_count, checked_flag, checked_index

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastreplay import _core
    from fastreplay.batch.delivery import Delivery
    from fastreplay.batch.form import Form
    from fastreplay.batch.waits import Waits
    from fastreplay.buffer.priorities import Priorities
    from fastreplay.schema import Schema

__all__ = ["Draw", "Epochs", "Prioritized", "Source", "Uniform"]

_MOST = 2**63 - 1


@dataclass(frozen=True)
class Source:
    """A buffer, as draws see it.

    Attributes:
        ring: Where the transitions lie.
        schema: Their fields.
        waits: Counts for what the host waits.
        new_delivery: Makes a delivery of what the host gathers.
        new_mirror_delivery: Makes one of what the device draws; None where the ring is not there.
        priorities: The rule to draw by, and the masses; None where there are no priorities.
        lanes: The ring's; None where it has none.
    """

    ring: _core.Ring
    schema: Schema
    waits: Waits
    new_delivery: Callable[[Form], Delivery]
    new_mirror_delivery: Callable[[Form], Delivery] | None
    priorities: tuple[Priorities, _core.Priorities] | None
    lanes: _core.Lanes | None


class Draw(ABC):
    """A rule to choose rows by."""

    @abstractmethod
    def _check(self, source: Source) -> None:
        """Refuse a buffer that cannot be drawn from by this rule.

        Raises:
            ValueError: It is one.
        """

    @abstractmethod
    def _sampler(self, source: Source, key: tuple[int, int]) -> RingSampler:
        """Make what draws by this rule, from a buffer that was checked."""


@dataclass(frozen=True)
class Uniform(Draw):
    """Each transition as likely as every other, with replacement: all of them, or of the newest.

    The newest k are those of `buffer[-k:]`: an unfinished insert hides what came after it.

    Over trajectories, each of which something is there is as likely as every other, however long it is, and then each
    of its transitions that are there: what left the buffer, or was cut off by what did, does not count. A row takes as
    many looks, and steps along a trajectory, as these are long, on average.

    Args:
        newest_of: Draws from so many of the newest transitions only; None for all.
        newest: So many of the newest transitions are the first rows of every minibatch, the oldest of them first
            (combined experience replay with 1; Zhang & Sutton 2017, "A Deeper Look at Experience Replay"). Where one is
            drawn again, by a rule about its trajectory, it is from all of them.
        over: What is equally likely: "transitions", or "trajectories" of a buffer with lanes, of which there is then
            nothing of the newest.

    Raises:
        TypeError: An argument is no integer.
        ValueError: newest_of is below 1, newest below 0, or `over` none of these, or with the newest.
    """

    newest_of: int | None = None
    newest: int = 0
    over: Literal["transitions", "trajectories"] = "transitions"

    def __post_init__(self) -> None:
        if self.newest_of is not None:
            object.__setattr__(self, "newest_of", checked_count("newest_of", self.newest_of))
        object.__setattr__(self, "newest", checked_index("newest", self.newest))
        if self.newest < 0:
            raise ValueError(f"newest: expected a non-negative integer, got {self.newest}")
        check_choice("over", self.over, ("transitions", "trajectories"))
        if self.over == "trajectories" and (self.newest_of is not None or self.newest):
            raise ValueError("over: expected 'transitions' with newest_of or newest, which are counted in them")

    def _check(self, source: Source) -> None:
        if self.over == "trajectories" and source.lanes is None:
            raise ValueError("over: expected 'transitions' of a buffer without lanes, which knows no trajectories")
        if source.new_mirror_delivery is not None and (self.newest_of is not None or self.newest):
            raise ValueError(
                f"draw: expected nothing of the newest with storage='cuda', which draws from all, got {self}"
            )

    def _sampler(self, source: Source, key: tuple[int, int]) -> RingSampler:
        delivery = (source.new_mirror_delivery or source.new_delivery)(transition_form(source.schema))
        recency = (min(self.newest_of or 0, _MOST), min(self.newest, _MOST))
        rule: tuple[object, ...] = (source.lanes,) if self.over == "trajectories" else recency
        return RingSampler(source.ring, delivery, key, source.waits, rule)


@dataclass(frozen=True)
class Prioritized(Draw):
    """In proportion to the priorities of a buffer that has some, as its `Priorities` say."""

    def _check(self, source: Source) -> None:
        if source.priorities is None:
            raise ValueError("draw: expected another than Prioritized(), as the buffer was made without priorities")

    def _sampler(self, source: Source, key: tuple[int, int]) -> RingSampler:
        priorities, masses = cast("tuple[Priorities, _core.Priorities]", source.priorities)
        rule = (masses, *priorities.draw_options)
        delivery = (source.new_mirror_delivery or source.new_delivery)(weighted_form(source.schema))
        beta = priorities.beta_after if callable(priorities.beta) else float(priorities.beta)
        return PrioritySampler(source.ring, delivery, key, source.waits, rule=rule, beta=beta)


@dataclass(frozen=True)
class Epochs(Draw):
    """Without replacement: every transition that the buffer holds once, then every one that it holds then.

    An epoch is of what is there when it begins, those of `buffer[:]`. What is overwritten or cleared before its turn
    is left out, and counted. The order takes no memory, whatever the buffer's size: up to 4,096 transitions all orders
    are equally likely, beyond that it is one of 2^128.

    Args:
        shuffle: Whether the order is random, another one in each epoch; else the oldest comes first.
        drop_last: Whether an epoch's last rows are dropped, where they are fewer than a minibatch; else they are a
            smaller one.

    Raises:
        TypeError: An argument is no bool.
    """

    shuffle: bool = True
    drop_last: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "shuffle", checked_flag("shuffle", self.shuffle))
        object.__setattr__(self, "drop_last", checked_flag("drop_last", self.drop_last))

    def _check(self, source: Source) -> None:
        if source.new_mirror_delivery is not None:
            raise ValueError("draw: expected Uniform() with storage='cuda', which draws with replacement")

    def _sampler(self, source: Source, key: tuple[int, int]) -> RingSampler:
        return EpochSampler(
            source.ring,
            source.new_delivery(transition_form(source.schema)),
            key,
            source.waits,
            shuffle=self.shuffle,
            drop_last=self.drop_last,
        )
