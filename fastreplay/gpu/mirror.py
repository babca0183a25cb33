# SPDX-License-Identifier: MIT
"""A ring that a device's memory holds as well, and draws that are made over there.

Transitions are inserted into the native ring, as ever: any thread may, and reading, views and pickles need no
device. Before a minibatch is drawn, what was inserted since goes over through page-locked memory, as whole records,
in ring order; then the device draws what the CPU would (csrc/cuda/sampling_kernel.hpp). All of it is queued on the
caller's stream.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fastreplay import _core
from fastreplay.batch.form import Surroundings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastreplay.batch.waits import Waits
    from fastreplay.gpu.following import DeviceLinks
    from fastreplay.gpu.frames import DeviceFrames
    from fastreplay.gpu.mirror_delivery import MirrorBlock
    from fastreplay.gpu.mirror_masses import MirrorMasses
    from fastreplay.gpu.ring import DeviceRing, Generator, Stage

__all__ = ["Mirror", "MirrorGenerator", "QueuedDraws"]

# Writers may overwrite all that was sent before it is told; the next try then meets others.
_TRIES = 100
_NUM_COUNTS = 4  # of a generator, beside its calls

ResultT = TypeVar("ResultT")


class Mirror:
    """What keeps a ring on a device like the native one.

    Attributes:
        ring: The one on the device.
        masses: What its transitions weigh; None where they are drawn uniformly only.
        links: Which comes after which; None where the native one does not know.
        frames: What lies beside its records; None where they have no frames in common.
        is_inherited: Whether it is of the process that forked this one, whose device this one cannot use.

    Thread safety:
        Calls that queue work take turns, so that none is torn apart by another: by one of another thread, which waits;
        by one of a signal handler or a finalizer that interrupts it, which is refused.
    """

    def __init__(self, ring: DeviceRing, source: _core.Ring, waits: Waits) -> None:
        self.ring = ring
        self.masses: MirrorMasses | None = None
        self.links: DeviceLinks | None = None
        self.frames: DeviceFrames | None = None
        self._source = source
        self._waits = waits
        self.is_inherited = False
        self._turn = _core.Turn()
        self._end = 0  # tickets below it were sent, or are gone
        self._window = (0, 0)
        self._is_midway = False  # whether a flush that is going on, or failed, has sent records
        self._next = 0

    def begin_in_child(self) -> None:
        """After a fork: whoever had the turn is not there to give it back."""
        self._turn = _core.Turn()
        self.is_inherited = True

    @property
    def pinned_bytes(self) -> int:
        """Bytes of page-locked memory."""
        return sum(stage.pinned.nbytes for stage in self.ring.stages)

    @property
    def num_in_flight(self) -> int:
        """Stages that are being copied."""
        return sum(not stage.sent.is_done() for stage in self.ring.stages)

    def flush(self) -> None:
        """Queue that the device gets what was inserted and finished before this call.

        Raises:
            RuntimeError: Another call of this thread is in the middle of queueing, or a graph is being captured.
        """
        self.in_turn(self._queue, None, None)

    def send_all(self) -> tuple[int, int]:
        """Do as `flush`, in a turn; return the first ticket and the number of those that may be drawn then."""
        self._queue(None, None)
        return self._window

    def change(self, call: Callable[[int], None]) -> None:
        """Let a call, in a turn, queue on a stream what changes masses, of all that was inserted before.

        Within the capture of a graph nothing is sent: the graph changes what was flushed before each replay.
        """
        self._queue(None, None, call)

    def draw(
        self,
        draw: Callable[[Generator, tuple[int, int] | None], None],
        generator: Generator,
        source: _core.Ring | _core.Follow,
    ) -> bool:
        """Queue a draw; False where there is nothing to draw from.

        Where rows are to be complete, and none is among what was sent, there is nothing to draw from either. Within the
        capture of a graph nothing is sent: the graph draws from what was flushed before each replay, complete or not.

        Raises:
            RuntimeError: Another call of this thread is in the middle of queueing.
        """
        return self.in_turn(self._queue, draw, generator, None, source)

    def in_turn(self, call: Callable[..., ResultT], *arguments: object) -> ResultT:
        """Call when nobody else queues.

        Raises:
            RuntimeError: Another call of this thread is in the middle of queueing.
        """
        return _core.call_in_turn(self._turn, partial(call, *arguments))

    def _queue(
        self,
        draw: Callable[[Generator, tuple[int, int] | None], None] | None,
        generator: Generator | None,
        change: Callable[[int], None] | None = None,
        source: _core.Ring | _core.Follow | None = None,
    ) -> bool:
        stream = self.ring.consumer()
        if self.ring.is_captured(stream):
            if change is not None:
                change(stream)
            elif draw is None:
                self.ring.refuse_capture("flush")
            elif self._window[1]:
                draw(cast("Generator", generator), None)
            return self._window[1] > 0
        self.ring.begin()
        try:
            window = self._flush_or_empty()
            can_draw = window[1] > 0 and _has_complete(source, window)
            if draw is not None and can_draw:
                draw(cast("Generator", generator), window)
            elif window != self._window:
                self.ring.set_window(*window)
            self._window = window
            if change is not None:
                change(stream)
        finally:
            self.ring.end()
        return can_draw

    def _flush_or_empty(self) -> tuple[int, int]:
        """Do as `_flush`; where it fails midway, let graphs draw nothing until it is made up for.

        What they would draw from has been overwritten in part.
        """
        self._is_midway = False
        try:
            return self._flush()
        except BaseException:
            if self._is_midway:
                self._window = (self._window[0], 0)
                self.ring.set_window(*self._window)
            raise

    def _flush(self) -> tuple[int, int]:
        """Send what was inserted; return the first ticket and the number of those that may be drawn now."""
        for _ in range(_TRIES):
            _, end = self._source.window()
            if self.links is not None:
                self.links.tell_changes()  # before what came later is looked at
            self._send(end)
            first, _ = self._source.window()  # after the copies: what was overwritten meanwhile is below it
            window = (first, max(end - first, 0))
            if window[1] or not len(self._source):
                break
        if self.masses is not None:
            self.masses.settle(self._window[0], first, end)
        return window

    def _send(self, end: int) -> None:
        """Send the tickets below `end` that were not sent, in runs that lie together on both sides.

        Of those before the window, all published where there are later ones, only what these look up.
        """
        stride, capacity = self._source.records.record_bytes, self._source.capacity
        first, _ = self._source.window()
        if first >= end:
            return
        ticket = max(self._end, first - self._source.num_spare)
        while ticket < end:
            stage = self._next_stage()
            slot = ticket % capacity
            count = min((first if ticket < first else end) - ticket, capacity - slot, stage.num_records)
            count = self._read(stage, ticket, count)
            self._is_midway = True
            self.ring.send(stage, count * stride, slot * stride)
            for beside in (self.masses, self.links):
                if beside is not None and ticket >= first:
                    beside.send(stage, ticket, count)
            ticket += count
        self._end = max(self._end, end)

    def _read(self, stage: Stage, ticket: int, count: int) -> int:
        """Read up to so many records into a stage, and send what lies beside them; return how many were read."""
        records = stage.host[: count * self._source.records.record_bytes]
        if self.frames is not None:
            return self.frames.read(stage, ticket, records)
        self._source.read_records(ticket, records)
        return count

    def _next_stage(self) -> Stage:
        stages = self.ring.stages
        stage = stages[self._next % len(stages)]
        self._next += 1
        if not stage.sent.is_done():
            self._waits.during(stage.sent.wait)
        return stage


def _has_complete(source: _core.Ring | _core.Follow | None, window: tuple[int, int]) -> bool:
    return not isinstance(source, Surroundings) or not source.redraws or source.has_complete(*window)


class MirrorGenerator:
    """A generator on the device, in the place of `_core.Sampler`. Its numbers are asked of the device."""

    def __init__(self, mirror: Mirror, key: tuple[int, int], calls: int, *, over_trajectories: bool = False) -> None:
        self._mirror = mirror
        self._generator = mirror.in_turn(mirror.ring.new_generator)
        if over_trajectories and mirror.links is not None:
            self._generator.trajectories = mirror.links.address
        self._restart(key, calls, (0,) * _NUM_COUNTS)

    @property
    def key(self) -> list[int]:
        """The generator's key."""
        return list(self._key)

    @property
    def calls(self) -> int:
        """Minibatches drawn."""
        return self._read()[0]

    @property
    def num_sampled(self) -> int:
        """Rows drawn."""
        return self._read()[1]

    @property
    def num_without_mass(self) -> int:
        """Minibatches drawn uniformly because no transition had a mass."""
        return self._read()[2]

    @property
    def num_redraws(self) -> int:
        """Rows drawn again because they were not complete."""
        return self._read()[3]

    @property
    def num_incomplete(self) -> int:
        """Of these, those that were given as they are, because nothing was complete."""
        return self._read()[4]

    @property
    def num_queued(self) -> int:
        """Minibatches drawn once what is queued is done, but for the replays of graphs. The device is not asked."""
        return self._generator.num_queued

    def restart_under(self, key: tuple[int, int], calls: int) -> None:
        """Go on under another key, also in the graphs that were captured with this; what was counted stays."""
        self._restart(key, calls, self._read()[1:])

    def count_on_from(self, num_sampled: int, num_redraws: int, num_without_mass: int) -> None:
        """Let the counters go on from these."""
        self._restart(self._key, self.calls, (num_sampled, num_without_mass, num_redraws, 0))

    def _restart(self, key: tuple[int, int], calls: int, counts: tuple[int, ...]) -> None:
        self._mirror.in_turn(self._generator.write, key, calls, counts)
        self._key = key

    def _read(self) -> tuple[int, ...]:
        return self._mirror.in_turn(self._generator.read)

    def sample(self, source: _core.Ring | _core.Follow, beta: float, block: MirrorBlock) -> int:
        """Queue a draw into a block; return its rows, 0 where there is nothing to draw from."""
        block.beta = beta
        block.surround(source)
        return block.layout.batch_size if self._mirror.draw(block.draw, self._generator, source) else 0

    def sample_once(self, source: _core.Ring | _core.Follow, block: MirrorBlock) -> bool:
        """Queue a draw into a block of a loader, if that was not done; False where there is nothing to draw from."""
        block.surround(source)
        return block.is_drawn or self._mirror.draw(block.draw_once, self._generator, source)


class QueuedDraws(_core.Prefetcher):
    """A prefetcher without a thread: a draw on the device costs the host a launch.

    Each minibatch is drawn once, the spare one too, in the order of their turns; who is interrupted in between goes
    on where it stopped.
    """

    def __init__(
        self,
        source: _core.Ring | _core.Follow,
        generator: MirrorGenerator,
        depth: int,
        steps: int | None,
        waits: Waits,
    ) -> None:
        super().__init__(None, None, depth, steps, waits)
        self._source = source
        self._generator = generator

    def start(self, first: Sequence[tuple[Any, Any, int, float]]) -> None:
        """Draw the first minibatches, if there is something to draw from."""
        for _, block, _, beta in first:
            block.beta = beta
        super().start([(minibatch, None, 0, 0.0) for minibatch, *_ in first])
        self._draw()

    def put(self, minibatch: object, block: Any, context: int, beta: float) -> bool:  # noqa: ARG002
        """Keep a spare minibatch."""
        block.beta = beta
        return super().put(minibatch, None, 0, 0.0)

    @property
    def oldest_call(self) -> tuple[int, tuple[int, int, int, int]]:
        """The number of the draw that the oldest minibatch is of."""
        num_drawn = sum(minibatch._block.is_drawn for minibatch in self.minibatches)
        return self._generator.calls - num_drawn, (0, 0, 0, 0)

    def oldest(self) -> tuple[int, Any, int] | None:
        """Return the number of the oldest minibatch, it and its rows, None where it could not be drawn."""
        self._draw()
        oldest = super().oldest()
        if oldest is None or not oldest[1]._block.is_drawn:
            return None
        return oldest[0], oldest[1], len(oldest[1])

    def _draw(self) -> None:
        for minibatch in self.minibatches:
            if not self._generator.sample_once(self._source, minibatch._block):
                return
