# SPDX-License-Identifier: MIT
"""What a minibatch is made of that several fill, and what each of them sees of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastreplay import _core
from fastreplay.batch.form import Form
from fastreplay.schema.schema import Field

if TYPE_CHECKING:
    from collections.abc import Sequence


__all__ = ["SOURCE", "MixedForm"]

SOURCE = "source"
_WEIGHT, _PROBABILITY, _TICKET = "weight", "probability", "ticket"
_NUMBER = np.dtype(np.int64)


class MixedForm:
    """The form of a minibatch whose rows are of several forms that are alike.

    Alike they are but for what is said of how a row was drawn: the whole has weights where any of them has, and
    probabilities where all have.

    Args:
        forms: The members'.

    Raises:
        ValueError: They are not alike; the message names the field and both sides. Or a field is named `source`.

    Attributes:
        whole: The form.
        shares: Where the parts of each member's rows lie in it.
        source_part: The part that says whose a row is.
        weight_part: That of the weights, if there are any.
    """

    def __init__(self, forms: Sequence[Form]) -> None:
        for i, form in enumerate(forms):
            _check_alike(forms[0], form, i)
        schema = forms[0].schema
        if SOURCE in schema or SOURCE in schema.parts or any(SOURCE in form.beside for form in forms):
            raise ValueError(f"{SOURCE}: a field has this name, and the minibatch has one of its own")
        beside: dict[str, Field] = {}
        for name in (_WEIGHT, _PROBABILITY):
            has = [name in form.beside for form in forms]
            if all(has) or (name == _WEIGHT and any(has)):
                beside[name] = Field((), np.float32)
        beside |= {name: field for name, field in forms[0].beside.items() if name not in (_WEIGHT, _PROBABILITY)}
        beside[SOURCE] = Field((), _NUMBER)
        parts: dict[str, tuple[int, int, int, tuple[Any, ...]]] = {}
        for form in forms:
            for name, (source, row_bytes, field, conversion) in zip(_names(form), form.parts, strict=True):
                most = max(row_bytes, parts[name][1] if name in parts else 0)
                parts[name] = (source, most, field, conversion)
        parts[SOURCE] = (_core.PART_MADE, _NUMBER.itemsize, 0, _core.AS_STORED)
        given = [*schema, *beside, _TICKET]
        order = [*given, *(name for name in parts if name not in given)]
        self.whole = Form(schema, [parts[name] for name in order], beside, forms[0].time_major)
        places = {name: i for i, name in enumerate(order)}
        self.shares = [_core.BlockShare(form.parts, [places[name] for name in _names(form)]) for form in forms]
        self.source_part = places[SOURCE]
        self.weight_part = places.get(_WEIGHT, -1)


def _names(form: Form) -> list[str]:
    """Return a name for each part: what nobody is given has none of its own, and gets a number."""
    given = [*form.schema, *form.beside, _TICKET]
    return [*given, *(f"/{i}" for i in range(len(form.parts) - len(given)))]


def _check_alike(first: Form, form: Form, i: int) -> None:
    sides = [_said(first), _said(form)]
    for name in {**sides[0], **sides[1]}:
        one, other = (side.get(name, "none") for side in sides)
        if one != other:
            raise ValueError(f"{name}: expected {one} in the minibatches of member {i}, as of member 0, got {other}")
    if first.schema.names != form.schema.names or first.schema.parts != form.schema.parts:
        raise ValueError(f"members: expected fields that nest in the same way, in the same order, in 0 and {i}")


def _said(form: Form) -> dict[str, str]:
    """Return what each field is, and what is beside them but for how rows were drawn."""
    fields = {**form.schema, **{k: v for k, v in form.beside.items() if k not in (_WEIGHT, _PROBABILITY)}}
    return {
        name: f"{_given_out(field)}{' with steps first' if name in form.time_major else ''}"
        for name, field in fields.items()
    }


def _given_out(field: Field) -> str:
    given = f"{field.shape} {field.dtype}"
    return given if field._as_stored() is field else f"{given}, given out as {field}"
