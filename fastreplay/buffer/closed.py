# SPDX-License-Identifier: MIT
"""What buffers and samplers are once they were closed: of a class of which every call says so."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from inspect import getattr_static
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["closing"]

_SPECIAL = ("__len__", "__getitem__", "__enter__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")


@contextmanager
def closing(these: Sequence[object]) -> Iterator[None]:
    """Let every call of some objects raise: for good, unless what is done meanwhile does."""
    kinds: list[type] = [one.__class__ for one in these]
    try:
        for one, kind in zip(these, kinds, strict=True):
            one.__class__ = _closed(kind)
        yield
    except BaseException:
        for one, kind in zip(these, kinds, strict=True):
            one.__class__ = kind
        raise


@cache
def _closed(kind: type) -> type:
    own: dict[str, Any] = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    for name in dir(kind):
        there = getattr_static(kind, name)
        if (name[0] == "_" and name not in _SPECIAL) or isinstance(there, (classmethod, staticmethod)):
            continue
        refusal = _refusal(kind, name)
        own[name] = refusal if callable(there) else property(refusal, refusal)
    own |= dict.fromkeys(("close", "__exit__", "_begin_in_child", "_rekey"), _nothing)
    own["__repr__"] = lambda _: f"{kind.__name__}(closed)"
    return type(kind.__name__, (kind,), own)


def _refusal(kind: type, name: str) -> Callable[..., NoReturn]:
    def refuse(*_given: object, **_named: object) -> NoReturn:
        raise RuntimeError(f"{name}: the {kind.__name__} was closed")

    return refuse


def _nothing(*_given: object) -> None:
    """Do what is left to do."""
