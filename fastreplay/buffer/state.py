# SPDX-License-Identifier: MIT
"""What a buffer tells of itself: its counters."""

from __future__ import annotations

from typing import TypedDict

__all__ = ["SamplerStats", "Stats", "TrajectoryStats"]


class SamplerStats(TypedDict):
    """Counters of a sampler, since it was made."""

    sampled: int  # rows drawn by sample() and loaders
    redraws: int  # rows drawn again because a writer overwrote them while they were copied
    without_mass: int  # minibatches drawn uniformly because no transition had a priority above zero
    incomplete: int  # rows that a CUDA graph gave with fewer steps than a rule asks for, as none had all of them
    left_out: int  # rows whose turn in an epoch came when they were overwritten or cleared


class TrajectoryStats(TypedDict):
    """What there is of trajectories in a buffer with lanes, at one moment."""

    transitions: int  # that can be drawn
    trajectories: int  # of which something is there
    longest: int  # transitions of one of them
    without_beginning: int  # trajectories whose first transition is not there: it left the buffer, or is not known
    complete: int  # transitions of which all that a rule gives is there, or their trajectory has no more


class Stats(TypedDict):
    """Counters of a buffer, since it was made."""

    inserted: int  # transitions inserted
    overwritten: int  # of these, lost because the buffer was full
    lost: int  # by a loss of power, from a ring in a file, as far as the file tells
    sampled: int  # rows drawn by sample() and loaders
    redraws: int  # rows drawn again because a writer overwrote them while they were copied
    without_mass: int  # minibatches drawn uniformly because no transition had a priority above zero
    refused: int  # priorities of update_priorities that were passed over on a device, as they were not finite
    incomplete: int  # rows that a CUDA graph gave with fewer steps than a rule asks for, as none had all of them
    bytes: int  # memory of the ring and of its priorities
    pinned_bytes: int  # page-locked memory of minibatches on their way to a GPU
    blocks_in_flight: int  # minibatches being gathered or copied, and those that loaders have ready
    waits: int  # how often sample() or a loader had to wait: for a copy that was still under way, or its thread
    wait_s: float  # the seconds that this took in all
