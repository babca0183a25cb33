# SPDX-License-Identifier: MIT
"""From Gymnasium's spaces to fields. Imported only where a space is at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
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
