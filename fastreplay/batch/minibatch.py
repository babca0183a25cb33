# SPDX-License-Identifier: MIT
"""What `sample` returns: the fields of a minibatch as tensors or arrays."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

import numpy as np

from fastreplay.batch.beside import NOTHING, Beside
from fastreplay.batch.conversion import conversion, is_cast, pack, to_numpy, unpack, unpack_tensor
from fastreplay.batch.native_minibatch import NativeMinibatch
from fastreplay.support.bfloat16 import tensor_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from numpy.typing import NDArray

    from fastreplay import _core
    from fastreplay.batch.block import Block
    from fastreplay.schema import Schema

__all__ = ["Minibatch"]

ArrayT = TypeVar("ArrayT")  # torch.Tensor or numpy.ndarray


_ANOTHERS = -1  # the number of a ring that is none to be named


class Minibatch(NativeMinibatch, Generic[ArrayT]):
    """Transitions, field by field: a mapping, an object with attributes, and a tuple to unpack.

    `batch["reward"]` and `batch.reward` are the (batch_size, *shape) tensor or array of a field;
    `observation, action, *rest = batch` unpacks the fields in schema order; `len(batch)` is the
    number of transitions. A part that is a dict or tuple (of a Dict or Tuple space, or of names such as
    `observation/position`) may be asked for as a whole, and comes back as what it was, with the same keys.

    Drawn by priority, it has `batch.weight` and `batch.probability` beside its fields, (batch_size,) float32 each; from
    a mixture, `batch.source`, (batch_size,) int64.

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

    __slots__ = ()

    if TYPE_CHECKING:
        _values: tuple[ArrayT, ...]

        def __init__(  # noqa: PLR0917
            self,
            schema: Schema,
            values: tuple[ArrayT, ...],
            block: Block | None,
            batch_size: int | None,
            ticket: ArrayT | None = None,
            beside: Beside = NOTHING,
        ) -> None: ...
        def __getattr__(self, name: str) -> ArrayT: ...

    @staticmethod
    def _tell_torch() -> None:
        from fastreplay.batch.pytree import register

        register(Minibatch)

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
            if self._block is None:
                raise AttributeError  # which _attribute() puts into words
            self._ticket = self._block.ticket()
        return cast("ArrayT", self._ticket)

    def _host_rows(self) -> _core.Block | None:
        """Return what has the rows' insert numbers, where they lie in the host's memory."""
        return None if self._block is None else self._block.host_rows()

    @property
    def has_tickets(self) -> bool:
        """Whether the rows have insert numbers; not those of fields that were put together by `tree_map`."""
        return self._ticket is not None or self._block is not None

    def __len__(self) -> int:
        if self._batch_size is None:
            raise TypeError("a single transition has no len()")
        return self._batch_size

    def __bool__(self) -> bool:
        return self._batch_size != 0

    # These two are Python's, lest torch.compile(fullgraph=True) refuses them: 80 ns more by name, 60 for all.
    def __iter__(self) -> Iterator[ArrayT]:
        return iter(self._values)

    def __getitem__(self, name: str) -> ArrayT:
        place = self._schema._positions.get(name) if isinstance(name, str) else None  # type: ignore[redundant-expr]
        return self._part(name) if place is None else self._values[place]

    def _part(self, name: str) -> ArrayT:
        """Return what is no field by itself."""
        try:
            if name in self._beside:  # no field has such a name
                return cast("ArrayT", self._beside[name])
            node = self._schema.parts_by_name.get(name)
        except TypeError:  # a slice has no hash
            raise TypeError(f"{name!r}; expected a name: the fields are {', '.join(self._schema)}") from None
        if node is None:
            raise KeyError(f"{name!r}; the fields are {', '.join(self._schema)}") from None
        return cast("ArrayT", node.fold(self._values))

    def _attribute(self, name: str) -> ArrayT:
        """Return what neither the class nor the schema has."""
        if not name.startswith("_"):
            try:
                return self[name]
            except KeyError:
                pass
        raise AttributeError(f"the minibatch has no field {name!r}")

    def __contains__(self, name: object) -> bool:
        return name in self._schema or name in self._beside or name in self._schema.parts_by_name

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._schema, *self._beside]

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

    def _belong_to(self, origin: int) -> None:
        """Note which ring the rows in this memory are of now; 0 for one of which nobody asks."""
        origins: Any = self._beside.origins
        if not origins and origin:
            self._beside = Beside(self._beside.items(), [origin], self._beside.time_major)
        elif origins and origins[0] != origin:
            origins[0] = origin or _ANOTHERS

    def _first_rows(self, count: int) -> Minibatch[ArrayT]:
        """Return the first `count` transitions, in the same memory; the minibatch itself where these are all."""
        if count == self._batch_size:
            return self

        def first(name: str, value: Any) -> Any:
            if name not in self._beside.time_major:
                return value[:count]
            num_steps, _, *rest = value.shape  # of these alone, one step after the other
            return value.reshape(-1)[: math.prod((num_steps, count, *rest))].reshape(num_steps, count, *rest)

        beside = self._beside.of(first(name, value) for name, value in self._beside.items())
        values: Any = tuple([first(name, value) for name, value in self.items()])
        return Minibatch(self._schema, values, None, count, first("ticket", self.ticket), beside)

    def numpy(self) -> Minibatch[NDArray[np.generic]]:
        """Return the same minibatch as NumPy arrays; on the CPU they share the memory, from elsewhere all come at once.

        Raises:
            TypeError: A tensor lies where NumPy cannot follow (device meta).
        """
        if isinstance(self._values[0], np.ndarray):
            return cast("Minibatch[NDArray[np.generic]]", self)
        devices = {value.device.type for value in self._values}  # type: ignore[attr-defined]
        if devices != {"cpu"} and "meta" not in devices:
            return self.to("cpu").numpy()
        return Minibatch(
            self._schema,
            tuple(to_numpy(name, value) for name, value in cast("tuple[tuple[str, torch.Tensor], ...]", self.items())),
            self._block,
            self._batch_size,
            to_numpy("ticket", cast("torch.Tensor", self.ticket)) if self.has_tickets else None,
            self._beside.of(to_numpy(name, value) for name, value in self._beside.items()),
        )

    @overload
    def to(
        self,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
        copy: bool = False,
    ) -> Minibatch[torch.Tensor]: ...
    @overload
    def to(self, dtype: torch.dtype, non_blocking: bool = False, copy: bool = False) -> Minibatch[torch.Tensor]: ...
    @overload
    def to(self, other: torch.Tensor, non_blocking: bool = False, copy: bool = False) -> Minibatch[torch.Tensor]: ...
    def to(self, *args: Any, **kwargs: Any) -> Minibatch[torch.Tensor]:
        """Return the minibatch as torch tensors on a device, moved in one transfer, or of a floating-point dtype.

        The arguments are those of `torch.Tensor.to`: a device, a dtype, both, or a tensor that has them. Only
        floating-point fields are cast, as `torch.nn.Module.to` does: actions, flags and tickets stay what they are, and
        weights, probabilities and discounts float32.

        Args:
            *args: `device`, `dtype`, `non_blocking`, `copy`; or all but the first; or a tensor and the last two.
            **kwargs: The same by name, the tensor as `other`.

        Returns:
            The minibatch itself where it is like that already and no `copy` is asked for; one that shares the memory
            where only NumPy arrays become tensors.

        Raises:
            TypeError: An argument is of the wrong type, unknown or given twice, or the dtype is that of integers.
            RuntimeError: The device cannot be had.
        """
        device, dtype, non_blocking, copy = conversion(args, kwargs)
        moved = self._moved(device, non_blocking=non_blocking, copy=copy)
        if dtype is None:
            return moved
        values = tuple([value.to(dtype) if is_cast(value, dtype) else value for value in moved._values])
        if all(value is kept for value, kept in zip(values, moved._values, strict=True)):
            return moved
        ticket = moved.ticket if self.has_tickets else None
        beside = moved._beside.copied(moved._beside.values())
        return Minibatch(self._schema, values, None, self._batch_size, ticket, beside)

    def _moved(self, device: torch.device | None, *, non_blocking: bool, copy: bool) -> Minibatch[torch.Tensor]:
        block = self._block
        values = (*self._values, *self._beside.values())
        if block is not None and self._batch_size is not None and block.first_changed(values, self._ticket) < 0:
            flat = block.flat_tensor()
            if device is not None and flat.device != device:
                return self._with(block.layout.tensors_in(flat.to(device, non_blocking=non_blocking)))
        tensors = [_to_tensor(value) for value in (*values, *([self.ticket] if self.has_tickets else []))]
        made = [tensor.to(device or tensor.device, non_blocking=non_blocking, copy=copy) for tensor in tensors]
        if all(value is kept for value, kept in zip(made, self._values, strict=False)):
            return cast("Minibatch[torch.Tensor]", self)
        return self._with(made)

    def _with(self, tensors: Sequence[torch.Tensor]) -> Minibatch[torch.Tensor]:
        """Return the minibatch of other tensors: of the fields, of what is beside them, then the tickets, if any."""
        num_fields, num_values = len(self._values), len(self._values) + len(self._beside)
        beside = self._beside.copied(tensors[num_fields:num_values])
        ticket = tensors[-1] if self.has_tickets else None
        return Minibatch(self._schema, tuple(tensors[:num_fields]), None, self._batch_size, ticket, beside)

    def __repr__(self) -> str:
        size = "1 transition" if self._batch_size is None else f"{self._batch_size} transitions"
        fields = ", ".join(f"{name} {_form_of(value)}" for name, value in self.items())
        first: Any = self._values[0]
        kind = "numpy" if isinstance(first, np.ndarray) else f"torch, {getattr(first, 'device', 'none')}"
        return f"Minibatch({size}: {fields}; {kind})"

    def __reduce_ex__(self, protocol: Any) -> tuple[object, ...]:
        ticket = pack("ticket", self.ticket, protocol) if self.has_tickets else None
        values = tuple([pack(name, value, protocol) for name, value in self.items()])
        in_numpy = isinstance(self._values[0], np.ndarray)
        beside = {name: pack(name, value, protocol) for name, value in self._beside.items()}
        kept = (self._schema, values, ticket, self._batch_size, in_numpy, beside, self._beside.origin)
        return _restore, (*kept, tuple(sorted(self._beside.time_major)))


def _restore(  # noqa: PLR0917 - as pickles have them
    schema: Schema,
    values: tuple[Any, ...],
    ticket: Any,
    batch_size: int | None,
    in_numpy: bool,
    beside: dict[str, Any] = NOTHING,
    origin: int = 0,
    time_major: tuple[str, ...] = (),
) -> Minibatch[Any]:
    make = unpack if in_numpy else unpack_tensor
    if len(values) != len(schema):
        raise ValueError(f"values: expected {len(schema)} ({', '.join(schema)}), got {len(values)}")
    tickets = None if ticket is None else make(ticket)
    made = [(name, make(value)) for name, value in beside.items()]
    rows = Beside(made, [origin] if origin else (), frozenset(time_major))
    return Minibatch(schema, tuple(map(make, values)), None, batch_size, tickets, rows)


def _form_of(value: object) -> str:
    """Return a field's shape, or the type of what `tree_map` put in its place."""
    shape = getattr(value, "shape", None)
    return str(tuple(shape)) if isinstance(shape, tuple) else type(value).__name__


def _to_tensor(value: object) -> torch.Tensor:
    import torch

    return value if isinstance(value, torch.Tensor) else tensor_of(np.asarray(value))
