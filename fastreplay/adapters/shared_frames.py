# SPDX-License-Identifier: MIT
"""Observations before and after n steps, of which each is stored once. It knows no other library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastreplay.adapters.frame_table import frames_of
from fastreplay.adapters.step_table import StepField
from fastreplay.buffer.replay_buffer import ReplayBuffer
from fastreplay.schema.schema import Field

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from typing_extensions import Self

    from fastreplay.checkpoint.folder import Folder
    from fastreplay.checkpoint.manifest import Manifest
    from fastreplay.checkpoint.save import SaveSource

__all__ = ["SharedFrames"]


class SharedFrames:
    """Pairs of observations, n_step apart, slot after slot, over and over.

    Args:
        capacity: Pairs at most.
        obs_shape: Of an observation, of bytes.
        device: Torch device of what is read.
        n_step: Steps between the two.
        dedupe: True, or the frames that each observation consists of.

    Raises:
        TypeError, ValueError, MemoryError: As the buffer that this is for.
    """

    def __init__(
        self, capacity: int, obs_shape: tuple[int, ...], device: torch.device | str, n_step: int, dedupe: bool | int
    ) -> None:
        (num_frames,) = frames_of(dedupe, {"obs_shape": StepField(obs_shape, np.dtype(np.uint8))})
        field: Any = (obs_shape, "uint8")
        self._lanes, pairs = n_step, True  # so that the pair before in its lane ends where this one begins
        if num_frames > 1:
            # Stacks go on by a frame from one pair to the next: in one lane, where observations of several steps
            # apart are two streams.
            field = Field((obs_shape[0] // num_frames, *obs_shape[1:]), "uint8", stack=num_frames)
            self._lanes, pairs = 1, n_step == 1
        fields = {"obs": field, "next_obs": field}
        self._pairs = ReplayBuffer(
            *(capacity, fields), seed=0, device=device, lanes=self._lanes, ends=(), share_next=pairs
        )
        self._obs_shape = obs_shape
        self._num_added = 0

    def add(self, obs: NDArray[np.uint8], next_obs: NDArray[np.uint8]) -> None:
        """Store the next pair, each (*obs_shape)."""
        shape = self._pairs.schema["obs"].shape
        self._pairs.add(obs.reshape(shape), next_obs.reshape(shape), lane=self._num_added % self._lanes)
        self._num_added += 1

    def kept_source(self) -> SaveSource:
        """Return what a checkpoint holds of the pairs."""
        return self._pairs._kept_source()

    def loaded(self, folder: Folder, manifest: Manifest) -> Self:
        """Return the like of these with what a checkpoint holds.

        Raises:
            OSError, ValueError: It is damaged, or of pairs of another form.
        """
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__, _pairs=self._pairs._loaded_alike(folder, manifest), _num_added=manifest.end)
        return made

    def at(self, slots: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the pairs in slots that are filled, (B, *obs_shape) each."""
        oldest = max(0, self._num_added - self._pairs.capacity)
        ages = (np.array(slots, np.int64) - oldest) % self._pairs.capacity
        obs, next_obs = self._pairs[ages]
        return obs.view(-1, *self._obs_shape), next_obs.view(-1, *self._obs_shape)
