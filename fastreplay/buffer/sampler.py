# SPDX-License-Identifier: MIT
"""A sampler: draws of its own over a buffer that others share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from fastreplay.buffer.followers import Followers
from fastreplay.buffer.forks import living
from fastreplay.buffer.sampling import Sampling
from fastreplay.support.keys import keyed

if TYPE_CHECKING:
    from fastreplay.batch.ring_sampler import RingSampler
    from fastreplay.batch.state import RngState
    from fastreplay.buffer.draw import Draw
    from fastreplay.buffer.follow import Follow
    from fastreplay.buffer.replay_buffer import ReplayBuffer
    from fastreplay.buffer.state import SamplerStats

__all__ = ["Sampler"]

ArrayT = TypeVar("ArrayT")  # torch.Tensor or numpy.ndarray


class Sampler(Sampling[ArrayT]):
    """Draws minibatches from a buffer by a rule, with a generator and counters of its own.

    Made by `ReplayBuffer.sampler`. Any number of samplers may share a buffer, which lives as long as one of them. A
    pickle holds the buffer, too.

    Thread safety:
        Any thread may sample, while others insert. One sampler a thread makes each thread's minibatches reproducible
        by themselves.

    Example:
        >>> import fastreplay as fr
        >>> buffer = fr.ReplayBuffer(100, {"observation": (3,)}, seed=0, output="numpy")
        >>> buffer.extend(observation=[[i, i, i] for i in range(50)])
        >>> latest = buffer.sampler(draw=fr.Uniform(newest_of=10))
        >>> bool((latest.sample(32).ticket >= 40).all())
        True
    """

    def __init__(
        self, sampler: RingSampler, buffer: ReplayBuffer[ArrayT], draw: Draw, follow: Follow | None = None
    ) -> None:
        if hasattr(self, "_sampler"):
            raise RuntimeError("Sampler: __init__ was called before; make another with buffer.sampler()")
        self._buffer = buffer
        self._mirror = buffer._mirror
        self._draw = draw
        self._follow = follow
        self._followers = Followers(sampler, buffer.schema, buffer._lanes)
        self._sampler = sampler if follow is None else self._following(follow)
        living.add(self)
        keyed.add(self)

    @property
    def buffer(self) -> ReplayBuffer[ArrayT]:
        """The buffer that it draws from."""
        return self._buffer

    @property
    def draw(self) -> Draw:
        """The rule that it draws by."""
        return self._draw

    @property
    def follow(self) -> Follow | None:
        """What of its trajectory each row comes with; None for nothing."""
        return self._follow

    def stats(self) -> SamplerStats:
        """Return the counters since the sampler was made.

        Thread safety:
            May be called from any thread; the counters are read one after another.
        """
        return {
            "sampled": self._sampler.num_sampled,
            "redraws": self._sampler.num_redraws,
            "without_mass": self._sampler.num_without_mass,
            "incomplete": self._sampler.num_incomplete,
            "left_out": self._sampler.num_left_out,
        }

    def __repr__(self) -> str:
        follow = "" if self._follow is None else f" with {self._follow}"
        return f"{type(self).__name__}({self._draw}{follow} of {self._buffer!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self._buffer, self._draw, self.rng_state, self._follow)

    def _following(self, rule: Follow) -> RingSampler:
        return self._followers.of(rule, self._buffer._new_delivery_of_draws)

    def _begin_in_child(self) -> None:
        self._sampler.begin_in_child()


def _rebuild(buffer: ReplayBuffer[Any], draw: Draw, state: RngState, follow: Follow | None) -> Sampler[Any]:
    sampler = buffer._new_sampler(draw, follow, (0, 0))
    sampler.rng_state = state
    return sampler
