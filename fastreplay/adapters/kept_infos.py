# SPDX-License-Identifier: MIT
"""Infos of steps on their way into a checkpoint and back: as JSON, where they are plain data. It knows no library.

What JSON has is as it is there. Of the rest an object says what it is: {"dict": {...}}, {"tuple": [...]},
{"float": "nan"}, and {"dtype": "<f4", "shape": [3], "data": "<hexadecimal>"} of NumPy's arrays and, where the shape is
null, scalars.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from fastreplay.checkpoint.said import Said, parsed

if TYPE_CHECKING:
    from fastreplay.adapters.columns import Array

__all__ = ["bytes_of_infos", "infos_of"]

_INTEGERS = range(-(2**63), 2**64)
_FLOATS = ("nan", "inf", "-inf")
_NUMBERS = "biufc"  # kinds of dtypes
_DTYPE = re.compile(rf"[<>|=]?[{_NUMBERS}]\d{{1,2}}")
_PATH = "attached: infos"


def bytes_of_infos(infos: Array) -> Array:
    """Return infos (rows, n_envs) as bytes (n,).

    Raises:
        ValueError: One holds what is no plain data; the message names its place and key.
    """
    try:
        said = [
            [_said(info, f"infos[{row}, {env}]") for env, info in enumerate(step)] for row, step in enumerate(infos)
        ]
    except RecursionError:
        raise ValueError("infos: expected dicts and lists that do not hold themselves") from None
    return np.frombuffer(json.dumps({"infos": said}, allow_nan=False, separators=(",", ":")).encode(), np.uint8)


def _said(value: Any, place: str) -> Any:
    kind = type(value)
    if value is None or kind in (bool, str) or (kind is int and value in _INTEGERS):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if kind in (list, tuple):
        values = [_said(each, f"{place}[{i}]") for i, each in enumerate(value)]
        return values if kind is list else {"tuple": values}
    if kind is dict and all(type(key) is str for key in value):
        return {"dict": {key: _said(each, f"{place}[{key!r}]") for key, each in value.items()}}
    if (kind is np.ndarray or issubclass(kind, np.generic)) and value.dtype.kind in _NUMBERS:
        shape = list(value.shape) if kind is np.ndarray else None
        return {"dtype": value.dtype.str, "shape": shape, "data": value.tobytes().hex()}
    raise ValueError(
        f"{place}: expected what a checkpoint can hold (None, bools, integers of 64 bits, floats, strings, NumPy's "
        "numbers and arrays of them, and lists, tuples and dicts by string of these), "
        f"got {kind.__name__}; pickles hold any object"
    )


def infos_of(data: Array, num_rows: int, num_envs: int) -> Array:
    """Return the infos (rows, n_envs) that bytes are of.

    Raises:
        ValueError: They are of none, or of others.
    """
    said = parsed(data.tobytes(), _PATH)
    steps = said.entries.get("infos")
    try:
        infos = _value(steps)
        is_whole = len(infos) == num_rows and all(
            type(step) is list and len(step) == num_envs and all(type(info) is dict for info in step) for step in infos
        )
    except (TypeError, RecursionError):
        is_whole = False
    if not is_whole:
        said.refuse(f"infos of {num_rows} steps of {num_envs} environments", steps)
    made = np.empty((num_rows, num_envs), object)
    for row, step in enumerate(infos):
        for env, info in enumerate(step):
            made[row, env] = info
    return made


def _value(said: Any) -> Any:
    if isinstance(said, list):
        return [_value(each) for each in said]
    if not isinstance(said, dict):
        return said
    if said.keys() == {"dict"} and type(said["dict"]) is dict:
        return {key: _value(each) for key, each in said["dict"].items()}
    if said.keys() == {"tuple"} and type(said["tuple"]) is list:
        return tuple(map(_value, said["tuple"]))
    if said.keys() == {"float"} and said["float"] in _FLOATS:
        return float(said["float"])
    if said.keys() != {"dtype", "shape", "data"}:
        _refuse(said)
    return _numbers(Said(said, _PATH))


def _numbers(said: Said) -> Any:
    name, shape = said.text("dtype"), said.entries["shape"]
    sizes = [] if shape is None else said.integers("shape")
    try:
        if _DTYPE.fullmatch(name) is None:
            raise ValueError(name)
        dtype, data = np.dtype(name), bytes.fromhex(said.text("data"))
        if len(data) != math.prod(sizes) * dtype.itemsize or (dtype.kind == "b" and data.strip(b"\0\1")):
            raise ValueError(name)
        array = np.frombuffer(data, dtype).reshape(sizes).copy()
    except (TypeError, ValueError):
        _refuse(said.entries)
    return array[()] if shape is None else array


def _refuse(value: Any) -> NoReturn:
    Said({}, _PATH).refuse("infos as they are saved", value)
