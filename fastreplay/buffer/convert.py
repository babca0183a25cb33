# SPDX-License-Identifier: MIT
"""The general way from a Python value to rows of a field: checks, casts, messages.

The insert path (insert.pyx) takes the common cases itself and comes here for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from fastreplay.batch.minibatch import Minibatch
from fastreplay.support.bfloat16 import BFLOAT16, array_of_bfloat16, kind_of
from fastreplay.support.checks import imported, is_masked

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from fastreplay.schema.schema import Field, Schema

# A cast may climb this ladder and never descend it.
_KIND_RANK = {"b": 0, "u": 1, "i": 1, "f": 2, "c": 3}
# What is given beside fields, to buffers that have what it is about.
_OF_LANES = "is for buffers made with lanes="
_NEEDS = {"lane": _OF_LANES, "lanes": _OF_LANES, "mask": _OF_LANES, "priority": "is for buffers made with priorities="}
# What a minibatch says of how its rows were drawn, which is not theirs.
_OF_DRAWS = frozenset(["weight", "probability", "source"])
_NUMBERS = frozenset([bool, int, float, complex, *np.sctypeDict.values()])
_BUILTIN = frozenset([bool, int, float, complex, list, tuple])


def bind_by_name(schema: Schema, positional: Sequence[object], named: Mapping[str, object]) -> tuple[object, ...]:
    """Put arguments into schema order, unfolding nested ones, or one mapping that has them all.

    Raises:
        TypeError: A field is unknown, missing, surplus or given twice; the message names it.
    """
    if len(positional) == 1 and has_fields(positional[0]):
        fields = _items(schema, positional[0])
        if not _is_node(schema, fields):
            return _bind(schema, [*fields.items(), *named.items()])
    targets = list(schema.parts) if _are_nodes(schema, positional, named) else list(schema)
    if len(positional) > len(targets):
        raise TypeError(f"expected at most {len(targets)} fields ({', '.join(targets)}), got {len(positional)}")
    return _bind(schema, [*zip(targets, positional, strict=False), *named.items()])


def _bind(schema: Schema, arguments: Sequence[tuple[str, object]]) -> tuple[object, ...]:
    values: dict[str, object] = {}
    for name, value in arguments:
        if name not in schema.parts_by_name:
            hint = f", and {name}= {_NEEDS[name]}" if name in _NEEDS else ""
            raise TypeError(f"unknown field {name!r}; expected {', '.join(schema)}{hint}")
        for field, field_value in schema.parts_by_name[name].unfold(value, schema.parts_by_name):
            if field in values:
                raise TypeError(f"field {field!r} was given twice")
            values[field] = field_value
    for name in schema:
        if name not in values:
            raise TypeError(f"missing field {name!r}; expected {', '.join(schema)}")
    return tuple(values[name] for name in schema)


def has_fields(value: object) -> bool:
    """Tell whether a value has items by name: a Mapping, a minibatch, what else has `keys`."""
    return isinstance(value, Mapping) or (hasattr(type(value), "keys") and hasattr(type(value), "__getitem__"))


def _items(schema: Schema, value: Any) -> dict[str, object]:
    items = {name: value[name] for name in value.keys()}  # noqa: SIM118 - iterating a minibatch gives its values
    if isinstance(value, Minibatch):
        _check_is_as_stored(value)
    return items | _made(schema, value) if isinstance(value, Minibatch) else items


def _check_is_as_stored(batch: Minibatch[Any]) -> None:
    """Refuse rows that were converted on their way out: what they were is not known any more.

    Raises:
        ValueError: They were.
    """
    for name, field in batch.schema.items():
        if field._as_stored() is not field:
            raise ValueError(
                f"{name}: expected a minibatch as it is stored, of gather() or buffer[i], got one of {field}"
            )


def _made(schema: Schema, batch: Minibatch[Any]) -> dict[str, object]:
    """Return what a rule made of several transitions beside a minibatch's fields, which has to go somewhere.

    Raises:
        ValueError: The schema has no such field.
    """
    made = {name: value for name, value in batch._beside.items() if name in schema}
    for name in batch._beside:
        if name not in made and name not in _OF_DRAWS:
            raise ValueError(
                f"{name}: expected a minibatch of transitions, or a field {name!r}, as its rows are what a follow made "
                "of several"
            )
    return made


def _is_node(schema: Schema, values: Mapping[str, object]) -> bool:
    """Tell whether the one mapping that was given is the first node of a transition, a dict, and not all of it."""
    first = next(iter(schema.parts.values()), None)
    if first is None or first.is_field:  # which is an array, and no mapping
        return False
    try:
        list(first.unfold(values, schema.parts_by_name))
    except TypeError:
        return not any(name in schema.parts_by_name for name in values)
    return True


def _are_nodes(schema: Schema, positional: Sequence[object], named: Mapping[str, object]) -> bool:
    """Tell whether positional arguments are dicts and tuples of fields where those are due, or single fields."""
    pairs = list(zip(schema.parts.values(), positional, strict=False))
    nested = [(node, value) for node, value in pairs if not node.is_field]
    if any(isinstance(value, Mapping) for _, value in nested):
        return True
    if len(positional) > len(schema.parts):
        return False
    # A list may stand for a tuple, or be one field's value; it is this where there are fields enough.
    forms = (tuple, list) if len(positional) + len(named) < len(schema) else (tuple,)
    return any(isinstance(value, forms) for _, value in nested)


def as_rows(schema: Schema, index: int, value: object, num_rows: int | None) -> NDArray[np.generic]:
    """Return a copy of `value` that nobody else has, as a C-contiguous array of the field's dtype.

    Args:
        schema: Where the field is described.
        index: The field's place in the schema.
        value: Anything that NumPy makes an array of, or a torch tensor on the CPU.
        num_rows: Length of the axis before the field's shape; None where there is no such axis, -1
            where any length will do.

    Raises:
        TypeError: The value's kind does not fit the field's dtype, or it is no array at all.
        ValueError: The shape differs, or an integer does not fit.
    """
    name = schema.names[index]
    field = schema[name]
    array = _as_array(name, value, field)
    if array.shape != expected_shape(field, array.shape, num_rows):
        what = array.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise wrong_shape(
            schema, index, array.shape, num_rows, "" if kind_of(array.dtype) in "biufc" else f" of {what}"
        )
    if array.dtype != field.dtype:
        return np.ascontiguousarray(_cast(name, array, field.dtype)).reshape(array.shape)
    # What NumPy made of these just now is a copy already.
    return array if type(value) in _BUILTIN else np.array(array, order="C")


def expected_shape(field: Field, given: tuple[int, ...], num_rows: int | None) -> tuple[int | str, ...]:
    """Return the shape that a value of a field must have; "n" stands for a length that is not known."""
    if num_rows is None:
        return field.shape
    if num_rows >= 0:
        return (num_rows, *field.shape)
    return (given[0] if given else "n", *field.shape)


def wrong_shape(schema: Schema, index: int, given: tuple[int, ...], num_rows: int | None, of: str = "") -> ValueError:
    """Return the error that names the field, the shape expected and the one that came, and `of` what, if no numbers."""
    name = schema.names[index]
    expected = ", ".join(map(str, shape := expected_shape(schema[name], given, num_rows)))
    return ValueError(f"{name}: expected shape ({expected}{',' if len(shape) == 1 else ''}), got {given}{of}")


def _as_array(name: str, value: object, field: Field) -> NDArray[np.generic]:
    value = _in_numpy(name, value, field)
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: expected shape {field.shape} of {field.dtype}, got {value!r}: {error}") from None
    except Exception as error:  # of the value's own code
        if hasattr(error, "add_note"):
            error.add_note(f"{name}: this came of its conversion to {field.dtype} {field.shape}")
        raise
    if array.dtype == object and kind_of(field.dtype) in "iufc" and all(isinstance(item, int) for item in array.flat):
        return _from_large_integers(name, array, field)
    # A list of nothing has no dtype of its own.
    return array.astype(field.dtype) if array.size == 0 and not isinstance(value, np.ndarray) else array


def _in_numpy(name: str, value: object, field: Field) -> object:
    """Return the value with arrays in the place of tensors, also those in lists; refuse masked entries."""
    if isinstance(value, (list, tuple)):
        if _NUMBERS.issuperset(map(type, value)):
            return value
        return [_in_numpy(name, item, field) for item in value]
    torch = imported("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _from_torch(name, value, field)
    if is_masked(value):
        raise ValueError(f"{name}: expected every entry, got masked ones in {value!r}")
    return value


def _from_large_integers(name: str, array: NDArray[np.generic], field: Field) -> NDArray[np.generic]:
    """Convert Python integers of which some fit no NumPy integer, to the field's dtype or one that is cast to it."""
    try:
        return array.astype(np.float64 if field.dtype.name == BFLOAT16 else field.dtype)
    except OverflowError:
        largest = max(array.ravel().tolist(), key=abs)
        raise ValueError(f"{name}: expected a value that fits {field.dtype}, got {largest}") from None


def _from_torch(name: str, tensor: torch.Tensor, field: Field) -> NDArray[np.generic]:
    if tensor.device.type != "cpu":
        raise TypeError(f"{name}: expected {field.dtype}, got a tensor on device {tensor.device}; move it to the CPU")
    plain = tensor.detach().resolve_conj().resolve_neg()
    try:
        if field.dtype.name == BFLOAT16 == str(plain.dtype)[len("torch.") :]:
            return array_of_bfloat16(plain)
        return cast("NDArray[np.generic]", plain.numpy())
    except (TypeError, RuntimeError):
        raise TypeError(
            f"{name}: expected {field.dtype}, got a {tensor.dtype} {tensor.layout} tensor, which NumPy cannot "
            "hold; convert it first"
        ) from None


def _cast(name: str, array: NDArray[np.generic], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    given = array.dtype
    kind = kind_of(given)
    if kind not in _KIND_RANK:
        raise TypeError(f"{name}: expected {dtype}, got {given}")
    if _KIND_RANK[kind] > _KIND_RANK[kind_of(dtype)]:
        raise TypeError(f"{name}: expected {dtype}, got {given}, a cast that would lose its kind")
    if dtype.kind in "iu" and given.kind in "iu" and array.size:
        _check_integers_fit(name, array, dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(dtype)


def _check_integers_fit(name: str, array: NDArray[np.generic], dtype: np.dtype[np.generic]) -> None:
    limits = np.iinfo(cast("np.dtype[np.integer]", dtype))
    integers = cast("NDArray[np.integer]", array)
    for value in (int(integers.min()), int(integers.max())):
        if not limits.min <= value <= limits.max:
            raise ValueError(f"{name}: expected a value that fits {dtype}, got {value}")
