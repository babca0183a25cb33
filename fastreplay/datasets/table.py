# SPDX-License-Identifier: MIT
"""What every kind of data is read as: a table of steps, trajectory after trajectory. Must not know buffers."""

from __future__ import annotations

import importlib
import os
import stat
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["ALIASES", "ColumnForm", "OpenTable", "Pieces", "Table", "TableHere", "check_file", "needed", "reading"]

ResultT = TypeVar("ResultT")

# What libraries raise of damaged files, each where it stumbles.
_DAMAGE = (RuntimeError, LookupError, ArithmeticError, EOFError, UnicodeError)

# What libraries call the parts of a transition, where it is never anything else.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "observation": ("observations",),
    "action": ("actions",),
    "reward": ("rewards",),
    "next_observation": ("next_observations",),
    "terminated": ("terminations", "terminals"),
    "truncated": ("truncations", "timeouts"),
}


class ColumnForm(NamedTuple):
    """What is known of a column before it is read.

    Attributes:
        length: Rows.
        shape: Of a row; None where only the rows tell.
        dtype: In native byte order; None of what is no number.
        said: What it is then, or what to do with it.
    """

    length: int
    shape: tuple[int, ...] | None
    dtype: np.dtype[Any] | None
    said: str = ""


class Table(Protocol):
    """TableSteps of trajectories, one after another, as columns that are read from the first row to the last.

    Attributes:
        path: What messages call it.
        aliases: What it calls the parts of a transition, in the order in which they are looked for.
        tells_beginnings: Whether it knows where trajectories begin, whatever its flags say.
    """

    path: str
    aliases: Mapping[str, tuple[str, ...]]
    tells_beginnings: bool

    @property
    def block_rows(self) -> int:
        """A number of rows of which multiples are read best."""

    def names(self) -> list[str]:
        """Return the names of the columns."""

    def form(self, name: str) -> ColumnForm | None:
        """Return what is known of a column; None where there is none of this name."""

    def read(self, out: Mapping[str, Array], begins: Array) -> None:
        """Fill arrays (n, *shape) with the next n rows, and mark those (n,) that begin a trajectory.

        Raises:
            OSError, TypeError, ValueError: They cannot be read, or are not what the form says.
        """

    def rewind(self) -> None:
        """Let the next row be the first, and be read as other columns than before, where that is asked for."""

    def close(self) -> None:
        """Let go of files."""


class OpenTable(Protocol):
    """A table that somebody reads, wherever it is.

    Attributes:
        path: What messages call it.
    """

    path: str

    def ask(self, question: Callable[[Table], ResultT]) -> ResultT:
        """Return what a call makes of the table."""

    def start(self, out: Mapping[str, Array], begins: Array) -> Callable[[], object]:
        """Begin with `Table.read`. What is returned waits until it is done, and raises what it raised."""

    def close(self) -> None:
        """Do as `Table.close`, once what was begun is done."""


class TableHere:
    """A table that is read when it is told to, by who tells it."""

    def __init__(self, table: Table) -> None:
        self.path, self._table = table.path, table

    def ask(self, question: Callable[[Table], ResultT]) -> ResultT:
        """Do as `OpenTable.ask`."""
        return question(self._table)

    def start(self, out: Mapping[str, Array], begins: Array) -> Callable[[], object]:
        """Do as `OpenTable.start`; who waits for it, does it."""
        return partial(self._table.read, out, begins)

    def close(self) -> None:
        """Do as `Table.close`."""
        self._table.close()


class Pieces:
    """Rows that come in pieces of any length, given out as they are asked for.

    Args:
        pieces: Columns by name, of as many rows each, and which of the rows begin a trajectory.
        num_rows: Of all pieces together.
    """

    def __init__(self, pieces: Iterator[tuple[Mapping[str, Array], Array]], num_rows: int) -> None:
        self._pieces, self._rest = pieces, num_rows
        self._columns: Mapping[str, Array] = {}
        self._begins: Array = np.empty(0, bool)
        self._at = 0

    def read(self, out: Mapping[str, Array], begins: Array) -> None:
        """Do as `Table.read`.

        Raises:
            ValueError: There are fewer rows than was said, or more.
        """
        done = 0
        while done < len(begins):
            if self._at == len(self._begins) and not self._turn():
                raise ValueError(f"expected {self._rest} rows more, and there are none")
            count = min(len(begins) - done, len(self._begins) - self._at)
            for name, array in out.items():
                array[done : done + count] = self._columns[name][self._at : self._at + count]
            begins[done : done + count] = self._begins[self._at : self._at + count]
            done, self._at, self._rest = done + count, self._at + count, self._rest - count
        while not self._rest and self._at == len(self._begins) and self._turn():
            continue
        if not self._rest and self._at < len(self._begins):
            raise ValueError("expected no more rows, as was said, and there are some")

    def _turn(self) -> bool:
        """Go on to the next piece, if there is one."""
        try:
            self._columns, self._begins = next(self._pieces)
        except StopIteration:
            return False
        self._at = 0
        return True


def check_file(path: str) -> None:
    """Refuse what cannot be read, and what is no file: whoever opens a pipe waits for who writes into it.

    Raises:
        OSError: The system's own, of a file that cannot be opened.
        ValueError: It is a pipe, a socket or a device.
    """
    kind = os.stat(path).st_mode  # noqa: PTH116 - it takes no import of pathlib
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise ValueError(f"{path}: expected a file, got a pipe, a socket or a device")
    with open(path, "rb"):  # noqa: PTH123
        pass


@contextmanager
def reading(path: str, *damage: type[Exception]) -> Iterator[None]:
    """Let whatever a library raises within be an error that names the file.

    Args:
        path: Of the file.
        *damage: What else it raises of a damaged one.

    Raises:
        OSError: The system cannot read it.
        ValueError: It is damaged.
    """
    kinds: tuple[type[Exception], ...] = (*_DAMAGE, *damage)
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        if error.errno is not None:
            raise OSError(error.errno, error.strerror, path) from error
        raise ValueError(f"{path}: the file is damaged: {error}") from error
    except kinds as error:
        raise ValueError(f"{path}: the file is damaged: {error}") from error


def needed(module: str, what: str, install: str) -> Any:
    """Import a library that only some need.

    Raises:
        ImportError: It is not there; the message says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{what} needs {module.partition('.')[0]}: pip install '{install}' ({error})") from error
