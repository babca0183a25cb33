# SPDX-License-Identifier: MIT
"""HDF5 files in D4RL's layout, one dataset a column, and in robomimic's, one group a trajectory."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

from fastreplay.datasets.apart import ApartTable, Helpers
from fastreplay.datasets.chunks import DatasetRows
from fastreplay.datasets.table import ALIASES, ColumnForm, check_file, needed, reading
from fastreplay.support.threads import get_num_threads

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from fastreplay.datasets.table import Table

    Array = NDArray[Any]

__all__ = ["hdf5_table"]

# Of what a file has compressed together, kept uncompressed for the next rows of each column: of a D4RL file as h5py
# lays it out, and little enough for a dozen columns.
_CACHE_BYTES = 2 << 20
_INSTALL = "fastreplay[hdf5]"
_DEMO = "demo_"


def hdf5_table(path: str, mask: str | None) -> ApartTable:
    """Open a file.

    Args:
        path: The file.
        mask: robomimic's name for some of its trajectories; None for all.

    Raises:
        ImportError: h5py is not there.
        FileNotFoundError: The file is not.
        OSError: It cannot be read.
        ValueError: It is no HDF5 file, or of neither layout.
    """
    h5py = needed("h5py", "load_hdf5", _INSTALL)
    check_file(path)
    if not h5py.is_hdf5(path):
        raise ValueError(f"{path}: expected an HDF5 file")
    return ApartTable(lambda: _opened(h5py, path, mask))


def _opened(h5py: Any, path: str, mask: str | None) -> Table:
    with reading(path):
        file = h5py.File(path, "r", rdcc_nbytes=_CACHE_BYTES, rdcc_nslots=4001)
        try:
            return _table(h5py, path, file, mask)
        except BaseException:
            file.close()
            raise


def _table(h5py: Any, path: str, file: Any, mask: str | None) -> Table:
    demos = file.get("data")
    if isinstance(demos, h5py.Group) and any(os.fsdecode(name).startswith(_DEMO) for name in demos):
        return _DemoTable(h5py, path, file, mask)
    if mask is not None:
        raise ValueError(f"{path}: mask: expected None but for robomimic's layout, whose trajectories are data/demo_*")
    if isinstance(file.get("episode_0"), h5py.Group):
        raise ValueError(f"{path}: expected D4RL's layout or robomimic's, got Minari's: load_minari reads its folder")
    return _FlatTable(h5py, path, file)


def _form(h5py: Any, dataset: Any) -> ColumnForm | None:
    """Return what is known of a dataset; None of what is none, or has no rows."""
    if not isinstance(dataset, h5py.Dataset) or not dataset.shape:
        return None
    try:
        dtype = dataset.dtype
    except (TypeError, ValueError) as error:  # which NumPy has not
        return ColumnForm(dataset.shape[0], dataset.shape[1:], None, str(error))
    if dtype.kind not in "biufc" or dtype.shape:
        said = "text" if h5py.check_string_dtype(dtype) else str(dtype)
        return ColumnForm(dataset.shape[0], dataset.shape[1:], None, said)
    return ColumnForm(dataset.shape[0], dataset.shape[1:], dtype.newbyteorder("="))


def _datasets_in(h5py: Any, group: Any) -> list[str]:
    """Return the names of all datasets with rows below a group."""
    names: list[str] = []
    group.visititems(lambda name, each: names.append(os.fsdecode(name)) if _form(h5py, each) is not None else None)
    return names


class _FileTable:
    """What the tables of files have in common: the file, and threads that unpack what it compressed."""

    def __init__(self, h5py: Any, path: str, file: Any) -> None:
        self.path = path
        self._h5py, self._file = h5py, file
        self._helpers = Helpers(get_num_threads())

    def _rows(self, dataset: Any) -> DatasetRows:
        return DatasetRows(self._h5py, f"{self.path}: {dataset.name.lstrip('/')}", dataset, self._helpers)

    def _read(self, columns: Mapping[str, DatasetRows], out: Mapping[str, Array]) -> None:
        for name, array in out.items():
            columns[name].start(array)
        self._helpers.wait()
        for name in out:
            columns[name].finish()

    def close(self) -> None:
        """Do as `Table.close`."""
        self._helpers.close()
        self._file.close()


class _FlatTable(_FileTable):
    """A table of a file's datasets."""

    aliases = ALIASES
    tells_beginnings = False

    def __init__(self, h5py: Any, path: str, file: Any) -> None:
        super().__init__(h5py, path, file)
        self._found: dict[str, Any] = {}
        self._columns: dict[str, DatasetRows] = {}

    @property
    def block_rows(self) -> int:
        """Rows that are compressed together, of the widest column that is."""
        chunked = [each for each in self._found.values() if each.chunks]
        widest = max(chunked, key=lambda each: math.prod(each.shape[1:]) * each.dtype.itemsize, default=None)
        return 1 if widest is None else int(widest.chunks[0])

    def names(self) -> list[str]:
        """Do as `Table.names`."""
        with reading(self.path):
            return _datasets_in(self._h5py, self._file)

    def form(self, name: str) -> ColumnForm | None:
        """Do as `Table.form`."""
        with reading(self.path):
            if name not in self._found:
                dataset = self._file.get(name)
                if _form(self._h5py, dataset) is None:
                    return None
                self._found[name] = dataset
            return _form(self._h5py, self._found[name])

    def read(self, out: Mapping[str, Array], begins: Array) -> None:  # noqa: ARG002 - as a table is read
        """Do as `Table.read`."""
        with reading(self.path):
            for name in out:
                if name not in self._columns:
                    self._columns[name] = self._rows(self._found[name])
        self._read(self._columns, out)

    def rewind(self) -> None:
        """Do as `Table.rewind`."""
        self._columns = {}


class _DemoTable(_FileTable):
    """A table of the groups data/demo_*, by number."""

    aliases: Mapping[str, tuple[str, ...]] = {
        **{name: aliases for name, aliases in ALIASES.items() if name != "terminated"},
        "observation": ("obs",),
        "next_observation": ("next_obs",),
        "terminated": ("dones",),
    }
    tells_beginnings = True
    block_rows = 1

    def __init__(self, h5py: Any, path: str, file: Any, mask: str | None) -> None:
        super().__init__(h5py, path, file)
        there = [os.fsdecode(name) for name in file["data"]]
        names = [name for name in there if name.startswith(_DEMO)] if mask is None else self._masked(mask)
        numbered = [(int(name[len(_DEMO) :]), name) for name in names if name[len(_DEMO) :].isdecimal()]
        if len(numbered) < len(names):
            raise ValueError(f"{path}: expected groups data/demo_<number>, got {', '.join(names)}")
        self._demos = [file["data"][name] for _, name in sorted(numbered)]
        self._lengths = [self._length(demo) for demo in self._demos]
        self._demo = self._at = 0
        self._columns: dict[str, DatasetRows] = {}  # of the trajectory

    def _masked(self, mask: str) -> list[str]:
        names = self._file.get(f"mask/{mask}")
        if not isinstance(names, self._h5py.Dataset):
            there = ", ".join(map(os.fsdecode, self._file.get("mask") or ())) or "none"
            raise ValueError(f"{self.path}: mask/{mask}: there is no such mask; there are {there}")
        if names.ndim != 1 or (names.dtype.kind != "S" and not self._h5py.check_string_dtype(names.dtype)):
            raise ValueError(
                f"{self.path}: mask/{mask}: expected names of trajectories, got {names.shape} {names.dtype}"
            )
        found = [os.fsdecode(name) for name in names[()].tolist()]
        if len({*found}) < len(found):
            raise ValueError(f"{self.path}: mask/{mask}: expected each trajectory once, got {', '.join(found)}")
        for name in found:
            if not name.startswith(_DEMO) or name not in self._file["data"]:
                raise ValueError(f"{self.path}: mask/{mask}: expected names of trajectories, got {name!r}")
        return found

    def _length(self, demo: Any) -> int:
        form = _form(self._h5py, demo.get("actions")) if isinstance(demo, self._h5py.Group) else None
        if form is None:
            raise ValueError(f"{self.path}: {demo.name}/actions: expected a dataset of actions")
        return form.length

    def names(self) -> list[str]:
        """Do as `Table.names`."""
        with reading(self.path):
            return _datasets_in(self._h5py, self._demos[0]) if self._demos else []

    def form(self, name: str) -> ColumnForm | None:
        """Do as `Table.form`; every trajectory's is looked at."""
        with reading(self.path):
            return self._common(name)

    def _common(self, name: str) -> ColumnForm | None:
        first = _form(self._h5py, self._demos[0].get(name)) if self._demos else None
        if first is None:
            return None
        for demo, length in zip(self._demos, self._lengths, strict=True):
            form = _form(self._h5py, demo.get(name))
            if form is None or form[1:] != first[1:] or form.length != length:
                raise ValueError(
                    f"{self.path}: {demo.name}/{name}: expected {(length, *(first.shape or ()))} "
                    f"{first.dtype or first.said}, got {_said(form)}"
                )
        return ColumnForm(sum(self._lengths), *first[1:])

    def read(self, out: Mapping[str, Array], begins: Array) -> None:
        """Do as `Table.read`."""
        done = 0
        while done < len(begins):
            demo, length = self._demos[self._demo], self._lengths[self._demo]
            count = min(length - self._at, len(begins) - done)
            if count:
                begins[done] = self._at == 0
                with reading(self.path):
                    self._columns = self._columns or {name: self._rows(demo[name]) for name in out}
                self._read(self._columns, {name: array[done : done + count] for name, array in out.items()})
            done += count
            self._at += count
            if self._at == length:
                self._demo, self._at, self._columns = self._demo + 1, 0, {}

    def rewind(self) -> None:
        """Do as `Table.rewind`."""
        self._demo, self._at, self._columns = 0, 0, {}


def _said(form: ColumnForm | None) -> str:
    return "nothing" if form is None else f"{(form.length, *(form.shape or ()))} {form.dtype or form.said}"
