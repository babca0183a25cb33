# SPDX-License-Identifier: MIT
"""From Gymnasium's spaces to fields. Imported only where a space is at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from fastreplay.schema.schema import Field
from fastreplay.schema.structure import Names, Node

if TYPE_CHECKING:
    from collections.abc import Hashable

    import gymnasium as gym


def node_of_space(
    name: str,
    space: gym.Space[Any],
    dtype: np.dtype[np.generic] | None,
    fields: dict[str, Field],
    names: Names | None = None,
) -> Node:
    """Return the node of a transition that holds one element of a space, in the space's own order.

    Args:
        name: Of the node.
        space: The space.
        dtype: What floating-point elements are stored in.
        fields: The node's fields are added to these.
        names: Which were given before.

    Raises:
        TypeError: A space has no fields: it is of another kind, or empty.
        ValueError: An element has a side of length 0.
    """
    names = names or Names()

    def below(key: object, child: gym.Space[Any]) -> Node:
        return node_of_space(names.below(name, key), child, dtype, fields, names)

    children: dict[Hashable, Node] | tuple[Node, ...]
    if isinstance(space, spaces.Dict):
        children = {key: below(key, child) for key, child in space.spaces.items()}
    elif isinstance(space, spaces.Tuple):
        children = tuple([below(i, child) for i, child in enumerate(space.spaces)])
    else:
        node = Node(name, len(fields))
        fields[name] = _field(name, space, dtype)
        return node
    if not children:
        raise TypeError(f"{name}: expected a space with parts, got the empty {space}")
    return Node(name, children=children)


def _field(name: str, space: gym.Space[Any], dtype: np.dtype[np.generic] | None) -> Field:
    if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        raise TypeError(
            f"{name}: expected a Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple space, got {space}"
        )
    own = np.dtype(space.dtype)
    try:
        return Field(tuple(space.shape or ()), dtype if dtype is not None and own.kind == "f" else own)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None


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
