# SPDX-License-Identifier: MIT
"""What a file says in JSON, taken entry by entry: each is checked, and a message names its place."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Said", "parsed"]

_MOST = 2**63 - 1


class Said:
    """A JSON object that nobody has checked.

    Args:
        value: What is there.
        path: What a message calls it.
    """

    def __init__(self, value: object, path: str) -> None:
        self.path = path
        if not isinstance(value, dict):
            self.refuse("an object", value)
        self.entries: dict[str, Any] = value

    def refuse(self, expected: str, got: object) -> NoReturn:
        """Raise ValueError: something else was expected here."""
        text = repr(got)
        raise ValueError(f"{self.path}: expected {expected}, got {text if len(text) < 80 else text[:77] + '...'}")

    def _entry(self, key: str, expected: str, kind: type) -> Any:
        value = self.entries.get(key)
        if type(value) is not kind:
            Said._at(self.path, key).refuse(expected, value)
        return value

    @staticmethod
    def _at(path: str, key: str) -> Said:
        return Said({}, f"{path}: {key}")

    def integer(self, key: str, low: int = 0, high: int = _MOST) -> int:
        """Return an integer in [low, high]."""
        value = self.entries.get(key)
        if type(value) is not int or not low <= value <= high:
            Said._at(self.path, key).refuse(f"an integer in [{low}, {high}]", value)
        return value

    def number(self, key: str, low: float) -> float:
        """Return a finite number from `low` on."""
        value: Any = self.entries.get(key)
        if type(value) not in (int, float) or not low <= value <= sys.float_info.max:
            Said._at(self.path, key).refuse(f"a number from {low} on", value)
        return float(value)

    def flag(self, key: str) -> bool:
        """Return a bool."""
        return self._entry(key, "true or false", bool)  # type: ignore[no-any-return]

    def text(self, key: str) -> str:
        """Return a string."""
        return self._entry(key, "a string", str)  # type: ignore[no-any-return]

    def one_of(self, key: str, values: tuple[Any, ...]) -> Any:
        """Return one of some values."""
        value = self.entries.get(key)
        if not any(value is each or (type(value) is type(each) and value == each) for each in values):
            Said._at(self.path, key).refuse(" or ".join(map(repr, values)), value)
        return value

    def below(self, key: str) -> Said:
        """Return an object."""
        return Said(self._entry(key, "an object", dict), f"{self.path}: {key}")

    def named(self) -> dict[str, Said]:
        """Return all entries, which are objects, by name."""
        return {key: self.below(key) for key in self.entries}

    def objects(self, key: str) -> Iterator[Said]:
        """Yield the objects of a list."""
        for i, value in enumerate(self._entry(key, "a list", list)):
            yield Said(value, f"{self.path}: {key}[{i}]")

    def integers(self, key: str, low: int = 0, high: int = _MOST) -> list[int]:
        """Return a list of integers in [low, high]."""
        values: list[Any] = self._entry(key, "a list", list)
        for i, value in enumerate(values):
            if type(value) is not int or not low <= value <= high:
                Said._at(self.path, f"{key}[{i}]").refuse(f"an integer in [{low}, {high}]", value)
        return values

    def generator(self, key: str) -> dict[str, Any]:
        """Return the state of a generator: its key, of two numbers, and its calls."""
        said = self.below(key)
        numbers = said.integers("key", 0, 2**64 - 1)
        if len(numbers) != 2:
            said.refuse("a key of two numbers", numbers)
        return {"key": numbers, "calls": said.integer("calls")}

    def texts(self, key: str) -> list[str]:
        """Return a list of strings."""
        values: list[Any] = self._entry(key, "a list", list)
        return [Said({"": value}, f"{self.path}: {key}[{i}]").text("") for i, value in enumerate(values)]


def parsed(data: bytes, path: str) -> Said:
    """Return the JSON object in some bytes.

    Raises:
        ValueError: There is none.
    """
    try:
        return Said(json.loads(data, parse_constant=_no_constant), path)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"expected numbers, got {name}")
