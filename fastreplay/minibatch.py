# SPDX-License-Identifier: MIT
"""What `sample` returns: the fields of a minibatch as tensors or arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar, cast

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from numpy.typing import NDArray

    from fastreplay._blocks import Block
    from fastreplay._pipeline import Slot
    from fastreplay._resident import ResidentBlock
    from fastreplay.schema import Schema

__all__ = ["Minibatch"]

ArrayT = TypeVar("ArrayT")  # torch.Tensor or numpy.ndarray


class Minibatch(Generic[ArrayT]):
    """Transitions, field by field: a mapping, an object with attributes, and a tuple to unpack.

    `batch["reward"]` and `batch.reward` are the (batch_size, *shape) tensor or array of a field;
    `observation, action, *rest = batch` unpacks the fields in schema order; `len(batch)` is the
    number of transitions. A part that is a dict or tuple (of a Dict or Tuple space, or of names such as
    `observation/position`) may be asked for as a whole, and comes back as what it was, with the same keys.

    The memory is the holder's: it is reused only when the minibatch and everything made from it
    (slices, NumPy views, autograd graphs) is gone, or when the holder passes it as `out=`.

    Thread safety:
        Reading is safe from any thread; `out=` must not be given to two calls at once.

    Example:
        >>> import fastreplay as fr
        >>> buffer = fr.ReplayBuffer(10, {"observation": (3,), "reward": ()}, output="numpy")
        >>> buffer.add(observation=[1, 2, 3], reward=0.5)
        >>> batch = buffer.sample(2)
        >>> batch.reward
        array([0.5, 0.5], dtype=float32)
        >>> observation, reward = batch
        >>> len(batch), batch.ticket
        (2, array([0, 0]))
    """

    __slots__ = ("_batch_size", "_block", "_schema", "_ticket", "_values")

    def __init__(
        self,
        schema: Schema,
        values: tuple[ArrayT, ...],
        block: Block | Slot | ResidentBlock | None,
        batch_size: int | None,
        ticket: ArrayT | None = None,
    ) -> None:
        self._schema = schema
        self._values = values
        self._block = block
        self._batch_size = batch_size  # None for a single transition, whose fields have no such axis
        self._ticket = ticket

    @property
    def schema(self) -> Schema:
        """The fields that this minibatch has."""
        return self._schema

    @property
    def batch_size(self) -> int | None:
        """Number of transitions; None for a single one, read by an integer index."""
        return self._batch_size

    @property
    def ticket(self) -> ArrayT:
        """The rows' insert numbers, (batch_size,) int64; `slot = ticket % capacity`."""
        if self._ticket is None:
            assert self._block is not None  # a minibatch without a block is made with its tickets
            self._ticket = cast("ArrayT", self._block.ticket())
        return self._ticket

    def __len__(self) -> int:
        if self._batch_size is None:
            raise TypeError("a single transition has no len()")
        return self._batch_size

    def __bool__(self) -> bool:
        return self._batch_size != 0

    def __iter__(self) -> Iterator[ArrayT]:
        return iter(self._values)

    def __getitem__(self, name: str) -> ArrayT:
        try:
            return self._values[self._schema.position(name)]
        except KeyError:
            part = self._schema.parts_by_name.get(name)
            if part is None:
                raise KeyError(f"{name!r}; the fields are {', '.join(self._schema)}") from None
            return cast("ArrayT", part.fold(self._values))

    def __getattr__(self, name: str) -> ArrayT:
        if not name.startswith("_"):
            try:
                return self[name]
            except KeyError:
                pass
        raise AttributeError(f"the minibatch has no field {name!r}")

    def __contains__(self, name: object) -> bool:
        return name in self._schema

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._schema]

    def keys(self) -> tuple[str, ...]:
        """Return the field names in schema order."""
        return self._schema.names

    def values(self) -> tuple[ArrayT, ...]:
        """Return the fields in schema order."""
        return self._values

    def items(self) -> tuple[tuple[str, ArrayT], ...]:
        """Return (name, field) pairs in schema order."""
        return tuple(zip(self._schema, self._values, strict=True))

    def get(self, name: str, default: ArrayT | None = None) -> ArrayT | None:
        """Return a field, or `default` where there is none of this name."""
        try:
            return self[name]
        except KeyError:
            return default

    def numpy(self) -> Minibatch[NDArray[np.generic]]:
        """Return the same minibatch as NumPy arrays; on the CPU they share the memory, from elsewhere all come at once.

        Raises:
            TypeError: A tensor lies where NumPy cannot follow (device meta).
        """
        if isinstance(self._values[0], np.ndarray):
            return cast("Minibatch[NDArray[np.generic]]", self)
        if any(value.device.type != "cpu" for value in self._values):  # type: ignore[attr-defined]
            return self.to("cpu").numpy()
        return Minibatch(
            self._schema,
            tuple(_to_numpy(value) for value in cast("tuple[torch.Tensor, ...]", self._values)),
            self._block,
            self._batch_size,
            _to_numpy(cast("torch.Tensor", self.ticket)),
        )

    def to(self, device: torch.device | str | int) -> Minibatch[torch.Tensor]:
        """Return the minibatch as torch tensors on a device, moved in one transfer.

        Returns:
            The minibatch itself where it is there already; one that shares the memory where only
            NumPy arrays become tensors.
        """
        import torch

        target = torch.empty(0, device=device).device
        in_numpy = isinstance(self._values[0], np.ndarray)
        if not in_numpy and all(value.device == target for value in self._values):  # type: ignore[attr-defined]
            return cast("Minibatch[torch.Tensor]", self)
        block = self._block
        if block is None or self._batch_size is None or target.type == "cpu" or block.first_moved(self._values) >= 0:
            values = tuple(_to_tensor(value).to(target) for value in self._values)
            return Minibatch(self._schema, values, None, self._batch_size, _to_tensor(self.ticket).to(target))
        *parts, ticket = block.layout.tensors_in(block.flat_tensor().to(target))
        return Minibatch(self._schema, tuple(parts), None, self._batch_size, ticket)

    def __repr__(self) -> str:
        size = "1 transition" if self._batch_size is None else f"{self._batch_size} transitions"
        fields = ", ".join(f"{name} {tuple(value.shape)}" for name, value in self.items())  # type: ignore[attr-defined]
        kind = "numpy" if isinstance(self._values[0], np.ndarray) else f"torch, {self._values[0].device}"  # type: ignore[attr-defined]
        return f"Minibatch({size}: {fields}; {kind})"

    def __reduce__(self) -> tuple[object, ...]:
        arrays = self.numpy()
        in_numpy = isinstance(self._values[0], np.ndarray)
        return _restore, (self._schema, arrays.values(), arrays.ticket, self._batch_size, in_numpy)


def _restore(
    schema: Schema,
    arrays: tuple[NDArray[np.generic], ...],
    ticket: NDArray[np.generic],
    batch_size: int | None,
    in_numpy: bool,
) -> Minibatch[NDArray[np.generic]] | Minibatch[torch.Tensor]:
    if in_numpy:
        return Minibatch(schema, arrays, None, batch_size, ticket)
    return Minibatch(schema, tuple(map(_to_tensor, arrays)), None, batch_size, _to_tensor(ticket))


def _to_numpy(tensor: torch.Tensor) -> NDArray[np.generic]:
    return cast("NDArray[np.generic]", tensor.detach().cpu().numpy())


def _to_tensor(value: object) -> torch.Tensor:
    import torch

    return value if isinstance(value, torch.Tensor) else torch.from_numpy(np.asarray(value))
