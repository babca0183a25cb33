# SPDX-License-Identifier: MIT
"""Lets torch look into minibatches: `torch.utils._pytree`, and what is built on it, takes them for nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastreplay.batch.beside import Beside

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastreplay.batch.minibatch import Minibatch
    from fastreplay.schema.schema import Schema

__all__ = ["register"]


class _Context:
    """What of a minibatch is no leaf. Of two that are walked together, the tickets may differ."""

    def __init__(self, batch: Minibatch[Any]) -> None:
        self.schema: Schema = batch.schema
        self.batch_size = batch.batch_size
        self.ticket = batch.ticket if batch.has_tickets else None
        self.beside = batch._beside

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Context):
            return NotImplemented
        return self.schema == other.schema and self.batch_size == other.batch_size

    def __hash__(self) -> int:
        return hash((self.schema, self.batch_size))

    def __repr__(self) -> str:
        return f"{self.schema}, {self.batch_size}"


def register(minibatch: type[Minibatch[Any]]) -> None:
    """Make torch know the class. The leaves are the fields in schema order; the tickets go along."""
    from torch.utils import _pytree

    def flatten(batch: Minibatch[Any]) -> tuple[list[Any], _Context]:
        return list(batch.values()), _Context(batch)

    def flatten_with_keys(batch: Minibatch[Any]) -> tuple[list[Any], _Context]:
        keys: Any = [(_pytree.MappingKey(name), value) for name, value in batch.items()]
        return keys, _Context(batch)

    def unflatten(leaves: Iterable[Any], context: _Context) -> Minibatch[Any]:
        values = tuple(leaves)
        batch_size = _batch_size(values, context)
        is_same = batch_size == context.batch_size
        ticket, beside = (context.ticket, context.beside) if is_same else (None, Beside())
        return minibatch(context.schema, values, None, batch_size, ticket, beside)

    _pytree.register_pytree_node(
        minibatch,
        flatten,
        unflatten,
        serialized_type_name="fastreplay.Minibatch",
        flatten_with_keys_fn=flatten_with_keys,
    )


def _batch_size(leaves: tuple[Any, ...], context: _Context) -> int | None:
    """Return how many transitions the leaves are of; where they do not tell, as many as before."""
    shapes = [getattr(leaf, "shape", None) for leaf in leaves]
    fields = [field.shape for field in context.schema.values()]
    if shapes == fields:
        return None
    axes = [int(name in context.beside.time_major) for name in context.schema]
    lengths = {
        shape[axis]
        if isinstance(shape, tuple) and len(shape) > axis and (*shape[:axis], *shape[axis + 1 :]) == field
        else None
        for shape, field, axis in zip(shapes, fields, axes, strict=True)
    }
    length = lengths.pop()
    return context.batch_size if lengths or length is None else int(length)
