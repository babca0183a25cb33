# SPDX-License-Identifier: MIT
"""The replay buffer: transitions go into a ring, minibatches come out."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np

from fastreplay import _core
from fastreplay.batch.form import stored_form
from fastreplay.batch.reader import Reader
from fastreplay.batch.waits import Waits
from fastreplay.buffer.followers import Followers
from fastreplay.buffer.forks import living
from fastreplay.buffer.frames import frames_in
from fastreplay.buffer.lanes import lanes_of_env, new_lanes
from fastreplay.buffer.options import check_output, check_storage, checked_timeout, gpu_of
from fastreplay.buffer.priorities import Priorities, new_masses
from fastreplay.buffer.sampled import Sampled
from fastreplay.checkpoint.lineage import Lineage
from fastreplay.schema import Schema
from fastreplay.support.checks import checked_count, checked_device, checked_index, key_of
from fastreplay.support.keys import keyed
from fastreplay.support.living import Living
from fastreplay.support.memory_limit import check_memory, new_ring

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import gymnasium as gym
    import torch
    from numpy.typing import DTypeLike, NDArray
    from typing_extensions import Self, Unpack

    from fastreplay.buffer.frames import ShareNext
    from fastreplay.buffer.options import Options, Storage
    from fastreplay.buffer.state import Stats
    from fastreplay.gpu.mirror import Mirror
    from fastreplay.schema import FieldLike
    from fastreplay.support.checks import Seed

    Environment = gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any]

__all__ = ["ReplayBuffer"]

ArrayT = TypeVar("ArrayT")  # torch.Tensor or numpy.ndarray

# Of Python's objects that a face is made of, at least.
_FACE_BYTES = 1024


class ReplayBuffer(Sampled[ArrayT]):
    """A ring of transitions with uniform minibatches.

    Experience replay (Lin 1992; Mnih et al. 2015): store every transition, overwrite the oldest,
    learn from uniform random minibatches. Transitions lie as packed records in native memory; a
    minibatch is drawn and gathered by one native call into recycled, contiguous memory.

    Args:
        capacity: Transitions that the buffer holds at most.
        fields: A `Schema`, or a mapping of name to `Field`, `(shape, dtype)`, or a bare shape tuple
            (float32).
        seed: Seeds the buffer's own generator: an int, a SeedSequence, a NumPy Generator (a seed is
            drawn from it), or None for fresh entropy. The same seed and the same calls give the
            same minibatches on every platform.
        device: Torch device of the minibatches. On a CUDA device they are gathered into page-locked memory and sent
            by one asynchronous copy on a stream of the buffer's own; the tensors are for the stream that is current
            at the call, which is made to wait for the copy. The host is not.
        storage: "host", or "cuda" with a CUDA `device`: that device's memory holds the ring too, gets what was inserted
            before each minibatch, and draws and gathers the minibatches itself, those that the CPU would draw. They
            can be part of a CUDA graph (`flush`). Asking for `rng_state` or `stats()` then waits for the device.
        output: "torch" for tensors, "numpy" for arrays.
        timeout: Seconds that an insert waits at most for another thread's unfinished insert a whole lap
            behind; None for as long as it takes.
        lanes: How many environments' streams of transitions the buffer keeps apart, so that `follow` knows what comes
            after what: `extend` takes a row of each, `add` says which by `lane=`. None for transitions by themselves.
        ends: Names of the fields of which a value other than 0 ends a trajectory, when it is inserted; None for
            `terminated` and `truncated`, those of them that there are. With lanes only.
        priorities: The rule to draw by, instead of uniformly: `sample` then gives `batch.weight` and
            `batch.probability`, and `update_priorities` takes what was learned. With storage="cuda" the device keeps
            what was: `max_priority`, `stats()` and pickles wait for it.
        share_next: Whether each `next_X` (or `X_next`) is the `X` of the lane's next transition, and stored once for
            both, where it is: that is compared, byte by byte, at each insert. Or a mapping of names, the next ones
            first. With lanes only; as stacks of frames are (`Field`). What lies beside the newest frame of each
            transition then takes memory of its own: the first observations of trajectories. With storage="cuda" on the
            device, too, as it is needed: where there is none, the call that sends it raises, and nothing is lost.
        path: A file that the ring lies in, in place of memory, which it may be larger than. It is made where there is
            none; else the buffer goes on from what is there, and with its generator, if no `seed` is given. After the
            process was killed every transition is there that was inserted; after a loss of power what `flush` last
            confirmed. With `share_next` and stacks of frames the disk has room for all frames; memory is taken by those
            that are there. `close` lets others open it. Linux only; with storage="host".

    Raises:
        TypeError: An argument is of the wrong type, or torch has no dtype for a field.
        OSError: The file cannot be opened or made, or the file system cannot map it or has no room.
        ValueError: Capacity below 1, a malformed schema, an unknown output, a device without torch, a
            negative timeout; the file is damaged, or was made for another buffer.
        RuntimeError: The file is open elsewhere. Or the device, or page-locked memory for it, cannot be had; with
            storage="cuda", fastreplay's CUDA part neither. Or `__init__` was called before.
        MemoryError: The buffer would not fit into this machine's memory.

    Thread safety:
        Every method may be called from any thread at any time. A minibatch holds whole transitions,
        each drawn uniformly from those that were in the buffer when it was checked, which is after it
        was copied. A batch that `extend` inserts is not atomic, its rows are. After a fork the child has
        the buffer as it was, less the inserts that other threads had not finished; with `path` it has an empty one
        in memory, and the file stays the parent's.

    Example:
        >>> import fastreplay as fr
        >>> fields = {"observation": (3,), "action": ((), "int64")}
        >>> buffer = fr.ReplayBuffer(1000, fields, seed=0)
        >>> for step in range(10):
        ...     buffer.add(observation=[step, 0, 1], action=step % 2)
        >>> batch = buffer.sample(4)
        >>> batch.observation.shape, batch.action.dtype
        (torch.Size([4, 3]), torch.int64)
        >>> buffer
        ReplayBuffer(10 of 1000 transitions, 36 kB: observation (3,) float32, action () int64; torch, cpu)
    """

    @overload
    def __init__(
        self: ReplayBuffer[torch.Tensor],
        capacity: int,
        fields: Mapping[str, FieldLike],
        *,
        output: Literal["torch"] = "torch",
        **options: Unpack[Options],
    ) -> None: ...
    @overload
    def __init__(
        self: ReplayBuffer[NDArray[np.generic]],
        capacity: int,
        fields: Mapping[str, FieldLike],
        *,
        output: Literal["numpy"],
        **options: Unpack[Options],
    ) -> None: ...
    def __init__(
        self,
        capacity: int,
        fields: Mapping[str, FieldLike],
        *,
        seed: Seed = None,
        device: torch.device | str | int = "cpu",
        storage: Storage = "host",
        output: Literal["torch", "numpy"] = "torch",
        timeout: float | None = None,
        lanes: int | None = None,
        ends: Sequence[str] | None = None,
        priorities: Priorities | None = None,
        share_next: ShareNext = False,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        self._refuse_second_init()
        capacity = checked_count("capacity", capacity)
        lanes = None if lanes is None else checked_count("lanes", lanes)
        self._schema = fields if isinstance(fields, Schema) else Schema(fields)
        check_output(self._schema, output, device)
        self._output = output
        self._timeout = checked_timeout(timeout)
        self._device = checked_device(device)
        check_storage(storage, self._device)
        self._storage = storage
        self._gpu = gpu_of(self._device)
        self._frames = frames_in(self._schema, share_next, lanes)
        self._priorities = priorities
        self._disk = None
        disk = None if path is None else self._new_disk(path, capacity, lanes, ends, priorities)
        try:
            self._make(capacity, lanes, ends, None if disk is None else disk.open())
            self._begin(key_of(seed))
            if disk is not None:
                self._go_on_from(disk, seed)
        except BaseException:  # wherever an interrupt came: others can open the file
            if disk is not None:
                disk.give_up()
            raise

    def _make(
        self, capacity: int, lanes: int | None, ends: Sequence[str] | None, file: _core.MappedFile | None
    ) -> None:
        """Make what all faces share."""
        groups, num_spare = self._frames.groups, self._frames.num_spare
        has_links = lanes is not None and file is None  # of a larger ring each would cost a page
        self._ring = new_ring(
            self._schema.sizes, capacity, "capacity", groups, num_spare, file=file, has_links=has_links
        )
        self._lineage = Lineage()
        self._holding = threading.Lock()
        self.attached = {}
        self._origin = int.from_bytes(os.urandom(7), sys.byteorder) + 1
        self._lanes = new_lanes(lanes, ends, self._ring, self._schema, frames=self._frames, file=file)
        self._masses = new_masses(self._priorities, self._ring, self._schema.names, self._storage, file)
        self._waits = Waits()
        self._mirror = self._new_mirror()

    def _new_mirror(self) -> Mirror | None:
        if self._storage != "cuda" or self._gpu is None:
            return None
        rule = Priorities() if self._priorities is None else self._priorities
        links = None if self._lanes is None else self._lanes.core
        return self._gpu.mirror(self._ring, self._waits, self._masses, rule.mass_rule, links)

    def _begin(self, key: tuple[int, int]) -> None:
        """Make what each face has of its own."""
        self._deliveries = Living()
        reads = self._new_delivery(stored_form(self._schema))
        self._reader = Reader(self._ring, reads)
        self._sampler = self._own_draw()._sampler(self._source(reads), key)
        self._followers = Followers(self._sampler, self._schema, self._lanes)
        self._num_spawned = _core.Counter()
        lanes = None if self._lanes is None else self._lanes.core
        super().__init__(self._ring, self._schema, self._timeout, self._masses, lanes)
        living.add(self)
        keyed.add(self)

    @overload
    @classmethod
    def from_env(
        cls,
        env: Environment,
        capacity: int,
        *,
        dtype: DTypeLike | None = None,
        extra: Mapping[str, FieldLike] | None = None,
        output: Literal["torch"] = "torch",
        stack: int | None = None,
        images: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> ReplayBuffer[torch.Tensor]: ...
    @overload
    @classmethod
    def from_env(
        cls,
        env: Environment,
        capacity: int,
        *,
        dtype: DTypeLike | None = None,
        extra: Mapping[str, FieldLike] | None = None,
        output: Literal["numpy"],
        stack: int | None = None,
        images: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> ReplayBuffer[NDArray[np.generic]]: ...
    @classmethod
    def from_env(
        cls,
        env: Environment,
        capacity: int,
        *,
        dtype: DTypeLike | None = None,
        extra: Mapping[str, FieldLike] | None = None,
        output: Literal["torch", "numpy"] = "torch",
        lanes: int | None = None,
        ends: Sequence[str] | None = None,
        stack: int | None = None,
        images: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> ReplayBuffer[torch.Tensor] | ReplayBuffer[NDArray[np.generic]]:
        """Make a buffer for the transitions of a Gymnasium environment.

        Args:
            env: An environment or a vector environment. One transition is that of a single
                environment; `extend` takes a vector step.
            capacity: Transitions that the buffer holds at most.
            dtype: Stores floating-point observations and actions in this dtype.
            extra: Further fields.
            output: As in the constructor.
            lanes: As in the constructor, or True for those of the environment, however many they are. Where a vector
                environment (Gymnasium's way since 1.0) or the wrapper `Autoreset` resets in the step after an end,
                `add` and `extend` then leave out each lane's next row after an end, which is no transition. In other
                modes, the step of an end has the new episode's first observation: insert the last one of the old in
                its place (`info["final_obs"]`).
            ends: As in the constructor.
            stack: Frames of which each observation is a stack along its first axis; None for observations by
                themselves.
            images: How minibatches have observations that are images of bytes, as in `Schema.from_spaces`:
                `{"out": "float32", "divide": 255, "shift": 4}`.
            **options: As in the constructor.

        Returns:
            A buffer with the fields of `Schema.from_spaces`.

        Raises:
            TypeError: A space is of a kind that has no fixed shape; or as the constructor.
            ValueError: `extra` names a field that the spaces give; or as the constructor.
            OSError, RuntimeError, MemoryError: As the constructor.
        """
        if not hasattr(env, "observation_space"):
            raise TypeError(f"env: expected an environment, got {env!r}")
        observation_space = getattr(env, "single_observation_space", env.observation_space)
        action_space = getattr(env, "single_action_space", env.action_space)
        schema = Schema.from_spaces(
            observation_space, action_space, dtype=dtype, extra=extra, stack=stack, images=images
        )
        lanes, skips_resets = lanes_of_env(env, lanes, ends)
        buffer = cls(capacity, schema, output=output, lanes=lanes, ends=ends, **options)
        if buffer._lanes is not None:
            buffer._lanes.core.skips_resets = skips_resets
        return buffer

    def _initialize(self, capacity: int, schema: Schema, options: dict[str, Any]) -> None:
        ReplayBuffer.__init__(self, capacity, schema, **options)  # type: ignore[arg-type]

    def spawn(self, n: int) -> list[Self]:
        """Make n more faces of this buffer: the same transitions, each with a generator of its own.

        One sampler a thread makes each thread's minibatches reproducible by themselves, whatever the
        others do, given the same contents. The generators follow from this buffer's key and the number
        of faces spawned before, as in `numpy.random.SeedSequence.spawn`.

        Args:
            n: How many.

        Returns:
            Buffers whose `rng_state` and sampling counters are their own.

        Raises:
            TypeError, ValueError: `n` is no integer, or negative.
            MemoryError: There is not memory for as many.

        Thread safety:
            May be called from any thread; what each call gets depends on their order.
        """
        n = checked_index("n", n)
        if n < 0:
            raise ValueError(f"n: expected a non-negative integer, got {n}")
        check_memory("n", f"{n} faces", n * _FACE_BYTES)
        first = self._num_spawned.add(n)
        return [self._face(np.random.SeedSequence(self._sampler.key, spawn_key=(first + i,))) for i in range(n)]

    def _face(self, seed: np.random.SeedSequence) -> Self:
        face = type(self).__new__(type(self))
        face.__dict__.update(self.__dict__)
        face._waits = Waits()
        face._begin(key_of(seed))
        return face

    def _num_bytes(self) -> int:
        beside = (self._masses, None if self._lanes is None else self._lanes.core)
        return self._ring.num_bytes + sum(0 if each is None else each.num_bytes for each in beside)

    def _begin_in_child(self) -> None:
        """In the child after a fork: no other thread is left to finish its insert."""
        end = self._ring.window()[1]  # before later tickets move to the places of unfinished ones
        if self._disk is not None:
            self._leave_disk()
        _core.begin_in_child(self._ring, self._masses, None if self._lanes is None else self._lanes.core)
        if self._disk is None:
            self._lineage.begin_in_child(end)
        if self._holding.locked():  # by a save that goes on in the parent
            self._holding.release()
        if self._mirror is not None:
            self._mirror.begin_in_child()

    def stats(self) -> Stats:
        """Return the counters since the buffer was made.

        Thread safety:
            May be called from any thread; the counters are read one after another.
        """
        num_ahead = self._sampler.num_ahead
        return {
            "inserted": self._ring.num_inserted,
            "overwritten": self._ring.num_overwritten,
            "lost": 0 if self._disk is None else self._disk.num_lost,
            "sampled": self._sampler.num_sampled,
            "redraws": self._sampler.num_redraws,
            "without_mass": self._sampler.num_without_mass,
            "refused": 0 if self._mirror is None or self._mirror.masses is None else self._mirror.masses.num_refused,
            "incomplete": self._sampler.num_incomplete,
            "bytes": self._num_bytes(),
            "pinned_bytes": sum(delivery.pinned_bytes for delivery in self._deliveries),
            "blocks_in_flight": sum(delivery.num_in_flight(num_ahead) for delivery in self._deliveries),
            "waits": self._waits.count,
            "wait_s": self._waits.seconds,
        }
