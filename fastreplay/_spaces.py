# SPDX-License-Identifier: MIT
"""From Gymnasium's spaces to fields. Imported only where a space is at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from gymnasium import __version__ as gymnasium_version
from gymnasium import spaces

from fastreplay.schema import Field

if TYPE_CHECKING:
    from collections.abc import Iterable

    import gymnasium as gym
    from numpy.typing import DTypeLike


def fields_of_space(name: str, space: gym.Space[Any], dtype: DTypeLike | None) -> dict[str, Field]:
    """Return the fields, in the space's own order, that hold one element of the space."""
    children: Iterable[tuple[object, gym.Space[Any]]]
    if isinstance(space, spaces.Dict):
        children = space.spaces.items()
    elif isinstance(space, spaces.Tuple):
        children = enumerate(space.spaces)
    else:
        return {name: _leaf(name, space, dtype)}
    fields: dict[str, Field] = {}
    for key, child in children:
        leaves = fields_of_space(f"{name}/{key}", child, dtype)
        for leaf in leaves:
            if leaf in fields:
                raise ValueError(f"{leaf}: duplicate name, two parts of {space} give it")
        fields |= leaves
    if not fields:
        raise TypeError(f"{name}: expected a space with parts, got the empty {space}")
    return fields


def _leaf(name: str, space: gym.Space[Any], dtype: DTypeLike | None) -> Field:
    if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        raise TypeError(
            f"{name}: expected a Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple space, got {space}"
        )
    own = np.dtype(space.dtype)
    stored = np.dtype(dtype) if dtype is not None and own.kind == "f" else own
    return Field(tuple(int(length) for length in space.shape or ()), stored)


def is_discrete(space: gym.Space[Any]) -> bool:
    """Tell whether an element is one integer, which the adapters give an axis of its own."""
    return isinstance(space, spaces.Discrete)


def observation_shape(space: gym.Space[Any]) -> tuple[int, ...]:
    """Return the shape in which an adapter keeps an element of the space.

    Raises:
        NotImplementedError: The space is not Box, Discrete, MultiDiscrete or MultiBinary.
    """
    if isinstance(space, spaces.Discrete):
        return (1,)
    if isinstance(space, spaces.MultiDiscrete):
        return (len(space.nvec),)
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        return tuple(space.shape)
    raise NotImplementedError(f"observation_space: expected Box, Discrete, MultiDiscrete or MultiBinary, got {space}")


def action_length(space: gym.Space[Any]) -> int:
    """Return the number of items in which an adapter keeps an element of the space.

    Raises:
        NotImplementedError: The space is not Box, Discrete, MultiDiscrete or a MultiBinary of one dimension.
    """
    if isinstance(space, spaces.Box):
        return int(np.prod(space.shape))
    if isinstance(space, spaces.Discrete):
        return 1
    if isinstance(space, spaces.MultiDiscrete):
        return len(space.nvec)
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
        return int(space.shape[0])
    raise NotImplementedError(f"action_space: expected Box, Discrete, MultiDiscrete or flat MultiBinary, got {space}")


def default_autoreset() -> Literal["same_step"] | None:
    """Return when vector environments reset: in the step of the end before Gymnasium 1.0; since then it varies."""
    return None if int(gymnasium_version.split(".")[0]) >= 1 else "same_step"
