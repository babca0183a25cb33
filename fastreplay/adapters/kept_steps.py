# SPDX-License-Identifier: MIT
"""The way of the buffers that stand in for other libraries' classes into a folder and back. It knows none of those.

What a checkpoint holds of one is what it holds of `fastreplay.ReplayBuffer`, as which it can be loaded, and under
"adapter" what else follows from what was added. What follows from the constructor stays the constructor's: so a buffer
is loaded into one that was made alike.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from fastreplay.adapters.random_integers import NativeIntegers
from fastreplay.buffer.held import checked_path

if TYPE_CHECKING:
    import os

    from fastreplay.adapters.columns import Array
    from fastreplay.adapters.step_table import Steps
    from fastreplay.checkpoint.folder import Folder
    from fastreplay.checkpoint.manifest import Manifest
    from fastreplay.checkpoint.said import Said
    from fastreplay.checkpoint.save import SaveSource

__all__ = ["KeptSteps", "Loading", "said_of_adapter"]


class Loading:
    """Base of a buffer that takes over what was saved."""

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take over what was saved, in the place of what this buffer holds; it was made as the one that was saved.

        Its next minibatches are those that would have come, where they follow from a generator of its own or from
        `np.random` in the state of then. What the constructor was given stays. Nothing in the folder is run, and every
        byte of it is checked before anything is changed.

        Args:
            path: The folder.

        Raises:
            FileNotFoundError: There is no checkpoint.
            OSError: It cannot be read.
            ValueError: It is damaged, or of a buffer of another form; the buffer is as it was.
            TypeError: `path` is no path.

        Thread safety:
            None.
        """
        where = checked_path(path)
        from fastreplay.checkpoint.load import load

        self.__dict__.update(load(where, self._loaded))

    def _loaded(self, folder: Folder, manifest: Manifest) -> dict[str, Any]:
        """Return the attributes of a buffer like this one with what a checkpoint holds."""
        raise NotImplementedError


class KeptSteps(Loading):
    """Base of a buffer of steps: its checkpoints."""

    buffer_size: int
    n_envs: int
    pos: int
    full: bool
    _table: Steps
    _integers: Any

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save into a folder what was added, where it lies, and what else follows from it.

        At every moment the folder holds the checkpoint before or the new one, whole: also after a kill or a loss of
        power. All is written each time, since anybody may have written into the arrays.

        Args:
            path: The folder; it is made where there is none. It may hold a checkpoint, of any buffer, which is
                replaced; else it is empty.

        Raises:
            OSError: It cannot be written; what was saved before stands.
            ValueError: Something else lies in the folder, or the buffer holds what no file does: infos.
            RuntimeError: It was called in the midst of a save into the folder by the same thread.
            TypeError: `path` is no path.

        Thread safety:
            None, as all of this class; but saves into one folder, of any process, take turns.
        """
        where = checked_path(path)
        from fastreplay.checkpoint.save import save

        save(where, self._kept_source(), self._attached(), full=True, hold=False)

    def _kept_source(self) -> SaveSource:
        from fastreplay.checkpoint.lineage import Lineage
        from fastreplay.checkpoint.save import SaveSource

        kept = self._table.kept()
        rows = kept.readable(self.pos, is_full=self.full)
        about = kept.described(*rows.window()).json() | {"adapter": self._said()}
        return SaveSource(rows, Lineage(), lambda _: about, [], lambda *_: [], threading.Lock(), self._parts())

    def _said(self) -> dict[str, Any]:
        """Return what is to be known beside the transitions."""
        rng = None
        if isinstance(self._integers, NativeIntegers):
            key, calls = self._integers.__reduce__()[1]
            rng = {"key": list(key), "calls": calls}
        next_row = self._table.kept().next_row
        return {"n_envs": self.n_envs, "pos": self.pos, "full": self.full, "next_row": next_row, "rng": rng}

    def _attached(self) -> dict[str, Array]:
        """Return what is to be kept beside the transitions, (n,) bytes by name."""
        return self._table.kept().attached(self.pos)

    def _parts(self) -> dict[str, SaveSource]:
        """Return the buffers that this one has."""
        return {}

    def _loaded(self, folder: Folder, manifest: Manifest) -> dict[str, Any]:
        from fastreplay.buffer.described import Described
        from fastreplay.checkpoint.load import naming, read_attached
        from fastreplay.checkpoint.manifest import MANIFEST

        path = folder.file(MANIFEST)
        said, about = said_of_adapter(manifest, path), Described.of(manifest.buffer, path)
        attached = read_attached(folder, manifest)
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        with naming(folder.path):
            made._table = self._table.like()
            kept = made._table.kept()
            # What an earlier fastreplay saved tells by its lanes, if at all.
            envs = said.integer("n_envs", 1) if "n_envs" in said.entries else about.options["lanes"]
            if envs not in (None, self.n_envs):
                raise ValueError(f"n_envs: expected {self.n_envs}, got {envs}")
            kept.check(about, manifest)
            made.pos, made.full = said.integer("pos", 0, self.buffer_size), said.flag("full")
            next_row = said.integer("next_row", 0, made._table.num_rows - 1)
            kept.read(folder, manifest, made.pos, is_full=made.full, next_row=next_row)
            made._take(said, attached, {name: (folder, part) for name, part in manifest.parts.items()})
        return made.__dict__

    def _take(self, said: Said, attached: dict[str, Array], parts: dict[str, tuple[Folder, Manifest]]) -> None:
        """Take over what was said and kept beside the transitions; this buffer is nobody else's yet.

        Raises:
            ValueError: It is malformed, or of another kind of buffer.
        """
        self._table.kept().take(attached, self.pos)
        # Of NumPy's draws none is said: a generator of one's own then goes on as it is.
        if isinstance(self._integers, NativeIntegers) and said.entries.get("rng") is not None:
            rng = said.generator("rng")
            self._integers = NativeIntegers(tuple(rng["key"]), rng["calls"])
        for kind, names in (("attached", attached), ("parts", parts)):
            if names:  # whoever knows more has taken it
                raise ValueError(f"{kind}: expected a buffer without {', '.join(names)}; this class has none")


def said_of_adapter(manifest: Manifest, path: str) -> Said:
    """Return what a checkpoint says of a buffer that stands in for another library's.

    Raises:
        ValueError: It is none of such a buffer.
    """
    from fastreplay.checkpoint.said import Said

    if "adapter" not in manifest.buffer:
        raise ValueError(f"{path}: expected a checkpoint of a buffer of fastreplay.sb3 or fastreplay.cleanrl")
    return Said(manifest.buffer["adapter"], f"{path}: adapter")
