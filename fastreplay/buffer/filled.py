# SPDX-License-Identifier: MIT
"""A buffer's way in for data that others collected: arrays, files, datasets of other libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from fastreplay.buffer.held import checked_path
from fastreplay.buffer.kept import Kept

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from minari import MinariDataset
    from typing_extensions import Unpack

    from fastreplay.buffer.filling import LoadedData, LoadOptions
    from fastreplay.buffer.written import WrittenData
    from fastreplay.datasets.table import OpenTable
    from fastreplay.support.progress import Progress

__all__ = ["Filled"]

ArrayT = TypeVar("ArrayT")  # torch.Tensor or numpy.ndarray


class Filled(Kept[ArrayT]):
    """Base of the replay buffer: what it is filled with, beside steps of environments."""

    def load_arrays(
        self,
        columns: Mapping[str, object],
        *,
        names: Mapping[str, str | None] | None = None,
        lane: int | None = None,
        overwrite: bool = False,
        progress: Progress = True,
    ) -> LoadedData:
        """Insert the steps of a dataset that is in memory: columns of trajectories, one after another.

        Each field is filled from the column of its name, or of the name that other libraries give it: `observations`,
        `actions`, `rewards`, `next_observations`, `terminals` or `terminations`, `timeouts` or `truncations`; else
        from that below `infos`. A field `next_X` without a column is the next row of `X`: of a last row that
        terminates, its own (it is not bootstrapped from); any other last row is left out, as what came next is not in
        the data. A column of numbers goes into a field of bools where all are 0 or 1; else casts are those of
        `extend`. Columns that no field wants are not looked at.

        Args:
            columns: Arrays (n, *shape) by name, nested or not ("/" joins names); or what NumPy makes arrays of.
            names: The columns of fields, or of all below a name, that are called otherwise. None for `terminated`
                or `truncated`: there are no such ends, which is to be said where next observations follow from ends.
            lane: Which lane of the buffer trajectories go into; None for all lanes, each trajectory into the next.
                A lane's trajectory is cut before and after, and where one ends without a flag: nothing goes across.
            overwrite: Whether the newest may take the place of transitions for which there is no room.
            progress: Whether a bar is drawn on a terminal, of work of more than a second; or a function that is
                called with the rows done and those there are, after each block.

        Returns:
            LoadedData(transitions, trajectories, left_out, overwritten).

        Raises:
            TypeError: `columns` is no mapping, a column's kind does not fit its field, or an argument is of the wrong
                type.
            ValueError: A column is missing, or its shape or length is another; a flag is neither 0 nor 1; there is
                no room. Columns are checked before anything is inserted; what only their rows tell is found on the
                way, and the message says how many transitions were inserted.
            RuntimeError: Another thread is inserting into one of the lanes.
            TimeoutError: As in `extend`.

        Thread safety:
            May be called from any thread, beside others, into lanes of its own. After Ctrl-C or an error, whole
            transitions are there, and the last trajectory is cut.
        """

        def open_table() -> OpenTable:
            from fastreplay.datasets.arrays import ArrayTable, flattened
            from fastreplay.datasets.table import TableHere

            return TableHere(ArrayTable("columns", flattened("columns", columns)))

        return self._load(open_table, names=names, lane=lane, overwrite=overwrite, progress=progress)

    def load_npz(
        self,
        path: str | os.PathLike[str],
        **options: Unpack[LoadOptions],
    ) -> LoadedData:
        """Do as `load_arrays` with a file of `numpy.savez` or `savez_compressed`, some rows at a time.

        Arrays that were saved in Fortran's order are read whole. Nothing in the file is run: there are no pickles.

        Args:
            path: The file.
            **options: As in `load_arrays`: `names`, `lane`, `overwrite`, `progress`.

        Returns:
            As there.

        Raises:
            OSError: The file cannot be read.
            TypeError, ValueError: As there; or it is no such file, or damaged. What else is raised there is here.

        Thread safety:
            As there.
        """
        where = checked_path(path)

        def open_table() -> OpenTable:
            from fastreplay.datasets.npz import NpzTable
            from fastreplay.datasets.table import TableHere

            return TableHere(NpzTable(where))

        return self._load(open_table, **options)

    def load_parquet(
        self,
        path: str | os.PathLike[str],
        **options: Unpack[LoadOptions],
    ) -> LoadedData:
        """Do as `load_arrays` with a Parquet file, or with all in a folder, in the order of their names.

        Columns of numbers, of lists of numbers, which have one length in all rows, and parts of structures
        (`observation/position`). Needs pyarrow.

        Args:
            path: The file or folder.
            **options: As in `load_arrays`: `names`, `lane`, `overwrite`, `progress`.

        Returns:
            As there.

        Raises:
            ImportError: pyarrow is not there; the message says how to get it.
            OSError: A file cannot be read.
            TypeError, ValueError: As there; or it is no such file, or has nulls. What else is raised there is here.

        Thread safety:
            As there.
        """
        where = checked_path(path)

        def open_table() -> OpenTable:
            from fastreplay.datasets.parquet import ParquetTable, parquet_paths
            from fastreplay.datasets.table import TableHere

            return TableHere(ParquetTable(where, parquet_paths(where)))

        return self._load(open_table, **options)

    def load_hdf5(
        self,
        path: str | os.PathLike[str],
        *,
        mask: str | None = None,
        **options: Unpack[LoadOptions],
    ) -> LoadedData:
        """Do as `load_arrays` with an HDF5 file in D4RL's layout, or in robomimic's, some rows at a time.

        D4RL's is a dataset a column (`observations`, `actions`, `rewards`, `terminals`, `timeouts`, `infos/qpos`).
        robomimic's is a group a trajectory, `data/demo_0`, with `obs/...`, `next_obs/...`, `actions`, `rewards`,
        `dones`, `states`, in the order of their numbers; `dones` is what terminates. Needs h5py.

        Args:
            path: The file.
            mask: Which of robomimic's trajectories: those of `mask/<name>`; None for all.
            **options: As in `load_arrays`: `names`, `lane`, `overwrite`, `progress`.

        Returns:
            As there.

        Raises:
            ImportError: h5py is not there; the message says how to get it.
            OSError: The file cannot be read.
            TypeError, ValueError: As there; or it is no such file. What else is raised there is here.

        Thread safety:
            As there.
        """
        where = checked_path(path)
        if not (mask is None or isinstance(mask, str)):
            raise TypeError(f"mask: expected the name of a mask or None, got {mask!r}")

        def open_table() -> OpenTable:
            from fastreplay.datasets.hdf5 import hdf5_table

            return hdf5_table(where, mask)

        return self._load(open_table, **options)

    def load_minari(
        self,
        dataset: MinariDataset | str,
        **options: Unpack[LoadOptions],
    ) -> LoadedData:
        """Do as `load_arrays` with a dataset of Minari, one trajectory at a time.

        T steps have T + 1 observations there, so that no row is left out. Needs Minari.

        Args:
            dataset: It, filtered or not, or the name of one on this machine.
            **options: As in `load_arrays`; the columns are `observations`, `actions`, `rewards`, `terminations`,
                `truncations` and what is below `infos`.

        Returns:
            As there.

        Raises:
            ImportError: Minari is not there; the message says how to get it.
            OSError: There is no dataset of this name on this machine, or it cannot be read.
            TypeError, ValueError: As there. What else is raised there is here.

        Thread safety:
            As there.
        """

        def open_table() -> OpenTable:
            from fastreplay.datasets.apart import ApartTable
            from fastreplay.datasets.minari import MinariTable

            return ApartTable(lambda: MinariTable(dataset))

        return self._load(open_table, **options)

    def load_lerobot(
        self,
        root: str | os.PathLike[str],
        **options: Unpack[LoadOptions],
    ) -> LoadedData:
        """Do as `load_arrays` with a dataset of LeRobot on this machine, of format 2 or 3.

        `observation` is `observation.state`, and `observation/X` is `observation.X`; `reward` is `next.reward`,
        `terminated` is `next.done`. The last frame of a trajectory that is not done is left out where a next
        observation is wanted. Videos and images are refused by name. Needs pyarrow.

        Args:
            root: The dataset's folder, in which `meta/info.json` is.
            **options: As in `load_arrays`: `names`, `lane`, `overwrite`, `progress`.

        Returns:
            As there.

        Raises:
            OSError: A file cannot be read.
            ImportError: pyarrow is not there; the message says how to get it.
            TypeError, ValueError: As there; or it is no such dataset, or files of it are missing. What else is raised
                there is here.

        Thread safety:
            As there.
        """
        where = checked_path(root)

        def open_table() -> OpenTable:
            from fastreplay.datasets.lerobot import LeRobotTable
            from fastreplay.datasets.table import TableHere

            return TableHere(LeRobotTable(where))

        return self._load(open_table, **options)

    def to_minari(
        self,
        dataset_id: str,
        *,
        env: object = None,
        observation_space: object = None,
        action_space: object = None,
        about: Mapping[str, object] | None = None,
    ) -> WrittenData:
        """Write the trajectories that are whole into a new dataset of Minari, lane after lane.

        Whole is what goes from its beginning to an end or a cut; a cut is written as a truncation, as Minari's own
        collector does. Fields that are no part of a step for Minari become `infos`. Images are stored as they are.

        Args:
            dataset_id: Its name, as Minari has them: `pendulum/mine-v0`.
            env: The environment, its specification or its name, which Minari stores; None for none.
            observation_space: The space of observations; None for that of `env`, else for all values of their dtype.
            action_space: The same of actions.
            about: What else `minari.create_dataset_from_buffers` takes: `author`, `description`, `data_format`, ...

        Returns:
            WrittenData(dataset, transitions, trajectories, left_out).

        Raises:
            ImportError: Minari is not there; the message says how to get it.
            TypeError: There is no space for a field's dtype; or Minari refuses an argument.
            ValueError: The buffer has no lanes, no whole trajectory, or not the fields; a transition's next
                observation is not the observation of the one after it; a value is not of the space that was given, or
                of `env`'s; there is such a dataset already. None is made, and none is left half written.

        Thread safety:
            May be called from any thread, beside others. What they overwrite before it is read is left out.
        """
        from fastreplay.buffer.written import to_minari

        spaces = {"env": env, "observation_space": observation_space, "action_space": action_space}
        return to_minari(self, dataset_id, spaces, about)

    def _load(self, open_table: Callable[[], OpenTable], **options: Unpack[LoadOptions]) -> LoadedData:
        from fastreplay.buffer.filling import load

        return load(self, open_table, **options)

    def _next_fields(self) -> Mapping[str, str]:
        """Return which fields are the next of others, beside those that are called so."""
        pairs: Any = self._frames.share_next
        return {} if isinstance(pairs, bool) else pairs
