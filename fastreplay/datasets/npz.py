# SPDX-License-Identifier: MIT
"""NumPy's .npz files: each column is streamed out of the archive. No pickles are read."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from fastreplay.datasets.table import ALIASES, ColumnForm, check_file, reading

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["NpzTable"]

_SUFFIX = ".npy"
_MOST_READ = 1 << 18  # bytes at once, that are copied from there
_DAMAGE = (zipfile.BadZipFile, zlib.error, tokenize.TokenError)  # the last of headers, which NumPy reads as Python's


class NpzTable:
    """A table of an archive's arrays.

    Raises:
        FileNotFoundError: There is none.
        OSError: It cannot be read.
        ValueError: It is no such archive, or damaged.
    """

    aliases = ALIASES
    tells_beginnings = False
    block_rows = 1

    def __init__(self, path: str) -> None:
        self.path = path
        check_file(path)
        try:
            with reading(path):
                self._archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path}: expected a .npz file: {error}") from error
        self._members: dict[str, str] = {}
        for name in self._archive.namelist():
            if name.endswith(_SUFFIX):
                column = name.removesuffix(_SUFFIX)
                if column in self._members:
                    self._archive.close()
                    raise ValueError(f"{path}: {column}: expected each column once, got two of this name")
                self._members[column] = name
        self._columns: dict[str, _Member] = {}

    def names(self) -> list[str]:
        """Do as `Table.names`."""
        return list(self._members)

    def form(self, name: str) -> ColumnForm | None:
        """Do as `Table.form`."""
        return self._column(name).form if name in self._members else None

    def read(self, out: Mapping[str, Array], begins: Array) -> None:  # noqa: ARG002 - as a table is read
        """Do as `Table.read`."""
        for name, array in out.items():
            with reading(f"{self.path}: {name}", *_DAMAGE):
                self._column(name).read(array)

    def rewind(self) -> None:
        """Do as `Table.rewind`."""
        for column in self._columns.values():
            column.close()
        self._columns = {}

    def close(self) -> None:
        """Do as `Table.close`."""
        self.rewind()
        self._archive.close()

    def _column(self, name: str) -> _Member:
        if name not in self._columns:
            with reading(f"{self.path}: {name}", ValueError, *_DAMAGE):
                self._columns[name] = self._opened(name)
        return self._columns[name]

    def _opened(self, name: str) -> _Member:
        stream = self._archive.open(self._members[name])
        try:
            return _Member(stream)
        except BaseException:
            stream.close()  # else the archive's file stays open, until the error is forgotten
            raise


class _Member:
    """One array of an archive, read from its beginning.

    Raises:
        ValueError: It is no array, or one with Python objects.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        major, _ = np.lib.format.read_magic(stream)
        if major not in (1, 2):  # 3 is for names of fields in records, of which a column has none
            raise ValueError(f"expected an array of numbers, got one of format {major}")
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(stream)
        if any(length < 0 for length in shape):
            raise ValueError(f"expected a shape, got {shape}")
        if dtype.kind not in "biufc" or dtype.shape or not shape:
            self.form = ColumnForm(shape[0] if shape else 0, shape[1:], None, f"{dtype} {shape}")
            return
        self.form = ColumnForm(shape[0], shape[1:], dtype.newbyteorder("="))
        self._dtype = dtype
        self._rest = shape[0]
        self._whole: Array | None = None
        # Columns of such an array lie one after another: it is not to be had by rows.
        self._is_whole = is_fortran and math.prod(shape[1:]) > 1

    def read(self, out: Array) -> None:
        """Fill an array with the next rows."""
        if self._is_whole:
            self._read_whole(out)
        else:
            self._fill(out)
            if not self._dtype.isnative:
                out.byteswap(inplace=True)
        self._rest -= len(out)
        if self._rest == 0 and self._stream.read(1):  # which compares the checksum, too
            raise EOFError("there is more than its header says")

    def _read_whole(self, out: Array) -> None:
        if self._whole is None:
            flat = np.empty(self._rest * math.prod(self.form.shape or ()), self.form.dtype)
            self._fill(flat)
            if not self._dtype.isnative:
                flat.byteswap(inplace=True)
            self._whole = flat.reshape((self._rest, *(self.form.shape or ())), order="F")
        start = len(self._whole) - self._rest
        out[:] = self._whole[start : start + len(out)]

    def _fill(self, out: Array) -> None:
        rest = memoryview(out.reshape(-1).view(np.uint8))  # type: ignore[arg-type] # not of Python 3.11's types
        while rest:
            data = self._stream.read(min(len(rest), _MOST_READ))
            if not data:
                raise EOFError("it ends too early")
            rest[: len(data)] = data
            rest = rest[len(data) :]

    def close(self) -> None:
        """Close the stream."""
        self._stream.close()
