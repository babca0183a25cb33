# SPDX-License-Identifier: MIT
"""Datasets of Minari, read and written by its own library."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np

from fastreplay.datasets.apart import done_apart
from fastreplay.datasets.arrays import flattened, form_of
from fastreplay.datasets.table import ALIASES, ColumnForm, Pieces, needed
from fastreplay.support.bfloat16 import BFLOAT16

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from fastreplay.schema import Field, Schema
    from fastreplay.schema.structure import Node

    Array = NDArray[Any]

__all__ = ["MinariTable", "box_of", "minari_of", "write_minari"]

_INSTALL = "fastreplay[minari]"
_WRITTEN_BYTES = 16 << 20
_PARTS = ("observations", "actions", "rewards", "terminations", "truncations")


def minari_of(what: str) -> Any:
    """Import Minari.

    Raises:
        ImportError: It is not there.
    """
    return needed("minari", what, _INSTALL)


class MinariTable:
    """A table of a dataset's steps; T steps have T + 1 observations, so that each has its next.

    Args:
        dataset: It, or its name.

    Raises:
        ImportError: Minari is not there.
        FileNotFoundError: There is no dataset of this name on this machine.
        TypeError: It is no dataset.
    """

    aliases = ALIASES
    tells_beginnings = True
    block_rows = 1

    def __init__(self, dataset: Any) -> None:
        minari = minari_of("load_minari")
        if isinstance(dataset, str):
            dataset = minari.load_dataset(dataset)
        if not isinstance(dataset, minari.MinariDataset):
            raise TypeError(f"dataset: expected a MinariDataset or its name, got {type(dataset).__name__}")
        self.path, self._dataset = str(dataset.id), dataset
        self._num_rows = int(dataset.total_steps)
        self._first = self._columns(next(iter(dataset))) if len(dataset) else {}
        self._pieces: Pieces | None = None

    def names(self) -> list[str]:
        """Do as `Table.names`."""
        return list(self._first)

    def form(self, name: str) -> ColumnForm | None:
        """Do as `Table.form`; the first trajectory tells."""
        array = self._first.get(name)
        return None if array is None else form_of(array)._replace(length=self._num_rows)

    def read(self, out: Mapping[str, Array], begins: Array) -> None:
        """Do as `Table.read`."""
        if self._pieces is None:
            self._pieces = Pieces(self._trajectories(list(out)), self._num_rows)
        self._pieces.read(out, begins)

    def rewind(self) -> None:
        """Do as `Table.rewind`."""
        self._pieces = None

    def close(self) -> None:
        """Do as `Table.close`."""

    def _trajectories(self, names: list[str]) -> Iterator[tuple[Mapping[str, Array], Array]]:
        for each in self._dataset.iterate_episodes():
            columns = self._columns(each)
            for name in names:
                array, first = columns.get(name), self._first[name]
                if array is None or array.shape[1:] != first.shape[1:] or array.dtype != first.dtype:
                    got = "nothing" if array is None else f"{array.shape[1:]} {array.dtype}"
                    raise ValueError(f"episode {each.id}: {name}: expected {first.shape[1:]} {first.dtype}, got {got}")
            begins = np.zeros(len(each.rewards), bool)
            begins[:1] = True
            yield columns, begins

    def _columns(self, each: Any) -> dict[str, Array]:
        """Return the columns of a trajectory, a row a step."""
        count, path = len(each.rewards), f"{self.path}: episode {each.id}"
        parts = {name: getattr(each, name) for name in _PARTS} | ({"infos": each.infos} if each.infos else {})
        found: dict[str, Array] = {}
        for name, array in flattened(path, parts).items():
            part = name.split("/")[0]
            # What a step informed of stands one row later, where that which the reset informed of is the first.
            has_one_more = part == "observations" or (part == "infos" and len(array) == count + 1)
            if len(array) != count + has_one_more:
                raise ValueError(f"{path}: {name}: expected {count + has_one_more} rows, got {len(array)}")
            found[name] = array[:count] if part == "observations" else array[int(has_one_more) :]
            if part == "observations":
                found[f"next_{name}"] = array[1:]
        return found


def box_of(node: Node, schema: Schema) -> Any:
    """Return a space that has every value that a node's fields can have.

    Raises:
        TypeError: There is none for a field.
    """
    from gymnasium import spaces

    if isinstance(node.children, dict):
        return spaces.Dict({str(key): box_of(child, schema) for key, child in node.children.items()})
    if isinstance(node.children, tuple):
        return spaces.Tuple([box_of(child, schema) for child in node.children])
    return _box(node.name, schema[node.name], spaces)


def _box(name: str, field: Field, spaces: Any) -> Any:
    dtype: Any = np.dtype(np.float32) if field.dtype.name == BFLOAT16 else field.dtype
    if dtype.kind == "f":
        return spaces.Box(-np.inf, np.inf, field.shape, dtype.type)
    if dtype.kind in "iu":
        return spaces.Box(np.iinfo(dtype).min, np.iinfo(dtype).max, field.shape, dtype.type)
    raise TypeError(f"{name}: expected integers or floats, got {dtype}: give the space yourself")


def _check_in(space: Any, name: str, value: Any) -> None:
    """Refuse rows (n, ...) of which a space has one not, or that have another structure.

    Raises:
        ValueError: So they are.
    """
    from gymnasium import spaces

    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = space.spaces if isinstance(space, spaces.Dict) else dict(enumerate(space.spaces))
        values = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, tuple) else {}
        if {*parts} != {*values}:
            there = "an array" if not values else ", ".join(map(str, values))
            raise ValueError(f"{name}: expected {', '.join(map(str, parts))}, as the space has, got {there}")
        for key, part in parts.items():
            _check_in(part, f"{name}/{key}", values[key])
        return
    bounds = _bounds_of(space, spaces)
    if bounds is None:
        return  # whatever else Minari can write
    got = "several parts" if isinstance(value, (dict, tuple)) else f"{value.shape[1:]} {value.dtype}"
    if isinstance(value, (dict, tuple)) or value.shape[1:] != space.shape or not _is_kind(value.dtype, space.dtype):
        raise ValueError(f"{name}: expected rows {space.shape} {space.dtype}, as the space has, got {got}")
    rows = value.astype(space.dtype) if space.dtype.kind == "f" else value
    for where in np.argwhere((rows < bounds[0]) | (rows > bounds[1]))[:1]:
        row = tuple(where.tolist())
        raise ValueError(f"{name}: expected values of {space}, got {rows[row]} in row {row[0]} of its trajectory")


def _bounds_of(space: Any, spaces: Any) -> tuple[Any, Any] | None:
    """Return the least and the largest values of a space; None of one that has none."""
    if isinstance(space, spaces.Box):
        return space.low, space.high
    if isinstance(space, spaces.Discrete):
        return space.start, space.start + space.n - 1
    if isinstance(space, spaces.MultiDiscrete):
        start = getattr(space, "start", 0)
        return start, start + space.nvec - 1
    return (0, 1) if isinstance(space, spaces.MultiBinary) else None


def _is_kind(dtype: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Tell whether values are of the same kind or a narrower one: flags, integers, floats."""
    order = "biuf"
    return order.index(wanted.kind) >= order.index(dtype.kind) or {wanted.kind, dtype.kind} <= {"i", "u"}


def _created(minari: Any, dataset_id: str, about: Mapping[str, object]) -> Any:
    """Make a dataset without trajectories; where Minari refuses, what it had made goes.

    Raises:
        ValueError, TypeError: As Minari does; or there is one of this name.
    """
    path = needed("minari.storage.datasets_root_dir", "to_minari", _INSTALL).get_dataset_path(dataset_id)
    was_there = path.exists()
    try:
        return minari.create_dataset_from_buffers(dataset_id, [], **about)
    except BaseException:
        if not was_there:
            shutil.rmtree(path, ignore_errors=True)
        raise


def write_minari(dataset_id: str, about: Mapping[str, object], trajectories: Iterable[Mapping[str, Any]]) -> Any:
    """Write trajectories into a new dataset, some megabytes of them at a time.

    Args:
        dataset_id: Its name.
        about: What else `minari.create_dataset_from_buffers` is told.
        trajectories: Observations, actions, rewards, ends and infos of each, by the names that Minari has for them.

    Returns:
        The dataset.

    Raises:
        ImportError: Minari is not there.
        ValueError: There is such a dataset already; or the data are not of a space.
    """
    minari = minari_of("to_minari")
    made = needed("minari.data_collector", "to_minari", _INSTALL).EpisodeBuffer
    # Images are not made JPEGs: what is read is to be what was written.
    dataset = _created(minari, dataset_id, {"jpeg_encoding": False, **about})

    def write(go_on: Callable[[], None]) -> None:
        waiting, num_bytes = [], 0
        for each in trajectories:
            go_on()
            _check_in(dataset.observation_space, "observation", each["observations"])
            _check_in(dataset.action_space, "action", each["actions"])
            waiting.append(made(**each))
            num_bytes += sum(array.nbytes for array in flattened(dataset_id, {"": each["observations"]}).values())
            if num_bytes > _WRITTEN_BYTES:
                dataset.update_dataset_from_buffer(waiting)
                waiting, num_bytes = [], 0
        dataset.update_dataset_from_buffer(waiting)

    try:
        done_apart(write)
    except BaseException:
        shutil.rmtree(dataset.storage.data_path.parent)
        raise
    return dataset
