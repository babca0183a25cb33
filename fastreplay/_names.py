# SPDX-License-Identifier: MIT
"""Field names: which are taken, and how nested ones unfold. Knows no arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

# Attributes of a Minibatch, and what may become one.
RESERVED_NAMES = frozenset(["batch_size", "get", "items", "keys", "numpy", "schema", "ticket", "to", "values"])


def flatten(name: str, value: object) -> Iterator[tuple[str, object]]:
    """Yield the leaves of nested dicts and tuples under their joined names."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from flatten(f"{name}/{key}", child)
    elif isinstance(value, tuple):
        for i, child in enumerate(value):
            yield from flatten(f"{name}/{i}", child)
    else:
        yield name, value


def has_children(names: Mapping[str, object], parent: str) -> bool:
    """Tell whether some name lies below `parent`."""
    return any(name.startswith(f"{parent}/") for name in names)
