# SPDX-License-Identifier: MIT
"""Datasets of LeRobot on this machine, of formats 2 and 3: Parquet files, and meta/info.json beside them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from fastreplay.datasets.parquet import ParquetTable, parquet_paths
from fastreplay.datasets.table import ALIASES, ColumnForm, check_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["LeRobotTable"]

_INFO = "meta/info.json"
_NUMBER = "episode_index"
# Of features that are no columns of numbers: what to do.
_ELSEWHERE = {
    "video": "a video, which lies in a file of its own: read its frames with LeRobot's own library, and give them to "
    "load_arrays; or leave the field out of the buffer",
    "image": "compressed images: decode them with LeRobot's own library, and give them to load_arrays; or leave the "
    "field out of the buffer",
}


class LeRobotTable(ParquetTable):
    """A table of such a dataset's frames.

    Args:
        root: The dataset's folder.

    Raises:
        ImportError: pyarrow is not there.
        FileNotFoundError: There is no such folder, or it has no files.
        OSError: They cannot be read.
        ValueError: It is no such dataset, or files of it are missing.
    """

    aliases: Mapping[str, tuple[str, ...]] = {
        **ALIASES,
        "observation": ("observation.state",),
        "reward": ("next.reward",),
        "terminated": ("next.done",),
        "truncated": ("next.truncated",),
    }
    tells_beginnings = True
    _beside = (_NUMBER,)

    def __init__(self, root: str) -> None:
        self._features, num_rows = _info(root)
        super().__init__(root, parquet_paths(os.path.join(root, "data")), "load_lerobot")  # noqa: PTH118
        if sum(self._lengths) != num_rows:
            raise ValueError(
                f"{root}: expected {num_rows} frames, as {_INFO} says, got {sum(self._lengths)}: files are missing"
            )
        if _NUMBER not in self._columns:
            raise ValueError(f"{root}: {_NUMBER}: there is no such column, which says what is one trajectory")
        form = super().form(_NUMBER)
        if form is None or form.dtype is None or form.dtype.kind not in "biu":
            raise TypeError(f"{root}: {_NUMBER}: expected integers, got {self._columns[_NUMBER]}")
        self._last = -1

    def form(self, name: str) -> ColumnForm | None:
        """Do as `Table.form`."""
        form = super().form(name)
        kind = self._features.get(name)
        if kind in _ELSEWHERE:
            return ColumnForm(sum(self._lengths), None, None, _ELSEWHERE[kind])
        if form is not None or "/" not in name:
            return form
        return self.form(name.replace("/", "."))

    def names(self) -> list[str]:
        """Do as `Table.names`."""
        return list(dict.fromkeys([*super().names(), *self._features]))

    def _array(self, where: str, batch: Any, name: str) -> Any:
        return super()._array(where, batch, name if name in self._columns else name.replace("/", "."))

    def rewind(self) -> None:
        """Do as `Table.rewind`."""
        super().rewind()
        self._last = -1

    def _begins(self, columns: Mapping[str, Array], count: int) -> Array:
        numbers = columns[_NUMBER].reshape(count)
        begins: Array = np.diff(numbers, prepend=self._last) != 0
        if count:
            self._last = int(numbers[-1])
        return begins


def _info(root: str) -> tuple[dict[str, str], int]:
    """Return the kind of each feature, and how many frames there are.

    Raises:
        OSError, ValueError: As `LeRobotTable`.
    """
    path = os.path.join(root, _INFO)  # noqa: PTH118
    check_file(path)
    with open(path, "rb") as file:  # noqa: PTH123
        text = file.read()
    try:
        info = json.loads(text)
        kinds = {str(name): str(each["dtype"]) for name, each in info["features"].items()}
        num_rows, made_by = int(info["total_frames"]), str(info["codebase_version"])
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{path}: expected what LeRobot says of a dataset: {error!r}") from error
    if not made_by.startswith(("v2.", "v3.")):
        raise ValueError(f"{path}: expected format v2 or v3, got {made_by}; LeRobot's own scripts convert datasets")
    return kinds, num_rows
